import pytest
import torch

from pure.decode import ROWS, Conversation, write
from pure.grammar import Grid
from pure.rows import rows
from pure.sampling import SamplingConfig

FEW = SamplingConfig(k_min=1, k_max=20, mu=3.0)
UNGUIDED = SamplingConfig(guidance_scale=1, k_min=1, k_max=20, mu=3.0)


@pytest.fixture
def conversation(engine, grammar):
    codes = torch.randint(64, (8, 8), generator=torch.Generator().manual_seed(0))
    prompt = grammar.prompt(grammar.vocab.text[:9], codes)
    return Conversation(engine, grammar, prompt, Grid(8, 8))


@pytest.mark.parametrize("config", [FEW, UNGUIDED], ids=["guided", "unguided"])
@pytest.mark.parametrize("given", [False, True])
def test_a_lead_of_whole_rows_is_plain_decoding(engine, conversation, config, given):
    """Every id is read at its place and seen by whom it should be, given codes included."""
    known = torch.full((8, 8), -1)
    if given:
        known[0], known[3, 5:], known[4, :2], known[6, 2:4] = 7, 8, 9, 10
    text = conversation.grammar.vocab.text[5:9]
    plain = list(conversation.restore(text, config, seed=4, known=known))
    picture = conversation.picture(text, config, seed=4, known=known)
    list(rows(engine, [picture], config, lead=8))
    assert [step.id for step in picture.told()] == [step.id for step in plain]


def test_rows_in_parallel_need_few_passes(engine, conversation):
    picture = conversation.picture([], FEW)
    before = engine.passes
    written = list(rows(engine, [picture], FEW, lead=2))
    assert engine.passes - before == 8 + 7 * 2  # the first row, and two more for each other one
    assert sum(sum(n) for n in written) == 64


def test_a_preview_is_approximate_and_says_so(engine, conversation):
    assert ROWS.approximate
    config = SamplingConfig(mode="top1")
    plain = [step.id for step in conversation.restore([], config)]
    pictures = [conversation.picture([], config)]
    list(rows(engine, pictures, config, lead=1))
    quick = [step.id for step in pictures[0].told()]
    assert len(quick) == len(plain)
    assert quick != plain


def test_plain_decoding_after_a_preview_is_as_before(engine, conversation):
    plain = list(conversation.restore([], FEW, seed=1))
    list(write(engine, [conversation.picture([], FEW, seed=1)], ROWS))
    assert list(conversation.restore([], FEW, seed=1)) == plain
