"""Numbers per cell as a colour picture.

Knows one colour map. Does not know what the numbers are, nor where they lie in a photo.
"""

import numpy as np
from PIL import Image

# Viridis at tenths of its length (Smith & van der Walt 2015, CC0): lightness rises evenly, and
# it reads the same with red-green colour blindness and in grey print.
VIRIDIS = (
    (0x44, 0x01, 0x54),
    (0x48, 0x28, 0x78),
    (0x3E, 0x49, 0x89),
    (0x31, 0x68, 0x8E),
    (0x26, 0x82, 0x8E),
    (0x1F, 0x9E, 0x89),
    (0x35, 0xB7, 0x79),
    (0x6E, 0xCE, 0x58),
    (0xB5, 0xDE, 0x2B),
    (0xFD, 0xE7, 0x25),
)
UNKNOWN = (0x80, 0x80, 0x80)  # a grey, which the map does not contain


def heat_map(values: np.ndarray, low: float, high: float) -> Image.Image:
    """One pixel per cell, from dark blue at `low` to yellow at `high`.

    What lies outside the limits gets the colour of the limit; NaN is grey.

    Args:
        values: (rows, columns), any number type.
        low: what the first colour stands for.
        high: what the last one stands for; above `low`.

    Raises:
        ValueError: `values` has other dimensions, or the limits are not in order.
    """
    if values.ndim != 2:
        raise ValueError(f"expected values (rows, columns), got the shape {values.shape}")
    if not low < high:
        raise ValueError(f"expected low < high, got {low} and {high}")
    share = (np.asarray(values, np.float64) - low) / (high - low)
    known = ~np.isnan(share)
    place = np.clip(np.where(known, share, 0), 0, 1) * (len(VIRIDIS) - 1)
    table = np.asarray(VIRIDIS, np.float64)
    channels = [np.interp(place, np.arange(len(table)), table[:, c]) for c in range(3)]
    pixels = np.where(known[..., None], np.rint(np.stack(channels, axis=-1)), UNKNOWN)
    return Image.fromarray(pixels.astype(np.uint8))


def over_picture(cells: Image.Image, factor: int, size: tuple[int, int]) -> Image.Image:
    """A picture with one pixel per cell, enlarged to the `size` (width, height) it speaks about.

    Cells stay squares of `factor` pixels; those that reach beyond the picture are cut.
    """
    enlarged = cells.resize((cells.width * factor, cells.height * factor), Image.Resampling.NEAREST)
    return enlarged.crop((0, 0, *size))
