"""NIQE: how far a photo's statistics are from those of good photographs (Mittal et al., SPL 2013).

No reference is needed; lower is better. The photo's grey values are normalised by their
neighbourhood; generalised Gaussians fitted to blocks of them, at two sizes, give 36 numbers a
block; their mean and covariance are compared with those of pristine photographs.

The pristine model is the authors' own, see NOTICE. Numbers agree with the usual implementations
(BasicSR, pyiqa), which follow the authors' Matlab down to its resizing.
"""

from functools import cache
from pathlib import Path

import numpy as np
from scipy import ndimage, special

PRISTINE = Path(__file__).parent / "niqe_pristine.npz"
BLOCK = 96  # pixels, at full size
WINDOW_SIGMA = 7 / 6  # of the 7 × 7 neighbourhood
SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))  # down, right: which neighbours are multiplied
SHAPES = np.arange(0.2, 10.001, 0.001)  # of the generalised Gaussians that are tried


def niqe(luma: np.ndarray) -> float:
    """NIQE of a grey photo.

    Args:
        luma: (H, W), 0.299 R + 0.587 G + 0.114 B in the full range, 0 to 255; rounded here, as
            published. At least one block of 96 × 96; what exceeds whole blocks is cut off at
            right and bottom.

    Raises:
        ValueError: it is smaller than a block.
    """
    H, W = (side // BLOCK * BLOCK for side in luma.shape)
    if not H or not W:
        raise ValueError(
            f"NIQE needs at least {BLOCK} × {BLOCK} pixels, got {luma.shape[1]} × {luma.shape[0]}"
        )
    image = np.rint(luma[:H, :W].astype(np.float64))
    features = np.concatenate([_features(image, BLOCK), _features(_halved(image), BLOCK // 2)], 1)
    mean = np.nanmean(features, axis=0)  # (36,)
    whole = features[~np.isnan(features).any(axis=1)]
    # One block has no covariance: its distance then is measured by the pristine spread alone.
    covariance = np.cov(whole, rowvar=False) if len(whole) > 1 else np.zeros((36, 36))
    with np.load(PRISTINE) as model:
        difference = model["mean"] - mean
        inverse = np.linalg.pinv((model["covariance"] + covariance) / 2)
    return float(np.sqrt(difference @ inverse @ difference))


def _features(image: np.ndarray, side: int) -> np.ndarray:
    """18 numbers for every block of `side`, (blocks, 18)."""
    normal = _normalised(image)
    rows = []
    for top in range(0, image.shape[0], side):
        for left in range(0, image.shape[1], side):
            block = normal[top : top + side, left : left + side]
            shape, lower, upper = _fit(block)
            row = [shape, (lower + upper) / 2]
            for shift in SHIFTS:
                shape, lower, upper = _fit(block * np.roll(block, shift, axis=(0, 1)))
                mean = (upper - lower) * special.gamma(2 / shape) / special.gamma(1 / shape)
                row += [shape, mean, lower, upper]
            rows.append(row)
    return np.array(rows)


def _normalised(image: np.ndarray) -> np.ndarray:
    """Less the local mean, divided by the local deviation plus one."""
    steps = np.arange(-3, 4)
    window = np.exp(-(steps[:, None] ** 2 + steps**2) / (2 * WINDOW_SIGMA**2))
    # To float32 as in pyiqa, and not as two passes: what a window whose sum is not quite 1 leaves
    # in flat areas has a sign, the fit counts signs, and so rounding reaches the first decimal.
    window = (window / window.sum()).astype(np.float32).astype(np.float64)

    def local(values: np.ndarray) -> np.ndarray:
        return ndimage.correlate(values, window, mode="nearest")

    mean = local(image)
    deviation = np.sqrt(np.abs(local(image**2) - mean**2))
    return (image - mean) / (deviation + 1)


def _fit(values: np.ndarray) -> tuple[float, float, float]:
    """Shape, lower and upper scale of an asymmetric generalised Gaussian, by its moments.

    Source: Lasmar et al., ICIP 2009.
    """
    below, above = values[values < 0], values[values > 0]
    lower = np.sqrt(np.mean(below**2)) if below.size else np.nan
    upper = np.sqrt(np.mean(above**2)) if above.size else np.nan
    skew = lower / upper
    with np.errstate(invalid="ignore"):  # 0 / 0 in a flat block
        ratio = np.mean(np.abs(values)) ** 2 / np.mean(values**2)
    wanted = ratio * (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    # Of nothing but NaN argmin gives the first, as in Matlab: a flat block has the shape 0.2 and no
    # scale. Odd, but all published numbers are made so.
    shape = float(SHAPES[np.argmin((_moment_ratios() - wanted) ** 2)])
    scale = np.sqrt(special.gamma(1 / shape) / special.gamma(3 / shape))
    return shape, float(lower * scale), float(upper * scale)


@cache
def _moment_ratios() -> np.ndarray:
    """Squared mean of the absolute value over the variance, for each of `SHAPES`."""
    a = 1 / SHAPES
    return special.gamma(2 * a) ** 2 / (special.gamma(a) * special.gamma(3 * a))


def _halved(image: np.ndarray) -> np.ndarray:
    """Half the size by antialiased bicubic, as Matlab's imresize does it.

    A pixel of the result lies between two of the image, so the weights are the same everywhere:
    the cubic (a = -0.5), twice as wide, at 0.5, 1.5, 2.5 and 3.5 pixels to either side.
    """
    x = np.array([3.5, 2.5, 1.5, 0.5, 0.5, 1.5, 2.5, 3.5]) / 2
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x <= 1, near, far)
    weights = weights / weights.sum()
    image = (image / 255).astype(np.float32)  # in [0, 1] and float32 as in pyiqa, see `_normalised`
    for axis in (0, 1):
        # scipy's window of even length reaches 4 back and 3 ahead; that is around pixel 2i + 0.5
        # for every second result, from 1 on
        filtered = ndimage.correlate1d(image, weights, axis=axis, mode="reflect")
        image = np.take(filtered, np.arange(1, filtered.shape[axis], 2), axis=axis)
    return image.astype(np.float64) * 255
