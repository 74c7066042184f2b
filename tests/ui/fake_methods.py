"""Methods that stand in for real ones: quick, and each recognisable by its pixels."""

import threading
import time
from contextlib import contextmanager
from dataclasses import replace

from PIL import Image, ImageOps

from baselines.base import Method, Restoration, Setting

SCALE = 2


class Fake:
    """Enlarges by nearest, then changes colours as told; may take its time, or fail."""

    text, details = None, {}

    def __init__(self, name, change=None, *, pause=0.0, error=None):
        self.name, self.change, self.pause, self.error = name, change, pause, error
        self.runs = 0

    def restore(self, lq, *, seed=0, options=None):
        self.runs += 1
        self.options = options
        time.sleep(self.pause)
        if self.error is not None:
            raise self.error
        size = (lq.width * SCALE, lq.height * SCALE)
        image = lq.resize(size, Image.Resampling.NEAREST)
        image = self.change(image) if self.change else image
        return Restoration(image, self.name, seed, 0.25, self.text, self.details)


def fake(name, change=None, *, reason=None, variant_of=None, parameters=None, **how) -> Method:
    """A method's card; `reason` is why it is not available."""
    restorer = Fake(name, change, **how)
    return Method(
        name,
        f"The {name}",
        "other",
        SCALE,
        lambda device: restorer,
        missing=lambda: reason,
        parameters=parameters,
        variant_of=variant_of,
    )


def speaking(name="speaking", **changes) -> Method:
    """A method that says what it saw, and has settings of each kind."""
    restorer = Fake(name)
    restorer.text, restorer.details = "a <b>dog</b>", {"prompt": "a <b>dog</b>, sharp"}
    card = Method(
        name,
        f"The {name}",
        "other",
        SCALE,
        lambda device: restorer,
        licence="Free <for> all",
        source="Somebody, 2024",
        settings=(
            Setting("tags", "Tags", None),
            Setting("steps", "Steps", 50, lowest=1, highest=100, step=1),
            Setting("colours", "Colours", "adain", choices=("adain", "none")),
        ),
        options=dict,
    )
    return replace(card, **changes)


def by_name(*methods: Method) -> dict[str, Method]:
    return {method.name: method for method in methods}


class FakeShelf:
    """Loads what it is asked for, and counts who is in."""

    device = "cpu"

    def __init__(self):
        self.inside = self.most_inside = 0
        self._lock = threading.Lock()

    @contextmanager
    def use(self, method):
        with self._lock:
            self.inside += 1
            self.most_inside = max(self.most_inside, self.inside)
        try:
            yield method.load(self.device)
        finally:
            with self._lock:
                self.inside -= 1


def three() -> dict[str, Method]:
    """One that enlarges, one that inverts, one that mirrors."""
    return by_name(
        fake("plain"),
        fake("inverted", ImageOps.invert, parameters=1000),
        fake("mirrored", ImageOps.mirror),
    )
