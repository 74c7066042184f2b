"""The shipped gallery: scenes that were restored before, read from a folder.

    gallery.json             the scenes; made by `python -m tools.gallery`
    <scene>/<method>.png     the restorations

The index names every picture relative to its folder, so input and reference may lie elsewhere.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from evaluation import metrics
from evaluation.report import DIGITS, Row, Summary
from evaluation.scores import Score
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
    entries = _entries(folder)
    try:
        scenes = [_scene(entry, folder) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GalleryError(f"{folder / INDEX} cannot be shown: {error!r}") from error
    return {scene.key: scene for scene in scenes}


def numbers(folder: Path, name: str) -> Summary | None:
    """What was measured on the scenes that have a reference; None if there are none.

    Raises:
        GalleryError: as `read`.
    """
    entries = [entry for entry in _entries(folder) if entry.get("gt") is not None]
    if not entries:
        return None
    try:
        return _summary(entries, name)
    except (KeyError, TypeError) as error:
        raise GalleryError(f"{folder / INDEX} cannot be read: {error!r}") from error


def _summary(entries: list[dict[str, Any]], name: str) -> Summary:
    by_method: dict[str, list[dict[str, Any]]] = {}
    scores = []
    for entry in entries:
        for method in entry["methods"]:
            by_method.setdefault(method["name"], []).append(method)
            scores += [
                Score(method["name"], entry["name"], metric, value, "", "")
                for metric, value in method["scores"].items()
            ]
    rows = []
    for method, outputs in by_method.items():
        measured = set.intersection(*(set(output["scores"]) for output in outputs))
        seconds = [o["seconds"] for o in outputs if o["seconds"] is not None]
        card = outputs[0]["card"]
        rows.append(
            Row(
                method=method,
                title=outputs[0]["title"],
                family=card["family"],
                parameters=outputs[0]["parameters"],
                seconds=statistics.median(seconds) if seconds else None,
                where=card["device"],
                means={m: statistics.fmean(o["scores"][m] for o in outputs) for m in measured},
                count=len(outputs),
                details=card["details"],
            )
        )
    return Summary(
        name, len(entries), entries[0]["methods"][0]["card"]["scale"], tuple(rows), tuple(scores)
    )


def _entries(folder: Path) -> list[dict[str, Any]]:
    index = folder / INDEX
    if not index.exists():
        return []
    try:
        return json.loads(index.read_text(encoding="utf-8"))["scenes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GalleryError(f"{index} cannot be shown: {error!r}") from error


def shown_scores(values: dict[str, float]) -> tuple[Metric, ...]:
    """Scores by metric as the viewer shows them, in the order of the table of metrics."""
    return tuple(
        Metric(metric.title, values[name], metric.better, DIGITS.get(name, 4))
        for name, metric in metrics.table().items()
        if name in values
    )


def _scene(entry: dict[str, Any], folder: Path) -> Scene:
    pictures = [Picture(folder / entry["lq"], "Input", "lq")]
    for method in entry["methods"]:
        pictures.append(
            Picture(
                folder / method["file"],
                method["title"],
                metrics=shown_scores(method["scores"]),
                seconds=method["seconds"],
                parameters=method["parameters"],
            )
        )
    if entry["gt"] is not None:
        pictures.append(Picture(folder / entry["gt"], "Reference", "gt"))
    return Scene(tuple(pictures), key=KEYS + entry["name"], title=entry["title"], linked=True)
