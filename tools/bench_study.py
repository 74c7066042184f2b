"""How long the analysis of a large study takes: `python -m tools.bench_study`.

Simulated votes in memory, the whole of pipeline v1, both modes.
"""

import argparse
import sys
import time

import numpy as np
import pandas as pd

from study.analysis import analyse
from study.davidson import pair_index
from study.simulate import Crowd
from study.votes import COLUMNS, typed

METHODS = ("a", "b", "c", "d", "e", "f")
STUDY_HASH = "b" * 64


def simulated_votes(mode: str, rows: int, images: int = 50, seed: int = 0) -> pd.DataFrame:
    """Main votes of schema version 1 by people who each judge every picture once."""
    rng = np.random.default_rng(seed)
    people = -(-rows // images)
    utility = Crowd(tuple(np.linspace(0.6, -0.6, len(METHODS)))).deviations(rng, people, images)
    person, image = (grid.ravel()[:rows] for grid in np.indices((people, images)))
    mine = utility[person, image]
    if mode == "pick_best":
        order = rng.permuted(np.tile(np.arange(len(METHODS)), (rows, 1)), axis=1)
        seen = np.take_along_axis(mine, order, axis=1)
        position = (seen + rng.gumbel(size=seen.shape)).argmax(1)
        outcome = np.zeros(rows, dtype=int)
    else:
        index = pair_index(len(METHODS))
        pair = rng.integers(len(index.first), size=rows)
        order = np.stack([index.first[pair], index.second[pair]], axis=1)
        order = rng.permuted(order, axis=1)
        seen = np.take_along_axis(mine, order, axis=1)
        scores = np.column_stack([seen, seen.mean(1) + np.log(0.5)])
        outcome = (scores + rng.gumbel(size=scores.shape)).argmax(1)
        position = np.where(outcome == 2, -1, outcome)
    names = np.array(METHODS)[order]
    chosen = names[np.arange(rows), np.maximum(position, 0)]
    frame = pd.DataFrame(dict.fromkeys(COLUMNS, ""), index=range(rows))
    frame = frame.assign(
        schema_version="1",
        event_id=[f"{n:032x}" for n in range(rows)],
        seq=np.arange(1, rows + 1).astype(str),
        study_hash=STUDY_HASH,
        participant=[f"{p:016x}" for p in person],
        trial_id=[f"t{n}" for n in range(rows)],
        kind="main",
        mode=mode,
        criterion="overall",
        image_id=[f"i{i}" for i in image],
        dataset=[f"d{i % 3}" for i in image],
        scene=[f"s{i % 10}" for i in image],
        methods_shown=["|".join(row) for row in names],
        choice=np.where(position < 0, "tie", chosen),
        choice_position=position.astype(str),
        response_ms=rng.integers(3000, 20000, rows).astype(str),
        viewport_w="1600",
        zoomed="0",
    )
    return typed(frame)


def main() -> None:
    """Command line: `python -m tools.bench_study [--rows 20000] [--bootstrap 2000]`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--bootstrap", type=int, default=2000)
    arguments = parser.parse_args()
    for mode in ("pick_best", "pairwise"):
        frame = simulated_votes(mode, arguments.rows)
        wall, processor = time.perf_counter(), time.process_time()
        result = analyse(frame, bootstrap=arguments.bootstrap)
        sys.stdout.write(
            f"{mode}: {arguments.rows} votes, {result['cleaning']['participants_kept']} people, "
            f"B = {arguments.bootstrap}, screened and unscreened: "
            f"{time.perf_counter() - wall:.1f} s, {time.process_time() - processor:.1f} s of "
            "processor\n"
        )


if __name__ == "__main__":
    main()
