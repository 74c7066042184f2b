"""PASD: pixel-aware Stable Diffusion for real-world super-resolution (Yang et al., ECCV 2024).

Stable Diffusion 1.5's U-Net is led by a ControlNet that reads the enlarged photo; its way up
attends, cell by cell, to what the ControlNet says. A captioner puts into words what there is to
see. Twenty UniPC steps lead from the photo's own latents, drowned in noise but for a rest, to the
restored ones.
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
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
from baselines.diffusion import settings, sources
from baselines.diffusion.captioner import BLIP, Captioner
from baselines.diffusion.control import led_by_photo
from baselines.diffusion.pixel_attention import PixelAwareUNet, wrapped_names
from baselines.diffusion.sizes import CELL, ColourFix, enlarge_to, fix_colour, promised
from baselines.diffusion.stable import (
    VAE,
    WEIGHTS_FILE,
    TextEncoder,
    draw,
    load_schedule,
    network_config,
    on_device,
    placed,
)
from baselines.diffusion.state import Network, load_strict, read_safetensors, working_dtype
from baselines.diffusion.tiles import LatentTiling, predict_tiled
from imaging.convert import to_image, to_tensor

SCALE = 4
PARAMETERS = 1_899_720_631  # U-Net, ControlNet, VAE, text encoder, captioner; computed
LAST = 999  # timestep, at whose noise sampling begins
ADDED = "clean, high-resolution, 8k"
NEGATIVE = "blurry, dotted, noise, raster lines, unclear, lowres, over-smoothed"
# The captioner sees the poor photo; the prompt shall say what it is to become.
WISHED = {"blurry": "clear", "noisy": "clean"}
# Pictures at lower resolutions that training compared with the photo; nothing reads them after it.
TRAINING_ONLY = "controlnet_cond_embedding.to_rgbs."
BASE = sources.SD15_BASE
NETWORKS = sources.Part(
    "pasd",
    "PASD's U-Net and ControlNet",
    (
        "unet/config.json",
        f"unet/{WEIGHTS_FILE}",
        "controlnet/config.json",
        f"controlnet/{WEIGHTS_FILE}",
    ),
    5.9,
    "not stated with the weights; Apache-2.0 of the code",
    "not stated; trained on data sets some of which are for research only",
    hubs=(sources.Hub("yangtao9009/PASD", folder="pasd/checkpoint-100000"),),
    by_hand="pasd.zip, linked in the README of github.com/yangxy/PASD",
)
PARTS = (BASE, NETWORKS, BLIP)


class PASDOptionsError(ValueError):
    """Settings that cannot work; the message says which and why."""


@dataclass(frozen=True)
class PASDOptions:
    """What a visitor may change; the defaults are the published ones.

    Attributes:
        steps: of UniPC; 1 to 999.
        guidance: weight of the prompt against the negative one; up to 1 only the prompt is run.
        conditioning: weight of the ControlNet.
        noise_level: timestep, 1 to 999, whose noise goes over the photo's drowned latents a second
            time; the lower, the more of the photo is left. The paper's is 900. The published code
            on a diffusers of 2024 or later does not find 900 among its steps and silently uses
            their last, which is 50 of the default 20.
        short_side: that the photo is enlarged to at least, in multiples of the networks' own size,
            512 px; up to 4. The published 1.5 are 768 px.
        prompt: words of the visitor, behind the caption.
        added: put at the end of the prompt.
        negative: what guidance leads away from.
        caption: in place of the captioner's; None asks the captioner, "" leaves it out.
        start: "photo" begins at the photo's latents with noise, "noise" at noise alone.
        colour_fix: of the restored picture, after the enlarged input.
        tiling: of the latents; None is 320 cells with an overlap of 32, in proportion for a network
            of another size. Differs from the published overlap, 8, which leaves seams; pictures up
            to 2560 × 2560 are not cut.
    """

    steps: int = 20
    guidance: float = 9.0
    conditioning: float = 1.0
    noise_level: int = 900
    short_side: float = 1.5
    prompt: str = ""
    added: str = ADDED
    negative: str = NEGATIVE
    caption: str | None = None
    start: Literal["photo", "noise"] = "photo"
    colour_fix: ColourFix = "wavelet"
    tiling: LatentTiling | None = None

    def __post_init__(self) -> None:
        for name, value in (("steps", self.steps), ("noise_level", self.noise_level)):
            if not 1 <= value <= LAST:
                raise PASDOptionsError(f"{name} must be 1 to {LAST}, not {value}")
        if not 0.25 <= self.short_side <= 4:
            raise PASDOptionsError(f"short_side must be 0.25 to 4, not {self.short_side}")
        for name in ("guidance", "conditioning"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise PASDOptionsError(f"{name} must be 0 or more, not {value}")


DEFAULTS = PASDOptions()


class Describer(Protocol):
    """Says what a photo shows; BLIP here, a detector or classifier would do as well.

    Attributes:
        network: that has to be on the device while it speaks.
    """

    network: nn.Module

    def __call__(self, photo: Image.Image) -> str: ...


def _ignore(done: int, steps: int) -> None:
    pass


class PASD:
    """The loaded method.

    Attributes:
        native: short side in pixels the networks were trained at.
        random: whether its weights are random, for tests.
    """

    def __init__(
        self,
        *,
        unet: Network,
        controlnet: Network,
        vae: VAE,
        text: TextEncoder,
        captioner: Describer,
        schedule: Any,  # a UniPCMultistepScheduler, and diffusers is optional
        device: str = "cpu",
        offload: bool = False,
        random: bool = False,
    ) -> None:
        """Take networks that are ready to run.

        Each run has a copy of `schedule`, UniPC's, for it remembers its steps. With `offload`
        networks wait on the CPU and come to the device one at a time, U-Net and ControlNet
        together.
        """
        self.unet, self.controlnet, self.vae = unet, controlnet, vae
        self.text, self.captioner, self.schedule = text, captioner, schedule
        self.device, self.offload, self.random = device, offload, random
        side = int(unet.config.sample_size)
        self.native = side * CELL
        self.tiling = LatentTiling(side * 5, side // 2)

    @torch.inference_mode()
    def restore(
        self,
        lq: Image.Image,
        *,
        seed: int = 0,
        options: PASDOptions = DEFAULTS,
        progress: Callable[[int, int], None] = _ignore,
    ) -> Restoration:
        """Restore an RGB photo.

        Args:
            lq: RGB.
            seed: of the encoder's draw and the start; the steps are without chance.
            options: settings.
            progress: told how many steps are done of how many; may raise to stop.
        """
        started = time.perf_counter()
        shortest = round(options.short_side * self.native)
        large = enlarge_to(lq, shortest=shortest, scale=SCALE)
        caption = self._caption(lq) if options.caption is None else options.caption
        prompt = ", ".join(filter(None, (caption, options.prompt, options.added)))
        with self._on_device(self.text.module):
            context = self.text([options.negative, prompt])
        noise = torch.Generator().manual_seed(seed)
        photo = to_tensor(large).to(self.device)
        latents = self._start(photo, noise, options)
        with self._on_device(self.unet), self._on_device(self.controlnet):
            clean = self.denoise(latents, photo, context, options, progress)
        with self._on_device(self.vae.module):
            # rounded, unlike the colour fix after it, which truncates; both as published
            restored = to_image(self.vae.decode(clean), rounding="nearest")
        fixed = fix_colour(restored, large, options.colour_fix)
        return Restoration(
            promised(fixed, lq, scale=SCALE),
            METHOD.name,
            seed,
            time.perf_counter() - started,
            text=caption,
            details={
                "prompt": prompt,
                "negative_prompt": options.negative if options.guidance > 1 else None,
                "steps": options.steps,
                "guidance": options.guidance,
                "conditioning": options.conditioning,
                "noise_level": options.noise_level if options.start == "photo" else None,
                "start": options.start,
                "colour_fix": options.colour_fix,
                "processed": f"{large.width} × {large.height}",
                "weights": "random weights, for testing" if self.random else "released",
            },
        )

    def _caption(self, lq: Image.Image) -> str:
        """Of the photo as it came, with what it shall become."""
        with self._on_device(self.captioner.network):
            caption = self.captioner(lq)
        for word, wished in WISHED.items():
            caption = caption.replace(word, wished)
        return caption

    def _start(self, photo: Tensor, noise: torch.Generator, options: PASDOptions) -> Tensor:
        """Latents (1, 4, H, W), float32, to begin at: drowned twice, the second time less."""
        height, width = (side // CELL for side in photo.shape[-2:])
        shape = (1, self.unet.config.in_channels, height, width)
        if options.start == "noise":
            return draw(shape, noise, self.device)
        with self._on_device(self.vae.module):
            latents = self.vae.encode(photo, noise)
        for timestep in (LAST, options.noise_level):
            alpha = float(self.schedule.alphas_cumprod[timestep])
            pure = draw(shape, noise, self.device)
            latents = alpha**0.5 * latents + (1 - alpha) ** 0.5 * pure
        return latents

    def denoise(
        self,
        latents: Tensor,
        photo: Tensor,
        context: Tensor,
        options: PASDOptions,
        progress: Callable[[int, int], None] = _ignore,
    ) -> Tensor:
        """All steps: noisy latents (1, 4, H, W) to clean ones, float32.

        Args:
            latents: to begin at.
            photo: (1, 3, 8 H, 8 W) in [0, 1], which the ControlNet reads.
            context: (2, 77, C) of the negative prompt and the prompt.
            options: settings.
            progress: as in `restore`.
        """
        context = context if options.guidance > 1 else context[1:]
        context = context.to(next(self.unet.parameters()).dtype)
        schedule = copy.deepcopy(self.schedule)
        schedule.set_timesteps(options.steps)
        for done, t in enumerate(schedule.timesteps):
            predict = led_by_photo(
                self.unet,
                self.controlnet,
                t,
                photo=photo,
                context=context,
                conditioning=options.conditioning,
                guidance=options.guidance,
            )
            predicted = predict_tiled(latents, predict, options.tiling or self.tiling)
            latents = schedule.step(predicted, t, latents).prev_sample
            progress(done + 1, options.steps)
        return latents

    def _on_device(self, module: nn.Module) -> Any:  # Any: a context manager of nothing
        return on_device(module, self.device, offload=self.offload)


def load_unet(folder: Path) -> PixelAwareUNet:
    """PASD's U-Net, float32.

    Raises:
        MethodUnavailableError: its tensors do not fit, or are those of another variant of PASD or
            of a stock network.
    """
    from diffusers import UNet2DConditionModel

    state = read_safetensors(folder / WEIGHTS_FILE)
    if not any(".pixel_attentions." in key for key in state):
        raise MethodUnavailableError(
            f"{folder} has no pixel attention, so it is not PASD's; its light variant is not "
            "supported."
        )
    unet = PixelAwareUNet(UNet2DConditionModel.from_config(network_config(folder)))
    load_strict(unet, wrapped_names(state), str(folder))
    return unet


def load_controlnet(folder: Path) -> Network:
    """PASD's ControlNet, float32: diffusers' own, without what only training needs.

    Raises:
        MethodUnavailableError: its tensors do not fit, or it has the variant's RRDB blocks.
    """
    from diffusers import ControlNetModel

    ignored = ("return_rgbs", "use_rrdb")
    controlnet = ControlNetModel.from_config(network_config(folder, ignored=ignored))
    state = read_safetensors(folder / WEIGHTS_FILE)
    state = {k: v for k, v in state.items() if not k.startswith(TRAINING_ONLY)}
    load_strict(controlnet, state, str(folder))
    return controlnet


def load(device: str, *, weights: Path = sources.DEFAULT_FOLDER, offload: bool = False) -> PASD:
    """Load PASD's networks, the rest of Stable Diffusion 1.5, and the captioner.

    Args:
        device: "cpu" or "cuda".
        weights: folder with `PARTS`.
        offload: as in `PASD`; for cards below about 12 GB.

    Raises:
        MethodUnavailableError: weights are missing or do not fit.
    """
    if (problem := missing(weights)) is not None:
        raise MethodUnavailableError(problem)
    base = weights / BASE.folder
    unet = load_unet(weights / NETWORKS.folder / "unet")
    controlnet = load_controlnet(weights / NETWORKS.folder / "controlnet")
    # as published 1024 px: twice the networks' own size
    vae = VAE.load(base / "vae", tile=2 * CELL * unet.config.sample_size)
    text = TextEncoder.load(base)
    captioner = Captioner.load(weights / BLIP.folder)

    dtype = working_dtype(device)
    for module in (unet, controlnet, vae.module, text.module):
        placed(module, device, dtype, offload=offload)
    placed(captioner.network, device, torch.float32, offload=offload)
    return PASD(
        unet=unet,
        controlnet=controlnet,
        vae=vae,
        text=text,
        captioner=captioner,
        schedule=load_schedule(base, "UniPCMultistepScheduler"),
        device=device,
        offload=offload,
        random=sources.is_random(weights),
    )


def missing(weights: Path = sources.DEFAULT_FOLDER) -> str | None:
    """Which weights are not there, in a sentence; None if all are."""
    return sources.missing("PASD", "pasd", PARTS, weights)


def method(weights: Path = sources.DEFAULT_FOLDER) -> Method:
    """The card, for weights in another folder."""
    return Method(
        "pasd",
        "PASD",
        "diffusion",
        SCALE,
        partial(load, weights=weights),
        requires=("diffusers", "transformers"),
        packages=("diffusers", "transformers", "safetensors"),
        missing=partial(missing, weights),
        memory_bytes=12 * 2**30,
        parameters=PARAMETERS,
        source=(
            "Yang et al., Pixel-Aware Stable Diffusion for Realistic Image Super-Resolution and "
            "Personalized Stylization, ECCV 2024; yangxy/PASD"
        ),
        licence=(
            "code Apache-2.0; weights without a stated licence, on Stable Diffusion 1.5 "
            "(CreativeML OpenRAIL-M); captions by BLIP (BSD-3-Clause)"
        ),
        preprocessing=(
            "captioned as it is; bicubic 4×, bilinear to at least 768 px on the short side, "
            "bicubic to a multiple of 8"
        ),
        postprocessing="rounded to 8 bits, wavelet colours, bicubic to 4×",
        prompt=f"{{caption}}, {{prompt}}, {ADDED}; negative: {NEGATIVE}",
        steps=DEFAULTS.steps,
        colour_fix="wavelet after the enlarged input",
        paper_settings=(
            "20 UniPC steps, guidance 9, start at noise level 900, at least 768 px: PASD's own "
            "paper and script; the PURE paper names no settings, and counts 1900 million "
            "parameters, which is PASD with BLIP"
        ),
        gpu_seconds=by_area(2.80 * A100_TO_LENT),  # quoted: the PURE paper's Table 4, an A100
        order=33,
        settings=(
            Setting(
                "caption",
                "Caption",
                None,
                info="Empty: the captioner's. A blank: none.",
            ),
            settings.PROMPT,
            settings.negative(NEGATIVE),
            settings.steps(DEFAULTS.steps),
            settings.guidance(DEFAULTS.guidance),
            settings.CONDITIONING,
            Setting(
                "noise_level",
                "Noise level",
                DEFAULTS.noise_level,
                lowest=1,
                highest=LAST,
                step=1,
                info="Of the start. Less keeps more of the photo; the published code's is 50.",
            ),
            Setting(
                "short_side",
                "Short side",
                DEFAULTS.short_side,
                lowest=1.0,
                highest=2.0,
                step=0.25,
                info="At least, in multiples of 512 px; time grows with its square or more.",
            ),
            settings.START,
            settings.colour_fix(DEFAULTS.colour_fix),
        ),
        options=PASDOptions,
    )


METHOD = method()
