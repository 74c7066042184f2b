"""The running app is killed under a flood of votes; and the checks see what they are to see."""

import pytest

from study.design import read_study
from study.desk import Answer
from study.room import Room, StudyPlace
from tools.study_load import Voter, crash, make_load_study, problems


@pytest.mark.timeout(300)
def test_a_killed_app_has_lost_no_acknowledged_vote_and_doubled_none(tmp_path, capsys):
    assert crash(tmp_path, kills=1, voters=3, votes=12) == []
    acknowledged = int(capsys.readouterr().out.split(": ")[1].split()[0])
    assert acknowledged >= 6  # some before the kill, some after it


def test_votes_that_are_lost_or_too_few_are_seen(tmp_path):
    file = make_load_study(tmp_path, 3)
    study = read_study(file)
    room = Room(StudyPlace(file))
    code = "ab" * 16
    room.desk.join(code, consent_sha256=study.consent_sha256, adult=True)
    token = room.desk.next_screen(code).token
    answer = Answer(0, 4000)
    room.desk.vote(code, token, answer, event_id="ef" * 16, session_id="1")
    room.close()
    kept, lost = Voter("", acknowledged=["ef" * 16]), Voter("", acknowledged=["cd" * 16])
    assert problems(study, file, [kept], whole=False) == []
    assert problems(study, file, [lost], whole=True) == [
        "1 acknowledged votes are lost",
        "1 rows instead of 3",
    ]
