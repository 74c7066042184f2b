"""Pairs from folders of photographs of any layout, made as they are needed or baked to disk.

Pair number i is a pure function of the settings, the list of files and i. Baked pairs are the
same pairs, written out: whoever reads them gets the same pixels. LSDIR and the first 10,000 faces
of FFHQ, as the paper uses them, are two folders:

    python -m pure.pairs --gt LSDIR --gt FFHQ:10000 --out data/pairs
"""

import argparse
import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from accelerate.utils import get_int_from_env
from PIL import Image, ImageOps

from imaging.degrade import DegradationParameters
from pure.data import Crop, Pair, Photo, make_pair

log = logging.getLogger(__name__)

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
BAKED = 1000  # pairs in one folder


class PairsError(ValueError):
    """Photographs or pairs cannot be used as asked; the message says why."""


@dataclass(frozen=True)
class PairSettings:
    """How pairs are made of crops.

    Attributes:
        size: side of the reference, pixels.
        heavy: share of pairs degraded by the preset "realesrgan".
        graded: share degraded by "graded"; the others by "mild".
        sharpen: 1 sharpens references where the preset expects it.
    """

    size: int = 512
    heavy: float = 1.0
    graded: float = 0.0
    sharpen: int = 1
    seed: int = 0


class Crops(Protocol):
    """Numbered crops."""

    def crop(self, index: int) -> Crop:
        """Crop number `index`."""
        ...


class PairSource(Protocol):
    """Numbered pairs."""

    def pair(self, index: int) -> Pair:
        """Pair number `index`."""
        ...


class MadePairs:
    """Pairs made when asked for."""

    def __init__(self, crops: Crops, settings: PairSettings) -> None:
        self.crops, self.settings = crops, settings

    def pair(self, index: int) -> Pair:
        s = self.settings
        rng = np.random.default_rng([s.seed, 11, index])
        place = rng.random()
        preset = "mild"
        if place < s.heavy:
            preset = "realesrgan"
        elif place < s.heavy + s.graded:
            preset = "graded"
        seed = int(rng.integers(2**31))
        return make_pair(self.crops.crop(index), seed, preset, sharpen=bool(s.sharpen))


@dataclass(frozen=True)
class PhotoFile:
    """A photograph in a folder: `id` is its path within the folder, the folder's name first."""

    id: str
    path: Path


def photo_files(folders: Iterable[tuple[Path, int | None]]) -> list[PhotoFile]:
    """The photographs of some folders and all below them, sorted by path within each.

    Args:
        folders: each with how many of its first photographs to take, None for all.

    Raises:
        PairsError: a folder holds none, or two folders have one name.
    """
    folders = list(folders)
    if len({folder.name for folder, _ in folders}) < len(folders):
        raise PairsError("two of the folders have the same name, so their photos would, too")
    files = []
    for folder, limit in folders:
        paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in ENDINGS)[:limit]
        if not paths:
            raise PairsError(f"there is no photograph in {folder}")
        names = (path.relative_to(folder).as_posix() for path in paths)
        files += [PhotoFile(f"{folder.name}/{n}", p) for n, p in zip(names, paths, strict=True)]
    return files


def list_hash(files: Sequence[PhotoFile]) -> str:
    """SHA-256 of the ids in order: what "photograph number i" means."""
    return hashlib.sha256("\n".join(file.id for file in files).encode()).hexdigest()


def read_upright(path: Path) -> np.ndarray:
    """Pixels of a photograph, uint8 (H, W, 3) RGB, turned as its Exif says."""
    with Image.open(path) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


class FolderCrops:
    """Random crops of photographs in folders, one photograph after the other.

    Crop i is of photograph i modulo their number, so every pass over them sees each once, at
    another place. As SeeSR makes them: cut at full resolution, mirrored half the time; a photo
    smaller than the crop is continued by reflection. A file that cannot be read is replaced by
    the one before it, with a warning, as in the published data loader.
    """

    def __init__(self, files: Sequence[PhotoFile], size: int, *, seed: int) -> None:
        self.files, self.size, self.seed = files, size, seed

    def __len__(self) -> int:
        return len(self.files)

    def crop(self, index: int) -> Crop:
        """Crop number `index`.

        Raises:
            PairsError: no file can be read.
        """
        rng = np.random.default_rng([self.seed, index])
        photo = self._photo(index % len(self.files))
        pixels = photo.pixels
        missing = [max(0, self.size - side) for side in pixels.shape[:2]]
        if any(missing):
            pixels = np.pad(pixels, [(0, missing[0]), (0, missing[1]), (0, 0)], mode="reflect")
        top, left = (int(rng.integers(side - self.size + 1)) for side in pixels.shape[:2])
        pixels = pixels[top : top + self.size, left : left + self.size]
        if rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        return Crop(photo, np.ascontiguousarray(pixels))

    def _photo(self, number: int) -> Photo:
        for i in range(number, number - len(self.files), -1):
            file = self.files[i]
            try:
                return Photo(file.id, "", (), False, read_upright(file.path))
            except (OSError, ValueError, Image.DecompressionBombError) as error:
                log.warning("%s cannot be read (%s): taking the one before it", file.path, error)
        raise PairsError(f"none of the {len(self.files)} photographs can be read")


class BakedPairs:
    """Pairs written by `bake`.

    Raises:
        PairsError: the folder is not complete.
    """

    def __init__(self, folder: Path) -> None:
        description = folder / "pairs.json"
        if not description.exists():
            raise PairsError(f"{folder} has no pairs.json: it is not, or not completely, baked")
        self.folder = folder
        self.description = json.loads(description.read_text())
        self._records: dict[int, list[dict[str, Any]]] = {}

    def __len__(self) -> int:
        return int(self.description["pairs"])

    def pair(self, index: int) -> Pair:
        """Pair number `index` modulo their number."""
        block, place = divmod(index % len(self), BAKED)
        if block not in self._records:
            text = (self.folder / f"{block:05d}.jsonl").read_text()
            self._records = {block: [json.loads(line) for line in text.splitlines()]}
        record = self._records[block][place]
        gt, lq = (
            read_upright(self.folder / f"{block:05d}" / f"{place:03d}_{side}.png")
            for side in ("gt", "lq")
        )
        crop = Crop(Photo(record["photo"], "", (), False, gt), gt)
        return Pair(crop, lq, DegradationParameters.from_dict(record["parameters"]))


def bake(
    pairs: PairSource,
    count: int,
    out: Path,
    description: dict[str, Any],
    *,
    rank: int = 0,
    ranks: int = 1,
) -> None:
    """Write the first `count` pairs as PNG with their parameters; blocks that are there are kept.

    Of `ranks` processes each takes every `ranks`-th block. `description` says what pairs are made
    of; `pairs.json` repeats it and is written when all blocks are there.

    Raises:
        PairsError: the folder holds pairs made otherwise.
    """
    out.mkdir(parents=True, exist_ok=True)
    blocks = -(-count // BAKED)
    description = description | {"pairs": count}
    for block in range(rank, blocks, ranks):
        done = out / f"{block:05d}.jsonl"
        if done.exists():
            _check_same(json.loads(done.with_suffix(".json").read_text()), description, done)
            continue
        folder = out / f"{block:05d}"
        folder.mkdir(exist_ok=True)
        lines = []
        for index in range(block * BAKED, min((block + 1) * BAKED, count)):
            pair = pairs.pair(index)
            for side, pixels in (("gt", pair.crop.pixels), ("lq", pair.small)):
                Image.fromarray(pixels).save(folder / f"{index % BAKED:03d}_{side}.png")
            record = {"photo": pair.crop.photo.id, "parameters": asdict(pair.parameters)}
            lines.append(json.dumps(record))
        done.with_suffix(".json").write_text(json.dumps(description))
        temporary = done.with_suffix(".tmp")
        temporary.write_text("\n".join(lines) + "\n")
        temporary.replace(done)
        log.info("block %d of %d", block + 1, blocks)
    if all((out / f"{block:05d}.jsonl").exists() for block in range(blocks)):
        temporary = out / f"pairs.{rank}.tmp"  # several processes may get here at once
        temporary.write_text(json.dumps(description, indent=1) + "\n")
        temporary.replace(out / "pairs.json")


def _check_same(there: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    if there != wanted:
        changed = sorted(k for k in there.keys() | wanted.keys() if there.get(k) != wanted.get(k))
        raise PairsError(
            f"{path} was made with another {', '.join(changed)}; remove it or use another folder"
        )


def folder_argument(text: str) -> tuple[Path, int | None]:
    """`PATH` or `PATH:N`, the first N photographs of a folder."""
    path, _, limit = text.rpartition(":")
    return (Path(path), int(limit)) if path and limit.isdigit() else (Path(text), None)


def ranks_from_launcher() -> tuple[int, int]:
    """This process and the number of processes, as torchrun, accelerate or MPI say; else 0, 1."""
    rank = get_int_from_env(["RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK"], 0)
    return rank, get_int_from_env(["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"], 1)


def add_rank_arguments(parser: argparse.ArgumentParser) -> None:
    """`--rank` and `--ranks`, by default the launcher's."""
    rank, ranks = ranks_from_launcher()
    parser.add_argument("--rank", type=int, default=rank, help="this process; the launcher's")
    parser.add_argument("--ranks", type=int, default=ranks, help="processes; the launcher's")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--gt", type=folder_argument, action="append", required=True, help="PATH or PATH:FIRST_N"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--passes", type=int, default=1, help="pairs made of each photograph")
    add_rank_arguments(parser)
    defaults = asdict(PairSettings())
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    arguments = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    settings = PairSettings(**{name: arguments[name] for name in defaults})
    try:
        files = photo_files(arguments["gt"])
        description = {"settings": asdict(settings), "photos": len(files), "list": list_hash(files)}
        bake(
            MadePairs(FolderCrops(files, settings.size, seed=settings.seed), settings),
            arguments["passes"] * len(files),
            arguments["out"],
            description,
            rank=arguments["rank"],
            ranks=arguments["ranks"],
        )
    except PairsError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
