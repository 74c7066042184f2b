"""Which weights a method needs, on which terms, which are here, and fetching the rest.

`python -m baselines.weights METHOD [--dir DIR] [--check]`. Covers every module of this package that
lists its weights as `PARTS`.
"""

import argparse
import importlib
import logging
import pkgutil
import sys
from collections.abc import Mapping
from pathlib import Path

import baselines
from baselines.diffusion.sources import DEFAULT_FOLDER, FetchError, Part, fetch

log = logging.getLogger(__name__)


def needs() -> dict[str, tuple[Part, ...]]:
    """The parts each method needs, by its name."""
    found: dict[str, tuple[Part, ...]] = {}
    for info in pkgutil.iter_modules(baselines.__path__):
        module = importlib.import_module(f"{baselines.__name__}.{info.name}")
        if hasattr(module, "PARTS"):
            found[module.METHOD.name] = module.PARTS
    return found


def report(parts: tuple[Part, ...], weights: Path) -> list[str]:
    """A line per part: what it is, its terms, and whether it is there."""
    lines = []
    for part in parts:
        absent = part.absent(weights)
        if not absent:
            state = "there"
        elif len(absent) == len(part.files):
            state = f"missing, about {part.gigabytes:g} GB"
        else:
            state = f"missing: {', '.join(absent)}"
        terms = f"{part.licence}; commercial use: {part.commercial}"
        lines.append(f"{part.title} ({weights / part.folder}): {state}. Licence: {terms}.")
    return lines


def complete(parts: tuple[Part, ...], weights: Path) -> list[str]:
    """Fetch what is missing; a sentence for each part that could not be fetched."""
    problems = []
    for part in parts:
        try:
            fetch(part, weights)
        except FetchError as error:
            problems.append(str(error))
    return problems


def main(
    arguments: list[str] | None = None, *, methods: Mapping[str, tuple[Part, ...]] | None = None
) -> int:
    """Command line; 0 if everything is there afterwards, else 1.

    Args:
        arguments: as typed; those of the process if not given.
        methods: parts by method; those of this package if not given.
    """
    methods = needs() if methods is None else methods
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method", choices=[*methods])
    parser.add_argument("--dir", type=Path, default=DEFAULT_FOLDER, help="the weights folder")
    parser.add_argument("--check", action="store_true", help="only say what is there")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    parts = methods[options.method]
    for line in report(parts, options.dir):
        log.info("%s", line)
    if not options.check:
        for problem in complete(parts, options.dir):
            log.info("%s", problem)
    return int(any(part.absent(options.dir) for part in parts))


if __name__ == "__main__":
    sys.exit(main())
