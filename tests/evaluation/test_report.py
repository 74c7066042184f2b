import csv
import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from evaluation import ceiling, metrics, quoted, report, runner, scores
from evaluation.report import Table, frontier, summarise, to_csv, to_html, to_latex


def picture(seed, size):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8))


def add(folder, method, values, *, seconds=None, parameters=None, details=None, **card):
    """A method's outputs with made-up scores: {metric: [value of each picture]}."""
    (folder / method).mkdir(parents=True)
    rows = []
    for i, name in enumerate("abc"):
        picture(i, 8).save(folder / method / f"{name}.png")
        content = {
            "title": method.title(),
            "family": "other",
            "scale": 4,
            "device": "cpu",
            "parameters": parameters,
            "details": details or {},
            **card,
        }
        (folder / method / f"{name}.json").write_text(json.dumps(content))
        rows += [f"{method},{name},{metric},{v[i]},1,k" for metric, v in values.items()]
        if seconds:
            with (folder / method / runner.SECONDS).open("a") as file:
                file.write(json.dumps({"picture": name, "seconds": seconds[i]}) + "\n")
    with (folder / scores.FILE).open("a") as file:
        file.write("\n".join(rows) + "\n")


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "results" / "benchmark_realsr"
    (root / "lq").mkdir(parents=True)
    for name in "abc":
        picture(0, 2).save(root / "lq" / f"{name}.png")
    add(
        *(root, "sharp", {"psnr_y": [20, 21, 22], "niqe": [3, 4, 5]}),
        seconds=[1, 9, 2],
        parameters=16_000_000,
    )
    add(root, "smooth", {"psnr_y": [26, 27, 28], "niqe": [7, 8, 9]}, seconds=[0.1, 0.1, 0.1])
    return root


def cells(table, name):
    (row,) = [row for row in table.rows if row[0] == name]
    return dict(zip(table.head, row, strict=True))


def test_means_medians_and_the_best_are_shown(folder):
    summary = summarise(folder)
    table = report.quality(summary)
    assert cells(table, "Sharp")["PSNR ↑"] == "21.00"
    assert cells(table, "Smooth")["NIQE ↓"] == "8.0000"
    best = {(table.rows[r][0], table.head[c]) for r, c in table.best}
    assert best == {("Smooth", "PSNR ↑"), ("Sharp", "NIQE ↓")}
    costs = report.costs(summary)
    assert cells(costs, "Sharp")["Seconds"] == "2.00"
    assert cells(costs, "Sharp")["Parameters, millions"] == "16.0"
    assert cells(costs, "Smooth")["Parameters, millions"] == "–"


def test_the_papers_row_stands_beside_a_set_of_the_same_name_and_scale_only(folder):
    quoted_row = cells(report.quality(summarise(folder)), "OSEDiff (quoted)")
    assert quoted_row["PSNR ↑"] == "25.15"
    assert quoted_row["NIQE ↓"] == "5.6442"
    other = folder.rename(folder.with_name("benchmark_drealsr"))  # ours is 4×, the paper's 2×
    assert not any("quoted" in row[0] for row in report.quality(summarise(other)).rows)


def test_a_metric_without_weights_is_named_and_not_shown_as_a_number(folder, monkeypatch):
    table = report.quality(summarise(folder))
    if metrics.table()["lpips"].missing() is None:
        pytest.skip("LPIPS is ready here.")
    assert not any("LPIPS" in head for head in table.head)
    assert any(line.startswith("LPIPS ↓ is not shown: needs") for line in table.foot)


def test_a_metric_whose_variant_differs_has_no_quoted_number(folder):
    with (folder / scores.FILE).open("a") as file:
        file.writelines(f"sharp,{name},musiq,50,1,k\n" for name in "abc")
    assert cells(report.quality(summarise(folder)), "OSEDiff (quoted)")["MUSIQ ↑"] == "–"


def test_a_mean_over_part_of_the_pictures_is_not_shown(folder):
    with (folder / scores.FILE).open("a") as file:
        file.write("sharp,a,consistency,50,1,k\n")
    assert "Consistency ↑" not in report.quality(summarise(folder)).head


def test_saved_outputs_have_no_seconds(folder):
    add(folder, "theirs", {"psnr_y": [1, 2, 3]})
    theirs = cells(report.costs(summarise(folder)), "Theirs")
    assert (theirs["Seconds"], theirs["Where"]) == ("–", "saved outputs, not timed")


def test_a_method_without_networks_has_no_parameters_which_is_a_number(folder):
    add(folder, "zero", {"psnr_y": [1, 2, 3]}, parameters=0, seconds=[1, 1, 1])
    assert cells(report.costs(summarise(folder)), "Zero")["Parameters, millions"] == "0.0"


def test_the_ceiling_is_shown_apart_and_never_the_best(folder):
    add(folder, "ceiling-nano", {"psnr_y": [50, 50, 50]}, family="ceiling", title="VQ")
    summary = summarise(folder)
    table = report.quality(summary)
    assert ("VQ", "PSNR ↑") not in {(table.rows[r][0], table.head[c]) for r, c in table.best}
    shown = report.ceiling(summary)
    assert cells(shown, "VQ")["PSNR ↑, dB"] == "50.00"
    assert cells(shown, "VQ-8, RealSR")["PSNR ↑, dB"] == "23.53"
    assert not any(row[0] == "VQ" for row in report.costs(summary).rows)


PURE = {"checkpoint": "nano", "sampling": "dynamic", "guidance_scale": 2.5, "k_max": 2000}


def test_guidance_is_shown_in_the_layout_of_table_5(folder):
    assert report.guidance(summarise(folder)) is None
    add(folder, "p", {"psnr_y": [1, 2, 3]}, details={**PURE, "guidance": "full"})
    add(folder, "q", {"psnr_y": [4, 5, 6]}, details={**PURE, "guidance": "none"})
    own = {**PURE, "guidance": "full", "guidance_scale": 1.0}  # differs in more than the text
    add(folder, "r", {"psnr_y": [7, 8, 9]}, details=own)
    table = report.guidance(summarise(folder))
    assert [row[:4] for row in table.rows] == [
        ("nano", "yes", "yes", "2.00"),
        ("nano", "no", "no", "5.00"),
    ]


def test_the_papers_ways_of_drawing_codes_form_a_curve_and_are_marked():
    shown = report.sampling_in_the_paper()
    (curve,) = [trace for trace in shown.figure.data if trace.mode == "lines"]
    assert list(zip(curve.x, curve.y, strict=True)) == sorted(quoted.SAMPLING.values())
    assert "quoted" in shown.title
    assert quoted.PAPER in " ".join(shown.table.foot)


def test_settings_that_differ_in_k_max_form_a_curve_in_its_order(folder):
    for k, p in ((500, 22), (10, 27), (2000, 20)):
        details = {**PURE, "guidance": "full", "k_max": k}
        add(folder, f"k{k}", {"psnr_y": [p] * 3, "niqe": [p / 5] * 3}, details=details)
    plane = report.figures(summarise(folder))[0]
    (curve,) = [trace for trace in plane.figure.data if trace.mode == "lines"]
    assert list(curve.x) == [27, 22, 20]


def test_every_figure_has_its_numbers_in_a_table(folder):
    add(folder, "third", {"psnr_y": [1, 2, 3], "niqe": [9, 9, 9]}, seconds=[3, 3, 3], parameters=5)
    figures = report.figures(summarise(folder))
    assert len(figures) == 4
    for figure in figures:
        points = [t for t in figure.figure.data if "markers" in t.mode]
        assert sum(len(trace.x) for trace in points) == len(figure.table.rows)


def test_a_method_is_marked_alike_in_every_figure(folder):
    """Also where a method before it is left out of one, for want of seconds or parameters."""
    add(folder, "a first", {"psnr_y": [1, 2, 3], "niqe": [9, 9, 9]}, parameters=1_502_134_000)
    marks = {}
    for figure in report.figures(summarise(folder)):
        for trace in figure.figure.data:
            if "markers" in trace.mode:
                marks.setdefault(trace.name, set()).add((trace.marker.color, trace.marker.symbol))
    assert set(marks) == {"A First", "Sharp", "Smooth"}
    assert [len(found) for found in marks.values()] == [1, 1, 1]
    assert len(set.union(*marks.values())) == 3


def test_costs_are_read_without_powers_of_ten(folder):
    add(folder, "large", {"psnr_y": [1, 2, 3], "niqe": [9, 9, 9]}, parameters=1_502_134_000)
    (figure,) = [f for f in report.figures(summarise(folder)) if "against parameters" in f.title]
    assert [row[:2] for row in figure.table.rows] == [("Large", "1,502"), ("Sharp", "16")]


def test_a_point_of_the_scatter_knows_its_method_and_picture(folder):
    figure = report.scatter(summarise(folder), "psnr_y", "niqe").figure
    assert [tuple(place) for place in figure.data[1].customdata] == [
        *(("smooth", "a"), ("smooth", "b"), ("smooth", "c")),
    ]


POINTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12)


@given(POINTS)
def test_the_frontier_is_what_nobody_beats(points):
    def beaten(p):
        return any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)

    assert {points[i] for i in frontier(points)} == {p for p in points if not beaten(p)}


TABLE = Table(
    "T", ("Method", "A & B ↑"), (("x_1 <y>", "50 %"), ("z", "1")), frozenset({(0, 1)}), ("f & g",)
)


def test_tables_are_escaped_for_where_they_go():
    assert "<td>x_1 &lt;y&gt;</td><td><strong>50 %</strong></td>" in to_html(TABLE)
    assert "f &amp; g" in to_html(TABLE)
    latex = to_latex(TABLE)
    assert r"Method & A \& B $\uparrow$ \\" in latex
    assert r"x\_1 <y> & \textbf{50 \%} \\" in latex
    assert list(csv.reader(io.StringIO(to_csv(TABLE)))) == [
        ["Method", "A & B ↑"],
        ["x_1 <y>", "50 %"],
        ["z", "1"],
    ]


def test_the_report_needs_no_network(folder, tmp_path):
    written = report.write(folder.parent, tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text("utf-8")
    assert "src='plotly.min.js'" in page
    assert "https://cdn" not in page
    assert {path.suffix for path in written} == {".js", ".html", ".csv", ".tex"}
    assert "quoted from the PURE paper" in page


def test_without_results_the_command_says_what_to_do(tmp_path, capsys):
    assert report.main([str(tmp_path), "--out", str(tmp_path / "report")]) == 1
    assert "make some: evaluation.runner" in capsys.readouterr().err


def test_quoted_rows_have_a_value_for_each_of_the_ten_metrics():
    assert list(metrics.table())[:10] == list(quoted.COLUMNS)
    for row in quoted.QUALITY:
        assert list(row.values) == list(quoted.COLUMNS)


def test_the_ceiling_is_the_round_trip_and_is_made_once(tmp_path, checkpoint_folder):
    from pure.checkpoint import load_vq

    folder = tmp_path / "set"
    (folder / "lq").mkdir(parents=True)
    (folder / "gt").mkdir()
    picture(1, 20).save(folder / "gt" / "a.png")
    assert ceiling.measure(folder, str(checkpoint_folder)) == 1
    assert ceiling.measure(folder, str(checkpoint_folder)) == 0
    (made,) = folder.glob("ceiling-*/a.png")
    vq = load_vq(checkpoint_folder)
    padded = np.pad(np.asarray(picture(1, 20)), ((0, 4), (0, 4), (0, 0)), mode="symmetric")
    expected = vq.decode_image(vq.encode_image(Image.fromarray(padded))).crop((0, 0, 20, 20))
    assert Image.open(made).tobytes() == expected.tobytes()
