"""Speculative Jacobi decoding with its published acceptance rule, made exact: for comparison.

A draft is accepted by the ratio of its probability now to that when it was drawn; the first
rejected one is drawn again from the positive part of their difference, and later ones from their
new distributions. Differs from the code published with PURE, because that one does not draw from
the model's distribution: every code may be drafted, each cell has its own k, the residual is not
cut and tempered again, and the unconditional row starts at begin-image.

Source: Teng et al. 2024, "Accelerating Auto-regressive Text-to-Image Generation with Training-free
Speculative Jacobi Decoding".
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from pure.engine import Engine
from pure.picture import Picture, predict
from pure.sampling import Draws, SamplingConfig, dynamic_k, entropy, keep_top


def processed(logits: Tensor, config: SamplingConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities (n, codes), entropy (n,) and k (n,): top-k first, temperature last."""
    nats = entropy(logits)
    if config.mode == "dynamic":
        k, most = dynamic_k(nats, config), config.k_max
    else:
        most = config.top_k if config.mode == "topk" else 1
        k = torch.full_like(nats, most, dtype=torch.long)
    kept = keep_top(logits, k, most)
    probs = (logits / config.temperature).masked_fill(~kept, -torch.inf).softmax(-1)
    return probs, nats, k


def speculative(
    engine: Engine,
    picture: Picture,
    config: SamplingConfig,
    cells: int,
    generator: torch.Generator,
) -> Iterator[int]:
    """Write a picture; yields how many cells each pass decided.

    The seed of the picture is not used: draws follow the order of passes, not places.
    """
    to_codes = picture.grammar.vocab.to_codes
    drawn_from: dict[int, Tensor] = {}  # distributions of drafts; a first draft is taken as certain
    while not picture.done:
        window = picture.window(cells)
        probs, nats, k = processed(predict(engine, [picture], [window]), config)
        drafts = to_codes(picture.ids[torch.tensor(window)])
        chance = torch.rand(len(window), generator=generator)
        codes = torch.multinomial(probs, 1, generator=generator)[:, 0]  # for after a rejection
        accepted = len(window)
        for i, (index, draft) in enumerate(zip(window, drafts.tolist(), strict=True)):
            q = drawn_from.get(index)
            ratio = probs[i, draft] / (1 if q is None else q[draft])
            if chance[i] < ratio:
                codes[i] = draft
                continue
            left = probs[i].clone()
            if q is None:
                left[draft] = 0
            else:
                left = (left - q).clamp(min=0)
            codes[i] = torch.multinomial(left, 1, generator=generator)
            accepted = i + 1
            break
        picture.put(window, Draws(codes, nats, k))
        for i, index in enumerate(window):
            drawn_from[index] = probs[i]
        picture.accept(accepted)
        yield accepted
