"""StableSR: Stable Diffusion's prior for real-world super-resolution (Wang et al., IJCV 2024).

Stable Diffusion 2.1's U-Net, without a prompt, is shown at every step what a time-aware encoder
makes of the enlarged photo's latents. Two hundred DDPM steps lead to the restored latents, whose
decoder takes as much of the photo's own features as one wishes.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
from baselines.diffusion.feature_wrap import WrappedVAE, load_fusion
from baselines.diffusion.schedule import TRAINED, spaced_ddpm
from baselines.diffusion.sizes import CELL, ColourFix
from baselines.diffusion.stable import VAE, draw, on_device, placed
from baselines.diffusion.state import (
    Network,
    evaluation,
    load_strict,
    read_json,
    read_pickle,
    working_dtype,
)
from baselines.diffusion.structure import (
    HEADS,
    Features,
    StructureEncoder,
    add_structure,
    modulated,
)
from baselines.diffusion.tiles import LatentTiling, decode_tiled, predict_tiled
from imaging import colour
from imaging.convert import to_image, to_tensor

SCALE = 4
MULTIPLE = 32  # pixels of which both sides are made a multiple
PARAMETERS = 1_439_860_395  # U-Net, encoder, VAE with its two networks, text encoder; computed
CHUNK = LatentTiling(160, 35)  # cells decoded at once: 1280 px every 1000 px
DIFFUSION_FILE, DECODER_FILE = "stablesr_000117.ckpt", "vqgan_cfw_00011.ckpt"
SIZES_FILE = "sizes.json"  # of tiny checkpoints; the release has none
WEIGHTS = sources.Part(
    "stablesr",
    "StableSR's networks, Stable Diffusion 2.1-base among them",
    (DIFFUSION_FILE, DECODER_FILE),
    6.2,
    "S-Lab License 1.0, on CreativeML Open RAIL++-M",
    "no, without the authors' consent",
    hubs=(sources.Hub("Iceclear/StableSR"), sources.Hub("camenduru/StableSR")),
    by_hand="linked in the README of github.com/IceClear/StableSR (Hugging Face, OpenXLab)",
)
PARTS = (WEIGHTS,)
# Lightning notes under the class of a callback where the best checkpoint lies.
CALLBACK = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"

# What the files do not say about themselves, as in the published configurations.
SIZES: Mapping[str, Any] = {
    "unet": {
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280, 1280),
        "attention_head_dim": (5, 10, 20, 20),
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
    },
    "encoder": {"in_channels": 4, "widths": (256, 256, 512, 512), "features": 256},
    "vae": {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "scaling_factor": 0.18215,
    },
    "text": {
        "vocab_size": 49408,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 0,
    },
}
# Names left out of the diffusion checkpoint, each for its reason.
SCHEDULE = (  # numbers of the noise schedule, which follow from four of them
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "lvlb_weights",
    "logvar",
)
AVERAGES = "model_ema."  # running averages, which the published configuration does not use
LOSS = "loss."  # of the decoder's training


class StableSROptionsError(ValueError):
    """Settings that cannot work; the message says which and why."""


@dataclass(frozen=True)
class StableSROptions:
    """What a visitor may change; the defaults are the published ones.

    Attributes:
        steps: of DDPM; 2 to 1000.
        fidelity: how much of the photo's features the decoder takes, 0 to 1.
        start: "photo" begins at the photo's latents with noise, "noise" at noise alone.
        upsampling: of the photo. Its script for photos of 128 × 128 enlarges "bilinear" and starts
            at "noise"; that for any size is "bicubic" and starts at the "photo".
        colour_fix: of the restored picture, after the enlarged input.
        tiling: of the latents; None is the network's own size with half of it as overlap, 64 and
            32 cells.
    """

    steps: int = 200
    fidelity: float = 0.5
    start: Literal["photo", "noise"] = "photo"
    upsampling: Literal["bicubic", "bilinear"] = "bicubic"
    colour_fix: ColourFix = "adain"
    tiling: LatentTiling | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.steps <= TRAINED:
            raise StableSROptionsError(f"steps must be 2 to {TRAINED}, not {self.steps}")
        if not (math.isfinite(self.fidelity) and 0 <= self.fidelity <= 1):
            raise StableSROptionsError(f"fidelity must be 0 to 1, not {self.fidelity}")


DEFAULTS = StableSROptions()


def _ignore(done: int, steps: int) -> None:
    pass


class StableSR:
    """The loaded method.

    Attributes:
        native: short side in pixels the networks were trained at.
        random: whether its weights are random, for tests.
    """

    def __init__(
        self,
        *,
        unet: Network,
        seen: Features,
        encoder: StructureEncoder,
        vae: VAE,
        decoder: WrappedVAE,
        context: Tensor,
        device: str = "cpu",
        offload: bool = False,
        random: bool = False,
    ) -> None:
        """Take networks that are ready to run.

        Args:
            unet: with structure added.
            seen: what its blocks look at, as `add_structure` gave it.
            encoder: of the structure.
            vae: that encodes the photo.
            decoder: that decodes the latents.
            context: (1, 77, C) of the empty prompt.
            device: they run on.
            offload: networks wait on the CPU and come to the device when they are needed, U-Net and
                encoder together.
            random: as of the class.
        """
        self.unet, self.seen, self.encoder = unet, seen, encoder
        self.vae, self.decoder, self.context = vae, decoder, context
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
        options: StableSROptions = DEFAULTS,
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
        large = enlarge(lq, native=self.native, mode=options.upsampling)
        photo = padded(large).to(self.device)
        noise = torch.Generator().manual_seed(seed)
        with self._on_device(self.vae.module):
            structure = self.vae.encode_signed(photo, noise)
        latents = draw(structure.shape, noise, self.device)
        schedule = spaced_ddpm(options.steps, prediction="epsilon")
        if options.start == "photo":
            alpha = float(schedule.alphas_cumprod[-1])
            latents = alpha**0.5 * structure + (1 - alpha) ** 0.5 * latents
        with self._on_device(self.unet), self._on_device(self.encoder):
            tiling = options.tiling or self.tiling
            clean = self.denoise(latents, structure, schedule, noise, tiling, progress)
        with self._on_device(self.decoder):
            restored = self.decode(clean, photo, options.fidelity)
        fixed = fix_colour(restored, photo, options.colour_fix).cpu()
        image = finished(fixed[..., : large.shape[-2], : large.shape[-1]], lq)
        return Restoration(
            image,
            METHOD.name,
            seed,
            time.perf_counter() - started,
            details={
                "steps": options.steps,
                "fidelity": options.fidelity,
                "start": options.start,
                "upsampling": options.upsampling,
                "colour_fix": options.colour_fix,
                "processed": f"{photo.shape[-1]} × {photo.shape[-2]}",
                "weights": "random weights, for testing" if self.random else "released",
            },
        )

    def denoise(
        self,
        latents: Tensor,
        structure: Tensor,
        schedule: Any,  # a DDPMScheduler, and diffusers is optional
        noise: torch.Generator,
        tiling: LatentTiling,
        progress: Callable[[int, int], None] = _ignore,
    ) -> Tensor:
        """All steps: noisy latents (1, 4, H, W) to clean ones, float32.

        Args:
            latents: to begin at.
            structure: the photo's, of the same shape.
            schedule: with its timesteps set.
            noise: for the steps.
            tiling: of both.
            progress: as in `restore`.
        """
        dtype = next(self.unet.parameters()).dtype
        for done, t in enumerate(schedule.timesteps):

            def predict(tile: Tensor, top: int, left: int, t: Tensor = t) -> Tensor:
                height, width = tile.shape[-2:]
                part = structure[..., top : top + height, left : left + width]
                self.seen.update(self.encoder(part.to(dtype), t))
                predicted = self.unet(tile.to(dtype), t, encoder_hidden_states=self.context).sample
                self.seen.clear()
                return predicted

            predicted = predict_tiled(latents, predict, tiling)
            latents = schedule.step(predicted, t, latents, generator=noise).prev_sample
            progress(done + 1, len(schedule.timesteps))
        return latents

    def decode(self, latents: Tensor, photo: Tensor, fidelity: float) -> Tensor:
        """Latents to a picture about [-1, 1], not clamped; above 1280 px in overlapping pieces.

        Differs from upstream above that size: there each piece has a diffusion of its own, here
        they share one.
        """

        def piece(tile: Tensor, top: int, left: int) -> Tensor:
            height, width = tile.shape[-2:]
            rows = slice(CELL * top, CELL * (top + height))
            columns = slice(CELL * left, CELL * (left + width))
            return self.decoder.decode(tile, photo[..., rows, columns], fidelity)

        return decode_tiled(latents, piece, CHUNK, CELL)

    def _on_device(self, module: nn.Module) -> Any:  # Any: a context manager of nothing
        return on_device(module, self.device, offload=self.offload)


def enlarge(
    lq: Image.Image, *, native: int, mode: Literal["bicubic", "bilinear"] = "bicubic"
) -> Tensor:
    """The photo, (1, 3, H, W) in [-1, 1]: 4×, or more until the short side is `native`.

    Interpolated without smoothing, in floating point and not rounded to levels.
    """
    pixels = 2 * to_tensor(lq) - 1
    scale = max(native / min(lq.size), SCALE)
    size = (int(lq.height * scale), int(lq.width * scale))
    return F.interpolate(pixels, size, mode=mode, align_corners=False).clamp(-1, 1)


def padded(photo: Tensor) -> Tensor:
    """A photo (B, 3, H, W) mirrored at its right and bottom until both sides are multiples of 32.

    As published, a side that is one already gets 32 more if the other is not.
    """
    height, width = photo.shape[-2:]
    if height % MULTIPLE == 0 and width % MULTIPLE == 0:
        return photo
    down, right = (MULTIPLE - side % MULTIPLE for side in (height, width))
    return F.pad(photo, (0, right, 0, down), mode="reflect")


def fix_colour(restored: Tensor, photo: Tensor, fix: ColourFix) -> Tensor:
    """The picture with the photo's colours, both about [-1, 1], in [0, 1]; clamped at the end."""
    if fix != "none":
        restored = {"adain": colour.adain_tensor, "wavelet": colour.wavelet_tensor}[fix](
            restored, photo
        )
    return (restored / 2 + 0.5).clamp(0, 1)


def finished(restored: Tensor, lq: Image.Image) -> Image.Image:
    """The picture (1, 3, H, W) in [0, 1] at exactly 4× the input, truncated to 8 bits."""
    size = (lq.height * SCALE, lq.width * SCALE)
    if tuple(restored.shape[-2:]) != size:
        restored = F.interpolate(restored, size, mode="bicubic", align_corners=False)
    return to_image(restored)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a Lightning checkpoint, by their names.

    Raises:
        MethodUnavailableError: it cannot be read or holds none.
    """
    return ldm.plain(read_pickle(path, inert=(CALLBACK,)), str(path))


def load_unet(
    state: Mapping[str, Tensor], sizes: Mapping[str, Any], what: str
) -> tuple[Network, Features]:
    """The U-Net with structure added, float32, and what its blocks look at.

    Raises:
        MethodUnavailableError: its tensors do not fit.
    """
    from diffusers import UNet2DConditionModel

    unet: Network = UNet2DConditionModel(**sizes["unet"])
    seen = add_structure(unet, sizes["encoder"]["features"])
    load_strict(unet, modulated(ldm.unet(state)), f"the U-Net of {what}")
    return unet, seen


def load_encoder(
    state: Mapping[str, Tensor], sizes: Mapping[str, Any], what: str
) -> StructureEncoder:
    """The time-aware encoder, float32.

    Raises:
        MethodUnavailableError: its tensors do not fit.
    """
    encoder = StructureEncoder(**sizes["encoder"])
    load_strict(encoder, ldm.split_qkv(ldm.unet(state), HEADS), f"the encoder of {what}")
    return encoder


def load_vae(state: Mapping[str, Tensor], sizes: Mapping[str, Any], what: str) -> Network:
    """A stock VAE, float32.

    Raises:
        MethodUnavailableError: its tensors do not fit.
    """
    from diffusers import AutoencoderKL

    vae: Network = AutoencoderKL(**sizes["vae"])
    load_strict(vae, ldm.vae(state), f"the VAE of {what}")
    return vae


def empty_context(state: Mapping[str, Tensor], sizes: Mapping[str, Any], what: str) -> Tensor:
    """What the text encoder makes of an empty prompt, (1, 77, C), float32.

    The encoder is needed for nothing else, so it is not kept.

    Raises:
        MethodUnavailableError: its tensors do not fit.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(**sizes["text"])
    encoder = CLIPTextModel(config)
    # Versions of transformers differ in this prefix.
    prefix = "text_model." if "text_model.final_layer_norm.bias" in encoder.state_dict() else ""
    tensors = {prefix + k: v for k, v in ldm.text(state, config.num_hidden_layers).items()}
    load_strict(encoder, tensors, f"the text encoder of {what}")
    begin, end, pad = (sizes["text"][f"{name}_token_id"] for name in ("bos", "eos", "pad"))
    ids = torch.full((1, config.max_position_embeddings), pad)
    ids[0, 0], ids[0, 1] = begin, end  # and no words between
    with torch.inference_mode():
        return evaluation(encoder, "cpu")(ids).last_hidden_state


def load(device: str, *, weights: Path = sources.DEFAULT_FOLDER, offload: bool = False) -> StableSR:
    """Load StableSR's networks.

    Args:
        device: "cpu" or "cuda".
        weights: folder with `PARTS`.
        offload: as in `StableSR`; for cards below about 6 GB.

    Raises:
        MethodUnavailableError: weights are missing or do not fit.
    """
    if (problem := missing(weights)) is not None:
        raise MethodUnavailableError(problem)
    folder = weights / WEIGHTS.folder
    sizes = read_json(folder / SIZES_FILE) if (folder / SIZES_FILE).is_file() else SIZES

    parts = diffusion_parts(read_checkpoint(folder / DIFFUSION_FILE), DIFFUSION_FILE)
    unet, seen = load_unet(parts["unet"], sizes, DIFFUSION_FILE)
    encoder = load_encoder(parts["encoder"], sizes, DIFFUSION_FILE)
    context = empty_context(parts["text"], sizes, DIFFUSION_FILE)
    first = load_vae(parts["vae"], sizes, DIFFUSION_FILE)
    vae, fusion = decoder_parts(read_checkpoint(folder / DECODER_FILE), DECODER_FILE)
    decoder = WrappedVAE(load_vae(vae, sizes, DECODER_FILE))
    load_fusion(decoder, fusion, DECODER_FILE)
    # Training left both VAEs as they were, so that one will do unless a file says otherwise.
    second = decoder.vae.state_dict()
    if all(torch.equal(value, second[key]) for key, value in first.state_dict().items()):
        first = decoder.vae

    dtype = working_dtype(device)
    for module in (unet, encoder, first, decoder):
        placed(module, device, dtype, offload=offload)
    return StableSR(
        unet=unet,
        seen=seen,
        encoder=encoder,
        vae=VAE(first, tile=CELL * CHUNK.tile),
        decoder=decoder,
        context=context.to(device, dtype),
        device=device,
        offload=offload,
        random=sources.is_random(weights),
    )


def diffusion_parts(state: Mapping[str, Tensor], what: str) -> dict[str, dict[str, Tensor]]:
    """The networks of the diffusion checkpoint: "unet", "encoder", "vae" and "text".

    Raises:
        MethodUnavailableError: it holds something that belongs to none.
    """
    prefixes = {
        "unet": "model.diffusion_model.",
        "encoder": "structcond_stage_model.",
        "vae": "first_stage_model.",
        "text": "cond_stage_model.model.",
    }
    known = (*prefixes.values(), AVERAGES)
    if odd := sorted(k for k in state if not k.startswith(known) and k not in SCHEDULE):
        raise MethodUnavailableError(f"{what} holds {odd[0]}, which is not known.")
    return {name: ldm.under(state, prefix) for name, prefix in prefixes.items()}


def decoder_parts(
    state: Mapping[str, Tensor], what: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The VAE of the decoder's checkpoint, and the two networks that feed it.

    Raises:
        MethodUnavailableError: the networks are not there.
    """
    fusion = {k: v for k, v in ldm.under(state, "decoder.").items() if k.startswith("fusion_layer")}
    if not fusion:
        raise MethodUnavailableError(f"{what} has no fusion layers, so it is not StableSR's.")
    vae = {
        k: v
        for k, v in state.items()
        if not k.startswith(LOSS) and k.removeprefix("decoder.") not in fusion
    }
    return vae, fusion


def missing(weights: Path = sources.DEFAULT_FOLDER) -> str | None:
    """Which weights are not there, in a sentence; None if all are."""
    return sources.missing("StableSR", "stablesr", PARTS, weights)


def method(weights: Path = sources.DEFAULT_FOLDER) -> Method:
    """The card, for weights in another folder."""
    return Method(
        "stablesr",
        "StableSR",
        "diffusion",
        SCALE,
        partial(load, weights=weights),
        requires=("diffusers", "transformers"),
        packages=("diffusers", "transformers"),
        missing=partial(missing, weights),
        memory_bytes=7 * 2**30,
        parameters=PARAMETERS,
        source="Wang et al., Exploiting Diffusion Prior, IJCV 2024; IceClear/StableSR",
        licence=(
            "code and weights S-Lab License 1.0 (non-commercial), on Stable Diffusion 2.1-base "
            "(CreativeML Open RAIL++-M)"
        ),
        preprocessing=(
            "bicubic 4×, or more until the short side is 512 px; mirrored to multiples of 32"
        ),
        postprocessing="AdaIN, bicubic to 4×, truncated to 8 bits",
        prompt="",
        steps=DEFAULTS.steps,
        colour_fix="AdaIN after the enlarged input",
        paper_settings=(
            "200 DDPM steps, no prompt, no guidance, fidelity 0.5, AdaIN, 512 × 512; for photos of "
            "128 × 128 its paper's script enlarges bilinearly and starts at noise alone (options "
            "upsampling and start). The PURE paper names no settings; its Table 4 gives 200 steps' "
            "time"
        ),
        gpu_seconds=by_area(11.50 * A100_TO_LENT),  # quoted: the PURE paper's Table 4, an A100
        order=30,
        settings=(
            settings.steps(DEFAULTS.steps, lowest=2, highest=1000),
            Setting(
                "fidelity",
                "Share of the photo's features",
                DEFAULTS.fidelity,
                lowest=0.0,
                highest=1.0,
                step=0.05,
                info="Its decoder's weight: 0 is the sharpest, 1 the closest to the photo.",
            ),
            settings.START,
            settings.colour_fix(DEFAULTS.colour_fix),
        ),
        options=StableSROptions,
    )


METHOD = method()
