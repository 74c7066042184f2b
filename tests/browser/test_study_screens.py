"""The pictures of docs/study.md are made in a real browser."""

import pytest
from PIL import Image

from tools import study_screens

pytestmark = pytest.mark.browser


def test_every_picture_is_made_and_shows_what_it_is_named_after(browser, tmp_path):
    study_screens.make(tmp_path, browser)
    sizes = {path.name: Image.open(path).size for path in tmp_path.iterdir()}
    assert sizes == {
        "study-trial.png": study_screens.DESKTOP,
        "study-phone.png": study_screens.PHONE,
        "study-picks.png": study_screens.RESULTS,
        "study-pairs.png": study_screens.RESULTS,
    }
    light, dark = (
        Image.open(tmp_path / name).convert("L").getpixel((2, 2))
        for name in ("study-trial.png", "study-phone.png")
    )
    assert light > 200 > 60 > dark
