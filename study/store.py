"""Where votes live: an append-only log of events, each chained to the one before by sha256.

`VoteStore` is the seam; `SqliteStore` keeps the log on a local disk, `study.postgres` in a
database for owners who outgrow one machine, `study.shards` copies it to a data set repository.
Votes are facts: nothing is ever changed, except that the payloads of someone who withdrew are
blanked, which the chain records and survives. Knows events, not what they mean for a ranking.
"""

import json
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, Protocol

from study.design import canonical_json, sha256
from study.votes import COLUMNS

GENESIS = "0" * 64  # what the first event is chained to
EVENT_TYPES = (
    "study_open",
    "consent",
    "trial_shown",
    "vote",
    "rejected_duplicate",
    "break",
    "resume",
    "withdraw",
    "study_close",
    "admin_note",
)
# What an event may say. A closed list: a name, an address or a browser's signature cannot slip in.
VOTE_KEYS = frozenset(COLUMNS) - {"seq"}
PAYLOAD_KEYS: dict[str, frozenset[str]] = {
    "study_open": frozenset({"study", "app_version"}),
    "consent": frozenset(
        {
            "slot",
            "nonce",
            "images",
            "seed",
            "consent_sha256",
            "adult",
            "session_id",
            "vision",
            "expertise",
            "display",
            "gamut",
            "pointer",
            "screen_w",
            "screen_h",
        }
    ),
    "trial_shown": frozenset(
        {"session_id", "trial_index", "nonce", "order", "probability", "time_hidden_ms"}
    ),
    "vote": VOTE_KEYS,
    "rejected_duplicate": VOTE_KEYS,
    "break": frozenset({"session_id", "trial_index"}),
    "resume": frozenset({"session_id", "trial_index"}),
    "withdraw": frozenset({"requested_utc"}),
    "study_close": frozenset({"reason"}),
    "admin_note": frozenset({"text"}),
}
BUSY_MS = 5000

Execute = Callable[..., list[tuple[Any, ...]]]


class StoreError(RuntimeError):
    """The store cannot do this; the message says why and what to do."""


class WithdrawnError(StoreError):
    """The participant has withdrawn: nothing more is stored about them."""


@dataclass(frozen=True)
class NewEvent:
    """Something that happened, not yet stored.

    Attributes:
        event_id: 32 hexadecimal digits; the same again is a retry.
        type: one of EVENT_TYPES.
        study_hash: which study.
        payload: what is known about it; keys are limited by type.
        participant, trial_id: where it belongs to some.
        cell: image_id of a main vote, which counts how full the design is; else empty.
    """

    event_id: str
    type: str
    study_hash: str
    payload: Mapping[str, Any]
    participant: str = ""
    trial_id: str = ""
    cell: str = ""


@dataclass(frozen=True)
class Event:
    """A stored event. Of an erased one only place, kind, time and hashes are left."""

    seq: int
    event_id: str | None
    type: str
    study_hash: str
    participant: str
    trial_id: str
    cell: str
    payload: Mapping[str, Any]
    created_utc: str
    prev_hash: str
    row_hash: str
    erased: bool = False

    def content(self) -> dict[str, Any]:
        """What the row hash is over, besides the previous hash."""
        return {
            "seq": self.seq,
            "event_id": self.event_id,
            "type": self.type,
            "study_hash": self.study_hash,
            "participant": self.participant,
            "trial_id": self.trial_id,
            "cell": self.cell,
            "payload": dict(self.payload),
            "created_utc": self.created_utc,
        }

    def blanked(self) -> "Event":
        """The same event with everything erased that a withdrawal erases."""
        return Event(
            seq=self.seq,
            event_id=None,
            type=self.type,
            study_hash=self.study_hash,
            participant=self.participant,
            trial_id="",
            cell="",
            payload={},
            created_utc=self.created_utc,
            prev_hash=self.prev_hash,
            row_hash=self.row_hash,
            erased=True,
        )

    def to_json(self) -> str:
        """One line of a shard."""
        chain = {"prev_hash": self.prev_hash, "row_hash": self.row_hash, "erased": self.erased}
        return canonical_json({**self.content(), **chain})

    @classmethod
    def from_json(cls, line: str) -> "Event":
        return cls(**json.loads(line))


def row_hash(prev_hash: str, content: Mapping[str, Any]) -> str:
    """Sha256 of the previous hash and the canonical JSON of the row."""
    return sha256(prev_hash + canonical_json(content))


def utc_text(moment: datetime) -> str:
    """UTC in ISO 8601 with milliseconds; alphabetical order is order in time."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def utc_now() -> datetime:
    """The default clock."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Added:
    """What became of an event: stored, seen before, or second to another vote on its trial.

    `event` is the one that counts: of a retry and of a duplicate the one stored first.
    """

    event: Event
    outcome: Literal["stored", "retry", "duplicate"]


@dataclass(frozen=True)
class Place:
    """What is known when someone joins: their slot, and how full each picture is."""

    slot: int
    fill: Mapping[str, int]


@dataclass(frozen=True)
class Verification:
    """Whether the chain holds, how many events it has, its head, and what is wrong."""

    ok: bool
    events: int
    erased: int
    head: str
    problem: str = ""


class VoteStore(Protocol):
    """An append-only log of events."""

    def add(self, event: NewEvent) -> Added:
        """Store an event once. It is on disk when this returns."""

    def join(self, event: NewEvent, assign: Callable[[Place], Mapping[str, Any]]) -> Added:
        """Store a consent, with a slot of its own and what `assign` makes of it, in one go.

        Someone who has joined already gets their first consent back.
        """

    def withdraw(self, study_hash: str, participant: str) -> int:
        """Blank everything of a participant; the number of events blanked."""

    def events(
        self, study_hash: str = "", type: str = "", participant: str = "", after: int = 0
    ) -> Iterator[Event]:
        """Events in order of seq, limited by what is not empty, from seq `after` + 1 on."""

    def restore(self, events: Iterable[Event]) -> int:
        """Fill an empty store with events of a copy; the number restored."""

    def head(self) -> str:
        """The hash of the last event."""

    def verify(self) -> Verification:
        """Compute the chain anew."""

    def close(self) -> None:
        """Release files and connections."""


FIELDS = (
    "seq, event_id, type, study_hash, participant, trial_id, cell, payload, created_utc, "
    "prev_hash, row_hash, erased"
)
INSERT = (
    f"INSERT INTO events ({FIELDS}) VALUES (:seq, :event_id, :type, :study_hash, :participant, "
    ":trial_id, :cell, :payload, :created_utc, :prev_hash, :row_hash, :erased)"
)
TABLES = (
    """CREATE TABLE IF NOT EXISTS events (
        seq BIGINT PRIMARY KEY,
        event_id TEXT UNIQUE,
        type TEXT NOT NULL,
        study_hash TEXT NOT NULL,
        participant TEXT NOT NULL,
        trial_id TEXT NOT NULL,
        cell TEXT NOT NULL,
        payload TEXT NOT NULL,
        created_utc TEXT NOT NULL,
        prev_hash TEXT NOT NULL,
        row_hash TEXT NOT NULL UNIQUE,
        erased INTEGER NOT NULL
    )""",
    """CREATE UNIQUE INDEX IF NOT EXISTS one_vote_a_trial
        ON events (study_hash, participant, trial_id) WHERE type = 'vote' AND erased = 0""",
    """CREATE INDEX IF NOT EXISTS by_participant ON events (participant, type)""",
    """CREATE INDEX IF NOT EXISTS by_type ON events (study_hash, type)""",
)
# The one change allowed: a row of someone whose withdrawal is in the log loses its content and
# keeps its place in the chain. All columns compared are NOT NULL, so the test is never unknown.
ERASURE = """
    NEW.erased = 1 AND NEW.payload = '' AND NEW.event_id IS NULL AND NEW.trial_id = ''
    AND NEW.cell = '' AND NEW.seq = OLD.seq AND NEW.type = OLD.type
    AND NEW.study_hash = OLD.study_hash AND NEW.participant = OLD.participant
    AND NEW.created_utc = OLD.created_utc AND NEW.prev_hash = OLD.prev_hash
    AND NEW.row_hash = OLD.row_hash AND OLD.type <> 'withdraw'
    AND EXISTS (SELECT 1 FROM events AS w WHERE w.type = 'withdraw'
        AND w.participant = OLD.participant AND w.study_hash = OLD.study_hash)
"""


class LogStore(ABC):
    """What both databases do alike; they differ in how a transaction is made.

    Args:
        clock: tells the time of events.
        stale: after so long without an event the pictures reserved by someone are free again.
    """

    def __init__(
        self, clock: Callable[[], datetime] = utc_now, stale: timedelta = timedelta(hours=2)
    ) -> None:
        self._clock = clock
        self._stale = stale

    @abstractmethod
    def _write(self) -> AbstractContextManager[Execute]:
        """A transaction that no other writer can overlap."""

    @abstractmethod
    def _read(self) -> AbstractContextManager[Execute]:
        """A consistent view."""

    @abstractmethod
    def _forget(self) -> None:
        """Make sure that blanked content is gone from files, not only from the table."""

    def add(self, event: NewEvent) -> Added:
        _check(event)
        with self._write() as execute:
            return self._add(execute, event)

    def join(self, event: NewEvent, assign: Callable[[Place], Mapping[str, Any]]) -> Added:
        if event.type != "consent":
            raise ValueError(f"people join by consent, not by {event.type}")
        with self._write() as execute:
            self._refuse_withdrawn(execute, event)
            joined = _rows(
                execute(
                    f"SELECT {FIELDS} FROM events WHERE type = 'consent' AND "
                    "study_hash = :study_hash AND participant = :participant ORDER BY seq LIMIT 1",
                    study_hash=event.study_hash,
                    participant=event.participant,
                )
            )
            if joined:
                return Added(joined[0], "retry")
            assigned = assign(self._place(execute, event.study_hash))
            full = NewEvent(
                event_id=event.event_id,
                type=event.type,
                study_hash=event.study_hash,
                payload={**event.payload, **assigned},
                participant=event.participant,
            )
            _check(full)
            return self._add(execute, full)

    def _place(self, execute: Execute, study_hash: str) -> Place:
        """Slot and fill: main votes of each picture, and pictures reserved by active people."""
        where = {"study_hash": study_hash}
        slot = execute(
            "SELECT COUNT(*) FROM events WHERE type = 'consent' AND study_hash = :study_hash",
            **where,
        )[0][0]
        voted = execute(
            "SELECT participant, cell FROM events WHERE type = 'vote' AND cell <> '' "
            "AND study_hash = :study_hash GROUP BY participant, cell",
            **where,
        )
        fill: dict[str, int] = {}
        for _, cell in voted:
            fill[cell] = fill.get(cell, 0) + 1
        active = execute(
            "SELECT participant FROM events WHERE study_hash = :study_hash AND participant <> '' "
            "GROUP BY participant HAVING MAX(created_utc) >= :since",
            since=utc_text(self._clock() - self._stale),
            **where,
        )
        here = {row[0] for row in active}
        done = set(voted)
        consents = execute(
            "SELECT participant, payload FROM events WHERE type = 'consent' AND erased = 0 "
            "AND study_hash = :study_hash",
            **where,
        )
        for participant, payload in consents:
            if participant in here:
                for cell in json.loads(payload).get("images", []):
                    if (participant, cell) not in done:
                        fill[cell] = fill.get(cell, 0) + 1
        return Place(int(slot), fill)

    def _add(self, execute: Execute, event: NewEvent) -> Added:
        self._refuse_withdrawn(execute, event)
        seen = _rows(
            execute(f"SELECT {FIELDS} FROM events WHERE event_id = :id", id=event.event_id)
        )
        if seen and seen[0].type != "rejected_duplicate":
            return Added(seen[0], "retry")
        if event.type == "vote":
            first = _rows(
                execute(
                    f"SELECT {FIELDS} FROM events WHERE type = 'vote' AND erased = 0 AND "
                    "study_hash = :study_hash AND participant = :participant "
                    "AND trial_id = :trial_id",
                    study_hash=event.study_hash,
                    participant=event.participant,
                    trial_id=event.trial_id,
                )
            )
            if first:
                if not seen:
                    self._append(execute, event, "rejected_duplicate", "")
                return Added(first[0], "duplicate")
        elif seen:
            return Added(seen[0], "retry")
        return Added(self._append(execute, event, event.type, event.cell), "stored")

    def _append(self, execute: Execute, event: NewEvent, type: str, cell: str) -> Event:
        last = execute("SELECT seq, row_hash FROM events ORDER BY seq DESC LIMIT 1")
        seq, prev_hash = (last[0][0] + 1, last[0][1]) if last else (1, GENESIS)
        # Through JSON once, so that what is hashed is what will be read back.
        payload = json.loads(canonical_json(dict(event.payload)))
        content = {
            "seq": seq,
            "event_id": event.event_id,
            "type": type,
            "study_hash": event.study_hash,
            "participant": event.participant,
            "trial_id": event.trial_id,
            "cell": cell,
            "payload": payload,
            "created_utc": utc_text(self._clock()),
        }
        stored = Event(**content, prev_hash=prev_hash, row_hash=row_hash(prev_hash, content))
        _insert(execute, stored)
        return stored

    def _refuse_withdrawn(self, execute: Execute, event: NewEvent) -> None:
        gone = event.participant and execute(
            "SELECT 1 FROM events WHERE type = 'withdraw' AND study_hash = :study_hash "
            "AND participant = :participant",
            study_hash=event.study_hash,
            participant=event.participant,
        )
        if gone and event.type != "withdraw":
            raise WithdrawnError(
                "This code has withdrawn from the study, so nothing more is stored under it."
            )

    def withdraw(self, study_hash: str, participant: str) -> int:
        if not participant:
            raise ValueError("a withdrawal needs a participant")
        event = NewEvent(
            event_id=sha256(f"withdraw|{study_hash}|{participant}")[:32],
            type="withdraw",
            study_hash=study_hash,
            payload={"requested_utc": utc_text(self._clock())},
            participant=participant,
        )
        with self._write() as execute:
            known = execute(
                "SELECT COUNT(*) FROM events WHERE participant = :participant AND erased = 0 "
                "AND study_hash = :study_hash AND type <> 'withdraw'",
                participant=participant,
                study_hash=study_hash,
            )[0][0]
            self._add(execute, event)
            execute(
                "UPDATE events SET event_id = NULL, trial_id = '', cell = '', payload = '', "
                "erased = 1 WHERE participant = :participant AND study_hash = :study_hash "
                "AND type <> 'withdraw' AND erased = 0",
                participant=participant,
                study_hash=study_hash,
            )
        self._forget()
        return int(known)

    def events(
        self, study_hash: str = "", type: str = "", participant: str = "", after: int = 0
    ) -> Iterator[Event]:
        wanted = {"study_hash": study_hash, "type": type, "participant": participant}
        wanted = {key: value for key, value in wanted.items() if value}
        where = " AND ".join(["seq > :after", *(f"{key} = :{key}" for key in wanted)])
        with self._read() as execute:
            rows = execute(
                f"SELECT {FIELDS} FROM events WHERE {where} ORDER BY seq", after=after, **wanted
            )
        yield from _rows(rows)

    def restore(self, events: Iterable[Event]) -> int:
        ordered = merged(events)
        with self._write() as execute:
            if execute("SELECT 1 FROM events LIMIT 1"):
                raise StoreError("Only an empty store can be filled from a copy.")
            for event in ordered:
                _insert(execute, event)
        return len(ordered)

    def head(self) -> str:
        with self._read() as execute:
            last = execute("SELECT row_hash FROM events ORDER BY seq DESC LIMIT 1")
        return str(last[0][0]) if last else GENESIS

    def verify(self) -> Verification:
        return verify_chain(self.events())


def merged(events: Iterable[Event]) -> list[Event]:
    """Copies of a log made one: each event once, in one chain, withdrawals carried out.

    Two servers that ran at once may have given the same number twice; then events are put in
    order of time and numbered anew, and a note with the old heads says so.
    """
    unique: dict[str, Event] = {}
    for event in events:
        if event.row_hash not in unique or event.erased:
            unique[event.row_hash] = event
    gone = {(e.study_hash, e.participant) for e in unique.values() if e.type == "withdraw"}
    ordered = sorted(unique.values(), key=lambda e: (e.seq, e.created_utc, e.row_hash))
    blanked = [
        event.blanked()
        if (event.study_hash, event.participant) in gone and event.type != "withdraw"
        else event
        for event in ordered
    ]
    if verify_chain(blanked).ok:
        return blanked
    return _renumbered(blanked)


def _renumbered(events: Sequence[Event]) -> list[Event]:
    """A new chain in order of time; the first vote on a trial stays the vote."""
    out: list[Event] = []
    seen: set[str | tuple[str, str, str]] = set()

    def append(content: dict[str, Any], erased: bool) -> None:
        prev = out[-1].row_hash if out else GENESIS
        content = {**content, "seq": len(out) + 1}
        out.append(
            Event(**content, prev_hash=prev, row_hash=row_hash(prev, content), erased=erased)
        )

    parents = {event.prev_hash for event in events}
    heads = sorted(event.row_hash for event in events if event.row_hash not in parents)
    for event in sorted(events, key=lambda e: (e.created_utc, e.seq, e.row_hash)):
        if event.event_id is not None:
            if event.event_id in seen:
                continue
            seen.add(event.event_id)
        content = event.content()
        trial = (event.study_hash, event.participant, event.trial_id)
        if event.type == "vote" and not event.erased:
            if trial in seen:
                content = {**content, "type": "rejected_duplicate", "cell": ""}
            seen.add(trial)
        append(content, event.erased)
    text = f"Copies did not form one chain and were numbered anew; heads were {', '.join(heads)}."
    last = out[-1]
    note = NewEvent(sha256(text)[:32], "admin_note", last.study_hash, {"text": text})
    append(
        {
            "event_id": note.event_id,
            "type": note.type,
            "study_hash": note.study_hash,
            "participant": "",
            "trial_id": "",
            "cell": "",
            "payload": dict(note.payload),
            "created_utc": last.created_utc,
        },
        False,
    )
    return out


def verify_chain(events: Iterable[Event]) -> Verification:
    """Recompute every hash. An erased event is accepted if a withdrawal explains it."""
    head, count, erased = GENESIS, 0, 0
    unexplained: dict[tuple[str, str], int] = {}
    withdrawn: set[tuple[str, str]] = set()
    problem = ""
    for event in events:
        count += 1
        who = (event.study_hash, event.participant)
        if event.seq != count:
            problem = problem or f"Event {count} is missing; {event.seq} follows."
        if event.prev_hash != head:
            problem = problem or f"Event {event.seq} does not follow the one before it."
        if event.type == "withdraw":
            withdrawn.add(who)
        if event.erased:
            erased += 1
            unexplained.setdefault(who, event.seq)
        elif event.row_hash != row_hash(event.prev_hash, event.content()):
            problem = problem or f"Event {event.seq} was changed."
        head = event.row_hash
    for who, seq in unexplained.items():
        if who not in withdrawn:
            problem = problem or f"Event {seq} was erased without a withdrawal."
    return Verification(not problem, count, erased, head, problem)


def _check(event: NewEvent) -> None:
    """Refuse what may not be stored."""
    if event.type not in EVENT_TYPES:
        raise ValueError(f"an event is one of {', '.join(EVENT_TYPES)}, not {event.type!r}")
    strange = set(event.payload) - PAYLOAD_KEYS[event.type]
    if strange:
        raise ValueError(f"a {event.type} event may not store {', '.join(sorted(strange))}")
    if not event.event_id or not event.study_hash:
        raise ValueError("an event needs an event_id and a study_hash")
    if event.type == "vote" and not (event.participant and event.trial_id):
        raise ValueError("a vote needs a participant and a trial_id")


def _rows(rows: Iterable[tuple[Any, ...]]) -> list[Event]:
    out = []
    for row in rows:
        values = list(row)
        values[7] = json.loads(values[7]) if values[7] else {}
        values[11] = bool(values[11])
        out.append(Event(*values))
    return out


def _insert(execute: Execute, event: Event) -> None:
    execute(
        INSERT,
        seq=event.seq,
        event_id=event.event_id,
        type=event.type,
        study_hash=event.study_hash,
        participant=event.participant,
        trial_id=event.trial_id,
        cell=event.cell,
        payload="" if event.erased else canonical_json(dict(event.payload)),
        created_utc=event.created_utc,
        prev_hash=event.prev_hash,
        row_hash=event.row_hash,
        erased=int(event.erased),
    )


class SqliteStore(LogStore):
    """The log in one SQLite file on a local disk: write-ahead log, fsync at every commit.

    Threads share it; other processes on the machine may open the same file. Never copy the live
    file: `backup` makes a copy that is whole.
    """

    def __init__(
        self,
        path: Path,
        clock: Callable[[], datetime] = utc_now,
        stale: timedelta = timedelta(hours=2),
    ) -> None:
        super().__init__(clock, stale)
        self.path = path
        self._lock = threading.RLock()
        self._connection = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, timeout=BUSY_MS / 1000
        )
        try:
            for pragma in (
                f"busy_timeout = {BUSY_MS}",
                "journal_mode = WAL",
                "synchronous = FULL",
                "secure_delete = ON",  # what is blanked is overwritten, not left in free pages
            ):
                self._connection.execute(f"PRAGMA {pragma}")
            state = self._connection.execute("PRAGMA quick_check").fetchone()[0]
            if state != "ok":
                raise StoreError(f"{path.name} is damaged ({state}); restore it from a copy.")
            with self._write() as execute:
                for statement in TABLES:
                    execute(statement)
                execute(
                    "CREATE TRIGGER IF NOT EXISTS only_erasure BEFORE UPDATE ON events "
                    f"WHEN NOT ({ERASURE}) "
                    "BEGIN SELECT RAISE(ABORT, 'events are append-only'); END"
                )
                execute(
                    "CREATE TRIGGER IF NOT EXISTS no_delete BEFORE DELETE ON events "
                    "BEGIN SELECT RAISE(ABORT, 'events are append-only'); END"
                )
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise StoreError(f"{path.name} cannot be opened as a store: {error}.") from None
        except StoreError:
            self._connection.close()
            raise

    def _run(self, statement: str, **values: Any) -> list[tuple[Any, ...]]:
        return self._connection.execute(statement, values).fetchall()

    @contextmanager
    def _write(self) -> Iterator[Execute]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._run
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    @contextmanager
    def _read(self) -> Iterator[Execute]:
        with self._lock:
            yield self._run

    def _forget(self) -> None:
        with self._lock:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def backup(self, target: Path) -> None:
        """A whole copy of the store in a new file, while it is in use."""
        copy = sqlite3.connect(target)
        try:
            with self._lock:
                self._connection.backup(copy)
        finally:
            copy.close()

    def close(self) -> None:
        with self._lock:
            self._connection.close()


def vote_rows(store: VoteStore, study_hash: str) -> list[dict[str, Any]]:
    """The votes of a study as rows of schema version 1."""
    rows = []
    for event in store.events(study_hash=study_hash, type="vote"):
        if not event.erased:
            row = dict.fromkeys(COLUMNS, "")
            row.update(event.payload)
            row["seq"] = event.seq  # type: ignore[assignment]  # rows hold text and numbers
            rows.append(row)
    return rows


def withdrawal_rows(store: VoteStore, study_hash: str) -> list[dict[str, str]]:
    """Who withdrew and when, for withdrawals.csv."""
    return [
        {
            "participant": event.participant,
            "requested_utc": str(event.payload.get("requested_utc", event.created_utc)),
        }
        for event in store.events(study_hash=study_hash, type="withdraw")
    ]
