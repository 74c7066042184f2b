"""Plan a study before it opens: `python -m study.plan study.json`.

Power for numbers of people and pictures, minutes per participant, and a dry run in which simulated
judges vote through the real desk and store and the real analysis reads what they left.
"""

import argparse
import hashlib
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from study.analyse import analyse_store
from study.analysis import Result
from study.design import Study, StudyError, Trial, read_study
from study.desk import Answer, Desk
from study.intervals import Array, Codes, clustered_mean
from study.simulate import (
    Crowd,
    Power,
    calibrate,
    judge_pair,
    pick_one,
    picks,
    power,
    runner_up_shares,
)
from study.store import SqliteStore
from study.tallies import codes_of
from study.votes import SKIP, TIE, VotesError, read_votes

# Assumed, for want of a pilot: seconds per trial, all panels zoomed now and then.
SECONDS = {"pick_best": 18.0, "pairwise": 9.0}
# Quoted: the PURE paper's leader; the runner-up is the smallest lead worth finding.
LEADER, RUNNER_UP = 0.389, 0.30
TABLE_PEOPLE, TABLE_IMAGES = (15, 30, 60, 100), (20, 50, 100)
START = 1_772_366_400.0  # a moment for simulated votes: 2026-03-01 12:00 UTC
SECRET = hashlib.sha256(b"dry run").digest()  # nobody real votes here


def pairs_needed(preference: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """Independent votes for one pair to show that `preference` is not 1/2.

    n = ((z_{1-alpha/2} / 2 + z_power sqrt(p (1 - p))) / (p - 1/2))^2; times the design effect
    where votes are clustered.
    """
    if not (0 < preference < 1) or preference == 0.5:
        raise ValueError(f"a preference is between 0 and 1 and not 1/2, not {preference}")
    z = stats.norm.isf(alpha / 2) / 2
    spread = stats.norm.ppf(power) * math.sqrt(preference * (1 - preference))
    return math.ceil(((z + spread) / (preference - 0.5)) ** 2 - 1e-9)


def estimate_sds(
    choice: Codes, people: Codes, pictures: Codes, methods: int
) -> tuple[float, float]:
    """Participant and image standard deviations (log-odds) from a pilot of picks.

    By moments, then corrected by simulating studies of the estimate (indirect inference): the
    spread of people's and pictures' shares beyond what chance gives.
    """
    shares = np.bincount(choice, minlength=methods) / len(choice)
    shares = np.maximum(shares, 0.5 / len(choice))
    target = np.array(_moments(choice, people, pictures, methods))
    sds = np.sqrt(np.maximum(target, 0))
    shape = int(people.max()) + 1, int(pictures.max()) + 1
    for round_ in range(6):
        crowd = calibrate(shares / shares.sum(), float(sds[0]), float(sds[1]))
        rng = np.random.default_rng(round_)
        simulated = []
        for _ in range(20):
            everything = picks(crowd, rng, *shape)
            simulated.append(_moments(everything[people, pictures], people, pictures, methods))
        now = np.maximum(np.mean(simulated, axis=0), 1e-4)
        ratio = np.sqrt(np.maximum(target, 0) / now)
        sds = np.clip(sds * np.clip(ratio, 0.5, 2), 0, 3)
    return float(sds[0]), float(sds[1])


def _moments(choice: Codes, people: Codes, pictures: Codes, methods: int) -> tuple[float, float]:
    """Variances on the logit scale by the delta method; may be negative by chance."""
    y = np.eye(methods)[choice]
    fit = clustered_mean(y, people, pictures)
    p = fit.mean
    slope = ((p * (1 - p)) ** 2).sum() + ((p[:, None] * p[None, :]) ** 2).sum() - (p**4).sum()

    def variance(V: Array, groups: int) -> float:
        # V = N^2 var(mean); a group has N / groups votes. What independent votes would give is
        # taken off, and the rest is the variance of a group's share.
        each = len(choice) / groups
        return float((V - fit.v_independent).sum() / groups / each**2 / slope)

    return (
        variance(fit.v_participant, fit.participants),
        variance(fit.v_image, fit.images),
    )


@dataclass(frozen=True)
class Minutes:
    """How long a participant takes."""

    trials: int
    seconds_per_trial: float

    @property
    def minutes(self) -> float:
        return self.trials * self.seconds_per_trial / 60


def trials_per_participant(study: Study) -> int:
    """Main, golden, repeated and training trials of one sitting."""
    pairs = 1 if study.mode == "pick_best" else len(study.methods) // 2
    main = study.images_per_participant * pairs * len(study.criteria)
    known = min(study.design.golden, len(study.golden))
    training = min(study.design.training, len(study.training))
    return main + known + training + study.design.repeats


def power_table(
    shares: Sequence[float],
    participant_sd: float,
    image_sd: float,
    *,
    people: Sequence[int] = TABLE_PEOPLE,
    images: Sequence[int] = TABLE_IMAGES,
    runs: int = 200,
    seed: int = 0,
) -> list[Power]:
    """Power of leader against runner-up for each number of people and pictures."""
    return [
        power(shares, P, n, participant_sd=participant_sd, image_sd=image_sd, runs=runs, seed=seed)
        for P in people
        for n in images
    ]


class _Clock:
    """Simulated time, for tokens and for the store's timestamps."""

    def __init__(self) -> None:
        self.seconds = START

    def __call__(self) -> float:
        return self.seconds

    def moment(self) -> datetime:
        return datetime.fromtimestamp(self.seconds, UTC)


def dry_run(
    study: Study,
    folder: Path,
    *,
    judges: int = 20,
    crowd: Crowd | None = None,
    careless: float = 0.1,
    leave: float = 0.1,
    seed: int = 0,
    bootstrap: int | None = None,
) -> Result:
    """Simulated judges vote in a store in `folder`; the result of the real analysis.

    Args:
        study: the study.
        folder: an empty folder for the store.
        judges: how many.
        crowd: what they prefer; by default a clear order with the planner's spreads.
        careless: share of judges who click anywhere, fast.
        leave: share of judges who leave half way.
        seed: of everything.
        bootstrap: replicates, instead of the plan's.
    """
    methods = study.methods
    crowd = crowd or Crowd(tuple(np.linspace(0.6, -0.6, len(methods))))
    rng = np.random.default_rng(seed)
    clock = _Clock()
    store = SqliteStore(folder / "dry-run.sqlite", clock=clock.moment)
    try:
        desk = Desk(study, store, SECRET, folder, app_version="dry run", clock=clock)
        row = {image.image_id: n for n, image in enumerate(study.images)}
        utility = crowd.deviations(rng, judges, max(1, len(row)))
        for judge in range(judges):
            code = rng.bytes(16).hex()
            desk.join(code, consent_sha256=study.consent_sha256, adult=True)
            clicks = rng.random() < careless
            stop = desk.progress(code).total // 2 if rng.random() < leave else math.inf
            while (screen := desk.next_screen(code)) and screen.index < stop:
                trial = desk.trial_behind(code, screen)
                mine = utility[judge, row[trial.image_id]] if trial.image_id in row else None
                position = _judge(trial, mine, methods, crowd.nu, clicks, rng)
                ms = int(rng.lognormal(6.2 if clicks else 8.9, 0.4))
                clock.seconds += ms / 1000
                answer = Answer(position, ms, viewport_w=1600, viewport_h=900)
                event_id = rng.bytes(16).hex()
                for _ in range(1 + (rng.random() < 0.02)):  # now and then a page sends twice
                    desk.vote(code, screen.token, answer, event_id=event_id, session_id="1")
        return analyse_store(store, study, bootstrap=bootstrap)
    finally:
        store.close()


def _judge(
    trial: Trial,
    utility: Array | None,
    methods: Sequence[str],
    nu: float,
    clicks: bool,
    rng: np.random.Generator,
) -> Any:
    """The position a judge chooses, "tie" or "skip"."""
    if clicks:
        return int(rng.integers(len(trial.order)))
    if utility is None:  # golden and training: seen by nearly everyone
        right = trial.order.index(trial.expected)
        return right if rng.random() < 0.97 else int(rng.integers(len(trial.order)))
    if rng.random() < 0.01:
        return SKIP
    shown = [methods.index(name) for name in trial.order]
    if trial.mode == "pairwise":
        return (0, 1, TIE)[judge_pair(utility, shown[0], shown[1], nu, rng)]
    return pick_one(utility, shown, rng)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; 0 if there is a plan, 2 if not."""
    parser = argparse.ArgumentParser(prog="python -m study.plan", description=__doc__)
    parser.add_argument("study_file", type=Path)
    parser.add_argument("--shares", nargs="+", type=float, help="expected shares, best first")
    parser.add_argument("--participant-sd", type=float, default=0.4, help="log-odds, default 0.4")
    parser.add_argument("--image-sd", type=float, default=0.8, help="log-odds, default 0.8")
    parser.add_argument("--pilot", type=Path, help="votes.csv to take shares and both SDs from")
    parser.add_argument("--seconds", type=float, help="per trial; default 18, for pairs 9")
    parser.add_argument("--runs", type=int, default=200, help="simulated studies per number")
    parser.add_argument("--judges", type=int, default=20, help="of the dry run; 0 for none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    arguments = parser.parse_args(argv)
    try:
        study = read_study(arguments.study_file)
        plan = _plan(study, arguments)
    except (StudyError, VotesError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if arguments.out:
        arguments.out.write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(_as_text(study, plan))
    return 0


def _plan(study: Study, arguments: argparse.Namespace) -> dict[str, Any]:
    """All that the command line prints, as JSON."""
    M = len(study.methods)
    default = runner_up_shares(LEADER, RUNNER_UP, M) if M > 2 else (0.6, 0.4)
    shares = tuple(arguments.shares or default)
    participant_sd, image_sd = arguments.participant_sd, arguments.image_sd
    seconds = arguments.seconds or SECONDS[study.mode]
    if arguments.pilot:
        shares, participant_sd, image_sd, seconds = _from_pilot(study, arguments.pilot)
    if len(shares) != M:
        raise ValueError(f"{M} methods need {M} shares, not {len(shares)}")
    length = Minutes(trials_per_participant(study), seconds)
    plan: dict[str, Any] = {
        "study_hash": study.hash,
        "shares": list(shares),
        "participant_sd": participant_sd,
        "image_sd": image_sd,
        "trials": length.trials,
        "minutes": length.minutes,
        "own": None,
        "power": [],
        "pairs": {},
    }
    values: dict[str, Any] = {"runs": arguments.runs, "seed": arguments.seed}
    if study.mode == "pick_best":
        table = power_table(shares, participant_sd, image_sd, **values)
        plan["power"] = [asdict(row) for row in table]
        own = power(
            shares,
            study.target_participants,
            study.images_per_participant,
            participant_sd=participant_sd,
            image_sd=image_sd,
            **values,
        )
        plan["own"] = asdict(own)
    else:
        plan["pairs"] = {
            f"{p:.2f}": {"80": pairs_needed(p), "90": pairs_needed(p, 0.9)}
            for p in (0.55, 0.6, 0.65, 0.7, 0.75)
        }
    if arguments.judges:
        with tempfile.TemporaryDirectory() as folder:
            crowd = calibrate(sorted(shares, reverse=True), participant_sd, image_sd)
            result = dry_run(
                study, Path(folder), judges=arguments.judges, crowd=crowd, seed=arguments.seed
            )
        plan["dry_run"] = {
            "headline": result["headline"],
            "cleaning": result["cleaning"],
            "chain_verifies": result["report_card"]["chain_verifies"],
        }
    return plan


def _from_pilot(study: Study, path: Path) -> tuple[tuple[float, ...], float, float, float]:
    """Shares, both SDs and seconds per trial as a pilot showed them."""
    frame = read_votes(path)
    main = frame[(frame["kind"] == "main") & frame["choice"].isin(study.methods)]
    if study.mode != "pick_best" or len(main) < 2:
        raise VotesError("A pilot is a file of pick-best votes on the study's methods.")
    number = {name: n for n, name in enumerate(study.methods)}
    choice = main["choice"].map(number).to_numpy(dtype=np.int64)
    people, pictures = codes_of(main["participant"])[0], codes_of(main["image_id"])[0]
    if people.max() < 1 or pictures.max() < 1:
        raise VotesError("A pilot needs two or more people and pictures.")
    counts = np.maximum(np.bincount(choice, minlength=len(number)), 0.5)
    shares = tuple(float(value) for value in sorted(counts / counts.sum(), reverse=True))
    sds = estimate_sds(choice, people, pictures, len(number))
    return shares, *sds, float(main["response_ms"].median() / 1000)


def _as_text(study: Study, plan: dict[str, Any]) -> str:
    lines = [
        f"Study {study.study_id}, {plan['study_hash'][:12]}: {len(study.methods)} methods, "
        f"{len(study.images)} pictures, {study.images_per_participant} a participant.",
        f"{plan['trials']} trials a participant, about {plan['minutes']:.0f} minutes.",
    ]
    if plan["power"]:
        lines.append(
            f"Power of first against second, two-sided 5 %, two-way errors (simulated; shares "
            f"{', '.join(f'{share:.3f}' for share in plan['shares'])}; SD of participants "
            f"{plan['participant_sd']:.2f}, of images {plan['image_sd']:.2f}):"
        )
        images = sorted({row["images"] for row in plan["power"]})
        lines.append("people " + "".join(f"{n:>6} im." for n in images))
        for people in sorted({row["participants"] for row in plan["power"]}):
            cells = [row for row in plan["power"] if row["participants"] == people]
            lines.append(f"{people:>6} " + "".join(f"{row['twoway']:>10.2f}" for row in cells))
        own = plan["own"]
        lines.append(
            f"As designed, {own['participants']} people × {own['images']} pictures: "
            f"{own['twoway']:.2f}."
        )
    for preference, n in plan["pairs"].items():
        lines.append(
            f"A true preference of {preference} takes {n['80']} independent votes on the pair for "
            f"80 % power, {n['90']} for 90 %; times the design effect."
        )
    if "dry_run" in plan:
        excluded = len(plan["dry_run"]["cleaning"]["excluded"])
        holds = "verifies" if plan["dry_run"]["chain_verifies"] else "does not verify"
        lines.append(f"Dry run: {plan['dry_run']['headline']}")
        lines.append(f"Dry run: {excluded} excluded by screening; the audit chain {holds}.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
