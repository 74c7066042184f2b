"""Saved outputs as a method, under any name: for what this machine cannot run.

A folder or a zip of pictures, matched by name to the inputs they were made from. Such a method
knows these inputs only, by their pixels, and says nothing about time.
"""

import zipfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path, PurePosixPath

from PIL import Image

from baselines.base import (
    Method,
    MethodError,
    MethodUnavailableError,
    Restoration,
    no_gpu,
    pixels_sha256,
)
from imaging.load import PhotoError, read_photo
from imaging.pairing import pair

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
MAX_ENTRY_BYTES = 60_000_000  # of a picture inside a zip, unpacked; as `read_photo` accepts

Read = Callable[[], bytes]


class Precomputed:
    """Hands out saved pictures by what they were made from."""

    def __init__(self, name: str, title: str, outputs: dict[str, tuple[str, Read]]) -> None:
        """By the pixels of the input: the name of the saved file, and how to read it."""
        self.name, self.title, self.outputs = name, title, outputs

    def restore(self, lq: Image.Image, *, seed: int = 0) -> Restoration:
        found = self.outputs.get(pixels_sha256(lq))
        if found is None:
            raise MethodError(
                f"{self.title} has saved outputs of {len(self.outputs)} pictures only, and this is "
                "none of them."
            )
        file, read = found
        try:
            image = read_photo(read())
        except (OSError, zipfile.BadZipFile, PhotoError) as error:
            raise MethodError(f"{self.title}: {file} cannot be read. {error}") from error
        return Restoration(image, self.name, seed, None, details={"file": file})


def method(
    name: str,
    outputs: Path,
    inputs: Iterable[Path],
    *,
    title: str = "",
    scale: int = 4,
    parameters: int | None = None,
    source: str = "",
    licence: str = "",
) -> Method:
    """The card of saved outputs.

    Args:
        name: key in files and tables.
        outputs: a folder or a zip, sub-folders included.
        inputs: the pictures the outputs were made from; matched by name, see `imaging.pairing`.
        title: for people; the name if not given.
        scale: of the outputs, relative to the inputs.
        parameters: of the method that made them, if known.
        source: who made them.
        licence: of the outputs.
    """
    inputs = tuple(inputs)
    return Method(
        name,
        title or name,
        "other",
        scale,
        partial(_load, name=name, title=title or name, outputs=outputs, inputs=inputs),
        missing=partial(_missing, title or name, outputs),
        concurrent=True,
        parameters=parameters,
        source=source or f"saved outputs: {outputs.name}",
        licence=licence,
        preprocessing="unknown: saved outputs",
        postprocessing="unknown: saved outputs",
        gpu_seconds=no_gpu,
        order=60,
    )


def _load(
    device: str, *, name: str, title: str, outputs: Path, inputs: tuple[Path, ...]
) -> Precomputed:
    """Match outputs to inputs; the device does not matter.

    Raises:
        MethodUnavailableError: the outputs are not there, or none belongs to an input.
    """
    del device
    if (reason := _missing(title, outputs)) is not None:
        raise MethodUnavailableError(reason)
    try:
        saved = _zip_files(outputs) if outputs.is_file() else _folder_files(outputs)
    except (OSError, zipfile.BadZipFile) as error:
        raise MethodUnavailableError(
            f"{title}: {outputs} cannot be read ({error}). Expected is a folder or a zip of "
            "pictures."
        ) from error
    by_name = {path.name: path for path in inputs}
    pairs = pair(by_name, saved).pairs
    if not pairs:
        raise MethodUnavailableError(
            f"{title}: none of the {len(saved)} pictures in {outputs} has the name of one of the "
            f"{len(by_name)} inputs."
        )
    return Precomputed(
        name,
        title,
        {
            pixels_sha256(read_photo(by_name[left])): (right, saved[right])
            for left, right in pairs.items()
        },
    )


def _missing(title: str, outputs: Path) -> str | None:
    if outputs.exists():
        return None
    return f"{title} needs its saved outputs in {outputs}, which is not there."


def _folder_files(folder: Path) -> dict[str, Read]:
    return {
        path.name: path.read_bytes
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES and path.is_file()
    }


def _zip_files(archive: Path) -> dict[str, Read]:
    with zipfile.ZipFile(archive) as file:
        return {
            PurePosixPath(info.filename).name: partial(_zip_entry, archive, info.filename)
            for info in file.infolist()
            if PurePosixPath(info.filename).suffix.lower() in SUFFIXES
            and not info.filename.startswith("__MACOSX/")
        }


def _zip_entry(archive: Path, name: str) -> bytes:
    """One entry, unpacked in memory; nothing is extracted, so names cannot lead astray."""
    with zipfile.ZipFile(archive) as file, file.open(name) as entry:
        data = entry.read(MAX_ENTRY_BYTES + 1)
    if len(data) > MAX_ENTRY_BYTES:
        raise PhotoError(f"It unpacks to more than {MAX_ENTRY_BYTES / 1e6:.0f} MB.")
    return data
