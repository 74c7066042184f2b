"""Averaging checkpoints."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from tools.average import average


@pytest.fixture
def two(tmp_path):
    weights = {"a": torch.tensor([0.0, 1.0]), "b": torch.tensor([[4.0]], dtype=torch.bfloat16)}
    for name, factor in (("first", 1), ("second", 3)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
        save_file(
            {k: v * factor for k, v in weights.items()},
            tmp_path / name / "model.safetensors",
            metadata={"of": name},
        )
    return tmp_path


@pytest.mark.parametrize(("share", "factor"), [(0, 1), (0.25, 1.5), (1, 3)])
def test_a_share_lies_between_the_two(two, share, factor):
    average(two / "first", two / "second", share, two / "out")
    mean = load_file(two / "out" / "model.safetensors")
    assert torch.equal(mean["a"], torch.tensor([0.0, factor]))
    assert torch.equal(mean["b"], torch.tensor([[4.0 * factor]], dtype=torch.bfloat16))
    assert (two / "out" / "config.json").read_text() == "second"


def test_what_cannot_be_averaged_is_refused(two):
    with pytest.raises(ValueError, match="0 to 1"):
        average(two / "first", two / "second", 1.5, two / "out")
    save_file({"a": torch.zeros(3)}, two / "first" / "model.safetensors")
    with pytest.raises(ValueError, match="not the same tensors"):
        average(two / "first", two / "second", 0.5, two / "out")
    assert not (two / "out").exists()
