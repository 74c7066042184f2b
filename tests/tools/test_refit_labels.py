"""Rows of the head that name levels, fitted anew."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from pure import nano
from pure.belief import LEVELS, label_text
from pure.checkpoint import load
from pure.model import Transformer, TransformerConfig
from pure.pretokenise import TokenisedSet
from pure.vq import CONFIGS, VQModel
from tools.refit_labels import HEAD, WEIGHTS, fit, level_ids, read, refit

CODES = 16


@pytest.fixture
def folder(tmp_path):
    """A random checkpoint."""
    names = nano.token_names(["lake"], codes=CODES)
    config = TransformerConfig(len(names), 16, 16, 1, 2, 2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer, vq = Transformer(config), VQModel(CONFIGS["tiny"])
    nano.write_checkpoint(
        tmp_path / "source",
        names=names,
        config=config,
        transformer={k: v.bfloat16() for k, v in transformer.state_dict().items()},
        vq_config=CONFIGS["tiny"],
        vq=vq.state_dict(),
        native_pixels=32,
    )
    return tmp_path / "source"


@pytest.fixture
def data(folder, tmp_path):
    """Sequences whose pictures are of one code each, which decides the levels."""
    checkpoint = load(folder)
    ids, parts, lengths = [], [], []
    for i in range(60):
        codes = torch.full((4, 4), i % CODES)
        prompt = checkpoint.grammar.prompt(checkpoint.text.instruction(), codes)
        blur, noise = LEVELS[i % CODES % 3], LEVELS[i % CODES // 6]
        label = checkpoint.text.answer(label_text(blur, noise))
        # a whole sequence now and then, as in a mixture
        rest = checkpoint.text.answer("lake") if i % 4 == 0 else []
        ids += [*prompt, *label, *rest]
        parts += [-1] * len(prompt) + [0] * len(label) + [1] * len(rest)
        lengths.append(len(prompt) + len(label) + len(rest))
    (tmp_path / "data").mkdir()
    tensors = {
        "ids": torch.tensor(ids, dtype=torch.int32),
        "parts": torch.tensor(parts, dtype=torch.int8),
        "lengths": torch.tensor(lengths, dtype=torch.int32),
    }
    save_file(tensors, tmp_path / "data" / "00000.safetensors", metadata={"shard": "{}"})
    return tmp_path / "data"


def test_fitted_rows_are_at_the_minimum():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 5, generator=generator)
    states = torch.randn(200, 5, generator=generator)
    words = torch.randint(3, (200,), generator=generator)
    found = fit(rows, states, words, 0.1)
    # the gradient in closed form: (softmax - one-hot)ᵀ states / N + decay (found - rows)
    wrong = F.softmax(states @ found.T, 1) - F.one_hot(words, 3)
    assert (wrong.T @ states / 200 + 0.1 * (found - rows)).abs().max() < 1e-4
    assert torch.allclose(fit(rows, states, words, 1e6), rows, atol=1e-4)


def test_what_is_read_stands_before_the_word(folder, data):
    checkpoint = load(folder, dtype=torch.float32)
    places, some = level_ids(checkpoint), TokenisedSet(data)
    for place, (states, words) in zip(places, read(checkpoint, some, places), strict=True):
        assert len(states) == len(words) == 60
        for i in range(0, 60, 7):
            ids = some.sequence(i).ids
            at = next(j for j, token in enumerate(ids) if token in place)
            assert ids[at] == place[words[i]]
            expected = checkpoint.model.hidden(torch.tensor([ids[:at]]))[0, -1]
            assert torch.allclose(states[i], expected, atol=1e-5)


def test_labels_are_named_right_and_nothing_else_changes(folder, data, tmp_path):
    report = refit(folder, data, tmp_path / "out", 1e-6)
    assert report["blur"]["after"] > max(0.9, report["blur"]["before"])
    assert report["noise"]["after"] > max(0.9, report["noise"]["before"])
    fitted = load(tmp_path / "out", dtype=torch.float32)
    places, some = level_ids(fitted), TokenisedSet(data)
    head = fitted.model.lm_head.weight
    for place, (states, words) in zip(places, read(fitted, some, places), strict=True):
        assert ((states @ head[place].T).argmax(1) == words).float().mean() > 0.9
    before, after = load_file(folder / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    changed = (before[HEAD] != after[HEAD]).any(1).nonzero().flatten().tolist()
    assert sorted(changed) == sorted(i for place in places for i in place)
    assert all(before[k].equal(after[k]) for k in before if k != HEAD)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == json.loads((folder / "config.json").read_text())


def test_data_without_labels_are_refused(folder, data, tmp_path):
    path = data / "00000.safetensors"
    tensors = load_file(path)
    tensors["parts"] = tensors["parts"].clamp(max=-1)
    save_file(tensors, path)
    with pytest.raises(ValueError, match="holds no label"):
        refit(folder, data, tmp_path / "out", 0.1)
    assert not (tmp_path / "out").exists()
