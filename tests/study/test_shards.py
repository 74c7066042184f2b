import inspect
import json
import signal
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from study.shards import Hub, Shards, open_sharded, read_shard
from study.store import NewEvent, StoreError, vote_rows

STUDY = "5" * 64


class FakeHub:
    """A data set repository in a folder, with a history, that can be made to fail."""

    def __init__(self, folder):
        self.folder = folder
        self.history = []
        self.broken = False

    def _try(self):
        if self.broken:
            raise ConnectionError("no network")

    def list_repo_files(self, repo_id, *, repo_type):
        self._try()
        assert (repo_id, repo_type) == ("me/votes", "dataset")
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return sorted(str(path.relative_to(self.folder)) for path in files)

    def hf_hub_download(self, repo_id, filename, *, repo_type, local_dir):
        self._try()
        target = Path(local_dir) / filename
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((self.folder / filename).read_bytes())
        return str(target)

    def upload_file(self, *, path_or_fileobj, path_in_repo, repo_id, repo_type, commit_message):
        self._try()
        target = self.folder / path_in_repo
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path_or_fileobj.read())
        self.history.append((path_in_repo, target.read_bytes()))

    def delete_file(self, path_in_repo, repo_id, *, repo_type, commit_message):
        self._try()
        (self.folder / path_in_repo).unlink()

    def super_squash_history(self, repo_id, *, repo_type):
        self._try()
        self.history = []


@pytest.fixture
def hub(tmp_path):
    (tmp_path / "hub").mkdir()
    return FakeHub(tmp_path / "hub")


@pytest.fixture
def start(tmp_path, hub):
    """A new process on an empty or given disk, as after a restart of a Space."""
    count = iter(range(100))

    def go(disk=None, **values):
        folder = tmp_path / (disk or f"disk{next(count)}")
        folder.mkdir(exist_ok=True)
        shards = Shards(folder / "shards", hub, "me/votes", **values)
        return open_sharded(folder / "votes.sqlite", shards)

    return go


def vote(n, who="a" * 16, choice="A"):
    return NewEvent(f"{n:032x}", "vote", STUDY, {"choice": choice}, who, f"t{n}", "img0")


def test_the_real_hub_api_is_called_as_it_wants_to_be():
    for name in ("list_repo_files", "hf_hub_download", "upload_file", "delete_file"):
        theirs = inspect.signature(getattr(HfApi, name)).parameters
        for parameter in inspect.signature(getattr(Hub, name)).parameters:
            assert parameter in theirs, (name, parameter)
    theirs = inspect.signature(HfApi.super_squash_history).parameters
    assert {"repo_id", "repo_type"} <= set(theirs)


def test_a_new_machine_has_what_was_uploaded(start):
    one = start()
    for n in range(4):
        one.add(vote(n))
    one.close()
    two = start()
    assert [row["choice"] for row in vote_rows(two, STUDY)] == ["A"] * 4
    assert two.verify().ok
    assert two.add(vote(1)).outcome == "retry"
    assert two.add(vote(9)).event.seq == 5
    two.close()


def test_every_process_has_a_shard_of_its_own(start, hub):
    names = set()
    for n in range(3):
        store = start()
        names.add(store.shards.name)
        store.add(vote(n))
        store.close()
    assert len(names) == 3
    assert len(hub.list_repo_files("me/votes", repo_type="dataset")) == 3
    assert len(vote_rows(start(), STUDY)) == 3


def test_a_killed_machine_loses_the_tail_that_was_not_uploaded_and_no_more(start):
    one = start()
    one.add(vote(1))
    one.shards.push()
    one.add(vote(2))  # acknowledged, local only
    assert one.shards.health().pending == 1
    two = start()
    assert [event.trial_id for event in two.events()] == ["t1"]
    assert two.verify().ok


def test_a_restart_on_the_same_disk_loses_nothing_and_uploads_the_tail(start):
    one = start("disk")
    one.add(vote(1))
    one.shards.push()
    one.add(vote(2))
    one._inner.close()  # killed: no push
    two = start("disk")
    assert len(list(two.events())) == 2
    assert two.shards.health().pending == 1
    two.close()
    assert len(list(start().events())) == 2


def test_a_cut_off_line_is_left_out(tmp_path, start):
    one = start()
    one.add(vote(1))
    one.add(vote(2))
    path = one.shards._path
    whole = path.read_bytes()
    (tmp_path / "cut.jsonl").write_bytes(whole[:-10])
    assert [event.seq for event in read_shard(tmp_path / "cut.jsonl")] == [1]
    assert [event.seq for event in read_shard(path)] == [1, 2]


def test_the_upload_starts_by_itself_after_enough_votes(start, hub):
    store = start(every_seconds=600, every_votes=3)
    store.shards.start()
    for n in range(3):
        store.add(vote(n))
    until = time.monotonic() + 10
    while store.shards.health().pending and time.monotonic() < until:
        time.sleep(0.01)
    assert store.shards.health().pending == 0
    assert len(hub.history) >= 1
    store.close()


def test_the_upload_starts_by_itself_after_a_while(start, hub):
    store = start(every_seconds=0.05)
    store.shards.start()
    store.add(vote(1))
    until = time.monotonic() + 10
    while store.shards.health().pending and time.monotonic() < until:
        time.sleep(0.01)
    assert store.shards.health().pending == 0
    store.close()


def test_a_broken_network_costs_no_vote_and_shows_in_health(start, hub):
    now = [1000.0]
    store = start(clock=lambda: now[0])
    hub.broken = True
    assert store.add(vote(1)).outcome == "stored"
    now[0] = 1060
    assert not store.shards.push()
    health = store.shards.health()
    assert (health.pending, health.oldest_seconds, health.last_push) == (1, 60, None)
    assert "no network" in health.error
    hub.broken = False
    assert store.shards.push()
    health = store.shards.health()
    assert (health.pending, health.oldest_seconds, health.last_push) == (0, 0, 1060)
    assert health.error == ""


def everything(hub):
    files = b"".join(path.read_bytes() for path in hub.folder.rglob("*") if path.is_file())
    return files + b"".join(content for _, content in hub.history)


def test_a_withdrawal_is_erased_from_every_shard_and_from_history(start, hub):
    one = start()
    one.add(vote(1, choice="SECRET"))
    one.add(vote(2, who="b" * 16, choice="PUBLIC"))
    one.close()
    two = start()
    two.add(vote(3, choice="SECRET"))
    two.shards.push()
    assert b"SECRET" in everything(hub)
    assert two.withdraw(STUDY, "a" * 16) == 2
    assert b"SECRET" not in everything(hub)
    assert b"PUBLIC" in everything(hub)
    assert b"SECRET" not in two.shards._path.read_bytes()
    two.add(vote(4, who="b" * 16))
    two.close()
    three = start()
    assert three.verify().ok
    assert [row["choice"] for row in vote_rows(three, STUDY)] == ["PUBLIC", "A"]
    assert three.head() == list(three.events())[-1].row_hash


def test_an_erasure_that_did_not_reach_the_copy_says_so_and_can_be_repeated(start, hub):
    store = start()
    store.add(vote(1, choice="SECRET"))
    store.shards.push()
    hub.broken = True
    with pytest.raises(StoreError, match="not yet in the copy"):
        store.withdraw(STUDY, "a" * 16)
    assert vote_rows(store, STUDY) == []
    hub.broken = False
    store.withdraw(STUDY, "a" * 16)
    assert b"SECRET" not in everything(hub)


def test_two_machines_at_once_become_one_log(start, hub):
    one, two = start(), start()
    for n in range(3):
        one.add(vote(n))
        two.add(vote(n + 10, who="b" * 16))
    one.close()
    two.close()
    three = start()
    assert three.verify().ok
    assert sorted(row["seq"] for row in vote_rows(three, STUDY)) == list(range(1, 7))
    assert [event.type for event in three.events()][-1] == "admin_note"
    events = list(three.events())
    three.close()
    four = start()  # merged once and for all
    assert list(four.events()) == events
    assert len(hub.list_repo_files("me/votes", repo_type="dataset")) == 1
    four.close()


def test_shards_are_one_json_object_a_line(start):
    store = start()
    store.add(vote(1))
    (line,) = store.shards._path.read_text().splitlines()
    data = json.loads(line)
    assert data["payload"] == {"choice": "A"}
    assert data["row_hash"] == store.head()


def test_a_sharded_store_keeps_duplicates_too(start):
    store = start()
    store.add(vote(1))
    other = NewEvent("f" * 32, "vote", STUDY, {"choice": "B"}, "a" * 16, "t1")
    assert store.add(other).outcome == "duplicate"
    store.close()
    assert [e.type for e in start().events()] == ["vote", "rejected_duplicate"]


def test_votes_from_many_threads_are_all_in_the_shard(start):
    store = start()
    threads = [
        threading.Thread(target=lambda n=n: [store.add(vote(100 * n + i)) for i in range(10)])
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [event.seq for event in read_shard(store.shards._path)] == list(range(1, 81))


TERMINATED = """
import sys, time
from pathlib import Path
from study.shards import Shards, open_sharded, push_on_sigterm
from study.store import NewEvent
from tests.study.test_shards import FakeHub
folder, hub = Path(sys.argv[1]), FakeHub(Path(sys.argv[2]))
shards = Shards(folder / "shards", hub, "me/votes", every_seconds=600)
store = open_sharded(folder / "votes.sqlite", shards)
push_on_sigterm(shards)
store.add(NewEvent("1" * 32, "vote", "5" * 64, {"choice": "A"}, "p", "t"))
sys.stdout.write("ready\\n")
sys.stdout.flush()
time.sleep(60)
"""


def test_the_tail_is_uploaded_when_the_process_is_told_to_stop(tmp_path, hub, start, python):
    (tmp_path / "old").mkdir()
    process = python(TERMINATED, tmp_path / "old", hub.folder)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM
    assert len(vote_rows(start(), STUDY)) == 1
