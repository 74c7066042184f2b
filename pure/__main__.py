"""Restore photos from the command line: `python -m pure INPUT OUTPUT`.

What the model saw goes to standard output, progress and complaints to standard error. The exit
code is 0 if every photo was restored, 1 if some were not, 2 if the command itself makes no sense.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

# Read when torch is imported: docs/decisions/0032-threads-that-do-not-wait-long.md
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import torch
from PIL import Image

from imaging.load import ACCEPTED, OPENED_AS, PhotoError, read_photo
from imaging.maps import heat_map, over_picture
from pure.belief import BeliefError
from pure.checkpoint import CheckpointError
from pure.decode import PARALLEL, PLAIN, ROWS, DecoderConfig, Mode
from pure.pipeline import (
    SCALES,
    ColourFix,
    Done,
    Guidance,
    PureOutput,
    PurePipeline,
    RestoreError,
    RestoreSettings,
    Row,
)
from pure.sampling import SamplingError

FAILED, USAGE, STOPPED = 1, 2, 130
DECODERS = {config.mode: config for config in (PLAIN, PARALLEL, ROWS)}
SPARSE = 0.25  # share of a photo between two progress lines where lines cannot be rewritten
# Read by what is inside; in a folder these endings say which files are meant as photos. HEIC is
# not read, and named rather than passed over.
HEIC = (".heic", ".heif")


class UsageError(ValueError):
    """A command that makes no sense; the message says what to change."""


@dataclass(frozen=True)
class Job:
    """One photo and where its results go."""

    source: Path
    target: Path
    entropy: Path | None


class Progress:
    """How far a photo is, on standard error: a line rewritten on a terminal, else a few lines."""

    def __init__(self) -> None:
        self._rewrites = sys.stderr.isatty()
        self._next = SPARSE
        self._width = 0

    def show(self, name: str, share: float) -> None:
        line = f"{name}: {share:.0%}"
        if self._rewrites:
            sys.stderr.write(f"\r{line:<{self._width}}")
            sys.stderr.flush()
            self._width = len(line)
        elif share >= self._next:
            sys.stderr.write(f"{line}\n")
            self._next += SPARSE

    def end(self) -> None:
        """Leave the line empty and start anew."""
        if self._width:
            sys.stderr.write(f"\r{'':<{self._width}}\r")
        self._next, self._width = SPARSE, 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m pure",
        description="Restore a photo, or every photo of a folder, with PURE or PURE-nano.",
        epilog=f"Read are {ACCEPTED}; written is PNG.",
    )
    result.add_argument("input", type=Path, help="a photo, or a folder of photos")
    result.add_argument("output", type=Path, help="a .png file, or a folder")
    result.add_argument(
        "--checkpoint",
        default="nano",
        help='"nano", a folder in the released format, or a hub id (default: nano)',
    )
    result.add_argument("--scale", type=int, default=4, choices=SCALES, help="default: 4")
    result.add_argument("--seed", type=int, default=0, help="of the sampling (default: 0)")
    result.add_argument(
        "--sampling", default="dynamic", help="dynamic[:K_MAX], top1 or topk:K (default: dynamic)"
    )
    result.add_argument(
        "--guidance",
        default="full",
        choices=get_args(Guidance),
        help="what is written before the picture: label and caption, one of them, or nothing",
    )
    result.add_argument(
        "--decoder",
        choices=get_args(Mode),
        help="plain and parallel write the same picture, one code or many at a time; rows is "
        "approximate: another picture, sooner (default: parallel where it is exact)",
    )
    result.add_argument("--colour-fix", default="wavelet", choices=get_args(ColourFix))
    result.add_argument("--label", metavar="TEXT", help="instead of what the model perceives")
    result.add_argument("--caption", metavar="TEXT", help="instead of what the model understands")
    result.add_argument(
        "--entropy",
        type=Path,
        metavar="MAP",
        help="also write how unsure each code was: a .png file, or a folder if INPUT is one",
    )
    result.add_argument("--json", action="store_true", help="one JSON object a photo, on stdout")
    result.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    return result


def plan(source: Path, target: Path, entropy: Path | None) -> tuple[list[Job], list[str]]:
    """What is to be done, and a sentence for each photo of a folder that cannot be.

    Raises:
        UsageError: the paths contradict each other.
    """
    if source.is_dir():
        return _plan_folder(source, target, entropy)
    if not source.exists():
        raise UsageError(f"{source} does not exist.")
    if target.is_dir():
        target = target / f"{source.stem}.png"
    job = Job(source, target, entropy)
    for result in (target, entropy):
        if result is None:
            continue
        if result.suffix.lower() != ".png":
            raise UsageError(f"{result} does not end in .png, the only format that is written.")
        if _same(result, source):
            raise UsageError(f"{result} is the input and would be overwritten; name another file.")
    if entropy and _same(entropy, target):
        raise UsageError(f"{entropy} cannot hold the photo and its entropy; name two files.")
    return [job], []


def _plan_folder(source: Path, target: Path, entropy: Path | None) -> tuple[list[Job], list[str]]:
    folders = [("the photos", source), ("the results", target)]
    folders += [("the entropy maps", entropy)] if entropy else []
    for i, (what, folder) in enumerate(folders):
        if not folder.is_dir() and (folder.exists() or folder.suffix.lower() == ".png"):
            raise UsageError(f"{folder} is no folder, and {source} is one; name a folder.")
        for other, earlier in folders[:i]:
            if _same(folder, earlier):
                raise UsageError(f"{folder} cannot hold both {other} and {what}; name another.")
    endings = {
        ending for ending, name in Image.registered_extensions().items() if name in OPENED_AS
    }
    names = sorted(p for p in source.iterdir() if p.is_file() and not p.name.startswith("."))
    photos = [p for p in names if p.suffix.lower() in endings.union(HEIC)]
    if not photos:
        raise UsageError(f"{source} holds no photo. Read are {ACCEPTED}.")
    jobs: dict[str, Job] = {}
    problems = []
    for photo in photos:
        name = f"{photo.stem}.png"
        if name in jobs:
            problems.append(
                f"{photo}: {jobs[name].source.name} already becomes {name}; rename one of them."
            )
            continue
        jobs[name] = Job(photo, target / name, entropy / name if entropy else None)
    return list(jobs.values()), problems


def _same(one: Path, other: Path) -> bool:
    """Whether two paths are one file, also through links."""
    if one.exists() and other.exists():
        return one.samefile(other)
    return one.resolve() == other.resolve()


def save(image: Image.Image, path: Path) -> None:
    """Write a PNG in one step, so that nobody ever sees half of it.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        image.save(partial, "PNG")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def run(
    pipeline: PurePipeline, job: Job, settings: RestoreSettings, decoder: DecoderConfig | None
) -> dict[str, Any]:
    """Restore one photo, write what was asked for, and tell about it as JSON would.

    Raises:
        PhotoError, RestoreError, BeliefError, OSError: it could not be done.
    """
    start = time.perf_counter()
    photo = read_photo(job.source)
    progress = Progress()
    output: PureOutput | None = None
    try:
        for event in pipeline.stream(photo, settings, preview_seconds=None, decoder=decoder):
            if isinstance(event, Row):
                progress.show(str(job.source), event.done)
            elif isinstance(event, Done):
                output = event.output
    finally:
        progress.end()
    assert output is not None
    if job.entropy:
        save(entropy_map(output, pipeline), job.entropy)
    save(output.image, job.target)
    return {
        "input": str(job.source),
        "output": str(job.target),
        "entropy": str(job.entropy) if job.entropy else None,
        "label": output.belief.label,
        "caption": output.belief.caption,
        "seed": settings.seed,
        "seconds": {"total": round(time.perf_counter() - start, 3)}
        | {phase: round(seconds, 3) for phase, seconds in output.seconds.items()},
        "steps": output.steps,
        "passes": output.passes,
        "decoder": output.decoder.mode,
        "approximate": output.approximate,
        "checkpoint": output.checkpoint,
        "scale": settings.scale,
        "size": list(output.image.size),
    }


def entropy_map(output: PureOutput, pipeline: PurePipeline) -> Image.Image:
    """Entropy of each code, from 0 nats in dark blue to that of a blind guess in yellow."""
    vq = pipeline.checkpoint.vq
    cells = heat_map(output.entropy, 0, math.log(vq.config.codebook_size))
    return over_picture(cells, vq.factor, output.image.size)


def _settings(arguments: argparse.Namespace) -> RestoreSettings:
    return RestoreSettings(
        scale=arguments.scale,
        seed=arguments.seed,
        sampling=arguments.sampling,
        guidance=arguments.guidance,
        colour_fix=arguments.colour_fix,
        label=arguments.label,
        caption=arguments.caption,
    )


def _pipeline(arguments: argparse.Namespace) -> PurePipeline:
    if arguments.device != "cpu" and not torch.cuda.is_available():
        raise UsageError("There is no CUDA device here; use --device cpu.")
    pipeline = PurePipeline.from_pretrained(arguments.checkpoint, device=arguments.device)
    for text in (arguments.label, arguments.caption):
        if text is not None:  # a word nobody knows is said once, not for every photo
            pipeline.checkpoint.text.answer(text.strip())
    return pipeline


def _complain(sentence: object) -> None:
    sys.stderr.write(f"{sentence}\n")


def _told(about: dict[str, Any], *, as_json: bool) -> str:
    if as_json:
        return json.dumps(about, ensure_ascii=False)
    belief = " ".join(f"{about['label']} {about['caption']}".split())  # on one line
    note = " (approximate: written by rows)" if about["approximate"] else ""
    return f"{about['output']}: {belief or 'restored without label and caption'}{note}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = parser().parse_args(argv)
    try:
        jobs, problems = plan(arguments.input, arguments.output, arguments.entropy)
        settings = _settings(arguments)
        pipeline = _pipeline(arguments)
    except (UsageError, SamplingError, RestoreError, BeliefError, CheckpointError) as error:
        _complain(error)
        return USAGE
    for problem in problems:
        _complain(problem)
    failed = bool(problems)
    for job in jobs:
        try:
            about = run(pipeline, job, settings, DECODERS.get(arguments.decoder))
        except (PhotoError, RestoreError, BeliefError) as error:
            _complain(f"{job.source}: {error}")
            failed = True
        except OSError as error:  # of writing: reading has become a PhotoError
            _complain(f"{job.source}: the result cannot be written ({error.strerror or error}).")
            failed = True
        except KeyboardInterrupt:
            _complain("Stopped.")
            return STOPPED
        else:
            sys.stdout.write(_told(about, as_json=arguments.json) + "\n")
            sys.stdout.flush()
    return FAILED if failed else 0


if __name__ == "__main__":
    sys.exit(main())
