"""A result as people read it: tables of text, the report card, a published share, a plan.

Reads the result JSON and computes nothing but percentages. Every table is rows of text, so that a
page, a file or a terminal can show it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from study.analysis import Result, p_text
from study.intervals import PublishedShare
from study.simulate import Power

Names = Mapping[str, str] | None
DASH = "–"
BOTH = ("screened", "unscreened")


@dataclass(frozen=True)
class TextTable:
    """A table of text.

    Attributes:
        note: what one has to know to read it.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def of_criterion(result: Result, criterion: str) -> Result:
    """The result with the numbers of one criterion in front."""
    if criterion == result["criterion"] or "by_criterion" not in result:
        return result
    own = result["by_criterion"]["criteria"][criterion]
    return {**result, "criterion": criterion, **{votes: own[votes] for votes in BOTH}}


def ranking(result: Result, names: Names = None) -> TextTable:
    """Every method with its interval, most preferred first, screened beside unscreened."""
    R, raw = (result[votes] for votes in BOTH)
    rows: list[tuple[str, ...]] = []
    if result["mode"] == "pick_best":
        for method in R["order"]:
            row, other = R["methods"][method], raw["methods"].get(method, {})
            rows.append(
                (
                    _name(method, names),
                    f"{row['count']} / {row['shown']}",
                    _percent(row["share"]),
                    _range(row["ci_twoway_t"]),
                    _range((row["wilson_lo"], row["wilson_hi"])),
                    _percent(row["rate_when_shown"]),
                    _percent(other.get("share")),
                    _range(other.get("ci_twoway_t", (None, None))),
                )
            )
        return TextTable(
            "Picked as best",
            (
                "Method", "Picked / shown", "Share, %", "95 % CI, two-way",
                "Wilson, naive", "Of times shown, %", "Unscreened, %", "Unscreened 95 % CI",
            ),
            tuple(rows),
            f"{R['n_decided']} screened votes of {R['n_participants']} people on {R['n_images']} "
            f"pictures; {raw['n_decided']} of {raw['n_participants']} people without screening. "
            "The two-way interval is for new people and new pictures; Wilson's takes votes for "
            "independent, as most published shares do, and is shown for comparison only.",
        )  # fmt: skip
    number = {method: n for n, method in enumerate(result["methods"])}
    for method in R["order"]:
        at, se = number[method], R["davidson_se_cluster"][method]
        theta = R["davidson_theta"][method]
        rows.append(
            (
                _name(method, names),
                _number(theta, 3),
                _number(se, 3),
                DASH if se is None else f"{theta - 1.96 * se:.2f} to {theta + 1.96 * se:.2f}",
                _number((R["davidson_elo"] or {}).get(method), 0),
                str(sum(R["wins"][at])),
                str(sum(line[at] for line in R["wins"])),
                str(sum(R["ties"][at])),
                _number((raw["davidson_theta"] or {}).get(method), 3),
            )
        )
    return TextTable(
        "Strengths",
        (
            "Method", "Davidson, log-odds", "SE by participant", "95 % CI", "As Elo",
            "Won", "Lost", "Tied", "Unscreened, log-odds",
        ),
        tuple(rows),
        f"{R['n_used']} screened comparisons ({R['n_tie']} without a difference) by "
        f"{R['n_participants']} people on {R['n_images']} pictures. Strengths sum to zero; a "
        "difference of 1.1 is preferred 3 to 1. Overlapping intervals do not mean no difference: "
        "the tests below use the covariance.",
    )  # fmt: skip


def leader_tests(result: Result, names: Names = None) -> TextTable:
    """The leader against every other method."""
    R = result["screened"]
    leader = _name(R["leader"], names)
    title = f"{leader} against the others"
    rows: tuple[tuple[str, ...], ...]
    if result["mode"] == "pick_best":
        rows = tuple(
            (
                _name(test["vs"], names),
                f"{100 * test['diff']:+.1f}",
                _p(test["p_twoway"]),
                _p(test["p_twoway_holm"]),
                _p(test["p_participant_holm"]),
                _p(test["p_naive_holm"]),
            )
            for test in R["leader_tests"]
        )
        return TextTable(
            title,
            (
                "Against", "Lead, points", "Two-way p", "Two-way p, Holm",
                "These pictures only, Holm", "Naive, Holm",
            ),
            rows,
            "The two-way column after Holm decides. People alone as clusters answer for these very "
            "pictures only; the naive test takes votes for independent and is too often "
            f"“significant”. {robustness(R)}",
        )  # fmt: skip
    rows = tuple(
        (
            _name(test["vs"], names),
            f"{test['diff']:+.2f}",
            _number(test["se_twoway"], 2),
            _p(test["p_twoway"]),
            _p(test["p_twoway_holm"]),
        )
        for test in R["leader_diff"]
    )
    return TextTable(
        title,
        ("Against", "Lead, log-odds", "SE, two-way", "Two-way p", "Two-way p, Holm"),
        rows,
        f"The last column decides. {robustness(R)}",
    )


def pairs(result: Result, names: Names = None) -> TextTable | None:
    """Every pair of methods, the numbers of the win matrix; None for pick-best."""
    if result["mode"] != "pairwise":
        return None
    rows = tuple(
        (
            f"{_name(test['a'], names)} : {_name(test['b'], names)}",
            f"{test['wins_a']} : {test['wins_b']}",
            str(test["ties"]),
            _p(test["p"]),
            _p(test["p_holm"]),
        )
        for test in result["screened"]["pair_tests"]
    )
    return TextTable(
        "Pair by pair",
        ("Pair", "Preferred", "No difference", "Binomial p", "Binomial p, Holm"),
        rows,
        "Exact two-sided binomial tests that take votes for independent and leave ties out.",
    )


def robustness(R: Result) -> str:
    """How little it takes to change the leader, in a sentence; empty if it cannot be said."""
    found = R.get("robustness") or {}
    votes, people = found.get("votes_to_flip"), found.get("participants_to_flip")
    if votes is None or people is None:
        return ""
    at_most = "at most " if found.get("upper_bound") else ""
    ballots = "1 vote" if votes == 1 else f"{votes} votes"
    return f"Without {at_most}{ballots}, or {at_most}{_people(people)}, another would lead."


def balance(result: Result, names: Names = None) -> TextTable:
    """How often each method was shown at each position."""
    table = result["screened"]["shown_at_position"]
    places = max((len(counts) for counts in table.values()), default=0)
    sides = ("Left", "Right") if result["mode"] == "pairwise" else ()
    head = sides or tuple(f"{n + 1}" for n in range(places))
    rows = tuple(
        (_name(method, names), *(str(n) for n in table.get(method, [0] * places)))
        for method in result["methods"]
    )
    return TextTable("Times shown at each position", ("Method", *head), rows)


def breakdowns(result: Result, names: Names = None) -> list[TextTable]:
    """Data set, scene, device, zoom, expertise: shares by level, with the test of a difference."""
    picks = result["mode"] == "pick_best"
    tables = []
    for factor, found in (result["screened"].get("breakdowns") or {}).items():
        if len(found["levels"]) < 2:
            continue
        statistic = found["interaction"]
        rows = tuple(
            (
                level,
                str(cells["n"]),
                *(
                    _percent(cell.get("shrunken", cell["share" if picks else "rate"]))
                    for cell in (cells["methods"][method] for method in result["methods"])
                ),
            )
            for level, cells in found["levels"].items()
        )
        tables.append(
            TextTable(
                f"By {factor}",
                (factor.capitalize(), "Votes", *(_name(m, names) for m in result["methods"])),
                rows,
                f"{'Share' if picks else 'Rate of wins'} in %, drawn towards the whole below 30 "
                "votes. Method × level, likelihood ratio with independent votes: p "
                f"{_equal(statistic[-1])}.",
            )
        )
    return tables


def card(result: Result) -> TextTable:
    """The report card that goes with every result."""
    R, found, cleaning = result["screened"], result["report_card"], result["cleaning"]
    same, repeats = R["self_consistency"]
    passed, golden = R.get("golden", (0, 0))
    reasons = ", ".join(f"{reason} {n}" for reason, n in found["excluded_by_reason"].items())
    kinds = ", ".join(f"{kind} {n}" for kind, n in found["votes_by_kind"].items())
    dropped = ", ".join(
        f"{name.removeprefix('dropped_').replace('_', ' ')} {n}"
        for name, n in cleaning.items()
        if name.startswith("dropped_") and n
    )
    rows = [
        ("Screened", result["headline"]),
        ("Without screening", result["headline_unscreened"]),
        ("Study hash", cleaning["study_hash"]),
        ("Head of the audit chain", found.get("chain_head") or "not in a file of votes"),
    ]
    if "chain_verifies" in found:
        rows.append(("Audit chain", "verifies" if found["chain_verifies"] else "DOES NOT VERIFY"))
    rows += [
        ("App version", ", ".join(found["app_versions"]) or DASH),
        ("First and last vote", f"{found['first_vote'] or DASH} to {found['last_vote'] or DASH}"),
    ]
    if "participants_started" in found:
        rows.append(
            (
                "People",
                f"{found['participants_started']} started, {found['participants_finished']} "
                f"finished, {found['participants_withdrawn']} withdrew",
            )
        )
    rows += [
        ("People who voted", str(found["participants_voted"])),
        ("Excluded by the rules", f"{found['participants_excluded']} ({reasons or 'none'})"),
        ("Votes by kind", kinds),
        ("Rows dropped in cleaning", dropped or "none"),
        ("Golden trials passed", _of(passed, golden)),
        (
            "Repeats answered alike",
            f"{_of(same, repeats)}; the model lets one expect "
            f"{_percent(R.get('self_consistency_expected'))} %",
        ),
        (
            "Krippendorff's alpha",
            f"{_number(R['kripp_alpha'], 3)}; the model lets one expect "
            f"{_number(R.get('kripp_alpha_expected'), 3)}",
        ),
    ]
    if result["mode"] == "pairwise":
        left, right, p = R["left_right"]
        rows.append(("Left preferred to right", f"{left} : {right}, p {_equal(p)}"))
    elif R.get("position_chi2"):
        rows.append(
            (
                "Picks by position",
                f"{', '.join(map(str, R['position_counts']))}; p {_equal(R['position_chi2'][-1])}",
            )
        )
    for pair in result.get("by_criterion", {}).get("correlations", ()):
        rows.append(
            (
                f"Rankings by {pair['a']} and {pair['b']}",
                f"Spearman {_number(pair['spearman'], 2)}, Kendall {_number(pair['kendall'], 2)}",
            )
        )
    flags = sorted({flag for found in result["fraud_flags"].values() for flag in found})
    rows.append(
        (
            "Flags that exclude nobody",
            f"{_people(len(result['fraud_flags']))} ({', '.join(flags)})" if flags else "none",
        )
    )
    rows += [("Note", note) for note in result["notes"]]
    return TextTable("Report card", ("What", "Value"), tuple(rows))


def published(share: PublishedShare) -> TextTable:
    """What a published "k of n" can and cannot say."""
    low, high = share.runner_up_range
    rows = (
        ("Share", f"{_percent(share.share)} % of {share.n} votes"),
        ("95 % interval (Wilson)", f"{_range(share.wilson)} %"),
        ("Clopper-Pearson, independent votes", f"{_range(share.exact)} %"),
        (
            f"Above chance ({_percent(share.chance)} %)",
            f"p {'< 1e-12' if share.p_above_chance < 1e-12 else f'= {share.p_above_chance:.2g}'}",
        ),
        ("The second had between", f"{_range((low, high))} %, as far as the share tells"),
        ("Ahead of it at p < .05 only if it had at most", f"{_percent(share.runner_up_at_05)} %"),
        ("and at p < .01", f"{_percent(share.runner_up_at_01)} %"),
    )
    return TextTable(
        f"{share.k} of {share.n} among {share.methods}",
        ("What", "Value"),
        rows,
        "Votes taken for independent."
        if share.design_effect == 1
        else f"Computed with a design effect of {share.design_effect:g}: that many votes are worth "
        "one independent vote.",
    )


def planned(rows: Sequence[Power]) -> TextTable:
    """Power of leader against runner-up for numbers of people and pictures."""
    images = sorted({row.images for row in rows})
    cells = {(row.participants, row.images): row for row in rows}
    people = sorted({row.participants for row in rows})
    return TextTable(
        "Power of the first against the second",
        ("People", *(f"{n} pictures" for n in images)),
        tuple((str(p), *(f"{cells[p, n].twoway:.2f}" for n in images)) for p in people),
        f"Simulated, {rows[0].runs} studies each: two-way errors, two-sided 5 %. Participant SD "
        f"{rows[0].participant_sd:g}, picture SD {rows[0].image_sd:g}, in log-odds.",
    )


def _name(method: str, names: Names) -> str:
    return (names or {}).get(method, method)


def _people(n: int) -> str:
    return "1 person" if n == 1 else f"{n} people"


def _percent(share: float | None) -> str:
    return DASH if share is None else f"{100 * share:.1f}"


def _range(pair: Sequence[float | None]) -> str:
    low, high = pair
    if low is None or high is None:
        return DASH
    return f"{100 * max(0.0, low):.1f} to {100 * min(1.0, high):.1f}"


def _number(value: float | None, digits: int) -> str:
    # + 0.0: what rounds to nothing has no sign
    return DASH if value is None else f"{round(value, digits) + 0.0:.{digits}f}"


def _of(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / whole:.0f} %)" if whole else "none asked"


def _p(value: float | None) -> str:
    return DASH if value is None else p_text(value).removeprefix("= ")


def _equal(value: float | None) -> str:
    return "unknown" if value is None else p_text(value)
