"""Decoding: a conversation about one picture, written token by token or many at once.

The prompt is read once, then the model writes its belief, then the picture. Both guidance rows go
through the model in one pass; they have caches of their own, so the unconditional one starts at
begin-image with position 0, as published. Ids that the grammar forces are not decided but appended
to the next pass, and so is the text that precedes the picture.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from pure.capture import Reader, recorder
from pure.engine import Engine
from pure.grammar import Answer, Grammar, Grid, Phase
from pure.jacobi import parallel
from pure.picture import Picture, Step, predict
from pure.rows import rows
from pure.sampling import SamplingConfig, draw

Mode = Literal["plain", "parallel", "rows"]


@dataclass(frozen=True)
class DecoderConfig:
    """How a picture is written. Which ids come out does not depend on it, except in "rows".

    Attributes:
        mode: "plain" decides one code a pass, "parallel" as many as it can confirm, "rows" one in
            each of several rows, which is approximate: another picture, sooner.
        window: codes tried at once in "parallel"; None adapts it.
        batch: tiles of a photo written in one pass; each needs caches of its own.
    """

    mode: Mode = "plain"
    window: int | None = None
    batch: int = 1

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"decoding is {', '.join(get_args(Mode))}, not {self.mode!r}")
        if self.window is not None and self.window < 1:
            raise ValueError(f"a window has at least 1 code, not {self.window}")
        if self.batch < 1:
            raise ValueError(f"a batch has at least 1 tile, not {self.batch}")

    @property
    def approximate(self) -> bool:
        """Whether the picture is another one than plain decoding writes."""
        return self.mode == "rows"


PLAIN, PARALLEL = DecoderConfig("plain"), DecoderConfig("parallel", batch=4)
ROWS = DecoderConfig("rows")


def plain(
    engine: Engine, pictures: Sequence[Picture], config: SamplingConfig
) -> Iterator[list[int]]:
    """Write pictures one code at a time, each in every pass; yields as `jacobi.parallel` does.

    Nothing is read back from the device. On a GPU passes are recorded and replayed.
    """
    reader = Reader(engine, recorder(engine))
    while active := [picture for picture in pictures if not picture.done]:
        spans = [picture.window(1) for picture in active]
        logits = predict(engine, active, spans, reader)
        races = torch.cat(
            [p.races(span, logits.shape[-1]) for p, span in zip(active, spans, strict=True)]
        )
        draws = draw(logits, config, races)
        for i, (picture, span) in enumerate(zip(active, spans, strict=True)):
            picture.put(span, draws[i : i + 1])
            picture.accept(1)
        yield [1] * len(active)


def write(
    engine: Engine,
    pictures: Sequence[Picture],
    decoder: DecoderConfig = PLAIN,
    *,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[int, Step]]:
    """Write pictures together.

    Args:
        engine: that runs the model.
        pictures: not finished yet; they share one sampling.
        decoder: how.
        stop: asked before every pass; the pictures stay unfinished when it says so.

    Yields:
        The number of a picture and its next step, a whole row of it at a time.
    """
    config = pictures[0].config
    if any(picture.config != config for picture in pictures):
        raise ValueError("pictures written together share one sampling")
    if decoder.mode == "plain":
        passes = plain(engine, pictures, config)
    elif decoder.mode == "rows":
        passes = rows(engine, pictures, config)
    else:
        passes = parallel(engine, pictures, config, decoder.window)
    while not stop() and next(passes, None) is not None:
        for number, picture in enumerate(pictures):
            if not picture.done:
                yield from ((number, step) for step in picture.told())
    for number, picture in enumerate(pictures):
        yield from ((number, step) for step in picture.told())


class Conversation:
    """The model's reading of one picture, and the answers it gives.

    The prompt's cache is kept, so a second answer (another seed, other sampling) costs no second
    reading, and of a text only what differs from the last one is read.

    Args:
        engine: that runs the model.
        grammar: its layout.
        prompt: ids of the human turn.
        grid: code grid of the answer.
        text_limit: longest text the model may write.
    """

    def __init__(
        self,
        engine: Engine,
        grammar: Grammar,
        prompt: Sequence[int],
        grid: Grid,
        *,
        text_limit: int = 512,
    ) -> None:
        self.engine = engine
        self.grammar = grammar
        self.prompt = list(prompt)
        self.grid = grid
        self.text_limit = text_limit
        self._cond = engine.cache(len(self.prompt) + text_limit + grid.body + 5)
        self._text: list[int] = []  # what follows the prompt in the cache, as far as it reaches
        ids = torch.tensor(self.prompt, device=engine.device)
        [self._after_prompt] = engine.hidden([ids], [self._cond], last=True)  # (1, hidden)

    @property
    def bytes(self) -> int:
        """Size of the cache that is kept."""
        return self._cond.bytes

    def fork(self) -> "Conversation":
        """The same conversation with a cache of its own, copied, so that both can go on."""
        twin = object.__new__(Conversation)
        twin.__dict__.update(self.__dict__)
        twin._cond = self.engine.cache(self._cond.capacity)
        twin._cond.copy(self._cond, min(self._cond.length, len(self.prompt) + len(self._text)))
        twin._text = list(self._text)
        return twin

    def _keep(self, text: Sequence[int], most: int) -> int:
        """Cut the cache to what it shares with prompt and `text`: how much of the text, <= most."""
        held = self._text[: self._cond.length - len(self.prompt)]
        shared = 0
        while shared < min(most, len(held)) and held[shared] == text[shared]:
            shared += 1
        self._cond.truncate(len(self.prompt) + shared)
        self._text = list(text)
        return shared

    def _after(self, text: Sequence[int]) -> Tensor:
        """Hidden state (1, hidden) after prompt and text."""
        if not text:
            self._keep(text, 0)
            return self._after_prompt
        shared = self._keep(text, len(text) - 1)  # the last is read again, for its state
        ids = torch.tensor(text[shared:], device=self.engine.device)
        return self.engine.hidden([ids], [self._cond], last=True)[0]

    def _check(self, text: Sequence[int]) -> None:
        if len(text) > self.text_limit:
            raise ValueError(f"{len(text)} ids of text exceed the limit of {self.text_limit}")

    def write_text(self, *, given: Sequence[int] = (), label_only: bool = False) -> Iterator[Step]:
        """The model's own label and caption, its most likely token each time.

        Where the grammar leaves one token nothing is asked; it is read with the next question.

        Args:
            given: ids the text begins with, for example of an edited label.
            label_only: stop after the first sentence.
        """
        self._check(given)
        answer = Answer(
            self.grammar,
            self.grid,
            begun=given,
            label_only=label_only,
            text_limit=self.text_limit,
        )
        for token in given:
            phase = answer.expected().phase
            answer.push(token)
            yield Step(phase, token)
        while (expected := answer.expected()).phase is not Phase.BEGIN_IMAGE:
            if expected.forced is not None:
                token = expected.forced
            else:
                assert expected.ids is not None
                logits = self.engine.logits(self._after(answer.ids))[0]
                choices = expected.ids.to(self.engine.device)
                token = int(choices[logits[choices].argmax()])
            if token == self.grammar.vocab.begin_image:
                return
            answer.push(token)
            yield Step(expected.phase, token)

    def picture(
        self,
        text: Sequence[int],
        config: SamplingConfig,
        *,
        seed: int | Tensor = 0,
        known: Tensor | None = None,
        positions: Tensor | None = None,
        draft: Tensor | None = None,
    ) -> Picture:
        """The picture after a text, not yet written. The conversation has one at a time.

        Args:
            text: ids of label and caption, possibly none.
            config: how codes are drawn.
            seed: of the noise, one for all cells or (rows, columns) of them.
            known: codes (rows, columns) to keep, -1 where the model decides.
            positions: (rows, columns) noise keys of the cells; raster order if not given.
            draft: codes (rows, columns) to try first; those of the prompt's picture if not given.
        """
        self._check(text)
        Answer(self.grammar, self.grid, text=text)  # refuses a grid that cannot be written
        shared = self._keep(text, len(text))
        return Picture(
            self.engine,
            self.grammar,
            self.grid,
            self._cond,
            text[shared:],
            config,
            seed=seed,
            known=known,
            positions=positions,
            draft=self.seen() if draft is None else draft,
        )

    def seen(self) -> Tensor | None:
        """Codes of the prompt's picture, if it has the grid of the answer."""
        begin = self.prompt.index(self.grammar.vocab.begin_image)
        codes = self.grammar.read_image(self.prompt[begin:-1])
        return codes if codes.shape == (self.grid.rows, self.grid.columns) else None

    def restore(
        self,
        text: Sequence[int],
        config: SamplingConfig,
        *,
        seed: int | Tensor = 0,
        known: Tensor | None = None,
        positions: Tensor | None = None,
        draft: Tensor | None = None,
        decoder: DecoderConfig = PLAIN,
    ) -> Iterator[Step]:
        """Write the picture after a text; arguments as in `picture`.

        Yields:
            A step per token, text left out, a whole row at a time.
        """
        picture = self.picture(
            text, config, seed=seed, known=known, positions=positions, draft=draft
        )
        for _, step in write(self.engine, [picture], decoder):
            yield step
