"""A study with real pictures, the app around it, and a participant who uses its endpoints."""

import secrets
import socket
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from PIL import Image, PngImagePlugin

from study.design import write_study
from study.new import NewStudy, make_study
from study.room import Room, StudyPlace
from tests.study.studies import results_folder
from tests.ui.fake_methods import FakeShelf, three
from tests.ui.fake_pipeline import FakePipeline
from ui.boundary import Model
from ui.compare_tab import Bench
from ui.settings import Settings

# Words that occur nowhere else in the app, so that finding one means a leak.
SECRETS = ("zebranet", "okapigan", "tapirdiff")


def study_file(folder: Path, *, mode="pick_best", methods=SECRETS, images=6, **values) -> Path:
    """Make a study in a folder; its source files say in their metadata which method made them."""
    results = results_folder(folder / "lake", methods, images)
    for method in methods:
        for path in (results / method).iterdir():
            text = PngImagePlugin.PngInfo()
            text.add_text("method", method)
            with Image.open(path) as image:
                image.save(path, pnginfo=text)
    file = folder / "study.json"
    design = {"min_view_ms": 300, "viewport_min_px": 800, "golden": 3, "training": 1, "repeats": 1}
    criteria = values.pop("criteria", ("overall",))
    design |= values.pop("design", {})
    study, _ = make_study(
        NewStudy(
            (results,), file, mode=mode, methods=tuple(methods), criteria=criteria, design=design
        )
    )
    write_study(replace(study, **values), file)
    return file


def room_of(file: Path) -> Room:
    return Room(StudyPlace(file, app_version="test"))


def launch(app, room: Room):
    """The whole app around a study, at a free port: (page, address).

    It keeps its files to itself: an app that ends deletes those of others under the same name.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(room._place.study_file.parent / "gradio"))
        return _launch(app, room)


def _launch(app, room: Room):
    page = app.compose(Model(FakePipeline()), Bench(three(), FakeShelf()), Settings(), room)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    _, address, _ = page.launch(
        **app.launch_options(Settings()), prevent_thread_lock=True, quiet=True, server_port=port
    )
    return page, address


class RefusedError(Exception):
    """The server's sentence."""


class Participant:
    """Does what the page does, over HTTP."""

    def __init__(self, address: str) -> None:
        self.http = httpx.Client(base_url=address, timeout=60)
        self.code = secrets.token_hex(16)
        self.session = secrets.token_hex(8)

    def call(self, name, *data):
        answer = self.http.post(f"gradio_api/run/study_{name}", json={"data": data})
        if answer.status_code != 200:
            raise RefusedError(answer.json()["error"])
        return answer.json()["data"][0]

    def join(self, **about):
        consent = self.call("about")["consent_sha256"]
        return self.call("join", self.code, consent, True, about)

    def next(self):
        return self.call("next", self.code)

    def vote(self, screen, position=0, event_id=None, **changes):
        answer = {"position": position, "response_ms": 4000, "viewport_w": 1600} | changes
        event_id = event_id or secrets.token_hex(16)
        return self.call("vote", self.code, screen["token"], answer, event_id, self.session)

    def finish(self):
        """Vote until the end; the own result."""
        while not (screen := self.next())["finished"]:
            self.vote(screen)
        return screen["summary"]
