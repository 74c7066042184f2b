"""The environment as settings."""

from pathlib import Path

import pytest

from pure.checkpoint import RELEASED_ID
from ui import settings
from ui.settings import NANO_PIXELS, RELEASED_PIXELS, Settings, SettingsError


@pytest.fixture
def gpu(monkeypatch):
    def present(gib: float) -> None:
        monkeypatch.setattr(settings, "_device", lambda: "cuda" if gib else "cpu")
        monkeypatch.setattr(settings, "_gib", lambda: gib)

    return present


def test_without_a_gpu_it_is_nano_on_the_cpu(gpu):
    gpu(0)
    assert Settings.from_environment({}) == Settings("nano", "cpu", NANO_PIXELS)


def test_a_large_gpu_gets_the_released_weights(gpu):
    gpu(48)
    found = Settings.from_environment({})
    assert (found.checkpoint, found.device) == (RELEASED_ID, "cuda")
    assert found.max_pixels == RELEASED_PIXELS


def test_a_small_gpu_gets_nano(gpu):
    gpu(16)
    assert Settings.from_environment({}).checkpoint == "nano"


def test_choosing_the_cpu_means_nano_beside_a_large_gpu(gpu):
    gpu(48)
    assert Settings.from_environment({"PURE_DEVICE": "cpu"}).checkpoint == "nano"


def test_every_variable_arrives(gpu):
    gpu(0)
    given = {
        "PURE_CHECKPOINT": "some/model",
        "PURE_DEVICE": "cuda:1",
        "PURE_MAX_PIXELS": "1000",
        "PURE_QUEUE": "3",
        "PURE_MAX_FILE_MB": "5",
        "PURE_METHODS_GIB": "7",
        "PURE_RESULTS": "numbers",
        "WEIGHTS_DIR": "files",
        "PURE_OFFLOAD": "1",
        "PURE_AHEAD": "1",
    }
    assert Settings.from_environment(given) == Settings(
        "some/model", "cuda:1", 1000, 3, 5, 7, Path("numbers"), Path("files"), True, True
    )


def test_a_switch_that_is_neither_on_nor_off_is_named(gpu):
    gpu(0)
    with pytest.raises(SettingsError, match="PURE_OFFLOAD is 0 or 1, not 'yes'"):
        Settings.from_environment({"PURE_OFFLOAD": "yes"})


def test_compiling_ahead_on_a_cpu_is_refused(gpu):
    gpu(0)
    with pytest.raises(SettingsError, match="PURE_AHEAD=1 needs a GPU"):
        Settings.from_environment({"PURE_AHEAD": "1"})


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5"])
def test_a_number_that_is_none_is_named(gpu, text):
    gpu(0)
    with pytest.raises(SettingsError, match="PURE_QUEUE"):
        Settings.from_environment({"PURE_QUEUE": text})


def test_every_variable_is_in_the_docstring():
    for name in ("CHECKPOINT", "DEVICE", "MAX_PIXELS", "QUEUE", "MAX_FILE_MB"):
        assert f"`PURE_{name}`" in settings.__doc__
