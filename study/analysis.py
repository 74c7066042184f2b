"""Votes to the result: ranking, uncertainty, agreement, robustness; pipeline v1.

`analyse` is the whole of it: clean, screen, and the same numbers with and without those screened
out. What it returns is plain JSON, the interface to figures, tables and reports. The formulas are
in docs/study.md and in the modules imported here.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from study.intervals import Array
from study.pairwise import summarise_pairs
from study.pick_best import summarise_picks
from study.tallies import AnalysisPlan, Result
from study.votes import Screening, VotesError, clean, most_frequent_hash, screen

PIPELINE = "v1"
REGULAR_CV = 0.1  # response times that vary less than this are a machine's
SAME_SHARE, SAME_P = 0.95, 1e-6  # one method in nearly all votes, beyond what its share allows
BURST_SECONDS = 1.0  # between two submissions of one person


def default_plan(frame: pd.DataFrame, study_hash: str) -> AnalysisPlan:
    """Pipeline v1 for votes whose study file is not at hand: mode and methods as the votes show.

    The mode is that of most main trials, methods are in alphabetical order.
    """
    main = frame[(frame["study_hash"] == study_hash) & (frame["kind"] == "main")]
    if main.empty:
        raise VotesError(f"No main trial has the study hash {study_hash}.")
    mode = str(main["mode"].mode().min())
    main = main[main["mode"] == mode]
    shown = {name for row in main["methods_shown"].unique() for name in row.split("|")}
    present = main["criterion"].value_counts()
    criteria = sorted(present.index, key=lambda name: (name != "overall", -present[name], name))
    return AnalysisPlan(
        mode, tuple(sorted(shown)), Screening.of_mode(mode), criteria=tuple(criteria)
    )


def analyse(
    votes: pd.DataFrame,
    plan: AnalysisPlan | None = None,
    *,
    study_hash: str | None = None,
    withdrawn: Collection[str] = (),
    expertise: Mapping[str, str] | None = None,
    bootstrap: int | None = None,
) -> Result:
    """The result JSON of one study.

    Args:
        votes: as `study.votes.read_votes` gives them, in any order, of any studies.
        plan: the preregistered plan; without one the default pipeline, and the result says so.
        study_hash: whose votes; without one that of most rows.
        withdrawn: participants to be erased.
        expertise: participant to "expert" or "naive", where people said so.
        bootstrap: replicates, instead of the plan's.

    Raises:
        VotesError: there is nothing to analyse, or a vote contradicts itself.
    """
    notes = []
    if study_hash is None:
        study_hash = most_frequent_hash(votes)
        notes.append(f"The study is the most frequent study hash of the votes, {study_hash}.")
    if plan is None:
        plan = default_plan(votes, study_hash)
        notes.append(
            f"No study file: default pipeline {PIPELINE} for {plan.mode}, methods in alphabetical "
            "order. Nothing shows that this analysis was planned before the votes were seen."
        )
    if bootstrap is not None and bootstrap != plan.bootstrap:
        notes.append(f"{bootstrap} bootstrap replicates instead of the plan's {plan.bootstrap}.")
        plan = replace(plan, bootstrap=bootstrap)
    cleaned = clean(votes, study_hash, withdrawn)
    if cleaned.frame.empty:
        raise VotesError(f"No vote has the study hash {study_hash} after cleaning.")
    frame = cleaned.frame
    excluded = screen(frame, plan.screening)
    kept = frame[~frame["participant"].isin(list(excluded))]
    other_mode = int((frame["kind"].eq("main") & frame["mode"].ne(plan.mode)).sum())
    if other_mode:
        notes.append(f"{other_mode} main trials of another mode than {plan.mode} are left out.")
    result: Result = {
        "pipeline": PIPELINE,
        "mode": plan.mode,
        "methods": list(plan.methods),
        "criterion": plan.criteria[0],
        "plan": {**asdict(plan), "methods": list(plan.methods), "criteria": list(plan.criteria)},
        "notes": notes,
        "cleaning": {
            **cleaned.counts,
            "excluded": excluded,
            "participants_kept": int(kept["participant"].nunique()),
            "rows_kept": len(kept),
            "study_hash": study_hash,
        },
    }
    for name, rows in (("screened", kept), ("unscreened", frame)):
        result[name] = summarise(rows, plan, plan.criteria[0], expertise or {})
    if len(plan.criteria) > 1:
        result["by_criterion"] = _by_criterion(result, kept, frame, plan, expertise or {})
    result["fraud_flags"] = fraud_flags(frame, plan)
    result["capture_flags"] = _flag_counts(frame)
    result["report_card"] = report_card(frame, kept, excluded)
    result["headline"] = headline(result)
    result["headline_unscreened"] = headline(result, "unscreened")
    return plain(result)


def _by_criterion(
    result: Result,
    kept: pd.DataFrame,
    frame: pd.DataFrame,
    plan: AnalysisPlan,
    expertise: Mapping[str, str],
) -> Result:
    """The numbers of every criterion, and how alike the rankings of each two are."""
    first = plan.criteria[0]
    by: Result = {first: {name: result[name] for name in ("screened", "unscreened")}}
    for criterion in plan.criteria[1:]:
        by[criterion] = {
            "screened": summarise(kept, plan, criterion, expertise),
            "unscreened": summarise(frame, plan, criterion, expertise),
        }
    strengths = {name: _strengths(by[name]["screened"], plan.methods) for name in plan.criteria}
    correlations = []
    for i, a in enumerate(plan.criteria):
        for b in plan.criteria[i + 1 :]:
            rho, tau = math.nan, math.nan
            if np.ptp(strengths[a]) > 0 and np.ptp(strengths[b]) > 0:  # else undefined
                rho = float(stats.spearmanr(strengths[a], strengths[b]).statistic)
                tau = float(stats.kendalltau(strengths[a], strengths[b]).statistic)
            correlations.append({"a": a, "b": b, "spearman": rho, "kendall": tau})
    return {"criteria": by, "correlations": correlations}


def _strengths(R: Result, methods: Sequence[str]) -> Array:
    key = "pl_theta" if "pl_theta" in R else "davidson_theta"
    return np.array([R[key].get(m, 0.0) for m in methods]) if R[key] else np.zeros(len(methods))


def summarise(
    rows: pd.DataFrame, plan: AnalysisPlan, criterion: str, expertise: Mapping[str, str]
) -> Result:
    """One R of the result: everything computed from cleaned `rows` of one criterion."""
    rows = rows[rows["criterion"] == criterion]
    main = rows[(rows["kind"] == "main") & (rows["mode"] == plan.mode)]
    if plan.mode == "pick_best":
        return summarise_picks(rows, main, plan, expertise)
    return summarise_pairs(rows, main, plan, expertise)


def fraud_flags(frame: pd.DataFrame, plan: AnalysisPlan) -> dict[str, list[str]]:
    """Signals worth a look, by participant. They exclude nobody: only screening rules do."""
    main = frame[(frame["kind"] == "main") & (frame["mode"] == plan.mode)]
    decided = main[main["choice"].isin(plan.methods)]
    share = decided["choice"].value_counts(normalize=True)
    flags: dict[str, list[str]] = {}
    for who, rows in main.groupby("participant", sort=True):
        found = []
        times = rows["response_ms"].dropna()
        if len(times) >= 10 and times.mean() > 0 and times.std() / times.mean() < REGULAR_CV:
            found.append("regular_intervals")
        mine = decided[decided["participant"] == who]["choice"].value_counts()
        if len(mine) and plan.mode == "pick_best":
            k, n = int(mine.iloc[0]), int(mine.sum())
            allowed = float(share[mine.index[0]])
            if k / n > SAME_SHARE and stats.binom.sf(k - 1, n, allowed) < SAME_P:
                found.append("same_method")
        submitted = pd.to_datetime(
            rows["submitted_utc"], errors="coerce", utc=True, format="ISO8601"
        )
        gaps = submitted.sort_values().diff().dt.total_seconds().dropna()
        if len(gaps) >= 5 and (gaps < BURST_SECONDS).mean() > 0.5:
            found.append("burst")
        if found:
            flags[str(who)] = found
    return flags


def _flag_counts(frame: pd.DataFrame) -> dict[str, int]:
    """How many votes carry each capture-time flag."""
    counts: dict[str, int] = {}
    for text, n in frame["flags"].value_counts().items():
        for flag in filter(None, str(text).split("|")):
            counts[flag] = counts.get(flag, 0) + int(n)
    return dict(sorted(counts.items()))


def report_card(
    frame: pd.DataFrame, kept: pd.DataFrame, excluded: Mapping[str, Sequence[str]]
) -> Result:
    """What is printed with every result, as far as votes tell it."""
    dates = sorted(filter(None, frame["submitted_utc"]))
    reasons: dict[str, int] = {}
    for found in excluded.values():
        for reason in found:
            reasons[reason] = reasons.get(reason, 0) + 1
    return {
        "app_versions": sorted(set(filter(None, frame["app_version"]))),
        "first_vote": dates[0] if dates else None,
        "last_vote": dates[-1] if dates else None,
        "participants_voted": int(frame["participant"].nunique()),
        "participants_excluded": len(excluded),
        "excluded_by_reason": dict(sorted(reasons.items())),
        "votes_by_kind": {str(k): int(n) for k, n in sorted(frame["kind"].value_counts().items())},
        "votes_by_kind_kept": {
            str(k): int(n) for k, n in sorted(kept["kind"].value_counts().items())
        },
    }


def headline(result: Result, votes: str = "screened") -> str:
    """One sentence, from the preregistered two-way test and nothing else.

    "distinguishable" takes both a two-way p below alpha and the same after Holm's correction.

    Args:
        result: with the numbers of both kinds of votes.
        votes: "screened", which is the study's headline, or "unscreened", to be shown beside it.
    """
    R, alpha = result[votes], result["plan"]["alpha"]
    if R["leader"] is None:
        return "No vote that counts: nothing can be said."
    if result["mode"] == "pick_best":
        tests, leader = R["leader_tests"], R["methods"][R["leader"]]
        low, high = (min(1.0, max(0.0, side)) for side in leader["ci_twoway_t"])
        interval = (
            f"two-way 95 % CI {100 * low:.1f}-{100 * high:.1f} %"
            if math.isfinite(low + high) and math.isfinite(leader["se_twoway"])
            else "no two-way interval"
        )
        opening = (
            f"{R['leader']} was picked in {100 * leader['share']:.1f} % of {R['n_decided']} votes "
            f"({R['n_participants']} participants, {R['n_images']} images; {interval}, "
            f"chance {100 / len(result['methods']):.1f} %)"
        )
        lead = f"{100 * tests[0]['diff']:.1f} points"
    else:
        tests = R["leader_diff"]
        opening = (
            f"{R['leader']} has the highest Davidson strength in {R['n_used']} comparisons "
            f"({R['n_participants']} participants, {R['n_images']} images)"
        )
        lead = f"{tests[0]['diff']:.2f} log-odds"
        if R["davidson_prior"]:
            opening += ", estimated with a prior because some methods never lost or never won"
    p, adjusted = tests[0]["p_twoway"], tests[0]["p_twoway_holm"]
    if not math.isfinite(p):
        return f"{opening}; it led by {lead}, without a two-way test: not distinguishable."
    verdict = "distinguishable" if p < alpha and adjusted < alpha else "not distinguishable"
    after = f" ({p_text(adjusted)} after Holm)" if p < alpha else ""
    return f"{opening}; it led the runner-up by {lead}, p {p_text(p)}{after}: {verdict}."


def p_text(p: float) -> str:
    """A p value as "= .25" or "< .001"."""
    if p < 0.001:
        return "< .001"
    digits = 2 if p >= 0.095 else 3
    return "= " + f"{p:.{digits}f}".removeprefix("0")


def plain(value: Any) -> Any:
    """Numpy and NaN out, JSON in: what is not a finite number becomes null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value
