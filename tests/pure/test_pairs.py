import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from imaging.degrade import degrade, usm_sharpen
from pure import pairs
from pure.pairs import (
    BakedPairs,
    FolderCrops,
    MadePairs,
    PairSettings,
    bake,
    folder_argument,
    list_hash,
    photo_files,
)

SETTINGS = PairSettings(size=32, heavy=0.4, graded=0.3, sharpen=1, seed=4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """LSDIR's layout (folders of numbered files) and FFHQ's."""
    root = tmp_path_factory.mktemp("gt")
    rng = np.random.default_rng(0)
    for i, name in enumerate(
        (
            "LSDIR/shard-00/0000001.png",
            "LSDIR/shard-00/0000002.JPG",
            "LSDIR/shard-01/0001001.png",
            "FFHQ/00000.png",
            "FFHQ/00001.png",
            "FFHQ/00002.png",
        )
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (50 + i, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    (root / "LSDIR" / "notes.txt").write_text("no photograph")
    return root


@pytest.fixture
def files(folders):
    return photo_files([(folders / "LSDIR", None), (folders / "FFHQ", 2)])


@pytest.fixture
def made(files):
    return MadePairs(FolderCrops(files, 32, seed=4), SETTINGS)


def test_photos_are_found_in_any_layout_and_in_order(files):
    assert [file.id for file in files] == [
        "LSDIR/shard-00/0000001.png",
        "LSDIR/shard-00/0000002.JPG",
        "LSDIR/shard-01/0001001.png",
        "FFHQ/00000.png",
        "FFHQ/00001.png",
    ]


def test_the_list_has_a_hash(files):
    assert list_hash(files) != list_hash(files[::-1])


def test_folders_that_cannot_be_used_are_refused(folders, tmp_path):
    with pytest.raises(ValueError, match="no photograph in"):
        photo_files([(tmp_path, None)])
    (tmp_path / "FFHQ").mkdir()
    with pytest.raises(ValueError, match="same name"):
        photo_files([(folders / "FFHQ", None), (tmp_path / "FFHQ", None)])


def test_every_pass_has_each_photo_once_at_another_place(files):
    crops = FolderCrops(files, 32, seed=0)
    passes = [[crops.crop(i) for i in range(k * 5, k * 5 + 5)] for k in (0, 1)]
    for crops_of_pass in passes:
        assert [crop.photo.id for crop in crops_of_pass] == [file.id for file in files]
    assert not any(np.array_equal(a.pixels, b.pixels) for a, b in zip(*passes, strict=True))


def test_a_crop_is_cut_out_of_its_photo_and_mirrored_half_the_time(files):
    crops, mirrored = FolderCrops(files, 48, seed=0), 0
    for i in range(60):
        crop = crops.crop(i)
        windows = np.lib.stride_tricks.sliding_window_view(crop.photo.pixels, (48, 48, 3))
        windows = windows.reshape(-1, 48, 48, 3)
        here = (windows == crop.pixels).all((1, 2, 3)).any()
        there = (windows == crop.pixels[:, ::-1]).all((1, 2, 3)).any()
        assert here != there
        mirrored += there
    assert 15 < mirrored < 45


def test_a_photo_smaller_than_the_crop_is_continued_by_reflection(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 100, 3), dtype=np.uint8)
    (tmp_path / "gt").mkdir()
    Image.fromarray(pixels).save(tmp_path / "gt" / "a.png")
    crops = FolderCrops(photo_files([(tmp_path / "gt", None)]), 50, seed=0)
    crop = crops.crop(0).pixels
    assert crop.shape == (50, 50, 3)
    assert np.array_equal(crop[20:39], crop[18::-1])  # the last row is not doubled


def test_a_file_that_cannot_be_read_is_replaced_by_the_one_before_it(files, caplog, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    some = [files[0], replace(files[1], path=broken), files[2]]
    crops = FolderCrops(some, 32, seed=0)
    assert [crops.crop(i).photo.id for i in range(3)] == [files[0].id, files[0].id, files[2].id]
    assert "broken.png cannot be read" in caplog.text
    with pytest.raises(ValueError, match="none of the 1"):
        FolderCrops([replace(files[1], path=broken)], 32, seed=0).crop(0)


def test_photos_are_turned_upright(tmp_path):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    upright = pairs.read_upright(tmp_path / "a.png")
    assert upright.shape == (60, 40, 3)
    assert upright[:30].min() == 255


def test_pairs_come_from_all_presets_and_depend_on_their_number_alone(made, files):
    again = MadePairs(FolderCrops(files, 32, seed=4), SETTINGS)
    presets = []
    for i in reversed(range(12)):
        a, b = made.pair(i), again.pair(i)
        assert np.array_equal(a.small, b.small)
        assert a.parameters == b.parameters
        assert np.array_equal(a.small, degrade(a.crop.pixels, a.parameters))
        presets.append(a.parameters.preset)
    assert set(presets) == {"realesrgan", "graded", "mild"}


def test_the_sharpened_reference_is_the_target(made, files):
    plain = MadePairs(FolderCrops(files, 32, seed=4), replace(SETTINGS, sharpen=0))
    for i in range(8):
        sharp, soft = made.pair(i), plain.pair(i)
        if sharp.parameters.preset == "realesrgan":
            assert np.array_equal(sharp.crop.pixels, usm_sharpen(soft.crop.pixels))
        else:
            assert np.array_equal(sharp.crop.pixels, soft.crop.pixels)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(pairs, "BAKED", 4)


@pytest.mark.usefixtures("small_blocks")
def test_baked_pairs_are_those_made_on_the_fly(made, tmp_path):
    bake(made, 10, tmp_path, {"settings": {}})
    baked = BakedPairs(tmp_path)
    assert len(baked) == 10
    for i in range(10):
        a, b = made.pair(i), baked.pair(i)
        assert np.array_equal(a.crop.pixels, b.crop.pixels)
        assert np.array_equal(a.small, b.small)
        assert np.array_equal(a.lq, b.lq)
        assert a.parameters == b.parameters
        assert a.crop.photo.id == b.crop.photo.id
    assert np.array_equal(baked.pair(13).small, baked.pair(3).small)


@pytest.mark.usefixtures("small_blocks")
def test_processes_bake_what_one_would_and_finish_together(made, tmp_path):
    bake(made, 10, tmp_path / "one", {"a": 1})
    for rank in (1, 0):
        with pytest.raises(ValueError, match="not completely"):
            BakedPairs(tmp_path / "two")
        bake(made, 10, tmp_path / "two", {"a": 1}, rank=rank, ranks=2)
    trees = [
        {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        for root in (tmp_path / "one", tmp_path / "two")
    ]
    assert trees[0] == trees[1]
    assert len(trees[0]) == 20 + 2 * 3 + 1


@pytest.mark.usefixtures("small_blocks")
def test_baking_goes_on_and_refuses_other_settings(made, tmp_path, monkeypatch):
    bake(made, 4, tmp_path / "part", {"a": 1})
    bake(made, 10, tmp_path, {"a": 1}, rank=0, ranks=3)
    (tmp_path / "00000" / "000_gt.png").unlink()
    bake(made, 10, tmp_path, {"a": 1})
    assert not (tmp_path / "00000" / "000_gt.png").exists()  # a finished block is not made again
    with pytest.raises(ValueError, match="another a"):
        bake(made, 10, tmp_path, {"a": 2})


@pytest.mark.parametrize(
    ("text", "path", "limit"),
    [("FFHQ:10000", "FFHQ", 10_000), ("LSDIR", "LSDIR", None), ("c:x", "c:x", None)],
)
def test_a_folder_may_be_limited(text, path, limit):
    folder, number = folder_argument(text)
    assert (str(folder), number) == (path, limit)


def test_the_command_bakes_a_share_of_a_launcher(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    arguments = ["--gt", str(folders / "LSDIR"), "--gt", f"{folders / 'FFHQ'}:1", "--size", "32"]
    monkeypatch.setattr(pairs, "BAKED", 2)
    for extra in ([], ["--rank", "0"]):
        monkeypatch.setattr(sys, "argv", ["pairs", *arguments, "--out", str(tmp_path), *extra])
        pairs.main()
    description = json.loads((tmp_path / "pairs.json").read_text())
    assert (description["photos"], description["pairs"]) == (4, 4)
    assert description["settings"]["size"] == 32


def test_a_folder_without_photos_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pairs", "--gt", str(tmp_path), "--out", str(tmp_path / "x")])
    with pytest.raises(SystemExit):
        pairs.main()
    assert "there is no photograph in" in capsys.readouterr().err
