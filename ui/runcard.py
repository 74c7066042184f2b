"""The run card: everything needed to make a restoration again, and the files that go with it."""

import hashlib
import json
import platform
import re
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from PIL import Image

from imaging import convert
from pure.pipeline import PureOutput

PACKAGES = ("torch", "numpy", "pillow", "tokenizers", "safetensors", "gradio")
LONGEST_STEM = 60


@dataclass(frozen=True)
class Files:
    """A finished run on disk.

    Attributes:
        before: the input enlarged by bicubic, PNG, as large as the result.
        restored: the result, PNG.
        card: the run card, JSON.
    """

    before: Path
    restored: Path
    card: Path


def run_card(output: PureOutput, *, lq: Path, lq_size: tuple[int, int], sr: Path) -> dict[str, Any]:
    """What was done, with what, and to which bytes."""
    return {
        "checkpoint": output.checkpoint,
        "settings": asdict(output.settings),
        "input": {"file": lq.name, "size": list(lq_size), "sha256": sha256(lq)},
        "output": {"file": sr.name, "size": list(output.image.size), "sha256": sha256(sr)},
        "label": output.belief.label,
        "caption": output.belief.caption,
        "steps": output.steps,
        "passes": output.passes,
        "seconds": {phase: round(s, 3) for phase, s in output.seconds.items()},
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of Python and the packages that decide about pixels."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def sha256(path: Path) -> str:
    """Of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def stem(lq: Path) -> str:
    """The name of the input, as far as it is safe in a file name."""
    return re.sub(r"[^\w-]+", "_", lq.stem).strip("_")[:LONGEST_STEM] or "photo"


def save(output: PureOutput, *, lq: Path, image: Image.Image, folder: Path) -> Files:
    """Write result, enlarged input and run card into a folder.

    Args:
        output: of the run.
        lq: the file that came in.
        image: what was read from it.
        folder: exists.
    """
    name = f"{stem(lq)}_pure_x{output.settings.scale}"
    files = Files(folder / f"{name}_input.png", folder / f"{name}.png", folder / f"{name}.json")
    output.image.save(files.restored)
    convert.resize(image, output.image.size).save(files.before)
    card = run_card(output, lq=lq, lq_size=image.size, sr=files.restored)
    files.card.write_text(json.dumps(card, indent=2, ensure_ascii=False), encoding="utf-8")
    return files
