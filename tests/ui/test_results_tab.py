import csv
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from study.blinding import TokenError
from study.design import StudyError, read_study, write_study
from study.desk import Answer
from study.report import TextTable
from study.room import Room, StudyPlace
from study.votes import VotesError
from tests.study.rows import pick_rows
from tests.ui.study_app import SECRETS, study_file
from ui import results_tab
from ui.results_tab import Results, Shown, command, from_files, opening, planned, published, table


@pytest.fixture(autouse=True)
def gradio_files(monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))


@pytest.fixture
def votes(tmp_path):
    """A file of votes as another tool might have written it."""
    rows = pick_rows(3)
    path = tmp_path / "votes.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def room(tmp_path):
    """A study that closes with its second participant."""
    design = {"golden": 0, "training": 0, "repeats": 0}
    file = study_file(tmp_path, images=3, design=design, target_participants=2)
    study = read_study(file)
    study = replace(study, bootstrap=20, screening=replace(study.screening, main_min=1))
    write_study(study, file)
    opened = Room(StudyPlace(file))
    yield opened
    opened.close()


def finish(room, code):
    desk = room.desk
    desk.join(code, consent_sha256=room.study.consent_sha256, adult=True)
    number = 0
    while screen := desk.next_screen(code):
        number += 1
        event = f"{code[:2]}{number:030x}"
        desk.vote(code, screen.token, Answer(0, 5000), event_id=event, session_id="1")


def test_an_open_study_shows_how_far_it_is_and_nothing_of_its_votes(room):
    results = Results(room)
    finish(room, "ab" * 16)
    shown = results.own()
    assert shown.result is None
    assert shown.files is None
    assert "1 have joined, 1 of 2 have finished" in shown.says
    assert not [name for name in SECRETS if name in opening(shown)]


def test_a_closed_study_shows_its_result_with_everything_for_download(room):
    results = Results(room)
    for code in ("ab" * 16, "cd" * 16):
        finish(room, code)
    shown = results.own()
    assert shown.result["cleaning"]["study_hash"] == room.study.hash
    assert shown.result["screened"]["n_decided"] == 6
    assert set(shown.files) == {name for _, name in results_tab.FILES_OF}
    assert json.loads(Path(shown.files["result.json"]).read_text()) == shown.result
    with zipfile.ZipFile(shown.files["study.zip"]) as archive:
        names = set(archive.namelist())
    assert {"votes.csv", "participants.csv", "withdrawals.csv", "MANIFEST.json"} <= names
    assert shown.result["headline"].split(" (")[0] in opening(shown)


def test_a_result_is_computed_once_for_the_votes_there_are(room, monkeypatch):
    results = Results(room)
    for code in ("ab" * 16, "cd" * 16):
        finish(room, code)
    first = results.own().result
    real, calls = results_tab.analyse_store, []

    def counted(*args):
        calls.append(args)
        return real(*args)

    monkeypatch.setattr(results_tab, "analyse_store", counted)
    assert results.own().result is first
    assert calls == []
    room.desk.withdraw("cd" * 16)  # what was erased must not be shown any longer
    assert results.own().result["screened"]["n_decided"] == 3
    assert len(calls) == 1


def test_simulated_studies_are_marked_and_of_invented_methods(room):
    shown = Results(room).simulated("pairwise")
    assert "not people" in shown.says
    assert shown.result["methods"] == list("ABCDEF")
    assert shown.result["report_card"]["chain_verifies"]


def test_votes_from_files_are_analysed_and_can_be_taken_along(votes):
    shown = from_files(str(votes), None, None)
    assert shown.result["mode"] == "pick_best"
    assert "default pipeline" in " ".join(shown.result["notes"])
    assert "study.json" not in shown.files
    assert "--study" not in command(shown)
    withdrawn = votes.with_name("gone.csv")
    who = pick_rows(3)[0]["participant"]
    withdrawn.write_text(f"participant,requested_utc\n{who},2026-01-01T00:00:00Z\n")
    less = from_files(str(votes), None, str(withdrawn))
    assert less.result["cleaning"]["dropped_withdrawn"] > 0


def test_files_that_are_no_votes_and_no_study_are_sentences(tmp_path, votes):
    with pytest.raises(VotesError, match="Choose a file"):
        from_files(None, None, None)
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("a,b\n1,2\n")
    with pytest.raises(VotesError, match="lacks the columns"):
        from_files(str(wrong), None, None)
    with pytest.raises(StudyError, match="not JSON"):
        from_files(str(votes), str(wrong), None)


def test_what_the_page_becomes_has_a_value_for_every_part(votes):
    changes = results_tab._changes(from_files(str(votes), None, None))
    assert set(results_tab.DRAWN) < set(changes)
    assert {name for _, name in results_tab.FILES_OF} < set(changes)
    assert changes["study.json"]["visible"] is False
    assert results_tab._changes(Shown("Nothing yet.")) == {}


def test_text_from_a_file_is_escaped():
    shown = table(TextTable("<i>", ("<b>",), (("<script>",),), "<u>"))
    assert "<script>" not in shown
    assert "<b>" not in shown
    assert "<u>" not in shown
    assert "<img" not in opening(Shown("<img src=x>"))


def test_the_calculator_takes_numbers_and_refuses_what_is_no_share():
    assert "35.5 to 42.5" in published(292, 750, 6, 1)
    for wrong in ((800, 750, 6, 1), (None, 750, 6, 1), (1, 2, 1, 1), (1, 2, 3, 0.5)):
        with pytest.raises(VotesError):
            published(*wrong)


def test_the_planner_gives_power_and_minutes_and_refuses_what_is_no_study(monkeypatch):
    monkeypatch.setattr(results_tab, "RUNS", 4)
    figure, text = planned(6, 38.9, 26, 0.4, 0.8, 18)
    assert len(figure.data) == len(results_tab.IMAGES)
    assert "15 min for 50 pictures" in text
    for wrong in ((6, 20, 30, 0.4, 0.8, 18), (6, 90, 20, 0.4, 0.8, 18), (None, 1, 1, 1, 1, 1)):
        with pytest.raises(VotesError):
            planned(*wrong)


def test_errors_of_the_study_are_told_to_visitors():
    from ui.boundary import VISITOR_ERRORS

    assert {VotesError, StudyError, TokenError} <= set(VISITOR_ERRORS)
