"""The shipped gallery: scenes that were restored before, read from a folder.

    gallery.json             the scenes; made by `python -m tools.gallery`
    <scene>/<method>.png     the restorations

The index names every picture relative to its folder, so input and reference may lie elsewhere.
"""

import json
from pathlib import Path
from typing import Any

from ui.viewer import Metric, Picture, Scene

INDEX = "gallery.json"
KEYS = "gallery/"  # what the keys of these scenes begin with


class GalleryError(ValueError):
    """A gallery that cannot be shown; the message says which file and why."""


def read(folder: Path) -> dict[str, Scene]:
    """The scenes of a folder by key, in the order of its index; none if there is no index.

    Raises:
        GalleryError: the index or a picture is not what it should be.
    """
    index = folder / INDEX
    if not index.exists():
        return {}
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))["scenes"]
        scenes = [_scene(entry, folder) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GalleryError(f"{index} cannot be shown: {error!r}") from error
    return {scene.key: scene for scene in scenes}


def _scene(entry: dict[str, Any], folder: Path) -> Scene:
    pictures = [Picture(folder / entry["lq"], "Input", "lq")]
    for method in entry["methods"]:
        pictures.append(
            Picture(
                folder / method["file"],
                method["title"],
                metrics=tuple(Metric(**metric) for metric in method["metrics"]),
                seconds=method["seconds"],
                parameters=method["parameters"],
            )
        )
    if entry["gt"] is not None:
        pictures.append(Picture(folder / entry["gt"], "Reference", "gt"))
    return Scene(tuple(pictures), key=KEYS + entry["name"], title=entry["title"], linked=True)
