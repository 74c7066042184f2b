from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from pure import capture, decode
from pure import engine as engine_module
from pure.capture import FixedPass, Reader, compiled, cuda_graph, recorder
from pure.decode import Conversation
from pure.engine import Engine
from pure.grammar import Grid
from pure.sampling import SamplingConfig
from tests.pure.test_engine import ATOL, CONFIG, IMAGE_IDS, ids_of, random_model

CHANGES = [{}, {"num_key_value_heads": 2}, {"swin_norm": True}]


def begun(engine, lengths=(9, 4), capacity=(30, 21)):
    """Caches of some lengths, filled with the same tokens each time."""
    caches = [engine.cache(c) for c in capacity]
    engine.hidden([ids_of(n, seed=n) for n in lengths], caches)
    return caches


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: "-".join(change) or "released")
@pytest.mark.parametrize("n", [1, 2])
def test_a_fixed_pass_gives_what_the_engine_gives(change, n):
    engine = Engine(random_model(replace(CONFIG, **change)), IMAGE_IDS)
    plain, fixed = begun(engine), begun(engine)
    read = FixedPass(engine, fixed, n)
    for step in range(3):
        rows = [ids_of(n, seed=10 * step), ids_of(n, seed=10 * step + 1)]
        places = torch.stack([torch.arange(c.length, c.length + n) for c in fixed])
        expected = torch.cat(engine.hidden(rows, plain))
        torch.testing.assert_close(read(torch.stack(rows), places), expected, rtol=0, atol=ATOL)
        for cache in fixed:
            cache.length += n
    for a, b in zip(plain, fixed, strict=True):
        for x, y in zip(a.keys + a.values, b.keys + b.values, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=ATOL)


def test_a_compiled_pass_gives_what_the_engine_gives(monkeypatch):
    monkeypatch.setattr(engine_module, "can_pack", lambda _: False)
    unpacked = Engine(random_model(replace(CONFIG, num_hidden_layers=1)), IMAGE_IDS)
    plain, fixed = begun(unpacked), begun(unpacked)
    reader = Reader(unpacked, compiled)
    for step in range(3):
        rows = [ids_of(1, seed=step), ids_of(1, seed=step + 9)]
        expected = torch.cat(unpacked.hidden(rows, plain))
        states = torch.cat(reader.hidden(rows, fixed))
        torch.testing.assert_close(states, expected, rtol=0, atol=ATOL)


def test_packed_weights_are_not_compiled():
    engine = Engine(random_model(CONFIG), IMAGE_IDS)
    if not engine.reproducible:
        pytest.skip("this machine packs no weights")
    with pytest.raises(ValueError, match="packed weights"):
        compiled(FixedPass(engine, begun(engine), 1))


def test_a_pass_is_recorded_once_for_caches_and_number_of_tokens():
    engine = Engine(random_model(CONFIG), IMAGE_IDS)
    recorded = []

    def record(fixed):
        recorded.append((fixed.n, len(fixed.caches)))
        return fixed

    reader, caches = Reader(engine, record), begun(engine)
    for n in (1, 2, 1, 1, 2):
        reader.hidden([ids_of(n)] * 2, caches)
    assert recorded == [(1, 2), (2, 2)]
    assert [cache.length for cache in caches] == [16, 11]
    reader.hidden([ids_of(3)] * 2, caches)  # too many
    reader.hidden([ids_of(1), ids_of(2)], caches)  # not alike
    assert len(recorded) == 2
    passes = engine.passes
    reader.hidden([ids_of(1)], caches[:1])  # other caches
    assert recorded[2:] == [(1, 1)]
    assert engine.passes == passes + 1


def test_a_full_cache_is_refused_as_by_the_engine():
    engine = Engine(random_model(CONFIG), IMAGE_IDS)
    reader, caches = Reader(engine, lambda fixed: fixed), begun(engine, capacity=(9, 4))
    with pytest.raises(ValueError, match="do not fit"):
        reader.hidden([ids_of(1)] * 2, caches)


@pytest.mark.parametrize("scale", [1, 2.5])
def test_a_picture_is_the_same_with_recorded_passes(transformer, grammar, monkeypatch, scale):
    engine = Engine(transformer, grammar.vocab.code_ids)
    codes_read = torch.arange(16).view(4, 4) % len(grammar.vocab.codes)
    prompt = grammar.prompt(grammar.vocab.text[:9], codes_read)
    config = SamplingConfig(guidance_scale=scale)

    def codes():
        talk = Conversation(engine, grammar, prompt, Grid(4, 4))
        return [step.code for step in talk.restore([], config, seed=3) if step.code is not None]

    expected, recorded = codes(), []
    monkeypatch.setattr(decode, "recorder", lambda _: lambda fixed: recorded.append(1) or fixed)
    assert codes() == expected
    assert len(recorded) == 2  # one token a row, and two at the beginning of a line


def test_passes_are_recorded_on_a_gpu_only():
    assert recorder(SimpleNamespace(device=torch.device("cpu"), record=None)) is None
    assert recorder(SimpleNamespace(device=torch.device("cuda"), record=None)) is cuda_graph
    assert recorder(SimpleNamespace(device=torch.device("cuda"), record=compiled)) is compiled


def test_a_graph_is_captured_after_warm_up_and_replayed_over_its_own_tensors(monkeypatch):
    """With a stand-in for CUDA: what a replay computes is what was captured, on the new inputs."""
    log, captured = [], []

    class Graph:
        def replay(self):
            log.append("replay")
            captured[0].copy_(fixed.original(*fixed.inputs))

    class Capturing:
        def __init__(self, graph):
            log.append("capture")

        def __enter__(self):
            return None

        def __exit__(self, *error):
            captured.append(fixed.last)

    stream = SimpleNamespace(wait_stream=lambda other: None)
    stand_ins = {
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda _: nullcontext(),
        "CUDAGraph": Graph,
        "graph": Capturing,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    engine = Engine(random_model(CONFIG), IMAGE_IDS)
    plain, caches = begun(engine), begun(engine)

    class Recorded(FixedPass):
        original = FixedPass.forward

        def forward(self, ids, places):
            log.append("run")
            self.inputs, self.last = (ids, places), FixedPass.forward(self, ids, places)
            return self.last

    fixed = Recorded(engine, caches, 1)
    read = cuda_graph(fixed)
    assert log == ["run"] * capture.WARM_UPS + ["capture", "run"]
    for step in range(2):
        rows = [ids_of(1, seed=step), ids_of(1, seed=step + 9)]
        places = torch.tensor([[cache.length] for cache in caches])
        expected = torch.cat(engine.hidden(rows, plain))
        with torch.inference_mode():
            states = read(torch.stack(rows), places)
        torch.testing.assert_close(states, expected, rtol=0, atol=ATOL)
        for cache in caches:
            cache.length += 1
    assert log[-2:] == ["replay", "replay"]
