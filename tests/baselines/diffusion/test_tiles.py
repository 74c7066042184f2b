import math

import pytest
import torch

from baselines.diffusion.tiles import (
    LatentTiling,
    decode_tiled,
    origins,
    predict_tiled,
    tile_weights,
)


def published_origins(length, tile, overlap):
    """The grid as the published loop makes it: count first, then place."""
    count, reached = 0, 0
    while reached < length:
        reached = max(count * tile - overlap * count, 0) + tile
        count += 1
    return [
        length - tile if i == count - 1 else max(i * tile - overlap * i, 0) for i in range(count)
    ]


@pytest.mark.parametrize("tile", [5, 24, 96])
@pytest.mark.parametrize("overlap", [1, 4])
def test_tiles_begin_where_the_published_loop_puts_them(tile, overlap):
    for length in range(tile, 4 * tile):
        assert origins(length, tile, overlap) == published_origins(length, tile, overlap)


def test_weights_are_a_gaussian_centred_half_a_cell_lower_down():
    weights = tile_weights(6)
    for y in range(6):
        for x in range(6):
            expected = math.exp(-((y - 3) ** 2 + (x - 2.5) ** 2) / 36 / 0.02)
            assert float(weights[y, x]) == pytest.approx(expected, rel=1e-5)


def test_a_prediction_that_depends_on_the_cell_alone_does_not_see_the_tiles():
    latents = torch.randn(2, 4, 37, 50, generator=torch.Generator().manual_seed(0))
    result = predict_tiled(latents, lambda tile, top, left: 3 * tile - 1, LatentTiling(16, 4))
    torch.testing.assert_close(result, 3 * latents - 1)


def test_tiles_are_told_where_they_are():
    """A gradient over the whole picture comes back whole."""
    y, x = torch.meshgrid(torch.arange(30.0), torch.arange(41.0), indexing="ij")

    def predict(tile, top, left):
        rows = torch.arange(top, top + tile.shape[-2])[:, None]
        columns = torch.arange(left, left + tile.shape[-1])[None]
        return (100.0 * rows + columns).expand(tile.shape)

    result = predict_tiled(torch.zeros(1, 1, 30, 41), predict, LatentTiling(16, 8))
    torch.testing.assert_close(result[0, 0], 100 * y + x)


@pytest.mark.parametrize("size", [(8, 8), (4, 16), (1, 64)])
def test_up_to_a_tiles_area_nothing_is_cut(size):
    calls = []

    def predict(tile, top, left):
        calls.append((tuple(tile.shape[-2:]), top, left))
        return tile

    predict_tiled(torch.zeros(1, 1, *size), predict, LatentTiling(8, 2))
    assert calls == [(size, 0, 0)]


def test_neighbours_that_disagree_fade_into_each_other():
    """Tiles say 0 and 1 by turns; no cell differs from its neighbour by more than 0.2."""
    flips = iter(range(1000))

    def predict(tile, top, left):
        return torch.full(tile.shape, float(next(flips) % 2))

    result = predict_tiled(torch.zeros(1, 1, 96, 352), predict, LatentTiling(96, 32))[0, 0]
    assert 0.9 < float(result.max() - result.min()) <= 1
    assert float(result.diff(dim=1).abs().max()) < 0.2


def test_a_side_shorter_than_a_tile_gives_smaller_tiles():
    shapes = set()

    def predict(tile, top, left):
        shapes.add(tuple(tile.shape[-2:]))
        return tile

    latents = torch.randn(1, 1, 5, 100, generator=torch.Generator().manual_seed(0))
    result = predict_tiled(latents, predict, LatentTiling(8, 6))
    assert shapes == {(5, 5)}
    torch.testing.assert_close(result, latents)


@pytest.mark.parametrize("overlap", [0, 8, 9])
def test_an_overlap_that_cannot_work_is_refused(overlap):
    with pytest.raises(ValueError, match="overlap"):
        LatentTiling(8, overlap)


@pytest.mark.parametrize(("height", "width"), [(30, 40), (9, 40), (16, 16), (8, 12)])
def test_decoded_pieces_are_averaged_as_published(height, width):
    """The published loop over pixels beside ours over cells; pieces may differ from each other."""
    latents = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    tiling = LatentTiling(16, 4)
    asked = []

    def decode(piece, top, left):
        asked.append((top, left))
        return (piece + len(asked)).repeat_interleave(8, -1).repeat_interleave(8, -2)

    found = decode_tiled(latents, decode, tiling, 8)
    if max(height, width) <= 16:
        assert asked == [(0, 0)]
        assert torch.equal(found, (latents + 1).repeat_interleave(8, -1).repeat_interleave(8, -2))
        return
    side = 8 * min(16, height, width)
    stride = side - 8 * min(4, side // 8 - 1)

    def starts(length):
        found = [min(start, length - side) for start in range(0, length, stride)]
        return sorted(set(found), key=found.index)

    bells = [
        [math.exp(-((i - middle) ** 2) / side**2 / 0.02) for i in range(side)]
        for middle in (side / 2, (side - 1) / 2)
    ]
    weights = torch.outer(*(torch.tensor(bell, dtype=torch.float64) for bell in bells))
    total = torch.zeros(1, 3, 8 * height, 8 * width, dtype=torch.float64)
    weight = torch.zeros(8 * height, 8 * width, dtype=torch.float64)
    pixels = latents.repeat_interleave(8, -1).repeat_interleave(8, -2)
    places = [(top, left) for top in starts(8 * height) for left in starts(8 * width)]
    assert [(8 * top, 8 * left) for top, left in asked] == places
    for i, (top, left) in enumerate(places):
        place = (..., slice(top, top + side), slice(left, left + side))
        total[place] += (pixels[place] + i + 1) * weights
        weight[place[1:]] += weights
    torch.testing.assert_close(found, (total / weight).float(), rtol=1e-4, atol=1e-4)
