"""Load and crash of the study in the running app.

The app that is started is the whole one, with the embedded checkpoint, on a study made for the
occasion and in a process of its own. The load goes over the page's endpoints, the flood through
Gradio's Python client:

    python -m tools.study_load             50 people × 40 votes at once, and 10 kills in a flood
    python -m tools.study_load --people 8 --votes 6 --kills 1

Exits with 1 if a vote is lost, doubled or unbalanced, or the audit chain does not verify.
"""

import argparse
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from study.analyse import store_path
from study.design import Study, read_study, write_study
from study.new import NewStudy, make_study
from study.store import SqliteStore, vote_rows

ROOT = Path(__file__).parents[1]
APP = (sys.executable, "app.py")
METHODS = ("one", "two", "three", "four")
SIZE = 32  # side of a picture, in pixels: what is measured is votes, not pictures
START_SECONDS = 240
RETRY_SECONDS = 0.2
WAIT_SECONDS = 60  # for one answer

Ask = Callable[..., Any]  # an endpoint's name and its inputs to its answer


def make_load_study(folder: Path, votes: int) -> Path:
    """A pick-best study of `votes` main trials each, without anything else; its file."""
    rng = np.random.default_rng(0)
    for kind in ("lq", *METHODS):
        place = folder / "noise" / kind
        place.mkdir(parents=True)
        side = SIZE // 4 if kind == "lq" else SIZE
        for n in range(votes):
            pixels = rng.integers(0, 256, (side, side, 3), np.uint8)
            Image.fromarray(pixels).save(place / f"{n:03}.png")
    file = folder / "study.json"
    study, _ = make_study(
        NewStudy(
            (folder / "noise",),
            file,
            methods=METHODS,
            target_participants=10_000,
            design={"golden": 0, "training": 0, "repeats": 0},
        )
    )
    write_study(study, file)
    return file


class App:
    """The running app around a study; votes and all its files are kept in `folder`."""

    def __init__(
        self, study: Path, folder: Path, checkpoint: str = "nano", secret: str = ""
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self._port}"
        self._settings = {
            "STUDY": str(study),
            "STUDY_REPO": "",
            "STUDY_SECRET": secret,
            "STUDY_STORE": str(folder / f"{study.stem}.sqlite"),
            "PURE_CHECKPOINT": checkpoint,
            "PURE_DEVICE": "cpu",
            "GRADIO_SERVER_PORT": str(self._port),
            "GRADIO_TEMP_DIR": str(folder / "gradio"),
        }
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._process = subprocess.Popen(
            ["env", *(f"{key}={value}" for key, value in self._settings.items()), *APP],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise RuntimeError("the app ended instead of starting; try `python app.py`")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    return
            time.sleep(RETRY_SECONDS)
        raise RuntimeError(f"the app does not answer after {START_SECONDS} s")

    def kill(self) -> None:
        """End it in the middle of whatever it does: SIGKILL."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()


def as_page(address: str) -> Ask:
    """Asks as the page does: one request in no queue, always under the same session."""
    session = secrets.token_hex(16)
    http = httpx.Client(base_url=address, timeout=WAIT_SECONDS)

    def ask(name: str, *data: Any) -> Any:
        body = {"data": data, "session_hash": session}
        answer = http.post(f"gradio_api/run/study_{name}", json=body)
        answer.raise_for_status()
        return answer.json()["data"][0]

    return ask


def as_client(address: str) -> Ask:
    """Asks through the Python client, which Gradio lets wait in its queue for a moment."""
    # Only here: a second that the page's way does not need.
    from gradio_client import Client  # noqa: PLC0415

    client = Client(address, verbose=False, analytics_enabled=False)
    return lambda name, *data: client.predict(*data, api_name=f"/study_{name}")


@dataclass
class Voter:
    """One participant who does what the page does.

    Attributes:
        address: of the app.
        connect: `as_page` or `as_client`.
        acknowledged: event ids whose votes the server said it has.
        seconds: how long each acknowledged vote took.
    """

    address: str
    connect: Callable[[str], Ask] = as_page
    code: str = field(default_factory=lambda: secrets.token_hex(16))
    acknowledged: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def sit(self, consent: str, stop: threading.Event | None = None) -> None:
        """Vote to the end; what fails is tried again, the same vote under the same event id.

        Args:
            consent: hash of the text agreed to.
            stop: when to give up; without it nothing is tried twice.
        """
        ask = self._persist(stop, self.connect, self.address)
        if ask is None:
            return
        self._persist(stop, ask, "join", self.code, consent, True, {})
        while not (stop and stop.is_set()):
            screen = self._persist(stop, ask, "next", self.code)
            if screen is None or screen["finished"]:
                return
            event = secrets.token_hex(16)
            answer = {"position": 0, "response_ms": 4000, "viewport_w": 1600}
            before = time.perf_counter()
            if self._persist(stop, ask, "vote", self.code, screen["token"], answer, event, "ab"):
                self.seconds.append(time.perf_counter() - before)
                self.acknowledged.append(event)

    def _persist(self, stop: threading.Event | None, ask: Callable, *data: Any) -> Any:
        while not (stop and stop.is_set()):
            try:
                return ask(*data)
            # whatever a server that is being killed makes of a request
            except Exception:
                if stop is None:
                    raise
                time.sleep(RETRY_SECONDS)
        return None


def flood(voters: Sequence[Voter], consent: str, stop: threading.Event | None = None) -> None:
    """Let all vote at once, and wait for the last."""
    threads = [threading.Thread(target=voter.sit, args=(consent, stop)) for voter in voters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def problems(study: Study, file: Path, voters: Sequence[Voter], *, whole: bool) -> list[str]:
    """What is wrong with the votes in the store; empty if nothing is.

    Args:
        study: the study.
        file: its file.
        voters: who voted.
        whole: whether everyone came to the end, so that the design must be balanced.
    """
    store = SqliteStore(store_path(file))
    try:
        rows, check = vote_rows(store, study.hash), store.verify()
        slots = [event.payload["slot"] for event in store.events(study.hash, "consent")]
    finally:
        store.close()
    found = [] if check.ok else [f"the audit chain does not verify: {check.problem}"]
    stored = {row["event_id"] for row in rows}
    acknowledged = [event for voter in voters for event in voter.acknowledged]
    if lost := set(acknowledged) - stored:
        found.append(f"{len(lost)} acknowledged votes are lost")
    trials = {(row["participant"], row["trial_id"]) for row in rows}
    if doubled := len(rows) - min(len(stored), len(trials)):
        found.append(f"{doubled} votes are doubled")
    if len(set(slots)) != len(slots):
        found.append("two people share a slot")
    if whole:
        if len(rows) != len(voters) * len(study.images):
            found.append(f"{len(rows)} rows instead of {len(voters) * len(study.images)}")
        cells = Counter(
            (row["image_id"], method, position)
            for row in rows
            for position, method in enumerate(row["methods_shown"].split("|"))
        )
        # equal after whole blocks of N slots; within one, at most one apart
        if max(cells.values()) - min(cells.values()) > 1:
            found.append(f"cells are filled {min(cells.values())} to {max(cells.values())} times")
    return found


def load(folder: Path, people: int, votes: int, checkpoint: str = "nano") -> list[str]:
    """Many voters at once; prints the latency and gives what went wrong."""
    file = make_load_study(folder, votes)
    study, app = read_study(file), App(file, folder, checkpoint)
    app.start()
    try:
        voters = [Voter(app.address) for _ in range(people)]
        before = time.perf_counter()
        flood(voters, study.consent_sha256)
        took = time.perf_counter() - before
    finally:
        app.kill()
    seconds = np.array([value for voter in voters for value in voter.seconds])
    median, p95 = np.quantile(seconds, [0.5, 0.95])
    sys.stdout.write(
        f"{people} people × {votes} votes at once: {len(seconds)} acknowledged in {took:.0f} s; "
        f"a vote took {1000 * median:.0f} ms (median), {1000 * p95:.0f} ms (95th percentile)\n"
    )
    return problems(study, file, voters, whole=True)


def crash(
    folder: Path,
    kills: int,
    *,
    between: int = 3,
    voters: int = 4,
    votes: int = 40,
    checkpoint: str = "nano",
) -> list[str]:
    """Kill the app again and again under a flood of votes; gives what went wrong.

    It is killed whenever `between` more votes have been acknowledged.
    """
    file = make_load_study(folder, votes)
    study, app, stop = read_study(file), App(file, folder, checkpoint), threading.Event()
    app.start()
    people = [Voter(app.address, as_client) for _ in range(voters)]
    flooding = threading.Thread(target=flood, args=(people, study.consent_sha256, stop))
    flooding.start()
    try:
        done = 0
        for _ in range(kills):
            enough = done + between
            while done < enough and flooding.is_alive():  # only a server at work is worth killing
                time.sleep(0.01)
                done = sum(len(voter.acknowledged) for voter in people)
            app.kill()
            app.start()
        at_kill = done
        while flooding.is_alive() and done < at_kill + 3:  # and it goes on where it was
            time.sleep(0.01)
            done = sum(len(voter.acknowledged) for voter in people)
    finally:
        stop.set()
        flooding.join()
        app.kill()
    sys.stdout.write(f"{kills} kills: {done} votes acknowledged by {voters} people\n")
    return problems(study, file, people, whole=False)


def main() -> int:
    """Command line; 0 if nothing was lost, doubled or unbalanced."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=50)
    parser.add_argument("--votes", type=int, default=40)
    parser.add_argument("--kills", type=int, default=10)
    arguments = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        found += load(Path(folder), arguments.people, arguments.votes)
    if arguments.kills:
        with tempfile.TemporaryDirectory() as folder:
            found += crash(Path(folder), arguments.kills, between=30, voters=8, votes=60)
    for problem in found:
        sys.stdout.write(f"WRONG: {problem}\n")
    if not found:
        sys.stdout.write("Nothing lost, nothing doubled, balanced; the audit chain verifies.\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
