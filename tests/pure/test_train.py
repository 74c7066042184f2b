import csv
import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import pure.train
from pure.checkpoint import load
from pure.grammar import Grammar, Grid
from pure.model import Transformer, TransformerConfig
from pure.pretokenise import PROMPT, DataSetError, build_sequence
from pure.start import initialise
from pure.train import (
    PRESETS,
    SequenceLoss,
    SequenceTraining,
    Trainer,
    TrainingSequence,
    clustered_order,
    collate,
    misread,
)
from pure.training import TrainingError
from pure.vocab import RELEASED_SIZE, Vocab
from tools.tiny_checkpoint import vocabulary

SMALL = TransformerConfig(
    vocab_size=0,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
)
SETTINGS = SequenceTraining(
    size="small",
    native=32,
    sequences=0,
    batch=3,
    steps=6,
    warm_up=2,
    lr=1e-2,
    dropout=0.1,
    misread=0.0,
    copier=0,
    evaluate_every=0,
    sample_every=0,
)
WHOLE = {"unconditional": 0.0, "without_label": 0.0, "without_caption": 0.0}

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture
def trainer(sequences_folder, vq_folder, tmp_path, monkeypatch):
    """Make a trainer of a two-layer model; called again it starts, or resumes, in that folder."""
    monkeypatch.setitem(pure.train.CONFIGS, "small", SMALL)

    def make(name="run", *, start=None, **changes):
        settings = replace(SETTINGS, **changes)
        return Trainer(settings, sequences_folder, vq_folder, tmp_path / name, start)

    return make


def equal(a, b):
    """Whether two nested states are the same, bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def test_a_batch_is_padded_on_the_right_and_not_trained_there():
    long, short = TrainingSequence([1, 2, 3], [-1, 0, 2]), TrainingSequence([4], [2])
    for length in (None, 3):
        ids, parts = collate([long, short], pad=99, length=length)
        assert ids.tolist() == [[1, 2, 3], [4, 99, 99]]
        assert parts.tolist() == [[-1, 0, 2], [2, -1, -1]]


def test_what_is_longer_than_the_limit_is_cut():
    ids, parts = collate([TrainingSequence([1, 2, 3], [-1, 0, 2])], pad=99, length=2)
    assert (ids.tolist(), parts.tolist()) == ([[1, 2]], [[-1, 0]])


IDS = torch.randint(11, (2, 7), generator=torch.Generator().manual_seed(0))
LABELLED = torch.tensor([[-1, -1, 0, 0, 1, 2, 2], [-1, 0, 1, 1, 2, -1, -1]])


def small_model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Transformer(replace(SMALL, vocab_size=11)).eval()


@pytest.mark.parametrize("text_weight", [1.0, 8.0])
def test_the_sums_are_those_over_all_targets(text_weight):
    model = small_model()
    sums = SequenceLoss(model, text_weight)(IDS, LABELLED)
    logits = model(IDS)
    naive = {0: [], 1: [], 2: []}
    z = 0.0
    for row in range(2):
        for t in range(1, 7):
            if (part := int(LABELLED[row, t])) >= 0:
                naive[part].append(-F.log_softmax(logits[row, t - 1], -1)[IDS[row, t]].item())
                z += torch.logsumexp(logits[row, t - 1], -1).item() ** 2
    weighted = text_weight * (sum(naive[0]) + sum(naive[1])) + sum(naive[2])
    assert sums["weighted"].item() == pytest.approx(weighted, rel=1e-5)
    assert sums["z"].item() == pytest.approx(z, rel=1e-5)
    for i, name in enumerate(pure.train.PARTS):
        assert sums[name].item() == pytest.approx(sum(naive[i]), rel=1e-5)
        assert sums[f"N {name}"].item() == len(naive[i])


def test_padding_does_not_change_the_loss():
    loss = SequenceLoss(small_model())
    sequence = TrainingSequence([1, 2, 3, 4], [-1, 0, 1, 2])
    alone = loss(*collate([sequence], 0))["weighted"]
    longer = TrainingSequence([5] * 9, [-1] * 9)
    padded = loss(*collate([sequence, longer], 0))["weighted"]
    assert padded.item() == pytest.approx(alone.item(), rel=1e-6)


def test_a_step_minimises_the_weighted_mean_and_the_z_loss(trainer):
    """The first step's total against the definition, over the whole batch at once."""
    changes = {"precision": "fp32", "dropout": 0.0, "text_weight": 5.0, "z_loss": 0.1}
    run = trainer(**changes, per_device=2)
    [whole] = trainer("whole", **changes).batch(0)
    ids, parts = whole
    kinds = parts[:, 1:][parts[:, 1:] >= 0]
    with torch.no_grad():
        logits = run.model(ids)[:, :-1][parts[:, 1:] >= 0]
    each = F.cross_entropy(logits, ids[:, 1:][parts[:, 1:] >= 0], reduction="none")
    weight = torch.where(kinds < 2, 5.0, 1.0)
    total = (each * weight).sum() / weight.sum() + 0.1 * logits.logsumexp(-1).pow(2).mean()
    row = run.train_step()
    assert row["total"] == pytest.approx(total.item(), rel=1e-5)
    for i, name in enumerate(pure.train.PARTS):
        assert row[name] == pytest.approx(each[kinds == i].mean().item(), rel=1e-5)


def test_small_passes_train_as_one_large(trainer):
    changes = {"precision": "fp32", "dropout": 0.0, "batch": 4}
    runs = [trainer(str(size), **changes, per_device=size) for size in (0, 1, 3)]
    for run in runs:
        for _ in range(3):
            run.train_step()
    for run in runs[1:]:
        for key, value in runs[0].model.state_dict().items():
            torch.testing.assert_close(value, run.model.state_dict()[key], rtol=0, atol=2e-6)


def test_recomputing_blocks_changes_nothing_even_with_dropout(trainer):
    runs = [trainer(str(recompute), recompute=recompute) for recompute in (0, 1)]
    for run in runs:
        for _ in range(3):
            run.train_step()
    assert equal(*(run.model.state_dict() for run in runs))


@pytest.mark.parametrize("order", ["given", "clustered"])
def test_a_batch_depends_on_its_number_alone(trainer, order):
    a, b = trainer("a", order=order), trainer("b", order=order)
    a.batch(0)
    assert equal(a.batch(9), b.batch(9))
    assert not equal(a.batch(9), a.batch(10))


def test_sequences_come_as_given_and_then_again(trainer):
    run = trainer(sequences=7)
    assert [run.indices(step) for step in range(3)] == [[0, 1, 2], [3, 4, 5], [6, 0, 1]]


def test_a_sequence_longer_than_the_held_out_ones_is_not_cut(trainer, monkeypatch):
    run = trainer(**WHOLE)
    length = max(len(pair.ids) for pair in run.held_out) + 7
    long = TrainingSequence([5] * length, [2] * length)
    monkeypatch.setattr(run.train_set, "sequence", lambda index: long)
    [(ids, _)] = run.batch(0)
    assert ids.shape == (3, length)
    run.limit = 20  # what the model was made for
    assert run.batch(0)[0][0].shape == (3, 20)


def test_compiled_lengths_are_few(trainer, monkeypatch):
    run = trainer(**WHOLE)
    run.settings = replace(run.settings, compile=1)  # without compiling, which takes long
    lengths = iter([70, 3, 128, 129, 5, 64])
    monkeypatch.setattr(
        run.train_set, "sequence", lambda _: TrainingSequence([5] * (n := next(lengths)), [2] * n)
    )
    batches = [run.batch(0)[0], run.batch(1)[0]]
    assert [ids.shape for ids, _ in batches] == [(3, 128), (3, 192)]
    assert [(parts >= 0).sum().item() for _, parts in batches] == [201, 198]


def test_a_sequence_that_ends_with_its_label_keeps_it(trainer, monkeypatch):
    run = trainer(unconditional=1.0, without_label=1.0)
    short = TrainingSequence([5, 6, 7], [PROMPT, 0, 0])
    monkeypatch.setattr(run.train_set, "sequence", lambda _: short)
    [(ids, parts)] = run.batch(0)
    assert (ids[0].tolist(), parts[0].tolist()) == ([5, 6, 7], [PROMPT, 0, 0])
    assert math.isfinite(run.train_step()["label"])


def test_an_epoch_in_clusters_has_every_sequence_once_and_the_next_is_mixed_anew(trainer):
    run = trainer(order="clustered", batch=4)
    assert run.per_epoch == len(run.train_set) // 4 == 6
    epochs = [[i for step in range(e * 6, e * 6 + 6) for i in run.indices(step)] for e in (0, 1)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(24))
    assert epochs[0] != epochs[1]


def test_batches_hold_sequences_of_similar_length(monkeypatch):
    monkeypatch.setattr(pure.train, "WINDOW", 5)
    lengths = np.random.default_rng(0).integers(100, 1000, 1003)
    order = clustered_order(lengths, 10, seed=0, epoch=0)
    assert order.shape == (100, 10)
    assert len(set(order.flatten())) == 1000  # the last three fill no batch
    spread = np.ptp(lengths[order], axis=1)
    # a window is 50 of 1003 lengths between 100 and 1000: about 45 apart
    assert spread.max() < 90
    starts = lengths[order].min(axis=1)
    assert abs(np.corrcoef(starts, np.arange(100))[0, 1]) < 0.3  # long ones do not come last


def test_some_sequences_lack_label_caption_or_prompt(trainer):
    [(_, parts)] = trainer(without_label=1.0, without_caption=0.0, unconditional=0.0).batch(0)
    assert not (parts == 0).any()
    assert (parts == 1).any()
    run = trainer("alone", unconditional=1.0)
    [(ids, parts)] = run.batch(0)
    assert (ids[:, 0] == run.vocab.begin_image).all()
    assert set(parts.unique().tolist()) <= {-1, 2}
    [(ids, parts)] = trainer("whole", **WHOLE).batch(0)
    assert (ids[:, 0] == run.vocab.bos).all()
    assert {0, 1, 2} < set(parts.unique().tolist())


def test_training_waits_for_shards_that_are_still_being_made(trainer, monkeypatch):
    run = trainer(sequences=1000)
    late, waits = run.train_set.sequence(0), []

    def sequence(index):
        if index == 999 and len(waits) < 2:
            raise FileNotFoundError("00166.safetensors")
        return late

    monkeypatch.setattr(run.train_set, "sequence", sequence)
    monkeypatch.setattr(pure.train.time, "sleep", waits.append)
    assert run._sequence(999) is late
    assert len(waits) == 2


@pytest.mark.parametrize("changes", [{}, {"order": "clustered", "per_device": 2, "ema": 0.0}])
def test_an_interrupted_run_ends_like_an_undisturbed_one(trainer, tmp_path, changes):
    whole = trainer("whole", **changes)
    whole.run()
    first = trainer("parts", **changes)
    for _ in range(3):
        first.train_step()
    first.save()
    first.train_step()  # lost
    torch.manual_seed(99)  # nothing may depend on it
    second = trainer("parts", **changes)
    assert second.step == 3
    second.run()
    states = [
        torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("whole", "parts")
    ]
    assert states[0]["step"] == 6
    assert equal(*states)


def test_epochs_become_steps(trainer):
    run = trainer(steps=0, epochs=2.5, batch=5, warm_up=0, warm_up_epochs=0.5)
    assert (run.per_epoch, run.steps, run.warm_up) == (4, 10, 2.0)
    rates = []
    for run.step in range(10):
        rates.append(run._rate())
    assert rates[:3] == pytest.approx([5e-3, 1e-2, 1e-2])
    assert rates == sorted(rates[:2]) + sorted(rates[2:], reverse=True)


def test_the_saved_folder_loads_and_holds_the_averaged_weights(trainer, tmp_path):
    run = trainer()
    run.train_step()
    run.save()
    checkpoint = load(tmp_path / "run" / "checkpoint")
    assert checkpoint.native == SETTINGS.native
    saved = checkpoint.model.state_dict()
    for key, value in run.average.items():
        assert torch.equal(saved[key], value.to(torch.bfloat16).float()), key
    assert any(not torch.equal(run.average[k], v) for k, v in run.model.state_dict().items())


def test_a_run_that_starts_from_a_folder_goes_on_with_its_weights(trainer, tmp_path):
    first = trainer("first", ema=0.0)
    first.train_step()
    first.save()
    run = trainer("second", start=tmp_path / "first" / "checkpoint", ema=0.0, export_every=1)
    for key, value in first.model.state_dict().items():
        assert torch.equal(run.model.state_dict()[key], value.bfloat16().float()), key
    assert run.model.config.dropout == SETTINGS.dropout
    run.export(tmp_path / "again")
    again = load(tmp_path / "again")
    assert equal(again.model.state_dict(), run.model.state_dict())
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["pure"]["training"]["size"] == "small"
    assert config["pure"]["native_pixels"] == 32


def test_checkpoints_come_at_intervals_and_at_the_end(trainer, tmp_path):
    trainer(export_every=2).run()
    written = sorted(path.parent.name for path in (tmp_path / "run").glob("*/config.json"))
    assert written == ["checkpoint", "checkpoint-2", "checkpoint-4"]
    steps = {
        json.loads((tmp_path / "run" / name / "config.json").read_text())["pure"]["step"]
        for name in written
    }
    assert steps == {2, 4, 6}


def test_a_folder_of_other_tokens_is_refused(trainer, checkpoint_folder):
    with pytest.raises(TrainingError, match="written with other tokens"):
        trainer(start=checkpoint_folder)


def test_training_on_one_batch_learns_it(trainer, monkeypatch):
    run = trainer(steps=40, dropout=0.0, **WHOLE)
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


def test_a_run_writes_its_curve(trainer, tmp_path):
    trainer(evaluate_every=3, **WHOLE).run()
    with (tmp_path / "run" / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["step"]) for row in rows] == [2, 5]
    assert all(math.isfinite(float(value)) for row in rows for value in row.values())
    assert float(rows[1]["held_out_image"]) < float(rows[0]["held_out_image"])


def test_held_out_losses_are_means_over_all_pairs_of_the_averaged_weights(trainer, monkeypatch):
    run = trainer(precision="fp32")
    run.train_step()
    model = Transformer(run.model.config).eval()
    model.load_state_dict(run.average)
    assert len(run.held_out) == 6  # not a multiple of what fits one pass
    ids, parts = collate(run.held_out, run.vocab.pad)
    with torch.no_grad():
        logits = model(ids)[:, :-1]
    each = F.cross_entropy(logits.movedim(-1, 1), ids[:, 1:], reduction="none")
    for i, name in enumerate(pure.train.PARTS):
        expected = each[parts[:, 1:] == i].mean().item()
        assert run.evaluate()[f"held_out_{name}"] == pytest.approx(expected, rel=1e-5)


def test_samples_show_input_restoration_and_reference(trainer, tmp_path):
    run = trainer(samples=2, sample_every=6)
    run.run()
    with Image.open(tmp_path / "run" / "samples" / "00000006.png") as sheet:
        assert sheet.size == (3 * 32, 2 * 32)
        pixels = np.asarray(sheet)
    row = run.held_out[1]
    begins = [i for i, token in enumerate(row.ids) if token == run.vocab.begin_image]
    grammar, length = Grammar(run.vocab), Grid(4, 4).body + 4
    for begin, left in zip(begins, (0, 64), strict=True):
        codes = grammar.read_image(row.ids[begin : begin + length])
        expected = np.asarray(run.vq.decode_image(codes))
        assert np.array_equal(pixels[32:, left : left + 32], expected)


def test_samples_use_the_sampling_and_the_text_form_of_the_checkpoint(
    trainer, tmp_path, monkeypatch
):
    trainer("first", steps=1, export_every=1).run()
    start = tmp_path / "first" / "checkpoint"
    config = json.loads((start / "config.json").read_text())
    words = [name for name in config["vocabulary_map"] if name.startswith("▁")][:2]
    config["pure"] |= {"sampling": {"k_max": 9}, "text_form": [[word] for word in words]}
    (start / "config.json").write_text(json.dumps(config))
    seen = []

    def restore(self, text, config, **others):
        seen.append((list(text), config.k_max))
        return original(self, text, config, **others)

    original = pure.train.Conversation.restore
    monkeypatch.setattr(pure.train.Conversation, "restore", restore)
    run = trainer("second", start=start, ema=0.0, samples=1)
    run.sample()
    assert seen == [([run.names[word] for word in words], 9)]


def test_a_run_starts_as_a_copier_if_wanted(sequences_folder, vq_folder, tmp_path):
    """The real nano configuration, untrained: the picture it likes best is the poor one."""
    settings = replace(SETTINGS, size="nano", copier=1, precision="fp32", **WHOLE)
    run = Trainer(settings, sequences_folder, vq_folder, tmp_path)
    [(ids, _)] = run.batch(0)
    begin = [(row == run.vocab.begin_image).nonzero().flatten().tolist() for row in ids]
    with torch.no_grad():
        logits = run.model.eval()(ids)
    right = []
    for row, (lq, answer) in enumerate(begin):
        for k in range(Grid(4, 4).body):
            token = int(ids[row, lq + 3 + k])
            if token in run.vocab.codes:
                here = logits[row, answer + 2 + k][run.vocab.code_ids]
                right.append(run.vocab.codes[int(here.argmax())] == token)
    assert np.mean(right) > 0.95


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 3, "epochs": 1.0}, "either steps or epochs"),
        ({"steps": 0}, "either steps or epochs"),
        ({"sharding": "full"}, "not with sharding full"),
        ({"sharding": "full", "ema": 0.0, "compile": 1}, "not with sharding full"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 25}, "24 sequences are less than a batch of 25"),
        ({"sharding": "full", "ema": 0.0}, "one process only"),
    ],
)
def test_a_run_that_cannot_be_is_refused(trainer, changes, message):
    with pytest.raises(TrainingError, match=message):
        trainer(**changes)


def test_data_that_is_not_there_is_named(vq_folder, tmp_path):
    (tmp_path / "names.json").write_text("{}")
    with pytest.raises(DataSetError, match=r"pure\.pretokenise"):
        Trainer(SETTINGS, tmp_path, vq_folder, tmp_path / "run")


def test_the_paper_preset_is_the_published_recipe():
    """Read in the published training script; see the recipe in docs/training.md."""
    s = PRESETS["paper"]
    assert (s.batch, s.per_device, s.epochs, s.warm_up_epochs) == (128, 4, 2.0, 0.5)
    assert (s.lr, s.lowest_rate, s.betas, s.weight_decay) == (4e-4, 0.0, (0.9, 0.95), 0.1)
    assert (s.clip, s.dropout, s.z_loss, s.precision) == (4.0, 0.05, 0.0, "bf16")
    assert (s.sharding, s.recompute, s.order, s.text_weight) == ("full", 1, "clustered", 1.0)
    assert PRESETS["nano"] == SequenceTraining()


def test_one_step_of_a_wide_and_shallow_model_of_the_released_vocabulary():
    """All 73,728 rows of embedding and head, 38 million parameters."""
    names = vocabulary(small=False)
    vocab = Vocab.from_names(names, RELEASED_SIZE)
    config = TransformerConfig(
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Transformer(config)
        initialise(model)
    lq, gt = torch.randint(16_384, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    grammar = Grammar(vocab)
    ids, parts = collate([build_sequence(grammar, grammar.prompt([], lq), [], [], gt)], vocab.pad)
    assert (ids >= 65_536).any()  # the rows PURE added are in use
    loss, optimiser = SequenceLoss(model), torch.optim.AdamW(model.parameters(), lr=4e-4)
    sums = loss(ids, parts)
    before = sums["weighted"] / sums["N image"]
    before.backward()
    optimiser.step()
    with torch.no_grad():
        after = loss(ids, parts)["weighted"] / sums["N image"]
    assert sums["N image"] == 8 * 9 + 5
    assert before.item() == pytest.approx(math.log(RELEASED_SIZE), rel=0.05)  # knows nothing yet
    assert after < before - 0.5


def run_main(monkeypatch, *arguments):
    """What the command line makes of these arguments: those of the trainer."""
    made = []

    class Fake:
        def __init__(self, *arguments):
            made.append(arguments)

        def run(self):
            made.append("ran")

        def quit(self):
            made.append("quit")

    monkeypatch.setattr(pure.train, "Trainer", Fake)
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    pure.train.main()
    assert made[1:] == ["ran", "quit"]
    return made[0]


def test_the_command_line_fills_the_settings(monkeypatch, tmp_path):
    settings, data, _, out, start = run_main(
        monkeypatch, "--steps", "7", "--lr", "0.1", "--betas", "0.8", "0.9", "--data", "x"
    )
    assert settings == replace(PRESETS["nano"], steps=7, lr=0.1, betas=(0.8, 0.9))
    assert (str(data), str(out), start) == ("x", "runs/sequences", None)


def test_the_command_line_starts_from_a_preset(monkeypatch):
    settings, *_, start = run_main(
        monkeypatch, "--preset", "paper", "--start", "grown", "--per-device", "2"
    )
    assert settings == replace(PRESETS["paper"], per_device=2)
    assert str(start) == "grown"


def test_the_command_line_refuses_a_contradiction_in_a_sentence(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run_main(monkeypatch, "--steps", "7", "--epochs", "1")
    assert "give either steps or epochs" in capsys.readouterr().err


def test_the_command_line_prints_a_plan(monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["train", "--preset", "paper", "--plan", "32", "--sequences", "94991"]
    )
    pure.train.main()
    printed = capsys.readouterr().out
    assert "32 processes, 4 sequences of 8450 tokens" in printed
    assert "1484 steps" in printed


def test_only_codes_of_the_answer_are_misread(trainer):
    run = trainer()
    sequence = run.held_out[0]
    ids, parts = torch.tensor(sequence.ids), torch.tensor(sequence.parts)
    codes = run.vocab.code_ids
    read = misread(ids, parts, codes, 1.0, np.random.default_rng(0))
    changed = read != ids
    assert changed.any()
    assert (parts[changed] == 2).all()
    assert torch.isin(read[changed], codes).all()
    assert torch.equal(misread(ids, parts, codes, 0.0, np.random.default_rng(0)), ids)


def test_a_misread_code_is_the_poor_pictures_or_another_of_the_answer():
    ids = torch.tensor([100, 101, 102, 9, 200, 201, 202])
    parts = torch.tensor([-1, -1, -1, 0, 2, 2, 2])
    codes = torch.arange(100, 300)
    seen = [set(), set(), set()]
    for seed in range(200):
        read = misread(ids, parts, codes, 1.0, np.random.default_rng(seed))
        for place in range(3):
            seen[place].add(int(read[4 + place]))
    for place in range(3):
        assert seen[place] == {100 + place, 200, 201, 202}


def test_misreading_changes_what_is_read_and_not_what_is_aimed_at(trainer):
    right, wrong = trainer("right"), trainer("wrong", misread=1.0)
    (ids, parts), (same_ids, same_parts) = right.batch(0)[0], wrong.batch(0)[0]
    assert torch.equal(ids, same_ids)
    assert torch.equal(parts, same_parts)
    assert right.train_step()["total"] != wrong.train_step()["total"]
