"""The diffusion methods with tiny random weights, loaded once; and photos by formula."""

import numpy as np
import pytest
from PIL import Image

from baselines import diffbir, osediff, pasd, seesr, stablesr


@pytest.fixture(scope="session")
def one_step(weights):
    return osediff.load("cpu", weights=weights)


@pytest.fixture(scope="session")
def many_steps(weights):
    return seesr.load("cpu", weights=weights)


@pytest.fixture(scope="session")
def pixel_aware(weights):
    return pasd.load("cpu", weights=weights)


@pytest.fixture(scope="session")
def structured(weights):
    return stablesr.load("cpu", weights=weights)


@pytest.fixture(scope="session")
def controlled(weights):
    return diffbir.load("cpu", weights=weights)


def wave(width, height):
    """Smooth colours with a texture on them, the same everywhere."""
    y, x = np.mgrid[0:height, 0:width] / 32
    texture = 0.2 * np.sin(9 * x + 4 * y)
    channels = [x + texture, y - texture, (x + y) / 2]
    waves = [0.5 + 0.4 * np.sin(2 * channel) for channel in channels]
    return Image.fromarray((np.stack(waves, axis=-1) * 255).astype(np.uint8))


@pytest.fixture(scope="session")
def draw_wave():
    return wave


@pytest.fixture(scope="session")
def lq():
    return wave(40, 32)
