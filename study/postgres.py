"""The log in PostgreSQL, through SQLAlchemy: for studies that outgrow one machine.

The same events, chain and rules as `study.store`; only how transactions, locks and triggers are
written differs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import create_engine, text
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import SQLAlchemyError

from study.store import ERASURE, TABLES, Execute, LogStore, StoreError, utc_now

# Any number will do that nobody else uses in the same database.
WRITER_LOCK = 7_203_611
TRIGGERS = (
    f"""CREATE OR REPLACE FUNCTION events_only_erasure() RETURNS trigger AS $$
    BEGIN
        IF TG_OP = 'UPDATE' THEN
            IF {ERASURE} THEN
                RETURN NEW;
            END IF;
        END IF;
        RAISE EXCEPTION 'events are append-only';
    END $$ LANGUAGE plpgsql""",
    """CREATE OR REPLACE TRIGGER only_erasure BEFORE UPDATE OR DELETE ON events
        FOR EACH ROW EXECUTE FUNCTION events_only_erasure()""",
    """CREATE OR REPLACE TRIGGER no_truncate BEFORE TRUNCATE ON events
        FOR EACH STATEMENT EXECUTE FUNCTION events_only_erasure()""",
)


class PostgresStore(LogStore):
    """The log behind a SQLAlchemy URL such as `postgresql+psycopg://user@host/database`."""

    def __init__(
        self,
        url: str,
        clock: Callable[[], datetime] = utc_now,
        stale: timedelta = timedelta(hours=2),
    ) -> None:
        super().__init__(clock, stale)
        self._engine = create_engine(url, pool_pre_ping=True)
        try:
            with self._write() as execute:
                for statement in (*TABLES, *TRIGGERS):
                    execute(statement)
        except SQLAlchemyError as error:
            self._engine.dispose()
            shown = make_url(url).render_as_string(hide_password=True)
            raise StoreError(f"{shown} cannot be opened as a store: {error}.") from None

    @contextmanager
    def _write(self) -> Iterator[Execute]:
        with self._engine.begin() as connection:
            # The chain has one end: writers take turns. Released with the transaction.
            connection.execute(text(f"SELECT pg_advisory_xact_lock({WRITER_LOCK})"))
            yield _runner(connection)

    @contextmanager
    def _read(self) -> Iterator[Execute]:
        with self._engine.connect() as connection:
            yield _runner(connection)

    def _forget(self) -> None:
        """Rewrite the table, so that blanked rows are not left in dead tuples."""
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM FULL events"))

    def close(self) -> None:
        self._engine.dispose()


def _runner(connection: Connection) -> Execute:
    def run(statement: str, **values: Any) -> list[tuple[Any, ...]]:
        result = connection.execute(text(statement), values)
        return [tuple(row) for row in result] if result.returns_rows else []

    return run
