"""A visitor's way through the Compare tab, in a real browser."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from baselines.base import MethodError
from tests.ui.fake_methods import by_name, fake

pytestmark = [
    pytest.mark.browser,
    # Gradio's queue counts with pandas, which warns that it will change.
    pytest.mark.filterwarnings("ignore:.*no_silent_downcasting.*"),
]


@pytest.fixture
def methods():
    """Slow enough to be watched; one fails."""
    return by_name(
        fake("quick"),
        fake("broken", error=MethodError("This photo is too dark for it.")),
        fake("slow", ImageOps.invert, pause=6),
    )


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "cat.png"
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path


@pytest.fixture
def compare(page):
    """The page at its Compare tab."""
    page.click("button[role=tab]:has-text('Compare')")
    page.wait_for_selector(".viewer .stage canvas")
    return page


def begin(page, photo) -> None:
    page.click("#own > button")
    page.set_input_files("#compare-photo input[type=file]", str(photo))
    page.wait_for_selector("#compare-photo img")
    for box in page.locator("#methods input[type=checkbox]").all():
        box.check()
    page.click("#compare")


def notes(page) -> list[str]:
    return page.locator(".viewer .note").all_text_contents()


def test_the_gallery_is_there_at_once_and_a_link_opens_its_scene(compare, address):
    assert compare.locator(".viewer figure").count() >= 4
    compare.click("#gallery label >> nth=1")
    name = compare.inner_text("#gallery label >> nth=1")
    compare.wait_for_function(
        f"document.querySelector('.viewer').getAttribute('aria-label').endsWith('{name}')"
    )
    compare.focus(".viewer .stage")
    compare.keyboard.press("s")
    compare.wait_for_function("location.hash.includes('mode=swipe')")
    again = compare.context.new_page()
    again.goto(address + compare.evaluate("location.hash"))
    again.wait_for_selector(".viewer[data-mode=swipe]")
    assert again.get_attribute(".viewer", "aria-label").endswith(name)
    assert again.get_attribute("button[role=tab]:has-text('Compare')", "aria-selected") == "true"
    assert compare.watch.foreign == []
    assert compare.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_methods_appear_as_they_finish_and_a_failure_is_a_sentence(compare, photo):
    begin(compare, photo)
    compare.wait_for_function(
        "[...document.querySelectorAll('.viewer .note')].map(n => n.textContent).join('|') ==="
        " '||This photo is too dark for it.|Restoring…'"
    )
    assert compare.is_disabled("#compare")
    compare.wait_for_selector("#compare-status:has-text('2 of 3 methods done')", timeout=60_000)
    assert "The broken: This photo is too dark for it." in compare.inner_text("#compare-status")
    compare.wait_for_function("document.querySelectorAll('.viewer .waits').length === 1")
    assert compare.is_hidden(".viewer .link")
    assert compare.is_enabled("#compare")
    assert compare.locator("#gallery input:checked").count() == 0


def test_stop_keeps_what_was_finished(compare, photo):
    begin(compare, photo)
    compare.wait_for_selector(".viewer .note:has-text('Restoring…')")
    compare.wait_for_selector(".viewer .note:has-text('too dark')")
    compare.click("#compare-stop")
    compare.wait_for_selector("#compare-status:has-text('Stopped')")
    compare.wait_for_selector(".viewer .note:has-text('Stopped before it was finished.')")
    assert notes(compare)[:3] == ["", "", "This photo is too dark for it."]
    assert compare.is_enabled("#compare")
