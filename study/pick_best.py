"""Votes for the best of several: shares with their errors, tests of the lead, Plackett-Luce."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from study.agreement import expected_alpha, fleiss_kappa, friedman, krippendorff_alpha
from study.intervals import (
    Array,
    Codes,
    clustered_mean,
    holm,
    sign_test,
    t_test,
    uniformity,
    wilson,
)
from study.plackett_luce import choice_sets, fit_plackett_luce
from study.tallies import (
    SHRINK_VOTES,
    SMALL_N,
    AnalysisPlan,
    Result,
    balance,
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
from study.votes import SKIP


def summarise_picks(
    rows: pd.DataFrame, main: pd.DataFrame, plan: AnalysisPlan, expertise: Mapping[str, str]
) -> Result:
    """The part R of the result for picks.

    Args:
        rows: cleaned votes of one criterion, all kinds.
        main: those that count, of mode "pick_best".
        plan: methods, seed and replicates.
        expertise: participant to "expert" or "naive"; may be empty.
    """
    methods, M = plan.methods, len(plan.methods)
    shown = shown_matrix(main, methods)
    choice, is_decided = chosen(main, shown, methods)
    decided, shown, choice = main[is_decided], shown[is_decided], choice[is_decided]
    N = len(decided)
    participant, people = codes_of(decided["participant"])
    image, pictures = codes_of(decided["image_id"])
    R: Result = {
        "n_main": len(main),
        "n_decided": N,
        "n_skip": int((main["choice"] == SKIP).sum()),
        "n_participants": len(people),
        "n_images": len(pictures),
    }
    agree = self_consistency(rows)
    if N == 0:
        return {**R, **_nothing_picked(methods), "self_consistency": agree}
    y = np.zeros((N, M))
    y[np.arange(N), choice] = 1
    counts, displayed = y.sum(0), shown.sum(0)
    order = [int(m) for m in np.argsort(-counts, kind="stable")]
    mean = clustered_mean(y, participant, image)
    low, high = mean.ci_twoway()
    p = mean.mean
    naive = np.sqrt(p * (1 - p) / N)
    with np.errstate(invalid="ignore", divide="ignore"):
        deff = np.where(naive > 0, (mean.se_participant / naive) ** 2, math.nan)
    R["methods"] = {}
    for m, name in enumerate(methods):
        wilson_lo, wilson_hi = wilson(counts[m], N)
        R["methods"][name] = {
            "count": int(counts[m]),
            "shown": int(displayed[m]),
            "share": p[m],
            "rate_when_shown": counts[m] / displayed[m] if displayed[m] else math.nan,
            "wilson_lo": wilson_lo,
            "wilson_hi": wilson_hi,
            "se_naive": naive[m],
            "se_participant": mean.se_participant[m],
            "se_image": mean.se_image[m],
            "se_twoway": mean.se_twoway[m],
            "deff_participant": deff[m],
            "ci_twoway_t": [low[m], high[m]],
        }
    R["chi2_uniform"] = list(uniformity(counts))
    R["leader"] = methods[order[0]]
    R["order"] = [methods[m] for m in order]
    R["leader_tests"] = _leader_tests(y, participant, image, order, methods)
    sets, picks = choice_sets(shown, choice)
    pl = fit_plackett_luce(sets, picks)
    R["pl_theta"] = dict(zip(methods, pl.theta, strict=True))
    R["pl_se"] = dict(zip(methods, pl.se, strict=True))
    R["pl_prob"] = dict(zip(methods, pl.prob, strict=True))
    R["pl_loglik"] = pl.loglik
    R["pl_prior"] = pl.prior
    by_image, by_person = count_table(image, choice, M), count_table(participant, choice, M)
    R["kripp_alpha"] = krippendorff_alpha(by_image)
    ratings = by_image.sum(1)
    R["kripp_alpha_expected"] = expected_alpha(
        ratings, np.tile(pl.prob, (len(ratings), 1)), plan.seed
    )
    R["fleiss_kappa"] = fleiss_kappa(by_image)
    R["friedman_participants"] = list(friedman(_shares(by_person)))
    R["friedman_images"] = list(friedman(_shares(by_image)))
    full = shown.all(1)
    positions = decided["choice_position"].to_numpy()[full]
    at = np.bincount(positions[(positions >= 0) & (positions < M)], minlength=M)
    R["position_counts"] = at.tolist()
    R["position_chi2"] = list(uniformity(at))
    R["shown_at_position"] = balance(decided, methods)
    for factor in ("dataset", "scene"):
        levels, names = codes_of(decided[factor])
        table, totals = count_table(levels, choice, M), np.bincount(levels)
        R[f"by_{factor}"] = {
            level: {m: [int(table[i, j]), int(totals[i])] for j, m in enumerate(methods)}
            for i, level in enumerate(names)
        }
    R["self_consistency"] = agree
    R["self_consistency_expected"] = _expected_repeats(rows, pl.prob, methods)
    R["bootstrap"] = _bootstrap(choice, participant, image, order[0], plan)
    R["robustness"] = _robustness(by_person, order, methods)
    R["breakdowns"] = {
        factor: _breakdown(levels, choice, shown, p, methods, pl.loglik)
        for factor, levels in factors_of(decided, expertise).items()
    }
    R["golden"] = goldens(rows)
    return R


def _nothing_picked(methods: Sequence[str]) -> Result:
    """The keys of a study in which nobody decided anything."""
    unknown = (
        "share",
        "rate_when_shown",
        "wilson_lo",
        "wilson_hi",
        "se_naive",
        "se_participant",
        "se_image",
        "se_twoway",
        "deff_participant",
    )
    row: Result = {"count": 0, "shown": 0, **dict.fromkeys(unknown, math.nan)}
    row["ci_twoway_t"] = [math.nan, math.nan]
    none = [math.nan, len(methods) - 1, math.nan]
    return {
        "methods": dict.fromkeys(methods, row),
        "chi2_uniform": none,
        "leader": None,
        "order": list(methods),
        "leader_tests": [],
        "pl_theta": {},
        "pl_se": {},
        "pl_prob": {},
        "pl_loglik": math.nan,
        "kripp_alpha": math.nan,
        "friedman_participants": none,
        "friedman_images": none,
        "position_counts": [0] * len(methods),
        "position_chi2": none,
        "by_dataset": {},
        "by_scene": {},
    }


def _leader_tests(
    y: Array, participant: Codes, image: Codes, order: Sequence[int], methods: Sequence[str]
) -> list[Result]:
    """The leader against each other method: exact, by participant, two-way; each with Holm."""
    leader, rest = order[0], list(order[1:])
    difference = clustered_mean(y[:, [leader]] - y[:, rest], participant, image)
    counts = y.sum(0).astype(int)
    tests: list[Result] = []
    for column, m in enumerate(rest):
        diff = float(difference.mean[column])
        se_p, se_2 = difference.se_participant[column], difference.se_twoway[column]
        t_p, p_p = t_test(diff, se_p, difference.participants - 1)
        t_2, p_2 = t_test(diff, se_2, difference.df_twoway)
        tests.append(
            {
                "vs": methods[m],
                "diff": diff,
                "se_participant": se_p,
                "se_twoway": se_2,
                "p_naive": sign_test(int(counts[leader]), int(counts[m])),
                "t_participant": t_p,
                "p_participant": p_p,
                "t_twoway": t_2,
                "p_twoway": p_2,
            }
        )
    for key in ("p_naive", "p_participant", "p_twoway"):
        for test, adjusted in zip(tests, holm([t[key] for t in tests]), strict=True):
            test[f"{key}_holm"] = adjusted
    return tests


def _shares(table: Array) -> Array:
    return table / table.sum(1, keepdims=True)


def _expected_repeats(rows: pd.DataFrame, prob: Array, methods: Sequence[str]) -> float:
    """Agreement by chance of two draws from the fitted shares: sum p^2, over the repeats."""
    pairs = repeats(rows)
    if pairs.empty:
        return math.nan
    p = np.where(shown_matrix(pairs, methods), prob, 0.0)
    p /= p.sum(1, keepdims=True)
    return float((p**2).sum(1).mean())


def _bootstrap(
    choice: Codes, participant: Codes, image: Codes, leader: int, plan: AnalysisPlan
) -> Result:
    """Percentile intervals of shares and ranks, over participants and over both ways."""
    R: Result = {"replicates": plan.bootstrap, "seed": plan.seed}
    samples = resample_counts(choice, len(plan.methods), participant, image, plan)
    for name, counts in zip(("participants", "participants_and_images"), samples, strict=True):
        counts = counts[counts.sum(1) > 0]  # a product of weights can be all zero in a tiny study
        shares = counts / counts.sum(1, keepdims=True)
        low, high = np.percentile(shares, [2.5, 97.5], axis=0)
        R[name] = {
            "share_ci": {m: [low[i], high[i]] for i, m in enumerate(plan.methods)},
            **rank_summary(counts, leader, plan.methods),
        }
    return R


def _robustness(by_person: Array, order: Sequence[int], methods: Sequence[str]) -> Result:
    """Fewest votes, and fewest people, without whom another method has strictly more votes.

    Exact: for one rival the people who favour the leader most go first.
    """
    leader = order[0]
    totals = by_person.sum(0)
    votes = {m: int(totals[leader] - totals[m]) + 1 for m in order[1:]}
    people = {}
    for m in order[1:]:
        gains = np.sort(by_person[:, leader] - by_person[:, m])[::-1]
        left = (totals[leader] - totals[m]) - np.cumsum(gains)
        flips = np.flatnonzero(left < 0)
        people[m] = int(flips[0]) + 1 if len(flips) else None
    possible = [(n, m) for m, n in people.items() if n is not None]
    rival = min(votes, key=lambda m: votes[m])
    enough = votes[rival] <= totals[leader]
    return {
        "votes_to_flip": votes[rival] if enough else None,
        "votes_rival": methods[rival] if enough else None,
        "participants_to_flip": min(possible)[0] if possible else None,
        "participants_rival": methods[min(possible)[1]] if possible else None,
    }


def _breakdown(
    levels: pd.Series,
    choice: Codes,
    shown: NDArray[np.bool_],
    overall: Array,
    methods: Sequence[str],
    loglik: float,
) -> Result:
    """Shares by level, and the likelihood ratio test of method × level (independent votes)."""
    codes, names = codes_of(levels)
    table = count_table(codes, choice, len(methods))
    out: Result = {"levels": {}}
    separate = 0.0
    for i, level in enumerate(names):
        n = int(table[i].sum())
        mine = codes == i
        alone = fit_plackett_luce(*choice_sets(shown[mine], choice[mine]))
        # Where a level has no maximum, there is no likelihood ratio either: too few votes.
        separate += math.nan if alone.prior else alone.loglik
        out["levels"][level] = {"n": n, "methods": {}}
        for m, name in enumerate(methods):
            cell: Result = {
                "count": int(table[i, m]),
                "share": table[i, m] / n,
                "wilson": list(wilson(table[i, m], n)),
            }
            if n < SMALL_N:
                cell["shrunken"] = (table[i, m] + SHRINK_VOTES * overall[m]) / (n + SHRINK_VOTES)
            out["levels"][level]["methods"][name] = cell
    out["interaction"] = likelihood_ratio(separate, loglik, (len(names) - 1) * (len(methods) - 1))
    return out
