"""PurePipeline: a photo in; label, caption and restored photo out.

Enlarges the photo as published (bicubic), reads and writes it in tiles of the model's native
size, and puts the result together. One grid of codes covers the whole photo: a tile keeps the
codes its finished neighbours wrote in the overlap and continues from them, so every code is
decided once and neighbours agree. Tiles that do not depend on each other are written together,
which changes nothing but the time. One belief holds for the whole photo: the label is the
median over tiles spread across it, the caption is written from the whole photo made small.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imaging import colour, convert, tiling
from pure.belief import LEVELS, Belief, BeliefError, label_text
from pure.checkpoint import Checkpoint, load
from pure.decode import PARALLEL, PLAIN, Conversation, DecoderConfig, write
from pure.engine import Engine, Precision
from pure.grammar import Grid, Phase
from pure.picture import Picture, Step
from pure.sampling import SamplingConfig
from pure.vocab import GRID_PIXELS

Guidance = Literal["full", "perception", "understanding", "none"]
ColourFix = Literal["wavelet", "adain", "none"]
SCALES = (1, 2, 3, 4)
MAX_OUTPUT_PIXELS = 4096 * 4096
OVERLAP = 4  # tiles share a quarter of their side; less shows seams, more costs time
LABEL_TILES = 9  # at most this many tiles are asked for the label
READINGS_BYTES = 2**29  # of caches of tiles that were read for the label, until they are written
PREVIEW_SECONDS = 0.4
PREVIEW_SHARE = 0.4  # of the time between two may go to a preview, on a slow or busy machine
MAX_SEED = 2**63 - 1


class RestoreError(ValueError):
    """A photo or an option that cannot be used; the message says what to change."""


@dataclass(frozen=True)
class RestoreSettings:
    """Everything besides the photo that decides the result.

    Attributes:
        scale: how many times larger the result is, 1 to 4.
        seed: of the sampling; 0 or more.
        sampling: how codes are drawn. As text ("dynamic", "top1", "topk:K") with the checkpoint's
            own guidance scale.
        guidance: what stands before the picture: label and caption ("full"), one of them, or
            nothing. The rows of the paper's Table 5. In "understanding" the caption is
            written after the label, which is then left out.
        colour_fix: how low frequencies are taken over from the input.
        label: used instead of the model's own perception, if given.
        caption: used instead of the model's own understanding, if given.
    """

    scale: int = 4
    seed: int = 0
    sampling: SamplingConfig | str = "dynamic"
    guidance: Guidance = "full"
    colour_fix: ColourFix = "wavelet"
    label: str | None = None
    caption: str | None = None

    def __post_init__(self) -> None:
        self.draw()  # so that text which says nothing fails here
        if self.scale not in SCALES:
            raise RestoreError(f"the scale is {SCALES[0]} to {SCALES[-1]}, not {self.scale}")
        if not 0 <= self.seed <= MAX_SEED:
            raise RestoreError(f"the seed is a whole number from 0 to {MAX_SEED}, not {self.seed}")
        if self.guidance not in get_args(Guidance):
            raise RestoreError(
                f"guidance is {', '.join(get_args(Guidance))}, not {self.guidance!r}"
            )
        if self.colour_fix not in get_args(ColourFix):
            raise RestoreError(
                f"the colour fix is {', '.join(get_args(ColourFix))}, not {self.colour_fix!r}"
            )

    def draw(self, own: SamplingConfig | None = None) -> SamplingConfig:
        """How codes are drawn by a checkpoint with this sampling of its own."""
        if isinstance(self.sampling, SamplingConfig):
            return self.sampling
        return SamplingConfig.parse(self.sampling, own)


@dataclass(frozen=True)
class PureOutput:
    """A restored photo and how it came about.

    Attributes:
        image: RGB, 8 bit, `scale` × the input.
        belief: label and caption the picture was restored under; empty where left out.
        codes: (rows, columns) int64, the code grid of the result.
        entropy: (rows, columns) float32, nats, of each code's distribution.
        k: (rows, columns) int32, candidates kept for each code.
        steps: tokens written, text and every tile's picture.
        passes: runs of the transformer; how many depends on the decoder, the result does not.
        seconds: wall clock of "perceive", "understand", "restore" and "finish".
        checkpoint: name of the model.
        decoder: how the picture was written.
    """

    image: Image.Image
    belief: Belief
    codes: np.ndarray
    entropy: np.ndarray
    k: np.ndarray
    steps: int
    passes: int
    seconds: dict[str, float]
    settings: RestoreSettings
    checkpoint: str
    decoder: DecoderConfig = PLAIN

    @property
    def approximate(self) -> bool:
        """Whether the decoder was an approximate one; then this must be said with the picture."""
        return self.decoder.approximate


@dataclass(frozen=True)
class Perceived:
    """The degradation label is there; empty where nothing depends on it."""

    belief: Belief


@dataclass(frozen=True)
class Understood:
    """The caption is there, too."""

    belief: Belief


@dataclass(frozen=True)
class Row:
    """A row of codes of one tile is finished.

    Attributes:
        done: share of all codes decided, 0 to 1.
        preview: the photo so far over the enlarged input, at the result's size, or None when
            the last preview is recent or the result follows at once.
        entropy: as in `PureOutput`, NaN where not decided yet.
        k: as in `PureOutput`, 0 where not decided yet.
    """

    done: float
    preview: Image.Image | None
    entropy: np.ndarray
    k: np.ndarray


@dataclass(frozen=True)
class Done:
    """The restoration is complete."""

    output: PureOutput


Event = Perceived | Understood | Row | Done


class PurePipeline:
    """Restores photos with one checkpoint. Not safe for use by two threads at once.

    The reading of the last photo of one tile is kept, so that restoring it again with another
    seed, other sampling or an edited belief reads only what has changed. `forget` frees it.

    Args:
        checkpoint: what to restore with.
        precision: of the transformer's weights, as in `Engine`; None keeps the checkpoint's.
    """

    def __init__(self, checkpoint: Checkpoint, *, precision: Precision | None = None) -> None:
        self.checkpoint = checkpoint
        self.engine = Engine(
            checkpoint.model, checkpoint.grammar.vocab.code_ids, precision=precision
        )
        self._kept: Conversation | None = None

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path = "nano",
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        precision: Precision | None = None,
    ) -> "PurePipeline":
        """Load a checkpoint: "nano", a folder in the released format, or a hub id.

        Raises:
            CheckpointError: it cannot be loaded.
        """
        return cls(load(path_or_id, device=device, dtype=dtype), precision=precision)

    @property
    def decoder(self) -> DecoderConfig:
        """How pictures are written if nobody says: in parallel where that gives the same ids."""
        return PARALLEL if self.engine.exact else PLAIN

    def forget(self) -> None:
        """Free the reading of the last photo."""
        self._kept = None

    def restore(
        self,
        image: Image.Image,
        settings: RestoreSettings | None = None,
        *,
        decoder: DecoderConfig | None = None,
        draft: "Image.Image | PureOutput | None" = None,
    ) -> PureOutput:
        """Restore an upright RGB photo; the last event of `stream`, and arguments as there.

        Raises:
            RestoreError: the photo is too large, or the draft is of another photo's size.
            BeliefError: a given label or caption cannot be written by this checkpoint.
        """
        for event in self.stream(
            image, settings, preview_seconds=None, decoder=decoder, draft=draft
        ):
            if isinstance(event, Done):
                return event.output
        raise AssertionError("the stream ended without a result")

    def stream(
        self,
        image: Image.Image,
        settings: RestoreSettings | None = None,
        *,
        preview_seconds: float | None = PREVIEW_SECONDS,
        decoder: DecoderConfig | None = None,
        draft: "Image.Image | PureOutput | None" = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Event]:
        """Restore a photo, telling what happens. Closing the iterator stops the work.

        Args:
            image: upright RGB, as `imaging.load.read_photo` gives it.
            settings: the defaults if not given.
            preview_seconds: shortest time between previews, longer where they would take more than
                `PREVIEW_SHARE` of it; 0 for one with every row, None for none. The first comes
                with the first row, none with the last.
            decoder: how the picture is written; `self.decoder` if not given. It changes the time
                and not the result, except in half precision, where rounding does.
            draft: a guess of the result for the parallel decoder: another method's restoration,
                or an earlier output for the same photo and scale. Better guesses save passes; the
                result does not depend on it. The photo itself if not given.
            stop: asked before every pass; when it says so, the stream ends without `Done`.

        Raises:
            RestoreError, BeliefError: as in `restore`, before the first event.
        """
        work = _Restoration(self, image, settings or RestoreSettings(), draft)
        yield from self._run(work, preview_seconds, decoder or self.decoder, stop)

    def reroll(
        self,
        image: Image.Image,
        output: PureOutput,
        box: tuple[int, int, int, int],
        settings: RestoreSettings,
        *,
        keep_below: bool = True,
        decoder: DecoderConfig | None = None,
        preview_seconds: float | None = PREVIEW_SECONDS,
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Event]:
        """Restore a part of a photo again, for example with another seed or other sampling.

        Codes are written in raster order and know only what precedes them. What lies beside and
        above the box is kept; what lies below it is kept, or written again with the noise it had,
        so that it may answer to the new content.

        Args:
            image: the photo of `output`.
            output: what to change.
            box: left, top, right, bottom in pixels of the result; cells it touches are redone.
            settings: of the new part. Scale, label and caption are those of `output`.
            keep_below: keep the rows below the box.
            decoder: as in `stream`.
            preview_seconds: as in `stream`.
            stop: as in `stream`.

        Raises:
            RestoreError: the box holds no cell, or `output` is not of this photo.
        """
        settings = replace(
            settings,
            scale=output.settings.scale,
            guidance=output.settings.guidance,
            label=output.belief.label,
            caption=output.belief.caption,
        )
        work = _Restoration(self, image, settings, output)
        work.start_from(output, box, keep_below=keep_below)
        yield from self._run(work, preview_seconds, decoder or self.decoder, stop)

    def restore_together(
        self,
        jobs: Sequence[tuple[Image.Image, RestoreSettings]],
        *,
        decoder: DecoderConfig | None = None,
    ) -> list[PureOutput]:
        """Restore several photos, or one with several seeds, in passes they share.

        Each result is the one `restore` gives alone, as far as the kernels round alike for more
        rows (`Engine.reproducible`). A photo that occurs again is read once. Every job has caches
        of its own, so memory decides how many to give.

        Args:
            jobs: photos and settings; they share one sampling.
            decoder: as in `stream`. Each result's passes and seconds are those of all together.

        Raises:
            RestoreError: as in `restore`, or two jobs draw codes in different ways.
        """
        decoder = decoder or self.decoder
        works = [_Restoration(self, image, settings) for image, settings in jobs]
        if any(work.sampling != works[0].sampling for work in works):
            raise RestoreError("Photos restored together share one sampling: give all the same.")
        texts: list[list[int]] = []
        beliefs: list[Belief] = []
        for number, work in enumerate(works):
            for other in works[:number]:
                if other.whole is not None and other.canvas == work.canvas:
                    work.reuse(other.whole.fork())
                    break
            work.read()
            belief, text = work.believe()
            beliefs.append(belief)
            texts.append(text)
        waves = [_waves(work.tiles, decoder.batch) for work in works]
        while any(wave := [next(w, []) for w in waves]):
            owners: list[_Restoration] = []
            parts: list[_Part] = []
            for work, text, tiles in zip(works, texts, wave, strict=True):
                begun = work.begin(tiles, text)
                parts += begun
                owners += [work] * len(begun)
            for number, step in write(self.engine, [part.picture for part in parts], decoder):
                owners[number].note(step, parts[number])
        return [work.output(b, decoder) for work, b in zip(works, beliefs, strict=True)]

    def _run(
        self,
        work: "_Restoration",
        preview_seconds: float | None,
        decoder: DecoderConfig,
        stop: Callable[[], bool],
    ) -> Iterator[Event]:
        """The events of a restoration; unless it completes, nothing of it is kept."""
        kept, self._kept = self._kept, None
        if kept is not None:
            work.reuse(kept)
        work.stop = stop
        try:
            for event in work.events(preview_seconds, decoder):
                if isinstance(event, Done) and len(work.tiles) == 1:
                    self._kept = work.whole
                yield event
        except _StoppedError:
            return

    def tiles(self, size: tuple[int, int], scale: int) -> int:
        """Sequences it takes to restore a photo of `size` (width, height)."""
        return tile_count(
            size, scale, native=self.checkpoint.native, factor=self.checkpoint.vq.factor
        )


def tile_count(size: tuple[int, int], scale: int, *, native: int, factor: int) -> int:
    """Sequences it takes to restore a photo of `size` (width, height), without any weights.

    Args:
        size: of the photo.
        scale: of the result.
        native: side in pixels of the picture one sequence restores.
        factor: pixels a side of a code.
    """
    canvas = _canvas((size[0] * scale, size[1] * scale), native)
    return len(_plan(canvas, native, factor))


def _canvas(size: tuple[int, int], native: int) -> tuple[int, int]:
    """Smallest size a photo is padded to: whole grid units, and at least one native tile."""
    width, height = (max(native, -(-side // GRID_PIXELS) * GRID_PIXELS) for side in size)
    return width, height


def _plan(canvas: tuple[int, int], native: int, factor: int) -> list[tiling.Tile]:
    return tiling.plan(canvas, native, native // OVERLAP, multiple=factor)


def _waves(tiles: list[tiling.Tile], most: int) -> Iterator[list[tiling.Tile]]:
    """Tiles in groups of at most `most` that do not depend on each other, in an order that works.

    A tile depends on the earlier tiles it overlaps, because it keeps the codes they wrote.
    """
    levels: list[int] = []
    for tile in tiles:
        before = [
            level for level, other in zip(levels, tiles, strict=False) if _overlap(tile, other)
        ]
        levels.append(1 + max(before, default=-1))
    for level in range(max(levels) + 1):
        wave = [tile for tile, own in zip(tiles, levels, strict=True) if own == level]
        for start in range(0, len(wave), most):
            yield wave[start : start + most]


def _overlap(one: tiling.Tile, other: tiling.Tile) -> bool:
    a, b = one.box, other.box
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@dataclass(frozen=True)
class _Part:
    """A tile that is being written.

    Attributes:
        window: its rows and columns in the grid of the photo.
        seen: codes of the input there.
    """

    tile: tiling.Tile
    window: tuple[slice, slice]
    picture: Picture
    seen: Tensor


class _StoppedError(Exception):
    """Somebody said stop; never leaves this module."""


class _Restoration:
    """One photo on its way through the model."""

    def __init__(
        self,
        pipeline: PurePipeline,
        image: Image.Image,
        settings: RestoreSettings,
        draft: Image.Image | PureOutput | None = None,
    ) -> None:
        if image.mode != "RGB":
            raise ValueError(f"expected an RGB picture, got {image.mode}")
        width, height = (side * settings.scale for side in image.size)
        if width * height > MAX_OUTPUT_PIXELS:
            raise RestoreError(
                f"The photo is {image.width} × {image.height}; {settings.scale}× larger it would "
                f"have {width * height / 1e6:.0f} megapixels. The limit is "
                f"{MAX_OUTPUT_PIXELS / 1e6:.0f}: crop the photo or choose a smaller scale."
            )
        checkpoint = self.checkpoint = pipeline.checkpoint
        self.sampling = settings.draw(pipeline.checkpoint.sampling)
        self.engine, self.settings = pipeline.engine, replace(settings, sampling=self.sampling)
        self.size = (width, height)
        self.enlarged = convert.resize(image, self.size)
        self.native, self.factor = checkpoint.native, checkpoint.vq.factor
        self.canvas = _pad(self.enlarged, _canvas(self.size, self.native))
        self.tiles = _plan(self.canvas.size, self.native, self.factor)
        rows, columns = self.canvas.height // self.factor, self.canvas.width // self.factor
        self.codes = torch.full((rows, columns), -1)
        self.positions = torch.arange(rows * columns).view(rows, columns)
        self.seeds: int | Tensor = settings.seed
        self.guess = self._read_draft(draft)
        self.entropy = np.full((rows, columns), np.nan, np.float32)
        self.k = np.zeros((rows, columns), np.int32)
        self.instruction = checkpoint.text.instruction()
        self.steps, self.passes_before = 0, self.engine.passes
        self.seconds: dict[str, float] = {}
        self.clock = time.perf_counter()
        self.stop: Callable[[], bool] = lambda: False
        self.whole: Conversation | None = None
        self.earlier: Conversation | None = None
        self.readings: dict[tiling.Tile, Conversation] = {}
        # tried before the first event, so that a word nobody knows is said at once
        given = Belief((settings.label or "").strip(), (settings.caption or "").strip())
        if (length := len(checkpoint.text.answer(given.text))) > checkpoint.text_limit:
            raise BeliefError(
                f"The given label and caption take {length} tokens; this checkpoint's limit is "
                f"{checkpoint.text_limit}. Shorten them."
            )

    def _read_draft(self, draft: Image.Image | PureOutput | None) -> Image.Image | Tensor | None:
        """A draft as a picture of the canvas, or as codes of it, -1 where there are none."""
        if draft is None:
            return None
        if isinstance(draft, PureOutput):
            codes = torch.full_like(self.codes, -1)
            rows, columns = draft.codes.shape
            if self._cropped(codes.numpy()).shape != (rows, columns):
                raise RestoreError(
                    f"The earlier result has {rows} × {columns} codes; this photo at this scale "
                    f"has {' × '.join(map(str, self._cropped(codes.numpy()).shape))}."
                )
            codes[:rows, :columns] = torch.from_numpy(draft.codes)
            return codes
        if draft.width * self.size[1] != draft.height * self.size[0]:
            raise RestoreError(
                f"The draft is {draft.width} × {draft.height}; the result will be "
                f"{self.size[0]} × {self.size[1]}. It needs the same shape."
            )
        return _pad(convert.resize(draft.convert("RGB"), self.size), self.canvas.size)

    def start_from(
        self, output: PureOutput, box: tuple[int, int, int, int], *, keep_below: bool
    ) -> None:
        """Keep an earlier result but for a box; see `PurePipeline.reroll`."""
        f = self.factor
        rows, columns = output.codes.shape
        top, bottom = max(0, box[1] // f), min(rows, -(-box[3] // f))
        left, right = max(0, box[0] // f), min(columns, -(-box[2] // f))
        if top >= bottom or left >= right:
            raise RestoreError(f"The box {box} holds nothing of the result of {self.size}.")
        self.codes[:rows, :columns] = torch.from_numpy(output.codes)
        self.entropy[:rows, :columns], self.k[:rows, :columns] = output.entropy, output.k
        # what padding was written is not part of a result; it is left as the photo's own codes
        padding = self.codes < 0
        if bool(padding.any()):
            self.codes = torch.where(
                padding, self.checkpoint.vq.encode_image(self.canvas).cpu(), self.codes
            )
        self.seeds = torch.full_like(self.codes, output.settings.seed)
        self.seeds[top:bottom, left:right] = self.settings.seed
        self._reopen(slice(top, bottom), slice(left, right))
        if not keep_below:
            self._reopen(slice(bottom, rows), slice(0, columns))

    def _reopen(self, rows: slice, columns: slice) -> None:
        self.codes[rows, columns] = -1
        self.entropy[rows, columns], self.k[rows, columns] = np.nan, 0

    def _ids(self, text: str, after: str = "", after_ids: list[int] | None = None) -> list[int]:
        """Ids of a text, cut to the limit; what a space becomes depends on the text before it."""
        written = after_ids or []
        whole = self.checkpoint.text.answer(f"{after} {text}" if after else text)
        skip = len(self.checkpoint.text.answer(after)) if after else 0
        return whole[skip:][: max(0, self.checkpoint.text_limit - len(written))]

    def _lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase] = now - self.clock
        self.clock = now

    def events(self, preview_seconds: float | None, decoder: DecoderConfig) -> Iterator[Event]:
        label, label_ids = self._perceive()
        self._lap("perceive")
        yield Perceived(Belief(label))
        belief, text = self._understood(label, label_ids)
        yield Understood(belief)
        yield from self._restore(text, preview_seconds, decoder)
        yield Done(self.output(belief, decoder))

    def believe(self) -> tuple[Belief, list[int]]:
        """What the model sees, and the ids that stand before its picture."""
        label, label_ids = self._perceive()
        self._lap("perceive")
        return self._understood(label, label_ids)

    def _understood(self, label: str, label_ids: list[int]) -> tuple[Belief, list[int]]:
        """`believe`, once the label is there."""
        caption, caption_ids = self._understand(label, label_ids)
        if len(self.tiles) > 1:
            self.whole = None  # it only served the caption
        self._lap("understand")
        if self.settings.guidance == "understanding":
            return Belief("", caption), self._ids(caption)  # it opens the answer now
        return Belief(label, caption), label_ids + caption_ids

    def output(self, belief: Belief, decoder: DecoderConfig) -> PureOutput:
        """The result, once every code is there."""
        self._lap("restore")
        image = self._finish()
        self._lap("finish")
        return PureOutput(
            image=image,
            belief=belief,
            codes=self._cropped(self.codes.numpy()),
            entropy=self._cropped(self.entropy),
            k=self._cropped(self.k),
            steps=self.steps,
            passes=self.engine.passes - self.passes_before,
            seconds=self.seconds,
            settings=self.settings,
            checkpoint=self.checkpoint.name,
            decoder=decoder,
        )

    # Belief

    def _converse(self, picture: Image.Image) -> Conversation:
        grid = Grid(picture.height // self.factor, picture.width // self.factor)
        codes = self.checkpoint.vq.encode_image(picture).cpu()
        prompt = self.checkpoint.grammar.prompt(self.instruction, codes)
        if self.earlier is not None and self.earlier.prompt == prompt:
            return self.earlier
        return Conversation(
            self.engine,
            self.checkpoint.grammar,
            prompt,
            grid,
            text_limit=self.checkpoint.text_limit,
        )

    def reuse(self, kept: Conversation) -> None:
        """Take over an earlier reading if it is of the same picture."""
        if len(self.tiles) == 1:
            self.earlier = kept

    def read(self) -> None:
        """Read a photo of one tile, for text and picture."""
        if len(self.tiles) == 1:
            self._about_whole()

    def _about_whole(self) -> Conversation:
        """The conversation about the whole photo; of one tile it is that tile's."""
        if self.whole is None:
            one = len(self.tiles) == 1
            small = (self.native, self.native)
            self.whole = self._converse(
                self.canvas if one else convert.resize(self.enlarged, small)
            )
        return self.whole

    def _perceive(self) -> tuple[str, list[int]]:
        """The label and its ids; nothing where neither picture nor caption depends on it."""
        s = self.settings
        if s.guidance == "none" or (s.guidance == "understanding" and s.caption is not None):
            return "", []
        if s.label is not None:
            label = s.label.strip()
            return label, self._ids(label)
        if len(self.tiles) == 1:
            ids = self._text(self._about_whole(), label_only=True)
            return self.checkpoint.text.decode(ids), ids
        chosen = np.linspace(0, len(self.tiles) - 1, min(LABEL_TILES, len(self.tiles)))
        answers = []
        for i in chosen.round().astype(int):
            conversation = self._converse(self.canvas.crop(self.tiles[i].box))
            answers.append(self._text(conversation, label_only=True))
            if (len(self.readings) + 1) * conversation.bytes <= READINGS_BYTES:
                self.readings[self.tiles[i]] = conversation
        labels = [Belief(self.checkpoint.text.decode(ids)) for ids in answers]
        blur = [LEVELS.index(b.blur) for b in labels if b.blur]
        noise = [LEVELS.index(b.noise) for b in labels if b.noise]
        if not blur or not noise:
            return labels[0].label, answers[0]
        middle = [LEVELS[sorted(levels)[len(levels) // 2]] for levels in (blur, noise)]
        label = label_text(middle[0], middle[1])
        return label, self._ids(label)

    def _understand(self, label: str, label_ids: list[int]) -> tuple[str, list[int]]:
        """The caption and its ids, written after the label."""
        s = self.settings
        if s.guidance in ("none", "perception"):
            return "", []
        if s.caption is not None:
            caption = s.caption.strip()
            return caption, self._ids(caption, label, label_ids) if caption else []
        ids = self._text(self._about_whole(), given=label_ids)
        return self.checkpoint.text.decode(ids), ids

    def _text(
        self, conversation: Conversation, *, given: Sequence[int] = (), label_only: bool = False
    ) -> list[int]:
        """Ids the model wrote after those given."""
        ids = []
        for step in conversation.write_text(given=given, label_only=label_only):
            if self.stop():
                raise _StoppedError
            ids.append(step.id)
        self.steps += len(ids) - len(given)
        return ids[len(given) :]

    # Picture

    def _restore(
        self, text: list[int], preview_seconds: float | None, decoder: DecoderConfig
    ) -> Iterator[Row]:
        previews = None if preview_seconds is None else _Previews(self, preview_seconds)
        for tiles in _waves(self.tiles, decoder.batch):
            parts = self.begin(tiles, text)
            if not parts:
                continue
            pictures = [part.picture for part in parts]
            for number, step in write(self.engine, pictures, decoder, stop=self.stop):
                part = parts[number]
                self.note(step, part)
                if step.phase is not Phase.NEWLINE:
                    continue
                done = float((self.codes >= 0).float().mean())
                yield Row(
                    done,
                    previews.with_row(part) if previews is not None and done < 1 else None,
                    self._cropped(self.entropy).copy(),
                    self._cropped(self.k).copy(),
                )
            if not all(picture.done for picture in pictures):
                raise _StoppedError
            if previews is not None:
                previews.finished += parts

    def _window(self, tile: tiling.Tile) -> tuple[slice, slice]:
        """Rows and columns of a tile in the grid of the photo."""
        left, top, right, bottom = (side // self.factor for side in tile.box)
        return slice(top, bottom), slice(left, right)

    def _is_open(self, tile: tiling.Tile) -> bool:
        return bool((self.codes[self._window(tile)] < 0).any())

    def begin(self, tiles: Sequence[tiling.Tile], text: list[int]) -> list["_Part"]:
        """The tiles that have codes to decide, not written yet."""
        return [self._begin(tile, text) for tile in tiles if self._is_open(tile)]

    def _begin(self, tile: tiling.Tile, text: list[int]) -> "_Part":
        """A tile's picture, not written yet; finished neighbours' codes are given."""
        if len(self.tiles) == 1:
            conversation = self._about_whole()
        else:
            read = self.readings.pop(tile, None)
            conversation = read or self._converse(self.canvas.crop(tile.box))
        window = self._window(tile)
        seen = conversation.seen()
        assert seen is not None  # prompt and answer have one grid
        draft = seen
        if isinstance(self.guess, Tensor):
            draft = torch.where(self.guess[window] < 0, seen, self.guess[window])
        elif self.guess is not None:
            draft = self.checkpoint.vq.encode_image(self.guess.crop(tile.box)).cpu()
        picture = conversation.picture(
            text,
            self.sampling,
            seed=self.seeds[window] if isinstance(self.seeds, Tensor) else self.seeds,
            known=self.codes[window].clone(),
            positions=self.positions[window],
            draft=draft,
        )
        return _Part(tile, window, picture, seen)

    def note(self, step: Step, part: "_Part") -> None:
        """Take over what a step of a tile's picture decided."""
        self.steps += 1
        if step.phase is not Phase.CODE:
            return
        assert step.cell is not None
        row, column = step.cell[0] + part.window[0].start, step.cell[1] + part.window[1].start
        if step.choice is None:
            return  # kept from a neighbour: recorded when that was drawn
        self.codes[row, column] = step.choice.index
        self.entropy[row, column] = step.choice.entropy
        self.k[row, column] = step.choice.k

    def _finish(self) -> Image.Image:
        """Decode the code grid, correct the colour, crop the padding."""
        if len(self.tiles) == 1:
            restored = self.checkpoint.vq.decode_image(self.codes)
        else:
            restored = self._blended()
        if self.settings.colour_fix == "wavelet":
            restored = colour.wavelet(restored, self.canvas)
        elif self.settings.colour_fix == "adain":
            restored = colour.adain(restored, self.canvas)
        return restored.crop((0, 0, *self.size))

    def _blended(self) -> Image.Image:
        pictures = []
        for tile in self.tiles:
            left, top, right, bottom = (side // self.factor for side in tile.box)
            codes = self.codes[None, top:bottom, left:right]
            pictures.append(self.checkpoint.vq.decode(codes)[0].movedim(0, -1).cpu().numpy())
        blended = tiling.blend(self.tiles, pictures, self.canvas.size)  # (H, W, 3)
        return convert.to_image(torch.from_numpy(blended).movedim(-1, 0)[None])

    def _cropped(self, cells: np.ndarray) -> np.ndarray:
        """Without the padding, cells that are partly in the picture included."""
        width, height = (-(-side // self.factor) for side in self.size)
        return cells[:height, :width]


class _Previews:
    """A photo while it is written: what there is so far over the enlarged input.

    Args:
        work: whose photo.
        seconds: shortest time between previews, longer where they would take more than
            `PREVIEW_SHARE` of it; 0 for one with every row.

    Attributes:
        finished: tiles that were finished since the last preview.
    """

    def __init__(self, work: _Restoration, seconds: float) -> None:
        self._work, self._seconds = work, seconds
        self._picture = work.enlarged.copy()
        self._due = -math.inf
        self.finished: list[_Part] = []

    def with_row(self, part: _Part) -> Image.Image | None:
        """The preview when a row of a tile is there, or None if none is due."""
        start = time.perf_counter()
        if start < self._due:
            return None
        for painted in (*self.finished, part):
            self._paint(painted)
        self.finished.clear()
        if self._seconds:
            spent = time.perf_counter() - start
            self._due = start + max(self._seconds, spent / PREVIEW_SHARE)
        return self._picture.copy()

    def _paint(self, part: _Part) -> None:
        """Decode a tile, with the input's codes where there are none yet."""
        codes = self._work.codes[part.window]
        mixed = torch.where(codes < 0, part.seen, codes)
        tile = self._work.checkpoint.vq.decode_image(mixed)
        self._picture.paste(tile, part.tile.box[:2])


def _pad(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Continue a picture to the right and bottom by reflection, as often as it takes."""
    if image.size == size:
        return image
    pixels = np.asarray(image)
    pad = ((0, size[1] - image.height), (0, size[0] - image.width), (0, 0))
    return Image.fromarray(np.pad(pixels, pad, mode="symmetric"))
