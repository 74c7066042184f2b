from dataclasses import replace

import pytest
import torch

from pure.checkpoint import load
from pure.cost import (
    A100,
    EAGER_LAUNCH,
    H100,
    ZERO_GPU,
    Workload,
    body_weights,
    cache_bytes,
    image_seconds,
    kept_bytes,
    pass_bytes,
    pass_seconds,
)
from pure.decode import Conversation
from pure.engine import Engine
from pure.grammar import Grid
from pure.model import CONFIGS, KVCache, TransformerConfig
from pure.sampling import SamplingConfig

RELEASED = CONFIGS["7b"]
PAPER_SECONDS, PAPER_TOKENS = 256.87, 4290  # an image on an A100; its tokens, text included


def test_two_eager_passes_a_token_explain_the_paper():
    one = pass_seconds(pass_bytes(RELEASED, Workload()), 0, A100, launch=EAGER_LAUNCH)
    assert 2 * one == pytest.approx(57e-3, rel=0.01)
    assert 2 * one == pytest.approx(PAPER_SECONDS / PAPER_TOKENS, rel=0.06)


def test_gpt_fast_is_explained_by_its_bandwidth():
    """Published: 104.9 tokens a second of Llama-2 7B in bfloat16 on an A100, 69 % of bandwidth."""
    llama = TransformerConfig(vocab_size=32_000)
    read = 2 * (body_weights(llama) + 32_000 * 4096)
    assert pass_seconds(read, 0, A100, memory_share=0.69) == pytest.approx(1 / 104.9, rel=0.02)


def test_the_bytes_are_those_of_the_shapes():
    assert body_weights(RELEASED) == 32 * (4 * 4096**2 + 3 * 4096 * 11_008)
    assert cache_bytes(RELEASED, 1) == 524_288
    assert pass_bytes(RELEASED, Workload()) == pytest.approx(17.5e9, rel=0.01)
    unguided = replace(Workload(), guided=False)
    assert pass_bytes(RELEASED, unguided) == pytest.approx(17.5e9 - 1.09e9, rel=0.01)


def test_the_cache_takes_what_is_computed():
    cache = KVCache(CONFIGS["nano"], 1000)
    assert cache.bytes == cache_bytes(CONFIGS["nano"], 1000, 4)


@pytest.mark.parametrize(
    ("machine", "share", "ids", "seconds"),
    [
        (A100, 1, 1, 36.6),
        (H100, 1, 1, 22.1),
        (A100, 0.65, 1, 56),
        (H100, 0.65, 1, 34),
        (A100, 0.65, 4, 15),
        (H100, 0.65, 4, 9.3),
        (ZERO_GPU, 0.65, 1, 125),
    ],
)
def test_estimates_are_those_computed_by_hand(machine, share, ids, seconds):
    estimate = image_seconds(RELEASED, machine, memory_share=share, ids_per_pass=ids)
    assert estimate == pytest.approx(seconds, rel=0.03)


def test_a_wide_pass_is_bound_by_arithmetic():
    narrow, wide = (image_seconds(RELEASED, A100, width=w) for w in (8, 200))
    assert narrow == image_seconds(RELEASED, A100)
    assert wide > 1.5 * narrow


def test_smaller_weights_and_more_ids_a_pass_cost_less():
    base = image_seconds(RELEASED, A100)
    assert image_seconds(RELEASED, A100, replace(Workload(), weight_bytes=1)) < 0.7 * base
    assert image_seconds(RELEASED, A100, ids_per_pass=3) < 0.4 * base


@pytest.mark.parametrize("reproducible", [True, False])
def test_an_engine_holds_the_computed_cache(transformer, vocab, reproducible):
    engine = Engine(transformer, vocab.code_ids, reproducible=reproducible)
    assert engine.cache(300).bytes == cache_bytes(transformer.config, 300, 4)


def test_both_rows_of_the_release_keep_what_was_computed_by_hand():
    assert kept_bytes(RELEASED, Workload()) == pytest.approx(6.6e9, rel=0.01)


@pytest.mark.parametrize("scale", [0.8, 1])
def test_a_picture_by_nano_allocates_the_computed_bytes(monkeypatch, scale):
    checkpoint = load("nano")
    engine = Engine(checkpoint.model, checkpoint.grammar.vocab.code_ids)
    allocated = []
    cache = Engine.cache

    def counted(self, capacity):
        result = cache(self, capacity)
        allocated.append(result.bytes)
        return result

    monkeypatch.setattr(Engine, "cache", counted)
    side = checkpoint.native // checkpoint.vq.factor
    grammar, instruction = checkpoint.grammar, checkpoint.text.instruction()
    prompt = grammar.prompt(instruction, torch.zeros(side, side, dtype=torch.long))
    conversation = Conversation(
        engine, grammar, prompt, Grid(side, side), text_limit=checkpoint.text_limit
    )
    conversation.picture([], SamplingConfig(guidance_scale=scale))
    work = Workload(
        rows=side,
        columns=side,
        instruction=len(instruction),
        text=checkpoint.text_limit,
        guided=scale != 1,
        cache_bytes=4,
    )
    assert sum(allocated) == pytest.approx(kept_bytes(checkpoint.model.config, work), rel=0.05)
