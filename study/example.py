"""A study of simulated judges: what a result looks like, before there is one.

The methods are called A to F and the pictures have no files: nothing here is about any real
method. The votes go through the real desk and store, and the real analysis reads them.
"""

from pathlib import Path

from study.design import Consent, Mode, Picture, Study, StudyDesign, StudyImage, sha256
from study.plan import dry_run
from study.simulate import calibrate, runner_up_shares

METHODS = ("A", "B", "C", "D", "E", "F")
LEADER, RUNNER_UP = 0.389, 0.22  # the paper's share, and a gap that can be seen
SEED = 5
IMAGES = {"pick_best": 30, "pairwise": 20}  # thirty trials each, or sixty pairs
JUDGES = 30


def example_study(mode: Mode) -> Study:
    """The study file of the simulation."""

    def image(kind: str, n: int, methods: tuple[str, ...], expected: str = "") -> StudyImage:
        def picture(name: str) -> Picture:
            path = f"{kind}{n}-{name}.png"
            return Picture(path, sha256(path))

        outputs = {name: picture(name) for name in methods}
        return StudyImage(
            f"{kind}{n}", f"set{n % 3}", f"{kind}{n}", picture("input"), outputs, expected
        )

    known = ("g_best", "g_0", "g_1", "g_2", "g_3", "g_4")
    design = StudyDesign.of_mode(mode)
    return Study(
        study_id=f"simulated-{mode}",
        title="Simulated judges",
        mode=mode,
        methods=METHODS,
        images=tuple(image("picture", n, METHODS) for n in range(IMAGES[mode])),
        golden=tuple(image("known", n, known, "g_best") for n in range(design.golden)),
        training=tuple(image("practice", n, known, "g_best") for n in range(design.training)),
        design=design,
        consent=Consent("1", "Nobody takes part."),
        target_participants=JUDGES,
    )


def simulate(mode: Mode, folder: Path) -> Study:
    """Let judges vote in `folder`, an empty one; the votes are then in its `dry-run.sqlite`."""
    study = example_study(mode)
    crowd = calibrate(runner_up_shares(LEADER, RUNNER_UP, len(METHODS)), 0.4, 0.8)
    dry_run(study, folder, judges=JUDGES, crowd=crowd, seed=SEED, bootstrap=1)
    return study
