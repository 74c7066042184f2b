from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from pure import nano
from pure.grammar import Grammar, Grid
from pure.model import CONFIGS, Transformer, TransformerConfig, rotate
from pure.pretokenise import build_sequence
from pure.start import Pointer, initialise, point_head, start_as_copy
from pure.vocab import Vocab

CODES, TEXT = 64, 9
GRID = Grid(8, 8)
LABEL = 4  # tokens of it, of TEXT


@pytest.fixture(scope="module")
def vocab():
    names = nano.token_names(["lake"], CODES)
    return Vocab.from_names(names, len(names))


@pytest.fixture(scope="module")
def vectors():
    return F.normalize(torch.randn(CODES, 8, generator=torch.Generator().manual_seed(1)), dim=1)


@pytest.fixture(scope="module")
def copier(vocab, vectors):
    """PURE-nano's configuration over few codes, as a run starts it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Transformer(replace(CONFIGS["nano"], vocab_size=vocab.size))
        initialise(model)
        start_as_copy(model, vocab.codes, vectors, nano.pointers((LABEL, TEXT - LABEL)), GRID, TEXT)
    return model.eval()


def conversation(vocab, *, label=LABEL, caption=TEXT - LABEL, seed=0):
    """A sequence of two random pictures; their codes, and where the pictures begin."""
    g = torch.Generator().manual_seed(seed)
    lq, gt = torch.randint(CODES, (2, GRID.rows, GRID.columns), generator=g)
    grammar, words = Grammar(vocab), list(vocab.text)
    sequence = build_sequence(
        grammar, grammar.prompt(words[:11], lq), words[:label], words[5 : 5 + caption], gt
    )
    begin = [i for i, token in enumerate(sequence.ids) if token == vocab.begin_image]
    return torch.tensor([sequence.ids]), lq, gt, begin


def cell(row, column):
    """Tokens from begin-image to a cell's code."""
    return 3 + row * (GRID.columns + 1) + column


def test_a_fresh_copier_writes_the_poor_pictures_codes(copier, vocab):
    """Its likeliest code at every cell is the one that looks most like the poor picture's."""
    ids, lq, _, (_, answer) = conversation(vocab)
    with torch.no_grad():
        logits = copier(ids)[0]
    for row in range(GRID.rows):
        for column in range(GRID.columns):
            here = logits[answer + cell(row, column) - 1][vocab.code_ids]
            assert int(here.argmax()) == int(lq[row, column]), (row, column)


def test_codes_that_look_alike_are_likely_alike(copier, vocab, vectors):
    ids, lq, _, (_, answer) = conversation(vocab)
    with torch.no_grad():
        logits = copier(ids)[0]
    correlations = []
    for row in range(GRID.rows):
        for column in range(GRID.columns):
            here = logits[answer + cell(row, column) - 1][vocab.code_ids]
            likeness = vectors @ vectors[lq[row, column]]
            correlations.append(torch.corrcoef(torch.stack([here, likeness]))[0, 1])
    assert torch.stack(correlations).mean() > 0.9


def test_no_words_are_drowned_by_codes(copier, vocab):
    """Codes as a whole are no likelier than words where nothing says which."""
    with torch.no_grad():
        logits = copier(torch.tensor([[vocab.bos, *vocab.text[:11]]]))[0, -1]
    codes, words = logits[vocab.code_ids].mean(), logits[list(vocab.text)].mean()
    assert abs(codes - words) < 1.0


def attention(model, ids, layer):
    """Attention weights (heads, T, T) of a layer."""
    inputs = []
    handle = model.model.layers[layer].self_attn.register_forward_pre_hook(
        lambda module, arguments: inputs.append(arguments)
    )
    with torch.no_grad():
        model.hidden(ids)
    handle.remove()
    x, cos, sin, *_ = inputs[0]
    module = model.model.layers[layer].self_attn
    heads = model.config.num_attention_heads
    q, k = (
        rotate(norm(projection(x).view(1, x.shape[1], heads, -1)), cos, sin)[0].transpose(0, 1)
        for norm, projection in ((module.q_norm, module.q_proj), (module.k_norm, module.k_proj))
    )
    scores = (q @ k.mT) * q.shape[-1] ** -0.5
    future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -torch.inf).softmax(-1)


@pytest.mark.parametrize("pointer", nano.pointers((LABEL, TEXT - LABEL)), ids=str)
def test_pointed_heads_look_where_they_are_told(copier, vocab, pointer):
    """At least 60 % of the attention, on answers with the text the pointer reckons with."""
    label, caption = {
        None: (LABEL, TEXT - LABEL),
        0: (0, 0),
        LABEL: (LABEL, 0),
        TEXT - LABEL: (0, TEXT - LABEL),
    }[pointer.text]
    ids, _, _, begin = conversation(vocab, label=label, caption=caption)
    weights = attention(copier, ids, pointer.layer)[pointer.head]
    source = begin[0] if pointer.picture == "lq" else begin[1]
    shares = []
    for row in range(GRID.rows):
        for column in range(GRID.columns):
            to = (row + pointer.row, column + pointer.column)
            if 0 <= to[0] < GRID.rows and 0 <= to[1] < GRID.columns:
                here = begin[1] + cell(row, column) - 1
                shares.append(weights[here, source + cell(*to)])
    assert torch.stack(shares).mean() > 0.6
    assert torch.stack(shares).min() > 0.5


SMALL = TransformerConfig(
    vocab_size=40,
    hidden_size=128,
    intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    model_parallel_size=2,
)


def test_initial_weights_have_the_stated_spread():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Transformer(replace(SMALL, vocab_size=4000, intermediate_size=200))
        initialise(model)
    state = model.state_dict()
    assert state["lm_head.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    deep = state["model.layers.0.mlp.down_proj.weight"].std().item()
    assert deep == pytest.approx(0.02 / 2, rel=0.05)  # two layers: the root of four
    assert (state["model.norm.weight"] == 1).all()


@pytest.mark.parametrize("distance", [1, 40, 298])
def test_a_pointed_head_looks_the_stated_distance_back(distance):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Transformer(SMALL).eval()
        point_head(model, layer=1, head=1, distance=distance)
        ids = torch.randint(40, (1, 320))
    weights = attention(model, ids, 1)[1]
    here = torch.arange(distance, 320)
    assert (weights.argmax(-1)[here] == here - distance).all()
    assert weights[here, here - distance].mean() > 0.6  # the rest goes to the direct neighbours


def test_a_pointer_reckons_with_rows_and_text():
    grid = Grid(4, 6)
    # from the token before a cell to the cell above it: a row of 6 and a newline, less that one
    assert Pointer(0, 0, "answer", -1, 0).distance(grid, 9) == 7 - 1
    assert Pointer(0, 0, "answer", 0, -1).distance(grid, 9) == 0
    same = Pointer(0, 0, "lq").distance(grid, 9)
    # end, end of turn, text, begin and two sides lie between the bodies
    assert same == grid.body + 2 + 9 + 3 - 1
    assert Pointer(0, 0, "lq", 1, 2).distance(grid, 9) == same - 7 - 2
    assert Pointer(0, 0, "lq", text=0).distance(grid, 9) == same - 9


def test_heads_that_share_parameters_cannot_be_pointed():
    with pytest.raises(ValueError, match="own QK-norm row"):
        point_head(Transformer(replace(SMALL, model_parallel_size=1)), 0, 0, 5)


def test_too_many_pointers_are_refused(vectors):
    pointers = [Pointer(0, 0, "lq")] * 16
    with pytest.raises(ValueError, match="16 pointers of 8 directions do not fit a width of 128"):
        start_as_copy(Transformer(SMALL), range(40), vectors[:40], pointers, GRID, TEXT)
