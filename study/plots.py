"""Figures of a result JSON, with plotly: one function a figure, and nothing computed here.

Backgrounds are transparent and colours mid-tone, so that figures read on light and dark pages.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

INK, GRID = "#808080", "rgba(128,128,128,0.3)"
CELL_INK = "#111111"  # on the colours of the matrix, whatever the page's are
COLOUR, SECOND, CHANCE = "#3b82c4", "#d08a1c", "#c2544a"  # distinct to colour-blind readers
Names = Mapping[str, str] | None


def selection_rate(result: Mapping[str, Any], titles: Names = None) -> go.Figure:
    """Share of picks with two-way 95 % intervals, screened beside unscreened; chance as a line.

    As Fig. 5 of the PURE paper shows it, with the intervals it leaves out.
    """
    figure = go.Figure()
    order = result["screened"]["order"]
    for key, colour in (("screened", COLOUR), ("unscreened", SECOND)):
        methods = result[key]["methods"]
        shares = [_percent(methods[m]["share"]) for m in order]
        low, high = zip(*(_limits(methods[m]["ci_twoway_t"]) for m in order), strict=True)
        figure.add_bar(
            name=f"{key} ({result[key]['n_decided']} votes)",
            x=[_title(m, titles) for m in order],
            y=shares,
            marker_color=colour,
            error_y={
                "type": "data",
                "symmetric": False,
                "array": _gaps(shares, high),
                "arrayminus": _gaps(low, shares),
                "color": INK,
            },
            customdata=[[methods[m]["count"], methods[m]["shown"]] for m in order],
            hovertemplate="%{x}: %{y:.1f} %, %{customdata[0]} of %{customdata[1]} shown",
        )
    chance = 100 / len(result["methods"])
    figure.add_hline(y=chance, line_dash="dot", line_color=CHANCE, annotation_text="chance")
    return _styled(figure, "Picked as best", "", "share of picks (%), two-way 95 % CI")


def davidson_strengths(result: Mapping[str, Any], titles: Names = None) -> go.Figure:
    """Davidson strengths in log-odds with 95 % intervals clustered by participant."""
    figure = go.Figure()
    order = result["screened"]["order"][::-1]
    for key, colour, shift in (("screened", COLOUR, 0.1), ("unscreened", SECOND, -0.1)):
        R = result[key]
        theta = [R["davidson_theta"][m] for m in order]
        half = [_times(1.96, R["davidson_se_cluster"][m]) for m in order]
        figure.add_scatter(
            name=f"{key} ({R['n_used']} comparisons)",
            x=theta,
            y=[row + shift for row in range(len(order))],
            mode="markers",
            marker={"color": colour, "size": 9},
            error_x={"type": "data", "array": half, "color": colour},
            text=[_title(m, titles) for m in order],
            hovertemplate="%{text}: %{x:.3f}",
        )
    figure.add_vline(x=0, line_dash="dot", line_color=INK)
    figure.update_yaxes(
        tickvals=list(range(len(order))), ticktext=[_title(m, titles) for m in order]
    )
    return _styled(figure, "Davidson strengths", "log-odds, 95 % CI by participant", "")


def win_matrix(result: Mapping[str, Any], titles: Names = None) -> go.Figure:
    """How often the row was preferred to the column, in percent of decided comparisons."""
    R, methods = result["screened"], result["methods"]
    number = {m: i for i, m in enumerate(methods)}
    order = [number[m] for m in R["order"]]
    wins, ties = R["wins"], R["ties"]
    share, text = [], []
    for i in order:
        decided = [wins[i][j] + wins[j][i] for j in order]
        share.append(
            [100 * wins[i][j] / n if n else None for j, n in zip(order, decided, strict=True)]
        )
        text.append(
            [f"{wins[i][j]} : {wins[j][i]}, {ties[i][j]} ties" if i != j else "" for j in order]
        )
    names = [_title(m, titles) for m in R["order"]]
    figure = go.Figure(
        go.Heatmap(
            z=share,
            x=names,
            y=names,
            text=text,  # the counts, when a cell is pointed at: six columns of them fit no phone
            texttemplate="%{z:.0f}",
            textfont={"color": CELL_INK, "size": 14},
            zmin=0,
            zmax=100,
            colorscale=[[0, "#b2604a"], [0.5, "#d9d9d9"], [1, "#3b82c4"]],
            colorbar={"title": "%"},
            hovertemplate="%{y} over %{x}: %{z:.1f} %<br>%{text}",
        )
    )
    figure.update_yaxes(autorange="reversed")
    return _styled(figure, "Row preferred to column, %", "", "")


def position_balance(result: Mapping[str, Any], titles: Names = None) -> go.Figure:
    """How often each method was displayed at each position: flat if the design is balanced."""
    table = result["screened"]["shown_at_position"]
    figure = go.Figure()
    for method in result["methods"]:
        counts = table[method]
        figure.add_bar(
            name=_title(method, titles), x=[str(n + 1) for n in range(len(counts))], y=counts
        )
    return _styled(figure, "Balance of the design", "position on the screen", "times displayed")


def agreement(result: Mapping[str, Any]) -> go.Figure:
    """Agreement between people and with oneself, next to what the fitted model lets one expect."""
    R = result["screened"]
    same, repeats = R["self_consistency"]
    passed, golden = R.get("golden", [0, 0])
    rows = [
        ("Krippendorff's<br>alpha", R["kripp_alpha"], R.get("kripp_alpha_expected")),
        (
            f"repeats alike<br>(n = {repeats})",
            same / repeats if repeats else None,
            R.get("self_consistency_expected"),
        ),
        (f"goldens passed<br>(n = {golden})", passed / golden if golden else None, None),
    ]
    figure = go.Figure()
    labels = [label for label, _, _ in rows]
    for name, place, colour in (("observed", 1, COLOUR), ("expected from the model", 2, SECOND)):
        figure.add_bar(
            name=name,
            y=labels,
            x=[row[place] for row in rows],
            orientation="h",
            marker_color=colour,
        )
    figure.update_yaxes(autorange="reversed")
    return _styled(figure, "Agreement and consistency", "", "")


def power_curves(table: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Power over participants, a line for each number of images; rows as `study.plan` gives."""
    figure = go.Figure()
    for images in sorted({row["images"] for row in table}):
        rows = sorted(
            (row for row in table if row["images"] == images), key=lambda row: row["participants"]
        )
        figure.add_scatter(
            name=f"{images} images",
            x=[row["participants"] for row in rows],
            y=[row["twoway"] for row in rows],
            mode="lines+markers",
        )
    figure.add_hline(y=0.8, line_dash="dot", line_color=INK)
    figure.update_yaxes(range=[0, 1])
    return _styled(figure, "Power against runner-up", "participants", "simulated power, two-way")


def figures(result: Mapping[str, Any], titles: Names = None) -> dict[str, go.Figure]:
    """Every figure that the result has numbers for, by name."""
    out = {}
    if result["screened"]["leader"] is not None:
        if result["mode"] == "pick_best":
            out["selection_rate"] = selection_rate(result, titles)
        else:
            out["davidson_strengths"] = davidson_strengths(result, titles)
            out["win_matrix"] = win_matrix(result, titles)
        out["position_balance"] = position_balance(result, titles)
        out["agreement"] = agreement(result)
    return out


def _title(method: str, titles: Names) -> str:
    return (titles or {}).get(method, method)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _limits(pair: Sequence[float | None]) -> tuple[float | None, float | None]:
    """An interval of shares in percent, cut to what shares can be."""
    low, high = pair
    if low is None or high is None:
        return None, None
    return 100 * max(0.0, low), 100 * min(1.0, high)


def _gaps(lower: Sequence[float | None], upper: Sequence[float | None]) -> list[float | None]:
    return [
        None if a is None or b is None else max(0.0, b - a)
        for a, b in zip(lower, upper, strict=True)
    ]


def _times(factor: float, value: float | None) -> float | None:
    return None if value is None else factor * value


def _styled(figure: go.Figure, title: str, x: str, y: str) -> go.Figure:
    figure.update_layout(
        title=title,
        xaxis_title=x,
        yaxis_title=y,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": INK},
        margin={"l": 60, "r": 20, "t": 50, "b": 50},
        # below the axis: above it would cover the title where the figure is narrow
        legend={"orientation": "h", "y": -0.25, "yanchor": "top", "x": 0, "xanchor": "left"},
    )
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    figure.update_xaxes(gridcolor=GRID, zerolinecolor=GRID)
    figure.update_yaxes(gridcolor=GRID, zerolinecolor=GRID)
    return figure
