"""Sets of pictures on disk: low-quality inputs, with or without references.

Knows the folder layouts in which the paper's sets and others come, and reports what does not pair
up instead of dropping it silently. Can make the low-quality side itself. Downloads nothing.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from imaging import degrade
from imaging.load import read_photo
from imaging.pairing import pair

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
# Names of the two folders, as published: StableSR's and OSEDiff's; DIV2K_V2_val and ours; others.
LAYOUTS = (("test_LR", "test_HR"), ("lq", "gt"), ("LR", "HR"), ("LQ", "GT"))
SAVED_PREFIX = "results_"  # of folders with a method's outputs beside the inputs
REFERENCE_SUFFIX = "_gt"  # of references that lie beside their inputs in one folder
PARAMETERS_FILE = "degradation.json"


class DatasetError(ValueError):
    """A folder that is no set of pictures; the message says what was looked for."""


@dataclass(frozen=True)
class Item:
    """One input, and its reference if there is one.

    Attributes:
        name: of the results, without suffix.
    """

    name: str
    lq: Path
    gt: Path | None = None


@dataclass(frozen=True)
class PairedFolder:
    """A set of pictures.

    Attributes:
        name: of its folder in the results.
        items: by name.
        scale: of reference to input, the same for all; None without references.
        saved: outputs that came with the set, by the method's name.
        problems: what was left out and why, a sentence each.
    """

    name: str
    items: tuple[Item, ...]
    scale: int | None
    saved: dict[str, Path]
    problems: tuple[str, ...]


def open_folder(root: Path, *, name: str | None = None) -> PairedFolder:
    """The set in a folder: inputs and references in two folders, side by side, or inputs alone.

    Args:
        root: as in `LAYOUTS`; or pictures, some of them `NAME_gt.png` beside `NAME.png`.
        name: of the set; that of the folder if not given.

    Raises:
        DatasetError: there is nothing to restore.
    """
    if not root.is_dir():
        raise DatasetError(f"{root} is not a folder.")
    problems: list[str] = []
    for lq_name, gt_name in LAYOUTS:
        # not `exists`: a file system that ignores case would take lq for LQ
        if lq_name in os.listdir(root):
            inputs = pictures(root / lq_name)
            references = pictures(root / gt_name) if (root / gt_name).is_dir() else []
            break
    else:
        found = pictures(root)
        references = [path for path in found if path.stem.endswith(REFERENCE_SUFFIX)]
        inputs = [path for path in found if path not in references]
    matched = pair((path.name for path in inputs), (path.name for path in references))
    if references:
        problems += [f"{lq} has no reference and is left out." for lq in matched.left_only]
        problems += [f"{gt} has no input." for gt in matched.right_only]
        by_name = {path.name: path for path in references}
        items = [
            Item(path.stem, path, by_name[matched.pairs[path.name]])
            for path in inputs
            if path.name in matched.pairs
        ]
    else:
        items = [Item(path.stem, path) for path in inputs]
    items, scale, wrong = _of_one_scale(items)
    problems += wrong
    if len({item.name for item in items}) < len(items):
        raise DatasetError(f"Two inputs in {root} differ in their suffix only. Rename one.")
    if not items:
        looked = ", ".join(f"{lq}/ with {gt}/" for lq, gt in LAYOUTS)
        raise DatasetError(
            f"{root} holds no pictures to restore; looked for {looked}, and for pictures in "
            f"itself. {' '.join(problems)}".strip()
        )
    saved = {
        path.name.removeprefix(SAVED_PREFIX).removesuffix(".zip"): path
        for path in sorted(root.glob(f"{SAVED_PREFIX}*"))
        if path.is_dir() or path.suffix == ".zip"
    }
    return PairedFolder(name or root.resolve().name, tuple(items), scale, saved, tuple(problems))


def pictures(folder: Path) -> list[Path]:
    """The picture files directly in a folder, by name."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())


def _of_one_scale(items: Iterable[Item]) -> tuple[list[Item], int | None, list[str]]:
    """The pairs whose reference is a whole number of times the input, the same for all."""
    kept: list[Item] = []
    scale: int | None = None
    problems: list[str] = []
    for item in items:
        if item.gt is None:
            kept.append(item)
            continue
        try:
            (w, h), (W, H) = _size(item.lq), _size(item.gt)
        except OSError as error:
            problems.append(f"{item.name} is left out: {error}.")
            continue
        scale = scale or max(1, W // w)
        if (w * scale, h * scale) != (W, H):
            problems.append(
                f"{item.name} is left out: the input is {w} × {h} and the reference {W} × {H}, "
                f"which is not {scale} times as large."
            )
        else:
            kept.append(item)
    return kept, scale, problems


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:  # the header only
        return image.size


def synthesise(
    references: Path, target: Path, *, preset: str, seed: int = 0, side: int | None = None
) -> Iterator[Item]:
    """Make inputs for a folder of references: `target/lq`, `target/gt` and what was drawn.

    Each picture's degradation depends on the seed and its own name only, so a set can grow without
    changing. What is there already stays. References are stored as they are compared: cropped to a
    multiple of the scale, and sharpened if the preset says so.

    Args:
        references: a folder of pictures.
        target: made if it is not there.
        preset: a name in `imaging.degrade.PRESETS`.
        seed: of all the draws.
        side: the centre square of this side is taken, after the shorter side was shrunk to it;
            512 makes the paper's OST-Val from its validation pictures. None takes all of it.

    Yields:
        Each pair when it is on disk.

    Raises:
        DatasetError: there are no pictures, or no preset of this name.
    """
    if preset not in degrade.PRESETS:
        raise DatasetError(
            f"There is no preset {preset!r}; there are {', '.join(degrade.PRESETS)}."
        )
    files = pictures(references) if references.is_dir() else []
    if not files:
        raise DatasetError(f"{references} holds no pictures.")
    (target / "lq").mkdir(parents=True, exist_ok=True)
    (target / "gt").mkdir(exist_ok=True)
    drawn = {}
    for path in files:
        item = Item(
            path.stem, target / "lq" / f"{path.stem}.png", target / "gt" / f"{path.stem}.png"
        )
        assert item.gt is not None
        parameters = degrade.draw(preset, np.random.default_rng(_key(seed, path.stem)))
        drawn[path.stem] = asdict(parameters)
        if not (item.lq.exists() and item.gt.exists()):
            gt = np.asarray(_cropped(read_photo(path), side))
            if degrade.PRESETS[preset].sharpen_gt:
                gt = degrade.usm_sharpen(gt)
            save_png(Image.fromarray(gt), item.gt)
            save_png(Image.fromarray(degrade.degrade(gt, parameters)), item.lq)
        yield item
    content = {"preset": preset, "seed": seed, "side": side, "pictures": drawn}
    write_atomically(target / PARAMETERS_FILE, json.dumps(content, indent=1).encode())


def _key(seed: int, name: str) -> list[int]:
    return [seed, int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])]


def _cropped(image: Image.Image, side: int | None, scale: int = 4) -> Image.Image:
    """The centre, each side a multiple of `scale`."""
    if side is None:
        width, height = (length // scale * scale for length in image.size)
    else:
        factor = side / min(image.size)
        resized = tuple(max(side, round(length * factor)) for length in image.size)
        image = image.resize((resized[0], resized[1]), Image.Resampling.BICUBIC)
        width = height = side
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def save_png(image: Image.Image, path: Path) -> None:
    """Write a PNG in one step: a reader finds all of it or nothing."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    image.save(part, "PNG")
    os.replace(part, path)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file in one step."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(content)
    os.replace(part, path)


def describe(dataset: PairedFolder) -> str:
    """The pairing report, for people."""
    paired = sum(item.gt is not None for item in dataset.items)
    lines = [
        f"{dataset.name}: {len(dataset.items)} inputs, {paired} with a reference"
        + (f", {dataset.scale} times as large" if dataset.scale else "")
    ]
    lines += [f"outputs of {name}: {path.name}" for name, path in dataset.saved.items()]
    return "\n".join([*lines, *dataset.problems])


def main(arguments: list[str] | None = None) -> int:
    """`python -m evaluation.datasets FOLDER`: what is in it, and what does not pair up."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.datasets", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    try:
        dataset = open_folder(options.folder)
    except DatasetError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{describe(dataset)}\n")
    return 1 if dataset.problems else 0


if __name__ == "__main__":
    sys.exit(main())
