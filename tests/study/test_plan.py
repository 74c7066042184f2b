import math

import numpy as np
import pytest
from scipy import stats

from study.design import StudyDesign
from study.new import main as new
from study.plan import (
    dry_run,
    estimate_sds,
    main,
    pairs_needed,
    power_table,
    trials_per_participant,
)
from study.simulate import Crowd, calibrate, judge_pair, picks, power, runner_up_shares
from tests.study.studies import make_study, results_folder


@pytest.mark.parametrize(
    ("preference", "eighty", "ninety"),
    [(0.55, 783, 1047), (0.6, 194, 259), (0.65, 85, 113), (0.7, 47, 62), (0.75, 29, 38)],
)
def test_votes_needed_for_a_pair(preference, eighty, ninety):
    assert pairs_needed(preference) == eighty
    assert pairs_needed(preference, 0.9) == ninety


@pytest.mark.parametrize("preference", [0.5, 0, 1, -1])
def test_an_impossible_preference_is_refused(preference):
    with pytest.raises(ValueError, match="not 1/2"):
        pairs_needed(preference)


# Published with the plan of this study: 300 to 800 simulated studies each.
@pytest.mark.parametrize(
    ("runner_up", "people", "images", "twoway", "participant"),
    [(0.22, 15, 20, 0.47, 0.73), (0.26, 15, 50, 0.48, 0.67)],
)
def test_power_is_the_published_one(runner_up, people, images, twoway, participant):
    found = power(runner_up_shares(0.389, runner_up, 6), people, images, runs=300, seed=1)
    # Both have Monte Carlo errors: 4 standard errors of a difference of two of 300 runs.
    for ours, theirs in ((found.twoway, twoway), (found.participant, participant)):
        assert abs(ours - theirs) < 4 * math.sqrt(2 * theirs * (1 - theirs) / 300)


def test_equal_leaders_are_told_apart_as_often_as_chance_allows():
    """One-sided 2.5 %: 400 studies, four standard errors above at most."""
    found = power((0.3, 0.3, 0.2, 0.2), 20, 30, runs=400, seed=2)
    assert found.twoway <= 0.025 + 4 * math.sqrt(0.025 * 0.975 / 400)


def test_a_calibrated_crowd_has_the_shares_asked_for():
    shares = runner_up_shares(0.389, 0.3, 6)
    crowd = calibrate(shares, 0.4, 0.8)
    assert sum(shares) == pytest.approx(1)
    choice = picks(crowd, np.random.default_rng(0), 400, 400).ravel()
    # 400 pictures with SD 0.8: standard error of a share below 0.01
    assert np.bincount(choice, minlength=6) / choice.size == pytest.approx(shares, abs=0.03)
    with pytest.raises(ValueError, match="sum to 1"):
        calibrate((0.5, 0.4), 0.4, 0.8)


def test_without_spread_shares_are_a_softmax():
    crowd = Crowd((0.5, 0.0, -0.5), 0, 0)
    expected = np.exp([0.5, 0, -0.5]) / np.exp([0.5, 0, -0.5]).sum()
    assert crowd.mean_shares() == pytest.approx(expected)


def test_simulated_pairs_follow_davidson():
    rng = np.random.default_rng(3)
    n = 20_000
    outcomes = [judge_pair(np.array([0.8, 0.0]), 0, 1, 0.7, rng) for _ in range(n)]
    weights = np.array([np.exp(0.8), 1, 0.7 * np.exp(0.4)])
    observed = np.bincount(outcomes, minlength=3)
    assert stats.chisquare(observed, n * weights / weights.sum()).pvalue > 1e-4


def test_a_pilots_spreads_are_found_again():
    crowd = calibrate(runner_up_shares(0.35, 0.25, 5), 0.3, 0.8)
    choice = picks(crowd, np.random.default_rng(4), 40, 60)
    people, pictures = (grid.ravel() for grid in np.indices(choice.shape))
    found = estimate_sds(choice.ravel(), people, pictures, 5)
    assert found == pytest.approx((0.3, 0.8), abs=0.17)


def test_a_power_table_has_a_row_for_each_number_and_grows_with_pictures():
    shares = runner_up_shares(0.389, 0.22, 6)
    table = power_table(shares, 0.4, 0.8, people=(15, 20), images=(10, 50), runs=80)
    found = {(row.participants, row.images): row.twoway for row in table}
    assert set(found) == {(15, 10), (15, 50), (20, 10), (20, 50)}
    assert found[15, 50] > found[15, 10] + 0.15


@pytest.mark.parametrize("mode", ["pick_best", "pairwise"])
def test_a_dry_run_goes_through_the_real_store_and_analysis(mode, tmp_path):
    design = StudyDesign.of_mode(mode, golden=3, repeats=1, training=1)
    study = make_study(mode, images=11, methods="ABC", design=design)
    crowd = Crowd((1.5, 0.0, -0.5), 0.2, 0.2)
    result = dry_run(
        study, tmp_path, judges=6, crowd=crowd, careless=0.3, leave=0.2, seed=5, bootstrap=50
    )
    assert result["cleaning"]["study_hash"] == study.hash
    assert result["screened"]["leader"] == "A"
    assert result["headline"].startswith("A ")
    assert result["report_card"]["chain_verifies"]
    assert result["report_card"]["participants_started"] == 6
    assert 0 < len(result["cleaning"]["excluded"]) < 6
    assert result["cleaning"]["dropped_same_event"] == 0  # the store answered the retries
    assert (tmp_path / "dry-run.sqlite").exists()


def test_the_same_seed_gives_the_same_dry_run(tmp_path):
    study = make_study(images=3, methods="ABC", design=StudyDesign(golden=1, repeats=0))
    results = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        result = dry_run(study, tmp_path / name, judges=2, seed=6, bootstrap=20)
        del result["report_card"]["chain_head"]  # consents carry a random nonce
        results.append(result)
    assert results[0] == results[1]


def test_trials_are_counted():
    assert trials_per_participant(make_study(images=40)) == 40 + 5 + 4 + 2
    assert trials_per_participant(make_study("pairwise", images=40)) == 60 + 8 + 4 + 2


def test_the_command_prints_a_plan(tmp_path, capsys):
    results = results_folder(tmp_path / "results" / "lake", images=4)
    file = tmp_path / "study.json"
    new([str(results), "--out", str(file)])
    capsys.readouterr()
    out = tmp_path / "plan.json"
    assert main([str(file), "--runs", "2", "--judges", "2", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "Power of first against second" in printed
    assert "As designed, 30 people × 4 pictures" in printed
    assert "the audit chain verifies" in printed
    assert out.exists()


def test_a_wrong_number_of_shares_is_refused(tmp_path, capsys):
    results = results_folder(tmp_path / "results" / "lake", images=4)
    file = tmp_path / "study.json"
    new([str(results), "--out", str(file)])
    assert main([str(file), "--shares", "0.6", "0.4", "--judges", "0"]) == 2
    assert "3 methods need 3 shares, not 2" in capsys.readouterr().err
