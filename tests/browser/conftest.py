"""A real browser in front of the app around a fake model."""

import importlib
import os
import shutil
import socket
import sys

import pytest

from tests.ui.fake_methods import FakeShelf, three
from tests.ui.fake_pipeline import FakePipeline
from ui.boundary import Model
from ui.compare_tab import Bench
from ui.settings import Settings

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="session")
def browser():
    """The system's Chromium, without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        missing = "Chromium is not installed; `apt install chromium` brings it."
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"], headless=True
        )
        yield browser
        browser.close()


@pytest.fixture
def pipeline():
    """Slow enough to be watched: a run takes about three seconds."""
    return FakePipeline(rows=14, pause=0.2)


@pytest.fixture
def methods():
    """What can be compared."""
    return three()


@pytest.fixture
def address(checkpoint_folder, pipeline, methods, monkeypatch, tmp_path):
    """Of the app around that pipeline and those methods."""
    # of its own: an app that ends deletes its files, whose names come from their contents
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setenv("PURE_CHECKPOINT", str(checkpoint_folder))
    monkeypatch.setenv("PURE_DEVICE", "cpu")
    sys.modules.pop("app", None)
    app = importlib.import_module("app")
    settings = Settings()
    page = app.compose(Model(pipeline), Bench(methods, FakeShelf()), settings)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    _, url, _ = page.launch(
        **app.launch_options(settings), prevent_thread_lock=True, quiet=True, server_port=port
    )
    yield url
    page.close()


class Watch:
    """What a page asked for and complained about."""

    def __init__(self, page) -> None:
        self.foreign: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self._asked(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._said)

    def _asked(self, url: str) -> None:
        if not url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            self.foreign.append(url)

    def _said(self, message) -> None:
        if message.type == "error":
            self.complaints.append(message.text)


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desktop", "phone"])
def page(browser, address, request):
    """The app, opened; `page.watch` has seen everything since."""
    width, height = request.param
    context = browser.new_context(
        viewport={"width": width, "height": height}, accept_downloads=True, has_touch=width < 800
    )
    page = context.new_page()
    page.watch = Watch(page)
    page.goto(address)
    page.wait_for_selector("#restore")
    yield page
    context.close()
