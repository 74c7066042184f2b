import logging
from dataclasses import replace

import pytest
import torch

from pure import ahead
from pure.ahead import Blocks, capacities, compile_block
from pure.capture import FixedPass, Reader
from pure.checkpoint import load
from pure.decode import Conversation
from pure.engine import Engine
from pure.grammar import Grid
from tests.pure.test_capture import CHANGES, begun
from tests.pure.test_engine import ATOL, CONFIG, IMAGE_IDS, ids_of, random_model

# what `spaces` says where there is no GPU
pytestmark = pytest.mark.filterwarnings("ignore:Error while reading infos from Nvidia:UserWarning")


def exported(program):
    """Stands in for the compiler, which takes 20 seconds: runs what it would have been given."""
    return program.module()


@pytest.fixture
def quick(monkeypatch):
    import spaces

    monkeypatch.setattr(spaces, "aoti_compile", exported)


def read_three(engine, record):
    """States of three passes, by the engine and by recorded passes."""
    plain, caches = begun(engine), begun(engine)
    reader = Reader(engine, record)
    for step in range(3):
        rows = [ids_of(1, seed=step), ids_of(1, seed=step + 9)]
        expected = torch.cat(engine.hidden(rows, plain))
        torch.testing.assert_close(
            torch.cat(reader.hidden(rows, caches)), expected, rtol=0, atol=ATOL
        )


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: "-".join(change) or "released")
def test_one_exported_block_serves_every_block(quick, change):
    engine = Engine(random_model(replace(CONFIG, **change)), IMAGE_IDS)
    blocks = Blocks()
    assert blocks.prepare(engine, [30, 21])
    used = []

    def record(fixed):
        result = blocks.record(fixed)
        used.append(fixed.block)
        return result

    read_three(engine, record)
    assert len(used) == 1
    assert used[0] is not None


@pytest.mark.compiler
def test_the_block_that_spaces_compiles_serves_every_block():
    engine = Engine(random_model(CONFIG), IMAGE_IDS)
    block = compile_block(engine, [30, 21])
    read_three(engine, lambda fixed: FixedPass(engine, fixed.caches, 1, block))


def test_capacities_are_those_of_the_caches_of_a_tile():
    checkpoint = load("nano", dtype=torch.float32)
    engine = Engine(checkpoint.model, checkpoint.grammar.vocab.code_ids)
    side = checkpoint.native // checkpoint.vq.factor
    prompt = checkpoint.grammar.prompt(
        checkpoint.text.instruction(), torch.zeros(side, side, dtype=torch.long)
    )
    talk = Conversation(
        engine, checkpoint.grammar, prompt, Grid(side, side), text_limit=checkpoint.text_limit
    )
    caches = talk.picture([], checkpoint.sampling).caches
    assert capacities(checkpoint) == [cache.capacity for cache in caches]


def test_a_block_of_int8_weights_is_not_compiled():
    engine = Engine(random_model(CONFIG), IMAGE_IDS, precision="int8")
    with pytest.raises(ValueError, match="int8"):
        compile_block(engine, [30, 21])


def test_a_block_has_the_precision_of_its_engine(quick):
    engine = Engine(random_model(CONFIG), IMAGE_IDS, precision="bfloat16")
    blocks, caches = Blocks(), begun(engine)
    assert blocks.prepare(engine, [30, 21])
    states = Reader(engine, blocks.record).hidden([ids_of(1), ids_of(1)], caches)
    assert states[0].dtype is torch.bfloat16


def test_other_shapes_run_without(quick):
    engine = Engine(random_model(CONFIG), IMAGE_IDS)
    blocks = Blocks()
    blocks.prepare(engine, [30, 22])
    fixed = FixedPass(engine, begun(engine), 1)
    assert blocks.record(fixed) is fixed
    assert fixed.block is None
    read_three(engine, blocks.record)


def test_a_compiler_that_fails_costs_time_only(monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(ahead, "compile_block", fail)
    engine, blocks = Engine(random_model(CONFIG), IMAGE_IDS), Blocks()
    with caplog.at_level(logging.ERROR):
        assert not blocks.prepare(engine, [30, 21])
    assert "passes run eagerly" in caplog.text
    read_three(engine, blocks.record)
