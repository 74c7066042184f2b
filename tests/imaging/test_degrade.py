import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import integrate

from imaging import degrade as deg
from imaging.degrade import (
    KERNEL_PROBS,
    KERNEL_SIZES,
    PRESETS,
    DegradationParameters,
    DegradationScores,
    KernelSpec,
    NoiseSpec,
    StageParameters,
    blur_width,
    degrade,
    draw,
    kernel_array,
    levels,
    scores,
    synthesise,
    usm_sharpen,
)

ISO = KernelSpec("iso", 21, 2.0, 2.0, 0.0)
NO_NOISE = NoiseSpec("gaussian", 0.0, grey=False)
NOTHING = StageParameters(None, 1.0, "area", NO_NOISE, jpeg_quality=95)
IDENTITY = DegradationParameters("none", NOTHING, NOTHING, "jpeg_then_resize", "area", None, 0)


@pytest.fixture(scope="module")
def photo():
    """Smooth shading, edges and a fine texture, 96 x 128."""
    y, x = np.mgrid[:96, :128]
    red = 128 + 90 * np.sin(x / 9) * np.cos(y / 13)
    green = np.where((x // 16 + y // 16) % 2, 190, 70) + 15 * np.sin(x * 1.3)
    blue = (x + y) * 255 / 224
    return np.stack([red, green, blue], axis=-1).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def draws():
    rng = np.random.default_rng(20240601)
    return [draw("realesrgan", rng) for _ in range(3000)]


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2))


def vary(parameters, **stage_changes):
    """The identity, but for changes to the first stage."""
    return dataclasses.replace(
        parameters, first=dataclasses.replace(parameters.first, **stage_changes)
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_same_seed_gives_same_pixels_and_parameters(photo, preset):
    lq, parameters = synthesise(photo, preset, 7)
    again, parameters_again = synthesise(photo, preset, 7)
    assert parameters == parameters_again
    np.testing.assert_array_equal(lq, again)


def test_different_seeds_give_different_pixels(photo):
    assert not np.array_equal(*(synthesise(photo, "realesrgan", seed)[0] for seed in (1, 2)))


def test_noise_seed_alone_changes_pixels(photo):
    _, parameters = synthesise(photo, "realesrgan", 3)
    other = dataclasses.replace(parameters, noise_seed=parameters.noise_seed ^ 1)
    assert not np.array_equal(degrade(photo, parameters), degrade(photo, other))


def test_input_is_left_untouched(photo):
    before = photo.copy()
    synthesise(photo, "realesrgan", 0)
    usm_sharpen(photo)
    np.testing.assert_array_equal(photo, before)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(2, 16),
    columns=st.integers(2, 16),
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from((2, 4)),
    preset=st.sampled_from(sorted(PRESETS)),
)
def test_result_is_the_picture_divided_by_scale(rows, columns, seed, scale, preset):
    gt = np.random.default_rng(seed).integers(0, 256, (4 * rows, 4 * columns, 3), dtype=np.uint8)
    lq, _ = synthesise(gt, preset, seed, scale=scale)
    assert lq.shape == (4 * rows // scale, 4 * columns // scale, 3)
    assert lq.dtype == np.uint8


@pytest.mark.parametrize("preset", PRESETS)
def test_tiny_crops_work_whatever_is_drawn(photo, preset):
    for seed in range(50):
        assert synthesise(photo[:32, :32], preset, seed)[0].shape == (8, 8, 3)


@pytest.mark.parametrize(
    "gt",
    [
        np.zeros((30, 32, 3), np.uint8),
        np.zeros((32, 32), np.uint8),
        np.zeros((32, 32, 3), np.float32),
        np.zeros((0, 32, 3), np.uint8),
    ],
)
def test_wrong_input_is_refused(gt):
    with pytest.raises(ValueError, match="expected"):
        degrade(gt, IDENTITY)


def test_picture_that_would_vanish_is_refused():
    with pytest.raises(ValueError, match="vanishes"):
        degrade(np.zeros((4, 4, 3), np.uint8), vary(IDENTITY, factor=0.2))


def test_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="realesrgan, mild"):
        draw("heavy", np.random.default_rng(0))


def test_parameters_survive_json(draws):
    for parameters in draws[:300]:
        text = json.dumps(dataclasses.asdict(parameters))
        assert DegradationParameters.from_dict(json.loads(text)) == parameters


# Kernels


def test_every_drawn_kernel_sums_to_one(draws):
    for parameters in draws[:300]:
        for spec in (parameters.first.kernel, parameters.second.kernel, parameters.final_kernel):
            if spec is not None:
                assert kernel_array(spec).shape == (spec.size, spec.size)
                assert kernel_array(spec).sum() == pytest.approx(1)


def test_iso_kernel_is_the_outer_product_of_two_gaussians():
    row = np.exp(-(np.arange(-10, 11) ** 2) / (2 * 2.0**2))
    row /= row.sum()
    np.testing.assert_allclose(kernel_array(ISO), np.outer(row, row), rtol=1e-12)


def test_aniso_kernel_is_the_quadratic_form_of_its_rotated_covariance():
    sigma_x, sigma_y, angle = 2.5, 0.8, 0.6
    R = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    inverse = np.linalg.inv(R @ np.diag([sigma_x**2, sigma_y**2]) @ R.T)
    expected = np.empty((9, 9))
    for y in range(-4, 5):
        for x in range(-4, 5):
            expected[y + 4, x + 4] = np.exp(-0.5 * np.array([x, y]) @ inverse @ np.array([x, y]))
    expected /= expected.sum()
    kernel = kernel_array(KernelSpec("aniso", 9, sigma_x, sigma_y, angle))
    np.testing.assert_allclose(kernel, expected, rtol=1e-10)


def test_generalised_kernel_with_beta_one_is_gaussian():
    kernel = kernel_array(dataclasses.replace(ISO, kind="generalised_iso", beta=1.0))
    np.testing.assert_allclose(kernel, kernel_array(ISO), rtol=1e-12)


def test_plateau_kernel_with_beta_one_falls_off_like_one_over_one_plus_q():
    kernel = kernel_array(dataclasses.replace(ISO, kind="plateau_iso", beta=1.0))
    for x in (1, 2, 5):
        assert kernel[10, 10] / kernel[10, 10 + x] == pytest.approx(1 + x**2 / 4)


def test_sinc_kernel_is_the_inverse_transform_of_a_disc():
    cutoff = 2.0
    kernel = kernel_array(KernelSpec("sinc", 21, cutoff=cutoff))

    def value(distance):
        # A slice of the disc at frequency w is 2 sqrt(cutoff² - w²) high.
        def integrand(w):
            return 2 * np.sqrt(cutoff**2 - w**2) * np.cos(w * distance)

        return integrate.quad(integrand, -cutoff, cutoff)[0] / (2 * np.pi) ** 2

    assert value(0) == pytest.approx(cutoff**2 / (4 * np.pi))
    for x, y in ((1, 0), (0, 4), (3, 2)):
        ratio = kernel[10 + y, 10 + x] / kernel[10, 10]
        assert ratio == pytest.approx(value(np.hypot(x, y)) / value(0), abs=1e-8)


def test_blur_equals_a_double_loop_over_a_reflected_border():
    image = np.random.default_rng(0).random((3, 6, 5), dtype=np.float32)
    spec = KernelSpec("aniso", 7, 2.0, 0.7, 0.4)
    kernel = kernel_array(spec)
    padded = np.pad(image, ((0, 0), (3, 3), (3, 3)), mode="reflect")
    expected = np.zeros_like(image)
    for y in range(6):
        for x in range(5):
            expected[:, y, x] = (padded[:, y : y + 7, x : x + 7] * kernel).sum((1, 2))
    np.testing.assert_allclose(deg._blur(image, spec), expected, atol=1e-6)


@pytest.mark.parametrize("side", [1, 2, 5])
def test_blur_keeps_a_flat_picture_smaller_than_its_kernel(side):
    image = np.full((3, side, side), 0.3, dtype=np.float32)
    np.testing.assert_allclose(deg._blur(image, ISO), image, atol=1e-6)


# Operations


def test_identity_is_a_mere_downscale(photo):
    luma = np.array([0.299, 0.587, 0.114])
    expected = Image.fromarray(photo).resize((32, 24), Image.Resampling.BOX)
    # In luma, because 4:2:0 halves the size of colour: in RGB these 24 x 32 pixels keep 24 dB.
    # The floor leaves room for two JPEGs of quality 95.
    assert psnr(degrade(photo, IDENTITY) @ luma, np.asarray(expected) @ luma) > 40


def test_gaussian_noise_has_the_drawn_sigma():
    flat = np.full((3, 128, 128), 0.5, dtype=np.float32)
    noisy = deg._add_noise(flat, NoiseSpec("gaussian", 12.0, grey=False), np.random.default_rng(0))
    # The standard error of a standard deviation is sigma / sqrt(2 n); five of them.
    assert 255 * noisy.std() == pytest.approx(12, abs=5 * 12 / np.sqrt(2 * flat.size))


def test_noise_reaches_the_result_at_the_drawn_sigma():
    grey = np.full((256, 256, 3), 128, np.uint8)
    noise = NoiseSpec("gaussian", 12.0, grey=True)  # grey: JPEG halves the size of colour only
    second = dataclasses.replace(NOTHING, noise=noise)
    lq = degrade(grey, dataclasses.replace(IDENTITY, second=second))
    # Five standard errors, and one level for JPEG.
    assert lq.std() == pytest.approx(12, abs=5 * 12 / np.sqrt(2 * 64 * 64) + 1)


def test_poisson_noise_has_the_variance_of_counted_photons():
    ramp = np.tile(np.arange(256, dtype=np.float32) / 255, (3, 256, 1))
    noisy = deg._add_noise(ramp, NoiseSpec("poisson", 0.5, grey=False), np.random.default_rng(0))
    for value in (64, 128, 192):
        n = 3 * 256
        expected = 0.5 * np.sqrt(value / 255 / 256)
        measured = noisy[:, :, value].std()
        assert measured == pytest.approx(expected, rel=5 / np.sqrt(2 * n))


@pytest.mark.parametrize("kind", ["gaussian", "poisson"])
def test_grey_noise_is_equal_in_all_channels(kind):
    image = np.full((3, 32, 32), 0.5, dtype=np.float32)
    image[:, :, 16:] = 0.6
    added = deg._add_noise(image, NoiseSpec(kind, 1.0, True), np.random.default_rng(0)) - image
    free = (image + added > 0.001).all(0) & (image + added < 0.999).all(0)
    np.testing.assert_allclose(added[0][free], added[1][free], atol=1e-6)
    np.testing.assert_allclose(added[0][free], added[2][free], atol=1e-6)


def test_lower_jpeg_quality_is_further_from_the_picture(photo):
    image = deg._to_float(photo)
    errors = [np.square(deg._jpeg(image, quality) - image).mean() for quality in (95, 60, 30)]
    assert errors == sorted(errors)


def test_sharpening_leaves_weak_texture_alone():
    y, x = np.mgrid[:64, :64]
    weak = np.repeat((128 + 5 * ((x + y) % 2))[..., None], 3, axis=-1).astype(np.uint8)
    np.testing.assert_array_equal(usm_sharpen(weak), weak)


def test_sharpening_steepens_an_edge():
    edge = np.full((64, 64, 3), 80, np.uint8)
    edge[:, 32:] = 170
    sharp = usm_sharpen(edge).astype(int)
    assert sharp[32, 31, 0] < 80
    assert sharp[32, 32, 0] > 170


def test_sharpening_follows_the_published_recipe(photo):
    position = np.arange(-25, 26)
    row = np.exp(-(position**2) / (2 * 8.0**2))
    row /= row.sum()

    def blurred(image):
        padded = np.pad(image, ((25, 25), (25, 25), (0, 0)), mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (51, 51), axis=(0, 1))
        return np.einsum("yxckl,k,l->yxc", windows, row, row, optimize=True)

    image = photo[:40, :40] / 255
    residual = image - blurred(image)
    mask = blurred((np.abs(residual) * 255 > 10).astype(float))
    expected = mask * np.clip(image + 0.5 * residual, 0, 1) + (1 - mask) * image
    difference = usm_sharpen(photo[:40, :40]) - 255 * expected
    assert np.abs(difference).max() < 0.51  # rounding


# Draws


def test_graded_draws_lie_in_their_bands_and_each_band_is_as_frequent():
    preset, rng = PRESETS["graded"], np.random.default_rng(1)
    drawn = [draw("graded", rng) for _ in range(600)]
    for bands, values in (
        (preset.blur_bands, [blur_width(p) for p in drawn]),
        (preset.noise_bands, [p.second.noise.level for p in drawn]),
    ):
        for low, high in bands:
            assert_frequency(sum(low <= value <= high for value in values), 600, 1 / len(bands))
    assert all(p.second.noise.kind == "gaussian" for p in drawn)


def test_graded_labels_are_all_frequent(photo):
    labels = []
    for seed in range(300):
        lq, parameters = synthesise(photo, "graded", seed)
        labels.append(levels(scores(photo, lq, parameters)))
    for which in (0, 1):
        for level in ("small", "medium", "large"):
            share = sum(label[which] == level for label in labels) / len(labels)
            assert share == pytest.approx(1 / 3, abs=0.12)


def assert_frequency(hits, n, prob):
    # Five standard deviations of a binomial share.
    assert hits / n == pytest.approx(prob, abs=5 * np.sqrt(prob * (1 - prob) / n))


def test_draws_follow_the_published_probabilities(draws):
    n = len(draws)
    preset = PRESETS["realesrgan"]
    assert_frequency(sum(p.final_kernel is not None for p in draws), n, 0.8)
    assert_frequency(sum(p.final_order == "jpeg_then_resize" for p in draws), n, 0.5)
    assert all(p.first.kernel is not None for p in draws)
    assert_frequency(sum(p.second.kernel is not None for p in draws), n, 0.8)
    for stages, ranges in (
        ([p.first for p in draws], preset.first),
        ([p.second for p in draws], preset.second),
    ):
        up, down, keep = ranges.resize_probs
        assert_frequency(sum(s.factor > 1 for s in stages), n, up)
        assert_frequency(sum(s.factor < 1 for s in stages), n, down)
        assert_frequency(sum(s.factor == 1 for s in stages), n, keep)
        assert_frequency(sum(s.noise.kind == "gaussian" for s in stages), n, 0.5)
        assert_frequency(sum(s.noise.grey for s in stages), n, 0.4)
        for mode in ("area", "bilinear", "bicubic"):
            assert_frequency(sum(s.mode == mode for s in stages), n, 1 / 3)


def test_kernels_follow_the_published_probabilities(draws):
    kernels = [p.first.kernel for p in draws]
    assert_frequency(sum(k.kind == "sinc" for k in kernels), len(kernels), 0.1)
    for kind, prob in KERNEL_PROBS.items():
        assert_frequency(sum(k.kind == kind for k in kernels), len(kernels), 0.9 * prob)
    for size in KERNEL_SIZES:
        assert_frequency(sum(k.size == size for k in kernels), len(kernels), 1 / 8)
    assert_frequency(
        sum(k.beta > 1 for k in kernels if k.beta is not None and k.kind.startswith("g")),
        sum(k.beta is not None and k.kind.startswith("g") for k in kernels),
        0.5,
    )


def test_draws_stay_in_the_published_ranges(draws):
    for p in draws:
        assert 0.15 <= p.first.factor <= 1.5
        assert 0.3 <= p.second.factor <= 1.2
        low, high = (1, 30) if p.first.noise.kind == "gaussian" else (0.05, 3)
        assert low <= p.first.noise.level <= high
        assert 30 <= p.first.jpeg_quality <= 95
    qualities = {p.first.jpeg_quality for p in draws}
    assert {30, 95} <= qualities


# Labels


def test_width_of_a_wide_gaussian_is_its_variance():
    wide = KernelSpec("iso", 61, 6.0, 6.0, 0.0)
    # The offset that makes the identity zero is 1 / (4 pi).
    assert deg._kernel_variance(wide) == pytest.approx(36 - 1 / (4 * np.pi), rel=1e-5)


def test_width_of_the_identity_is_zero():
    needle = KernelSpec("iso", 7, 0.05, 0.05, 0.0)
    assert deg._kernel_variance(needle) == pytest.approx(0, abs=1e-12)


def test_scores_of_the_identity_are_zero(photo):
    assert scores(photo, degrade(photo, IDENTITY), IDENTITY) == DegradationScores(0.0, 0.0)


def test_blur_score_counts_the_coarsest_grid(photo):
    # Shrinking eightfold: a box of 8 instead of 4 pixels, and the variance of a box is w²/12.
    small = vary(IDENTITY, factor=1 / 8)
    expected = np.sqrt((64 - 16) / 12)
    assert scores(photo, degrade(photo, small), small).blur == pytest.approx(expected)


@pytest.mark.parametrize(("mode", "left"), [("area", 6.0), ("bilinear", 12.0)])
def test_noise_score_is_what_shrinking_leaves(mode, left):
    grey = np.full((256, 256, 3), 128, np.uint8)
    noisy = vary(IDENTITY, noise=NoiseSpec("gaussian", 24.0, grey=True))
    noisy = dataclasses.replace(noisy, second=dataclasses.replace(NOTHING, mode=mode))
    # Averaging 4 x 4 pixels leaves a quarter; bilinear without antialiasing reads 2 x 2, a half.
    # Within one level, for the two JPEGs.
    score = scores(grey, degrade(grey, noisy), noisy)
    assert score.noise == pytest.approx(left, abs=1)


def test_blur_without_noise_is_no_noise(photo):
    blurred = vary(IDENTITY, kernel=KernelSpec("iso", 21, 3.0, 3.0, 0.0), jpeg_quality=30)
    assert scores(photo, degrade(photo, blurred), blurred).noise == 0


def test_levels_begin_at_their_thresholds():
    assert levels(DegradationScores(blur=2.19, noise=9.5)) == ("small", "large")
    assert levels(DegradationScores(blur=2.2, noise=3.19)) == ("medium", "small")
