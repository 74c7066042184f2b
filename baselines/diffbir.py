"""DiffBIR: blind restoration with a generative prior (Lin et al., ECCV 2024), its version 2.

A restoration network without imagination cleans and enlarges the photo. A ControlNet that sees the
latents of what it made then steers Stable Diffusion 2.1, which begins at noise and invents the
detail in fifty DDPM steps.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from baselines.base import (
    A100_TO_LENT,
    Method,
    MethodUnavailableError,
    Restoration,
    Setting,
    by_area,
)
from baselines.diffusion import ldm, settings, sources
from baselines.diffusion.schedule import TRAINED, spaced_ddpm
from baselines.diffusion.sizes import CELL, ColourFix
from baselines.diffusion.stable import (
    VAE,
    WEIGHTS_FILE,
    TextEncoder,
    draw,
    network_config,
    on_device,
    placed,
)
from baselines.diffusion.state import (
    Network,
    evaluation,
    load_strict,
    read_pickle,
    read_safetensors,
    working_dtype,
)
from baselines.diffusion.tiles import LatentTiling, decode_tiled, predict_tiled
from baselines.rrdb import RRDBNet, WeightsError, from_state, old_names
from imaging import colour
from imaging.convert import to_image, to_tensor

SCALE = 4
PARAMETERS = 1_669_803_694  # U-Net, ControlNet, VAE, text encoder, BSRNet; computed
PADDED = 64  # pixels of which both sides are made a multiple where the network sees all at once
NEGATIVE = "low quality, blurry, low-resolution, noisy, unsharp, weird textures"
CLEANED = LatentTiling(512, 256)  # pixels of the photo that are cleaned at once
BASE = sources.SD21_BASE
CONTROL = sources.Part(
    "diffbir",
    "DiffBIR's ControlNet, version 2",
    ("v2.pth",),
    1.5,
    "Apache-2.0",
    "yes; trained on data sets some of which are for research only",
    hubs=(sources.Hub("lxq007/DiffBIR-v2"),),
    by_hand="linked in the README of github.com/XPixelGroup/DiffBIR",
)
CLEANER = sources.Part(
    "bsrnet",
    "BSRNet, which cleans the photo",
    ("BSRNet.pth",),
    0.067,
    "MIT (of the repository that releases it)",
    "yes; trained on data sets some of which are for research only",
    by_hand="github.com/cszn/KAIR/releases/download/v1.0/BSRNet.pth",
)
PARTS = (BASE, CONTROL, CLEANER)
# Settings a ControlNet shares with the U-Net it steers.
SHARED = (
    "in_channels",
    "block_out_channels",
    "down_block_types",
    "layers_per_block",
    "norm_num_groups",
    "cross_attention_dim",
    "attention_head_dim",
    "use_linear_projection",
)


class DiffBIROptionsError(ValueError):
    """Settings that cannot work; the message says which and why."""


@dataclass(frozen=True)
class DiffBIROptions:
    """What a visitor may change; the defaults are the published ones of version 2.

    Attributes:
        steps: of DDPM; 2 to 1000.
        guidance: weight of the prompt against the negative one; at 1 only the prompt is run.
        strength: weight of the ControlNet.
        noise: timestep whose noise the ControlNet's view of the photo gets, 0 to 999; 0 is none.
            For photos in a poor state, at the cost of likeness.
        prompt: of the visitor.
        negative: what guidance leads away from.
        start: "noise" begins at noise alone, "photo" at the cleaned photo's latents with noise.
        colour_fix: of the restored picture, after the cleaned one.
        tiling: of the latents; None does up to 128 × 128 cells at once, in proportion for a network
            of another size, and above that tiles of 64 with an overlap of 32.
    """

    steps: int = 50
    guidance: float = 4.0
    strength: float = 1.0
    noise: int = 0
    prompt: str = ""
    negative: str = NEGATIVE
    start: Literal["photo", "noise"] = "noise"
    colour_fix: ColourFix = "wavelet"
    tiling: LatentTiling | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.steps <= TRAINED:
            raise DiffBIROptionsError(f"steps must be 2 to {TRAINED}, not {self.steps}")
        if not 0 <= self.noise < TRAINED:
            raise DiffBIROptionsError(f"noise must be 0 to {TRAINED - 1}, not {self.noise}")
        for name in ("guidance", "strength"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise DiffBIROptionsError(f"{name} must be 0 or more, not {value}")


DEFAULTS = DiffBIROptions()


def _ignore(done: int, steps: int) -> None:
    pass


class DiffBIR:
    """The loaded method.

    Attributes:
        native: short side in pixels the networks were trained at.
        random: whether its weights are random, for tests.
    """

    def __init__(
        self,
        *,
        cleaner: RRDBNet,
        unet: Network,
        controlnet: Network,
        vae: VAE,
        text: TextEncoder,
        device: str = "cpu",
        offload: bool = False,
        random: bool = False,
    ) -> None:
        """Take networks that are ready to run.

        With `offload` they wait on the CPU and come to the device one at a time, U-Net and
        ControlNet together.
        """
        self.cleaner, self.unet, self.controlnet = cleaner, unet, controlnet
        self.vae, self.text = vae, text
        self.device, self.offload, self.random = device, offload, random
        side = int(unet.config.sample_size)
        self.native = side * CELL
        self.tiling = LatentTiling(side, side // 2)

    @torch.inference_mode()
    def restore(
        self,
        lq: Image.Image,
        *,
        seed: int = 0,
        options: DiffBIROptions = DEFAULTS,
        progress: Callable[[int, int], None] = _ignore,
    ) -> Restoration:
        """Restore an RGB photo.

        Args:
            lq: RGB.
            seed: of the start, the photo's noise and every step.
            options: settings.
            progress: told how many steps are done of how many; may raise to stop.
        """
        started = time.perf_counter()
        with self._on_device(self.cleaner):
            cleaned = self.clean(lq)
        with self._on_device(self.text.module):
            context = self.text([options.negative, options.prompt])
        tiling = self._tiling(cleaned, options)
        seen = padded(cleaned, CELL if tiling else PADDED)
        with self._on_device(self.vae.module):
            condition = self.vae.encode_signed(2 * seen - 1, None)
        noise = torch.Generator().manual_seed(seed)
        schedule = spaced_ddpm(options.steps, prediction="epsilon")
        left = schedule.alphas_cumprod
        latents = draw(condition.shape, noise, self.device)
        if options.start == "photo":
            latents = noised(condition, latents, float(left[-1]))
        if options.noise:
            drawn = draw(condition.shape, noise, self.device)
            condition = noised(condition, drawn, float(left[options.noise]))
        with self._on_device(self.unet), self._on_device(self.controlnet):
            clean = self.denoise(
                latents, condition, context, schedule, noise, options, tiling, progress
            )
        with self._on_device(self.vae.module):
            restored = self.vae.decode_signed(clean) / 2 + 0.5
        restored = restored[..., : cleaned.shape[-2], : cleaned.shape[-1]]
        if options.colour_fix != "none":
            fix = {"adain": colour.adain_tensor, "wavelet": colour.wavelet_tensor}
            restored = fix[options.colour_fix](restored, cleaned)
        size = (SCALE * lq.height, SCALE * lq.width)
        image = to_image(resized(restored, size).cpu())
        return Restoration(
            image,
            METHOD.name,
            seed,
            time.perf_counter() - started,
            details={
                "prompt": options.prompt,
                "negative_prompt": options.negative if options.guidance != 1 else None,
                "steps": options.steps,
                "guidance": options.guidance,
                "strength": options.strength,
                "noise": options.noise,
                "start": options.start,
                "colour_fix": options.colour_fix,
                "version": "2",
                "processed": f"{seen.shape[-1]} × {seen.shape[-2]}",
                "weights": "random weights, for testing" if self.random else "released",
            },
        )

    def clean(self, lq: Image.Image) -> Tensor:
        """The photo without noise, blur and artefacts, (1, 3, H, W) about [0, 1], not clamped.

        4×, or more until the short side is `native`. Photos above 512 px go through in overlapping
        pieces, as upstream does if it is told to.
        """
        photo = to_tensor(lq).to(self.device)
        large = decode_tiled(photo, lambda piece, *_: self.cleaner(piece), CLEANED, SCALE)
        height, width = large.shape[-2:]
        if min(height, width) >= self.native:
            return large
        if height <= width:
            return resized(large, (self.native, int(width * (self.native / height))))
        return resized(large, (int(height * (self.native / width)), self.native))

    def denoise(
        self,
        latents: Tensor,
        condition: Tensor,
        context: Tensor,
        schedule: Any,  # a DDPMScheduler, and diffusers is optional
        noise: torch.Generator,
        options: DiffBIROptions,
        tiling: LatentTiling | None,
        progress: Callable[[int, int], None] = _ignore,
    ) -> Tensor:
        """All steps: noisy latents (1, 4, H, W) to clean ones, float32.

        Args:
            latents: to begin at.
            condition: latents of the cleaned photo, of the same shape.
            context: (2, 77, C) of the negative prompt and the prompt.
            schedule: with its timesteps set.
            noise: for the steps.
            options: settings.
            tiling: of both latents; None does all at once.
            progress: as in `restore`.
        """
        guided = options.guidance != 1
        dtype = next(self.unet.parameters()).dtype
        context = (context if guided else context[1:]).to(dtype)
        batch = len(context)
        for done, t in enumerate(schedule.timesteps):

            def predict(tile: Tensor, top: int, left: int, t: Tensor = t) -> Tensor:
                height, width = tile.shape[-2:]
                both = tile.to(dtype).expand(batch, -1, -1, -1)
                seen = condition[..., top : top + height, left : left + width]
                down, mid = self.controlnet(
                    both,
                    t,
                    encoder_hidden_states=context,
                    controlnet_cond=seen.to(dtype).expand(batch, -1, -1, -1),
                    conditioning_scale=options.strength,
                    return_dict=False,
                )
                predicted = self.unet(
                    both,
                    t,
                    encoder_hidden_states=context,
                    down_block_additional_residuals=down,
                    mid_block_additional_residual=mid,
                ).sample.float()
                if not guided:
                    return predicted
                away, towards = predicted.chunk(2)
                return away + options.guidance * (towards - away)

            if tiling is None:
                predicted = predict(latents, 0, 0)
            else:
                predicted = predict_tiled(latents, predict, tiling)
            latents = schedule.step(predicted, t, latents, generator=noise).prev_sample
            progress(done + 1, len(schedule.timesteps))
        return latents

    def _tiling(self, cleaned: Tensor, options: DiffBIROptions) -> LatentTiling | None:
        """How latents of the cleaned photo are cut; None if they are not."""
        if options.tiling is not None:
            return options.tiling
        whole = (2 * self.native) ** 2
        return self.tiling if cleaned.shape[-2] * cleaned.shape[-1] > whole else None

    def _on_device(self, module: nn.Module) -> Any:  # Any: a context manager of nothing
        return on_device(module, self.device, offload=self.offload)


def resized(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """A picture (1, 3, H, W) at (height, width), bicubic, smoothed where it shrinks."""
    if tuple(picture.shape[-2:]) == size:
        return picture
    return F.interpolate(picture, size, mode="bicubic", antialias=True)


def padded(picture: Tensor, multiple: int) -> Tensor:
    """A picture (1, 3, H, W) with black at its right and bottom, both sides a multiple."""
    height, width = picture.shape[-2:]
    return F.pad(picture, (0, -width % multiple, 0, -height % multiple))


def noised(latents: Tensor, noise: Tensor, left: float) -> Tensor:
    """Latents in noise, with `left` of their variance."""
    return left**0.5 * latents + (1 - left) ** 0.5 * noise


def load_controlnet(state: Mapping[str, Tensor], unet: Mapping[str, Any], what: str) -> Network:
    """The ControlNet, float32: a stock one that sees latents instead of pixels.

    As released it takes the noisy latents and the photo's side by side, in one convolution. A
    convolution of both is the sum of one each, and a sum is what a stock ControlNet makes of its
    two inputs.

    Args:
        state: tensors as released.
        unet: settings of the U-Net it steers.
        what: the file, for the error.

    Raises:
        MethodUnavailableError: its tensors do not fit.
    """
    from diffusers import ControlNetModel

    config = {key: unet[key] for key in SHARED if key in unet}
    network: Network = ControlNetModel.from_config(config)
    first, channels = network.conv_in, network.conv_in.in_channels
    network.controlnet_cond_embedding = nn.Conv2d(
        channels, first.out_channels, first.kernel_size, padding=first.padding, bias=False
    )
    tensors = ldm.unet(state)
    name = "conv_in.weight"
    if name in tensors and tensors[name].shape[1] == 2 * channels:
        both = tensors[name]
        tensors[name] = both[:, :channels]
        tensors["controlnet_cond_embedding.weight"] = both[:, channels:]
    load_strict(network, tensors, what)
    return network


def load_cleaner(state: Mapping[str, Tensor], what: str) -> RRDBNet:
    """BSRNet, float32.

    Raises:
        MethodUnavailableError: its tensors do not fit.
    """
    try:
        return from_state({key: value.float() for key, value in old_names(state).items()})
    except WeightsError as error:
        raise MethodUnavailableError(f"The tensors of {what} do not fit: {error}.") from error


def load(device: str, *, weights: Path = sources.DEFAULT_FOLDER, offload: bool = False) -> DiffBIR:
    """Load Stable Diffusion 2.1-base, DiffBIR's ControlNet and BSRNet.

    Args:
        device: "cpu" or "cuda".
        weights: folder with `PARTS`.
        offload: as in `DiffBIR`; for cards below about 8 GB.

    Raises:
        MethodUnavailableError: weights are missing or do not fit.
    """
    if (problem := missing(weights)) is not None:
        raise MethodUnavailableError(problem)
    from diffusers import UNet2DConditionModel

    base = weights / BASE.folder
    config = network_config(base / "unet")
    unet: Network = UNet2DConditionModel.from_config(config)
    load_strict(unet, read_safetensors(base / "unet" / WEIGHTS_FILE), str(base / "unet"))
    file = weights / CONTROL.folder / CONTROL.files[0]
    controlnet = load_controlnet(ldm.plain(read_pickle(file), str(file)), config, str(file))
    file = weights / CLEANER.folder / CLEANER.files[0]
    cleaner = load_cleaner(ldm.plain(read_pickle(file), str(file)), str(file))
    vae = VAE.load(base / "vae", tile=2 * CELL * unet.config.sample_size)
    text = TextEncoder.load(base)

    dtype = working_dtype(device)
    for module in (unet, controlnet, vae.module, text.module):
        placed(module, device, dtype, offload=offload)
    evaluation(cleaner, "cpu" if offload else device)
    return DiffBIR(
        cleaner=cleaner,
        unet=unet,
        controlnet=controlnet,
        vae=vae,
        text=text,
        device=device,
        offload=offload,
        random=sources.is_random(weights),
    )


def missing(weights: Path = sources.DEFAULT_FOLDER) -> str | None:
    """Which weights are not there, in a sentence; None if all are."""
    return sources.missing("DiffBIR", "diffbir", PARTS, weights)


def method(weights: Path = sources.DEFAULT_FOLDER) -> Method:
    """The card, for weights in another folder."""
    return Method(
        "diffbir",
        "DiffBIR",
        "diffusion",
        SCALE,
        partial(load, weights=weights),
        requires=("diffusers", "transformers"),
        packages=("diffusers", "transformers", "safetensors"),
        missing=partial(missing, weights),
        memory_bytes=8 * 2**30,
        parameters=PARAMETERS,
        source="Lin et al., DiffBIR, ECCV 2024; XPixelGroup/DiffBIR, version 2",
        licence=(
            "code and weights Apache-2.0, on Stable Diffusion 2.1-base (CreativeML Open RAIL++-M) "
            "and BSRNet (MIT)"
        ),
        preprocessing=(
            "cleaned and enlarged 4× by BSRNet, bicubic to at least 512 px on the short side; "
            "filled with black to multiples of 64"
        ),
        postprocessing="wavelet, bicubic to 4×, truncated to 8 bits",
        prompt=f"(empty); negative: {NEGATIVE}",
        steps=DEFAULTS.steps,
        colour_fix="wavelet, after the cleaned picture",
        paper_settings=(
            "version 2, that of its paper: 50 spaced DDPM steps, guidance 4, no caption, 512 × "
            "512. The PURE paper names no settings; its Table 4 counts the parameters of version 1"
        ),
        gpu_seconds=by_area(2.72 * A100_TO_LENT),  # quoted: the PURE paper's Table 4, an A100
        order=31,
        settings=(
            replace(
                settings.PROMPT, label="Prompt", info="What the picture shows; published: nothing."
            ),
            settings.negative(NEGATIVE),
            settings.steps(DEFAULTS.steps, lowest=2, highest=1000),
            settings.guidance(DEFAULTS.guidance),
            Setting(
                "strength",
                "Weight of the ControlNet",
                DEFAULTS.strength,
                lowest=0.0,
                highest=2.0,
                step=0.1,
                info="More follows the photo more closely.",
            ),
            Setting(
                "noise",
                "Noise on what it follows",
                DEFAULTS.noise,
                lowest=0,
                highest=999,
                step=1,
                info="For photos in a poor state: more invention, less likeness.",
            ),
            replace(settings.START, default=DEFAULTS.start),
            settings.colour_fix(DEFAULTS.colour_fix),
        ),
        options=DiffBIROptions,
    )


METHOD = method()
