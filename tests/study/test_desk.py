import base64
import io
import json
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from study.analysis import analyse
from study.blinding import TokenError, new_code
from study.design import StudyDesign, sha256
from study.desk import Answer, Desk, DeskError
from study.store import SqliteStore, StoreError, WithdrawnError, vote_rows
from study.votes import typed
from tests.study.studies import make_study

SECRET = b"s" * 32


class Time:
    def __init__(self):
        self.now = 1_800_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def open_store(tmp_path):
    opened = []

    def make():
        opened.append(SqliteStore(tmp_path / "votes.sqlite"))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def desk(open_store, tmp_path):
    def make(**values):
        study = make_study(**{"images": 14, "methods": "ABCD", **values})
        return Desk(study, open_store(), SECRET, tmp_path, app_version="1.0", clock=Time())

    return make


def join(desk, code=None):
    code = code or new_code()
    desk.join(code, consent_sha256=desk.study.consent_sha256, adult=True)
    return code


def answer(position=0, ms=5000, **values):
    return Answer(position=position, response_ms=ms, viewport_w=1600, viewport_h=900, **values)


def cast(desk, code, choice=None, n=[0]):  # noqa: B006 - a counter for event ids
    n[0] += 1
    screen = desk.next_screen(code)
    given = answer() if choice is None else choice
    return desk.vote(code, screen.token, given, event_id=f"{n[0]:032x}", session_id="s")


def test_a_whole_sitting_ends_after_the_last_trial_and_sums_up(desk):
    desk = desk()
    code = join(desk)
    total = desk.progress(code).total
    assert total == 2 + 14 + 5 + 4
    with pytest.raises(DeskError, match="after the last trial"):
        desk.summary(code)
    for n in range(total):
        screen = desk.next_screen(code)
        assert (screen.index, screen.total) == (n, total)
        assert desk.progress(code).done == n
        cast(desk, code)
    assert desk.next_screen(code) is None
    assert desk.progress(code).finished
    summary = desk.summary(code)
    assert summary.repeated == 4
    assert summary.golden == 5
    assert sum(summary.picks.values()) == 14


def test_votes_carry_the_whole_record(desk):
    desk = desk()
    code = join(desk)
    for _ in range(8):
        cast(desk, code, answer(1, zoomed=(True, False, False, False), zoom_max=4))
    rows = vote_rows(desk._store, desk.study.hash)
    for row in rows:
        shown = row["methods_shown"].split("|")
        assert row["choice"] == shown[1]
        assert row["choice_position"] == 1
        assert len(row["stimuli_sha"].split("|")) == len(shown)
        assert row["participant"] == f"{int(row['seed']):016x}"
        assert row["zoomed"] == "1|0|0|0"
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", row["submitted_utc"])
        assert row["flags"] == ""
    frame = typed(__import__("pandas").DataFrame(rows).astype(str))
    result = analyse(frame, desk.study.plan(), study_hash=desk.study.hash)
    assert result["cleaning"]["rows_after_cleaning"] == 8


def test_the_screen_names_no_method_and_no_kind(desk):
    """The token is looked into; as text it is random and may spell any short word."""
    desk = desk(methods=("osediff", "pure", "seesr", "bicubic"))
    code = join(desk)
    for _ in range(desk.progress(code).total):
        screen = desk.next_screen(code)
        body = screen.token.split(".")[0]
        claim = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        assert set(claim) == {"p", "t", "i", "n"}
        text = repr(replace(screen, token="")) + repr(claim)
        for word in (*desk.study.methods, "golden", "repeat", "g_", "img", "scene"):
            assert word not in text
        cast(desk, code)


def test_names_differ_from_trial_to_trial_and_person_to_person(desk):
    desk = desk()
    names = []
    for _ in range(2):
        code = join(desk)
        for _ in range(3):
            screen = desk.next_screen(code)
            names += [*screen.panels, screen.input]
            cast(desk, code)
    assert len(set(names)) == len(names)


def test_a_retry_gets_the_stored_answer(desk):
    desk = desk()
    code = join(desk)
    token = desk.next_screen(code).token
    first = desk.vote(code, token, answer(2), event_id="a" * 32, session_id="s")
    again = desk.vote(code, token, answer(3), event_id="a" * 32, session_id="s")
    assert (first.outcome, again.outcome) == ("stored", "retry")
    assert again.position == 2
    assert again.row_hash == first.row_hash
    assert desk.progress(code).done == 1


def test_a_second_tabs_answer_does_not_count(desk):
    desk = desk()
    code = join(desk)
    one, two = desk.next_screen(code), desk.next_screen(code)
    desk.vote(code, one.token, answer(0), event_id="a" * 32, session_id="s")
    other = desk.vote(code, two.token, answer(1), event_id="b" * 32, session_id="t")
    assert (other.outcome, other.position) == ("duplicate", 0)
    assert len(vote_rows(desk._store, desk.study.hash)) == 1


def test_expired_foreign_and_borrowed_tokens_are_refused(desk):
    desk = desk()
    code, other = join(desk), join(desk)
    token = desk.next_screen(code).token
    with pytest.raises(DeskError, match="someone else"):
        desk.vote(other, token, answer(), event_id="a" * 32, session_id="s")
    desk._clock.now += 5 * 3600
    with pytest.raises(TokenError, match="hours ago"):
        desk.vote(code, token, answer(), event_id="a" * 32, session_id="s")
    stranger = Desk(desk.study, desk._store, b"x" * 32, desk._folder, clock=desk._clock)
    stolen = join(stranger)
    with pytest.raises((TokenError, DeskError)):
        desk.vote(
            code, stranger.next_screen(stolen).token, answer(), event_id="a" * 32, session_id=""
        )
    assert vote_rows(desk._store, desk.study.hash) == []


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (answer(4), "one of the 4 panels, not 4"),
        (answer(-1), "one of the 4 panels"),
        (answer("tie"), "is for pairs"),
        (answer("left"), "one of the 4 panels"),
        (answer(0, ms=-1), "0 ms or more"),
        (answer(0, ms=float("nan")), "0 ms or more"),
    ],
)
def test_answers_that_make_no_sense_are_refused(desk, given, sentence):
    desk = desk()
    code = join(desk)
    with pytest.raises(DeskError, match=sentence):
        cast(desk, code, given)
    assert desk.progress(code).done == 0


def test_an_event_id_has_32_digits(desk):
    desk = desk()
    code = join(desk)
    token = desk.next_screen(code).token
    with pytest.raises(DeskError, match="32 hexadecimal"):
        desk.vote(code, token, answer(), event_id="A", session_id="s")


def test_tie_and_skip_are_kept_apart(desk):
    desk = desk(mode="pairwise")
    code = join(desk)
    receipts = [cast(desk, code, answer(what)) for what in ("tie", "skip", 1)]
    assert [receipt.position for receipt in receipts] == ["tie", "skip", 1]
    rows = vote_rows(desk._store, desk.study.hash)
    assert [row["choice_position"] for row in rows] == [-1, -1, 1]


def test_training_gives_feedback_and_nothing_else_does(desk):
    desk = desk()
    code = join(desk)
    correct = [cast(desk, code).correct for _ in range(desk.progress(code).total)]
    assert all(isinstance(value, bool) for value in correct[:2])
    assert set(correct[2:]) == {None}


def test_consent_is_needed(desk):
    desk = desk()
    right = desk.study.consent_sha256
    for sha, adult in ((right, False), ("0" * 64, True)):
        with pytest.raises(DeskError, match="read the consent"):
            desk.join(new_code(), consent_sha256=sha, adult=adult)
    with pytest.raises(DeskError, match="has not joined"):
        desk.next_screen(new_code())
    with pytest.raises(DeskError, match="no participant code"):
        desk.join(" ", consent_sha256=right, adult=True)


def test_a_restart_continues_where_the_last_vote_was(desk, tmp_path):
    first = desk()
    code = join(first)
    for _ in range(5):
        cast(first, code)
    before = first.next_screen(code)
    again = Desk(first.study, SqliteStore(tmp_path / "votes.sqlite"), SECRET, tmp_path)
    joined = again.join(code, consent_sha256="", adult=False)  # consent is on record
    assert joined.done == 5
    after = again.next_screen(code)
    assert (after.panels, after.index) == (before.panels, before.index)
    assert [event.type for event in again._store.events()].count("resume") == 1
    again._store.close()


def test_withdrawing_erases_and_shuts_the_door(desk):
    desk = desk()
    code = join(desk)
    cast(desk, code)
    assert desk.withdraw(code) == 2
    assert vote_rows(desk._store, desk.study.hash) == []
    assert desk._store.verify().ok
    with pytest.raises(DeskError, match="withdrawn"):
        desk.next_screen(code)
    with pytest.raises(WithdrawnError):
        join(desk, code)


def test_nothing_that_identifies_anyone_is_stored(desk, tmp_path):
    desk = desk()
    code = join(desk)
    screen = desk.next_screen(code)
    desk.vote(
        code, screen.token, answer(), event_id="a" * 32, session_id="s", address="203.0.113.9"
    )
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())
    assert code.encode() not in stored
    assert b"203.0.113.9" not in stored


def test_facts_about_a_vote_become_flags(desk):
    desk = desk()
    codes = [join(desk) for _ in range(4)]
    for n, code in enumerate(codes):
        screen = desk.next_screen(code)
        given = Answer(0, response_ms=900, viewport_w=800, flags=("hidden_tab",))
        desk.vote(
            code, screen.token, given, event_id=f"{n:032x}", session_id="s", address="203.0.113.9"
        )
    flags = [row["flags"] for row in vote_rows(desk._store, desk.study.hash)]
    assert flags[0] == "below_min_view|hidden_tab|small_viewport"
    assert flags[3] == "below_min_view|hidden_tab|shared_address|small_viewport"


def test_the_address_book_forgets_overnight(desk):
    desk = desk()
    seen = [desk._addresses.seen("203.0.113.9", who) for who in "aabc"]
    desk._clock.now += 86_400
    assert seen == [1, 1, 2, 3]
    assert desk._addresses.seen("203.0.113.9", "d") == 1


def test_the_study_closes_at_its_target_and_takes_nobody_new(desk):
    desk = desk(target_participants=1, design=StudyDesign(golden=0, repeats=0, training=0))
    code, other = join(desk), join(desk)
    while desk.next_screen(code):
        cast(desk, code)
    assert desk.closed()
    with pytest.raises(DeskError, match="closed"):
        join(desk)
    cast(desk, other)  # those inside may finish
    assert join(desk, other) == other


def test_slots_and_pictures_come_from_the_design(desk):
    desk = desk(images=100)
    for _ in range(5):
        join(desk)
    consents = [e.payload for e in desk._store.events(type="consent")]
    assert [c["slot"] for c in consents] == [0, 1, 2, 3, 4]
    used = Counter(name for c in consents for name in c["images"])
    assert len(used) == 100
    assert set(used.values()) == {3}


def with_files(desk, folder, sizes=None):
    """The study with real files of noise: input half the size of the outputs."""
    rng = np.random.default_rng(0)

    def file(picture, size):
        image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        image.save(folder / picture.path, pnginfo=None)
        return replace(picture, sha256=sha256((folder / picture.path).read_bytes()))

    def full(image):
        outputs = {n: file(p, (sizes or {}).get(n, (24, 32))) for n, p in image.outputs.items()}
        return replace(image, lq=file(image.lq, (12, 16)), outputs=outputs)

    study = desk.study
    changed = {
        kind: tuple(map(full, getattr(study, kind))) for kind in ("images", "golden", "training")
    }
    return Desk(replace(study, **changed), desk._store, SECRET, folder, clock=desk._clock)


def test_pictures_are_plain_equal_in_size_and_the_right_ones(desk, tmp_path):
    desk = with_files(desk(images=3), tmp_path)
    code = join(desk)
    while screen := desk.next_screen(code):
        files = desk.pictures(code, screen)
        assert set(files) == {*screen.panels, screen.input}
        assert len({len(data) for data in files.values()}) == 1
        opened = {name: Image.open(io.BytesIO(data)) for name, data in files.items()}
        assert {(image.size, image.mode) for image in opened.values()} == {((32, 24), "RGB")}
        assert all(image.info == {} for image in opened.values())
        cast(desk, code)
        row = vote_rows(desk._store, desk.study.hash)[-1]
        image = desk._images[row["image_id"]]
        for name, method in zip(screen.panels, row["methods_shown"].split("|"), strict=True):
            with Image.open(tmp_path / image.outputs[method].path) as source:
                assert (np.asarray(source) == np.asarray(opened[name])).all()
        with Image.open(tmp_path / image.lq.path) as source:
            twice = np.asarray(source).repeat(2, 0).repeat(2, 1)
            assert (twice == np.asarray(opened[screen.input])).all()


def test_changed_missing_and_unequal_pictures_are_refused(desk, tmp_path):
    opened = with_files(desk(images=3), tmp_path)
    code = join(opened)
    screen = opened.next_screen(code)
    trial = opened._claimed(opened._who(code), opened._trials(opened._who(code))[0].trial_id)
    path = tmp_path / opened._images[trial.image_id].outputs["g_gt"].path
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DeskError, match="has changed"):
        opened.pictures(code, screen)
    path.unlink()
    with pytest.raises(DeskError, match="missing on the server"):
        opened.pictures(code, screen)


def test_active_sampling_records_each_pair_with_its_probability(desk):
    design = StudyDesign.of_mode("pairwise", golden=0, training=0, repeats=2)
    desk = desk(mode="pairwise", active=True, images=6, design=design)
    for _ in range(2):
        code = join(desk)
        while screen := desk.next_screen(code):
            assert desk.next_screen(code).panels == screen.panels  # a reload shows the same
            cast(desk, code)
    shown = {e.trial_id: e.payload for e in desk._store.events(type="trial_shown")}
    rows = vote_rows(desk._store, desk.study.hash)
    main = [row for row in rows if row["kind"] == "main"]
    assert len(main) == len(shown) == 24
    for row in main:
        assert row["methods_shown"] == "|".join(shown[row["trial_id"]]["order"])
        assert 0 < shown[row["trial_id"]]["probability"] <= 1
    by_person = Counter(
        (row["participant"], row["image_id"], frozenset(row["methods_shown"].split("|")))
        for row in main
    )
    assert set(by_person.values()) == {1}
    order = {(row["participant"], row["trial_id"]): row["methods_shown"] for row in rows}
    for row in rows:
        if row["kind"] == "repeat":
            first = order[row["participant"], row["repeat_of"]]
            assert row["methods_shown"] == "|".join(first.split("|")[::-1])


def test_a_break_is_noted(desk):
    desk = desk()
    code = join(desk)
    desk.take_break(code, "s")
    assert [event.type for event in desk._store.events()][-1] == "break"


def test_the_study_file_is_the_first_event(desk):
    desk = desk()
    first = next(iter(desk._store.events()))
    assert first.type == "study_open"
    assert first.payload["study"] == desk.study.to_json()


def test_store_errors_are_not_desk_errors():
    assert not issubclass(StoreError, DeskError)
