"""Which file of one folder belongs to which of another, by their names.

Sets of pictures mark versions of one photo by suffixes: Canon_001_LR4.png, 0801x4.png, cat_gt.png.
Knows names only; opens nothing.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import PurePath

# What the usual sets append to say which version of a photo this is.
VERSION = re.compile(r"([_-](lr|hr|lq|hq|gt|sr|out)\d*|[_-]x\d+|(?<=\d)x\d+)$", re.IGNORECASE)


@dataclass(frozen=True)
class Pairing:
    """What was matched and what was not.

    Attributes:
        pairs: name on the left to name on the right, sorted.
        left_only: names that found no partner, sorted.
        right_only: likewise.
    """

    pairs: dict[str, str]
    left_only: tuple[str, ...]
    right_only: tuple[str, ...]


def without_version(name: str) -> str:
    """The stem of a file name less its version suffixes: `Canon_001` of `Canon_001_LR4.png`."""
    stem = PurePath(name).stem
    while (shorter := VERSION.sub("", stem)) not in ("", stem):
        stem = shorter
    return stem


def pair(left: Iterable[str], right: Iterable[str]) -> Pairing:
    """Match names: those that are equal, then equal stems, then stems without version suffixes.

    A match counts only if it is the only one on both sides; what could go two ways stays unmatched,
    because a wrong partner would go unnoticed.
    """
    rest_left, rest_right = set(left), set(right)
    pairs: dict[str, str] = {}
    rules: tuple[Callable[[str], str], ...] = (
        lambda name: name,
        lambda name: PurePath(name).stem,
        without_version,
    )
    for rule in rules:
        by_left, by_right = _grouped(rest_left, rule), _grouped(rest_right, rule)
        for key in by_left.keys() & by_right.keys():
            if len(by_left[key]) == len(by_right[key]) == 1:
                pairs[by_left[key][0]] = by_right[key][0]
        rest_left -= pairs.keys()
        rest_right -= set(pairs.values())
    return Pairing(dict(sorted(pairs.items())), tuple(sorted(rest_left)), tuple(sorted(rest_right)))


def _grouped(names: Iterable[str], rule: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[rule(name)].append(name)
    return groups
