"""The degradation estimator of MM-RealSR: how blurred and how noisy a picture is, learned.

The paper's labels come from it. The network is here, its weights are not: they are in the
releases of MM-RealSR, `MMRealSRGAN.pth`, and the user gives them. Scores lie in 0 to 1 and are
relative: learned from rankings of one photo degraded more and less. Its noise counts JPEG, too.
Source: Mou et al., ECCV 2022; sizes and key names as released.

Where small ends and large begins is not published, nor whether the picture is scored before or
after its enlargement; both are settings here, kept with the data set.
"""

import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from imaging.degrade import DegradationScores, Thresholds
from pure.data import Pair

THRESHOLDS = Thresholds(blur=(1 / 3, 2 / 3), noise=(1 / 3, 2 / 3))  # thirds of the range: ours
DEGRADATIONS = ("blur", "noise")  # the order of the released branches
STAGES = ((64, 2, 1), (64, 2, 1), (64, 2, 2), (128, 2, 1))  # width in, blocks, stride after them
PREFIX = "de_net."


class EstimatorError(RuntimeError):
    """The weights of the estimator cannot be used; the message says why."""


class ResidualBlock(nn.Module):
    """3×3, ReLU, 3×3, plus the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(torch.relu(self.conv1(x)))


class DegradationEstimator(nn.Module):
    """Two small residual networks, one for blur and one for noise, that share nothing."""

    def __init__(self) -> None:
        super().__init__()
        widths = [width for width, _, _ in STAGES]
        self.conv_first = nn.ModuleList(nn.Conv2d(3, widths[0], 3, padding=1) for _ in DEGRADATIONS)
        self.body = nn.ModuleList()
        for _ in DEGRADATIONS:
            layers: list[nn.Module] = []
            for (width, blocks, stride), (wider, _, _) in pairwise([*STAGES, STAGES[-1]]):
                layers += [ResidualBlock(width) for _ in range(blocks)]
                if stride > 1:
                    layers.append(nn.Conv2d(width, wider, 3, stride=stride, padding=1))
            self.body.append(nn.Sequential(*layers))
        self.fc_degree = nn.ModuleList(
            nn.Sequential(nn.Linear(widths[-1], 512), nn.ReLU(), nn.Linear(512, 1), nn.Sigmoid())
            for _ in DEGRADATIONS
        )

    def forward(self, x: Tensor) -> Tensor:
        """Blur and noise, (B, 2) in 0 to 1, of pictures (B, 3, H, W) in [0, 1], RGB."""
        scores = []
        for first, body, degree in zip(self.conv_first, self.body, self.fc_degree, strict=True):
            features = body(first(x)).mean((2, 3))  # (B, 128)
            scores.append(degree(features))
        return torch.cat(scores, dim=1)


def load_estimator(path: Path, *, device: torch.device | str = "cpu") -> DegradationEstimator:
    """The estimator from a released file: of the whole MM-RealSR model, or of it alone.

    Raises:
        EstimatorError: the file is missing, of another kind, or of another network.
    """
    state: dict[str, Any]  # a release nests its tensors under "params"
    try:
        if path.suffix == ".safetensors":
            state = dict(load_file(path))
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise EstimatorError(f"{path} cannot be read as weights: {error}") from error
    for key in ("params_ema", "params"):
        state = state.get(key, state)
    if any(name.startswith(PREFIX) for name in state):
        state = {n.removeprefix(PREFIX): t for n, t in state.items() if n.startswith(PREFIX)}
    with torch.device("meta"):
        model = DegradationEstimator()
    expected = model.state_dict()
    missing = sorted(expected.keys() - state.keys())
    unknown = sorted(state.keys() - expected.keys())
    wrong = [n for n in expected.keys() & state.keys() if state[n].shape != expected[n].shape]
    if missing or unknown or wrong:
        raise EstimatorError(
            f"{path} is not MM-RealSR's degradation estimator: missing {missing[:3]}, "
            f"unknown {unknown[:3]}, wrong shape {wrong[:3]}"
        )
    model.load_state_dict({n: t.to(device, torch.float32) for n, t in state.items()}, assign=True)
    return model.eval().requires_grad_(False)


class EstimatedLabels:
    """Labels by the estimator.

    Args:
        estimator: with its weights.
        thresholds: in its scores.
        enlarged: score the picture after its enlargement instead of before.
    """

    def __init__(
        self,
        estimator: DegradationEstimator,
        thresholds: Thresholds = THRESHOLDS,
        *,
        enlarged: bool = False,
    ) -> None:
        self.estimator, self.thresholds, self.enlarged = estimator, thresholds, enlarged
        self.source = f"MM-RealSR's estimator, {'after' if enlarged else 'before'} enlargement"

    def scores(self, pair: Pair) -> DegradationScores:
        pixels = pair.lq if self.enlarged else pair.small
        x = torch.tensor(pixels).movedim(-1, 0)[None].float() / 255
        device = next(self.estimator.parameters()).device
        with torch.inference_mode():
            blur, noise = self.estimator(x.to(device))[0].tolist()
        return DegradationScores(blur, noise)
