"""People judge unnamed restorations: the tab, and the endpoints its page talks to.

What is decided lies in `study.desk`; how it looks and feels in `static/study.js`, which uses the
viewer of `static/viewer.js` as its instrument. The endpoints wait in no queue, so a vote never
stands behind a model, and they are the same for the page and for programs: each takes a
participant's code, and a vote a token that only this server can issue.
"""

import base64
from typing import Any

import gradio as gr

from study import messages
from study.room import Room
from ui.boundary import guarded
from ui.viewer import STATIC

TAB = "study"  # id of the tab
OPEN = "study_"  # what the endpoints' names begin with
# What an owner shares, and a participant's own link, open this tab.
OPENED = f"""() => /^#(study$|participant=)/.test(location.hash)
  ? {{selected: '{TAB}', __type__: 'update'}} : {{__type__: 'update'}}"""


def build(room: Room, *, page: gr.Blocks, tabs: gr.Tabs) -> None:
    """The tab's content and what its parts do.

    Args:
        room: the study.
        page: it is on.
        tabs: among which this one is chosen by a participant's link.
    """
    gr.HTML(
        elem_id="study",
        html_template='<div class="study"></div>',
        css_template=_static("viewer.css") + _static("study.css"),
        js_on_load=script(),
        apply_default_css=False,
    )
    page.load(None, None, [tabs], js=OPENED, api_visibility="private")
    for name, answer in endpoints(room).items():
        gr.api(
            guarded(answer),
            api_name=OPEN + name,
            # Not advertised; a program that has a code may use them like the page.
            api_visibility="undocumented",
            queue=False,
            # Gradio's Python client queues whatever it calls; there it must not be one at a time.
            concurrency_limit=None,
            concurrency_id=TAB,
        )


def script() -> str:
    """The study's script with the viewer's in front of it, as a function."""
    viewer = _static("viewer.js")
    return f"const openViewer = (element, props, watch) => {{\n{viewer}\n}};\n{_static('study.js')}"


def _static(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")


def endpoints(room: Room) -> dict[str, Any]:
    """The handlers by name, plain values in and out; Any because each takes its own."""

    def about() -> dict:
        desk = room.desk
        return messages.about_study(desk.study, closed=desk.closed())

    def join(code: str, consent_sha256: str, adult: bool, about: dict) -> dict:
        progress = room.desk.join(
            messages.read_code(code),
            consent_sha256=str(consent_sha256),
            adult=adult is True,
            about=messages.read_about(about),
        )
        return messages.about_progress(progress)

    def next_(code: str) -> dict:
        desk, code = room.desk, messages.read_code(code)
        screen = desk.next_screen(code)
        if screen is None:
            return {"finished": True, "summary": messages.about_summary(desk.summary(code))}
        return {"finished": False, **messages.about_screen(screen)}

    def pictures(code: str) -> dict:
        # In the answer and not as files: there is no address that could say or keep anything.
        desk, code = room.desk, messages.read_code(code)
        screen = desk.next_screen(code)
        files = desk.pictures(code, screen) if screen else {}
        return {name: base64.b64encode(data).decode() for name, data in files.items()}

    def vote(
        code: str, token: str, answer: dict, event_id: str, session: str, request: gr.Request
    ) -> dict:
        receipt = room.desk.vote(
            messages.read_code(code),
            str(token),
            messages.read_answer(answer),
            event_id=str(event_id),
            session_id=messages.read_session(session),
            address=address(request),
        )
        return messages.about_receipt(receipt)

    def take_break(code: str, session: str) -> None:
        room.desk.take_break(messages.read_code(code), messages.read_session(session))

    def withdraw(code: str) -> dict:
        return {"erased": room.desk.withdraw(messages.read_code(code))}

    def health() -> dict:
        state = room.health()
        if state is None:
            return {"copied": False}
        return {
            "copied": True,
            "pending": state.pending,
            "oldest_seconds": round(state.oldest_seconds, 1),
            "failing": bool(state.error),
        }

    return {
        "about": about,
        "join": join,
        "next": next_,
        "pictures": pictures,
        "vote": vote,
        "break": take_break,
        "withdraw": withdraw,
        "health": health,
    }


def address(request: gr.Request) -> str:
    """The visitor's network address, for counting people per address in memory; never stored."""
    forwarded = request.headers.get("x-forwarded-for", "")
    first = forwarded.split(",")[0].strip()
    return first or (request.client.host if request.client else "")
