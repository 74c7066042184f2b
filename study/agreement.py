"""Do people agree, with each other and with themselves: alpha, kappa, Friedman.

Knows tables of counts only. A low alpha is normal where methods are close, so it is to be read
next to `expected_alpha`, what the fitted model lets one expect.
"""

import math

import numpy as np
from scipy import stats

from study.intervals import Array

Test = tuple[float, int, float]  # statistic, degrees of freedom, p


def krippendorff_alpha(counts: Array) -> float:
    """Krippendorff's alpha for nominal values; `counts` (..., U, C) ratings by unit and category.

    Units with fewer than two ratings are dropped. nan if nothing could disagree.
    Source: Krippendorff 2011, "Computing Krippendorff's alpha-reliability".
    """
    rated = counts.sum(-1)
    counts = np.where((rated >= 2)[..., None], counts, 0.0)
    rated = counts.sum(-1)
    n = rated.sum(-1)
    pairs = np.maximum(rated - 1, 1)
    agreeing = ((counts**2).sum(-1) - rated) / pairs
    category = counts.sum(-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        observed = 1 - agreeing.sum(-1) / n
        expected = 1 - ((category**2).sum(-1) - n) / (n * (n - 1))
        alpha = np.where(expected > 0, 1 - observed / expected, math.nan)
    return float(alpha) if alpha.ndim == 0 else alpha  # type: ignore[return-value]  # a batch


def fleiss_kappa(counts: Array) -> float:
    """Fleiss' kappa of `counts` (U, C); nan unless every unit has the same number of ratings."""
    rated = counts.sum(-1)
    if len(rated) == 0 or rated[0] < 2 or (rated != rated[0]).any():
        return math.nan
    n = rated[0]
    observed = (((counts**2).sum(-1) - n) / (n * (n - 1))).mean()
    chance = float(((counts.sum(0) / counts.sum()) ** 2).sum())
    return float((observed - chance) / (1 - chance)) if chance < 1 else math.nan


def expected_alpha(ratings: Array, probs: Array, seed: int, draws: int = 200) -> float:
    """Mean alpha of units with `ratings` (U,) each if a model's `probs` (U, C) are the truth.

    Simulated, from the seed.
    """
    rng = np.random.default_rng(seed)
    exact = probs / probs.sum(-1, keepdims=True)
    counts = rng.multinomial(ratings.astype(int), exact, size=(draws, len(ratings)))
    alphas = np.asarray(krippendorff_alpha(counts.astype(float)))
    known = alphas[np.isfinite(alphas)]
    return float(known.mean()) if len(known) else math.nan


def friedman(table: Array) -> Test:
    """Friedman's test, corrected for ties, of blocks in rows and methods in columns, (n, M).

    Only the order within a row counts. nan if every row is all ties.
    """
    n, M = table.shape
    ranks = stats.rankdata(table, axis=1)
    between = 12 * n / (M * (M + 1)) * ((ranks.mean(0) - (M + 1) / 2) ** 2).sum()
    tied = 0.0
    for row in ranks:
        _, sizes = np.unique(row, return_counts=True)
        tied += float((sizes**3 - sizes).sum())
    correction = 1 - tied / (n * M * (M**2 - 1)) if n else 0.0
    if correction <= 0:
        return math.nan, M - 1, math.nan
    statistic = float(between / correction)
    return statistic, M - 1, float(stats.chi2.sf(statistic, M - 1))
