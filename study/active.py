"""Which pair next, by expected information: an option beside balanced rounds.

Within one picture: the posterior of the strengths is taken as normal (Laplace), and the pair whose
answer is expected to tell most is preferred, as a maximum spanning tree so that answers coming in
together do not all ask the same. A quarter of the pairs are balanced exploration, and the
probability of each pair shown is known and recorded. Sampling like this biases raw win rates;
model estimates and weighted rates stay valid.

Source: the criterion shared by Hybrid-MST (Li et al. 2018) and ASAP (Mikhailiuk et al. 2020).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from study.davidson import PRIOR_SD
from study.design import Draw
from study.intervals import Array

EXPLORE = 0.25  # share of balanced exploration
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(32)
PRECISION = 2**32  # a draw below this is compared with a probability
Pair = tuple[int, int]


@dataclass(frozen=True)
class Posterior:
    """Normal approximation of log strengths on one picture: mean (M,), covariance (M, M)."""

    mean: Array
    covariance: Array


def posterior(wins: Array) -> Posterior:
    """Laplace approximation with theta ~ N(0, PRIOR_SD^2); `wins` (M, M), ties as halves."""
    M = len(wins)
    games = wins + wins.T
    theta = np.zeros(M)
    for _ in range(50):
        p = 1 / (1 + np.exp(theta[None, :] - theta[:, None]))
        gradient = (wins - games * p).sum(1) - theta / PRIOR_SD**2
        curvature = games * p * (1 - p)
        hessian = np.diag(curvature.sum(1) + PRIOR_SD**-2) - curvature
        step = np.linalg.solve(hessian, gradient)
        theta = theta + step
        if np.abs(step).max() < 1e-10:
            break
    return Posterior(theta, np.asarray(np.linalg.inv(hessian), dtype=np.float64))


def information(mean: Array, variance: Array) -> Array:
    """Expected information in nats of a comparison whose log-odds are N(mean, variance).

    I = H(E p) - E H(p) with p = logistic(d) and H the entropy of a binary answer.
    """
    weights = WEIGHTS / WEIGHTS.sum()
    d = np.asarray(mean)[..., None] + np.sqrt(np.asarray(variance))[..., None] * NODES
    p = 1 / (1 + np.exp(-d))
    return _entropy((p * weights).sum(-1)) - (_entropy(p) * weights).sum(-1)


def _entropy(p: Array) -> Array:
    p = np.clip(p, 1e-12, 1 - 1e-12)
    return -(p * np.log(p) + (1 - p) * np.log1p(-p))


def pair_information(state: Posterior) -> Array:
    """Expected information (M, M) of every pair; symmetric, 0 on the diagonal."""
    variance = np.diag(state.covariance)
    spread = variance[:, None] + variance[None, :] - 2 * state.covariance
    table = information(state.mean[:, None] - state.mean[None, :], np.maximum(spread, 0))
    np.fill_diagonal(table, 0)
    return (table + table.T) / 2


def spanning_tree(weights: Array, allowed: Collection[Pair]) -> list[Pair]:
    """The allowed pairs (i < j) of a maximum spanning tree, or forest; Kruskal's method."""
    group = list(range(len(weights)))

    def root(i: int) -> int:
        while group[i] != i:
            i = group[i]
        return i

    tree = []
    for i, j in sorted(allowed, key=lambda pair: (-weights[pair], pair)):
        if root(i) != root(j):
            group[root(i)] = root(j)
            tree.append((i, j))
    return tree


@dataclass(frozen=True)
class Proposal:
    """The pair to show, left first, and the probability with which this pair was drawn."""

    left: int
    right: int
    probability: float


def pair_probabilities(wins: Array, allowed: Sequence[Pair]) -> dict[Pair, float]:
    """The probability of each allowed pair (i < j), given what is known of the picture."""
    games = wins + wins.T
    fewest = min(games[pair] for pair in allowed)
    balanced = [pair for pair in allowed if games[pair] == fewest]
    tree = spanning_tree(pair_information(posterior(wins)), allowed)
    chance = dict.fromkeys(allowed, 0.0)
    for pair in balanced:
        chance[pair] += EXPLORE / len(balanced)
    for pair in tree:
        chance[pair] += (1 - EXPLORE) / len(tree)
    return chance


def propose(wins: Array, allowed: Sequence[Pair], draw: Draw) -> Proposal:
    """Draw the next pair of a picture.

    Args:
        wins: (M, M) votes on this picture so far, row over column, ties as halves.
        allowed: pairs (i < j) whose outputs exist and which this participant has not seen here.
        draw: the source of randomness.

    Raises:
        ValueError: no pair is allowed.
    """
    if not allowed:
        raise ValueError("no pair is left to show")
    chance = pair_probabilities(wins, allowed)
    ticket = draw.below(PRECISION) / PRECISION
    reached = np.cumsum(list(chance.values()))
    # Rounding may leave the last sum just below 1: then the last pair it is.
    pair = allowed[min(int(np.searchsorted(reached, ticket, side="right")), len(allowed) - 1)]
    left, right = pair if draw.below(2) else pair[::-1]
    return Proposal(left, right, chance[pair])
