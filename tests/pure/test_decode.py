import json
import math
from pathlib import Path

import pytest
import torch

from pure.decode import Conversation
from pure.engine import Engine
from pure.grammar import Grammar, Grid, Phase
from pure.model import Transformer, TransformerConfig
from pure.picture import Step
from pure.sampling import SamplingConfig, noise
from pure.vocab import RELEASED_SIZE, Vocab
from tools.tiny_checkpoint import vocabulary

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/upstream_chameleon.json").read_text())
GUIDED = GOLDEN["guided_answer"]

CONFIGS = {
    "dynamic": SamplingConfig(),
    "few": SamplingConfig(k_min=1, k_max=20, mu=3.0),  # the release keeps all 64 codes
    "topk": SamplingConfig(mode="topk", top_k=5, temperature=1.3),
    "top1": SamplingConfig(mode="top1"),
}


def with_guidance(name, scale):
    config = CONFIGS[name]
    return SamplingConfig(
        config.mode, scale, config.temperature, config.k_min, config.k_max, config.mu, config.top_k
    )


@pytest.fixture(scope="module")
def prompt(grammar):
    codes = torch.randint(64, (4, 8), generator=torch.Generator().manual_seed(0))
    return grammar.prompt(grammar.vocab.text[:9], codes)


@pytest.fixture(scope="module")
def text(vocab):
    """A label and a word: 5 ids."""
    return [*vocab.text[20:23], *vocab.sentence_ends, vocab.text[30]]


@torch.inference_mode()
def naive_picture(model, vocab, prompt, text, grid, config, seed, known=None, positions=None):
    """The whole generation from scratch: every token a full forward, the full vocabulary row.

    Guidance, mask, entropy, k, ties, temperature and the race, as published. Returns ids and,
    per code, (entropy, k).
    """
    opening = [
        vocab.begin_image,
        vocab.grids[grid.rows // 4 - 1],
        vocab.grids[grid.columns // 4 - 1],
    ]
    context, image, facts = [*prompt, *text], list(opening), []
    codes = torch.tensor(vocab.codes)
    for row in range(grid.rows):
        for column in range(grid.columns):
            if known is not None and known[row, column] >= 0:
                image.append(vocab.codes[int(known[row, column])])
                continue
            cond = model(torch.tensor([context + image]))[0, -1]
            scores = cond
            if config.guidance_scale != 1:
                uncond = model(torch.tensor([image]))[0, -1]  # positions start at begin-image
                scores = config.guidance_scale * (cond - uncond) + uncond
            masked = torch.full_like(scores, -math.inf)
            masked[codes] = scores[codes]
            probs = masked.softmax(-1)
            nats = float(-(probs * (probs + 1e-10).log()).sum())
            if config.mode == "dynamic":
                span = config.k_max - config.k_min
                k = round(config.k_min + span / (1 + math.exp(config.mu - min(max(nats, 0), 10))))
            else:
                k = config.top_k if config.mode == "topk" else 1
            threshold = masked.sort(descending=True).values[min(k, len(codes)) - 1]
            masked[masked < threshold] = -math.inf
            final = (masked / config.temperature).softmax(-1)
            key = row * grid.columns + column if positions is None else int(positions[row, column])
            race = torch.full_like(final, math.inf)
            race[codes] = noise(seed, key, len(codes))
            if config.mode == "top1":
                race = torch.ones_like(final)
            image.append(int((final / race).argmax()))
            facts.append((nats, k))
        image.append(vocab.newline)
    return [*image, vocab.end_image, vocab.end_turn], facts


@torch.inference_mode()
def naive_text(model, vocab, prompt, given, limit, *, label_only=False):
    """Top-1 over text ids and begin-image, from scratch for every token."""
    ids = list(given)
    allowed = torch.tensor(sorted([*vocab.text, vocab.begin_image]))
    while len(ids) < limit and not (label_only and set(ids) & vocab.sentence_ends):
        row = torch.full((vocab.size,), -math.inf)
        row[allowed] = model(torch.tensor([[*prompt, *ids]]))[0, -1][allowed]
        if (token := int(row.argmax())) == vocab.begin_image:
            break
        ids.append(token)
    return ids


def check_equal(steps, expected, facts):
    assert [step.id for step in steps] == expected
    choices = [step.choice for step in steps if step.choice is not None]
    assert [choice.k for choice in choices] == [k for _, k in facts]
    nats = [choice.entropy for choice in choices]
    assert nats == pytest.approx([h for h, _ in facts], abs=1e-4)


@pytest.mark.parametrize("seed", [0, 1, 12345])
@pytest.mark.parametrize("scale", [0.8, 1, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_decoding_equals_the_naive_twin(
    transformer, engine, grammar, prompt, text, name, scale, seed
):
    config = with_guidance(name, scale)
    grid = Grid(4, 8) if seed else Grid(8, 4)
    twin = naive_picture(transformer, grammar.vocab, prompt, text, grid, config, seed)
    conversation = Conversation(engine, grammar, prompt, grid)
    check_equal(list(conversation.restore(text, config, seed=seed)), *twin)


@pytest.mark.parametrize("scale", [0.8, 1])
@pytest.mark.parametrize("columns", [slice(0, 3), slice(5, 8), slice(2, 6)])
def test_decoding_around_known_codes_equals_the_naive_twin(
    transformer, engine, grammar, prompt, text, columns, scale
):
    grid, config = Grid(4, 8), with_guidance("few", scale)
    generator = torch.Generator().manual_seed(5)
    known = torch.full((4, 8), -1)
    known[0] = torch.randint(64, (8,), generator=generator)
    known[1:, columns] = torch.randint(64, (3, 8), generator=generator)[:, columns]
    positions = torch.randperm(1000, generator=generator)[:32].view(4, 8)
    twin = naive_picture(
        transformer, grammar.vocab, prompt, text, grid, config, 9, known, positions
    )
    conversation = Conversation(engine, grammar, prompt, grid)
    steps = list(conversation.restore(text, config, seed=9, known=known, positions=positions))
    check_equal(steps, *twin)


def test_decoding_without_text_equals_the_naive_twin(transformer, engine, grammar, prompt):
    grid, config = Grid(4, 4), CONFIGS["few"]
    twin = naive_picture(transformer, grammar.vocab, prompt, [], grid, config, 3)
    conversation = Conversation(engine, grammar, prompt, grid)
    check_equal(list(conversation.restore([], config, seed=3)), *twin)


def test_the_random_draws_are_no_greedy_choice(engine, grammar, prompt):
    """Else the twin would prove little about the noise."""
    conversation = Conversation(engine, grammar, prompt, Grid(4, 8))
    greedy, *drawn = (
        [step.id for step in conversation.restore([], config, seed=seed)]
        for config, seed in ((CONFIGS["top1"], 0), (CONFIGS["few"], 0), (CONFIGS["few"], 1))
    )
    assert drawn[0] != greedy
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("label_only", [False, True])
@pytest.mark.parametrize("given", [0, 3])
def test_the_text_equals_naive_top1(transformer, engine, grammar, prompt, text, given, label_only):
    conversation = Conversation(engine, grammar, prompt, Grid(4, 4), text_limit=20)
    steps = list(conversation.write_text(given=text[:given], label_only=label_only))
    expected = naive_text(
        transformer, grammar.vocab, prompt, text[:given], 20, label_only=label_only
    )
    assert [step.id for step in steps] == expected


class Scripted(Engine):
    """Wants certain ids in a row, whatever it reads."""

    def __init__(self, transformer, vocab, start, wanted):
        super().__init__(transformer, vocab.code_ids)
        self.start, self.wanted = start, wanted

    def hidden(self, rows, caches, *, last=False):
        for row, cache in zip(rows, caches, strict=True):
            cache.length += len(row)
        at = caches[0].length - self.start
        return [torch.full((1, 1), self.wanted[min(at, len(self.wanted) - 1)])]

    def logits(self, hidden):
        return (torch.arange(self.config.vocab_size) == hidden).float()


def test_the_text_ends_where_the_model_wants_the_picture(transformer, grammar, prompt, text):
    vocab = grammar.vocab
    model = Scripted(transformer, vocab, len(prompt), [*text, vocab.begin_image])
    conversation = Conversation(model, grammar, prompt, Grid(4, 4))
    steps = list(conversation.write_text())
    assert [step.id for step in steps] == text
    assert [step.phase for step in steps] == [Phase.LABEL] * 4 + [Phase.CAPTION]


def test_label_only_ends_with_the_first_sentence(transformer, grammar, prompt, text):
    model = Scripted(transformer, grammar.vocab, len(prompt), text)
    conversation = Conversation(model, grammar, prompt, Grid(4, 4))
    steps = list(conversation.write_text(label_only=True))
    assert [step.id for step in steps] == text[:4]


def test_a_second_answer_is_what_a_new_conversation_would_give(engine, grammar, prompt, text):
    grid, config = Grid(4, 4), CONFIGS["few"]
    used = Conversation(engine, grammar, prompt, grid, text_limit=20)
    first = list(used.restore(text, config, seed=1))
    list(used.write_text(given=text[:2]))
    next(used.restore(text[:1], config, seed=2))  # left half way
    assert list(used.restore(text, config, seed=1)) == first
    fresh = Conversation(engine, grammar, prompt, grid, text_limit=20)
    assert list(fresh.restore(text, config, seed=1)) == first


def test_guidance_of_one_needs_no_unconditional_rows(engine, grammar, prompt, monkeypatch):
    rows = []
    hidden = Engine.hidden

    def counted(self, ids, caches, **options):
        rows.append(len(ids))
        return hidden(self, ids, caches, **options)

    monkeypatch.setattr(Engine, "hidden", counted)
    conversation = Conversation(engine, grammar, prompt, Grid(4, 4))
    list(conversation.restore([], with_guidance("top1", 1)))
    assert set(rows) == {1}
    rows.clear()
    list(conversation.restore([], with_guidance("top1", 0.8)))
    assert set(rows) == {2}


def test_forced_ids_cost_no_pass(engine, grammar, prompt, text):
    before = engine.passes
    conversation = Conversation(engine, grammar, prompt, Grid(4, 8))
    assert engine.passes == before + 1  # the prompt
    list(conversation.restore(text, CONFIGS["dynamic"]))
    assert engine.passes == before + 1 + 4 * 8  # prompt, codes; the text rides along


def test_a_word_the_form_leaves_alone_costs_no_pass(transformer, engine, prompt, vocab):
    """And it is read before the next is chosen: the text is the one that asks at every place."""
    one, two, three, four = vocab.text[:4]
    form = [[one, two], [three], [four], [one, two, three, four]]
    formed = Conversation(engine, Grammar(vocab, form=form), prompt, Grid(4, 4))
    before = engine.passes
    written = [step.id for step in formed.write_text()]
    assert engine.passes == before + 1  # of the first choice the prompt's state decides
    expected: list[int] = []
    for ids in form:
        logits = transformer(torch.tensor([[*prompt, *expected]]))[0, -1]
        expected.append(max(ids, key=lambda token: float(logits[token])))
    assert written == expected


def test_all_codes_known_need_no_pass(engine, grammar, prompt):
    known = torch.zeros(4, 4, dtype=torch.long)
    before = engine.passes
    conversation = Conversation(engine, grammar, prompt, Grid(4, 4))
    steps = list(conversation.restore([], CONFIGS["dynamic"], known=known))
    assert engine.passes == before + 1
    assert torch.equal(grammar.read_image([step.id for step in steps][:-1]), known)


def test_steps_name_cells_and_codes(engine, grammar, prompt):
    known = torch.full((4, 4), -1)
    known[1, 2] = 7
    conversation = Conversation(engine, grammar, prompt, Grid(4, 4))
    steps = list(conversation.restore([], CONFIGS["dynamic"], known=known))
    cells = [step for step in steps if step.phase is Phase.CODE]
    assert [step.cell for step in cells] == [(r, c) for r in range(4) for c in range(4)]
    assert [grammar.vocab.codes[step.code] for step in cells] == [step.id for step in cells]
    kept = Step(Phase.CODE, grammar.vocab.codes[7], (1, 2), 7, None)
    assert [step for step in cells if step.choice is None] == [kept]
    assert all(step.code is None and step.cell is None for step in steps if step not in cells)


def test_a_text_may_be_as_long_as_the_limit(engine, grammar, prompt, text):
    conversation = Conversation(engine, grammar, prompt, Grid(4, 4), text_limit=len(text))
    steps = list(conversation.restore(text, CONFIGS["top1"]))
    assert steps[-1].id == grammar.vocab.end_turn


def test_a_given_text_beyond_the_limit_is_refused(engine, grammar, prompt, text):
    conversation = Conversation(engine, grammar, prompt, Grid(4, 4), text_limit=2)
    with pytest.raises(ValueError, match="exceed the limit of 2"):
        list(conversation.restore(text * 2, CONFIGS["top1"]))
    with pytest.raises(ValueError, match="exceed the limit of 2"):
        list(conversation.write_text(given=text * 2))


@pytest.fixture(scope="module")
def upstream():
    """Model and grammar of the published guided run, over all 73,728 tokens."""
    config = TransformerConfig(**GOLDEN["config"] | GUIDED["config"])
    model = Transformer(config).eval().requires_grad_(False)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    g = torch.Generator().manual_seed(GOLDEN["weights"]["seed"])
    state = {}
    for key in sorted(shapes):
        whole = torch.randint(0, 2**22, (4, *shapes[key]), generator=g).sum(0) - 2**23
        state[key] = (whole / 2**21).float() * 0.25 + (1 if key.endswith("norm.weight") else 0)
    model.load_state_dict(state)
    total = sum(float(value.double().sum()) for value in state.values())
    assert total == pytest.approx(GUIDED["weights_sum"], abs=1e-4)
    return model, Grammar(Vocab.from_names(vocabulary(small=False), RELEASED_SIZE))


@pytest.mark.parametrize("run", GUIDED["runs"], ids=lambda run: f"guidance-{run['guidance']}")
def test_greedy_decoding_gives_the_published_ids(upstream, run):
    model, grammar = upstream
    begin = len(GUIDED["start"]) - 3
    turn = GUIDED["start"].index(grammar.vocab.end_turn) + 1
    prompt, text = GUIDED["start"][:turn], GUIDED["start"][turn:begin]
    engine = Engine(model, grammar.vocab.code_ids)
    config = SamplingConfig(mode="top1", guidance_scale=run["guidance"])
    steps = list(Conversation(engine, grammar, prompt, Grid(4, 8)).restore(text, config))
    assert [step.id for step in steps[:3]] == GUIDED["start"][begin:]
    body = steps[3 : 3 + len(run["ids"])]
    assert [step.id for step in body] == run["ids"]
    for step, nats in zip(body, run["entropy"], strict=True):
        if step.choice is not None:
            assert step.choice.entropy == pytest.approx(nats, abs=1e-4)
    assert [step.id for step in steps[3 + len(run["ids"]) :]] == [grammar.vocab.end_turn]
