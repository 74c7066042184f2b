"""PURE in this comparison: the released weights and PURE-nano, in the settings the paper compares.

The only module that knows both the methods and the model. The paper's Table 5 leaves out parts of
what guides the picture, its Table 6 changes how codes are drawn; each is a method of its own here.
Settings of one checkpoint share its weights.
"""

import threading
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from baselines.base import Method, MethodError, MethodUnavailableError, Restoration, timed
from pure import cost
from pure.belief import BeliefError
from pure.checkpoint import (
    NANO,
    NANO_NAME,
    RELEASED_ID,
    RELEASED_PIXELS,
    CheckpointError,
    read_config,
    read_native,
)
from pure.model import CONFIGS
from pure.pipeline import PureOutput, PurePipeline, RestoreError, RestoreSettings, tile_count
from pure.sampling import SamplingConfig

SCALE = 4
GIB = 2**30
RELEASED_GIB = 24  # weights and caches take 21 GB in bfloat16, see docs/architecture.md
FACTOR, CODES = 8, 16_384  # of the released VQ tokenizer: pixels a side of a code, codebook
K_MAX = (10, 100, 500)  # beside the published 2000: a curve from faithful to lively
DEFAULT = RestoreSettings()

# What differs from the checkpoint's own setting, by the end of the name.
SETTINGS: dict[str, tuple[str, RestoreSettings]] = {
    "": ("", DEFAULT),
    "perception": ("label only", RestoreSettings(guidance="perception")),
    "understanding": ("caption only", RestoreSettings(guidance="understanding")),
    "unguided": ("no text", RestoreSettings(guidance="none")),
    "top1": ("top-1", RestoreSettings(sampling="top1")),
    "top2000": ("top-2000", RestoreSettings(sampling="topk:2000")),
    **{f"kmax{k}": (f"k ≤ {k}", RestoreSettings(sampling=f"dynamic:{k}")) for k in K_MAX},
    "cfg1": (
        "as published, no guidance scale",
        RestoreSettings(sampling=SamplingConfig(guidance_scale=1.0)),
    ),
}


class _Shared:
    """A pipeline and whose turn it is; it serves one caller at a time."""

    def __init__(self, pipeline: PurePipeline) -> None:
        self.pipeline, self.turn = pipeline, threading.Lock()
        networks = (pipeline.checkpoint.model, pipeline.checkpoint.vq)
        self.parameters = sum(p.numel() for network in networks for p in network.parameters())


# Freed with the last loaded setting that uses it.
_pipelines: weakref.WeakValueDictionary[tuple[str, str], _Shared] = weakref.WeakValueDictionary()
_opening = threading.Lock()


class Pure:
    """One setting of a loaded checkpoint."""

    def __init__(self, name: str, shared: _Shared, settings: RestoreSettings) -> None:
        self.name, self.shared, self.settings = name, shared, settings

    def restore(self, lq: Image.Image, *, seed: int = 0) -> Restoration:
        outputs: list[PureOutput] = []

        def restore() -> Image.Image:
            output = self.shared.pipeline.restore(lq, _seeded(self.settings, seed))
            outputs.append(output)
            return output.image

        with self.shared.turn:
            try:
                done = timed(self.name, seed, restore)
            except (RestoreError, BeliefError) as error:
                raise MethodError(str(error)) from error
        (output,) = outputs
        sampling = output.settings.draw()
        return Restoration(
            done.image,
            self.name,
            seed,
            done.seconds,
            text=output.belief.text or None,
            details={
                "checkpoint": output.checkpoint,
                "parameters": self.shared.parameters,
                "guidance": self.settings.guidance,
                "sampling": sampling.mode,
                "guidance_scale": sampling.guidance_scale,
                "temperature": sampling.temperature,
                "k_min": sampling.k_min,
                "k_max": sampling.k_max,
                "mu": sampling.mu,
                "top_k": sampling.top_k,
                "steps": output.steps,
                "mean_k": round(float(output.k.mean()), 3),
            },
        )


def _seeded(settings: RestoreSettings, seed: int) -> RestoreSettings:
    return RestoreSettings(
        scale=SCALE, seed=seed, sampling=settings.sampling, guidance=settings.guidance
    )


def variants(
    checkpoint: str,
    *,
    name: str,
    title: str,
    memory_bytes: int,
    needs_gib: int = 0,
    parameters: int | None = None,
    source: str = "",
    licence: str = "",
    order: int = 30,
    own: str = "mu 5, k 1 to 2000, temperature 0.9, guidance 0.8; 512 px tiles",
) -> Iterator[Method]:
    """One method for each of `SETTINGS`, the checkpoint's own one first.

    Args:
        checkpoint: "nano", a folder in the released format, or a hub id.
        name: of the first; the others append theirs after a hyphen.
        title: of the first.
        memory_bytes: that the checkpoint takes, with the caches of one picture.
        needs_gib: of memory on a GPU, if it makes no sense without.
        parameters: of transformer and tokenizer.
        source: of the weights.
        licence: of the weights.
        order: among all methods.
        own: what its default settings are beside those every checkpoint shares.
    """
    for ending, (words, settings) in SETTINGS.items():
        full_name = f"{name}-{ending}" if ending else name
        yield Method(
            full_name,
            f"{title} ({words})" if words else title,
            "autoregressive",
            SCALE,
            partial(_load, name=full_name, checkpoint=checkpoint, settings=settings),
            packages=("tokenizers", "safetensors"),
            missing=partial(_missing, title, needs_gib),
            memory_bytes=memory_bytes,
            parameters=parameters,
            source=source,
            licence=licence,
            preprocessing="bicubic ×4, padded to whole tiles",
            postprocessing="tiles blended, cropped",
            prompt="the published instruction; label and caption are its own, as far as used",
            colour_fix=settings.colour_fix,
            paper_settings=(
                f"dynamic top-k, wavelet colour fix, as published; {own}"
                if settings == DEFAULT
                else f"as {title}, but {words}"
            ),
            gpu_seconds=partial(gpu_seconds, checkpoint, settings),
            order=order,
            variant_of=name if ending else None,
        )


def gpu_seconds(checkpoint: str, settings: RestoreSettings, size: tuple[int, int]) -> float:
    """About how long the half card that ZeroGPU lends takes for an input of (width, height).

    Computed from shapes and published figures of the card, see `pure.cost`; every pass is launched
    by itself, as in the plain decoder. A checkpoint that is not here counts as the released one.
    """
    config, native = CONFIGS["7b"], RELEASED_PIXELS
    folder = NANO if checkpoint == "nano" else Path(checkpoint)
    if folder.is_dir():
        config, native = read_config(folder), read_native(folder)
    side = native // FACTOR
    work = cost.Workload(
        side,
        side,
        codes=min(CODES, config.vocab_size),
        text=0 if settings.guidance == "none" else cost.Workload.text,
    )
    layers = config.num_hidden_layers / CONFIGS["7b"].num_hidden_layers
    tiles = tile_count(size, settings.scale, native=native, factor=FACTOR)
    return tiles * cost.image_seconds(
        config, cost.ZERO_GPU, work, launch=cost.EAGER_LAUNCH * layers
    )


def _load(device: str, *, name: str, checkpoint: str, settings: RestoreSettings) -> Pure:
    """Load the checkpoint, or share it with another setting that has it loaded.

    Raises:
        MethodUnavailableError: it cannot be loaded.
    """
    with _opening:
        shared = _pipelines.get((checkpoint, device))
        if shared is None:
            try:
                shared = _Shared(PurePipeline.from_pretrained(checkpoint, device=device))
            except CheckpointError as error:
                raise MethodUnavailableError(f"PURE: {error}") from error
            _pipelines[checkpoint, device] = shared
    return Pure(name, shared, settings)


def _missing(title: str, needs_gib: int) -> str | None:
    if not needs_gib:
        return None
    found = 0.0
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0).total_memory / GIB
    # a card sold as 24 GiB reports a little less
    if found >= needs_gib - 1:
        return None
    here = f"the one here has {found:.0f}" if found else "there is none here"
    return f"{title} needs a GPU of {needs_gib} GiB, and {here}. Use {NANO_NAME} instead."


METHODS = (
    *variants(
        RELEASED_ID,
        name="pure",
        title="PURE",
        memory_bytes=21 * 10**9,
        needs_gib=RELEASED_GIB,
        parameters=7_080_267_776 + 70_109_835,
        source=f"arXiv 2503.11073; {RELEASED_ID}",
        licence="MIT (code); weights derive from Lumina-mGPT and Chameleon-7B",
    ),
    *variants(
        "nano",
        name="pure-nano",
        title=NANO_NAME,
        memory_bytes=400 * 10**6,
        source="trained by this project, see its model card",
        licence="see NOTICE: trained on photographs under several licences",
        order=40,
        own="mu 3.5, k 1 to 100, temperature 0.5, guidance 2.5; 256 px tiles",
    ),
)
