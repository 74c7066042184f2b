"""Make a study from results folders: `python -m study.new results/<set> ... --out study.json`.

A results folder holds `lq/`, optionally `gt/`, and one folder per method, with the same file names
in all. Golden and training trials are made from references, or from a folder of clean photos, by
shrinking and noise so strong that the best panel cannot be missed.
"""

import argparse
import csv
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from study.design import (
    Consent,
    Draw,
    Mode,
    Picture,
    Study,
    StudyDesign,
    StudyError,
    StudyImage,
    sha256,
    write_study,
)
from study.votes import CRITERIA, MODES, Screening

INPUTS, REFERENCES = "lq", "gt"
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
SHRINK, SHRINK_STEP = 8, 2  # the mildest golden decoy is shrunk eightfold and enlarged again
DECOY_NOISE = 35  # standard deviation in grey levels, on every other decoy
CLEAN_SCALE = 4  # inputs made from clean photos are so much smaller
CONSENT_VERSION = "1"
CONSENT = """\
{organiser} asks for your judgement of restored photographs, to learn which method people prefer.
You will see {trials} sets of pictures, which takes about {minutes} minutes. You may stop at any
time; the answers you have given until then count.

Stored are: your answers with their times, window size and zoom, and what you choose to say about
your eyesight, experience and screen, under a random code that your browser keeps. No name, no
e-mail, no network address and no browser signature are stored. The answers are published without
the codes and kept as long as the study's results are.

With your code you can have all your answers erased, during the study and after it.
Questions: {contact}

By taking part you confirm that you are 18 or older and agree to this.
"""


@dataclass(frozen=True)
class NewStudy:
    """What to make a study from.

    Attributes:
        folders: results folders, one per data set.
        out: the study file; picture paths are written relative to its folder.
        mode: the kind of main trial.
        methods: which, in order; empty for all that have a folder.
        criteria: asked in separate blocks.
        title, organiser, contact: for the consent text.
        consent: a text to use instead of ours; empty for ours.
        target_participants: N.
        clean: folder of clean photos for golden and training trials; None to use references.
        scenes: image file stem to scene, for pictures that show the same.
        active: draw pairs by expected information.
        design: values that differ from the mode's defaults.
    """

    folders: tuple[Path, ...]
    out: Path
    mode: Mode = "pick_best"
    methods: tuple[str, ...] = ()
    criteria: tuple[str, ...] = (CRITERIA[0],)
    title: str = "Which restoration is best?"
    organiser: str = "The organiser of this study"
    contact: str = "whoever sent you the link"
    consent: str = ""
    target_participants: int = 30
    clean: Path | None = None
    scenes: Mapping[str, str] = field(default_factory=dict)
    active: bool = False
    design: Mapping[str, Any] = field(default_factory=dict)


def make_study(request: NewStudy) -> tuple[Study, list[str]]:
    """Read the folders, write golden pictures beside the study file, and give the study.

    Returns:
        The study, and remarks about what is missing.

    Raises:
        StudyError: the folders do not make a study; the message says what to change.
    """
    base = request.out.resolve().parent
    methods = request.methods or _methods_in(request.folders)
    remarks: list[str] = []
    images = [
        image
        for folder in request.folders
        for image in _images(folder, methods, base, request.scenes, remarks)
    ]
    if not images:
        looked = ", ".join(str(folder) for folder in request.folders)
        raise StudyError(f"No picture has an input in {INPUTS}/ and two or more outputs: {looked}.")
    design = StudyDesign.of_mode(request.mode, **request.design)
    golden, training, used = _known(request, methods, images, design, base)
    missing = design.golden - len(golden)
    if missing > 0:
        remarks.append(
            f"{len(golden)} of {design.golden} golden trials: add {REFERENCES}/ to the results or "
            "name a folder of clean photos. Without them nobody can be screened by golden trials."
        )
        design = replace(design, golden=len(golden), training=len(training))
    if used:
        left = [image for image in images if image.image_id not in used]
        if len(left) >= 3 * len(used):
            images = left
            remarks.append(f"{len(used)} pictures are kept for golden and training trials.")
        else:
            remarks.append(
                "Too few pictures to keep some for golden and training trials: the references of "
                f"{len(used)} main pictures are shown there. A folder of clean photos avoids that."
            )
    study = Study(
        study_id=request.out.stem,
        title=request.title,
        mode=request.mode,
        methods=tuple(methods),
        images=tuple(images),
        consent=Consent(CONSENT_VERSION, request.consent),
        criteria=request.criteria,
        golden=golden,
        training=training,
        design=design,
        screening=Screening.of_mode(request.mode),
        target_participants=request.target_participants,
        stop_rule=f"Closes for new people when {request.target_participants} have finished.",
        active=request.active,
    )
    return _with_consent(study, request), remarks


def _with_consent(study: Study, request: NewStudy) -> Study:
    if request.consent:
        return study
    pairs = 1 if study.mode == "pick_best" else len(study.methods) // 2
    main = study.images_per_participant * pairs * len(study.criteria)
    trials = main + study.design.golden + study.design.repeats + study.design.training
    text = CONSENT.format(
        organiser=request.organiser,
        contact=request.contact,
        trials=trials,
        minutes=study.design.session_minutes,
    )
    return replace(study, consent=Consent(CONSENT_VERSION, text))


def _methods_in(folders: Iterable[Path]) -> tuple[str, ...]:
    names: list[str] = []
    for folder in folders:
        if not folder.is_dir():
            raise StudyError(f"There is no folder {folder}.")
        for path in sorted(folder.iterdir()):
            if path.is_dir() and path.name not in (INPUTS, REFERENCES, *names):
                names.append(path.name)
    return tuple(names)


def _pictures(folder: Path) -> dict[str, Path]:
    """Picture files of a folder by stem."""
    if not folder.is_dir():
        return {}
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)
    return {path.stem: path for path in files}


def _images(
    folder: Path,
    methods: Sequence[str],
    base: Path,
    scenes: Mapping[str, str],
    remarks: list[str],
) -> list[StudyImage]:
    if not folder.is_dir():
        raise StudyError(f"There is no folder {folder}.")
    dataset = folder.resolve().name
    inputs = _pictures(folder / INPUTS)
    outputs = {name: _pictures(folder / name) for name in methods}
    images = []
    for stem, lq in inputs.items():
        files = {name: outputs[name][stem] for name in methods if stem in outputs[name]}
        gone = [name for name in methods if name not in files]
        if gone:
            remarks.append(f"{dataset}/{stem} lacks {', '.join(gone)}.")
        if len(files) < 2:
            continue
        sizes = {name: _size(path) for name, path in files.items()}
        if len(set(sizes.values())) > 1:
            shown = ", ".join(f"{name} {w} × {h}" for name, (w, h) in sizes.items())
            raise StudyError(f"The outputs of {dataset}/{stem} differ in size: {shown}.")
        images.append(
            StudyImage(
                image_id=f"{dataset}/{stem}",
                dataset=dataset,
                scene=scenes.get(stem, f"{dataset}/{stem}"),
                lq=_picture(lq, base),
                outputs={name: _picture(path, base) for name, path in files.items()},
            )
        )
    return images


def _size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.size
    except OSError:
        raise StudyError(f"{path} is not a picture.") from None


def _picture(path: Path, base: Path) -> Picture:
    relative = Path(os.path.relpath(path.resolve(), base)).as_posix()
    return Picture(relative, sha256(path.read_bytes()))


def _known(
    request: NewStudy,
    methods: Sequence[str],
    images: Sequence[StudyImage],
    design: StudyDesign,
    base: Path,
) -> tuple[tuple[StudyImage, ...], tuple[StudyImage, ...], set[str]]:
    """Golden and training pictures, and the main pictures whose references they show."""
    decoys = 1 if request.mode == "pairwise" else len(methods) - 1
    folder = base / f"{request.out.stem}-golden"
    wanted = design.golden + design.training
    sources: list[tuple[str, Path, Path | None]] = []
    if request.clean is not None:
        clean = _pictures(request.clean)
        if not clean:
            raise StudyError(f"There are no pictures in {request.clean}.")
        sources = [(f"clean/{stem}", path, None) for stem, path in clean.items()]
    else:
        by_name = {path.resolve().name: path for path in request.folders}
        for image in images:
            stem = Path(image.lq.path).stem
            reference = _pictures(by_name[image.dataset] / REFERENCES).get(stem)
            if reference is not None:
                sources.append((image.image_id, reference, base / image.lq.path))
    # By the names alone, so that the same folders give the same study.
    key = sha256("|".join(name for name, _, _ in sources))
    chosen = Draw(key, "study", "golden pictures").shuffled(sources)[:wanted]
    known = []
    for number, (name, reference, lq) in enumerate(chosen):
        folder.mkdir(parents=True, exist_ok=True)
        known.append(_known_image(number, name, reference, lq, folder, base, decoys))
    used = set() if request.clean is not None else {name for name, _, _ in chosen}
    return tuple(known[: design.golden]), tuple(known[design.golden :]), used


def _known_image(
    number: int,
    name: str,
    reference: Path,
    lq: Path | None,
    folder: Path,
    base: Path,
    decoys: int,
) -> StudyImage:
    """One picture with its reference as the known best and ruined copies of it."""
    with Image.open(reference) as opened:
        best = opened.convert("RGB")
    files = {"g_best": best}
    for k in range(decoys):
        files[f"g_{k}"] = decoy(best, k, seed=number)
    outputs = {}
    for label, image in files.items():
        path = folder / f"{number:02d}_{label}.png"
        image.save(path)
        outputs[label] = _picture(path, base)
    if lq is None:
        lq = folder / f"{number:02d}_input.png"
        width, height = (max(1, side // CLEAN_SCALE) for side in best.size)
        best.resize((width, height), Image.Resampling.BICUBIC).save(lq)
    return StudyImage(
        image_id=f"known{number:02d}",
        dataset="known",
        scene=name,
        lq=_picture(lq, base),
        outputs=outputs,
        expected="g_best",
    )


def decoy(best: Image.Image, k: int, *, seed: int) -> Image.Image:
    """The k-th ruined copy: shrunk 8 + 2k times, noise on every other, enlarged again."""
    factor = SHRINK + SHRINK_STEP * k
    width, height = (max(1, side // factor) for side in best.size)
    small = best.resize((width, height), Image.Resampling.BICUBIC)
    large = small.resize(best.size, Image.Resampling.BICUBIC)
    if k % 2 == 0:
        return large
    noise = np.random.default_rng([seed, k]).normal(0, DECOY_NOISE, (best.height, best.width, 3))
    return Image.fromarray((np.asarray(large) + noise).clip(0, 255).astype(np.uint8))


def read_scenes(path: Path) -> dict[str, str]:
    """Image file stem to scene, from a CSV with the columns image and scene."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if not {"image", "scene"} <= set(reader.fieldnames or ()):
            raise StudyError(f"{path.name} needs the columns image and scene.")
        return {Path(row["image"]).stem: row["scene"] for row in reader}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; 0 if a study was written, 2 if not."""
    parser = argparse.ArgumentParser(prog="python -m study.new", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="results/<set>, one or more")
    parser.add_argument("--out", type=Path, required=True, help="the study file to write")
    parser.add_argument("--mode", choices=MODES, default="pick_best")
    parser.add_argument("--methods", nargs="+", default=[], help="default: every folder there is")
    parser.add_argument("--criteria", nargs="+", choices=CRITERIA, default=[CRITERIA[0]])
    parser.add_argument("--participants", type=int, default=30, help="target, default 30")
    parser.add_argument("--title", default=NewStudy.title)
    parser.add_argument("--organiser", default=NewStudy.organiser)
    parser.add_argument("--contact", default=NewStudy.contact)
    parser.add_argument("--consent", type=Path, help="text file to use instead of ours")
    parser.add_argument("--golden-from", type=Path, help="folder of clean photos")
    parser.add_argument("--scenes", type=Path, help="CSV image,scene for pictures of one scene")
    parser.add_argument("--active", action="store_true", help="draw pairs by expected information")
    parser.add_argument("--main-max", type=int, help="main trials a participant at most")
    parser.add_argument("--block-small-screens", action="store_true")
    arguments = parser.parse_args(argv)
    design: dict[str, Any] = {}
    if arguments.main_max is not None:
        design["main_max"] = arguments.main_max
    if arguments.block_small_screens:
        design["small_viewport"] = "block"
    try:
        if arguments.out.exists():
            raise StudyError(f"{arguments.out} exists. A study file is a preregistration: move it.")
        study, remarks = make_study(
            NewStudy(
                folders=tuple(arguments.folders),
                out=arguments.out,
                mode=arguments.mode,
                methods=tuple(arguments.methods),
                criteria=tuple(arguments.criteria),
                title=arguments.title,
                organiser=arguments.organiser,
                contact=arguments.contact,
                consent=arguments.consent.read_text("utf-8") if arguments.consent else "",
                target_participants=arguments.participants,
                clean=arguments.golden_from,
                scenes=read_scenes(arguments.scenes) if arguments.scenes else {},
                active=arguments.active,
                design=design,
            )
        )
        write_study(study, arguments.out)
    except (StudyError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    for remark in remarks:
        sys.stderr.write(f"{remark}\n")
    sys.stdout.write(
        f"{arguments.out}: {len(study.methods)} methods, {len(study.images)} pictures, "
        f"{study.images_per_participant} a participant, {len(study.golden)} golden\n"
        f"study hash {study.hash}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
