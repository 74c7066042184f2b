from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pure import engine as engine_module
from pure.engine import Engine, candidates, fastest, int8_product, transposed_product
from pure.model import Transformer, TransformerConfig

ATOL = 2e-5  # logits of size about 3, in float32
CONFIG = TransformerConfig(
    vocab_size=128,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=32,
)
IMAGE_IDS = torch.arange(20, 90)


def random_model(config, seed=0):
    torch.manual_seed(seed)
    model = Transformer(config).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.copy_(weight + 0.2 * torch.randn_like(weight))
    return model


@pytest.fixture(
    params=[
        {},
        {"num_key_value_heads": 2},
        {"swin_norm": True},
        {"model_parallel_size": 2},
        {"rope_theta": 500.0},
    ],
    ids=lambda change: "-".join(change) or "released",
)
def model(request):
    return random_model(replace(CONFIG, **request.param))


def ids_of(n, seed=0):
    return torch.randint(128, (n,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("reproducible", [True, False])
def test_rows_of_any_lengths_equal_whole_sequences(model, reproducible):
    rows = [ids_of(n, seed=n) for n in (50, 7, 23)]
    expected = [model.hidden(row[None])[0] for row in rows]
    engine = Engine(model, IMAGE_IDS, reproducible=reproducible)
    caches = [engine.cache(len(row)) for row in rows]
    parts = [[], [], []]
    for cut in ((0.3, 0.1, 0.6), (0.6, 0.5, 0.7), (1, 1, 1)):
        new = [
            row[cache.length : max(cache.length + 1, int(len(row) * share))]
            for row, cache, share in zip(rows, caches, cut, strict=True)
        ]
        for part, hidden in zip(parts, engine.hidden(new, caches), strict=True):
            part.append(hidden)
    for part, whole in zip(parts, expected, strict=True):
        torch.testing.assert_close(torch.cat(part), whole, rtol=0, atol=ATOL)


@pytest.mark.parametrize("reproducible", [True, False])
@pytest.mark.parametrize("before", [0, 300])  # tokens read before
def test_a_prompt_longer_than_a_block_of_keys_equals_the_whole_sequence(
    model, reproducible, before
):
    ids = ids_of(before + 1100)
    expected = model.hidden(ids[None])[0]
    engine = Engine(model, IMAGE_IDS, reproducible=reproducible)
    cache = engine.cache(len(ids) + 70)
    hidden = [
        engine.hidden([part], [cache])[0] for part in (ids[:before], ids[before:]) if len(part)
    ]
    torch.testing.assert_close(torch.cat(hidden), expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize("parts", [[1100], [512, 512, 76], [300, 800], [1, 1099]])
def test_a_prompt_rounds_alike_in_one_piece_or_in_several(parts):
    engine = Engine(random_model(CONFIG), IMAGE_IDS)
    if not engine.reproducible:
        pytest.skip("this machine has no oneDNN")
    ids = ids_of(1100)

    def read(parts):
        cache = engine.cache(1700)
        return torch.cat([engine.hidden([part], [cache])[0] for part in ids.split(parts)])

    assert torch.equal(read(parts), read([25] * 44))


@pytest.mark.parametrize("reproducible", [True, False])
@pytest.mark.parametrize("before", [0, 3])  # tokens read before
def test_the_last_states_are_the_last_of_all_states(model, reproducible, before):
    """And what is read afterwards finds the keys and values of every token."""
    engine = Engine(model, IMAGE_IDS, reproducible=reproducible)
    rows, more = [ids_of(before + n, seed=n) for n in (700, 1, 23)], ids_of(5)
    read = {}
    for last in (False, True):
        caches = [engine.cache(len(row) + 30) for row in rows]
        if before:
            engine.hidden([row[:before] for row in rows], caches)
        states = engine.hidden([row[before:] for row in rows], caches, last=last)
        read[last] = [part[-1:] for part in states] + engine.hidden([more] * 3, caches)
        assert [len(part) for part in states] == ([1, 1, 1] if last else [700, 1, 23])
    for ends, whole in zip(read[True], read[False], strict=True):
        if engine.reproducible:
            assert torch.equal(ends, whole)
        torch.testing.assert_close(ends, whole, rtol=0, atol=ATOL)


def test_logits_are_those_of_the_model(model):
    hidden = torch.randn(3, 64)
    expected = model.logits(hidden)
    engine = Engine(model, IMAGE_IDS)
    torch.testing.assert_close(engine.logits(hidden), expected, rtol=0, atol=ATOL)
    torch.testing.assert_close(
        engine.image_logits(hidden), expected[:, IMAGE_IDS], rtol=0, atol=ATOL
    )


def test_fusing_leaves_the_model_as_it_was_and_holds_no_copy():
    model, ids = random_model(CONFIG), ids_of(12)[None]
    before = model(ids)
    Engine(model, IMAGE_IDS)
    assert torch.equal(model(ids), before)
    attention = model.model.layers[0].self_attn
    storages = {p.weight.untyped_storage().data_ptr() for p in (attention.q_proj, attention.v_proj)}
    assert len(storages) == 1


@pytest.mark.parametrize("chunks", [[16], [8, 8], [3, 5, 7, 1], [2] * 8])
@pytest.mark.parametrize("start", [5, 189, 500, 700])  # at the edges of the kernels' blocks
@pytest.mark.parametrize("spare", [0, 37, 600])  # room after them: the last block may be short
def test_tokens_round_alike_however_many_are_read_at_once(start, chunks, spare):
    """Bit for bit: what makes parallel decoding repeat plain decoding exactly."""
    engine = Engine(random_model(CONFIG), IMAGE_IDS)
    if not engine.reproducible:
        pytest.skip("this machine has no oneDNN")
    ids = ids_of(start + 16)

    def read(parts):
        cache, at, hidden = engine.cache(start + 16 + spare), start, []
        engine.hidden([ids[:start]], [cache])
        for n in parts:
            hidden += engine.hidden([ids[at : at + n]], [cache])
            at += n
        return torch.cat(hidden)

    assert torch.equal(read(chunks), read([1] * 16))


def test_bfloat16_is_close_and_int8_not_far():
    model, ids = random_model(CONFIG), ids_of(30)
    exact = model.logits(model.hidden(ids[None])[0])
    distance = {}
    for precision in ("float32", "bfloat16", "int8"):
        engine = Engine(model, IMAGE_IDS, precision=precision)
        logits = engine.logits(engine.hidden([ids], [engine.cache(30)])[0])
        assert logits.dtype is torch.float32
        distance[precision] = float((logits - exact).abs().mean() / exact.std())
    assert distance["float32"] < 1e-5 < distance["bfloat16"] < 0.02
    assert distance["int8"] < 0.04


def test_only_float32_promises_the_same_ids():
    model = random_model(CONFIG)
    exact = [Engine(model, IMAGE_IDS, precision=p).exact for p in ("float32", "bfloat16", "int8")]
    assert exact == [True, False, False]


def test_int8_keeps_a_weight_within_half_a_step():
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    unit = torch.eye(64, dtype=torch.bfloat16)
    step = weight.abs().amax(1) / 127
    error = (int8_product(weight)(unit).float().T - weight).abs()
    assert bool((error <= 0.5 * step[:, None] + weight.abs() / 100).all())


@pytest.mark.parametrize("rows", [1, 2, 8, 100])
def test_every_kernel_multiplies(rows):
    weight, x = torch.randn(48, 32), torch.randn(rows, 32)
    for product in candidates(weight).values():
        torch.testing.assert_close(product(x), x @ weight.T, rtol=1e-5, atol=1e-5)


class Operands(TorchDispatchMode):
    """Strides of what is multiplied."""

    def __init__(self):
        super().__init__()
        self.strides = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.mm.default:
            self.strides.append(args[1].stride())
        return function(*args, **(kwargs or {}))


def test_the_transposed_kernel_always_gets_rows_in_one_piece():
    """Five times slower otherwise, and its own output, transposed, would be such an input."""
    product = transposed_product(torch.randn(32, 32))
    with Operands() as seen:
        product(product(torch.randn(32, 2).T))
    assert seen.strides == [(1, 32), (1, 32)]


@pytest.mark.parametrize(("times", "chosen"), [((9, 10), "a"), ((10, 9.5), "a"), ((10, 5), "b")])
def test_the_probe_keeps_the_first_kernel_unless_another_is_clearly_faster(
    monkeypatch, times, chosen
):
    clock = [0.0]

    def spending(seconds):
        def product(x):
            clock[0] += seconds
            return x

        return product

    products = {"a": spending(times[0]), "b": spending(times[1])}
    monkeypatch.setattr(engine_module, "candidates", lambda weight: products)
    monkeypatch.setattr(engine_module.time, "process_time", lambda: clock[0])
    assert fastest(torch.zeros(4, 4))[0] == chosen


@pytest.mark.parametrize(("between", "copies"), [(0, 1), (40 * 64, 40)])
def test_the_probe_reads_what_a_pass_reads_between_two_uses_of_a_weight(
    monkeypatch, between, copies
):
    weights = set()

    def recorded(weight):
        def product(x):
            weights.add(weight.data_ptr())
            return x

        return {"a": product, "b": product}

    monkeypatch.setattr(engine_module, "candidates", recorded)
    fastest(torch.zeros(4, 4), between)
    assert len(weights) == copies


def test_a_full_cache_is_refused_and_unchanged():
    engine = Engine(random_model(CONFIG), IMAGE_IDS, reproducible=False)
    cache = engine.cache(16)
    engine.hidden([ids_of(10)], [cache])
    with pytest.raises(ValueError, match="7 more tokens do not fit a cache of 16 that holds 10"):
        engine.hidden([ids_of(7)], [cache])
    assert cache.length == 10


def test_rows_and_caches_must_match():
    engine = Engine(random_model(CONFIG), IMAGE_IDS)
    with pytest.raises(ValueError, match="1 caches for 2 rows"):
        engine.hidden([ids_of(2), ids_of(2)], [engine.cache(4)])


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision is float32, bfloat16, int8, not 'fp8'"):
        Engine(random_model(CONFIG), IMAGE_IDS, precision="fp8")
