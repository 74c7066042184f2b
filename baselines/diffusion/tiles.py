"""A prediction over latents larger than the network's own size: overlapping tiles, averaged.

Not pixels are blended but the predicted noise of one step, so all tiles stay one picture.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

VARIANCE = 0.01  # of the weight's Gaussian, in squared tile sides


@dataclass(frozen=True)
class LatentTiling:
    """When latents are cut and how.

    Attributes:
        tile: side in latent cells; up to tile² cells nothing is cut.
        overlap: that neighbours share at least.
    """

    tile: int
    overlap: int

    def __post_init__(self) -> None:
        if not 0 < self.overlap < self.tile:
            raise ValueError(f"expected 0 < overlap < tile, got {self.overlap} and {self.tile}")


def origins(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along one axis: at a fixed stride, the last one flush with the end.

    `imaging.tiling.starts` spreads them evenly instead; this is the published grid.
    """
    count = max(math.ceil((length - overlap) / (tile - overlap)), 1)
    return [min(i * (tile - overlap), length - tile) for i in range(count)]


def tile_weights(tile: int) -> Tensor:
    """How much each cell of a tile counts, (tile, tile), float32: a Gaussian.

    As published it is centred between cells across and half a cell lower down, which the average
    makes up for.
    """
    cells = torch.arange(tile, dtype=torch.float64)

    def bell(centre: float) -> Tensor:
        return torch.exp(-((cells - centre) ** 2) / tile**2 / (2 * VARIANCE))

    return torch.outer(bell(tile / 2), bell((tile - 1) / 2)).float()


def predict_tiled(
    latents: Tensor,
    predict: Callable[[Tensor, int, int], Tensor],
    tiling: LatentTiling,
) -> Tensor:
    """`predict` over latents of any size.

    Args:
        latents: (B, C, H, W).
        predict: takes (B, C, h, w) and the top and left cell it was cut at, and gives the same
            shape.
        tiling: latents of up to tile² cells go through in one piece, as published even when one
            side is longer than a tile.

    Returns:
        (B, C, H, W), float32.
    """
    height, width = latents.shape[-2:]
    if height * width <= tiling.tile**2:
        return predict(latents, 0, 0).float()
    tile = min(tiling.tile, height, width)
    overlap = min(tiling.overlap, tile - 1)
    weights = tile_weights(tile).to(latents.device)
    total = torch.zeros(latents.shape, device=latents.device)
    weight = torch.zeros(latents.shape[-2:], device=latents.device)
    for top in origins(height, tile, overlap):
        for left in origins(width, tile, overlap):
            place = (..., slice(top, top + tile), slice(left, left + tile))
            total[place] += predict(latents[place], top, left).float() * weights
            weight[place] += weights
    return total / weight


def decode_tiled(
    latents: Tensor, decode: Callable[[Tensor, int, int], Tensor], tiling: LatentTiling, cell: int
) -> Tensor:
    """`decode` over latents of any size, as `predict_tiled`, to pixels.

    Args:
        latents: (B, C, H, W).
        decode: takes (B, C, h, w) and the top and left cell it was cut at, and gives pixels
            (B, 3, cell h, cell w).
        tiling: as there, but it is the longer side that decides; sides shorter than a tile make
            tiles of their length.
        cell: pixels of a latent cell.

    Returns:
        (B, 3, cell H, cell W), float32.
    """
    height, width = latents.shape[-2:]
    if max(height, width) <= tiling.tile:
        return decode(latents, 0, 0).float()
    tile = min(tiling.tile, height, width)
    overlap = min(tiling.overlap, tile - 1)
    weights = tile_weights(cell * tile).to(latents.device)
    shape = (latents.shape[0], 3, cell * height, cell * width)
    total = torch.zeros(shape, device=latents.device)
    weight = torch.zeros(shape[-2:], device=latents.device)
    for top in origins(height, tile, overlap):
        for left in origins(width, tile, overlap):
            part = latents[..., top : top + tile, left : left + tile]
            rows = slice(cell * top, cell * (top + tile))
            columns = slice(cell * left, cell * (left + tile))
            total[..., rows, columns] += decode(part, top, left).float() * weights
            weight[rows, columns] += weights
    return total / weight
