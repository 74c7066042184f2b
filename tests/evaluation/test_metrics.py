import math

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation import metrics
from evaluation.metrics import MetricError, WeightsFile, consistency, luma, niqe, psnr_y, ssim_y


def noisy(seed=0, size=(48, 40), spread=40):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    smooth = np.stack([x * 3, y * 4, 255 - x * 2], -1)
    return np.clip(smooth + rng.normal(0, spread, smooth.shape), 0, 255).astype(np.uint8)


@pytest.fixture
def pair():
    gt = noisy(1)
    rng = np.random.default_rng(2)
    sr = np.clip(gt + rng.normal(0, 12, gt.shape), 0, 255).astype(np.uint8)
    return Image.fromarray(sr), Image.fromarray(gt)


def flat(*rgb, size=(16, 16)):
    return Image.new("RGB", size, rgb)


@pytest.mark.parametrize(
    ("rgb", "value"),
    [((0, 0, 0), 16), ((255, 255, 255), 235), ((255, 0, 0), 81.481), ((0, 255, 0), 144.553)],
)
def test_luma_is_bt601_in_studio_range(rgb, value):
    """By the definition: 16 + 65.481 R + 128.553 G + 24.966 B."""
    np.testing.assert_allclose(luma(flat(*rgb)), value, atol=1e-9)


def test_psnr_of_a_uniform_shift_is_its_closed_form():
    # 10 grey levels are 10 · 219 / 255 levels of luma
    expected = -20 * math.log10(10 * 219 / 255 / 255)
    assert psnr_y(flat(110, 110, 110), flat(100, 100, 100)) == pytest.approx(expected, abs=1e-4)


def test_psnr_equals_its_double_loop(pair):
    sr, gt = pair
    total = 0.0
    for y in range(gt.height):
        for x in range(gt.width):
            values = []
            for image in (sr, gt):
                r, g, b = image.getpixel((x, y))
                values.append((65.481 * r + 128.553 * g + 24.966 * b) / 255 + 16)
            total += (values[0] - values[1]) ** 2
    mse = total / (gt.width * gt.height)
    assert psnr_y(sr, gt) == pytest.approx(10 * math.log10(255**2 / mse), abs=1e-4)


def test_identical_pictures_have_the_80_db_that_papers_print(pair):
    assert psnr_y(pair[0], pair[0]) == pytest.approx(80)


def test_ssim_of_identical_pictures_is_one(pair):
    assert ssim_y(pair[0], pair[0]) == pytest.approx(1)


def test_ssim_of_flat_pictures_is_the_lightness_term():
    a, b = np.rint(luma(flat(50, 50, 50)))[0, 0], np.rint(luma(flat(200, 200, 200)))[0, 0]
    expected = (2 * a * b + 6.5025) / (a * a + b * b + 6.5025)
    assert ssim_y(flat(50, 50, 50), flat(200, 200, 200)) == pytest.approx(expected)


def test_ssim_equals_its_double_loop(pair):
    sr, gt = (np.rint(luma(image)) for image in pair)
    steps = np.arange(-5, 6)
    window = np.exp(-(steps[:, None] ** 2 + steps[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for top in range(gt.shape[0] - 10):
        for left in range(gt.shape[1] - 10):
            x, y = sr[top : top + 11, left : left + 11], gt[top : top + 11, left : left + 11]
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
            cov = (window * (x - mx) * (y - my)).sum()
            lightness = (2 * mx * my + 6.5025) / (mx**2 + my**2 + 6.5025)
            values.append(lightness * max(0, (2 * cov + 58.5225) / (vx + vy + 58.5225)))
    assert ssim_y(*pair) == pytest.approx(np.mean(values), abs=1e-10)


def test_inverted_structure_counts_as_none():
    image = noisy(3, spread=60)
    assert ssim_y(Image.fromarray(image), Image.fromarray(255 - image)) < 0.05
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[::2] = 200
    assert ssim_y(Image.fromarray(stripes), Image.fromarray(200 - stripes)) == 0


@pytest.mark.parametrize("measure", [psnr_y, ssim_y])
def test_pictures_of_two_sizes_are_refused(measure):
    with pytest.raises(MetricError, match="16 × 16 and 17 × 16"):
        measure(flat(0, 0, 0), flat(0, 0, 0, size=(17, 16)))


def test_too_small_a_picture_is_refused_with_its_size():
    with pytest.raises(MetricError, match="at least 11 × 11 pixels, got 10 × 40"):
        ssim_y(flat(0, 0, 0, size=(10, 40)), flat(0, 0, 0, size=(10, 40)))
    with pytest.raises(MetricError, match="at least 96 × 96 pixels, got 95 × 200"):
        niqe(flat(0, 0, 0, size=(95, 200)))


def test_an_output_that_shrinks_to_its_input_is_consistent():
    lq = flat(120, 60, 30)
    assert consistency(lq.resize((64, 64)), lq) == pytest.approx(80)


def test_consistency_sees_what_was_not_in_the_input():
    lq = Image.fromarray(noisy(4, size=(24, 24), spread=10))
    sr = lq.resize((96, 96), Image.Resampling.BICUBIC)
    brighter = sr.point(lambda v: min(255, v + 20))
    assert consistency(sr, lq) > consistency(brighter, lq) + 5


def test_every_metric_has_a_name_a_direction_and_a_state():
    table = metrics.table()
    assert list(table)[:10] == [
        *("psnr_y", "ssim_y", "lpips", "dists", "fid"),
        *("niqe", "musiq", "maniqa", "clipiqa", "topiq"),
    ]
    for name, metric in table.items():
        assert metric.name == name
        assert metric.arrow in "↑↓"
        assert metric.variant
        assert metric.range


def test_the_three_own_metrics_are_always_ready():
    for name in ("psnr_y", "ssim_y", "niqe", "consistency"):
        assert metrics.table()[name].missing() is None


def test_a_proxy_never_has_the_name_or_the_column_of_the_real_one():
    for metric in metrics.table().values():
        if metric.proxy:
            assert "proxy" in metric.name
            assert "proxy" in metric.title
            assert metric.paper is None


def test_what_is_missing_is_said_with_folder_and_address(tmp_path):
    from dataclasses import replace

    file = WeightsFile(tmp_path / "weights.pth", "https://example.org/weights.pth")
    metric = replace(metrics.table()["niqe"], files=(file,), packages=("no_such_package",))
    assert metric.missing() == (
        "needs the package no_such_package: pip install -r requirements-metrics.txt; "
        f"needs weights.pth in {tmp_path}, from https://example.org/weights.pth"
    )
    with pytest.raises(MetricError, match=r"needs weights\.pth"):
        metrics.measure(metric)
    file.path.touch()
    assert replace(metric, packages=()).missing() is None


def test_the_doctor_names_every_file_of_the_papers_metrics():
    said = metrics.doctor()
    for metric in metrics.table().values():
        assert metric.name in said
    for file in (
        "alexnet-owt-7be5be79.pth",
        "vgg16-397923af.pth",
        "pt_inception-2015-12-05-6726825d.pth",
        "musiq_koniq_ckpt-e95806b9.pth",
        "ckpt_koniq10k.pt",
        "cfanet_nr_koniq_res50-9a73138b.pth",
        "RN50.pt",
    ):
        assert (file in said) or (metrics._torch_hub() / file).exists()


def test_a_metric_that_fails_to_load_says_why():
    from dataclasses import replace

    def broken(device):
        raise OSError("the file is cut short")

    metric = replace(metrics.table()["niqe"], make=broken)
    with pytest.raises(MetricError, match="NIQE failed to load: OSError: the file is cut short"):
        metrics.measure(metric)


def test_the_squeezenet_proxy_is_zero_for_equals_and_grows_with_damage(tmp_path, monkeypatch):
    """With random weights: the form of the distance, not what it has learned."""
    from safetensors.torch import save_file
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    features = tmp_path / "features.safetensors"
    save_file(squeezenet1_1().features.state_dict(), features)
    monkeypatch.setattr(metrics, "FEATURES", features)
    measure = metrics._squeezenet("cpu")
    gt = Image.fromarray(noisy(5, size=(64, 64), spread=5))
    little, much = (Image.fromarray(noisy(6, size=(64, 64), spread=s)) for s in (10, 80))
    assert measure(gt, gt) == 0
    assert 0 < measure(little, gt) < measure(much, gt) < 2
