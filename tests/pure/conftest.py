"""A few photographs, a tokenizer and tokenised sequences, small enough to train on in tests."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import save_file

from pure.pretokenise import Material, Pretokenisation, Pretokeniser, nano_material, write_card
from pure.vq import CONFIGS
from tools.tiny_checkpoint import random_vq

NATIVE = 32  # pixels: grids of 4 × 4 codes
SHARDS, SHARD = 4, 6


@pytest.fixture(scope="session")
def photos_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four photos in the layout of `tools.photos`: three to train on, one held out."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    records = []
    for i, split in enumerate(("train", "train", "train", "held_out")):
        small = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
        Image.fromarray(small).resize((140, 132)).save(folder / f"{i}.png")
        record = {"id": str(i), "file": f"{i}.png", "split": split, "kind": "lake"}
        record |= {"words": ["lake"], "plain_background": False, "width": 140, "height": 132}
        records.append(record)
    (folder / "index.json").write_text(json.dumps(records))
    return folder


@pytest.fixture(scope="session")
def vq_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of 16 codes and 8 pixels a cell."""
    folder = tmp_path_factory.mktemp("vq")
    metadata = {"config": json.dumps(asdict(CONFIGS["tiny"]))}
    save_file(random_vq(CONFIGS["tiny"], 2), folder / "vq.safetensors", metadata=metadata)
    return folder


@pytest.fixture(scope="session")
def material(photos_folder: Path, vq_folder: Path) -> Material:
    """PURE-nano's training material, of those."""
    return nano_material(Pretokenisation(native=NATIVE), photos_folder, vq_folder)


@pytest.fixture(scope="session")
def sequences_folder(
    material: Material, photos_folder: Path, vq_folder: Path, tmp_path_factory
) -> Path:
    """What `pure.train` reads: names.json, train and held_out. Read only."""
    folder = tmp_path_factory.mktemp("sequences")
    (folder / "names.json").write_text(json.dumps(dict(material.tokenizers.names)))
    for split, shards in (("train", SHARDS), ("held_out", 1)):
        settings = Pretokenisation(split=split, native=NATIVE, shard=SHARD)  # type: ignore[arg-type]
        (folder / split).mkdir()
        some = material if split == "train" else nano_material(settings, photos_folder, vq_folder)
        maker = Pretokeniser(settings, some)
        with torch.random.fork_rng():
            for shard in range(shards):
                maker.write(folder / split, shard)
        write_card(folder / split, shards)
    return folder


@pytest.fixture
def fresh_accelerate():
    """Let a test train in a precision of its own: accelerate keeps one for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
