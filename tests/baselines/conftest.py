"""Tiny random checkpoints of the diffusion methods, written once."""

import pytest

from baselines import osediff, tiny


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A weights folder with everything the methods need. Read only."""
    for package in osediff.METHOD.requires:
        pytest.importorskip(
            package, reason=f"{package} is not installed: requirements-baselines.txt"
        )
    folder = tmp_path_factory.mktemp("weights")
    for name in tiny.WRITERS:
        tiny.write(name, folder)
    return folder
