import pytest
from hypothesis import given
from hypothesis import strategies as st

from imaging.pairing import pair, without_version


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("Canon_001_LR4.png", "Canon_001"),
        ("Canon_10_x1.png", "Canon_10"),
        ("0801x4.png", "0801"),
        ("cat_gt.png", "cat"),
        ("cat-HR.jpg", "cat"),
        ("photo_x4_SR.png", "photo"),
        ("box4.png", "box4"),
        ("_LR.png", "_LR"),
        ("x4.png", "x4"),
        ("P1160566.png", "P1160566"),
    ],
)
def test_suffixes_of_versions_are_taken_away_and_nothing_else(name, stem):
    assert without_version(name) == stem


def test_equal_names_come_first_then_stems_then_versions():
    found = pair(["a.png", "b.png", "c_LR4.png", "d.png"], ["a.png", "b.jpg", "c_HR.png", "e.png"])
    assert found.pairs == {"a.png": "a.png", "b.png": "b.jpg", "c_LR4.png": "c_HR.png"}
    assert (found.left_only, found.right_only) == (("d.png",), ("e.png",))


def test_what_could_go_two_ways_stays_unmatched():
    found = pair(["a_x2.png", "a_x4.png"], ["a.png"])
    assert found.pairs == {}
    assert found.left_only == ("a_x2.png", "a_x4.png")


NAMES = st.sets(
    st.sampled_from(
        [f"{a}{b}{c}" for a in "pq" for b in ("", "_LR", "_x4", "_gt") for c in (".png", ".jpg")]
    )
)


@given(NAMES, NAMES)
def test_everything_is_matched_once_or_reported(left, right):
    found = pair(left, right)
    assert sorted([*found.pairs, *found.left_only]) == sorted(left)
    assert sorted([*found.pairs.values(), *found.right_only]) == sorted(right)
