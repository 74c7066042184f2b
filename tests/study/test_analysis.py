"""The result JSON against the worked example, and against naive twins on messy votes."""

import itertools
import json
import math
import statistics
from collections import Counter, defaultdict

import numpy as np
import pytest
from scipy import stats

from study.analysis import analyse, headline, p_text, plain
from study.tallies import AnalysisPlan
from study.votes import Screening, VotesError
from tests.study.rows import HASH, frame, mess_up, pair_rows, pick_rows, sheet_example, vote

MICRO = 6e-8
BEST = AnalysisPlan("pick_best", tuple("ABC"), Screening(), bootstrap=200)


@pytest.fixture(scope="module")
def worked():
    return analyse(frame(sheet_example()), BEST, study_hash=HASH)


def test_worked_example_shares_and_errors(worked):
    methods = worked["unscreened"]["methods"]
    expected = {
        "A": (16, 0.5333333, 0.3614230, 0.6976761, 0.0910840, 0.0623610, 0.1429841, 0.1429841),
        "B": (8, 0.2666667, 0.1418266, 0.4444796, 0.0807373, 0.0408248, 0.0843274, 0.0843274),
        "C": (6, 0.2, 0.0950511, 0.3730570, 0.0730297, 0.0333333, 0.1264911, 0.1264911),
    }
    keys = [
        "count",
        "share",
        "wilson_lo",
        "wilson_hi",
        "se_naive",
        "se_participant",
        "se_image",
        "se_twoway",
    ]
    for name, values in expected.items():
        assert [methods[name][key] for key in keys] == pytest.approx(values, abs=MICRO)
        assert methods[name]["shown"] == 30
        assert methods[name]["deff_participant"] == pytest.approx(
            (values[5] / values[4]) ** 2, 1e-5
        )


def test_worked_example_lead(worked):
    R = worked["unscreened"]
    assert (R["leader"], R["order"]) == ("A", ["A", "B", "C"])
    b, c = R["leader_tests"]
    assert b["vs"] == "B"
    assert b["diff"] == pytest.approx(0.2666667, abs=MICRO)
    assert b["t_participant"] == pytest.approx(2.6666667, abs=MICRO)
    assert b["p_participant"] == pytest.approx(0.0560000, abs=MICRO)
    assert b["se_twoway"] == pytest.approx(0.1977653, abs=MICRO)
    assert b["t_twoway"] == pytest.approx(1.3483997, abs=MICRO)
    assert b["p_twoway"] == pytest.approx(0.2488209, abs=MICRO)
    assert b["p_naive"] == pytest.approx(0.1515896, abs=MICRO)
    assert c["p_naive"] == pytest.approx(0.0524788, abs=MICRO)
    assert c["p_naive_holm"] == pytest.approx(2 * c["p_naive"])
    assert b["p_naive_holm"] == pytest.approx(b["p_naive"])


def test_worked_example_other_tests(worked):
    R = worked["unscreened"]
    assert R["chi2_uniform"] == pytest.approx([5.6, 2, 0.0608101], abs=MICRO)
    assert R["friedman_images"] == pytest.approx([2.1739130, 2, 0.3372413], abs=MICRO)
    assert R["friedman_participants"] == pytest.approx([7.4285714, 2, 0.0243728], abs=MICRO)
    assert R["kripp_alpha"] == pytest.approx(0.2270221, abs=MICRO)
    assert R["fleiss_kappa"] == pytest.approx(0.2003676, abs=MICRO)
    assert list(R["pl_theta"].values()) == pytest.approx(
        [0.5579921, -0.1351550, -0.4228371], abs=MICRO
    )
    assert list(R["pl_se"].values()) == pytest.approx([0.2453267, 0.2846375, 0.3080705], abs=MICRO)
    assert list(R["pl_prob"].values()) == pytest.approx([16 / 30, 8 / 30, 6 / 30])
    assert R["pl_loglik"] == pytest.approx(-30.2884127, abs=MICRO)


def test_worked_example_headline():
    """The people voted six times each, so the screening needs a threshold below that."""
    plan = AnalysisPlan("pick_best", tuple("ABC"), Screening(main_min=5), bootstrap=200)
    result = analyse(frame(sheet_example()), plan, study_hash=HASH)
    assert result["headline"] == (
        "A was picked in 53.3 % of 30 votes (5 participants, 6 images; two-way 95 % CI "
        "13.6-93.0 %, chance 33.3 %); it led the runner-up by 26.7 points, p = .25: "
        "not distinguishable."
    )


def test_a_study_in_which_everyone_is_screened_out_says_so(worked):
    assert worked["screened"]["n_decided"] == 0
    assert worked["screened"]["leader"] is None
    assert worked["headline"] == "No vote that counts: nothing can be said."
    missing = set(worked["unscreened"]) - set(worked["screened"])
    extras = {"bootstrap", "robustness", "breakdowns", "golden", "pl_prior", "fleiss_kappa"}
    extras |= {"kripp_alpha_expected", "self_consistency_expected", "shown_at_position"}
    assert missing == extras


PICK_KEYS = {
    "n_main",
    "n_decided",
    "n_skip",
    "n_participants",
    "n_images",
    "methods",
    "chi2_uniform",
    "leader",
    "order",
    "leader_tests",
    "pl_theta",
    "pl_se",
    "pl_prob",
    "pl_loglik",
    "kripp_alpha",
    "friedman_participants",
    "friedman_images",
    "position_counts",
    "position_chi2",
    "by_dataset",
    "by_scene",
    "self_consistency",
}
PAIR_KEYS = {
    "n_main",
    "n_used",
    "n_tie",
    "n_skip",
    "n_participants",
    "wins",
    "ties",
    "davidson_theta",
    "davidson_se",
    "davidson_se_cluster",
    "davidson_nu",
    "davidson_se_log_nu",
    "davidson_loglik",
    "davidson_deviance",
    "order",
    "leader_diff",
    "bt_halftie_theta",
    "bt_halftie_prob",
    "bt_noties_theta",
    "bt_noties_gof",
    "pair_tests",
    "left_right",
    "left_bias_logodds",
    "bt_left_theta_vs_A",
    "kripp_alpha",
    "self_consistency",
    "by_dataset",
}
METHOD_KEYS = {
    "count",
    "shown",
    "share",
    "rate_when_shown",
    "wilson_lo",
    "wilson_hi",
    "se_naive",
    "se_participant",
    "se_image",
    "se_twoway",
    "deff_participant",
    "ci_twoway_t",
}
TEST_KEYS = {
    "vs",
    "diff",
    "p_naive",
    "t_participant",
    "p_participant",
    "t_twoway",
    "p_twoway",
    "p_naive_holm",
    "p_participant_holm",
    "p_twoway_holm",
}
CLEANING_KEYS = {
    "rows_raw",
    "dropped_foreign_hash",
    "dropped_same_event",
    "dropped_same_trial",
    "dropped_withdrawn",
    "rows_after_cleaning",
    "participants_after_cleaning",
    "excluded",
    "participants_kept",
    "rows_kept",
    "study_hash",
}


@pytest.fixture(scope="module")
def picks():
    rows = pick_rows(1)
    messy, dropped = mess_up(rows, 2)
    result = analyse(frame(messy), withdrawn={"p02", "nobody"})
    return rows, messy, dropped, result


@pytest.fixture(scope="module")
def pairs():
    rows = pair_rows(4)
    messy, dropped = mess_up(rows, 5)
    result = analyse(frame(messy), withdrawn={"p01"})
    return rows, messy, dropped, result


@pytest.mark.parametrize("which", ["picks", "pairs"])
def test_cleaning_undoes_the_mess(which, request):
    rows, messy, (retries, foreign, seconds), result = request.getfixturevalue(which)
    gone = "p02" if which == "picks" else "p01"
    cleaning = result["cleaning"]
    kept = [row for row in rows if row["participant"] != gone]
    assert set(cleaning) == CLEANING_KEYS
    assert cleaning["study_hash"] == HASH
    assert cleaning["rows_raw"] == len(messy)
    assert cleaning["dropped_foreign_hash"] == foreign
    assert cleaning["dropped_same_event"] == retries
    assert cleaning["dropped_same_trial"] == seconds
    assert cleaning["dropped_withdrawn"] == len(rows) - len(kept)
    assert cleaning["rows_after_cleaning"] == len(kept)
    assert cleaning["participants_after_cleaning"] == len({row["participant"] for row in kept})
    clean = analyse(frame(kept))
    assert result["unscreened"] == clean["unscreened"]
    assert result["screened"] == clean["screened"]


def naive_reasons(rows, fast, straight):
    """Screening by the sheet's words."""
    reasons = defaultdict(list)
    for who in {row["participant"] for row in rows}:
        mine = [row for row in rows if row["participant"] == who]
        main = [row for row in mine if row["kind"] == "main"]
        golden = [row["choice"] == row["expected"] for row in mine if row["kind"] == "golden"]
        if len(golden) >= 3 and sum(golden) / len(golden) < 0.75:
            reasons[who].append("golden")
        if main and statistics.median(row["response_ms"] for row in main) < fast:
            reasons[who].append("too_fast")
        positions = [row["choice_position"] for row in main if row["choice_position"] >= 0]
        top = max(Counter(positions).values(), default=0)
        if len(positions) >= 12 and top / len(positions) >= straight:
            reasons[who].append("straightline")
        if len(main) < 10:
            reasons[who].append("too_few")
    return dict(reasons)


@pytest.mark.parametrize(
    ("which", "fast", "straight"), [("picks", 2500, 0.7), ("pairs", 1500, 0.9)]
)
def test_screening_excludes_for_the_written_reasons(which, fast, straight, request):
    rows, _, _, result = request.getfixturevalue(which)
    gone = "p02" if which == "picks" else "p01"
    left = [row for row in rows if row["participant"] != gone]
    expected = naive_reasons(left, fast, straight)
    assert expected  # else this tests nothing
    assert result["cleaning"]["excluded"] == expected
    kept = [row for row in left if row["participant"] not in expected]
    assert result["cleaning"]["rows_kept"] == len(kept)
    assert result["cleaning"]["participants_kept"] == len({row["participant"] for row in kept})


def test_every_key_of_picks_is_there(picks):
    for R in (picks[3]["screened"], picks[3]["unscreened"]):
        assert set(R) >= PICK_KEYS
        assert all(set(row) == METHOD_KEYS for row in R["methods"].values())
        assert all(set(row) >= TEST_KEYS for row in R["leader_tests"])


def test_every_key_of_pairs_is_there(pairs):
    for R in (pairs[3]["screened"], pairs[3]["unscreened"]):
        assert set(R) >= PAIR_KEYS
        keys = {"vs", "diff", "se", "se_cluster"}
        assert all(set(row) >= keys for row in R["leader_diff"])
        assert all(
            set(row) == {"a", "b", "wins_a", "wins_b", "ties", "p", "p_holm"}
            for row in R["pair_tests"]
        )


def test_counts_of_picks_are_the_naive_ones(picks):
    rows, _, _, result = picks
    R = result["unscreened"]
    mine = [row for row in rows if row["participant"] != "p02"]
    main = [row for row in mine if row["kind"] == "main"]
    decided = [row for row in main if row["choice"] != "skip"]
    N = len(decided)
    assert (R["n_main"], R["n_decided"], R["n_skip"]) == (len(main), N, len(main) - N)
    counts = Counter(row["choice"] for row in decided)
    for name, row in R["methods"].items():
        shown = sum(name in vote["methods_shown"].split("|") for vote in decided)
        assert (row["count"], row["shown"]) == (counts[name], shown)
        assert row["share"] == pytest.approx(counts[name] / N)
        assert row["rate_when_shown"] == pytest.approx(counts[name] / shown)
    assert R["order"] == sorted("ABCD", key=lambda name: (-counts[name], name))
    assert R["methods"]["D"]["shown"] < N  # some outputs were missing
    for factor in ("dataset", "scene"):
        levels = Counter(row[factor] for row in decided)
        each = Counter((row[factor], row["choice"]) for row in decided)
        expected = {d: {m: [each[d, m], n] for m in "ABCD"} for d, n in levels.items()}
        assert R[f"by_{factor}"] == expected
    full = Counter(
        row["choice_position"] for row in decided if row["methods_shown"].count("|") == 3
    )
    assert R["position_counts"] == [full[i] for i in range(4)]
    assert R["position_chi2"][0] == pytest.approx(stats.chisquare(R["position_counts"]).statistic)
    first = {(row["participant"], row["trial_id"]): row["choice"] for row in mine}
    again = [row for row in mine if row["kind"] == "repeat"]
    agree = sum(first[row["participant"], row["repeat_of"]] == row["choice"] for row in again)
    assert R["self_consistency"] == [agree, len(again)]


def test_friedman_of_picks_ranks_shares_within_blocks(picks):
    rows, _, _, result = picks
    decided = [r for r in rows if r["kind"] == "main" and r["choice"] != "skip"]
    decided = [row for row in decided if row["participant"] != "p02"]
    for key, block in (("friedman_participants", "participant"), ("friedman_images", "image_id")):
        table = defaultdict(lambda: [0.0] * 4)
        for row in decided:
            table[row[block]]["ABCD".index(row["choice"])] += 1
        theirs = stats.friedmanchisquare(*np.array(list(table.values())).T)
        expected = [theirs.statistic, 3, theirs.pvalue]
        assert result["unscreened"][key] == pytest.approx(expected)


def test_counts_of_pairs_are_the_naive_ones(pairs):
    rows, _, _, result = pairs
    R = result["unscreened"]
    mine = [row for row in rows if row["participant"] != "p01"]
    main = [row for row in mine if row["kind"] == "main"]
    used = [row for row in main if row["choice"] != "skip"]
    ties = [row for row in used if row["choice"] == "tie"]
    assert (R["n_main"], R["n_used"], R["n_tie"]) == (len(main), len(used), len(ties))
    assert R["n_skip"] == len(main) - len(used)
    wins = Counter()
    for row in used:
        a, b = row["methods_shown"].split("|")
        if row["choice"] != "tie":
            wins[row["choice"], b if row["choice"] == a else a] += 1
    assert R["wins"] == [[wins[a, b] for b in "ABCD"] for a in "ABCD"]
    tied = Counter(frozenset(row["methods_shown"].split("|")) for row in ties)
    assert R["ties"] == [[tied[frozenset((a, b))] if a != b else 0 for b in "ABCD"] for a in "ABCD"]
    left = sum(row["choice_position"] == 0 for row in used)
    right = sum(row["choice_position"] == 1 for row in used)
    p = stats.binomtest(left, left + right).pvalue
    assert R["left_right"] == pytest.approx([left, right, p])
    assert [(t["a"], t["b"]) for t in R["pair_tests"]] == list(itertools.combinations("ABCD", 2))
    for test in R["pair_tests"]:
        a, b = test["a"], test["b"]
        assert (test["wins_a"], test["wins_b"]) == (wins[a, b], wins[b, a])
        assert test["p"] == pytest.approx(
            stats.binomtest(wins[a, b], wins[a, b] + wins[b, a]).pvalue
        )
    levels = Counter(row["dataset"] for row in used)
    assert {d: row["n"] for d, row in R["by_dataset"].items()} == dict(levels)
    assert R["bt_left_theta_vs_A"]["A"] == 0
    assert math.isclose(sum(R["bt_halftie_prob"].values()), 1)
    first = {(row["participant"], row["trial_id"]): row["choice"] for row in mine}
    again = [row for row in mine if row["kind"] == "repeat"]
    agree = sum(first[row["participant"], row["repeat_of"]] == row["choice"] for row in again)
    assert R["self_consistency"] == [agree, len(again)]


def test_alpha_of_pairs_counts_a_tie_as_a_category(pairs):
    krippendorff = pytest.importorskip("krippendorff")
    rows, _, _, result = pairs
    units = defaultdict(lambda: [0] * 5)
    for row in rows:
        if row["kind"] == "main" and row["choice"] != "skip" and row["participant"] != "p01":
            unit = row["image_id"], frozenset(row["methods_shown"].split("|"))
            units[unit]["ABCD".find(row["choice"]) if row["choice"] != "tie" else 4] += 1
    table = np.array([row for row in units.values() if sum(row) >= 2])
    theirs = krippendorff.alpha(value_counts=table, level_of_measurement="nominal")
    assert result["unscreened"]["kripp_alpha"] == pytest.approx(theirs, abs=1e-9)


def relabel(rows, names):
    """The same votes with methods renamed."""
    out = []
    for row in rows:
        shown = "|".join(names.get(m, m) for m in row["methods_shown"].split("|"))
        choice = names.get(row["choice"], row["choice"])
        out.append({**row, "methods_shown": shown, "choice": choice})
    return out


@pytest.mark.parametrize("make", [pick_rows, pair_rows])
def test_swapping_method_names_swaps_their_numbers(make):
    rows = make(9)
    mode = rows[0]["mode"]
    names = dict(zip("ABCD", "CADB", strict=True))
    plan = AnalysisPlan(mode, tuple("ABCD"), Screening.of_mode(mode), bootstrap=50)
    swapped = AnalysisPlan(
        mode, tuple(names[m] for m in "ABCD"), Screening.of_mode(mode), bootstrap=50
    )
    before = analyse(frame(rows), plan)["screened"]
    after = analyse(frame(relabel(rows, names)), swapped)["screened"]
    key = "pl_theta" if mode == "pick_best" else "davidson_theta"
    assert after[key] == pytest.approx({names[m]: v for m, v in before[key].items()}, abs=1e-9)
    assert after["order"] == [names[m] for m in before["order"]]


def test_the_headline_claims_only_what_the_twoway_test_gives_after_holm():
    R = {
        "leader": "A", "n_decided": 90, "n_participants": 9, "n_images": 10,
        "methods": {"A": {"share": 0.6, "ci_twoway_t": [-0.1, 0.8], "se_twoway": 0.1}},
        "leader_tests": [{"vs": "B", "diff": 0.2, "p_twoway": 0.03, "p_twoway_holm": 0.06}],
    }  # fmt: skip
    result = {
        "mode": "pick_best",
        "screened": R,
        "plan": {"alpha": 0.05},
        "methods": ["A", "B", "C"],
    }
    assert headline(result).endswith("p = .030 (= .060 after Holm): not distinguishable.")
    assert "CI 0.0-80.0 %" in headline(result)
    R["leader_tests"][0]["p_twoway_holm"] = 0.04
    assert headline(result).endswith("after Holm): distinguishable.")
    R["leader_tests"][0]["p_twoway"] = math.nan
    assert headline(result).endswith("without a two-way test: not distinguishable.")


def test_the_headline_ignores_naive_significance():
    """One picture decides everything: the votes look overwhelming, the pictures do not."""
    rows = [
        vote(20 * p + i, participant=f"p{p}", image_id=f"i{i % 2}", choice="AB"[i % 2 and p > 0])
        for p in range(10)
        for i in range(20)
    ]
    plan = AnalysisPlan("pick_best", ("A", "B", "C"), Screening(straight_share=2), bootstrap=50)
    result = analyse(frame(rows), plan)
    assert result["headline"].endswith("not distinguishable.")


def test_without_a_study_file_the_result_says_so(picks):
    notes = " ".join(picks[3]["notes"])
    assert "No study file: default pipeline v1" in notes
    assert f"most frequent study hash of the votes, {HASH}" in notes


def test_the_result_is_json_without_nan(picks, pairs):
    for result in (picks[3], pairs[3]):
        assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_fewest_votes_to_flip_is_exact(worked):
    """A leads B by 8, so B leads after nine votes for A are gone; nobody favours B over A."""
    robustness = worked["unscreened"]["robustness"]
    assert (robustness["votes_to_flip"], robustness["votes_rival"]) == (9, "B")
    assert robustness["participants_to_flip"] is None


@pytest.mark.parametrize("seed", range(4))
def test_fewest_people_to_flip_is_what_trying_all_subsets_finds(seed):
    rng = np.random.default_rng(seed)
    answers = ["".join(rng.choice(list("AAABBC"), 5)) for _ in range(8)]
    rows = [
        vote(5 * p + i, participant=f"p{p}", image_id=f"i{i}", choice=choice)
        for p, row in enumerate(answers)
        for i, choice in enumerate(row)
    ]
    R = analyse(frame(rows), BEST, study_hash=HASH)["unscreened"]

    def flips(gone):
        left = Counter("".join(row for p, row in enumerate(answers) if p not in gone))
        return max(left.values(), default=0) > left[R["leader"]]

    sizes = (k for k in range(1, 8) if any(map(flips, itertools.combinations(range(8), k))))
    assert R["robustness"]["participants_to_flip"] == next(sizes, None)


def test_removing_the_named_number_of_people_flips_the_pairs(pairs):
    R = pairs[3]["unscreened"]
    assert R["robustness"]["upper_bound"]
    assert 1 <= R["robustness"]["votes_to_flip"] <= R["n_used"]


def test_bootstrap_intervals_hold_the_estimate_and_product_weights_are_wider(picks):
    R = picks[3]["unscreened"]
    bootstrap = R["bootstrap"]
    assert bootstrap["replicates"] == 2000
    for name, row in R["methods"].items():
        low, high = bootstrap["participants"]["share_ci"][name]
        wide = bootstrap["participants_and_images"]["share_ci"][name]
        assert low <= row["share"] <= high
        assert wide[1] - wide[0] > high - low


def test_bootstrap_over_participants_has_the_clustered_error():
    """Its spread is the participant-clustered error times sqrt((G - 1) / G)."""
    rows = pick_rows(3, people=40, pictures=10)
    plan = AnalysisPlan("pick_best", tuple("ABCD"), Screening(), bootstrap=4000)
    R = analyse(frame(rows), plan)["unscreened"]
    for name, row in R["methods"].items():
        low, high = R["bootstrap"]["participants"]["share_ci"][name]
        assert (high - low) / (2 * 1.96) == pytest.approx(row["se_participant"], rel=0.12)


def test_a_second_criterion_is_analysed_beside_the_first_and_correlated():
    rows = pick_rows(1) + [
        {**row, "criterion": "quality", "seq": row["seq"] + 5000, "trial_id": row["trial_id"] + "q",
         "event_id": f"q{row['seq']:031x}"}
        for row in pick_rows(1)
    ]  # fmt: skip
    result = analyse(frame(rows))
    alone = analyse(frame(pick_rows(1)))
    assert result["unscreened"] == alone["unscreened"]
    assert set(result["by_criterion"]["criteria"]) == {"overall", "quality"}
    assert result["by_criterion"]["correlations"][0]["spearman"] == pytest.approx(1)


def test_fraud_flags_name_machines_and_exclude_nobody():
    rows = pick_rows(6, people=6, pictures=40)
    for row in rows:
        if row["participant"] == "p00" and row["kind"] == "main":
            row["response_ms"] = 5000
        if row["participant"] == "p01" and row["kind"] == "main":
            row["choice"] = "D" if "D" in row["methods_shown"] else "skip"
    result = analyse(frame(rows))
    assert result["fraud_flags"]["p00"] == ["regular_intervals"]
    assert "same_method" in result["fraud_flags"]["p01"]
    assert "p00" not in result["cleaning"]["excluded"]


def test_outliers_are_far_from_what_the_others_say():
    rows = pair_rows(11, people=12, pictures=10)
    turned = {"A": "D", "D": "A", "B": "C", "C": "B"}
    for row in rows:
        if row["participant"] == "p07" and row["choice"] in turned:
            a, b = row["methods_shown"].split("|")
            row["choice"] = b if row["choice"] == a else a
    outliers = analyse(frame(rows))["unscreened"]["outliers"]
    assert outliers["p07"]["inspect"]
    assert min(outliers, key=lambda who: outliers[who]["log10_per_vote"]) == "p07"


def test_pairs_that_nobody_lost_are_named():
    rows = [
        vote(n, participant=f"p{n % 4}", mode="pairwise", image_id=f"i{n % 5}",
             methods_shown=shown, choice=shown[0])
        for n, shown in enumerate(["A|B", "B|C", "A|C"] * 8)
    ]  # fmt: skip
    R = analyse(frame(rows))["unscreened"]
    assert R["davidson_prior"] == {"sd": 1.5, "components": [["A"], ["B"], ["C"]]}
    assert R["order"] == ["A", "B", "C"]


def test_a_vote_for_what_was_not_shown_is_refused_with_its_number():
    rows = sheet_example()
    rows[4]["choice"], rows[4]["methods_shown"] = "C", "A|B"
    with pytest.raises(VotesError, match="seq 4 chose 'C'"):
        analyse(frame(rows), BEST)


def test_a_method_that_is_not_in_the_study_is_refused():
    rows = [*sheet_example(), vote(99, methods_shown="A|B|Z", participant="p9")]
    with pytest.raises(VotesError, match="seq 99 shows 'Z'"):
        analyse(frame(rows), BEST)


def test_interaction_with_dataset_is_a_likelihood_ratio():
    """All methods shown: G of the contingency table, by scipy."""
    rng = np.random.default_rng(0)
    p = [[0.6, 0.2, 0.2], [0.3, 0.4, 0.3], [0.2, 0.3, 0.5]]
    rows = [
        vote(n, participant=f"p{n % 6}", image_id=f"i{n % 9}", dataset=f"d{n % 3}",
             choice="ABC"[rng.choice(3, p=p[n % 3])])
        for n in range(120)
    ]  # fmt: skip
    R = analyse(frame(rows), BEST)["unscreened"]
    table = [[R["by_dataset"][d][m][0] for m in "ABC"] for d in ("d0", "d1", "d2")]
    theirs = stats.chi2_contingency(table, correction=False, lambda_="log-likelihood")
    expected = [theirs.statistic, theirs.dof, theirs.pvalue]
    assert R["breakdowns"]["dataset"]["interaction"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("p", "text"), [(0.2488, "= .25"), (0.0301, "= .030"), (0.0004, "< .001"), (1.0, "= 1.00")]
)
def test_p_values_are_written_without_the_zero(p, text):
    assert p_text(p) == text


def test_numbers_that_json_does_not_know_become_null():
    assert plain({"a": np.float64("nan"), "b": [np.int64(3), math.inf, True]}) == {
        "a": None,
        "b": [3, None, True],
    }
