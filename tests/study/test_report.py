"""A result in words and tables: what is said is what the result holds, and no more."""

import copy

import pytest

from study import report
from study.analysis import analyse
from study.example import METHODS, example_study, simulate
from study.exports import bundle, export_study, write_report
from study.intervals import published_share
from study.simulate import Power
from study.store import SqliteStore
from tests.study.rows import frame, sheet_example


@pytest.fixture(scope="module")
def worked():
    """The worked pick-best example, whose numbers are known."""
    return analyse(frame(sheet_example()), bootstrap=10)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """Mode to (study, folder with its votes, result)."""
    from study.analyse import analyse_store

    found = {}
    for mode in ("pick_best", "pairwise"):
        folder = tmp_path_factory.mktemp(mode)
        study = simulate(mode, folder)
        store = SqliteStore(folder / "dry-run.sqlite")
        found[mode] = study, folder, analyse_store(store, study, bootstrap=20)
        store.close()
    return found


def cells(table):
    return {row[0]: row[1:] for row in table.rows}


def test_the_ranking_says_what_the_worked_example_has(worked):
    rows = cells(report.ranking(unscreened_in_front(worked)))
    assert rows["A"][:4] == ("16 / 30", "53.3", "13.6 to 93.0", "36.1 to 69.8")
    assert rows["C"][:2] == ("6 / 30", "20.0")


def unscreened_in_front(result):
    """Five people with six votes each would all be excluded as too few."""
    return {**result, "screened": result["unscreened"]}


def test_the_tests_against_the_leader_are_the_two_way_ones(worked):
    rows = cells(report.leader_tests(unscreened_in_front(worked)))
    assert rows["B"][:2] == ("+26.7", ".25")
    assert list(rows) == ["B", "C"]


def test_names_can_be_given_and_methods_keep_their_order(worked):
    table = report.ranking(unscreened_in_front(worked), {"A": "Ours"})
    assert [row[0] for row in table.rows] == ["Ours", "B", "C"]


@pytest.mark.parametrize("mode", ["pick_best", "pairwise"])
def test_every_table_of_a_whole_study_is_rectangular_and_has_every_method(simulated, mode):
    study, _, result = simulated[mode]
    tables = [
        report.ranking(result), report.leader_tests(result), report.balance(result),
        report.card(result), *report.breakdowns(result),
    ]  # fmt: skip
    for table in tables:
        assert table.rows, table.title
        assert {len(row) for row in table.rows} == {len(table.head)}, table.title
    assert set(cells(report.ranking(result))) == set(study.methods)
    assert len(report.leader_tests(result).rows) == len(METHODS) - 1
    assert {f"By {name}" for name in ("dataset", "scene")} <= {
        table.title for table in report.breakdowns(result)
    }


def test_the_report_card_has_all_that_the_protocol_asks_for(simulated):
    _, _, result = simulated["pick_best"]
    card = cells(report.card(result))
    assert card["Study hash"] == (result["cleaning"]["study_hash"],)
    assert card["Audit chain"] == ("verifies",)
    assert card["Screened"] == (result["headline"],)
    assert card["Without screening"] == (result["headline_unscreened"],)
    assert "golden" in card["Excluded by the rules"][0]
    assert set(card) >= {
        "Head of the audit chain", "App version", "First and last vote", "People",
        "Votes by kind", "Golden trials passed", "Repeats answered alike", "Krippendorff's alpha",
        "Picks by position",
    }  # fmt: skip
    broken = copy.deepcopy(result)
    broken["report_card"]["chain_verifies"] = False
    assert cells(report.card(broken))["Audit chain"] == ("DOES NOT VERIFY",)


def test_pairs_are_listed_with_the_numbers_of_the_matrix(simulated):
    _, _, result = simulated["pairwise"]
    table = report.pairs(result)
    assert len(table.rows) == 15
    wins = result["screened"]["wins"]
    assert cells(table)["A : B"][0] == f"{wins[0][1]} : {wins[1][0]}"
    assert report.pairs(simulated["pick_best"][2]) is None


def test_a_result_of_one_criterion_has_its_numbers_in_front():
    result = {
        "criterion": "consistency", "screened": 1, "unscreened": 2,
        "by_criterion": {"criteria": {"quality": {"screened": 3, "unscreened": 4}}},
    }  # fmt: skip
    assert report.of_criterion(result, "consistency") is result
    own = report.of_criterion(result, "quality")
    assert (own["criterion"], own["screened"], own["unscreened"]) == ("quality", 3, 4)


def test_the_published_share_of_the_paper_reads_as_in_the_protocol():
    rows = cells(report.published(published_share(292, 750, methods=6)))
    assert rows["95 % interval (Wilson)"] == ("35.5 to 42.5 %",)
    assert rows["Ahead of it at p < .05 only if it had at most"] == ("32.7 %",)
    assert rows["and at p < .01"] == ("30.9 %",)
    wide = report.published(published_share(292, 750, methods=6, design_effect=6))
    assert cells(wide)["95 % interval (Wilson)"] == ("30.8 to 47.7 %",)
    assert "design effect of 6" in wide.note


def test_a_plan_has_a_row_for_people_and_a_column_for_pictures():
    rows = [
        Power(p, n, (0.5, 0.5), 0.4, 0.8, p / 100 + n / 1000, 1, 10)
        for p in (30, 15)
        for n in (50, 20)
    ]
    table = report.planned(rows)
    assert table.head == ("People", "20 pictures", "50 pictures")
    assert table.rows == (("15", "0.17", "0.20"), ("30", "0.32", "0.35"))


@pytest.mark.parametrize("mode", ["pick_best", "pairwise"])
def test_what_is_exported_gives_the_same_numbers_again(simulated, mode, tmp_path):
    from study.analyse import analyse_votes
    from study.design import read_study

    study, folder, result = simulated[mode]
    store = SqliteStore(folder / "dry-run.sqlite")
    export_study(store, study, tmp_path)
    store.close()
    write_report(result, study.title, tmp_path)
    again = analyse_votes(
        tmp_path / "votes.csv", study=read_study(tmp_path / "study.json"), bootstrap=20
    )
    for key in ("cleaning", "screened", "unscreened", "headline", "headline_unscreened"):
        assert again[key] == result[key], key
    names = {path.name for path in tmp_path.iterdir()}
    assert {"result.json", "table.tex", "study.bib", "MANIFEST.json", "votes.parquet"} <= names
    assert bundle(tmp_path, "all.zip").stat().st_size > 1000


def test_the_simulated_study_is_about_no_real_method():
    for mode in ("pick_best", "pairwise"):
        study = example_study(mode)
        assert study.methods == ("A", "B", "C", "D", "E", "F")
        assert study.title == "Simulated judges"
