"""Do the 95 % intervals cover the truth in 95 % of studies? `python -m tools.coverage_study`.

Simulated studies whose true shares are known: every judge picks the best of six on every picture,
with deviations of people and pictures. Counted is how often the interval of a share, and of the
difference between leader and runner-up, contains the share over all people and pictures.
"""

import argparse
import math
import sys
from dataclasses import dataclass

import numpy as np
from scipy import stats

from study.intervals import clustered_mean, t_quantile, wilson
from study.simulate import Crowd, calibrate, picks, runner_up_shares

SHARES = runner_up_shares(0.389, 0.26, 6)
DESIGNS = ((15, 50), (30, 50), (30, 100), (60, 50))
SPREADS = ((0.4, 0.8), (0.4, 0.4), (0.8, 0.4), (0.0, 0.0))


@dataclass(frozen=True)
class Coverage:
    """Shares of studies whose interval held the truth: of all six shares, and of the lead."""

    twoway: float
    participant: float
    wilson: float
    lead_twoway: float
    lead_participant: float
    studies: int


def coverage(crowd: Crowd, people: int, images: int, studies: int, seed: int) -> Coverage:
    """Coverage at nominal 95 % over simulated studies."""
    truth = crowd.mean_shares(seed=99)
    M = len(truth)
    rng = np.random.default_rng(seed)
    person, image = (grid.ravel() for grid in np.indices((people, images)))
    held = np.zeros(5)
    t_people = t_quantile(0.95, people - 1)
    for _ in range(studies):
        choice = picks(crowd, rng, people, images).ravel()
        y = np.eye(M)[choice]
        # The last column is the lead of the first over the second.
        fit = clustered_mean(np.column_stack([y, y[:, 0] - y[:, 1]]), person, image)
        true = np.append(truth, truth[0] - truth[1])
        low, high = fit.ci_twoway()
        inside = (low <= true) & (true <= high)
        alone = np.abs(fit.mean - true) <= t_people * fit.se_participant
        naive = [wilson(y[:, m].sum(), len(y)) for m in range(M)]
        covered = [a <= p <= b for (a, b), p in zip(naive, truth, strict=True)]
        held += [inside[:M].mean(), alone[:M].mean(), np.mean(covered), inside[M], alone[M]]
    twoway, participant, naive_share, lead_twoway, lead_participant = (held / studies).tolist()
    return Coverage(twoway, participant, naive_share, lead_twoway, lead_participant, studies)


def monte_carlo_error(studies: int) -> float:
    """Standard error of a coverage of 95 %."""
    return math.sqrt(0.95 * 0.05 / studies)


def main() -> None:
    """Command line: `python -m tools.coverage_study [--studies 400] [--seed 0]`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    error = 100 * monte_carlo_error(arguments.studies)
    sys.stdout.write(
        f"Coverage in % at nominal 95 %, {arguments.studies} studies a row; Monte Carlo error of "
        f"a lead {error:.1f} points (of shares less); z = {stats.norm.isf(0.025):.2f}\n\n"
        "| participant SD | image SD | people × images | shares, two-way | lead, two-way | "
        "shares, participants only | lead, participants only | shares, Wilson |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
    )
    for participant_sd, image_sd in SPREADS:
        crowd = calibrate(SHARES, participant_sd, image_sd)
        for people, images in DESIGNS:
            row = coverage(crowd, people, images, arguments.studies, arguments.seed)
            cells = (row.twoway, row.lead_twoway, row.participant, row.lead_participant, row.wilson)
            sys.stdout.write(
                f"| {participant_sd} | {image_sd} | {people} × {images} | "
                + " | ".join(f"{100 * cell:.1f}" for cell in cells)
                + " |\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
