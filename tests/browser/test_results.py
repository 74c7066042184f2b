"""The Results tab in a real browser: what a result looks like, at two sizes, light and dark."""

import pytest

from tests.browser.test_study import FAULTS, SIZES

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore:.*no_silent_downcasting.*"),
]

# Grey words in figures are the usual fault: each is read on the ground behind the figure.
FIGURE_TEXT = """() => [...document.querySelectorAll('#results .js-plotly-plot text')]
  .filter((node) => node.getClientRects().length && !node.closest('.heatmap-label'))
  .map((node) => getComputedStyle(node).fill)"""
BODY = "() => getComputedStyle(document.querySelector('#results .headline')).color"


@pytest.fixture
def results(browser, address):
    """Opens the tab in a window."""
    contexts = []

    def open_(size, dark):
        width, height = SIZES[size]
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
        )
        contexts.append(context)
        page = context.new_page()
        page.goto(address + ("?__theme=dark" if dark else ""))
        page.wait_for_selector("#head")
        page.get_by_role("tab", name="Results").click()
        page.wait_for_selector("#results-head .note")
        return page

    yield open_
    for context in contexts:
        context.close()


@pytest.mark.parametrize(("size", "dark"), [("desktop", False), ("phone", True)])
def test_a_result_can_be_read_at_every_size_and_taken_along(results, size, dark):
    page = results(size, dark)
    assert "nobody sees a tally" in page.inner_text("#results-head")
    page.click("#results-source label:has-text('pairs')")
    page.wait_for_selector("#results-matrix .js-plotly-plot", timeout=120_000)
    page.wait_for_selector("#results-card table")
    assert "Davidson strength" in page.inner_text("#results-head .headline")
    assert "not people" in page.inner_text("#results-head")
    page.wait_for_function(f"() => new Set(({FIGURE_TEXT})()).size === 1")
    assert set(page.evaluate(FIGURE_TEXT)) == {page.evaluate(BODY)}
    faults = FAULTS.replace("'.study'", "'#results-body'")
    found = [fault for fault in page.evaluate(faults) if fault != "no region"]
    assert [fault for fault in found if fault.startswith(("contrast", "wider"))] == []
    with page.expect_download() as download:
        page.click("#votes-csv")
    assert download.value.suggested_filename == "votes.csv"
