"""The same rules for every kind of store; then what only SQLite can lose."""

import sqlite3
import threading
import time
from collections import Counter

import pytest

from study.design import choose_images
from study.store import (
    GENESIS,
    Event,
    NewEvent,
    SqliteStore,
    StoreError,
    WithdrawnError,
    merged,
    row_hash,
    utc_text,
    verify_chain,
    vote_rows,
    withdrawal_rows,
)
from study.votes import COLUMNS
from tests.study.studies import make_study

STUDY = "5" * 64


def vote(n, who="a" * 16, trial=None, choice="A", cell="img0", **values):
    trial = trial or f"t{n}"
    return NewEvent(
        event_id=f"{n:032x}", type="vote", study_hash=STUDY, participant=who, trial_id=trial,
        cell=cell, payload={"participant": who, "choice": choice, **values},
    )  # fmt: skip


def consent(who, n=0):
    return NewEvent(f"c{who}{n}"[:32], "consent", STUDY, {"adult": True}, participant=who)


def test_an_empty_store_verifies(store):
    check = store.verify()
    assert (check.ok, check.events, check.head) == (True, 0, GENESIS)
    assert store.head() == GENESIS


def test_events_come_back_in_order_as_they_were_stored(store):
    for n in range(5):
        added = store.add(vote(n, choice="ABCDE"[n]))
        assert added.outcome == "stored"
        assert added.event.seq == n + 1
    events = list(store.events())
    assert [event.payload["choice"] for event in events] == list("ABCDE")
    assert [event.seq for event in store.events(after=3)] == [4, 5]
    assert list(store.events(study_hash="6" * 64)) == []
    assert next(e.trial_id for e in store.events(type="vote", participant="a" * 16)) == "t0"


def test_each_row_is_chained_to_the_one_before(store):
    for n in range(3):
        store.add(vote(n))
    prev = GENESIS
    for event in store.events():
        assert event.prev_hash == prev
        assert event.row_hash == row_hash(prev, event.content())
        prev = event.row_hash
    assert store.head() == prev == store.verify().head


def test_a_retry_gets_the_stored_answer_back(store):
    first = store.add(vote(1, choice="A"))
    again = store.add(vote(1, choice="B"))
    assert again.outcome == "retry"
    assert again.event == first.event
    assert len(list(store.events())) == 1


def test_a_second_answer_to_a_trial_is_kept_as_a_duplicate_and_not_as_a_vote(store):
    first = store.add(vote(1, trial="t", choice="A"))
    for _ in range(2):  # its own retry changes nothing
        second = store.add(vote(2, trial="t", choice="B"))
        assert second.outcome == "duplicate"
        assert second.event == first.event
    kinds = [(event.type, event.payload["choice"]) for event in store.events()]
    assert kinds == [("vote", "A"), ("rejected_duplicate", "B")]
    assert [row["choice"] for row in vote_rows(store, STUDY)] == ["A"]


def test_another_participant_may_answer_the_same_trial(store):
    store.add(vote(1, trial="t"))
    assert store.add(vote(2, trial="t", who="b" * 16)).outcome == "stored"


@pytest.mark.parametrize(
    ("event", "sentence"),
    [
        (NewEvent("e", "vote", STUDY, {"ip": "1.2.3.4"}, "p", "t"), "may not store ip"),
        (NewEvent("e", "consent", STUDY, {"user_agent": "x"}, "p"), "may not store user_agent"),
        (NewEvent("e", "trial_shown", STUDY, {"email": "x"}, "p"), "may not store email"),
        (NewEvent("e", "gossip", STUDY, {}), "not 'gossip'"),
        (NewEvent("", "admin_note", STUDY, {}), "needs an event_id"),
        (NewEvent("e", "vote", STUDY, {}, "p", ""), "needs a participant and a trial_id"),
    ],
)
def test_what_may_not_be_stored_is_refused(store, event, sentence):
    with pytest.raises(ValueError, match=sentence):
        store.add(event)
    assert list(store.events()) == []


def test_slots_are_counted_and_a_second_device_gets_the_first_consent(store):
    def assign(place):
        return {"slot": place.slot, "images": ["img0"]}

    slots = [store.join(consent(who), assign).event.payload["slot"] for who in ("a", "b", "c")]
    assert slots == [0, 1, 2]
    again = store.join(consent("b", 1), assign)
    assert (again.outcome, again.event.payload["slot"]) == ("retry", 1)


def test_fill_counts_votes_and_what_active_people_have_reserved(store, clock):
    seen = []

    def assign(place):
        seen.append(dict(place.fill))
        return {"slot": place.slot, "images": ["img0", "img1"]}

    store.join(consent("a"), assign)
    store.add(vote(1, who="a", cell="img0"))
    store.join(consent("b"), assign)
    clock.forward(hours=3)  # both are stale: reservations are free, votes stay
    store.join(consent("c"), assign)
    assert seen == [{}, {"img0": 1, "img1": 1}, {"img0": 1}]


def test_joining_needs_a_consent(store):
    with pytest.raises(ValueError, match="join by consent"):
        store.join(vote(1), lambda place: {})


def test_a_withdrawal_blanks_and_the_chain_still_verifies(store):
    store.join(consent("a" * 16), lambda place: {"slot": place.slot, "images": []})
    store.add(vote(1, choice="SECRETCHOICE"))
    store.add(vote(2, trial="t1", choice="SECRETOTHER"))
    store.add(vote(3, who="b" * 16))
    head = store.head()
    assert store.withdraw(STUDY, "a" * 16) == 3
    check = store.verify()
    assert (check.ok, check.erased, check.events) == (True, 3, 5)
    assert check.head != head
    assert [event.row_hash for event in store.events()][3] == head
    for event in store.events(participant="a" * 16):
        if event.type != "withdraw":
            assert event.erased
            assert (event.payload, event.event_id, event.trial_id, event.cell) == ({}, None, "", "")
    assert [row["participant"] for row in vote_rows(store, STUDY)] == ["b" * 16]
    assert [row["participant"] for row in withdrawal_rows(store, STUDY)] == ["a" * 16]


def test_nothing_more_is_stored_of_someone_who_withdrew(store):
    store.add(vote(1))
    store.withdraw(STUDY, "a" * 16)
    for event in (vote(1), vote(9)):
        with pytest.raises(WithdrawnError, match="withdrawn"):
            store.add(event)
    with pytest.raises(WithdrawnError):
        store.join(consent("a" * 16), lambda place: {})
    assert store.withdraw(STUDY, "a" * 16) == 0  # again, harmless
    assert store.verify().events == 2


def test_a_withdrawn_slot_is_not_given_to_another(store):
    def assign(place):
        return {"slot": place.slot, "images": []}

    store.join(consent("a"), assign)
    store.withdraw(STUDY, "a")
    assert store.join(consent("b"), assign).event.payload["slot"] == 1


def tamper(store, statement):
    """Change the table behind the store's back."""
    with store._write() as execute:
        execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET payload = '{}' WHERE seq = 1",
        "UPDATE events SET payload = '', event_id = NULL, trial_id = '', cell = '', erased = 1",
        "UPDATE events SET seq = 9 WHERE seq = 1",
        "UPDATE events SET type = 'withdraw'",
        "DELETE FROM events",
        "DELETE FROM events WHERE seq = 3",
    ],
)
def test_the_database_itself_forbids_changes(store, statement):
    for n in range(3):
        store.add(vote(n))
    before = list(store.events())
    with pytest.raises(Exception, match="append-only"):
        tamper(store, statement)
    assert list(store.events()) == before


def test_erasing_reaches_only_those_who_withdrew(store):
    store.add(vote(1))
    store.add(vote(2, who="b" * 16))
    store.withdraw(STUDY, "a" * 16)
    with pytest.raises(Exception, match="append-only"):
        tamper(
            store,
            "UPDATE events SET payload = '', event_id = NULL, trial_id = '', cell = '', "
            "erased = 1 WHERE seq = 2",
        )


def test_people_at_once_get_unique_slots_and_balanced_cells(store):
    """Fifty people with forty votes each in SQLite; fewer in PostgreSQL, to save time."""
    study = make_study(images=20, methods="ABCD")
    per_person, people = (40, 50) if isinstance(store, SqliteStore) else (20, 10)
    errors = []
    start = threading.Barrier(people)

    def assign_to(who):
        def assign(place):
            return {"slot": place.slot, "images": choose_images(study, place.fill, who)}

        return assign

    def person(n):
        try:
            who = f"{n:016x}"
            start.wait()
            joined = store.join(consent(who), assign_to(who)).event.payload
            for i in range(per_person):
                cell = joined["images"][i % len(joined["images"])]
                event = vote(1000 * n + i + 1, who=who, trial=f"{who}{i}", cell=cell)
                assert store.add(event).outcome == "stored"
                if i % 10 == 0:
                    assert store.add(event).outcome == "retry"
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=person, args=(n,)) for n in range(people)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert errors == []
    rows = vote_rows(store, STUDY)
    assert len(rows) == people * per_person
    slots = sorted(event.payload["slot"] for event in store.events(type="consent"))
    assert slots == list(range(people))
    cells = Counter(event.cell for event in store.events(type="vote"))
    assert max(cells.values()) == min(cells.values())
    assert store.verify().ok


def test_restoring_gives_the_same_log(store, tmp_path):
    for n in range(4):
        store.add(vote(n, who="ab"[n % 2] * 16))
    store.withdraw(STUDY, "b" * 16)
    copy = SqliteStore(tmp_path / "copy.sqlite")
    assert copy.restore(store.events()) == 5
    assert list(copy.events()) == list(store.events())
    assert copy.verify() == store.verify()
    with pytest.raises(StoreError, match="empty store"):
        copy.restore(store.events())
    copy.close()


def chain(*events, start=GENESIS, first=1, at="2026-01-01T00:00:00.000Z"):
    out, prev = [], start
    for seq, new in enumerate(events, first):
        content = {
            "seq": seq, "event_id": new.event_id, "type": new.type, "study_hash": new.study_hash,
            "participant": new.participant, "trial_id": new.trial_id, "cell": new.cell,
            "payload": dict(new.payload), "created_utc": at,
        }  # fmt: skip
        out.append(Event(**content, prev_hash=prev, row_hash=row_hash(prev, content)))
        prev = out[-1].row_hash
    return out


def test_copies_of_one_log_merge_into_it():
    log = chain(*(vote(n) for n in range(5)))
    assert merged([*log[3:], *log[:4]]) == log


def test_a_withdrawal_in_one_copy_is_carried_out_in_all():
    log = chain(vote(1), vote(2, who="b" * 16), NewEvent("w", "withdraw", STUDY, {}, "a" * 16))
    joined = merged(log)
    assert joined[0].erased
    assert verify_chain(joined).ok


def test_two_servers_that_ran_at_once_are_numbered_anew_and_it_is_noted():
    common = chain(vote(1), vote(2))
    head = common[-1].row_hash
    one = chain(vote(3, trial="x", choice="A"), vote(5), start=head, first=3, at="2026-01-02")
    two = chain(vote(4, trial="x", choice="B"), start=head, first=3, at="2026-01-03")
    joined = merged([*common, *two, *one])
    check = verify_chain(joined)
    assert check.ok
    assert [event.type for event in joined] == ["vote"] * 4 + ["rejected_duplicate", "admin_note"]
    assert one[-1].row_hash in joined[-1].payload["text"]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda log: [log[0], log[2]], "Event 2 is missing"),
        (
            lambda log: [log[0], Event(**{**vars(log[1]), "payload": {"choice": "B"}}), log[2]],
            "2 was",
        ),
        (lambda log: [log[0].blanked(), *log[1:]], "1 was erased without a withdrawal"),
        (lambda log: [log[0], *chain(vote(7), vote(8), first=2)], "2 does not follow"),
    ],
)
def test_a_spoilt_chain_is_noticed(spoil, sentence):
    check = verify_chain(spoil(chain(vote(1), vote(2), vote(3))))
    assert not check.ok
    assert sentence in check.problem


def test_vote_rows_have_the_schemas_columns(store):
    store.add(vote(1))
    (row,) = vote_rows(store, STUDY)
    assert tuple(row) == COLUMNS
    assert row["seq"] == 1


def test_a_blanked_vote_is_gone_from_the_files(tmp_path):
    store = SqliteStore(tmp_path / "votes.sqlite")
    store.add(vote(1, choice="SECRETCHOICE"))
    store.add(vote(2, who="b" * 16, choice="PUBLIC"))

    def bytes_on_disk():
        return b"".join(path.read_bytes() for path in tmp_path.iterdir())

    assert b"SECRETCHOICE" in bytes_on_disk()
    store.withdraw(STUDY, "a" * 16)
    assert b"SECRETCHOICE" not in bytes_on_disk()
    assert b"PUBLIC" in bytes_on_disk()
    store.close()


def test_sqlite_commits_survive_power_loss_by_its_settings(tmp_path):
    store = SqliteStore(tmp_path / "votes.sqlite")
    read = store._connection.execute
    assert read("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert read("PRAGMA synchronous").fetchone()[0] == 2  # FULL
    store.close()


def test_two_stores_on_one_file_take_turns(tmp_path):
    one, two = SqliteStore(tmp_path / "v.sqlite"), SqliteStore(tmp_path / "v.sqlite")
    for n in range(10):
        (one if n % 2 else two).add(vote(n))
    assert one.verify().ok
    assert one.head() == two.head()
    one.close()
    two.close()


def test_a_backup_is_whole(tmp_path):
    store = SqliteStore(tmp_path / "votes.sqlite")
    store.add(vote(1))
    store.backup(tmp_path / "copy.sqlite")
    copy = SqliteStore(tmp_path / "copy.sqlite")
    assert list(copy.events()) == list(store.events())
    copy.close()
    store.close()


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "votes.sqlite"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match="cannot be opened as a store"):
        SqliteStore(path)


FLOOD = """
import sys
from pathlib import Path
from study.store import NewEvent, SqliteStore
store = SqliteStore(Path(sys.argv[1]))
for n in range(int(sys.argv[2]), 10**6):
    event = NewEvent(f"{n:032x}", "vote", "5" * 64, {"choice": "A"}, "p", f"t{n}")
    store.add(event)
    sys.stdout.write(f"{n}\\n")
    sys.stdout.flush()
"""


def test_no_acknowledged_vote_is_lost_or_doubled_when_the_process_is_killed(tmp_path, python):
    path, acknowledged = tmp_path / "votes.sqlite", []
    for round_ in range(2):
        process = python(FLOOD, path, len(acknowledged) + 1000 * round_)
        for _ in range(20 + 17 * round_):
            acknowledged.append(int(process.stdout.readline()))
        time.sleep(0.003 * round_)
        process.kill()
        rest, _ = process.communicate(timeout=20)
        acknowledged += [int(line) for line in rest.splitlines(keepends=True) if line[-1] == "\n"]
    store = SqliteStore(path)
    trials = Counter(event.trial_id for event in store.events())
    assert {f"t{n}" for n in acknowledged} <= set(trials)
    assert set(trials.values()) == {1}
    assert len(trials) <= len(acknowledged) + 2  # at most the one in flight, each time
    assert store.verify().ok
    store.close()


def test_sqlite_is_the_default_library():
    assert sqlite3.sqlite_version_info >= (3, 24)  # partial indexes and upserts


def test_times_sort_as_text(clock):
    assert utc_text(clock()) < utc_text(clock())
    assert utc_text(clock()).endswith("Z")
