"""The whole app around a fake model: built, served, and asked by clients."""

import html
import importlib
import socket
import sys
import threading
import time

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image, ImageOps

from tests.imaging.hostile_files import HOSTILE
from tests.ui.fake_pipeline import CAPTION, LABEL, FakePipeline
from ui.boundary import Model
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

    def start(pipeline, **changes) -> str:
        settings = Settings(**changes)
        page = app.compose(Model(pipeline), settings)
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


def test_restore_is_the_only_public_endpoint(client):
    api = client.view_api(return_format="dict", print_info=False)
    assert list(api["named_endpoints"]) == ["/restore"]
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


def wait(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
