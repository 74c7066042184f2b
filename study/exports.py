"""What leaves a study: votes, people, withdrawals, study file, manifest; LaTeX, BibTeX, long table.

Knows the store's rows and the result JSON; computes nothing.
"""

import csv
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from study.design import Study, schedule, sha256, write_study
from study.store import VoteStore, vote_rows, withdrawal_rows
from study.votes import COLUMNS, SKIP, TIE, votes_csv

ABOUT = ("vision", "expertise", "display")
PARTICIPANT_COLUMNS = ("participant", "slot", "consent_sha256", "votes", "finished", *ABOUT)


def export_study(store: VoteStore, study: Study, folder: Path) -> dict[str, Any]:
    """Write votes.csv, votes.parquet, withdrawals.csv, participants.csv, study.json, MANIFEST.json.

    Returns:
        The manifest: sha256 and rows of each file, and the head of the audit chain.
    """
    folder.mkdir(parents=True, exist_ok=True)
    votes = vote_rows(store, study.hash)
    people = participant_rows(store, study)
    gone = withdrawal_rows(store, study.hash)
    tables = {
        "votes.csv": votes_csv(votes),
        "participants.csv": _csv(people, PARTICIPANT_COLUMNS),
        "withdrawals.csv": _csv(gone, ("participant", "requested_utc")),
    }
    for name, text in tables.items():
        (folder / name).write_text(text, encoding="utf-8", newline="")
    write_parquet(votes, folder / "votes.parquet")
    write_study(study, folder / "study.json")
    rows = {
        "votes.csv": len(votes),
        "votes.parquet": len(votes),
        "participants.csv": len(people),
        "withdrawals.csv": len(gone),
        "study.json": 1,
    }
    check = store.verify()
    manifest = {
        "study_hash": study.hash,
        "chain_head": check.head,
        "chain_verifies": check.ok,
        "events": check.events,
        "files": {
            name: {"sha256": sha256((folder / name).read_bytes()), "rows": n}
            for name, n in rows.items()
        },
    }
    text = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
    (folder / "MANIFEST.json").write_text(text, encoding="utf-8")
    return manifest


def write_report(result: Mapping[str, Any], title: str, folder: Path) -> None:
    """Write result.json, table.tex and study.bib into a folder that exists."""
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / "result.json").write_text(text, encoding="utf-8")
    (folder / "table.tex").write_text(latex_table(result), encoding="utf-8")
    (folder / "study.bib").write_text(bibtex(result, title), encoding="utf-8")


def bundle(folder: Path, name: str) -> Path:
    """All files of a folder in one archive in it, without its own path."""
    archive = folder / name
    files = sorted(path for path in folder.iterdir() if path.is_file())
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        for path in files:
            out.write(path, path.name)
    return archive


def participant_rows(store: VoteStore, study: Study) -> list[dict[str, Any]]:
    """One row for everyone who joined and did not withdraw."""
    counts: dict[str, int] = {}
    for event in store.events(study.hash, "vote"):
        if not event.erased:
            counts[event.participant] = counts.get(event.participant, 0) + 1
    rows = []
    for event in store.events(study.hash, "consent"):
        if not event.erased:
            images = event.payload["images"]
            total = len(schedule(study, event.participant, event.payload["slot"], images))
            voted = counts.get(event.participant, 0)
            rows.append(
                {
                    "participant": event.participant,
                    "slot": event.payload.get("slot"),
                    "consent_sha256": event.payload.get("consent_sha256", ""),
                    "votes": voted,
                    "finished": int(voted >= total),
                    **{key: event.payload.get(key, "") for key in ABOUT},
                }
            )
    return rows


def _csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_parquet(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Votes as Parquet, with the columns and the text of the CSV."""
    frame = pd.DataFrame(list(rows), columns=list(COLUMNS))
    frame.astype(str).to_parquet(path, index=False)


def long_table(votes: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """One row per vote and displayed method, ready for a mixed model in R (lme4, mlogit).

    Columns: trial, participant, image_id, dataset, criterion, method, position, chosen (0 or 1;
    0.5 for each side of a tie).
    """
    rows = []
    main = votes[(votes["kind"] == "main") & (votes["choice"] != SKIP)]
    for vote in main.itertuples(index=False):
        shown = str(vote.methods_shown).split("|")
        for position, method in enumerate(shown):
            chosen = 0.5 if vote.choice == TIE else float(vote.choice == method)
            if method in methods:
                rows.append(
                    {
                        "trial": f"{vote.participant}-{vote.trial_id}",
                        "participant": vote.participant,
                        "image_id": vote.image_id,
                        "dataset": vote.dataset,
                        "criterion": vote.criterion,
                        "method": method,
                        "position": position,
                        "chosen": chosen,
                    }
                )
    return pd.DataFrame(rows)


def latex_table(result: Mapping[str, Any], titles: Mapping[str, str] | None = None) -> str:
    """The screened result as a LaTeX table, with booktabs rules."""
    R = result["screened"]
    names = {**{m: m for m in result["methods"]}, **(titles or {})}
    lines = []
    if result["mode"] == "pick_best":
        head = r"Method & Picked & Share (\%) & two-way 95\,\% CI & $p$ vs.\ leader (Holm) \\"
        adjusted = {test["vs"]: test["p_twoway_holm"] for test in R["leader_tests"]}
        for method in R["order"]:
            row = R["methods"][method]
            lines.append(
                f"{_tex(names[method])} & {row['count']} & {_percent(row['share'])} & "
                f"{_interval(row['ci_twoway_t'])} & {_p(adjusted.get(method))} \\\\"
            )
        caption = f"{R['n_decided']} votes, {R['n_participants']} people, {R['n_images']} images."
    else:
        head = r"Method & $\theta$ & SE (clustered) & $p$ vs.\ leader (Holm) \\"
        adjusted = {test["vs"]: test["p_twoway_holm"] for test in R["leader_diff"]}
        for method in R["order"]:
            theta, se = R["davidson_theta"][method], R["davidson_se_cluster"][method]
            lines.append(
                f"{_tex(names[method])} & {_number(theta)} & {_number(se)} & "
                f"{_p(adjusted.get(method))} \\\\"
            )
        caption = f"{R['n_used']} comparisons by {R['n_participants']} people."
    columns = "l" + "r" * (head.count("&"))
    body = "\n".join(lines)
    return (
        f"\\begin{{table}}\n\\centering\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n{head}\n"
        f"\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"
        f"\\caption{{{caption} Study {result['cleaning']['study_hash'][:12]}.}}\n\\end{{table}}\n"
    )


def bibtex(result: Mapping[str, Any], title: str) -> str:
    """A BibTeX entry that names the study by its hash."""
    card = result["report_card"]
    year = (card["last_vote"] or "")[:4]
    study_hash = result["cleaning"]["study_hash"]
    return (
        f"@misc{{study-{study_hash[:12]},\n  title = {{{{{_tex(title)}}}}},\n  year = {{{year}}},\n"
        f"  note = {{Preference study, study hash {study_hash}}}\n}}\n"
    )


def _tex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, "\\" + c if c in "&%$#_{}" else c) for c in text)


def _percent(share: float | None) -> str:
    return "--" if share is None else f"{100 * share:.1f}"


def _interval(pair: Sequence[float | None]) -> str:
    low, high = pair
    if low is None or high is None:
        return "--"
    return f"{100 * max(0.0, low):.1f}--{100 * min(1.0, high):.1f}"


def _number(value: float | None) -> str:
    return "--" if value is None else f"{value:.3f}"


def _p(value: float | None) -> str:
    if value is None:
        return "--"
    return "$<$ .001" if value < 0.001 else f"{value:.3f}".removeprefix("0")
