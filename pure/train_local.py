"""Train a small transformer's MLPs and head first, on neighbourhoods that are handed to them.

What restores a code is mostly in the codes around it. The pointed heads of `pure.start` will bring
those; here they are gathered directly, for single cells drawn from all over the data set. That is
several times more cells a second than whole sequences give, and they do not all come from the same
two pictures. What comes out is a transformer whose attention does the gathering; `pure.train
--start` goes on from it. Command: `python -m pure.train_local --help`.
"""

import argparse
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from pure import nano
from pure.belief import TextTokenizer
from pure.checkpoint import load_vq
from pure.grammar import Grammar, Grid
from pure.model import CONFIGS, Transformer
from pure.pretokenise import PROMPT, DataSetError, TokenisedSet, TrainingSequence
from pure.start import Pointer, initialise, level_pointers, start_as_copy
from pure.training import Curve, learning_rate, read_state, write_state
from pure.vocab import Vocab

log = logging.getLogger(__name__)

REACH = 1  # cells around a picture that a pointer may ask for
HELD_OUT_CELLS = 8192
LEVELLED = 4  # held-out sequences on which pointed heads are levelled
CURVE = ("step", "seconds", "rate", "image", "held_out_image")


@dataclass(frozen=True)
class LocalTraining:
    """How the local stage is trained; defaults are PURE-nano's.

    Attributes:
        size: a name in `pure.model.CONFIGS`.
        native: side of the pictures in a sequence, pixels.
        sequences: how many of the tokenised sequences there are to use, 0 for all.
        batch: cells a step.
        evaluate_every: steps between losses on held-out cells, and between saved states.
    """

    size: str = "nano"
    native: int = 256
    sequences: int = 0
    batch: int = 1024
    steps: int = 2400
    lr: float = 2e-3
    warm_up: int = 50
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    clip: float = 1.0
    evaluate_every: int = 200
    seed: int = 0


@dataclass(frozen=True)
class Cells:
    """Cells of some pictures: picture, row and column, each (N,)."""

    picture: Tensor
    row: Tensor
    column: Tensor

    @classmethod
    def draw(cls, pictures: int, grid: Grid, n: int, *, seed: int) -> "Cells":
        """`n` cells of `pictures` pictures, uniformly."""
        generator = torch.Generator().manual_seed(seed)
        limits = (pictures, grid.rows, grid.columns)
        return cls(*(torch.randint(limit, (n,), generator=generator) for limit in limits))


@dataclass(frozen=True)
class Pictures:
    """Codes of pairs, each (N, rows + 2 REACH, columns + 2 REACH); `blank` around the pictures."""

    lq: Tensor
    answer: Tensor
    grid: Grid
    blank: int

    @classmethod
    def of(cls, sequences: Sequence[TrainingSequence], grammar: Grammar) -> "Pictures":
        """The pictures of some sequences, all of one size."""
        pairs = [torch.stack(pair_codes(sequence, grammar)) for sequence in sequences]
        rows, columns = pairs[0].shape[1:]
        blank = len(grammar.vocab.codes)
        padded = F.pad(torch.stack(pairs), (REACH,) * 4, value=blank)
        return cls(padded[:, 0], padded[:, 1], Grid(rows, columns), blank)

    def codes(self, pointer: Pointer, cells: Cells) -> Tensor:
        """What a pointer looks at from each cell, (N,)."""
        picture = self.lq if pointer.picture == "lq" else self.answer
        row, column = cells.row + pointer.row + REACH, cells.column + pointer.column + REACH
        return picture[cells.picture, row, column]


def pair_codes(sequence: TrainingSequence, grammar: Grammar) -> tuple[Tensor, Tensor]:
    """Codes (rows, columns) of a sequence's poor picture and of its reference."""
    ids, parts = torch.tensor(sequence.ids), torch.tensor(sequence.parts)
    prompt, answer = ids[parts == PROMPT], ids[parts == 2]
    begin = int((prompt == grammar.vocab.begin_image).nonzero()[0])
    lq = grammar.read_image(prompt[begin:-1].tolist())
    return lq, grammar.read_image(answer[:-1].tolist())


class Neighbourhoods(nn.Module):
    """A transformer without its attention: what its pointed heads would bring is handed to it.

    Args:
        model: started by `start_as_copy`.
        vocab: its tokens.
        pointers: of its heads.
        written: (pointers, looks, D) what each writes, per unit of a code's look.
        vectors: (codes, looks) code vectors.
    """

    def __init__(
        self,
        model: Transformer,
        vocab: Vocab,
        pointers: Sequence[Pointer],
        written: Tensor,
        vectors: Tensor,
    ) -> None:
        super().__init__()
        self.model = model
        self.pointers = pointers
        self.written = written
        blank = torch.zeros(1, vectors.shape[1])  # where a pointer looks past the picture's edge
        self.looks = torch.cat([vectors, blank])
        self.code_ids = torch.tensor(vocab.codes)
        # the token before a row's first code is taken for a newline, in the first row too
        self.before = torch.cat([self.code_ids, torch.tensor([vocab.newline])])

    def forward(self, pictures: Pictures, cells: Cells) -> Tensor:
        """Logits (N, codes), float32, of the codes of some cells."""
        left = pictures.codes(Pointer(0, 0, "answer", 0, -1), cells)
        x = self.model.model.embed_tokens(self.before[left])  # (N, D)
        for i, block in enumerate(self.model.model.layers):
            for pointer, directions in zip(self.pointers, self.written, strict=True):
                if pointer.layer == i and pointer.length:
                    x = x + self.looks[pictures.codes(pointer, cells)] @ directions
            mlp, norm = block.get_submodule("mlp"), block.get_submodule("post_attention_layernorm")
            x = x + mlp(norm(x))
        return self.model.logits(self.model.model.norm(x), self.code_ids)

    def trained(self) -> list[nn.Parameter]:
        """What this stage trains: MLPs, their norms, the head. Embeddings and attention stay."""
        parts = (".mlp.", "post_attention_layernorm", "model.norm", "lm_head")
        return [
            p for name, p in self.model.named_parameters() if any(part in name for part in parts)
        ]


class LocalTrainer:
    """Holds what a run of the local stage holds; `run` takes it to its last step.

    Args:
        settings: how to train.
        data: folder of names.json and of the tokenised sets train and held_out.
        vq: folder of the VQ tokenizer the sequences were written with.
        out: folder of the run; `out`/checkpoint is what `pure.train --start` goes on from.
    """

    def __init__(self, settings: LocalTraining, data: Path, vq: Path, out: Path) -> None:
        self.settings, self.out = settings, out
        out.mkdir(parents=True, exist_ok=True)
        self.accelerator = Accelerator(cpu=True, mixed_precision="bf16")
        self.vq = load_vq(vq)
        self.names: dict[str, int] = json.loads((data / "names.json").read_text())
        vocab = Vocab.from_names(self.names, len(self.names))
        grammar = Grammar(vocab, self.vq.factor)
        train, held_out = TokenisedSet(data / "train"), TokenisedSet(data / "held_out")
        sequences = settings.sequences or len(train)
        self.pictures = Pictures.of([train.sequence(i) for i in range(sequences)], grammar)
        self.checked = [held_out.sequence(i) for i in range(len(held_out))]
        self.held_out = Pictures.of(self.checked, grammar)
        text = nano.text_lengths(TextTokenizer(nano.tokenizer(self.names), vocab.text))
        self.pointers = nano.pointers(text)
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            model = Transformer(replace(CONFIGS[settings.size], vocab_size=len(self.names)))
            initialise(model)
            vectors = self.vq.quantize.unit().detach()
            start = start_as_copy(
                model, vocab.codes, vectors, self.pointers, self.pictures.grid, sum(text)
            )
        self.own = start.own
        self.local = Neighbourhoods(model, vocab, self.pointers, start.written, vectors)
        self.optimiser = torch.optim.AdamW(
            self.local.trained(),
            lr=settings.lr,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
        )
        self.step = 0
        state = read_state(out / "state.pt")
        if state is not None:
            model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step = state["step"]
            log.info("resumed at step %d", self.step)

    def _loss(self, pictures: Pictures, cells: Cells) -> Tensor:
        with self.accelerator.autocast():
            logits = self.local(pictures, cells)
        target = pictures.codes(Pointer(0, 0, "answer"), cells)
        return F.cross_entropy(logits.float(), target)

    def train_step(self) -> float:
        """One optimiser step; its cross-entropy in nats a code."""
        s = self.settings
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate()
        # seeds of training and held-out cells never meet
        seed = s.seed * 1_000_003 + 2 * self.step
        cells = Cells.draw(len(self.pictures.lq), self.pictures.grid, s.batch, seed=seed)
        loss = self._loss(self.pictures, cells)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at step {self.step}")
        self.optimiser.zero_grad()
        self.accelerator.backward(loss)
        nn.utils.clip_grad_norm_(self.local.trained(), s.clip)
        self.optimiser.step()
        self._keep_looks()
        self.step += 1
        return loss.item()

    @torch.no_grad()
    def _keep_looks(self) -> None:
        """Let no MLP write where a token's own look stands before a pointed head has read it."""
        deepest = max(pointer.layer for pointer in self.pointers)
        for block in self.local.model.model.layers[:deepest]:
            weight = block.get_submodule("mlp.down_proj").get_parameter("weight")
            weight.sub_(self.own.T @ (self.own @ weight))

    def _rate(self) -> float:
        s = self.settings
        return learning_rate(self.step, peak=s.lr, warm_up=s.warm_up, steps=s.steps, floor=0.02)

    @torch.no_grad()
    def evaluate(self) -> float:
        """Cross-entropy on fixed held-out cells."""
        pictures = self.held_out
        cells = Cells.draw(len(pictures.lq), pictures.grid, HELD_OUT_CELLS, seed=1)
        return float(self._loss(pictures, cells))

    def run(self) -> None:
        """Train to the last step and write the checkpoint."""
        s = self.settings
        curve = Curve(self.out, CURVE, step=self.step)
        while self.step < s.steps:
            started = time.monotonic()
            row = {"step": float(self.step), "rate": self._rate(), "image": self.train_step()}
            row["seconds"] = time.monotonic() - started
            due = self.step % s.evaluate_every == 0
            if due:
                row["held_out_image"] = self.evaluate()
            if due or self.step % 50 == 0:
                curve.write(row)
            if due:
                self.save()
        self.save()
        self.export()

    def save(self) -> None:
        """Write the state to resume from."""
        state = {
            "model": self.local.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
        }
        write_state(self.out / "state.pt", state)

    def export(self) -> None:
        """Write the transformer, its deeper pointed heads levelled, in float32."""
        model = Transformer(self.local.model.config)
        model.load_state_dict(self.local.model.state_dict())
        some = self.checked[:LEVELLED]
        ids, parts = (torch.tensor([getattr(s, name) for s in some]) for name in ("ids", "parts"))
        code = torch.isin(ids[0], self.local.code_ids)
        lq, answer = code & (parts[0] == PROMPT), code & (parts[0] == 2)
        level_pointers(model, self.pointers, ids, lq, answer)
        nano.write_checkpoint(
            self.out / "checkpoint",
            names=self.names,
            config=model.config,
            transformer=model.state_dict(),
            vq_config=self.vq.config,
            vq={k: v.contiguous() for k, v in self.vq.state_dict().items()},
            native_pixels=self.settings.native,
            notes={"training": {"local": asdict(self.settings)}, "step": self.step},
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data/sequences"))
    parser.add_argument("--vq", type=Path, default=Path("runs/vq"), help="folder of the tokenizer")
    parser.add_argument("--out", type=Path, default=Path("runs/local"))
    defaults = {k: v for k, v in asdict(LocalTraining()).items() if k != "betas"}
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    arguments = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    settings = LocalTraining(**{name: arguments[name] for name in defaults})
    log.info(json.dumps(asdict(settings)))
    paths = (arguments[name] for name in ("data", "vq", "out"))
    try:
        trainer = LocalTrainer(settings, *paths)
    except DataSetError as error:
        parser.error(str(error))
    trainer.run()


if __name__ == "__main__":
    main()
