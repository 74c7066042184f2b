"""The way PURE's published code decodes, made again from its description: the benchmark's baseline.

`transformers`' `generate` with a growing cache, and three logits processors that look through the
whole sequence at every token: guidance by a second pass of its own, the grammar's mask over the
full vocabulary, entropy-sized top-k over it; then temperature and one multinomial draw. Written
anew, so its constants may be better or worse than the original's.
"""

import math
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from pure.model import Transformer, TransformerConfig
from pure.sampling import SamplingConfig, draw, guide, noise


def as_published(config: TransformerConfig, model: Transformer) -> Any:  # transformers is untyped
    """`transformers`' Chameleon with our weights, QK-norm rows repeated for every head."""
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration

    vq = {"base_channels": 32, "channel_multiplier": [1, 1], "num_embeddings": 16}
    vq |= {"embed_dim": 8, "latent_channels": 8, "num_res_blocks": 1}
    shape = asdict(config)
    del shape["model_parallel_size"], shape["dropout"]
    # a map without names of image codes, or it would mask their logits
    names = {"<image>": 5}
    published = ChameleonForConditionalGeneration(
        ChameleonConfig(**shape, vocabulary_map=names, vq_config=vq)
    ).eval()
    state = {
        key: value.repeat_interleave(config.num_attention_heads // len(value), dim=0)
        if "q_norm" in key or "k_norm" in key
        else value
        for key, value in model.state_dict().items()
    }
    published.load_state_dict(state, strict=False)
    return published


class Guidance:
    """A second pass over the picture so far, with a cache of its own."""

    def __init__(self, model: Any, begin: int, scale: float) -> None:
        from transformers import DynamicCache

        self.model, self.begin, self.scale = model, begin, scale
        self.cache = DynamicCache(config=model.config)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        start = int((input_ids[0] == self.begin).nonzero()[-1])
        new = input_ids[:, start + self.cache.get_seq_length() :]
        out = self.model(input_ids=new, past_key_values=self.cache, use_cache=True)
        uncond = out.logits[:, -1].float()
        return self.scale * (scores - uncond) + uncond


class Mask:
    """Everything but image codes, or the newline where a row is full, becomes impossible."""

    def __init__(self, begin: int, newline: int, codes: Tensor, columns: int) -> None:
        self.begin, self.newline, self.codes, self.columns = begin, newline, codes, columns

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        start = int((input_ids[0] == self.begin).nonzero()[-1])
        place = input_ids.shape[1] - start - 3
        masked = torch.full_like(scores, -math.inf)
        if place % (self.columns + 1) == self.columns:
            masked[:, self.newline] = 0
        else:
            masked[:, self.codes] = scores[:, self.codes]
        return masked


class EntropyTopK:
    """Entropy of the full row sizes the number of candidates."""

    def __init__(self, config: SamplingConfig) -> None:
        self.config = config

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return full_top_k(scores, self.config)


def full_top_k(scores: Tensor, config: SamplingConfig) -> Tensor:
    """Scores (1, vocab) with all but the top k at minus infinity, as published."""
    probs = scores.softmax(-1)
    nats = float(-(probs * (probs + 1e-10).log()).sum())
    span = config.k_max - config.k_min
    k = round(config.k_min + span / (1 + math.exp(config.mu - min(max(nats, 0), 10))))
    threshold = scores.topk(k).values[:, -1:]
    return scores.masked_fill(scores < threshold, -math.inf)


def full_draw(scores: Tensor, config: SamplingConfig, generator: torch.Generator) -> int:
    """One token from masked scores (1, vocab): top-k, temperature, a multinomial draw."""
    probs = (full_top_k(scores, config) / config.temperature).softmax(-1)
    return int(torch.multinomial(probs, 1, generator=generator))


def generate(
    model: Any,
    prompt: Tensor,
    tokens: int,
    *,
    begin: int,
    newline: int,
    codes: Tensor,
    columns: int,
    config: SamplingConfig,
) -> Tensor:
    """Continue `prompt` (1, T), which ends with an image's three opening ids, by `tokens` ids."""
    from transformers import LogitsProcessorList

    processors = LogitsProcessorList(
        [
            Guidance(model, begin, config.guidance_scale),
            Mask(begin, newline, codes, columns),
            EntropyTopK(config),
        ]
    )
    result: Tensor = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),  # or ids like the padding count as such
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=True,
        temperature=config.temperature,
        top_k=0,
        logits_processor=processors,
        pad_token_id=0,
        eos_token_id=None,
    )
    return result


class Static:
    """`transformers` at its best: a static cache, both guidance rows in one pass, our sampler.

    The unconditional row is padded on the left to the length of the other, as a batch of one cache
    needs it, and only the image codes are predicted.

    Args:
        model: as `as_published` makes it.
        prompt: (1, T) ids, ending with an image's three opening ids.
        tokens: most codes that are written.
        begin, newline, codes, columns, config: as in `generate`.
    """

    def __init__(
        self,
        model: Any,
        prompt: Tensor,
        tokens: int,
        *,
        begin: int,
        newline: int,
        codes: Tensor,
        columns: int,
        config: SamplingConfig,
    ) -> None:
        self.model, self.newline, self.codes, self.columns = model.model, newline, codes, columns
        self.config = config
        self.head = model.lm_head.weight[codes]
        self.length = prompt.shape[1]
        opening = self.length - int((prompt[0] == begin).nonzero()[-1])
        self.capacity = self.length + tokens + tokens // columns
        self.ids = prompt.repeat(2, 1)
        self.seen = torch.ones(2, self.capacity, dtype=torch.long)
        self.seen[1, : self.length - opening] = 0
        self.places = torch.stack(
            [torch.arange(self.capacity), torch.arange(self.capacity) - self.length + opening]
        ).clamp(min=0)

    def generate(self, tokens: int, seed: int = 0) -> list[int]:
        """Write so many codes; their indices."""
        from transformers import StaticCache

        cache = StaticCache(config=self.model.config, max_cache_len=self.capacity)
        new, start = self.ids, 0
        drawn: list[int] = []
        for number in range(tokens):
            end = start + new.shape[1]
            states = self.model(
                input_ids=new,
                attention_mask=self.seen[:, :end],
                position_ids=self.places[:, start:end],
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, -1]
            cond, uncond = (states @ self.head.T).float().chunk(2)
            logits = guide(cond, uncond, self.config.guidance_scale)
            race = noise(seed, number, len(self.codes))[None]
            index = int(draw(logits, self.config, race).index)
            drawn.append(index)
            row = [int(self.codes[index])]
            if (number + 1) % self.columns == 0:
                row.append(self.newline)
            new, start = torch.tensor([row, row]), end
        return drawn
