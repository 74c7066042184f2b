import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from imaging.degrade import Thresholds
from pure.data import Crop, Photo, label, make_pair
from pure.dem import DegradationEstimator, EstimatedLabels, EstimatorError, load_estimator


@pytest.fixture(scope="module")
def state():
    """Released names, random weights."""
    g = torch.Generator().manual_seed(0)
    shapes = DegradationEstimator().state_dict()
    return {
        key: torch.randn(value.shape, generator=g) * value[0].numel() ** -0.5
        for key, value in shapes.items()
    }


@pytest.fixture(scope="module")
def estimator(state):
    model = DegradationEstimator()
    model.load_state_dict(state)
    return model.eval()


@pytest.fixture
def pair():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return make_pair(Crop(Photo("a", "", (), False, pixels), pixels), 3, "realesrgan")


def test_it_has_the_released_tensors(state):
    """Counts and names as in the released file."""
    assert len(state) == 80
    assert sum(value.numel() for value in state.values()) == 2_351_362
    assert state["body.1.6.weight"].shape == (128, 64, 3, 3)
    assert state["body.0.5.conv2.weight"].shape == (64, 64, 3, 3)
    assert state["body.0.8.conv1.weight"].shape == (128, 128, 3, 3)
    assert state["fc_degree.1.2.weight"].shape == (1, 512)


def test_scores_are_those_of_the_layers_written_out(state, estimator):
    x = torch.rand(2, 3, 20, 28, generator=torch.Generator().manual_seed(1))
    expected = []
    for d in (0, 1):

        def conv(h, name, stride=1):
            return F.conv2d(h, state[f"{name}.weight"], state[f"{name}.bias"], stride, 1)

        h = conv(x, f"conv_first.{d}")
        for i in (0, 1, 2, 3, 4, 5, 6, 7, 8):
            if i == 6:
                h = conv(h, f"body.{d}.6", stride=2)
            else:
                h = h + conv(F.relu(conv(h, f"body.{d}.{i}.conv1")), f"body.{d}.{i}.conv2")
        h = h.mean((2, 3))
        for i in (0, 2):
            layer = f"fc_degree.{d}.{i}"
            h = F.linear(h, state[f"{layer}.weight"], state[f"{layer}.bias"])
            h = F.relu(h) if i == 0 else torch.sigmoid(h)
        expected.append(h[:, 0])
    with torch.no_grad():
        scores = estimator(x)
    torch.testing.assert_close(scores, torch.stack(expected, dim=1))
    assert ((scores > 0) & (scores < 1)).all()


@pytest.mark.parametrize("kind", ["whole model", "alone", "safetensors"])
def test_released_files_load(state, estimator, tmp_path, kind):
    path = tmp_path / "weights.pth"
    if kind == "whole model":
        whole = {f"de_net.{key}": value for key, value in state.items()}
        torch.save({"params": whole | {"conv_first.weight": torch.zeros(1)}}, path)
    elif kind == "alone":
        torch.save(state, path)
    else:
        path = path.with_suffix(".safetensors")
        save_file(state, path)
    loaded = load_estimator(path)
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loaded(x), estimator(x))  # kernels depend on memory alignment
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, state[key])


def test_files_of_something_else_are_named(state, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"params": {"de_net.conv_first.0.weight": torch.zeros(64, 3, 3, 3)}}, path)
    with pytest.raises(EstimatorError, match="missing"):
        load_estimator(path)
    torch.save(state | {"conv_first.0.bias": torch.zeros(3)}, path)
    with pytest.raises(EstimatorError, match=r"wrong shape \['conv_first\.0\.bias'\]"):
        load_estimator(path)
    path.write_text("no weights")
    with pytest.raises(EstimatorError, match="cannot be read"):
        load_estimator(path)
    with pytest.raises(EstimatorError, match="cannot be read"):
        load_estimator(tmp_path / "missing.pth")


@pytest.mark.parametrize("enlarged", [False, True])
def test_labels_score_the_degraded_picture(estimator, pair, enlarged):
    pixels = pair.lq if enlarged else pair.small
    x = torch.tensor(pixels / 255, dtype=torch.float32).permute(2, 0, 1)[None]
    with torch.no_grad():
        blur, noise = estimator(x)[0].tolist()
    labels = EstimatedLabels(estimator, enlarged=enlarged)
    scores = labels.scores(pair)
    assert (scores.blur, scores.noise) == pytest.approx((blur, noise), abs=1e-6)
    between = Thresholds((blur - 0.1, blur + 0.1), (noise + 0.1, noise + 0.2))
    chosen = EstimatedLabels(estimator, between, enlarged=enlarged)
    assert label(pair, chosen) == "Medium blur, small noise."
    assert ("after" in chosen.source) == enlarged
