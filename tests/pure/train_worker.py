"""One process of a distributed training: `train_worker.py DATA VQ START OUT`.

Trains with whole and with sharded weights, sharded once more with an interruption; the first
process writes the weights each ended with.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from pure import train
from pure.model import TransformerConfig
from pure.sharding import whole_weights

SMALL = TransformerConfig(
    vocab_size=0,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
)
# Parts are left out, so that processes and passes have different numbers of targets.
SETTINGS = train.SequenceTraining(
    size="small",
    native=32,
    sequences=0,
    batch=4,
    steps=20,
    warm_up=2,
    lr=1e-2,
    weight_decay=0.1,
    unconditional=0.3,
    without_label=0.3,
    without_caption=0.3,
    copier=0,
    ema=0.0,
    precision="fp32",
    evaluate_every=10,
    sample_every=0,
)
RUNS = {
    "whole": SETTINGS,
    "sharded": replace(SETTINGS, sharding="full", recompute=1, per_device=1),
    "clustered": replace(
        SETTINGS, sharding="full", order="clustered", per_device=1, sample_every=20, samples=1
    ),
}


def main() -> None:
    """Train, as one of the processes the environment speaks of."""
    torch.set_num_threads(1)
    data, vq, start, out = (Path(argument) for argument in sys.argv[1:])
    train.CONFIGS["small"] = SMALL
    for name, settings in RUNS.items():
        trainer = train.Trainer(settings, data, vq, out / name)
        if name == "sharded":
            while trainer.step < 11:
                trainer.train_step()
            trainer.save()
            trainer = train.Trainer(settings, data, vq, out / name)
            assert trainer.step == 11
        trainer.run()
        weights = whole_weights(trainer.model)
        if weights:
            save_file(weights, out / f"{name}.safetensors")
    # a sharded model read from a folder, each process its own rows, and written again
    settings = replace(SETTINGS, sharding="full", export_every=1)
    trainer = train.Trainer(settings, data, vq, out / "read", start=start)
    trainer.export(out / "read" / "again")
    trainer.quit()


if __name__ == "__main__":
    main()
