"""How good a picture PURE could write at best: references through its VQ tokenizer and back.

The paper's Table 1. PURE restores by writing codes, so no choice of codes that it could make is
expected to come closer to the reference than the reference's own. The round trip is stored like a
method's outputs, so it is scored and shown like one.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from baselines.base import pixels_sha256
from evaluation.datasets import save_png, write_atomically
from evaluation.runner import REFERENCES
from evaluation.scores import sets
from imaging.load import read_photo
from pure.checkpoint import CheckpointError, find, load_vq
from pure.vq import VQModel

FAMILY = "ceiling"


def round_trip(vq: VQModel, image: Image.Image) -> Image.Image:
    """A picture through codes and back; mirrored at its edge as far as whole cells need it."""
    rest = [-side % vq.config.factor for side in image.size]
    pixels = np.pad(np.asarray(image), ((0, rest[1]), (0, rest[0]), (0, 0)), mode="symmetric")
    decoded = vq.decode_image(vq.encode_image(Image.fromarray(pixels)))
    return decoded.crop((0, 0, image.width, image.height))


def measure(folder: Path, checkpoint: str, *, device: str = "cpu") -> int:
    """Store the round trip of every reference of a set in `<set>/ceiling-<checkpoint>`.

    Returns:
        How many were made; those there already stay.

    Raises:
        CheckpointError: there is no such tokenizer.
    """
    vq = load_vq(find(checkpoint), device=device)
    name = f"{FAMILY}-{Path(checkpoint).name}"
    target = folder / name
    target.mkdir(exist_ok=True)
    made = 0
    for path in sorted((folder / REFERENCES).glob("*.png")):
        card_path = target / f"{path.stem}.json"
        reference = read_photo(path)
        card = {
            "method": name,
            "title": f"Ceiling: tokenizer of {Path(checkpoint).name}",
            "family": FAMILY,
            "input_sha256": pixels_sha256(reference),
            "parameters": sum(p.numel() for p in vq.parameters()),
        }
        content = (json.dumps(card, indent=2) + "\n").encode()
        if card_path.exists() and card_path.read_bytes() == content:
            continue
        save_png(round_trip(vq, reference), target / path.name)
        write_atomically(card_path, content)
        made += 1
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.ceiling", description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--checkpoint", default="nano", help="nano, a folder or a hub id")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    try:
        for folder in sets(options.results):
            made = measure(folder, options.checkpoint, device=options.device)
            sys.stderr.write(f"{folder.name}: {made} made\n")
    except CheckpointError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    sys.exit(main())
