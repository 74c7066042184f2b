import json
import math

import numpy as np
import pytest
from PIL import Image

from imaging.degrade import PRESETS, Thresholds, degrade, scores, usm_sharpen
from pure.belief import LEVELS, Belief
from pure.data import (
    Crop,
    CropSampler,
    KnownLabels,
    Photo,
    label,
    load_photos,
    make_pair,
    read_index,
)


def photo(height, width, *, name="a", plain=False, seed=0):
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Photo(name, "animal", ("cat",), plain, pixels)


def ramp(height, width):
    """Every pixel's own place: row in red, column in green."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([y, x, np.zeros_like(x)], -1).astype(np.uint8)
    return Photo("ramp", "animal", (), False, pixels)


def record(name, split="train", width=20, height=10, **more):
    values = {"id": name, "file": f"{name}.png", "split": split, "kind": "animal"}
    values |= {"words": ["cat"], "plain_background": False, "width": width, "height": height}
    return values | more


@pytest.fixture
def folder(tmp_path):
    records = [
        record("large", width=40, height=30, words=["lynx", "snow"], plain_background=True),
        record("small"),
        record("other", split="held_out", width=40, height=30),
    ]
    for i, r in enumerate(records):
        Image.new("RGB", (r["width"], r["height"]), (i, 0, 0)).save(tmp_path / r["file"])
    (tmp_path / "index.json").write_text(json.dumps(records))
    return tmp_path


def test_a_missing_index_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        read_index(tmp_path)
    assert "index.json is missing: run `make data`" in str(error.value)


def test_photos_of_a_split_are_loaded_in_order(folder):
    photos = load_photos(folder, "train", min_side=1)
    assert [p.id for p in photos] == ["large", "small"]
    assert photos[0].words == ("lynx", "snow")
    assert [p.plain_background for p in photos] == [True, False]
    assert photos[0].pixels.shape == (30, 40, 3)


def test_small_photos_are_left_out(folder):
    assert [p.id for p in load_photos(folder, "train", min_side=11)] == ["large"]


def test_grey_photos_become_rgb(folder):
    Image.new("L", (20, 10), 7).save(folder / "small.png")
    assert load_photos(folder, "train", min_side=1)[1].pixels.shape == (10, 20, 3)


def test_no_photo_at_all_is_an_error(folder):
    with pytest.raises(ValueError, match="no held_out photograph of at least 99 pixels"):
        load_photos(folder, "held_out", min_side=99)


def test_a_crop_depends_on_seed_and_index_alone():
    photos = [photo(60, 80), photo(50, 50, seed=1)]
    forwards = [CropSampler(photos, 16, seed=3).crop(i).pixels for i in range(20)]
    sampler = CropSampler(photos, 16, seed=3)
    backwards = [sampler.crop(i).pixels for i in reversed(range(20))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(forwards, backwards, strict=True))


def test_other_indices_and_seeds_give_other_crops():
    photos = [photo(60, 80)]
    crops = [
        CropSampler(photos, 16, seed=s).crop(i).pixels.tobytes() for s in (0, 1) for i in (0, 1)
    ]
    assert len(set(crops)) == 4


@pytest.mark.parametrize("shape", [(16, 16), (16, 90), (33, 17), (200, 150)])
def test_crops_are_square_and_of_the_size(shape):
    sampler = CropSampler([photo(*shape)], 16, seed=0)
    for i in range(20):
        pixels = sampler.crop(i).pixels
        assert pixels.shape == (16, 16, 3)
        assert pixels.dtype == np.uint8
        assert pixels.flags.c_contiguous


def test_unreduced_crops_are_cut_out_and_flipped_half_the_time():
    sampler = CropSampler([ramp(40, 60)], 16, seed=0, max_reduction=1.0)
    flips, n = 0, 400
    for i in range(n):
        pixels = sampler.crop(i).pixels.astype(int)
        assert (np.diff(pixels[..., 0], axis=0) == 1).all()
        steps = np.unique(np.diff(pixels[..., 1], axis=1))
        assert len(steps) == 1
        flips += steps[0] == -1
    assert abs(flips - n / 2) < 4 * math.sqrt(n / 4)


def test_every_place_can_be_cut():
    sampler = CropSampler([ramp(20, 19)], 16, seed=0, max_reduction=1.0)
    tops, lefts = set(), set()
    for i in range(300):
        pixels = sampler.crop(i).pixels
        tops.add(int(pixels[..., 0].min()))
        lefts.add(int(pixels[..., 1].min()))
    assert (tops, lefts) == (set(range(5)), set(range(4)))


def test_regions_are_drawn_log_uniformly_up_to_the_largest_reduction():
    sampler = CropSampler([ramp(200, 200)], 16, seed=0, max_reduction=4.0)
    n = 1000
    spans = np.array([np.ptp(sampler.crop(i).pixels[:, 0, 0].astype(int)) for i in range(n)])
    # rows of a crop reduced r times lie r apart, so their span is 15 r
    reductions = spans / 15
    assert reductions.min() >= 0.99
    assert reductions.max() <= 4.1
    assert abs((reductions > 2).mean() - 0.5) < 4 * 0.5 / math.sqrt(n) + 0.03  # 0.03: whole pixels


def test_photos_smaller_than_the_largest_reduction_are_cut_whole_at_most():
    sampler = CropSampler([ramp(24, 100)], 16, seed=0)
    assert max(int(np.ptp(sampler.crop(i).pixels[:, 0, 0].astype(int))) for i in range(50)) <= 23


def test_photos_are_drawn_by_area_and_background():
    photos = [
        photo(20, 20, name="base"),
        photo(40, 40, name="large"),
        photo(40, 40, name="plain", plain=True),
    ]
    weights = np.array([20, 40, 40 / 3])
    sampler, n = CropSampler(photos, 8, seed=0), 2000
    drawn = [sampler.crop(i).photo.id for i in range(n)]
    for p, expected in zip(photos, weights / weights.sum(), strict=True):
        deviation = math.sqrt(expected * (1 - expected) / n)
        assert abs(drawn.count(p.id) / n - expected) < 4 * deviation


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_pair_has_two_pictures_of_one_size_and_a_true_label(preset):
    crop = Crop(photo(32, 32), photo(32, 32).pixels)
    pair = make_pair(crop, 3, preset)
    assert pair.crop is crop
    assert pair.small.shape == (8, 8, 3)
    assert pair.lq.shape == (32, 32, 3)
    assert pair.lq.dtype == np.uint8
    belief = Belief.parse(label(pair, KnownLabels()))
    assert belief.blur in LEVELS
    assert belief.noise in LEVELS


def test_a_pair_depends_on_its_seed_alone():
    crop = Crop(photo(32, 32), photo(32, 32).pixels)
    first, second, other = (make_pair(crop, seed, "realesrgan") for seed in (1, 1, 2))
    assert np.array_equal(first.lq, second.lq)
    assert first.parameters == second.parameters
    assert not np.array_equal(first.lq, other.lq)


def test_references_are_sharpened_where_the_preset_expects_it_and_it_is_wanted():
    crop = Crop(photo(32, 32), photo(32, 32).pixels)
    pair = make_pair(crop, 3, "realesrgan", sharpen=True)
    assert np.array_equal(pair.crop.pixels, usm_sharpen(crop.pixels))
    assert np.array_equal(pair.small, degrade(pair.crop.pixels, pair.parameters))
    for unchanged in (make_pair(crop, 3, "realesrgan"), make_pair(crop, 3, "mild", sharpen=True)):
        assert unchanged.crop is crop


def test_a_known_label_is_its_score_between_the_thresholds():
    crop = Crop(photo(32, 32), photo(32, 32).pixels)
    pair = make_pair(crop, 1, "realesrgan")
    score = scores(pair.crop.pixels, pair.small, pair.parameters)
    between = Thresholds((score.blur - 1, score.blur + 1), (score.noise + 1, score.noise + 2))
    assert label(pair, KnownLabels(between)) == "Medium blur, small noise."
    above = Thresholds((score.blur - 2, score.blur - 1), (score.noise - 2, score.noise))
    assert label(pair, KnownLabels(above)) == "Large blur, large noise."
