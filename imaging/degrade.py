"""Seeded synthetic degradation of a clean photo: blur, resize, noise and JPEG, twice over.

Knows the second-order recipe of Real-ESRGAN (Wang et al., ICCV Workshops 2021) and how strong each
drawn instance of it is, in blur and in noise. Knows no dataset, no model and no wording of labels.

Everything random is drawn first, into `DegradationParameters`; `degrade` is then a pure function of
a picture and those parameters, so a test set is reproducible from its saved parameters.

Differs from Real-ESRGAN: JPEG is a real codec with whole qualities, instead of a differentiable
simulation, because nothing here is trained through it; and every choice is drawn per image, instead
of per batch, because there are no batches here.
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import fft, ndimage, special

KernelKind = Literal[
    "iso",
    "aniso",
    "generalised_iso",
    "generalised_aniso",
    "plateau_iso",
    "plateau_aniso",
    "sinc",
]
ResizeMode = Literal["area", "bilinear", "bicubic"]
NoiseKind = Literal["gaussian", "poisson"]
FinalOrder = Literal["resize_then_jpeg", "jpeg_then_resize"]
Level = Literal["small", "medium", "large"]
Range = tuple[float, float]
T = TypeVar("T")

KERNEL_SIZES = (7, 9, 11, 13, 15, 17, 19, 21)  # pixels
# Probabilities of the six Gaussian-like kinds, given that the kernel is not a sinc.
KERNEL_PROBS: dict[KernelKind, float] = {
    "iso": 0.45,
    "aniso": 0.25,
    "generalised_iso": 0.12,
    "generalised_aniso": 0.03,
    "plateau_iso": 0.12,
    "plateau_aniso": 0.03,
}
LUMA = np.array([0.2989, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
USM_SIZE = 51  # pixels
USM_SIGMA = 8.0  # pixels; OpenCV's rule for that size, 0.3 * ((51 - 1) / 2 - 1) + 0.8
USM_THRESHOLD = 10.0  # residual, of 255, above which a pixel counts as detail
USM_WEIGHT = 0.5


@dataclass(frozen=True)
class StagePreset:
    """The ranges one of the two stages is drawn from; sigma and scale of noise as published."""

    blur_prob: float
    blur_sigma: Range  # pixels of the picture being blurred
    resize_probs: tuple[float, float, float]  # up, down, keep
    resize_range: Range
    gaussian_sigma: Range  # of 255
    poisson_scale: Range  # multiple of natural shot noise
    jpeg_quality: tuple[int, int]  # both ends included
    sinc_prob: float = 0.1
    generalised_beta: Range = (0.5, 4.0)
    plateau_beta: Range = (1.0, 2.0)
    gaussian_prob: float = 0.5  # Poisson otherwise
    grey_prob: float = 0.4


@dataclass(frozen=True)
class DegradationPreset:
    """Everything `draw` needs to know."""

    name: str
    sharpen_gt: bool  # whether the recipe expects the reference to go through `usm_sharpen` first
    first: StagePreset
    second: StagePreset
    final_sinc_prob: float = 0.8
    # With bands, one is drawn first, and then a degradation whose blur, in pixels as `scores` gives
    # it, lies within; the second dose of noise is Gaussian, its sigma of 255 within its band.
    blur_bands: tuple[Range, ...] = ()
    noise_bands: tuple[Range, ...] = ()


PRESETS = {
    preset.name: preset
    for preset in (
        # Real-ESRGAN x4plus training, and SeeSR's maker of pairs.
        DegradationPreset(
            "realesrgan",
            sharpen_gt=True,
            first=StagePreset(
                blur_prob=1.0,
                blur_sigma=(0.2, 3.0),
                resize_probs=(0.2, 0.7, 0.1),
                resize_range=(0.15, 1.5),
                gaussian_sigma=(1.0, 30.0),
                poisson_scale=(0.05, 3.0),
                jpeg_quality=(30, 95),
            ),
            second=StagePreset(
                blur_prob=0.8,
                blur_sigma=(0.2, 1.5),
                resize_probs=(0.3, 0.4, 0.3),
                resize_range=(0.3, 1.2),
                gaussian_sigma=(1.0, 25.0),
                poisson_scale=(0.05, 2.5),
                jpeg_quality=(30, 95),
            ),
        ),
        # The milder settings also shipped with SeeSR, in the line of PASD.
        DegradationPreset(
            "mild",
            sharpen_gt=False,
            first=StagePreset(
                blur_prob=1.0,
                blur_sigma=(0.2, 3.0),
                resize_probs=(0.2, 0.7, 0.1),
                resize_range=(0.3, 1.5),
                gaussian_sigma=(1.0, 15.0),
                poisson_scale=(0.05, 2.0),
                jpeg_quality=(60, 95),
            ),
            second=StagePreset(
                blur_prob=0.5,
                blur_sigma=(0.2, 1.5),
                resize_probs=(0.3, 0.4, 0.3),
                resize_range=(0.6, 1.2),
                gaussian_sigma=(1.0, 12.0),
                poisson_scale=(0.05, 1.0),
                jpeg_quality=(60, 100),
            ),
        ),
        # Ours, to learn labels from: as often little, some and much of each, and nothing between.
        DegradationPreset(
            "graded",
            sharpen_gt=False,
            first=StagePreset(
                blur_prob=0.8,
                blur_sigma=(0.2, 4.0),
                resize_probs=(0.1, 0.6, 0.3),
                resize_range=(0.12, 1.5),
                gaussian_sigma=(0.0, 2.0),
                poisson_scale=(0.0, 0.2),
                jpeg_quality=(80, 95),
            ),
            second=StagePreset(
                blur_prob=0.6,
                blur_sigma=(0.2, 2.5),
                resize_probs=(0.2, 0.2, 0.6),
                resize_range=(0.8, 1.2),
                gaussian_sigma=(0.0, 2.0),
                poisson_scale=(0.0, 0.2),
                jpeg_quality=(80, 95),
            ),
            final_sinc_prob=0.0,
            blur_bands=((0.0, 1.2), (3.5, 5.0), (11.0, 18.0)),
            noise_bands=((0.0, 1.0), (7.0, 9.0), (16.0, 20.0)),
        ),
    )
}


@dataclass(frozen=True)
class KernelSpec:
    """One blur kernel; what its kind does not use is None."""

    kind: KernelKind
    size: int  # pixels, odd
    sigma_x: float | None = None  # pixels
    sigma_y: float | None = None  # pixels; equals sigma_x for the iso kinds
    rotation: float | None = None  # radians
    beta: float | None = None  # shape, of generalised and plateau kinds
    cutoff: float | None = None  # radians a pixel, of sinc


@dataclass(frozen=True)
class NoiseSpec:
    """One dose of noise; its pixels come from the seed of the whole degradation."""

    kind: NoiseKind
    level: float  # Gaussian: sigma, of 255; Poisson: multiple of natural shot noise
    grey: bool  # one field for the three channels


@dataclass(frozen=True)
class StageParameters:
    """What was drawn for one stage, in the order it is applied."""

    kernel: KernelSpec | None
    factor: float  # of the side; in the second stage relative to the side of the result
    mode: ResizeMode
    noise: NoiseSpec
    jpeg_quality: int


@dataclass(frozen=True)
class DegradationParameters:
    """Everything drawn for one picture; `dataclasses.asdict` of it is JSON-able."""

    preset: str
    first: StageParameters
    second: StageParameters
    final_order: FinalOrder  # of the second JPEG and the resize to the size of the result
    final_mode: ResizeMode
    final_kernel: KernelSpec | None
    noise_seed: int

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DegradationParameters":  # Any: parsed JSON
        """Undo `dataclasses.asdict`."""
        return cls(
            **{
                **values,
                "first": _stage_from_dict(values["first"]),
                "second": _stage_from_dict(values["second"]),
                "final_kernel": _kernel_from_dict(values["final_kernel"]),
            }
        )


def _stage_from_dict(values: Mapping[str, Any]) -> StageParameters:
    kernel, noise = _kernel_from_dict(values["kernel"]), NoiseSpec(**values["noise"])
    return StageParameters(**{**values, "kernel": kernel, "noise": noise})


def _kernel_from_dict(values: Mapping[str, Any] | None) -> KernelSpec | None:
    return None if values is None else KernelSpec(**values)


def draw(preset: str | DegradationPreset, rng: np.random.Generator) -> DegradationParameters:
    """Draw one degradation.

    Args:
        preset: a name in `PRESETS`, or ranges of your own.
        rng: advanced by however many numbers the choices need.

    Raises:
        ValueError: there is no preset of that name.
    """
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise ValueError(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
        preset = PRESETS[preset]
    if not (preset.blur_bands or preset.noise_bands):
        return _draw(preset, rng)
    low, high = _choice(preset.blur_bands, rng) if preset.blur_bands else (0.0, math.inf)
    drawn = _draw(preset, rng)
    while not low <= blur_width(drawn) < high:
        drawn = _draw(preset, rng)
    if not preset.noise_bands:
        return drawn
    level = rng.uniform(*_choice(preset.noise_bands, rng))
    noise = NoiseSpec("gaussian", level, drawn.second.noise.grey)
    return replace(drawn, second=replace(drawn.second, noise=noise))


def _draw(preset: DegradationPreset, rng: np.random.Generator) -> DegradationParameters:
    return DegradationParameters(
        preset=preset.name,
        first=_draw_stage(preset.first, rng),
        second=_draw_stage(preset.second, rng),
        final_order=_choice(get_args(FinalOrder), rng),
        final_mode=_choice(get_args(ResizeMode), rng),
        final_kernel=(
            KernelSpec("sinc", _choice(KERNEL_SIZES, rng), cutoff=rng.uniform(np.pi / 3, np.pi))
            if rng.random() < preset.final_sinc_prob
            else None
        ),
        noise_seed=int(rng.integers(2**32)),
    )


def _draw_stage(stage: StagePreset, rng: np.random.Generator) -> StageParameters:
    kernel = _draw_kernel(stage, rng) if rng.random() < stage.blur_prob else None
    up, down, _ = stage.resize_probs
    low, high = stage.resize_range
    which = rng.random()
    if which < up:
        factor = rng.uniform(1.0, high)
    elif which < up + down:
        factor = rng.uniform(low, 1.0)
    else:
        factor = 1.0
    kind: NoiseKind
    if rng.random() < stage.gaussian_prob:
        kind, level = "gaussian", rng.uniform(*stage.gaussian_sigma)
    else:
        kind, level = "poisson", rng.uniform(*stage.poisson_scale)
    return StageParameters(
        kernel=kernel,
        factor=factor,
        mode=_choice(get_args(ResizeMode), rng),
        noise=NoiseSpec(kind, level, grey=bool(rng.random() < stage.grey_prob)),
        jpeg_quality=int(rng.integers(*stage.jpeg_quality, endpoint=True)),
    )


def _draw_kernel(stage: StagePreset, rng: np.random.Generator) -> KernelSpec:
    size = _choice(KERNEL_SIZES, rng)
    if rng.random() < stage.sinc_prob:
        # A small kernel cannot hold the slow ripples of a low cutoff.
        lowest = np.pi / 3 if size < 13 else np.pi / 5
        return KernelSpec("sinc", size, cutoff=rng.uniform(lowest, np.pi))
    kinds = list(KERNEL_PROBS)
    kind = kinds[rng.choice(len(kinds), p=list(KERNEL_PROBS.values()))]
    sigma_x = rng.uniform(*stage.blur_sigma)
    sigma_y, rotation, beta = sigma_x, 0.0, None
    if kind.endswith("aniso"):
        sigma_y = rng.uniform(*stage.blur_sigma)
        rotation = rng.uniform(-np.pi, np.pi)
    if kind.startswith("generalised"):
        beta = _draw_beta(stage.generalised_beta, rng)
    elif kind.startswith("plateau"):
        beta = _draw_beta(stage.plateau_beta, rng)
    return KernelSpec(kind, size, sigma_x, sigma_y, rotation, beta)


def _draw_beta(betas: Range, rng: np.random.Generator) -> float:
    low, high = betas
    return rng.uniform(low, 1.0) if rng.random() < 0.5 else rng.uniform(1.0, high)


def _choice(options: Sequence[T], rng: np.random.Generator) -> T:
    return options[int(rng.integers(len(options)))]


def kernel_array(spec: KernelSpec) -> np.ndarray:
    """The kernel's weights, float64 (size, size), summing to one."""
    half = spec.size // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float64)
    if spec.kind == "sinc":
        assert spec.cutoff is not None
        distance = np.hypot(x, y)
        distance[half, half] = 1.0  # any number but zero; the centre has its own limit
        kernel = spec.cutoff * special.j1(spec.cutoff * distance) / (2 * np.pi * distance)
        kernel[half, half] = spec.cutoff**2 / (4 * np.pi)
        return kernel / kernel.sum()
    assert spec.sigma_x is not None
    assert spec.sigma_y is not None
    assert spec.rotation is not None
    cos, sin = math.cos(spec.rotation), math.sin(spec.rotation)
    # g^T S^-1 g with S = R diag(sigma²) R^T: the squared length of R^T g, an axis at a time
    q = ((cos * x + sin * y) / spec.sigma_x) ** 2 + ((cos * y - sin * x) / spec.sigma_y) ** 2
    if spec.kind in ("iso", "aniso"):
        kernel = np.exp(-q / 2)
    elif spec.kind in ("generalised_iso", "generalised_aniso"):
        assert spec.beta is not None
        kernel = np.exp(-(q**spec.beta) / 2)
    else:
        assert spec.beta is not None
        kernel = 1 / (1 + q**spec.beta)
    return kernel / kernel.sum()


def usm_sharpen(gt: np.ndarray) -> np.ndarray:
    """Sharpen a reference by unsharp masking where it has detail; uint8 (H, W, 3) RGB both ways.

    Real-ESRGAN trains towards references sharpened like this; see `DegradationPreset.sharpen_gt`.
    """
    image = _to_float(gt)
    blurred = _usm_blur(image)
    residual = image - blurred
    mask = _usm_blur((np.abs(residual) * 255 > USM_THRESHOLD).astype(np.float32))
    sharp = np.clip(image + USM_WEIGHT * residual, 0, 1)
    return _to_uint8(mask * sharp + (1 - mask) * image)


def _usm_blur(image: np.ndarray) -> np.ndarray:
    for axis in (1, 2):
        image = ndimage.gaussian_filter1d(
            image, USM_SIGMA, axis=axis, mode="mirror", radius=USM_SIZE // 2
        )
    return image


def degrade(gt: np.ndarray, parameters: DegradationParameters, *, scale: int = 4) -> np.ndarray:
    """Degrade a reference into a low-quality input, a pure function of its arguments.

    Args:
        gt: uint8 (H, W, 3) RGB, sharpened already if the preset wants that.
        parameters: from `draw`.
        scale: how many times smaller the result is; H and W are multiples of it.

    Returns:
        uint8 (H // scale, W // scale, 3) RGB.

    Raises:
        ValueError: `gt` is not such an array, or vanishes when resized by the first factor.
    """
    if gt.ndim != 3 or gt.shape[2] != 3 or gt.dtype != np.uint8:
        raise ValueError(f"expected uint8 (H, W, 3), got {gt.dtype} {gt.shape}")
    H, W = gt.shape[:2]
    if H == 0 or W == 0 or H % scale or W % scale:
        raise ValueError(f"expected sides that are multiples of {scale}, got {H} x {W}")
    first, second = parameters.first, parameters.second
    if min(H, W) * first.factor < 1:
        raise ValueError(f"{H} x {W} vanishes when resized by {first.factor:.3f}")

    image = _blur(_to_float(gt), first.kernel)
    if first.factor != 1:
        size = (max(1, round(H * first.factor)), max(1, round(W * first.factor)))
        image = _interpolate(image, first.mode, size)
    image = _add_noise(image, first.noise, np.random.default_rng([parameters.noise_seed, 0]))
    image = _jpeg(image, first.jpeg_quality)

    image = _blur(image, second.kernel)
    size = (max(1, int(H / scale * second.factor)), max(1, int(W / scale * second.factor)))
    image = _interpolate(image, second.mode, size)
    image = _add_noise(image, second.noise, np.random.default_rng([parameters.noise_seed, 1]))

    if parameters.final_order == "jpeg_then_resize":
        image = _jpeg(image, second.jpeg_quality)
    image = _interpolate(image, parameters.final_mode, (H // scale, W // scale))
    image = _blur(image, parameters.final_kernel)
    if parameters.final_order == "resize_then_jpeg":
        image = _jpeg(image, second.jpeg_quality)
    return _to_uint8(image)


def synthesise(
    gt: np.ndarray, preset: str | DegradationPreset, seed: int, *, scale: int = 4
) -> tuple[np.ndarray, DegradationParameters]:
    """Draw with `seed` and degrade: the low-quality input, and what was done to get it.

    The reference is taken as it is: sharpening also changes the target, so it is the caller's.
    """
    parameters = draw(preset, np.random.default_rng(seed))
    return degrade(gt, parameters, scale=scale), parameters


def _to_float(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32) / 255  # (3, H, W)


def _to_uint8(image: np.ndarray) -> np.ndarray:
    levels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(1, 2, 0))  # (H, W, 3)


def _blur(image: np.ndarray, spec: KernelSpec | None) -> np.ndarray:
    """Correlate each channel with the kernel, through the FFT: as quick for 21 pixels as for 7."""
    if spec is None:
        return image
    kernel = kernel_array(spec).astype(np.float32)
    half = spec.size // 2
    H, W = image.shape[1:]
    # Reflects as often as it must, so a side may be shorter than the padding, down to one pixel.
    padded = np.pad(image, ((0, 0), (half, half), (half, half)), mode="reflect")
    shape = [fft.next_fast_len(side, real=True) for side in padded.shape[1:]]
    # The conjugate correlates instead of convolving; what wraps around lands outside the crop.
    spectrum = fft.rfft2(padded, shape) * fft.rfft2(kernel, shape).conj()
    return np.ascontiguousarray(fft.irfft2(spectrum, shape)[:, :H, :W])


def _interpolate(image: np.ndarray, mode: ResizeMode, size: tuple[int, int]) -> np.ndarray:
    """Resize without antialiasing, as published: shrinking by bilinear or bicubic aliases.

    Differs from Real-ESRGAN: it passes a factor, and torch then cuts off what does not divide
    evenly, which moves the far edge by up to six reference pixels. Input and reference have to
    stay aligned for a tokenizer that compares them cell by cell, so the size is given instead.
    """
    return F.interpolate(torch.from_numpy(image)[None], size=size, mode=mode)[0].numpy()


def _add_noise(image: np.ndarray, spec: NoiseSpec, rng: np.random.Generator) -> np.ndarray:
    """Add noise to (3, H, W) and clip to [0, 1]."""
    if spec.kind == "gaussian":
        shape = (1 if spec.grey else 3, *image.shape[1:])
        noise = rng.standard_normal(shape, dtype=np.float32) * np.float32(spec.level / 255)
    else:
        signal = np.tensordot(LUMA, image, 1)[None] if spec.grey else image  # (1 or 3, H, W)
        signal = np.rint(np.clip(signal, 0, 1) * 255)
        # Photons at white: as published, from how many of the 256 values occur.
        distinct = np.count_nonzero(np.bincount(signal.astype(np.uint8).ravel(), minlength=256))
        photons = 2 ** math.ceil(math.log2(distinct))
        signal = signal / 255
        noise = (rng.poisson(signal * photons) / photons - signal) * spec.level
    return np.clip(image + noise, 0, 1).astype(np.float32)


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Clip (3, H, W), save as JPEG with 4:2:0 chroma, load again."""
    file = io.BytesIO()
    Image.fromarray(_to_uint8(image)).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return _to_float(np.asarray(Image.open(file)))


@dataclass(frozen=True)
class DegradationScores:
    """How strong a degradation is."""

    blur: float  # width in pixels of the reference, like a Gaussian's sigma
    noise: float  # root mean square of what it changes in the result, of 255


@dataclass(frozen=True)
class Thresholds:
    """Where small ends and where large begins."""

    blur: tuple[float, float]
    noise: tuple[float, float]


# Between the bands of the preset "graded".
THRESHOLDS = Thresholds(blur=(2.2, 7.5), noise=(3.2, 9.5))


def scores(
    gt: np.ndarray, lq: np.ndarray, parameters: DegradationParameters, *, scale: int = 4
) -> DegradationScores:
    """Score blur and noise of a degraded picture whose making is known.

    Blur adds up the kernels' variances and the footprint of the coarsest pixel grid passed through;
    the final sinc counts: at its lowest cutoff it alone is 3.6 reference pixels wide. Noise is what
    is left of it in the picture, against the same degradation without noise. The doses alone say
    little of that: resizing, blur and JPEG after them remove from nothing to nearly all.

    Differs from PURE: its labels come from the degradation estimator of MM-RealSR, whose scores are
    learned, relative and not comparable with these, because we do not have its weights.

    Args:
        gt: what was degraded, uint8 (H, W, 3) RGB.
        lq: what became of it, uint8 (H // scale, W // scale, 3) RGB.
        parameters: what it was degraded with.
        scale: as in `degrade`.
    """
    quiet = degrade(gt, _without_noise(parameters), scale=scale)
    noise = np.sqrt(np.square(lq.astype(np.float64) - quiet).mean())
    return DegradationScores(blur_width(parameters, scale=scale), float(noise))


def blur_width(parameters: DegradationParameters, *, scale: int = 4) -> float:
    """The blur of `scores`, which needs no picture."""
    first, second = parameters.first, parameters.second
    r1, r2 = first.factor, second.factor / scale  # side after each stage, of the reference's
    coarsest = max(1 / r1, 1 / r2, scale)
    return math.sqrt(
        _kernel_variance(first.kernel)
        + _kernel_variance(second.kernel) / r1**2
        + (coarsest**2 - scale**2) / 12
        + _kernel_variance(parameters.final_kernel) * scale**2
    )


def _without_noise(parameters: DegradationParameters) -> DegradationParameters:
    none = NoiseSpec("gaussian", 0.0, grey=False)
    first, second = (replace(s, noise=none) for s in (parameters.first, parameters.second))
    return replace(parameters, first=first, second=second)


def _kernel_variance(spec: KernelSpec | None) -> float:
    """Squared width of a kernel by its energy, in pixels².

    It is zero for the identity and, but for that offset, sigma² for a wide Gaussian. Unlike the
    second moment it also makes sense for kernels with negative weights and heavy tails.
    """
    if spec is None:
        return 0.0
    energy = float(np.square(kernel_array(spec)).sum())
    return max(0.0, (1 / energy - 1) / (4 * math.pi))


def levels(scores: DegradationScores, thresholds: Thresholds = THRESHOLDS) -> tuple[Level, Level]:
    """The words for blur and for noise, in this order."""
    return _level(scores.blur, thresholds.blur), _level(scores.noise, thresholds.noise)


def _level(score: float, thresholds: tuple[float, float]) -> Level:
    if score < thresholds[0]:
        return "small"
    return "medium" if score < thresholds[1] else "large"
