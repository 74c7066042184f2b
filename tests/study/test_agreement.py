import math

import choix
import krippendorff
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import friedmanchisquare
from statsmodels.discrete.conditional_models import ConditionalLogit
from statsmodels.stats.inter_rater import fleiss_kappa as their_kappa

from study.agreement import expected_alpha, fleiss_kappa, friedman, krippendorff_alpha
from study.plackett_luce import choice_sets, fit_plackett_luce


@pytest.mark.parametrize("seed", range(6))
def test_alpha_agrees_with_krippendorff(seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 4, (12, 5))
    counts[0] = [1, 0, 0, 0, 0]  # a unit with one rating counts for nothing
    theirs = krippendorff.alpha(value_counts=counts, level_of_measurement="nominal")
    assert krippendorff_alpha(counts.astype(float)) == pytest.approx(theirs, abs=1e-12)


def test_perfect_agreement_is_one_and_a_single_category_is_undefined():
    assert krippendorff_alpha(np.array([[3.0, 0], [0, 3]])) == 1
    assert math.isnan(krippendorff_alpha(np.array([[3.0, 0], [3, 0]])))


@pytest.mark.parametrize("seed", range(3))
def test_kappa_agrees_with_statsmodels(seed):
    counts = np.random.default_rng(seed).multinomial(7, [0.4, 0.3, 0.2, 0.1], 9)
    assert fleiss_kappa(counts.astype(float)) == pytest.approx(their_kappa(counts), abs=1e-12)


def test_kappa_needs_equally_many_ratings():
    assert math.isnan(fleiss_kappa(np.array([[2.0, 1], [2, 2]])))


@given(st.integers(0, 2**31))
def test_friedman_agrees_with_scipy(seed):
    table = np.random.default_rng(seed).integers(0, 4, (8, 4))
    theirs = friedmanchisquare(*table.T)
    if math.isfinite(theirs.statistic):
        ours = friedman(table.astype(float))
        assert (ours[0], ours[2]) == pytest.approx((theirs.statistic, theirs.pvalue), abs=1e-9)


def test_friedman_of_all_ties_is_undefined():
    assert math.isnan(friedman(np.ones((4, 3)))[0])


def test_expected_alpha_is_zero_where_units_do_not_differ_and_high_where_they_do():
    ratings = np.full(200, 10.0)
    same = np.tile([0.5, 0.3, 0.2], (200, 1))
    # 200 draws of 200 units: the standard error of the mean is below 0.001
    assert expected_alpha(ratings, same, seed=1) == pytest.approx(0, abs=0.005)
    sure = np.eye(3)[np.arange(200) % 3]
    assert expected_alpha(ratings, sure, seed=1) == 1


def random_choices(seed, M=5, N=120):
    rng = np.random.default_rng(seed)
    shown = rng.random((N, M)) < 0.8
    shown[shown.sum(1) < 2] = True
    noise = np.where(shown, rng.gumbel(size=(N, M)) + np.linspace(0.8, -0.8, M), -np.inf)
    return shown, noise.argmax(1)


@pytest.mark.parametrize("seed", range(3))
def test_plackett_luce_agrees_with_choix(seed):
    shown, choice = random_choices(seed)
    data = [
        (int(c), tuple(int(m) for m in np.flatnonzero(s) if m != c))
        for s, c in zip(shown, choice, strict=True)
    ]
    fit = fit_plackett_luce(*choice_sets(shown, choice))
    assert not fit.prior
    assert fit.theta == pytest.approx(choix.ilsr_top1(5, data, tol=1e-12), abs=1e-6)


def test_plackett_luce_errors_are_the_conditional_logits():
    shown, choice = random_choices(7)
    trial, method = np.nonzero(shown)
    x = np.eye(5)[method][:, 1:]
    fit = fit_plackett_luce(*choice_sets(shown, choice))
    model = ConditionalLogit((choice[trial] == method).astype(float), x, groups=trial)
    theirs = model.fit(disp=0)
    # Their optimiser stops about 1e-4 short; the test against choix is the sharp one.
    assert fit.theta[1:] - fit.theta[0] == pytest.approx(theirs.params, abs=3e-4)
    assert fit.loglik == pytest.approx(theirs.llf, abs=1e-6)
    centre = np.eye(5)[:, 1:] - 1 / 5  # theta (centred) from the differences
    covariance = centre @ theirs.cov_params() @ centre.T
    assert fit.se == pytest.approx(np.sqrt(np.diag(covariance)), rel=1e-3)


def test_a_method_never_picked_gets_a_labelled_finite_estimate():
    fit = fit_plackett_luce(*choice_sets(np.ones((9, 3), bool), np.array([0] * 5 + [1] * 4)))
    assert fit.prior
    assert np.isfinite(fit.theta).all()
    assert fit.theta[0] > fit.theta[1] > fit.theta[2]
