"""Copies of the log in a data set repository of the Hub: one JSONL shard per process.

A free hosted Space loses its disk at every restart. So every event also goes to a shard, a file
with a name of its own per process (a commit replaces a file of the same name, so a reused name
would overwrite older votes), which is uploaded every so often and when the process is told to
stop. At start all shards are pulled and the store is rebuilt. Between two uploads a killed
process loses the tail: `health` says how long it is.
"""

import io
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from study.store import (
    Added,
    Event,
    NewEvent,
    Place,
    SqliteStore,
    StoreError,
    Verification,
    VoteStore,
    merged,
)

LOG = logging.getLogger(__name__)
FOLDER = "events"  # in the repository
EVERY_SECONDS = 90.0
EVERY_VOTES = 25


class Hub(Protocol):
    """What is used of `huggingface_hub.HfApi`, as it is called there."""

    def list_repo_files(self, repo_id: str, *, repo_type: str) -> list[str]: ...

    def hf_hub_download(
        self, repo_id: str, filename: str, *, repo_type: str, local_dir: str
    ) -> str: ...

    def upload_file(
        self,
        *,
        path_or_fileobj: Any,
        path_in_repo: str,
        repo_id: str,
        repo_type: str,
        commit_message: str,
    ) -> Any: ...

    def delete_file(
        self, path_in_repo: str, repo_id: str, *, repo_type: str, commit_message: str
    ) -> Any: ...

    def super_squash_history(self, repo_id: str, *, repo_type: str) -> Any: ...


@dataclass(frozen=True)
class SyncHealth:
    """How far the copy is behind.

    Attributes:
        pending: events not yet uploaded.
        oldest_seconds: age of the oldest of them, 0 without any.
        last_push: when the last upload succeeded, seconds since 1970; None before the first.
        error: what went wrong last, empty after a success.
    """

    pending: int
    oldest_seconds: float
    last_push: float | None
    error: str


class Shards:
    """This process's shard, the uploads, and the shards of others.

    Args:
        folder: local folder for shards; may vanish between runs.
        hub: a `huggingface_hub.HfApi`, or anything alike.
        repo_id: the data set repository; it has to exist, and should be private.
        every_seconds, every_votes: an upload at the latest after so long or so many events.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        folder: Path,
        hub: Hub,
        repo_id: str,
        *,
        every_seconds: float = EVERY_SECONDS,
        every_votes: int = EVERY_VOTES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._hub = hub
        self._repo = repo_id
        self._every_seconds = every_seconds
        self._every_votes = every_votes
        self._clock = clock
        self._lock = threading.RLock()  # the file and the counters
        self._upload = threading.Lock()  # one upload at a time, without stopping votes
        self._pending: list[float] = []  # when each event not yet uploaded was written
        self._last_push: float | None = None
        self._error = ""
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        stamp = datetime.fromtimestamp(clock(), UTC).strftime("%Y%m%dT%H%M%SZ")
        self.name = f"events-{stamp}-{uuid.uuid4().hex}.jsonl"
        self._path = folder / self.name
        self._file = self._path.open("ab")

    def append(self, events: Iterable[Event]) -> None:
        """Write events to the shard; on disk when this returns, uploaded later."""
        with self._lock:
            for event in events:
                self._file.write((event.to_json() + "\n").encode())
                self._pending.append(self._clock())
            self._file.flush()
            os.fsync(self._file.fileno())
            if len(self._pending) >= self._every_votes:
                self._wake.set()

    def push(self) -> bool:
        """Upload the shard if there is anything new; whether the copy is complete now.

        A failure is logged, kept for `health`, and tried again next time: it never costs a vote.
        """
        with self._upload:
            with self._lock:
                waiting = len(self._pending)
                content = self._path.read_bytes() if waiting else b""
            if not waiting:
                return True
            try:
                self._put(self.name, content, f"{waiting} events")
            except Exception as error:  # whatever the network does: the votes are safe locally
                LOG.warning("Votes were not copied to %s: %s", self._repo, error)
                self._error = f"{type(error).__name__}: {error}"
                return False
            with self._lock:
                del self._pending[:waiting]
                self._last_push = self._clock()
                self._error = ""
            return True

    def _put(self, name: str, content: bytes, message: str) -> None:
        self._hub.upload_file(
            path_or_fileobj=io.BytesIO(content),
            path_in_repo=f"{FOLDER}/{name}",
            repo_id=self._repo,
            repo_type="dataset",
            commit_message=message,
        )

    def health(self) -> SyncHealth:
        with self._lock:
            oldest = self._clock() - self._pending[0] if self._pending else 0.0
            return SyncHealth(len(self._pending), oldest, self._last_push, self._error)

    def pull(self) -> dict[str, list[Event]]:
        """The events of every shard in the repository, by shard name."""
        shards = {}
        for path in self._hub.list_repo_files(self._repo, repo_type="dataset"):
            if path.startswith(f"{FOLDER}/") and path.endswith(".jsonl"):
                local = self._hub.hf_hub_download(
                    self._repo, path, repo_type="dataset", local_dir=str(self._folder / "pulled")
                )
                shards[path.removeprefix(f"{FOLDER}/")] = list(read_shard(Path(local)))
        return shards

    def erase(self, study_hash: str, participant: str) -> None:
        """Rewrite every shard without what a participant said, and drop the history that had it.

        Raises:
            StoreError: the repository still holds it; the erasure has to be tried again.
        """

        def blank(event: Event) -> Event:
            theirs = event.study_hash == study_hash and event.participant == participant
            return event.blanked() if theirs and event.type != "withdraw" else event

        with self._upload:
            with self._lock:
                mine = [blank(event) for event in read_shard(self._path)]
                self._rewrite(mine)
            try:
                for name, events in self.pull().items():
                    cleaned = mine if name == self.name else [blank(event) for event in events]
                    if cleaned != events:
                        self._put(name, _lines(cleaned), "withdrawal")
                self._hub.super_squash_history(self._repo, repo_type="dataset")
            except Exception as error:
                raise StoreError(
                    f"Erased here, but not yet in the copy at {self._repo} ({error}). "
                    "Withdraw again to repeat it."
                ) from error

    def supersede(self, events: Iterable[Event], old: Iterable[str]) -> None:
        """Make `events` this shard's whole content, upload it, then remove the shards `old`."""
        with self._lock:
            everything = list(events)
            self._rewrite(everything)
            self._pending = [self._clock()] * len(everything)
        if self.push():
            for name in old:
                self._hub.delete_file(
                    f"{FOLDER}/{name}",
                    self._repo,
                    repo_type="dataset",
                    commit_message="merged into one shard",
                )

    def _rewrite(self, events: Iterable[Event]) -> None:
        """Replace the local shard as a whole; the caller holds the lock."""
        part = self._path.with_suffix(".part")
        with part.open("wb") as file:
            file.write(_lines(events))
            file.flush()
            os.fsync(file.fileno())
        self._file.close()
        os.replace(part, self._path)
        self._file = self._path.open("ab")

    def start(self) -> None:
        """Upload in the background until `close`."""
        self._thread = threading.Thread(target=self._run, name="shards", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(self._every_seconds)
            self._wake.clear()
            self.push()

    def close(self) -> None:
        """Upload what is left and stop."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
            self._thread = None
        self.push()
        with self._lock:
            self._file.close()


def push_on_sigterm(shards: Shards) -> None:
    """Upload the tail when the process is told to stop, then do what would have been done.

    Only the main thread may call this. The platform sends SIGTERM before it takes a machine away;
    `atexit` does not run then.
    """
    before = signal.getsignal(signal.SIGTERM)

    def last_push(number: int, frame: FrameType | None) -> None:
        # In a thread of its own: the main thread may hold the shard's lock right now.
        pusher = threading.Thread(target=shards.push)
        pusher.start()
        pusher.join(timeout=20)
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)
        if callable(before):
            before(number, frame)
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, last_push)


def read_shard(path: Path) -> Iterator[Event]:
    """The events of a shard; a last line that was cut off by a crash is left out."""
    for line in path.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):
            yield Event.from_json(line.decode())


def _lines(events: Iterable[Event]) -> bytes:
    return "".join(event.to_json() + "\n" for event in events).encode()


class ShardedStore:
    """A `VoteStore` whose events are copied to shards. `open_sharded` makes one."""

    def __init__(self, inner: VoteStore, shards: Shards, copied: int = 0) -> None:
        self._inner = inner
        self.shards = shards
        self._copied = copied  # seq of the last event that is in some shard
        self._lock = threading.Lock()

    def _copy(self) -> None:
        with self._lock:
            new = list(self._inner.events(after=self._copied))
            if new:
                self.shards.append(new)
                self._copied = new[-1].seq

    def add(self, event: NewEvent) -> Added:
        added = self._inner.add(event)
        self._copy()
        return added

    def join(self, event: NewEvent, assign: Callable[[Place], Mapping[str, Any]]) -> Added:
        added = self._inner.join(event, assign)
        self._copy()
        return added

    def withdraw(self, study_hash: str, participant: str) -> int:
        blanked = self._inner.withdraw(study_hash, participant)
        self._copy()
        self.shards.push()
        self.shards.erase(study_hash, participant)
        return blanked

    def events(
        self, study_hash: str = "", type: str = "", participant: str = "", after: int = 0
    ) -> Iterator[Event]:
        return self._inner.events(study_hash, type, participant, after)

    def restore(self, events: Iterable[Event]) -> int:
        restored = self._inner.restore(events)
        self._copy()
        return restored

    def head(self) -> str:
        return self._inner.head()

    def verify(self) -> Verification:
        return self._inner.verify()

    def close(self) -> None:
        self.shards.close()
        self._inner.close()


def open_sharded(path: Path, shards: Shards, stale: timedelta = timedelta(hours=2)) -> ShardedStore:
    """Open the store at `path`, rebuilt from the shards in the repository if need be.

    Three cases: the disk is empty, and the store is rebuilt; the disk has all there is, and what
    was never uploaded is copied now; both have something, and they are merged into a new file
    beside which the old one is kept.
    """
    pulled = shards.pull()
    elsewhere = merged([event for events in pulled.values() for event in events])
    inner = SqliteStore(path, stale=stale)
    here = list(inner.events())
    hashes = {event.row_hash for event in here}
    if not {event.row_hash for event in elsewhere} <= hashes:
        if here:
            inner.close()
            aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.old")
            SqliteStore(path).close()  # folds the write-ahead log into the file
            os.replace(path, aside)
            inner = SqliteStore(path, stale=stale)
        inner.restore([*elsewhere, *here])
        here = list(inner.events())
    copied = {event.row_hash for events in pulled.values() for event in events}
    forked = bool(pulled) and not copied <= {event.row_hash for event in here}
    if forked:
        shards.supersede(here, pulled)
    else:
        shards.append(event for event in here if event.row_hash not in copied)
    return ShardedStore(inner, shards, copied=here[-1].seq if here else 0)
