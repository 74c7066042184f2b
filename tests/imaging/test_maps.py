import numpy as np
import plotly.colors
import pytest

from imaging.maps import MAGMA, UNKNOWN, VIRIDIS, heat_map, over_picture

FIRST, LAST = (tuple(bytes.fromhex(VIRIDIS.split()[i])) for i in (0, -1))


def lightness(rgb):
    """CIE L* of sRGB levels (..., 3), from its definition (IEC 61966-2-1, CIE 15)."""
    c = np.asarray(rgb, float) / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(y > 216 / 24389, 116 * np.cbrt(y) - 16, y * 24389 / 27)


def test_the_limits_get_the_ends_of_the_map():
    image = heat_map(np.array([[2.0, 5.0]]), 2, 5)
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [FIRST, LAST]


def test_values_outside_the_limits_get_the_colour_of_the_limit():
    image = heat_map(np.array([[-np.inf, -1, 9, np.inf]]), 0, 1)
    ends = [FIRST, FIRST, LAST, LAST]
    assert [image.getpixel((x, 0)) for x in range(4)] == ends


def test_what_is_not_known_is_grey():
    assert heat_map(np.array([[np.nan]]), 0, 1).getpixel((0, 0)) == UNKNOWN


def test_whole_numbers_are_mapped_like_others():
    counts = np.array([[0, 500, 2000]], np.int32)
    whole, real = (np.asarray(heat_map(v, 0, 2000)) for v in (counts, counts.astype(float)))
    np.testing.assert_array_equal(whole, real)


def test_a_logarithm_puts_the_geometric_mean_in_the_middle():
    image = heat_map(np.array([[1.0, 10.0, 100.0]]), 1, 100, log=True)
    plain = heat_map(np.array([[0.0, 0.5, 1.0]]), 0, 1)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(plain))


def test_the_colours_are_the_published_ones():
    """Plotly's table has ten stops where ours has eleven, so in between they agree roughly."""
    published = np.array(
        [
            [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
            for colour in plotly.colors.sequential.Viridis
        ]
    )
    ours = np.asarray(heat_map(np.linspace(0, 1, len(published))[None], 0, 1))[0].astype(int)
    assert abs(ours - published).max() <= 8  # of 255
    assert (ours[[0, -1]] == published[[0, -1]]).all()


@pytest.mark.parametrize("stops", [VIRIDIS, MAGMA])
def test_lightness_rises_evenly(stops):
    ramp = np.asarray(heat_map(np.linspace(0, 1, 64)[None], 0, 1, stops=stops))[0]
    steps = np.diff(lightness(ramp))
    assert steps.min() > 0
    assert steps.max() < 2.5 * steps.mean()


def test_columns_run_to_the_right_and_rows_down():
    image = heat_map(np.zeros((2, 3)), 0, 1)
    assert image.size == (3, 2)
    assert image.mode == "RGB"


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [(np.zeros(3), 0, 1), (np.zeros((2, 2)), 1, 1), (np.zeros((2, 2)), 0, np.nan)],
)
def test_what_cannot_be_mapped_is_refused(values, low, high):
    with pytest.raises(ValueError, match="expected"):
        heat_map(values, low, high)


def test_cells_become_squares_and_what_sticks_out_is_cut():
    cells = heat_map(np.arange(6.0).reshape(2, 3), 0, 5)
    large = over_picture(cells, 8, (20, 11))
    assert large.size == (20, 11)
    for x, y in ((0, 0), (7, 7), (8, 7), (19, 10)):
        assert large.getpixel((x, y)) == cells.getpixel((x // 8, y // 8))
