"""The viewer in a real browser, on pictures whose every pixel says where it is and whose.

A pixel at (x, y) of picture n is (x, y, 40 n): what a frame shows at some place is read off it.
"""

import base64
import io
import itertools
import socket

import gradio as gr
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from imaging import maps
from tests.browser.conftest import Watch
from ui import components
from ui.viewer import Metric, Picture, Scene, payload, viewer

pytestmark = [
    pytest.mark.browser,
    # Gradio's queue counts with pandas, which warns that it will change.
    pytest.mark.filterwarnings("ignore:.*no_silent_downcasting.*"),
]

WIDTH, HEIGHT = 200, 152
LQ_TIMES = 4
GAP = 12  # between the tiles of a figure
SECRET = "secretgan"


def located(number: int) -> Image.Image:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return Image.fromarray(np.stack([x, y, np.full_like(x, 40 * number)], axis=-1).astype(np.uint8))


def located_lq() -> Image.Image:
    y, x = np.mgrid[0:HEIGHT:LQ_TIMES, 0:WIDTH:LQ_TIMES]
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8))


METRICS = (Metric("PSNR", 27.5, "higher", unit="dB"), Metric("100%_of_A&B", 1, "lower"))
LOCATED = Scene(
    (
        Picture(located_lq(), "Input", "lq"),
        Picture(located(1), "First <b>", metrics=METRICS, seconds=1.5, parameters=16_700_000),
        Picture(located(2), "Second", metrics=(Metric("PSNR", 30, "higher", unit="dB"),)),
        Picture(located(3), "Reference", "gt"),
    ),
    key="test/located",
    title="Places",
    linked=True,
)


def noisy(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))


OTHERS = {
    "noise": Scene((Picture(noisy(1), "One"), Picture(noisy(2), "Two")), key="noise"),
    "growing": Scene(
        (*LOCATED.pictures[:2], Picture(None, "Second", note="Restoring…", pending=True)),
        key="growing",
        expected=(WIDTH, HEIGHT),
    ),
    "grown": Scene(LOCATED.pictures[:3], key="growing"),
}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A page with one viewer on `LOCATED`, and a button for each of the other scenes."""
    text = PngImagePlugin.PngInfo()
    text.add_text("method", SECRET)
    path = tmp_path_factory.mktemp("blind") / f"{SECRET}.png"
    noisy(3).save(path, pnginfo=text)
    blind = Scene((Picture(path), Picture(noisy(4))), exported=False, modes=("grid", "flip"))
    with gr.Blocks(analytics_enabled=False) as page:
        shown = viewer(LOCATED, elem_id="viewer")
        for name, scene in {**OTHERS, "located": LOCATED, "blind": blind}.items():
            gr.Button(name, elem_id=f"show-{name}").click(
                lambda scene=scene: payload(scene), None, shown, queue=False
            )
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    _, url, _ = page.launch(
        theme=components.theme(), css=components.CSS, ssr_mode=False, quiet=True,
        prevent_thread_lock=True, server_port=port, enable_monitoring=False,
    )  # fmt: skip
    yield url
    page.close()


@pytest.fixture(scope="module")
def open_page(browser, served):
    """Opens the page; what was opened is closed in the end."""
    contexts = []

    def start(fragment="", **changes):
        context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 900}, "accept_downloads": True} | changes
        )
        contexts.append(context)
        page = context.new_page()
        page.watch = Watch(page)
        page.goto(served + fragment)
        loaded(page)
        return page

    yield start
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def one_page(open_page):
    return open_page()


@pytest.fixture
def page(one_page):
    """The page with `LOCATED` as it is at first; loading it anew each time takes too long."""
    reset(one_page)
    yield one_page
    assert one_page.watch.foreign == []
    assert one_page.watch.complaints == []


RESETS = itertools.count()


def reset(page, width: int = 1280, height: int = 900) -> None:
    """Back to the first scene and view, all of it: a link says where everything is.

    The way to the server and back is left out where the scene is shown already.
    """
    if page.viewport_size != {"width": width, "height": height}:
        page.set_viewport_size({"width": width, "height": height})
    if page.get_attribute(".viewer", "aria-label") != "Viewer: Places":
        show(page, "located", 4)
    if page.get_attribute(".viewer .tools .box", "aria-pressed") == "true":
        page.click(".viewer .tools .box")
    if page.is_visible(".viewer .panel"):
        page.click(".viewer .export")
    page.evaluate(
        "n => { document.activeElement?.blur(); scrollTo(0, 0); "
        "location.hash = `#scene=test%2Flocated&mode=grid&first=1&second=3&range=64&n=${n}`; }",
        next(RESETS),
    )
    page.wait_for_function(
        "document.querySelector('.viewer').dataset.mode === 'grid' && "
        "document.querySelector('.viewer select.second').value === '3' && "
        "!document.querySelector('.viewer .divider')"
    )
    loaded(page)


def show(page, name: str, count: int) -> None:
    page.click(f"#show-{name}")
    page.wait_for_function(f"document.querySelector('.viewer').dataset.count === '{count}'")
    if page.is_visible(".viewer [data-mode=grid]"):
        page.click(".viewer [data-mode=grid]")
    loaded(page)


def loaded(page) -> None:
    page.wait_for_function(
        "document.querySelector('.viewer .stage canvas') && "
        "[...document.querySelectorAll('.viewer .note')].every(n => n.textContent !== 'Loading…')"
    )
    settled(page)


def settled(page) -> None:
    """Two frames of the screen later, everything asked for is drawn."""
    page.evaluate("() => new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")


def canvas(page, index: int = 0, where: str = ".stage") -> np.ndarray:
    """The pixels of a frame, (H, W, 4)."""
    settled(page)
    url = page.evaluate(
        f"document.querySelectorAll('.viewer {where} canvas')[{index}].toDataURL('image/png')"
    )
    image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    return np.asarray(image.convert("RGBA"))


def zoom(page) -> float:
    return float(attribute(page, ".viewer", "data-zoom"))


def attribute(page, selector: str, name: str) -> str | None:
    """What is drawn at most once a frame of the screen is read after that frame."""
    settled(page)
    return page.get_attribute(selector, name)


def percent(page) -> str:
    """The zoom as it is shown."""
    settled(page)
    return page.inner_text(".viewer .percent")


def zoomed(page, expected: float) -> None:
    """Waits for a zoom: the browser does not say when it has passed a turn of the wheel on."""
    page.wait_for_function(f"document.querySelector('.viewer').dataset.zoom === '{expected:g}'")
    assert zoom(page) == expected


def mode(page, name: str) -> None:
    page.click(f".viewer [data-mode={name}]")
    settled(page)


def press(page, *keys: str) -> None:
    page.focus(".viewer .stage")
    for key in keys:
        page.keyboard.press(key)
    settled(page)


def middle(page, index: int = 0) -> tuple[float, float]:
    page.locator(".viewer .stage canvas").nth(index).scroll_into_view_if_needed()
    box = page.locator(".viewer .stage canvas").nth(index).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def shown_place(pixels: np.ndarray, zoom: float) -> np.ndarray:
    """What a frame must show, by arithmetic on its corner pixel alone: (H, W, 2) of x and y."""
    x0, y0 = int(pixels[0, 0, 0]), int(pixels[0, 0, 1])
    height, width = pixels.shape[:2]
    # how much of the first pixel is cut off by the frame's edge
    cut_x = int(zoom) - int(np.argmax(pixels[0, :, 0] != x0))
    cut_y = int(zoom) - int(np.argmax(pixels[:, 0, 1] != y0))
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x0 + (x + cut_x) // int(zoom), y0 + (y + cut_y) // int(zoom)], axis=-1)


def same(one: np.ndarray, two: np.ndarray) -> bool:
    """Equal but for a row or column: the browser rounds each frame's size for itself."""
    height, width = (min(sizes) for sizes in zip(one.shape[:2], two.shape[:2], strict=True))
    assert max(abs(a - b) for a, b in zip(one.shape, two.shape, strict=True)) <= 1
    return np.array_equal(one[:height, :width], two[:height, :width])


# Zoom and place


def test_every_frame_shows_the_same_place_in_equal_squares(page):
    press(page, "+", "+", "+", "+", "+", "ArrowRight")
    times = zoom(page)
    assert times == int(times) >= 4
    expected = shown_place(canvas(page, 1), times)
    for index in (1, 2, 3):
        pixels = canvas(page, index)
        assert same(pixels[..., :2], expected), index
        assert (pixels[..., 2] == 40 * index).all()
        assert (pixels[..., 3] == 255).all()
    lq = canvas(page, 0)
    assert same(lq[..., :2], expected // LQ_TIMES * LQ_TIMES)


def test_the_wheel_zooms_all_frames_around_the_pointer(page):
    press(page, "o", "+", "+")
    x, y = middle(page, 2)
    box = page.locator(".viewer .stage canvas").nth(2).bounding_box()
    at = int(y - 30 - box["y"]), int(x + 40 - box["x"])
    before, place = zoom(page), canvas(page, 2)[at][:2].astype(int)
    page.mouse.move(x + 40, y - 30)
    page.mouse.wheel(0, -120)
    zoomed(page, before + 1)
    for index in (1, 2, 3):
        assert np.abs(canvas(page, index)[at][:2].astype(int) - place).max() <= 1
    page.mouse.wheel(0, 120)
    zoomed(page, before)


def test_at_fit_the_wheel_scrolls_the_page_on(page):
    page.set_viewport_size({"width": 1280, "height": 420})
    x, y = middle(page, 0)
    before = page.evaluate("scrollY")
    page.mouse.move(x, y)
    page.mouse.wheel(0, 200)
    page.wait_for_function(f"scrollY > {before}")
    assert percent(page) == "100 %"


def test_dragging_moves_all_frames_by_as_much(page):
    press(page, "o", "+", "+", "+")
    times = zoom(page)
    before = canvas(page, 3)[10, 10][:2].astype(int)
    x, y = middle(page, 1)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 5 * times, y - 3 * times, steps=4)
    page.mouse.up()
    assert (canvas(page, 3)[10, 10][:2].astype(int) - before).tolist() == [5, 3]
    assert (canvas(page, 1)[10, 10][:2] == canvas(page, 3)[10, 10][:2]).all()


def test_the_place_never_leaves_the_picture(page):
    press(page, "o", "+", "+", "+", *["ArrowLeft"] * 30, *["ArrowUp"] * 30)
    assert canvas(page, 1)[0, 0].tolist() == [0, 0, 40, 255]
    press(page, *["ArrowRight"] * 60, *["ArrowDown"] * 60)
    assert canvas(page, 1)[-1, -1].tolist() == [WIDTH - 1, HEIGHT - 1, 40, 255]


def test_fit_and_one_to_one_and_the_shown_percent(page):
    page.click(".viewer .in")
    assert percent(page) == "200 %"
    assert zoom(page) == 2
    page.click(".viewer .actual")
    assert (zoom(page), percent(page)) == (1, "100 %")
    press(page, *["+"] * 20)
    assert zoom(page) == 32
    page.click(".viewer .fit")
    assert zoom(page) == 1  # the frames are 280 pixels wide, the pictures 200
    mode(page, "flip")
    assert zoom(page) == int(zoom(page)) > 1


def test_on_a_dense_screen_a_pixel_is_a_device_pixel(open_page):
    page = open_page(device_scale_factor=2)
    box = page.locator(".viewer .stage canvas").first.bounding_box()
    assert canvas(page, 1).shape[1] == pytest.approx(2 * box["width"], abs=1)
    press(page, "o", "+", "+", "+", "+")
    pixels = canvas(page, 1)
    assert np.array_equal(pixels[..., :2], shown_place(pixels, zoom(page)))


# Two at the same place


def shown_number(page, index: int, at=(20, 40)) -> float:
    y, x = at
    return canvas(page, index)[y - 1 if y < 0 else y, x][2] / 40


def test_space_flips_every_frame_to_the_second_while_it_is_held(page):
    press(page, "o", "+", "+")
    places = [canvas(page, index)[30, 30][:2].tolist() for index in (1, 2)]
    page.keyboard.down(" ")
    assert [canvas(page, index)[30, 30].tolist() for index in (1, 2)] == [
        [*place, 120, 255] for place in places
    ]
    page.keyboard.up(" ")
    assert [canvas(page, index)[30, 30][2] for index in (1, 2)] == [40, 80]


def test_the_button_flips_between_any_two_while_it_is_held(page):
    mode(page, "flip")
    page.select_option(".viewer select.first", label="Second")
    page.select_option(".viewer select.second", label="First <b>")
    x, y = (200, 200)
    assert canvas(page)[y, x][2] == 80
    page.hover(".viewer .hold")
    page.mouse.down()
    assert canvas(page)[y, x][2] == 40
    page.mouse.up()
    assert canvas(page)[y, x][2] == 80
    page.click(".viewer .swap")
    assert canvas(page)[y, x][2] == 40


def test_swipe_shows_the_first_on_one_side_and_the_second_on_the_other(page):
    mode(page, "swipe")
    pixels = canvas(page)
    height, width = pixels.shape[:2]
    covered = pixels[height // 2, :, 3] > 0
    line = pixels[height // 2, :, 2]
    assert set(line[: width // 2][covered[: width // 2]]) == {40}
    assert set(line[width // 2 :][covered[width // 2 :]]) == {120}
    box = page.locator(".viewer .divider").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 100, box["y"] + 30, steps=3)
    page.mouse.up()
    line = canvas(page)[height // 2, :, 2]
    assert set(line[: width // 2 + 98][covered[: width // 2 + 98]]) == {40}
    assert line[width // 2 + 102] == 120


def test_the_divider_turns_and_obeys_the_keyboard(page):
    mode(page, "swipe")
    page.click(".viewer .bar.pair .across")
    page.focus(".viewer .divider")
    for _ in range(5):
        page.keyboard.press("ArrowUp")
    assert attribute(page, ".viewer .divider", "aria-valuenow") == "40"
    pixels = canvas(page)
    height, width = pixels.shape[:2]
    cut = round(height * 0.4)
    assert pixels[cut - 1, width // 2, 2] == 40
    assert pixels[cut, width // 2, 2] == 120


def test_the_difference_is_that_of_the_pixels(page):
    show(page, "noise", 2)
    mode(page, "difference")
    page.select_option(".viewer select.range", "128")
    press(page, "o")
    one, two = (np.asarray(noisy(seed), float) for seed in (1, 2))
    values = np.abs(one - two).mean(axis=-1)
    said = page.inner_text(".viewer .legend b")
    assert said == f"Mean {values.mean():.2f}, largest {values.max():.0f} of 255 levels"
    expected = np.asarray(maps.heat_map(values, 0, 128, stops=maps.MAGMA).convert("RGB"), int)
    pixels = canvas(page)
    inside = pixels[pixels[..., 3] > 0].reshape(HEIGHT, WIDTH, 4)[..., :3].astype(int)
    assert np.abs(inside - expected).max() <= 2


# Crops


def draw_box(page, index=1, dx=40, dy=30) -> None:
    x, y = middle(page, index)
    page.click(".viewer .tools .box")
    page.mouse.move(x - dx / 2, y - dy / 2)
    page.mouse.down()
    page.mouse.move(x + dx / 2, y + dy / 2, steps=3)
    page.mouse.up()
    settled(page)


def test_what_is_in_the_box_is_enlarged_in_the_order_of_the_pictures(page):
    draw_box(page)
    names = page.locator(".viewer .crops figcaption").all_inner_texts()
    assert names == ["Input", "First <b>", "Second", "Reference"]
    for index in range(4):
        pixels = canvas(page, index, ".crops")
        times = pixels.shape[1] // 40
        assert pixels.shape[:2] == (30 * times, 40 * times)
        small = pixels[::times, ::times]
        assert np.array_equal(pixels, small.repeat(times, 0).repeat(times, 1))
        assert set(small[..., 2].ravel()) == {40 * index}
    x0, y0 = small[0, 0, :2]
    y, x = np.mgrid[0:30, 0:40]
    assert np.array_equal(small[..., :2], np.stack([x0 + x, y0 + y], axis=-1))
    assert f"at ({x0}, {y0})" in page.inner_text(".viewer .crops .about")


def test_the_outline_lies_around_the_box_and_not_on_it(page):
    draw_box(page)
    pixels = canvas(page, 1)
    red = (pixels[..., :3] == [0xE1, 0x1D, 0x2E]).all(-1)
    rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    inside = pixels[rows[0] + 2 : rows[-1] - 1, columns[0] + 2 : columns[-1] - 1]
    assert inside.shape[:2] == (30, 40)
    assert (inside[..., 2] == 40).all()


def test_the_box_obeys_the_keyboard(page):
    press(page, "b")
    before = page.inner_text(".viewer .crops .about")
    press(page, "Shift+ArrowRight", ">")
    assert page.inner_text(".viewer .crops .about") != before
    press(page, "b")
    assert page.is_hidden(".viewer .crops")


# Links


def test_a_link_reopens_exactly_this_view(page, open_page):
    mode(page, "swipe")
    press(page, "x", "+", "+", "ArrowRight", "ArrowDown")
    page.focus(".viewer .divider")
    page.keyboard.press("PageDown")
    press(page, "b")
    page.click(".viewer .link")
    page.wait_for_function("location.hash.includes('scene=test%2Flocated')")
    fragment = page.evaluate("location.hash")
    again = open_page(fragment)
    assert np.array_equal(canvas(again), canvas(page))
    assert again.evaluate("location.hash") == fragment
    assert percent(again) == percent(page)
    for which in ("first", "second"):
        assert again.input_value(f"select.{which}") == page.input_value(f"select.{which}")


def test_a_link_opened_right_after_a_change_wins_over_it(page):
    press(page, "o", "+", "+")
    fragment = "#scene=test%2Flocated&mode=flip&first=2&second=1&zoom=5&x=50&y=40"
    page.evaluate(
        "fragment => { location.hash = fragment; "
        # what the view before it writes into the address once it is quiet
        "history.replaceState(history.state, '', '#scene=test%2Flocated&mode=grid&zoom=3'); }",
        fragment,
    )
    page.wait_for_function("document.querySelector('.viewer').dataset.mode === 'flip'")
    assert zoom(page) == 5
    page.wait_for_function("location.hash.includes('mode=flip')")


def test_a_broken_link_opens_the_ordinary_view(open_page):
    page = open_page("#scene=test%2Flocated&mode=%3Cb%3E&first=9&zoom=-3&x=nan&box=1+2+a+4&split=7")
    assert page.watch.complaints == []
    assert page.get_attribute(".viewer", "data-mode") == "grid"
    assert canvas(page, 1)[:, :, 3].any()


# Figures


def figure(page):
    """What is exported now: pixels, and the LaTeX that goes with it."""
    if page.is_hidden(".viewer .panel"):
        page.click(".viewer .export")
    with page.expect_download() as download:
        page.click(".viewer .png")
    with Image.open(download.value.path()) as image:
        assert image.format == "PNG"
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.01)
        pixels = np.asarray(image.convert("RGB"))
    return pixels, page.input_value(".viewer .tex"), download.value.suggested_filename


def test_the_figure_of_a_grid_has_the_sources_pixels(page):
    press(page, "o", "+", "+", "+", "ArrowRight")
    frame = canvas(page, 1)
    x0, y0, x1, y1 = (int(value) for value in (*frame[0, 0, :2], *frame[-1, -1, :2]))
    pixels, tex, name = figure(page)
    w, h = x1 - x0 + 1, y1 - y0 + 1
    times = (pixels.shape[1] - 3 * GAP) // 4 // w
    assert times > 1
    sources = [located_lq().resize((WIDTH, HEIGHT), 0), *(located(n) for n in (1, 2, 3))]
    for index, source in enumerate(sources):
        crop = np.asarray(source)[y0 : y1 + 1, x0 : x1 + 1]
        left = index * (w * times + GAP)
        tile = pixels[: h * times, left : left + w * times]
        assert np.array_equal(tile, crop.repeat(times, 0).repeat(times, 1)), index
    assert name == "places-grid.png"
    assert "\\includegraphics[width=\\linewidth]{places-grid.png}" in tex


def test_the_latex_has_names_and_metrics_escaped(page):
    _, tex, _ = figure(page)
    assert "100\\%\\_of\\_A\\&B $\\downarrow$" in tex
    assert "First <b> & 27.50 dB & 1.00 & 1.5 s, 16.7 M parameters \\\\" in tex
    assert "\\textbf{30.00 dB}" in tex
    assert tex.count("{") == tex.count("}")
    heads = next(line for line in tex.splitlines() if "uparrow" in line)
    assert heads.count("&") - heads.count("\\&") == 3


def test_the_figure_of_a_box_has_the_crops_in_order(page):
    draw_box(page)
    pixels, _, name = figure(page)
    assert name == "places-crops.png"
    crop = canvas(page, 1, ".crops")
    x0, y0 = (int(value) for value in crop[0, 0, :2])
    # The last tile ends at the right edge: count its pixels' repetition back from there.
    row = pixels[5, ::-1, 0].astype(int)
    times = int(np.argmax(row != row[0]))
    assert times > 1
    wide, tall = 40 * times, 30 * times
    for index, source in enumerate(
        [located_lq().resize((WIDTH, HEIGHT), 0), *map(located, (1, 2, 3))]
    ):
        left = pixels.shape[1] - (4 - index) * wide - (3 - index) * GAP
        expected = np.asarray(source)[y0 : y0 + 30, x0 : x0 + 40]
        tile = pixels[:tall, left : left + wide]
        assert np.array_equal(tile, expected.repeat(times, 0).repeat(times, 1)), index


def test_the_figure_of_a_swipe_is_cut_where_the_divider_is(page):
    mode(page, "swipe")
    frame = canvas(page)
    times = int(zoom(page))
    left = int(np.argmax(frame[frame.shape[0] // 2, :, 3] > 0))
    box = page.locator(".viewer .stage canvas").bounding_box()
    for part in range(times):  # on a pixel's edge, and on every part of it
        divider = left + 120 * times + part
        handle = page.locator(".viewer .divider").bounding_box()
        page.mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + 30)
        page.mouse.down()
        page.mouse.move(box["x"] + divider, handle["y"] + 30)
        page.mouse.up()
        line = canvas(page)[frame.shape[0] // 2, :, 2]
        assert set(line[left:divider]) == {40}
        assert line[divider] == 120
        at = 120 + (2 * part >= times)  # the nearest edge, upwards from the middle
        expected = np.asarray(located(1)).copy()
        expected[:, at:, 2] = 120
        pixels, _, _ = figure(page)
        enlarged = pixels.shape[1] // WIDTH
        small = pixels[: HEIGHT * enlarged : enlarged, ::enlarged]
        assert np.array_equal(small, expected), part


# What the page says and does


def test_keys_do_what_the_help_says(page):
    for key, name in (("s", "swipe"), ("l", "flip"), ("d", "difference"), ("g", "grid")):
        press(page, key)
        assert attribute(page, ".viewer", "data-mode") == name
        assert attribute(page, f".viewer [data-mode={name}]", "aria-pressed") == "true"
    press(page, "[", "]")
    assert page.evaluate("document.querySelector('.viewer select.first').value") == "2"
    assert page.evaluate("document.querySelector('.viewer select.second').value") == "0"


def test_the_keyboard_alone_reaches_everything_and_shows_where_it_is(page):
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.className.split(' ')[0]"))
        if "stage" in reached:
            break
    assert {
        "mode",
        "out",
        "in",
        "fit",
        "actual",
        "box",
        "link",
        "export",
        "hold",
        "stage",
    } <= reached
    style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert style == "solid"


def test_every_picture_has_its_text_and_numbers_have_directions(page):
    texts = page.locator(".viewer .stage canvas[role=img]").evaluate_all(
        "all => all.map(one => one.getAttribute('aria-label'))"
    )
    assert texts[:2] == ["Input: Places", "First <b>: Places"]
    strip = page.inner_text(".viewer figure >> nth=1")
    assert "PSNR ↑ 27.50 dB" in " ".join(strip.split()).replace(" (higher is better)", "")
    assert "1.5 s · 16.7 M parameters" in strip
    assert page.locator(".viewer figure b >> nth=1").inner_text() == "First <b>"
    assert page.locator(".viewer .best").count() == 1


def test_nothing_of_an_unnamed_method_reaches_the_page(page):
    show(page, "blind", 2)
    assert SECRET not in page.content()
    assert page.locator(".viewer figcaption b").all_inner_texts() == ["A", "B"]
    assert page.is_hidden(".viewer .export")
    assert page.is_hidden(".viewer .link")
    assert page.is_hidden(".viewer [data-mode=difference]")


def test_a_picture_that_arrives_does_not_move_the_view(page):
    page.click("#show-growing")
    page.wait_for_selector(".viewer .note:has-text('Restoring…')")
    loaded(page)
    press(page, "o", "+", "+", "+", "ArrowRight")
    before = canvas(page, 1)
    page.click("#show-grown")
    page.wait_for_function(
        "[...document.querySelectorAll('.viewer .note')].every(n => !n.textContent)"
    )
    assert np.array_equal(canvas(page, 1), before)
    assert same(canvas(page, 2)[..., :2], before[..., :2])


# On a phone


@pytest.fixture(scope="module")
def one_phone(open_page):
    return open_page(
        viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True,
        device_scale_factor=3,
    )  # fmt: skip


@pytest.fixture
def phone(one_phone):
    reset(one_phone, 390, 844)
    return one_phone


def touch(page, kind: str, *points) -> None:
    session = getattr(page, "cdp", None) or page.context.new_cdp_session(page)
    page.cdp = session
    session.send(
        "Input.dispatchTouchEvent",
        {
            "type": kind,
            "touchPoints": [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)],
        },
    )


def test_two_fingers_zoom_all_frames_to_whole_pixels(phone):
    x, y = middle(phone, 1)
    before = zoom(phone)
    touch(phone, "touchStart", (x - 20, y), (x + 20, y))
    for spread in (26, 34, 45, 60):
        touch(phone, "touchMove", (x - spread, y), (x + spread, y))
        settled(phone)
    touch(phone, "touchEnd")
    after = zoom(phone)
    assert after == int(after)
    assert before * 2 <= after <= before * 4
    pixels = canvas(phone, 1)
    assert np.array_equal(pixels[..., :2], shown_place(pixels, after))
    assert same(canvas(phone, 3)[..., :2], pixels[..., :2])


def test_one_finger_moves_and_holding_the_button_flips(phone):
    phone.click(".viewer .in", click_count=4)
    place = canvas(phone, 1)[50, 50][:2].astype(int)
    x, y = middle(phone, 1)
    touch(phone, "touchStart", (x, y))
    for step in range(1, 6):
        touch(phone, "touchMove", (x - 6 * step, y))
        settled(phone)
    touch(phone, "touchEnd")
    assert canvas(phone, 1)[50, 50][0] > place[0]
    phone.locator(".viewer .hold").scroll_into_view_if_needed()
    box = phone.locator(".viewer .hold").bounding_box()
    touch(phone, "touchStart", (box["x"] + 20, box["y"] + 20))
    assert canvas(phone, 1)[50, 50][2] == 120
    touch(phone, "touchEnd")
    assert canvas(phone, 1)[50, 50][2] == 40


def test_nothing_is_wider_than_a_phone_and_targets_are_large(phone):
    for name in ("swipe", "flip", "difference", "grid"):
        mode(phone, name)
        assert phone.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        for box in phone.locator(".viewer :is(button, select):visible").evaluate_all(
            "all => all.map(one => [one.offsetWidth, one.offsetHeight])"
        ):
            assert min(box) >= 44, name
    press(phone, "b")
    phone.click(".viewer .export")
    assert phone.evaluate("document.documentElement.scrollWidth <= innerWidth")
