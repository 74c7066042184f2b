import csv
import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file, save_file

from pure import nano
from pure.checkpoint import load
from pure.model import Transformer, TransformerConfig
from pure.sampling import SamplingConfig
from pure.vq import CONFIGS, VQModel
from tools import ship_nano

OWN = SamplingConfig(guidance_scale=2.5, k_max=100)


@pytest.fixture
def run(tmp_path):
    """A run's folder, and the tokenizer file it was trained with."""
    names = nano.token_names(["lake"], codes=16)
    config = TransformerConfig(len(names), 16, 16, 1, 2, 2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer, vq = Transformer(config), VQModel(CONFIGS["tiny"])
    nano.write_checkpoint(
        tmp_path / "run" / "checkpoint",
        names=names,
        config=config,
        transformer=transformer.state_dict(),
        vq_config=CONFIGS["tiny"],
        vq={k: v.half() for k, v in vq.state_dict().items()},
        native_pixels=32,
        notes={"step": 7},
    )
    return tmp_path / "run"


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    record = {"id": "lake", "split": "train", "author": "A. Person", "licence": "CC0-1.0"}
    record |= {"package": "p", "version": "1", "source_path": "lake.jpg", "sha256": "ab"}
    (folder / "index.json").write_text(json.dumps([record]))
    return folder


def retouched(run, tmp_path, prefix):
    """The run's tokenizer with one part changed."""
    state = load_file(run / "checkpoint" / "vq.safetensors")
    state = {k: v + 1 if k.startswith(prefix) else v for k, v in state.items()}
    path = tmp_path / "vq.safetensors"
    config = json.dumps(asdict(CONFIGS["tiny"]))
    save_file({k: v.float() for k, v in state.items()}, path, metadata={"config": config})
    return path


def test_an_improved_decoder_is_shipped(run, photos, tmp_path):
    vq = retouched(run, tmp_path, "decoder.conv_out")
    ship_nano.ship(run, vq, photos, tmp_path / "out", OWN)
    checkpoint = load(tmp_path / "out")
    assert (checkpoint.photos, checkpoint.sampling) == (1, OWN)
    shipped = checkpoint.vq.state_dict()
    assert torch.equal(shipped["decoder.conv_out.bias"], load_file(vq)["decoder.conv_out.bias"])
    [credit] = csv.DictReader((tmp_path / "out" / "photos.csv").open())
    assert (credit["author"], credit["licence"]) == ("A. Person", "CC0-1.0")


@pytest.mark.parametrize("part", ["encoder.conv_in", "quantize.embedding"])
def test_a_tokenizer_with_other_codes_is_refused(run, photos, tmp_path, part):
    vq = retouched(run, tmp_path, part)
    with pytest.raises(ValueError, match="codes pictures differently"):
        ship_nano.ship(run, vq, photos, tmp_path / "out", OWN)


def test_weights_too_large_to_ship_are_refused(run, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(ship_nano, "MOST_BYTES", 1000)
    vq = retouched(run, tmp_path, "decoder.conv_out")
    with pytest.raises(ValueError, match="MB"):
        ship_nano.ship(run, vq, photos, tmp_path / "out", OWN)
