"""The plain decoder: one token at a time, exact, streamed.

One conversation about one picture: the prompt is read once, then the model writes its belief,
then the picture. Both guidance rows go through the model in one pass; they have caches of
their own, so the unconditional one starts at begin-image with position 0, as published. Ids
that the grammar forces are not decided but appended to the next pass.

A faster engine replaces `Conversation.restore`; its contract is the same `Step`s in the same
order from the same seed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pure.grammar import Answer, Grammar, Grid, Phase
from pure.model import KVCache, Transformer
from pure.sampling import Choice, SamplingConfig, choose, guide, noise


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


class Conversation:
    """The model's reading of one picture, and the answers it gives.

    The prompt's cache is kept, so a second answer (another seed, an edited belief) costs no
    second reading.

    Args:
        model: in evaluation mode.
        grammar: its layout.
        prompt: ids of the human turn.
        grid: code grid of the answer.
        text_limit: longest text the model may write.
    """

    def __init__(
        self,
        model: Transformer,
        grammar: Grammar,
        prompt: Sequence[int],
        grid: Grid,
        *,
        text_limit: int = 512,
    ) -> None:
        self.model = model
        self.grammar = grammar
        self.prompt = list(prompt)
        self.grid = grid
        self.text_limit = text_limit
        self.passes = 0
        capacity = len(self.prompt) + text_limit + grid.body + 5
        self._cond = model.cache(capacity)
        self._last = self._forward([self._cond], self.prompt)  # (1, hidden) after the prompt
        self._prompt_last = self._last

    @torch.inference_mode()
    def _forward(self, caches: Sequence[KVCache], ids: Sequence[int]) -> Tensor:
        """Hidden state (len(caches), hidden) after `ids` were appended to every cache."""
        batch = torch.tensor([list(ids)] * len(caches), device=self.model.device)
        self.passes += 1
        return self.model.hidden(batch, caches)[:, -1]

    def _rewind(self) -> None:
        self._cond.truncate(len(self.prompt))
        self._last = self._prompt_last

    @torch.inference_mode()
    def write_text(self, *, given: Sequence[int] = (), label_only: bool = False) -> Iterator[Step]:
        """The model's own label and caption, its most likely token each time.

        Args:
            given: ids the text begins with, for example of an edited label.
            label_only: stop after the first sentence.
        """
        self._rewind()
        answer = Answer(self.grammar, self.grid, label_only=label_only, text_limit=self.text_limit)
        pending: list[int] = []
        if len(given) > self.text_limit:
            raise ValueError(f"{len(given)} ids of text exceed the limit of {self.text_limit}")
        for token in given:
            phase = answer.expected().phase
            answer.push(token)
            pending.append(token)
            yield Step(phase, token)
        while (expected := answer.expected()).ids is not None:
            if pending:
                self._last = self._forward([self._cond], pending)
            logits = self.model.logits(self._last[0], expected.ids.to(self.model.device))
            token = int(expected.ids[int(logits.argmax())])
            if token == self.grammar.vocab.begin_image:
                return
            answer.push(token)
            pending = [token]
            yield Step(expected.phase, token)

    @torch.inference_mode()
    def restore(
        self,
        text: Sequence[int],
        config: SamplingConfig,
        *,
        seed: int = 0,
        known: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Iterator[Step]:
        """The picture, given the text before it: every token from begin-image to end-turn.

        Args:
            text: ids of label and caption, possibly none.
            config: how codes are drawn.
            seed: of the noise.
            known: codes (rows, columns) to keep, -1 where the model decides.
            positions: (rows, columns) noise keys of the cells; raster order if not given.

        Yields:
            A step per token, text left out, as soon as it is decided.
        """
        model, grammar, grid = self.model, self.grammar, self.grid
        if len(text) > self.text_limit:
            raise ValueError(f"{len(text)} ids of text exceed the limit of {self.text_limit}")
        self._rewind()
        answer = Answer(grammar, grid, text=text, known=known)
        for token in text:
            answer.push(token)
        if text:
            self._last = self._forward([self._cond], text)
        guided = config.guidance_scale != 1
        caches = [self._cond]
        if guided:
            caches.append(model.cache(grid.body + 5))
        pending: list[int] = []
        while (expected := answer.expected()).phase is not Phase.DONE:
            choice, code = None, None
            if expected.forced is not None:
                token = expected.forced
                if expected.cell:
                    code = int(grammar.vocab.to_codes(torch.tensor(token)))
            else:
                assert expected.ids is not None
                assert expected.cell is not None
                last = self._forward(caches, pending)
                pending = []
                logits = model.logits(last, expected.ids.to(model.device))  # (rows, N)
                guided_logits = (
                    guide(logits[0], logits[1], config.guidance_scale) if guided else logits[0]
                )
                row, column = expected.cell
                key = row * grid.columns + column
                if positions is not None:
                    key = int(positions[row, column])
                choice = choose(guided_logits, config, noise(seed, key, len(expected.ids)))
                token, code = int(expected.ids[choice.index]), choice.index
            answer.push(token)
            pending.append(token)
            yield Step(expected.phase, token, expected.cell, code, choice)
