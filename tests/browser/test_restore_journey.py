"""A visitor's way through the Restore tab, in a real browser."""

import json
import time

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.ui.fake_pipeline import CAPTION, LABEL

pytestmark = [
    pytest.mark.browser,
    # Gradio's queue counts with pandas, which warns that it will change.
    pytest.mark.filterwarnings("ignore:.*no_silent_downcasting.*"),
]


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "cat.png"
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path


def upload(page, photo) -> None:
    page.set_input_files("#photo input[type=file]", str(photo))
    page.wait_for_selector("#photo img")


def finished(page) -> None:
    page.wait_for_selector("#download-picture", state="visible", timeout=20_000)
    page.wait_for_function("document.querySelector('#status').textContent.includes('Restored')")


def sources(page, seconds: float) -> list[str]:
    """What the preview showed meanwhile."""
    seen: list[str] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end and len(seen) < 4:
        source = page.evaluate("document.querySelector('#preview img')?.src")
        if source and source not in seen:
            seen.append(source)
        time.sleep(0.05)
    return seen


def test_from_photo_to_download(page, photo, tmp_path):
    upload(page, photo)
    page.click("#restore")
    page.wait_for_function(
        f"document.querySelector('#belief-lines').textContent.includes('{LABEL}')"
    )
    assert CAPTION not in page.inner_text("#belief-lines")
    page.wait_for_function(
        f"document.querySelector('#belief-lines').textContent.includes('{CAPTION}')"
    )
    assert not page.is_visible("#after")
    assert len(sources(page, 6)) >= 3
    page.wait_for_selector("#entropy-map img[alt*='nats']")
    page.wait_for_selector("#k-map img[alt*='codes']")
    finished(page)
    page.locator("#slider").scroll_into_view_if_needed()
    page.wait_for_function(
        "[...document.querySelectorAll('#slider img')].every(i => i.naturalWidth == 256)"
    )

    with page.expect_download() as download:
        page.click("#download-picture")
    assert download.value.suggested_filename == "cat_pure_x4.png"
    with Image.open(download.value.path()) as sr, Image.open(photo) as lq:
        assert sr.tobytes() == ImageOps.invert(lq.resize((256, 192))).tobytes()
    with page.expect_download() as download:
        page.click("#download-card")
    assert json.loads(download.value.path().read_text())["caption"] == CAPTION

    assert page.watch.foreign == []
    assert page.watch.complaints == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_stop_ends_the_work_and_keeps_the_photo(page, photo, pipeline):
    upload(page, photo)
    page.click("#restore")
    page.wait_for_selector("#entropy-map img")
    page.click("#stop")
    page.wait_for_function("document.querySelector('#status').textContent.includes('Stopped')")
    end = time.monotonic() + 5
    while not pipeline.closed and time.monotonic() < end:
        time.sleep(0.05)
    passes = pipeline.passes
    time.sleep(0.6)
    assert (pipeline.passes, pipeline.closed) == (passes, 1)
    assert passes < pipeline.rows
    assert page.is_visible("#photo img")
    page.click("#restore")  # and it can be done again
    finished(page)


def test_an_edited_caption_is_what_the_next_run_believes(page, photo):
    upload(page, photo)
    page.click("#restore")
    finished(page)
    page.fill("#caption textarea", "A dog in the snow.")
    page.click("#rerun")
    page.wait_for_function(
        "document.querySelector('#belief-lines').textContent.includes('A dog in the snow.')"
    )
    page.wait_for_selector("#after", state="hidden")
    finished(page)
    assert "A dog in the snow." in page.inner_text("#belief-lines")


def test_a_file_that_is_no_photo_is_a_sentence(page, tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"not a picture at all")
    page.set_input_files("#photo input[type=file]", str(path))
    page.wait_for_selector("#fit:has-text('is not a picture that can be read here')")
    page.click("#restore")
    page.wait_for_selector("#status .problem:has-text('is not a picture that can be read here')")
    assert page.is_enabled("#restore")


def test_a_large_photo_can_be_shrunk_in_place(page, tmp_path):
    Image.new("RGB", (640, 400), (10, 90, 60)).save(tmp_path / "large.png")
    upload(page, tmp_path / "large.png")
    page.wait_for_selector("#fit:has-text('640 × 400')")
    page.click("#shrink")
    page.wait_for_selector("#fit", state="hidden")
    page.click("#restore")
    finished(page)


def test_there_is_one_heading_and_everything_has_a_name(page):
    assert page.locator("h1").count() == 1
    assert page.locator("[role=region][aria-label=Photo]").count() == 1
    assert page.locator("[role=region][aria-label=Restoration]").count() == 1
    assert page.get_attribute("#belief-lines", "aria-live") == "polite" or (
        page.locator("#belief-lines [aria-live=polite]").count() == 1
    )


def test_targets_are_large_enough(page):
    for name in ("restore", "stop", "rerun"):
        box = page.locator(f"#{name}").bounding_box()
        assert min(box["width"], box["height"]) >= 44, name
