"""Analyse a study from the command line.

From votes:   python -m study.analyse --votes votes.csv [--study study.json] --out result.json
From a store: python -m study.analyse study.json [--store votes.sqlite] --out result.json

Without a study file the default pipeline is applied to the most frequent study hash, and the
result says so. The headline goes to standard output; without --out the whole result does.
"""

import argparse
import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from study.analysis import Result, analyse
from study.design import Study, StudyError, read_study
from study.exports import export_study, latex_table, long_table, participant_rows
from study.store import SqliteStore, StoreError, VoteStore, vote_rows
from study.votes import VotesError, read_votes, read_withdrawals, typed

SQLITE_SUFFIX = ".sqlite"


def store_path(study_file: Path) -> Path:
    """Where a study's votes are unless it is said otherwise: beside its file."""
    return study_file.with_suffix(SQLITE_SUFFIX)


def open_store(where: str) -> VoteStore:
    """A store by file name, or by a SQLAlchemy URL of PostgreSQL.

    Raises:
        StoreError: there is none.
    """
    if "://" in where:
        # Only now: SQLAlchemy and its driver take half a second that SQLite users need not wait.
        from study.postgres import PostgresStore  # noqa: PLC0415

        return PostgresStore(where)
    if not Path(where).exists():
        raise StoreError(f"There is no store {where}. Name it with --store.")
    return SqliteStore(Path(where))


def analyse_store(store: VoteStore, study: Study, *, bootstrap: int | None = None) -> Result:
    """The result of a study in a store, with what only the store knows in the report card.

    Raises:
        VotesError: there are no votes yet.
    """
    rows = vote_rows(store, study.hash)
    if not rows:
        raise VotesError(f"There are no votes of study {study.hash} in the store yet.")
    people = participant_rows(store, study)
    expertise = {row["participant"]: row["expertise"] for row in people if row["expertise"]}
    frame = typed(pd.DataFrame(rows))
    result = analyse(
        frame, study.plan(), study_hash=study.hash, expertise=expertise, bootstrap=bootstrap
    )
    check = store.verify()
    withdrawn = sum(1 for _ in store.events(study.hash, "withdraw"))
    duplicates = sum(1 for _ in store.events(study.hash, "rejected_duplicate"))
    result["report_card"].update(
        {
            "chain_head": check.head,
            "chain_verifies": check.ok,
            "chain_problem": check.problem,
            "participants_started": len(people) + withdrawn,
            "participants_finished": sum(row["finished"] for row in people),
            "participants_withdrawn": withdrawn,
            "rejected_duplicates": duplicates,
        }
    )
    return result


def analyse_votes(
    votes: Path,
    *,
    study: Study | None = None,
    withdrawals: Path | None = None,
    participants: Path | None = None,
    bootstrap: int | None = None,
) -> Result:
    """The result of a file of votes; withdrawals.csv and participants.csv beside it are used."""
    frame = read_votes(votes)
    withdrawals = withdrawals or _beside(votes, "withdrawals.csv")
    participants = participants or _beside(votes, "participants.csv")
    withdrawn = read_withdrawals(withdrawals) if withdrawals else set()
    result = analyse(
        frame,
        study.plan() if study else None,
        study_hash=study.hash if study else None,
        withdrawn=withdrawn,
        expertise=_expertise(participants) if participants else None,
        bootstrap=bootstrap,
    )
    result["inputs"] = {
        "votes": votes.name,
        "withdrawals": withdrawals.name if withdrawals else None,
        "participants": participants.name if participants else None,
    }
    return result


def _beside(votes: Path, name: str) -> Path | None:
    path = votes.with_name(name)
    return path if path.exists() else None


def _expertise(path: Path) -> Mapping[str, str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        return {
            row["participant"]: row["expertise"]
            for row in rows
            if row.get("participant") and row.get("expertise")
        }


def write_result(result: Mapping[str, Any], path: Path) -> None:
    """The result as JSON in UTF-8, the same bytes for the same result."""
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    path.write_text(text, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; 0 if there is a result, 2 if not."""
    parser = argparse.ArgumentParser(
        prog="python -m study.analyse",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study_file", nargs="?", type=Path, help="a study whose store to analyse")
    parser.add_argument("--votes", type=Path, help="votes.csv or votes.parquet, schema version 1")
    parser.add_argument("--study", type=Path, help="the study file of --votes")
    parser.add_argument(
        "--withdrawals", type=Path, help="default: withdrawals.csv beside the votes"
    )
    parser.add_argument("--participants", type=Path, help="default: participants.csv beside them")
    parser.add_argument("--store", help="file or URL; default: the study file's name, .sqlite")
    parser.add_argument("--out", type=Path, help="where the result JSON goes")
    parser.add_argument("--latex", type=Path, help="write the main table as LaTeX")
    parser.add_argument("--long", type=Path, help="write a long table for mixed models, CSV")
    parser.add_argument(
        "--export", type=Path, help="with a store: folder for CSV, Parquet, manifest"
    )
    parser.add_argument("--bootstrap", type=int, help="replicates, instead of the plan's")
    arguments = parser.parse_args(argv)
    problem = _conflict(arguments)
    if problem:
        parser.error(problem)
    try:
        if arguments.votes:
            study = read_study(arguments.study) if arguments.study else None
            result = analyse_votes(
                arguments.votes,
                study=study,
                withdrawals=arguments.withdrawals,
                participants=arguments.participants,
                bootstrap=arguments.bootstrap,
            )
            frame = read_votes(arguments.votes) if arguments.long else None
        else:
            result, frame = _from_store(arguments)
    except (VotesError, StudyError, StoreError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if arguments.latex:
        arguments.latex.write_text(latex_table(result), encoding="utf-8")
    if arguments.long and frame is not None:
        own = frame[frame["study_hash"] == result["cleaning"]["study_hash"]]
        long_table(own, result["methods"]).to_csv(arguments.long, index=False)
    if arguments.out:
        write_result(result, arguments.out)
        for note in result["notes"]:
            sys.stdout.write(f"{note}\n")
        sys.stdout.write(f"{result['headline']}\n")
    else:
        sys.stdout.write(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return 0


def _conflict(arguments: argparse.Namespace) -> str:
    """Why the options make no sense together; empty if they do."""
    if bool(arguments.votes) == bool(arguments.study_file):
        return "give either a study file or --votes"
    for_votes = ("study", "withdrawals", "participants")
    for_store = ("store", "export")
    for name in for_store if arguments.votes else for_votes:
        if getattr(arguments, name):
            return f"--{name} goes with {'a study file' if arguments.votes else '--votes'}"
    if arguments.bootstrap is not None and arguments.bootstrap < 1:
        return "--bootstrap is 1 or more"
    return ""


def _from_store(arguments: argparse.Namespace) -> tuple[Result, pd.DataFrame]:
    study = read_study(arguments.study_file)
    store = open_store(arguments.store or str(store_path(arguments.study_file)))
    try:
        result = analyse_store(store, study, bootstrap=arguments.bootstrap)
        if arguments.export:
            export_study(store, study, arguments.export)
        return result, typed(pd.DataFrame(vote_rows(store, study.hash)))
    finally:
        store.close()


if __name__ == "__main__":
    sys.exit(main())
