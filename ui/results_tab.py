"""What a study found: headline, figures, tables, report card, files; and two calculators.

All numbers come from `study.analysis`, all words about them from `study.report`; this tab chooses
whose votes they are of and lays them out. While a study takes votes nothing of its result is
shown, because a tally invites people to vote with it or against it.
"""

import html
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
from gradio import processing_utils
from gradio.utils import get_upload_folder

from study import report
from study.analyse import analyse_store, analyse_votes
from study.analysis import Result
from study.design import Study, read_study
from study.example import simulate
from study.exports import bundle, export_study, participant_rows, write_parquet, write_report
from study.intervals import PURE_PAPER, published_share
from study.plan import power_table
from study.plots import figures, power_curves
from study.report import TextTable
from study.room import Room
from study.simulate import runner_up_shares
from study.store import SqliteStore, VoteStore
from study.votes import VotesError, read_votes
from ui.boundary import guarded

TAB = "results"  # id of the tab
QUEUE = "results"  # an analysis takes seconds of processor: one at a time, and no model waits
OWN, FILES, PICKS, PAIRS = "own", "files", "pick_best", "pairwise"
SOURCES = [
    ("This app's study", OWN),
    ("Votes from files", FILES),
    ("Simulated: pick the best", PICKS),
    ("Simulated: pairs", PAIRS),
]
FILES_OF = (  # what is for download: label and file
    ("Votes (CSV)", "votes.csv"),
    ("Votes (Parquet)", "votes.parquet"),
    ("Study file", "study.json"),
    ("Result (JSON)", "result.json"),
    ("LaTeX table", "table.tex"),
    ("BibTeX", "study.bib"),
    ("Everything (ZIP)", "study.zip"),
)
DRAWN = (  # the parts of a result that are of one criterion
    "main", "ranking", "tests", "win_matrix", "position_balance", "agreement", "balance",
    "breakdowns",
)  # fmt: skip
SIMULATED = (
    "Simulated judges, not people; A to F are no real methods. This shows what a result looks like."
)
PEOPLE, IMAGES, RUNS = (15, 30, 60, 100), (20, 50, 100), 100  # of the planner


@dataclass(frozen=True)
class Shown:
    """A result and what goes with it.

    Attributes:
        says: what is to be known before anything else; may be all there is.
        result: the result JSON, or None.
        files: for download, by file name.
        study: whether there is a study file among them.
    """

    says: str
    result: Result | None = None
    files: dict[str, str] | None = None
    study: bool = True


class Results:
    """Analyses of an app's study and of simulations, each made once for the votes there are."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._lock = threading.Lock()
        self._known: dict[str, tuple[int, Result]] = {}
        self._simulated: dict[str, tuple[TemporaryDirectory, Study]] = {}

    def own(self) -> Shown:
        """The app's study: how far it is, and once it is closed its result.

        Raises:
            StudyError: it cannot be opened.
        """
        desk, store = self._room.desk, self._room.store
        study = desk.study
        people = participant_rows(store, study)
        finished = sum(row["finished"] for row in people)
        if not desk.closed():
            return Shown(
                f"“{study.title}” is open: {len(people)} have joined, {finished} of "
                f"{study.target_participants} have finished. Its result is shown here when it is "
                "closed; until then nobody sees a tally, because that would sway votes. Choose a "
                f"simulated study to see what a result looks like. Study hash {study.hash}."
            )
        return self._of_store(OWN, store, study, f"“{study.title}” is closed.")

    def simulated(self, mode: str) -> Shown:
        """A dry run of simulated judges."""
        with self._lock:
            if mode not in self._simulated:
                folder = TemporaryDirectory(prefix="simulated-")
                self._simulated[mode] = folder, simulate(mode, Path(folder.name))  # type: ignore[arg-type]
            folder, study = self._simulated[mode]
        store = SqliteStore(Path(folder.name) / "dry-run.sqlite")
        try:
            return self._of_store(mode, store, study, SIMULATED)
        finally:
            store.close()

    def _of_store(self, name: str, store: VoteStore, study: Study, says: str) -> Shown:
        events = sum(1 for _ in store.events(study.hash))
        with self._lock:
            known = self._known.get(name)
            if known is None or known[0] != events:
                known = events, analyse_store(store, study)
                self._known[name] = known
        result = known[1]
        with TemporaryDirectory() as temporary:
            folder = Path(temporary)
            export_study(store, study, folder)
            write_report(result, study.title, folder)
            return Shown(says, result, _served(folder))


def from_files(votes: str | None, study_file: str | None, withdrawals: str | None) -> Shown:
    """The result of uploaded votes of schema version 1, ours or another tool's.

    Raises:
        VotesError, StudyError: the files are not what they should be.
    """
    if votes is None:
        raise VotesError("Choose a file of votes first: CSV or Parquet of schema version 1.")
    study = read_study(Path(study_file)) if study_file else None
    result = analyse_votes(
        Path(votes), study=study, withdrawals=Path(withdrawals) if withdrawals else None
    )
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        frame = read_votes(Path(votes))
        frame.to_csv(folder / "votes.csv", index=False, lineterminator="\n")
        write_parquet(frame.to_dict("records"), folder / "votes.parquet")
        if study_file:
            shutil.copyfile(study_file, folder / "study.json")
        if withdrawals:
            shutil.copyfile(withdrawals, folder / "withdrawals.csv")
        write_report(result, study.title if study else "A preference study", folder)
        files = _served(folder)
    return Shown(f"From {html.escape(Path(votes).name)}.", result, files, study is not None)


def _served(folder: Path) -> dict[str, str]:
    """Copies of the files, and of an archive of all, in Gradio's cache."""
    bundle(folder, "study.zip")
    return {
        name: processing_utils.save_file_to_cache(folder / name, get_upload_folder())
        for _, name in FILES_OF
        if (folder / name).exists()
    }


# HTML


def table(shown: TextTable) -> str:
    """A table with its title and note; wide ones scroll in themselves."""
    head = "".join(f"<th scope='col'>{html.escape(cell)}</th>" for cell in shown.head)
    body = "".join(
        "<tr>"
        + f"<th scope='row'>{html.escape(row[0])}</th>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in shown.rows
    )
    title = html.escape(shown.title)
    note = f'<p class="note">{html.escape(shown.note)}</p>' if shown.note else ""
    words = " words" if len(shown.head) == 2 else ""
    return (
        f'<div class="numbers-head"><h3>{title}</h3></div>'
        f'<div class="numbers-table{words}" role="region" tabindex="0" aria-label="{title}">'
        f'<table class="sortable"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        f"</div>{note}"
    )


def opening(shown: Shown) -> str:
    """What is read first: what this is of, and the headline with and without screening."""
    text = f'<p class="note">{html.escape(shown.says)}</p>'
    if shown.result is None:
        return text
    return text + (
        f'<p class="headline">{html.escape(shown.result["headline"])}</p>'
        f'<p class="note">Without screening: {html.escape(shown.result["headline_unscreened"])}</p>'
    )


def command(shown: Shown) -> str:
    """The one command that makes the result again."""
    study = " --study study.json" if shown.study else ""
    return (
        '<p class="note">The same numbers again, from the downloaded files:</p>'
        f"<pre tabindex='0'><code>python -m study.analyse --votes votes.csv{study} "
        "--out again.json</code></pre>"
    )


def published(k: float, n: float, methods: float, effect: float) -> str:
    """The calculator for a published share.

    Raises:
        VotesError: the numbers cannot be a share.
    """
    try:
        share = published_share(int(k), int(n), methods=int(methods), design_effect=float(effect))
    except (TypeError, ValueError, OverflowError) as error:
        raise VotesError(str(error)) from None
    return table(report.published(share))


def planned(
    methods: float, leader: float, second: float, of_people: float, of_images: float, seconds: float
) -> tuple[Any, str]:
    """Power for numbers of people and pictures, as figure and table.

    Raises:
        VotesError: the shares are not those of a leader and a runner-up.
    """
    try:
        shares = runner_up_shares(leader / 100, second / 100, int(methods))
        if not (0 <= of_people <= 3 and 0 <= of_images <= 3 and seconds > 0 and leader > second):
            raise ValueError("SDs are from 0 to 3, seconds above 0, and the first ahead")
        rows = power_table(shares, of_people, of_images, people=PEOPLE, images=IMAGES, runs=RUNS)
    except (TypeError, ValueError, OverflowError) as error:
        raise VotesError(f"No such study can be planned: {error}") from None
    minutes = ", ".join(f"{n * seconds / 60:.0f} min for {n} pictures" for n in IMAGES)
    figure = power_curves([vars(row) for row in rows])
    return figure, table(report.planned(rows)) + f'<p class="note">Each person: {minutes}.</p>'


# The page


def build(room: Room, tab: gr.Tab) -> None:
    """The tab's content and what its parts do."""
    results = Results(room)
    with gr.Column(elem_id="results"):
        gr.HTML('<h2 class="visually-hidden">Results of the study</h2>')
        source = gr.Radio(SOURCES, value=OWN, label="Votes", elem_id="results-source")
        with gr.Column(visible=False, elem_id="results-files") as uploads:
            gr.HTML(
                '<p class="note">Finished votes of any tool: one row per vote, the columns of '
                "schema version 1 (docs/study.md). Without a study file the default pipeline is "
                "applied, and the result says so.</p>"
            )
            with gr.Row():
                votes = _upload("Votes (CSV or Parquet)", [".csv", ".parquet"], "votes-file")
                study_file = _upload("Study file (optional)", [".json"], "study-file")
                gone = _upload("Withdrawals (CSV, optional)", [".csv"], "withdrawals-file")
            go = gr.Button("Analyse", variant="primary", elem_id="analyse")
        head = gr.HTML(
            "", elem_id="results-head", js_on_load="element.setAttribute('aria-live', 'polite');"
        )
        kept = gr.State(None)
        with gr.Column(visible=False, elem_id="results-body") as body:
            parts = _lay_out_result()
        _calculator()
        _planner()

    def answer(shown: Shown) -> list[Any]:
        changes = _changes(shown)
        visible = gr.update(visible=bool(changes))
        values = [changes.get(name, gr.skip()) for name in parts]
        return [opening(shown), shown.result, visible, *values]

    def choose(which: str) -> list[Any]:
        if which == FILES:
            shown = Shown("Choose a file of votes and press Analyse.")
            return [gr.update(visible=True), *answer(shown)]
        shown = results.own() if which == OWN else results.simulated(which)
        return [gr.update(visible=False), *answer(shown)]

    outputs = [head, kept, body, *parts.values()]
    slow: dict[str, Any] = {
        "api_visibility": "private",
        "concurrency_limit": 1,
        "concurrency_id": QUEUE,
    }
    source.input(guarded(choose), source, [uploads, *outputs], **slow)
    tab.select(guarded(choose), source, [uploads, *outputs], **slow)
    go.click(
        guarded(lambda *files: answer(from_files(*files))),
        [votes, study_file, gone],
        outputs,
        **slow,
    )
    parts["criterion"].input(
        guarded(lambda result, criterion: list(_drawn(result, criterion).values())),
        [kept, parts["criterion"]],
        [parts[name] for name in DRAWN],
        api_visibility="private",
        queue=False,
    )


def _upload(label: str, types: list[str], name: str) -> gr.File:
    return gr.File(label=label, file_types=types, type="filepath", height=140, elem_id=name)


def _lay_out_result() -> dict[str, Any]:
    """The parts of a result, by name."""
    parts: dict[str, Any] = {}
    parts["criterion"] = gr.Radio([], label="Question", visible=False, elem_id="results-criterion")
    parts["main"] = gr.Plot(show_label=False, elem_id="results-main")
    parts["ranking"] = gr.HTML("", elem_id="results-ranking")
    parts["tests"] = gr.HTML("")
    parts["win_matrix"] = gr.Plot(show_label=False, visible=False, elem_id="results-matrix")
    with gr.Row():
        with gr.Column(min_width=320):
            parts["position_balance"] = gr.Plot(show_label=False)
        with gr.Column(min_width=320):
            parts["agreement"] = gr.Plot(show_label=False)
    parts["card"] = gr.HTML("", elem_id="results-card")
    with gr.Accordion("Breakdowns and balance", open=False, elem_id="breakdowns"):
        parts["balance"] = gr.HTML("")
        parts["breakdowns"] = gr.HTML("")
    gr.HTML('<div class="numbers-head"><h3>Take it with you</h3></div>')
    with gr.Row(elem_id="results-downloads"):
        for label, name in FILES_OF:
            parts[name] = gr.DownloadButton(label, min_width=150, elem_id=name.replace(".", "-"))
    parts["command"] = gr.HTML("", elem_id="results-command")
    return parts


def _changes(shown: Shown) -> dict[str, Any]:
    """What the parts of the page become, by name; empty if there is nothing to show."""
    result = shown.result
    if result is None or result["screened"]["leader"] is None:
        return {}
    criteria = list(result.get("by_criterion", {}).get("criteria", ()))
    files = shown.files or {}
    return {
        "criterion": gr.update(
            choices=[(name.capitalize(), name) for name in criteria],
            value=result["criterion"],
            visible=len(criteria) > 1,
        ),
        **_drawn(result, result["criterion"]),
        "card": table(report.card(result)),
        **{name: gr.update(value=files.get(name), visible=name in files) for _, name in FILES_OF},
        "command": command(shown),
    }


def _drawn(result: Result, criterion: str) -> dict[str, Any]:
    """Figures and tables of one criterion; the keys are `DRAWN`."""
    own = report.of_criterion(result, criterion)
    drawn = figures(own)
    matrix = drawn.get("win_matrix")
    values = (
        drawn.get("selection_rate") or drawn.get("davidson_strengths"),
        table(report.ranking(own)),
        table(report.leader_tests(own)),
        gr.update(value=matrix, visible=matrix is not None),
        drawn.get("position_balance"),
        drawn.get("agreement"),
        table(report.balance(own)),
        "".join(table(one) for one in (report.pairs(own), *report.breakdowns(own)) if one),
    )
    return dict(zip(DRAWN, values, strict=True))


def _calculator() -> None:
    with gr.Accordion("Read a published “k of n”", open=False, elem_id="k-of-n"):
        gr.HTML(
            '<p class="note">As an example the share that the PURE paper reports for its method '
            "(quoted): 38.9 % of the votes of 15 people on 50 pictures, six methods. The design "
            "effect says how many votes are worth one independent vote; 2 to 6 is usual.</p>"
        )
        with gr.Row():
            k = gr.Number(PURE_PAPER["k"], label="Picked (k)", precision=0, min_width=120)
            n = gr.Number(PURE_PAPER["n"], label="of votes (n)", precision=0, min_width=120)
            methods = gr.Number(
                PURE_PAPER["methods"], label="among methods", precision=0, min_width=120
            )
            effect = gr.Number(1, label="Design effect", minimum=1, min_width=120)
        default = published(PURE_PAPER["k"], PURE_PAPER["n"], PURE_PAPER["methods"], 1)
        shown = gr.HTML(default, elem_id="k-of-n-answer")
        inputs: list[Any] = [k, n, methods, effect]
        for field in inputs:
            field.change(
                guarded(published), inputs, shown, queue=False, api_visibility="private",
                show_progress="hidden",
            )  # fmt: skip


def _planner() -> None:
    with gr.Accordion("Plan a study", open=False, elem_id="planner"):
        gr.HTML(
            '<p class="note">How often a study of so many people and pictures would tell the '
            "first from the second, if the shares were these. The spreads come from a pilot: "
            "<code>python -m study.plan study.json --pilot votes.csv</code>.</p>"
        )
        with gr.Row():
            fields: list[Any] = [
                gr.Number(6, label="Methods", precision=0, minimum=3, maximum=12, min_width=120),
                gr.Number(38.9, label="First, %", min_width=120),
                gr.Number(26, label="Second, %", min_width=120),
                gr.Number(0.4, label="SD between people", step=0.1, min_width=120),
                gr.Number(0.8, label="SD between pictures", step=0.1, min_width=120),
                gr.Number(18, label="Seconds a trial", min_width=120),
            ]
        run = gr.Button("Estimate power", elem_id="plan")
        plot = gr.Plot(show_label=False, elem_id="power")
        shown = gr.HTML("", elem_id="power-table")
        run.click(
            guarded(planned), fields, [plot, shown], api_visibility="private",
            concurrency_limit=1, concurrency_id=QUEUE,
        )  # fmt: skip
