"""Pocket-sized models and pictures; random, seeded, shared by the whole session."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from pure.checkpoint import Checkpoint, load
from pure.engine import Engine
from pure.grammar import Grammar
from pure.model import Transformer, TransformerConfig
from pure.pipeline import PurePipeline
from pure.vocab import Vocab
from pure.vq import CONFIGS, VQModel
from tools.tiny_checkpoint import TinyFormat, random_state, random_vq, vocabulary, write

torch.set_num_threads(1)  # tiny matrices: more threads only wait for each other
settings.register_profile("pure", deadline=None, derandomize=True)
settings.load_profile("pure")

SMALL = TinyFormat(small_vocab=True, native_pixels=32, text_limit=16)


@pytest.fixture(scope="session")
def names() -> dict[str, int]:
    """Name to id of a vocabulary of 64 codes."""
    return vocabulary(small=True)


@pytest.fixture(scope="session")
def vocab(names: dict[str, int]) -> Vocab:
    return Vocab.from_names(names, len(names))


@pytest.fixture(scope="session")
def grammar(vocab: Vocab) -> Grammar:
    return Grammar(vocab)


@pytest.fixture(scope="session")
def transformer_config(vocab: Vocab) -> TransformerConfig:
    return SMALL.config(vocab.size)


@pytest.fixture(scope="session")
def transformer(transformer_config: TransformerConfig) -> Transformer:
    """Two layers, float32, in evaluation mode."""
    model = Transformer(transformer_config)
    state = random_state(transformer_config, seed=1)
    model.load_state_dict({key: value.float() for key, value in state.items()})
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def vq() -> VQModel:
    """A tokenizer of 16 codes and 8 pixels a cell."""
    model = VQModel(CONFIGS["tiny"])
    model.load_state_dict(random_vq(CONFIGS["tiny"], seed=2))
    return model.eval().requires_grad_(False)


@pytest.fixture
def photo() -> Image.Image:
    """24 × 16: smooth colours with some noise."""
    y, x = np.mgrid[0:16, 0:24] / 24
    smooth = np.stack([x, y, (x + y) / 2], axis=-1)
    noise = np.random.default_rng(0).normal(0, 0.05, smooth.shape)
    return Image.fromarray(((smooth + noise).clip(0, 1) * 255).astype(np.uint8))


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The released format with few codes, restoring 32 pixels at a time. Read only."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    write(folder, form=SMALL)
    return folder


@pytest.fixture(scope="session")
def released_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The released format with all 73,728 tokens. Read only."""
    folder = tmp_path_factory.mktemp("checkpoint") / "released"
    write(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(checkpoint_folder: Path) -> Checkpoint:
    return load(checkpoint_folder)


@pytest.fixture(scope="session")
def engine(transformer: Transformer, vocab: Vocab) -> Engine:
    """The transformer above, ready to decode."""
    return Engine(transformer, vocab.code_ids)


@pytest.fixture
def pipeline(checkpoint: Checkpoint) -> PurePipeline:
    return PurePipeline(checkpoint)
