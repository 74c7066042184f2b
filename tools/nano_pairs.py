"""Lay out blind pairs of what `python -m tools.nano_eval` kept: `python -m tools.nano_pairs`.

PURE-nano (dynamic) beside bicubic enlargement, at real pixels, of heavily degraded held-out crops;
which is on the left is drawn. Sheets show numbers only. The key is written to a file of its own, to
be joined with the choices afterwards: `--choices LLR...`, a letter a pair, writes both to
docs/nano-blind-pairs.csv.
"""

import argparse
import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image

from imaging import convert
from pure.data import CropSampler, load_photos
from pure.pipeline import PurePipeline, RestoreSettings
from tools.figures import table
from tools.nano_eval import CROPS_SEED, Restorations, cases

NANO, BICUBIC = "PURE-nano", "bicubic"
ON_A_SHEET = 6
COLUMNS = ("pair", "photo", "left", "right", "chosen")


def sides(pairs: int, seed: int) -> list[tuple[str, str]]:
    """What is on the left and on the right of each pair."""
    swapped = np.random.default_rng(seed).random(pairs) < 0.5
    return [(BICUBIC, NANO) if swap else (NANO, BICUBIC) for swap in swapped]


def sheets(pairs: list[tuple[Image.Image, Image.Image]]) -> list[Image.Image]:
    """Pairs one below the other, two columns of them, numbered from 1."""
    result = []
    for first in range(0, len(pairs), ON_A_SHEET):
        some = list(enumerate(pairs[first : first + ON_A_SHEET], first + 1))
        rows = []
        for left in range(0, len(some), 2):
            both = some[left : left + 2]
            name = ", ".join(str(number) for number, _ in both)
            shown: list[Image.Image | None] = [image for _, pair in both for image in pair]
            rows.append((name, shown + [None] * (4 - len(shown))))
        result.append(table(rows, ["left", "right", "left", "right"]))
    return result


def joined(key: list[dict[str, str]], choices: str) -> list[dict[str, str]]:
    """The key with what was chosen.

    Raises:
        ValueError: there are not as many choices as pairs, or one is neither L nor R.
    """
    if len(choices) != len(key) or set(choices) - {"L", "R"}:
        raise ValueError(f"expected {len(key)} letters L or R, got {len(choices)}: {choices}")
    return [
        row | {"chosen": row["left" if choice == "L" else "right"]}
        for row, choice in zip(key, choices, strict=True)
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--photos", type=Path, default=Path("data/photos"))
    parser.add_argument("--crops", type=int, default=100, help="as many as were measured")
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the sides")
    parser.add_argument("--kept", type=Path, default=Path("results/nano-eval"))
    parser.add_argument("--sheets", type=Path, default=Path("results/nano-pairs"))
    parser.add_argument("--choices", help="a letter a pair, L or R: join them with the key")
    parser.add_argument("--out", type=Path, default=Path("docs/nano-blind-pairs.csv"))
    arguments = parser.parse_args()
    key_file = arguments.sheets / "key.json"
    if arguments.choices:
        rows = joined(json.loads(key_file.read_text()), arguments.choices)
        with arguments.out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        return
    pipeline = PurePipeline.from_pretrained("nano")
    native = pipeline.checkpoint.native
    photos = load_photos(arguments.photos, "held_out", min_side=native)
    some = cases(CropSampler(photos, native, seed=CROPS_SEED), arguments.crops)
    heavy = [case for case in some if case.level == "heavy"][: arguments.pairs]
    kept = Restorations(pipeline, arguments.kept)
    pairs, key = [], []
    for number, (case, names) in enumerate(
        zip(heavy, sides(len(heavy), arguments.seed), strict=True), 1
    ):
        pictures = {
            NANO: kept(case, "dynamic", RestoreSettings(sampling="dynamic"))["image"],
            BICUBIC: convert.resize(case.lq, case.gt.size),
        }
        pairs.append((pictures[names[0]], pictures[names[1]]))
        key.append(
            {
                "pair": str(number),
                "photo": case.crop.photo.id,
                "left": names[0],
                "right": names[1],
            }
        )
    arguments.sheets.mkdir(parents=True, exist_ok=True)
    for number, sheet in enumerate(sheets(pairs), 1):
        sheet.save(arguments.sheets / f"{number:02d}.png")
    key_file.write_text(json.dumps(key, indent=1))


if __name__ == "__main__":
    main()
