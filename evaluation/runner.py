"""Run methods over a set of pictures, once, into a results folder.

    results/<set>/lq/<picture>.png         the inputs, as the methods got them
    results/<set>/gt/<picture>.png         the references, if there are any
    results/<set>/<method>/<picture>.png   the outputs
    results/<set>/<method>/<picture>.json  how each came about: its run card
    results/<set>/<method>/seconds.jsonl   how long each took, and where

All but the measured seconds is a function of pictures, methods and seed. A picture counts as done
when its run card is there, which is written last and in one step; whoever finds it missing makes
it, whether the program was killed in between or not. Several processes share a folder: each takes
what no other holds a lock on, and the system drops the locks of the dead. Needs a POSIX system.
"""

import argparse
import fcntl
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

import torch
from PIL import Image

from baselines import precomputed, registry, remote
from baselines.base import (
    Method,
    MethodError,
    MethodUnavailableError,
    Restorer,
    pixels_sha256,
    run,
)
from baselines.diffusion.sources import DEFAULT_FOLDER
from evaluation.datasets import (
    DatasetError,
    Item,
    PairedFolder,
    describe,
    open_folder,
    synthesise,
)
from imaging.load import PhotoError, read_photo

log = logging.getLogger(__name__)

INPUTS, REFERENCES = "lq", "gt"  # folders beside those of the methods
SECONDS = "seconds.jsonl"
WORK = ".work"  # unfinished files and locks; gone when a run is complete
TERMINAL_SECONDS, LOG_SECONDS = 0.2, 15.0  # between lines of progress


class RunnerError(RuntimeError):
    """A run that cannot start or go on; the message says what to change."""


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        done: pictures of all methods that are finished, whoever made them.
        method: at work, for people.
        made: pictures of this method that this run made.
        seconds: since it began with this method, loading included.
    """

    done: int
    total: int
    method: str
    made: int
    seconds: float

    @property
    def remaining_seconds(self) -> float | None:
        """If all goes on at this method's pace; None before its first picture."""
        if not self.made:
            return None
        return (self.total - self.done) * self.seconds / self.made


@dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes:
        made: pictures.
        found: pictures that were there already, or made by others meanwhile.
        failures: method, picture and reason.
    """

    made: int
    found: int
    failures: tuple[tuple[str, str, str], ...]


def run_all(
    dataset: PairedFolder,
    methods: Sequence[Method],
    out: Path,
    *,
    seed: int = 0,
    device: str = "cpu",
    report: Callable[[Progress], None] = lambda progress: None,
) -> Summary:
    """Restore every picture of a set with every method, a method at a time.

    What is done already, by an earlier run or by another process, is not done again.

    Args:
        dataset: the pictures.
        methods: that can run here.
        out: the results folder; made if it is not there.
        seed: handed to every method.
        device: methods are loaded onto.
        report: called after each picture.

    Raises:
        RunnerError: a method does not fit the set, or `out` holds results of something else.
        MethodUnavailableError: a method cannot be loaded.
    """
    _check(dataset, methods)
    return _Run(dataset, out, seed, device, report).all(methods)


class _Run:
    """One process at work in a results folder."""

    def __init__(
        self,
        dataset: PairedFolder,
        out: Path,
        seed: int,
        device: str,
        report: Callable[[Progress], None],
    ) -> None:
        self.dataset, self.folder = dataset, out / dataset.name
        self.work = self.folder / WORK
        self.seed, self.device, self.report = seed, device, report
        self.done = self.made = self.total = 0
        self.method_began, self.made_before = 0.0, 0
        self.failures: list[tuple[str, str, str]] = []

    def all(self, methods: Sequence[Method]) -> Summary:
        self.total = len(methods) * len(self.dataset.items)
        for item in self.dataset.items:
            self._keep_sources(item)
        for method in methods:
            self._one_method(method)
        self._clean()
        return Summary(self.made, self.done - self.made, tuple(self.failures))

    def _one_method(self, method: Method) -> None:
        folder = self.folder / method.name
        folder.mkdir(parents=True, exist_ok=True)
        self.method_began, self.made_before = time.monotonic(), self.made
        restorer: Restorer | None = None
        busy: list[Item] = []
        # First what is free; then what others held, waiting for them: if they died, it is ours.
        for items, wait in ((self.dataset.items, False), (busy, True)):
            for item in items:
                if self._is_done(method, item):
                    self._tell(method)
                    continue
                with self._claim(f"{method.name}--{item.name}", wait=wait) as mine:
                    if not mine:
                        busy.append(item)
                        continue
                    if not self._is_done(method, item):
                        restorer = restorer or method.load(self.device)
                        self._make(method, restorer, item)
                self._tell(method)

    def _make(self, method: Method, restorer: Restorer, item: Item) -> None:
        try:
            restoration, card = run(
                method, restorer, read_photo(item.lq), seed=self.seed, device=self.device
            )
        except (MethodError, PhotoError) as error:
            self.failures.append((method.name, item.name, str(error)))
            return
        folder = self.folder / method.name
        if restoration.seconds is not None:
            _append(
                folder / SECONDS,
                {
                    "picture": item.name,
                    "seconds": round(restoration.seconds, 4),
                    "device": self.device,
                    "threads": torch.get_num_threads(),
                },
            )
        self._save(restoration.image, folder / f"{item.name}.png")
        content = json.dumps(card.to_dict(), indent=2, ensure_ascii=False) + "\n"
        self._replace(folder / f"{item.name}.json", lambda part: part.write_text(content, "utf-8"))
        self.made += 1

    def _is_done(self, method: Method, item: Item) -> bool:
        """Whether the output is there.

        Raises:
            RunnerError: it is, but of another input, seed or setting.
        """
        path = self.folder / method.name / f"{item.name}.json"
        try:
            card = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            return False
        if not path.with_suffix(".png").exists():
            return False
        here = {
            "input_sha256": pixels_sha256(read_photo(item.lq)),
            "seed": self.seed,
            "scale": method.scale,
            "source": method.source,
        }
        if other := [key for key, value in here.items() if card.get(key) != value]:
            raise RunnerError(
                f"{path} is of another {', '.join(other)} than this run. A results folder holds "
                "one of each: choose another one with --out, or delete that one."
            )
        return True

    def _keep_sources(self, item: Item) -> None:
        """Put input and reference beside the results, which are read without the set."""
        for kind, source in ((INPUTS, item.lq), (REFERENCES, item.gt)):
            target = self.folder / kind / f"{item.name}.png"
            if source is None or target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with self._claim(f"{kind}--{item.name}", wait=True):
                if not target.exists():
                    self._save(read_photo(source), target)

    def _save(self, image: Image.Image, path: Path) -> None:
        self._replace(path, lambda part: image.save(part, "PNG"))

    def _replace(self, path: Path, write: Callable[[Path], object]) -> None:
        """Write a file in one step. Whoever calls holds its lock, so the name is its own."""
        part = self.work / f"{path.parent.name}--{path.name}.part"
        write(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())  # else a power cut may leave the name without the content
        os.replace(part, path)

    @contextmanager
    def _claim(self, name: str, *, wait: bool) -> Iterator[bool]:
        """Hold the lock of a piece of work; yields whether it was got."""
        path = self.work / f"{name}.lock"
        while True:
            self.work.mkdir(parents=True, exist_ok=True)
            try:
                file = path.open("a")
            except FileNotFoundError:  # another process has just cleaned up
                continue
            with file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                except BlockingIOError:
                    yield False
                    return
                if not _is_same(file, path):  # its holder finished and removed it meanwhile
                    continue
                try:
                    yield True
                finally:
                    path.unlink(missing_ok=True)
                return

    def _clean(self) -> None:
        """Remove what killed processes left in the work folder, unless others still work there."""
        for path in sorted(self.work.glob("*.lock")):
            with self._claim(path.stem, wait=False):
                pass  # got means its holder is dead; giving it back removes it
        with suppress(OSError):
            if not any(self.work.glob("*.lock")):
                for part in self.work.glob("*.part"):
                    part.unlink(missing_ok=True)
            self.work.rmdir()

    def _tell(self, method: Method) -> None:
        self.done += 1
        seconds = time.monotonic() - self.method_began
        made = self.made - self.made_before
        self.report(Progress(self.done, self.total, method.title, made, seconds))


def _is_same(file: TextIO, path: Path) -> bool:
    """Whether an open file still is what the path names."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _append(path: Path, record: dict[str, str | float]) -> None:
    """Add a line in one write, so that lines of several processes do not mix."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def _check(dataset: PairedFolder, methods: Sequence[Method]) -> None:
    for method in methods:
        if method.random:
            raise RunnerError(f"{method.title}: its pictures are no results and are not kept.")
        if method.name in (INPUTS, REFERENCES) or not _is_plain(method.name):
            raise RunnerError(f"{method.name!r} cannot be the name of a method's folder.")
        if dataset.scale is not None and method.scale != dataset.scale:
            raise RunnerError(
                f"{method.title} enlarges {method.scale} times; the references of {dataset.name} "
                f"are {dataset.scale} times as large as its inputs."
            )


def _is_plain(name: str) -> bool:
    return bool(name) and not name.startswith((".", "-")) and not set(name) & set("/\\\0,=")


def seconds(folder: Path) -> dict[str, float]:
    """Seconds a method took for each picture, from its folder of results; the last measurement.

    A line cut short by a kill is skipped.
    """
    found = {}
    with suppress(FileNotFoundError):
        for line in (folder / SECONDS).read_text("utf-8").splitlines():
            with suppress(json.JSONDecodeError, KeyError):
                record = json.loads(line)
                found[record["picture"]] = float(record["seconds"])
    return found


class ProgressLine:
    """Progress for people: one line that is redrawn, or in a log a line now and then."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.redraws = stream.isatty()
        self.last = -LOG_SECONDS

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        every = TERMINAL_SECONDS if self.redraws else LOG_SECONDS
        if now - self.last < every and progress.done < progress.total:
            return
        self.last = now
        left = progress.remaining_seconds
        line = (
            f"{progress.done}/{progress.total} {progress.method}, "
            f"{'no estimate yet' if left is None else f'{clock(left)} left'}"
        )
        if not self.redraws:
            self.stream.write(f"{line}\n")
        else:
            width = 24
            filled = width * progress.done // max(1, progress.total)
            bar = "█" * filled + "·" * (width - filled)
            end = "\n" if progress.done == progress.total else ""
            self.stream.write(f"\r\x1b[2K{bar} {line}{end}")
        self.stream.flush()


def clock(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min, 2 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def available(
    dataset: PairedFolder,
    saved: Mapping[str, Path],
    endpoints: Mapping[str, str],
    *,
    weights: Path = DEFAULT_FOLDER,
) -> dict[str, Method]:
    """Every method by name: ours, the set's saved outputs, and what the caller brings along.

    Outputs that lie in the set under the name of a method of ours are called that and "-saved".

    Raises:
        RunnerError: what the caller brings along has the name of another method.
    """
    own = registry.discover(weights=weights)
    inputs = [item.lq for item in dataset.items]
    methods = dict(own)
    for name, path in dataset.saved.items():
        ours = own.get(name)
        key = f"{name}-saved" if ours else name
        methods[key] = precomputed.method(
            key,
            path,
            inputs,
            title=f"{ours.title} (saved outputs)" if ours else "",
            scale=dataset.scale or 4,
            parameters=ours.parameters if ours else None,
        )
    brought = [
        *(
            precomputed.method(name, path, inputs, scale=dataset.scale or 4)
            for name, path in saved.items()
        ),
        *(remote.method(name, address) for name, address in endpoints.items()),
    ]
    for method in brought:
        if method.name in methods:
            raise RunnerError(
                f"There is a method called {method.name!r} already; call what you bring along "
                "with --saved or --remote something else."
            )
        methods[method.name] = method
    return registry.joined(methods.values())


def device_of_this_process(device: str) -> str:
    """The device, and of several GPUs the one `accelerate launch` gave to this process."""
    if device != "cuda":
        return device
    from accelerate.utils import get_int_from_env  # noqa: PLC0415 - seconds, for GPUs only

    return f"cuda:{get_int_from_env(['LOCAL_RANK'], 0)}"


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.runner",
        description="Restore every picture of a set with every method, into a results folder.",
    )
    parser.add_argument("dataset", type=Path, help="folder of the set, see evaluation.datasets")
    parser.add_argument("--methods", required=True, help="names, separated by commas")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--name", help="of the set in the results, if not the folder's")
    parser.add_argument("--limit", type=int, help="only the first so many pictures")
    parser.add_argument(
        "--saved",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="a folder or zip of outputs as a method; folders results_NAME of a set are found",
    )
    parser.add_argument(
        "--remote",
        action="append",
        default=[],
        metavar="NAME=ADDRESS",
        help="a Space id or URL as a method; see baselines.remote",
    )
    parser.add_argument(
        "--weights", type=Path, default=DEFAULT_FOLDER, help="folder of the diffusion methods'"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU, for every method")
    parser.add_argument(
        "--degrade",
        type=Path,
        metavar="REFERENCES",
        help="first make the set from this folder of references",
    )
    parser.add_argument("--preset", default="realesrgan", help="of --degrade")
    parser.add_argument("--side", type=int, help="of --degrade: the centre square of this side")
    return parser


def named(pairs: Sequence[str], option: str) -> dict[str, str]:
    """NAME=VALUE options by name.

    Raises:
        RunnerError: one has no name or no value.
    """
    found = {}
    for text in pairs:
        name, _, value = text.partition("=")
        if not (_is_plain(name) and value):
            raise RunnerError(f"{option} takes NAME=VALUE, not {text!r}.")
        found[name] = value
    return found


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 if every picture is done, 1 if not."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        if options.degrade is not None:
            for _ in synthesise(
                options.degrade,
                options.dataset,
                preset=options.preset,
                seed=options.seed,
                side=options.side,
            ):
                pass
        dataset = open_folder(options.dataset, name=options.name)
        sys.stderr.write(f"{describe(dataset)}\n")
        saved = {name: Path(path) for name, path in named(options.saved, "--saved").items()}
        endpoints = named(options.remote, "--remote")
        everything = available(dataset, saved, endpoints, weights=options.weights)
        methods = registry.choose(options.methods.split(","), everything)
        if options.limit is not None:
            dataset = replace(dataset, items=dataset.items[: options.limit])
        summary = run_all(
            dataset,
            methods,
            options.out,
            seed=options.seed,
            device=device_of_this_process(options.device),
            report=ProgressLine(sys.stderr),
        )
    except (DatasetError, MethodUnavailableError, RunnerError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    for method, picture, reason in summary.failures:
        sys.stderr.write(f"{method}, {picture}: {reason}\n")
    sys.stderr.write(
        f"{summary.made} made, {summary.found} there already, {len(summary.failures)} failed\n"
    )
    return 1 if summary.failures else 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    sys.exit(main())
