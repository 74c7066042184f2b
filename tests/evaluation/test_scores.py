import csv

import numpy as np
import pytest
from PIL import Image

from evaluation import metrics, scores
from evaluation.metrics import Metric, MetricError, psnr_y, ssim_y
from evaluation.scores import Score, read, score


def picture(seed, size):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8))


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "results" / "set"
    for kind, size in (("lq", 8), ("gt", 32), ("one", 32), ("two", 32)):
        (root / kind).mkdir(parents=True)
        for i, name in enumerate("ab"):
            picture(len(kind) * 10 + i, size).save(root / kind / f"{name}.png")
    return root


@pytest.fixture
def chosen():
    return [metrics.table()[name] for name in ("psnr_y", "ssim_y", "consistency")]


def counted(name, calls, *, kind="reference", version="1", value=1.5):
    def make(device):
        def measure(sr, other):
            calls.append((sr.size, None if other is None else other.size))
            return value

        return measure

    return Metric(name, name, "a fake", kind, "higher", make, "any", version=version)


def test_every_output_is_scored_against_its_reference(folder, chosen):
    assert score(folder, chosen) == []
    found = {(s.method, s.picture, s.metric): s.value for s in read(folder)}
    assert len(found) == 2 * 2 * 3
    sr, gt = (Image.open(folder / kind / "b.png").convert("RGB") for kind in ("two", "gt"))
    assert found["two", "b", "psnr_y"] == pytest.approx(psnr_y(sr, gt))
    assert found["two", "b", "ssim_y"] == pytest.approx(ssim_y(sr, gt))


def test_metrics_get_what_they_compare_with(folder):
    calls = {kind: [] for kind in ("reference", "no reference", "input")}
    score(folder, [counted(kind, calls[kind], kind=kind) for kind in calls])
    assert set(calls["reference"]) == {((32, 32), (32, 32))}
    assert set(calls["no reference"]) == {((32, 32), None)}
    assert set(calls["input"]) == {((32, 32), (8, 8))}


def test_nothing_is_computed_twice(folder):
    calls = []
    metric = counted("m", calls)
    score(folder, [metric])
    content = (folder / scores.FILE).read_bytes()
    score(folder, [metric])
    assert len(calls) == 4
    assert (folder / scores.FILE).read_bytes() == content


@pytest.mark.parametrize("change", ["output", "reference", "version"])
def test_what_changed_is_computed_anew_and_the_old_number_goes(folder, change):
    calls = []
    score(folder, [counted("m", calls)])
    calls.clear()
    if change != "version":
        picture(99, 32).save(folder / {"output": "one", "reference": "gt"}[change] / "a.png")
    score(folder, [counted("m", calls, version="2" if change == "version" else "1", value=9.0)])
    assert len(calls) == {"output": 1, "reference": 2, "version": 4}[change]
    assert len(read(folder)) == 4
    assert sum(s.value == 9.0 for s in read(folder)) == len(calls)


def test_scores_of_metrics_not_asked_for_stay_and_those_of_deleted_pictures_go(folder):
    score(folder, [counted("m", []), counted("n", [])])
    (folder / "one" / "a.png").unlink()
    score(folder, [counted("n", [])])
    left = [(s.method, s.picture, s.metric) for s in read(folder)]
    assert ("two", "a", "m") in left
    assert not any(place[:2] == ("one", "a") for place in left)


def test_a_row_cut_short_by_a_kill_is_skipped(folder):
    score(folder, [counted("m", [])])
    with (folder / scores.FILE).open("a") as file:
        file.write("two,b,m,7.")
    calls = []
    assert len(read(folder)) == 4
    score(folder, [counted("m", calls)])
    assert calls == []


def test_without_references_only_what_needs_none_is_scored(folder):
    for path in (folder / "gt").glob("*"):
        path.unlink()
    (folder / "gt").rmdir()
    score(folder, [counted("m", []), counted("n", [], kind="no reference")])
    assert {s.metric for s in read(folder)} == {"n"}


def test_a_picture_that_cannot_be_scored_is_named_and_the_others_are_scored(folder, chosen):
    picture(1, 16).save(folder / "one" / "a.png")
    problems = score(folder, chosen[:1])
    assert problems == [
        "PSNR of one, a: Expected two pictures of one size, got 16 × 16 and 32 × 32."
    ]
    assert len(read(folder)) == 3


def test_the_file_is_a_plain_csv_with_versions(folder, chosen):
    score(folder, chosen)
    with (folder / scores.FILE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["method", "picture", "metric", "value", "version", "key"]
    assert {row["version"] for row in rows} == {"1"}


def test_means_are_over_pictures():
    made = [Score("a", p, "m", v, "1", "k") for p, v in (("x", 1.0), ("y", 2.0), ("z", 6.0))]
    assert scores.means(made) == {("a", "m"): (3.0, 3)}


def test_a_metric_that_is_not_ready_is_refused_by_name():
    with pytest.raises(MetricError, match="no metric 'beauty'; there are psnr_y"):
        scores.choose(["beauty"])
    names = {metric.name for metric in scores.choose(None)}
    assert {"psnr_y", "ssim_y", "niqe"} <= names


def test_the_command_line_scores_and_prints_means(folder, capsys):
    assert scores.main([str(folder.parent), "--metrics", "psnr_y"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[:3] for line in lines] == [
        ["set", "one", "psnr_y"],
        ["set", "two", "psnr_y"],
    ]
    assert scores.main([str(folder)]) == 1
