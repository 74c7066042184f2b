"""Shares and their uncertainty: Wilson, exact, clustered by people and pictures; Holm.

Votes are not independent: one person's resemble each other, and so do those on one picture. The
two-way error of `clustered_mean` counts both. Knows arrays only, no files and no studies.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Array = NDArray[np.float64]
Codes = NDArray[np.int64]


def wilson(k: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of `k` successes in `n` trials; neither needs to be whole.

    Source: Wilson 1927. Without trials it is (nan, nan).
    """
    if not n > 0:
        return math.nan, math.nan
    z = float(stats.norm.isf((1 - confidence) / 2))
    p = k / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def clopper_pearson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of `k` in `n`, from quantiles of the beta distribution."""
    tail = (1 - confidence) / 2
    low = 0.0 if k == 0 else float(stats.beta.ppf(tail, k, n - k + 1))
    high = 1.0 if k == n else float(stats.beta.isf(tail, k + 1, n - k))
    return low, high


def sign_test(a: int, b: int) -> float:
    """Two-sided exact binomial p of `a` against `b` at even odds; 1 without votes."""
    return float(stats.binomtest(a, a + b).pvalue) if a + b else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given. Source: Holm 1979.

    A p that could not be computed (nan) stays nan, and still counts in the family: leaving it
    out would make the others look better than the plan allows.
    """
    values = np.asarray(p, dtype=float)
    order = np.argsort(np.where(np.isnan(values), np.inf, values), kind="stable")
    steps = len(values) - np.arange(len(values))
    adjusted = np.empty_like(values)
    adjusted[order] = np.maximum.accumulate(
        np.minimum(1.0, steps * np.nan_to_num(values[order], nan=1.0))
    )
    pairs = zip(values, adjusted, strict=True)
    return [math.nan if math.isnan(raw) else float(adj) for raw, adj in pairs]


def uniformity(counts: ArrayLike) -> tuple[float, int, float]:
    """Chi-square of `counts` (M,) against equal shares: statistic, degrees of freedom, p."""
    observed = np.asarray(counts, dtype=float)
    if observed.sum() == 0:
        return math.nan, len(observed) - 1, math.nan
    expected = observed.sum() / len(observed)
    statistic = float(((observed - expected) ** 2 / expected).sum())
    return statistic, len(observed) - 1, float(stats.chi2.sf(statistic, len(observed) - 1))


@dataclass(frozen=True)
class ClusteredMean:
    """Means of K columns over N votes, and four standard errors of each, (K,).

    `se_participant` answers for new people on these very pictures, `se_image` for new pictures
    and these people, `se_twoway` for both. With one cluster an error is nan: unknown, not zero.
    """

    n: int
    participants: int
    images: int
    mean: Array
    v_participant: Array
    v_image: Array
    v_independent: Array

    @property
    def v_twoway(self) -> Array:
        """V_P + V_I - V_0, and never below the larger one: the difference can be negative."""
        combined = self.v_participant + self.v_image - self.v_independent
        return np.maximum(combined, np.maximum(self.v_participant, self.v_image))

    @property
    def se_participant(self) -> Array:
        return np.sqrt(self.v_participant) / self.n

    @property
    def se_image(self) -> Array:
        return np.sqrt(self.v_image) / self.n

    @property
    def se_twoway(self) -> Array:
        return np.sqrt(self.v_twoway) / self.n

    @property
    def df_twoway(self) -> int:
        """Degrees of freedom: one less than the fewer of people and pictures."""
        return min(self.participants, self.images) - 1

    def ci_twoway(self, confidence: float = 0.95) -> tuple[Array, Array]:
        """Student's t interval with the two-way error; not cut to [0, 1]."""
        half = t_quantile(confidence, self.df_twoway) * self.se_twoway
        return self.mean - half, self.mean + half


def clustered_mean(y: ArrayLike, participants: Codes, images: Codes) -> ClusteredMean:
    """Means of `y` (N, K) with participant, image and two-way variances.

    Args:
        y: (N, K) one row a vote; for shares each column is 0 or 1.
        participants: (N,) who, as codes from 0 with none left out.
        images: (N,) which picture, likewise.

    Source: cluster-robust variance with G / (G - 1); two ways as Cameron, Gelbach, Miller 2011.
    """
    values = np.asarray(y, dtype=float)
    residuals = values - values.mean(axis=0)
    return ClusteredMean(
        n=len(values),
        participants=int(participants.max()) + 1,
        images=int(images.max()) + 1,
        mean=values.mean(axis=0),
        v_participant=cluster_variance(residuals, participants),
        v_image=cluster_variance(residuals, images),
        v_independent=(residuals**2).sum(axis=0),
    )


def cluster_sums(rows: Array, codes: Codes) -> Array:
    """Sums (G, K) of `rows` (N, K) by cluster."""
    groups = int(codes.max()) + 1
    return np.stack([np.bincount(codes, column, minlength=groups) for column in rows.T], axis=1)


def cluster_variance(residuals: Array, codes: Codes) -> Array:
    """G / (G - 1) times the sum of squared cluster sums of `residuals` (N, K); nan for one."""
    sums = cluster_sums(residuals, codes)
    if len(sums) < 2:
        return np.full(residuals.shape[1], math.nan)
    return len(sums) / (len(sums) - 1) * (sums**2).sum(axis=0)


def t_quantile(confidence: float, df: int) -> float:
    """Student's t quantile of a two-sided interval; nan without degrees of freedom."""
    return float(stats.t.isf((1 - confidence) / 2, df)) if df > 0 else math.nan


def t_test(estimate: float, se: float, df: int) -> tuple[float, float]:
    """Statistic t and its two-sided p; nan where there is no error to divide by."""
    if not (se > 0 and df > 0):
        return math.nan, math.nan
    t = estimate / se
    return t, float(2 * stats.t.sf(abs(t), df))


@dataclass(frozen=True)
class PublishedShare:
    """What a published "k of n" can and cannot say, if one vote was worth 1 / design_effect.

    Attributes:
        share: k / n.
        wilson: 95 % interval with n / design_effect votes.
        exact: Clopper-Pearson with independent votes, whatever the design effect.
        p_above_chance: exact one-sided p against 1 / methods, design effect respected.
        runner_up_at_05, runner_up_at_01: largest share of the second at which first against
            second would still give p below .05 and .01: exact with independent votes, normal
            with a design effect.
        runner_up_range: the shares the second can have, given the share of the first.
    """

    k: int
    n: int
    methods: int
    design_effect: float
    share: float
    wilson: tuple[float, float]
    exact: tuple[float, float]
    chance: float
    p_above_chance: float
    runner_up_at_05: float
    runner_up_at_01: float
    runner_up_range: tuple[float, float]


# Quoted: the PURE paper's user study, 38.9 % of 15 people × 50 pictures among 6 methods.
PURE_PAPER = {"k": 292, "n": 750, "methods": 6}


def published_share(k: int, n: int, *, methods: int, design_effect: float = 1.0) -> PublishedShare:
    """Read a published "picked k times in n votes among `methods`".

    Raises:
        ValueError: the numbers cannot be a share, or the design effect is below 1.
    """
    if not 0 <= k <= n or n < 1 or methods < 2:
        raise ValueError(
            f"k of n among methods needs 0 <= k <= n, 2 methods; not {k}, {n}, {methods}"
        )
    if not design_effect >= 1:
        raise ValueError(f"a design effect is 1 or more, not {design_effect}")
    effective, k_effective = n / design_effect, round(k / design_effect)
    rest = (n - k) / n
    return PublishedShare(
        k=k,
        n=n,
        methods=methods,
        design_effect=design_effect,
        share=k / n,
        wilson=wilson(k / design_effect, effective),
        exact=clopper_pearson(k, n),
        chance=1 / methods,
        p_above_chance=float(stats.binom.sf(k_effective - 1, round(effective), 1 / methods)),
        runner_up_at_05=_largest_runner_up(k, design_effect, 0.05) / n,
        runner_up_at_01=_largest_runner_up(k, design_effect, 0.01) / n,
        runner_up_range=(rest / (methods - 1), min(rest, 1.0)),
    )


def _largest_runner_up(k: int, design_effect: float, alpha: float) -> int:
    """Most votes a second may have for `k` to be ahead at two-sided `alpha`; 0 if none may.

    Exact with independent votes. With a design effect the difference k - r has variance
    design_effect × (k + r) under equality, and the normal quantile decides.
    """
    if design_effect == 1:
        return next((r for r in range(k - 1, 0, -1) if sign_test(k, r) < alpha), 0)
    z = float(stats.norm.isf(alpha / 2))
    ahead = (r for r in range(k - 1, 0, -1) if k - r > z * math.sqrt(design_effect * (k + r)))
    return next(ahead, 0)
