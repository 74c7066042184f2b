from dataclasses import replace

import pytest
import torch

import pure.train_local
from pure import nano
from pure.checkpoint import load
from pure.grammar import Grammar, Grid
from pure.model import CONFIGS
from pure.pretokenise import TokenisedSet
from pure.start import Pointer
from pure.train_local import Cells, LocalTrainer, LocalTraining, Pictures, pair_codes
from pure.vocab import Vocab

# PURE-nano's heads, thinner MLPs
SMALL = replace(CONFIGS["nano"], intermediate_size=32)
SETTINGS = LocalTraining(
    size="small", native=32, batch=64, steps=8, lr=1e-2, warm_up=2, evaluate_every=4
)

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture
def trainer(sequences_folder, vq_folder, tmp_path, monkeypatch):
    """Make a trainer; called again with the same name it resumes."""
    monkeypatch.setitem(pure.train_local.CONFIGS, "small", SMALL)

    def make(name="run", **changes):
        settings = replace(SETTINGS, **changes)
        return LocalTrainer(settings, sequences_folder, vq_folder, tmp_path / name)

    return make


def all_cells(pictures):
    n, rows, columns = len(pictures.lq), pictures.grid.rows, pictures.grid.columns
    grid = torch.meshgrid(torch.arange(n), torch.arange(rows), torch.arange(columns), indexing="ij")
    return Cells(*(axis.flatten() for axis in grid))


def test_what_a_pointer_looks_at_equals_a_loop_over_cells(trainer):
    pictures = trainer().pictures
    cells = all_cells(pictures)
    for pointer in (Pointer(0, 0, "lq", 1, -1), Pointer(0, 0, "answer", -1, 1)):
        picture = pictures.lq if pointer.picture == "lq" else pictures.answer
        inner = picture[:, 1:-1, 1:-1]
        found = pictures.codes(pointer, cells)
        for n, row, column, code in zip(cells.picture, cells.row, cells.column, found, strict=True):
            there = (int(row) + pointer.row, int(column) + pointer.column)
            inside = 0 <= there[0] < inner.shape[1] and 0 <= there[1] < inner.shape[2]
            assert int(code) == (int(inner[n, *there]) if inside else pictures.blank)


def test_the_pictures_are_those_of_the_sequences(sequences_folder, trainer):
    run = trainer()
    vocab = Vocab.from_names(run.names, len(run.names))
    sequence = TokenisedSet(sequences_folder / "train").sequence(0)
    lq, gt = pair_codes(sequence, Grammar(vocab))
    assert torch.equal(run.pictures.lq[0, 1:-1, 1:-1], lq)
    assert torch.equal(run.pictures.answer[0, 1:-1, 1:-1], gt)
    assert run.pictures.grid == Grid(*gt.shape)


def test_the_exported_transformer_says_what_the_local_stage_said(trainer):
    """Its attention gathers what was handed to the MLPs: the same distributions, nearly."""
    run = trainer(steps=8)
    run.run()
    model = load(run.out / "checkpoint").model
    vocab = Vocab.from_names(run.names, len(run.names))
    checked = run.checked[:4]
    ids = torch.tensor([sequence.ids for sequence in checked])
    pictures = Pictures.of(checked, Grammar(vocab))
    cells = all_cells(pictures)
    with torch.no_grad():
        local = run.local(pictures, cells).softmax(-1)
        logits = model(ids)[..., torch.tensor(vocab.codes)].softmax(-1)
    rows, columns = pictures.grid.rows, pictures.grid.columns
    whole = []
    for n, row, column in zip(cells.picture, cells.row, cells.column, strict=True):
        begin = int((ids[n] == vocab.begin_image).nonzero()[1])
        whole.append(logits[n, begin + 2 + int(row) * (columns + 1) + int(column)])
    apart = (torch.stack(whole) - local).abs().sum(-1).view(len(checked), rows, columns) / 2
    # inside; at the edges a head finds a control token where nothing was handed over
    assert apart[:, 1:-1, 1:-1].mean() < 0.1
    # and it is not the closeness of any two distributions
    shuffled = torch.stack(whole)[torch.randperm(len(whole))] - local
    assert shuffled.abs().sum(-1).mean() / 2 > 2 * apart.mean()


def test_training_lowers_the_loss(trainer):
    run = trainer(steps=60, lr=5e-3)
    first = run.evaluate()
    while run.step < 60:
        run.train_step()
    assert run.evaluate() < first


def test_a_resumed_run_ends_as_an_undisturbed_one(trainer):
    whole = trainer("whole")
    whole.run()
    half = trainer("half")
    for _ in range(4):
        half.train_step()
    half.save()
    again = trainer("half")
    assert again.step == 4
    again.run()
    for key, value in whole.local.model.state_dict().items():
        assert torch.equal(value, again.local.model.state_dict()[key]), key


def test_no_mlp_before_a_pointed_head_writes_where_a_codes_look_stands(trainer):
    run = trainer()
    for _ in range(3):
        run.train_step()
    layers = run.local.model.model.layers
    deepest = max(pointer.layer for pointer in run.pointers)
    assert deepest > 0
    for i, layer in enumerate(layers):
        written = (run.own @ layer.mlp.down_proj.weight).abs().max()
        assert (written < 1e-5) == (i < deepest)


def test_embeddings_and_attention_are_left_alone(trainer):
    run = trainer()
    before = {k: v.clone() for k, v in run.local.model.state_dict().items()}
    run.train_step()
    changed = {k for k, v in run.local.model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert not any("embed" in key or "self_attn" in key for key in changed)


def test_pointers_fit_the_nanos_heads(trainer):
    pointers = nano.pointers((6, 16))
    places = [(pointer.layer, pointer.head) for pointer in pointers]
    assert len(set(places)) == len(places)
    assert all(head < CONFIGS["nano"].num_attention_heads for _, head in places)
