import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy.stats import chi2
from torch.utils._python_dispatch import TorchDispatchMode

from imaging import convert
from imaging.load import read_photo
from pure.checkpoint import load
from pure.decode import PARALLEL, PLAIN, Conversation, DecoderConfig, write
from pure.engine import Engine
from pure.grammar import Grid
from pure.jacobi import Window
from pure.sampling import SamplingConfig

FEW = SamplingConfig(k_min=1, k_max=20, mu=3.0)  # the release keeps all 64 codes
CONFIGS = {
    "dynamic": SamplingConfig(),
    "few": FEW,
    "unguided": SamplingConfig(guidance_scale=1, k_min=1, k_max=20, mu=3.0),
    "guidance-3": SamplingConfig(guidance_scale=3, mode="topk", top_k=5, temperature=1.3),
    "top1": SamplingConfig(mode="top1"),
}


def window(cells):
    return DecoderConfig("parallel", cells)


@pytest.fixture(scope="module")
def prompt(grammar):
    codes = torch.randint(64, (8, 8), generator=torch.Generator().manual_seed(0))
    return grammar.prompt(grammar.vocab.text[:9], codes)


@pytest.fixture(scope="module")
def text(vocab):
    return [*vocab.text[20:23], *vocab.sentence_ends, vocab.text[30]]


@pytest.mark.parametrize("cells", [2, 3, 5, 8, 13, 32, None])
@pytest.mark.parametrize("name", CONFIGS)
def test_parallel_decoding_repeats_plain_decoding(engine, grammar, prompt, text, name, cells):
    """Ids, entropies and k, whatever the window: newlines and row ends stand inside it."""
    conversation = Conversation(engine, grammar, prompt, Grid(8, 8))
    plain = list(conversation.restore(text, CONFIGS[name], seed=5))
    assert list(conversation.restore(text, CONFIGS[name], seed=5, decoder=window(cells))) == plain


@pytest.mark.parametrize("cells", [4, 16])
@pytest.mark.parametrize("seed", [0, 1])
def test_known_codes_inside_the_window_change_nothing(engine, grammar, prompt, text, cells, seed):
    generator = torch.Generator().manual_seed(seed)
    known = torch.where(torch.rand(8, 8, generator=generator) < 0.4, 3, -1)
    places = torch.randperm(1000, generator=generator)[:64].view(8, 8)
    seeds = torch.randint(5, (8, 8), generator=generator)
    options = {"known": known, "positions": places, "seed": seeds}
    conversation = Conversation(engine, grammar, prompt, Grid(8, 8))
    plain = list(conversation.restore(text, FEW, **options))
    assert list(conversation.restore(text, FEW, **options, decoder=window(cells))) == plain


def test_no_draft_changes_the_picture_and_the_right_one_is_fastest(engine, grammar, prompt, text):
    conversation = Conversation(engine, grammar, prompt, Grid(8, 8))
    plain = list(conversation.restore(text, FEW, seed=2))
    result = torch.tensor([step.code for step in plain if step.code is not None]).view(8, 8)
    passes = {}
    drafts = {"photo": None, "zeros": torch.zeros_like(result), "result": result}
    for name, draft in drafts.items():
        before = engine.passes
        steps = conversation.restore(text, FEW, seed=2, draft=draft, decoder=window(8))
        assert list(steps) == plain
        passes[name] = engine.passes - before
    assert passes["result"] == 64 // 8  # every draft of every window is confirmed
    assert max(passes.values()) <= 64
    assert passes["result"] < min(passes["photo"], passes["zeros"])


def test_pictures_written_together_are_those_written_alone(engine, grammar, prompt, text):
    """Several seeds and texts in one pass, plain and parallel, each with its own progress."""
    jobs = [(text, 1), (text[:2], 2), ([], 3)]
    conversation = Conversation(engine, grammar, prompt, Grid(8, 8))
    alone = [list(conversation.restore(ids, FEW, seed=seed)) for ids, seed in jobs]
    for decoder in (PLAIN, PARALLEL, window(3)):
        pictures = [conversation.fork().picture(ids, FEW, seed=seed) for ids, seed in jobs]
        together = [[], [], []]
        for number, step in write(engine, pictures, decoder):
            together[number].append(step)
        assert together == alone


def test_plain_and_parallel_need_the_passes_they_should(engine, grammar, prompt):
    conversation = Conversation(engine, grammar, prompt, Grid(8, 8))
    before = engine.passes
    pictures = [conversation.fork().picture([], FEW, seed=seed) for seed in range(3)]
    list(write(engine, pictures, PLAIN))
    assert engine.passes - before == 64  # newlines and ends ride along, three pictures in each
    before = engine.passes
    list(conversation.restore([], FEW, decoder=window(1)))
    assert engine.passes - before == 64


def test_a_pass_reads_both_rows_once_and_nothing_twice(engine, grammar, prompt, monkeypatch):
    """Ids of each row, pass by pass: the opening, then one code, with the newline where one is."""
    read = []
    hidden = Engine.hidden

    def counted(self, rows, caches, **options):
        read.append([len(row) for row in rows])
        return hidden(self, rows, caches, **options)

    monkeypatch.setattr(Engine, "hidden", counted)
    conversation = Conversation(engine, grammar, prompt, Grid(8, 8))
    picture = conversation.picture([], FEW)
    read.clear()
    list(write(engine, [picture], PLAIN))
    assert read[1:] == [[2, 2] if cell % 8 == 0 else [1, 1] for cell in range(1, 64)]
    assert read[0][1] == 3  # the row without the photo: begin-image and the sides


class Reads(TorchDispatchMode):
    """Counts how often a number is read back from the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def reads(engine, picture, decoder):
    with Reads() as counted:
        list(write(engine, [picture], decoder))
    return counted.count


def test_the_token_loop_reads_nothing_back(engine, grammar, prompt, monkeypatch):
    """As on a GPU: the look before the ranking, free on a CPU, is switched off."""
    monkeypatch.setattr("pure.sampling._is_cheap_to_read", lambda tensor: False)
    conversation = Conversation(engine, grammar, prompt, Grid(8, 8))
    picture = conversation.picture([], FEW)
    assert reads(engine, picture, PLAIN) == 0
    assert picture.reads == 1 + 8  # one transfer for the sides and one a row, outside the loop


def test_a_stop_is_honoured_within_one_pass(engine, grammar, prompt):
    conversation = Conversation(engine, grammar, prompt, Grid(8, 8))
    for decoder in (PLAIN, PARALLEL):
        before = engine.passes
        picture = conversation.picture([], FEW)
        stop = iter([False] * 5 + [True]).__next__
        list(write(engine, [picture], decoder, stop=stop))
        assert engine.passes - before == 5
        assert not picture.done


def test_other_sampling_cannot_share_a_pass(engine, grammar, prompt):
    conversation = Conversation(engine, grammar, prompt, Grid(8, 8))
    pictures = [conversation.fork().picture([], config) for config in (FEW, CONFIGS["top1"])]
    with pytest.raises(ValueError, match="share one sampling"):
        next(write(engine, pictures))


def test_an_edited_text_is_read_from_the_edit_on(engine, grammar, prompt, text, monkeypatch):
    fresh = Conversation(engine, grammar, prompt, Grid(8, 8))
    edited = [*text[:-1], text[0]]
    expected = list(fresh.restore(edited, FEW))
    used = Conversation(engine, grammar, prompt, Grid(8, 8))
    list(used.restore(text, FEW))
    lengths = []
    hidden = Engine.hidden
    monkeypatch.setattr(
        Engine,
        "hidden",
        lambda self, rows, caches: lengths.append(len(rows[0])) or hidden(self, rows, caches),
    )
    assert list(used.restore(edited, FEW)) == expected
    assert lengths[0] == 1 + 3  # the edited id, begin-image and the sides


@pytest.mark.parametrize("decoder", [PLAIN, window(6)], ids=["plain", "parallel"])
def test_codes_follow_the_exact_distribution(engine, grammar, prompt, decoder):
    """The second code's marginal over 1,500 seeds against the sum over all first codes.

    Chi-square; wrong by chance for 1 in 10,000 choices of seeds.
    """
    n, batch, config = 1500, 100, SamplingConfig(mode="topk", top_k=6, temperature=0.7)
    known = torch.full((4, 4), 5)
    known[0, 1] = known[0, 3] = -1
    conversation = Conversation(engine, grammar, prompt, Grid(4, 4))

    def distribution(first):
        cells = known.clone()
        if first is not None:
            cells[0, 1] = first
        image = grammar.image(cells.clamp(min=0))
        end = 3 + (1 if first is None else 3)
        rows = [torch.tensor([*prompt, *image[:end]]), torch.tensor(image[:end])]
        states = engine.hidden(rows, [engine.cache(len(row)) for row in rows])
        cond, uncond = (engine.image_logits(state[-1:])[0].double() for state in states)
        logits = uncond + 0.8 * (cond - uncond)
        kept = logits >= logits.sort(descending=True).values[5]
        return (logits / 0.7).masked_fill(~kept, -torch.inf).softmax(0)

    first = distribution(None)
    p = sum(first[code] * distribution(int(code)) for code in first.nonzero()[:, 0]).numpy()
    counts = np.zeros(64)
    for start in range(0, n, batch):
        pictures = [
            conversation.fork().picture([], config, seed=seed, known=known)
            for seed in range(start, start + batch)
        ]
        for _, step in write(engine, pictures, decoder):
            if step.cell == (0, 3):
                counts[step.code] += 1
    assert not counts[p == 0].any()
    common = p * n >= 5
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(p[common], p[~common].sum()) * n
    filled = expected > 1e-9
    statistic = ((observed - expected)[filled] ** 2 / expected[filled]).sum()
    assert statistic < chi2.isf(1e-4, filled.sum() - 1)


@pytest.fixture(scope="module")
def nano():
    checkpoint = load("nano")
    return checkpoint, Engine(checkpoint.model, checkpoint.grammar.vocab.code_ids)


EXAMPLES = ("astronaut", "cat", "coffee", "dandelions", "dogs", "mountain", "stream", "windmill")


def test_50_photos_and_seeds_with_nano_are_the_same_in_parallel(nano):
    """Real photos, made small, so that 50 pairs take seconds; `make bench` takes whole ones.

    Every window from 2 to 32, and drafts from the photo, another restorer, another seed, and
    nowhere.
    """
    checkpoint, engine = nano
    factor, size = checkpoint.vq.factor, (64, 32)
    grid = Grid(size[1] // factor, size[0] // factor)
    passes = {"plain": 0, "parallel": 0}
    for pair in range(50):
        photo = read_photo(f"examples/{EXAMPLES[pair % len(EXAMPLES)]}.png")
        picture = convert.resize(photo.rotate(90 * (pair // 8), expand=True), size)
        assert isinstance(picture, Image.Image)
        ids = checkpoint.grammar.prompt(
            checkpoint.text.instruction(), checkpoint.vq.encode_image(picture)
        )
        conversation = Conversation(
            engine, checkpoint.grammar, ids, grid, text_limit=checkpoint.text_limit
        )

        def written(decoder, seed=pair, draft=None, conversation=conversation):
            before = engine.passes
            steps = conversation.restore(
                [], SamplingConfig(), seed=seed, decoder=decoder, draft=draft
            )
            return list(steps), engine.passes - before

        draft = None
        if pair % 4 == 1:
            sharper = picture.filter(ImageFilter.UnsharpMask(2, 200, 0))
            draft = checkpoint.vq.encode_image(sharper)
        elif pair % 4 == 2:
            other, _ = written(window(16), seed=1000 + pair)
            draft = torch.tensor([s.code for s in other if s.code is not None]).view(grid.rows, -1)
        elif pair % 4 == 3:
            draft = torch.zeros(grid.rows, grid.columns, dtype=torch.long)
        plain, before = written(PLAIN)
        parallel, after = written(window(2 + pair % 31), draft=draft)
        assert plain == parallel
        passes["plain"] += before
        passes["parallel"] += after
    assert passes["parallel"] < passes["plain"]


def test_a_window_follows_what_was_accepted():
    grown, shrunk = Window(), Window()
    for _ in range(30):
        grown.learn(grown.cells)
        shrunk.learn(1)
    assert shrunk.cells < Window().cells < grown.cells
    assert Window(5).cells == 5


@pytest.mark.parametrize("cells", [0, -3])
def test_an_empty_window_is_refused(cells):
    with pytest.raises(ValueError, match=f"at least 1 cell, not {cells}"):
        Window(cells)
    with pytest.raises(ValueError, match=f"at least 1 code, not {cells}"):
        DecoderConfig("parallel", cells)
