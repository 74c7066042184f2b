import itertools
import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize

from study.active import (
    EXPLORE,
    information,
    pair_information,
    pair_probabilities,
    posterior,
    propose,
    spanning_tree,
)
from study.design import Draw

PAIRS = list(itertools.combinations(range(4), 2))


def entropy(p):
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


@pytest.mark.parametrize(("mean", "variance"), [(0, 1), (1, 0.3), (-2, 4), (0.5, 2)])
def test_information_equals_numerical_integration(mean, variance):
    def density(d):
        return math.exp(-((d - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)

    def p(d):
        return 1 / (1 + math.exp(-d))

    span = (mean - 9 * variance**0.5, mean + 9 * variance**0.5)
    average = quad(lambda d: p(d) * density(d), *span)[0]
    noise = quad(lambda d: entropy(p(d)) * density(d), *span)[0]
    ours = float(information(np.array(mean), np.array(variance)))
    assert ours == pytest.approx(entropy(average) - noise, abs=2e-5)


def test_a_known_difference_has_nothing_to_tell():
    assert float(information(np.array(1.0), np.array(0.0))) == pytest.approx(0, abs=1e-9)


def test_the_posterior_is_the_penalised_optimum_with_its_curvature():
    wins = np.array([[0, 3, 1], [1, 0, 2.5], [0, 0.5, 0]])

    def loss(theta):
        d = theta[:, None] - theta[None, :]
        return (wins * np.log1p(np.exp(-d))).sum() + theta @ theta / (2 * 1.5**2)

    best = minimize(loss, np.zeros(3), tol=1e-10)
    state = posterior(wins)
    assert state.mean == pytest.approx(best.x, abs=1e-4)
    step = 1e-3
    basis = np.eye(3) * step
    hessian = [
        [
            (
                loss(state.mean + a + b) - loss(state.mean + a - b)
                - loss(state.mean - a + b) + loss(state.mean - a - b)
            ) / (4 * step**2)
            for a in basis
        ]
        for b in basis
    ]  # fmt: skip
    assert np.linalg.inv(hessian) == pytest.approx(state.covariance, abs=1e-4)


def test_pairs_that_were_asked_tell_less():
    wins = np.zeros((4, 4))
    wins[0, 1] = wins[1, 0] = 6
    table = pair_information(posterior(wins))
    assert table == pytest.approx(table.T)
    assert min(PAIRS, key=lambda pair: table[pair]) == (0, 1)


def test_the_spanning_tree_is_the_heaviest_of_all():
    weights = np.random.default_rng(0).random((4, 4))
    weights = weights + weights.T
    tree = spanning_tree(weights, PAIRS)

    def connected(edges):
        reached = {0}
        for _ in range(4):
            reached |= {v for edge in edges if set(edge) & reached for v in edge}
        return len(reached) == 4

    heaviest = max(
        (edges for edges in itertools.combinations(PAIRS, 3) if connected(edges)),
        key=lambda edges: sum(weights[pair] for pair in edges),
    )
    assert set(tree) == set(heaviest)


def test_probabilities_sum_to_one_and_exploration_has_its_share():
    wins = np.zeros((4, 4))
    wins[0, 1] = 3
    chance = pair_probabilities(wins, PAIRS)
    assert sum(chance.values()) == pytest.approx(1)
    assert all(chance[pair] >= EXPLORE / 5 - 1e-12 for pair in PAIRS if pair != (0, 1))


def test_pairs_come_up_as_often_as_recorded():
    wins = np.array([[0, 2, 1, 0], [0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]], float)
    chance = pair_probabilities(wins, PAIRS)
    n = 4000
    drawn = [propose(wins, PAIRS, Draw("h", str(i), "x")) for i in range(n)]
    for pair in PAIRS:
        mine = [d for d in drawn if {d.left, d.right} == set(pair)]
        assert all(d.probability == chance[pair] for d in mine)
        # five deviations of a count with that probability
        assert abs(len(mine) - n * chance[pair]) <= 5 * math.sqrt(n * chance[pair]) + 1e-9
    left = sum(d.left < d.right for d in drawn)
    assert abs(left - n / 2) < 5 * math.sqrt(n) / 2


def test_only_allowed_pairs_are_drawn_and_none_is_an_error():
    for i in range(50):
        drawn = propose(np.zeros((4, 4)), [(1, 3)], Draw("h", str(i), "x"))
        assert {drawn.left, drawn.right} == {1, 3}
        assert drawn.probability == 1
    with pytest.raises(ValueError, match="no pair"):
        propose(np.zeros((4, 4)), [], Draw("h", "p", "x"))
