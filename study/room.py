"""A study put together from its file: desk, store, secret and, where there is one, the hub's copy.

Opened at first use, because importing an app must not write files. Beside the study file
`name.json` are `name.sqlite`, `name.secret` and `name-shards/`, unless it is said otherwise.
"""

import threading
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from study.analyse import store_path
from study.blinding import load_secret
from study.design import Study, StudyError, read_study
from study.desk import Desk
from study.shards import Hub, ShardedStore, Shards, SyncHealth, open_sharded, push_on_sigterm
from study.store import SqliteStore, StoreError, VoteStore

SECRET_BYTES = 32


@dataclass(frozen=True)
class StudyPlace:
    """Where a study is kept.

    Attributes:
        study_file: the study; its pictures are relative to it.
        store: file of the votes, or a SQLAlchemy URL of PostgreSQL; empty for `name.sqlite`.
        secret: 64 hexadecimal digits; empty for the file `name.secret`.
        repo: data set repository for copies; empty for none.
        app_version: noted in every vote.
    """

    study_file: Path
    store: str = ""
    secret: str = field(default="", repr=False)
    repo: str = ""
    app_version: str = ""


class Room:
    """One study that can be entered. Threads share it."""

    def __init__(self, place: StudyPlace, hub: Hub | None = None) -> None:
        self._place = place
        self._hub = hub
        self._lock = threading.Lock()
        self._desk: Desk | None = None
        self._store: VoteStore | None = None

    @property
    def desk(self) -> Desk:
        """Where people vote; the first call opens files.

        Raises:
            StudyError: the study cannot be opened; the message says what to change.
        """
        with self._lock:
            if self._desk is None:
                self._store, self._desk = self._open()
            return self._desk

    @property
    def study(self) -> Study:
        return self.desk.study

    @property
    def store(self) -> VoteStore:
        """The votes. Opened, if need be, like `desk`."""
        assert self.desk is not None
        assert self._store is not None
        return self._store

    def health(self) -> SyncHealth | None:
        """How far the copy is behind; None if there is no copy, only the store itself."""
        store = self.store
        return store.shards.health() if isinstance(store, ShardedStore) else None

    def prepare(self) -> None:
        """Open what has to be open before the first visitor: the copy, and its last upload.

        Only the main thread may call this, because a signal is caught.
        """
        if self._place.repo and isinstance(self.store, ShardedStore):
            push_on_sigterm(self.store.shards)

    def close(self) -> None:
        """Upload what is left and release files."""
        with self._lock:
            store, self._store, self._desk = self._store, None, None
        if store is not None:
            store.close()

    def _open(self) -> tuple[VoteStore, Desk]:
        place = self._place
        study = read_study(place.study_file)
        try:
            store = self._open_store(timedelta(hours=study.design.stale_hours))
            secret = self._secret()
        except (OSError, StoreError) as error:
            raise StudyError(f"The votes of this study cannot be kept here: {error}") from error
        folder = place.study_file.resolve().parent
        return store, Desk(study, store, secret, folder, app_version=place.app_version)

    def _open_store(self, stale: timedelta) -> VoteStore:
        place = self._place
        if place.repo:
            if not place.secret:
                raise StudyError(
                    "A study that is copied to a repository needs a secret that outlives this "
                    "machine, or nobody could resume or withdraw after a restart."
                )
            if "://" in place.store:
                raise StudyError("Copies to a repository are made of SQLite, not of a database.")
            shards = Shards(
                self._file().with_name(f"{place.study_file.stem}-shards"),
                self._hub or _hub(),
                place.repo,
            )
            store = open_sharded(self._file(), shards, stale)
            shards.start()
            return store
        if "://" in place.store:
            # Only now: SQLAlchemy takes half a second that SQLite users need not wait.
            from study.postgres import PostgresStore  # noqa: PLC0415

            return PostgresStore(place.store, stale=stale)
        return SqliteStore(self._file(), stale=stale)

    def _file(self) -> Path:
        return Path(self._place.store) if self._place.store else store_path(self._place.study_file)

    def _secret(self) -> bytes:
        text = self._place.secret
        if not text:
            kept = self._place.study_file if "://" in self._place.store else self._file()
            return load_secret(kept.with_name(f"{self._place.study_file.stem}.secret"))
        if len(text) != 2 * SECRET_BYTES or not set(text.lower()) <= set("0123456789abcdef"):
            raise StudyError(f"A study's secret is {2 * SECRET_BYTES} hexadecimal digits.")
        return bytes.fromhex(text)


def _hub() -> Any:
    """The hub's client; Any because its methods take more than `Hub` says."""
    # Only for studies that are copied: it takes a second to import.
    from huggingface_hub import HfApi  # noqa: PLC0415

    return HfApi()
