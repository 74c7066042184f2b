import csv
import hashlib
import json

import pandas as pd
import pytest

from study.analyse import main
from study.design import StudyDesign, write_study
from study.exports import bibtex, latex_table, long_table
from study.plan import dry_run
from study.plots import figures, power_curves
from study.store import SqliteStore
from study.votes import COLUMNS, VotesError, read_votes, read_withdrawals, write_votes
from tests.study.rows import HASH, frame, mess_up, pair_rows, pick_rows, vote
from tests.study.studies import make_study


@pytest.fixture
def messy(tmp_path):
    """A votes file with everything that can go wrong, and withdrawals beside it."""
    rows, _ = mess_up(pick_rows(1), 2)
    write_votes(rows, tmp_path / "votes.csv")
    (tmp_path / "withdrawals.csv").write_text("participant,requested_utc\np02,2026-01-01\n")
    return tmp_path / "votes.csv"


def run(*arguments):
    return main([*map(str, arguments), "--bootstrap", "50"])


def test_votes_without_a_study_file_are_analysed_and_it_says_so(messy, tmp_path, capsys):
    out = tmp_path / "result.json"
    assert run("--votes", messy, "--out", out) == 0
    printed = capsys.readouterr().out
    assert "No study file: default pipeline v1" in printed
    assert f"most frequent study hash of the votes, {HASH}" in printed
    result = json.loads(out.read_text())
    assert result["headline"] in printed
    assert result["cleaning"]["dropped_withdrawn"] > 0
    assert result["inputs"]["withdrawals"] == "withdrawals.csv"


def test_other_withdrawals_can_be_named(messy, tmp_path):
    other, out = tmp_path / "other.csv", tmp_path / "result.json"
    other.write_text("participant,requested_utc\n")
    assert run("--votes", messy, "--withdrawals", other, "--out", out) == 0
    assert json.loads(out.read_text())["cleaning"]["dropped_withdrawn"] == 0


def test_without_out_the_result_goes_to_standard_output(messy, capsys):
    assert run("--votes", messy) == 0
    assert json.loads(capsys.readouterr().out)["pipeline"] == "v1"


def test_the_same_votes_give_the_same_bytes_in_any_order(messy, tmp_path):
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    run("--votes", messy, "--out", first)
    lines = messy.read_text().splitlines(keepends=True)
    messy.write_text("".join([lines[0], *reversed(lines[1:])]))
    run("--votes", messy, "--out", second)
    assert first.read_bytes() == second.read_bytes()


def test_parquet_gives_the_same_as_csv(messy, tmp_path):
    pd.read_csv(messy, dtype=str, keep_default_na=False).to_parquet(tmp_path / "votes.parquet")
    results = []
    for name in ("votes.csv", "votes.parquet"):
        run("--votes", tmp_path / name, "--out", tmp_path / "r.json")
        results.append({**json.loads((tmp_path / "r.json").read_text()), "inputs": None})
    assert results[0] == results[1]


def test_expertise_is_taken_from_participants(messy, tmp_path):
    (tmp_path / "participants.csv").write_text("participant,expertise\np00,expert\np01,naive\n")
    run("--votes", messy, "--out", tmp_path / "r.json")
    levels = json.loads((tmp_path / "r.json").read_text())["unscreened"]["breakdowns"]["expertise"]
    assert set(levels["levels"]) == {"expert", "naive", "unknown"}


@pytest.fixture
def voted(tmp_path):
    """A study file, and beside it a store in which simulated judges have voted."""
    design = StudyDesign(golden=1, repeats=1, training=0)
    study = make_study(images=10, methods="ABC", design=design)
    write_study(study, tmp_path / "study.json")
    dry_run(study, tmp_path, judges=4, careless=0.2, seed=3, bootstrap=10)
    (tmp_path / "dry-run.sqlite").rename(tmp_path / "study.sqlite")
    return study, tmp_path


def test_a_study_is_analysed_from_the_store_beside_it(voted, capsys):
    study, folder = voted
    out = folder / "result.json"
    assert run(folder / "study.json", "--out", out) == 0
    result = json.loads(out.read_text())
    card = result["report_card"]
    assert card["chain_verifies"]
    assert card["participants_started"] == 4
    assert result["cleaning"]["study_hash"] == study.hash
    assert "No study file" not in capsys.readouterr().out


def test_an_export_gives_the_same_numbers_again_and_its_manifest_holds(voted):
    study, folder = voted
    export, out, again = folder / "export", folder / "a.json", folder / "b.json"
    assert run(folder / "study.json", "--out", out, "--export", export) == 0
    manifest = json.loads((export / "MANIFEST.json").read_text())
    assert manifest["study_hash"] == study.hash
    assert manifest["chain_verifies"]
    for name, entry in manifest["files"].items():
        data = (export / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry["sha256"]
        assert b"\r\n" not in data or name.endswith(".parquet")
    with (export / "votes.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) - 1 == manifest["files"]["votes.csv"]["rows"]
    assert (
        run("--votes", export / "votes.csv", "--study", export / "study.json", "--out", again) == 0
    )
    one, two = (json.loads(path.read_text()) for path in (out, again))
    for key in ("cleaning", "screened", "unscreened", "headline"):
        assert one[key] == two[key]


def test_withdrawing_changes_the_analysis_and_the_export(voted):
    study, folder = voted
    store = SqliteStore(folder / "study.sqlite")
    who = next(event.participant for event in store.events(type="consent"))
    store.withdraw(study.hash, who)
    store.close()
    out, export = folder / "r.json", folder / "export"
    assert run(folder / "study.json", "--out", out, "--export", export) == 0
    assert json.loads(out.read_text())["report_card"]["participants_withdrawn"] == 1
    assert who not in (export / "votes.csv").read_text()
    assert who not in (export / "participants.csv").read_text()
    assert who in (export / "withdrawals.csv").read_text()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a,b\n1,2\n", "lacks the columns"),
        ("", "not a CSV"),
    ],
)
def test_what_is_no_votes_file_is_refused(text, sentence, tmp_path, capsys):
    (tmp_path / "votes.csv").write_text(text)
    assert run("--votes", tmp_path / "votes.csv") == 2
    assert sentence in capsys.readouterr().err


def test_missing_files_are_named(tmp_path, capsys):
    assert run("--votes", tmp_path / "none.csv") == 2
    assert run(tmp_path / "none.json") == 2
    write_study(make_study(), tmp_path / "study.json")
    assert run(tmp_path / "study.json") == 2
    errors = capsys.readouterr().err
    assert "There is no file" in errors
    assert "There is no study file" in errors
    assert "There is no store" in errors


@pytest.mark.parametrize(
    "arguments",
    [[], ["s.json", "--votes", "v.csv"], ["--votes", "v.csv", "--store", "x"],
     ["s.json", "--withdrawals", "w.csv"], ["--votes", "v.csv", "--export", "x"]],
)  # fmt: skip
def test_options_that_do_not_go_together_are_refused(arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2


@pytest.mark.parametrize(
    ("column", "value", "sentence"),
    [
        ("seq", "x", "row 2: seq is a whole number, not 'x'"),
        ("choice_position", "1.5", "choice_position is a whole number"),
        ("kind", "mian", "not 'mian'"),
        ("schema_version", "2", "schema version"),
    ],
)
def test_a_bad_cell_is_named(column, value, sentence, tmp_path):
    rows = [vote(1), {**vote(2), column: value}]
    write_votes(rows, tmp_path / "votes.csv")
    with pytest.raises(VotesError, match=sentence):
        read_votes(tmp_path / "votes.csv")


def test_withdrawals_need_their_column(tmp_path):
    (tmp_path / "w.csv").write_text("who\nx\n")
    with pytest.raises(VotesError, match="lacks the column participant"):
        read_withdrawals(tmp_path / "w.csv")


def results():
    from study.analysis import analyse

    return [analyse(frame(make(3)), bootstrap=20) for make in (pick_rows, pair_rows)]


def test_latex_has_a_row_for_each_method_and_escapes_names():
    for result in results():
        table = latex_table(result, {"A": "A_1 & more"})
        assert table.count(r"\\") == 5
        assert r"A\_1 \& more" in table
        assert table.count("{") == table.count("}")


def test_bibtex_names_the_study():
    assert HASH in bibtex(results()[0], "A study")


def test_the_long_table_has_one_choice_a_trial():
    rows = [row for row in pair_rows(3) if row["kind"] == "main" and row["choice"] != "skip"]
    table = long_table(frame(pair_rows(3)), list("ABCD"))
    assert len(table) == 2 * len(rows)
    assert (table.groupby("trial")["chosen"].sum() == 1).all()


def test_figures_show_the_numbers_of_the_result():
    best, pairs = results()
    rate = figures(best)["selection_rate"]
    R = best["screened"]
    assert list(rate.data[0].x) == R["order"]
    assert list(rate.data[0].y) == pytest.approx(
        [100 * R["methods"][m]["share"] for m in R["order"]]
    )
    for bar, up in zip(rate.data[0].y, rate.data[0].error_y.array, strict=True):
        assert bar + up <= 100
    strengths = figures(pairs)["davidson_strengths"]
    theta = pairs["screened"]["davidson_theta"]
    assert sorted(strengths.data[0].x) == pytest.approx(sorted(theta.values()))
    matrix = figures(pairs)["win_matrix"].data[0]
    assert matrix.z[0][1] + matrix.z[1][0] == pytest.approx(100)
    assert set(figures(pairs)) == {
        "davidson_strengths", "win_matrix", "position_balance", "agreement",
    }  # fmt: skip


def test_a_result_without_votes_has_no_figures():
    best, _ = results()
    best["screened"]["leader"] = None
    assert figures(best) == {}


def test_power_curves_have_a_line_for_each_number_of_images():
    table = [
        {"participants": p, "images": n, "twoway": p * n / 10_000}
        for p in (15, 30)
        for n in (20, 50)
    ]
    figure = power_curves(table)
    assert [trace.name for trace in figure.data] == ["20 images", "50 images"]
    assert list(figure.data[1].y) == [0.075, 0.15]


def test_titles_replace_ids_in_figures():
    best, _ = results()
    assert "PURE" in figures(best, {"A": "PURE"})["selection_rate"].data[0].x
