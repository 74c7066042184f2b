"""What comes between handlers and visitors."""

import inspect
import logging
import re
import threading

import gradio as gr
import pytest
import torch
from PIL import Image

from imaging.load import PhotoError
from pure import ahead
from pure.pipeline import Done, PurePipeline, RestoreSettings
from tests.ui.fake_pipeline import FakePipeline
from ui import boundary
from ui.boundary import LEASE_SECONDS, TEXT_TOKENS, Model, describe, guarded, lease, sentence

PHOTO = Image.new("RGB", (16, 8), (200, 100, 50))


def refuse(text):
    raise PhotoError(text)


def refuse_later(text):
    yield 1
    raise PhotoError(text)


def test_a_sentence_for_visitors_is_shown_as_it_is():
    with pytest.raises(gr.Error) as caught:
        guarded(refuse)("The photo is 9 × 9.")
    assert caught.value.message == "The photo is 9 × 9."
    assert not caught.value.print_exception


def test_a_generator_is_guarded_after_its_first_value():
    stream = guarded(refuse_later)("No.")
    assert next(stream) == 1
    with pytest.raises(gr.Error, match="No"):
        next(stream)


def test_markup_in_a_message_is_escaped():
    with pytest.raises(gr.Error) as caught:
        guarded(refuse)("<img src=x onerror=alert(1)>.")
    assert "<" not in caught.value.message


def test_the_unexpected_is_logged_under_the_reference_that_is_shown(caplog):
    with caplog.at_level(logging.ERROR), pytest.raises(gr.Error) as caught:
        guarded(lambda: 1 / 0)()
    reference = re.fullmatch(
        r"Something broke on our side \(reference ([0-9a-f]{6})\)\.", caught.value.message
    )[1]
    assert reference in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_a_guarded_handler_keeps_its_signature():
    def handler(image: str, scale: int) -> None: ...

    assert list(inspect.signature(guarded(handler)).parameters) == ["image", "scale"]


def test_closing_a_guarded_generator_closes_the_one_inside():
    closed = []

    def numbers():
        try:
            yield from range(9)
        finally:
            closed.append(True)

    stream = guarded(numbers)()
    next(stream)
    stream.close()
    assert closed


@pytest.mark.parametrize(("text", "said"), [("the seed is 1", "The seed is 1."), ("No.", "No.")])
def test_a_message_becomes_a_sentence(text, said):
    assert sentence(text) == said


def test_off_zerogpu_the_lease_changes_nothing():
    def function(image, settings):
        yield

    assert lease(function, lambda image, settings: 1) is function


def test_the_lease_takes_what_the_leased_function_takes():
    model = Model(FakePipeline())
    leased = list(inspect.signature(model._stream).parameters)
    assert list(inspect.signature(model.lease_seconds).parameters) == leased


def test_the_lease_grows_with_tiles_and_tokens():
    model = Model(FakePipeline(), device="cuda")
    settings = RestoreSettings(scale=4)
    assert model.tokens((64, 64), 4) == 64 * 16 + TEXT_TOKENS
    long = model.lease_seconds(Image.new("RGB", (64, 64)), settings)
    assert long > model.seconds((64, 64), 4)
    assert model.lease_seconds(PHOTO, settings) == LEASE_SECONDS


def test_the_pace_is_that_of_the_last_run():
    model = Model(FakePipeline(rows=4))
    output = list(model.stream(PHOTO, RestoreSettings()))[-1].output
    assert (output.steps, output.passes) == (24, 6)  # decoded in parallel
    per_token = 0.6 / 24
    assert model.seconds((64, 64), 4) == pytest.approx(model.tokens((64, 64), 4) * per_token)


def test_after_closing_there_are_no_more_passes():
    pipeline = FakePipeline()
    stream = Model(pipeline).stream(PHOTO, RestoreSettings())
    next(stream)
    stream.close()
    assert (pipeline.passes, pipeline.closed) == (1, 1)


def test_a_run_that_was_left_does_not_block_the_next():
    model = Model(FakePipeline())
    left = model.stream(PHOTO, RestoreSettings())
    next(left)
    assert isinstance(list(model.stream(PHOTO, RestoreSettings()))[-1], Done)


def test_two_threads_never_use_the_model_at_once():
    pipeline = FakePipeline(pause=0.01)
    model = Model(pipeline)
    threads = [
        threading.Thread(target=lambda: list(model.stream(PHOTO, RestoreSettings())))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pipeline.most_running == 1


@pytest.mark.parametrize(
    ("name", "nano", "said"),
    [
        ("PURE-nano", True, "not the paper's 7B model"),
        ("nonwhy/PURE", False, "PURE 7B (released weights)"),
        ("my/folder", False, ""),
    ],
)
def test_a_checkpoint_is_described_without_claims(name, nano, said):
    checkpoint = FakePipeline(name=name).checkpoint
    checkpoint.is_nano = nano
    assert describe(checkpoint).endswith(said)


@pytest.mark.parametrize("works", [True, False])
def test_blocks_compiled_ahead_are_used_if_compiling_worked(monkeypatch, works):
    pipeline = PurePipeline.from_pretrained("nano", dtype=torch.float32)

    def compile_block(engine, capacities, n):
        if not works:
            raise RuntimeError("no compiler")
        return engine.block

    monkeypatch.setattr(ahead, "compile_block", compile_block)
    assert boundary.compile_ahead(pipeline) is works
    assert (pipeline.engine.record is not None) is works
