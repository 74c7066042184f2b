"""The network of Real-ESRGAN, and its weights from the two forms they are published in.

RRDBNet (Wang et al., ESRGAN, ECCV Workshops 2018) written anew from its description. Knows the .pth
of the Real-ESRGAN releases and the .param/.bin pair of their ncnn export; does not know where
either is kept.
"""

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 64
GROWTH = 32  # channels each convolution of a dense block adds
RESIDUAL = 0.2  # share of a block's output that is added to its input
SLOPE = 0.2  # of every leaky ReLU

# First word of a layer's weights in a .bin: what follows is float16, or else float32.
FLOAT16_TAG, FLOAT32_TAG = 0x01306B47, 0


class WeightsError(ValueError):
    """A file of weights that is not what it should be; the message says how."""


class DenseBlock(nn.Module):
    """Five convolutions, each seeing all before it; a fifth of the last is added to the input."""

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        for i in range(1, 6):
            out = GROWTH if i < 5 else channels
            layer = nn.Conv2d(channels + (i - 1) * GROWTH, out, 3, padding=1)
            self.add_module(f"conv{i}", layer)

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        for i in range(1, 5):
            new = F.leaky_relu(self.get_submodule(f"conv{i}")(seen), SLOPE)
            seen = torch.cat([seen, new], dim=1)
        return x + RESIDUAL * self.get_submodule("conv5")(seen)


class RRDB(nn.Module):
    """Three dense blocks; a fifth of what they make is added to the input."""

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (DenseBlock(channels) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + RESIDUAL * self.rdb3(self.rdb2(self.rdb1(x)))


class RRDBNet(nn.Module):
    """Four times larger, (B, 3, H, W) to (B, 3, 4H, 4W), RGB in [0, 1], not clamped."""

    def __init__(self, blocks: int = 23) -> None:
        super().__init__()
        self.conv_first = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.body = nn.Sequential(*(RRDB() for _ in range(blocks)))
        self.conv_body = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.conv_up1 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.conv_up2 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.conv_hr = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.conv_last = nn.Conv2d(CHANNELS, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.conv_first(x)
        features = first + self.conv_body(self.body(first))
        for conv in (self.conv_up1, self.conv_up2):
            larger = F.interpolate(features, scale_factor=2, mode="nearest")
            features = F.leaky_relu(conv(larger), SLOPE)
        return self.conv_last(F.leaky_relu(self.conv_hr(features), SLOPE))


def from_state(state: dict[str, Tensor]) -> RRDBNet:
    """A network with these weights, in evaluation mode.

    Raises:
        WeightsError: they are not those of an RRDBNet that enlarges four times.
    """
    blocks = {key.split(".")[1] for key in state if key.startswith("body.")}
    with torch.device("meta"):
        network = RRDBNet(len(blocks))
    expected = {key: value.shape for key, value in network.state_dict().items()}
    if {key: value.shape for key, value in state.items()} != expected:
        raise WeightsError(
            f"{len(state)} tensors, not those of an RRDBNet of {len(blocks)} blocks that enlarges "
            "four times"
        )
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def read_pth(path: Path) -> dict[str, Tensor]:
    """The weights in a .pth of the Real-ESRGAN releases, averaged ones first, float32.

    Raises:
        WeightsError: it holds none.
    """
    content = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("params_ema", "params"):
        if key in content:
            return {name: value.float() for name, value in content[key].items()}
    raise WeightsError(f"{path.name} holds neither params_ema nor params")


def old_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of an RRDBNet under the names it was first published with, by today's."""
    names = {"trunk_conv": "conv_body", "upconv1": "conv_up1", "upconv2": "conv_up2"}
    names |= {"HRconv": "conv_hr"}
    renamed = {}
    for key, value in state.items():
        stem, _, end = key.rpartition(".")
        stem = stem.replace("RRDB_trunk.", "body.").replace(".RDB", ".rdb")
        renamed[f"{names.get(stem, stem)}.{end}"] = value
    return renamed


def read_ncnn(param: Path, binary: Path) -> dict[str, Tensor]:
    """The weights in an ncnn export of an RRDBNet, float32.

    The .param names layers in the order of the network, the .bin holds for each convolution a
    tag, the weights and float32 biases.

    Raises:
        WeightsError: the two files do not fit each other or are no RRDBNet.
    """
    shapes = list(_convolutions(param))
    names = _names((len(shapes) - 6) // 15)
    if len(shapes) != len(names):
        raise WeightsError(f"{param.name} has {len(shapes)} convolutions, unlike any RRDBNet")
    data = binary.read_bytes()
    state: dict[str, Tensor] = {}
    start = 0
    for name, (outputs, weights) in zip(names, shapes, strict=True):
        if start + 4 > len(data):
            raise WeightsError(f"{binary.name} ends before {name}")
        (tag,) = struct.unpack_from("<I", data, start)
        if tag not in (FLOAT16_TAG, FLOAT32_TAG):
            raise WeightsError(f"{binary.name} stores {name} in a form that is not read: {tag:#x}")
        kind = np.dtype("<f2" if tag == FLOAT16_TAG else "<f4")
        start += 4
        end = start + weights * kind.itemsize
        ended = -(-end // 4) * 4 + 4 * outputs  # weights fill whole words, biases follow
        if ended > len(data):
            raise WeightsError(f"{binary.name} ends within {name}")
        values = np.frombuffer(data[start:end], kind).astype(np.float32)
        biases = np.frombuffer(data[ended - 4 * outputs : ended], "<f4").copy()
        state[f"{name}.weight"] = torch.from_numpy(values).view(outputs, -1, 3, 3)
        state[f"{name}.bias"] = torch.from_numpy(biases)
        start = ended
    if start != len(data):
        raise WeightsError(f"{binary.name} has {len(data) - start} bytes too many")
    return state


def _convolutions(param: Path) -> Iterator[tuple[int, int]]:
    """Outputs and number of weights of every convolution of a .param, in order."""
    for line in param.read_text(encoding="ascii").splitlines():
        words = line.split()
        if words and words[0] == "Convolution":
            options = dict(word.split("=") for word in words if "=" in word)
            yield int(options["0"]), int(options["6"])


def _names(blocks: int) -> list[str]:
    """Names of the convolutions in the order they run."""
    body = [
        f"body.{i}.rdb{j}.conv{k}" for i in range(blocks) for j in range(1, 4) for k in range(1, 6)
    ]
    ends = ["conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"]
    return ["conv_first", *body, *ends]
