import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

import pure.train
from pure.checkpoint import load
from pure.grammar import Grammar, Grid
from pure.model import Transformer, TransformerConfig
from pure.train import (
    SequenceTraining,
    Trainer,
    TrainingSequence,
    build_sequence,
    collate,
    initialise,
    losses,
    point_head,
)
from pure.vq import CONFIGS, VQModel

SMALL = TransformerConfig(
    vocab_size=0,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    dropout=0.1,
)
SETTINGS = SequenceTraining(
    size="small", native=32, batch=3, steps=6, warm_up=2, lr=1e-2, pointed=0
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Four photos of coloured noise: three to train on, one held out."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    records = []
    for i, split in enumerate(("train", "train", "train", "held_out")):
        small = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize((48, 48)).save(folder / f"{i}.png")
        records.append(
            {"id": str(i), "file": f"{i}.png", "split": split, "kind": "lake", "words": ["lake"]}
            | {"plain_background": False, "width": 48, "height": 48}
        )
    (folder / "index.json").write_text(json.dumps(records))
    return folder


@pytest.fixture(scope="module")
def vq_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vq")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = VQModel(CONFIGS["tiny"]).state_dict()
    config = json.dumps({"channels": 8, "multipliers": [1, 1, 2, 2]} | TINY_REST)
    save_file(state, folder / "vq.safetensors", metadata={"config": config})
    return folder


TINY_REST = {
    "encoder_blocks": 1,
    "decoder_blocks": 1,
    "z_channels": 8,
    "codebook_size": 16,
    "norm_groups": 4,
}


@pytest.fixture
def trainer(photos, vq_folder, tmp_path, monkeypatch):
    """Make a trainer of a two-layer model; called again it starts, or resumes, in that folder."""
    monkeypatch.setitem(pure.train.CONFIGS, "small", SMALL)
    monkeypatch.setattr(pure.train, "HELD_OUT_PAIRS", 4)

    def make(name="run", **changes):
        return Trainer(replace(SETTINGS, **changes), photos, vq_folder, tmp_path / name)

    return make


@pytest.fixture
def grammar(vocab):
    return Grammar(vocab)


def test_only_the_answer_is_trained_on(grammar):
    codes = torch.arange(16).view(4, 4) % len(grammar.vocab.codes)
    prompt = grammar.prompt([grammar.vocab.text[0]], codes)
    sequence = build_sequence(grammar, prompt, [7, 8], [9], codes)
    image = len(grammar.image(codes))
    assert len(sequence.ids) == len(sequence.parts) == len(prompt) + 3 + image + 1
    assert sequence.parts == [-1] * len(prompt) + [0, 0, 1] + [2] * (image + 1)
    assert sequence.ids[-1] == grammar.vocab.end_turn
    grammar.read_image(sequence.ids[-image - 1 : -1])


def test_a_batch_is_padded_on_the_right_and_not_trained_there():
    long, short = TrainingSequence([1, 2, 3], [-1, 0, 2]), TrainingSequence([4], [2])
    ids, parts = collate([long, short], pad=99)
    assert ids.tolist() == [[1, 2, 3], [4, 99, 99]]
    assert parts.tolist() == [[-1, 0, 2], [2, -1, -1]]


def test_the_loss_is_the_mean_over_all_targets():
    torch.manual_seed(0)
    model = Transformer(replace(SMALL, vocab_size=11)).eval()
    ids = torch.randint(11, (2, 7))
    parts = torch.tensor([[-1, -1, 0, 0, 1, 2, 2], [-1, 0, 1, 1, 2, -1, -1]])
    result = losses(model, ids, parts, z_loss=0.0)
    logits = model(ids)
    naive = {0: [], 1: [], 2: []}
    for row in range(2):
        for t in range(1, 7):
            if (part := int(parts[row, t])) >= 0:
                naive[part].append(-F.log_softmax(logits[row, t - 1], -1)[ids[row, t]].item())
    everything = [x for values in naive.values() for x in values]
    assert result["total"].item() == pytest.approx(np.mean(everything), abs=1e-5)
    for i, name in enumerate(pure.train.PARTS):
        assert result[name].item() == pytest.approx(np.mean(naive[i]), abs=1e-5)


def test_the_z_loss_is_the_squared_log_partition():
    torch.manual_seed(0)
    model = Transformer(replace(SMALL, vocab_size=11)).eval()
    ids, parts = torch.randint(11, (1, 4)), torch.tensor([[-1, -1, -1, 2]])
    extra = losses(model, ids, parts, 0.5)["total"] - losses(model, ids, parts, 0.0)["total"]
    z = torch.logsumexp(model(ids)[0, 2], -1)
    assert extra.item() == pytest.approx(0.5 * z.item() ** 2, rel=1e-4)


def test_padding_does_not_change_the_loss():
    torch.manual_seed(0)
    model = Transformer(replace(SMALL, vocab_size=11)).eval()
    sequence = TrainingSequence([1, 2, 3, 4], [-1, 0, 1, 2])
    alone = losses(model, *collate([sequence], 0), 0.0)["total"]
    longer = TrainingSequence([5] * 9, [-1] * 9)
    padded = losses(model, *collate([sequence, longer], 0), 0.0)["total"]
    assert padded.item() == pytest.approx(alone.item(), abs=1e-6)


def test_a_batch_depends_on_its_number_alone(trainer):
    a, b = trainer("a"), trainer("b")
    a.batch(0)
    for first, second in zip(a.batch(3), b.batch(3), strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(a.batch(3)[0], a.batch(4)[0])


def test_some_sequences_lack_label_caption_or_prompt(trainer):
    run = trainer(without_label=1.0, without_caption=0.0, unconditional=0.0)
    _, parts = run.batch(0)
    assert not (parts == 0).any()
    assert (parts == 1).any()
    run = trainer("alone", unconditional=1.0)
    ids, parts = run.batch(0)
    assert (ids[:, 0] == run.vocab.begin_image).all()
    assert set(parts.unique().tolist()) == {2}


def test_training_sequences_hold_two_pictures_and_a_true_label(trainer):
    run = trainer(without_label=0.0, without_caption=0.0, unconditional=0.0)
    ids, parts = run.batch(0)
    row = ids[0].tolist()
    begins = [i for i, token in enumerate(row) if token == run.vocab.begin_image]
    assert len(begins) == 2
    grid = Grid(4, 4)
    for begin in begins:
        codes = run.grammar.read_image(row[begin : begin + grid.body + 4])
        assert codes.shape == (4, 4)
    label = run.text.decode(ids[0][parts[0] == 0].tolist())
    pair = run._pair(run.sampler, 0, seed=0)
    assert label == pair.label


def test_an_interrupted_run_ends_like_an_undisturbed_one(trainer):
    whole = trainer("whole")
    whole.run()
    first = trainer("parts")
    for _ in range(3):
        first.train_step()
    first.save()
    second = trainer("parts")
    assert second.step == 3
    second.run()
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[key]), key
        assert torch.equal(whole.average[key], second.average[key]), key


def test_the_saved_folder_loads_and_holds_the_averaged_weights(trainer, tmp_path):
    run = trainer()
    run.train_step()
    run.save()
    checkpoint = load(tmp_path / "run" / "checkpoint")
    assert checkpoint.native == SETTINGS.native
    assert checkpoint.photos == 3
    saved = checkpoint.model.state_dict()
    for key, value in run.average.items():
        assert torch.equal(saved[key], value.to(torch.bfloat16).float()), key


def test_training_on_one_batch_learns_it(trainer, monkeypatch):
    run = trainer(steps=40, without_label=0.0, without_caption=0.0, unconditional=0.0)
    batch = run.batch(0)
    monkeypatch.setattr(run, "batch", lambda step: batch)
    before = run.train_step()["total"]
    for _ in range(38):
        after = run.train_step()["total"]
    assert after < 0.75 * before


def test_a_loss_that_is_no_number_stops_the_run(trainer):
    run = trainer()
    run.model.lm_head.weight.data.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="step 0"):
        run.train_step()


def test_initial_weights_have_the_stated_spread():
    model = Transformer(replace(SMALL, vocab_size=4000))
    initialise(model)
    state = model.state_dict()
    assert state["lm_head.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    deep = state["model.layers.0.mlp.down_proj.weight"].std().item()
    assert deep == pytest.approx(0.02 / 2, rel=0.15)  # two layers: the root of four
    assert (state["model.norm.weight"] == 1).all()


@pytest.mark.parametrize("distance", [1, 40, 298])
def test_a_pointed_head_looks_the_stated_distance_back(distance):
    from pure.model import rotary, rotate

    torch.manual_seed(0)
    config = replace(
        SMALL,
        vocab_size=20,
        hidden_size=128,
        num_attention_heads=2,
        num_key_value_heads=2,
        model_parallel_size=2,
    )
    model = Transformer(config).eval()
    point_head(model, layer=1, head=1, distance=distance)
    attention = model.model.layers[1].self_attn
    T = 320
    x = torch.randn(1, T, 128)
    cos, sin = rotary(torch.arange(T)[None], 64, config.rope_theta, torch.float32)
    q, k = (
        rotate(norm(projection(x).view(1, T, 2, 64)), cos, sin)[0, :, 1]
        for norm, projection in (
            (attention.q_norm, attention.q_proj),
            (attention.k_norm, attention.k_proj),
        )
    )
    scores = (q @ k.mT / 8).masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
    weights = scores.softmax(-1)
    here = torch.arange(distance, T)
    assert (weights.argmax(-1)[here] == here - distance).all()
    assert weights[here, here - distance].mean() > 0.6  # the rest goes to the direct neighbours


def test_heads_that_share_parameters_cannot_be_pointed():
    with pytest.raises(ValueError, match="own QK-norm row"):
        point_head(Transformer(replace(SMALL, vocab_size=20)), 0, 0, 5)


def test_pointed_heads_of_a_run_find_the_cell_to_be_restored(trainer, monkeypatch):
    monkeypatch.setitem(pure.train.CONFIGS, "small", replace(SMALL, model_parallel_size=2))
    pointed = []
    monkeypatch.setattr(pure.train, "point_head", lambda m, *where: pointed.append(where))
    run = trainer(pointed=1, without_label=0.0, without_caption=0.0, unconditional=0.0)
    row = run.batch(0)[0][0].tolist()
    first, second = (i for i, token in enumerate(row) if token == run.vocab.begin_image)
    (layer, head, distance), *_ = pointed
    assert (layer, head) == (0, 0)
    # standing on the width token, about to write the first code of the answer
    assert second + 2 - distance == first + 3
