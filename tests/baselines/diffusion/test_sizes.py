import pytest
from PIL import Image

from baselines.diffusion.sizes import enlarge, enlarge_to, fix_colour, promised

BICUBIC, LANCZOS = Image.Resampling.BICUBIC, Image.Resampling.LANCZOS


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((128, 128), (512, 512)),
        ((32, 32), (512, 512)),
        ((64, 100), (512, 800)),
        ((100, 180), (512, 920)),  # 180 · 1.28 = 230.4, cut to 230
        ((512, 512), (2048, 2048)),
        ((129, 131), (512, 520)),
        ((1, 1), (512, 512)),
    ],
)
def test_sizes_are_those_of_the_published_scripts(size, expected):
    large = enlarge(Image.new("RGB", size), native=512, scale=4, rounding=BICUBIC)
    assert large.size == expected


def test_the_input_is_enlarged_by_bicubic_and_nothing_else(lq):
    large = enlarge(lq, native=32, scale=4, rounding=LANCZOS)
    assert large.tobytes() == lq.resize((160, 128), BICUBIC).tobytes()


def test_sides_are_rounded_down_with_the_given_filter(lq):
    odd = lq.crop((0, 0, 33, 35))
    whole = odd.resize((132, 140), BICUBIC)
    for rounding in (BICUBIC, LANCZOS):
        large = enlarge(odd, native=32, scale=4, rounding=rounding)
        assert large.tobytes() == whole.resize((128, 136), rounding).tobytes()


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((128, 128), (768, 768)),
        ((32, 32), (768, 768)),
        ((100, 180), (768, 1376)),  # 768 · 1.8 = 1382, cut to 1376
        ((191, 400), (768, 1608)),  # 764 × 1600, then 1608.4
        ((192, 193), (768, 768)),
        ((512, 512), (2048, 2048)),
    ],
)
def test_sizes_are_those_of_pasd_s_script(size, expected):
    large = enlarge_to(Image.new("RGB", size), shortest=768, scale=4)
    assert large.size == expected


def test_pasd_s_three_filters_follow_each_other(lq):
    """As torchvision's `Resize` does the second, which the script uses."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resize

    odd = lq.crop((0, 0, 33, 35))
    four = odd.resize((132, 140), BICUBIC)
    short = resize(four, 150, InterpolationMode.BILINEAR)
    assert short.size == (150, 159)
    expected = short.resize((144, 152), BICUBIC)
    assert enlarge_to(odd, shortest=150, scale=4).tobytes() == expected.tobytes()


def test_the_promised_size_is_reached_by_bicubic(lq):
    assert promised(lq, Image.new("RGB", (10, 8)), scale=4) is lq
    smaller = promised(lq, Image.new("RGB", (5, 4)), scale=4)
    assert smaller.tobytes() == lq.resize((20, 16), BICUBIC).tobytes()


def test_colours_come_from_the_input_or_stay(lq):
    red = Image.new("RGB", lq.size, (200, 10, 10))
    assert fix_colour(lq, red, "none") is lq
    for fix in ("adain", "wavelet"):
        (mean,) = (fix_colour(lq, red, fix).resize((1, 1), Image.Resampling.BOX).getpixel((0, 0)),)
        assert mean == pytest.approx((200, 10, 10), abs=20)
