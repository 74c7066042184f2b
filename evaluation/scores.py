"""Scores of every output in a results folder, each computed once.

`results/<set>/scores.csv` holds a row for every method, picture and metric, with the version of the
metric and a hash of what was compared. A row whose hash or version no longer fits is computed anew
and the old one dropped. Rows are written down as they come, so a killed run loses one at most.
"""

import argparse
import csv
import fcntl
import hashlib
import io
import logging
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from PIL import Image

from evaluation.datasets import write_atomically
from evaluation.metrics import Measure, Metric, MetricError, measure, table
from evaluation.runner import INPUTS, REFERENCES
from imaging.load import PhotoError, read_photo

log = logging.getLogger(__name__)

FILE = "scores.csv"
WHOLE_SET = ""  # in place of a picture's name, for metrics of sets


@dataclass(frozen=True)
class Score:
    """One number.

    Attributes:
        picture: its name, or `WHOLE_SET`.
        version: of the metric.
        key: hash of the files that were compared.
    """

    method: str
    picture: str
    metric: str
    value: float
    version: str
    key: str


HEAD = tuple(field.name for field in fields(Score))


def sets(results: Path) -> list[Path]:
    """The folders of a results folder that hold a set: those with inputs."""
    return sorted(path.parent for path in results.glob(f"*/{INPUTS}") if path.is_dir())


def methods(folder: Path) -> list[str]:
    """Names of the methods with outputs in the folder of a set."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.is_dir()
        and path.name not in (INPUTS, REFERENCES)
        and not path.name.startswith(".")
        and any(path.glob("*.png"))
    )


def read(folder: Path) -> list[Score]:
    """The scores of a set; of several of one thing the last. A row cut short is skipped."""
    try:
        text = (folder / FILE).read_text("utf-8")
    except FileNotFoundError:
        return []
    found = {}
    for row in csv.reader(io.StringIO(text)):
        if len(row) != len(HEAD) or row == list(HEAD):
            continue
        method, picture, metric, value, version, key = row
        try:
            score = Score(method, picture, metric, float(value), version, key)
        except ValueError:
            continue
        found[method, picture, metric] = score
    return [found[place] for place in sorted(found)]


def score(
    folder: Path,
    chosen: Sequence[Metric],
    *,
    device: str = "cpu",
    report: Callable[[str, int, int], None] = lambda method, done, total: None,
) -> list[str]:
    """Compute what is missing for a set; waits if another process is at it.

    Args:
        folder: of the set, as the runner wrote it.
        chosen: metrics that are ready here; those that do not apply, for want of references, are
            passed over.
        device: of the networks among them.
        report: called after each picture with the method, pictures done and pictures in all.

    Returns:
        What could not be computed, a sentence each.

    Raises:
        MetricError: a metric fails to load.
    """
    problems: list[str] = []
    with _exclusive(folder):
        known = {(s.method, s.picture, s.metric): s for s in read(folder)}
        current: dict[tuple[str, str, str], Score] = {}
        loaded: dict[str, Measure] = {}
        with (folder / FILE).open("a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")

            def keep(metric: Metric, method: str, picture: str, key: str, value: float) -> None:
                new = Score(method, picture, metric.name, value, metric.full_version(), key)
                current[method, picture, metric.name] = new
                writer.writerow(astuple(new))
                file.flush()

            def is_known(metric: Metric, method: str, picture: str, key: str) -> bool:
                old = known.get((method, picture, metric.name))
                if old is None or (old.version, old.key) != (metric.full_version(), key):
                    return False
                current[method, picture, metric.name] = old
                return True

            for method in methods(folder):
                outputs = sorted((folder / method).glob("*.png"))
                hashes = {}
                for done, path in enumerate(outputs, 1):
                    compared = _Files()  # several metrics compare the same files
                    hashes[path] = compared.hash(path)
                    for metric in chosen:
                        other = _other(folder, metric, path)
                        if metric.kind == "set" or (
                            other is None and metric.kind != "no reference"
                        ):
                            continue
                        key = _key(hashes[path], None if other is None else compared.hash(other))
                        if is_known(metric, method, path.stem, key):
                            continue
                        if metric.name not in loaded:
                            loaded[metric.name] = measure(metric, device)
                        try:
                            value = loaded[metric.name](
                                compared.picture(path),
                                None if other is None else compared.picture(other),
                            )
                        except (MetricError, PhotoError) as error:
                            problems.append(f"{metric.title} of {method}, {path.stem}: {error}")
                            continue
                        keep(metric, method, path.stem, key, value)
                    report(method, done, len(outputs))
                references = folder / REFERENCES
                for metric in chosen:
                    if metric.of_sets is None or not references.is_dir():
                        continue
                    key = _key(*hashes.values(), *map(_hash, sorted(references.glob("*.png"))))
                    if is_known(metric, method, WHOLE_SET, key):
                        continue
                    try:
                        value = metric.of_sets(folder / method, references, device)
                    except ValueError as error:
                        problems.append(f"{metric.title} of {method}: {error}.")
                        continue
                    keep(metric, method, WHOLE_SET, key, value)
        # Scores of metrics not asked for this time stay; those of pictures that went do not.
        asked = {metric.name for metric in chosen}
        for place, old in known.items():
            there = (folder / old.method / f"{old.picture}.png").exists()
            if old.metric not in asked and (there or old.picture == WHOLE_SET):
                current[place] = old
        write_atomically(folder / FILE, _csv(current[place] for place in sorted(current)))
    return problems


def _other(folder: Path, metric: Metric, output: Path) -> Path | None:
    """What a metric compares an output with."""
    if metric.kind == "no reference":
        return None
    path = folder / (INPUTS if metric.kind == "input" else REFERENCES) / output.name
    return path if path.exists() else None


class _Files:
    """Reads each file once."""

    def __init__(self) -> None:
        self.hashes: dict[Path, str] = {}
        self.pictures: dict[Path, Image.Image] = {}

    def hash(self, path: Path) -> str:
        if path not in self.hashes:
            self.hashes[path] = _hash(path)
        return self.hashes[path]

    def picture(self, path: Path) -> Image.Image:
        if path not in self.pictures:
            self.pictures[path] = read_photo(path)
        return self.pictures[path]


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _key(*hashes: str | None) -> str:
    return hashlib.sha256(" ".join(h or "-" for h in hashes).encode()).hexdigest()[:16]


def _csv(rows: Iterable[Score]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEAD)
    writer.writerows(astuple(row) for row in rows)
    return text.getvalue().encode()


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    with (folder / f".{FILE}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def means(scores: Iterable[Score]) -> dict[tuple[str, str], tuple[float, int]]:
    """Mean and number of pictures by method and metric; identical pictures' 80 dB included."""
    groups: dict[tuple[str, str], list[float]] = {}
    for s in scores:
        groups.setdefault((s.method, s.metric), []).append(s.value)
    return {
        place: (math.fsum(values) / len(values), len(values)) for place, values in groups.items()
    }


def choose(names: Iterable[str] | None) -> list[Metric]:
    """The metrics of these names, or all that are ready here.

    Raises:
        MetricError: one is unknown or not ready.
    """
    metrics = table()
    if names is None:
        return [metric for metric in metrics.values() if metric.missing() is None]
    chosen = []
    for name in names:
        if name not in metrics:
            raise MetricError(f"There is no metric {name!r}; there are {', '.join(metrics)}.")
        if (reason := metrics[name].missing()) is not None:
            raise MetricError(f"{metrics[name].title} {reason}.")
        chosen.append(metrics[name])
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: score every set of a results folder."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.scores", description="Score every output of a results folder."
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("--metrics", help="names, separated by commas; all that are ready if none")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)

    def report(method: str, done: int, total: int) -> None:
        if done in (1, total) or done % 20 == 0:
            sys.stderr.write(f"{method} {done}/{total}\n")

    try:
        chosen = choose(options.metrics.split(",") if options.metrics else None)
        folders = sets(options.results)
        if not folders:
            raise MetricError(f"{options.results} holds no results; make some: evaluation.runner.")
        problems = []
        for folder in folders:
            sys.stderr.write(f"{folder.name}\n")
            problems += score(folder, chosen, device=options.device, report=report)
    except MetricError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    for folder in folders:
        for (method, metric), (mean, n) in sorted(means(read(folder)).items()):
            sys.stdout.write(f"{folder.name}\t{method}\t{metric}\t{mean:.4f}\t{n}\n")
    return 1 if problems else 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    sys.exit(main())
