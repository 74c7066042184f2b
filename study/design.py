"""The study file and who sees what in which order: balance, golden and repeated trials, breaks.

A study file is canonical JSON; its sha256 is the study hash, the preregistration. Every random
choice comes from the hash, the participant's 64-bit seed and a purpose, so that the schedule can
be made again byte for byte from the study file, the seed, and what the consent event recorded
(slot and pictures). Knows pictures by path and hash; draws nothing and stores nothing.

Constructions: Williams 1949 (positions), the circle method (pairs).
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from study.tallies import AnalysisPlan
from study.votes import CRITERIA, MODES, SCHEMA_VERSION, Screening

T = TypeVar("T")
Mode = Literal["pick_best", "pairwise"]
GOLDEN_PREFIX = "g_"
REPEAT_GAP = 10  # trials between a trial and its repetition, at least
MAIN_MAX = 60  # main trials a sitting; BT.500 and P.910 advise to stay within 30 minutes
GOLDENS = {"pick_best": 5, "pairwise": 8}
MIN_VIEW_MS = {"pick_best": 2500, "pairwise": 1500}


class StudyError(ValueError):
    """A study file that cannot be used; the message says what to change."""


def canonical_json(value: Any) -> str:
    """The one way to write `value`: keys sorted, no spaces, UTF-8, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def sha256(text: str | bytes) -> str:
    """Hexadecimal sha256 of bytes, or of text in UTF-8."""
    return hashlib.sha256(text if isinstance(text, bytes) else text.encode()).hexdigest()


@dataclass(frozen=True)
class Picture:
    """A file, relative to the study file, and the sha256 of its content."""

    path: str
    sha256: str


@dataclass(frozen=True)
class StudyImage:
    """One input and what is shown of it, by method id; `expected` for golden and training."""

    image_id: str
    dataset: str
    scene: str
    lq: Picture
    outputs: dict[str, Picture]
    expected: str = ""


@dataclass(frozen=True)
class StudyDesign:
    """How a sitting is laid out.

    Attributes:
        main_max: main trials of a participant at most.
        golden, repeats, training: how many of each.
        session_minutes: a sitting's length after which leaving is suggested.
        min_view_ms: visible time before a vote can be given.
        stale_hours: after so long without an event a participant's pictures are free again.
        viewport_min_px: narrower windows are warned, or blocked.
        small_viewport: what happens to them.
    """

    main_max: int = MAIN_MAX
    golden: int = GOLDENS["pick_best"]
    repeats: int = 4
    training: int = 2
    session_minutes: int = 20
    min_view_ms: int = MIN_VIEW_MS["pick_best"]
    stale_hours: float = 2.0
    viewport_min_px: int = 1280
    small_viewport: Literal["warn", "block"] = "warn"

    @classmethod
    def of_mode(cls, mode: Mode, **values: Any) -> "StudyDesign":
        """The defaults of a mode, some replaced by `values`."""
        return cls(**{"golden": GOLDENS[mode], "min_view_ms": MIN_VIEW_MS[mode], **values})


@dataclass(frozen=True)
class Consent:
    """What a participant agrees to, word for word."""

    version: str
    text: str


@dataclass(frozen=True)
class Study:
    """The study file: everything that is fixed before the first vote.

    Attributes:
        study_id: short name, in every vote.
        title: for people.
        mode: the kind of main trial.
        methods: ids in the order that decides between equals.
        criteria: asked in separate blocks; the first is the preregistered one.
        images: the main pictures.
        golden, training: pictures with a known best.
        design, screening: layout of a sitting, and who is excluded.
        consent: the text agreed to.
        target_participants: N at which the study closes.
        stop_rule: the same in words, with any early termination.
        alpha, bootstrap, seed: of the analysis.
        active: pairs chosen by expected information instead of balanced rounds.
    """

    study_id: str
    title: str
    mode: Mode
    methods: tuple[str, ...]
    images: tuple[StudyImage, ...]
    consent: Consent
    criteria: tuple[str, ...] = (CRITERIA[0],)
    golden: tuple[StudyImage, ...] = ()
    training: tuple[StudyImage, ...] = ()
    design: StudyDesign = field(default_factory=StudyDesign)
    screening: Screening = field(default_factory=Screening)
    target_participants: int = 30
    stop_rule: str = "Closes when the target number of participants has finished."
    alpha: float = 0.05
    bootstrap: int = 2000
    seed: int = 20251
    active: bool = False
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise StudyError(f"a study's mode is pick_best or pairwise, not {self.mode!r}")
        if len(self.methods) < 2 or len(set(self.methods)) != len(self.methods):
            raise StudyError(f"a study compares two or more different methods: {self.methods}")
        for name in self.methods:
            if not name or "|" in name or name in ("tie", "skip") or name.startswith(GOLDEN_PREFIX):
                raise StudyError(
                    f"{name!r} cannot be a method's id: not empty, without |, not tie or skip, "
                    f"not starting with {GOLDEN_PREFIX}"
                )
        unknown = set(self.criteria) - set(CRITERIA)
        if not self.criteria or unknown or len(set(self.criteria)) != len(self.criteria):
            raise StudyError(f"criteria are some of {', '.join(CRITERIA)}, not {self.criteria}")
        ids = [image.image_id for image in (*self.images, *self.golden, *self.training)]
        if len(set(ids)) != len(ids):
            raise StudyError("two pictures have the same image_id")
        for image in self.images:
            strange = set(image.outputs) - set(self.methods)
            if strange or len(image.outputs) < 2:
                raise StudyError(
                    f"{image.image_id} needs outputs of two or more of the study's methods, "
                    f"and of no others: {sorted(image.outputs)}"
                )
        if self.active and self.mode != "pairwise":
            raise StudyError("active sampling chooses pairs; this study's mode is pick_best")
        if self.schema_version != SCHEMA_VERSION:
            raise StudyError(f"this reads study files of version {SCHEMA_VERSION}")

    def to_json(self) -> dict[str, Any]:
        return json.loads(canonical_json(asdict(self)))  # tuples become lists

    def canonical(self) -> str:
        """The canonical text whose sha256 is the study hash."""
        return canonical_json(self.to_json())

    @cached_property
    def hash(self) -> str:
        return sha256(self.canonical())

    @property
    def consent_sha256(self) -> str:
        return sha256(self.consent.text)

    def plan(self) -> AnalysisPlan:
        """What of it the analysis needs."""
        return AnalysisPlan(
            mode=self.mode,
            methods=self.methods,
            screening=self.screening,
            alpha=self.alpha,
            bootstrap=self.bootstrap,
            seed=self.seed,
            criteria=self.criteria,
        )

    @cached_property
    def residues(self) -> dict[str, int]:
        """A fixed residue for each picture, dealt evenly over the shuffled pictures."""
        order = Draw(self.hash, "study", "residues").shuffled(self.images)
        cycle = self.cycle
        return {image.image_id: n % cycle for n, image in enumerate(order)}

    @cached_property
    def parities(self) -> dict[str, int]:
        """0 or 1 for each picture, alternating among pictures of one residue."""
        order = Draw(self.hash, "study", "residues").shuffled(self.images)
        return {image.image_id: n // self.cycle % 2 for n, image in enumerate(order)}

    @property
    def cycle(self) -> int:
        """Slots after which a picture has been seen in every row, or in every round."""
        return len(self.methods) if self.mode == "pick_best" else len(rounds(len(self.methods)))

    @property
    def images_per_participant(self) -> int:
        """How many pictures a participant judges, so that main trials stay within the limit."""
        pairs = 1 if self.mode == "pick_best" else len(self.methods) // 2
        fitting = self.design.main_max // (pairs * len(self.criteria))
        return min(len(self.images), max(1, fitting))


def study_from_json(data: Mapping[str, Any]) -> Study:
    """A study from parsed JSON.

    Raises:
        StudyError: keys are missing, unknown or of the wrong kind.
    """
    values = dict(data)
    try:
        for key in ("images", "golden", "training"):
            values[key] = tuple(_image(item) for item in values.get(key, ()))
        for key in ("methods", "criteria"):
            if key in values:
                values[key] = tuple(values[key])
        values["consent"] = Consent(**values["consent"])
        for key, kind in (("design", StudyDesign), ("screening", Screening)):
            if key in values:
                values[key] = kind(**values[key])
        return Study(**values)
    except (TypeError, KeyError, AttributeError) as error:
        raise StudyError(f"This is not a study file: {error}.") from None


def _image(data: Mapping[str, Any]) -> StudyImage:
    outputs = {name: Picture(**picture) for name, picture in data["outputs"].items()}
    return StudyImage(**{**data, "lq": Picture(**data["lq"]), "outputs": outputs})


def read_study(path: Path) -> Study:
    """Read a study file. The hash is of its canonical form, whatever its layout on disk."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StudyError(f"There is no study file {path}.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StudyError(f"{path.name} is not JSON: {error}.") from None
    if not isinstance(data, dict):
        raise StudyError(f"{path.name} is not a study file.")
    return study_from_json(data)


def write_study(study: Study, path: Path) -> None:
    """Write the canonical form, and nothing else."""
    path.write_text(study.canonical(), encoding="utf-8", newline="")


class Draw:
    """Random numbers keyed by study, participant and purpose: PCG64 of their sha256.

    Built on the raw stream of the generator, which numpy promises to keep; its shuffles it does
    not, and schedules have to be the same in ten years.
    """

    def __init__(self, study_hash: str, participant: str, purpose: str) -> None:
        key = hashlib.sha256(f"{study_hash}|{participant}|{purpose}".encode()).digest()
        self._bits = np.random.PCG64(int.from_bytes(key, "big"))

    def below(self, n: int) -> int:
        """A whole number from 0 to n - 1, each equally likely."""
        limit = 2**64 - 2**64 % n
        while True:
            value = int(self._bits.random_raw())
            if value < limit:
                return value % n

    def shuffled(self, items: Iterable[T]) -> list[T]:
        """The items in random order (Fisher and Yates)."""
        out = list(items)
        for i in range(len(out) - 1, 0, -1):
            j = self.below(i + 1)
            out[i], out[j] = out[j], out[i]
        return out


def participant_seed(participant: str) -> int:
    """The recorded 64-bit seed of a participant: its 16 hexadecimal digits as a number."""
    return int(participant, 16)


def williams_square(n: int) -> list[list[int]]:
    """Rows of a Latin square in which, for even n, each ordered neighbour pair is there once.

    First row 0, 1, n-1, 2, n-2, ...; row r adds r. For odd n the neighbours balance together
    with the mirrored square. Source: Williams 1949.
    """
    first = [0]
    for step in range(1, n):
        first.append((step + 1) // 2 if step % 2 else n - step // 2)
    return [[(value + r) % n for value in first] for r in range(n)]


def rounds(n: int) -> list[list[tuple[int, int]]]:
    """All pairs of n methods in rounds of disjoint pairs, by the circle method.

    n - 1 rounds of n / 2 pairs for even n; for odd n there are n rounds, and one method rests in
    each. Within a round the sides alternate, so that every method is left about half the time.
    """
    size = n + n % 2
    out = []
    for r in range(size - 1):
        ring = [(r + k) % (size - 1) for k in range(size - 1)]
        pairs = [(size - 1, ring[0]) if r % 2 else (ring[0], size - 1)]
        for k in range(1, size // 2):
            a, b = ring[k], ring[-k]
            pairs.append((a, b) if k % 2 else (b, a))
        out.append([pair for pair in pairs if max(pair) < n])
    return out


@dataclass(frozen=True)
class Trial:
    """One screen.

    Attributes:
        trial_id: unique for the participant, and says nothing.
        index: place in the schedule, from 0.
        kind, mode, criterion, image_id, dataset, scene: as in the vote record.
        order: method ids as displayed, left to right, top to bottom.
        stimuli: sha256 of each displayed file, in the same order.
        expected: the known answer of a golden or training trial.
        repeat_of: trial_id of the original.
        break_before: whether a break is offered first.
        probability: of this pair where pairs are drawn actively; else 1.
    """

    trial_id: str
    index: int
    kind: str
    mode: str
    criterion: str
    image_id: str
    dataset: str
    scene: str
    order: tuple[str, ...]
    stimuli: tuple[str, ...]
    expected: str = ""
    repeat_of: str = ""
    break_before: bool = False
    probability: float = 1.0


def position_order(study: Study, image: StudyImage, slot: int) -> tuple[str, ...]:
    """The methods of a pick-best trial in displayed order; a missing output leaves a gap closed.

    Row (residue + slot) of the square, mirrored in every other block of slots where the number
    of methods is odd; which method is which symbol is drawn anew in each block.
    """
    n = len(study.methods)
    block = slot // n
    row = williams_square(n)[(study.residues[image.image_id] + slot) % n]
    if n % 2 and block % 2:
        row = row[::-1]
    symbols = Draw(study.hash, "study", f"symbols {block}").shuffled(study.methods)
    return tuple(symbols[s] for s in row if symbols[s] in image.outputs)


def pair_orders(study: Study, image: StudyImage, slot: int) -> list[tuple[str, str]]:
    """The pairs of a picture for a slot, (left, right): one round of the circle method.

    Sides alternate from one visit of a round to the next, and between pictures of one residue.
    """
    cycle = study.cycle
    turn = study.residues[image.image_id] + slot
    flip = (turn // cycle + study.parities[image.image_id]) % 2
    pairs = []
    for a, b in rounds(len(study.methods))[turn % cycle]:
        left, right = study.methods[a], study.methods[b]
        if left in image.outputs and right in image.outputs:
            pairs.append((right, left) if flip else (left, right))
    return pairs


def choose_images(study: Study, fill: Mapping[str, int], participant: str) -> list[str]:
    """The pictures of a new participant: those with fewest votes, `fill` by image_id.

    Among equals the residue least taken so far, so that positions stay balanced within the
    participant; then at random.
    """
    left = Draw(study.hash, participant, "images").shuffled(study.images)
    taken = dict.fromkeys(range(study.cycle), 0)
    chosen: list[str] = []
    while len(chosen) < study.images_per_participant:
        best = min(
            left,
            key=lambda image: (
                fill.get(image.image_id, 0),
                taken[study.residues[image.image_id]],
            ),
        )
        left.remove(best)
        taken[study.residues[best.image_id]] += 1
        chosen.append(best.image_id)
    return chosen


def spread(items: Sequence[T], group: Callable[[T], str], draw: Draw) -> list[T]:
    """The items in random order, no two of one group in a row where that is possible."""
    left: dict[str, list[T]] = {}
    for item in draw.shuffled(items):
        left.setdefault(group(item), []).append(item)
    out: list[T] = []
    last = None
    for remaining in range(len(items), 0, -1):
        largest = max(len(members) for members in left.values())
        others = [name for name in left if name != last] or list(left)
        # A group with more than half of what remains has to go now, or it ends up in a row.
        if 2 * largest > remaining:
            others = [name for name in others if len(left[name]) == largest] or others
        # In proportion to size, as in a plain shuffle.
        ticket = draw.below(sum(len(left[name]) for name in others))
        for name in others:
            ticket -= len(left[name])
            if ticket < 0:
                break
        out.append(left[name].pop())
        if not left[name]:
            del left[name]
        last = name
    return out


@dataclass(frozen=True)
class _Draft:
    """A trial before it has a number."""

    kind: str
    criterion: str
    image: StudyImage
    order: tuple[str, ...]
    repeat_of: "_Draft | None" = None


def block_criteria(study: Study, slot: int) -> tuple[str, ...]:
    """The criteria in the order of a participant's blocks, counterbalanced over slots."""
    n = len(study.criteria)
    turn = (slot + slot // study.cycle) % n
    return study.criteria[turn:] + study.criteria[:turn]


def schedule(
    study: Study, participant: str, slot: int, image_ids: Sequence[str]
) -> tuple[Trial, ...]:
    """All trials of a participant.

    Args:
        study: the study.
        participant: 16 hexadecimal digits; `participant_seed` is the same as a number.
        slot: its number, from 0, in order of consent.
        image_ids: its pictures, as `choose_images` gave them.
    """
    by_id = {image.image_id: image for image in study.images}
    images = [by_id[name] for name in image_ids]
    blocks = block_criteria(study, slot)
    goldens = Draw(study.hash, participant, "golden").shuffled(study.golden)
    drafts: list[_Draft] = []
    for image in Draw(study.hash, participant, "training").shuffled(study.training):
        if len(drafts) < study.design.training:
            order = Draw(study.hash, participant, f"training {image.image_id}")
            drafts.append(_Draft("training", blocks[0], image, _golden_order(study, image, order)))
    trained = len(drafts)
    for number, criterion in enumerate(blocks):
        shown = [
            _Draft("main", criterion, image, order)
            for image in images
            for order in _main_orders(study, image, slot + number)
        ]
        draw = Draw(study.hash, participant, f"order {criterion}")
        block = spread(shown, lambda draft: draft.image.scene or draft.image.image_id, draw)
        some = goldens[number :: len(blocks)]
        block = _with_goldens(
            study, block, criterion, some[: _part(study.design.golden, blocks, number)], draw
        )
        block = _with_repeats(block, _part(study.design.repeats, blocks, number), draw)
        drafts += block
    return _numbered(study, participant, drafts, trained)


def _part(total: int, blocks: Sequence[str], number: int) -> int:
    """The share of block `number` in `total`, the first blocks getting the remainder."""
    return total // len(blocks) + (number < total % len(blocks))


def _main_orders(study: Study, image: StudyImage, slot: int) -> list[tuple[str, ...]]:
    if study.mode == "pick_best":
        return [position_order(study, image, slot)]
    return list(pair_orders(study, image, slot))


def _golden_order(study: Study, image: StudyImage, draw: Draw) -> tuple[str, ...]:
    """The known best among as many others as a main trial of the mode shows, shuffled."""
    others = draw.shuffled(sorted(set(image.outputs) - {image.expected}))
    panels = 2 if study.mode == "pairwise" else len(study.methods)
    return tuple(draw.shuffled([image.expected, *others[: panels - 1]]))


def _with_goldens(
    study: Study,
    block: list[_Draft],
    criterion: str,
    goldens: Sequence[StudyImage],
    draw: Draw,
) -> list[_Draft]:
    """Goldens strewn in, one in each of equal parts of the block."""
    out = list(block)
    for n, image in enumerate(goldens):
        length = len(out)
        low, high = n * length // len(goldens), (n + 1) * length // len(goldens)
        draft = _Draft("golden", criterion, image, _golden_order(study, image, draw))
        place = _place(out, draft, range(low, high + 1), draw)
        if place is None:
            place = _place(out, draft, range(length + 1), draw)
        out.insert(low if place is None else place, draft)
    return out


def _with_repeats(block: list[_Draft], repeats: int, draw: Draw) -> list[_Draft]:
    """Some main trials once more with other positions, REPEAT_GAP or more trials later."""
    out = list(block)
    candidates = [draft for n, draft in enumerate(out) if n + REPEAT_GAP <= len(out)]
    originals = [draft for draft in draw.shuffled(candidates) if draft.kind == "main"]
    placed = 0
    for original in originals:
        if placed == repeats:
            break
        order = original.order
        while order == original.order:
            order = tuple(draw.shuffled(original.order))
        draft = _Draft("repeat", original.criterion, original.image, order, original)
        first = out.index(original) + REPEAT_GAP
        place = _place(out, draft, range(first, len(out) + 1), draw)
        if place is not None:
            out.insert(place, draft)
            placed += 1
    return out


def _place(out: list[_Draft], draft: _Draft, places: Iterable[int], draw: Draw) -> int | None:
    """A random one of `places` that is not beside the same scene or picture; None without."""

    def apart(place: int) -> bool:
        around = [other.image for other in out[max(0, place - 1) : place + 1]]
        scene, image_id = draft.image.scene, draft.image.image_id
        return all(
            other.image_id != image_id and (other.scene != scene or not scene) for other in around
        )

    return next((place for place in draw.shuffled(places) if apart(place)), None)


def _numbered(
    study: Study, participant: str, drafts: Sequence[_Draft], trained: int
) -> tuple[Trial, ...]:
    half = trained + (len(drafts) - trained) // 2
    ids = {
        id(draft): sha256(f"{study.hash}|{participant}|trial {n}")[:16]
        for n, draft in enumerate(drafts)
    }
    return tuple(
        Trial(
            trial_id=ids[id(draft)],
            index=n,
            kind=draft.kind,
            mode=study.mode,
            criterion=draft.criterion,
            image_id=draft.image.image_id,
            dataset=draft.image.dataset,
            scene=draft.image.scene,
            order=draft.order,
            stimuli=tuple(draft.image.outputs[name].sha256 for name in draft.order),
            expected=draft.image.expected,
            repeat_of=ids[id(draft.repeat_of)] if draft.repeat_of else "",
            break_before=n == half and n > trained,
        )
        for n, draft in enumerate(drafts)
    )


def schedule_bytes(trials: Sequence[Trial]) -> bytes:
    """The schedule as canonical JSON, to compare and to hash."""
    return canonical_json([asdict(trial) for trial in trials]).encode()
