"""Between pictures and tensors: conversion and resizing.

Knows the two conventions of this project, `PIL` RGB 8 bit and float32 (1, 3, H, W) in [0, 1], and
how PURE rounds between them. Does not know files (`load.py`) or what a model expects inside.
"""

from typing import Literal

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB picture as float32 (1, 3, H, W) in [0, 1].

    Raises:
        ValueError: the picture is not RGB.
    """
    pixels = torch.from_numpy(np.array(_rgb(image)))  # (H, W, 3), a copy that may be written to
    return rearrange(pixels, "h w c -> 1 c h w").contiguous().to(torch.float32).div(255)


def to_image(
    tensor: Tensor, *, rounding: Literal["truncate", "nearest"] = "truncate"
) -> Image.Image:
    """A (1, 3, H, W) tensor as an RGB picture, values clamped to [0, 1].

    The default is what PURE published: `mul(255).byte()`, as in torchvision's `ToPILImage`, which
    drops the fraction and so darkens by half a level on average. In float32 all 256 levels survive
    `to_tensor` and back; a level computed in another way may fall one short.

    Raises:
        ValueError: another shape, or values that are not numbers.
    """
    if tensor.ndim != 4 or tensor.shape[:2] != (1, 3):
        raise ValueError(f"expected a (1, 3, H, W) tensor, got {tuple(tensor.shape)}")
    levels = tensor.detach().to(torch.float32).cpu().clamp(0, 1).mul(255)
    if levels.isnan().any():  # a cast would turn them into arbitrary levels
        raise ValueError(f"the tensor holds {int(levels.isnan().sum())} values that are NaN")
    if rounding == "nearest":
        levels = levels.round()
    return Image.fromarray(rearrange(levels.byte(), "1 c h w -> h w c").contiguous().numpy())


def resize(
    image: Image.Image,
    size: tuple[int, int],
    *,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    """A new picture of `size` (width, height), aspect ratio given up if it differs.

    PURE's published scripts resize this way, bicubic, before everything else. Pillow filters over
    the whole support when it shrinks; the same size gives the same pixels.

    Raises:
        ValueError: the picture is not RGB, or a side of `size` is below 1.
    """
    if min(size) < 1:
        raise ValueError(f"expected a size of at least 1 × 1, got {size[0]} × {size[1]}")
    return _rgb(image).resize(size, resample)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode != "RGB":
        raise ValueError(f"expected an RGB picture, got mode {image.mode}")
    return image
