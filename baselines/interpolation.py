"""Nearest, bicubic and Lanczos enlargement: what a picture looks like without restoration."""

from functools import partial

from PIL import Image

from baselines.base import Method, Restoration, no_gpu, timed
from imaging import convert

SCALE = 4


class Interpolation:
    """One of Pillow's filters, on 8-bit pixels."""

    def __init__(self, name: str, resample: Image.Resampling) -> None:
        self.name, self.resample = name, resample

    def restore(self, lq: Image.Image, *, seed: int = 0) -> Restoration:
        size = (lq.width * SCALE, lq.height * SCALE)
        return timed(self.name, seed, lambda: convert.resize(lq, size, resample=self.resample))


def _load(device: str, *, name: str, resample: Image.Resampling) -> Interpolation:
    """Nothing to load; Pillow works on the CPU whatever the device."""
    del device
    return Interpolation(name, resample)


def _method(name: str, title: str, resample: Image.Resampling, order: int) -> Method:
    return Method(
        name,
        title,
        "interpolation",
        SCALE,
        partial(_load, name=name, resample=resample),
        packages=("pillow",),
        concurrent=True,
        parameters=0,
        source="Pillow, Image.resize",
        licence="MIT-CMU (Pillow)",
        paper_settings="not in the paper's tables",
        gpu_seconds=no_gpu,
        order=order,
    )


METHODS = (
    _method("nearest", "Nearest", Image.Resampling.NEAREST, 10),
    _method("bicubic", "Bicubic", Image.Resampling.BICUBIC, 11),
    _method("lanczos", "Lanczos", Image.Resampling.LANCZOS, 12),
)
