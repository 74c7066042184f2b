"""Votes for one of two, or for neither: Davidson's model with its errors, and what surrounds it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from study import davidson
from study.agreement import expected_alpha, krippendorff_alpha
from study.intervals import Array, Codes, holm, sign_test, t_test, wilson
from study.tallies import (
    SHRINK_VOTES,
    SMALL_N,
    AnalysisPlan,
    Result,
    chosen,
    codes_of,
    count_table,
    factors_of,
    goldens,
    likelihood_ratio,
    rank_summary,
    repeats,
    resample_counts,
    self_consistency,
    shown_matrix,
)
from study.votes import SKIP, VotesError


@dataclass(frozen=True)
class _Pairs:
    """Used pair votes as codes: what was left, right, and how it went."""

    left: Codes
    right: Codes
    tie: NDArray[np.bool_]
    winner: Codes
    outcome: Codes  # 3 × pair + (0 first, 1 second, 2 tie), as study.davidson counts


def _pair_votes(frame: pd.DataFrame, methods: Sequence[str]) -> _Pairs:
    M = len(methods)
    shown = shown_matrix(frame, methods)
    if len(frame) and (shown.sum(1) != 2).any():
        seq = int(frame["seq"].iloc[int(np.flatnonzero(shown.sum(1) != 2)[0])])
        raise VotesError(f"The pair vote with seq {seq} does not show two different methods.")
    choice, _ = chosen(frame, shown, methods)
    column = {name: i for i, name in enumerate(methods)}
    both = [text.split("|") for text in frame["methods_shown"]]
    left = np.array([column[names[0]] for names in both], dtype=np.int64)
    right = np.array([column[names[1]] for names in both], dtype=np.int64)
    number = np.zeros((M, M), dtype=np.int64)
    index = davidson.pair_index(M)
    number[index.first, index.second] = number[index.second, index.first] = np.arange(
        len(index.first)
    )
    kind = np.where(choice < 0, 2, np.where(choice == np.minimum(left, right), 0, 1))
    return _Pairs(left, right, choice < 0, choice, 3 * number[left, right] + kind)


def summarise_pairs(
    rows: pd.DataFrame, main: pd.DataFrame, plan: AnalysisPlan, expertise: Mapping[str, str]
) -> Result:
    """The part R of the result for pairs.

    Args:
        rows: cleaned votes of one criterion, all kinds.
        main: those that count, of mode "pairwise".
        plan: methods, seed and replicates.
        expertise: participant to "expert" or "naive"; may be empty.
    """
    methods, M = plan.methods, len(plan.methods)
    used = main[main["choice"] != SKIP]
    votes = _pair_votes(used, methods)
    participant, people = codes_of(used["participant"])
    image, pictures = codes_of(used["image_id"])
    R: Result = {
        "n_main": len(main),
        "n_used": len(used),
        "n_tie": int(votes.tie.sum()),
        "n_skip": len(main) - len(used),
        "n_participants": len(people),
        "n_images": len(pictures),
    }
    index = davidson.pair_index(M)
    counts = np.bincount(votes.outcome, minlength=3 * len(index.first)).reshape(-1, 3).astype(float)
    wins, ties = np.zeros((M, M)), np.zeros((M, M))
    wins[index.first, index.second], wins[index.second, index.first] = counts[:, 0], counts[:, 1]
    ties[index.first, index.second] = ties[index.second, index.first] = counts[:, 2]
    R["wins"], R["ties"] = wins.astype(int).tolist(), ties.astype(int).tolist()
    agree = self_consistency(rows)
    if len(used) == 0:
        return {**R, **_nothing_compared(methods), "self_consistency": agree}
    fit = davidson.fit_counts(counts, M)
    scores = davidson.vote_scores(fit, votes.outcome)
    by_person = davidson.scores_by(scores, participant)
    by_image = davidson.scores_by(scores, image)
    R["davidson_theta"] = dict(zip(methods, fit.theta, strict=True))
    R["davidson_se"] = dict(zip(methods, fit.se, strict=True))
    # Rounding can make a variance of zero, everyone alike, slightly negative.
    clustered = np.maximum(np.diag(fit.sandwich(by_person))[:-1], 0)
    R["davidson_se_cluster"] = dict(zip(methods, np.sqrt(clustered), strict=True))
    R["davidson_nu"] = fit.nu
    R["davidson_se_log_nu"] = fit.se_log_nu
    R["davidson_loglik"] = fit.loglik
    R["davidson_deviance"] = list(fit.deviance)
    R["davidson_prior"] = _existence(fit, wins, ties, methods)
    R["davidson_elo"] = {
        m: davidson.ELO_PER_LOGIT * t for m, t in zip(methods, fit.theta, strict=True)
    }
    order = [int(m) for m in np.argsort(-fit.theta, kind="stable")]
    R["leader"] = methods[order[0]]
    R["order"] = [methods[m] for m in order]
    R["leader_diff"] = _leader_diff(fit, by_person, by_image, scores, order, methods)
    half = davidson.fit_bradley_terry(davidson.half_tie_wins(wins, ties))
    R["bt_halftie_theta"] = dict(zip(methods, half.theta, strict=True))
    strength = np.exp(half.theta - half.theta.max())
    R["bt_halftie_prob"] = dict(zip(methods, strength / strength.sum(), strict=True))
    decisive = davidson.fit_bradley_terry(wins)
    R["bt_noties_theta"] = dict(zip(methods, decisive.theta, strict=True))
    R["bt_noties_gof"] = list(davidson.goodness_of_fit(decisive))
    R["bt_prior"] = {"half_tie": half.prior, "no_ties": decisive.prior}
    R["pair_tests"] = _pair_tests(counts, methods)
    R.update(_left_right(votes, methods))
    R["shown_at_position"] = {
        name: [int((votes.left == m).sum()), int((votes.right == m).sum())]
        for m, name in enumerate(methods)
    }
    units, pair = _units(votes, image, M)
    R["kripp_alpha"] = krippendorff_alpha(units)
    R["kripp_alpha_expected"] = expected_alpha(
        units.sum(1), _unit_probs(fit, pair, M + 1), plan.seed
    )
    R["self_consistency"] = agree
    R["self_consistency_expected"] = _expected_repeats(rows, fit, methods)
    R["by_dataset"] = {}
    levels, names = codes_of(used["dataset"])
    for i, level in enumerate(names):
        mine = _matrices(votes.outcome[levels == i], M)
        theta = davidson.fit_bradley_terry(davidson.half_tie_wins(*mine)).theta
        R["by_dataset"][level] = {
            "n": int((levels == i).sum()),
            "bt_halftie_theta": dict(zip(methods, theta, strict=True)),
        }
    R["bootstrap"] = _bootstrap(votes.outcome, participant, image, order[0], plan)
    R["robustness"] = _robustness(fit, votes.outcome, participant, order, methods)
    R["breakdowns"] = {
        factor: _breakdown(levels, votes, fit, methods)
        for factor, levels in factors_of(used, expertise).items()
    }
    R["outliers"] = _outliers(votes.outcome, participant, people, M)
    R["golden"] = goldens(rows)
    return R


def _nothing_compared(methods: Sequence[str]) -> Result:
    """The keys of a study without a used comparison."""
    no_theta: Result = dict.fromkeys(methods)
    return {
        "davidson_theta": no_theta,
        "davidson_se": no_theta,
        "davidson_se_cluster": no_theta,
        "davidson_nu": None,
        "davidson_se_log_nu": None,
        "davidson_loglik": None,
        "davidson_deviance": [None, None, None],
        "leader": None,
        "order": list(methods),
        "leader_diff": [],
        "bt_halftie_theta": no_theta,
        "bt_halftie_prob": no_theta,
        "bt_noties_theta": no_theta,
        "bt_noties_gof": [None] * 5,
        "pair_tests": [],
        "left_right": [0, 0, 1.0],
        "left_bias_logodds": [None, None],
        f"bt_left_theta_vs_{methods[0]}": no_theta,
        "kripp_alpha": None,
        "by_dataset": {},
    }


def _matrices(outcome: Codes, M: int) -> tuple[Array, Array]:
    index = davidson.pair_index(M)
    counts = np.bincount(outcome, minlength=3 * len(index.first)).reshape(-1, 3)
    wins, ties = np.zeros((M, M)), np.zeros((M, M))
    wins[index.first, index.second], wins[index.second, index.first] = counts[:, 0], counts[:, 1]
    ties[index.first, index.second] = ties[index.second, index.first] = counts[:, 2]
    return wins, ties


def _existence(
    fit: davidson.DavidsonFit, wins: Array, ties: Array, methods: Sequence[str]
) -> Result | None:
    """Why a prior was needed: who never lost to whom. None where the estimate exists."""
    if not fit.prior:
        return None
    groups = davidson.components((wins + ties) > 0)
    return {
        "sd": davidson.PRIOR_SD,
        "components": [[methods[m] for m in group] for group in groups],
    }


def _leader_diff(
    fit: davidson.DavidsonFit,
    by_person: Array,
    by_image: Array,
    scores: Array,
    order: Sequence[int],
    methods: Sequence[str],
) -> list[Result]:
    """Contrasts of the leader with each other method, with every error and Holm's p."""
    tests: list[Result] = []
    df = min(len(by_person), len(by_image)) - 1
    for m in order[1:]:
        contrast = np.zeros(len(methods))
        contrast[order[0]], contrast[m] = 1, -1
        full = np.append(contrast, 0.0)
        diff = float(contrast @ fit.theta)
        se_cluster, se_image, se_twoway = davidson.twoway_contrast(
            fit, contrast, by_person, by_image, scores
        )
        t, p = t_test(diff, se_twoway, df)
        tests.append(
            {
                "vs": methods[m],
                "diff": diff,
                "se": math.sqrt(full @ fit.covariance @ full),
                "se_cluster": se_cluster,
                "se_image": se_image,
                "se_twoway": se_twoway,
                "t_twoway": t,
                "p_twoway": p,
            }
        )
    for test, adjusted in zip(tests, holm([t["p_twoway"] for t in tests]), strict=True):
        test["p_twoway_holm"] = adjusted
    return tests


def _pair_tests(counts: Array, methods: Sequence[str]) -> list[Result]:
    index = davidson.pair_index(len(methods))
    tests: list[Result] = []
    for i, j, (a, b, tied) in zip(index.first, index.second, counts.astype(int), strict=True):
        tests.append(
            {
                "a": methods[i],
                "b": methods[j],
                "wins_a": int(a),
                "wins_b": int(b),
                "ties": int(tied),
                "p": sign_test(int(a), int(b)),
            }
        )
    for test, adjusted in zip(tests, holm([t["p"] for t in tests]), strict=True):
        test["p_holm"] = adjusted
    return tests


def _left_right(votes: _Pairs, methods: Sequence[str]) -> Result:
    """Is the left panel preferred? Counts with a sign test, and as a term of Bradley-Terry."""
    M = len(methods)
    decided = ~votes.tie
    left_won = decided & (votes.winner == votes.left)
    right_won = decided & (votes.winner == votes.right)
    tables = [np.zeros((M, M)), np.zeros((M, M))]
    for table, where in zip(tables, (left_won, right_won), strict=True):
        np.add.at(table, (votes.left[where], votes.right[where]), 1)
    bias = davidson.fit_left_bias(*tables)
    left, right = int(left_won.sum()), int(right_won.sum())
    z = 1.959963984540054 * bias.se
    return {
        "left_right": [left, right, sign_test(left, right)],
        "left_bias_logodds": [bias.estimate, bias.se],
        "left_bias_odds_ci": [math.exp(bias.estimate + side) for side in (-z, z)],
        f"bt_left_theta_vs_{methods[0]}": dict(
            zip(methods, bias.theta - bias.theta[0], strict=True)
        ),
    }


def _units(votes: _Pairs, image: Codes, M: int) -> tuple[Array, Codes]:
    """Ratings (U, M + 1) of image × pair by winner, last column tie; and the pair of each unit."""
    pairs = len(davidson.pair_index(M).first)
    unit, names = pd.factorize(image * pairs + votes.outcome // 3)
    table = count_table(unit.astype(np.int64), np.where(votes.tie, M, votes.winner), M + 1)
    return table, (np.asarray(names) % pairs).astype(np.int64)


def _unit_probs(fit: davidson.DavidsonFit, pair: Codes, width: int) -> Array:
    index = davidson.pair_index(width - 1)
    probs = np.zeros((len(pair), width))
    rows = np.arange(len(pair))
    each = fit.probabilities()[pair]
    probs[rows, index.first[pair]] = each[:, 0]
    probs[rows, index.second[pair]] = each[:, 1]
    probs[:, -1] = each[:, 2]
    return probs


def _expected_repeats(
    rows: pd.DataFrame, fit: davidson.DavidsonFit, methods: Sequence[str]
) -> float:
    pairs = repeats(rows)
    pairs = pairs[pairs["choice"] != SKIP]
    if pairs.empty:
        return math.nan
    outcome = _pair_votes(pairs, methods).outcome
    return float((fit.probabilities()[outcome // 3] ** 2).sum(1).mean())


def _bootstrap(
    outcome: Codes, participant: Codes, image: Codes, leader: int, plan: AnalysisPlan
) -> Result:
    """Percentile intervals of Davidson's theta and of ranks.

    The guard against infinite estimates is the fit's own; how often it was needed is reported.
    """
    M = len(plan.methods)
    pairs = len(davidson.pair_index(M).first)
    R: Result = {"replicates": plan.bootstrap, "seed": plan.seed}
    samples = resample_counts(outcome, 3 * pairs, participant, image, plan)
    for name, counts in zip(("participants", "participants_and_images"), samples, strict=True):
        counts = counts[counts.sum(1) > 0]
        batch = davidson.fit_batch(counts.reshape(-1, pairs, 3), M)
        low, high = np.percentile(batch.theta, [2.5, 97.5], axis=0)
        R[name] = {
            "theta_ci": {m: [low[i], high[i]] for i, m in enumerate(plan.methods)},
            "replicates_with_prior": int(batch.prior.sum()),
            **rank_summary(batch.theta, leader, plan.methods),
        }
    return R


def _robustness(
    fit: davidson.DavidsonFit,
    outcome: Codes,
    participant: Codes,
    order: Sequence[int],
    methods: Sequence[str],
) -> Result:
    """Few votes, and few people, without whom another method leads.

    An upper bound: those with most influence on the lead go first, and refits confirm the flip;
    another choice might need fewer.
    """
    M = len(methods)
    scores = davidson.vote_scores(fit, outcome)
    people = davidson.group_counts(outcome, participant, M)
    cells = len(people[0].ravel())
    person_scores = davidson.scores_by(scores, participant)
    R: Result = {"upper_bound": True}
    for name, influence, removable in (
        ("participants", person_scores, people),
        ("votes", scores, None),
    ):
        best: tuple[int, str] | None = None
        for m in order[1:]:
            contrast = np.zeros(M + 1)
            contrast[order[0]], contrast[m] = 1, -1
            first = np.argsort(-(influence @ fit.covariance @ contrast), kind="stable")

            def flipped(k: int, first: Codes = first, removable: Array | None = removable) -> bool:
                if removable is not None:
                    gone = removable[first[:k]].sum(0)
                else:
                    gone = np.bincount(outcome[first[:k]], minlength=cells).reshape(-1, 3)
                left = davidson.fit_batch((fit.counts - gone)[None], M).theta[0]
                return int(left.argmax()) != order[0]

            k = _first_true(flipped, len(first) - 1)
            if k is not None and (best is None or k < best[0]):
                best = (k, methods[m])
        R[f"{name}_to_flip"] = best[0] if best else None
        R[f"{name}_rival"] = best[1] if best else None
    return R


def _first_true(test: Callable[[int], bool], most: int) -> int | None:
    """Smallest k in 1..most with test(k), by doubling and halving; None if there is none."""
    high = 1
    while high <= most and not test(high):
        high *= 2
    low, high = high // 2, min(high, most)
    if high < 1 or not test(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if test(middle) else (middle, high)
    return high


def _breakdown(
    levels: pd.Series, votes: _Pairs, fit: davidson.DavidsonFit, methods: Sequence[str]
) -> Result:
    """Wins among decided comparisons by level, and the likelihood ratio of model × level."""
    codes, names = codes_of(levels)
    M = len(methods)
    decided = ~votes.tie
    won = np.bincount(votes.winner[decided], minlength=M)
    played = np.bincount(np.append(votes.left[decided], votes.right[decided]), minlength=M)
    overall = won / np.maximum(played, 1)
    out: Result = {"levels": {}}
    separate = 0.0
    for i, level in enumerate(names):
        mine = codes == i
        wins, ties = _matrices(votes.outcome[mine], M)
        alone = davidson.fit_davidson(wins, ties)
        # Where a level has no maximum, there is no likelihood ratio either: too few votes.
        separate += math.nan if alone.prior else alone.loglik
        cells: Result = {}
        for m, name in enumerate(methods):
            k, n = float(wins[m].sum()), float(wins[m].sum() + wins[:, m].sum())
            cells[name] = {
                "wins": int(k),
                "n": int(n),
                "rate": k / n if n else math.nan,
                "wilson": list(wilson(k, n)),
            }
            if n < SMALL_N:
                shrunken = (k + SHRINK_VOTES * overall[m]) / (n + SHRINK_VOTES)
                cells[name]["shrunken"] = shrunken
        out["levels"][level] = {"n": int(mine.sum()), "methods": cells}
    free = M - 1 + int(fit.nu > 0)
    out["interaction"] = likelihood_ratio(separate, fit.loglik, (len(names) - 1) * free)
    return out


def _outliers(outcome: Codes, participant: Codes, people: Sequence[str], M: int) -> Result:
    """Log10-likelihood per vote of each person under the fit to the others.

    Far below the first quartile is worth a look, and excludes nobody.
    Source: the rule of pwcmp (Perez-Ortiz and Mantiuk 2017): 1.5 interquartile ranges.
    """
    if len(people) < 2:
        return {}
    mine = davidson.group_counts(outcome, participant, M)
    others = mine.sum(0) - mine
    batch = davidson.fit_batch(others, M)
    index = davidson.pair_index(M)
    x = np.column_stack([batch.theta, batch.log_nu])
    scores = np.einsum("gd,pod->gpo", x, index.design)
    log_p = scores - np.logaddexp.reduce(scores, axis=-1)[..., None]
    per_vote = (mine * log_p).sum((1, 2)) / mine.sum((1, 2)) / math.log(10)
    q1, q3 = np.percentile(per_vote, [25, 75])
    distance = (q1 - per_vote) / (q3 - q1) if q3 > q1 else np.zeros(len(people))
    return {
        who: {
            "log10_per_vote": per_vote[g],
            "iqr_below_q1": distance[g],
            "inspect": distance[g] > 1.5,
        }
        for g, who in enumerate(people)
    }
