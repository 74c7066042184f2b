"""A remote method against a small app on this machine."""

import socket

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from baselines import remote
from baselines.base import MethodError, MethodUnavailableError, run


@pytest.fixture(scope="module")
def address():
    def restore(image, seed=0):
        pixels = np.asarray(image)
        return Image.fromarray(np.roll(pixels, seed, 1).repeat(4, 0).repeat(4, 1)), "a remark"

    def refuse(image):
        raise gr.Error("too busy")

    def talk(image):
        return "no picture at all"

    with gr.Blocks(analytics_enabled=False) as app:
        photo = gr.Image(type="pil", format="png")
        seed = gr.Number(0, precision=0)
        out, words = gr.Image(format="png"), gr.Textbox()
        gr.Button().click(restore, [photo, seed], [out, words], api_name="restore")
        gr.Button().click(refuse, photo, out, api_name="refuse")
        gr.Button().click(talk, photo, words, api_name="talk")
    _, url, _ = app.launch(
        server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, ssr_mode=False
    )
    yield url.rstrip("/")
    app.close()


def expected(photo, seed=0):
    return np.roll(np.asarray(photo), seed, 1).repeat(4, 0).repeat(4, 1)


def test_a_picture_goes_there_and_comes_back_without_loss(address, photo):
    method = remote.method("far", address, title="Far away")
    restoration, card = run(method, method.load("cpu"), photo)
    assert (np.asarray(restoration.image) == expected(photo)).all()
    assert restoration.seconds > 0
    assert card.source == f"remote: {address}"
    assert "the seed is not passed on" in card.preprocessing


def test_the_seed_goes_to_the_parameter_that_was_named(address, photo):
    method = remote.method("far", f"{address}#/restore?seed")
    restoration, card = run(method, method.load("cpu"), photo, seed=3)
    assert (np.asarray(restoration.image) == expected(photo, 3)).all()
    assert "goes to seed" in card.preprocessing


def test_an_error_there_is_a_sentence_here(address, photo):
    restorer = remote.method("far", f"{address}#/refuse", title="Far").load("cpu")
    with pytest.raises(MethodError, match="Far did not answer: "):
        restorer.restore(photo)


def test_an_answer_without_a_picture_is_refused(address, photo):
    restorer = remote.method("far", f"{address}#/talk", title="Far").load("cpu")
    with pytest.raises(MethodError, match="answered without a picture"):
        restorer.restore(photo)


def test_an_endpoint_that_does_not_exist_is_named_with_those_that_do(address):
    with pytest.raises(MethodUnavailableError, match=r"no endpoint /magic; it has .*/restore"):
        remote.method("far", f"{address}#/magic").load("cpu")


def test_nobody_there_is_said():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(MethodUnavailableError, match="cannot be reached"):
        remote.method("far", f"http://127.0.0.1:{port}").load("cpu")


@pytest.mark.parametrize(
    "answer",
    [
        "{file}",
        ["words", "{file}"],
        ("nothing", {"path": "{file}"}),
        [{"value": "{file}", "__type__": "update"}],
    ],
)
def test_the_first_picture_of_an_answer_is_found(answer, tmp_path):
    file = tmp_path / "x.png"
    file.touch()

    def fill(value):
        if isinstance(value, str):
            return value.replace("{file}", str(file))
        if isinstance(value, dict):
            return {key: fill(inner) for key, inner in value.items()}
        return type(value)(fill(inner) for inner in value)

    assert remote._picture(fill(answer)) == str(file)
