"""OSEDiff: one-step diffusion super-resolution (Wu et al., NeurIPS 2024).

The enlarged photo is encoded, one pass of Stable Diffusion 2.1's U-Net at the last timestep says
what of it is noise, and what is left is decoded. Both networks carry the method's low-rank changes,
added to their weights once, when they are loaded.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from baselines.base import A100_TO_LENT, Method, MethodUnavailableError, Restoration, by_area
from baselines.diffusion import settings, sources
from baselines.diffusion.sizes import CELL, ColourFix, enlarge, fix_colour, promised
from baselines.diffusion.stable import (
    VAE,
    WEIGHTS_FILE,
    TextEncoder,
    added,
    load_schedule,
    network_config,
    on_device,
    placed,
)
from baselines.diffusion.state import (
    Network,
    load_strict,
    read_pickle,
    read_safetensors,
    working_dtype,
)
from baselines.diffusion.tagger import Tagger
from baselines.diffusion.tiles import LatentTiling, predict_tiled
from imaging.convert import to_image, to_tensor

SCALE = 4
PARAMETERS = 1_502_069_472  # U-Net, VAE, text encoder, tagger; computed, see docs/methods.md
TIMESTEP = 999
# Over the rank, 4, it scales the changes. The file holds none; peft's default, as published.
LORA_ALPHA = 8
BASE = sources.SD21_BASE
LORA = sources.Part(
    "osediff",
    "OSEDiff's low-rank changes",
    ("osediff.pkl",),
    0.018,
    "Apache-2.0 (of the repository that holds it)",
    "yes; trained on data sets some of which are for research only",
    git=(
        sources.GitFile(
            "cswry/OSEDiff",
            "fcc4f09c7ed66a9bc0ba9433940d76b343142426",
            "preset/models/osediff.pkl",
            "bc84dc9729aa6173e8b1087977025a4fc566a5db",
        ),
    ),
)
PARTS = (BASE, LORA, *sources.TAGGER)


@dataclass(frozen=True)
class OSEDiffOptions:
    """What a visitor may change; the defaults are the published ones.

    Attributes:
        prompt: words of the visitor, behind the tags.
        tags: in place of the tagger's; None asks the tagger.
        colour_fix: of the restored picture, after the enlarged input.
        tiling: of the latents; None is 96 cells with an overlap of 32, in proportion for a network
            of another size.
    """

    prompt: str = ""
    tags: str | None = None
    colour_fix: ColourFix = "adain"
    tiling: LatentTiling | None = None


DEFAULTS = OSEDiffOptions()


class OSEDiff:
    """The loaded method.

    Attributes:
        native: short side in pixels the networks were trained at.
        random: whether its weights are random, for tests.
    """

    def __init__(
        self,
        *,
        unet: Network,
        vae: VAE,
        text: TextEncoder,
        tagger: Tagger,
        alpha: float,
        device: str = "cpu",
        offload: bool = False,
        random: bool = False,
    ) -> None:
        """Take networks that are ready to run.

        `alpha` is what is left of the signal's variance at `TIMESTEP`. With `offload` networks wait
        on the CPU and come to the device one at a time.
        """
        self.unet, self.vae, self.text, self.tagger = unet, vae, text, tagger
        self.alpha, self.device, self.offload, self.random = alpha, device, offload, random
        side = int(unet.config.sample_size)
        self.native = side * CELL
        self.tiling = LatentTiling(side * 3 // 2, side // 2)

    @torch.inference_mode()
    def restore(
        self, lq: Image.Image, *, seed: int = 0, options: OSEDiffOptions = DEFAULTS
    ) -> Restoration:
        """Restore an RGB photo; `seed` draws from the encoder's posterior, the only chance here."""
        started = time.perf_counter()
        large = enlarge(lq, native=self.native, scale=SCALE, rounding=Image.Resampling.LANCZOS)
        tags = options.tags
        if tags is None:
            with self._on_device(self.tagger.network):
                tags = self.tagger(large).tags
        prompt = f"{tags}, {options.prompt},"
        with self._on_device(self.text.module):
            context = self.text([prompt])
        noise = torch.Generator().manual_seed(seed)
        with self._on_device(self.vae.module):
            latents = self.vae.encode(to_tensor(large), noise)
        with self._on_device(self.unet):
            clean = self.denoise(latents, context, options.tiling or self.tiling)
        with self._on_device(self.vae.module):
            restored = to_image(self.vae.decode(clean))
        fixed = fix_colour(restored, large, options.colour_fix)
        return Restoration(
            promised(fixed, lq, scale=SCALE),
            METHOD.name,
            seed,
            time.perf_counter() - started,
            text=tags,
            details={
                "prompt": prompt,
                "colour_fix": options.colour_fix,
                "processed": f"{large.width} × {large.height}",
                "weights": "random weights, for testing" if self.random else "released",
            },
        )

    def denoise(self, latents: Tensor, context: Tensor, tiling: LatentTiling) -> Tensor:
        """The clean latents that explain `latents` (1, 4, H, W) as timestep 999, float32.

        The published code takes a DDPM step to nowhere, which is this closed form. In float32:
        the division makes an error of the prediction 15 times larger.
        """
        dtype = next(self.unet.parameters()).dtype

        def predict(tile: Tensor, top: int, left: int) -> Tensor:
            del top, left
            return self.unet(tile.to(dtype), TIMESTEP, encoder_hidden_states=context).sample

        noise = predict_tiled(latents, predict, tiling)
        return (latents - (1 - self.alpha) ** 0.5 * noise) / self.alpha**0.5

    def _on_device(self, module: nn.Module) -> Any:  # Any: a context manager of nothing
        return on_device(module, self.device, offload=self.offload)


def low_rank_changes(state: Mapping[str, Tensor], rank: int, what: str) -> dict[str, Tensor]:
    """What the low-rank tensors add to weights, by the weights' names, float32.

    Args:
        state: `MODULE.lora_A.ADAPTER.weight` and `lora_B`, linear or convolution.
        rank: of all pairs.
        what: they belong to, for the error.

    Raises:
        MethodUnavailableError: a tensor is without its pair, of another rank, or no such tensor.
    """
    changes = {}
    for name, a in state.items():
        match = re.fullmatch(r"(.+)\.lora_([AB])\.(\w+)\.weight", name)
        if match is None:
            raise MethodUnavailableError(f"{what} holds {name}, which is not known.")
        module, half, adapter = match.groups()
        pair = f"{module}.lora_{'B' if half == 'A' else 'A'}.{adapter}.weight"
        if pair not in state:
            raise MethodUnavailableError(f"{what} holds {name} without {pair}.")
        if half == "B":
            continue
        b = state[pair]
        if not a.shape[0] == b.shape[1] == rank:
            raise MethodUnavailableError(
                f"{what} has rank {a.shape[0]} at {module}; {rank} was announced."
            )
        product = b.float().flatten(1) @ a.float().flatten(1)
        change = LORA_ALPHA / rank * product.reshape(b.shape[0], *a.shape[1:])
        changes[f"{module}.weight"] = change
    return changes


def load(device: str, *, weights: Path = sources.DEFAULT_FOLDER, offload: bool = False) -> OSEDiff:
    """Load Stable Diffusion 2.1-base with OSEDiff's changes, and the tagger.

    Args:
        device: "cpu" or "cuda".
        weights: folder with `PARTS`.
        offload: as in `OSEDiff`; for cards below about 6 GB.

    Raises:
        MethodUnavailableError: weights are missing or do not fit.
    """
    if (problem := missing(weights)) is not None:
        raise MethodUnavailableError(problem)
    from diffusers import UNet2DConditionModel

    file = weights / LORA.folder / LORA.files[0]
    lora = read_pickle(file)
    unet_lora, vae_lora = split_checkpoint(lora, str(file))

    base = weights / BASE.folder
    unet = UNet2DConditionModel.from_config(network_config(base / "unet"))
    state = read_safetensors(base / "unet" / WEIGHTS_FILE)
    # trained whole, not only by low rank
    for end in ("weight", "bias"):
        state[f"conv_in.{end}"] = unet_lora.pop(f"conv_in.base_layer.{end}")
    changes = low_rank_changes(unet_lora, lora["rank_unet"], str(file))
    load_strict(unet, added(state, changes, str(base / "unet")), str(base / "unet"))
    changes = low_rank_changes(vae_lora, lora["rank_vae"], str(file))
    # as published 1024 px: twice the networks' own size
    vae = VAE.load(base / "vae", tile=2 * CELL * unet.config.sample_size, edit=changes)
    text = TextEncoder.load(base)
    tagger = Tagger.load(weights)

    dtype = working_dtype(device)
    for module in (unet, vae.module, text.module):
        placed(module, device, dtype, offload=offload)
    placed(tagger.network, device, torch.float32, offload=offload)
    return OSEDiff(
        unet=unet,
        vae=vae,
        text=text,
        tagger=tagger,
        alpha=float(load_schedule(base).alphas_cumprod[TIMESTEP]),
        device=device,
        offload=offload,
        random=sources.is_random(weights),
    )


def split_checkpoint(
    content: Mapping[str, Any], what: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of U-Net and VAE of an OSEDiff checkpoint that is complete.

    Raises:
        MethodUnavailableError: keys are missing, or a listed module has no tensors.
    """
    groups = {
        "state_dict_unet": {
            "unet_lora_encoder_modules": "default_encoder",
            "unet_lora_decoder_modules": "default_decoder",
            "unet_lora_others_modules": "default_others",
        },
        "state_dict_vae": {"vae_lora_encoder_modules": "default_encoder"},
    }
    lists = {name for adapters in groups.values() for name in adapters}
    if absent := sorted({"rank_unet", "rank_vae", *groups, *lists} - set(content)):
        raise MethodUnavailableError(f"{what} lacks {', '.join(absent)}.")
    for tensors, adapters in groups.items():
        expected = {
            f"{module}.lora_{half}.{adapter}.weight"
            for name, adapter in adapters.items()
            for module in content[name]  # the VAE's list has duplicates
            for half in "AB"
        }
        if tensors == "state_dict_unet":
            expected |= {"conv_in.base_layer.weight", "conv_in.base_layer.bias"}
        odd = sorted(expected ^ set(content[tensors]))
        if odd:
            kind = "lacks" if odd[0] in expected else "holds, but does not list,"
            raise MethodUnavailableError(
                f"{what} {kind} {odd[0]} ({len(odd)} such names in {tensors})."
            )
    return dict(content["state_dict_unet"]), dict(content["state_dict_vae"])


def missing(weights: Path = sources.DEFAULT_FOLDER) -> str | None:
    """Which weights are not there, in a sentence; None if all are."""
    return sources.missing("OSEDiff", "osediff", PARTS, weights)


def method(weights: Path = sources.DEFAULT_FOLDER) -> Method:
    """The card, for weights in another folder."""
    return Method(
        "osediff",
        "OSEDiff",
        "diffusion",
        SCALE,
        partial(load, weights=weights),
        requires=("diffusers", "transformers", "timm"),
        packages=("diffusers", "transformers", "timm", "safetensors"),
        missing=partial(missing, weights),
        memory_bytes=6 * 2**30,
        parameters=PARAMETERS,
        source="Wu et al., One-Step Effective Diffusion Network, NeurIPS 2024; cswry/OSEDiff",
        licence=(
            "code Apache-2.0; weights Apache-2.0 on Stable Diffusion 2.1-base (CreativeML Open "
            "RAIL++-M) and RAM (Apache-2.0)"
        ),
        preprocessing=(
            "bicubic to at least 512 px on the short side and 4×, Lanczos to a multiple of 8; "
            "tagged after enlarging"
        ),
        postprocessing="truncated to 8 bits, AdaIN, bicubic to 4×",
        prompt="{tags}, {prompt},",
        steps=1,
        colour_fix="AdaIN after the enlarged input",
        paper_settings=(
            "one step at t = 999, no guidance, 512 × 512; the PURE paper names no settings, its "
            "RealSR row for OSEDiff is that of OSEDiff's own defaults"
        ),
        gpu_seconds=by_area(0.35 * A100_TO_LENT),  # quoted: the PURE paper's Table 4, an A100
        order=34,
        settings=(settings.TAGS, settings.PROMPT, settings.colour_fix(DEFAULTS.colour_fix)),
        options=OSEDiffOptions,
    )


METHOD = method()
