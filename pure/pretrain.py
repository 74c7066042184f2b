"""Train a small transformer's MLPs and head before its attention: on neighbourhoods handed to it.

What restores a code is mostly in the codes around it. The pointed heads of `pure.start` will
bring those; until then they are gathered directly, for single cells drawn from all over the data
set. That is several times more cells a second than whole sequences give, and they do not all
come from the same two pictures. `write` then makes it a transformer whose attention does the
gathering. Command: `python -m pure.pretrain --help`.
"""

import argparse
import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pure.checkpoint import load_vq
from pure.grammar import Grid
from pure.model import CONFIGS, Transformer
from pure.pretokenise import read_shard
from pure.start import Pointer, initialise, start_as_copy
from pure.train import nano_pointers
from pure.vocab import Vocab

log = logging.getLogger(__name__)

REACH = 2  # cells around a picture that a pointer may ask for


@dataclass(frozen=True)
class Pictures:
    """Codes of many pairs, (N, rows + 2 REACH, columns + 2 REACH); `blank` outside."""

    lq: Tensor
    answer: Tensor
    blank: int

    @classmethod
    def read(cls, shards: Sequence[Path], vocab: Vocab, grid: Grid) -> "Pictures":
        """All pairs of some shards."""
        code = torch.full((vocab.size,), -1)
        code[torch.tensor(vocab.codes)] = torch.arange(len(vocab.codes))
        cells = grid.rows * grid.columns
        both = []
        for shard in shards:
            for sequence in read_shard(shard):
                codes = code[torch.tensor(sequence.ids)]
                both.append(codes[codes >= 0].view(2, grid.rows, grid.columns))
                assert both[-1].numel() == 2 * cells
        blank = len(vocab.codes)
        padded = F.pad(torch.stack(both), (REACH,) * 4, value=blank)
        return cls(padded[:, 0], padded[:, 1], blank)


class Neighbourhoods:
    """The transformer without attention: what its pointed heads would bring is gathered.

    Args:
        model: started by `start_as_copy`.
        pointers: all that count on the whole text; one that does not is left out.
        written: (pointers, looks, D) what a pointer writes, per unit of a code's look.
        vectors: (codes, looks) code vectors.
    """

    def __init__(
        self, model: Transformer, pointers: Sequence[Pointer], written: Tensor, vectors: Tensor
    ) -> None:
        self.model = model
        self.pointers = pointers
        self.written = written
        self.looks = torch.cat([vectors, torch.zeros(1, vectors.shape[1])])  # the last is blank

    def hidden(self, ids: Tensor, pictures: Pictures, where: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Final hidden states (N, D) after tokens `ids` (N,), at picture, row and column."""
        n, row, column = where
        x = self.model.model.embed_tokens(ids)
        for i, block in enumerate(self.model.model.layers):
            for pointer, target in zip(self.pointers, self.written, strict=True):
                if pointer.layer != i:
                    continue
                codes = pictures.lq if pointer.picture == "lq" else pictures.answer
                there = codes[n, row + pointer.row + REACH, column + pointer.column + REACH]
                x = x + self.looks[there] @ target
            x = x + block.mlp(block.post_attention_layernorm(x))
        return self.model.model.norm(x)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/sequences"))
    parser.add_argument("--vq", type=Path, default=Path("runs/vq"))
    parser.add_argument("--out", type=Path, default=Path("runs/local"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--unconditional", type=float, default=0.0)
    a = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    names = json.loads((a.data / "names.json").read_text())
    vocab = Vocab.from_names(names, len(names))
    vq = load_vq(a.vq)
    vectors = vq.quantize.unit().detach()
    torch.manual_seed(0)
    model = Transformer(replace(CONFIGS["nano"], vocab_size=len(names)))
    initialise(model)
    grid = Grid(32, 32)
    pointers = nano_pointers(6, 16)
    started = start_as_copy(model, vocab.codes, vectors, pointers, grid, 22)
    full = [i for i, p in enumerate(pointers) if p.text is None]
    local = Neighbourhoods(model, [pointers[i] for i in full], started.written[full], vectors)
    held = Pictures.read(sorted((a.data / "held_out").glob("*.safetensors")), vocab, grid)
    own = started.own
    trained = [p for n, p in model.named_parameters() if "mlp" in n or "norm" in n and "self_attn" not in n or "lm_head" in n]
    optimiser = torch.optim.AdamW(trained, lr=a.lr, betas=(0.9, 0.98), weight_decay=0.01)
    codes = torch.tensor(vocab.codes)
    lookup = torch.cat([codes, torch.tensor([vocab.newline])])

    def tokens(p: Pictures, where):
        n, r, c = where
        return lookup[p.answer[n, r + REACH, c + REACH - 1]]  # blank is the newline

    def loss(p: Pictures, g: torch.Generator, size: int) -> Tensor:
        where = tuple(torch.randint(m, (size,), generator=g) for m in (len(p.lq), 32, 32))
        target = p.answer[where[0], where[1] + REACH, where[2] + REACH]
        with torch.autocast("cpu", torch.bfloat16):
            h = local.hidden(tokens(p, where), p, where)
            logits = model.logits(h, codes)
        return F.cross_entropy(logits.float(), target)

    shards: list[Path] = []
    began = time.monotonic()
    for step in range(a.steps):
        if step % 200 == 0:
            now = sorted((a.data / "train").glob("*.safetensors"))
            if len(now) > len(shards):
                shards = now
                train = Pictures.read(shards, vocab, grid)
        for group in optimiser.param_groups:
            group["lr"] = a.lr * min(1, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / a.steps)))
        g = torch.Generator().manual_seed(step)
        value = loss(train, g, a.batch)
        optimiser.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        with torch.no_grad():
            down = model.model.layers[0].mlp.down_proj.weight
            down -= own.T @ (own @ down)
        if step % 50 == 49:
            extra = ""
            if step % 200 == 199:
                with torch.no_grad():
                    extra = f" held_out={loss(held, torch.Generator().manual_seed(7), 8192):.4f}"
                a.out.mkdir(parents=True, exist_ok=True)
                torch.save({"model": model.state_dict(), "step": step}, a.out / "state.pt")
            log.info("step=%d shards=%d loss=%.4f seconds=%.0f%s", step, len(shards), value, time.monotonic() - began, extra)


if __name__ == "__main__":
    main()
