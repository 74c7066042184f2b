"""Plackett-Luce for "pick the best": P(m | shown) = exp(theta_m) / sum over shown.

If all methods are always shown, theta is the centred logarithm of the shares; where outputs are
missing it corrects for them. Source: Luce 1959; Plackett 1975. Knows counts only.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from study.davidson import MAX_STEPS, PRIOR_SD, TOLERANCE, strongly_connected
from study.intervals import Array


@dataclass(frozen=True)
class PlackettLuceFit:
    """Log strengths (M,) with sum 0, their standard errors, shares if all were shown.

    `prior` says that theta ~ N(0, PRIOR_SD^2) was needed: a method that is never picked has no
    finite estimate.
    """

    theta: Array
    se: Array
    prob: Array
    loglik: float
    prior: bool


def choice_sets(
    shown: NDArray[np.bool_], choice: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], Array]:
    """Different sets (S, M) of methods shown and how often each method was picked, (S, M)."""
    sets, which = np.unique(shown, axis=0, return_inverse=True)
    picks = np.zeros(sets.shape)
    np.add.at(picks, (which.ravel(), choice), 1)
    return sets, picks


def fit_plackett_luce(shown: NDArray[np.bool_], picks: Array) -> PlackettLuceFit:
    """Fit to S sets of methods shown (S, M) and how often each was picked from them (S, M)."""
    M = shown.shape[1]
    beats = np.zeros((M, M), dtype=bool)
    for members, counts in zip(shown, picks, strict=True):
        beats |= (counts > 0)[:, None] & members[None, :]
    prior = not bool(strongly_connected(beats))
    weight = PRIOR_SD**-2 if prior else 0.0
    n = picks.sum(1)
    theta = np.zeros(M)
    project = np.full((M, M), 1 / M)
    for _ in range(MAX_STEPS):
        scores = np.where(shown, theta, -np.inf)
        p = np.exp(scores - scores.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        gradient = picks.sum(0) - n @ p - weight * theta
        hessian = np.diag(n @ p + weight) - (n[:, None] * p).T @ p
        if np.abs(gradient).max() < TOLERANCE * (1 + n.sum()):
            break
        step = np.linalg.solve(hessian + project, gradient)
        theta = theta + step * min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-300))
    theta = theta - theta.mean()
    covariance = np.linalg.inv(hessian + project) - project
    if prior:
        centre = np.eye(M) - project
        covariance = centre @ np.linalg.inv(hessian) @ centre
    seen = picks > 0
    weights = np.exp(theta - theta.max())
    return PlackettLuceFit(
        theta=theta,
        se=np.sqrt(np.diag(covariance)),
        prob=weights / weights.sum(),
        loglik=float((picks[seen] * np.log(p[seen])).sum()) if seen.any() else math.nan,
        prior=prior,
    )
