"""Simulated judges: what the planner, the dry run and the coverage benchmark let vote.

A multinomial logit with random effects: the utility of a method is its strength, plus how much
this person and this picture favour it (normal, independent, one deviation a method), plus the
noise that makes a choice a choice. Source: McFadden 1974 for the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from study.intervals import Array, Codes, clustered_mean, t_test

INTEGRATION_DRAWS = 40_000


@dataclass(frozen=True)
class Crowd:
    """How judges and pictures differ.

    Attributes:
        theta: (M,) log strengths.
        participant_sd, image_sd: of the deviations, in log-odds.
        nu: Davidson's tie parameter for pairs.
    """

    theta: tuple[float, ...]
    participant_sd: float = 0.4
    image_sd: float = 0.8
    nu: float = 0.5

    def deviations(self, rng: np.random.Generator, people: int, pictures: int) -> Array:
        """Utilities (people, pictures, M) of everyone for everything."""
        M = len(self.theta)
        of_people = rng.normal(0, self.participant_sd, (people, 1, M))
        of_pictures = rng.normal(0, self.image_sd, (1, pictures, M))
        return np.asarray(self.theta) + of_people + of_pictures

    def mean_shares(self, seed: int = 0) -> Array:
        """Shares (M,) over all people and pictures; integrated over common random numbers."""
        draws = _standard_normal(seed, len(self.theta))
        return _softmax(np.asarray(self.theta) + self._spread() * draws).mean(0)

    def _spread(self) -> float:
        return float(np.hypot(self.participant_sd, self.image_sd))


def _standard_normal(seed: int, M: int) -> Array:
    """Antithetic draws (2 × INTEGRATION_DRAWS, M)."""
    half = np.random.default_rng(seed).normal(size=(INTEGRATION_DRAWS, M))
    return np.concatenate([half, -half])


def _softmax(scores: Array) -> Array:
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(weights / weights.sum(-1, keepdims=True))


def calibrate(shares: Sequence[float], participant_sd: float, image_sd: float) -> Crowd:
    """The crowd whose mean shares are `shares`.

    Raises:
        ValueError: the shares are not positive or do not sum to 1.
    """
    target = np.asarray(shares, float)
    if len(target) < 2 or (target <= 0).any() or abs(target.sum() - 1) > 1e-6:
        raise ValueError(f"shares are above 0 and sum to 1, not {list(shares)}")
    theta = np.log(target)
    for _ in range(200):
        now = Crowd(tuple(theta), participant_sd, image_sd).mean_shares()
        theta = theta + np.log(target) - np.log(now)
        if np.abs(now - target).max() < 1e-6:
            break
    return Crowd(tuple(float(value) for value in theta - theta.mean()), participant_sd, image_sd)


def runner_up_shares(leader: float, runner_up: float, methods: int) -> tuple[float, ...]:
    """Shares of `methods`: first, second, and the rest equally."""
    rest = (1 - leader - runner_up) / (methods - 2) if methods > 2 else 0.0
    return (leader, runner_up, *[rest] * (methods - 2))


def picks(crowd: Crowd, rng: np.random.Generator, people: int, pictures: int) -> Codes:
    """Choices (people, pictures) if everyone picks the best of all methods on every picture."""
    utility = crowd.deviations(rng, people, pictures)
    return (utility + rng.gumbel(size=utility.shape)).argmax(-1)


def pick_one(utility: Array, shown: Sequence[int], rng: np.random.Generator) -> int:
    """Place among `shown` of the one picked, given utilities (M,) of all methods."""
    return int(rng.choice(len(shown), p=_softmax(utility[list(shown)])))


def judge_pair(utility: Array, first: int, second: int, nu: float, rng: np.random.Generator) -> int:
    """0 for the first, 1 for the second, 2 for no difference; Davidson's model."""
    a, b = utility[first], utility[second]
    weights = np.exp(np.array([a, b, (a + b) / 2]) - max(a, b)) * [1, 1, nu]
    return int(rng.choice(3, p=weights / weights.sum()))


@dataclass(frozen=True)
class Power:
    """How often the leader comes out ahead of the runner-up, by test, in `runs` studies."""

    participants: int
    images: int
    shares: tuple[float, ...]
    participant_sd: float
    image_sd: float
    twoway: float
    participant: float
    runs: int


def power(
    shares: Sequence[float],
    participants: int,
    images: int,
    *,
    participant_sd: float = 0.4,
    image_sd: float = 0.8,
    runs: int = 400,
    seed: int = 0,
    alpha: float = 0.05,
) -> Power:
    """Simulated power of first against second at two-sided `alpha`, everyone seeing everything.

    Counts as found where the difference is significant and has the right sign.
    """
    crowd = calibrate(shares, participant_sd, image_sd)
    rng = np.random.default_rng(seed)
    people, pictures = _grid(participants, images)
    found = np.zeros(2)
    for _ in range(runs):
        choice = picks(crowd, rng, participants, images).ravel()
        d = (choice == 0).astype(float) - (choice == 1)
        fit = clustered_mean(d[:, None], people, pictures)
        lead = float(fit.mean[0])
        tests = (
            t_test(lead, float(fit.se_twoway[0]), fit.df_twoway),
            t_test(lead, float(fit.se_participant[0]), participants - 1),
        )
        found += [p < alpha and lead > 0 for _, p in tests]
    twoway, participant = found / runs
    return Power(
        participants=participants,
        images=images,
        shares=tuple(shares),
        participant_sd=participant_sd,
        image_sd=image_sd,
        twoway=float(twoway),
        participant=float(participant),
        runs=runs,
    )


def _grid(people: int, pictures: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rows, columns = np.indices((people, pictures))
    return rows.ravel(), columns.ravel()
