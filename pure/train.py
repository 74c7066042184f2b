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
from pure.data import CropSampler, Pair, Photo, load_photos, make_pair
from pure.grammar import Grammar
from pure.model import CONFIGS, Transformer
from pure.vocab import Vocab

log = logging.getLogger(__name__)

IGNORED = -100  # target of what is not trained on
PARTS = ("label", "caption", "image")
HELD_OUT_PAIRS = 48
POINTING_CHANNELS, POINTING_STRENGTH = 12, 3.5
# layer, head, and the row and column, from the cell to be written, of the cell it looks at first
POINTED_HEADS = ((0, 0, 0, 0), (0, 1, 0, 1), (1, 0, 0, 0), (1, 1, 1, 0))


@dataclass(frozen=True)
class SequenceTraining:
    """How a transformer is trained.

    Attributes:
        native: side of the pictures in a sequence, pixels.
        heavy: share of pairs degraded by the preset "realesrgan", the others by "mild".
        unconditional: share of sequences that are the picture alone, which is what the
            guidance's second row reads.
        without_label, without_caption: share of answers that lack it, each.
        pointed: 1 starts with some heads pointed at the poor picture (`point_head`), 0 without.
        z_loss: weight of the squared log-partition of the logits.
        ema: decay of the averaged weights that are saved for use.
    """

    size: str = "nano"
    native: int = 128
    batch: int = 8
    steps: int = 4000
    lr: float = 1e-3
    warm_up: int = 200
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    clip: float = 1.0
    z_loss: float = 1e-5
    heavy: float = 0.6
    unconditional: float = 0.1
    without_label: float = 0.1
    without_caption: float = 0.1
    pointed: int = 1
    ema: float = 0.998
    seed: int = 0


@dataclass(frozen=True)
class TrainingSequence:
    """One training sequence.

    Attributes:
        ids: the tokens.
        parts: for each token the index into `PARTS` it is trained as, -1 for not at all.
    """

    ids: list[int]
    parts: list[int]


def build_sequence(
    grammar: Grammar,
    prompt: Sequence[int],
    label: Sequence[int],
    caption: Sequence[int],
    codes: Tensor,
) -> TrainingSequence:
    """Prompt and answer; the prompt, its end-turn included, is not trained on."""
    picture = [*grammar.image(codes), grammar.vocab.end_turn]
    ids = [*prompt, *label, *caption, *picture]
    parts = [-1] * len(prompt) + [0] * len(label) + [1] * len(caption) + [2] * len(picture)
    return TrainingSequence(ids, parts)


def collate(sequences: Sequence[TrainingSequence], pad: int) -> tuple[Tensor, Tensor]:
    """Ids and parts (B, T), padded on the right with `pad` and -1."""
    length = max(len(s.ids) for s in sequences)
    ids = torch.full((len(sequences), length), pad)
    parts = torch.full((len(sequences), length), -1)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence.ids)] = torch.tensor(sequence.ids)
        parts[row, : len(sequence.parts)] = torch.tensor(sequence.parts)
    return ids, parts


def losses(model: Transformer, ids: Tensor, parts: Tensor, z_loss: float) -> dict[str, Tensor]:
    """Cross-entropy in nats: "total" over all targets (with z-loss), and the mean by part.

    Only positions that have a target go through the head.
    """
    hidden = model.hidden(ids[:, :-1])
    wanted = parts[:, 1:] >= 0
    logits = model.logits(hidden[wanted])  # (N, V), float32
    targets, kinds = ids[:, 1:][wanted], parts[:, 1:][wanted]
    each = F.cross_entropy(logits, targets, reduction="none")
    total = each.mean() + z_loss * torch.logsumexp(logits, -1).pow(2).mean()
    means = {name: each[kinds == i].mean().detach() for i, name in enumerate(PARTS)}
    return {"total": total} | means


class Trainer:
    """Holds what a training run holds; `run` takes it to its last step."""

    def __init__(self, settings: SequenceTraining, photos: Path, vq: Path, out: Path) -> None:
        self.settings, self.out = settings, out
        out.mkdir(parents=True, exist_ok=True)
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="bf16")
        self.device = self.accelerator.device
        self.vq = load_vq(vq, device=self.device)
        train = load_photos(photos, "train", min_side=settings.native)
        self.known = nano.frequent_words(train)
        self.names = nano.token_names(sorted(self.known), self.vq.config.codebook_size)
        self.vocab = Vocab.from_names(self.names, len(self.names))
        self.grammar = Grammar(self.vocab, self.vq.factor)
        self.text = TextTokenizer(nano.tokenizer(self.names), self.vocab.text)
        self.instruction = self.text.instruction()
        torch.manual_seed(settings.seed)  # initial weights only
        config = replace(CONFIGS[settings.size], vocab_size=len(self.names))
        self.model = Transformer(config)
        initialise(self.model)
        if settings.pointed:
            self._point_heads()
        self.average = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(),
            lr=settings.lr,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
        )
        self.model, self.optimiser = self.accelerator.prepare(self.model, self.optimiser)
        self.sampler = CropSampler(train, settings.native, seed=settings.seed)
        held_out = load_photos(photos, "held_out", min_side=settings.native)
        self.held_out = self._held_out_batch(held_out)
        self.step = 0
        self._resume()

    def _point_heads(self) -> None:
        """Point some heads at the poor picture, over the text of the usual length."""
        side = self.settings.native // self.vq.factor
        words = self.text.answer(f"{label_text('small', 'small')} {nano.EXAMPLE}")
        # from a token to the code that stands where the next one will: the rest of one picture,
        # the end of the turn, the text, and the opening of the other
        distance = side * (side + 1) + 2 + len(words) + 3 - 1
        for layer, head, row, column in POINTED_HEADS:
            point_head(self.model, layer, head, distance - row * (side + 1) - column)

    # Data

    def _encode(self, pictures: list[np.ndarray]) -> Tensor:
        x = torch.from_numpy(np.stack(pictures)).movedim(-1, 1)  # (B, 3, H, W)
        with self.accelerator.autocast():
            return self.vq.encode(x.to(self.device).float() / 255).cpu()

    def _sequences(
        self, pairs: list[Pair], rng: np.random.Generator | None
    ) -> list[TrainingSequence]:
        """Sequences of pairs; with a generator some lack label, caption or prompt."""
        s = self.settings
        codes = self._encode([p.lq for p in pairs] + [p.crop.pixels for p in pairs])
        lq_codes, gt_codes = codes.split(len(pairs))
        result = []
        for pair, lq, gt in zip(pairs, lq_codes, gt_codes, strict=True):
            caption = nano.caption(pair.crop.photo, pair.crop.pixels, self.known)
            drop = rng.random(3) if rng else np.ones(3)
            label_ids = [] if drop[0] < s.without_label else self.text.answer(pair.label)
            caption_ids = [] if drop[1] < s.without_caption else self.text.answer(caption)
            prompt = self.grammar.prompt(self.instruction, lq)
            if drop[2] < s.unconditional:
                prompt, label_ids, caption_ids = [], [], []
            result.append(build_sequence(self.grammar, prompt, label_ids, caption_ids, gt))
        return result

    def _pair(self, sampler: CropSampler, index: int, seed: int) -> Pair:
        heavy = np.random.default_rng([self.settings.seed, 11, index]).random()
        preset = "realesrgan" if heavy < self.settings.heavy else "mild"
        return make_pair(sampler.crop(index), seed, preset)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Training batch number `step`, a function of it alone."""
        s = self.settings
        indices = range(step * s.batch, (step + 1) * s.batch)
        pairs = [self._pair(self.sampler, i, seed=i) for i in indices]
        rng = np.random.default_rng([s.seed, 13, step])
        return collate(self._sequences(pairs, rng), self.vocab.pad)

    def _held_out_batch(self, photos: list[Photo]) -> tuple[Tensor, Tensor]:
        sampler = CropSampler(photos, self.settings.native, seed=1)
        pairs = [self._pair(sampler, i, seed=10**9 + i) for i in range(HELD_OUT_PAIRS)]
        return collate(self._sequences(pairs, None), self.vocab.pad)

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
                "photos": len(self.sampler.photos),
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
                result = losses(self.model, ids, parts, s.z_loss)
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
        chunks = list(zip(ids.split(8), parts.split(8), strict=True))
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


def initialise(model: Transformer) -> None:
    """Normal weights of 0.02; the last layer of each residual branch less, by depth."""
    depth = model.config.num_hidden_layers
    for name, parameter in model.named_parameters():
        if name.endswith(("proj.weight", "lm_head.weight", "embed_tokens.weight")):
            deep = name.endswith(("o_proj.weight", "down_proj.weight"))
            std = 0.02 / math.sqrt(2 * depth) if deep else 0.02
            torch.nn.init.normal_(parameter, std=std)


def point_head(model: Transformer, layer: int, head: int, distance: int) -> None:
    """Let a head look `distance` tokens back, whatever stands there, until it learns otherwise.

    What a code restores stands a fixed distance before it: the poor picture's code of the same
    cell. Finding that out is most of what a short training run does (measured; see
    docs/decisions), so some heads start with it, through the biases of the QK-norms: rotary
    embeddings turn them apart by the distance, and the fast channels alone make a sharp peak.

    Raises:
        ValueError: heads share their QK-norm parameters, so one cannot be set alone.
    """
    config = model.config
    if config.model_parallel_size != config.num_attention_heads:
        raise ValueError("a head can be pointed only where every head has its own QK-norm row")
    half = config.head_dim // 2
    fast = torch.arange(min(POINTING_CHANNELS, half))
    angle = distance * config.rope_theta ** (-fast / half)
    attention = model.model.layers[layer].get_submodule("self_attn")
    query, key = attention.get_submodule("q_norm"), attention.get_submodule("k_norm")
    with torch.no_grad():
        for norm in (query, key):
            norm.get_parameter("weight")[head] = 0.1
            norm.get_parameter("bias")[head] = 0.0
        key.get_parameter("bias")[head, fast] = POINTING_STRENGTH
        query.get_parameter("bias")[head, fast] = POINTING_STRENGTH * angle.cos()
        query.get_parameter("bias")[head, half + fast] = -POINTING_STRENGTH * angle.sin()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, default=Path("data/photos"))
    parser.add_argument("--vq", type=Path, default=Path("runs/vq"), help="folder of vq.safetensors")
    parser.add_argument("--out", type=Path, default=Path("runs/sequences"))
    defaults = {k: v for k, v in asdict(SequenceTraining()).items() if k != "betas"}
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    arguments = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    settings = SequenceTraining(**{name: arguments[name] for name in defaults})
    log.info(json.dumps(asdict(settings)))
    Trainer(settings, arguments["photos"], arguments["vq"], arguments["out"]).run()


if __name__ == "__main__":
    main()
