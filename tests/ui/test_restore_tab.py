"""What a run decides and what the page shows for it."""

import hashlib
import json

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from imaging.load import PhotoError
from pure.belief import Belief
from pure.pipeline import RestoreError, RestoreSettings
from pure.sampling import SamplingConfig, SamplingError
from tests.ui.fake_pipeline import CAPTION, LABEL, FakePipeline
from ui import components, restore_tab
from ui.boundary import Model
from ui.restore_tab import View, prepare, updates, views
from ui.settings import Settings


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "my cat!.png"
    noise = np.random.default_rng(3).integers(0, 256, (8, 12, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path


@pytest.fixture
def job(photo):
    return prepare(str(photo), RestoreSettings(scale=2, seed=5), Settings())


@pytest.fixture
def run(job, tmp_path):
    return list(views(Model(FakePipeline()), job, tmp_path))


# A run


def test_label_comes_before_caption_and_both_before_the_picture(run):
    stages = list(dict.fromkeys(view.stage for view in run))
    assert stages == ["reading", "writing", "painting", "done"]
    assert [v.label for v in run if v.stage == "writing"] == [LABEL]
    assert next(v for v in run if v.caption).done == 0


def test_the_preview_changes_with_the_rows(run):
    previews = [view.preview.tobytes() for view in run if view.preview is not None]
    assert len(set(previews)) >= 3


def test_previews_are_small(photo):
    image = Image.new("RGB", (1200, 600))
    assert restore_tab.smaller(image).size == (384, 192)


def test_the_end_has_a_lossless_picture_and_the_enlarged_input(run, job):
    files = run[-1].files
    with Image.open(files.restored) as saved:
        assert saved.format == "PNG"
        assert saved.tobytes() == run[-1].output.image.tobytes()
    with Image.open(files.before) as before:
        assert before.tobytes() == job.image.resize((24, 16), Image.Resampling.BICUBIC).tobytes()


def test_files_are_named_after_the_input(run):
    assert run[-1].files.restored.name == "my_cat_pure_x2.png"


def test_the_run_card_says_all_it_takes_to_repeat(run, photo):
    files = run[-1].files
    card = json.loads(files.card.read_text("utf-8"))
    assert card["settings"]["seed"] == 5
    assert card["settings"]["sampling"] == SamplingConfig().__dict__
    assert (card["label"], card["caption"]) == (LABEL, CAPTION)
    assert card["input"]["sha256"] == hashlib.sha256(photo.read_bytes()).hexdigest()
    assert card["output"]["sha256"] == hashlib.sha256(files.restored.read_bytes()).hexdigest()
    assert (card["input"]["size"], card["output"]["size"]) == ([12, 8], [24, 16])
    assert {"python", "torch", "numpy", "pillow"} <= card["versions"].keys()
    assert card["checkpoint"] == "fake"
    assert (card["steps"], card["passes"]) == (24, 6)
    assert card["seconds"]["restore"] == 0.3


def test_a_failure_is_shown_before_it_is_raised(job, tmp_path):
    stream = views(Model(FakePipeline(breaks=True)), job, tmp_path)
    seen = []
    with pytest.raises(gr.Error):
        seen.extend(stream)
    assert seen[-1].stage == "failed"
    assert "reference" in seen[-1].problem
    assert "secret" not in seen[-1].problem


def test_closing_a_run_ends_the_models_work(job, tmp_path):
    pipeline = FakePipeline()
    stream = views(Model(pipeline), job, tmp_path)
    next(stream), next(stream)
    stream.close()
    assert (pipeline.passes, pipeline.closed) == (1, 1)


# Before a run


def test_no_photo_is_a_sentence():
    with pytest.raises(PhotoError, match="no photo yet"):
        prepare(None, RestoreSettings(), Settings())


def test_a_large_photo_is_refused_with_its_numbers(photo):
    with pytest.raises(PhotoError, match=r"12 × 8; at 4× this demo restores up to 90 pixels"):
        prepare(str(photo), RestoreSettings(), Settings(max_pixels=90))


def test_a_smaller_scale_takes_a_larger_photo(photo):
    prepare(str(photo), RestoreSettings(scale=2), Settings(max_pixels=90))


@pytest.mark.parametrize("size", [(4000, 3000), (3000, 4000), (16000, 3), (160, 161), (1, 30000)])
@pytest.mark.parametrize("how", [restore_tab.shrunk, restore_tab.centre])
def test_made_smaller_it_is_taken(how, size):
    image = how(Image.new("RGB", size), 25600)
    assert restore_tab.too_large(image.size, 4, Settings()) == ""
    assert min(image.size) >= 1


@pytest.mark.parametrize(
    "changes",
    [{"scale": "4"}, {"scale": 2.5}, {"scale": 9}, {"seed": None}, {"seed": -1}, {"seed": [1]},
     {"guidance": "all"}, {"guidance": {}}, {"colour_fix": 1}, {"label": 7},
     {"caption": "a" * 2001}, {"seed": float("nan")}, {"seed": float("inf")}],
)  # fmt: skip
def test_values_of_the_wrong_kind_are_named(changes):
    good = {"scale": 4, "seed": 0, "guidance": "full", "colour_fix": "none"}
    with pytest.raises(RestoreError):
        restore_tab.restore_settings(**(good | changes), sampling=SamplingConfig())


@pytest.mark.parametrize(
    "values", [("dynamic", None, 1, 1, 1, 1), ("topk", 1, 1, 0, 1, 1), ("x", 1, 1, 1, 1, 1),
               ("top1", 1, 1, 1, "hot", 1), ("top1", 1, 1, 1, 0, 1), ("top1", 1, 1, 1, 1, None),
               ("dynamic", 1, "some", 1, 1, 1)]
)  # fmt: skip
def test_sampling_of_the_wrong_kind_is_named(values):
    with pytest.raises(SamplingError):
        restore_tab.sampling_config(*values)


def test_the_default_preset_is_the_published_one():
    assert restore_tab.PRESETS["Balanced"][1] == "dynamic"


# What is shown


@pytest.mark.parametrize("stage", ["waiting", "reading", "writing", "painting"])
def test_while_it_runs_only_stop_can_be_pressed(stage):
    shown = updates(View(stage))
    assert (shown["restore"]["interactive"], shown["stop"]["interactive"]) == (False, True)


@pytest.mark.parametrize("stage", ["stopped", "failed", "idle"])
def test_afterwards_restore_can_be_pressed_again(stage):
    shown = updates(View(stage))
    assert (shown["restore"]["interactive"], shown["stop"]["interactive"]) == (True, False)


def test_inputs_are_never_touched(run):
    for view in run:
        assert not updates(view).keys() & {"photo", *restore_tab.OPTIONS}


def test_every_update_has_a_place(run):
    for view in run:
        assert updates(view).keys() <= set(restore_tab.PARTS)


def test_words_of_the_model_are_escaped():
    text = restore_tab.belief_lines(View("done", label="<b>x</b>", caption="a & b"))
    assert "<b>" not in text
    assert "a &amp; b" in text


def test_a_problem_is_escaped():
    assert "<script" not in restore_tab.status(View("failed", problem="<script>"))


def test_the_end_offers_both_words_for_editing(run):
    shown = updates(run[-1])
    assert (shown["label"]["value"], shown["caption"]["value"]) == (LABEL, CAPTION)
    assert shown["rerun"]["interactive"]


def test_progress_is_said_in_percent_and_seconds():
    line = restore_tab.status(View("painting", done=0.25, seconds=3, left=9))
    assert "25%" in line
    assert "3 s, about 9 s left" in line
    assert 'aria-valuenow="25"' in line


# Maps


def test_a_map_says_its_range_in_words():
    text = components.heat_map(np.array([[1.0, 3.0]]), components.entropy_heat(16))
    assert "median 2, 1 to 3 nats" in text
    assert 'alt="Map of how unsure the model is of each code' in text


def test_a_map_of_one_candidate_has_colours():
    components.heat_map(np.ones((2, 2)), components.k_heat(1))


def test_the_credits_name_people_and_licences():
    assert "NASA (public domain)" in restore_tab.credits()
    assert "Stéfan van der Walt (CC0 1.0)" in restore_tab.credits()


def test_a_belief_can_be_empty():
    assert "nothing" in restore_tab.belief_lines(View("done", label=Belief().label, caption=""))
