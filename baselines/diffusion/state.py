"""Tensors from files into modules, strictly.

Every tensor a file holds is loaded or named by its caller as left out; one that is missing, left
over or of another shape is one error with a sentence. Knows files and modules, no method.
"""

import json
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from baselines.base import MethodUnavailableError

# Networks of diffusers, whose configurations and methods no `nn.Module` has; it is optional here.
Network: TypeAlias = Any

SHOWN = 4  # names an error lists before it only counts


def read_json(path: Path) -> dict[str, Any]:  # Any: what JSON holds
    """A configuration file.

    Raises:
        MethodUnavailableError: it is not there or not JSON.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MethodUnavailableError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise MethodUnavailableError(f"{path} holds {type(content).__name__}, expected settings")
    return content


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        MethodUnavailableError: it is not there or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise MethodUnavailableError(f"{path} cannot be read: {error}") from error


class Inert:
    """Stands for a class named in a file, whose code is neither needed nor run."""


def read_pickle(
    path: Path, *, inert: Iterable[str] = ()
) -> dict[str, Any]:  # Any: tensors, and numbers and names beside them
    """A file of `torch.save`, tensors on the CPU and read from the disk when they are used.

    Only tensors and plain values are unpickled; a file that holds anything else is refused.

    Args:
        path: of the file.
        inert: full names of classes it may mention; each becomes `Inert`.

    Raises:
        MethodUnavailableError: it is not there, damaged, or holds more than tensors.
    """
    try:
        # Old files are not archives and cannot be mapped.
        mapped = zipfile.is_zipfile(path)
        with torch.serialization.safe_globals([(Inert, name) for name in inert]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise MethodUnavailableError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise MethodUnavailableError(f"{path} holds {type(content).__name__}, expected tensors")
    return content


def load_strict(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Put `state` into `module`, cast to the module's dtypes; every key must fit.

    Args:
        module: changed in place.
        state: by the module's own names.
        what: the file or network, for the error.

    Raises:
        MethodUnavailableError: keys are missing, left over, or of another shape.
    """
    own = module.state_dict()
    misshaped = [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''}"
        for kind, names in (
            ("missing", [key for key in own if key not in state]),
            ("left over", [key for key in state if key not in own]),
            ("of another shape", misshaped),
        )
        if names
    ]
    if problems:
        raise MethodUnavailableError(f"The tensors of {what} do not fit: {'; '.join(problems)}.")
    module.load_state_dict(state)


def evaluation(module: nn.Module, device: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The module ready to run: on its device, without gradients and dropout."""
    # the plain `to`, because that of diffusers warns about a list that is empty here
    return nn.Module.to(module, device, dtype).eval().requires_grad_(False)


def working_dtype(device: str) -> torch.dtype:
    """float16 on a GPU, as the published code runs; float32 on a CPU, where it is faster."""
    return torch.float32 if torch.device(device).type == "cpu" else torch.float16
