from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from pure.data import Crop, Photo
from pure.sampling import SamplingConfig
from tools.nano_eval import (
    KINDS,
    Case,
    Restorations,
    cell_kinds,
    content_right,
    entropies,
    interval,
    label_table,
    markdown,
)

CELL = 8


def case(pixels, index=0):
    photo = Photo("bee", "insect", ("bee", "insect", "flower"), False, pixels)
    lq = Image.fromarray(pixels[::4, ::4])
    return Case(
        index, "heavy", Crop(photo, pixels), lq, "Small blur, small noise.", "small", "small"
    )


def grey(values):
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=2)


def test_cells_are_told_apart_by_what_they_show():
    rng = np.random.default_rng(0)
    flat = np.full((32, 32), 120.0)
    edge = np.tile(np.where(np.arange(32) % CELL < 4, 40, 200), (32, 1))
    texture = rng.integers(0, 256, (32, 32))
    for name, values in (("flat", flat), ("edge", edge), ("texture", texture)):
        kinds = cell_kinds(Image.fromarray(grey(values)), CELL)
        assert kinds.shape == (4, 4)
        assert (kinds == KINDS.index(name)).mean() > 0.9, name


def test_entropy_is_averaged_within_a_crop_first():
    pixels = grey(np.full((16, 16), 90))
    records = [{"entropy": [[1.0, 1.0], [1.0, 5.0]]}, {"entropy": [[4.0, 4.0], [4.0, 4.0]]}]
    result = entropies([case(pixels), case(pixels)], records, CELL)
    assert set(result) == {"flat"}
    assert result["flat"]["mean"] == pytest.approx((2 + 4) / 2)
    assert result["flat"]["crops"] == 2


def test_the_interval_of_a_mean_agrees_with_the_normal_one():
    values = np.random.default_rng(3).normal(10, 2, 400)
    low, high = interval(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)


def test_a_caption_is_right_if_it_names_the_kind_or_the_word():
    known = frozenset({"bee", "insect", "flower"})
    some = case(grey(np.zeros((16, 16))))
    assert content_right("From a photo of insect, tree; grey and grey, dark, smooth.", some, known)
    assert content_right("From a photo of animal, bee; grey and grey, dark, smooth.", some, known)
    assert not content_right("From a photo of animal, tree; grey, dark, smooth.", some, known)


def test_a_restoration_is_made_once_by_the_same_checkpoint(tmp_path):
    class Output:
        belief = type("B", (), {"label": "l", "blur": "small", "noise": None, "caption": "c"})
        entropy = np.array([[1.25]])
        passes, steps = 3, 4
        image = Image.new("RGB", (8, 8), "red")

    class Pipeline:
        calls = 0
        checkpoint = SimpleNamespace(
            model=torch.nn.Linear(2, 2),
            vq=torch.nn.Linear(2, 2),
            sampling=SamplingConfig(),
            grammar=SimpleNamespace(form=None),
        )

        def restore(self, lq, settings):
            self.calls += 1
            return Output

    pipeline = Pipeline()
    kept = Restorations(pipeline, tmp_path)
    some = case(grey(np.zeros((16, 16))))
    first, again = kept(some, "dynamic", None), kept(some, "dynamic", None)
    assert pipeline.calls == 1
    assert first["entropy"] == again["entropy"] == [[1.25]]
    assert (np.asarray(again["image"]) == (255, 0, 0)).all()
    torch.nn.init.zeros_(pipeline.checkpoint.model.weight)
    Restorations(pipeline, tmp_path)(some, "dynamic", None)
    assert pipeline.calls == 2
    pipeline.checkpoint.sampling = SamplingConfig(guidance_scale=2.5)
    Restorations(pipeline, tmp_path)(some, "dynamic", None)
    assert pipeline.calls == 3


def test_labels_are_counted_level_by_level_beside_a_guess():
    graded = [replace(case(grey(np.zeros((8, 8)))), level="graded", blur=b) for b in "aaab"]
    heavy = [case(grey(np.zeros((8, 8))))]
    told = [(c, said, "small") for c, said in zip(graded, "abab", strict=True)]
    result = label_table([*told, (heavy[0], "large", None)])
    assert list(result) == ["graded", "heavy"]
    assert (result["graded"]["crops"], result["graded"]["blur"]["mean"]) == (4, 0.75)
    assert (result["graded"]["blur"]["guess"], result["graded"]["noise"]["mean"]) == (0.75, 1.0)
    assert (result["heavy"]["blur"]["mean"], result["heavy"]["noise"]["mean"]) == (0.0, 0.0)


def test_the_tables_hold_every_mean_with_its_interval():
    row = {"psnr_y": 25.0, "psnr_y_interval": [24.0, 26.0], "crops": 3}
    part = {"psnr_y": {"mean": 21.5, "low": 20.0, "high": 22.0}}
    result = {
        "light": {"bicubic": row},
        "heavy": {"bicubic": row},
        "ablations": {"crops": 2, "guidance": {"none": part}, "sampling": {"top-1": part}},
        "labels": {
            "graded": {
                "crops": 9,
                "blur": {"mean": 0.8, "low": 0.7, "high": 0.9},
                "noise": {"mean": 0.5, "low": 0.4, "high": 0.6},
            }
        },
        "entropy_nats": {"flat": {"mean": 3.0, "low": 2.5, "high": 3.5}},
    }
    text = markdown(result)
    assert "| bicubic | 25.000 [24.000, 26.000] |" in text
    assert "| none | 21.500 [20.000, 22.000] |" in text
    assert "| graded, 9 crops | 0.800 [0.700, 0.900] | 0.500 [0.400, 0.600] |" in text
    assert "| flat | 3.000 [2.500, 3.500] |" in text
