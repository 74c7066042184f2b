"""What a page sends is checked key by key, and what it gets is a closed list."""

import json

import pytest

from study.desk import DeskError, Screen
from study.messages import about_screen, read_about, read_answer, read_code, read_session

CODE = "0123456789abcdef" * 2
ANSWER = {"position": 1, "response_ms": 900, "zoomed": [True, False], "flags": ["hidden_tab"]}


def test_a_code_is_read_whatever_its_case():
    assert read_code(f" {CODE.upper()} ") == CODE


@pytest.mark.parametrize("code", [None, 7, "", CODE[:-1], CODE + "0", "g" * 32])
def test_other_codes_are_refused(code):
    with pytest.raises(DeskError, match="32 digits"):
        read_code(code)


@pytest.mark.parametrize("session", [None, "", "x", "0" * 33])
def test_a_sitting_needs_an_id(session):
    with pytest.raises(DeskError, match="Reload"):
        read_session(session)


@pytest.mark.parametrize("position", [0, 5, "tie", "skip"])
def test_an_answer_keeps_its_position(position):
    answer = read_answer({**ANSWER, "position": position})
    assert answer.position == position
    assert answer.zoomed == (True, False)
    assert answer.flags == ("hidden_tab",)


@pytest.mark.parametrize(
    "wrong",
    [
        {"position": True},
        {"position": 1.5},
        {"position": "nano"},
        {"position": None},
        {"response_ms": -1},
        {"response_ms": float("nan")},
        {"response_ms": 10**400},
        {"response_ms": "900"},
        {"zoomed": [1]},
        {"zoomed": [True] * 17},
        {"zoom_max": float("inf")},
        {"dpr": True},
        {"flags": ["below_min_view"]},
        {"flags": "hidden_tab"},
    ],
)
def test_an_answer_with_a_wrong_part_is_refused(wrong):
    with pytest.raises(DeskError):
        read_answer({**ANSWER, **wrong})


def test_an_answer_needs_its_time():
    with pytest.raises(DeskError, match="response_ms"):
        read_answer({"position": 0})


def test_free_text_about_someone_is_dropped():
    said = {"vision": "normal", "display": "Ada's laptop", "name": "Ada", "screen_w": 390.0}
    assert read_about(said) == {"vision": "normal", "screen_w": 390}


def test_a_screen_tells_nothing_else():
    screen = Screen("t", 0, 9, False, "pairwise", "overall", ("a.png", "b.png"), "c.png", 500, True)
    told = about_screen(screen)
    assert json.loads(json.dumps(told)) == told
    assert set(told) == {
        *("token", "index", "total", "training", "mode", "criterion", "question", "meaning"),
        *("panels", "input", "min_view_ms", "break_before"),
    }
