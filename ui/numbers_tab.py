"""Results in numbers: what was measured here beside what the paper reports, as tables and figures.

All numbers come from `evaluation.report`, which also writes them as a page of its own; this tab
lays them out, sorts them and opens the pictures behind a number in the viewer. Shown are the
shipped gallery, and every set of the results folder that the settings name.
"""

import html
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from evaluation import report, runner, scores
from evaluation.metrics import table
from evaluation.report import Figure, Summary, Table
from ui import gallery
from ui.boundary import guarded
from ui.viewer import MOST, Picture, Scene, payload, viewer

GALLERY_NAME = "examples"
TABLES = 4  # quality, cost, guidance, ceiling
FIGURES = 3
# A point that is clicked says which picture it is of, through a field nobody sees.
CLICKS = """
const attach = () => {
  const plot = document.querySelector('#per-picture .js-plotly-plot');
  if (!plot || plot.dataset.listens || !plot.on) return;
  plot.dataset.listens = 'yes';
  plot.on('plotly_click', (event) => {
    const field = document.querySelector('#picked textarea, #picked input');
    field.value = event.points[0].customdata[1];
    field.dispatchEvent(new Event('input', {bubbles: true}));
  });
};
new MutationObserver(attach).observe(document.body, {childList: true, subtree: true});
attach();
"""


@dataclass(frozen=True)
class Source:
    """A set whose numbers are shown.

    Attributes:
        scene: the pictures behind a picture's numbers, by its name.
    """

    title: str
    summary: Summary
    scene: Callable[[str], Scene | None]


def sources(gallery_folder: Path, results: Path) -> dict[str, Source]:
    """What there is to show, by name: the shipped gallery, and the sets of a results folder.

    Raises:
        GalleryError: the gallery is not what it should be.
    """
    found = {}
    shipped = gallery.numbers(gallery_folder, GALLERY_NAME)
    if shipped is not None:
        scenes = gallery.read(gallery_folder)
        found["gallery"] = Source(
            f"Example photos ({shipped.pictures})",
            shipped,
            # links are the Compare tab's
            lambda name: (
                replace(scenes[key], linked=False)
                if (key := gallery.KEYS + name) in scenes
                else None
            ),
        )
    for folder in scores.sets(results):
        summary = report.summarise(folder)
        if summary.scores:
            found[f"results/{folder.name}"] = Source(
                f"{folder.name} ({summary.pictures})", summary, _scene_of(folder, summary)
            )
    return found


def _scene_of(folder: Path, summary: Summary) -> Callable[[str], Scene | None]:
    known = set(pictures(summary))

    def scene(name: str) -> Scene | None:
        if name not in known:  # what a browser sends is not a path to read
            return None
        values: dict[str, dict[str, float]] = {}
        for score in summary.scores:
            if score.picture == name:
                values.setdefault(score.method, {})[score.metric] = score.value
        pictures = [Picture(folder / runner.INPUTS / f"{name}.png", "Input", "lq")]
        for row in summary.rows:
            file = folder / row.method / f"{name}.png"
            if file.exists() and len(pictures) < MOST - 1:
                own = gallery.shown_scores(values.get(row.method, {}))
                pictures.append(Picture(file, row.title, metrics=own))
        reference = folder / runner.REFERENCES / f"{name}.png"
        if reference.exists():
            pictures.append(Picture(reference, "Reference", "gt"))
        key = f"{folder.name}/{name}"
        return Scene(tuple(pictures), key=key, title=name) if len(pictures) > 1 else None

    return scene


def caption(shown: Table) -> str:
    """A table's title and what one has to know to read it."""
    feet = "".join(f"<li>{html.escape(line)}</li>" for line in shown.foot)
    title = f"<h3>{html.escape(shown.title)}</h3>" if shown.title else ""
    details = f"<details><summary>How to read it</summary><ul>{feet}</ul></details>" if feet else ""
    return f'<div class="numbers-head">{title}{details}</div>'


def pictures(summary: Summary) -> list[str]:
    """Names of the pictures there are numbers for."""
    return sorted({score.picture for score in summary.scores} - {scores.WHOLE_SET})


def axes(summary: Summary) -> list[tuple[str, str]]:
    """Metrics of single pictures, titles and names."""
    present = {score.metric for score in summary.scores if score.picture != scores.WHOLE_SET}
    return [(metric.title, name) for name, metric in table().items() if name in present]


def build(gallery_folder: Path, results: Path) -> None:
    """The tab's content and what its parts do."""
    found = sources(gallery_folder, results)
    with gr.Column(elem_id="numbers"):
        _lay_out(found)


def _lay_out(found: dict[str, Source]) -> None:
    gr.HTML('<h2 class="visually-hidden">Results in numbers</h2>')
    gr.HTML(
        '<p class="note">Every number says where it is from: measured here, or quoted from the '
        "paper (PURE, ICCV 2025). Click a column's head to sort and rank by it.</p>"
    )
    if found:
        _measured(found)
    drawn = report.sampling_in_the_paper()
    for shown in report.from_the_paper():
        gr.HTML(caption(shown))
        if shown == drawn.table:
            _figure(drawn)
        else:
            _table(shown)


def _measured(found: dict[str, Source]) -> None:
    first = next(iter(found))
    chosen = gr.Radio(
        [(source.title, name) for name, source in found.items()],
        value=first,
        label="Pictures",
        elem_id="numbers-set",
    )
    slots: list[Any] = []
    for shown in _padded(report.tables(found[first].summary), TABLES):
        with gr.Column(visible=shown is not None) as column:
            slots += [column, gr.HTML("" if shown is None else caption(shown)), _table(shown)]
    for figure in _padded(report.overview(found[first].summary), FIGURES):
        slots += _figure(figure)
    gr.HTML(
        '<div class="numbers-head"><h3>Picture by picture</h3></div>'
        '<p class="note">Click a point to see its pictures, or choose one by name.</p>'
    )
    options = axes(found[first].summary)
    x, y = _two(options)
    with gr.Row():
        along = gr.Dropdown(options, value=x, label="Across", elem_id="across")
        up = gr.Dropdown(options, value=y, label="Up", elem_id="up")
        names = pictures(found[first].summary)
        picture = gr.Dropdown(
            names, value=names[0] if names else None, label="Picture", elem_id="numbers-picture"
        )
    plot = gr.Plot(_scatter(found[first], x, y), show_label=False, elem_id="per-picture")
    picked = gr.Textbox(visible="hidden", elem_id="picked", label="Picked")
    gr.HTML("", js_on_load=CLICKS, visible="hidden")
    shown_scene = found[first].scene(names[0]) if names else None
    view = viewer(shown_scene, elem_id="numbers-viewer")

    quick: dict[str, Any] = {
        "api_visibility": "private",
        "queue": False,
        "show_progress": "hidden",
    }

    def show(name: str) -> list[Any]:
        summary = found[name].summary
        changes: list[Any] = []
        for shown in _padded(report.tables(summary), TABLES):
            visible = gr.update(visible=shown is not None)
            head = "" if shown is None else caption(shown)
            changes += [visible, head, "" if shown is None else _cells(shown)]
        for figure in _padded(report.overview(summary), FIGURES):
            visible = gr.update(visible=figure is not None)
            if figure is None:
                changes += [visible, "", None, ""]
            else:
                changes += [visible, _heading(figure), figure.figure, _cells(figure.table)]
        options, names = axes(summary), pictures(summary)
        x, y = _two(options)
        value = names[0] if names else None
        return [
            *changes,
            gr.update(choices=options, value=x),
            gr.update(choices=options, value=y),
            gr.update(choices=names, value=value),
            _scatter(found[name], x, y),
            payload(found[name].scene(value) if value else None),
        ]

    chosen.change(guarded(show), chosen, [*slots, along, up, picture, plot, view], **quick)
    for axis in (along, up):
        axis.input(
            guarded(lambda name, x, y: _scatter(found[name], x, y)),
            [chosen, along, up],
            plot,
            **quick,
        )
    picture.input(
        guarded(lambda name, which: payload(found[name].scene(which))),
        [chosen, picture],
        view,
        **quick,
    )
    picked.change(
        guarded(lambda name, which: (which, payload(found[name].scene(which)))),
        [chosen, picked],
        [picture, view],
        **quick,
    )


def _padded(items: list[Any], count: int) -> list[Any]:
    return [*items, *[None] * (count - len(items))]


def _two(options: list[tuple[str, str]]) -> tuple[str | None, str | None]:
    """PSNR, and what it is usually drawn against."""
    names = [name for _, name in options]
    y = next((name for name in ("musiq", "niqe") if name in names), None)
    return (names[0] if names else None), (y or (names[-1] if names else None))


def _scatter(source: Source, x: str | None, y: str | None) -> Any:
    drawn = None if x is None or y is None else report.scatter(source.summary, x, y)
    return None if drawn is None else drawn.figure


def _table(shown: Table | None) -> gr.HTML:
    return gr.HTML(
        "" if shown is None else _cells(shown),
        js_on_load=f"element.addEventListener('click', {report.SORT});",
    )


def _cells(shown: Table) -> str:
    """A table without what one has to know to read it, which stands above."""
    name = html.escape(shown.title or "Numbers of the figure")
    return (
        f'<div class="numbers-table" role="region" tabindex="0" aria-label="{name}">'
        f"{report.to_html(replace(shown, foot=()))}</div>"
    )


def _heading(figure: Figure) -> str:
    return f'<div class="numbers-head"><h3>{html.escape(figure.title)}</h3></div>'


def _figure(figure: Figure | None) -> list[Any]:
    """A figure and its table beside it: the parts that change with the set."""
    with gr.Column(visible=figure is not None) as column:
        head = gr.HTML("" if figure is None else _heading(figure))
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                plot = gr.Plot(None if figure is None else figure.figure, show_label=False)
            with gr.Column(scale=2, min_width=260):
                cells = _table(None if figure is None else figure.table)
    return [column, head, plot, cells]
