import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

import pure.checkpoint
from pure.checkpoint import CheckpointError, load, load_vq, transformer_config
from pure.model import TransformerConfig
from pure.vocab import Vocab
from pure.vq import CONFIGS, VQConfig, VQModel
from tools.tiny_checkpoint import (
    TinyFormat,
    random_state,
    random_vq,
    write,
    write_released_vq,
    write_vq,
)

SHARD = "model-00002-of-00003.safetensors"


@pytest.fixture
def folder(checkpoint_folder, tmp_path):
    """A copy to break."""
    return Path(shutil.copytree(checkpoint_folder, tmp_path / "broken"))


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_shard(folder, change):
    state = load_file(folder / SHARD)
    change(state)
    save_file(state, folder / SHARD)


def message_of(folder):
    with pytest.raises(CheckpointError) as error:
        load(folder)
    return str(error.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "form",
    [
        TinyFormat(small_vocab=True),
        TinyFormat(small_vocab=True, model_parallel_size=2),
        TinyFormat(small_vocab=True, swin_norm=True),
        TinyFormat(small_vocab=True, kv_heads=2),
    ],
    ids=["plain", "mp2", "swin", "gqa"],
)
def test_weights_arrive_unchanged(tmp_path, form, dtype):
    write(tmp_path, seed=4, form=form)
    loaded = load(tmp_path, dtype=dtype)
    config = form.config(loaded.grammar.vocab.size)
    assert loaded.model.config == config
    written, state = random_state(config, 4), loaded.model.state_dict()
    assert state.keys() == written.keys()
    assert all(value.dtype is dtype for value in state.values())
    # bfloat16 is exact in both
    assert all(torch.equal(state[key].bfloat16(), value) for key, value in written.items())
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())


def test_a_folder_as_released_loads(released_folder):
    loaded = load(released_folder)
    assert (loaded.native, loaded.text_limit) == (512, 512)
    assert len(loaded.grammar.vocab.codes) == 16_384
    assert loaded.model.config.dropout == 0.05
    assert not loaded.is_nano
    assert {tensor.dtype for tensor in loaded.vq.state_dict().values()} == {torch.float32}
    assert loaded.text.decode(loaded.text.answer("Medium blur.")) == "Medium blur."


def test_the_tiny_folder_has_the_files_of_the_release(released_folder):
    assert {path.name for path in released_folder.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vq.safetensors",
    }
    # sizes of the two smallest on the hub
    assert (released_folder / "generation_config.json").stat().st_size in (110, 111)
    assert (released_folder / "special_tokens_map.json").stat().st_size in (130, 131)


def test_the_released_vocabulary_reads_the_same_from_config_and_tokenizer(
    released_folder, tmp_path
):
    config = json.loads((released_folder / "config.json").read_text())
    (tmp_path / "tokenizer.json").write_text((released_folder / "tokenizer.json").read_text())
    del config["vocabulary_map"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    names = pure.checkpoint.read_names(released_folder)
    assert len(names) == 73_728
    assert pure.checkpoint.read_names(tmp_path) == names


def test_a_bfloat16_model_answers_about_as_a_float32_one(checkpoint_folder):
    ids = torch.arange(30)[None]
    exact = load(checkpoint_folder).model(ids)
    coarse = load(checkpoint_folder, dtype=torch.bfloat16).model(ids)
    # each of some 20 roundings in a row is off by 2^-9 of a value, at most
    assert float((exact - coarse).square().mean().sqrt()) < 20 * 2**-9 * float(exact.std())


def test_our_own_section_sets_the_native_size(checkpoint):
    assert (checkpoint.native, checkpoint.text_limit) == (32, 16)


def test_every_wrong_tensor_is_named_in_one_error(folder):
    def change(state):
        keys = sorted(state)
        state["model.layers.7.extra.weight"] = torch.zeros(1)
        state[keys[0]] = torch.zeros(3, 5)
        del state[keys[1]]

    keys = sorted(load_file(folder / SHARD))
    edit_shard(folder, change)
    message = message_of(folder)
    assert "does not fit the model" in message
    assert f"missing: {keys[1]}" in message
    assert "unknown: model.layers.7.extra.weight" in message
    assert f"wrong shape: {keys[0]} is [3, 5], not [" in message


def test_many_missing_tensors_are_counted(folder):
    edit_shard(folder, lambda state: [state.pop(key) for key in list(state)])
    assert "and 2 more" in message_of(folder)  # of 10, 8 are named


def test_chameleons_own_image_tokenizer_is_ignored(folder):
    edit_shard(folder, lambda s: s.update({"model.vqmodel.quantize.weight": torch.zeros(2)}))
    assert load(folder).native == 32


def test_a_missing_shard_is_named(folder):
    (folder / SHARD).unlink()
    assert f"lacks the weight files {SHARD}" in message_of(folder)


def test_files_the_index_does_not_name_are_left_alone(folder):
    save_file({"junk": torch.zeros(1)}, folder / "model-00009-of-00009.safetensors")
    assert load(folder).native == 32


def test_a_single_file_needs_no_index(folder):
    state = {}
    for path in folder.glob("model-*.safetensors"):
        state |= load_file(path)
        path.unlink()
    (folder / "model.safetensors.index.json").unlink()
    save_file(state, folder / "model.safetensors")
    assert load(folder).native == 32


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_shard_is_named(folder, kept):
    data = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(data[:kept])
    assert f"{SHARD} cannot be read" in message_of(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_corrupt_json_is_named(folder, name):
    (folder / name).write_text('{"model_type": "chameleon",')
    assert f"{name} is no valid JSON" in message_of(folder)


def test_json_of_another_encoding_is_named(folder):
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")
    assert "config.json is no valid JSON" in message_of(folder)


def test_a_folder_without_a_config_is_refused(tmp_path):
    assert f"config.json is missing in {tmp_path}" in message_of(tmp_path)


def test_a_config_that_is_a_list_is_refused(folder):
    (folder / "config.json").write_text("[]")
    message_of(folder)


def test_an_index_without_a_map_is_refused(folder):
    (folder / "model.safetensors.index.json").write_text("{}")
    message_of(folder)


@pytest.mark.parametrize("content", ["{", "{}", None])
def test_a_corrupt_tokenizer_is_refused(folder, content):
    path = folder / "tokenizer.json"
    path.write_text(content) if content else path.unlink()
    assert "tokenizer.json" in message_of(folder)


@pytest.mark.parametrize("model_type", ["llama", None])
def test_another_model_is_refused(folder, model_type):
    edit_json(folder / "config.json", lambda c: c.update(model_type=model_type))
    assert f"model_type is {model_type!r}, not 'chameleon'" in message_of(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "gelu"),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("attention_bias", True),
        ("mlp_bias", True),
        ("tie_word_embeddings", True),
        ("mask_image_logits", True),
    ],
)
def test_what_this_model_cannot_do_is_refused(key, value):
    with pytest.raises(CheckpointError, match=f"config has {key} = "):
        transformer_config({"model_type": "chameleon", key: value})


def test_stale_and_unknown_fields_are_left_alone():
    extra = {"bos_token_id": 1, "eos_token_id": 2, "z_loss_weight": 0.0, "apply_lora": True}
    assert transformer_config({"model_type": "chameleon"} | extra) == TransformerConfig()


@pytest.mark.parametrize("parameters", [{"rope_theta": 5e5, "rope_type": "default"}, None])
def test_the_rotary_base_is_read_where_transformers_5_keeps_it(parameters):
    config = transformer_config({"model_type": "chameleon", "rope_parameters": parameters})
    assert config.rope_theta == (5e5 if parameters else 1e4)


@pytest.mark.parametrize(("key", "value"), [("hidden_size", 4097), ("num_key_value_heads", 5)])
def test_heads_that_do_not_divide_are_refused(key, value):
    with pytest.raises(CheckpointError, match=str(value)):
        transformer_config({"model_type": "chameleon", key: value})


def test_a_vocabulary_that_lacks_a_token_is_refused(folder):
    edit_json(folder / "config.json", lambda c: c["vocabulary_map"].pop("<eoss>"))
    message = message_of(folder)
    assert "lacks <eoss>" in message
    assert str(folder) in message


def test_the_vocabulary_may_come_from_the_tokenizer(folder, checkpoint):
    edit_json(folder / "config.json", lambda c: c.pop("vocabulary_map"))
    assert load(folder).grammar.vocab == checkpoint.grammar.vocab


def test_float16_is_refused(checkpoint_folder):
    with pytest.raises(CheckpointError, match="float16 overflows"):
        load(checkpoint_folder, dtype=torch.float16)


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./missing", "missing", "~/x", "a/b/c"])
def test_a_missing_folder_is_not_looked_up_on_the_hub(name, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    with pytest.raises(CheckpointError, match="there is no checkpoint folder") as error:
        load(name)
    assert "nonwhy/PURE" in str(error.value)


@pytest.mark.parametrize(
    "cause",
    [
        ConnectionError("no network"),
        ValueError("bad name"),
        RuntimeError("odd"),
        LocalEntryNotFoundError("offline"),
        HFValidationError("bad name"),
    ],
    ids=lambda cause: type(cause).__name__,
)
def test_a_hub_id_that_cannot_be_fetched_gives_a_sentence(cause, monkeypatch):
    def fail(*_, **__):
        raise cause

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError) as error:
        load("someone/something")
    assert str(error.value) == (
        f"someone/something could not be fetched from the hub ({type(cause).__name__}). Check the "
        "name and the connection, or download it elsewhere and give its folder."
    )


def test_a_hub_id_loads_from_its_snapshot(checkpoint_folder, monkeypatch):
    asked = []

    def snapshot(name, *, allow_patterns):
        asked.append((name, allow_patterns))
        return str(checkpoint_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert load("someone/something").name == "someone/something"
    [(name, patterns)] = asked
    assert name == "someone/something"
    assert {"*.json", "*.safetensors", "vq_ds8_c2i.pt"} <= set(patterns)


def test_another_number_of_codes_than_the_vocabularys_is_refused(folder):
    write_vq(folder, replace(CONFIGS["tiny"], codebook_size=32))
    message = message_of(folder)
    assert "has 32 codes" in message
    assert "the vocabulary 64" in message


def test_a_vq_file_without_its_configuration_is_refused(folder):
    save_file(random_vq(CONFIGS["tiny"], 0), folder / "vq.safetensors")
    assert "carries no VQ configuration" in message_of(folder)


@pytest.mark.parametrize("config", ['{"chanels": 8}', "[", "3"])
def test_a_vq_file_with_another_configuration_is_refused(folder, config):
    state = random_vq(CONFIGS["tiny"], 0)
    save_file(state, folder / "vq.safetensors", metadata={"config": config})
    assert "carries no VQ configuration" in message_of(folder)


def test_a_vq_of_wrong_tensors_is_refused(folder):
    def change(state):
        state["extra"] = torch.zeros(1)
        state["quant_conv.bias"] = torch.zeros(5)
        del state["post_quant_conv.bias"]

    state = load_file(folder / "vq.safetensors")
    change(state)
    config = '{"channels": 8, "multipliers": [1, 1, 2, 2], "encoder_blocks": 1, '
    config += '"decoder_blocks": 1, "z_channels": 8, "codebook_size": 64, "norm_groups": 4}'
    save_file(state, folder / "vq.safetensors", metadata={"config": config})
    message = message_of(folder)
    assert "missing ['post_quant_conv.bias']" in message
    assert "unknown ['extra']" in message
    assert "wrong shape ['quant_conv.bias']" in message


@pytest.fixture
def tiny_release(monkeypatch):
    """Pretend that LlamaGen's tokenizer has the tiny shape."""
    config = replace(CONFIGS["tiny"], codebook_size=64)
    monkeypatch.setattr(pure.checkpoint, "VQConfig", lambda **kw: VQConfig(**kw) if kw else config)
    return config


def test_the_released_tokenizer_file_loads(folder, tiny_release):
    (folder / "vq.safetensors").unlink()
    write_released_vq(folder, tiny_release, seed=0)
    loaded, original = load(folder).vq.state_dict(), random_vq(tiny_release, 0)
    assert loaded.keys() == original.keys()
    assert all(torch.equal(loaded[key], original[key]) for key in original)


def test_the_released_tokenizer_file_has_the_shape_of_vq8(tmp_path):
    """Full shapes; each tensor is one stored number, seen many times."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in VQModel(VQConfig()).state_dict().items()}
    state = {key: torch.full((1,), 0.5).expand(shape) for key, shape in shapes.items()}
    state["quantize.codebook_used"] = torch.zeros(1).expand(65_536)
    assert sum(value.numel() for value in state.values()) == 70_175_371
    assert len(state) == 300
    torch.save({"model": state}, tmp_path / "vq_ds8_c2i.pt")
    vq = load_vq(tmp_path)
    assert vq.config == CONFIGS["vq8"]
    assert not any(value.is_meta for value in vq.state_dict().values())


def test_a_tokenizer_elsewhere_is_fetched_by_name(tmp_path, tiny_release, monkeypatch):
    write_released_vq(tmp_path, tiny_release)
    asked = []

    def download(*what):
        asked.append(what)
        return str(tmp_path / "vq_ds8_c2i.pt")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    (tmp_path / "empty").mkdir()
    assert load_vq(tmp_path / "empty").config == tiny_release
    assert asked == [("FoundationVision/LlamaGen", "vq_ds8_c2i.pt")]


def test_a_tokenizer_that_cannot_be_fetched_gives_a_sentence(tmp_path, monkeypatch):
    def fail(*_):
        raise ConnectionError

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(CheckpointError, match=r"Download vq_ds8_c2i\.pt and put it into"):
        load_vq(tmp_path)


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    target = tmp_path / "ran"
    torch.save({"model": {"quant_conv.bias": Malicious(target)}}, tmp_path / "vq_ds8_c2i.pt")
    with pytest.raises(CheckpointError, match="no LlamaGen tokenizer file"):
        load_vq(tmp_path)
    assert not target.exists()


@pytest.mark.parametrize(
    "content",
    [
        {"state": {}},
        [1],
        torch.zeros(2),
        {"model": {"quant_conv.bias": 3}},
    ],
    ids=["no-model", "list", "tensor", "number"],
)
def test_a_pickle_without_a_model_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "vq_ds8_c2i.pt")
    with pytest.raises(CheckpointError, match="no LlamaGen tokenizer file"):
        load_vq(tmp_path)


@pytest.mark.parametrize("data", [b"", b"not a pickle", b"PK\x03\x04broken"])
def test_a_file_that_is_no_pickle_is_refused(tmp_path, data):
    (tmp_path / "vq_ds8_c2i.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match="no LlamaGen tokenizer file"):
        load_vq(tmp_path)


def test_weights_are_streamed(checkpoint_folder, monkeypatch):
    """Cast to another dtype, a stored tensor is gone before the next but one is read."""
    alive, most = weakref.WeakSet(), []
    read = pure.checkpoint._tensors

    def tracked(path):
        for name, tensor in read(path):
            alive.add(tensor)
            most.append(len(alive))
            yield name, tensor
            del tensor

    monkeypatch.setattr(pure.checkpoint, "_tensors", tracked)
    monkeypatch.setattr(pure.checkpoint, "load_vq", lambda *_, **__: fake_vq)
    fake_vq = load_vq(checkpoint_folder)
    most.clear()
    alive.clear()
    load(checkpoint_folder, dtype=torch.float32)
    assert len(most) == 29
    assert max(most) <= 2


def test_loading_builds_the_vocabulary_once_and_by_name(checkpoint, names):
    assert checkpoint.grammar.vocab == Vocab.from_names(names, len(names))
