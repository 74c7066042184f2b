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


def test_a_click_on_a_columns_head_sorts_and_ranks_and_another_turns_it_round(page):
    page.get_by_role("tab", name="Numbers").click()
    table = page.locator(".numbers-table table").first
    table.wait_for()

    def column(name: str) -> list[str]:
        place = [text.split(" ")[0] for text in table.locator("th").all_inner_texts()].index(name)
        return table.locator("tbody tr").evaluate_all(
            "(rows, place) => rows.map(row => row.cells[place].textContent)", place
        )

    def ranks() -> list[str | None]:
        return table.locator("tbody tr").evaluate_all(
            "rows => rows.map(row => row.cells[0].dataset.rank)"
        )

    values = sorted(map(float, column("PSNR")))
    psnr = table.get_by_role("button", name="PSNR")
    psnr.click()
    assert list(map(float, column("PSNR"))) == values[::-1]
    assert ranks() == [str(1 + values[::-1].index(value)) for value in values[::-1]]
    psnr.focus()
    page.keyboard.press("Enter")
    assert list(map(float, column("PSNR"))) == values
    assert table.locator("th[aria-sort=ascending]").count() == 1
    niqe = sorted(map(float, column("NIQE")))
    table.get_by_role("button", name="NIQE").click()
    assert list(map(float, column("NIQE"))) == niqe  # lower is better, so it comes first
    table.get_by_role("button", name="Method").click()
    assert column("Method") == sorted(column("Method"), key=str.lower)
    assert set(ranks()) == {None}
    assert page.watch.complaints == []


def test_a_methods_long_name_leaves_its_numbers_in_sight(page):
    page.get_by_role("tab", name="Numbers").click()
    table = page.locator(".numbers-table").first
    table.wait_for()
    right = table.evaluate(
        """part => {
          const row = part.querySelector('tbody tr');
          row.cells[0].textContent = 'Some method (saved outputs, second run)';
          return row.cells[2].getBoundingClientRect().right;
        }"""
    )
    assert right <= table.evaluate("part => part.getBoundingClientRect().right")
