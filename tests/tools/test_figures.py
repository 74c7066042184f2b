import hashlib
import json
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from imaging.maps import VIRIDIS
from tools import figures
from tools.photos import Record


@pytest.fixture(autouse=True)
def small_crops(monkeypatch):
    """Held-out crops as wide as the tiny checkpoint restores at once."""
    monkeypatch.setattr(figures, "CROP", 32)


def noise_picture(width, height, seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def examples(tmp_path):
    """One example with a reference and one without."""
    folder = tmp_path / "examples"
    folder.mkdir()
    noise_picture(8, 6).save(folder / "pond.png")
    noise_picture(32, 24).save(folder / "pond_gt.png")
    noise_picture(5, 8, 1).save(folder / "mill.png")
    return folder


def gather(folder, splits):
    """A photo folder as `python -m tools.photos` writes it."""
    folder.mkdir()
    rows = []
    for number, (name, split) in enumerate(splits.items()):
        noise_picture(300, 260, number).save(folder / f"{name}.png")
        record = Record(
            id=name,
            file=f"{name}.png",
            package="package",
            version="1",
            source_path="",
            author="",
            licence="",
            credit_note=None,
            split=split,
            kind="water",
            words=("lake",),
            caption=None,
            plain_background=False,
            width=300,
            height=260,
            sha256="",
        )
        rows.append(asdict(record))
    (folder / "index.json").write_text(json.dumps(rows))
    return folder


def find(sheet, picture):
    """Whether a picture lies in a sheet, unchanged and at real pixels."""
    whole, part = np.asarray(sheet), np.asarray(picture)
    H, W = part.shape[:2]
    return any(
        np.array_equal(whole[y : y + H, x : x + W], part)
        for y, x in np.argwhere((whole[: -H + 1, : -W + 1] == part[0, 0]).all(-1))
    )


def test_a_table_shows_every_picture_at_real_pixels_and_leaves_a_gap_empty():
    a, b, c = (noise_picture(40, 30, seed) for seed in range(3))
    sheet = figures.table([("one", [a, b]), ("two", [None, c])], ("left", "right"))
    for picture in (a, b, c):
        assert find(sheet, picture)
    gap = Image.new("RGB", (40, 30), figures.PAPER)
    right, bottom = sheet.width - figures.GAP - 40, sheet.height - figures.GAP - 30
    left = right - figures.GAP - 40
    assert sheet.crop((left, bottom, left + 40, bottom + 30)).tobytes() == gap.tobytes()


def test_the_restoration_sheet_holds_windows_of_input_result_and_reference(pipeline, examples):
    shown = (figures.Shown("pond", 6, 4), figures.Shown("mill"))
    sheet = figures.restoration(pipeline, examples, shown)
    with Image.open(examples / "pond.png") as lq, Image.open(examples / "pond_gt.png") as gt:
        box = (6, 4, 32, 24)
        assert find(sheet, lq.resize((32, 24), Image.Resampling.NEAREST).crop(box))
        assert find(sheet, pipeline.restore(lq).image.crop(box))
        assert find(sheet, gt.crop(box))


def test_the_entropy_sheet_has_legends_in_the_colours_of_its_maps(pipeline, examples):
    sheet = figures.entropy(pipeline, examples, "pond")
    with Image.open(examples / "pond.png") as lq:
        assert find(sheet, pipeline.restore(lq).image)
    legends = np.asarray(sheet)[-(14 + figures.STRIP)]
    for stop in (VIRIDIS.split()[0], VIRIDIS.split()[-1]):
        colour = tuple(bytes.fromhex(stop))
        assert (legends == colour).all(-1).sum() >= 2  # one in each legend


def test_the_held_out_sheet_ends_with_tokenizer_and_reference(pipeline, tmp_path):
    photos = gather(tmp_path / "photos", {"a": "held_out"})
    sheet = figures.held_out(pipeline, photos, ["a"])
    with Image.open(photos / "a.png") as photo:
        gt = figures.centre(photo)
    vq = pipeline.checkpoint.vq
    assert find(sheet, gt)
    assert find(sheet, vq.decode_image(vq.encode_image(gt)))


def test_a_photo_of_the_training_split_is_never_shown_as_held_out(pipeline, tmp_path):
    photos = gather(tmp_path / "photos", {"a": "train"})
    for name in ("a", "b"):
        with pytest.raises(ValueError, match=f"{name} is no held-out photograph"):
            figures.held_out(pipeline, photos, [name])


@pytest.mark.parametrize("size", [(33, 32), (300, 260), (140, 513)])
def test_the_centre_is_a_square_of_the_native_size(size):
    assert figures.centre(noise_picture(*size)).size == (figures.CROP, figures.CROP)


def test_a_second_run_writes_the_same_bytes(pipeline, examples, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "ENTROPY_EXAMPLE", "pond")
    monkeypatch.setattr(figures, "EXAMPLES", (figures.Shown("pond"),))
    monkeypatch.setattr(figures, "HELD_OUT", ("a",))
    photos = gather(tmp_path / "photos", {"a": "held_out"})

    def digests(out):
        figures.make(pipeline, examples=examples, photos=photos, out=out)
        return {p.name: hashlib.sha256(p.read_bytes()).digest() for p in out.iterdir()}

    first = digests(tmp_path / "first")
    assert sorted(first) == ["entropy.png", "nano-held-out.png", "restoration.png"]
    assert digests(tmp_path / "second") == first


def test_without_photographs_the_other_figures_are_made(pipeline, examples, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "ENTROPY_EXAMPLE", "mill")
    monkeypatch.setattr(figures, "EXAMPLES", (figures.Shown("mill"),))
    figures.make(pipeline, examples=examples, photos=tmp_path / "none", out=tmp_path / "out")
    made = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert made == ["entropy.png", "restoration.png"]
