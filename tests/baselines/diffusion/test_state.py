import pickle
import sys
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from baselines.base import MethodUnavailableError
from baselines.diffusion.state import (
    Inert,
    load_strict,
    read_json,
    read_pickle,
    read_safetensors,
    working_dtype,
)


def test_tensors_that_fit_are_loaded():
    module = nn.Linear(2, 3)
    load_strict(module, {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}, "a file")
    assert torch.equal(module(torch.ones(1, 2)), torch.full((1, 3), 2.0))


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ({"weight": torch.ones(3, 2)}, "1 missing: bias"),
        (
            {"weight": torch.ones(3, 2), "bias": torch.ones(3), "scale": torch.ones(1)},
            "1 left over: scale",
        ),
        (
            {"weight": torch.ones(2, 3), "bias": torch.ones(3)},
            r"1 of another shape: weight is \(2, 3\), expected \(3, 2\)",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(state, sentence):
    with pytest.raises(MethodUnavailableError, match=rf"tensors of a file do not fit: {sentence}"):
        load_strict(nn.Linear(2, 3), state, "a file")


def test_long_lists_are_counted():
    with pytest.raises(MethodUnavailableError, match=r"20 missing: 0.weight, .*, …"):
        load_strict(nn.Sequential(*[nn.Linear(1, 1) for _ in range(10)]), {}, "a file")


class Harmful:
    def __reduce__(self):
        return (print, ("run",))


def test_a_pickle_that_runs_something_is_refused(tmp_path, capsys):
    file = tmp_path / "bad.pkl"
    file.write_bytes(pickle.dumps({"weight": Harmful()}, protocol=2))
    with pytest.raises(MethodUnavailableError, match=r"bad.pkl cannot be read"):
        read_pickle(file)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("zipped", [True, False])
def test_both_forms_of_torch_save_are_read(tmp_path, zipped):
    file = tmp_path / "good.pkl"
    content = {"names": ["a"], "rank": 4, "state": {"x": torch.arange(3.0)}}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    found = read_pickle(file)
    assert found["names"] == ["a"]
    assert torch.equal(found["state"]["x"], torch.arange(3.0))


@pytest.mark.parametrize("read", [read_pickle, read_json, read_safetensors])
@pytest.mark.parametrize("content", [None, b"", b"[1, 2]"])
def test_damaged_and_absent_files_are_named(tmp_path, read, content):
    file = tmp_path / "weights"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(MethodUnavailableError, match="weights"):
        read(file)


def test_safetensors_are_read(tmp_path):
    save_file({"x": torch.ones(2)}, tmp_path / "x.safetensors")
    assert torch.equal(read_safetensors(tmp_path / "x.safetensors")["x"], torch.ones(2))


def test_a_cpu_works_in_float32_and_a_gpu_in_float16():
    assert working_dtype("cpu") is torch.float32
    assert working_dtype("cuda:1") is torch.float16


def test_a_class_named_in_a_file_may_be_stood_in_for(tmp_path, monkeypatch):
    """Lightning keys what a callback remembers by the callback's class."""
    module = ModuleType("training_framework")
    module.Callback = type("Callback", (), {"__module__": module.__name__})
    file = tmp_path / "last.ckpt"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        content = {"state_dict": {"x": torch.ones(1)}, "callbacks": {module.Callback: {"best": 1}}}
        torch.save(content, file)
    with pytest.raises(MethodUnavailableError, match="cannot be read"):
        read_pickle(file)
    found = read_pickle(file, inert=("training_framework.Callback",))
    assert found["callbacks"] == {Inert: {"best": 1}}
    assert torch.equal(found["state_dict"]["x"], torch.ones(1))
    with pytest.raises(MethodUnavailableError, match="cannot be read"):  # and only for that once
        read_pickle(file)
