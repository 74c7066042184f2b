"""Studies in a folder, stores of both kinds, a clock that is told what time it is."""

import os
import shutil
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from study.store import SqliteStore


class Clock:
    """Starts at a fixed moment and moves when told; calls are counted in milliseconds."""

    def __init__(self):
        self.now = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def __call__(self):
        self.now += timedelta(milliseconds=1)
        return self.now

    def forward(self, **step):
        self.now += timedelta(**step)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory):
    """A PostgreSQL server of its own on 127.0.0.1; the URL of its database."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = str(programs[-1]) if programs else shutil.which("initdb")
    if initdb is None:
        missing = "PostgreSQL is not installed; `apt install postgresql` brings it."
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    server = Path(initdb).with_name("postgres")
    folder = Path(os.path.realpath(tmp_path_factory.mktemp("postgres")))
    # The server refuses to run as root; Debian's package made a user for it.
    as_user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    if as_user:
        for parent in (folder, *folder.parents[:2]):
            parent.chmod(parent.stat().st_mode | 0o011)
        shutil.chown(folder, "postgres")
    data = folder / "data"
    subprocess.run(
        [*as_user, initdb, "-D", data, "-U", "study", "-A", "trust", "-E", "UTF8", "--no-sync"],
        check=True, capture_output=True, cwd="/",
    )  # fmt: skip
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (folder / "log").open("wb")
    process = subprocess.Popen(
        [*as_user, server, "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", str(folder)],
        stdout=log, stderr=log, cwd="/",
    )  # fmt: skip
    ready = str(server.with_name("pg_isready"))
    try:
        for _ in range(150):
            call = [ready, "-h", "127.0.0.1", "-p", str(port), "-t", "1"]
            if subprocess.run(call, capture_output=True, check=False).returncode == 0:
                break
            if process.poll() is not None:
                pytest.fail(f"PostgreSQL did not start: {(folder / 'log').read_text()}")
        yield f"postgresql+psycopg://study@127.0.0.1:{port}/postgres"
    finally:
        pid = (data / "postmaster.pid").read_text().split()[0]
        os.kill(int(pid), 2)  # SIGINT: fast shutdown
        process.wait(timeout=30)
        log.close()


@pytest.fixture(params=["sqlite", "postgres"])
def store(request, tmp_path, clock):
    """An empty store of each kind."""
    if request.param == "sqlite":
        opened = SqliteStore(tmp_path / "votes.sqlite", clock=clock)
        yield opened
        opened.close()
        return
    from sqlalchemy import create_engine, text

    from study.postgres import PostgresStore

    url = request.getfixturevalue("postgres")
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS events CASCADE"))
    engine.dispose()
    opened = PostgresStore(url, clock=clock)
    yield opened
    opened.close()


@pytest.fixture
def python():
    """Run a program of ours in a process of its own."""
    root = str(Path(__file__).parents[2])

    def start(code, *arguments):
        return subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root,
            env={**os.environ, "PYTHONPATH": root},
        )  # fmt: skip

    return start
