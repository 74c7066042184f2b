import warnings

import numpy as np
import pytest
from scipy import special, stats

from evaluation import niqe as module
from evaluation.niqe import niqe


def photo_like(seed=0, side=(200, 230)):
    """Grey noise with the spectrum of photographs, 1 / f."""
    rng = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(side[0])[:, None], np.fft.rfftfreq(side[1])
    spectrum = np.fft.rfft2(rng.normal(size=side)) / np.maximum(np.hypot(fy, fx), 1 / max(side))
    image = np.fft.irfft2(spectrum, side)
    return (image - image.mean()) / image.std() * 40 + 128


def naive(luma):
    """The published algorithm with plain loops, from its description."""
    image = np.rint(luma)[: luma.shape[0] // 96 * 96, : luma.shape[1] // 96 * 96]
    scales = []
    for side in (96, 48):
        padded = np.pad(image, 3, mode="edge")
        weights = [
            [np.exp(-(dy**2 + dx**2) / (2 * (7 / 6) ** 2)) for dx in range(-3, 4)]
            for dy in range(-3, 4)
        ]
        weights = np.array(weights) / np.sum(weights)
        normal = np.empty_like(image)
        for y in range(image.shape[0]):
            for x in range(image.shape[1]):
                around = padded[y : y + 7, x : x + 7]
                mean = (weights * around).sum()
                variance = (weights * around**2).sum() - mean**2
                normal[y, x] = (image[y, x] - mean) / (np.sqrt(abs(variance)) + 1)
        rows = []
        for top in range(0, image.shape[0], side):
            for left in range(0, image.shape[1], side):
                block = normal[top : top + side, left : left + side]
                shape, low, high = naive_fit(block)
                row = [shape, (low + high) / 2]
                for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
                    shifted = np.roll(np.roll(block, down, 0), right, 1)
                    shape, low, high = naive_fit(block * shifted)
                    ratio = special.gamma(2 / shape) / special.gamma(1 / shape)
                    row += [shape, (high - low) * ratio, low, high]
                rows.append(row)
        scales.append(np.array(rows))
        image = naive_half(image)
    features = np.hstack(scales)
    with np.load(module.PRISTINE) as model:
        d = model["mean"] - features.mean(0)
        spread = (model["covariance"] + np.cov(features.T)) / 2
    return np.sqrt(d @ np.linalg.pinv(spread) @ d)


def naive_fit(block):
    low = np.sqrt(np.mean([v * v for v in block.ravel() if v < 0]))
    high = np.sqrt(np.mean([v * v for v in block.ravel() if v > 0]))
    g = low / high
    r = np.abs(block).mean() ** 2 / (block**2).mean()
    wanted = r * (g**3 + 1) * (g + 1) / (g**2 + 1) ** 2
    shapes = np.arange(0.2, 10.001, 0.001)
    ratio = special.gamma(2 / shapes) ** 2 / special.gamma(1 / shapes) / special.gamma(3 / shapes)
    shape = shapes[np.abs(ratio - wanted).argmin()]
    scale = np.sqrt(special.gamma(1 / shape) / special.gamma(3 / shape))
    return shape, low * scale, high * scale


def naive_half(image):
    """Antialiased bicubic by its definition: a cubic of twice the width around each new centre."""

    def cubic(x):
        x = abs(x)
        if x <= 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    def rows(values):
        out = np.zeros((values.shape[0] // 2, values.shape[1]))
        for i in range(len(out)):
            centre = 2 * i + 0.5
            total = 0.0
            for j in range(2 * i - 4, 2 * i + 6):
                weight = cubic((j - centre) / 2)
                mirrored = -1 - j if j < 0 else j
                mirrored = 2 * len(values) - 1 - mirrored if mirrored >= len(values) else mirrored
                out[i] += weight * values[mirrored]
                total += weight
            out[i] /= total
        return out

    return rows(rows(image).T).T


def test_niqe_equals_its_plain_loops():
    luma = photo_like(side=(200, 230))  # four blocks, and a rest that is cut off
    # ours keeps the window and the smaller picture in float32
    assert niqe(luma) == pytest.approx(naive(luma), rel=2e-3)


def test_halving_equals_its_definition():
    image = photo_like(1, (24, 40))
    np.testing.assert_allclose(module._halved(image), naive_half(image), rtol=1e-5)


def test_halving_keeps_a_straight_line_straight():
    ramp = np.tile(np.arange(40.0), (40, 1))
    np.testing.assert_allclose(
        module._halved(ramp)[:, 3:-3], np.tile(np.arange(20) * 2 + 0.5, (20, 1))[:, 3:-3], rtol=1e-5
    )


@pytest.mark.parametrize("shape", [0.7, 1.0, 2.0, 4.0])
def test_the_fit_finds_the_distribution_it_was_drawn_from(shape):
    """100,000 draws: shape within 3 %, scales within 2 % (their errors are about a third)."""
    values = stats.gennorm.rvs(shape, scale=1.5, size=100_000, random_state=3)
    values = np.where(values > 0, 2 * values, values)  # twice as wide above
    keep = np.random.default_rng(4).random(values.size) < np.where(values > 0, 1, 0.5)
    found, lower, upper = module._fit(values[keep])  # a density that is continuous at zero
    assert found == pytest.approx(shape, rel=0.03)
    assert (lower, upper) == (pytest.approx(1.5, rel=0.04), pytest.approx(3.0, rel=0.04))


def test_noise_and_blur_make_it_worse():
    clean = photo_like(2, (288, 288))
    noise = clean + np.random.default_rng(5).normal(0, 30, clean.shape)
    kernel = np.hanning(15)[1:-1] / np.hanning(15).sum()
    blurred = np.apply_along_axis(np.convolve, 0, clean, kernel, mode="same")
    assert niqe(clean) < niqe(noise)
    assert niqe(clean) < niqe(blurred)


def test_the_range_of_luma_matters_so_it_is_not_taken_in_0_to_1():
    luma = photo_like(3, (192, 192))
    assert niqe(luma / 255) != pytest.approx(niqe(luma), rel=0.1)


def test_flat_blocks_do_not_stop_it():
    luma = photo_like(4, (288, 288))
    luma[:96] = 200
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert 0 < niqe(luma) < 200


def test_one_block_is_enough():
    assert niqe(photo_like(5, (96, 100))) > 0


def test_the_pristine_model_is_a_mean_and_a_covariance():
    with np.load(module.PRISTINE) as model:
        assert model["mean"].shape == (36,)
        covariance = model["covariance"]
    np.testing.assert_allclose(covariance, covariance.T)
    assert np.linalg.eigvalsh(covariance).min() > -1e-10
