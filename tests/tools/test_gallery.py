import json

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.ui.fake_methods import SCALE, fake
from tools import gallery as tool
from ui import gallery


@pytest.fixture
def photos(tmp_path):
    """One input with a reference and one without."""
    rng = np.random.default_rng(0)
    paths = {}
    for name, size in (("cat", (6, 4)), ("old_mill", (5, 5))):
        path = tmp_path / f"{name}.png"
        pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(path)
        paths[name] = path
    with Image.open(paths["cat"]) as lq:
        ImageOps.invert(lq.resize((12, 8), Image.Resampling.NEAREST)).save(tmp_path / "cat_gt.png")
    return paths


@pytest.fixture(autouse=True)
def one_metric(monkeypatch):
    """NIQE wants more pixels than these photos have."""
    monkeypatch.setattr(tool, "METRICS", ("psnr_y",))


METHODS = [fake("plain"), fake("inverted", ImageOps.invert, parameters=7)]


def test_what_is_made_is_what_the_tab_reads(photos, tmp_path):
    tool.make(photos, METHODS, tmp_path / "gallery")
    scenes = gallery.read(tmp_path / "gallery")
    assert list(scenes) == ["gallery/cat", "gallery/old_mill"]
    cat, mill = scenes.values()
    assert [p.name for p in cat.pictures] == ["Input", "The plain", "The inverted", "Reference"]
    assert [p.name for p in mill.pictures] == ["Input", "The plain", "The inverted"]
    assert mill.title == "Old mill"
    assert cat.pictures[2].parameters == 7
    assert cat.pictures[1].seconds == 0.25
    with Image.open(cat.pictures[2].source) as sr, Image.open(photos["cat"]) as lq:
        size = (lq.width * SCALE, lq.height * SCALE)
        assert sr.tobytes() == ImageOps.invert(lq.resize(size, Image.Resampling.NEAREST)).tobytes()


def test_only_what_has_a_reference_is_measured(photos, tmp_path):
    tool.make(photos, METHODS, tmp_path / "gallery")
    scenes = list(gallery.read(tmp_path / "gallery").values())
    plain, inverted = scenes[0].pictures[1:3]
    assert inverted.metrics[0].value == 80  # what identical pictures have; it is the reference
    assert plain.metrics[0].value < 20
    assert not any(picture.metrics for picture in scenes[1].pictures)


def test_a_second_run_forgets_methods_that_are_gone_and_nothing_else(photos, tmp_path):
    out = tmp_path / "gallery"
    tool.make(photos, METHODS, out)
    (out / "README.md").write_text("stays")
    first = (out / "cat/plain.png").read_bytes()
    tool.make(photos, METHODS[:1], out)
    assert sorted(p.name for p in out.rglob("*.*")) == sorted(
        ["README.md", "gallery.json", "plain.png", "plain.png"]
    )
    assert (out / "cat/plain.png").read_bytes() == first


def test_a_folder_that_is_no_gallery_keeps_its_pictures(photos, tmp_path):
    other = tmp_path / "holidays"
    (other / "2019").mkdir(parents=True)
    Image.new("RGB", (2, 2)).save(other / "2019/beach.png")
    tool.make(photos, METHODS, other)
    assert (other / "2019/beach.png").exists()


def test_the_seed_reaches_the_run_cards(photos, tmp_path):
    tool.make(photos, METHODS[:1], tmp_path / "gallery", seed=5)
    index = json.loads((tmp_path / "gallery/gallery.json").read_text())
    cards = [method["card"] for scene in index["scenes"] for method in scene["methods"]]
    assert [card["seed"] for card in cards] == [5, 5]


@pytest.mark.parametrize("count", [0, 7])
def test_as_many_methods_as_a_scene_shows(photos, tmp_path, count):
    with pytest.raises(ValueError, match=f"1 to 6 methods, not {count}"):
        tool.make(photos, [METHODS[0]] * count, tmp_path / "gallery")


def test_the_default_methods_exist():
    from baselines import registry

    assert set(tool.METHODS) <= set(registry.discover())
