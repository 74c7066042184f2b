"""PurePipeline: a photo in; label, caption and restored photo out.

Enlarges the photo as published (bicubic), reads and writes it in tiles of the model's native
size, and puts the result together. One grid of codes covers the whole photo: a tile keeps the
codes its finished neighbours wrote in the overlap and continues from them, so every code is
decided once and neighbours agree. One belief holds for the whole photo: the label is the
median over tiles spread across it, the caption is written from the whole photo made small.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imaging import colour, convert, tiling
from pure.belief import LEVELS, Belief, BeliefError, label_text
from pure.checkpoint import Checkpoint, load
from pure.decode import Conversation, Step
from pure.grammar import Grid, Phase
from pure.sampling import SamplingConfig
from pure.vocab import GRID_PIXELS

Guidance = Literal["full", "perception", "understanding", "none"]
ColourFix = Literal["wavelet", "adain", "none"]
SCALES = (1, 2, 3, 4)
MAX_OUTPUT_PIXELS = 4096 * 4096
OVERLAP = 4  # tiles share a quarter of their side; less shows seams, more costs time
LABEL_TILES = 9  # at most this many tiles are asked for the label
MAX_SEED = 2**63 - 1


class RestoreError(ValueError):
    """A photo or an option that cannot be used; the message says what to change."""


@dataclass(frozen=True)
class RestoreSettings:
    """Everything besides the photo that decides the result.

    Attributes:
        scale: how many times larger the result is, 1 to 4.
        seed: of the sampling; 0 or more.
        guidance: what stands before the picture: label and caption ("full"), one of them, or
            nothing. The rows of the paper's Table 5. In "understanding" the caption is
            written after the label, which is then left out.
        colour_fix: how low frequencies are taken over from the input.
        label: used instead of the model's own perception, if given.
        caption: used instead of the model's own understanding, if given.
    """

    scale: int = 4
    seed: int = 0
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    guidance: Guidance = "full"
    colour_fix: ColourFix = "wavelet"
    label: str | None = None
    caption: str | None = None

    def __post_init__(self) -> None:
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
        passes: runs of the transformer.
        seconds: wall clock of "perceive", "understand", "restore" and "finish".
        checkpoint: name of the model.
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
            the last preview is recent.
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
    """Restores photos with one checkpoint. Not safe for use by two threads at once."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path = "nano",
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> "PurePipeline":
        """Load a checkpoint: "nano", a folder in the released format, or a hub id.

        Raises:
            CheckpointError: it cannot be loaded.
        """
        return cls(load(path_or_id, device=device, dtype=dtype))

    def restore(self, image: Image.Image, settings: RestoreSettings | None = None) -> PureOutput:
        """Restore an upright RGB photo; the last event of `stream`.

        Raises:
            RestoreError: the photo is too large.
            BeliefError: a given label or caption cannot be written by this checkpoint.
        """
        for event in self.stream(image, settings, preview_seconds=None):
            if isinstance(event, Done):
                return event.output
        raise AssertionError("the stream ended without a result")

    def stream(
        self,
        image: Image.Image,
        settings: RestoreSettings | None = None,
        *,
        preview_seconds: float | None = 0.5,
    ) -> Iterator[Event]:
        """Restore a photo, telling what happens. Closing the iterator stops the work.

        Args:
            image: upright RGB, as `imaging.load.read_photo` gives it.
            settings: the published defaults if not given.
            preview_seconds: shortest time between previews; None for none.

        Raises:
            RestoreError, BeliefError: as in `restore`, before the first event.
        """
        yield from _Restoration(self.checkpoint, image, settings or RestoreSettings()).events(
            preview_seconds
        )

    def tiles(self, size: tuple[int, int], scale: int) -> int:
        """Sequences it takes to restore a photo of `size` (width, height)."""
        canvas = _canvas((size[0] * scale, size[1] * scale), self.checkpoint.native)
        return len(_plan(canvas, self.checkpoint))


def _canvas(size: tuple[int, int], native: int) -> tuple[int, int]:
    """Smallest size a photo is padded to: whole grid units, and at least one native tile."""
    width, height = (max(native, -(-side // GRID_PIXELS) * GRID_PIXELS) for side in size)
    return width, height


def _plan(canvas: tuple[int, int], checkpoint: Checkpoint) -> list[tiling.Tile]:
    native, factor = checkpoint.native, checkpoint.vq.factor
    return tiling.plan(canvas, native, native // OVERLAP, multiple=factor)


class _Restoration:
    """One photo on its way through the model."""

    def __init__(
        self, checkpoint: Checkpoint, image: Image.Image, settings: RestoreSettings
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
        self.checkpoint, self.settings = checkpoint, settings
        self.size = (width, height)
        self.enlarged = convert.resize(image, self.size)
        self.native, self.factor = checkpoint.native, checkpoint.vq.factor
        self.canvas = _pad(self.enlarged, _canvas(self.size, self.native))
        self.tiles = _plan(self.canvas.size, checkpoint)
        rows, columns = self.canvas.height // self.factor, self.canvas.width // self.factor
        self.codes = torch.full((rows, columns), -1)
        self.positions = torch.arange(rows * columns).view(rows, columns)
        self.entropy = np.full((rows, columns), np.nan, np.float32)
        self.k = np.zeros((rows, columns), np.int32)
        self.instruction = checkpoint.text.instruction()
        self.steps = self.passes = 0
        self.seconds: dict[str, float] = {}
        self.clock = time.perf_counter()
        self.whole: Conversation | None = None
        # tried before the first event, so that a word nobody knows is said at once
        given = Belief((settings.label or "").strip(), (settings.caption or "").strip())
        if (length := len(checkpoint.text.answer(given.text))) > checkpoint.text_limit:
            raise BeliefError(
                f"The given label and caption take {length} tokens; this checkpoint's limit is "
                f"{checkpoint.text_limit}. Shorten them."
            )

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

    def events(self, preview_seconds: float | None) -> Iterator[Event]:
        guidance = self.settings.guidance
        label, label_ids = self._perceive()
        self._lap("perceive")
        yield Perceived(Belief(label))
        caption, caption_ids = self._understand(label, label_ids)
        self._lap("understand")
        belief = Belief("" if guidance == "understanding" else label, caption)
        yield Understood(belief)
        text = label_ids + caption_ids
        if guidance == "understanding":
            text = self._ids(caption)  # it opens the answer now
        yield from self._restore(text, preview_seconds)
        self._lap("restore")
        image = self._finish()
        self._lap("finish")
        yield Done(
            PureOutput(
                image=image,
                belief=belief,
                codes=self._cropped(self.codes.numpy()),
                entropy=self._cropped(self.entropy),
                k=self._cropped(self.k),
                steps=self.steps,
                passes=self.passes,
                seconds=self.seconds,
                settings=self.settings,
                checkpoint=self.checkpoint.name,
            )
        )

    # Belief

    def _converse(self, picture: Image.Image) -> Conversation:
        grid = Grid(picture.height // self.factor, picture.width // self.factor)
        codes = self.checkpoint.vq.encode_image(picture).cpu()
        prompt = self.checkpoint.grammar.prompt(self.instruction, codes)
        conversation = Conversation(
            self.checkpoint.model,
            self.checkpoint.grammar,
            prompt,
            grid,
            text_limit=self.checkpoint.text_limit,
        )
        self.passes += conversation.passes
        return conversation

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
        before = conversation.passes
        steps = list(conversation.write_text(given=given, label_only=label_only))[len(given) :]
        self.passes += conversation.passes - before
        self.steps += len(steps)
        return [step.id for step in steps]

    # Picture

    def _restore(self, text: list[int], preview_seconds: float | None) -> Iterator[Row]:
        preview = self.enlarged.copy() if preview_seconds is not None else None
        shown = time.perf_counter()
        for tile in self.tiles:
            box = [side // self.factor for side in tile.box]
            window = (slice(box[1], box[3]), slice(box[0], box[2]))
            if len(self.tiles) == 1:
                conversation = self._about_whole()
            else:
                conversation = self._converse(self.canvas.crop(tile.box))
            before = conversation.passes
            lq_codes = self.checkpoint.grammar.read_image(
                conversation.prompt[1 + len(self.instruction) : -1]
            )
            decided = self.codes[window].clone()
            for step in conversation.restore(
                text,
                self.settings.sampling,
                seed=self.settings.seed,
                known=decided.clone(),
                positions=self.positions[window],
            ):
                self.steps += 1
                if step.phase is Phase.CODE:
                    self._record(step, box)
                if step.phase is not Phase.NEWLINE:
                    continue
                show = None
                if preview is not None and preview_seconds is not None:
                    now = time.perf_counter()
                    if now - shown >= preview_seconds:
                        self._paint(preview, tile, window, lq_codes)
                        show, shown = preview.copy(), now
                yield Row(
                    float((self.codes >= 0).float().mean()),
                    show,
                    self._cropped(self.entropy).copy(),
                    self._cropped(self.k).copy(),
                )
            if preview is not None:
                self._paint(preview, tile, window, lq_codes)
            self.passes += conversation.passes - before

    def _record(self, step: Step, box: list[int]) -> None:
        assert step.cell is not None
        row, column = step.cell[0] + box[1], step.cell[1] + box[0]
        if step.choice is None:
            return  # kept from a neighbour: recorded when that was drawn
        self.codes[row, column] = step.choice.index
        self.entropy[row, column] = step.choice.entropy
        self.k[row, column] = step.choice.k

    def _paint(
        self,
        preview: Image.Image,
        tile: tiling.Tile,
        window: tuple[slice, slice],
        lq_codes: Tensor,
    ) -> None:
        """Decode a tile, with the input's codes where there are none yet, onto the preview."""
        codes = self.codes[window]
        mixed = torch.where(codes < 0, lq_codes, codes)
        preview.paste(self.checkpoint.vq.decode_image(mixed), tile.box[:2])

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


def _pad(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Continue a picture to the right and bottom by reflection, as often as it takes."""
    if image.size == size:
        return image
    pixels = np.asarray(image)
    pad = ((0, size[1] - image.height), (0, size[0] - image.width), (0, 0))
    return Image.fromarray(np.pad(pixels, pad, mode="symmetric"))
