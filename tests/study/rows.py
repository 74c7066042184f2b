"""Votes of schema version 1 as a study would export them, made without the store."""

import numpy as np
import pandas as pd

from study.votes import COLUMNS, typed

HASH = "5" * 64


def vote(seq, **values):
    """One main pick; `values` replace any column."""
    row = dict.fromkeys(COLUMNS, "")
    row.update(
        schema_version=1, event_id=f"{seq:032x}", seq=seq, study_id="s", study_hash=HASH,
        app_version="0", session_id="x", participant="p0", trial_id=f"t{seq}", trial_index=seq,
        kind="main", mode="pick_best", criterion="overall", image_id="i0", dataset="d0",
        scene="s0", methods_shown="A|B|C", choice="A", response_ms=6000 + 37 * (seq % 50),
        zoomed=0, zoom_max=1, viewport_w=1600, viewport_h=900, dpr=1, seed=1,
    )  # fmt: skip
    row.update(values)
    if "choice_position" not in values:
        shown = row["methods_shown"].split("|")
        row["choice_position"] = shown.index(row["choice"]) if row["choice"] in shown else -1
    return row


def frame(rows):
    return typed(pd.DataFrame(rows).astype(str))


def sheet_example():
    """The worked example of picks: five people by six pictures."""
    answers = ["AABACA", "ABAACB", "AACABA", "BABACA", "AABCCB"]
    return [
        vote(6 * p + i, participant=f"p{p}", image_id=f"i{i}", choice=choice)
        for p, row in enumerate(answers)
        for i, choice in enumerate(row)
    ]


def pick_rows(seed, people=8, pictures=12, methods="ABCD"):
    """Random picks with goldens, repeats, missing outputs and careless people; seq in order."""
    rng = np.random.default_rng(seed)
    rows, seq = [], 0
    strength = np.linspace(0.9, -0.6, len(methods))
    for p in range(people):
        who = f"p{p:02d}"
        careless = p % 4 == 3
        first = {}
        for n, i in enumerate(rng.permutation(pictures)):
            shown = [methods[m] for m in rng.permutation(len(methods))]
            if i % 5 == 0:
                shown = [m for m in shown if m != "D"]
            scores = [strength[methods.index(m)] + rng.gumbel() for m in shown]
            position = 0 if careless else int(np.argmax(scores))
            choice = "skip" if rng.random() < 0.05 else shown[position]
            common = {
                "participant": who, "image_id": f"i{i}", "dataset": f"d{i % 2}",
                "scene": f"s{i % 3}",
                "methods_shown": "|".join(shown), "response_ms": int(rng.integers(2600, 20000)),
                "viewport_w": int(rng.choice([1000, 1500])), "zoomed": int(rng.integers(0, 2)),
            }  # fmt: skip
            if careless and p % 8 == 7:
                common["response_ms"] = 700
            seq += 1
            rows.append(vote(seq, **common, choice=choice, trial_id=f"{who}-{n}"))
            first[n] = (common, choice, f"{who}-{n}")
        for n in range(4):
            seq += 1
            right = rng.random() < (0.2 if careless else 0.95)
            rows.append(
                vote(
                    seq, participant=who, trial_id=f"{who}-g{n}", kind="golden", image_id=f"g{n}",
                    methods_shown="g_gt|g_blur|g_noise", expected="g_gt",
                    choice="g_gt" if right else "g_blur",
                )
            )  # fmt: skip
        for n in range(2):
            common, choice, of = first[n]
            seq += 1
            again = choice if rng.random() < 0.7 else common["methods_shown"].split("|")[0]
            rows.append(
                vote(
                    seq, **common, choice=again, kind="repeat", trial_id=f"{who}-r{n}",
                    repeat_of=of,
                )
            )  # fmt: skip
    return rows


def pair_rows(seed, people=10, pictures=8, methods="ABCD"):
    """Random pair votes with ties, skips, goldens and repeats; seq in order."""
    rng = np.random.default_rng(seed)
    rows, seq = [], 0
    strength = dict(zip(methods, np.linspace(0.7, -0.7, len(methods)), strict=True))
    for p in range(people):
        who = f"p{p:02d}"
        main = []
        for i in range(pictures):
            for _ in range(2):
                a, b = rng.choice(list(methods), 2, replace=False)
                d = strength[a] - strength[b] + rng.logistic()
                choice = "tie" if abs(d) < 0.4 else (a if d > 0 else b)
                if rng.random() < 0.03:
                    choice = "skip"
                if p == 4:
                    choice = a  # always left
                seq += 1
                row = vote(
                    seq, participant=who, mode="pairwise", image_id=f"i{i}", dataset=f"d{i % 2}",
                    scene=f"s{i}", methods_shown=f"{a}|{b}", choice=choice,
                    trial_id=f"{who}-{len(main)}", response_ms=int(rng.integers(1600, 9000)),
                )  # fmt: skip
                main.append(row)
        rows += main
        for n in range(3):
            row = main[n]
            seq += 1
            a, b = row["methods_shown"].split("|")
            rows.append(
                vote(
                    seq, participant=who, mode="pairwise", kind="repeat", image_id=row["image_id"],
                    methods_shown=f"{b}|{a}", choice=row["choice"] if n else "tie",
                    trial_id=f"{who}-r{n}", repeat_of=row["trial_id"],
                )
            )  # fmt: skip
    return rows


def mess_up(rows, seed):
    """Retries, second answers, foreign studies; rows in random order. Returns rows and counts."""
    rng = np.random.default_rng(seed)
    top = max(row["seq"] for row in rows)
    out = list(rows)
    retries, seconds, foreign = 7, 5, 9
    for n in range(retries):  # the same event stored again later
        out.append({**rows[int(rng.integers(len(rows)))], "seq": top + 1 + n})
    out[-1]["choice"] = "skip"  # even with another content, the first one stands
    main = [row for row in rows if row["kind"] == "main"]
    for n in range(seconds):  # another tab answers the same trial differently
        row = main[n * 3]
        other = next(m for m in row["methods_shown"].split("|") if m != row["choice"])
        out.append({**row, "seq": top + 50 + n, "event_id": f"e{n:031x}", "choice": other})
    for n in range(foreign):
        out.append({**rows[n], "study_hash": "6" * 64, "seq": -n})
    return [out[i] for i in rng.permutation(len(out))], (retries, foreign, seconds)
