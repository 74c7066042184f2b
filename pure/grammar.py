"""How a sequence is laid out, and which tokens may come next.

A conversation is one prompt (instruction, low-quality picture) and one answer: degradation
label, caption, restored picture. The grammar is the only thing that restricts what the model
may write; sampling never sees an id it does not allow.

    prompt   bos  text  image  end-turn
    answer   label. caption  image  end-turn
    image    begin  height  width  (code × columns  newline) × rows  end

Differs from the published code: the grid of the answer is forced to that of the input, the
text may not contain image codes, and the final end-turn is forced. There, height and width
are sampled over the whole vocabulary, so a wrong or endless picture can come out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from pure.vocab import GRID_PIXELS, Vocab


class GrammarError(ValueError):
    """A sequence breaks the layout."""


class Phase(StrEnum):
    """What the next token of an answer is."""

    LABEL = "label"
    CAPTION = "caption"
    BEGIN_IMAGE = "begin-image"
    HEIGHT = "height"
    WIDTH = "width"
    CODE = "code"
    NEWLINE = "newline"
    END_IMAGE = "end-image"
    END_TURN = "end-turn"
    DONE = "done"


@dataclass(frozen=True)
class Grid:
    """The code grid of a picture: rows × columns of cells."""

    rows: int
    columns: int

    @property
    def body(self) -> int:
        """Tokens between the side tokens and the end: codes and newlines."""
        return self.rows * (self.columns + 1)


@dataclass(frozen=True)
class Expected:
    """What may come next: one forced id, or a choice among `ids`.

    Attributes:
        phase: what the token is.
        forced: the only id allowed, if there is only one.
        ids: the allowed ids (N,), int64, ascending by code or id; None when forced.
        cell: row and column of a code.
    """

    phase: Phase
    forced: int | None = None
    ids: Tensor | None = None
    cell: tuple[int, int] | None = None


class Grammar:
    """The layout over one vocabulary and one cell size.

    Args:
        vocab: the token ids.
        factor: pixels along a code cell; a side token counts 32 px, so `32 // factor` cells.
        form: the ids allowed at each place of the model's own text, for a model whose texts all
            have one form and length; without it, any text.

    Raises:
        GrammarError: the form allows what is no text, or nothing.
    """

    def __init__(
        self, vocab: Vocab, factor: int = 8, form: Sequence[Sequence[int]] | None = None
    ) -> None:
        self.vocab = vocab
        self.cells = GRID_PIXELS // factor
        self.text_choices = torch.tensor(sorted([*vocab.text, vocab.begin_image]))
        if form is not None and not all(set(ids) and set(ids) <= set(vocab.text) for ids in form):
            raise GrammarError("a form allows some text ids at every place, and nothing else")
        self.form = None if form is None else [torch.tensor(sorted(set(ids))) for ids in form]

    def own_text(self, written: Sequence[int]) -> Tensor | None:
        """What the model may write after a text that was begun; None if it is complete.

        A text that does not begin as the form wants it, because a person wrote it, goes on freely.
        """
        form = self.form
        if form is None or len(written) > len(form):
            return self.text_choices
        if not all(token in ids for token, ids in zip(written, form, strict=False)):
            return self.text_choices
        return form[len(written)] if len(written) < len(form) else None

    def check(self, grid: Grid) -> None:
        """Raise GrammarError unless the grid can be written with side tokens."""
        longest = len(self.vocab.grids) * self.cells
        for side in (grid.rows, grid.columns):
            if side % self.cells or not 0 < side <= longest:
                raise GrammarError(
                    f"a grid of {grid.rows} × {grid.columns} cells cannot be written: sides are "
                    f"multiples of {self.cells} up to {longest}"
                )

    def opening(self, grid: Grid) -> list[int]:
        """The first three ids of an image: begin, height, width. Height comes first."""
        self.check(grid)
        grids = self.vocab.grids
        sides = [grids[side // self.cells - 1] for side in (grid.rows, grid.columns)]
        return [self.vocab.begin_image, *sides]

    def image(self, codes: Tensor) -> list[int]:
        """Ids of a whole image, begin to end, from its codes (rows, columns)."""
        rows, columns = codes.shape
        newline = torch.full((rows, 1), self.vocab.newline)
        body = torch.cat([self.vocab.to_ids(codes.cpu()), newline], dim=1)  # (rows, columns + 1)
        return [*self.opening(Grid(rows, columns)), *body.flatten().tolist(), self.vocab.end_image]

    def read_image(self, ids: Sequence[int]) -> Tensor:
        """Codes (rows, columns) of an image written as ids, begin to end.

        Raises:
            GrammarError: the ids are no complete image.
        """
        vocab = self.vocab
        if len(ids) < 4 or ids[0] != vocab.begin_image or ids[-1] != vocab.end_image:
            raise GrammarError("an image starts with begin-image and ends with end-image")
        try:
            rows, columns = ((vocab.grids.index(i) + 1) * self.cells for i in ids[1:3])
        except ValueError:
            raise GrammarError(f"ids {ids[1]}, {ids[2]} are no side tokens") from None
        if len(ids) != rows * (columns + 1) + 4:
            raise GrammarError(
                f"a {rows} × {columns} image has {rows * (columns + 1) + 4} ids, not {len(ids)}"
            )
        if not all(0 <= i < vocab.size for i in ids):
            raise GrammarError(f"ids lie in 0..{vocab.size - 1}")
        body = torch.tensor(list(ids[3:-1])).view(rows, columns + 1)
        codes = vocab.to_codes(body[:, :-1])
        if (body[:, -1] != vocab.newline).any() or (codes < 0).any():
            raise GrammarError("every row is image codes and one newline")
        return codes

    def prompt(self, instruction: Sequence[int], codes: Tensor) -> list[int]:
        """Ids of the human turn: bos, instruction, picture, end-turn."""
        return [self.vocab.bos, *instruction, *self.image(codes), self.vocab.end_turn]

    def answer(self, text: Sequence[int], codes: Tensor) -> list[int]:
        """Ids of a complete answer, for training: text, picture, end-turn."""
        return [*text, *self.image(codes), self.vocab.end_turn]


class Answer:
    """An answer being written: says what may come next and takes what came.

    Args:
        grammar: the layout.
        grid: the grid of the picture to come.
        text: ids of a text that is given (label, caption, both or nothing); None lets the
            model write its own.
        begun: ids the model's own text begins with.
        label_only: end the model's own text after its first sentence, the label.
        text_limit: tokens after which the model's own text is ended.
        known: codes (rows, columns) already decided, -1 where the model decides.
    """

    def __init__(
        self,
        grammar: Grammar,
        grid: Grid,
        *,
        text: Sequence[int] | None = None,
        begun: Sequence[int] = (),
        label_only: bool = False,
        text_limit: int = 512,
        known: Tensor | None = None,
    ) -> None:
        grammar.check(grid)
        if known is not None and known.shape != (grid.rows, grid.columns):
            raise ValueError(f"known codes {tuple(known.shape)} do not fit {grid}")
        self.grammar = grammar
        self.grid = grid
        self.ids: list[int] = []
        self._given = None if text is None else list(text)
        self._begun = list(begun)
        self._label_only = label_only
        self._limit = text_limit
        self._known = None if known is None else known.tolist()
        self._labelled = False
        self._begin: int | None = None  # index of begin-image
        self._opening = grammar.opening(grid)

    @property
    def text(self) -> list[int]:
        """The ids of label and caption so far."""
        return self.ids[: self._begin]

    @property
    def done(self) -> bool:
        """Whether nothing may follow."""
        return self.expected().phase is Phase.DONE

    def expected(self) -> Expected:
        """What may come next."""
        if self._begin is None:
            return self._expected_text()
        return self._expected_image(len(self.ids) - self._begin)

    def _expected_text(self) -> Expected:
        vocab, n = self.grammar.vocab, len(self.ids)
        phase = Phase.CAPTION if self._labelled else Phase.LABEL
        if self._given is not None:
            if n < len(self._given):
                return Expected(phase, forced=self._given[n])
        elif n < len(self._begun):
            return Expected(phase, forced=self._begun[n])
        elif n < self._limit and not (self._label_only and self._labelled):
            choices = self.grammar.own_text(self.ids)
            if choices is not None and len(choices) == 1:
                return Expected(phase, forced=int(choices))
            if choices is not None:
                return Expected(phase, ids=choices)
        return Expected(Phase.BEGIN_IMAGE, forced=vocab.begin_image)

    def _expected_image(self, n: int) -> Expected:
        """`n` ids of the image are there, begin-image included."""
        vocab, grid = self.grammar.vocab, self.grid
        if n < 3:
            return Expected((Phase.HEIGHT, Phase.WIDTH)[n - 1], forced=self._opening[n])
        row, column = divmod(n - 3, grid.columns + 1)
        if row < grid.rows and column == grid.columns:
            return Expected(Phase.NEWLINE, forced=vocab.newline)
        if row < grid.rows:
            known = self._known[row][column] if self._known else -1
            forced = vocab.codes[known] if known >= 0 else None
            ids = vocab.code_ids if forced is None else None
            return Expected(Phase.CODE, forced=forced, ids=ids, cell=(row, column))
        if n == grid.body + 3:
            return Expected(Phase.END_IMAGE, forced=vocab.end_image)
        if n == grid.body + 4:
            return Expected(Phase.END_TURN, forced=vocab.end_turn)
        return Expected(Phase.DONE)

    def push(self, token: int) -> None:
        """Take the next id.

        Raises:
            GrammarError: it may not stand here.
        """
        expected = self.expected()
        allowed = token == expected.forced or (
            expected.ids is not None and bool((expected.ids == token).any())
        )
        if not allowed:
            raise GrammarError(f"id {token} may not stand where {expected.phase} is expected")
        if self._begin is None:
            if token == self.grammar.vocab.begin_image:
                self._begin = len(self.ids)
            elif token in self.grammar.vocab.sentence_ends:
                self._labelled = True
        self.ids.append(token)
