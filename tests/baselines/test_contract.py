"""What every method promises, over whatever the registry finds."""

import gc
import pickle
import threading
import weakref

import numpy as np
import pytest
from PIL import Image

from baselines import registry, tiny
from baselines.base import MethodUnavailableError, pixels_sha256, run
from baselines.memory import Shelf

METHODS = registry.discover()
# Settings of one method run the same code: test_pure.py tries them on a small model.
SAMPLE = [method for method in METHODS.values() if method.variant_of is None]
SEED = 3


@pytest.fixture(params=SAMPLE, ids=lambda method: method.name, scope="module")
def method(request):
    """Each that can run here; those whose weights come apart with tiny random ones."""
    method = request.param
    if method.name in tiny.WRITERS:
        weights = request.getfixturevalue("weights")
        method = registry.discover(weights=weights)[method.name]
    if (reason := method.unavailable()) is not None:
        pytest.skip(reason)
    return method


@pytest.fixture(scope="module")
def restorer(method):
    return method.load("cpu")


@pytest.fixture(scope="module")
def lq():
    y, x = np.mgrid[0:16, 0:24] * 10
    return Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))


def restore(method, restorer, picture):
    """In three steps where a method counts steps: the promises do not hang on how many."""
    quick = {setting.name: 3 for setting in method.settings if setting.name == "steps"}
    return run(method, restorer, picture, seed=SEED, values=quick)


@pytest.fixture(scope="module")
def first(method, restorer, lq):
    """A restoration, and whether the input was left alone."""
    before = pixels_sha256(lq)
    restoration, _ = restore(method, restorer, lq)
    return restoration, pixels_sha256(lq) == before


def test_a_card_names_source_licence_and_settings(method):
    assert method.title
    assert method.source
    assert method.licence
    assert method.paper_settings
    assert method.preprocessing
    assert method.postprocessing
    assert method.memory_bytes > 0 or method.family == "interpolation"
    assert method.name == method.name.lower()


def test_the_result_is_rgb_and_scale_times_the_input(method, first, lq):
    restoration, _ = first
    assert restoration.image.mode == "RGB"
    assert restoration.image.size == (lq.width * method.scale, lq.height * method.scale)
    assert (restoration.method, restoration.seed) == (method.name, SEED)
    assert restoration.seconds > 0


def test_the_input_stays_as_it_is(first):
    assert first[1]


def test_the_same_seed_gives_the_same_pixels_from_a_second_copy(method, first, lq):
    restoration, card = restore(method, method.load("cpu"), lq)
    assert restoration.image.tobytes() == first[0].image.tobytes()
    assert card.output_sha256 == pixels_sha256(first[0].image)
    assert card.details == first[0].details


def test_it_looks_like_the_input(first, lq):
    """Mean colour within 40 levels: not black, channels not swapped. PURE-nano is young.

    Random weights pass, because colours are taken over from the input.
    """
    difference = np.asarray(first[0].image).mean((0, 1)) - np.asarray(lq).mean((0, 1))
    assert np.abs(difference).max() < 40


def test_threads_get_what_they_asked_for(method, restorer, first, lq):
    """Through the shelf, as the app runs methods from several threads."""
    shelf = Shelf(2 * max(1, method.memory_bytes))
    other = lq.rotate(180)
    expected = {
        id(lq): first[0].image.tobytes(),
        id(other): restore(method, restorer, other)[0].image.tobytes(),
    }
    wrong = []

    def work(picture):
        try:
            with shelf.use(method) as shared:
                restored = restore(method, shared, picture)[0].image
                if restored.tobytes() != expected[id(picture)]:
                    wrong.append("another picture")
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(p,)) for p in (lq, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert wrong == []


def test_unloading_frees_it(method):
    loaded = method.load("cpu")
    gone = weakref.ref(loaded)
    del loaded
    gc.collect()
    assert gone() is None


def test_a_method_that_cannot_run_here_says_so_without_being_loaded():
    for method in METHODS.values():
        reason = method.unavailable()
        if reason is not None:
            assert reason.startswith(method.title.split(" (")[0])
            assert reason.endswith(".")


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_a_card_travels_to_another_process_and_says_what_a_gpu_would_take(method):
    # a leased GPU is in another process, and is leased for a time
    there = pickle.loads(pickle.dumps(method))
    assert (there.name, there.gpu_seconds is None) == (method.name, method.gpu_seconds is None)
    if method.gpu_seconds is not None:
        small, large = (method.gpu_seconds(size) for size in ((128, 128), (256, 256)))
        assert there.gpu_seconds((128, 128)) == small
        assert small == large == 0 or 0 < small < large < 4 * 3600


def test_names_are_unique_and_in_order():
    orders = [(method.order, method.name) for method in METHODS.values()]
    assert orders == sorted(orders)
    for method in METHODS.values():
        assert method.variant_of is None or METHODS[method.variant_of].variant_of is None


def test_choosing_names_all_problems_at_once():
    with pytest.raises(MethodUnavailableError) as error:
        registry.choose(["bicubic", "magic", "sorcery"], METHODS)
    assert "'magic'" in str(error.value)
    assert "'sorcery'" in str(error.value)
    assert [m.name for m in registry.choose(["lanczos", "nearest"], METHODS)] == [
        "lanczos",
        "nearest",
    ]
