import pytest

pytestmark = pytest.mark.browser


def test_a_point_that_is_clicked_shows_its_pictures(page):
    page.get_by_role("tab", name="Numbers").click()
    point = page.locator("#per-picture .js-plotly-plot .point")
    point.first.wait_for(state="attached")
    page.wait_for_selector("#numbers-viewer canvas")
    before = page.get_by_label("Picture", exact=True).input_value()
    scenes = page.evaluate(
        "document.querySelector('#per-picture .js-plotly-plot').data[0].customdata.map(p => p[1])"
    )
    other = next(i for i, name in enumerate(scenes) if name != before)
    point.nth(other).scroll_into_view_if_needed()
    point.nth(other).click(force=True)
    page.wait_for_function(
        "name => document.querySelector('#numbers-picture input').value === name",
        arg=scenes[other],
    )
    title = scenes[other].replace("_", " ").capitalize()
    page.wait_for_function(
        "title => document.querySelector('#numbers-viewer canvas')"
        ".getAttribute('aria-label')?.includes(title)",
        arg=title,
    )
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.watch.foreign == []
    assert page.watch.complaints == []
