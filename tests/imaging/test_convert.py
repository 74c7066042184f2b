import numpy as np
import pytest
import torch
from PIL import Image

from imaging.convert import resize, to_image, to_tensor

LEVELS = Image.fromarray(np.arange(256 * 3, dtype=np.uint16).astype(np.uint8).reshape(16, 16, 3))


def picture(width, height):
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_a_tensor_is_rgb_channels_first_in_0_to_1():
    tensor = to_tensor(Image.new("RGB", (5, 2), (255, 0, 51)))
    assert tensor.shape == (1, 3, 2, 5)
    assert tensor.dtype == torch.float32
    torch.testing.assert_close(tensor[0, :, 1, 4], torch.tensor([1.0, 0.0, 0.2]))


@pytest.mark.parametrize("rounding", ["truncate", "nearest"])
def test_all_256_levels_survive_the_round_trip(rounding):
    back = to_image(to_tensor(LEVELS), rounding=rounding)
    np.testing.assert_array_equal(np.asarray(back), np.asarray(LEVELS))


def test_truncation_drops_the_fraction_and_nearest_rounds_it():
    tensor = torch.full((1, 3, 1, 1), 10.9 / 255)
    assert to_image(tensor).getpixel((0, 0)) == (10, 10, 10)
    assert to_image(tensor, rounding="nearest").getpixel((0, 0)) == (11, 11, 11)


def test_truncation_is_bit_compatible_with_mul_255_byte():
    tensor = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    expected = tensor[0].mul(255).byte().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(np.asarray(to_image(tensor)), expected)


def test_a_level_computed_another_way_falls_short_by_one_at_most():
    # through [-1, 1], as the tokenizer's decoder does
    y = (torch.arange(256, dtype=torch.float64) / 255 * 2 - 1).float()
    levels = np.asarray(to_image(((y + 1) / 2).expand(1, 3, 1, 256)))[0, :, 0].astype(int)
    assert set(np.arange(256) - levels) == {0, 1}


def test_values_outside_the_range_are_clamped():
    tensor = torch.tensor([-3.0, 1.5, torch.inf]).view(1, 3, 1, 1)
    assert to_image(tensor).getpixel((0, 0)) == (0, 255, 255)


def test_values_that_are_not_numbers_are_an_error():
    with pytest.raises(ValueError, match="3 values that are NaN"):
        to_image(torch.full((1, 3, 1, 1), torch.nan))


@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 3, 4, 4), (1, 1, 4, 4)])
def test_other_shapes_are_an_error(shape):
    with pytest.raises(ValueError, match="expected a"):
        to_image(torch.zeros(shape))


def test_bfloat16_is_converted_first():
    assert to_image(torch.ones(1, 3, 2, 2, dtype=torch.bfloat16)).getpixel((1, 1)) == (255,) * 3


def test_a_tensor_is_a_copy():
    image = picture(3, 3)
    pixels = image.tobytes()
    to_tensor(image).zero_()
    assert image.tobytes() == pixels


def test_resize_to_the_same_size_keeps_the_pixels_in_a_new_picture():
    image = picture(7, 5)
    same = resize(image, (7, 5))
    assert same.tobytes() == image.tobytes()
    assert same is not image


def test_resize_is_bicubic_unless_told():
    image = picture(6, 4)
    bicubic = image.resize((24, 16), Image.Resampling.BICUBIC)
    assert resize(image, (24, 16)).tobytes() == bicubic.tobytes()
    box = resize(image, (3, 2), resample=Image.Resampling.BOX)
    assert box.tobytes() == image.resize((3, 2), Image.Resampling.BOX).tobytes()


def test_only_rgb_is_taken():
    grey = Image.new("L", (4, 4))
    for function in (to_tensor, lambda i: resize(i, (2, 2))):
        with pytest.raises(ValueError, match="got mode L"):
            function(grey)


def test_a_size_that_makes_no_sense_is_an_error():
    with pytest.raises(ValueError, match="got 0 × 4"):
        resize(picture(4, 4), (0, 4))
