"""Davidson's model of paired comparisons with ties, and Bradley-Terry as its case without.

P(i over j) = s_i / (s_i + s_j + nu sqrt(s_i s_j)), P(tie) = nu sqrt(s_i s_j) / (the same), with
theta = log s and sum theta = 0. Log-weights are linear in (theta, log nu), so Newton's method on
a concave likelihood finds the one maximum. All fits run in batches, because a bootstrap is two
thousand of them. Knows matrices of counts only.

Source: Davidson 1970; Bradley and Terry 1952.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from study.intervals import Array, Codes, cluster_sums

PRIOR_SD = 1.5  # log-odds; used, and said so, where the maximum likelihood estimate is infinite
ABSENT = -40.0  # log nu of data without ties: a tie then has probability 4e-18
TOLERANCE = 1e-10  # of the gradient, relative to the number of votes
MAX_STEPS = 200
ELO_PER_LOGIT = 400 / math.log(10)


@dataclass(frozen=True)
class PairIndex:
    """The pairs i < j of M methods, and how outcomes depend on (theta, log nu).

    Attributes:
        first, second: (P,) the two methods of a pair.
        design: (P, 3, M + 1) log-weights of "first", "second", "tie" are design @ parameters.
    """

    first: Codes
    second: Codes
    design: Array


@cache
def pair_index(methods: int) -> PairIndex:
    """The pairs of `methods`, in the order (0, 1), (0, 2), ..., (1, 2), ..."""
    first, second = (index.astype(np.int64) for index in np.triu_indices(methods, 1))
    pairs = np.arange(len(first))
    design = np.zeros((len(first), 3, methods + 1))
    design[pairs, 0, first] = 1
    design[pairs, 1, second] = 1
    design[pairs, 2, first] = 0.5
    design[pairs, 2, second] = 0.5
    design[pairs, 2, methods] = 1
    return PairIndex(first, second, design)


def pair_counts(wins: Array, ties: Array) -> Array:
    """Counts (..., P, 3) of first, second, tie from matrices (..., M, M)."""
    index = pair_index(wins.shape[-1])
    i, j = index.first, index.second
    return np.stack([wins[..., i, j], wins[..., j, i], ties[..., i, j]], axis=-1)


def strongly_connected(edges: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether each graph (..., M, M) leads from every node to every other: then a fit exists."""
    M = edges.shape[-1]
    reach = edges | np.eye(M, dtype=bool)
    for _ in range(max(1, math.ceil(math.log2(M)))):
        reach = np.matmul(reach.astype(np.uint8), reach.astype(np.uint8)) > 0
    return np.asarray(reach.all(axis=(-2, -1)))


def components(edges: NDArray[np.bool_]) -> list[list[int]]:
    """The strongly connected components of one graph (M, M), each sorted."""
    M = len(edges)
    reach = edges | np.eye(M, dtype=bool)
    for _ in range(max(1, math.ceil(math.log2(M)))):
        reach = (reach.astype(int) @ reach.astype(int)) > 0
    groups = {tuple(np.flatnonzero(row).tolist()) for row in reach & reach.T}
    return [list(group) for group in sorted(groups)]


@dataclass(frozen=True)
class Batch:
    """Parameters of B fits: theta (B, M), log nu (B,), which needed a prior (B,)."""

    theta: Array
    log_nu: Array
    prior: NDArray[np.bool_]


def fit_batch(counts: Array, methods: int) -> Batch:
    """Fit B data sets (B, P, 3) of first, second, tie at once; counts need not be whole.

    Where no finite maximum exists, theta ~ N(0, PRIOR_SD^2) is added for that data set alone.
    """
    index = pair_index(methods)
    ties_total = counts[..., 2].sum(-1)
    wins_total = counts[..., :2].sum((-2, -1))
    prior = ~_has_maximum(counts, methods) | (wins_total == 0)
    weight = np.where(prior, PRIOR_SD**-2, 0.0)
    free_nu = (ties_total > 0) & (wins_total > 0)
    x = np.zeros((len(counts), methods + 1))
    x[:, -1] = np.where(free_nu, 0.0, np.where(ties_total > 0, -ABSENT, ABSENT))
    project = np.zeros((methods + 1, methods + 1))
    project[:methods, :methods] = 1 / methods
    running = np.arange(len(counts))
    for _ in range(MAX_STEPS):
        y, w, free = counts[running], weight[running], free_nu[running]
        value, gradient, hessian = _newton_terms(x[running], y, index, w)
        gradient[~free, -1] = 0
        hessian[~free, -1, :] = 0
        hessian[~free, :, -1] = 0
        hessian[~free, -1, -1] = 1
        open_ = np.abs(gradient).max(-1) > TOLERANCE * (1 + y.sum((-2, -1)))
        running = running[open_]
        if not len(running):
            break
        step = np.linalg.solve(hessian[open_] + project, gradient[open_][..., None])[..., 0]
        x[running] = _line_search(x[running], step, y[open_], index, w[open_], value[open_])
    theta = x[:, :-1] - x[:, :-1].mean(-1, keepdims=True)
    return Batch(theta, x[:, -1], prior)


def _has_maximum(counts: Array, methods: int) -> NDArray[np.bool_]:
    index = pair_index(methods)
    edges = np.zeros((len(counts), methods, methods), dtype=bool)
    edges[:, index.first, index.second] = counts[..., 0] + counts[..., 2] > 0
    edges[:, index.second, index.first] = counts[..., 1] + counts[..., 2] > 0
    return strongly_connected(edges)


def _log_probs(x: Array, index: PairIndex) -> Array:
    """Log-probabilities (B, P, 3) at parameters (B, M + 1)."""
    scores = np.einsum("bd,pod->bpo", x, index.design)
    top = scores.max(-1, keepdims=True)
    return scores - top - np.log(np.exp(scores - top).sum(-1, keepdims=True))


def _objective(x: Array, counts: Array, index: PairIndex, weight: Array) -> Array:
    penalty = weight * (x[:, :-1] ** 2).sum(-1) / 2
    return (counts * _log_probs(x, index)).sum((-2, -1)) - penalty


def _newton_terms(
    x: Array, counts: Array, index: PairIndex, weight: Array
) -> tuple[Array, Array, Array]:
    """Objective (B,), gradient (B, D) and negative Hessian (B, D, D)."""
    log_probs = _log_probs(x, index)
    probs, totals = np.exp(log_probs), counts.sum(-1)
    expected = totals[..., None] * probs
    gradient = np.einsum("bpo,pod->bd", counts - expected, index.design)
    D = index.design.shape[-1]
    flat = index.design.reshape(-1, D)
    outer = (flat[:, :, None] * flat[:, None, :]).reshape(-1, D * D)
    mean = np.einsum("bpo,pod->bpd", probs, index.design)
    hessian = (expected.reshape(len(x), -1) @ outer).reshape(-1, D, D)
    hessian -= np.matmul((totals[..., None] * mean).swapaxes(1, 2), mean)
    value = (counts * log_probs).sum((-2, -1)) - weight * (x[:, :-1] ** 2).sum(-1) / 2
    gradient[:, :-1] -= weight[:, None] * x[:, :-1]
    M = D - 1
    hessian[:, np.arange(M), np.arange(M)] += weight[:, None]
    return value, gradient, hessian


def _line_search(
    x: Array, step: Array, counts: Array, index: PairIndex, weight: Array, value: Array
) -> Array:
    """Newton's step, halved where it would make things worse; at most 5 log-odds long."""
    scale = np.minimum(1.0, 5.0 / np.maximum(np.abs(step).max(-1), 1e-300))
    for _ in range(40):
        candidate = x + scale[:, None] * step
        # Rounding near the optimum may cost a last digit; that is no reason to halve.
        slack = 1e-12 * (1 + np.abs(value))
        worse = _objective(candidate, counts, index, weight) < value - slack
        if not worse.any():
            break
        scale = np.where(worse, scale / 2, scale)
    return x + scale[:, None] * step


@dataclass(frozen=True)
class DavidsonFit:
    """One fit, its information and what it was made from.

    Attributes:
        theta: (M,) log strengths, sum 0.
        nu: tie parameter; 0 without ties.
        se: (M,) standard errors of theta for independent votes.
        se_log_nu: of log nu; nan where nu is not estimated.
        covariance: (M + 1, M + 1) of (theta, log nu), pseudo-inverse of the information.
        loglik: without combinatorial constants.
        deviance: (G, degrees of freedom, p) against one multinomial a pair.
        prior: whether theta ~ N(0, PRIOR_SD^2) was needed.
        counts: (P, 3) the data.
    """

    theta: Array
    nu: float
    se: Array
    se_log_nu: float
    covariance: Array
    loglik: float
    deviance: tuple[float, int, float]
    prior: bool
    counts: Array

    def probabilities(self) -> Array:
        """(P, 3) of first, second, tie for every pair."""
        return np.exp(_log_probs(self._parameters()[None], pair_index(len(self.theta)))[0])

    def _parameters(self) -> Array:
        log_nu = math.log(self.nu) if self.nu > 0 else ABSENT
        return np.append(self.theta, log_nu)

    def scores(self, counts: Array) -> Array:
        """Gradients (G, M + 1) of the log-likelihood of groups of votes (G, P, 3)."""
        residual = counts - counts.sum(-1, keepdims=True) * self.probabilities()
        scores = np.einsum("gpo,pod->gd", residual, pair_index(len(self.theta)).design)
        if not np.isfinite(self.se_log_nu):
            scores[:, -1] = 0
        return scores

    def sandwich(self, scores: Array) -> Array:
        """Cluster-robust covariance (M + 1, M + 1) from cluster scores (G, M + 1)."""
        G = len(scores)
        if G < 2:
            return np.full_like(self.covariance, math.nan)
        meat = G / (G - 1) * scores.T @ scores
        return self.covariance @ meat @ self.covariance


def fit_davidson(wins: Array, ties: Array) -> DavidsonFit:
    """Fit Davidson's model to `wins` (M, M), row over column, and symmetric `ties` (M, M)."""
    counts = pair_counts(np.asarray(wins, float), np.asarray(ties, float))
    return fit_counts(counts, len(wins))


def fit_counts(counts: Array, methods: int) -> DavidsonFit:
    """As `fit_davidson`, from counts (P, 3) of first, second, tie."""
    batch = fit_batch(counts[None], methods)
    x = np.append(batch.theta[0], batch.log_nu[0])
    index = pair_index(methods)
    weight = np.where(batch.prior, PRIOR_SD**-2, 0.0)
    _, _, hessian = _newton_terms(x[None], counts[None], index, weight)
    has_nu = abs(batch.log_nu[0]) < -ABSENT
    covariance = pseudo_inverse(hessian[0], methods, estimated=has_nu, prior=bool(batch.prior[0]))
    log_probs = _log_probs(x[None], index)[0]
    shown = counts.sum(-1) > 0
    expected = counts.sum(-1, keepdims=True) * np.exp(log_probs)
    seen = counts > 0
    G = 2 * float((counts[seen] * np.log(counts[seen] / expected[seen])).sum())
    # Without ties there are two outcomes a pair, and nu is no parameter.
    df = (2 * int(shown.sum()) - methods) if has_nu else int(shown.sum()) - (methods - 1)
    return DavidsonFit(
        theta=batch.theta[0],
        nu=float(np.exp(batch.log_nu[0])) if counts[:, 2].sum() > 0 else 0.0,
        se=np.sqrt(np.diag(covariance)[:-1]),
        se_log_nu=math.sqrt(covariance[-1, -1]) if has_nu else math.nan,
        covariance=covariance,
        loglik=float((counts[seen] * log_probs[seen]).sum()),
        deviance=(G, df, float(stats.chi2.sf(G, df)) if df > 0 else math.nan),
        prior=bool(batch.prior[0]),
        counts=counts,
    )


def pseudo_inverse(
    information: Array, methods: int, *, estimated: bool = True, prior: bool = False
) -> Array:
    """Inverse of the information of (theta, one more) on sum theta = 0.

    inv(H + uu'/M) - uu'/M with u all ones: `pinv` can return garbage where rounding hides the
    null direction. With a prior there is no null direction; theta is then centred all the same.
    """
    D = methods + 1
    project = np.zeros((D, D))
    project[:methods, :methods] = 1 / methods
    H = information.copy()
    if not estimated:
        H[-1, :] = H[:, -1] = 0
        H[-1, -1] = 1
    if prior:
        centre = np.eye(D) - project
        inverse = centre @ np.linalg.inv(H) @ centre
    else:
        inverse = np.linalg.inv(H + project) - project
    if not estimated:
        inverse[-1, -1] = 0
    return inverse


def fit_bradley_terry(wins: Array) -> DavidsonFit:
    """Bradley-Terry: Davidson's model of data without ties; wins may be halves."""
    return fit_davidson(wins, np.zeros_like(np.asarray(wins, float)))


def half_tie_wins(wins: Array, ties: Array) -> Array:
    """Wins with a tie counted as half a win for each."""
    return np.asarray(wins, float) + np.asarray(ties, float) / 2


def goodness_of_fit(fit: DavidsonFit) -> tuple[float, float, int, float, float]:
    """G, X2, degrees of freedom and the two p of a fit without ties."""
    observed = fit.counts[:, :2]
    shown = observed.sum(-1) > 0
    expected = observed.sum(-1, keepdims=True) * fit.probabilities()[:, :2]
    X2 = float(((observed - expected)[shown] ** 2 / expected[shown]).sum())
    G, df, p = fit.deviance
    return G, X2, df, p, float(stats.chi2.sf(X2, df)) if df > 0 else math.nan


@dataclass(frozen=True)
class LeftBias:
    """Bradley-Terry with an advantage of the left panel, in log-odds, and its standard error."""

    estimate: float
    se: float
    theta: Array


def fit_left_bias(left_wins: Array, right_wins: Array) -> LeftBias:
    """Fit P(left) = logistic(theta_left - theta_right + bias), ties left out.

    Args:
        left_wins: (M, M) times row was left of column and won.
        right_wins: (M, M) times row was left of column and lost.

    The same model as home advantage in sports. Estimates are nan where they would be infinite.
    """
    M = len(left_wins)
    i, j = (index.ravel() for index in np.indices((M, M)))
    won, n = left_wins.ravel(), (left_wins + right_wins).ravel()
    used = n > 0
    i, j, won, n = i[used], j[used], won[used], n[used]
    rows = np.zeros((len(i), M + 1))
    rows[np.arange(len(i)), i] += 1
    rows[np.arange(len(i)), j] -= 1
    rows[:, -1] = 1
    nothing = LeftBias(math.nan, math.nan, np.full(M, math.nan))
    beaten = left_wins + right_wins.T > 0
    if not strongly_connected(beaten) or won.sum() in (0, n.sum()):
        return nothing
    x = np.zeros(M + 1)
    for _ in range(MAX_STEPS):
        p = 1 / (1 + np.exp(-(rows @ x)))
        gradient = rows.T @ (won - n * p)
        covariance = pseudo_inverse((rows * (n * p * (1 - p))[:, None]).T @ rows, M)
        if np.abs(gradient).max() < TOLERANCE * (1 + n.sum()):
            return LeftBias(float(x[-1]), math.sqrt(covariance[-1, -1]), x[:-1])
        step = covariance @ gradient
        x = x + step * min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-300))
        if np.abs(x).max() > -ABSENT:
            break
    return nothing


def group_counts(outcomes: Codes, groups: Codes, methods: int) -> Array:
    """Counts (G, P, 3) by group from one code a vote: 3 × pair + (0 first, 1 second, 2 tie)."""
    pairs = len(pair_index(methods).first)
    onehot = np.bincount(
        groups * (3 * pairs) + outcomes, minlength=(int(groups.max()) + 1) * 3 * pairs
    )
    return onehot.reshape(-1, pairs, 3).astype(float)


def twoway_contrast(
    fit: DavidsonFit, contrast: Array, participant: Array, image: Array, votes: Array
) -> tuple[float, float, float]:
    """Standard errors of `contrast` (M,) @ theta: by participant, by image, two-way.

    Args:
        fit: the fit.
        contrast: (M,) weights, such as 1 and -1 for a difference.
        participant: (G, M + 1) scores by person.
        image: (G', M + 1) scores by picture.
        votes: (N', M + 1) scores of single votes, or of groups that are summed squares already.

    The two-way variance is V_P + V_I - V_0, never below the larger one, as for shares.
    """
    direction = np.append(contrast, 0.0) @ fit.covariance

    def variance(scores: Array, correct: bool = True) -> float:
        G = len(scores)
        if correct and G < 2:
            return math.nan
        return float(((scores @ direction) ** 2).sum()) * (G / (G - 1) if correct else 1.0)

    v_participant, v_image, v_votes = (
        variance(participant),
        variance(image),
        variance(votes, correct=False),
    )
    twoway = float(np.max([v_participant + v_image - v_votes, v_participant, v_image]))
    return math.sqrt(v_participant), math.sqrt(v_image), math.sqrt(twoway)


def vote_scores(fit: DavidsonFit, outcomes: Codes) -> Array:
    """Scores (N, M + 1) of single votes, from their codes as in `group_counts`."""
    methods = len(fit.theta)
    pairs = len(pair_index(methods).first)
    each = fit.scores(np.eye(3 * pairs).reshape(-1, pairs, 3))
    return each[outcomes]


def scores_by(scores: Array, groups: Codes) -> Array:
    """Sums (G, M + 1) of vote scores by group."""
    return cluster_sums(scores, groups)
