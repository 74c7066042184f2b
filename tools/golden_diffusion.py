"""Record what the diffusion methods make of tiny random checkpoints, for tests to compare with.

`python -m tools.golden_diffusion OUT.json`. The numbers are our own: they notice that something
changed, not that it is right. When they were last recorded each method had just been run beside its
published code on the same weights and noise (docs/methods.md).
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

from baselines import diffbir, osediff, pasd, seesr, stablesr, tiny
from imaging.convert import to_tensor

SIZE = (40, 32)
SEED = 7
PASD_OPTIONS = pasd.PASDOptions(steps=3, short_side=1, prompt="sharp")
PLACES = 24  # values that are kept of a tensor, evenly spread


def photo() -> Image.Image:
    """A picture by formula."""
    y, x = np.mgrid[0 : SIZE[1], 0 : SIZE[0]]
    channels = [(7 * x + 3 * y) % 256, (5 * x * y) % 256, (x * x + 11 * y) % 256]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def values(weights: Path) -> dict[str, Any]:
    """What is compared, by method, of a folder with tiny checkpoints of seed 0."""
    lq = photo()
    result: dict[str, Any] = {}
    one = osediff.load("cpu", weights=weights)
    many = seesr.load("cpu", weights=weights)
    aware = pasd.load("cpu", weights=weights)
    options = seesr.SeeSROptions(steps=3, prompt="sharp")
    for name, restoration in (
        ("osediff", one.restore(lq, seed=SEED)),
        ("seesr", many.restore(lq, seed=SEED, options=options)),
        ("pasd", aware.restore(lq, seed=SEED, options=PASD_OPTIONS)),
    ):
        result[name] = {
            "prompt": restoration.details["prompt"],
            "tags": restoration.text,
            "pixels": some(to_tensor(restoration.image)),
        }
    plain = stablesr.load("cpu", weights=weights)
    restoration = plain.restore(lq, seed=SEED, options=stablesr.StableSROptions(steps=3))
    result["stablesr"] = {"pixels": some(to_tensor(restoration.image))}
    steered = diffbir.load("cpu", weights=weights)
    chosen = diffbir.DiffBIROptions(steps=3, prompt="sharp")
    restoration = steered.restore(lq, seed=SEED, options=chosen)
    result["diffbir"] = {"pixels": some(to_tensor(restoration.image))}
    perceived = many.tagger(lq)
    result["tagger"] = {"tokens": some(perceived.tokens)}
    result["text"] = {"states": some(one.text(["a sky, a tree, ,"]))}
    return result


def some(tensor: torch.Tensor) -> list[float]:
    """`PLACES` values of a tensor, evenly spread."""
    flat = tensor.flatten()
    places = torch.linspace(0, len(flat) - 1, PLACES).long()
    return [round(value, 5) for value in flat[places].tolist()]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        for name in tiny.WRITERS:
            tiny.write(name, Path(folder))
        content = {
            "origin": "our own outputs, recorded after the comparison in docs/methods.md",
            "command": "python -m tools.golden_diffusion tests/golden/diffusion.json",
            "torch": torch.__version__,
            **values(Path(folder)),
        }
    arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
