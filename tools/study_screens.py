"""Make the pictures of the Study and Results tabs in docs/study.md, in the system's Chromium.

The app is the whole one around the study that opens by default; its votes go to a temporary folder.
Code and secret are fixed, so that the same trial is shown again. Needs the packages of
requirements-dev.txt.
"""

import argparse
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from study.design import read_study
from tools.study_demo import EXAMPLES
from tools.study_load import App, as_page

log = logging.getLogger(__name__)

STUDY = EXAMPLES / "study" / "demo.json"
CODE, SECRET = "5" * 32, "0" * 64
TRIAL = 4  # index of the trial that is shown: one of the main ones
DESKTOP, PHONE = (1280, 900), (390, 844)
RESULTS = (1280, 1240)  # headline, figure and table of a result
ANALYSIS_MS = 120_000  # to wait for an analysis at most
SETTLE_MS = 1500  # for figures, which are drawn in steps


def come_to_trial(address: str, study: Path) -> None:
    """Let a participant answer all trials before the one that is shown."""
    ask = as_page(address)
    ask("join", CODE, read_study(study).consent_sha256, True, {})
    for number in range(TRIAL):
        token = ask("next", CODE)["token"]
        answer = {"position": 0, "response_ms": 4000, "viewport_w": 1600}
        ask("vote", CODE, token, answer, f"{number:032x}", "0")


def trial(browser: Any, address: str, size: tuple[int, int], out: Path, *, dark: bool) -> None:
    """A trial in a window, with a picture chosen."""
    context, page = _window(browser, size, dark=dark)
    page.goto(f"{address}/{'?__theme=dark' if dark else ''}#participant={CODE}")
    page.click(".study button:has-text('Continue')")
    if size == PHONE:
        page.click(".study button:has-text('Go on anyway')")
    page.wait_for_selector(".study .stage-place:not(.waiting) canvas")
    page.keyboard.press("2")
    page.wait_for_selector(".study .confirm:enabled")
    _save(page, out)
    context.close()


def result(browser: Any, address: str, mode: str, out: Path) -> None:
    """The result of a simulated study, from its headline on."""
    context, page = _window(browser, RESULTS, dark=False)
    page.goto(address)
    page.get_by_role("tab", name="Results").click()
    page.wait_for_selector("#results-head .note")
    page.click(f"#results-source label:has-text('{mode}')")
    page.wait_for_selector("#results-head .headline", timeout=ANALYSIS_MS)
    page.wait_for_selector("#results-main .js-plotly-plot", timeout=ANALYSIS_MS)
    page.mouse.move(0, 0)  # over a figure it would show that figure's tools
    page.wait_for_timeout(SETTLE_MS)
    page.locator("#results-head").evaluate("node => node.scrollIntoView()")
    _save(page, out)
    context.close()


def _window(browser: Any, size: tuple[int, int], *, dark: bool) -> tuple[Any, Any]:
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        has_touch=size == PHONE,
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce",
    )
    return context, context.new_page()


def _save(page: Any, path: Path) -> None:
    page.screenshot(path=path)
    with Image.open(path) as opened:
        opened.convert("RGB").save(path, optimize=True)
    log.info("wrote %s", path)


def make(out: Path, browser: Any, checkpoint: str = "nano") -> None:
    """Write all pictures. `browser` is Playwright's."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        app = App(STUDY, Path(folder), checkpoint, SECRET)
        app.start()
        try:
            come_to_trial(app.address, STUDY)
            trial(browser, app.address, DESKTOP, out / "study-trial.png", dark=False)
            trial(browser, app.address, PHONE, out / "study-phone.png", dark=True)
            result(browser, app.address, "pick the best", out / "study-picks.png")
            result(browser, app.address, "pairs", out / "study-pairs.png")
        finally:
            app.kill()


def main() -> None:
    """Command line: `python -m tools.study_screens [--out DIR]`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise SystemExit("Chromium is not installed; `apt install chromium` brings it.")
    # Only here: a package of requirements-dev.txt, which importing this must not need.
    from playwright.sync_api import sync_playwright  # noqa: PLC0415

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        make(arguments.out, browser)
        browser.close()


if __name__ == "__main__":
    main()
