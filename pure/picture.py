"""A picture while it is being written: its ids, which of them are decided, and its caches.

What plain and parallel decoding share. Ids that are forced (sides, newlines, ends, codes that are
given) are in place from the start; a cell that is not decided holds a draft. Plain decoding never
reads drafts, parallel decoding tries to confirm them. Everything that grows with the picture stays
on the device; `told` is the one place where it is read back.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pure.capture import Reader
from pure.engine import Engine
from pure.grammar import Grammar, Grid, Phase
from pure.model import KVCache
from pure.sampling import Choice, Draws, SamplingConfig, guide, noise


@dataclass(frozen=True)
class Step:
    """One token of the answer.

    Attributes:
        phase: what it is.
        id: the token.
        cell: row and column of a code.
        code: the image code.
        choice: how it was drawn; None where the grammar forced it.
    """

    phase: Phase
    id: int
    cell: tuple[int, int] | None = None
    code: int | None = None
    choice: Choice | None = None


class Picture:
    """One picture of an answer, begin-image to end-turn.

    Args:
        engine: that runs the model.
        grammar: its layout.
        grid: cells of the picture.
        cond: cache of the conditional row, up to some token of the text.
        text: ids of the text that the cache does not hold yet.
        config: how codes are drawn; with guidance 1 there is no unconditional row.
        seed: of the noise, one for all cells or (rows, columns) of them.
        known: codes (rows, columns) to keep, -1 where the model decides.
        positions: (rows, columns) noise keys of the cells; raster order if not given.
        draft: codes (rows, columns) a parallel decoder tries first.

    Attributes:
        open: indices into `ids` of the cells that are not decided yet.
    """

    def __init__(
        self,
        engine: Engine,
        grammar: Grammar,
        grid: Grid,
        cond: KVCache,
        text: Sequence[int],
        config: SamplingConfig,
        *,
        seed: int | Tensor = 0,
        known: Tensor | None = None,
        positions: Tensor | None = None,
        draft: Tensor | None = None,
    ) -> None:
        shape = (grid.rows, grid.columns)
        for name, cells in (("known", known), ("draft", draft), ("noise keys", positions)):
            if cells is not None and tuple(cells.shape) != shape:
                raise ValueError(f"{name} {tuple(cells.shape)} do not fit {grid}")
        self.grammar, self.grid, self.config = grammar, grid, config
        known = torch.full(shape, -1) if known is None else known.cpu()
        draft = torch.zeros(shape, dtype=torch.long) if draft is None else draft.cpu()
        codes = torch.where(known < 0, draft, known)
        self.ids = torch.tensor(
            [*grammar.image(codes), grammar.vocab.end_turn], device=engine.device
        )
        stride = grid.columns + 1
        self.open = [
            3 + row * stride + column
            for row, column in (known < 0).nonzero().tolist()  # in raster order
        ]
        self._drawn = set(self.open)
        self._nats = torch.zeros(len(self.ids), device=engine.device)
        self._k = torch.zeros(len(self.ids), dtype=torch.long, device=engine.device)
        if positions is None:
            positions = torch.arange(grid.rows * grid.columns).view(shape)
        self._positions = positions.tolist()
        self._seeds = seed.tolist() if isinstance(seed, Tensor) else None
        self._seed = 0 if isinstance(seed, Tensor) else seed
        self._races: dict[int, Tensor] = {}
        self._codes = grammar.vocab.code_ids.to(engine.device)
        self._text = torch.tensor(list(text), dtype=torch.long, device=engine.device)
        self.caches = [cond]
        if config.guidance_scale != 1:
            self.caches.append(engine.cache(len(self.ids)))
        self._starts = [cond.length + len(self._text), 0]  # of begin-image in each cache
        self._fed = 0  # ids of the picture that the caches hold
        self._placed = False
        self._told = 0
        self.reads = 0

    @property
    def done(self) -> bool:
        """Whether every cell is decided."""
        return not self.open

    def cell(self, index: int) -> tuple[int, int]:
        """Row and column of an id."""
        return divmod(index - 3, self.grid.columns + 1)

    def window(self, cells: int) -> list[int]:
        """The next open cells, at most so many."""
        return self.open[:cells]

    def rows(self, window: Sequence[int]) -> list[Tensor]:
        """For each cache the ids it needs to predict the cells of a window."""
        new = self.ids[self._fed : window[-1]]
        if self._fed == 0 and len(self._text):
            return [torch.cat([self._text, new]), new][: len(self.caches)]
        return [new] * len(self.caches)

    def before(self, window: Sequence[int], hidden: Sequence[Tensor]) -> list[Tensor]:
        """Of the states after `rows`, those before each cell of the window, for each cache."""
        newest = window[-1] - 1
        if len(window) == window[-1] - window[0] + 1:  # no forced id between: a view
            return [h[-len(window) :] for h in hidden]
        back = torch.tensor([index - 1 - newest - 1 for index in window], device=self.ids.device)
        return [h[back] for h in hidden]

    def races(self, window: Sequence[int], choices: int) -> Tensor:
        """Noise (cells, choices) of a window's cells, drawn once for each cell."""
        rows = []
        for index in window:
            if index not in self._races:
                row, column = self.cell(index)
                seed = self._seeds[row][column] if self._seeds else self._seed
                race = noise(seed, self._positions[row][column], choices)
                self._races[index] = race.to(self.ids.device, non_blocking=True)
            rows.append(self._races[index])
        return torch.stack(rows)

    def put(self, window: Sequence[int], draws: Draws) -> Tensor:
        """Write what was drawn in the cells of a window; (cells,) whether the draft was right."""
        drawn = self._codes[draws.index]
        if len(window) == window[-1] - window[0] + 1:
            at: slice | Tensor = slice(window[0], window[-1] + 1)
        else:
            at = torch.tensor(window, device=self.ids.device)
        right = self.ids[at] == drawn
        self.ids[at], self._nats[at], self._k[at] = drawn, draws.entropy, draws.k
        return right

    def accept(self, cells: int) -> None:
        """Take the next `cells` as decided; the caches forget what was read after them."""
        last = self.open[cells - 1]
        for index in self.open[:cells]:
            self._races.pop(index, None)  # only some decoders race
        del self.open[:cells]
        self._fed = last
        for cache, start in zip(self.caches, self._starts, strict=False):
            cache.truncate(start + last)

    def rows_at(self, places: Tensor) -> tuple[list[Tensor], list[KVCache], list[Tensor]]:
        """Ids, caches and places, as `Engine.hidden_at` takes them, to read single ids."""
        new = self.ids[places]
        ids, at = [new] * len(self.caches), [places + start for start in self._starts]
        if not self._placed and len(self._text):
            text = torch.arange(self._starts[0] - len(self._text), self._starts[0])
            ids[0] = torch.cat([self._text, new])
            at[0] = torch.cat([text.to(places.device), at[0]])
        self._placed = True
        return ids, self.caches, at[: len(self.caches)]

    def settle(self, cells: Sequence[int]) -> None:
        """Take cells anywhere as decided; what the caches hold stays at its places."""
        decided = set(cells)
        self.open = [index for index in self.open if index not in decided]
        for index in cells:
            self._races.pop(index, None)  # only some decoders race

    def told(self) -> Iterator[Step]:
        """The steps that were decided since the last call, up to the last whole row."""
        end = len(self.ids)
        if self.open:
            row, _ = self.cell(self.open[0])
            end = 3 + row * (self.grid.columns + 1)
        if end <= self._told:
            return
        span = slice(self._told, end)
        self._told, start = end, self._told
        self.reads += 1
        facts = torch.stack([self.ids[span].double(), self._nats[span], self._k[span]]).cpu()
        ids, ks = facts[0].long(), facts[2].long()
        codes = self.grammar.vocab.to_codes(ids)
        columns = (ids.tolist(), codes.tolist(), facts[1].tolist(), ks.tolist())
        for index, (token, code, nats, k) in enumerate(zip(*columns, strict=True), start):
            yield self._step(index, token, code, nats, k)

    def _step(self, index: int, token: int, code: int, nats: float, k: int) -> Step:
        if index < 3:
            return Step((Phase.BEGIN_IMAGE, Phase.HEIGHT, Phase.WIDTH)[index], token)
        if index >= len(self.ids) - 2:
            return Step((Phase.END_IMAGE, Phase.END_TURN)[index - len(self.ids) + 2], token)
        row, column = self.cell(index)
        if column == self.grid.columns:
            return Step(Phase.NEWLINE, token)
        choice = Choice(code, nats, k) if index in self._drawn else None
        return Step(Phase.CODE, token, (row, column), code, choice)


def predict(
    engine: Engine,
    pictures: Sequence[Picture],
    windows: Sequence[Sequence[int]],
    reader: Reader | None = None,
) -> Tensor:
    """Guided logits (cells, codes), float32, of every picture's window, in one pass.

    The cells of one picture stand together, in the order of the pictures. All share one guidance.
    With a reader the pass may be a recorded one.
    """
    rows = [picture.rows(w) for picture, w in zip(pictures, windows, strict=True)]
    caches = [cache for picture in pictures for cache in picture.caches]
    read = engine.hidden if reader is None else reader.hidden
    hidden = read([row for part in rows for row in part], caches)
    step = len(pictures[0].caches)
    states = [
        picture.before(window, hidden[step * i : step * (i + 1)])
        for i, (picture, window) in enumerate(zip(pictures, windows, strict=True))
    ]
    logits = engine.image_logits(torch.cat([s[row] for row in range(step) for s in states]))
    if step == 1:
        return logits
    cond, uncond = logits.chunk(2)
    return guide(cond, uncond, pictures[0].config.guidance_scale)
