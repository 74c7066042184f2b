"""What happens to pixels around a network: enlarged before; colours and promised size after.

All enlarge until the short side is what their networks want, then round both sides to whole latent
cells by resizing, not by cropping; SeeSR and OSEDiff alike, PASD in another order.
"""

from typing import Literal

from PIL import Image

from imaging import colour
from imaging.convert import resize

ColourFix = Literal["adain", "wavelet", "none"]
CELL = 8  # pixels of a latent cell, of every Stable Diffusion


def enlarge(lq: Image.Image, *, native: int, scale: int, rounding: Image.Resampling) -> Image.Image:
    """The input at the size the network works at, bicubic.

    A photo whose short side is below `native` / `scale` is enlarged to that first; then by
    `scale`; then each side is rounded down to a multiple of 8.

    Source: the test scripts of SeeSR and OSEDiff.

    Args:
        lq: RGB.
        native: short side in pixels that the network was trained at.
        scale: how many times larger the result is to be.
        rounding: filter of the last step; SeeSR's is bicubic, OSEDiff's Lanczos.
    """
    width, height = lq.size
    shortest = native // scale
    if min(width, height) < shortest:
        factor = shortest / min(width, height)
        lq = resize(lq, (int(factor * width), int(factor * height)))
    large = resize(lq, (lq.width * scale, lq.height * scale))
    cells = (large.width // CELL * CELL, large.height // CELL * CELL)
    return large if cells == large.size else resize(large, cells, resample=rounding)


def enlarge_to(lq: Image.Image, *, shortest: int, scale: int) -> Image.Image:
    """The input at the size PASD's networks work at.

    Enlarged by `scale`, bicubic; then to `shortest` on the short side if that is less, bilinear;
    then each side rounded down to a multiple of 8, bicubic.

    Source: the test script of PASD.

    Args:
        lq: RGB.
        shortest: short side in pixels, at least.
        scale: how many times larger the result is to be.
    """
    large = resize(lq, (lq.width * scale, lq.height * scale))
    short = min(large.size)
    if short < shortest:
        # the long side as torchvision counts it, rounded down
        width, height = (shortest * side // short for side in large.size)
        large = resize(large, (width, height), resample=Image.Resampling.BILINEAR)
    cells = (large.width // CELL * CELL, large.height // CELL * CELL)
    return large if cells == large.size else resize(large, cells)


def promised(restored: Image.Image, lq: Image.Image, *, scale: int) -> Image.Image:
    """The restored picture at exactly `scale` times the input, bicubic; itself if it is."""
    size = (lq.width * scale, lq.height * scale)
    return restored if restored.size == size else resize(restored, size)


def fix_colour(restored: Image.Image, large: Image.Image, fix: ColourFix) -> Image.Image:
    """The restored picture with the colours of the enlarged input, both of one size."""
    if fix == "none":
        return restored
    return {"adain": colour.adain, "wavelet": colour.wavelet}[fix](restored, large)
