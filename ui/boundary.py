"""What stands between the handlers and the world: errors, the one model, the GPU lease.

A handler may raise what it likes. Sentences made for people are shown as they are; anything else
goes to the log under a reference, and only the reference is shown.
"""

import html
import inspect
import logging
import secrets
import threading
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, Protocol

import gradio as gr
from PIL import Image

from baselines.base import MethodError, MethodUnavailableError, SettingError
from imaging.load import PhotoError
from pure.ahead import Blocks, capacities
from pure.belief import BeliefError
from pure.checkpoint import RELEASED_ID, CheckpointError
from pure.pipeline import Done, Event, PurePipeline, RestoreError, RestoreSettings
from pure.sampling import SamplingConfig, SamplingError
from study.blinding import TokenError
from study.design import StudyError
from study.desk import DeskError
from study.store import WithdrawnError
from study.votes import VotesError


class CompareError(ValueError):
    """A comparison that cannot be made; the message says what to choose instead."""


VISITOR_ERRORS = (
    PhotoError,
    RestoreError,
    BeliefError,
    SamplingError,
    CheckpointError,
    MethodError,
    MethodUnavailableError,
    SettingError,
    CompareError,
    DeskError,
    TokenError,
    StudyError,
    WithdrawnError,
    VotesError,
)

# Seconds a token takes to be written, for estimates before the first run has been timed. Not those
# of a pass: how many tokens a pass decides depends on decoder and photo.
# Nano: measured on two busy CPU cores. On a GPU: a guess for 7B in bfloat16, to be measured.
CPU_SECONDS_PER_TOKEN = 0.006
GPU_SECONDS_PER_TOKEN = 0.03
TEXT_TOKENS = 60  # label and caption, roughly
LEASE_MARGIN = 1.3  # a lease that runs out loses the picture
COMPILE_SECONDS = 600  # of a GPU, to compile a block; a guess
LEASE_SECONDS = 15  # never less: waking up takes a while

logger = logging.getLogger(__name__)


class Pipeline(Protocol):
    """What the pages need of `pure.pipeline.PurePipeline`."""

    checkpoint: Any  # name, is_nano, native, vq: read in `Model` only

    def stream(
        self, image: Image.Image, settings: RestoreSettings | None = None
    ) -> Iterator[Event]: ...

    def tiles(self, size: tuple[int, int], scale: int) -> int: ...


def shown(error: Exception) -> gr.Error:
    """The error a visitor sees, HTML escaped; logs what is not meant for visitors."""
    if isinstance(error, gr.Error):
        return error  # it has been through here, or Gradio made it for visitors
    if isinstance(error, VISITOR_ERRORS):
        message = sentence(str(error))
    else:
        reference = secrets.token_hex(3)
        logger.error("reference %s", reference, exc_info=error)
        message = f"Something broke on our side (reference {reference})."
    return gr.Error(html.escape(message, quote=False), print_exception=False)


def sentence(text: str) -> str:
    """With a capital at the start and a full stop at the end."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?", ")")) else ".")


def guarded(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler, plain or a generator, whose every error is one a visitor may see."""
    if inspect.isgeneratorfunction(handler):

        @wraps(handler)
        def stream(*args: Any, **kwargs: Any) -> Iterator[Any]:
            try:
                yield from handler(*args, **kwargs)
            except Exception as error:
                raise shown(error) from error

        return stream

    @wraps(handler)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return handler(*args, **kwargs)
        except Exception as error:
            raise shown(error) from error

    return call


class Model:
    """The one loaded checkpoint, which one visitor at a time may use.

    The queue of the page lets one run in. The lock here is for whatever gets past it: it is held
    for one event at a time, never between two, so that a run somebody left cannot block the rest.
    """

    def __init__(self, pipeline: Pipeline, *, device: str = "cpu") -> None:
        self._pipeline = pipeline
        self._lock = threading.Lock()
        checkpoint = pipeline.checkpoint
        self.name: str = checkpoint.name
        self.note = describe(checkpoint)
        self.native: int = checkpoint.native
        self.factor: int = checkpoint.vq.factor
        self.codes: int = checkpoint.vq.config.codebook_size
        self.sampling: SamplingConfig = checkpoint.sampling
        self.seconds_per_token = CPU_SECONDS_PER_TOKEN if device == "cpu" else GPU_SECONDS_PER_TOKEN
        self._leased = lease(self._stream, self.lease_seconds)

    def stream(self, image: Image.Image, settings: RestoreSettings) -> Iterator[Event]:
        """Restore a photo; closing the iterator ends the work after the event under way.

        Raises:
            gr.Error: whatever happened, as a visitor may see it.
        """
        events = self._leased(image, settings)
        try:
            while True:
                with self._lock:
                    event = next(events, None)
                if event is None:
                    return
                if isinstance(event, Done) and event.output.steps:
                    self.seconds_per_token = sum(event.output.seconds.values()) / event.output.steps
                yield event
        finally:
            events.close()

    def _stream(self, image: Image.Image, settings: RestoreSettings) -> Iterator[Event]:
        # guarded on this side of the lease, too: only gr.Error keeps its text on the way back
        yield from guarded(self._pipeline.stream)(image, settings)

    def tokens(self, size: tuple[int, int], scale: int) -> int:
        """Tokens that are written to restore a photo of a size, roughly."""
        per_tile = (self.native // self.factor) ** 2
        return self._pipeline.tiles(size, scale) * per_tile + TEXT_TOKENS

    def seconds(self, size: tuple[int, int], scale: int) -> float:
        """How long that takes, at the pace of the last run."""
        return self.tokens(size, scale) * self.seconds_per_token

    def lease_seconds(self, image: Image.Image, settings: RestoreSettings) -> int:
        """Seconds of GPU to ask for; takes what the leased function takes."""
        seconds = self.seconds(image.size, settings.scale) * LEASE_MARGIN
        return max(LEASE_SECONDS, round(seconds))


def describe(checkpoint: Any) -> str:
    """What a checkpoint is, in a few words that claim nothing; empty if only its name is known."""
    if checkpoint.is_nano:
        number = f" on {checkpoint.photos:,} photographs" if checkpoint.photos else ""
        return f"a small checkpoint trained by this project{number}; not the paper's 7B model"
    return "PURE 7B (released weights)" if checkpoint.name == RELEASED_ID else ""


def compile_ahead(pipeline: PurePipeline) -> bool:
    """Compile a block of the pipeline's transformer, on ZeroGPU within a lease; whether it worked.

    Where it does not, restorations run as if nobody had tried.
    """
    blocks, engine = Blocks(), pipeline.engine
    there = blocks.prepare(
        engine,
        capacities(pipeline.checkpoint),
        lease=lambda work: lease(work, lambda: COMPILE_SECONDS),
    )
    if there:
        engine.record = blocks.record
    return there


def lease(function: Callable[..., Any], duration: Callable[..., int]) -> Any:
    """The function with a GPU around it on ZeroGPU; elsewhere the very same function."""
    try:
        import spaces
    except ImportError:
        return function
    return spaces.GPU(duration=duration)(function)
