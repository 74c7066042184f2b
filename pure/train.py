"""Train the transformer on sequences: prompt with the poor picture, answer with the good one.

The layout, label masking and loss are the paper's. One set of code trains PURE-nano on a laptop
and the 7B model on 32 GPUs; what differs is `PRESETS`. Each batch is a function of its step, so a
run resumes exactly, and a step is the same however many processes share it.

    python -m pure.train                                  # PURE-nano
    accelerate launch -m pure.train --preset paper --start GROWN ...

docs/training.md has the paper's commands in full, with their memory and time.
"""

import argparse
import json
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args, get_type_hints

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from pure import nano
from pure.belief import TextTokenizer
from pure.checkpoint import (
    VQ_FILE,
    VQ_SAFETENSORS,
    CheckpointError,
    load_vq,
    own_grammar,
    own_sampling,
    read_config,
    read_names,
)
from pure.decode import Conversation
from pure.engine import Engine
from pure.grammar import Grammar, Grid
from pure.model import CONFIGS, Transformer, TransformerConfig
from pure.pretokenise import PARTS, PROMPT, DataSetError, TokenisedSet, TrainingSequence
from pure.sampling import SamplingConfig
from pure.sharding import (
    fill,
    memory_plan,
    read_sharded_state,
    shard,
    time_plan,
    whole_weights,
    write_sharded_state,
)
from pure.start import initialise, start_as_copy
from pure.training import (
    Curve,
    TrainingError,
    learning_rate,
    read_state,
    update_average,
    write_state,
)
from pure.vocab import Vocab

log = logging.getLogger(__name__)

HELD_OUT_PAIRS = 48
EVALUATED = 4  # held-out pairs in one pass
WINDOW = 500  # batches whose sequences are mixed when they are sorted by length, as published
COMPILED_STEP = 64  # lengths are rounded up to a multiple, as each is compiled for anew
WAIT_SECONDS = 2.0  # between looks for a shard that is still being made
CURVE = [
    *("step", "seconds", "rate", "total", *PARTS, "gradient"),
    *(f"held_out_{name}" for name in PARTS),
]
A800_FLOPS = 312e12  # bfloat16, dense, a second; NVIDIA's data sheet
UTILISATION = 0.4  # of it; assumed


@dataclass(frozen=True)
class SequenceTraining:
    """How a transformer is trained; defaults are PURE-nano's.

    Attributes:
        size: a name in `pure.model.CONFIGS`; with a checkpoint to start from, its own is used.
        native: side of the pictures in a sequence, pixels.
        sequences: how many of the tokenised sequences there are to use, 0 for all; then the
            first comes again.
        order: "given" takes sequences one after the other, also while more are being made;
            "clustered" puts those of similar length into one batch, mixed anew every epoch.
        batch: sequences a step, of all processes together.
        per_device: sequences in one pass of one process; 0 for its whole share. The rest of its
            share is accumulated.
        steps, epochs: how long; one of them is 0.
        warm_up, warm_up_epochs: the learning rate's, in steps and in epochs, added up.
        dropout: on both residual branches.
        unconditional: share of sequences that are the picture alone, which is what the
            guidance's second row reads.
        without_label, without_caption: share of answers that lack it, each.
        misread: up to this share of the codes of an answer, drawn for each sequence, is read
            wrongly while it is being continued: as the poor picture's code, or as another of the
            picture. Targets stay right. When it writes by itself it meets codes that no photograph
            holds, and has to go on trusting the poor picture.
        copier: 1 starts as `pure.start.start_as_copy`, 0 from noise.
        text_weight: how often a target in label or caption counts.
        compile: 1 compiles the transformer, which pays after a few hundred steps.
        z_loss: weight of the squared log-partition of the logits.
        ema: decay of the averaged weights that are saved for use; 0 saves the last ones.
        sharding: "full" keeps a part of every parameter on each process, "none" all on all.
        recompute: 1 runs blocks again in the backward pass instead of keeping activations.
        precision: of the passes; weights and gradients are float32.
        save_seconds: between states to resume from.
        export_every: steps between checkpoints in the released format, 0 for one with each state.
        evaluate_every, sample_every: steps between losses on held-out pairs, and between
            restorations of some; 0 for none.
        samples: held-out pairs that are restored.
        tensorboard: 1 also writes TensorBoard's event files.
    """

    size: str = "nano"
    native: int = 256
    sequences: int = 7680
    order: Literal["given", "clustered"] = "given"
    batch: int = 2
    per_device: int = 0
    steps: int = 3000
    epochs: float = 0.0
    lr: float = 1e-3
    warm_up: int = 100
    warm_up_epochs: float = 0.0
    lowest_rate: float = 0.02
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.02
    clip: float = 1.0
    dropout: float = 0.0
    z_loss: float = 1e-5
    unconditional: float = 0.08
    without_label: float = 0.08
    without_caption: float = 0.08
    misread: float = 0.5
    text_weight: float = 8.0
    copier: int = 1
    compile: int = 0
    ema: float = 0.998
    sharding: Literal["none", "full"] = "none"
    recompute: int = 0
    precision: Literal["bf16", "fp32"] = "bf16"
    save_seconds: int = 180
    export_every: int = 0
    evaluate_every: int = 250
    sample_every: int = 500
    samples: int = 2
    tensorboard: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.steps > 0) == (self.epochs > 0):
            raise ValueError("give either steps or epochs, and 0 for the other")
        if self.sharding == "full" and (self.ema or self.compile):
            raise ValueError("averaged and compiled weights are whole: not with sharding full")


PRESETS = {
    "nano": SequenceTraining(),
    # The published settings. Which sequences had no prompt, as guidance's second row reads them,
    # is not published: none here.
    "paper": SequenceTraining(
        size="7b",
        native=512,
        sequences=0,
        order="clustered",
        batch=128,
        per_device=4,
        steps=0,
        epochs=2.0,
        lr=4e-4,
        warm_up=0,
        warm_up_epochs=0.5,
        lowest_rate=0.0,
        weight_decay=0.1,
        clip=4.0,
        dropout=0.05,
        z_loss=0.0,
        unconditional=0.0,
        without_label=0.0,
        without_caption=0.0,
        text_weight=1.0,
        misread=0.0,
        copier=0,
        ema=0.0,
        sharding="full",
        recompute=1,
        save_seconds=1800,
        export_every=371,  # half an epoch of LSDIR and 10,000 faces
        evaluate_every=100,
        sample_every=371,
        samples=1,
    ),
}


def collate(
    sequences: Sequence[TrainingSequence], pad: int, length: int | None = None
) -> tuple[Tensor, Tensor]:
    """Ids and parts (B, length), padded on the right with `pad` and -1.

    Without a length it is the longest sequence's; what is longer than a given one is cut off.
    """
    length = length or max(len(sequence.ids) for sequence in sequences)
    ids = torch.full((len(sequences), length), pad)
    parts = torch.full((len(sequences), length), PROMPT)
    for row, sequence in enumerate(sequences):
        end = min(length, len(sequence.ids))
        ids[row, :end] = torch.tensor(sequence.ids[:end])
        parts[row, :end] = torch.tensor(sequence.parts[:end])
    return ids, parts


def clustered_order(lengths: Sequence[int], batch: int, *, seed: int, epoch: int) -> np.ndarray:
    """Sequence numbers of an epoch, (batches, batch), similar lengths together.

    Sorted by length, mixed within windows of `WINDOW` batches, cut into batches, the batches
    mixed; what fills no batch is left out. Source: the published data loader.
    """
    rng = np.random.default_rng([seed, 19, epoch])
    order = rng.permutation(len(lengths))  # so that equal lengths are in no fixed order
    order = order[np.argsort(np.asarray(lengths)[order], kind="stable")]
    for start in range(0, len(order), WINDOW * batch):
        rng.shuffle(order[start : start + WINDOW * batch])
    batches = order[: len(order) // batch * batch].reshape(-1, batch)
    return rng.permutation(batches)


def misread(
    ids: Tensor, parts: Tensor, code_ids: Tensor, most: float, rng: np.random.Generator
) -> Tensor:
    """A sequence with some codes of the answer replaced, ids (T,) of parts (T,).

    A share of them, uniform between 0 and `most`, becomes with equal chance the poor picture's
    code of the same cell, or the answer's of a random one.
    """
    is_code = torch.isin(ids, code_ids)
    answer = (is_code & (parts == PARTS.index("image"))).nonzero().flatten()
    lq = (is_code & (parts == PROMPT)).nonzero().flatten()
    wrong = torch.from_numpy(rng.random(len(answer)) < rng.uniform(0, most))
    instead = ids[answer][torch.from_numpy(rng.permutation(len(answer)))]
    if len(lq) == len(answer):  # a sequence may lack its prompt
        plain = torch.from_numpy(rng.random(len(answer)) < 0.5)
        instead = torch.where(plain, ids[lq], instead)
    read = ids.clone()
    read[answer] = torch.where(wrong, instead, ids[answer])
    return read


class SequenceLoss(nn.Module):
    """The sums of which a loss is made, over all targets of some sequences.

    Sums, because the mean of a step is over the targets of all its passes and processes.
    """

    def __init__(self, transformer: Transformer, text_weight: float = 1.0) -> None:
        super().__init__()
        self.transformer = transformer
        self.text_weight = text_weight

    def weights(self, parts: Tensor) -> Tensor:
        """How often each target (N,) counts, of parts (N,)."""
        return torch.where(parts == PARTS.index("image"), 1.0, self.text_weight)

    def forward(self, ids: Tensor, parts: Tensor, read: Tensor | None = None) -> dict[str, Tensor]:
        """Of ids and parts (B, T); `read` (B, T) is what stands before each target, if not `ids`.

        Returns:
            "weighted": cross-entropies in nats, times their weights; "z": squared log-partitions;
            by part its name: cross-entropies, detached, and "N " and its name: how many.
        """
        hidden = self.transformer.hidden((ids if read is None else read)[:, :-1])
        wanted = parts[:, 1:] >= 0  # only what has a target goes through the head
        logits = self.transformer.logits(hidden[wanted])  # (N, V), float32
        targets, kinds = ids[:, 1:][wanted], parts[:, 1:][wanted]
        each = F.cross_entropy(logits, targets, reduction="none")
        sums = {
            "weighted": (each * self.weights(kinds)).sum(),
            "z": torch.logsumexp(logits, -1).pow(2).sum(),
        }
        for i, name in enumerate(PARTS):
            sums[name] = each.detach()[kinds == i].sum()
            sums[f"N {name}"] = (kinds == i).sum().float()
        return sums


class Trainer:
    """Holds what a training run holds; `run` takes it to its last step.

    Args:
        settings: how to train.
        data: folder of names.json and of the tokenised sets train and held_out.
        vq: folder of the VQ tokenizer, for sample restorations and to go with checkpoints.
        out: folder of the run.
        start: checkpoint folder to start from; else as the settings say.

    Raises:
        TrainingError: settings, data, start and processes do not go together.
        DataSetError: there are no tokenised sequences.
        CheckpointError: the tokenizer or the checkpoint to start from cannot be read.
    """

    def __init__(
        self,
        settings: SequenceTraining,
        data: Path,
        vq: Path,
        out: Path,
        start: Path | None = None,
    ) -> None:
        self.settings, self.out, self.start, self._vq_folder = settings, out, start, vq
        out.mkdir(parents=True, exist_ok=True)
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision="bf16" if settings.precision == "bf16" else "no",
        )
        self.device = self.accelerator.device
        self.vq = load_vq(vq)
        self.names: dict[str, int] = json.loads((data / "names.json").read_text())
        self.train_set = TokenisedSet(data / "train")
        held_out = TokenisedSet(data / "held_out")
        pairs = [held_out.sequence(i) for i in range(min(HELD_OUT_PAIRS, len(held_out)))]
        config = self._config()
        self.vocab = Vocab.from_names(self.names, config.vocab_size)
        self.limit = config.max_position_embeddings
        self.held_out = pairs
        self._plan_steps()
        self.model = self._model(config)
        self.model.recompute = bool(settings.recompute)
        loss = SequenceLoss(self.model, settings.text_weight)
        if settings.sharding == "full":
            self._shard(loss)
            self.loss: nn.Module = loss
        else:
            self.loss = self.accelerator.prepare(loss)
        self.average = (
            {k: v.clone() for k, v in self.model.state_dict().items()} if settings.ema else {}
        )
        self.optimiser = torch.optim.AdamW(
            self.loss.parameters(),
            lr=settings.lr,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
        )
        if settings.compile:
            compiled = torch.compile(self.model.hidden, dynamic=False)
            self.model.hidden = compiled  # type: ignore[method-assign]  # this instance's only
        self.step = 0
        self._resume()

    @property
    def _main(self) -> bool:
        return self.accelerator.is_main_process

    def _config(self) -> TransformerConfig:
        if self.start is None:
            config = replace(CONFIGS[self.settings.size], vocab_size=len(self.names))
        else:
            if read_names(self.start) != self.names:
                raise TrainingError(
                    f"the sequences were written with other tokens than {self.start} has: "
                    "tokenise again with this folder as --vocabulary"
                )
            config = read_config(self.start)
        return replace(config, dropout=self.settings.dropout)

    def _plan_steps(self) -> None:
        s, processes = self.settings, self.accelerator.num_processes
        if s.batch % processes:
            raise TrainingError(f"a batch of {s.batch} cannot be shared by {processes} processes")
        self.sequences = s.sequences or len(self.train_set)
        self.per_epoch = self.sequences // s.batch
        if not self.per_epoch:
            raise TrainingError(f"{self.sequences} sequences are less than a batch of {s.batch}")
        self.steps = s.steps or round(s.epochs * self.per_epoch)
        self.warm_up = s.warm_up + s.warm_up_epochs * self.per_epoch
        self._epoch: tuple[int, np.ndarray] | None = None

    def _own_randomness(self) -> AbstractContextManager[None]:
        """Leaves the global generators of this process's devices as they were."""
        on_gpu = self.device.type == "cuda"
        return torch.random.fork_rng(devices=[self.device] if on_gpu else [])

    # Model

    def _model(self, config: TransformerConfig) -> Transformer:
        s = self.settings
        if self.start is not None:
            with torch.device("meta"):  # filled after it was sharded, if it is
                model = Transformer(config)
            if s.sharding == "none":
                fill(model.to_empty(device=self.device), self.start)
            return model
        with self._own_randomness():
            torch.manual_seed(s.seed)
            model = Transformer(config)
            initialise(model)
            if s.copier:
                self._start_as_copy(model)
        return model

    def _start_as_copy(self, model: Transformer) -> None:
        text = nano.text_lengths(TextTokenizer(nano.tokenizer(self.names), self.vocab.text))
        side = self.settings.native // self.vq.factor
        start_as_copy(
            model,
            self.vocab.codes,
            self.vq.quantize.unit(),
            nano.pointers(text),
            Grid(side, side),
            sum(text),
        )

    def _shard(self, loss: SequenceLoss) -> None:
        processes = self.accelerator.num_processes
        if processes == 1:
            raise TrainingError("there is one process only: nothing to shard over")
        mesh = init_device_mesh(self.device.type, (processes,))
        dtype = torch.bfloat16 if self.settings.precision == "bf16" else torch.float32
        shard(loss, self.model, mesh, dtype=dtype)
        if self.start is not None:
            loss.to_empty(device=self.device)
            fill(self.model, self.start)

    # Data

    def indices(self, step: int) -> list[int]:
        """Sequence numbers of batch number `step`, of all processes together."""
        s = self.settings
        if s.order == "given":
            return [i % self.sequences for i in range(step * s.batch, (step + 1) * s.batch)]
        epoch, place = divmod(step, self.per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            shards = range(-(-self.sequences // self.train_set.shard))
            lengths = [n for i in shards for n in self.train_set.lengths(i)][: self.sequences]
            order = clustered_order(lengths, s.batch, seed=s.seed, epoch=epoch)
            self._epoch = (epoch, order)
        return self._epoch[1][place].tolist()

    def batch(self, step: int) -> list[tuple[Tensor, Tensor]]:
        """This process's share of batch number `step`, a function of the step alone.

        Returns:
            Ids and parts of each pass.
        """
        s, a = self.settings, self.accelerator
        drops = np.random.default_rng([s.seed, 13, step]).random((s.batch, 3))
        rows = list(zip(self.indices(step), drops, strict=True))[a.process_index :: a.num_processes]
        sequences = [self._drop(self._sequence(index), drop) for index, drop in rows]
        size = s.per_device or len(sequences)
        return [
            collate(sequences[i : i + size], self.vocab.pad, self._length(sequences[i : i + size]))
            for i in range(0, len(sequences), size)
        ]

    def _length(self, sequences: Sequence[TrainingSequence]) -> int:
        longest = max(len(sequence.ids) for sequence in sequences)
        step = COMPILED_STEP if self.settings.compile else 1
        return min(self.limit, -(-longest // step) * step)

    def _drop(self, sequence: TrainingSequence, drop: np.ndarray) -> TrainingSequence:
        s = self.settings
        if PARTS.index("image") not in sequence.parts:
            return sequence  # it ends with its label, and there would be nothing left to learn
        if drop[2] < s.unconditional:
            return sequence.without(PROMPT, 0, 1)
        shares = (s.without_label, s.without_caption)
        return sequence.without(*(part for part, share in enumerate(shares) if drop[part] < share))

    def _misread(self, ids: Tensor, parts: Tensor, first: int) -> Tensor:
        """What is read of a pass (B, T) whose first sequence is this process's number `first`."""
        s, a = self.settings, self.accelerator
        if not s.misread:
            return ids
        rows = []
        for i, (row, kinds) in enumerate(zip(ids.cpu(), parts.cpu(), strict=True), first):
            number = a.process_index + i * a.num_processes  # of all processes' together
            rng = np.random.default_rng([s.seed, 23, self.step, number])
            rows.append(misread(row, kinds, self.vocab.code_ids, s.misread, rng))
        return torch.stack(rows).to(ids.device)

    def _sequence(self, index: int) -> TrainingSequence:
        while True:
            try:
                return self.train_set.sequence(index)
            except FileNotFoundError as error:
                log.info("waiting for %s", error)
                time.sleep(WAIT_SECONDS)

    # Training

    def _rate(self) -> float:
        s = self.settings
        return learning_rate(
            self.step, peak=s.lr, warm_up=self.warm_up, steps=self.steps, floor=s.lowest_rate
        )

    def _sum(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each value summed over the processes."""
        stacked = self.accelerator.reduce(torch.stack(list(values.values())), "sum")
        return dict(zip(values, stacked, strict=True))

    def train_step(self) -> dict[str, float]:
        """One optimiser step.

        The loss is the mean over the targets of the whole batch. Differs from the published code,
        which averages the means of the processes, because a step is then not the same however
        many of them share it.
        """
        s, a = self.settings, self.accelerator
        passes = [
            (ids.to(self.device), parts.to(self.device)) for ids, parts in self.batch(self.step)
        ]
        kinds = torch.cat([parts[:, 1:][parts[:, 1:] >= 0] for _, parts in passes])
        weights = torch.where(kinds == PARTS.index("image"), 1.0, s.text_weight)
        whole = self._sum(
            {"weight": weights.sum(), "N": torch.tensor(float(len(kinds))).to(weights)}
        )
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate()
        self.loss.train()
        done: dict[str, Tensor] = {}
        # dropout draws from the global generator: a seed per step and process makes resuming exact
        with self._own_randomness():
            torch.manual_seed((s.seed * 1_000_003 + self.step) * a.num_processes + a.process_index)
            for number, (ids, parts) in enumerate(passes):
                read = self._misread(ids, parts, number * len(passes[0][0]))
                with a.autocast():
                    sums = self.loss(ids, parts, read)
                total = sums["weighted"] / whole["weight"] + s.z_loss * sums["z"] / whole["N"]
                # processes average their gradients, and the total is a sum
                a.backward(total * a.num_processes)
                for key, value in {"total": total, **sums}.items():
                    done[key] = done.get(key, 0) + value.detach()
        done = self._sum(done)
        if not torch.isfinite(done["total"]):
            raise FloatingPointError(f"the loss is {done['total'].item()} at step {self.step}")
        norm = nn.utils.clip_grad_norm_(self.loss.parameters(), s.clip)
        self.optimiser.step()
        self.optimiser.zero_grad()
        if s.ema:
            update_average(self.average, self.model.state_dict(), s.ema, self.step)
        self.step += 1
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        return {"total": done["total"].item()} | _means(done) | {"gradient": float(norm)}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Cross-entropies on fixed held-out pairs, by part: of the averaged weights, if any."""
        loss = self.loss
        if self.average:
            model = Transformer(self.model.config).to(self.device)
            model.load_state_dict(self.average)
            loss = SequenceLoss(model)
        loss.eval()
        done: dict[str, Tensor] = {}
        for i in range(0, len(self.held_out), EVALUATED):
            some = self.held_out[i : i + EVALUATED]
            ids, parts = collate(some, self.vocab.pad, self._length(some))
            with self.accelerator.autocast():
                sums = loss(ids.to(self.device), parts.to(self.device))
            for key, value in sums.items():
                done[key] = done.get(key, 0) + value
        return {f"held_out_{name}": value for name, value in _means(done).items()}

    def run(self) -> None:
        """Train to the last step."""
        s = self.settings
        curve = None
        if self._main:
            curve = Curve(self.out, CURVE, step=self.step, tensorboard=bool(s.tensorboard))
        saved = time.monotonic()
        while self.step < self.steps:
            started = time.monotonic()
            row = {"step": float(self.step), "rate": self._rate()} | self.train_step()
            row["seconds"] = time.monotonic() - started
            evaluated = s.evaluate_every and self.step % s.evaluate_every == 0
            if evaluated:
                row |= self.evaluate()
            if curve is not None and (evaluated or self.step % 25 == 0):
                curve.write(row)
            if s.sample_every and self.step % s.sample_every == 0:
                self.sample()
            if s.export_every and self.step % s.export_every == 0 and self.step < self.steps:
                self.export(self.out / f"checkpoint-{self.step}")
            # the first process's clock decides, for a sharded state is written by all
            due = torch.tensor(float(self._main and time.monotonic() - saved > s.save_seconds))
            if self._sum({"due": due.to(self.device)})["due"] > 0:
                self.save()
                saved = time.monotonic()
        self.save()
        if s.export_every:
            self.export(self.out / "checkpoint")

    def quit(self) -> None:
        """Leave the group of processes, as the last act of a program.

        Of several processes each ends here, with status 0: torch's caches keep the group's threads
        alive, and one that wants the interpreter while it is taken down aborts the process.
        """
        several = self.accelerator.num_processes > 1
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        if several:
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    # Files

    def _resume(self) -> None:
        if self.settings.sharding == "full":
            if states := _whole_states(self.out):
                self.step = read_sharded_state(states[-1], self.loss, self.optimiser)
        else:
            state = read_state(self.out / "state.pt")
            if state is not None:
                self.model.load_state_dict(state["model"])
                self.optimiser.load_state_dict(state["optimiser"])
                self.average, self.step = state["average"], state["step"]
        if self.step:
            log.info("resumed at step %d", self.step)

    def save(self) -> None:
        """Write the state to resume from and, unless they come at intervals, a checkpoint."""
        if self.settings.sharding == "full":
            older = _whole_states(self.out)
            newest = self.out / f"state-{self.step:08d}"
            write_sharded_state(newest, self.loss, self.optimiser, self.step)
            self.accelerator.wait_for_everyone()
            for folder in older if self._main else ():
                if folder != newest:
                    shutil.rmtree(folder)
        elif self._main:
            state = {
                "model": self.model.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "average": self.average,
                "step": self.step,
            }
            write_state(self.out / "state.pt", state)
        if not self.settings.export_every:
            self.export(self.out / "checkpoint")

    def export(self, folder: Path) -> None:
        """Write a checkpoint folder in the released format, in bfloat16, for use."""
        weights = self.average or whole_weights(self.model)
        if not self._main:
            return
        weights = {key: value.to("cpu", torch.bfloat16) for key, value in weights.items()}
        notes = {"training": asdict(self.settings), "step": self.step}
        if self.start is None:
            nano.write_checkpoint(
                folder,
                names=self.names,
                config=self.model.config,
                transformer=weights,
                vq_config=self.vq.config,
                vq={k: v.half().contiguous() for k, v in self.vq.state_dict().items()},
                native_pixels=self.settings.native,
                notes=notes,
            )
        else:
            _write_like(folder, self.start, weights, self._vq_folder, notes)

    @torch.no_grad()
    def sample(self) -> None:
        """Restore some held-out pairs into samples/STEP.png: input, restoration, reference.

        With the sampling of the checkpoint the run started from, and after its own text where
        it has a form for that; else after the true one, since a young model's may have any length.
        The first process does it; sharded weights are gathered there once for all pictures.
        """
        weights = self.average or whole_weights(self.model)
        if self._main:
            dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16
            model = Transformer(self.model.config).to(self.device, dtype).eval()
            model.load_state_dict(weights)
            rows = [self._restored(model, pair) for pair in self.held_out[: self.settings.samples]]
            folder = self.out / "samples"
            folder.mkdir(exist_ok=True)
            Image.fromarray(np.concatenate(rows)).save(folder / f"{self.step:08d}.png")
        self.accelerator.wait_for_everyone()

    def _restored(self, model: Transformer, pair: TrainingSequence) -> np.ndarray:
        grammar, sampling = Grammar(self.vocab, self.vq.factor), SamplingConfig()
        if self.start is not None:
            grammar = own_grammar(self.start, self.vocab, self.vq.factor)
            sampling = own_sampling(self.start)
        ids, parts = np.array(pair.ids), np.array(pair.parts)
        prompt, text, answer = (
            ids[parts == PROMPT],
            ids[(parts == 0) | (parts == 1)],
            ids[parts == 2],
        )
        begin = int(np.flatnonzero(prompt == self.vocab.begin_image)[0])
        lq, gt = (grammar.read_image(part.tolist()) for part in (prompt[begin:-1], answer[:-1]))
        engine = Engine(model, self.vocab.code_ids)
        conversation = Conversation(engine, grammar, prompt.tolist(), Grid(*gt.shape))
        text = text.tolist()
        if grammar.form is not None:
            text = [step.id for step in conversation.write_text()]
        steps = conversation.restore(text, sampling, seed=self.settings.seed)
        codes = torch.tensor([step.code for step in steps if step.code is not None])
        grids = (lq, codes.view(gt.shape), gt)
        return np.concatenate([np.asarray(self.vq.decode_image(grid)) for grid in grids], axis=1)


def _means(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """Mean cross-entropy by part; not a number where a part has no targets."""
    return {
        name: (sums[name] / n).item() if (n := sums[f"N {name}"].item()) else math.nan
        for name in PARTS
    }


def _whole_states(out: Path) -> list[Path]:
    """Folders of sharded states that were completely written, oldest first."""
    return sorted(path.parent for path in out.glob("state-*/.metadata"))


def _write_like(
    folder: Path, start: Path, weights: dict[str, Tensor], vq: Path, notes: Mapping[str, object]
) -> None:
    """Weights in the released format, with the configuration and tokenizers of another folder."""
    from huggingface_hub import save_torch_state_dict  # noqa: PLC0415 - slow to import

    folder.mkdir(parents=True, exist_ok=True)
    for path in start.glob("*.json"):
        if not path.name.endswith(".index.json"):
            shutil.copyfile(path, folder / path.name)
    config = json.loads((start / "config.json").read_text(encoding="utf-8"))
    config["pure"] = config.get("pure", {}) | notes
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    save_torch_state_dict(weights, folder)
    for name in (VQ_SAFETENSORS, VQ_FILE):
        if (vq / name).exists():
            shutil.copyfile(vq / name, folder / name)


def plan(settings: SequenceTraining, processes: int, sequences: int) -> str:
    """The memory and time a sharded run would take, as Markdown; computed.

    Args:
        settings: of the run.
        processes: GPUs it is shared by.
        sequences: in its data set.
    """
    config = CONFIGS[settings.size]
    cells = settings.native // 8  # the released tokenizer's
    picture = cells * (cells + 1) + 5  # begin, two sides, codes and newlines, end, end of turn
    text = 120  # of instruction, label and caption together; estimated
    tokens, targets = 2 * picture + text, picture + text
    here = settings.per_device or settings.batch // processes
    memory = memory_plan(
        config,
        processes=processes,
        sequences=here,
        tokens=tokens,
        targets=targets,
        recompute=bool(settings.recompute),
    )
    steps = settings.steps or round(settings.epochs * (sequences // settings.batch))
    hours = time_plan(
        config,
        processes=processes,
        steps=steps,
        batch=settings.batch,
        tokens=tokens,
        recompute=bool(settings.recompute),
        flops=A800_FLOPS,
        utilisation=UTILISATION,
    )
    return (
        f"{processes} processes, {here} sequences of {tokens} tokens in a pass of each, "
        f"{settings.batch // (processes * here)} passes a step\n\n{memory.table()}\n\n"
        f"{steps} steps, {hours.operations:.3g} operations: {hours.hours:.1f} hours at "
        f"{UTILISATION:.0%} of {A800_FLOPS / 1e12:.0f} TFLOP/s each, loading, evaluating and "
        "saving not counted\n"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], argument_default=argparse.SUPPRESS
    )
    parser.add_argument("--preset", choices=PRESETS, default="nano")
    parser.add_argument(
        "--data", type=Path, default=Path("data/sequences"), help="of `pure.pretokenise`"
    )
    parser.add_argument("--vq", type=Path, default=Path("runs/vq"), help="folder of the tokenizer")
    parser.add_argument("--out", type=Path, default=Path("runs/sequences"))
    parser.add_argument("--start", type=Path, default=None, help="checkpoint folder to start from")
    parser.add_argument(
        "--plan", type=int, metavar="PROCESSES", help="print what a run takes, and stop"
    )
    hints = get_type_hints(SequenceTraining)
    for name, value in asdict(SequenceTraining()).items():
        kind, choices = type(value), get_args(hints[name])
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, tuple):
            parser.add_argument(option, type=float, nargs=len(value))
        else:
            parser.add_argument(option, type=kind, choices=choices or None)
    arguments = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    preset = PRESETS[arguments["preset"]]
    changes = {name: arguments[name] for name in asdict(preset) if name in arguments}
    if "betas" in changes:
        changes["betas"] = tuple(changes["betas"])
    try:
        settings = replace(preset, **changes)
    except ValueError as error:
        parser.error(str(error))
    try:
        if "plan" in arguments:
            sequences = settings.sequences or len(TokenisedSet(arguments["data"] / "train"))
            print(plan(settings, arguments["plan"], sequences))  # noqa: T201 - its output
            return
        log.info(json.dumps(asdict(settings)))
        paths = (arguments[name] for name in ("data", "vq", "out", "start"))
        trainer = Trainer(settings, *paths)
    except (TrainingError, DataSetError, CheckpointError) as error:
        parser.error(str(error))
    trainer.run()
    trainer.quit()


if __name__ == "__main__":
    main()
