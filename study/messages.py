"""What a page may say to the desk and what it is told, as plain JSON.

Whatever comes in is a stranger's: it is checked here, key by key, before anything is stored. What
goes out is a closed list, too, so that no name of a method can slip into it.
"""

from collections.abc import Mapping
from typing import Any, TypeGuard

from study.design import Study
from study.desk import Answer, DeskError, Progress, Receipt, Screen, Summary
from study.votes import SKIP, TIE

CODE_DIGITS = 32
LONGEST_MS = 24 * 3_600_000  # of looking at one trial
LARGEST_PX = 100_000  # of a window, a screen
LARGEST_RATIO = 64.0  # of zoom, and of device pixels to CSS pixels
PANELS_MAX = 16
FLAGS = ("hidden_tab",)  # facts that only the page knows

# Self-report, never required, and what a browser says of its screen. Closed lists: nobody can put
# a name or a text of their own into the log.
ABOUT = {
    "vision": ("normal", "corrected", "uncorrected", "colour_deficient"),
    "expertise": ("naive", "expert"),
    "display": ("laptop", "monitor", "tablet", "phone"),
    "gamut": ("srgb", "p3", "rec2020"),
    "pointer": ("fine", "coarse"),
}
ABOUT_SIZES = ("screen_w", "screen_h")

# What is asked, and what it means, by criterion.
QUESTIONS = {
    "overall": (
        "Which is the best restoration of the input?",
        "Judge both together: true to the input in colours, structure and texture, and natural, "
        "with plausible detail.",
    ),
    "consistency": (
        "Which is most true to the input?",
        "Only this counts now: colours, structures and textures as the input has them, nothing "
        "made up.",
    ),
    "quality": (
        "Which looks best?",
        "Only this counts now: natural, clear, with plausible detail, whatever the input looks "
        "like.",
    ),
}


def read_code(value: Any) -> str:
    """A participant's code: 32 hexadecimal digits.

    Raises:
        DeskError: it is none.
    """
    code = value.strip().lower() if isinstance(value, str) else ""
    if len(code) != CODE_DIGITS or not set(code) <= set("0123456789abcdef"):
        raise DeskError(
            f"A participant's code has {CODE_DIGITS} digits, 0 to 9 and a to f. Reload the page "
            "to begin."
        )
    return code


def read_about(value: Any) -> dict[str, Any]:
    """What someone says about themselves and their screen; what is not on the lists is dropped."""
    if not isinstance(value, Mapping):
        return {}
    about: dict[str, Any] = {
        key: value[key] for key, allowed in ABOUT.items() if value.get(key) in allowed
    }
    for key in ABOUT_SIZES:
        if _is_number(value.get(key)) and 0 < value[key] <= LARGEST_PX:
            about[key] = int(value[key])
    return about


def read_answer(value: Any) -> Answer:
    """A vote as the page sent it.

    Raises:
        DeskError: a part of it is not what it should be.
    """
    if not isinstance(value, Mapping):
        raise DeskError("An answer is an object with position, response_ms and how it was seen.")
    position = value.get("position")
    if position not in (TIE, SKIP) and (
        isinstance(position, bool) or not isinstance(position, int)
    ):
        raise DeskError(f"Choose a panel, {TIE} or {SKIP}, not {str(position)[:20]!r}.")
    zoomed = value.get("zoomed", [])
    if not (
        isinstance(zoomed, list)
        and len(zoomed) <= PANELS_MAX
        and all(isinstance(panel, bool) for panel in zoomed)
    ):
        raise DeskError("zoomed is a list of true and false, one for each panel.")
    flags = value.get("flags", [])
    if not (isinstance(flags, list) and all(flag in FLAGS for flag in flags)):
        raise DeskError(f"flags are some of {', '.join(FLAGS)}.")
    return Answer(
        position=position,
        response_ms=int(_number(value, "response_ms", 0, LONGEST_MS)),
        zoomed=tuple(zoomed),
        zoom_max=_number(value, "zoom_max", 1, LARGEST_RATIO, 1.0),
        viewport_w=int(_number(value, "viewport_w", 0, LARGEST_PX, 0)),
        viewport_h=int(_number(value, "viewport_h", 0, LARGEST_PX, 0)),
        dpr=_number(value, "dpr", 0, LARGEST_RATIO, 1.0),
        flags=tuple(sorted(set(flags))),
    )


def read_session(value: Any) -> str:
    """Which sitting: up to 32 hexadecimal digits, made by the page.

    Raises:
        DeskError: it is something else.
    """
    if not (isinstance(value, str) and 0 < len(value) <= CODE_DIGITS):
        raise DeskError("A sitting has an id of up to 32 digits. Reload the page.")
    if not set(value) <= set("0123456789abcdef"):
        raise DeskError("A sitting's id has digits 0 to 9 and a to f only. Reload the page.")
    return value


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(
    values: Mapping[str, Any], key: str, low: float, high: float, default: float | None = None
) -> float:
    value = values.get(key, default)
    if not _is_number(value) or not low <= value <= high:
        raise DeskError(f"{key} is a number from {low:g} to {high:g}.")
    return float(value)


def about_study(study: Study, *, closed: bool) -> dict[str, Any]:
    """What someone is told before they consent."""
    return {
        "title": study.title,
        "study_hash": study.hash,
        "consent": study.consent.text,
        "consent_sha256": study.consent_sha256,
        "consent_version": study.consent.version,
        "mode": study.mode,
        "blocks": len(study.criteria),
        "minutes": study.design.session_minutes,
        "viewport_min_px": study.design.viewport_min_px,
        "small_viewport": study.design.small_viewport,
        "closed": closed,
    }


def about_progress(progress: Progress) -> dict[str, Any]:
    """How far someone is."""
    return {"done": progress.done, "total": progress.total}


def about_screen(screen: Screen) -> dict[str, Any]:
    """A trial as the page shows it."""
    question, meaning = QUESTIONS[screen.criterion]
    return {
        "token": screen.token,
        "index": screen.index,
        "total": screen.total,
        "training": screen.training,
        "mode": screen.mode,
        "criterion": screen.criterion,
        "question": question,
        "meaning": meaning,
        "panels": list(screen.panels),
        "input": screen.input,
        "min_view_ms": screen.min_view_ms,
        "break_before": screen.break_before,
    }


def about_receipt(receipt: Receipt) -> dict[str, Any]:
    """What became of a vote."""
    return {
        "outcome": receipt.outcome,
        "position": receipt.position,
        "correct": receipt.correct,
        "row_hash": receipt.row_hash,
    }


def about_summary(summary: Summary) -> dict[str, Any]:
    """A participant's own result, most picked first."""
    picks = sorted(summary.picks.items(), key=lambda item: -item[1])
    return {
        "agreeing": summary.agreeing,
        "repeated": summary.repeated,
        "golden_passed": summary.golden_passed,
        "golden": summary.golden,
        "picks": [{"method": method, "times": times} for method, times in picks],
    }
