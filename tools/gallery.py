"""Make the gallery of the Compare tab: the example photos, restored by some methods.

Every picture is stored losslessly with its run card, and measured against the reference where there
is one. The seconds are those of this machine. A second run with the same methods, seed and machine
writes the same pictures.
"""

import argparse
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from baselines import registry
from baselines.base import Method, run
from evaluation import metrics
from imaging.load import read_photo

log = logging.getLogger(__name__)

EXAMPLES = Path(__file__).parents[1] / "examples"
METHODS = ("bicubic", "lanczos", "realesrgan", "pure-nano")
METRICS = ("psnr_y", "ssim_y", "niqe", "lpips_squeeze_proxy")  # those that are ready here
LONGEST = 6  # methods of a scene: the viewer shows eight pictures, input and reference included
SEED = 0


def make(
    photos: Mapping[str, Path],
    methods: Sequence[Method],
    out: Path,
    *,
    seed: int = SEED,
    device: str = "cpu",
) -> None:
    """Restore photos with every method and write the gallery; older pictures in it go.

    Args:
        photos: inputs by scene; a reference lies beside an input as `<stem>_gt.png`.
        methods: that can run here, in the order they are shown; each is loaded once.
        out: folder of the gallery, beside or below that of the photos.
        seed: handed to every method.
        device: methods are loaded onto.

    Raises:
        ValueError: more methods than a scene can show.
    """
    if not 1 <= len(methods) <= LONGEST:
        raise ValueError(f"a scene shows 1 to {LONGEST} methods, not {len(methods)}")
    before = set(out.glob("*/*.png")) if (out / "gallery.json").exists() else set()
    written = set()
    results: dict[str, list[dict[str, Any]]] = {scene: [] for scene in photos}
    measures = _measures()
    for method in methods:
        restorer = method.load(device)
        for scene, path in photos.items():
            lq, gt = read_photo(path), _reference(path)
            restoration, card = run(method, restorer, lq, seed=seed, device=device)
            file = out / scene / f"{method.name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            restoration.image.save(file, optimize=True)
            written.add(file)
            results[scene].append(
                {
                    "name": method.name,
                    "title": method.title,
                    "file": f"{scene}/{file.name}",
                    "seconds": None
                    if restoration.seconds is None
                    else round(restoration.seconds, 4),
                    "parameters": card.details.get("parameters", card.parameters),
                    "scores": {}
                    if gt is None
                    else {
                        name: round(measure(restoration.image, read_photo(gt)), 4)
                        for name, measure in measures.items()
                    },
                    "card": card.to_dict(),
                }
            )
            log.info("%s %s %.2f s", scene, method.name, restoration.seconds or 0)
    scenes = [
        {
            "name": scene,
            "title": scene.replace("_", " ").capitalize(),
            "lq": _relative(path, out),
            "gt": None if (gt := _reference(path)) is None else _relative(gt, out),
            "methods": results[scene],
        }
        for scene, path in photos.items()
    ]
    text = json.dumps({"seed": seed, "device": device, "scenes": scenes}, indent=1)
    (out / "gallery.json").write_text(text + "\n", encoding="utf-8")
    for stale in before - written:
        stale.unlink()


def _reference(lq: Path) -> Path | None:
    path = lq.with_name(f"{lq.stem}_gt.png")
    return path if path.exists() else None


def _relative(path: Path, out: Path) -> str:
    return Path(os.path.relpath(path.resolve(), out.resolve())).as_posix()


def _measures() -> dict[str, metrics.Measure]:
    known = metrics.table()
    ready = {name: known[name].missing() is None for name in METRICS}
    for name in (name for name, is_ready in ready.items() if not is_ready):
        log.warning("%s is left out: it %s", known[name].title, known[name].missing())
    return {name: metrics.measure(known[name]) for name in METRICS if ready[name]}


def main() -> None:
    """Make `examples/gallery`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", default=",".join(METHODS), help="names, with commas")
    parser.add_argument("--photos", type=Path, default=EXAMPLES, help="folder of inputs (PNG)")
    parser.add_argument("--out", type=Path, default=EXAMPLES / "gallery")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)  # so that the seconds mean the same everywhere
    photos = {
        path.stem: path
        for path in sorted(arguments.photos.glob("*.png"))
        if not path.stem.endswith("_gt")
    }
    make(
        photos,
        registry.choose(arguments.methods.split(","), registry.discover()),
        arguments.out,
        seed=arguments.seed,
        device=arguments.device,
    )


if __name__ == "__main__":
    main()
