"""Decoding many codes in one pass, with the result of decoding them one by one.

A window of cells that are not decided yet is filled with drafts and read in one pass, which
predicts all of them. Every cell has its own noise, keyed by seed and place, so what plain decoding
would draw there follows from the logits alone. The first cell's context is decided, so its draw
is what plain decoding would draw; if the draft was the same, so is the next cell's context, and
so on until the first draft that was wrong. What was drawn after it becomes the next draft: the
noise stays, so it changes only where the new context changes the distribution enough.

Nothing is approximated: the ids are those of plain decoding whatever the drafts and the window,
as long as the model rounds alike for one token and for many (`Engine.exact`). With top-1 sampling
this is Jacobi decoding as it is usually meant.

Sources: Teng et al. 2024 (speculative Jacobi decoding); the coupling by common noise follows the
idea of its successors. Differs from them: drafts need no distribution, because a draft is accepted
if it is the very draw, not by a ratio.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pure.engine import Engine
from pure.picture import Picture, predict
from pure.sampling import SamplingConfig, draw

LEAST_WINDOW, FIRST_WINDOW, MOST_WINDOW = 8, 16, 32
LOOK_AHEAD = 4.0  # windows of this many times what was lately accepted
MEMORY = 0.8  # weight of the past in what was lately accepted


class Window:
    """How many cells to try at once.

    Args:
        cells: fixed number; None adapts it to what was lately accepted.
    """

    def __init__(self, cells: int | None = None) -> None:
        if cells is not None and cells < 1:
            raise ValueError(f"a window has at least 1 cell, not {cells}")
        self._fixed = cells
        self._accepted = FIRST_WINDOW / LOOK_AHEAD

    @property
    def cells(self) -> int:
        """The next window."""
        if self._fixed is not None:
            return self._fixed
        return min(max(round(LOOK_AHEAD * self._accepted), LEAST_WINDOW), MOST_WINDOW)

    def learn(self, accepted: int) -> None:
        """Take note of how many cells a pass decided."""
        self._accepted = MEMORY * self._accepted + (1 - MEMORY) * accepted


def parallel(
    engine: Engine, pictures: Sequence[Picture], config: SamplingConfig, cells: int | None = None
) -> Iterator[list[int]]:
    """Write pictures, one pass at a time.

    Args:
        engine: that runs the model.
        pictures: to be completed, with the sampling of `config`.
        config: how codes are drawn.
        cells: the window; None adapts it, for each picture by itself.

    Yields:
        Cells that each unfinished picture decided in a pass. Reading them back is the one
        synchronisation of a pass.
    """
    windows = {id(picture): Window(cells) for picture in pictures}
    while active := [picture for picture in pictures if not picture.done]:
        spans = [picture.window(windows[id(picture)].cells) for picture in active]
        logits = predict(engine, active, spans)
        races = torch.cat(
            [p.races(span, logits.shape[-1]) for p, span in zip(active, spans, strict=True)]
        )
        draws = draw(logits, config, races)
        counts, at = [], 0
        for picture, span in zip(active, spans, strict=True):
            right = picture.put(span, draws[at : at + len(span)])
            counts.append(_leading(right))
            at += len(span)
        accepted = [
            min(right + 1, len(span))  # the first wrong draft's cell has its true code now
            for right, span in zip(torch.stack(counts).tolist(), spans, strict=True)
        ]
        for picture, n in zip(active, accepted, strict=True):
            picture.accept(n)
            windows[id(picture)].learn(n)
        yield accepted


def _leading(right: Tensor) -> Tensor:
    """How many are true before the first that is not: (n,) bool to a scalar on the device."""
    return right.long().cumprod(0).sum()
