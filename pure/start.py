"""How a small transformer starts: initial weights that already know what a picture is.

A lab trains PURE from a 7B model that has seen millions of pictures. A small model trained for
hours on two cores starts from noise, and spends most of that time finding out two things: which
codes look alike, and that the code to be written next restores the one a fixed number of tokens
back. Both are known beforehand, so both are written into the initial weights. Everything stays
trainable; the architecture is not touched.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pure.grammar import Grid
from pure.model import Transformer

POINTING_CHANNELS, POINTING_STRENGTH = 12, 8.0
EMBEDDED = 1.0  # length of a code's look in its embedding; its random part has about 0.3
LIKENESS = 20.0  # logits of a code per unit of cosine likeness to the code copied, about


@dataclass(frozen=True)
class Pointer:
    """Where a head looks first.

    Attributes:
        picture: the poor picture ("lq") or the answer so far ("answer").
        row, column: from the cell to be written to the cell it looks at.
        text: tokens between the pictures it reckons with; None for the whole text.
        length: of what it adds to the residual stream at first.
    """

    layer: int
    head: int
    picture: Literal["lq", "answer"]
    row: int = 0
    column: int = 0
    text: int | None = None
    length: float = 1.0

    def distance(self, grid: Grid, text: int) -> int:
        """Tokens from the one before the cell to be written back to what it looks at."""
        within = -self.row * (grid.columns + 1) - self.column - 1
        if self.picture == "answer":
            return within
        # the rest of a picture, its end and the end of the turn, the text, and the three tokens
        # that open the answer's picture
        return grid.body + 2 + (text if self.text is None else self.text) + 3 + within


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

    Done through the biases of the QK-norms: rotary embeddings turn them apart by the distance,
    and the fast channels alone make a sharp peak.

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


@dataclass(frozen=True)
class Started:
    """What `start_as_copy` chose.

    Attributes:
        own: (looks, D) directions of a token's own look in its embedding.
        written: (pointers, looks, D) what a pointed head adds to the residual stream, per unit
            of the look of the code it is pointed at.
    """

    own: Tensor
    written: Tensor


@torch.no_grad()
def start_as_copy(
    model: Transformer,
    code_ids: Sequence[int],
    code_vectors: Tensor,
    pointers: Iterable[Pointer],
    grid: Grid,
    text: int,
) -> Started:
    """Start as the plainest restorer: one that writes codes which look like the poor picture's.

    Codes that look alike get embeddings and head rows that are alike, from the tokenizer's code
    vectors. Each pointed head reads the look of the code it is pointed at and writes it into
    directions of its own in the residual stream; the head reads the directions of the first
    pointer.

    Args:
        model: freshly initialised.
        code_ids: token of each code.
        code_vectors: (codes, D) unit vectors of the tokenizer.
        pointers: the first one decides what is copied.
        grid: of the pictures in a sequence.
        text: tokens of label and caption in a sequence.

    Raises:
        ValueError: too many pointers for the width of the model.
    """
    pointers = list(pointers)
    config = model.config
    looks, D = code_vectors.shape[1], config.hidden_size
    if (len(pointers) + 1) * looks > D or looks > config.head_dim:
        raise ValueError(
            f"{len(pointers)} pointers of {looks} directions do not fit a width of {D}"
        )
    basis = torch.linalg.qr(torch.randn(D, D)).Q
    own, *written = basis.T.split(looks)[: len(pointers) + 1]  # each (looks, D)
    ids = torch.tensor(code_ids)
    model.model.embed_tokens.weight[ids] += EMBEDDED * code_vectors @ own
    centred = code_vectors - code_vectors.mean(0)  # else every code would outweigh every word
    model.lm_head.weight[ids] += LIKENESS / math.sqrt(D) * centred @ written[0]
    # What the first norm makes of the look of a code
    rms = model.model.embed_tokens.weight[ids].pow(2).mean(1).sqrt().mean()
    for pointer, target in zip(pointers, written, strict=True):
        point_head(model, pointer.layer, pointer.head, pointer.distance(grid, text))
        attention = model.model.layers[pointer.layer].get_submodule("self_attn")
        first = pointer.head * config.head_dim
        dims = slice(first, first + looks)
        attention.get_submodule("v_proj").get_parameter("weight")[dims] = own
        output = attention.get_submodule("o_proj").get_parameter("weight")
        output[:, dims] = (pointer.length * rms / EMBEDDED) * target.T
    return Started(own, torch.stack([p.length * t for p, t in zip(pointers, written, strict=True)]))


@torch.no_grad()
def level_pointers(
    model: Transformer, pointers: Iterable[Pointer], ids: Tensor, lq: Tensor, answer: Tensor
) -> None:
    """Let pointed heads of deeper layers write as strongly as those of the first.

    A head reads what the norm before it makes of a code's look, and that shrinks as the residual
    stream grows. Measured on sequences, once the layers before are trained.

    Args:
        model: as `start_as_copy` left it, its first layers trained since.
        pointers: those it was started with.
        ids: (B, T) sequences.
        lq: (T,) mask of the poor picture's codes.
        answer: (T,) mask of the answer's codes.
    """
    sizes: dict[int, Tensor] = {}
    layers = model.model.layers
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, inputs, i=i: sizes.__setitem__(i, inputs[0].float().pow(2).mean(-1).sqrt())
        )
        for i, layer in enumerate(layers)
    ]
    for layer in range(len(layers)):
        deeper = [p for p in pointers if p.layer == layer]
        if layer == 0 or not deeper:
            continue
        model.hidden(ids)
        for pointer in deeper:
            there = lq if pointer.picture == "lq" else answer
            scale = sizes[layer][:, there].mean() / sizes[0][:, there].mean()
            first = pointer.head * model.config.head_dim
            output = layers[layer].get_submodule("self_attn.o_proj").get_parameter("weight")
            output[:, first : first + model.config.head_dim] *= scale
    for hook in hooks:
        hook.remove()
