"""Numbers per cell as a colour picture.

Knows two colour maps. Does not know what the numbers are, nor where they lie in a photo.
"""

import numpy as np
from PIL import Image

# Eleven stops of matplotlib's perceptually uniform maps (Smith & van der Walt 2015, CC0):
# lightness rises evenly, and they read the same with colour blindness and in grey print.
VIRIDIS = "440154 482475 414487 355f8d 2a788e 21918c 22a884 44bf70 7ad151 bddf26 fde725"
MAGMA = "000004 140e36 3b0f70 641a80 8c2981 b73779 de4968 f7705c fe9f6d fecf92 fcfdbf"
UNKNOWN = (0x80, 0x80, 0x80)  # a grey, which the maps do not contain


def heat_map(
    values: np.ndarray, low: float, high: float, *, stops: str = VIRIDIS, log: bool = False
) -> Image.Image:
    """One pixel per cell, RGB, from the first colour at `low` to the last at `high`.

    What lies outside the limits gets the colour of the limit; NaN is grey.

    Args:
        values: (rows, columns), any number type.
        low: what the first colour stands for.
        high: what the last one stands for; above `low`.
        stops: hexadecimal colours at even distances.
        log: let the colours follow the logarithm; `low` is above 0 then.

    Raises:
        ValueError: `values` has other dimensions, or the limits are not in order.
    """
    if values.ndim != 2:
        raise ValueError(f"expected values (rows, columns), got the shape {values.shape}")
    if not low < high or (log and low <= 0):
        raise ValueError(f"expected low < high, above 0 for a logarithm, got {low} and {high}")
    numbers = np.asarray(values, np.float64)
    known = ~np.isnan(numbers)
    numbers = np.clip(np.where(known, numbers, low), low, high)
    if log:
        numbers, low, high = np.log(numbers), float(np.log(low)), float(np.log(high))
    table = np.array([list(bytes.fromhex(stop)) for stop in stops.split()], np.float64)
    place = (numbers - low) / (high - low) * (len(table) - 1)
    channels = [np.interp(place, np.arange(len(table)), table[:, c]) for c in range(3)]
    pixels = np.where(known[..., None], np.rint(np.stack(channels, axis=-1)), UNKNOWN)
    return Image.fromarray(pixels.astype(np.uint8))


def over_picture(cells: Image.Image, factor: int, size: tuple[int, int]) -> Image.Image:
    """A picture with one pixel per cell, enlarged to the `size` (width, height) it speaks about.

    Cells stay squares of `factor` pixels; those that reach beyond the picture are cut.
    """
    enlarged = cells.resize((cells.width * factor, cells.height * factor), Image.Resampling.NEAREST)
    return enlarged.crop((0, 0, *size))
