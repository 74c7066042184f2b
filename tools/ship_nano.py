"""Make a training run the embedded checkpoint: `python -m tools.ship_nano RUN --vq VQ`.

Writes pure/weights/nano: the run's averaged weights, the tokenizer (possibly with a decoder that
was improved after the run began), and who made the photographs.
"""

import argparse
import csv
import json
import logging
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pure.checkpoint import NANO, load
from pure.data import read_index
from pure.sampling import SamplingConfig

log = logging.getLogger(__name__)

MOST_BYTES = 30_000_000  # of both weight files
CREDITS = ("id", "split", "package", "version", "source_path", "author", "licence", "credit_note")
# A decoder may be improved after a transformer was trained; these decide the codes it reads.
CODING = ("encoder.", "quant_conv.", "quantize.")


def ship(run: Path, vq: Path, photos: Path, out: Path, sampling: SamplingConfig) -> None:
    """Write the checkpoint folder `out` from `run`/checkpoint and the tokenizer file `vq`.

    `sampling` becomes the checkpoint's own.

    Raises:
        ValueError: the tokenizer gives other codes than the run was trained on, or the weights
            are too large to ship.
    """
    source = run / "checkpoint"
    trained_on = load_file(source / "vq.safetensors")
    state = {name: tensor.half().contiguous() for name, tensor in load_file(vq).items()}
    coding = {n: t.half() for n, t in trained_on.items() if n.startswith(CODING)}
    changed = [n for n, t in coding.items() if not t.equal(state[n])]
    if changed:
        raise ValueError(f"{vq} codes pictures differently from {source}: {', '.join(changed[:3])}")
    out.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "model.safetensors"):
        shutil.copyfile(source / name, out / name)
    records = read_index(photos)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["pure"]["sampling"] = asdict(sampling)
    config["pure"]["photos"] = sum(record["split"] == "train" for record in records)
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    with safe_open(vq, framework="pt") as file:
        save_file(state, out / "vq.safetensors", metadata=file.metadata())
    size = sum((out / n).stat().st_size for n in ("model.safetensors", "vq.safetensors"))
    if size > MOST_BYTES:
        raise ValueError(
            f"the weights take {size / 1e6:.1f} MB; {MOST_BYTES / 1e6:.0f} are allowed"
        )
    for path in out.iterdir():
        path.chmod(0o644)
    with (out / "photos.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, CREDITS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    checkpoint = load(out, dtype=torch.float32)
    parameters = sum(p.numel() for p in checkpoint.model.parameters())
    log.info("%s: %d transformer parameters, %.1f MB", out, parameters, size / 1e6)
    log.info("step %s", json.loads((out / "config.json").read_text())["pure"]["step"])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of `python -m pure.train`")
    parser.add_argument("--vq", type=Path, required=True, help="a vq.safetensors")
    parser.add_argument("--photos", type=Path, default=Path("data/photos"))
    parser.add_argument("--out", type=Path, default=NANO)
    own = parser.add_argument_group("how the checkpoint draws codes")
    defaults = asdict(SamplingConfig())
    for name, value in defaults.items():
        own.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sampling = SamplingConfig(**{name: getattr(arguments, name) for name in defaults})
    ship(arguments.run, arguments.vq, arguments.photos, arguments.out, sampling)


if __name__ == "__main__":
    main()
