"""Tables and figures from a results folder, on the page and as static files.

Everything shown is read from what runner and scores left; nothing is computed twice or stored. A
set becomes a `Summary`; tables are rows of text, figures are plotly with the same numbers in a
table beside them. `python -m evaluation.report results/ --out report/` writes HTML that needs no
network, CSV and LaTeX.
"""

import argparse
import csv
import html
import io
import json
import logging
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from evaluation import quoted, runner, scores
from evaluation.ceiling import FAMILY as CEILING
from evaluation.datasets import write_atomically
from evaluation.metrics import Metric, table
from evaluation.scores import WHOLE_SET, Score

PLOTLY = "plotly.min.js"
NONE = "–"
DIGITS = {
    "psnr_y": 2,
    "consistency": 2,
    "fid": 2,
    "musiq": 2,
    "fd_efficientnet_proxy": 2,
}  # four for all others
# Colour-blind safe (Okabe and Ito, 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
CURVE = {"dash": "dot", "color": "#888"}
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross")
SHORT_FOOT = 3  # lines that stand below a table without being asked for
# of a checkpoint's sampling, besides the largest k
DRAWN = ("guidance_scale", "temperature", "mu")
SMALL_SET = 50  # pictures below which a Fréchet distance is mostly noise


@dataclass(frozen=True)
class Row:
    """A method's numbers on a set, measured here.

    Attributes:
        seconds: median for a picture; None for saved outputs.
        where: what they were measured on.
        means: by metric, over `count` pictures; of half-scored metrics there is none.
        details: of the first run card.
    """

    method: str
    title: str
    family: str
    parameters: int | None
    seconds: float | None
    where: str
    means: dict[str, float]
    count: int
    details: dict[str, Any]  # Any: what JSON holds


@dataclass(frozen=True)
class Summary:
    """A set of pictures: what was measured on it.

    Attributes:
        pictures: in the set.
        scale: of the methods' outputs; None if no run card says.
        scores: one by one.
    """

    name: str
    pictures: int
    scale: int | None
    rows: tuple[Row, ...]
    scores: tuple[Score, ...]

    @property
    def metrics(self) -> list[Metric]:
        """Those with a number for any method, in the order of the table of metrics."""
        present = {name for row in self.rows for name in row.means}
        return [metric for metric in table().values() if metric.name in present]


@dataclass(frozen=True)
class Table:
    """Text in rows.

    Attributes:
        best: places (row, column) of the best measured value of a column.
        foot: what one has to know to read it.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: frozenset[tuple[int, int]] = frozenset()
    foot: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figure:
    """A figure and the same numbers in a table."""

    title: str
    figure: go.Figure
    table: Table


def summarise(folder: Path) -> Summary:
    """What is known about a set, from its folder of results."""
    found = tuple(scores.read(folder))
    means = scores.means(found)
    rows, scale = [], None
    for method in scores.methods(folder):
        card = _card(folder / method)
        scale = scale or card.get("scale")
        seconds = runner.seconds(folder / method)
        count = len(list((folder / method).glob("*.png")))
        # A mean over part of the pictures must not stand beside means over all.
        own = {
            metric: value
            for (name, metric), (value, n) in means.items()
            if name == method and (n == count or table()[metric].kind == "set")
        }
        details, parameters = card.get("details", {}), card.get("parameters")
        rows.append(
            Row(
                method=method,
                title=card.get("title", method),
                family=card.get("family", "other"),
                parameters=details.get("parameters") if parameters is None else parameters,
                seconds=statistics.median(seconds.values()) if seconds else None,
                where=card.get("device", ""),
                means=own,
                count=count,
                details=details,
            )
        )
    rows.sort(key=lambda row: (row.family == CEILING, row.method))
    pictures = len(list((folder / runner.INPUTS).glob("*.png")))
    return Summary(folder.name, pictures, scale, tuple(rows), found)


def _card(folder: Path) -> dict[str, Any]:
    for path in sorted(folder.glob("*.json")):
        return json.loads(path.read_text("utf-8"))
    return {}


def quality(summary: Summary) -> Table:
    """All metrics of all methods, and the paper's rows for the same set and scale, if any."""
    metrics = summary.metrics
    head = ("Method", *(f"{metric.title} {metric.arrow}" for metric in metrics), "Pictures")
    rows, best = [], set()
    for row in summary.rows:
        values = [_number(metric.name, row.means.get(metric.name)) for metric in metrics]
        rows.append((row.title, *values, str(row.count)))
    for column, metric in enumerate(metrics, 1):
        best |= {(index, column) for index in _best(summary.rows, metric)}
    foot = [f"{metric.title}: {metric.variant}." for metric in metrics]
    name = quoted.dataset_of(summary.name)
    for line in quoted.QUALITY:
        if (line.dataset, line.scale) == (name, summary.scale):
            values = [
                line.values.get(metric.name, NONE) if metric.comparable else NONE
                for metric in metrics
            ]
            rows.append((f"{line.method} (quoted)", *values, NONE))
            foot.append(f"{line.method} (quoted): {quoted.PAPER}.")
    missing = [
        f"{metric.title} {metric.arrow} is not shown: {reason}."
        for metric in table().values()
        if metric not in metrics and (reason := metric.missing()) is not None
    ]
    if summary.pictures < SMALL_SET and any(metric.kind == "set" for metric in metrics):
        foot.append(f"A Fréchet distance of {summary.pictures} pictures is mostly noise.")
    return Table(
        f"{summary.name}: quality, measured here",
        head,
        tuple(rows),
        frozenset(best),
        (*foot, *missing),
    )


def _best(rows: Sequence[Row], metric: Metric) -> list[int]:
    values = {
        index: row.means[metric.name]
        for index, row in enumerate(rows)
        if metric.name in row.means and row.family != CEILING
    }
    if len(values) < 2:
        return []
    top = (max if metric.better == "higher" else min)(values.values())
    return [index for index, value in values.items() if value == top]


def _number(metric: str, value: float | None) -> str:
    return NONE if value is None else f"{value:.{DIGITS.get(metric, 4)}f}"


def _cost(value: float) -> str:
    """Three digits, and never as a power of ten."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def costs(summary: Summary) -> Table:
    """Parameters and seconds: measured here, and the paper's Table 4."""
    rows = [
        (
            row.title,
            NONE if row.parameters is None else f"{row.parameters / 1e6:.1f}",
            NONE if row.seconds is None else f"{row.seconds:.2f}",
            "saved outputs, not timed" if row.seconds is None else f"measured, {row.where}",
        )
        for row in summary.rows
        if row.family != CEILING
    ]
    rows += [
        (cost.method, str(cost.parameters_millions), f"{cost.seconds:.2f}", "quoted, A100")
        for cost in quoted.COSTS
    ]
    return Table(
        f"{summary.name}: cost of a picture",
        ("Method", "Parameters, millions", "Seconds", "Where"),
        tuple(rows),
        foot=(
            "Measured seconds are medians over the pictures of this set.",
            f"Quoted: {quoted.PAPER}, Table 4, 512 × 512 on one A100.",
        ),
    )


def from_the_paper() -> list[Table]:
    """What we have of the paper's tables, by itself."""
    metrics = table()
    return [
        Table(
            "The paper: quality",
            (
                "Set",
                "Scale",
                "Method",
                *(f"{metrics[c].title} {metrics[c].arrow}" for c in quoted.COLUMNS),
            ),
            tuple(
                (
                    line.dataset,
                    f"{line.scale}×",
                    line.method,
                    *(line.values[c] for c in quoted.COLUMNS),
                )
                for line in quoted.QUALITY
            ),
            foot=(
                f"Each row {quoted.PAPER}. Its other rows are not at hand and left out.",
                "DRealSR is enlarged two times here, four times in the set of that name elsewhere.",
                "Its MUSIQ looks like another variant than KonIQ-10k, so no measured one stands "
                "beside it.",
            ),
        ),
        Table(
            "The paper: how codes are drawn",
            ("Sampling", "PSNR ↑", "MUSIQ ↑"),
            tuple((name, f"{p:.2f}", f"{m:.2f}") for name, (p, m) in quoted.SAMPLING.items()),
            foot=(f"DRealSR, 2×; {quoted.PAPER}, Table 6, as far as at hand.",),
        ),
    ]


def sampling_in_the_paper() -> Figure:
    """The paper's Table 6 as far as we have it: how codes are drawn moves along a curve."""
    figure = go.Figure()
    points = sorted(quoted.SAMPLING.items(), key=lambda point: point[1])
    for index, (name, (x, y)) in enumerate(points):
        figure.add_scatter(x=[x], y=[y], mode="markers", name=name, marker=_marker(index, 12))
    figure.add_scatter(
        x=[x for _, (x, _) in points],
        y=[y for _, (_, y) in points],
        mode="lines",
        line=CURVE,
        name="how codes are drawn",
        hoverinfo="skip",
    )
    _axes(figure, "PSNR, dB ↑ (closer to the reference)", "MUSIQ ↑, as in the paper")
    shown = from_the_paper()[-1]
    return Figure(f"{shown.title}, quoted", figure, shown)


def ceiling(summary: Summary) -> Table | None:
    """The tokenizer's round trip, beside the paper's Table 1; None if it was not measured."""
    rows = [
        (row.title, _number("psnr_y", row.means["psnr_y"]), "measured")
        for row in summary.rows
        if row.family == CEILING and "psnr_y" in row.means
    ]
    if not rows:
        return None
    rows += [(f"VQ-8, {name}", f"{value:.2f}", "quoted") for name, value in quoted.CEILING.items()]
    return Table(
        f"{summary.name}: what the tokenizer keeps of a reference",
        ("Tokenizer", "PSNR ↑, dB", "Where from"),
        tuple(rows),
        foot=(f"Quoted: {quoted.PAPER}, Table 1.",),
    )


def guidance(summary: Summary) -> Table | None:
    """The paper's Table 5 layout: what stands before the picture; None without such variants."""
    names = {
        "full": ("yes", "yes"),
        "perception": ("yes", "no"),
        "understanding": ("no", "yes"),
        "none": ("no", "no"),
    }
    groups: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in summary.rows:
        if row.details.get("guidance") in names and row.details.get("sampling") == "dynamic":
            # what else may differ: a checkpoint may come with a sampling of its own
            same = tuple(row.details.get(key) for key in ("checkpoint", "k_max", *DRAWN))
            groups.setdefault(same, {})[row.details["guidance"]] = row
    rows = [
        group[name]
        for group in groups.values()
        if len(group) > 1
        for name in names
        if name in group
    ]
    if not rows:
        return None
    metrics = summary.metrics
    return Table(
        f"{summary.name}: guidance",
        ("Model", "Label", "Caption", *(f"{metric.title} {metric.arrow}" for metric in metrics)),
        tuple(
            (
                str(row.details["checkpoint"]),
                *names[row.details["guidance"]],
                *(_number(metric.name, row.means.get(metric.name)) for metric in metrics),
            )
            for row in rows
        ),
        foot=("Measured here, in the layout of the paper's Table 5.",),
    )


def figures(summary: Summary) -> list[Figure]:
    """Every figure there are numbers for."""
    last = _per_picture(summary)
    return [*overview(summary), *([] if last is None else [last])]


def overview(summary: Summary) -> list[Figure]:
    """Figures in which a method is one point."""
    made = (_plane(summary), _pareto(summary, "seconds"), _pareto(summary, "parameters"))
    return [figure for figure in made if figure is not None]


def perceptual(summary: Summary) -> str | None:
    """The metric of perceived quality to draw: MUSIQ if it was measured, else NIQE."""
    present = {metric.name for metric in summary.metrics}
    return next((name for name in ("musiq", "niqe") if name in present), None)


def _plane(summary: Summary) -> Figure | None:
    """Perception against distortion; settings that differ in k_max only form a curve."""
    y = perceptual(summary)
    rows = [row for row in summary.rows if {"psnr_y", y} <= row.means.keys()]
    if y is None or not rows:
        return None
    metrics = table()
    figure = go.Figure()
    curves: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        _point(figure, summary, row, row.means["psnr_y"], row.means[y])
        if row.details.get("sampling") == "dynamic":
            same = tuple(row.details.get(key) for key in ("checkpoint", "guidance", *DRAWN))
            curves.setdefault(same, []).append(row)
    for same, members in curves.items():
        members.sort(key=lambda row: row.details["k_max"])
        if len(members) > 1:
            figure.add_scatter(
                x=[row.means["psnr_y"] for row in members],
                y=[row.means[y] for row in members],
                mode="lines",
                line=CURVE,
                name=f"{same[0]}: k_max swept",
                hoverinfo="skip",
            )
    _axes(figure, "PSNR, dB ↑ (closer to the reference)", f"{metrics[y].title} {metrics[y].arrow}")
    return Figure(
        f"{summary.name}: perception and distortion, measured here",
        figure,
        Table(
            "",
            ("Method", "PSNR, dB", metrics[y].title),
            tuple(
                (row.title, _number("psnr_y", row.means["psnr_y"]), _number(y, row.means[y]))
                for row in rows
            ),
        ),
    )


def _pareto(summary: Summary, axis: str) -> Figure | None:
    """Quality against cost; the line joins the methods that no other beats in both."""
    y = perceptual(summary)
    if y is None:
        return None
    metric = table()[y]
    unit = {"seconds": 1.0, "parameters": 1e6}[axis]
    points = [
        (value / unit, row)
        for row in summary.rows
        if row.family != CEILING and y in row.means and (value := getattr(row, axis))
    ]
    if len(points) < 2:
        return None
    figure = go.Figure()
    for x, row in points:
        _point(figure, summary, row, x, row.means[y])
    front = frontier(
        [(x, row.means[y] * (1 if metric.better == "lower" else -1)) for x, row in points]
    )
    figure.add_scatter(
        x=[points[i][0] for i in front],
        y=[points[i][1].means[y] for i in front],
        mode="lines",
        line=CURVE,
        name="not beaten in both",
        hoverinfo="skip",
    )
    label = {"seconds": "seconds a picture, median", "parameters": "parameters, millions"}[axis]
    _axes(figure, label, f"{metric.title} {metric.arrow}")
    figure.update_xaxes(type="log")
    return Figure(
        f"{summary.name}: quality against {axis}, measured here",
        figure,
        Table(
            "",
            ("Method", label, metric.title, "Not beaten in both"),
            tuple(
                (row.title, _cost(x), _number(y, row.means[y]), "yes" if i in front else "no")
                for i, (x, row) in enumerate(points)
            ),
        ),
    )


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the points that no other beats, both lower being better; by the first number."""
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: points[i]):
        if not front or points[index][1] < points[front[-1]][1]:
            front.append(index)
    return front


def _per_picture(summary: Summary) -> Figure | None:
    y = perceptual(summary)
    return None if y is None else scatter(summary, "psnr_y", y)


def scatter(summary: Summary, x: str, y: str) -> Figure | None:
    """Two metrics of every picture; `customdata` of a point is (method, picture).

    None if there is no picture with both.
    """
    metrics = table()
    values: dict[tuple[str, str], dict[str, float]] = {}
    for score in summary.scores:
        if score.metric in (x, y) and score.picture != WHOLE_SET:
            values.setdefault((score.method, score.picture), {})[score.metric] = score.value
    figure = go.Figure()
    lines = []
    for index, row in enumerate(summary.rows):
        places = [p for p, v in values.items() if p[0] == row.method and len(v) == len({x, y})]
        if not places:
            continue
        figure.add_scatter(
            x=[values[place][x] for place in places],
            y=[values[place][y] for place in places],
            mode="markers",
            name=row.title,
            marker=_marker(index, 7, 0.7),
            customdata=places,
            hovertemplate="%{customdata[1]}<br>%{x:.3f}, %{y:.3f}",
        )
        lines += [
            (row.title, place[1], _number(x, values[place][x]), _number(y, values[place][y]))
            for place in places
        ]
    if not lines:
        return None
    _axes(
        figure,
        f"{metrics[x].title} {metrics[x].arrow}",
        f"{metrics[y].title} {metrics[y].arrow}",
    )
    return Figure(
        f"{summary.name}: picture by picture, measured here",
        figure,
        Table("", ("Method", "Picture", metrics[x].title, metrics[y].title), tuple(lines)),
    )


def _point(figure: go.Figure, summary: Summary, row: Row, x: float, y: float) -> None:
    """A method as one point, marked alike in every figure of its set."""
    figure.add_scatter(
        x=[x],
        y=[y],
        mode="markers",
        name=row.title,
        marker=_marker(summary.rows.index(row), 12),
        customdata=[row.method],
        # by itself, for names beside points lie on each other where methods are alike
        hovertemplate=f"{html.escape(row.title)}<br>%{{x}}, %{{y}}<extra></extra>",
    )


def _marker(index: int, size: int, opacity: float = 1.0) -> dict[str, Any]:
    """Colour and form, so that colour is not the only sign; 35 differ."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "symbol": SYMBOLS[index % len(SYMBOLS)],
        "size": size,
        "opacity": opacity,
    }


def _axes(figure: go.Figure, x: str, y: str) -> None:
    figure.update_layout(
        template="plotly_white",
        xaxis_title=x,
        yaxis_title=y,
        height=420,
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
        legend={"orientation": "h", "y": -0.2},
    )


def to_csv(shown: Table) -> str:
    """A table as CSV, feet left out."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(shown.head)
    writer.writerows(shown.rows)
    return text.getvalue()


LATEX = str.maketrans(
    {
        **{c: rf"\{c}" for c in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
        "×": r"$\times$",
        "≤": r"$\le$",
        "–": "--",
    }
)


def to_latex(shown: Table) -> str:
    """A table for a paper that uses booktabs; best values bold, feet as comments."""

    def line(cells: Iterable[str]) -> str:
        return " & ".join(cells) + r" \\"

    body = [
        line(
            rf"\textbf{{{cell.translate(LATEX)}}}"
            if (r, c) in shown.best
            else cell.translate(LATEX)
            for c, cell in enumerate(row)
        )
        for r, row in enumerate(shown.rows)
    ]
    return "\n".join(
        [
            *(f"% {foot}" for foot in (shown.title, *shown.foot)),
            rf"\begin{{tabular}}{{l{'r' * (len(shown.head) - 1)}}}",
            r"\toprule",
            line(cell.translate(LATEX) for cell in shown.head),
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


# A listener for clicks: a column's head sorts its table, the best first, and when clicked again the
# other way round. Where its arrow says which way is better, rows get a rank, equal values the same.
SORT = """(event) => {
  const head = event.target.closest('table.sortable th');
  if (!head) return;
  const table = head.closest('table'), body = table.tBodies[0], column = head.cellIndex;
  const first = head.textContent.includes('↑') ? 'descending' : 'ascending';
  const turned = {ascending: 'descending', descending: 'ascending'}[first];
  const order = head.getAttribute('aria-sort') === first ? turned : first;
  for (const other of table.tHead.rows[0].cells) other.removeAttribute('aria-sort');
  head.setAttribute('aria-sort', order);
  const text = (row) => row.cells[column].textContent;
  const number = (row) => parseFloat(text(row).replace(/,/g, ''));
  const sign = order === 'ascending' ? 1 : -1;
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [number(a), number(b)];
    if (isNaN(x) && isNaN(y)) return sign * text(a).localeCompare(text(b));
    if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
    return sign * (x - y);
  });
  body.append(...rows);
  const values = rows.map(number).filter((value) => !isNaN(value));
  for (const row of rows) {
    delete row.cells[0].dataset.rank;
    if (!/[↑↓]/.test(head.textContent) || isNaN(number(row))) continue;
    const better = (value) => first === 'descending' ? value > number(row) : value < number(row);
    row.cells[0].dataset.rank = 1 + values.filter(better).length;
  }
}"""


def to_html(shown: Table) -> str:
    """A table as HTML, which `SORT` makes sortable."""
    head = "".join(
        f"<th scope='col'><button type='button'>{html.escape(cell)}</button></th>"
        for cell in shown.head
    )
    body = ""
    for r, row in enumerate(shown.rows):
        cells = "".join(
            f"<td><strong>{html.escape(cell)}</strong></td>"
            if (r, c) in shown.best
            else f"<td>{html.escape(cell)}</td>"
            for c, cell in enumerate(row)
        )
        body += f"<tr>{cells}</tr>\n"
    foot = "".join(f"<li>{html.escape(line)}</li>" for line in shown.foot)
    return (
        f"<table class='sortable'><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>\n"
        + (
            f"<details class='foot'{' open' if len(shown.foot) <= SHORT_FOOT else ''}>"
            f"<summary>How to read it</summary><ul>{foot}</ul></details>\n"
            if foot
            else ""
        )
    )


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0;
  padding: 0; min-height: 2.75rem; cursor: pointer; text-align: inherit; }
th[aria-sort=ascending] button::after { content: " ▴"; }
th[aria-sort=descending] button::after { content: " ▾"; }
td[data-rank]::before { content: attr(data-rank) ". "; color: #555; }
.foot, .note { color: #555; font-size: .9rem; overflow-wrap: anywhere; }
details { margin: .5rem 0 2rem; }
summary { min-height: 2.75rem; line-height: 2.75rem; cursor: pointer; }
"""


def tables(summary: Summary) -> list[Table]:
    """Every table there are numbers for."""
    made = (quality(summary), costs(summary), guidance(summary), ceiling(summary))
    return [shown for shown in made if shown is not None]


def page(summaries: Sequence[Summary]) -> str:
    """The report as one HTML page, which wants `PLOTLY` beside it."""
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>Comparison</title><style>{STYLE}</style>",
        f"<script src='{PLOTLY}'></script></head><body><h1>Comparison</h1>",
        "<p class='note'>Measured with the commands of docs/metrics.md, unless a row says quoted. ",
        "Bold is the best measured value of a column. Click a column's head to sort and rank by ",
        "it.</p>",
    ]
    for summary in summaries:
        parts.append(f"<h2>{html.escape(summary.name)}, {summary.pictures} pictures</h2>")
        for shown in tables(summary):
            parts.append(f"<h3>{html.escape(shown.title)}</h3>{to_html(shown)}")
        for figure in figures(summary):
            drawn = figure.figure.to_html(full_html=False, include_plotlyjs=False)
            parts.append(f"<h3>{html.escape(figure.title)}</h3>{drawn}")
            parts.append(f"<details><summary>Table</summary>{to_html(figure.table)}</details>")
    parts.append("<h2>The paper, quoted</h2>")
    for shown in from_the_paper():
        parts.append(f"<h3>{html.escape(shown.title)}</h3>{to_html(shown)}")
    drawn = sampling_in_the_paper().figure.to_html(full_html=False, include_plotlyjs=False)
    parts.append(drawn)
    parts.append(f"<script>document.addEventListener('click', {SORT});</script></body></html>\n")
    return "\n".join(parts)


def write(results: Path, out: Path) -> list[Path]:
    """Write the report of a results folder: index.html, and each table as CSV and LaTeX.

    Raises:
        FileNotFoundError: there are no results.
    """
    folders = scores.sets(results)
    if not folders:
        raise FileNotFoundError(f"{results} holds no results; make some: evaluation.runner.")
    out.mkdir(parents=True, exist_ok=True)
    summaries = [summarise(folder) for folder in folders]
    library = files("plotly") / "package_data" / PLOTLY
    contents = {PLOTLY: library.read_bytes(), "index.html": page(summaries).encode()}
    for summary in summaries:
        for shown in tables(summary):
            stem = shown.title.replace(": ", "-").replace(", measured here", "").replace(" ", "-")
            contents[f"{stem}.csv"] = to_csv(shown).encode()
            contents[f"{stem}.tex"] = to_latex(shown).encode()
    for name, content in contents.items():
        write_atomically(out / name, content)
    return [out / name for name in contents]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.report", description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, default=Path("report"))
    options = parser.parse_args(arguments)
    try:
        written = write(options.results, options.out)
    except FileNotFoundError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write("".join(f"{path}\n" for path in written))
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    sys.exit(main())
