import json

import pytest
import torch

from pure.decode import Conversation
from pure.grammar import Grid
from pure.sampling import SamplingConfig
from tools import bench_tables
from tools.bench import paired, ratio, too_slow
from tools.published_path import Static, as_published, generate

CONFIG = SamplingConfig(k_min=1, k_max=20, mu=3.0, guidance_scale=3)


@pytest.fixture
def conversation(engine, grammar):
    codes = torch.randint(64, (4, 4), generator=torch.Generator().manual_seed(0))
    prompt = grammar.prompt(grammar.vocab.text[:9], codes)
    return Conversation(engine, grammar, prompt, Grid(4, 4), text_limit=0)


def theirs(conversation):
    """The same prompt and layout, as the other ways of decoding take them."""
    grammar = conversation.grammar
    prompt = [*conversation.prompt, *grammar.opening(conversation.grid)]
    vocab = grammar.vocab
    layout = {"begin": vocab.begin_image, "newline": vocab.newline, "codes": vocab.code_ids}
    return torch.tensor([prompt]), layout | {"columns": conversation.grid.columns}


def codes_of(conversation, config, seed=0):
    return [step.code for step in conversation.restore([], config, seed=seed) if step.cell]


@pytest.mark.parametrize("seed", [0, 7])
def test_the_static_arm_draws_the_same_picture(transformer, conversation, seed):
    """What is timed beside ours does the same work: another library, the same codes."""
    prompt, layout = theirs(conversation)
    published = as_published(transformer.config, transformer)
    static = Static(published, prompt, 16, config=CONFIG, **layout)
    assert static.generate(16, seed) == codes_of(conversation, CONFIG, seed)


def test_the_published_arm_draws_the_same_picture_where_nothing_is_random(
    transformer, conversation
):
    prompt, layout = theirs(conversation)
    one = SamplingConfig(k_min=1, k_max=1, guidance_scale=3)
    published = as_published(transformer.config, transformer)
    ids = generate(published, prompt, 19, config=one, **layout)[0, prompt.shape[1] :]
    drawn = [int((layout["codes"] == i).nonzero()) for i in ids if i != layout["newline"]]
    assert drawn == codes_of(conversation, SamplingConfig(mode="top1", guidance_scale=3))


def test_arms_take_turns_and_the_first_round_only_warms_up():
    order = []
    arms = {name: lambda name=name: order.append(name) or float(len(order)) for name in "ab"}
    assert paired(arms, 2) == {"a": [3.0, 6.0], "b": [4.0, 5.0]}
    assert order == ["b", "a", "a", "b", "b", "a"]


def test_a_ratio_is_taken_within_a_round():
    seconds = {"base": [2.0, 30.0, 8.0], "arm": [1.0, 10.0, 2.0]}
    assert ratio(seconds, "base", "arm") == {"median": 3.0, "low": 2.0, "high": 4.0}


def test_a_ratio_below_seven_tenths_of_the_recorded_fails():
    recorded = {name: {"median": 4.0} for name in ("kept", "lost", "not measured")}
    now = {"kept": {"median": 2.9}, "lost": {"median": 2.7}}
    assert too_slow(recorded, now) == ["lost: 2.70, recorded 4.00"]


def test_only_tables_with_numbers_are_written_anew():
    page = (
        "a\n<!-- table: identity -->\nold\n<!-- end -->\nb\n<!-- table: nano -->\nold\n<!-- end -->"
    )
    results = {"identity": {"weights": "abc", "pairs": 50, "identical": 49}}
    new = bench_tables.renewed(page, results)
    assert "| `abc` | 50 | 49 |" in new
    assert new.startswith("a\n<!-- table: identity -->\n| ")
    assert new.endswith("<!-- end -->\nb\n<!-- table: nano -->\nold\n<!-- end -->")


def test_the_page_shows_the_recorded_numbers():
    page = bench_tables.PAGE.read_text("utf-8")
    assert bench_tables.renewed(page, json.loads(bench_tables.NUMBERS.read_text("utf-8"))) == page


def test_the_recorded_ratios_are_those_of_the_recorded_rounds():
    results = json.loads(bench_tables.NUMBERS.read_text("utf-8"))
    mid = results["speed"]["plain"]["mid16"]
    expected = ratio(mid["seconds_per_token"], "published", "float32")
    assert results["summary"]["plain_fp32_mid16"] == expected
