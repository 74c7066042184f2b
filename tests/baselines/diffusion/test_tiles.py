import math

import pytest
import torch

from baselines.diffusion.tiles import LatentTiling, origins, predict_tiled, tile_weights


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
