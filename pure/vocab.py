"""The vocabulary: every token id by name, and the only place with such numbers.

The released vocabulary (73,728 tokens) and PURE-nano's are two instances of one class, built
from the same Chameleon names. Nothing here knows how a sequence is laid out.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

BOS, PAD, EOS, UNK = "<s>", "<pad>", "</s>", "<unk>"
END_IMAGE = "<eoss>"
BEGIN_IMAGE = "<racm3:break>"
END_TURN = "<reserved08706>"
NEWLINE = "<reserved08799>"
IMAGE_PLACEHOLDER = "<|image|>"
CHAMELEON_IMAGE = "<image>"  # what some releases call <reserved08707>; PURE does not use it
CONTROLS = (BOS, PAD, EOS, UNK, END_IMAGE, BEGIN_IMAGE, END_TURN, NEWLINE)

GRID_PIXELS = 32  # a grid token counts sides in units of this many pixels
_RESERVED = re.compile(r"<reserved\d{5}>")
_CODE = re.compile(r"IMGIMG([A-J]+)Z")

RELEASED_SIZE = 73_728
RELEASED_CODES = 16_384


class VocabularyError(ValueError):
    """A vocabulary lacks a token PURE needs, or its ids contradict each other."""


def code_name(code: int) -> str:
    """Name of an image code: its decimal digits as letters, 0 = A, between IMGIMG and Z."""
    return "IMGIMG" + "".join(chr(ord("A") + int(d)) for d in str(code)) + "Z"


def code_of(name: str) -> int | None:
    """The code a name stands for, or None if it names something else."""
    match = _CODE.fullmatch(name)
    return match and int("".join(str(ord(c) - ord("A")) for c in match[1]))


def grid_name(n: int) -> str:
    """Name of the token for a side of `n` grid units."""
    return f"<reserved{8800 + n:05d}>"


def released_ids() -> dict[str, int]:
    """Names and ids of all but the text pieces of the released vocabulary, by arithmetic.

    Chameleon's 8,192 codes start at 4, PURE's 8,192 new ones at 65,536; `<reservedN>` is
    N + 4. Source: Chameleon's vocabulary and PURE's embedding size.
    """
    ids = {BOS: 0, PAD: 1, EOS: 2, UNK: 3, END_IMAGE: 8196, BEGIN_IMAGE: 8197}
    ids |= {f"<reserved{n:05d}>": n + 4 for n in range(8194, 16380)}
    half = RELEASED_CODES // 2
    for code in range(RELEASED_CODES):
        ids[code_name(code)] = code + 4 if code < half else code - half + 65_536
    return ids


@dataclass(frozen=True)
class Vocab:
    """Token ids by role.

    Attributes:
        size: rows of the embedding table.
        codes: id of each image code, in code order.
        grids: id of the side token for 1, 2, ... grid units.
        text: ids of the text pieces, ascending.
        sentence_ends: ids of the text pieces that contain a full stop.
    """

    size: int
    bos: int
    pad: int
    begin_image: int
    end_image: int
    end_turn: int
    newline: int
    codes: tuple[int, ...] = field(repr=False)
    grids: tuple[int, ...] = field(repr=False)
    text: tuple[int, ...] = field(repr=False)
    sentence_ends: frozenset[int] = field(repr=False)

    @classmethod
    def from_names(cls, names: Mapping[str, int], size: int) -> "Vocab":
        """Build from a name to id table such as `vocabulary_map` of a config.

        Raises:
            VocabularyError: a token is missing, codes have gaps, ids collide or exceed
                `size`, or a vocabulary of the released size breaks its arithmetic rule.
        """
        missing = [name for name in CONTROLS if name not in names]
        if missing:
            raise VocabularyError(f"the vocabulary lacks {', '.join(missing)}")
        by_code = {code: i for name, i in names.items() if (code := code_of(name)) is not None}
        if not by_code or sorted(by_code) != list(range(len(by_code))):
            raise VocabularyError(f"the vocabulary's {len(by_code)} image codes have gaps")
        grids: list[int] = []
        while (name := grid_name(len(grids) + 1)) in names:
            grids.append(names[name])
        if not grids:
            raise VocabularyError(f"the vocabulary lacks {grid_name(1)}, the first side token")
        pieces = {
            name: i
            for name, i in names.items()
            if name not in (*CONTROLS, IMAGE_PLACEHOLDER, CHAMELEON_IMAGE)
            and not _RESERVED.fullmatch(name)
            and code_of(name) is None
            and i < size
        }
        vocab = cls(
            size=size,
            bos=names[BOS],
            pad=names[PAD],
            begin_image=names[BEGIN_IMAGE],
            end_image=names[END_IMAGE],
            end_turn=names[END_TURN],
            newline=names[NEWLINE],
            codes=tuple(by_code[c] for c in range(len(by_code))),
            grids=tuple(grids),
            text=tuple(sorted(pieces.values())),
            sentence_ends=frozenset(i for name, i in pieces.items() if "." in name),
        )
        used = [*vocab.codes, *vocab.grids, *vocab.text, *vocab.controls]
        if len(set(used)) != len(used):
            raise VocabularyError("two tokens of the vocabulary share an id")
        if max(used) >= size:
            raise VocabularyError(f"id {max(used)} does not fit a vocabulary of {size}")
        if size == RELEASED_SIZE:
            _check_released(names)
        return vocab

    @property
    def controls(self) -> tuple[int, ...]:
        """Ids of the tokens that structure a sequence, side tokens left out."""
        return (
            self.bos,
            self.pad,
            self.begin_image,
            self.end_image,
            self.end_turn,
            self.newline,
        )

    @cached_property
    def code_ids(self) -> Tensor:
        """Ids of the image codes, (K,), int64."""
        return torch.tensor(self.codes)

    @cached_property
    def _code_of_id(self) -> Tensor:
        table = torch.full((self.size,), -1)
        table[self.code_ids] = torch.arange(len(self.codes))
        return table

    def to_ids(self, codes: Tensor) -> Tensor:
        """Ids of image codes, any shape."""
        return self.code_ids.to(codes.device)[codes]

    def to_codes(self, ids: Tensor) -> Tensor:
        """Codes of image ids, any shape; -1 where an id is no image code."""
        return self._code_of_id.to(ids.device)[ids]


def _check_released(names: Mapping[str, int]) -> None:
    """Names decide; the arithmetic rule must agree wherever both speak."""
    for name, expected in released_ids().items():
        if (i := names.get(name)) is not None and i != expected:
            raise VocabularyError(f"{name} has id {i}; the released vocabulary gives {expected}")
