"""Measure PURE-nano on held-out photographs: `python -m tools.nano_eval`.

Writes docs/nano-eval.json. Photographs of the held-out split only, degraded at two levels: "light"
is the preset mild, "heavy" the preset realesrgan of `imaging.degrade`. PSNR is of luma (BT.601,
studio range), as super-resolution papers give it.
"""

import argparse
import json
import logging
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from imaging import convert
from imaging.degrade import levels, scores, synthesise
from pure.data import CropSampler, load_photos
from pure.pipeline import PurePipeline, RestoreSettings
from pure.sampling import SamplingConfig

log = logging.getLogger(__name__)

LEVELS = {"light": "mild", "heavy": "realesrgan"}
SEED = 20_000  # of the first crop's degradation


@dataclass(frozen=True)
class Trial:
    """One crop at one level: PSNR-Y in dB by method, and whether the label was right."""

    psnr_y: dict[str, float]
    blur_right: bool
    noise_right: bool


def luma(image: Image.Image) -> np.ndarray:
    """BT.601 luma, studio range 16 to 235, float64 (H, W)."""
    rgb = np.asarray(image.convert("RGB"), np.float64)
    return 16 + rgb @ np.array([65.481, 128.553, 24.966]) / 255


def psnr_y(a: Image.Image, b: Image.Image) -> float:
    """Peak signal-to-noise ratio of luma in dB; infinite for equal pictures."""
    mse = float(np.mean((luma(a) - luma(b)) ** 2))
    return float("inf") if mse == 0 else 10 * float(np.log10(255**2 / mse))


def trial(pipeline: PurePipeline, gt_pixels: np.ndarray, preset: str, seed: int) -> Trial:
    """Degrade a crop, restore it top-1 and dynamically, and compare with the reference."""
    lq_pixels, parameters = synthesise(gt_pixels, preset, seed)
    lq, gt = Image.fromarray(lq_pixels), Image.fromarray(gt_pixels)
    vq = pipeline.checkpoint.vq
    top1 = pipeline.restore(lq, RestoreSettings(sampling=SamplingConfig(mode="top1")))
    dynamic = pipeline.restore(lq, RestoreSettings())
    pictures = {
        "bicubic": convert.resize(lq, gt.size),
        "top1": top1.image,
        "dynamic": dynamic.image,
        "ceiling": vq.decode_image(vq.encode_image(gt)),
    }
    blur, noise = levels(scores(parameters))
    return Trial(
        {name: psnr_y(picture, gt) for name, picture in pictures.items()},
        dynamic.belief.blur == blur,
        dynamic.belief.noise == noise,
    )


def summarise(trials: dict[str, list[Trial]]) -> dict[str, object]:
    """Means over crops, by level and method."""
    everything = [t for level in trials.values() for t in level]
    result: dict[str, object] = {
        "label_accuracy_blur": statistics.fmean(t.blur_right for t in everything),
        "label_accuracy_noise": statistics.fmean(t.noise_right for t in everything),
        "tokenizer_psnr_y": statistics.fmean(t.psnr_y["ceiling"] for t in everything),
    }
    for level, some in trials.items():
        result[level] = {
            name: {"psnr_y": _mean(t.psnr_y[name] for t in some), "crops": len(some)}
            for name in some[0].psnr_y
        }
    return result


def _mean(values: Iterable[float]) -> float:
    return round(statistics.fmean(values), 3)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="nano")
    parser.add_argument("--photos", type=Path, default=Path("data/photos"))
    parser.add_argument("--crops", type=int, default=24, help="at each level")
    parser.add_argument("--out", type=Path, default=Path("docs/nano-eval.json"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    pipeline = PurePipeline.from_pretrained(arguments.checkpoint)
    native = pipeline.checkpoint.native
    photos = load_photos(arguments.photos, "held_out", min_side=native)
    sampler = CropSampler(photos, native, seed=2)
    trials: dict[str, list[Trial]] = {level: [] for level in LEVELS}
    for i in range(arguments.crops):
        pixels = sampler.crop(i).pixels
        for level, preset in LEVELS.items():
            done = trial(pipeline, pixels, preset, SEED + i)
            trials[level].append(done)
            log.info("%d %s %s", i, level, {k: round(v, 2) for k, v in done.psnr_y.items()})
    summary = {"checkpoint": pipeline.checkpoint.name, "crop_pixels": native} | summarise(trials)
    arguments.out.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
