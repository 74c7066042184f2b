"""Measure PURE-nano on held-out photographs: `make nano-eval`.

Writes docs/nano-eval.json, its tables as docs/nano-eval-tables.md, and beside the restorations a
contact sheet, which stays there: not every held-out photograph may be shown (`tools.figures` shows
some that may).
Photographs of the held-out split only, degraded at two levels: "light" is the preset mild, "heavy"
the preset realesrgan of `imaging.degrade`. Labels are asked for on a third, "graded", too, and each
share that is right stands beside what the most frequent label would get. Every picture is restored
on its own, with seed 0 and the checkpoint's sampling unless a column says otherwise. Each
restoration is kept, in a folder of this checkpoint, and not made again, so a run that was
interrupted goes on.
"""

import argparse
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from baselines.base import Restorer
from baselines.registry import discover
from evaluation import metrics
from imaging import convert
from imaging.degrade import levels, scores, synthesise
from pure import nano
from pure.belief import Belief, TextTokenizer
from pure.checkpoint import Checkpoint
from pure.data import Crop, CropSampler, label_text, load_photos
from pure.pipeline import Perceived, PureOutput, PurePipeline, RestoreSettings
from pure.pretokenise import PARTS, build_sequence
from pure.sampling import SamplingConfig
from tools.figures import table

log = logging.getLogger(__name__)

LEVELS = {"light": "mild", "heavy": "realesrgan"}
GRADED = {"graded": "graded"}
LABELLED = 3  # graded crops for each of another level: reading a label takes a second
FIRST_SEED = 20_000  # of the first crop's degradation
CROPS_SEED = 2
METRICS = {
    "psnr_y": "psnr_y",
    "ssim_y": "ssim_y",
    "niqe": "niqe",
    "lpips_squeeze_proxy": "lpips_proxy",
}
# Table 5's rows of the paper, and Table 6's; and the released model's settings, which need not be
# the best of another one
GUIDANCE = ("none", "perception", "understanding", "full")
SAMPLING: dict[str, str | SamplingConfig] = {
    "top-1": "top1",
    "top-2000": "topk:2000",
    "dynamic": "dynamic",
    "as published": SamplingConfig(),
}
RESAMPLES = 2000  # of crops, for the intervals
KINDS = ("flat", "edge", "texture")
FLAT_GRADIENT = 4.0  # mean luma step per pixel below which a cell is flat, of 255
EDGE_COHERENCE = 0.6  # of the structure tensor, from which a cell that is not flat is an edge
SHOWN = 8  # crops in the contact sheet


@dataclass(frozen=True)
class Case:
    """One degraded crop."""

    index: int
    level: str
    crop: Crop
    lq: Image.Image
    label: str
    blur: str
    noise: str

    @property
    def gt(self) -> Image.Image:
        """The reference."""
        return Image.fromarray(self.crop.pixels)


def cases(sampler: CropSampler, crops: int, presets: Mapping[str, str] = LEVELS) -> list[Case]:
    """Every crop at every level, each of a preset."""
    result = []
    for index in range(crops):
        crop = sampler.crop(index)
        for level, preset in presets.items():
            pixels, parameters = synthesise(crop.pixels, preset, FIRST_SEED + index)
            blur, noise = levels(scores(crop.pixels, pixels, parameters))
            words = label_text(blur, noise)
            result.append(Case(index, level, crop, Image.fromarray(pixels), words, blur, noise))
    return result


def digest(checkpoint: Checkpoint) -> str:
    """Twelve hexadecimal digits that tell a checkpoint from one that restores otherwise."""
    own = (checkpoint.sampling, checkpoint.grammar.form)
    result = hashlib.sha256(repr(own).encode())
    for network in (checkpoint.model, checkpoint.vq):
        for tensor in network.state_dict().values():
            result.update(tensor.cpu().float().numpy().tobytes())
    return result.hexdigest()[:12]


class Restorations:
    """PURE's restorations, kept in a folder with what the model said and how unsure it was."""

    def __init__(self, pipeline: PurePipeline, folder: Path) -> None:
        self.pipeline = pipeline
        self.folder = folder / digest(pipeline.checkpoint)

    def __call__(self, case: Case, name: str, settings: RestoreSettings) -> dict[str, Any]:
        """Picture, label, caption and entropies of one restoration."""
        stem = self.folder / case.level / name / f"{case.index:04d}"
        record = stem.with_suffix(".json")
        if not record.exists():
            output = self.pipeline.restore(case.lq, settings)
            stem.parent.mkdir(parents=True, exist_ok=True)
            output.image.save(stem.with_suffix(".png"))
            record.write_text(json.dumps(_said(output)))
            log.info("%s %s %d", case.level, name, case.index)
        with Image.open(stem.with_suffix(".png")) as image:
            return json.loads(record.read_text()) | {"image": image.convert("RGB")}


def _said(output: PureOutput) -> dict[str, Any]:
    return {
        "label": output.belief.label,
        "blur": output.belief.blur,
        "noise": output.belief.noise,
        "caption": output.belief.caption,
        "entropy": output.entropy.round(3).tolist(),
        "passes": output.passes,
        "steps": output.steps,
    }


def interval(values: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """95 % of the means of crops drawn anew with replacement: the percentile bootstrap."""
    rng = np.random.default_rng(seed)
    drawn = rng.choice(np.asarray(values, float), (RESAMPLES, len(values))).mean(1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(low), float(high)


def summary(values: Sequence[float], digits: int = 4) -> dict[str, Any]:
    """Mean and its interval."""
    low, high = interval(values)
    return {
        "mean": round(float(np.mean(values)), digits),
        "low": round(low, digits),
        "high": round(high, digits),
    }


def measured(
    pictures: Sequence[tuple[Image.Image, Image.Image]],
    measures: Mapping[str, Callable[[Image.Image, Image.Image | None], float]],
) -> dict[str, list[float]]:
    """Each metric of (output, reference) pairs."""
    return {name: [measure(a, b) for a, b in pictures] for name, measure in measures.items()}


def cell_kinds(gt: Image.Image, factor: int) -> np.ndarray:
    """What each code's cell of a reference shows: an index into `KINDS`, (rows, columns).

    Flat where the mean luma gradient is small; else an edge where gradients have one direction, by
    the coherence of the structure tensor, or texture.
    """
    y = metrics.luma(gt)
    dy, dx = np.gradient(y)

    def mean(values: np.ndarray) -> np.ndarray:
        h, w = (side // factor for side in values.shape)
        cells = values[: h * factor, : w * factor].reshape(h, factor, w, factor)
        return cells.mean((1, 3))

    xx, yy, xy = mean(dx * dx), mean(dy * dy), mean(dx * dy)
    coherence = np.hypot(xx - yy, 2 * xy) / np.maximum(xx + yy, 1e-9)
    kinds = np.where(coherence >= EDGE_COHERENCE, KINDS.index("edge"), KINDS.index("texture"))
    return np.where(mean(np.hypot(dx, dy)) < FLAT_GRADIENT, KINDS.index("flat"), kinds)


def entropies(
    some: Sequence[Case], said: Sequence[Mapping[str, Any]], factor: int
) -> dict[str, Any]:
    """Mean entropy in nats of flat, edge and texture cells: per crop first, then over crops."""
    by_kind: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for case, record in zip(some, said, strict=True):
        kinds, values = cell_kinds(case.gt, factor), np.array(record["entropy"])
        for i, kind in enumerate(KINDS):
            if (kinds == i).any():
                by_kind[kind].append(float(values[kinds == i].mean()))
    return {kind: summary(v) | {"crops": len(v)} for kind, v in by_kind.items() if v}


@torch.inference_mode()
def cross_entropy(
    pipeline: PurePipeline, some: Sequence[Case], known: frozenset[str]
) -> dict[str, float]:
    """Cross-entropy of the true answers, by part, in nats a token."""
    checkpoint = pipeline.checkpoint
    sums, counts = dict.fromkeys(PARTS, 0.0), dict.fromkeys(PARTS, 0)
    for case in some:
        lq = convert.resize(case.lq, case.gt.size)
        text: TextTokenizer = checkpoint.text
        sequence = build_sequence(
            checkpoint.grammar,
            checkpoint.grammar.prompt(text.instruction(), checkpoint.vq.encode_image(lq)),
            text.answer(case.label),
            text.answer(nano.caption(case.crop.photo, case.crop.pixels, known)),
            checkpoint.vq.encode_image(case.gt),
        )
        ids, parts = torch.tensor([sequence.ids]), torch.tensor(sequence.parts)[1:]
        each = F.cross_entropy(checkpoint.model(ids)[0, :-1], ids[0, 1:], reduction="none")
        for i, name in enumerate(PARTS):
            sums[name] += float(each[parts == i].sum())
            counts[name] += int((parts == i).sum())
    return {name: round(sums[name] / counts[name], 4) for name in PARTS}


def perceived(pipeline: PurePipeline, case: Case) -> Belief:
    """The label of a picture, which is not restored."""
    events = pipeline.stream(case.lq, preview_seconds=None)
    return next(event.belief for event in events if isinstance(event, Perceived))


def label_table(told: Sequence[tuple[Case, str | None, str | None]]) -> dict[str, Any]:
    """How often labels are right at each level.

    Args:
        told: cases, each with the blur and the noise it was told to have.

    Returns:
        By level, for blur and noise: share that is right, its interval, and "guess", the share of
        the most frequent true label, which is what saying nothing else would get.
    """
    result: dict[str, Any] = {}
    for level in dict.fromkeys(case.level for case, _, _ in told):
        here = [row for row in told if row[0].level == level]
        result[level] = {"crops": len(here)}
        for what, true, said in (
            ("blur", [case.blur for case, _, _ in here], [blur for _, blur, _ in here]),
            ("noise", [case.noise for case, _, _ in here], [noise for _, _, noise in here]),
        ):
            right = [a == b for a, b in zip(true, said, strict=True)]
            most = Counter(true).most_common(1)[0][1] / len(true)
            result[level][what] = summary(right) | {"guess": round(most, 4)}
    return result


def content_right(caption: str, case: Case, known: frozenset[str]) -> bool:
    """Whether a caption names the photograph's kind or its main content word."""
    photo = case.crop.photo
    wanted = {nano.single(word) for word in (photo.kind, nano.content(photo, known))}
    return bool(wanted & set(caption.replace(",", " ").replace(";", " ").replace(".", " ").split()))


def methods(pipeline: PurePipeline) -> dict[str, Callable[[Case], Image.Image]]:
    """What needs no sampling: bicubic enlargement, the tokenizer's round trip, Real-ESRGAN."""
    vq = pipeline.checkpoint.vq
    result: dict[str, Callable[[Case], Image.Image]] = {
        "bicubic": lambda case: convert.resize(case.lq, case.gt.size),
        "ceiling": lambda case: vq.decode_image(vq.encode_image(case.gt)),
    }
    method = discover()["realesrgan"]
    if (reason := method.unavailable()) is None:
        restorer: Restorer = method.load("cpu")
        result["realesrgan"] = lambda case: restorer.restore(case.lq).image
    else:
        log.warning("left out: %s", reason)
    return result


def evaluate(
    pipeline: PurePipeline,
    some: Sequence[Case],
    kept: Restorations,
    known: frozenset[str],
    ablated: int,
    graded: Sequence[Case],
) -> tuple[dict[str, Any], Image.Image]:
    """All numbers, and the contact sheet; of `graded` the labels only."""
    measures = {}
    for name, key in METRICS.items():
        metric = metrics.table()[name]
        if (reason := metric.missing()) is None:
            measures[key] = metrics.measure(metric)
        else:
            log.warning("%s is left out: it %s", metric.title, reason)
    sampled = {name: RestoreSettings(sampling=name) for name in ("top1", "dynamic")}
    said = {name: [kept(case, name, s) for case in some] for name, s in sampled.items()}
    pictures = {name: [record["image"] for record in records] for name, records in said.items()}
    for name, restore in methods(pipeline).items():
        pictures[name] = [restore(case) for case in some]
    told = list(zip(said["dynamic"], some, strict=True))
    beliefs = [(case, perceived(pipeline, case)) for case in graded]
    labels = label_table(
        [(case, belief.blur, belief.noise) for case, belief in beliefs]
        + [(case, record["blur"], record["noise"]) for record, case in told]
    )
    result: dict[str, Any] = {}
    for what in ("blur", "noise"):
        share = labels["graded"][what]
        result[f"label_accuracy_{what}"] = share["mean"]
        result[f"label_accuracy_{what}_interval"] = [share["low"], share["high"]]
    captions = summary([content_right(record["caption"], case, known) for record, case in told])
    result["caption_content_accuracy"] = captions["mean"]
    result["caption_content_accuracy_interval"] = [captions["low"], captions["high"]]
    result["labels"] = labels
    result["cross_entropy"] = cross_entropy(pipeline, some, known)
    for level in LEVELS:
        here = [i for i, case in enumerate(some) if case.level == level]
        result[level] = {}
        for name, shown in pictures.items():
            values = measured([(shown[i], some[i].gt) for i in here], measures)
            result[level][name] = {key: summary(v)["mean"] for key, v in values.items()}
            result[level][name] |= {
                f"{key}_interval": list(interval(v)) for key, v in values.items()
            }
            result[level][name]["crops"] = len(here)
    result["tokenizer_psnr_y"] = result["heavy"]["ceiling"]["psnr_y"]
    factor = pipeline.checkpoint.vq.factor
    result["entropy_nats"] = entropies(some, said["dynamic"], factor)
    heavy = [case for case in some if case.level == "heavy"][:ablated]
    result["ablations"] = ablations(heavy, kept, measures)
    return result, contact_sheet(some, pictures)


def ablations(
    some: Sequence[Case],
    kept: Restorations,
    measures: Mapping[str, Callable[[Image.Image, Image.Image | None], float]],
) -> dict[str, Any]:
    """The paper's Table 5 (guidance) and Table 6 (sampling) in miniature, on heavy degradation."""
    rows: dict[str, dict[str, RestoreSettings]] = {
        "guidance": {
            name: RestoreSettings(guidance=name)  # type: ignore[arg-type]  # GUIDANCE lists them
            for name in GUIDANCE
        },
        "sampling": {name: RestoreSettings(sampling=text) for name, text in SAMPLING.items()},
    }
    folders = {"full": "dynamic", "dynamic": "dynamic", "top-1": "top1"}  # made already
    result: dict[str, Any] = {"level": "heavy", "crops": len(some)}
    for what, settings in rows.items():
        result[what] = {}
        for name, s in settings.items():
            images = [kept(case, folders.get(name, name), s)["image"] for case in some]
            pairs = [(image, case.gt) for image, case in zip(images, some, strict=True)]
            result[what][name] = {k: summary(v) for k, v in measured(pairs, measures).items()}
    return result


def contact_sheet(
    some: Sequence[Case], pictures: Mapping[str, Sequence[Image.Image]]
) -> Image.Image:
    """Crops spread evenly over all, one a row, at real pixels: input to reference."""
    titles = {
        "bicubic": "Bicubic",
        "top1": "PURE-nano, top-1",
        "dynamic": "PURE-nano, dynamic",
        "ceiling": "Tokenizer alone",
        "realesrgan": "Real-ESRGAN",
    }
    columns = [name for name in titles if name in pictures]
    heavy = [i for i, case in enumerate(some) if case.level == "heavy"]
    chosen = [heavy[i] for i in np.linspace(0, len(heavy) - 1, min(SHOWN, len(heavy))).astype(int)]
    rows: list[tuple[str, list[Image.Image | None]]] = [
        ("", [*(pictures[name][i] for name in columns), some[i].gt]) for i in chosen
    ]
    return table(rows, [*(titles[name] for name in columns), "Reference"])


def markdown(result: Mapping[str, Any]) -> str:
    """The tables of docs/nano-eval-tables.md: means, and 95 % intervals over crops."""
    lines: list[str] = []
    for level in LEVELS:
        rows = {
            name: {
                key: (row[key], *row[f"{key}_interval"]) for key in METRICS.values() if key in row
            }
            for name, row in result[level].items()
        }
        lines += _table(f"{level.capitalize()}, {result[level]['bicubic']['crops']} crops", rows)
    ablations = result["ablations"]
    for what in ("guidance", "sampling"):
        rows = {
            name: {key: (v["mean"], v["low"], v["high"]) for key, v in row.items()}
            for name, row in ablations[what].items()
        }
        lines += _table(f"{what.capitalize()}, heavy, {ablations['crops']} crops", rows)
    rows = {
        f"{level}, {row['crops']} crops": {
            what: (row[what]["mean"], row[what]["low"], row[what]["high"])
            for what in ("blur", "noise")
        }
        for level, row in result["labels"].items()
    }
    lines += _table("Share of labels that are right", rows)
    rows = {
        kind: {"nats": (v["mean"], v["low"], v["high"])}
        for kind, v in result["entropy_nats"].items()
    }
    return "\n".join(lines + _table("Entropy of a code by what its cell shows", rows)) + "\n"


def _table(title: str, rows: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> list[str]:
    keys = list(next(iter(rows.values())))
    lines = [f"### {title}", "", f"| | {' | '.join(keys)} |", f"| --- |{' --- |' * len(keys)}"]
    for name, row in rows.items():
        cells = (f"{mean:.3f} [{low:.3f}, {high:.3f}]" for mean, low, high in row.values())
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoint", default="nano")
    parser.add_argument("--photos", type=Path, default=Path("data/photos"))
    parser.add_argument("--crops", type=int, default=100, help="at each level")
    parser.add_argument("--ablated", type=int, default=50, help="crops of the ablations")
    parser.add_argument("--kept", type=Path, default=Path("results/nano-eval"))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    pipeline = PurePipeline.from_pretrained(arguments.checkpoint)
    native = pipeline.checkpoint.native
    known = nano.frequent_words(load_photos(arguments.photos, "train", min_side=128))
    photos = load_photos(arguments.photos, "held_out", min_side=native)
    sampler = CropSampler(photos, native, seed=CROPS_SEED)
    some = cases(sampler, arguments.crops)
    graded = cases(sampler, LABELLED * arguments.crops, GRADED)
    kept = Restorations(pipeline, arguments.kept)
    result, sheet = evaluate(pipeline, some, kept, known, arguments.ablated, graded)
    head = {"checkpoint": pipeline.checkpoint.name, "crop_pixels": native}
    (arguments.out / "nano-eval.json").write_text(json.dumps(head | result, indent=1) + "\n")
    (arguments.out / "nano-eval-tables.md").write_text(markdown(result))
    sheet.save(kept.folder / "contact-sheet.png")


if __name__ == "__main__":
    main()
