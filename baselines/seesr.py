"""SeeSR: semantics-aware real-world super-resolution (Wu et al., CVPR 2024).

Stable Diffusion 2's U-Net, with a ControlNet that reads the enlarged photo, is told by a tagger
what there is to see: as words in the prompt, and as image tokens both networks attend to. Fifty
DDPM steps lead from the photo's own latents, drowned in noise, to the restored ones.
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from baselines.base import A100_TO_LENT, Method, MethodUnavailableError, Restoration, by_area
from baselines.diffusion import settings, sources
from baselines.diffusion.control import led_by_photo
from baselines.diffusion.image_attention import (
    IMAGE_TOKENS,
    add_image_attention,
    token_width,
    wrapped,
)
from baselines.diffusion.sizes import CELL, ColourFix, enlarge, fix_colour, promised
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
from baselines.diffusion.tagger import Tagger
from baselines.diffusion.tiles import LatentTiling, predict_tiled
from imaging.convert import to_image, to_tensor

SCALE = 4
PARAMETERS = 2_251_950_512  # U-Net, ControlNet, VAE, text encoder, tagger; computed
START = 999  # timestep whose noise the photo's latents are drowned in
ADDED = "clean, high-resolution, 8k"
NEGATIVE = "dotted, noise, blur, lowres, smooth"
BASE = sources.SD2_BASE
NETWORKS = sources.Part(
    "seesr",
    "SeeSR's U-Net and ControlNet",
    (
        "unet/config.json",
        f"unet/{WEIGHTS_FILE}",
        "controlnet/config.json",
        f"controlnet/{WEIGHTS_FILE}",
    ),
    6.5,
    "Apache-2.0",
    "yes; trained on data sets some of which are for research only",
    hubs=(sources.Hub("CSWRY/SeeSR", folder="seesr"), sources.Hub("CSWRY/SeeSR")),
    by_hand="linked in the README of github.com/cswry/SeeSR (Google Drive, OneDrive)",
)
PARTS = (BASE, NETWORKS, *sources.TAGGER)


class SeeSROptionsError(ValueError):
    """Settings that cannot work; the message says which and why."""


@dataclass(frozen=True)
class SeeSROptions:
    """What a visitor may change; the defaults are the published ones.

    Attributes:
        steps: of DDPM; 1 to 999.
        guidance: weight of the prompt against the negative one; up to 1 only the prompt is run.
        conditioning: weight of the ControlNet.
        prompt: words of the visitor, behind the tags.
        added: put at the end of the prompt.
        negative: what guidance leads away from.
        tags: in place of the tagger's in the prompt; None asks the tagger.
        start: "photo" begins at the photo's latents with noise, "noise" at noise alone.
        colour_fix: of the restored picture, after the enlarged input.
        tiling: of the latents; None is 96 cells with an overlap of 32, in proportion for a network
            of another size. Differs from the published overlap, 4, which leaves seams; pictures
            up to 768 × 768 are not cut.
    """

    steps: int = 50
    guidance: float = 5.5
    conditioning: float = 1.0
    prompt: str = ""
    added: str = ADDED
    negative: str = NEGATIVE
    tags: str | None = None
    start: Literal["photo", "noise"] = "photo"
    colour_fix: ColourFix = "adain"
    tiling: LatentTiling | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= START:
            raise SeeSROptionsError(f"steps must be 1 to {START}, not {self.steps}")
        for name in ("guidance", "conditioning"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise SeeSROptionsError(f"{name} must be 0 or more, not {value}")


DEFAULTS = SeeSROptions()


def _ignore(done: int, steps: int) -> None:
    pass


class SeeSR:
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
        tagger: Tagger,
        schedule: Any,  # a DDPMScheduler, and diffusers is optional
        device: str = "cpu",
        offload: bool = False,
        random: bool = False,
    ) -> None:
        """Take networks that are ready to run.

        Each run has a copy of `schedule`, DDPM's, for it keeps count. With `offload` networks wait
        on the CPU and come to the device one at a time, U-Net and ControlNet together.
        """
        self.unet, self.controlnet, self.vae = unet, controlnet, vae
        self.text, self.tagger, self.schedule = text, tagger, schedule
        self.device, self.offload, self.random = device, offload, random
        side = int(unet.config.sample_size)
        self.native = side * CELL
        self.tiling = LatentTiling(side * 3 // 2, side // 2)

    @torch.inference_mode()
    def restore(
        self,
        lq: Image.Image,
        *,
        seed: int = 0,
        options: SeeSROptions = DEFAULTS,
        progress: Callable[[int, int], None] = _ignore,
    ) -> Restoration:
        """Restore an RGB photo.

        Args:
            lq: RGB.
            seed: of the encoder's draw, the start and every step.
            options: settings.
            progress: told how many steps are done of how many; may raise to stop.
        """
        started = time.perf_counter()
        large = enlarge(lq, native=self.native, scale=SCALE, rounding=Image.Resampling.BICUBIC)
        # The photo as it came, not enlarged; its tokens are needed whoever wrote the tags.
        with self._on_device(self.tagger.network):
            perceived = self.tagger(lq)
        tags = perceived.tags if options.tags is None else options.tags
        prompt = f"{tags}, {options.prompt},{options.added}"
        with self._on_device(self.text.module):
            context = self.text([options.negative, prompt])
        noise = torch.Generator().manual_seed(seed)
        photo = to_tensor(large).to(self.device)
        latents = self._start(photo, noise, options.start)
        with self._on_device(self.unet), self._on_device(self.controlnet):
            clean = self.denoise(
                latents, photo, context, perceived.tokens, noise, options, progress
            )
        with self._on_device(self.vae.module):
            # rounded, unlike the colour fix after it, which truncates; both as published
            restored = to_image(self.vae.decode(clean), rounding="nearest")
        fixed = fix_colour(restored, large, options.colour_fix)
        return Restoration(
            promised(fixed, lq, scale=SCALE),
            METHOD.name,
            seed,
            time.perf_counter() - started,
            text=tags,
            details={
                "prompt": prompt,
                "negative_prompt": options.negative if options.guidance > 1 else None,
                "steps": options.steps,
                "guidance": options.guidance,
                "conditioning": options.conditioning,
                "start": options.start,
                "colour_fix": options.colour_fix,
                "processed": f"{large.width} × {large.height}",
                "weights": "random weights, for testing" if self.random else "released",
            },
        )

    def _start(
        self, photo: Tensor, noise: torch.Generator, start: Literal["photo", "noise"]
    ) -> Tensor:
        """Latents (1, 4, H, W), float32, to begin at.

        Differs from upstream: the encoder's draw comes from the run's generator, too, so that a
        seed decides about everything.
        """
        height, width = (side // CELL for side in photo.shape[-2:])
        channels = self.unet.config.in_channels
        pure = draw((1, channels, height, width), noise, self.device)
        if start == "noise":
            return pure
        with self._on_device(self.vae.module):
            encoded = self.vae.encode(photo, noise)
        alpha = float(self.schedule.alphas_cumprod[START])
        return alpha**0.5 * encoded + (1 - alpha) ** 0.5 * pure

    def denoise(
        self,
        latents: Tensor,
        photo: Tensor,
        context: Tensor,
        tokens: Tensor,
        noise: torch.Generator,
        options: SeeSROptions,
        progress: Callable[[int, int], None] = _ignore,
    ) -> Tensor:
        """All steps: noisy latents (1, 4, H, W) to clean ones, float32.

        Args:
            latents: to begin at.
            photo: (1, 3, 8 H, 8 W) in [0, 1], which the ControlNet reads.
            context: (2, 77, C) of the negative prompt and the prompt.
            tokens: (1, T, W) of the picture, the same for both prompts.
            noise: for the steps.
            options: settings.
            progress: as in `restore`.
        """
        guided = options.guidance > 1
        dtype = next(self.unet.parameters()).dtype
        context = (context if guided else context[1:]).to(dtype)
        tokens = tokens.to(latents.device, dtype)
        attention = {IMAGE_TOKENS: tokens.expand(len(context), -1, -1)}
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
                attention=attention,
            )
            predicted = predict_tiled(latents, predict, options.tiling or self.tiling)
            latents = schedule.step(predicted, t, latents, generator=noise).prev_sample
            progress(done + 1, options.steps)
        return latents

    def _on_device(self, module: nn.Module) -> Any:  # Any: a context manager of nothing
        return on_device(module, self.device, offload=self.offload)


def load_network(kind: Any, folder: Path) -> Network:  # Any: a class of diffusers
    """SeeSR's U-Net or ControlNet, float32.

    Raises:
        MethodUnavailableError: its tensors do not fit, or are those of a stock network, which would
            load and give blurred pictures.
    """
    state = read_safetensors(folder / WEIGHTS_FILE)
    width = token_width(state)
    if width is None:
        raise MethodUnavailableError(f"{folder} has no image attention, so it is not SeeSR's.")
    network = kind.from_config(network_config(folder, ignored=("use_image_cross_attention",)))
    add_image_attention(network, width)
    load_strict(network, wrapped(state), str(folder))
    return network


def load(device: str, *, weights: Path = sources.DEFAULT_FOLDER, offload: bool = False) -> SeeSR:
    """Load SeeSR's networks, the rest of Stable Diffusion 2-base, and the tagger.

    Args:
        device: "cpu" or "cuda".
        weights: folder with `PARTS`.
        offload: as in `SeeSR`; for cards below about 8 GB.

    Raises:
        MethodUnavailableError: weights are missing or do not fit.
    """
    if (problem := missing(weights)) is not None:
        raise MethodUnavailableError(problem)
    from diffusers import ControlNetModel, UNet2DConditionModel

    base = weights / BASE.folder
    unet = load_network(UNet2DConditionModel, weights / NETWORKS.folder / "unet")
    controlnet = load_network(ControlNetModel, weights / NETWORKS.folder / "controlnet")
    # as published 1024 px: twice the networks' own size
    vae = VAE.load(base / "vae", tile=2 * CELL * unet.config.sample_size)
    text = TextEncoder.load(base)
    tagger = Tagger.load(weights)

    dtype = working_dtype(device)
    for module in (unet, controlnet, vae.module, text.module):
        placed(module, device, dtype, offload=offload)
    placed(tagger.network, device, torch.float32, offload=offload)
    return SeeSR(
        unet=unet,
        controlnet=controlnet,
        vae=vae,
        text=text,
        tagger=tagger,
        schedule=load_schedule(base),
        device=device,
        offload=offload,
        random=sources.is_random(weights),
    )


def missing(weights: Path = sources.DEFAULT_FOLDER) -> str | None:
    """Which weights are not there, in a sentence; None if all are."""
    return sources.missing("SeeSR", "seesr", PARTS, weights)


def method(weights: Path = sources.DEFAULT_FOLDER) -> Method:
    """The card, for weights in another folder."""
    return Method(
        "seesr",
        "SeeSR",
        "diffusion",
        SCALE,
        partial(load, weights=weights),
        requires=("diffusers", "transformers", "timm"),
        packages=("diffusers", "transformers", "timm", "safetensors"),
        missing=partial(missing, weights),
        memory_bytes=8 * 2**30,
        parameters=PARAMETERS,
        source="Wu et al., SeeSR, CVPR 2024; cswry/SeeSR",
        licence=(
            "code and weights Apache-2.0, on Stable Diffusion 2-base (CreativeML Open RAIL++-M) "
            "and RAM (Apache-2.0)"
        ),
        preprocessing=(
            "tagged as it is; bicubic to at least 512 px on the short side, 4×, and a multiple of 8"
        ),
        postprocessing="rounded to 8 bits, AdaIN, bicubic to 4×",
        prompt=f"{{tags}}, {{prompt}},{ADDED}; negative: {NEGATIVE}",
        steps=DEFAULTS.steps,
        colour_fix="AdaIN after the enlarged input",
        paper_settings=(
            "50 DDPM steps, guidance 5.5, 512 × 512; the PURE paper names no settings, its RealSR "
            "row for SeeSR is that of SeeSR's own defaults"
        ),
        gpu_seconds=by_area(4.30 * A100_TO_LENT),  # quoted: the PURE paper's Table 4, an A100
        order=32,
        settings=(
            settings.TAGS,
            settings.PROMPT,
            settings.negative(NEGATIVE),
            settings.steps(DEFAULTS.steps),
            settings.guidance(DEFAULTS.guidance),
            settings.CONDITIONING,
            settings.START,
            settings.colour_fix(DEFAULTS.colour_fix),
        ),
        options=SeeSROptions,
    )


METHOD = method()
