import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from study.intervals import (
    PURE_PAPER,
    clopper_pearson,
    clustered_mean,
    holm,
    published_share,
    sign_test,
    t_test,
    uniformity,
    wilson,
)


@given(st.integers(0, 300), st.integers(1, 300), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_wilson_and_exact_agree_with_statsmodels(k, n, confidence):
    k = min(k, n)
    for ours, method in ((wilson, "wilson"), (clopper_pearson, "beta")):
        theirs = proportion_confint(k, n, 1 - confidence, method=method)
        assert ours(k, n, confidence) == pytest.approx(theirs, abs=1e-12)


def test_no_votes_have_no_interval():
    assert all(math.isnan(side) for side in wilson(0, 0))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_agrees_with_statsmodels(p):
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1].tolist(), abs=1e-12)


def test_holm_of_the_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_an_unknown_p_still_counts_in_the_family():
    adjusted = holm([0.01, math.nan])
    assert adjusted[0] == pytest.approx(0.02)
    assert math.isnan(adjusted[1])


def test_the_sign_test_is_exact():
    assert sign_test(16, 8) == pytest.approx(0.1515896, abs=1e-7)
    assert sign_test(16, 6) == pytest.approx(0.0524788, abs=1e-7)
    assert sign_test(0, 0) == 1


def test_uniformity_of_the_worked_example():
    assert uniformity([16, 8, 6]) == pytest.approx((5.6, 2, 0.0608101), abs=1e-7)


def naive_twoway(y, participants, images):
    """The two-way variance by double loop over pairs of votes that share a cluster."""
    N, mean = len(y), sum(y) / len(y)
    e = [value - mean for value in y]

    def cluster(codes):
        G = len(set(codes))
        pairs = ((i, j) for i in range(N) for j in range(N) if codes[i] == codes[j])
        return G / (G - 1) * sum(e[i] * e[j] for i, j in pairs)

    vp, vi, v0 = cluster(participants), cluster(images), sum(value * value for value in e)
    return vp, vi, v0, max(vp + vi - v0, vp, vi)


@given(st.integers(0, 2**31))
def test_clustered_errors_equal_the_double_loop(seed):
    rng = np.random.default_rng(seed)
    shape = rng.integers(2, 6, 2)
    people, pictures = (grid.ravel() for grid in np.indices(shape))
    kept = np.append([0, len(people) - 1], rng.permutation(len(people))[: rng.integers(4, 25)])
    people, pictures = (
        np.unique(codes[kept], return_inverse=True)[1] for codes in (people, pictures)
    )
    y = rng.integers(0, 2, len(people)).astype(float)
    fit = clustered_mean(y[:, None], people, pictures)
    vp, vi, v0, v2 = naive_twoway(y.tolist(), people.tolist(), pictures.tolist())
    got = (fit.v_participant[0], fit.v_image[0], fit.v_independent[0], fit.v_twoway[0])
    assert got == pytest.approx((vp, vi, v0, v2), abs=1e-9)
    assert fit.df_twoway == min(len(set(people.tolist())), len(set(pictures.tolist()))) - 1


def test_clustered_t_equals_the_t_test_on_participant_means():
    rng = np.random.default_rng(3)
    y = rng.integers(-1, 2, (7, 9)).astype(float)
    people, pictures = (grid.ravel() for grid in np.indices(y.shape))
    fit = clustered_mean(y.reshape(-1, 1), people, pictures)
    theirs = ttest_1samp(y.mean(1), 0)
    t, p = t_test(float(fit.mean[0]), float(fit.se_participant[0]), 6)
    assert (t, p) == pytest.approx((theirs.statistic, theirs.pvalue), abs=1e-12)


def test_one_participant_has_no_participant_error():
    fit = clustered_mean(np.array([[0.0], [1.0], [1.0]]), np.zeros(3, int), np.arange(3))
    assert math.isnan(fit.se_participant[0])
    assert math.isnan(fit.ci_twoway()[0][0])


@pytest.mark.parametrize(
    ("design_effect", "low", "high", "at_05"),
    [(1, 35.5, 42.5, 32.7), (2, 34.1, 44.0, 30.4), (4, 32.2, 46.1, 27.2), (6, 30.8, 47.7, 24.8)],
)
def test_the_published_38_9_percent_means(design_effect, low, high, at_05):
    published = published_share(**PURE_PAPER, design_effect=design_effect)
    assert [round(100 * side, 1) for side in published.wilson] == [low, high]
    assert round(100 * published.runner_up_at_05, 1) == at_05


def test_the_published_share_with_independent_votes():
    published = published_share(**PURE_PAPER)
    assert published.p_above_chance == pytest.approx(8e-48, rel=0.1)
    assert [round(100 * side, 1) for side in published.exact] == [35.4, 42.5]
    assert round(100 * published.runner_up_at_01, 1) == 30.9
    assert [round(100 * side, 1) for side in published.runner_up_range] == [12.2, 61.1]


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ({"k": 5, "n": 4, "methods": 3}, "not 5, 4, 3"),
        ({"k": 1, "n": 4, "methods": 1}, "not 1, 4, 1"),
        ({"k": 1, "n": 4, "methods": 2, "design_effect": 0.5}, "1 or more, not 0.5"),
    ],
)
def test_impossible_shares_are_refused(numbers, sentence):
    with pytest.raises(ValueError, match=sentence):
        published_share(**numbers)
