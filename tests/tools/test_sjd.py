import numpy as np
import pytest
import torch
from scipy.stats import chi2

from pure.decode import Conversation, write
from pure.grammar import Grid
from pure.sampling import SamplingConfig
from tools.sjd import speculative


@pytest.fixture
def conversation(engine, grammar):
    codes = torch.randint(64, (4, 4), generator=torch.Generator().manual_seed(0))
    prompt = grammar.prompt(grammar.vocab.text[:9], codes)
    return Conversation(engine, grammar, prompt, Grid(4, 4))


@pytest.mark.parametrize("cells", [1, 5, 16])
def test_with_one_candidate_it_is_greedy_decoding(engine, conversation, cells):
    config = SamplingConfig(mode="topk", top_k=1)
    plain = [step.code for step in conversation.restore([], config) if step.cell]
    picture = conversation.picture([], config)
    list(speculative(engine, picture, config, cells, torch.Generator().manual_seed(0)))
    assert [step.code for step in picture.told() if step.cell] == plain


def test_it_draws_what_plain_decoding_draws(engine, conversation):
    """Counts of the third of three open codes, two samples; by chance wrong for 1 in 10,000."""
    config, n = SamplingConfig(mode="topk", top_k=4, temperature=0.8), 600
    known = torch.full((4, 4), 5)
    known[0, 1:] = -1
    counts = np.zeros((2, 64))
    generator = torch.Generator().manual_seed(1)
    for start in range(0, n, 100):
        pictures = [
            conversation.fork().picture([], config, seed=seed, known=known)
            for seed in range(start, start + 100)
        ]
        for _, step in write(engine, pictures):
            if step.cell == (0, 3):
                counts[0, step.code] += 1
    for _ in range(n):
        picture = conversation.picture([], config, known=known)
        list(speculative(engine, picture, config, 3, generator))
        counts[1] += np.bincount([s.code for s in picture.told() if s.cell == (0, 3)], minlength=64)
    total = counts.sum(0)
    common = total >= 10
    table = np.column_stack([counts[:, common], counts[:, ~common].sum(1)])
    table = table[:, table.sum(0) > 0]
    expected = table.sum(0) / 2
    statistic = ((table - expected) ** 2 / expected).sum()
    assert statistic < chi2.isf(1e-4, table.shape[1] - 1)
