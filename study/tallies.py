"""What both kinds of trial share: votes as codes and counts, repeats, resampling, breakdowns.

Knows cleaned votes as a data frame and the plan of an analysis; no model of choice.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse, stats

from study.intervals import Array, Codes
from study.votes import SKIP, TIE, Screening, VotesError

SMALL_N = 30  # below it, shares of a breakdown are also given shrunken
SHRINK_VOTES = 30  # votes' worth of the overall share that a shrunken share contains
DESKTOP_PX = 1280  # viewport width from which a device counts as a desktop
CHUNK = 100  # bootstrap replicates whose vote weights are in memory at once

Result = dict[str, Any]


@dataclass(frozen=True)
class AnalysisPlan:
    """What is fixed before the votes are looked at.

    Attributes:
        mode: "pick_best" or "pairwise".
        methods: in the study file's order, which decides between equal counts.
        screening: thresholds of exclusion.
        alpha: level of the headline's test.
        bootstrap: replicates.
        seed: of bootstrap and simulation.
        criteria: the first is the one of the result; others follow under "by_criterion".
    """

    mode: str
    methods: tuple[str, ...]
    screening: Screening
    alpha: float = 0.05
    bootstrap: int = 2000
    seed: int = 20251
    criteria: tuple[str, ...] = ("overall",)


def codes_of(column: pd.Series) -> tuple[Codes, list[str]]:
    """Codes from 0 in order of first appearance, and what they stand for."""
    codes, names = pd.factorize(column)
    return codes.astype(np.int64), [str(name) for name in names]


def shown_matrix(frame: pd.DataFrame, methods: Sequence[str]) -> NDArray[np.bool_]:
    """(N, M): which of the study's methods each trial displayed."""
    codes, texts = codes_of(frame["methods_shown"])
    table = np.zeros((len(texts), len(methods)), dtype=bool)
    column = {name: i for i, name in enumerate(methods)}
    for row, text in enumerate(texts):
        for name in text.split("|"):
            if name not in column:
                seq = int(frame["seq"].iloc[int(np.flatnonzero(codes == row)[0])])
                raise VotesError(f"The vote with seq {seq} shows {name!r}, not in the study.")
            table[row, column[name]] = True
    return table[codes] if len(codes) else np.zeros((0, len(methods)), dtype=bool)


def chosen(
    frame: pd.DataFrame, shown: NDArray[np.bool_], methods: Sequence[str]
) -> tuple[Codes, NDArray[np.bool_]]:
    """Column of each choice, -1 for tie and skip; and where it is a method."""
    column = {name: i for i, name in enumerate(methods)}
    choice = frame["choice"].map(lambda name: column.get(name, -1)).to_numpy(dtype=np.int64)
    decided = choice >= 0
    strange = ~decided & ~frame["choice"].isin([TIE, SKIP]).to_numpy()
    strange |= decided & ~shown[np.arange(len(frame)), np.maximum(choice, 0)]
    if strange.any():
        row = frame.iloc[int(np.flatnonzero(strange)[0])]
        raise VotesError(
            f"The vote with seq {row['seq']} chose {row['choice']!r}, not shown to it."
        )
    return choice, decided


def count_table(rows: Codes, columns: Codes, width: int) -> Array:
    """Counts (G, width) of `columns` by `rows`."""
    flat = np.bincount(rows * width + columns, minlength=(int(rows.max()) + 1) * width)
    return flat.reshape(-1, width).astype(float)


def balance(frame: pd.DataFrame, methods: Sequence[str]) -> dict[str, list[int]]:
    """How often each method was displayed at each position."""
    table = {name: [0] * len(methods) for name in methods}
    for text, n in frame["methods_shown"].value_counts().items():
        for position, name in enumerate(str(text).split("|")):
            table[name][position] += int(n)
    return table


def self_consistency(rows: pd.DataFrame) -> list[int]:
    """[agreeing, compared]: repeats answered as their original, by method and not by position.

    The original must be among `rows`; "skip" agrees with "skip".
    """
    pairs = repeats(rows)
    return [int((pairs["choice"] == pairs["choice_first"]).sum()), len(pairs)]


def repeats(rows: pd.DataFrame) -> pd.DataFrame:
    """Repeats with the answer to their original in `choice_first`."""
    again = rows[rows["kind"] == "repeat"]
    originals = rows[["participant", "trial_id", "choice"]]
    return again.merge(
        originals,
        left_on=["participant", "repeat_of"],
        right_on=["participant", "trial_id"],
        suffixes=("", "_first"),
    )


def goldens(rows: pd.DataFrame) -> list[int]:
    """[passed, answered] trials with a known answer."""
    golden = rows[rows["kind"] == "golden"]
    return [int((golden["choice"] == golden["expected"]).sum()), len(golden)]


def _resampled(rng: np.random.Generator, draws: int, groups: int) -> Array:
    """(draws, groups): how often each group is in a sample of `groups` with replacement."""
    return rng.multinomial(groups, np.full(groups, 1 / groups), size=draws).astype(float)


def resample_counts(
    columns: Codes, width: int, participant: Codes, image: Codes, plan: AnalysisPlan
) -> tuple[Array, Array]:
    """Counts (B, width) of `columns` in samples of participants, and of participants × images.

    A vote's weight in the second is the product of its person's and its picture's: conservative.
    """
    rng = np.random.default_rng(plan.seed)
    people = _resampled(rng, plan.bootstrap, int(participant.max()) + 1)
    pictures = _resampled(rng, plan.bootstrap, int(image.max()) + 1)
    alone = people @ count_table(participant, columns, width)
    N = len(columns)
    select = sparse.csr_matrix((np.ones(N), (columns, np.arange(N))), shape=(width, N))
    jointly = np.empty_like(alone)
    for start in range(0, plan.bootstrap, CHUNK):
        chunk = slice(start, start + CHUNK)
        weights = people[chunk][:, participant] * pictures[chunk][:, image]  # (CHUNK, N)
        jointly[chunk] = (select @ weights.T).T
    return alone, jointly


def _ranks(values: Array) -> Array:
    """Ranks (B, M) from 1, larger is better; equal values share the better rank."""
    return 1.0 + (values[:, None, :] > values[:, :, None]).sum(-1)


def rank_summary(values: Array, leader: int, methods: Sequence[str]) -> Result:
    """How often `leader` is first in replicates (B, M), and 95 % intervals of ranks.

    Replicates in which several are first count for each in equal parts.
    """
    ranks = _ranks(values)
    first = ranks == 1
    low, high = np.percentile(ranks, [2.5, 97.5], axis=0)
    return {
        "p_leader_first": float((first[:, leader] / first.sum(1)).mean()),
        "rank_ci": {
            name: [math.floor(low[m]), math.ceil(high[m])] for m, name in enumerate(methods)
        },
    }


def factors_of(frame: pd.DataFrame, expertise: Mapping[str, str]) -> dict[str, pd.Series]:
    """What results are broken down by; a factor that nothing is known about is left out."""
    factors = {"dataset": frame["dataset"], "scene": frame["scene"]}
    width = frame["viewport_w"]
    if width.notna().any():
        device = np.where(width >= DESKTOP_PX, "desktop", "small")
        factors["device"] = pd.Series(np.where(width.isna(), "unknown", device), frame.index)
    if (frame["zoomed"] != "").any():
        factors["zoomed"] = frame["zoomed"].map(lambda text: "yes" if _is_true(text) else "no")
    if expertise:
        factors["expertise"] = frame["participant"].map(lambda who: expertise.get(who, "unknown"))
    return factors


def _is_true(text: str) -> bool:
    """Whether any panel was zoomed: "1", "true", or one flag a panel such as "0|1"."""
    return any(part.strip().lower() in ("1", "1.0", "true", "yes") for part in text.split("|"))


def likelihood_ratio(separate: float, pooled: float, df: int) -> list[float]:
    """Statistic, degrees of freedom, p of separate fits against a pooled one; nan for nan."""
    if df <= 0 or math.isnan(separate):
        return [math.nan, df, math.nan]
    G = max(0.0, 2 * (separate - pooled))
    return [G, df, float(stats.chi2.sf(G, df))]
