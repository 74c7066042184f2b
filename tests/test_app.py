"""The whole app around a fake model: built, served, and asked by clients."""

import html
import importlib
import socket
import sys
import threading
import time
from dataclasses import replace

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image, ImageOps

from baselines import pure, registry
from baselines.memory import Shelf
from tests.imaging.hostile_files import HOSTILE
from tests.ui.fake_methods import FakeShelf, by_name, fake, speaking, three
from tests.ui.fake_pipeline import CAPTION, LABEL, FakePipeline
from ui.boundary import Model
from ui.compare_tab import Bench
from ui.settings import Settings

# Gradio's queue counts with pandas, which warns that it will change.
pytestmark = pytest.mark.filterwarnings("ignore:.*no_silent_downcasting.*")

SOME_HOSTILE = sorted(HOSTILE)[::3]


@pytest.fixture(scope="module")
def app(checkpoint_folder):
    """`app.py`, imported as `python app.py` would find it, on a model of two layers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PURE_CHECKPOINT", str(checkpoint_folder))
        patch.setenv("PURE_DEVICE", "cpu")
        sys.modules.pop("app", None)
        return importlib.import_module("app")


@pytest.fixture(scope="module")
def serve(app):
    """Serves a page around a pipeline at a free port; gives its address."""
    pages = []

    def start(pipeline, methods=None, shelf=None, **changes) -> str:
        settings = Settings(**changes)
        bench = Bench(methods or three(), shelf or FakeShelf())
        page = app.compose(Model(pipeline), bench, settings)
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        _, address, _ = page.launch(
            **app.launch_options(settings), prevent_thread_lock=True, quiet=True, server_port=port
        )
        pages.append(page)
        return address

    yield start
    for page in pages:
        page.close()


def connect(address) -> Client:
    return Client(address, verbose=False, analytics_enabled=False)


@pytest.fixture(scope="module")
def address(serve):
    return serve(FakePipeline())


@pytest.fixture(scope="module")
def client(address):
    return connect(address)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "cat.png"
    noise = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path


def test_the_module_has_a_demo(app):
    assert app.demo.title == "PURE"


def test_restore_and_compare_are_the_public_endpoints(client):
    api = client.view_api(return_format="dict", print_info=False)
    assert list(api["named_endpoints"]) == ["/restore", "/compare"]
    assert not api["unnamed_endpoints"]
    restore = api["named_endpoints"]["/restore"]
    assert [p["parameter_name"] for p in restore["parameters"]] == [
        "image", "scale", "seed", "sampling", "guidance", "colour_fix", "label", "caption",
    ]  # fmt: skip
    assert restore["description"]


def test_restore_streams_and_ends_with_picture_and_card(client, photo):
    job = client.submit(handle_file(str(photo)), scale=2, api_name="/restore")
    job.result(timeout=30)
    outputs = job.outputs()
    assert outputs[0][0]["label"] is None
    progress, picture, card = outputs[-1]
    assert (progress["label"], progress["caption"], progress["done"]) == (LABEL, CAPTION, 1)
    with Image.open(photo) as lq, Image.open(picture) as sr:
        assert sr.format == "PNG"
        assert sr.tobytes() == ImageOps.invert(lq.resize((48, 32))).tobytes()
    assert card["output"]["file"] == "cat_pure_x2.png"


def test_a_given_belief_is_used(client, photo):
    result = client.predict(
        handle_file(str(photo)), scale=1, label="Small blur.", caption="Fog.", api_name="/restore"
    )
    assert (result[2]["label"], result[2]["caption"]) == ("Small blur.", "Fog.")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scale": 9}, "scale"),
        ({"seed": -1}, "seed"),
        ({"sampling": "topk:many"}, "topk:K"),
        ({"label": "<b>"}, "&lt;b&gt;"),
        ({"caption": "a" * 3000}, "characters"),
    ],
)
def test_a_wrong_option_is_a_sentence(client, photo, changes, said):
    with pytest.raises(AppError, match=said):
        client.predict(handle_file(str(photo)), api_name="/restore", **changes)


def test_a_photo_that_is_too_large_is_a_sentence_with_numbers(client, tmp_path):
    Image.new("RGB", (300, 200)).save(tmp_path / "large.png")
    with pytest.raises(AppError, match=r"300 × 200; at 4× .* 25,600 pixels"):
        client.predict(handle_file(str(tmp_path / "large.png")), api_name="/restore")


def test_hostile_files_give_a_picture_or_a_sentence_and_harm_nobody(client, photo, tmp_path):
    assert len(SOME_HOSTILE) >= 30
    for number, name in enumerate(SOME_HOSTILE):
        file = HOSTILE[name]
        path = tmp_path / f"{number}{file.extension}"
        path.write_bytes(file.content)
        try:
            _, picture, _ = client.predict(handle_file(str(path)), scale=1, api_name="/restore")
        except AppError as error:
            message = html.unescape(str(error))
            assert "Something broke" not in message, name
            assert message.endswith((".", ")")), name
            assert len(message) > 20, name
        else:
            assert Image.open(picture).size, name
    assert client.predict(handle_file(str(photo)), scale=1, api_name="/restore")[1]


@pytest.mark.parametrize("meta", [{}, {"meta": {"_type": "gradio.FileData"}}])
def test_a_path_on_the_server_is_not_read(address, photo, meta):
    data = [{"path": str(photo)} | meta, 1, 0, "top1", "full", "none", "", ""]
    call = httpx.post(f"{address}gradio_api/call/restore", json={"data": data})
    told = httpx.get(f"{address}gradio_api/call/restore/{call.json()['event_id']}", timeout=30)
    assert "event: error" in told.text
    assert "generating" not in told.text


def test_the_unexpected_shows_a_reference_and_nothing_else(serve, photo):
    client = connect(serve(FakePipeline(breaks=True)))
    with pytest.raises(AppError, match=r"Something broke on our side \(reference [0-9a-f]{6}\)"):
        client.predict(handle_file(str(photo)), api_name="/restore")


def test_two_clients_at_once_each_get_their_own(serve, tmp_path):
    pipeline = FakePipeline(pause=0.05)
    address = serve(pipeline)
    results = {}

    def ask(level: int) -> None:
        path = tmp_path / f"{level}.png"
        Image.new("RGB", (16, 16), (level,) * 3).save(path)
        results[level] = connect(address).predict(
            handle_file(str(path)), scale=1, api_name="/restore"
        )[1]

    threads = [threading.Thread(target=ask, args=(level,)) for level in (50, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for level in (50, 200):
        with Image.open(results[level]) as picture:
            assert picture.getpixel((5, 5)) == (255 - level,) * 3
    assert pipeline.most_running == 1


def test_cancelling_ends_the_work_and_frees_the_model(serve, photo):
    pipeline = FakePipeline(rows=200, pause=0.05)
    client = connect(serve(pipeline))
    job = client.submit(handle_file(str(photo)), scale=1, api_name="/restore")
    wait(lambda: pipeline.passes > 5)
    job.cancel()
    wait(lambda: pipeline.closed == 1)
    passes = pipeline.passes
    time.sleep(0.3)
    assert pipeline.passes == passes
    pipeline.rows = 2
    assert client.predict(handle_file(str(photo)), scale=1, api_name="/restore")[1]


def test_a_full_queue_is_refused(serve, photo):
    pipeline = FakePipeline(rows=40, pause=0.05)
    address = serve(pipeline, queue_size=1)
    client = connect(address)
    jobs = [client.submit(handle_file(str(photo)), scale=1, api_name="/restore")]
    wait(lambda: pipeline.passes > 0)
    jobs += [client.submit(handle_file(str(photo)), scale=1, api_name="/restore") for _ in range(3)]
    wait(lambda: sum(job.done() and job.exception() is not None for job in jobs) >= 1)
    for job in jobs:
        job.cancel()


# Comparing


def test_compare_is_typed_and_documented(client):
    compare = client.view_api(return_format="dict", print_info=False)["named_endpoints"]["/compare"]
    parameters = {one["parameter_name"]: one for one in compare["parameters"]}
    assert list(parameters) == ["image", "methods", "seed", "settings"]
    assert "'plain', 'inverted', 'mirrored'" in parameters["methods"]["python_type"]["type"]
    assert "waiting, running, done or failed" in compare["description"]


def test_compare_streams_and_ends_with_pictures_and_cards(client, photo):
    job = client.submit(
        handle_file(str(photo)), methods=["plain", "inverted"], seed=3, api_name="/compare"
    )
    job.result(timeout=30)
    states = [[one["state"] for one in progress.values()] for progress, _, _ in job.outputs()]
    assert states[0] == ["running", "waiting"]
    assert states[-1] == ["done", "done"]
    _, files, cards = job.outputs()[-1]
    with Image.open(photo) as lq, Image.open(files[0]) as plain, Image.open(files[1]) as inverted:
        large = lq.resize((48, 32), Image.Resampling.NEAREST)
        assert (plain.format, plain.tobytes()) == ("PNG", large.tobytes())
        assert inverted.tobytes() == ImageOps.invert(large).tobytes()
    assert {name: card["seed"] for name, card in cards.items()} == {"plain": 3, "inverted": 3}


def test_settings_are_taken_by_method(serve, photo):
    methods = by_name(speaking(), fake("plain"))
    client = connect(serve(FakePipeline(), methods))
    given = {"speaking": {"steps": 20, "tags": "a cat"}}
    client.predict(handle_file(str(photo)), [*methods], 0, given, api_name="/compare")
    assert methods["speaking"].load("cpu").options == {"steps": 20, "tags": "a cat"}
    client.predict(handle_file(str(photo)), methods=[*methods], api_name="/compare")
    assert methods["speaking"].load("cpu").options is None
    given = {"speaking": {"steps": 0}}
    with pytest.raises(AppError, match="Steps is 1 to 100, not 0"):
        client.predict(handle_file(str(photo)), [*methods], 0, given, api_name="/compare")


def test_tiny_runs_the_whole_way_and_says_so(app, serve, photo, tmp_path, monkeypatch):
    for package in ("diffusers", "timm"):
        pytest.importorskip(package, reason="requirements-baselines.txt is not installed")
    monkeypatch.setattr(app.tiny, "WRITERS", {"osediff": app.tiny.WRITERS["osediff"]})
    bench = app.tiny_bench(tmp_path, Settings())
    title = "OSEDiff (random weights, for testing)"
    assert bench.methods["osediff"].title == title
    client = connect(serve(FakePipeline(), bench.methods, bench._shelf))
    progress, files, cards = client.predict(
        handle_file(str(photo)), methods=["osediff"], api_name="/compare"
    )
    assert progress["osediff"] | {"seconds": 0} == {
        "state": "done", "title": title, "seconds": 0, "problem": "",
    }  # fmt: skip
    assert cards["osediff"]["title"] == title
    with Image.open(files[0]) as restored:
        assert restored.size == (96, 64)


def test_tiny_without_its_packages_says_how_to_get_them(app, monkeypatch, capsys):
    monkeypatch.setattr(app, "_there", lambda package: package != "timm")
    with pytest.raises(SystemExit):
        app.main(["--tiny"])
    assert "--tiny needs timm: pip install -r" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": []}, "1 to 7 methods"),
        ({"methods": ["plain"], "seed": -4}, "seed"),
    ],
)
def test_a_wrong_comparison_is_a_sentence(client, photo, changes, said):
    with pytest.raises(AppError, match=said):
        client.predict(handle_file(str(photo)), api_name="/compare", **changes)


def test_methods_that_are_not_on_offer_are_refused(address, serve, photo):
    far = by_name(fake("plain"), fake("far", reason="Far needs a GPU."))
    for client in (connect(address), connect(serve(FakePipeline(), far))):
        with pytest.raises(AppError, match="far"):
            client.predict(handle_file(str(photo)), methods=["far"], api_name="/compare")


def test_compare_reads_no_path_on_the_server(address, photo):
    data = [{"path": str(photo), "meta": {"_type": "gradio.FileData"}}, ["plain"], 0]
    call = httpx.post(f"{address}gradio_api/call/compare", json={"data": data})
    told = httpx.get(f"{address}gradio_api/call/compare/{call.json()['event_id']}", timeout=30)
    assert "event: error" in told.text
    assert "generating" not in told.text


def test_five_visitors_compare_at_once_and_each_gets_their_own(serve, tmp_path):
    shelf = FakeShelf()
    methods = by_name(fake("plain", pause=0.02), fake("inverted", ImageOps.invert, pause=0.02))
    address = serve(FakePipeline(), methods, shelf)
    results = {}

    def ask(level: int) -> None:
        path = tmp_path / f"{level}.png"
        Image.new("RGB", (16, 16), (level,) * 3).save(path)
        results[level] = connect(address).predict(
            handle_file(str(path)), methods=["plain", "inverted"], api_name="/compare"
        )

    threads = [threading.Thread(target=ask, args=(level,)) for level in range(20, 120, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 5
    for level, (progress, files, _) in results.items():
        assert [one["state"] for one in progress.values()] == ["done", "done"]
        for file, expected in zip(files, (level, 255 - level), strict=True):
            with Image.open(file) as picture:
                assert picture.getpixel((5, 5)) == (expected,) * 3
    assert shelf.most_inside == 1


class WatchedShelf(Shelf):
    """Knows the most memory that loaded methods took together, by their cards."""

    most = 0

    def _take(self, method):
        entry = super()._take(method)
        with self._changed:
            taken = sum(one.method.memory_bytes for one in self._loaded.values())
            self.most = max(self.most, taken)
        return entry


def test_five_visitors_of_real_methods_lose_nothing_and_stay_in_the_budget(
    serve, checkpoint_folder, tmp_path
):
    tiny = next(pure.variants(str(checkpoint_folder), name="tiny", title="Tiny", memory_bytes=60))
    ours = registry.discover()
    methods = by_name(
        *(replace(ours[name], memory_bytes=30) for name in ("nearest", "bicubic", "lanczos")), tiny
    )
    shelf = WatchedShelf(100)  # all four would take 150: some have to go for others
    address = serve(FakePipeline(), methods, shelf)
    rng = np.random.default_rng(5)
    photos = [Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)) for _ in range(5)]
    chosen = [["tiny", "bicubic"], ["lanczos", "tiny"], ["nearest", "bicubic", "lanczos"]]
    results = {}

    def ask(visitor: int) -> None:
        path = tmp_path / f"{visitor}.png"
        photos[visitor].save(path)
        results[visitor] = connect(address).predict(
            handle_file(str(path)), methods=chosen[visitor % 3], seed=visitor, api_name="/compare"
        )

    threads = [threading.Thread(target=ask, args=(visitor,)) for visitor in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(results) == list(range(5))
    for visitor, (progress, files, cards) in results.items():
        assert {one["state"] for one in progress.values()} == {"done"}
        assert sorted(cards) == sorted(chosen[visitor % 3])
        for name, file in zip(progress, files, strict=True):
            alone = methods[name].load("cpu").restore(photos[visitor], seed=visitor).image
            with Image.open(file) as picture:
                assert picture.tobytes() == alone.tobytes(), (visitor, name)
    assert 60 < shelf.most <= 100


def test_cancelling_a_comparison_starts_no_further_method(serve, photo):
    methods = by_name(*(fake(name, pause=1) for name in "abcdefg"))
    client = connect(serve(FakePipeline(), methods))
    job = client.submit(handle_file(str(photo)), methods=list("abcdefg"), api_name="/compare")

    def runs() -> int:
        return sum(method.load("cpu").runs for method in methods.values())

    wait(lambda: runs() >= 1)
    job.cancel()
    before, ran = -1, runs()
    while ran != before:  # a method that is at work finishes
        time.sleep(1.5)
        before, ran = ran, runs()
    assert ran < 7
    assert client.predict(handle_file(str(photo)), methods=["g"], api_name="/compare")[1]


def wait(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
