"""What PURE says it saw: the degradation label and the caption, as text and as ids.

Wraps the text tokenizer and reads answers tolerantly; the text part of an answer is the
model's own, so nothing about its wording is certain.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from tokenizers import AddedToken, Tokenizer

from imaging.degrade import Level
from pure.vocab import END_TURN, IMAGE_PLACEHOLDER

INSTRUCTION = (
    "Perceive the degradation level, understand the image content, "
    "and restore the high-quality image. "
)
LEVELS = get_args(Level)
_LEVEL_OF = {
    what: re.compile(rf"\b({'|'.join(LEVELS)})\s+{what}\b", re.IGNORECASE)
    for what in ("blur", "noise")
}
_FIRST_SENTENCE = re.compile(r"^(.*?\.)(?:\s+|$)(.*)$", re.DOTALL)


class BeliefError(ValueError):
    """A label or caption that cannot be written with this model's tokens."""


@dataclass(frozen=True)
class Belief:
    """Label and caption of one answer; either may be empty.

    Attributes:
        label: the first sentence, for example "Medium blur, small noise."
        caption: the rest.
    """

    label: str = ""
    caption: str = ""

    @classmethod
    def parse(cls, text: str) -> "Belief":
        """Split an answer's text: a first sentence that names a level is the label."""
        text = text.strip()
        match = _FIRST_SENTENCE.match(text)
        first, rest = (match[1], match[2]) if match else (text, "")
        if any(pattern.search(first) for pattern in _LEVEL_OF.values()):
            return cls(first.strip(), rest.strip())
        return cls("", text)

    @property
    def text(self) -> str:
        """Label and caption as they stand in an answer."""
        return " ".join(part for part in (self.label, self.caption) if part)

    @property
    def blur(self) -> Level | None:
        """The blur the label names, None if it names none."""
        return _level(self.label, "blur")

    @property
    def noise(self) -> Level | None:
        """The noise the label names, None if it names none."""
        return _level(self.label, "noise")


def _level(label: str, what: str) -> Level | None:
    match = _LEVEL_OF[what].search(label)
    return match and match[1].lower()  # type: ignore[return-value]  # the pattern lists Level


def label_text(blur: Level, noise: Level) -> str:
    """The label in the paper's wording: "Medium blur, small noise."."""
    return f"{blur.capitalize()} blur, {noise} noise."


class TextTokenizer:
    """A checkpoint's `tokenizer.json`.

    Args:
        tokenizer: as loaded; the picture placeholder is added when it is not there.
        text_ids: ids a text may use.
    """

    def __init__(self, tokenizer: Tokenizer, text_ids: Sequence[int]) -> None:
        tokenizer.add_special_tokens([AddedToken(IMAGE_PLACEHOLDER, normalized=False)])
        self._tokenizer = tokenizer
        self._text_ids = frozenset(text_ids)

    @classmethod
    def from_file(cls, path: Path, text_ids: Sequence[int]) -> "TextTokenizer":
        """Read `tokenizer.json`."""
        return cls(Tokenizer.from_file(str(path)), text_ids)

    def instruction(self) -> list[int]:
        """Ids of the published instruction, up to where the picture stands.

        The whole turn is encoded at once, as published, because what a space becomes depends
        on what follows it.
        """
        ids = self._encode(f"{INSTRUCTION}{IMAGE_PLACEHOLDER}{END_TURN}")
        return ids[: ids.index(self._id(IMAGE_PLACEHOLDER))]

    def answer(self, text: str) -> list[int]:
        """Ids of a text that opens an answer: no space is put before its first word.

        Raises:
            BeliefError: it holds a piece this model has no token for.
        """
        if not text:
            return []
        ids = self._encode(f"{END_TURN}{text}")[1:]
        if unknown := [i for i in ids if i not in self._text_ids]:
            pieces = ", ".join(repr(self._tokenizer.id_to_token(i) or "?") for i in unknown[:5])
            raise BeliefError(
                f"{text!r} cannot be written with this checkpoint's words (it reads {pieces}). "
                "Keep to words it uses in its own labels and captions."
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False).strip()

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _id(self, token: str) -> int:
        i = self._tokenizer.token_to_id(token)
        assert i is not None, token
        return i
