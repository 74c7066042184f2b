import json
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pure.model import CONFIGS, KVCache, Transformer, TransformerConfig, rotary, rotate

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/upstream_chameleon.json").read_text())
ATOL = 5e-5  # float32 on another machine; the published code differs from itself by up to 3e-5


def published_weights(config, seed=2025):
    """A model with the weights of the recipe in the golden file."""
    model = Transformer(config).eval().requires_grad_(False)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    g = torch.Generator().manual_seed(seed)
    state = {}
    for key in sorted(shapes):
        whole = torch.randint(0, 2**22, (4, *shapes[key]), generator=g).sum(0) - 2**23
        state[key] = (whole / 2**21).float() * 0.25 + (1 if key.endswith("norm.weight") else 0)
    model.load_state_dict(state)
    return model


def golden_config(case):
    merged = GOLDEN["config"] | {key: case[key] for key in GOLDEN["config"] if key in case}
    rows, swin = case["model_parallel_size"], case["swin_norm"]
    return TransformerConfig(**merged, model_parallel_size=rows, swin_norm=swin)


@pytest.fixture(scope="module", params=GOLDEN["cases"], ids=lambda case: case["name"])
def published(request):
    return request.param, published_weights(golden_config(request.param))


def test_weights_of_the_recipe_are_those_of_the_published_run(published):
    """Else the next tests would fail for a changed random generator."""
    case, model = published
    state = model.state_dict()
    assert len(state) == case["tensors"]
    assert sum(v.numel() for v in state.values()) == case["parameters"]
    total = sum(float(v.double().sum()) for v in state.values())
    assert total == pytest.approx(case["weights_sum"], abs=1e-4)


@torch.inference_mode()
def test_logits_are_those_of_the_published_class(published):
    case, model = published
    logits = model(torch.tensor([GOLDEN["input_ids"]]))[0]
    expected = torch.tensor(case["logits"])
    torch.testing.assert_close(logits[-1], expected, rtol=0, atol=ATOL)
    assert logits.argmax(-1).tolist() == case["argmax"]


@torch.inference_mode()
def test_cached_logits_are_those_of_the_published_class(published):
    case, model = published
    ids, cache = GOLDEN["input_ids"], model.cache(len(GOLDEN["input_ids"]))
    steps = [ids[:5], *([i] for i in ids[5:])]
    logits = torch.cat(
        [model.logits(model.hidden(torch.tensor([step]), [cache]))[0] for step in steps]
    )
    expected = torch.tensor(case["logits"])
    torch.testing.assert_close(logits[-1], expected, rtol=0, atol=ATOL)
    assert logits.argmax(-1).tolist() == case["argmax"]


def reference(config, model):
    """`transformers`' Chameleon with our weights, QK-norm rows repeated for every head."""
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration

    tiny_vq = {"base_channels": 32, "channel_multiplier": [1, 1], "num_embeddings": 16}
    tiny_vq |= {"embed_dim": 8, "latent_channels": 8, "num_res_blocks": 1}
    shape = asdict(config)
    del shape["model_parallel_size"], shape["dropout"]  # not theirs
    # a map without IMGIMG names, or it would mask the image logits
    theirs = ChameleonForConditionalGeneration(
        ChameleonConfig(**shape, vocabulary_map={"<image>": 5}, vq_config=tiny_vq)
    ).eval()
    state = {}
    for key, value in model.state_dict().items():
        if "q_norm" in key or "k_norm" in key:
            queries = "q_norm" in key
            heads = config.num_attention_heads if queries else config.num_key_value_heads
            value = value.repeat_interleave(heads // config.model_parallel_size, dim=0)
        state[key] = value
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(key.startswith("model.vqmodel.") for key in missing)
    return theirs


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("swin_norm", [False, True])
@pytest.mark.parametrize("model_parallel_size", [1, 2])
@torch.inference_mode()
def test_logits_are_those_of_transformers(model_parallel_size, swin_norm, kv_heads):
    config = TransformerConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        model_parallel_size=model_parallel_size,
        swin_norm=swin_norm,
    )
    model = published_weights(config)
    theirs = reference(config, model)
    ids = torch.randint(300, (2, 40), generator=torch.Generator().manual_seed(1))
    expected = theirs.lm_head(theirs.model(input_ids=ids).last_hidden_state)
    logits = model(ids)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    assert torch.equal(logits.argmax(-1), expected.argmax(-1))


def test_the_released_shape_has_the_published_parameter_count():
    with torch.device("meta"):
        state = Transformer(CONFIGS["7b"]).state_dict()
    assert sum(value.numel() for value in state.values()) == 7_080_267_776
    assert len(state) == 419


def test_the_released_shape_has_the_released_names():
    with torch.device("meta"):
        state = Transformer(CONFIGS["7b"]).state_dict()
    expected = {
        "model.embed_tokens.weight": [73728, 4096],
        "model.norm.weight": [4096],
        "lm_head.weight": [73728, 4096],
    }
    for i in range(32):
        layer = f"model.layers.{i}."
        expected |= {f"{layer}self_attn.{n}_proj.weight": [4096, 4096] for n in "qkvo"}
        expected |= {
            f"{layer}self_attn.{n}_norm.{part}": [1, 128]
            for n in "qk"
            for part in ("weight", "bias")
        }
        expected |= {f"{layer}mlp.{n}_proj.weight": [11008, 4096] for n in ("gate", "up")}
        expected[f"{layer}mlp.down_proj.weight"] = [4096, 11008]
        expected[f"{layer}input_layernorm.weight"] = [4096]
        expected[f"{layer}post_attention_layernorm.weight"] = [4096]
    assert {key: list(value.shape) for key, value in state.items()} == expected


@st.composite
def splits(draw, length=23):
    """Chunk lengths that add up to `length`."""
    cuts = draw(st.sets(st.integers(1, length - 1)))
    edges = [0, *sorted(cuts), length]
    return [b - a for a, b in pairwise(edges)]


@pytest.fixture(scope="module", params=[(1, False, 4), (2, True, 2)], ids=["plain", "swin-gqa"])
def any_model(request):
    rows, swin, kv_heads = request.param
    config = TransformerConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        model_parallel_size=rows,
        swin_norm=swin,
    )
    return published_weights(config)


@given(splits())
@settings(max_examples=30)
@torch.inference_mode()
def test_reading_in_chunks_equals_reading_at_once(any_model, chunks):
    ids = torch.randint(50, (1, sum(chunks)), generator=torch.Generator().manual_seed(0))
    cache = any_model.cache(sum(chunks))
    parts = [any_model.hidden(part, [cache]) for part in ids.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), any_model.hidden(ids), rtol=0, atol=ATOL)
    assert cache.length == sum(chunks)


@given(st.lists(st.integers(1, 12), min_size=2, max_size=3), st.integers(1, 4))
@settings(max_examples=30)
@torch.inference_mode()
def test_rows_of_different_lengths_do_not_touch_each_other(any_model, lengths, more):
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(50, (1, n + more), generator=generator) for n in lengths]
    caches = [any_model.cache(n + more) for n in lengths]
    for row, cache, n in zip(rows, caches, lengths, strict=True):
        any_model.hidden(row[:, :n], [cache])
    together = any_model.hidden(torch.cat([row[:, -more:] for row in rows]), caches)
    for b, row in enumerate(rows):
        alone = any_model.hidden(row)[0, -more:]
        torch.testing.assert_close(together[b], alone, rtol=0, atol=ATOL)


@given(st.integers(0, 10))
@torch.inference_mode()
def test_a_truncated_cache_continues_as_if_the_rest_had_never_been(any_model, length):
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randint(50, (2, 1, 10), generator=generator)
    cache = any_model.cache(20)
    any_model.hidden(first, [cache])
    cache.truncate(length)
    continued = any_model.hidden(second, [cache])
    whole = any_model.hidden(torch.cat([first[:, :length], second], 1))
    torch.testing.assert_close(continued, whole[:, length:], rtol=0, atol=ATOL)


@pytest.mark.parametrize("length", [-1, 4])
def test_a_cache_is_not_cut_to_more_than_it_holds(transformer, length):
    cache = transformer.cache(5)
    transformer.hidden(torch.zeros(1, 3, dtype=torch.long), [cache])
    with pytest.raises(ValueError, match=f"3 tokens to {length}"):
        cache.truncate(length)


@torch.inference_mode()
def test_a_full_cache_is_refused_before_anything_is_written(transformer):
    cache = transformer.cache(4)
    transformer.hidden(torch.zeros(1, 3, dtype=torch.long), [cache])
    with pytest.raises(ValueError, match="2 more tokens do not fit a cache of 4 that holds 3"):
        transformer.hidden(torch.zeros(1, 2, dtype=torch.long), [cache])
    assert cache.length == 3


def test_every_row_needs_a_cache(transformer):
    with pytest.raises(ValueError, match="1 caches for 2 rows"):
        transformer.hidden(torch.zeros(2, 1, dtype=torch.long), [transformer.cache(1)])


def test_the_released_cache_takes_half_a_mebibyte_per_token_in_bfloat16():
    cache = KVCache(CONFIGS["7b"], 10, device="meta", dtype=torch.bfloat16)
    assert cache.bytes == 10 * 512 * 1024


@torch.inference_mode()
def test_later_tokens_do_not_change_earlier_logits(any_model):
    ids = torch.randint(50, (1, 12), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[0, -1] = (ids[0, -1] + 1) % 50
    torch.testing.assert_close(any_model(ids)[:, :-1], any_model(changed)[:, :-1])


@torch.inference_mode()
def test_logits_of_chosen_ids_are_columns_of_all_logits(any_model):
    hidden = any_model.hidden(torch.arange(6)[None])
    ids = torch.tensor([3, 40, 7])
    torch.testing.assert_close(any_model.logits(hidden, ids), any_model.logits(hidden)[..., ids])


@torch.inference_mode()
def test_logits_are_float32_in_bfloat16_models(transformer_config):
    model = Transformer(transformer_config).bfloat16().eval()
    assert model(torch.zeros(1, 3, dtype=torch.long)).dtype is torch.float32
    assert model.cache(2).keys[0].dtype is torch.bfloat16


def test_rotation_keeps_lengths_and_depends_on_distances_only():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 16, generator=generator).expand(2, 1, 30, 1, 16)
    cos, sin = rotary(torch.arange(30)[None], 16, 10_000.0, torch.float32)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    torch.testing.assert_close(q.norm(dim=-1), q[:, :1].norm(dim=-1).expand(1, 30, 1))
    scores = torch.einsum("bqhd,bkhd->qk", q, k)
    for distance in (-7, 0, 5):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5, rtol=0)


def test_dropout_works_in_training_only(transformer_config):
    model = published_weights(replace(transformer_config, dropout=0.5))
    ids = torch.arange(10)[None]
    assert torch.equal(model(ids), model(ids))
    model.train()
    torch.manual_seed(0)
    assert not torch.equal(model(ids), model(ids))
