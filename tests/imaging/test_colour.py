import numpy as np
import pytest
import torch
from PIL import Image

from imaging.colour import adain, adain_tensor, wavelet, wavelet_tensor
from imaging.convert import to_tensor


def picture(width, height, seed):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def blurred(plane, r):
    """[1 2 1; 2 4 2; 1 2 1] / 16 with holes of r, edges repeated; pixel by pixel."""
    height, width = plane.shape
    out = np.zeros_like(plane)
    for y in range(height):
        for x in range(width):
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    row = min(max(y + dy * r, 0), height - 1)
                    column = min(max(x + dx * r, 0), width - 1)
                    out[y, x] += (2 - abs(dy)) * (2 - abs(dx)) / 16 * plane[row, column]
    return out


def naive_wavelet(restored, lq):
    def low(plane):
        for r in (1, 2, 4, 8, 16):
            plane = blurred(plane, r)
        return plane

    planes = zip(restored, lq, strict=True)
    return np.stack([a - low(a) + low(b) for a, b in planes])


@pytest.mark.parametrize("size", [(9, 6), (1, 1), (1, 5), (20, 3)])
def test_wavelet_equals_its_double_loop(size):
    restored, lq = (to_tensor(picture(*size, seed)).double() for seed in (1, 2))
    expected = naive_wavelet(restored[0].numpy(), lq[0].numpy())
    np.testing.assert_allclose(wavelet_tensor(restored, lq)[0].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("correct", [wavelet_tensor, adain_tensor])
def test_a_picture_corrected_by_itself_stays(correct):
    tensor = to_tensor(picture(40, 30, 3))
    torch.testing.assert_close(correct(tensor, tensor), tensor, rtol=0, atol=1e-5)


@pytest.mark.parametrize("correct", [wavelet, adain])
def test_truncation_costs_a_picture_corrected_by_itself_one_level_at_most(correct):
    image = picture(40, 30, 4)
    loss = np.asarray(image).astype(int) - np.asarray(correct(image, image))
    assert set(np.unique(loss)) <= {0, 1}


def test_wavelet_gives_a_flat_picture_the_low_frequencies_of_the_input():
    flat = torch.full((1, 3, 8, 8), 0.25)
    lq = to_tensor(picture(8, 8, 5))
    torch.testing.assert_close(wavelet_tensor(flat, lq), wavelet_tensor(torch.zeros_like(lq), lq))


@pytest.mark.parametrize("correct", [wavelet_tensor, adain_tensor])
def test_two_flat_pictures_give_the_colour_of_the_input(correct):
    grey = torch.full((1, 3, 12, 10), 0.5)
    red = torch.tensor([0.9, 0.1, 0.2]).view(1, 3, 1, 1).expand(1, 3, 12, 10)
    torch.testing.assert_close(correct(grey, red), red.clone(), rtol=0, atol=1e-5)


def test_wavelet_undoes_a_colour_cast():
    lq = to_tensor(picture(32, 32, 6)) * 0.5
    cast = torch.tensor([0.3, 0.0, 0.1]).view(1, 3, 1, 1)
    torch.testing.assert_close(wavelet_tensor(lq + cast, lq), lq, rtol=0, atol=1e-5)


def test_adain_gives_each_channel_the_moments_of_the_input():
    # A variance far above the floor of 1e-5, so that the floor hides in the tolerance.
    restored, lq = to_tensor(picture(50, 40, 7)), to_tensor(picture(50, 40, 8)) ** 2
    result = adain_tensor(restored, lq)[0].numpy()
    mean, deviation = result.mean((1, 2)), result.std((1, 2), ddof=1)
    np.testing.assert_allclose(mean, lq[0].numpy().mean((1, 2)), atol=1e-5)
    np.testing.assert_allclose(deviation, lq[0].numpy().std((1, 2), ddof=1), rtol=1e-3)


def test_adain_equals_its_formula():
    a, b = (to_tensor(picture(5, 4, seed)).double().numpy()[0] for seed in (9, 10))
    std = [np.sqrt(x.var((1, 2), ddof=1, keepdims=True) + 1e-5) for x in (a, b)]
    mean = [x.mean((1, 2), keepdims=True) for x in (a, b)]
    expected = (a - mean[0]) / std[0] * std[1] + mean[1]
    result = adain_tensor(torch.from_numpy(a)[None], torch.from_numpy(b)[None])[0].numpy()
    np.testing.assert_allclose(result, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("correct", "core"),
    [(wavelet, wavelet_tensor), (adain, adain_tensor)],
    ids=["wavelet", "adain"],
)
def test_pictures_are_clamped_and_truncated(correct, core):
    restored, lq = picture(16, 12, 11), picture(16, 12, 12)
    levels = core(to_tensor(restored), to_tensor(lq)).clamp(0, 1).mul(255).byte()
    expected = levels[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(np.asarray(correct(restored, lq)), expected)


@pytest.mark.parametrize("correct", [wavelet, adain])
def test_pictures_of_other_sizes_or_modes_are_an_error(correct):
    with pytest.raises(ValueError, match="got 4 × 4 and 5 × 4"):
        correct(picture(4, 4, 0), picture(5, 4, 0))
    with pytest.raises(ValueError, match="mode L"):
        correct(picture(4, 4, 0), Image.new("L", (4, 4)))


def test_adain_of_one_pixel_is_an_error():
    with pytest.raises(ValueError, match="two pixels"):
        adain(picture(1, 1, 0), picture(1, 1, 1))
