"""Train the transformer on sequences: prompt with the poor picture, answer with the good one.

The layout, label masking and loss are the paper's; the defaults are PURE-nano's. Pairs are
made while training, each batch a function of its step, so a run resumes exactly.
Command: `python -m pure.train --help`.
"""

import argparse
import csv
import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from pure import nano
from pure.belief import TextTokenizer, label_text
from pure.checkpoint import load_vq
from pure.grammar import Grid
from pure.model import CONFIGS, Transformer
from pure.pretokenise import PARTS, TrainingSequence, read_shard
from pure.start import Pointer, initialise, level_pointers, start_as_copy
from pure.vocab import Vocab
from pure.vq import VQModel

log = logging.getLogger(__name__)

IGNORED = -100  # target of what is not trained on
HELD_OUT_PAIRS = 48


def nano_pointers(label: int, caption: int) -> list[Pointer]:
    """Where PURE-nano's heads look first, for texts of these lengths in tokens."""
    around = [(0, 0), (0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1)]
    looks = [("lq", *cell) for cell in around[:5]]
    looks += [("answer", -1, column) for column in (0, 1, -1)]
    looks += [("lq", *cell) for cell in around[5:]]
    full = [Pointer(i // 8, i % 8, *look, length=1 if i else 2) for i, look in enumerate(looks)]
    # these write nothing at first: what they bring is of use only where a text is left out
    without = [
        Pointer(1, 4 + i, "lq", text=text, length=0) for i, text in enumerate((0, label, caption))
    ]
    return [*full, *without]


@dataclass(frozen=True)
class SequenceTraining:
    """How a transformer is trained.

    Attributes:
        native: side of the pictures in a sequence, pixels.
        sequences: how many of the tokenised sequences there are to use; then the first comes again.
        unconditional: share of sequences that are the picture alone, which is what the
            guidance's second row reads.
        without_label, without_caption: share of answers that lack it, each.
        copier: 1 starts as `pure.start.start_as_copy`, 0 from noise.
        local: state of `pure.pretrain` to go on from.
        text_weight: how often a target in label or caption counts.
        compile: 1 compiles the transformer, which pays after a few hundred steps.
        z_loss: weight of the squared log-partition of the logits.
        ema: decay of the averaged weights that are saved for use.
    """

    size: str = "nano"
    native: int = 256
    sequences: int = 7680
    batch: int = 2
    steps: int = 3000
    lr: float = 1e-3
    warm_up: int = 100
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.02
    clip: float = 1.0
    z_loss: float = 1e-5
    unconditional: float = 0.08
    without_label: float = 0.08
    without_caption: float = 0.08
    text_weight: float = 8.0
    copier: int = 1
    local: str = ""
    compile: int = 0
    ema: float = 0.998
    seed: int = 0


def collate(
    sequences: Sequence[TrainingSequence], pad: int, length: int
) -> tuple[Tensor, Tensor]:
    """Ids and parts (B, length), padded on the right with `pad` and -1."""
    ids = torch.full((len(sequences), length), pad)
    parts = torch.full((len(sequences), length), -1)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence.ids)] = torch.tensor(sequence.ids)
        parts[row, : len(sequence.parts)] = torch.tensor(sequence.parts)
    return ids, parts


def losses(
    model: Transformer, ids: Tensor, parts: Tensor, z_loss: float, text_weight: float = 1.0
) -> dict[str, Tensor]:
    """Cross-entropy in nats: "total" over all targets (with z-loss), and the mean by part.

    A target in label or caption counts `text_weight` times in the total.

    Only positions that have a target go through the head.
    """
    hidden = model.hidden(ids[:, :-1])
    wanted = parts[:, 1:] >= 0
    logits = model.logits(hidden[wanted])  # (N, V), float32
    targets, kinds = ids[:, 1:][wanted], parts[:, 1:][wanted]
    each = F.cross_entropy(logits, targets, reduction="none")
    weight = torch.where(kinds == PARTS.index("image"), 1.0, text_weight)
    total = (each * weight).sum() / weight.sum()
    total = total + z_loss * torch.logsumexp(logits, -1).pow(2).mean()
    means = {name: each[kinds == i].mean().detach() for i, name in enumerate(PARTS)}
    return {"total": total} | means


class Trainer:
    """Holds what a training run holds; `run` takes it to its last step."""

    def __init__(self, settings: SequenceTraining, data: Path, vq: Path, out: Path) -> None:
        self.settings, self.data, self.out = settings, data, out
        out.mkdir(parents=True, exist_ok=True)
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="bf16")
        self.device = self.accelerator.device
        self.vq = load_vq(vq)
        self.names = json.loads((data / "names.json").read_text())
        self.vocab = Vocab.from_names(self.names, len(self.names))
        held_out = [s for p in sorted((data / "held_out").glob("*.safetensors")) for s in read_shard(p)]
        self.shard_size = 64
        self.length = max(len(s.ids) for s in held_out)
        self.held_out = collate(held_out[:HELD_OUT_PAIRS], self.vocab.pad, self.length)
        torch.manual_seed(settings.seed)  # initial weights only
        self.model = Transformer(replace(CONFIGS[settings.size], vocab_size=len(self.names)))
        self._start(self.names, self.vq)
        self.average = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(),
            lr=settings.lr,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
        )
        self.model, self.optimiser = self.accelerator.prepare(self.model, self.optimiser)
        if settings.compile:
            self.model.hidden = torch.compile(self.model.hidden, dynamic=False)
        self._shards: dict[int, list[TrainingSequence]] = {}
        self.step = 0
        self._resume()

    def _start(self, names: dict[str, int], vq: VQModel) -> None:
        """Initial weights: those of a copier (`pure.start`), unless the settings say otherwise."""
        initialise(self.model)
        if not self.settings.copier:
            return
        vocab = Vocab.from_names(names, len(names))
        text = TextTokenizer(nano.tokenizer(names), vocab.text)
        words = {
            "label": len(text.answer(label_text("small", "small"))),
            "caption": len(text.answer(f"{label_text('small', 'small')} {nano.EXAMPLE}")),
        }
        side = self.settings.native // vq.factor
        label, both = words["label"], words["caption"]
        pointers = nano_pointers(label, both - label)
        grid = Grid(side, side)
        start_as_copy(self.model, vocab.codes, vq.quantize.unit(), pointers, grid, both)
        if self.settings.local:
            state = torch.load(self.settings.local, weights_only=True)["model"]
            self.model.load_state_dict(state)
            ids, parts = (t[:4] for t in self.held_out)
            code = torch.isin(ids[0], torch.tensor(vocab.codes))
            level_pointers(self.model, pointers, ids, code & (parts[0] < 0), code & (parts[0] == 2))

    # Data

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Training batch number `step`, a function of it alone."""
        s = self.settings
        rng = np.random.default_rng([s.seed, 13, step])
        sequences = [
            self._drop(self._sequence(i), rng) for i in range(step * s.batch, (step + 1) * s.batch)
        ]
        return collate(sequences, self.vocab.pad, self.length)

    def _drop(self, sequence: TrainingSequence, rng: np.random.Generator) -> TrainingSequence:
        s, drop = self.settings, rng.random(3)
        if drop[2] < s.unconditional:
            return sequence.without(-1, 0, 1)
        shares = (s.without_label, s.without_caption)
        left_out = [part for part, share in enumerate(shares) if drop[part] < share]
        return sequence.without(*left_out)

    def _sequence(self, index: int) -> TrainingSequence:
        index %= self.settings.sequences
        shard, place = divmod(index, self.shard_size)
        if shard not in self._shards:
            path = self.data / "train" / f"{shard:05d}.safetensors"
            while not path.exists():
                time.sleep(2)
            self._shards = {shard: read_shard(path)}
        return self._shards[shard][place]

    # Training

    def _lr(self) -> float:
        s = self.settings
        warm = min(1.0, (self.step + 1) / s.warm_up)
        return s.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.step / s.steps)))

    def _resume(self) -> None:
        path = self.out / "state.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average, self.step = state["average"], state["step"]
        log.info("resumed at step %d", self.step)

    def save(self) -> None:
        """Write the state to resume from, and the averaged weights as a checkpoint folder."""
        state = {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average,
            "step": self.step,
        }
        temporary = self.out / "state.tmp"
        torch.save(state, temporary)
        temporary.replace(self.out / "state.pt")
        nano.write_checkpoint(
            self.out / "checkpoint",
            names=self.names,
            config=self.model.config,
            transformer={k: v.to(torch.bfloat16) for k, v in self.average.items()},
            vq_config=self.vq.config,
            vq={k: v.half().contiguous() for k, v in self.vq.state_dict().items()},
            native_pixels=self.settings.native,
            notes={
                "training": asdict(self.settings),
                "step": self.step,
            },
        )

    def train_step(self) -> dict[str, float]:
        """One optimiser step."""
        s = self.settings
        ids, parts = (t.to(self.device) for t in self.batch(self.step))
        for group in self.optimiser.param_groups:
            group["lr"] = self._lr()
        self.model.train()
        # dropout draws from the global generator: a seed per step makes resuming exact
        with torch.random.fork_rng():
            torch.manual_seed(s.seed * 1_000_003 + self.step)
            with self.accelerator.autocast():
                result = losses(self.model, ids, parts, s.z_loss, s.text_weight)
        if not torch.isfinite(result["total"]):
            raise FloatingPointError(f"the loss is {result['total'].item()} at step {self.step}")
        self.accelerator.backward(result["total"])
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), s.clip)
        self.optimiser.step()
        self.optimiser.zero_grad()
        decay = min(s.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for key, value in self.model.state_dict().items():
                self.average[key].lerp_(value, 1 - decay)
        self.step += 1
        return {k: v.item() for k, v in result.items()} | {"gradient": float(norm)}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Cross-entropies of the averaged weights on fixed held-out pairs, by part."""
        model = Transformer(self.model.config).to(self.device).eval()
        model.load_state_dict(self.average)
        sums = dict.fromkeys(PARTS, 0.0)
        ids, parts = self.held_out
        chunks = list(zip(ids.split(4), parts.split(4), strict=True))
        for chunk_ids, chunk_parts in chunks:
            with self.accelerator.autocast():
                result = losses(model, chunk_ids.to(self.device), chunk_parts.to(self.device), 0)
            for name in PARTS:
                sums[name] += result[name].item() / len(chunks)
        return {f"held_out_{name}": value for name, value in sums.items()}

    def run(self, *, save_seconds: float = 180, evaluate_every: int = 250) -> None:
        """Train to the last step, saving every `save_seconds`."""
        saved = time.monotonic()
        while self.step < self.settings.steps:
            started = time.monotonic()
            row = {"step": float(self.step)} | self.train_step()
            row["seconds"] = time.monotonic() - started
            if self.step % 25 == 0:
                if self.step % evaluate_every == 0:
                    row |= self.evaluate()
                self._append(row)
            if time.monotonic() - saved > save_seconds:
                self.save()
                saved = time.monotonic()
        self.save()

    def _append(self, row: dict[str, float]) -> None:
        log.info(" ".join(f"{k}={v:.4g}" for k, v in row.items()))
        path = self.out / "curve.csv"
        fresh = not path.exists()
        columns = ["step", "seconds", "total", *PARTS, "gradient"]
        columns += [f"held_out_{name}" for name in PARTS]
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, columns)
            if fresh:
                writer.writeheader()
            writer.writerow(row)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/sequences"))
    parser.add_argument("--vq", type=Path, default=Path("runs/vq"), help="folder of vq.safetensors")
    parser.add_argument("--out", type=Path, default=Path("runs/sequences"))
    defaults = {k: v for k, v in asdict(SequenceTraining()).items() if k != "betas"}
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    arguments = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    settings = SequenceTraining(**{name: arguments[name] for name in defaults})
    log.info(json.dumps(asdict(settings)))
    Trainer(settings, arguments["data"], arguments["vq"], arguments["out"]).run()


if __name__ == "__main__":
    main()
