"""A participant's way through the Study tab in a real browser, by keyboard alone."""

import importlib
import itertools
import sys
from collections import Counter
from types import SimpleNamespace

import pytest

from study.store import vote_rows
from tests.browser.conftest import Watch
from tests.ui.study_app import SECRETS, launch, room_of, study_file

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore:.*no_silent_downcasting.*"),
]

FEW = {"golden": 2, "training": 1, "repeats": 0, "min_view_ms": 250, "viewport_min_px": 1000}
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}

# Names, sizes, headings, contrast of what is visible in the study; what is wrong, in words.
FAULTS = """() => {
  const root = document.querySelector('.study'), faults = [];
  const visible = (node) => node.checkVisibility({visibilityProperty: true})
    && node.getClientRects().length;
  const name = (node) => (node.getAttribute('aria-label') || node.labels?.[0]?.textContent
    || node.textContent || '').trim();
  const wanted = 'button, input, select, progress, [role=img], [tabindex="0"]';
  for (const node of root.querySelectorAll(wanted)) {
    if (!visible(node)) continue;
    if (!name(node)) faults.push('no name: ' + node.outerHTML.slice(0, 90));
    const box = (node.labels?.[0] || node).getBoundingClientRect();
    if (node.matches('button, input, select') && Math.min(box.height, box.width) < 43.5) {
      faults.push('small: ' + name(node) + ' ' + box.width + ' × ' + box.height);
    }
  }
  if (!root.getAttribute('aria-label') || !root.querySelector('h2')) faults.push('no region');
  const radios = [...root.querySelectorAll('input[type=radio]')];
  const groups = new Set(radios.map((r) => r.form && r.name));
  if (groups.size > 1) faults.push('radios of several groups');
  const parse = (text) => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    const scale = text.startsWith('color(') ? 255 : 1;
    return [r * scale, g * scale, b * scale, a];
  };
  const light = (colour) => {
    const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = colour.map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour[3] > 0.99) return colour;
    }
    return [255, 255, 255, 1];
  };
  const walk = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement;
    const text = walk.currentNode.textContent.trim();
    if (!text || !visible(node) || node.closest('.unseen, .said, .note')) continue;
    const [a, b] = [light(parse(getComputedStyle(node).color)), light(ground(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) faults.push('contrast ' + ratio.toFixed(2) + ': ' + text.slice(0, 40));
  }
  if (document.documentElement.scrollWidth > innerWidth) faults.push('wider than the window');
  return faults;
}"""
FOCUS = """() => {
  const node = document.activeElement, box = node.getBoundingClientRect();
  const style = getComputedStyle(node);
  return {inside: Boolean(node.closest('.study')), top: box.top + scrollY, left: box.left,
    bottom: box.bottom + scrollY, text: (node.getAttribute('aria-label')
      || node.labels?.[0]?.textContent || node.textContent).trim(),
    ring: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2};
}"""


@pytest.fixture(scope="module")
def served(checkpoint_folder, tmp_path_factory):
    """Serves a study; gives its address and room."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PURE_CHECKPOINT", str(checkpoint_folder))
        patch.setenv("PURE_DEVICE", "cpu")
        sys.modules.pop("app", None)
        app = importlib.import_module("app")
    opened = []

    def start(**values):
        room = room_of(study_file(tmp_path_factory.mktemp("study"), **values))
        page, address = launch(app, room)
        opened.append((page, room))
        return SimpleNamespace(address=address, room=room)

    yield start
    for page, room in opened:
        page.close()
        room.close()


@pytest.fixture(scope="module")
def picks(served):
    return served(images=4, design=FEW)


@pytest.fixture
def visit(browser):
    """Opens a study as a participant would: by the link the owner shares."""
    contexts = []

    def start(study, size="desktop", dark=False, context=None, fragment="#study"):
        width, height = SIZES[size]
        if context is None:
            context = browser.new_context(
                viewport={"width": width, "height": height}, accept_downloads=True,
                has_touch=width < 800, color_scheme="dark" if dark else "light",
            )  # fmt: skip
            contexts.append(context)
        page = context.new_page()
        page.watch = Watch(page)
        page.goto(study.address + ("?__theme=dark" if dark else "") + fragment)
        page.wait_for_selector(".study h2:not(:has-text('Study'))")
        return page

    yield start
    for context in contexts:
        context.close()


def tab_to(page, text):
    """Press Tab until something named so has the focus."""
    for _ in range(40):
        if page.evaluate(FOCUS)["text"].startswith(text):
            return
        page.keyboard.press("Tab")
    pytest.fail(f"Tab does not reach {text!r}")


def heading(page):
    return page.inner_text(".study h2")


def enter(page, text):
    """Press Enter on a button, and wait until another screen is there."""
    before = heading(page)
    tab_to(page, text)
    page.keyboard.press("Enter")
    page.wait_for_function(
        "before => ![before, 'Loading the next pictures…'].includes("
        "document.querySelector('.study h2').textContent)",
        arg=before,
    )


def take_part(page):
    tab_to(page, "I am 18")
    page.keyboard.press("Space")
    enter(page, "Take part")
    enter(page, "Start")
    if "small window" in heading(page):
        enter(page, "Go on anyway")


def shown(page):
    """Wait for the pictures of a trial; its number."""
    page.wait_for_selector(".study .stage-place:not(.waiting) canvas")
    page.wait_for_selector(".study .choice input:enabled")
    return int(page.inner_text(".study .count").split("rial ")[1].split(" of")[0])


def answer(page, *keys):
    """Answer the trial that is shown, and wait for what comes after it."""
    number = shown(page)
    for key in keys:
        page.keyboard.press(key)
    page.wait_for_selector(".study .confirm:enabled")
    page.keyboard.press("Enter")
    page.wait_for_function(
        """number => {
          const title = document.querySelector('.study h2').textContent;
          if (title.startsWith('Loading')) return false;
          const count = document.querySelector('.study .screen .count');
          return !count || !count.textContent.includes('rial ' + number + ' of');
        }""",
        arg=number,
    )


def to_the_end(page, *keys):
    """Answer until the end; the headings that were seen."""
    titles = [heading(page)]
    while titles[-1] != "Thank you":
        if page.locator(".study .screen .trial").count():
            answer(page, *(keys or ("2",)))
        else:
            enter(page, "Continue")
        titles.append(heading(page))
    return titles


def votes(study):
    return vote_rows(study.room.store, study.room.study.hash)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_a_whole_session_by_keyboard_alone_with_nothing_inaccessible(picks, visit, size, dark):
    before = len(votes(picks))
    page = visit(picks, size, dark)
    assert page.evaluate(FAULTS) == []
    take_part(page)
    shown(page)
    assert page.evaluate(FAULTS) == []
    answer(page, "3", "1")
    assert heading(page) in ("Right", "Not quite")
    assert page.evaluate(FAULTS) == []
    titles = to_the_end(page)
    assert "Half way" in titles
    assert page.evaluate(FAULTS) == []
    assert "Your code" in page.inner_text(".study")
    new = votes(picks)[before:]
    assert Counter(row["kind"] for row in new) == {"training": 1, "main": 4, "golden": 2}
    assert [row["choice_position"] for row in new] == [0, *[1] * 6]
    assert all(row["response_ms"] >= 250 for row in new)
    small = {"small_viewport" in row["flags"] for row in new}
    assert small == {size == "phone"}
    assert page.watch.foreign == []
    assert page.watch.complaints == []


def test_the_focus_goes_the_way_the_eye_does_and_is_always_visible(picks, visit):
    page = visit(picks)
    take_part(page)
    shown(page)
    page.keyboard.press("1")
    page.wait_for_selector(".study .confirm:enabled")
    page.focus(".study h2")
    places = []
    for _ in range(30):
        page.keyboard.press("Tab")
        place = page.evaluate(FOCUS)
        if not place["inside"]:
            break
        places.append(place)
    names = [place["text"] for place in places]
    assert any(name.startswith("Pictures:") for name in names)
    assert names[-3:] == ["Confirm", "Stop for now", "Withdraw"]
    assert all(place["ring"] for place in places), names
    for one, two in itertools.pairwise(places):
        assert two["bottom"] > one["top"], (one, two)  # never back up


def test_a_reload_goes_on_where_it_was_and_a_second_tab_never_forks(picks, visit):
    page = visit(picks)
    take_part(page)
    answer(page, "1")
    enter(page, "Continue")
    answer(page, "2")
    assert shown(page) == 3
    page.reload()
    page.wait_for_selector(".study h2:has-text('Welcome back')")
    assert "2 of 7" in page.inner_text(".study")
    enter(page, "Continue")
    assert shown(page) == 3
    other = visit(picks, context=page.context)
    enter(other, "Continue")
    answer(other, "1")
    answer(page, "2")  # the same trial: the first answer counts
    assert "the first answer counts" in page.inner_text(".study .saved")
    assert shown(page) == 4
    mine = votes(picks)[-1]["participant"]
    assert len([row for row in votes(picks) if row["participant"] == mine]) == 3


def test_saved_is_said_only_when_the_server_has_it_and_a_lost_answer_is_sent_again(picks, visit):
    page = visit(picks)
    take_part(page)
    shown(page)
    lost = []

    def lose(route):
        # The server gets the first two, the page hears nothing of it.
        if len(lost) < 2:
            lost.append(route.fetch())
            route.abort()
        else:
            route.continue_()

    before = len(votes(picks))
    page.route("**/study_vote", lose)
    page.keyboard.press("1")
    page.wait_for_selector(".study .confirm:enabled")
    page.dblclick(".study .confirm")
    page.wait_for_selector(".study .saved:has-text('Not saved yet')")
    assert "Saved at" not in page.inner_text(".study .saved")
    page.wait_for_selector(".study .saved:has-text('Saved at')", timeout=15_000)
    assert len(votes(picks)) == before + 1
    assert len(lost) == 2


def test_nothing_in_the_page_of_a_trial_names_a_method(picks, visit):
    page = visit(picks)
    bodies = []
    page.on("response", lambda answer: bodies.append(answer))
    take_part(page)
    answer(page, "1")
    enter(page, "Continue")
    shown(page)
    seen = [page.content(), page.url, page.title(), page.evaluate("JSON.stringify(localStorage)")]
    seen += [answer.url + str(answer.headers) + answer.text() for answer in bodies if answer.ok]
    seen += [page.evaluate("performance.getEntries().map((entry) => entry.name).join()")]
    assert len(bodies) > 6
    for text in seen:
        assert not [word for word in SECRETS if word in text]
    assert page.locator(".study img").count() == 0  # canvases: nothing to save under a name
    labels = page.locator(".study canvas").evaluate_all("all => all.map(c => c.ariaLabel)")
    letters = [f"Restoration {letter}" for letter in "ABC"]
    assert labels == ["Input, its pixels enlarged", *letters]


def test_zoom_and_place_are_one_for_all_and_a_pixel_is_a_pixel_at_100_percent(picks, visit):
    page = visit(picks)
    take_part(page)
    shown(page)
    assert page.inner_text(".study .percent") == "100 %"
    page.focus(".study .stage")
    assert page.get_attribute(".study .viewer", "data-zoom") == "1"
    for expected in ("2", "4", "4"):
        page.keyboard.press("+")
        page.wait_for_selector(f".study .viewer[data-zoom='{expected}']")
    for _ in range(4):
        page.keyboard.press("-")
    page.wait_for_selector(".study .viewer[data-zoom='1']")
    page.keyboard.press("1")  # answers work while the pictures have the focus
    assert page.evaluate("document.querySelector('.study input:checked').value") == "0"
    # every frame shows its picture's own pixels: 40 × 32 of them and nothing else
    drawn = page.locator(".study canvas").evaluate_all(
        """all => all.map((canvas) => {
          const {width, height} = canvas;
          const data = canvas.getContext('2d').getImageData(0, 0, width, height).data;
          let count = 0;
          for (let i = 3; i < data.length; i += 4) if (data[i] === 255) count += 1;
          return count;
        })"""
    )
    assert drawn == [40 * 32] * 4
    page.wait_for_selector(".study .confirm:enabled")
    page.keyboard.press("Tab")
    page.focus(".study h2")
    page.keyboard.press("Enter")
    page.wait_for_selector(".study .saved:has-text('Saved at')")
    row = votes(picks)[-1]
    assert (row["zoom_max"], row["zoomed"]) == (4, "1|1|1")


def test_time_in_another_tab_does_not_count(picks, visit):
    page = visit(picks)
    take_part(page)
    shown(page)
    page.keyboard.press("1")
    page.evaluate(
        "Object.defineProperty(document, 'visibilityState',"
        " {get: () => 'hidden', configurable: true})"
    )
    hidden = page.inner_text(".study .confirm")
    page.wait_for_timeout(600)
    if hidden != "Confirm":
        assert page.is_disabled(".study .confirm")
    page.evaluate("delete document.visibilityState")
    page.wait_for_selector(".study .confirm:enabled")
    page.keyboard.press("Enter")
    page.wait_for_selector(".study .saved:has-text('Saved at')")
    row = votes(picks)[-1]
    assert row["response_ms"] < 600 or hidden == "Confirm"
    assert "hidden_tab" in row["flags"]


def test_pairs_have_no_difference_and_blocks_ask_one_question_each(served, visit):
    pairs = served(
        images=2,
        mode="pairwise",
        methods=SECRETS[:2],
        criteria=("consistency", "quality"),
        design=FEW | {"golden": 0, "training": 0},
    )
    page = visit(pairs)
    take_part(page)
    titles, keys = [], iter(["t", "ArrowRight", "ArrowLeft", "2"])
    while heading(page) != "Thank you":
        if page.locator(".study .screen .trial").count():
            titles.append(heading(page))
            answer(page, next(keys))
        else:
            titles.append(heading(page))
            enter(page, "Continue")
    assert sorted(set(titles)) == [
        "A new question", "Half way", "Which is most true to the input?", "Which looks best?",
    ]  # fmt: skip
    rows = votes(pairs)
    assert [row["choice_position"] for row in rows] == [-1, 1, 0, 1]
    assert rows[0]["choice"] == "tie"
    assert [row["criterion"] for row in rows[::2]] != [rows[0]["criterion"]] * 2


def test_stopping_gives_a_link_that_goes_on_elsewhere_and_withdrawing_erases(picks, visit):
    page = visit(picks)
    take_part(page)
    answer(page, "1")
    enter(page, "Continue")
    shown(page)
    enter(page, "Stop for now")
    link = page.inner_text(".study .code")
    elsewhere = visit(picks, fragment="#" + link.split("#")[1])
    assert heading(elsewhere) == "Welcome back"
    assert "#participant" not in elsewhere.url
    before = len(votes(picks))
    enter(elsewhere, "Withdraw")
    enter(elsewhere, "Erase my answers")
    assert heading(elsewhere) == "Erased"
    assert len(votes(picks)) == before - 1
    assert picks.room.store.verify().ok
    assert elsewhere.evaluate("localStorage.length") == 0
