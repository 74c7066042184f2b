import hashlib
import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from pure.grammar import Answer, Grammar, Grid, Phase
from pure.sampling import (
    Choice,
    SamplingConfig,
    SamplingError,
    _mix,
    draw,
    dynamic_k,
    entropy,
    guide,
    keep_top,
    noise,
)
from pure.vocab import RELEASED_SIZE, Vocab
from tools.published_path import full_top_k
from tools.tiny_checkpoint import vocabulary

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/upstream_sampling.json").read_text())
CODE_CASES = [case for case in GOLDEN["cases"] if case["finite_before_top_k"] == 16_384]
FORCED_CASES = [case for case in GOLDEN["cases"] if case["finite_before_top_k"] == 1]
PUBLISHED = SamplingConfig()


def choose(logits, config, race):
    """One draw, read back."""
    drawn = draw(logits, config, race)
    return Choice(int(drawn.index), float(drawn.entropy), int(drawn.k))


def k_at(nats, config):
    return int(dynamic_k(torch.tensor(nats, dtype=torch.float64), config))


def kept_of(logits, k):
    return keep_top(logits, torch.tensor(k), k)


@pytest.fixture(scope="module")
def released():
    return Vocab.from_names(vocabulary(small=False), RELEASED_SIZE)


def published_scores(recipe, seed, scale):
    """Conditional and unconditional scores of the recipe in the golden file."""
    g = torch.Generator().manual_seed(seed)

    def scores():
        whole = torch.randint(0, 2**22, (4, RELEASED_SIZE), generator=g).sum(0) - 2**23
        return (whole / 2**21).float() * scale

    cond, uncond = scores(), scores()
    if recipe.get("power") == 3:
        cond, uncond = cond * cond * cond, uncond * uncond * uncond
    if "step" in recipe:
        cond = torch.floor(cond / recipe["step"]) * recipe["step"]
        uncond = cond.clone()
    for i, value in recipe.get("add", {}).items():
        cond[int(i)] += value
    return cond, uncond


@pytest.mark.parametrize("case", CODE_CASES, ids=lambda case: case["name"])
def test_code_positions_are_sized_as_published(released, case):
    cond, uncond = published_scores(case, case["seed"], case["scale"])
    sums = [float(scores.double().sum()) for scores in (cond, uncond)]
    assert sums == pytest.approx(case["sums"], abs=1e-4)  # else the generator has changed
    ids = released.code_ids
    logits = guide(cond[ids], uncond[ids], case["guidance"])
    nats = float(entropy(logits))
    k = k_at(nats, PUBLISHED)
    kept = kept_of(logits, k)
    assert nats == pytest.approx(case["entropy"], abs=2e-5)
    assert k == case["k"]
    assert int(kept.sum()) == case["kept"]
    names = ids[kept].sort().values.numpy().astype("<i8")
    assert hashlib.sha256(names.tobytes()).hexdigest() == case["kept_sha256"]
    row = dict(zip(ids.tolist(), logits.tolist(), strict=True))
    for i, score in case["sample"]:
        assert row[i] == pytest.approx(score, rel=2e-6, abs=2e-6)
    top = choose(logits, SamplingConfig(mode="top1"), torch.ones(len(ids)))
    assert int(ids[top.index]) == case["top_id"]
    probs = (logits.double() / PUBLISHED.temperature).masked_fill(~kept, -math.inf).softmax(0)
    assert float(probs.max()) == pytest.approx(case["top_probability_at_0_9"], abs=1e-6)


def test_the_k_table_is_the_published_one():
    for nats, k in GOLDEN["k_of_entropy"]:
        assert k_at(nats, PUBLISHED) == k


@pytest.mark.parametrize("case", FORCED_CASES, ids=lambda case: case["name"])
def test_the_grammar_forces_what_the_published_mask_forces(released, case):
    begin = max(i for i, token in enumerate(case["answer"]) if token == released.begin_image)
    height, width = (released.grids.index(i) + 1 for i in case["answer"][begin + 1 : begin + 3])
    answer = Answer(Grammar(released), Grid(4 * height, 4 * width), text=case["answer"][:begin])
    for token in case["answer"]:
        answer.push(token)
    assert answer.expected().forced == case["top_id"]


def test_a_whole_published_answer_is_chosen_again(released):
    """Greedy and stateful upstream, 42 ids: text, picture, end."""
    run = GOLDEN["whole_answer"]
    ids = run["ids"]
    assert ids[1] == released.begin_image
    answer = Answer(Grammar(released), Grid(4, 8), text=ids[:1])
    for step, token in enumerate(ids):
        expected = answer.expected()
        if expected.ids is None:
            assert expected.forced == token
        else:
            recipe = {"add": run["add"].get(str(step), {})}
            cond, uncond = published_scores(recipe, run["first_seed"] + step, run["scale"])
            logits = guide(cond[expected.ids], uncond[expected.ids], run["guidance"])
            choice = choose(logits, SamplingConfig(mode="top1"), torch.ones(len(logits)))
            k = k_at(choice.entropy, PUBLISHED)
            assert int(expected.ids[choice.index]) == token
            assert (k, int(kept_of(logits, k).sum())) == (run["k"][step], run["kept"][step])
            assert choice.entropy == pytest.approx(run["entropy"][step], abs=2e-5)
        answer.push(token)
    assert answer.expected().phase is Phase.DONE


@pytest.mark.parametrize("n", [1, 2, 7, 64, 16_384])
def test_the_entropy_of_a_uniform_distribution_is_ln_n(n):
    # the published floor inside the logarithm takes away N · 1e-10 nats at most
    assert float(entropy(torch.full((n,), 3.0))) == pytest.approx(math.log(n), abs=5e-6)


def test_the_entropy_of_a_certain_token_is_zero():
    logits = torch.zeros(100)
    logits[7] = 1000
    assert float(entropy(logits)) == pytest.approx(0, abs=1e-9)


def test_the_entropy_of_two_tokens_is_the_binary_entropy():
    for p in (0.5, 0.1, 0.003):
        expected = -p * math.log(p) - (1 - p) * math.log(1 - p)
        logits = torch.tensor([math.log(p), math.log(1 - p)])
        assert float(entropy(logits)) == pytest.approx(expected, abs=1e-6)


def test_entropy_takes_a_batch():
    logits = torch.randn(3, 5, 20, generator=torch.Generator().manual_seed(0))
    assert entropy(logits).shape == (3, 5)
    torch.testing.assert_close(entropy(logits)[2, 4], entropy(logits[2, 4]))


def test_guidance_of_one_returns_the_conditional_logits():
    cond, uncond = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(guide(cond, uncond, 1), cond)


def test_guidance_of_zero_returns_the_unconditional_logits():
    cond, uncond = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(guide(cond, uncond, 0), uncond)


@given(st.floats(0, 10))
def test_guidance_changes_nothing_where_both_agree(scale):
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(guide(logits, logits, scale), logits)


def test_guidance_below_one_lies_between_and_above_one_beyond():
    cond, uncond = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert 0 < float(guide(cond, uncond, 0.8)[0]) < 1 < float(guide(cond, uncond, 3)[0])


@given(st.floats(-5, 20), st.floats(-5, 20))
def test_k_grows_with_entropy_within_its_limits(a, b):
    low, high = sorted((a, b))
    assert 14 <= k_at(low, PUBLISHED) <= k_at(high, PUBLISHED) <= 1987


def test_k_is_half_way_at_mu():
    assert k_at(3.0, SamplingConfig(k_min=1, k_max=2001, mu=3.0)) == 1001


@given(st.floats(0, 10), st.integers(1, 50), st.integers(0, 50))
def test_k_obeys_its_limits(nats, low, span):
    config = SamplingConfig(k_min=low, k_max=low + span)
    assert low <= k_at(nats, config) <= low + span


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=40), st.integers(1, 50))
def test_what_ties_with_the_last_one_is_kept(values, k):
    kept = kept_of(torch.tensor(values, dtype=torch.float32), k).tolist()
    threshold = sorted(values, reverse=True)[: min(k, len(values))][-1]
    assert kept == [value >= threshold for value in values]


LOGITS = torch.tensor([2.0, 1.5, 1.5, 1.0, 0.3, 0.0, -0.5, -1.0, -2.0, -6.0])


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        (SamplingConfig(), 10),
        (SamplingConfig(temperature=0.3), 10),
        (SamplingConfig(temperature=2.0), 10),
        (SamplingConfig(mode="topk", top_k=2), 3),  # the second is tied
        (SamplingConfig(mode="topk", top_k=5), 5),
        (SamplingConfig(k_min=1, k_max=6, mu=0.5), 5),  # 1.77 nats: k = 4.9
    ],
    ids=["published", "cool", "hot", "topk-tie", "topk", "few"],
)
def test_draws_follow_the_exact_distribution(config, kept):
    """Chi-square over 4000 keyed positions; wrong by chance for 1 in 10,000 seeds."""
    n = 4000
    p = np.exp(LOGITS.double().numpy() / config.temperature)
    p[kept:] = 0
    p /= p.sum()
    draws = [choose(LOGITS, config, noise(11, i, 10)).index for i in range(n)]
    counts = np.bincount(draws, minlength=10)
    assert not counts[kept:].any()
    common = p * n >= 5  # the rest is pooled, so that the approximation holds
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(p[common], p[~common].sum()) * n
    filled = expected > 0
    statistic = ((observed - expected)[filled] ** 2 / expected[filled]).sum()
    assert statistic < chi2.isf(1e-4, filled.sum() - 1)


def test_top1_is_the_most_likely_whatever_the_noise():
    for position in range(20):
        choice = choose(LOGITS, SamplingConfig(mode="top1"), noise(0, position, 10))
        assert (choice.index, choice.k) == (0, 1)


def test_topk_of_one_is_top1():
    logits = torch.randn(100, generator=torch.Generator().manual_seed(0))
    config = SamplingConfig(mode="topk", top_k=1)
    for position in range(20):
        assert choose(logits, config, noise(0, position, 100)).index == int(logits.argmax())


@pytest.mark.parametrize("mode", ["dynamic", "topk", "top1"])
def test_a_choice_tells_the_entropy_before_anything_is_cut(mode):
    choice = choose(LOGITS, SamplingConfig(mode=mode, top_k=3, temperature=0.1), noise(0, 0, 10))
    probs = LOGITS.double().softmax(0)
    assert choice.entropy == pytest.approx(float(-(probs * probs.log()).sum()), abs=1e-6)


def test_temperature_does_not_change_k():
    ks = {choose(LOGITS, SamplingConfig(temperature=t), noise(0, 0, 10)).k for t in (0.1, 0.9, 5.0)}
    assert len(ks) == 1


def test_noise_of_a_key_is_always_the_same():
    torch.manual_seed(0)
    first = noise(3, 5, 100)
    torch.manual_seed(1)
    assert torch.equal(noise(3, 5, 100), first)


def test_noise_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    noise(3, 5, 100)
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_of_different_keys_is_uncorrelated():
    keys = [(s, p) for s in (0, 1, 2, 2**63 - 1) for p in (0, 1, 2, 63, 64, 4095)]
    rows = np.stack([noise(s, p, 5000).numpy() for s, p in keys])
    r = np.corrcoef(rows)[np.triu_indices(len(keys), 1)]
    # r of independent rows is about normal with deviation n^-1/2; 276 pairs, p = 1e-6 each
    assert np.abs(r).max() < 4.9 / math.sqrt(5000)


def test_noise_is_exponential_with_mean_one():
    values = noise(0, 0, 100_000)
    assert values.dtype is torch.float32
    assert (values > 0).all()
    assert float(values.mean()) == pytest.approx(1, abs=5 / math.sqrt(100_000))
    assert float((values > 1).float().mean()) == pytest.approx(math.exp(-1), abs=5 * 0.5 / 316)


def test_noise_is_that_of_exponential_bit_for_bit():
    """So that a seed keeps its picture."""
    for position in range(20):
        values = noise(7, position, 16_384)
        generator = torch.Generator().manual_seed(_mix(7, position))
        assert torch.equal(values, torch.empty(16_384).exponential_(generator=generator))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"mode": "beam"}, "sampling is dynamic, topk or top1, not 'beam'"),
        ({"temperature": 0.0}, "temperature must be above 0, not 0.0"),
        ({"temperature": math.nan}, "temperature must be above 0, not nan"),
        ({"temperature": math.inf}, "temperature must be above 0, not inf"),
        ({"guidance_scale": -0.1}, "guidance must be 0 or more, not -0.1"),
        ({"guidance_scale": math.nan}, "guidance must be 0 or more, not nan"),
        ({"k_min": 0}, "k needs 1 <= k_min <= k_max, not 0..2000"),
        ({"k_min": 9, "k_max": 8}, "k needs 1 <= k_min <= k_max, not 9..8"),
        ({"top_k": 0}, "top-k keeps at least 1 candidate, not 0"),
        ({"mu": math.inf}, "mu must be a number of nats, not inf"),
    ],
)
def test_impossible_settings_are_refused_with_a_sentence(values, sentence):
    with pytest.raises(SamplingError) as error:
        SamplingConfig(**values)
    assert str(error.value) == sentence


def test_sampling_is_parsed():
    assert SamplingConfig.parse("dynamic") == SamplingConfig()
    assert SamplingConfig.parse("top1") == SamplingConfig(mode="top1")
    assert SamplingConfig.parse("topk:300") == SamplingConfig(mode="topk", top_k=300)


def test_what_a_word_does_not_say_is_the_checkpoints_own():
    own = SamplingConfig(guidance_scale=3, temperature=0.7, k_max=100, mu=3.5)
    assert SamplingConfig.parse("dynamic", own) == own
    assert SamplingConfig.parse("dynamic:40", own) == replace(own, k_max=40)
    assert SamplingConfig.parse("top1", own) == replace(own, mode="top1")
    assert SamplingConfig.parse("dynamic", replace(own, mode="top1")) == own


def test_a_checkpoint_names_only_what_differs_from_the_release():
    assert SamplingConfig.from_dict({}) == SamplingConfig()
    own = SamplingConfig(guidance_scale=3, temperature=1, k_max=100)
    assert SamplingConfig.from_dict({"guidance_scale": 3, "temperature": 1, "k_max": 100}) == own
    assert SamplingConfig.from_dict(asdict(own)) == own


@pytest.mark.parametrize(
    "settings", [{"k": 3}, {"k_max": "many"}, {"temperature": None}, {"temperature": -1}]
)
def test_a_checkpoint_that_names_something_else_is_refused(settings):
    with pytest.raises(SamplingError, match=next(iter(settings))):
        SamplingConfig.from_dict(settings)


@pytest.mark.parametrize("text", ["", "topk", "topk:", "topk:-1", "topk:1.5", "top2", "Dynamic"])
def test_other_words_are_refused(text):
    with pytest.raises(SamplingError, match=r"dynamic, top1 or topk:K"):
        SamplingConfig.parse(text)


def test_topk_of_none_is_refused_by_its_own_rule():
    with pytest.raises(SamplingError, match="at least 1"):
        SamplingConfig.parse("topk:0")


def test_1000_kept_sets_are_those_of_the_full_vocabulary_and_both_ways_draw_alike(monkeypatch):
    """Random rows and tied ones against the published order of steps over a whole row.

    Drawn with the look first, as on a CPU, and by ranking alone, as on a GPU.
    """
    codes, vocab = torch.arange(30, 330), 400
    config = SamplingConfig(k_min=1, k_max=120, mu=4.0)
    generator = torch.Generator().manual_seed(0)
    for row in range(1000):
        logits = torch.randn(300, generator=generator) * (row % 7)
        if row % 2:
            logits = (logits * 2).round() / 2  # many ties
        whole = torch.full((1, vocab), -math.inf)
        whole[0, codes] = logits
        expected = torch.isfinite(full_top_k(whole, config))[0, codes]
        k = dynamic_k(entropy(logits), config)
        assert torch.equal(keep_top(logits, k, config.k_max), expected)
        race = noise(row, 0, 300)
        looked = draw(logits[None], config, race[None])
        with monkeypatch.context() as patch:
            patch.setattr("pure.sampling._is_cheap_to_read", lambda tensor: False)
            ranked = draw(logits[None], config, race[None])
        assert int(looked.index) == int(ranked.index)
        assert bool(expected[looked.index])
