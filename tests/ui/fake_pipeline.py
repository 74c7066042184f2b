"""Stands in for the model: says what it sees, paints in rows, counts its passes."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
from PIL import Image, ImageOps

from pure.belief import Belief, BeliefError
from pure.pipeline import (
    Done,
    Event,
    Perceived,
    PureOutput,
    RestoreSettings,
    Row,
    Understood,
)
from pure.sampling import SamplingConfig

LABEL, CAPTION = "Medium blur, small noise.", "A cat on a chair."


class FakePipeline:
    """Inverts the photo's colours; `passes` and `running` are for the tests to look at."""

    def __init__(
        self, rows: int = 4, pause: float = 0.0, name: str = "fake", breaks: bool = False
    ) -> None:
        config = SimpleNamespace(codebook_size=16)
        vq = SimpleNamespace(factor=8, config=config)
        self.checkpoint = SimpleNamespace(
            name=name, is_nano=False, native=32, vq=vq, photos=None, sampling=SamplingConfig()
        )
        self.rows, self.pause, self.breaks = rows, pause, breaks
        self.passes = self.closed = 0
        self.running = 0
        self.most_running = 0
        self._lock = threading.Lock()

    def tiles(self, size: tuple[int, int], scale: int) -> int:
        return max(1, size[0] * scale // 32) * max(1, size[1] * scale // 32)

    def _work(self) -> None:
        with self._lock:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        self.passes += 1
        time.sleep(self.pause)
        with self._lock:
            self.running -= 1

    def stream(
        self, image: Image.Image, settings: RestoreSettings | None = None
    ) -> Iterator[Event]:
        settings = settings or RestoreSettings()
        label = LABEL if settings.label is None else settings.label
        caption = CAPTION if settings.caption is None else settings.caption
        if "<" in label:
            raise BeliefError(f"{label!r} cannot be written with this checkpoint's words")
        size = (image.width * settings.scale, image.height * settings.scale)
        before, after = image.resize(size), ImageOps.invert(image.resize(size))
        entropy = np.full((self.rows, 6), np.nan, np.float32)
        k = np.zeros((self.rows, 6), np.int32)
        try:
            self._work()
            yield Perceived(Belief(label))
            self._work()
            yield Understood(Belief(label, caption))
            if self.breaks:
                raise ZeroDivisionError("secret detail")
            for row in range(self.rows):
                self._work()
                entropy[row], k[row] = np.linspace(0.5, 2.5, 6), np.arange(20, 80, 10)
                height = size[1] * (row + 1) // self.rows
                preview = before.copy()
                preview.paste(after.crop((0, 0, size[0], height)), (0, 0))
                yield Row((row + 1) / self.rows, preview, entropy.copy(), k.copy())
            seconds = {"perceive": 0.1, "understand": 0.2, "restore": 0.3, "finish": 0.0}
            yield Done(
                PureOutput(
                    image=after,
                    belief=Belief(label, caption),
                    codes=np.zeros((self.rows, 6), np.int64),
                    entropy=entropy,
                    k=k,
                    steps=self.rows * 6,
                    passes=self.rows + 2,
                    seconds=seconds,
                    settings=replace(settings, sampling=settings.draw()),
                    checkpoint=self.checkpoint.name,
                )
            )
        finally:
            self.closed += 1
