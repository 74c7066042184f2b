import json

import numpy as np
import pytest
from PIL import Image

from baselines.base import pixels_sha256
from ui import compare_tab, gallery
from ui.gallery import GalleryError

SHIPPED = compare_tab.GALLERY


@pytest.fixture(scope="module")
def index():
    return json.loads((SHIPPED / gallery.INDEX).read_text(encoding="utf-8"))


def open_rgb(path):
    with Image.open(path) as image:
        return image.convert("RGB")


def test_every_example_photo_is_in_the_shipped_gallery():
    names = {p.stem for p in SHIPPED.parent.glob("*.png") if not p.stem.endswith("_gt")}
    assert set(gallery.read(SHIPPED)) == {gallery.KEYS + name for name in names}


def test_shipped_scenes_can_be_linked_and_end_with_their_reference():
    for key, scene in gallery.read(SHIPPED).items():
        roles = [picture.role for picture in scene.pictures]
        assert roles[0] == "lq", key
        assert roles.count("sr") >= 2, key
        assert scene.linked, key


def test_shipped_pictures_are_what_their_run_cards_say(index):
    for scene in index["scenes"]:
        lq = open_rgb(SHIPPED / scene["lq"])
        for method in scene["methods"]:
            sr = open_rgb(SHIPPED / method["file"])
            assert method["card"]["input_sha256"] == pixels_sha256(lq), method["file"]
            assert method["card"]["output_sha256"] == pixels_sha256(sr), method["file"]
            assert sr.size == (4 * lq.width, 4 * lq.height), method["file"]


def test_shipped_psnr_is_that_of_the_shipped_pictures(index):
    # BT.601 luma in its textbook form, independent of the code that wrote the index.
    def luma(path):
        r, g, b = np.moveaxis(np.asarray(open_rgb(path), float), -1, 0)
        return 16 + (65.481 * r + 128.553 * g + 24.966 * b) / 255

    for scene in index["scenes"]:
        for method in scene["methods"]:
            if scene["gt"] is None:
                assert method["scores"] == {}
                continue
            error = np.mean((luma(SHIPPED / method["file"]) - luma(SHIPPED / scene["gt"])) ** 2)
            psnr = method["scores"]["psnr_y"]
            assert psnr == pytest.approx(20 * np.log10(255 / np.sqrt(error)), abs=1e-3)


def test_the_shipped_gallery_is_small():
    assert sum(p.stat().st_size for p in SHIPPED.rglob("*") if p.is_file()) < 15e6


def test_a_folder_without_an_index_has_no_scenes(tmp_path):
    assert gallery.read(tmp_path) == {}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"scenes": [{"name": "a"}]}', '{"scenes": [1]}'])
def test_a_broken_index_is_named(tmp_path, text):
    (tmp_path / gallery.INDEX).write_text(text)
    with pytest.raises(GalleryError, match=r"gallery\.json"):
        gallery.read(tmp_path)


def test_a_missing_picture_is_named(tmp_path):
    entry = {"name": "a", "title": "A", "lq": "nowhere.png", "gt": None, "methods": []}
    (tmp_path / gallery.INDEX).write_text(json.dumps({"scenes": [entry]}))
    with pytest.raises(GalleryError):
        gallery.read(tmp_path)
