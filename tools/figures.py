"""Make the pictures of README and docs again, from the example photos and a checkpoint.

Every pixel is a pixel of a result: nothing is scaled for show but the input, whose column says so.
Seeds are fixed, so that a second run on the same machine writes the same bytes.
"""

import argparse
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from imaging import convert
from imaging.degrade import synthesise
from imaging.load import read_photo
from imaging.maps import heat_map, over_picture
from pure.checkpoint import CheckpointError
from pure.pipeline import PurePipeline, RestoreSettings
from pure.sampling import dynamic_k
from tools.photos import read_index

log = logging.getLogger(__name__)

SCALE = 4
SEED = 0
GAP, STRIP = 8, 26  # pixels between pictures, and of a line of text
PAPER, INK = "white", "#222222"  # a ground of its own: legible on a light page and on a dark one
WINDOW = 256  # side of what is shown of an example
ENTROPY_EXAMPLE = "cat"
CROP = 256  # side of a held-out reference: what PURE-nano restores as one picture
SHOWN_MODES = {"mild": ("dynamic",), "realesrgan": ("top1", "dynamic")}  # by preset


@dataclass(frozen=True)
class Shown:
    """An example, and the window of its result that is shown."""

    name: str
    left: int = 0
    top: int = 0


# Windows chosen by eye for what is in them, before there was a result to look at.
EXAMPLES = (
    Shown("cat", 40, 0),
    Shown("dandelions", 70, 20),
    Shown("mountain", 110, 60),
    Shown("astronaut"),
    Shown("windmill", 128, 120),
)
# Held-out photos whose licence lets a crop be shown; NOTICE credits them. Of each the centred
# square of half the shorter side, so that no crop is chosen by what became of it.
HELD_OUT = (
    "lomiri-friends",
    "lomiri-picosdeeuropa",
    "skimage-astronaut",
    "skimage-chelsea",
    "skimage-coffee",
)


def table(
    rows: Sequence[tuple[str, Sequence[Image.Image | None]]], heads: Sequence[str]
) -> Image.Image:
    """Pictures in rows and columns at real pixels, text over each column and before each row.

    Args:
        rows: a name and as many pictures as `heads`; None leaves a place empty.
        heads: what the columns show; all empty for no line of text.
    """
    sizes = [picture.size for _, row in rows for picture in row if picture]
    width, height = (max(size[axis] for size in sizes) for axis in (0, 1))
    font = ImageFont.load_default(size=15)
    names = [name for name, _ in rows]
    margin = max(math.ceil(font.getlength(name)) for name in names) + 2 * GAP if any(names) else GAP
    top = STRIP + GAP if any(heads) else GAP
    sheet = Image.new(
        "RGB",
        (margin + len(heads) * (width + GAP), top + len(rows) * (height + GAP)),
        PAPER,
    )
    pen = ImageDraw.Draw(sheet)
    for column, head in enumerate(heads):
        pen.text((margin + column * (width + GAP), GAP // 2), head, INK, font)
    for number, (name, row) in enumerate(rows):
        y = top + number * (height + GAP)
        pen.text((GAP, y + height // 2), name, INK, font, anchor="lm")
        for column, picture in enumerate(row):
            if picture:
                sheet.paste(picture, (margin + column * (width + GAP), y))
    return sheet


def restoration(pipeline: PurePipeline, examples: Path, shown: Sequence[Shown]) -> Image.Image:
    """Input, bicubic, restored and reference of several examples."""
    rows = []
    for example in shown:
        lq = read_photo(examples / f"{example.name}.png")
        size = (lq.width * SCALE, lq.height * SCALE)
        gt_path = examples / f"{example.name}_gt.png"
        pictures = [
            lq.resize(size, Image.Resampling.NEAREST),
            convert.resize(lq, size),
            pipeline.restore(lq, RestoreSettings(scale=SCALE, seed=SEED)).image,
            read_photo(gt_path) if gt_path.exists() else None,
        ]
        box = (
            example.left,
            example.top,
            min(example.left + WINDOW, size[0]),
            min(example.top + WINDOW, size[1]),
        )
        rows.append(("", [picture and picture.crop(box) for picture in pictures]))
        log.info("restored %s", example.name)
    heads = ("Input, pixels enlarged", "Bicubic", pipeline.checkpoint.name, "Reference")
    return table(rows, heads)


def entropy(pipeline: PurePipeline, examples: Path, name: str) -> Image.Image:
    """One example: the result, how unsure each code was, how many candidates were kept."""
    vq, sampling = pipeline.checkpoint.vq, pipeline.checkpoint.sampling
    settings = RestoreSettings(scale=SCALE, seed=SEED, sampling=sampling)
    output = pipeline.restore(read_photo(examples / f"{name}.png"), settings)
    blind = math.log(vq.config.codebook_size)  # nats of a guess among all codes
    limits = ((0.0, blind), tuple(dynamic_k(torch.tensor([0.0, blind]), sampling).tolist()))
    pictures = [output.image]
    for values, (low, high) in zip((output.entropy, output.k), limits, strict=True):
        cells = heat_map(values, low, high)
        pictures.append(over_picture(cells, vq.factor, output.image.size))
    units = ("{:.1f} nats", "{:.0f} kept")
    bars = [
        legend(output.image.width, low, high, unit)
        for (low, high), unit in zip(limits, units, strict=True)
    ]
    heads = (pipeline.checkpoint.name, "Entropy of each code", "Candidates kept for each code")
    sheet = table([("", pictures)], heads)
    whole = Image.new("RGB", (sheet.width, sheet.height + bars[0].height), PAPER)
    whole.paste(sheet)
    for column, bar in enumerate(bars, start=1):
        whole.paste(bar, (GAP + column * (output.image.width + GAP), sheet.height))
    return whole


def legend(width: int, low: float, high: float, unit: str) -> Image.Image:
    """The colours of a heat map from `low` to `high`, with the limits below."""
    bar = heat_map(np.linspace(low, high, width)[None], low, high).resize((width, 14))
    result = Image.new("RGB", (width, 14 + STRIP), PAPER)
    result.paste(bar)
    pen, font = ImageDraw.Draw(result), ImageFont.load_default(size=15)
    pen.text((0, 16), unit.format(low), INK, font)
    pen.text((width, 16), unit.format(high), INK, font, anchor="ra")
    return result


def held_out(pipeline: PurePipeline, photos: Path, ids: Sequence[str]) -> Image.Image:
    """Crops of photos never trained on: two degradations, two ways to sample, and the ceilings.

    Raises:
        ValueError: a photo is not held out, or not there.
    """
    records = {record.id: record for record in read_index(photos / "index.json")}
    rows: dict[str, list[Image.Image | None]] = {}
    for number, photo in enumerate(ids):
        if photo not in records or records[photo].split != "held_out":
            raise ValueError(f"{photo} is no held-out photograph in {photos}")
        gt = centre(read_photo(photos / records[photo].file))
        for name, picture in _variants(pipeline, gt, number).items():
            rows.setdefault(name, []).append(picture)
        log.info("restored %s", photo)
    return table(list(rows.items()), [""] * len(ids))


def _variants(pipeline: PurePipeline, gt: Image.Image, number: int) -> Mapping[str, Image.Image]:
    """A column of the held-out sheet, by the name of its row."""
    vq = pipeline.checkpoint.vq
    result = {}
    for preset, modes in SHOWN_MODES.items():
        lq = Image.fromarray(synthesise(np.asarray(gt), preset, number, scale=SCALE)[0])
        result[f"{preset}: bicubic"] = convert.resize(lq, gt.size)
        for mode in modes:
            settings = RestoreSettings(scale=SCALE, seed=SEED, sampling=mode)
            result[f"{preset}: {mode}"] = pipeline.restore(lq, settings).image
    result["tokenizer alone"] = vq.decode_image(vq.encode_image(gt))
    result["reference"] = gt
    return result


def centre(photo: Image.Image) -> Image.Image:
    """The centred square of half the shorter side, made `CROP` pixels wide."""
    side = max(min(photo.size) // 2, CROP)
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    square = photo.crop((left, top, left + side, top + side))
    return square.resize((CROP, CROP), Image.Resampling.LANCZOS)


def make(pipeline: PurePipeline, *, examples: Path, photos: Path, out: Path) -> None:
    """Write every figure; without the photographs all but the held-out sheet."""
    out.mkdir(parents=True, exist_ok=True)
    _save(restoration(pipeline, examples, EXAMPLES), out / "restoration.png")
    _save(entropy(pipeline, examples, ENTROPY_EXAMPLE), out / "entropy.png")
    if (photos / "index.json").exists():
        _save(held_out(pipeline, photos, HELD_OUT), out / "nano-held-out.png")
    else:
        log.warning("%s holds no photographs: nano-held-out.png is not made anew", photos)


def _save(image: Image.Image, path: Path) -> None:
    image.save(path, optimize=True)
    log.info("wrote %s", path)


def main() -> None:
    """Command line: `python -m tools.figures [--checkpoint DIR] [--out DIR]`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="nano")
    parser.add_argument("--examples", type=Path, default=Path("examples"))
    parser.add_argument("--photos", type=Path, default=Path("data/photos"))
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        pipeline = PurePipeline.from_pretrained(arguments.checkpoint)
    except CheckpointError as error:
        raise SystemExit(str(error)) from error
    make(pipeline, examples=arguments.examples, photos=arguments.photos, out=arguments.out)


if __name__ == "__main__":
    main()
