"""Split a large picture into overlapping tiles, and blend the restored tiles into one again.

Knows rectangles and weights. Does not know what is done to a tile, nor its colours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """A rectangle of pixels."""

    left: int
    top: int
    width: int
    height: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom, as `Image.crop` takes them."""
        return self.left, self.top, self.left + self.width, self.top + self.height


def starts(length: int, tile: int, overlap: int, multiple: int = 1) -> list[int]:
    """Where tiles begin along one axis: as few as possible, evenly spread.

    Args:
        length: of the axis; a multiple of `multiple`.
        tile: length of a tile. One at least as long as the axis gives `[0]`, and ends where the
            axis ends; a shorter one must be a multiple of `multiple`.
        overlap: that neighbours share at least; below `tile`.
        multiple: of which every start is one, and so every overlap: 8 for cells of the tokenizer.

    Returns:
        Rising starts, the first 0, the last `length - tile`.

    Raises:
        ValueError: the lengths do not fit each other.
    """
    if length < 1 or multiple < 1 or not 0 <= overlap < tile:
        raise ValueError(
            f"expected length >= 1, multiple >= 1 and 0 <= overlap < tile, got length {length}, "
            f"multiple {multiple}, overlap {overlap}, tile {tile}"
        )
    if length % multiple:
        raise ValueError(f"expected a length that is a multiple of {multiple}, got {length}")
    if tile >= length:
        return [0]
    if tile % multiple:
        raise ValueError(f"expected a tile that is a multiple of {multiple}, got {tile}")
    # In cells of `multiple` from here. A step of at most `longest` keeps the overlap; steps that
    # differ by one cell at most cannot exceed it.
    way, longest = (length - tile) // multiple, (tile - overlap) // multiple
    if longest < 1:
        raise ValueError(
            f"an overlap of {overlap} in tiles of {tile} leaves no step of {multiple} pixels"
        )
    steps = -(-way // longest)
    return [step * way // steps * multiple for step in range(steps + 1)]


def plan(size: tuple[int, int], tile: int, overlap: int, multiple: int = 1) -> list[Tile]:
    """Square tiles that cover a picture of `size` (width, height), row by row.

    A side shorter than `tile` is covered by tiles of that side. The rest is as in `starts`.
    """
    width, height = size
    return [
        Tile(left, top, min(tile, width), min(tile, height))
        for top in starts(height, tile, overlap, multiple)
        for left in starts(width, tile, overlap, multiple)
    ]


def blend(
    tiles: Sequence[Tile], pictures: Sequence[np.ndarray | Tensor], size: tuple[int, int]
) -> np.ndarray:
    """Average restored tiles into one picture, with weights that fade across the overlaps.

    A weight is a raised cosine where a tile shares pixels with its neighbour and 1 elsewhere; the
    weights of a pixel sum to 1. A pixel of one tile only is returned as it is.

    Args:
        tiles: as `plan` gave them.
        pictures: one per tile and as large: arrays (H, W, 3) or tensors (3, H, W).
        size: (width, height) of the whole.

    Returns:
        Float32 (H, W, 3), in the range of the pictures.

    Raises:
        ValueError: pictures do not match tiles, or the tiles leave a pixel uncovered.
    """
    if len(tiles) != len(pictures):
        raise ValueError(f"got {len(tiles)} tiles and {len(pictures)} pictures")
    width, height = size
    across = _fades([(tile.left, tile.width) for tile in tiles])
    down = _fades([(tile.top, tile.height) for tile in tiles])
    # float64, so that the sum of weighted neighbours costs no level of an 8-bit picture
    total = np.zeros((height, width, 3))
    weights = np.zeros((height, width, 1))
    for tile, picture in zip(tiles, pictures, strict=True):
        left, top, right, bottom = tile.box
        if left < 0 or top < 0 or right > width or bottom > height:
            raise ValueError(f"{tile} reaches beyond {width} × {height}")
        if isinstance(picture, Tensor):
            picture = picture.detach().float().cpu().movedim(0, -1).numpy()  # (H, W, 3)
        if picture.shape != (tile.height, tile.width, 3):
            raise ValueError(f"expected a picture of {tile}, got the shape {picture.shape}")
        fade = np.outer(down[tile.top, tile.height], across[tile.left, tile.width])[..., None]
        total[top:bottom, left:right] += fade * picture
        weights[top:bottom, left:right] += fade
    if not weights.all():
        raise ValueError(f"the tiles leave {int((weights == 0).sum())} pixels uncovered")
    return (total / weights).astype(np.float32)


def _fades(spans: list[tuple[int, int]]) -> dict[tuple[int, int], np.ndarray]:
    """The weights along one axis, by (start, length).

    They rise over what is shared with the span before and fall over what is shared with the one
    after; of two that overlap the sum is 1.
    """
    ordered = sorted(set(spans))
    fades = {span: np.ones(span[1]) for span in ordered}
    for before, after in pairwise(ordered):
        shared = min(before[0] + before[1] - after[0], before[1], after[1])
        if shared > 0:
            # at the middles of the pixels: never 0, and its own mirror image
            rise = 0.5 - 0.5 * np.cos(np.pi * (np.arange(shared) + 0.5) / shared)
            fades[before][-shared:] *= rise[::-1]
            fades[after][:shared] *= rise
    return fades
