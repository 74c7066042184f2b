import pytest
from PIL import Image

from tools.nano_pairs import BICUBIC, NANO, joined, sheets, sides


def test_sides_are_drawn_alike_and_both_come_up():
    drawn = sides(50, 0)
    assert drawn == sides(50, 0) != sides(50, 1)
    assert all(set(pair) == {NANO, BICUBIC} for pair in drawn)
    assert 10 < sum(left == NANO for left, _ in drawn) < 40


def test_a_choice_names_what_stood_on_that_side():
    key = [{"left": NANO, "right": BICUBIC}, {"left": NANO, "right": BICUBIC}]
    assert [row["chosen"] for row in joined(key, "LR")] == [NANO, BICUBIC]
    for wrong in ("L", "LX"):
        with pytest.raises(ValueError, match="2 letters L or R"):
            joined(key, wrong)


def test_sheets_show_every_pair_at_real_pixels():
    colours = [(10 * i, 0, 0) for i in range(7)]
    pairs = [(Image.new("RGB", (16, 16), c), Image.new("RGB", (16, 16), "white")) for c in colours]
    made = sheets(pairs)
    assert len(made) == 2
    counts = [{c: n for n, c in sheet.getcolors(100_000)} for sheet in made]
    for i, colour in enumerate(colours):
        assert counts[i // 6][colour] == 16 * 16
