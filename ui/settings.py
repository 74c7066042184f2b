"""What differs between a laptop and the Space, read once from the environment.

| variable | default | meaning |
| --- | --- | --- |
| `PURE_CHECKPOINT` | see below | "nano", a folder in the released format, or a hub id |
| `PURE_DEVICE` | cuda if there is one, else cpu | where the weights go |
| `PURE_MAX_PIXELS` | 25,600 (CPU), 65,536 (GPU) | largest photo, width × height, restored at 4× |
| `PURE_QUEUE` | 20 | visitors that may wait |
| `PURE_MAX_FILE_MB` | 20 | largest file accepted |
| `PURE_RESULTS` | results | folder of `evaluation.runner` whose numbers are shown |
| `WEIGHTS_DIR` | baselines/weights | weights of the diffusion methods, see docs/methods.md |
| `PURE_OFFLOAD` | 0 | 1: their networks wait on the CPU, for cards of half the memory |
| `PURE_AHEAD` | 0 | 1: on ZeroGPU, compile a block of the transformer when the app starts |
| `PURE_METHODS_GIB` | 6 (CPU), 40 (GPU) | memory for the methods that are compared |
| `STUDY` | examples/study/demo.json | the study that people take part in |
| `STUDY_STORE` | the study's name, .sqlite | file or PostgreSQL URL of the votes |
| `STUDY_SECRET` | the study's name, .secret | 64 hexadecimal digits behind codes and tokens |
| `STUDY_REPO` | none | data set repository on the Hub to which votes are copied |

Unset, `PURE_CHECKPOINT` is the released weights where a CUDA GPU has at least 24 GiB, which 14 GB
of bfloat16 weights with their caches need, and else the embedded nano checkpoint. Address and port
are Gradio's own `GRADIO_SERVER_NAME` and `GRADIO_SERVER_PORT`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from baselines.diffusion.sources import DEFAULT_FOLDER
from pure.checkpoint import RELEASED_ID
from study.room import StudyPlace

RELEASED_GIB = 24
# Chosen so that a run stays below two minutes. Nano on two CPU cores: 49 tiles of 1 to 2 s.
NANO_PIXELS = 160 * 160
# The released model reads 512 × 512 a tile: 9 tiles at 1024 × 1024.
RELEASED_PIXELS = 256 * 256
# The largest method that runs on a CPU takes 2.5 GiB; the released model beside others 20.
CPU_GIB, GPU_GIB = 6, 40
STUDY = Path(__file__).parents[1] / "examples" / "study" / "demo.json"
VERSION = "0.1"  # of the app, noted in every vote
DEMO = StudyPlace(STUDY, app_version=VERSION)


class SettingsError(ValueError):
    """An environment variable holds something it cannot; the message says which and what."""


@dataclass(frozen=True)
class Settings:
    """Where this demo runs and how much it takes on.

    Attributes:
        checkpoint: what to load, as `pure.checkpoint.load` takes it.
        device: where to.
        max_pixels: of a photo restored at 4×; smaller scales take larger photos in proportion.
        queue_size: visitors that may wait for the model.
        max_file_mb: largest file, in millions of bytes.
        results: folder of measured results, which need not exist.
        weights: folder of the diffusion methods' weights.
        offload: whether their networks wait on the CPU until they are needed.
        ahead: whether a block is compiled before the first visitor, see `pure.ahead`.
        methods_gib: memory that the loaded methods of a comparison may take together.
        study: the study, and where its votes are kept.
    """

    checkpoint: str = "nano"
    device: str = "cpu"
    max_pixels: int = NANO_PIXELS
    queue_size: int = 20
    max_file_mb: int = 20
    methods_gib: int = CPU_GIB
    results: Path = Path("results")
    weights: Path = DEFAULT_FOLDER
    offload: bool = False
    ahead: bool = False
    study: StudyPlace = DEMO

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Settings":
        """Read the variables above.

        Raises:
            SettingsError: one of them is not what it should be.
        """
        variables = os.environ if environment is None else environment
        device = variables.get("PURE_DEVICE", "").strip() or _device()
        default = RELEASED_ID if device.startswith("cuda") and _gib() >= RELEASED_GIB else "nano"
        checkpoint = variables.get("PURE_CHECKPOINT", "").strip() or default
        ahead = _switch(variables, "PURE_AHEAD")
        if ahead and not device.startswith("cuda"):
            raise SettingsError("PURE_AHEAD=1 needs a GPU: on a CPU a compiled block is slower")
        return cls(
            checkpoint=checkpoint,
            device=device,
            max_pixels=_whole(
                variables,
                "PURE_MAX_PIXELS",
                RELEASED_PIXELS if device.startswith("cuda") else NANO_PIXELS,
            ),
            queue_size=_whole(variables, "PURE_QUEUE", cls.queue_size),
            max_file_mb=_whole(variables, "PURE_MAX_FILE_MB", cls.max_file_mb),
            methods_gib=_whole(
                variables, "PURE_METHODS_GIB", GPU_GIB if device.startswith("cuda") else CPU_GIB
            ),
            weights=Path(variables.get("WEIGHTS_DIR", "").strip() or cls.weights),
            offload=_switch(variables, "PURE_OFFLOAD"),
            ahead=ahead,
            results=Path(variables.get("PURE_RESULTS", "").strip() or cls.results),
            study=StudyPlace(
                Path(variables.get("STUDY", "").strip() or STUDY),
                store=variables.get("STUDY_STORE", "").strip(),
                secret=variables.get("STUDY_SECRET", "").strip(),
                repo=variables.get("STUDY_REPO", "").strip(),
                app_version=VERSION,
            ),
        )


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _gib() -> float:
    """Memory of the first GPU; none is 0."""
    if not torch.cuda.is_available():
        return 0.0
    return torch.cuda.get_device_properties(0).total_memory / 2**30


def _switch(variables: Mapping[str, str], name: str) -> bool:
    text = variables.get(name, "").strip()
    if text not in ("", "0", "1"):
        raise SettingsError(f"{name} is 0 or 1, not {text!r}")
    return text == "1"


def _whole(variables: Mapping[str, str], name: str, default: int) -> int:
    text = variables.get(name, "").strip()
    if not text:
        return default
    if not text.isdecimal() or int(text) < 1:
        raise SettingsError(f"{name} is a whole number of 1 or more, not {text!r}")
    return int(text)
