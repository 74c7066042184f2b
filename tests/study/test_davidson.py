import warnings

import evalica
import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from study.davidson import (
    ELO_PER_LOGIT,
    components,
    fit_batch,
    fit_bradley_terry,
    fit_davidson,
    fit_left_bias,
    goodness_of_fit,
    group_counts,
    half_tie_wins,
    pair_counts,
    pair_index,
    scores_by,
    strongly_connected,
    vote_scores,
)

# Data of Davidson 1970, chocolate puddings: first-second: wins of first, wins of second, ties.
PUDDINGS = {
    "12": (19, 22, 16), "13": (16, 19, 12), "23": (19, 19, 10), "14": (18, 23, 13),
    "24": (23, 19, 9), "34": (19, 20, 15), "15": (13, 19, 18), "25": (16, 20, 12),
    "35": (16, 15, 17), "45": (17, 14, 16), "16": (18, 21, 12), "26": (22, 20, 12),
    "36": (13, 18, 10), "46": (14, 19, 18), "56": (11, 21, 12),
}  # fmt: skip
MICRO = 6e-8  # half a unit of the seventh digit of the published values


def matrices(table, M):
    wins, ties = np.zeros((M, M)), np.zeros((M, M))
    for pair, (a, b, tied) in table.items():
        i, j = (int(name) - 1 for name in pair)
        wins[i, j], wins[j, i] = a, b
        ties[i, j] = ties[j, i] = tied
    return wins, ties


@pytest.fixture(scope="module")
def puddings():
    return matrices(PUDDINGS, 6)


@pytest.fixture(scope="module")
def fit(puddings):
    return fit_davidson(*puddings)


def test_pudding_strengths_and_errors(fit):
    theta = [-0.1765608, 0.0436811, -0.0235831, -0.0014159, -0.0426955, 0.2005741]
    pi = [0.1388034, 0.1730015, 0.1617474, 0.1653730, 0.1586854, 0.2023893]
    se = [0.1219490, 0.1218179, 0.1268235, 0.1220027, 0.1270540, 0.1265944]
    assert fit.theta == pytest.approx(theta, abs=MICRO)
    assert np.exp(fit.theta) / np.exp(fit.theta).sum() == pytest.approx(pi, abs=MICRO)
    assert fit.se == pytest.approx(se, abs=MICRO)


def test_pudding_differences_from_the_first(fit):
    diff = [0.2202419, 0.1529777, 0.1751449, 0.1338652, 0.3771349]
    se = [0.1872170, 0.1935184, 0.1882111, 0.1927046, 0.1924062]
    assert fit.theta[1:] - fit.theta[0] == pytest.approx(diff, abs=2 * MICRO)
    for m, expected in zip(range(1, 6), se, strict=True):
        contrast = np.zeros(7)
        contrast[m], contrast[0] = 1, -1
        assert np.sqrt(contrast @ fit.covariance @ contrast) == pytest.approx(expected, abs=MICRO)


def test_pudding_ties_likelihood_and_deviance(fit):
    assert fit.nu == pytest.approx(0.7468230, abs=MICRO)
    assert fit.se_log_nu == pytest.approx(0.0824987, abs=MICRO)
    assert fit.loglik == pytest.approx(-809.7095101, abs=MICRO)
    G, df, p = fit.deviance
    assert (G, df, p) == pytest.approx((15.7704058, 24, 0.8961843), abs=MICRO)


def test_pudding_half_ties(puddings):
    theta = [-0.1285092, 0.0317996, -0.0171658, -0.0010289, -0.0310789, 0.1459832]
    assert fit_bradley_terry(half_tie_wins(*puddings)).theta == pytest.approx(theta, abs=MICRO)


def votes_of(counts):
    """Votes as (x, y, winner) for evalica, from counts (P, 3)."""
    index = pair_index(4)
    sides = (evalica.Winner.X, evalica.Winner.Y, evalica.Winner.Draw)
    xs, ys, winners = [], [], []
    for i, j, row in zip(index.first, index.second, counts.astype(int), strict=True):
        for side, n in zip(sides, row, strict=True):
            xs += [str(i)] * n
            ys += [str(j)] * n
            winners += [side] * n
    return xs, ys, winners


def random_counts(seed, low=1):
    return np.random.default_rng(seed).integers(low, 12, (6, 3)).astype(float)


@pytest.mark.parametrize("seed", range(4))
def test_davidson_is_newman_with_twice_the_tie_parameter(seed):
    counts = random_counts(seed)
    wins, ties = to_matrices(counts)
    theirs = evalica.newman(*votes_of(counts), tolerance=1e-13, limit=100_000)
    scores = np.log([theirs.scores[str(m)] for m in range(4)])
    fit = fit_davidson(wins, ties)
    assert fit.theta == pytest.approx(scores - scores.mean(), abs=1e-6)
    assert fit.nu == pytest.approx(2 * theirs.v, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_half_tie_bradley_terry_is_evalicas(seed):
    counts = random_counts(seed)
    theirs = evalica.bradley_terry(
        *votes_of(counts), tie_weight=0.5, tolerance=1e-13, limit=100_000
    )
    scores = np.log([theirs.scores[str(m)] for m in range(4)])
    fit = fit_bradley_terry(half_tie_wins(*to_matrices(counts)))
    assert fit.theta == pytest.approx(scores - scores.mean(), abs=1e-6)


def to_matrices(counts, M=4):
    index = pair_index(M)
    wins, ties = np.zeros((M, M)), np.zeros((M, M))
    wins[index.first, index.second], wins[index.second, index.first] = counts[:, 0], counts[:, 1]
    ties[index.first, index.second] = ties[index.second, index.first] = counts[:, 2]
    return wins, ties


@pytest.mark.parametrize("seed", range(3))
def test_davidson_is_a_poisson_model_with_an_intercept_a_pair(seed):
    """Estimates, errors and deviance of the log-linear model, by statsmodels."""
    counts = random_counts(seed)
    index = pair_index(4)
    design = index.design.reshape(18, 5)[:, 1:]  # the first method is the base
    model = sm.GLM(
        counts.ravel(), np.hstack([design, np.kron(np.eye(6), np.ones((3, 1)))]),
        family=sm.families.Poisson(),
    ).fit(tol=1e-13)  # fmt: skip
    fit = fit_davidson(*to_matrices(counts))
    assert fit.theta[1:] - fit.theta[0] == pytest.approx(model.params[:3], abs=1e-7)
    assert np.log(fit.nu) == pytest.approx(model.params[3], abs=1e-7)
    assert fit.se_log_nu == pytest.approx(model.bse[3], abs=1e-7)
    assert fit.deviance[0] == pytest.approx(model.deviance, abs=1e-7)
    assert fit.deviance[1] == model.df_resid
    for m in (1, 2, 3):
        contrast = np.zeros(5)
        contrast[m], contrast[0] = 1, -1
        assert contrast @ fit.covariance @ contrast == pytest.approx(
            model.bse[m - 1] ** 2, abs=1e-7
        )


def test_cluster_sandwich_is_statsmodels_conditional_on_the_pair():
    """Bradley-Terry as a logistic regression with errors clustered by person."""
    rng = np.random.default_rng(5)
    N, G = 400, 12
    index = pair_index(4)
    pair = rng.integers(0, 6, N)
    people = rng.integers(0, G, N)
    strength = np.array([0.5, 0.1, -0.2, -0.4])
    logit = (
        strength[index.first[pair]]
        - strength[index.second[pair]]
        + 0.8 * rng.normal(size=G)[people]
    )
    first = rng.random(N) < 1 / (1 + np.exp(-logit))
    rows = np.zeros((N, 4))
    rows[np.arange(N), index.first[pair]] = 1
    rows[np.arange(N), index.second[pair]] = -1
    theirs = sm.GLM(first.astype(float), rows[:, 1:], family=sm.families.Binomial()).fit(
        cov_type="cluster", cov_kwds={"groups": people, "use_correction": False}, tol=1e-13
    )
    outcome = 3 * pair + np.where(first, 0, 1)
    counts = np.bincount(outcome, minlength=18).reshape(6, 3).astype(float)
    fit = fit_davidson(*to_matrices(counts))
    scores = fit.scores(group_counts(outcome, people, 4))
    assert scores == pytest.approx(scores_by(vote_scores(fit, outcome), people), abs=1e-9)
    contrast = np.array([-1.0, 1, 0, 0, 0])
    ours = contrast @ fit.sandwich(scores) @ contrast
    assert ours == pytest.approx(theirs.cov_params()[0, 0] * G / (G - 1), rel=1e-7)


def test_left_bias_is_the_intercept_of_a_logistic_regression():
    rng = np.random.default_rng(8)
    left, right = rng.integers(1, 9, (2, 4, 4)).astype(float)
    np.fill_diagonal(left, 0)
    np.fill_diagonal(right, 0)
    i, j = np.nonzero(left)
    rows = np.zeros((len(i), 4))
    rows[np.arange(len(i)), i] += 1
    rows[np.arange(len(i)), j] -= 1
    design = np.column_stack([rows[:, 1:], np.ones(len(i))])
    data = np.column_stack([left[i, j], right[i, j]])
    theirs = sm.GLM(data, design, family=sm.families.Binomial()).fit(tol=1e-13)
    bias = fit_left_bias(left, right)
    assert bias.estimate == pytest.approx(theirs.params[-1], abs=1e-8)
    assert bias.se == pytest.approx(theirs.bse[-1], abs=1e-8)
    assert bias.theta[1:] - bias.theta[0] == pytest.approx(theirs.params[:-1], abs=1e-8)


@given(st.integers(0, 2**31))
def test_swapping_labels_swaps_strengths(seed):
    rng = np.random.default_rng(seed)
    wins, ties = to_matrices(rng.integers(1, 9, (6, 3)).astype(float))
    order = rng.permutation(4)
    straight = fit_davidson(wins, ties)
    swapped = fit_davidson(wins[np.ix_(order, order)], ties[np.ix_(order, order)])
    assert swapped.theta == pytest.approx(straight.theta[order], abs=1e-8)
    assert swapped.se == pytest.approx(straight.se[order], abs=1e-8)


@given(st.integers(0, 2**31))
def test_turning_all_votes_round_turns_strengths_round(seed):
    wins, ties = to_matrices(random_counts(seed))
    assert fit_davidson(wins.T, ties).theta == pytest.approx(
        -fit_davidson(wins, ties).theta, abs=1e-8
    )


def test_a_batch_equals_single_fits():
    many = np.random.default_rng(0).integers(0, 4, (60, 6, 3)).astype(float)
    batch = fit_batch(many, 4)
    for counts, theta in zip(many, batch.theta, strict=True):
        assert fit_davidson(*to_matrices(counts)).theta == pytest.approx(theta, abs=1e-7)


def test_a_method_that_always_wins_gets_a_finite_labelled_estimate():
    """The penalised optimum, found by another optimiser."""
    wins, ties = np.array([[0, 5, 4], [0, 0, 3], [0, 2, 0]], float), np.zeros((3, 3))
    fit = fit_davidson(wins, ties)
    counts, A = pair_counts(wins, ties), pair_index(3).design

    def objective(theta):
        eta = A[:, :2] @ np.append(theta, 0)
        return -(counts[:, :2] * (eta - np.logaddexp.reduce(eta, 1)[:, None])).sum() + (
            theta @ theta / (2 * 1.5**2)
        )

    best = minimize(objective, np.zeros(3), tol=1e-12).x
    assert fit.prior
    assert fit.theta == pytest.approx(best - best.mean(), abs=1e-5)
    assert np.isfinite(fit.se).all()


def test_strong_connection_and_components():
    chain = np.array([[0, 1, 0], [0, 0, 1], [0, 0, 0]], bool)
    ring = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]], bool)
    assert strongly_connected(np.stack([chain, ring])).tolist() == [False, True]
    assert components(chain) == [[0], [1], [2]]
    assert components(ring) == [[0, 1, 2]]


@pytest.mark.parametrize("counts", [np.zeros((6, 3)), np.eye(3)[[2] * 6] * 4])
def test_nothing_and_all_ties_leave_everyone_equal(counts):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = fit_davidson(*to_matrices(counts))
    assert fit.theta == pytest.approx(np.zeros(4), abs=1e-9)


def test_without_ties_the_fit_test_has_one_outcome_less():
    wins = np.array([[0, 7, 3], [4, 0, 6], [5, 2, 0]], float)
    fit = fit_bradley_terry(wins)
    G, X2, df, p_G, p_X = goodness_of_fit(fit)
    expected = (wins + wins.T) / (1 + np.exp(fit.theta[None, :] - fit.theta[:, None]))
    off = ~np.eye(3, dtype=bool)
    assert pytest.approx(2 * (wins[off] * np.log(wins[off] / expected[off])).sum()) == G
    assert pytest.approx(((wins - expected)[off] ** 2 / expected[off]).sum()) == X2
    assert df == 1
    assert 0 < p_G < 1
    assert 0 < p_X < 1
    assert fit.nu == 0


def test_elo_400_is_odds_of_ten():
    assert np.log(10) * ELO_PER_LOGIT == pytest.approx(400)
