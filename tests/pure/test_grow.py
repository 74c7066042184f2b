import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from pure import grow
from pure.checkpoint import CheckpointError, load, load_tokenizers
from pure.train import SequenceLoss
from pure.vocab import RELEASED_SIZE, code_of, released_ids

OLD = 65_536


@pytest.fixture(scope="module")
def lumina(released_folder, tmp_path_factory):
    """The released format before it was grown: as Lumina-mGPT's folder, its own VQ in it."""
    folder = tmp_path_factory.mktemp("lumina")
    gone = {name for name, i in released_ids().items() if i >= OLD}
    for path in released_folder.glob("*.json"):
        (folder / path.name).write_text(path.read_text())
    for path in released_folder.glob("model-*.safetensors"):
        state = load_file(path)
        for key in ("model.embed_tokens.weight", "lm_head.weight"):
            if key in state:
                state[key] = state[key][:OLD].contiguous()
        if path.name.startswith("model-00001"):
            state["model.vqmodel.encoder.conv_in.weight"] = torch.zeros(4)
        save_file(state, folder / path.name, metadata={"format": "pt"})

    def edit(name, change):
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    def config(content):
        names = content["vocabulary_map"]
        content["vocabulary_map"] = {k: v for k, v in names.items() if k not in gone}
        content |= {"vocab_size": OLD, "mask_image_logits": True}

    def tokenizer(content):
        vocab = content["model"]["vocab"]
        content["model"]["vocab"] = {k: v for k, v in vocab.items() if k not in gone}
        content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] not in gone]

    def tokenizer_config(content):
        listed = content["added_tokens_decoder"]
        content["added_tokens_decoder"] = {i: t for i, t in listed.items() if int(i) < OLD}

    edit("config.json", config)
    edit("tokenizer.json", tokenizer)
    edit("tokenizer_config.json", tokenizer_config)
    return folder


@pytest.fixture(scope="module")
def grown(lumina, released_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("grown") / "folder"
    grow.grow(lumina, out, vq=released_folder / "vq.safetensors")
    return out


def state_of(folder):
    return {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}


def test_a_grown_folder_loads_and_trains(grown):
    checkpoint = load(grown)
    assert checkpoint.model.config.vocab_size == RELEASED_SIZE
    assert len(checkpoint.grammar.vocab.codes) == 16_384
    ids = torch.tensor([[0, 5, 65_536, 73_727]])
    sums = SequenceLoss(checkpoint.model)(ids, torch.tensor([[-1, 2, 2, 2]]))
    assert torch.isfinite(sums["weighted"])


def test_every_name_is_where_the_release_has_it(grown, released_folder):
    ours, released = (load_tokenizers(folder) for folder in (grown, released_folder))
    assert ours.names == released.names
    assert ours.grammar.vocab == released.grammar.vocab
    for name in ("tokenizer.json", "tokenizer_config.json"):
        texts = [json.loads((folder / name).read_text()) for folder in (grown, released_folder)]
        for text in texts:
            text.get("added_tokens", []).sort(key=lambda token: token["id"])
        assert texts[0] == texts[1]


def test_the_index_lists_what_there_is(grown):
    index = json.loads((grown / "model.safetensors.index.json").read_text())
    there = {
        k: path.name
        for path in grown.glob("model-*")
        if path.suffix == ".safetensors"
        for k in load_file(path)
    }
    assert index["weight_map"] == there
    size = sum(v.numel() * v.element_size() for k, v in state_of(grown).items() if k in there)
    assert index["metadata"]["total_size"] == size
    assert not any("vqmodel" in key for key in there)


def test_old_rows_are_kept_and_codes_start_with_zero_logits(lumina, grown):
    before, after = state_of(lumina), state_of(grown)
    codes = torch.tensor([i for name, i in released_ids().items() if code_of(name) is not None])
    for key, value in after.items():
        if key in before and before[key].shape == value.shape:
            assert torch.equal(before[key], value), key
    embedding, head = (after[key] for key in (grow.EMBEDDING, grow.HEAD))
    assert torch.equal(embedding[:OLD], before[grow.EMBEDDING])
    assert (head[codes] == 0).all()
    others = torch.ones(OLD, dtype=torch.bool)
    others[codes[codes < OLD]] = False
    assert torch.equal(head[:OLD][others], before[grow.HEAD][others])


def test_new_embeddings_are_distributed_as_the_old_codes():
    g = torch.Generator().manual_seed(0)
    scale, mean = torch.rand(16, generator=g) + 0.1, torch.randn(16, generator=g)
    weight = torch.randn(3000, 16, generator=g) * 9
    codes = torch.arange(500, 2500)
    weight[codes] = mean + scale * torch.randn(2000, 16, generator=g)
    added = grow.grown_embedding(weight, codes, 8000, seed=1)[3000:]
    # four standard errors of 2,000 and 5,000 draws
    torch.testing.assert_close(
        added.mean(0), mean, rtol=0, atol=4 * 1.1 * (1 / 2000 + 1 / 5000) ** 0.5
    )
    torch.testing.assert_close(added.std(0), scale, rtol=0.1, atol=0)
    assert added.unique(dim=0).shape == added.shape
    assert torch.equal(added, grow.grown_embedding(weight, codes, 8000, seed=1)[3000:])
    assert not torch.equal(added, grow.grown_embedding(weight, codes, 8000, seed=2)[3000:])


def test_an_interrupted_growth_goes_on(lumina, grown, tmp_path, monkeypatch):
    out, calls = tmp_path / "out", []
    real = grow.grown_head

    def dies(*arguments):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(grow, "grown_head", dies)
    with pytest.raises(KeyboardInterrupt):
        grow.grow(lumina, out)
    assert not (out / "config.json").exists()
    grow.grow(lumina, out)
    ours, whole = (state_of(folder) for folder in (out, grown))
    assert all(torch.equal(value, whole[key]) for key, value in ours.items())


def test_a_folder_of_the_released_size_is_refused(released_folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"73728 tokens, not the 65536"):
        grow.grow(released_folder, tmp_path / "out")


def test_the_command_line_says_what_is_wrong(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["grow", str(tmp_path), str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        grow.main()
    assert "config.json is missing" in capsys.readouterr().err
