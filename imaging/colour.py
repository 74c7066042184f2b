"""Give a restored picture the colours of its input.

Two corrections, both after the colour fix of StableSR (Wang et al., IJCV 2024), which PURE applies
to its decoded picture: `wavelet` is the published setting, `adain` the alternative that ships
with it. Knows pictures of one size; how they come to be so is the caller's concern.
"""

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from imaging.convert import to_image, to_tensor

# Dilations of the blur, level by level: five levels as published, the coarsest about 62 px wide.
DILATIONS = (1, 2, 4, 8, 16)

# Added to the variance, on the [0, 1] scale, as published: keeps flat channels finite.
VARIANCE_FLOOR = 1e-5


def wavelet(restored: Image.Image, lq: Image.Image) -> Image.Image:
    """The detail of `restored` on the low frequencies of `lq`.

    The result is cut to 8 bits by truncation, as published, so that a pixel that should not change
    may lose one level to rounding in float32.

    Source: StableSR, `wavelet_reconstruction`; PURE, `wavelet_color_fix`.

    Args:
        restored: RGB.
        lq: RGB, already resized to the size of `restored`.

    Raises:
        ValueError: a picture is not RGB, or the sizes differ.
    """
    return to_image(wavelet_tensor(*_pair(restored, lq)))


def adain(restored: Image.Image, lq: Image.Image) -> Image.Image:
    """`restored` with the mean and standard deviation of `lq` in each channel.

    Source: adaptive instance normalisation (Huang & Belongie, ICCV 2017), as in StableSR's
    `adaptive_instance_normalization`; truncated to 8 bits like `wavelet`.

    Raises:
        ValueError: a picture is not RGB, the sizes differ, or there is one pixel only, which has
            no standard deviation.
    """
    return to_image(adain_tensor(*_pair(restored, lq)))


@torch.inference_mode()
def wavelet_tensor(restored: Tensor, lq: Tensor) -> Tensor:
    """`wavelet` on (B, 3, H, W) in [0, 1], not clamped."""
    high, _ = _decompose(restored)
    _, low = _decompose(lq)
    return high + low


@torch.inference_mode()
def adain_tensor(restored: Tensor, lq: Tensor) -> Tensor:
    """`adain` on (B, 3, H, W) in [0, 1], not clamped."""
    if restored.shape[-2:].numel() < 2:
        raise ValueError("a standard deviation needs at least two pixels, got one")
    mean, std = _moments(restored)
    lq_mean, lq_std = _moments(lq)
    return (restored - mean) / std * lq_std + lq_mean


def _decompose(x: Tensor) -> tuple[Tensor, Tensor]:
    """Detail and what is left of (B, 3, H, W) after five blurs, each twice as wide as the last."""
    row = torch.tensor([1.0, 2.0, 1.0], dtype=x.dtype, device=x.device) / 4
    kernel = torch.outer(row, row).expand(x.shape[1], 1, 3, 3)
    high = torch.zeros_like(x)
    for r in DILATIONS:
        low = F.conv2d(
            F.pad(x, (r, r, r, r), mode="replicate"), kernel, groups=x.shape[1], dilation=r
        )
        high = high + (x - low)
        x = low
    return high, x


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every channel, (B, 3, 1, 1); the variance is unbiased."""
    variance, mean = torch.var_mean(x, dim=(-2, -1), keepdim=True)
    return mean, (variance + VARIANCE_FLOOR).sqrt()


def _pair(restored: Image.Image, lq: Image.Image) -> tuple[Tensor, Tensor]:
    if restored.size != lq.size:
        raise ValueError(
            f"expected two pictures of one size, got {restored.width} × {restored.height} and "
            f"{lq.width} × {lq.height}"
        )
    return to_tensor(restored), to_tensor(lq)
