"""PURE as methods, on a checkpoint of random weights."""

import gc
import weakref
from dataclasses import replace

import pytest

from baselines import pure
from baselines.base import MethodError, MethodUnavailableError, run
from pure import cost
from pure.checkpoint import RELEASED_ID
from pure.model import CONFIGS
from pure.pipeline import RestoreSettings
from pure.sampling import SamplingConfig


@pytest.fixture(scope="module")
def methods(checkpoint_folder):
    found = pure.variants(str(checkpoint_folder), name="tiny", title="Tiny", memory_bytes=1)
    return {method.name: method for method in found}


@pytest.fixture
def photo(photo):
    """One tile of the model."""
    return photo.crop((0, 0, 8, 8))


@pytest.fixture(autouse=True)
def forget():
    yield
    gc.collect()


def test_every_setting_of_the_papers_tables_is_a_method(methods):
    assert list(methods) == [
        *("tiny", "tiny-perception", "tiny-understanding", "tiny-unguided"),
        *("tiny-top1", "tiny-top2000", "tiny-kmax10", "tiny-kmax100", "tiny-kmax500", "tiny-cfg1"),
    ]
    assert methods["tiny"].variant_of is None
    assert methods["tiny-top1"].variant_of == "tiny"


@pytest.mark.parametrize(
    ("ending", "settings"),
    [
        ("", RestoreSettings(seed=5)),
        ("-unguided", RestoreSettings(seed=5, guidance="none")),
        ("-top1", RestoreSettings(seed=5, sampling=SamplingConfig(mode="top1"))),
        ("-kmax10", RestoreSettings(seed=5, sampling=SamplingConfig(k_max=10))),
        ("-cfg1", RestoreSettings(seed=5, sampling=SamplingConfig(guidance_scale=1.0))),
    ],
)
def test_a_setting_and_the_seed_reach_the_model(methods, pipeline, photo, ending, settings):
    method = methods[f"tiny{ending}"]
    restoration, card = run(method, method.load("cpu"), photo, seed=5)
    expected = pipeline.restore(photo, settings)
    assert restoration.image.tobytes() == expected.image.tobytes()
    assert restoration.text == (expected.belief.text or None)
    assert card.details["guidance"] == settings.guidance
    assert card.details["k_max"] == settings.draw().k_max
    assert card.colour_fix == "wavelet"


def test_settings_share_the_weights_and_the_last_one_frees_them(methods):
    one, two = methods["tiny"].load("cpu"), methods["tiny-top1"].load("cpu")
    assert one.shared is two.shared
    shared = weakref.ref(one.shared)
    del one
    gc.collect()
    assert shared() is not None
    del two
    gc.collect()
    assert shared() is None


def test_the_card_counts_the_parameters_of_both_networks(methods, checkpoint, photo):
    details = run(methods["tiny"], methods["tiny"].load("cpu"), photo)[1].details
    counted = sum(p.numel() for net in (checkpoint.model, checkpoint.vq) for p in net.parameters())
    assert details["parameters"] == counted


def test_a_photo_that_is_too_large_is_refused_with_a_sentence(methods, photo):
    large = photo.resize((2000, 600))
    with pytest.raises(MethodError, match="The limit is"):
        methods["tiny"].load("cpu").restore(large)


def test_a_checkpoint_that_is_not_there_is_said(tmp_path):
    method = next(pure.variants(str(tmp_path), name="x", title="X", memory_bytes=1))
    with pytest.raises(MethodUnavailableError, match="PURE: "):
        method.load("cpu")


def test_the_released_weights_ask_for_the_gpu_they_need(monkeypatch):
    monkeypatch.setattr(pure.torch.cuda, "is_available", lambda: False)
    released = pure.METHODS[0]
    assert released.unavailable() == (
        "PURE needs a GPU of 24 GiB, and there is none here. Use PURE-nano instead."
    )
    assert replace(released, missing=lambda: None).unavailable() is None


def test_what_a_gpu_would_take_is_the_cost_of_a_tile_times_the_tiles(methods):
    released = pure.gpu_seconds(RELEASED_ID, RestoreSettings(), (128, 128))
    assert released == cost.image_seconds(CONFIGS["7b"], cost.ZERO_GPU, launch=cost.EAGER_LAUNCH)
    # 1024 pixels in tiles of 512 that share a quarter: three a side
    assert pure.gpu_seconds(RELEASED_ID, RestoreSettings(), (256, 256)) == pytest.approx(
        9 * released
    )
    unguided = pure.gpu_seconds(RELEASED_ID, RestoreSettings(guidance="none"), (128, 128))
    assert unguided < released
    # two layers that write 4 × 4 codes a sequence: launching the kernels is all there is
    passes, layer = cost.Workload.text + 4 * 4, cost.EAGER_LAUNCH / 32
    assert methods["tiny"].gpu_seconds((8, 8)) == pytest.approx(passes * 2 * layer, rel=0.01)
