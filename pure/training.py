"""What the two trainers share: the learning rate, averaged weights, the curve, a saved state.

Knows nothing of models or data; `pure.train_vq` and `pure.train` do.
"""

import csv
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """A run cannot go on as asked; the message says what to change."""


def learning_rate(
    step: int, *, peak: float, warm_up: float, steps: int, floor: float = 0.0
) -> float:
    """Linear warm-up over `warm_up` steps, then half a cosine to `floor` times the peak.

    `step` counts the steps done before; `warm_up` need not be whole. Differs from the published
    schedule, which begins at 0: the first step counts as one step of warm-up, because a step at
    0 changes nothing.
    """
    if step + 1 <= warm_up:
        return peak * (step + 1) / warm_up
    done = min(1.0, max(0.0, step - warm_up) / max(1.0, steps - warm_up))
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


@torch.no_grad()
def update_average(
    average: dict[str, Tensor], state: Mapping[str, Tensor], decay: float, step: int
) -> None:
    """Move averaged weights towards `state`, in place; faster than `decay` in the first steps."""
    decay = min(decay, (1 + step) / (10 + step))
    for key, value in state.items():
        average[key].lerp_(value, 1 - decay)


class Curve:
    """The measured course of a run: `curve.csv`, the log, and TensorBoard if wanted.

    Args:
        out: folder of the run.
        columns: of the table; the first is the step.
        step: steps done; rows of this step and later ones are of a run that was interrupted
            after its last saved state, and are left out.
        tensorboard: also write event files to `out`/tensorboard.

    Raises:
        TrainingError: TensorBoard is wanted and not installed.
    """

    def __init__(
        self, out: Path, columns: Sequence[str], *, step: int = 0, tensorboard: bool = False
    ) -> None:
        self._path, self._columns = out / "curve.csv", list(columns)
        rows = []
        if self._path.exists():
            with self._path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if float(row[columns[0]]) < step]
        with self._path.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        self._events = _event_writer(out / "tensorboard") if tensorboard else None

    def write(self, row: Mapping[str, float]) -> None:
        """Add a row; what is missing stays empty."""
        log.info(" ".join(f"{key}={value:.4g}" for key, value in row.items()))
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)
        if self._events is not None:
            step = int(row[self._columns[0]])
            for key, value in row.items():
                if key != self._columns[0]:
                    self._events.add_scalar(key, value, step)
            self._events.flush()


def _event_writer(folder: Path) -> Any:  # Any: the class is of an optional package
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - optional package
    except ImportError as error:
        raise TrainingError(
            "TensorBoard is not installed: pip install tensorboard, or train without it"
        ) from error
    return SummaryWriter(str(folder))


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Save what a run resumes from; the file appears whole or not at all."""
    temporary = path.with_suffix(".tmp")
    torch.save(dict(state), temporary)
    temporary.replace(path)


def read_state(path: Path) -> dict[str, Any] | None:
    """What `write_state` saved, or None if there is nothing yet."""
    return torch.load(path, weights_only=True) if path.exists() else None
