import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imaging.tiling import Tile, blend, plan, starts


@st.composite
def axes(draw):
    """Length, tile, overlap and multiple that fit each other."""
    multiple = draw(st.sampled_from([1, 2, 8]))
    cells = draw(st.integers(1, 12))
    overlap = draw(st.integers(0, (cells - 1) * multiple))
    return draw(st.integers(1, 60)) * multiple, cells * multiple, overlap, multiple


@st.composite
def pictures(draw):
    """A small picture's size, tile and overlap, up to five tiles sharing a pixel per axis."""
    width, height = draw(st.integers(1, 30)), draw(st.integers(1, 30))
    tile = draw(st.integers(4, 20))
    return (width, height), tile, draw(st.integers(0, tile * 3 // 4))


def texture_of(size):
    return np.random.default_rng(size).random((size[1], size[0], 3), dtype=np.float32)


def cut(picture, tiles):
    return [picture[t.top : t.top + t.height, t.left : t.left + t.width] for t in tiles]


@given(axes())
def test_starts_cover_the_axis_and_end_where_it_ends(axis):
    length, tile, _, multiple = axis
    places = starts(*axis)
    covered = set(itertools.chain.from_iterable(range(s, s + tile) for s in places))
    assert covered >= set(range(length))
    assert places[0] == 0
    assert places[-1] == max(length - tile, 0)
    assert all(place % multiple == 0 for place in places)


@given(axes())
def test_neighbours_share_the_overlap_and_steps_are_even(axis):
    _, tile, overlap, multiple = axis
    steps = np.diff(starts(*axis))
    assert (tile - steps >= overlap).all()
    assert (steps > 0).all()
    assert len(steps) == 0 or np.ptp(steps) <= multiple


@given(axes())
def test_one_tile_fewer_would_not_reach(axis):
    length, tile, overlap, multiple = axis
    count = len(starts(*axis))
    step = (tile - overlap) // multiple * multiple
    assert count == 1 or tile + (count - 2) * step < length


def test_starts_of_known_lengths():
    assert starts(512, 512, 64) == [0]
    assert starts(300, 512, 64) == [0]
    assert starts(1024, 512, 0) == [0, 512]
    assert starts(1024, 512, 64, 8) == [0, 256, 512]
    assert starts(10, 4, 1) == [0, 3, 6]


@pytest.mark.parametrize(
    "axis",
    [(0, 4, 1), (9, 4, 4), (9, 4, -1), (9, 4, 1, 0), (9, 4, 1, 2), (16, 6, 1, 4), (16, 4, 1, 4)],
)
def test_lengths_that_do_not_fit_are_an_error(axis):
    with pytest.raises(ValueError, match=r"expected|leaves no step"):
        starts(*axis)


def test_a_plan_runs_row_by_row():
    assert plan((6, 7), 4, 1) == [
        Tile(0, 0, 4, 4),
        Tile(2, 0, 4, 4),
        Tile(0, 3, 4, 4),
        Tile(2, 3, 4, 4),
    ]
    assert plan((6, 7), 4, 1)[3].box == (2, 3, 6, 7)


def test_a_side_shorter_than_a_tile_makes_the_tile_shorter():
    assert plan((3, 9), 5, 1) == [Tile(0, 0, 3, 5), Tile(0, 4, 3, 5)]


@settings(deadline=None)  # arithmetic on arrays; a busy machine is no failure
@given(pictures())
def test_tiles_of_a_texture_blend_to_the_texture(case):
    size, tile, overlap = case
    texture = texture_of(size)
    tiles = plan(size, tile, overlap)
    np.testing.assert_allclose(blend(tiles, cut(texture, tiles), size), texture, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(pictures())
def test_the_weights_of_a_pixel_sum_to_one(case):
    size, tile, overlap = case
    tiles = plan(size, tile, overlap)
    total = np.zeros((size[1], size[0], 3))
    for chosen in tiles:  # the weight of a tile: what it leaves of a white one among black ones
        total += blend(tiles, [np.full((t.height, t.width, 3), t == chosen) for t in tiles], size)
    np.testing.assert_allclose(total, 1, atol=1e-6)


@settings(deadline=None)
@given(pictures())
def test_a_pixel_of_one_tile_is_returned_exactly(case):
    size, tile, overlap = case
    texture = texture_of(size)
    tiles = plan(size, tile, overlap)
    cover = np.zeros(texture.shape[:2], dtype=int)
    for t in tiles:
        cover[t.top : t.top + t.height, t.left : t.left + t.width] += 1
    blended = blend(tiles, cut(texture, tiles), size)
    np.testing.assert_array_equal(blended[cover == 1], texture[cover == 1])


def test_a_gradient_blends_to_itself():
    y, x = np.mgrid[:70, :90]
    gradient = np.stack([x / 90, y / 70, (x + y) / 160], axis=-1).astype(np.float32)
    tiles = plan((90, 70), 32, 9)
    np.testing.assert_allclose(blend(tiles, cut(gradient, tiles), (90, 70)), gradient, atol=1e-6)


def test_a_seam_falls_smoothly_from_one_tile_to_the_next():
    tiles = plan((12, 1), 8, 4)
    black, white = np.zeros((1, 8, 3)), np.ones((1, 8, 3))
    seam = blend(tiles, [black, white], (12, 1))[0, :, 0]
    rise = np.sin(np.pi * (np.arange(4) + 0.5) / 8) ** 2  # the raised cosine, written otherwise
    np.testing.assert_allclose(seam, [0] * 4 + rise.tolist() + [1] * 4, atol=1e-7)


def test_tensors_and_arrays_blend_alike():
    picture = np.random.default_rng(0).random((20, 30, 3), dtype=np.float32)
    tiles = plan((30, 20), 16, 4)
    tensors = [torch.from_numpy(p).permute(2, 0, 1) for p in cut(picture, tiles)]
    blended = blend(tiles, tensors, (30, 20))
    assert blended.dtype == np.float32
    np.testing.assert_array_equal(blended, blend(tiles, cut(picture, tiles), (30, 20)))


def test_pictures_that_do_not_match_are_an_error():
    tiles, pixels = plan((6, 4), 4, 1), np.zeros((4, 4, 3))
    with pytest.raises(ValueError, match="2 tiles and 1 pictures"):
        blend(tiles, [pixels], (6, 4))
    with pytest.raises(ValueError, match="shape"):
        blend(tiles, [pixels, pixels[:2]], (6, 4))
    with pytest.raises(ValueError, match="beyond 5 × 4"):
        blend(tiles, [pixels, pixels], (5, 4))
    with pytest.raises(ValueError, match="4 pixels uncovered"):
        blend(tiles, [pixels, pixels], (7, 4))
