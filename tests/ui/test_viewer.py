import json
import math
from dataclasses import replace
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from ui import viewer as module
from ui.viewer import Metric, Picture, Scene, payload


def noise(width=8, height=6, seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


@pytest.fixture
def lq():
    return Picture(noise(4, 3), "Input", "lq")


@pytest.fixture
def gt():
    return Picture(noise(seed=9), "Reference", "gt")


def sr(value, name="A method", metric="PSNR", better="higher"):
    return Picture(noise(seed=1), name, metrics=(Metric(metric, value, better),))


def file_of(picture):
    return Path(picture["file"]["path"])


# The contract


@pytest.mark.parametrize("count", [1, 9])
def test_a_scene_has_two_to_eight_pictures(count):
    with pytest.raises(ValueError, match=f"2 to 8 pictures, not {count}"):
        Scene((Picture(noise()),) * count)


def test_the_input_comes_first_and_the_reference_last(lq, gt):
    Scene((lq, Picture(noise()), gt))
    for wrong in ((Picture(noise()), lq), (gt, Picture(noise())), (gt, lq)):
        with pytest.raises(ValueError, match="input comes first"):
            Scene(wrong)


def test_pictures_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="6 × 8 is not that of 8 × 6"):
        Scene((Picture(noise(8, 6)), Picture(noise(6, 8))))


def test_a_side_may_be_rounded():
    Scene((Picture(noise(33, 50)), Picture(noise(131, 200))))


def test_the_scene_is_as_large_as_its_largest_picture(lq, gt):
    assert Scene((lq, gt)).size == (8, 6)


def test_the_size_can_be_known_before_the_pictures_are_there(lq):
    scene = Scene((lq, Picture(None, "Later", note="Wait.")), expected=(16, 12))
    assert (payload(scene)["width"], payload(scene)["height"]) == (16, 12)
    assert payload(scene)["pictures"][1]["file"] is None


@pytest.mark.parametrize("modes", [(), ("grid", "spiral")])
def test_unknown_layouts_are_refused(lq, gt, modes):
    with pytest.raises(ValueError, match="modes are some of"):
        Scene((lq, gt), modes=modes)


def test_a_link_needs_a_key(lq, gt):
    with pytest.raises(ValueError, match="key"):
        Scene((lq, gt), linked=True)


# What goes to the page


def test_a_named_file_is_handed_over_byte_for_byte(tmp_path, gt):
    noise().save(tmp_path / "osediff.png", optimize=True)
    scene = Scene((Picture(tmp_path / "osediff.png", "OSEDiff"), gt))
    path = file_of(payload(scene)["pictures"][0])
    assert path.read_bytes() == (tmp_path / "osediff.png").read_bytes()
    assert path.name == "osediff.png"


def test_pixels_survive(gt):
    path = file_of(payload(Scene((Picture(noise(seed=5), "A method"), gt)))["pictures"][0])
    with Image.open(path) as served:
        assert served.format == "PNG"
        assert served.tobytes() == noise(seed=5).tobytes()


def test_a_picture_on_its_way_to_a_page_is_not_written_again(gt, monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    scene = Scene((Picture(noise(seed=5), "A method"), gt))
    path = file_of(payload(scene)["pictures"][0])
    with path.open("ab") as file:
        file.write(b"mark")
    assert file_of(payload(scene)["pictures"][0]) == path
    assert path.read_bytes().endswith(b"mark")


@pytest.mark.parametrize("kind", ["file", "image"])
def test_nothing_tells_an_unnamed_picture_from_another(tmp_path, kind):
    text = PngImagePlugin.PngInfo()
    text.add_text("method", "secretgan")
    paths = []
    for name in ("secretgan", "otherwise"):
        noise(seed=len(name)).save(tmp_path / f"{name}.png", pnginfo=text)
        paths.append(tmp_path / f"{name}.png")
    sources = paths if kind == "file" else [Image.open(path) for path in paths]
    value = payload(Scene(tuple(Picture(source) for source in sources)))
    assert "secretgan" not in json.dumps(value)
    assert [picture["name"] for picture in value["pictures"]] == ["A", "B"]
    assert {file_of(picture).name for picture in value["pictures"]} == {"picture.png"}
    for picture, source in zip(value["pictures"], paths, strict=True):
        assert b"secretgan" not in file_of(picture).read_bytes()
        with Image.open(file_of(picture)) as served, Image.open(source) as original:
            assert served.tobytes() == original.tobytes()
    one, two = (
        {k: v for k, v in picture.items() if k not in ("file", "name", "alt")}
        for picture in value["pictures"]
    )
    assert one == two


def test_a_picture_without_a_text_gets_its_name_and_the_scenes(gt):
    scene = Scene((Picture(noise(), "Bicubic"), replace(gt, alt="What it was")), title="Cat")
    assert [one["alt"] for one in payload(scene)["pictures"]] == ["Bicubic: Cat", "What it was"]


def test_nothing_is_nothing():
    assert payload(None) is None


# Numbers


@pytest.mark.parametrize(
    ("better", "values", "best"),
    [
        ("higher", (1, 3, 2), [False, True, False]),
        ("lower", (1, 3, 2), [True, False, False]),
        ("higher", (3, 3, 2), [True, True, False]),
        ("higher", (math.nan, 3, 2), [False, True, False]),
        (None, (1, 3, 2), [False, False, False]),
    ],
)
def test_the_best_restoration_is_marked(lq, better, values, best):
    scene = Scene((lq, *(sr(value, better=better) for value in values)))
    marks = [one["metrics"][0]["best"] for one in payload(scene)["pictures"][1:]]
    assert marks == best


def test_a_restoration_alone_is_not_the_best(lq):
    assert not payload(Scene((lq, sr(3))))["pictures"][1]["metrics"][0]["best"]


def test_input_and_reference_do_not_compete(lq, gt):
    high = (Metric("PSNR", 99, "higher"),)
    scene = Scene((replace(lq, metrics=high), sr(1), sr(2), replace(gt, metrics=high)))
    marks = [one["metrics"][0]["best"] for one in payload(scene)["pictures"]]
    assert marks == [False, False, True, False]


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        (Metric("PSNR", 27.315, unit="dB"), "27.32 dB"),
        (Metric("SSIM", 0.81234, digits=4), "0.8123"),
        (Metric("NIQE", -1.5, digits=1), "−1.5"),
        (Metric("PSNR", math.nan, unit="dB"), "–"),
        (Metric("PSNR", math.inf, unit="dB"), "∞"),
    ],
)
def test_numbers_as_they_are_read(metric, text):
    assert metric.text == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0001, "<1 ms"), (0.0042, "4 ms"), (0.9996, "1.0 s"), (1.24, "1.2 s"), (9.96, "10 s"),
     (257, "257 s")],
)  # fmt: skip
def test_times_as_they_are_read(value, text):
    assert module.seconds(value) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (3_400_000, "3.4 M"), (16_697_987, "16.7 M"), (128_000_000, "128 M"),
     (7_150_377_611, "7.2 B")],
)  # fmt: skip
def test_counts_as_they_are_read(count, text):
    assert module.parameters(count) == text


# Files of the component


def test_the_style_survives_gradios_templates():
    # Handlebars looks for {{, the template literal for `, ${ and backslashes.
    style = (module.STATIC / "viewer.css").read_text(encoding="utf-8")
    assert not {"\\", "`"} & set(style)
    assert "{{" not in style
    assert "${" not in style


def test_the_script_makes_no_markup_from_strings_and_names_no_host():
    script = (module.STATIC / "viewer.js").read_text(encoding="utf-8")
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "eval(", "http:", "https:"):
        assert forbidden not in script


def test_building_a_viewer_writes_no_file_into_the_source():
    before = set(Path(module.__file__).parent.rglob("*.pyi"))
    with gr.Blocks():
        module.viewer(Scene((Picture(noise()), Picture(noise(seed=1)))))
    assert set(Path(module.__file__).parent.rglob("*.pyi")) == before
