"""The desk where people vote: joining, the next screen, one vote, resuming, leaving.

Between a page and a store. The page sends a participant's code, tokens and positions; what it
gets names no method. All that is remembered is in the store, so a reload, a second tab or a
restart continue where the last stored vote was.
"""

import hashlib
import io
import math
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from study.active import propose
from study.blinding import (
    check_token,
    derive,
    equal_size,
    issue_token,
    participant_of,
    plain_png,
    read_claim,
    stimulus_name,
)
from study.design import (
    Draw,
    Picture,
    Study,
    Trial,
    choose_images,
    participant_seed,
    schedule,
    sha256,
)
from study.store import Event, NewEvent, Place, VoteStore
from study.votes import SCHEMA_VERSION, SKIP, TIE

SHA_DIGITS = 16  # of each stimulus in the vote record
SHARED_ADDRESS = 4  # people from one address in a day from which votes are flagged
PADDED_PICTURES = 32  # inputs kept in memory with their outputs, prepared for showing


class DeskError(ValueError):
    """Something the participant can put right; the message says how."""


@dataclass(frozen=True)
class Screen:
    """What a page may know of a trial.

    Attributes:
        token: goes back with the vote.
        index, total: for the progress bar.
        training: whether feedback is given; golden and repeated trials are not told apart.
        mode, criterion: what is asked.
        panels: file names of the outputs, left to right, top to bottom.
        input: file name of the input.
        min_view_ms: visible time before a vote can be given.
        break_before: whether to offer a break first.
    """

    token: str
    index: int
    total: int
    training: bool
    mode: str
    criterion: str
    panels: tuple[str, ...]
    input: str
    min_view_ms: int
    break_before: bool


@dataclass(frozen=True)
class Answer:
    """A vote as the page sends it.

    Attributes:
        position: 0-based panel, or "tie", or "skip".
        response_ms: visible time from all panels loaded to submitting.
        zoomed: for each panel whether it was zoomed.
    """

    position: int | Literal["tie", "skip"]
    response_ms: int
    zoomed: tuple[bool, ...] = ()
    zoom_max: float = 1
    viewport_w: int = 0
    viewport_h: int = 0
    dpr: float = 1
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Receipt:
    """What became of a vote.

    Attributes:
        outcome: stored; retry of the same vote; duplicate, the first answer stands.
        position: of the answer that counts, as in Answer.
        correct: in training trials whether it was the known best; else None.
        row_hash: the vote's place in the audit chain.
    """

    outcome: Literal["stored", "retry", "duplicate"]
    position: int | Literal["tie", "skip"]
    correct: bool | None
    row_hash: str


@dataclass(frozen=True)
class Progress:
    """How far someone is: answered trials, all trials, and whether that is the end."""

    done: int
    total: int

    @property
    def finished(self) -> bool:
        return self.done >= self.total


@dataclass(frozen=True)
class Summary:
    """For someone who has finished: own consistency, goldens, how often each method was picked."""

    agreeing: int
    repeated: int
    golden_passed: int
    golden: int
    picks: dict[str, int]


class AddressBook:
    """How many people came from one address today; in memory, under a salt that lives a day."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._day = -1
        self._salt = b""
        self._people: dict[bytes, set[str]] = {}

    def seen(self, address: str, participant: str) -> int:
        """Note a visit; the number of different people from this address today."""
        with self._lock:
            today = int(self._clock() // 86_400)
            if today != self._day:
                self._day, self._salt, self._people = today, secrets.token_bytes(16), {}
            key = hashlib.sha256(self._salt + address.encode()).digest()
            people = self._people.setdefault(key, set())
            people.add(participant)
            return len(people)


class Desk:
    """One study open for voting.

    Args:
        study: the study file.
        store: where votes go.
        secret: the study's secret, see `study.blinding.load_secret`.
        folder: what the study's picture paths are relative to.
        app_version: noted in every vote.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        study: Study,
        store: VoteStore,
        secret: bytes,
        folder: Path,
        *,
        app_version: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.study = study
        self._store = store
        self._folder = folder
        self._version = app_version
        self._clock = clock
        self._salt = derive(secret, "participants")
        self._tokens = derive(secret, "tokens")
        self._names = derive(secret, "names")
        self._addresses = AddressBook(clock)
        self._images = {
            image.image_id: image for image in (*study.images, *study.golden, *study.training)
        }
        self._prepared = lru_cache(maxsize=PADDED_PICTURES)(self._prepare)
        self._plan = lru_cache(maxsize=1024)(self._schedule)
        store.add(
            NewEvent(
                event_id=sha256(f"open|{study.hash}")[:32],
                type="study_open",
                study_hash=study.hash,
                payload={"study": study.to_json(), "app_version": app_version},
            )
        )

    def join(
        self, code: str, *, consent_sha256: str, adult: bool, about: Mapping[str, Any] | None = None
    ) -> Progress:
        """Take someone in, or let them go on where they were.

        Args:
            code: the participant's code, which only the browser keeps.
            consent_sha256: hash of the text that was agreed to.
            adult: whether the box was ticked.
            about: optional self-report and device; keys as the store allows.

        Raises:
            DeskError: no consent, or the study is closed.
            WithdrawnError: the code has withdrawn.
        """
        study, who = self.study, self._who(code)
        if not self._consents(who):
            if not adult or consent_sha256 != study.consent_sha256:
                raise DeskError(
                    "To take part, read the consent text of this study, tick that you are 18 or "
                    "older and agree."
                )
            if self.closed():
                raise DeskError("This study is closed. Thank you for your interest.")

        def assign(place: Place) -> dict[str, Any]:
            return {"slot": place.slot, "images": choose_images(study, place.fill, who)}

        payload = {
            **(about or {}),
            "consent_sha256": consent_sha256,
            "adult": adult,
            # The event id is not random: this keeps a blanked consent from being guessed.
            "nonce": secrets.token_hex(16),
            "seed": str(participant_seed(who)),
        }
        joined = self._store.join(
            NewEvent(
                event_id=sha256(f"consent|{study.hash}|{who}")[:32],
                type="consent",
                study_hash=study.hash,
                payload=payload,
                participant=who,
            ),
            assign,
        )
        if joined.outcome == "retry":
            self._note(who, "resume", {"trial_index": len(self._answered(who))})
        return self.progress(code)

    def progress(self, code: str) -> Progress:
        """How far someone is who has joined."""
        who = self._who(code)
        trials = self._trials(who)
        return Progress(len(self._answered(who)), len(trials))

    def next_screen(self, code: str) -> Screen | None:
        """The first trial without a stored answer; None when all are done."""
        who = self._who(code)
        trials = self._trials(who)
        answered = self._answered(who)
        trial = next((trial for trial in trials if trial.trial_id not in answered), None)
        if trial is None:
            return None
        trial = self._shown(who, trial)
        token = issue_token(
            self._tokens, self.study.hash, who, trial.trial_id, trial.order, self._clock()
        )
        return Screen(
            token=token,
            index=trial.index,
            total=len(trials),
            training=trial.kind == "training",
            mode=trial.mode,
            criterion=trial.criterion,
            panels=tuple(
                stimulus_name(self._names, who, trial.trial_id, str(n))
                for n in range(len(trial.order))
            ),
            input=stimulus_name(self._names, who, trial.trial_id, "input"),
            min_view_ms=self.study.design.min_view_ms,
            break_before=trial.break_before,
        )

    def pictures(self, code: str, screen: Screen) -> dict[str, bytes]:
        """The PNG files of a screen by name: no metadata, equal pixel size, equal file size.

        Raises:
            DeskError: a file has changed since the study was made.
        """
        trial = self.trial_behind(code, screen)
        prepared = self._prepared(trial.image_id)
        files = {name: prepared[m] for name, m in zip(screen.panels, trial.order, strict=True)}
        return {**files, screen.input: prepared[""]}

    def trial_behind(self, code: str, screen: Screen) -> Trial:
        """What a screen is about, methods named: for the server and for simulated judges."""
        return self._claimed(self._who(code), read_claim(screen.token).trial_id)

    def vote(
        self,
        code: str,
        token: str,
        answer: Answer,
        *,
        event_id: str,
        session_id: str,
        address: str = "",
    ) -> Receipt:
        """Store a vote. When this returns it is on disk.

        Args:
            code: whose.
            token: of the screen that was answered.
            answer: what was chosen and how.
            event_id: 32 hexadecimal digits that the page made when it showed the trial.
            session_id: which sitting.
            address: network address, for counting people per address; never stored.

        Raises:
            TokenError: not our token, or too old.
            DeskError: the answer makes no sense for this trial.
            WithdrawnError: the code has withdrawn.
        """
        who = self._who(code)
        claim = read_claim(token)
        if claim.participant != who:
            raise DeskError("This trial was shown to someone else. Reload the page.")
        trial = self._claimed(who, claim.trial_id)
        check_token(token, self._tokens, self.study.hash, trial.order, self._clock())
        if not (len(event_id) == 32 and set(event_id) <= set("0123456789abcdef")):
            raise DeskError("A vote needs an event id of 32 hexadecimal digits.")
        self._refuse_small(answer)
        choice, position = _choice(trial, answer)
        flags = sorted({*answer.flags, *self._flags(who, answer, address)})
        row = self._row(who, trial, answer, choice, position)
        row.update(
            event_id=event_id,
            session_id=session_id,
            flags="|".join(flags),
            shown_utc=_utc(claim.issued_at),
            submitted_utc=_utc(self._clock()),
        )
        added = self._store.add(
            NewEvent(
                event_id=event_id,
                type="vote",
                study_hash=self.study.hash,
                payload=row,
                participant=who,
                trial_id=trial.trial_id,
                cell=trial.image_id if trial.kind == "main" else "",
            )
        )
        kept = added.event.payload
        if added.outcome == "stored":
            self._close_at_target(who)
        return Receipt(
            outcome=added.outcome,
            position=kept["choice"] if kept["choice"] in (TIE, SKIP) else kept["choice_position"],
            correct=kept["choice"] == kept["expected"] if trial.kind == "training" else None,
            row_hash=added.event.row_hash,
        )

    def take_break(self, code: str, session_id: str) -> None:
        """Note that someone takes the break."""
        who = self._who(code)
        index = len(self._answered(who))
        self._note(who, "break", {"session_id": session_id, "trial_index": index})

    def withdraw(self, code: str) -> int:
        """Erase what someone has said; the number of events blanked."""
        return self._store.withdraw(self.study.hash, self._who(code))

    def summary(self, code: str) -> Summary:
        """A participant's own result.

        Raises:
            DeskError: there are trials left; nothing is shown before the end.
        """
        if not self.progress(code).finished:
            raise DeskError("Your own result is shown after the last trial.")
        votes = self._answered(self._who(code))
        repeats = [vote for vote in votes.values() if vote["kind"] == "repeat"]
        golden = [vote for vote in votes.values() if vote["kind"] == "golden"]
        main = [vote["choice"] for vote in votes.values() if vote["kind"] == "main"]
        return Summary(
            agreeing=sum(votes[v["repeat_of"]]["choice"] == v["choice"] for v in repeats),
            repeated=len(repeats),
            golden_passed=sum(vote["choice"] == vote["expected"] for vote in golden),
            golden=len(golden),
            picks={method: main.count(method) for method in self.study.methods},
        )

    def closed(self) -> bool:
        """Whether the study takes nobody new."""
        return any(self._store.events(self.study.hash, "study_close"))

    def close(self, reason: str) -> None:
        """Close the study for new people; those inside may finish."""
        self._store.add(
            NewEvent(
                event_id=sha256(f"close|{self.study.hash}")[:32],
                type="study_close",
                study_hash=self.study.hash,
                payload={"reason": reason},
            )
        )

    def _who(self, code: str) -> str:
        if not code.strip():
            raise DeskError("There is no participant code. Reload the page to begin.")
        return participant_of(code, self._salt)

    def _consents(self, who: str) -> list[Event]:
        consents = self._store.events(self.study.hash, "consent", who)
        return [event for event in consents if not event.erased]

    def _schedule(self, who: str, slot: int, images: tuple[str, ...]) -> tuple[Trial, ...]:
        return schedule(self.study, who, slot, images)

    def _trials(self, who: str) -> tuple[Trial, ...]:
        consents = self._consents(who)
        if not consents:
            raise DeskError("This code has not joined the study, or has withdrawn from it.")
        payload = consents[0].payload
        return self._plan(who, payload["slot"], tuple(payload["images"]))

    def _answered(self, who: str) -> dict[str, Mapping[str, Any]]:
        votes = self._store.events(self.study.hash, "vote", who)
        return {event.trial_id: event.payload for event in votes if not event.erased}

    def _claimed(self, who: str, trial_id: str) -> Trial:
        """The trial a token is about, with the pair that was shown."""
        trial = next((t for t in self._trials(who) if t.trial_id == trial_id), None)
        if trial is None:
            raise DeskError("This trial is not part of your session. Reload the page.")
        return self._shown(who, trial)

    def _shown(self, who: str, trial: Trial) -> Trial:
        """The trial as it is shown: with active sampling the pair is drawn at first sight."""
        if not (self.study.active and trial.kind in ("main", "repeat")):
            return trial
        if trial.kind == "repeat":
            first = next(t for t in self._trials(who) if t.trial_id == trial.repeat_of)
            order = self._shown(who, first).order[::-1]
            return replace(trial, order=order, stimuli=self._stimuli(trial.image_id, order))
        event_id = sha256(f"shown|{self.study.hash}|{who}|{trial.trial_id}")[:32]
        earlier = [
            event
            for event in self._store.events(self.study.hash, "trial_shown", who)
            if event.event_id == event_id
        ]
        payload = earlier[0].payload if earlier else self._draw_pair(who, trial, event_id)
        order = tuple(payload["order"])
        return replace(
            trial,
            order=order,
            stimuli=self._stimuli(trial.image_id, order),
            probability=payload["probability"],
        )

    def _draw_pair(self, who: str, trial: Trial, event_id: str) -> Mapping[str, Any]:
        """Draw a pair by expected information and put it on record."""
        methods = self.study.methods
        image = self._images[trial.image_id]
        number = {name: n for n, name in enumerate(methods)}
        seen = {
            frozenset(vote["methods_shown"].split("|"))
            for vote in self._answered(who).values()
            if vote["image_id"] == trial.image_id and vote["kind"] == "main"
        }
        present = [number[name] for name in methods if name in image.outputs]
        pairs = [
            (i, j)
            for i in present
            for j in present
            if i < j and frozenset((methods[i], methods[j])) not in seen
        ]
        wins = np.zeros((len(methods), len(methods)))
        for event in self._store.events(self.study.hash, "vote"):
            if event.cell != trial.image_id:
                continue
            a, b = (number[name] for name in event.payload["methods_shown"].split("|"))
            choice = event.payload["choice"]
            if choice == TIE:
                wins[a, b] += 0.5
                wins[b, a] += 0.5
            elif choice != SKIP:
                wins[number[choice], b if number[choice] == a else a] += 1
        drawn = propose(wins, pairs, Draw(self.study.hash, who, f"active {trial.trial_id}"))
        added = self._store.add(
            NewEvent(
                event_id=event_id,
                type="trial_shown",
                study_hash=self.study.hash,
                payload={
                    "order": [methods[drawn.left], methods[drawn.right]],
                    "probability": drawn.probability,
                    "nonce": secrets.token_hex(16),
                    "trial_index": trial.index,
                },
                participant=who,
                trial_id=trial.trial_id,
            )
        )
        return added.event.payload

    def _stimuli(self, image_id: str, order: tuple[str, ...]) -> tuple[str, ...]:
        outputs = self._images[image_id].outputs
        return tuple(outputs[name].sha256 for name in order)

    def _refuse_small(self, answer: Answer) -> None:
        design = self.study.design
        if design.small_viewport == "block" and answer.viewport_w < design.viewport_min_px:
            raise DeskError(
                f"This study needs a window at least {design.viewport_min_px} pixels wide; "
                f"yours has {answer.viewport_w}. Go on at a larger screen, with the same code."
            )

    def _flags(self, who: str, answer: Answer, address: str) -> list[str]:
        """Facts about how the vote was given; never a verdict."""
        flags = []
        if 0 < answer.viewport_w < self.study.design.viewport_min_px:
            flags.append("small_viewport")
        if answer.response_ms < self.study.design.min_view_ms:
            flags.append("below_min_view")
        if address and self._addresses.seen(address, who) >= SHARED_ADDRESS:
            flags.append("shared_address")
        return flags

    def _row(
        self, who: str, trial: Trial, answer: Answer, choice: str, position: int
    ) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "study_id": self.study.study_id,
            "study_hash": self.study.hash,
            "app_version": self._version,
            "participant": who,
            "trial_id": trial.trial_id,
            "trial_index": trial.index,
            "kind": trial.kind,
            "mode": trial.mode,
            "criterion": trial.criterion,
            "image_id": trial.image_id,
            "dataset": trial.dataset,
            "scene": trial.scene,
            "methods_shown": "|".join(trial.order),
            "stimuli_sha": "|".join(sha[:SHA_DIGITS] for sha in trial.stimuli),
            "choice": choice,
            "choice_position": position,
            "expected": trial.expected,
            "repeat_of": trial.repeat_of,
            "response_ms": answer.response_ms,
            "zoomed": "|".join(str(int(panel)) for panel in answer.zoomed),
            "zoom_max": answer.zoom_max,
            "viewport_w": answer.viewport_w,
            "viewport_h": answer.viewport_h,
            "dpr": answer.dpr,
            "seed": str(participant_seed(who)),
        }

    def _note(self, who: str, type: str, payload: Mapping[str, Any]) -> None:
        self._store.add(
            NewEvent(secrets.token_hex(16), type, self.study.hash, payload, participant=who)
        )

    def _close_at_target(self, who: str) -> None:
        """Close the study when the last vote of the last participant of the target is in."""
        if len(self._answered(who)) < len(self._trials(who)):
            return
        finished = 0
        for event in self._store.events(self.study.hash, "consent"):
            if not event.erased:
                other = event.participant
                finished += len(self._answered(other)) >= len(self._trials(other))
        if finished >= self.study.target_participants:
            self.close(f"{finished} participants have finished.")

    def _prepare(self, image_id: str) -> dict[str, bytes]:
        """All pictures of an image by method, the input under "", ready to be served."""
        image = self._images[image_id]
        pictures = {name: self._open(picture) for name, picture in image.outputs.items()}
        size = next(iter(pictures.values())).size
        if any(picture.size != size for picture in pictures.values()):
            # `study.new` makes no such study; the message must not tell which output it is.
            raise DeskError("The pictures of this trial differ in size, so it cannot be shown.")
        # Nearest, so that nobody takes the input for a restoration.
        lq = self._open(image.lq).resize(size, Image.Resampling.NEAREST)
        files = equal_size([plain_png(picture) for picture in (*pictures.values(), lq)])
        return dict(zip((*pictures, ""), files, strict=True))

    def _open(self, picture: Picture) -> Image.Image:
        try:
            data = (self._folder / picture.path).read_bytes()
        except OSError:
            raise DeskError("A picture of this study is missing on the server.") from None
        if sha256(data) != picture.sha256:
            raise DeskError("A picture of this study has changed since the study was made.")
        return Image.open(io.BytesIO(data)).convert("RGB")


def _choice(trial: Trial, answer: Answer) -> tuple[str, int]:
    """Method or word, and position, of an answer to a trial."""
    if not (math.isfinite(answer.response_ms) and answer.response_ms >= 0):
        raise DeskError(f"A response time is 0 ms or more, not {answer.response_ms}.")
    if answer.position == SKIP:
        return SKIP, -1
    if answer.position == TIE:
        if trial.mode != "pairwise":
            raise DeskError('"No difference" is for pairs; choose a panel or skip.')
        return TIE, -1
    if not (isinstance(answer.position, int) and 0 <= answer.position < len(trial.order)):
        raise DeskError(f"Choose one of the {len(trial.order)} panels, not {answer.position!r}.")
    return trial.order[answer.position], answer.position


def _utc(seconds: float) -> str:
    from_epoch = np.datetime64(int(seconds * 1000), "ms")
    return f"{from_epoch}Z"
