import json

import numpy as np
import pytest
from PIL import Image

from evaluation import datasets
from evaluation.datasets import DatasetError, open_folder, synthesise
from imaging.degrade import DegradationParameters, degrade, usm_sharpen


def save(path, size=(8, 6), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(path)


@pytest.mark.parametrize(
    "layout", [("test_LR", "test_HR"), ("lq", "gt"), ("LR", "HR"), ("LQ", "GT")]
)
def test_inputs_and_references_in_two_folders(tmp_path, layout):
    for name in ("a", "b"):
        save(tmp_path / layout[0] / f"{name}.png")
        save(tmp_path / layout[1] / f"{name}.png", (32, 24))
    found = open_folder(tmp_path)
    assert [(i.name, i.lq.parent.name, i.gt.parent.name) for i in found.items] == [
        ("a", *layout),
        ("b", *layout),
    ]
    assert (found.scale, found.problems, found.name) == (4, (), tmp_path.name)


def test_a_folder_of_inputs_alone(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "b.jpg")
    found = open_folder(tmp_path, name="RealLQ250")
    assert [(i.name, i.gt) for i in found.items] == [("a", None), ("b", None)]
    assert (found.scale, found.name) == (None, "RealLQ250")


def test_references_beside_their_inputs(tmp_path):
    save(tmp_path / "cat.png")
    save(tmp_path / "cat_gt.png", (16, 12))
    save(tmp_path / "windmill.png")
    found = open_folder(tmp_path)
    assert [(i.name, i.gt.name) for i in found.items] == [("cat", "cat_gt.png")]
    assert found.scale == 2
    assert found.problems == ("windmill.png has no reference and is left out.",)


def test_files_that_do_not_pair_up_are_reported_and_left_out(tmp_path):
    save(tmp_path / "lq" / "a_LR4.png")
    save(tmp_path / "gt" / "a_HR.png", (32, 24))
    save(tmp_path / "lq" / "alone.png")
    save(tmp_path / "gt" / "lonely.png", (32, 24))
    save(tmp_path / "lq" / "crooked.png")
    save(tmp_path / "gt" / "crooked.png", (33, 24))
    (tmp_path / "lq" / "broken.png").write_bytes(b"no picture")
    save(tmp_path / "gt" / "broken.png", (32, 24))
    found = open_folder(tmp_path)
    assert [i.name for i in found.items] == ["a_LR4"]
    said = " ".join(found.problems)
    assert "alone.png has no reference" in said
    assert "lonely.png has no input" in said
    assert "crooked is left out: the input is 8 × 6 and the reference 33 × 24" in said
    assert "broken is left out" in said
    assert "4 times" in datasets.describe(found)


def test_outputs_that_came_with_the_set_are_found(tmp_path):
    save(tmp_path / "lq" / "a.png")
    (tmp_path / "results_theirs").mkdir()
    (tmp_path / "results_other.zip").touch()
    (tmp_path / "results_notes.txt").touch()
    assert list(open_folder(tmp_path).saved) == ["other", "theirs"]


@pytest.mark.parametrize("make", ["nothing", "empty", "two"])
def test_what_is_no_set_is_refused_with_what_was_looked_for(tmp_path, make):
    if make == "nothing":
        with pytest.raises(DatasetError, match="is not a folder"):
            open_folder(tmp_path / "nowhere")
    elif make == "empty":
        with pytest.raises(DatasetError, match="test_LR/ with test_HR/"):
            open_folder(tmp_path)
    else:
        save(tmp_path / "a.png")
        save(tmp_path / "a.jpg")
        with pytest.raises(DatasetError, match="differ in their suffix only"):
            open_folder(tmp_path)


def test_a_synthetic_set_is_what_its_saved_parameters_make(tmp_path):
    for i in range(2):
        save(tmp_path / "photos" / f"p{i}.png", (67, 50), seed=i)
    items = list(synthesise(tmp_path / "photos", tmp_path / "set", preset="realesrgan", seed=3))
    drawn = json.loads((tmp_path / "set" / "degradation.json").read_text("utf-8"))["pictures"]
    for item in items:
        photo = np.asarray(Image.open(tmp_path / "photos" / f"{item.name}.png"))
        gt = usm_sharpen(photo[1:49, 1:65])  # the centre, 64 × 48
        assert (np.asarray(Image.open(item.gt)) == gt).all()
        lq = degrade(gt, DegradationParameters.from_dict(drawn[item.name]))
        assert (np.asarray(Image.open(item.lq)) == lq).all()
    assert open_folder(tmp_path / "set").scale == 4


def test_a_picture_keeps_its_degradation_when_the_set_grows(tmp_path):
    save(tmp_path / "photos" / "b.png", (64, 64), seed=1)
    (item,) = synthesise(tmp_path / "photos", tmp_path / "small", preset="mild")
    save(tmp_path / "photos" / "a.png", (64, 64), seed=2)
    items = list(synthesise(tmp_path / "photos", tmp_path / "large", preset="mild"))
    assert items[1].lq.read_bytes() == item.lq.read_bytes()
    assert items[0].lq.read_bytes() != item.lq.read_bytes()


def test_another_seed_degrades_otherwise(tmp_path):
    save(tmp_path / "photos" / "b.png", (64, 64), seed=1)
    (one,) = synthesise(tmp_path / "photos", tmp_path / "1", preset="mild", seed=1)
    (two,) = synthesise(tmp_path / "photos", tmp_path / "2", preset="mild", seed=2)
    assert one.lq.read_bytes() != two.lq.read_bytes()
    assert one.gt.read_bytes() == two.gt.read_bytes()


def test_an_unknown_preset_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="no preset 'harsh'; there are realesrgan, mild"):
        list(synthesise(tmp_path, tmp_path / "set", preset="harsh"))


def test_the_command_prints_the_pairing_report(tmp_path, capsys):
    save(tmp_path / "lq" / "a.png")
    save(tmp_path / "gt" / "a.png", (32, 24))
    assert datasets.main([str(tmp_path)]) == 0
    assert "1 inputs, 1 with a reference, 4 times as large" in capsys.readouterr().out
    save(tmp_path / "lq" / "b.png")
    assert datasets.main([str(tmp_path)]) == 1
    assert datasets.main([str(tmp_path / "nowhere")]) == 1
