"""Make the study that the app opens by default: the gallery's pictures, to be judged blind.

A demonstration: eight pictures cannot say much about methods in general. Main pictures are those of
`examples/gallery`, read where they are; the trials with a known answer are made from crops of the
examples' references. A study file is never changed while people vote: run this again only
together with `tools.gallery`, whose pictures it names by their hashes.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from PIL import Image

from study.design import Study, write_study
from study.new import NewStudy, make_study

EXAMPLES = Path(__file__).parents[1] / "examples"
GOLDEN, TRAINING, REPEATS = 3, 2, 1
MAIN_MIN = 6  # of eight: the usual ten would leave everybody out
CROP = 256  # side of a picture with a known answer, in pixels
ORGANISER = "Whoever runs this app"
CONTACT = "whoever runs this app"


def make(gallery: Path, out: Path) -> Study:
    """Write the study file and its golden pictures; older ones go.

    Args:
        gallery: folder made by `tools.gallery`.
        out: the study file.
    """
    scenes = json.loads((gallery / "gallery.json").read_text(encoding="utf-8"))["scenes"]
    for stale in out.with_name(f"{out.stem}-golden").glob("*.png"):
        stale.unlink()
    with tempfile.TemporaryDirectory() as temporary:
        folder, clean = Path(temporary) / "examples", Path(temporary) / "clean"
        clean.mkdir()
        for scene in scenes:
            name = scene["name"]
            _link(gallery / scene["lq"], folder / "lq" / f"{name}.png")
            for method in scene["methods"]:
                _link(gallery / method["file"], folder / method["name"] / f"{name}.png")
            if scene["gt"] is not None:
                _crop(gallery / scene["gt"], clean / f"{name}.png")
        study, _ = make_study(
            NewStudy(
                folders=(folder,),
                out=out,
                methods=tuple(method["name"] for method in scenes[0]["methods"]),
                title="Which restoration is best? A demonstration",
                organiser=ORGANISER,
                contact=CONTACT,
                clean=clean,
                design={
                    "golden": GOLDEN,
                    "training": TRAINING,
                    "repeats": REPEATS,
                    "session_minutes": 10,
                },
            )
        )
    study = replace(study, screening=replace(study.screening, main_min=MAIN_MIN))
    write_study(study, out)
    return study


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source.resolve())


def _crop(source: Path, target: Path) -> None:
    """The centred square of a reference."""
    with Image.open(source) as opened:
        image = opened.convert("RGB")
    left, top = (image.width - CROP) // 2, (image.height - CROP) // 2
    image.crop((left, top, left + CROP, top + CROP)).save(target)


def main() -> None:
    """Make `examples/study`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gallery", type=Path, default=EXAMPLES / "gallery")
    parser.add_argument("--out", type=Path, default=EXAMPLES / "study" / "demo.json")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    study = make(arguments.gallery, arguments.out)
    sys.stdout.write(f"{arguments.out}: {len(study.images)} pictures, study hash {study.hash}\n")


if __name__ == "__main__":
    main()
