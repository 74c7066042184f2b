"""The study through the running app: what is told, what is refused, and what stays blind."""

import base64
import hashlib
import importlib
import io
import json
import re
import struct
import sys
import threading
from collections import Counter

import pytest
from PIL import Image

from study.room import Room, StudyPlace
from study.store import vote_rows
from tests.study.test_shards import FakeHub
from tests.ui.study_app import (
    SECRETS,
    Participant,
    RefusedError,
    launch,
    room_of,
    study_file,
)
from ui.compare_tab import GALLERY
from ui.settings import STUDY

pytestmark = pytest.mark.filterwarnings("ignore:.*no_silent_downcasting.*")


@pytest.fixture(scope="module")
def app(checkpoint_folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PURE_CHECKPOINT", str(checkpoint_folder))
        patch.setenv("PURE_DEVICE", "cpu")
        sys.modules.pop("app", None)
        return importlib.import_module("app")


@pytest.fixture(scope="module")
def served(app, tmp_path_factory):
    """(page, address, room, folder) of a study of secrets."""
    folder = tmp_path_factory.mktemp("study")
    room = room_of(study_file(folder, images=8))
    page, address = launch(app, room)
    yield page, address, room, folder
    page.close()
    room.close()


@pytest.fixture
def someone(served):
    participant = Participant(served[1])
    yield participant
    participant.http.close()


def rows_of(room, participant):
    who = room.desk._who(participant.code)
    return [row for row in vote_rows(room.store, room.study.hash) if row["participant"] == who]


# The way of a participant


def test_a_sitting_ends_with_ones_own_result_and_every_vote_is_stored(served, someone):
    room = served[2]
    assert someone.join(vision="normal", display="Ada's")["done"] == 0
    total = someone.next()["total"]
    summary = someone.finish()
    assert sum(pick["times"] for pick in summary["picks"]) == len(room.study.images)
    assert len(rows_of(room, someone)) == total
    consents = [e.payload for e in room.store.events(type="consent")]
    assert "Ada" not in json.dumps(consents)


def test_a_retry_a_second_tab_and_a_double_click_leave_one_vote(served, someone):
    someone.join()
    screen = someone.next()
    event = "ab" * 16
    first = someone.vote(screen, 1, event)
    assert someone.vote(screen, 1, event)["outcome"] == "retry"
    other_tab = someone.vote(screen, 0)
    assert (first["outcome"], other_tab["outcome"]) == ("stored", "duplicate")
    assert other_tab["position"] == 1
    assert len(rows_of(served[2], someone)) == 1


def test_two_tabs_that_vote_at_the_same_moment_leave_one_vote(served, someone):
    someone.join()
    screen = someone.next()
    outcomes = []
    threads = [
        threading.Thread(target=lambda p=p: outcomes.append(someone.vote(screen, p)["outcome"]))
        for p in (0, 1, 2, 0)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(outcomes) == {"stored": 1, "duplicate": 3}


def test_tokens_of_others_and_tokens_that_expired_are_refused_with_a_sentence(served, someone):
    someone.join()
    other = Participant(served[1])
    other.join()
    with pytest.raises(RefusedError, match="someone else"):
        someone.vote(other.next())
    screen = someone.next()
    with pytest.raises(RefusedError, match="no valid token"):
        someone.vote({"token": "nonsense"})
    body, signature = screen["token"].split(".")
    changed = ("A" if signature[0] != "A" else "B") + signature[1:]
    with pytest.raises(RefusedError, match="not from this study"):
        someone.vote({"token": f"{body}.{changed}"})
    clock = served[2].desk._clock
    served[2].desk._clock = lambda: clock() + 5 * 3600
    try:
        with pytest.raises(RefusedError, match=r"5\.0 hours ago"):
            someone.vote(screen)
    finally:
        served[2].desk._clock = clock
    assert someone.vote(screen)["outcome"] == "stored"


def test_hostile_values_are_sentences(someone):
    someone.join()
    screen = someone.next()
    for position in (7, -1, 0.5, True, None, "tie", [0], {"a": 1}):
        with pytest.raises(RefusedError):
            someone.vote(screen, position)
    with pytest.raises(RefusedError, match="event id"):
        someone.vote(screen, 0, "x" * 32)
    for code in ("", "short", None, 5, ["a"]):
        with pytest.raises(RefusedError, match="code"):
            someone.call("next", code)


def test_a_stranger_who_has_not_agreed_sees_nothing(someone):
    for name in ("next", "pictures"):
        with pytest.raises(RefusedError, match="has not joined"):
            someone.call(name, someone.code)
    with pytest.raises(RefusedError, match="18 or"):
        someone.call("join", someone.code, "0" * 64, True, {})


def test_withdrawing_erases_and_is_final(served, someone):
    room = served[2]
    someone.join()
    someone.vote(someone.next())
    assert someone.call("withdraw", someone.code)["erased"] == 2
    assert rows_of(room, someone) == []
    assert room.store.verify().ok
    with pytest.raises(RefusedError, match="withdrawn"):
        someone.join()


def test_votes_wait_in_no_queue(served):
    functions = served[0].fns.values()
    study = [fn for fn in functions if str(fn.api_name).startswith("study_")]
    assert len(study) == 8
    assert not any(fn.queue for fn in study)
    # Gradio's Python client queues them nevertheless: then not behind a model, nor each other
    others = {fn.concurrency_id for fn in functions if fn not in study}
    assert {fn.concurrency_id for fn in study}.isdisjoint(others)
    assert {fn.concurrency_limit for fn in study} == {None}


def test_how_far_the_copies_are_is_told_without_what_is_in_them(app, tmp_path):
    hub = FakeHub(tmp_path / "hub")
    place = StudyPlace(study_file(tmp_path, images=3), repo="me/votes", secret="0" * 64)
    room = Room(place, hub)
    page, address = launch(app, room)
    someone = Participant(address)
    someone.join()
    someone.vote(someone.next())
    state = someone.call("health")
    assert state["copied"]
    assert state["pending"] >= 2  # a consent, a vote
    assert set(state) == {"copied", "pending", "oldest_seconds", "failing"}
    room.store.shards.push()
    assert someone.call("health") == {
        "copied": True, "pending": 0, "oldest_seconds": 0, "failing": False,
    }  # fmt: skip
    page.close()
    room.close()


def test_a_small_window_is_refused_where_the_study_says_so(app, tmp_path):
    room = room_of(study_file(tmp_path, images=3, design={"small_viewport": "block"}))
    page, address = launch(app, room)
    small = Participant(address)
    small.join()
    with pytest.raises(RefusedError, match="at least 800 pixels wide; yours has 390"):
        small.vote(small.next(), viewport_w=390)
    assert small.vote(small.next(), viewport_w=800)["outcome"] == "stored"
    page.close()
    room.close()


def test_a_study_that_cannot_be_opened_is_a_sentence_and_the_app_runs(app, tmp_path):
    page, address = launch(app, Room(StudyPlace(tmp_path / "none.json")))
    with pytest.raises(RefusedError, match="no study file"):
        Participant(address).call("about")
    page.close()


# Blinding


def chunks(png: bytes) -> set[bytes]:
    at, found = 8, set()
    while at < len(png):
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        found.add(kind)
        at += 12 + length
    return found


def paths_on_disk(room, folder):
    pictures = [p for image in room.study.images for p in image.outputs.values()]
    return [
        *(folder / picture.path for picture in pictures[:4]),
        folder / "study.json",
        folder / "study.sqlite",
        folder / "study.secret",
    ]


def everything_fetched(served, someone) -> dict[str, bytes]:
    """Whatever page and API give during a trial, by what was asked."""
    _, _, room, folder = served
    http = someone.http
    found: dict[str, bytes] = {}

    def ask(method, path, **extra):
        with http.stream(method, path, **extra) as answer:
            body = b""
            if "event-stream" not in answer.headers.get("content-type", ""):
                body = answer.read()
        found[f"{method} {path}"] = body + str(answer.headers).encode() + answer.url.raw_path
        return answer.status_code

    never_ends = re.compile(r"heartbeat|/queue/data|reload|stream")
    for path, ways in http.get("openapi.json").json()["paths"].items():
        if "get" in ways and "{" not in path and not never_ends.search(path):
            ask("GET", path.lstrip("/"))
    for path in ("", "config", "gradio_api/info", "gradio_api/info?all_endpoints=true",
                 "gradio_api/openapi.json", "theme.css", "manifest.json"):  # fmt: skip
        ask("GET", path)
    for path in paths_on_disk(room, folder):
        for way in (f"gradio_api/file={path}", f"file={path}", f"gradio_api/file/{path}"):
            assert http.get(way).status_code in (403, 404), path
    screen = someone.next()
    calls = {
        "about": [], "health": [], "next": [someone.code], "pictures": [someone.code],
        "break": [someone.code, someone.session],
        "join": [someone.code, "", False, {}],
        "vote": [someone.code, screen["token"], {"position": 99, "response_ms": 1}, "ab" * 16, "s"],
    }  # fmt: skip
    for name, data in calls.items():
        ask("POST", f"gradio_api/run/study_{name}", json={"data": data})
        ask("POST", f"gradio_api/call/study_{name}", json={"data": data})
    return found


def test_nothing_that_page_and_api_give_in_a_trial_names_a_method(served, someone):
    someone.join()
    while (screen := someone.next())["training"]:
        someone.vote(screen)
    found = everything_fetched(served, someone)
    assert len(found) > 40
    assert any(b"study_vote" in body for body in found.values())  # we did reach the API
    token = screen["token"].split(".")[0]
    found["token"] = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    for where, body in found.items():
        words = [*SECRETS, "g_best", "g_0", "lake/pic"]
        if "study_" in where:  # the page's own script speaks of golden trials at the end
            words += ["golden", "repeat", "expected", "scene"]
        text = body.decode("utf-8", "replace").lower()
        assert [word for word in words if word in text] == [], where


def test_the_pictures_of_a_trial_differ_in_nothing_but_their_pixels(served, someone):
    room, folder = served[2], served[3]
    someone.join()
    sources = {hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*.png")}
    names = set()
    while not (screen := someone.next())["finished"]:
        files = {k: base64.b64decode(v) for k, v in someone.call("pictures", someone.code).items()}
        assert list(files) == [*screen["panels"], screen["input"]]
        assert all(re.fullmatch(r"[0-9a-f]{32}\.png", name) for name in files)
        assert len({len(data) for data in files.values()}) == 1
        for data in files.values():
            assert chunks(data) == {b"IHDR", b"IDAT", b"IEND"}
            assert hashlib.sha256(data).hexdigest() not in sources
        assert {Image.open(io.BytesIO(data)).size for data in files.values()} == {(40, 32)}
        assert not names & set(files)  # a repeated picture has another name
        names |= set(files)
        someone.vote(screen)
    assert room.study.design.golden == 3


def test_a_golden_or_repeated_trial_looks_like_any_other(served, someone):
    someone.join()
    shapes, kinds = set(), set()
    while not (screen := someone.next())["finished"]:
        if not screen["training"]:
            varying = {"token", "index", "panels", "input", "break_before"}
            shapes.add(json.dumps({k: v for k, v in screen.items() if k not in varying}))
        receipt = someone.vote(screen)
        assert (receipt["correct"] is None) == (not screen["training"])
        kinds |= {row["kind"] for row in rows_of(served[2], someone)}
    assert kinds == {"training", "main", "golden", "repeat"}
    assert len(shapes) == 1


def test_no_file_of_the_gallery_is_served_as_it_is(tmp_path):
    room = Room(StudyPlace(STUDY, store=str(tmp_path / "votes.sqlite")))
    gallery = {hashlib.sha256(path.read_bytes()).hexdigest() for path in GALLERY.rglob("*.png")}
    sizes = {path.stat().st_size for path in GALLERY.rglob("*.png")}
    for image in room.study.images[:3]:
        for data in room.desk._prepared(image.image_id).values():
            assert hashlib.sha256(data).hexdigest() not in gallery
            assert len(data) not in sizes
    room.close()


def test_the_study_that_opens_by_default_has_all_its_pictures():
    study = Room(StudyPlace(STUDY))._place.study_file
    data = json.loads(study.read_text())
    for image in [*data["images"], *data["golden"], *data["training"]]:
        for picture in [image["lq"], *image["outputs"].values()]:
            content = (study.parent / picture["path"]).read_bytes()
            again = "python -m tools.study_demo makes it anew"
            assert hashlib.sha256(content).hexdigest() == picture["sha256"], again


# Load


def test_many_people_at_once_leave_every_vote_once_in_a_balanced_design(app, tmp_path):
    people, votes = 12, 6
    design = {"golden": 0, "training": 0, "repeats": 0}
    room = room_of(study_file(tmp_path, images=votes, target_participants=99, design=design))
    page, address = launch(app, room)

    def sit():
        person = Participant(address)
        person.join()
        person.finish()
        person.http.close()

    threads = [threading.Thread(target=sit) for _ in range(people)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    rows = vote_rows(room.store, room.study.hash)
    assert len(rows) == people * votes
    slots = [event.payload["slot"] for event in room.store.events(type="consent")]
    assert sorted(slots) == list(range(people))
    cells = Counter(
        (row["image_id"], method, position)
        for row in rows
        for position, method in enumerate(row["methods_shown"].split("|"))
    )
    assert set(cells.values()) == {people // 3}
    assert room.store.verify().ok
    page.close()
    room.close()
