"""The vote record, schema version 1: one row a vote, as CSV or Parquet, and how it is cleaned.

Votes are facts. Whether one counts is computed at analysis from rules and never stored with it.
"""

import csv
import io
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

SCHEMA_VERSION = 1
COLUMNS = (
    "schema_version",
    "event_id",
    "seq",
    "study_id",
    "study_hash",
    "app_version",
    "session_id",
    "participant",
    "trial_id",
    "trial_index",
    "kind",
    "mode",
    "criterion",
    "image_id",
    "dataset",
    "scene",
    "methods_shown",
    "stimuli_sha",
    "choice",
    "choice_position",
    "expected",
    "repeat_of",
    "response_ms",
    "zoomed",
    "zoom_max",
    "viewport_w",
    "viewport_h",
    "dpr",
    "seed",
    "shown_utc",
    "submitted_utc",
    "flags",
)
# Without these no analysis is possible; other columns may be missing in another tool's export.
NEEDED = (
    "seq",
    "event_id",
    "study_hash",
    "participant",
    "trial_id",
    "kind",
    "mode",
    "image_id",
    "methods_shown",
    "choice",
    "choice_position",
    "response_ms",
)
KINDS = ("training", "main", "golden", "repeat")
MODES = ("pick_best", "pairwise")
CRITERIA = ("overall", "consistency", "quality")
TIE, SKIP = "tie", "skip"


class VotesError(ValueError):
    """A file of votes that cannot be analysed; the message says where and why."""


@dataclass(frozen=True)
class Cleaned:
    """Votes of one study in server order, each once, and how many rows were left out and why.

    `frame` has typed columns; `counts` the keys of the result's "cleaning".
    """

    frame: pd.DataFrame
    counts: dict[str, int]
    study_hash: str


def read_votes(path: Path) -> pd.DataFrame:
    """Read votes from .csv or .parquet; all columns of the schema, those missing left empty.

    Raises:
        VotesError: the file is not a table of votes of schema version 1.
    """
    try:
        if path.suffix == ".parquet":
            raw = pd.read_parquet(path).astype(str)
        else:
            # keep_default_na: a method may well be called "NA"
            raw = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except FileNotFoundError:
        raise VotesError(f"There is no file {path}.") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise VotesError(f"{path.name} is not a CSV table in UTF-8: {error}") from None
    return typed(raw, path.name)


def typed(raw: pd.DataFrame, name: str = "votes") -> pd.DataFrame:
    """Votes as text to votes with numbers where the schema has numbers."""
    missing = [column for column in NEEDED if column not in raw.columns]
    if missing:
        raise VotesError(f"{name} lacks the columns {', '.join(missing)} of schema version 1.")
    frame = raw.reindex(columns=COLUMNS, fill_value="").astype(str)
    versions = set(frame["schema_version"]) - {"", str(SCHEMA_VERSION)}
    if versions:
        raise VotesError(f"{name} is of schema version {sorted(versions)}; this reads version 1.")
    frame["criterion"] = frame["criterion"].replace("", CRITERIA[0])
    frame["seq"] = _whole(frame["seq"], "seq", name)
    frame["choice_position"] = _whole(
        frame["choice_position"].replace("", "-1"), "choice_position", name
    )
    for column in ("response_ms", "zoom_max", "viewport_w", "viewport_h", "dpr"):
        frame[column] = pd.to_numeric(frame[column], errors="coerce")
    for column, allowed in (("kind", KINDS), ("mode", MODES), ("criterion", CRITERIA)):
        strange = sorted(set(frame[column]) - set(allowed))
        if strange:
            raise VotesError(
                f"{name}: {column} is one of {', '.join(allowed)}, not {strange[0]!r}."
            )
    return frame


def _whole(column: pd.Series, what: str, name: str) -> pd.Series:
    numbers = pd.to_numeric(column, errors="coerce")
    wrong = numbers.isna() | (numbers % 1 != 0)
    if wrong.any():
        row = int(np.flatnonzero(wrong.to_numpy())[0])
        raise VotesError(
            f"{name}, row {row + 1}: {what} is a whole number, not {column.iloc[row]!r}."
        )
    return numbers.astype("int64")


def write_votes(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write votes as CSV: UTF-8, header, one line feed a row."""
    path.write_text(votes_csv(rows), encoding="utf-8", newline="")


def votes_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """The CSV text of votes, columns in the schema's order."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_withdrawals(path: Path) -> set[str]:
    """Participants who asked to be erased, from a CSV `participant,requested_utc`."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except FileNotFoundError:
        raise VotesError(f"There is no file {path}.") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise VotesError(f"{path.name} is not a CSV table in UTF-8: {error}") from None
    if "participant" not in table.columns:
        raise VotesError(f"{path.name} lacks the column participant.")
    return set(table["participant"])


def most_frequent_hash(frame: pd.DataFrame) -> str:
    """The study hash of most rows; the alphabet decides between equals."""
    if frame.empty:
        raise VotesError("There are no votes.")
    counts = frame["study_hash"].value_counts()
    return min(counts[counts == counts.max()].index)


def clean(frame: pd.DataFrame, study_hash: str, withdrawn: Collection[str] = ()) -> Cleaned:
    """Step 1 of pipeline v1: one study, server order, each vote once, nobody who withdrew.

    Of a repeated event, then of a repeated (participant, trial), the lowest `seq` stays: the
    first answer stored is the answer.
    """
    own = frame[frame["study_hash"] == study_hash].sort_values("seq", kind="stable")
    # A row without an event id repeats nothing.
    same_event = own.duplicated("event_id") & (own["event_id"] != "")
    events = own[~same_event]
    trials = events.drop_duplicates(["participant", "trial_id"])
    kept = trials[~trials["participant"].isin(list(withdrawn))]
    counts = {
        "rows_raw": len(frame),
        "dropped_foreign_hash": len(frame) - len(own),
        "dropped_same_event": len(own) - len(events),
        "dropped_same_trial": len(events) - len(trials),
        "dropped_withdrawn": len(trials) - len(kept),
        "rows_after_cleaning": len(kept),
        "participants_after_cleaning": int(kept["participant"].nunique()),
    }
    return Cleaned(kept.reset_index(drop=True), counts, study_hash)


@dataclass(frozen=True)
class Screening:
    """Who is left out, by rules fixed before the study opened; thresholds of one mode.

    Attributes:
        golden_min, golden_rate: from so many answered goldens on, below this pass rate.
        fast_ms: median response of main trials, in milliseconds, below this.
        straight_min, straight_share: from so many main choices on, this share in one position.
        main_min: fewer main trials than this.
    """

    golden_min: int = 3
    golden_rate: float = 0.75
    fast_ms: float = 2500
    straight_min: int = 12
    straight_share: float = 0.7
    main_min: int = 10

    @classmethod
    def of_mode(cls, mode: str) -> "Screening":
        """The defaults of pipeline v1 for "pick_best" or "pairwise"."""
        if mode == "pairwise":
            return cls(fast_ms=1500, straight_share=0.9)
        return cls()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def screen(frame: pd.DataFrame, rules: Screening) -> dict[str, list[str]]:
    """Reasons to exclude, by participant; those with none are left out of the answer."""
    excluded: dict[str, list[str]] = {}
    for participant, rows in frame.groupby("participant", sort=True):
        main = rows[rows["kind"] == "main"]
        golden = rows[rows["kind"] == "golden"]
        positions = main["choice_position"][main["choice_position"] >= 0]
        reasons = []
        if len(golden) >= rules.golden_min:
            passed = (golden["choice"] == golden["expected"]).mean()
            if passed < rules.golden_rate:
                reasons.append("golden")
        if main["response_ms"].median() < rules.fast_ms:  # false for nan: no main trials
            reasons.append("too_fast")
        often = positions.value_counts().max()
        if len(positions) >= rules.straight_min and often / len(positions) >= rules.straight_share:
            reasons.append("straightline")
        if len(main) < rules.main_min:
            reasons.append("too_few")
        if reasons:
            excluded[str(participant)] = reasons
    return excluded
