"""Every method on the same photo, side by side: the shipped gallery, or a photo of the visitor's.

`start` and `compare` decide what happens and know no component; `scene` says what the viewer shows;
`build` lays out and wires. Nothing of a visit is kept outside its own run. The public endpoint
`/compare` is the same generator with plain values at both ends.
"""

import html
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Protocol

import gradio as gr
from PIL import Image

from baselines.base import (
    LONGEST_TEXT,
    Method,
    MethodUnavailableError,
    Restoration,
    Restorer,
    RunCard,
    Setting,
    run,
)
from imaging.load import ACCEPTED, PhotoError, read_photo
from ui import gallery
from ui.boundary import LEASE_MARGIN, LEASE_SECONDS, CompareError, guarded, lease, shown
from ui.restore_tab import credits, largest, too_large, uploaded
from ui.runcard import stem
from ui.settings import Settings
from ui.viewer import MOST, Picture, Scene, payload, seconds, viewer

TAB = "compare"  # id of the tab
GALLERY = Path(__file__).parents[1] / "examples" / "gallery"
MOST_METHODS = MOST - 1  # beside the input
PRESELECTED = ("bicubic", "realesrgan", "pure", "pure-nano")
LARGEST_SEED = 2**31 - 1
UNKNOWN_SECONDS = 60  # of GPU, for a method whose card does not say: what ZeroGPU gives unasked
LOADING_SPEED = 1e9  # bytes a second from disk to GPU; assumed, to be measured there
QUEUE = "compare"  # one comparison at a time, whoever asks

ABOUT_COMPARE = (
    "Restore one photo with several methods, each getting the same pixels. Every answer has the "
    "progress of all methods (state: waiting, running, done or failed; seconds; problem), the "
    "restored pictures so far (PNG, named after the method) and their run cards by method."
)
# Tells which view a link asks for; the server finds the scene.
FRAGMENT = "() => [window.location.hash]"
# What was cancelled cannot say so itself.
TELL_STOPPED = """() => document.querySelector('#viewer .viewer')?.dispatchEvent(
  new CustomEvent('stopped', {detail: 'Stopped before it was finished.'}))"""

Values = Mapping[str, object]  # of one method's settings, by their names
State = Literal["waiting", "running", "done", "failed"]


# What happens


class Shelf(Protocol):
    """What is needed of `baselines.memory.Shelf`."""

    device: str

    def use(self, method: Method) -> AbstractContextManager[Restorer]: ...


@dataclass(frozen=True)
class Entry:
    """One method of a comparison.

    Attributes:
        file: of the result, PNG, if it is done.
        seconds: it took, if it is done and they were measured.
        parameters: of its networks, if they are known.
        card: how the result came about, if it is done.
        problem: a sentence, if it failed.
    """

    method: Method
    state: State = "waiting"
    file: Path | None = None
    seconds: float | None = None
    parameters: int | None = None
    card: RunCard | None = None
    problem: str = ""


@dataclass(frozen=True)
class Job:
    """A checked request.

    Attributes:
        path: the file that came in.
        image: what was read from it.
        methods: in the order they are shown and run.
        values: of the methods' settings, by name of the method, where they are not the published.
    """

    path: Path
    image: Image.Image
    methods: tuple[Method, ...]
    seed: int = 0
    values: Mapping[str, Values] = field(default_factory=dict)


class Bench:
    """The methods, and the shelf they are loaded from."""

    def __init__(self, methods: Mapping[str, Method], shelf: Shelf) -> None:
        self.methods, self._shelf = dict(methods), shelf
        self._leased = lease(self._restore, lease_seconds)

    def restore(
        self, method: Method, lq: Image.Image, seed: int, values: Values
    ) -> tuple[Restoration, RunCard]:
        """Run a method, on a leased GPU if it needs one.

        Raises:
            MethodUnavailableError: it cannot be loaded.
            MethodError: it cannot restore this picture.
        """
        if lease_seconds(method, lq, seed, values) == 0:
            return self._restore(method, lq, seed, values)
        return self._leased(method, lq, seed, values)

    def _restore(
        self, method: Method, lq: Image.Image, seed: int, values: Values
    ) -> tuple[Restoration, RunCard]:
        device = self._shelf.device
        with self._shelf.use(method) as restorer:
            return run(method, restorer, lq, seed=seed, device=device, values=values)


def lease_seconds(method: Method, lq: Image.Image, seed: int, values: Values) -> int:
    """Seconds of GPU to ask for; takes what the leased function takes.

    Loading is part of it: a lease may begin in a process that has nothing loaded. 0: it needs none.
    """
    del seed
    needed = UNKNOWN_SECONDS if method.gpu_seconds is None else method.gpu_seconds(lq.size)
    if method.steps and isinstance(steps := values.get("steps"), int):
        needed *= steps / method.steps
    if needed == 0:
        return 0
    loading = method.memory_bytes / LOADING_SPEED
    return max(LEASE_SECONDS, round((needed + loading) * LEASE_MARGIN))


def start(
    photo: str | None, names: Any, seed: Any, bench: Bench, limits: Settings, values: Any = None
) -> Job:
    """Read the photo, and see whether this demo takes on the photo and the methods.

    Args:
        photo: path of an uploaded file.
        names: of methods, a list of whatever a stranger sent.
        seed: likewise.
        bench: methods on offer.
        limits: what photos this demo takes on.
        values: of settings, by names of methods and settings; likewise.

    Raises:
        PhotoError: there is no photo, it cannot be read, or it is too large here.
        CompareError: methods, seed or settings are not what they should be.
        SettingError: a setting cannot be this.
        MethodUnavailableError: a method cannot run here.
    """
    if not photo:
        raise PhotoError(f"There is no photo yet. Choose one: {ACCEPTED}.")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CompareError("the methods are a list of names")
    if isinstance(seed, bool) or not isinstance(seed, int | float) or seed != seed // 1:
        raise CompareError(f"the seed is a whole number, not {seed!r}")
    if not 0 <= seed <= LARGEST_SEED:
        raise CompareError(f"the seed is 0 to {LARGEST_SEED:,}, not {seed:,.0f}")
    chosen = set(names)
    if not 1 <= len(chosen) <= MOST_METHODS:
        raise CompareError(f"Choose 1 to {MOST_METHODS} methods; {len(chosen)} are chosen.")
    if unknown := sorted(chosen - bench.methods.keys()):
        known = ", ".join(bench.methods)
        raise CompareError(f"There is no method called {unknown[0][:80]!r}; there are {known}.")
    methods = tuple(method for name, method in bench.methods.items() if name in chosen)
    values = {} if values is None else values
    if not isinstance(values, dict) or not all(isinstance(v, dict) for v in values.values()):
        raise CompareError("settings are values by name, by names of methods")
    if unknown := sorted(map(str, values.keys() - bench.methods.keys())):
        raise CompareError(f"There are settings of {unknown[0][:80]!r}, which is no method.")
    chosen_values = {m.name: m.chosen(values.get(m.name, {})) for m in methods}
    for method in methods:
        if reason := method.unavailable():
            raise MethodUnavailableError(reason)
    scale = max(method.scale for method in methods)
    image = read_photo(photo, max_bytes=limits.max_file_mb * 1_000_000)
    if problem := too_large(image.size, scale, limits):
        raise PhotoError(problem)
    return Job(Path(photo), image, methods, int(seed), chosen_values)


def compare(bench: Bench, job: Job, folder: Path) -> Iterator[tuple[Entry, ...]]:
    """Run the methods of a job, one after the other; a failure is one method's, not the job's.

    Args:
        bench: whose methods they are.
        job: what to do.
        folder: where results go; the caller's own.

    Yields:
        All methods, each time one of them begins or ends.
    """
    entries = [Entry(method) for method in job.methods]
    for index, entry in enumerate(entries):
        entries[index] = replace(entry, state="running")
        yield tuple(entries)
        entries[index] = _finished(bench, entry.method, job, folder)
        yield tuple(entries)


def _finished(bench: Bench, method: Method, job: Job, folder: Path) -> Entry:
    try:
        restoration, card = bench.restore(
            method, job.image, job.seed, job.values.get(method.name, {})
        )
        file = folder / f"{stem(job.path)}_{method.name}.png"
        restoration.image.save(file)
    except Exception as error:  # every error ends this method only, and is one a visitor may see
        return Entry(method, "failed", problem=html.unescape(str(shown(error).message)))
    parameters = restoration.details.get("parameters", method.parameters)
    return Entry(
        method,
        "done",
        file=file,
        seconds=restoration.seconds,
        parameters=parameters if isinstance(parameters, int) else None,
        card=card,
    )


# What the page shows


def scene(job: Job, entries: Sequence[Entry], key: str) -> Scene:
    """What the viewer shows of a comparison; those that are not done say where they stand."""
    notes = {"waiting": "Waiting for its turn.", "running": "Restoring…", "done": ""}
    pictures = [Picture(job.image, "Input", "lq", alt="Input: your photo")]
    for entry in entries:
        pictures.append(
            Picture(
                entry.file,
                entry.method.title,
                alt=f"Your photo restored by {entry.method.title}",
                seconds=entry.seconds,
                parameters=entry.parameters,
                note=entry.problem or notes.get(entry.state, ""),
                pending=entry.state in ("waiting", "running"),
            )
        )
    scale = max(entry.method.scale for entry in entries)
    return Scene(
        tuple(pictures),
        key=key,
        title=stem(job.path),
        expected=(job.image.width * scale, job.image.height * scale),
    )


def status(entries: Sequence[Entry], *, stopped: bool = False) -> str:
    """One line on a comparison, and a sentence for each method that failed."""
    ended = [entry for entry in entries if entry.state in ("done", "failed")]
    done = [entry for entry in entries if entry.state == "done"]
    left = [entry for entry in entries if entry.state in ("waiting", "running")]
    if stopped:
        line = "Stopped. What was finished stays."
    elif left:
        line = f"{left[0].method.title} is at work, {len(ended) + 1} of {len(entries)}."
    elif entries:
        times = [entry.seconds for entry in done if entry.seconds is not None]
        took = f" in {seconds(sum(times))}" if times else ""
        line = f"{len(done)} of {len(entries)} methods done{took}."
    else:
        line = ""
    problems = "".join(
        f'<p class="problem">{html.escape(entry.method.title)}: {html.escape(entry.problem)}</p>'
        for entry in entries
        if entry.problem
    )
    return f'<p class="line">{html.escape(line)}</p>{problems}'


def said(entries: Sequence[Entry]) -> str:
    """What the methods that speak saw, and what they were told; nothing if none does."""
    lines = []
    for entry in entries:
        if entry.card is None:
            continue
        parts = [("Saw", entry.card.text), ("Prompt", entry.card.details.get("prompt"))]
        told = " ".join(
            f"{label}: <q>{html.escape(str(text))}</q>." for label, text in parts if text
        )
        if told:
            lines.append(f"<dt>{html.escape(entry.method.title)}</dt><dd>{told}</dd>")
    return f'<div class="facts"><dl>{"".join(lines)}</dl></div>' if lines else ""


def about(method: Method) -> str:
    """A method's card: what it is, on which terms, and how it is run as published."""
    memory = f"about {method.memory_bytes / 2**30:.1f} GiB" if method.memory_bytes else ""
    facts = (
        ("Licence", method.licence),
        ("Source", method.source),
        ("Published settings", method.paper_settings),
        ("Steps", "" if method.steps is None else str(method.steps)),
        ("Prompt", method.prompt or ""),
        ("Before", method.preprocessing),
        ("After", method.postprocessing),
        ("Memory", memory),
        ("Not available here", method.unavailable() or ""),
    )
    lines = "".join(f"<dt>{k}</dt><dd>{html.escape(v)}</dd>" for k, v in facts if v)
    return f'<div class="facts"><dl>{lines}</dl></div>'


def unavailable(methods: Mapping[str, Method]) -> str:
    """Why some methods are not offered; nothing if all are. Settings of one model share a line."""
    reasons: dict[str, None] = {}  # a set that keeps the order
    for method in methods.values():
        if reason := method.unavailable():
            reasons.setdefault(reason, None)
    if not reasons:
        return ""
    lines = "".join(f"<li>{html.escape(reason)}</li>" for reason in reasons)
    return (
        '<details class="note" id="unavailable"><summary>Not available here, and why</summary>'
        f"<ul>{lines}</ul></details>"
    )


def offered(methods: Mapping[str, Method]) -> tuple[list[Method], list[Method]]:
    """The methods that can run here: those that stand for themselves, and settings of others."""
    able = [method for method in methods.values() if method.unavailable() is None]
    return (
        [method for method in able if method.variant_of is None],
        [method for method in able if method.variant_of is not None],
    )


def asked_for(fragment: Any, scenes: Mapping[str, Scene]) -> str | None:
    """The key of the scene a link opens, if it is one of the gallery."""
    if not isinstance(fragment, str):
        return None
    query = urllib.parse.parse_qs(fragment.removeprefix("#"))
    key = query.get("scene", [""])[0]
    return key if key in scenes else None


def build(bench: Bench, limits: Settings, *, page: gr.Blocks, tabs: gr.Tabs) -> None:
    """The tab's content and what its parts do.

    Args:
        bench: methods on offer.
        limits: what photos this demo takes on.
        page: it is on; a link that is opened loads with it.
        tabs: among which this one is chosen by such a link.
    """
    scenes = gallery.read(GALLERY)
    ui = _lay_out(bench, limits, scenes)
    _wire(ui, bench, limits, scenes, page, tabs)
    _endpoint(bench, limits)


def _lay_out(bench: Bench, limits: Settings, scenes: Mapping[str, Scene]) -> dict[str, Any]:
    ui: dict[str, Any] = {}
    first = next(iter(scenes.values()), None)
    gr.HTML('<h2 class="visually-hidden">Compare methods</h2>', elem_id="compare-heading")
    if scenes:
        ui["scene"] = gr.Radio(
            [(one.title, key) for key, one in scenes.items()],
            value=first.key if first else None,
            label="Gallery, restored before",
            elem_id="gallery",
        )
    main, variants = offered(bench.methods)
    with gr.Accordion("Compare on a photo of yours", open=not scenes, elem_id="own"), gr.Row():
        with gr.Column(min_width=260):
            ui["photo"] = gr.Image(
                label="Photo", type="filepath", sources=["upload", "clipboard"],
                format="png", height=240, elem_id="compare-photo",
                alt_text="The photo to compare methods on",
            )  # fmt: skip
            side = int(largest(4, limits) ** 0.5)
            gr.HTML(
                f'<p class="note">Up to {largest(4, limits):,} pixels, for example '
                f"{side} × {side}. Photos are deleted within an hour or two.</p>"
            )
        with gr.Column(min_width=260):
            names = [method.name for method in main]
            ui["methods"] = gr.CheckboxGroup(
                [(method.title, method.name) for method in main],
                value=[name for name in PRESELECTED if name in names],
                label=f"Methods, up to {MOST_METHODS}",
                elem_id="methods",
            )
            with gr.Accordion(
                "Other settings of the same models",
                open=False,
                visible=bool(variants),
                elem_id="variants",
            ):
                ui["variants"] = gr.CheckboxGroup(
                    [(method.title, method.name) for method in variants],
                    show_label=False,
                    container=False,
                    label="Settings",
                )
            ui["seed"] = gr.Number(
                0, label="Seed", precision=0, minimum=0, maximum=LARGEST_SEED,
                elem_id="compare-seed", info="The same for every method.",
            )  # fmt: skip
            with gr.Row():
                ui["compare"] = gr.Button("Compare", variant="primary", elem_id="compare")
                ui["stop"] = gr.Button("Stop", interactive=False, elem_id="compare-stop")
            ui["queue"] = gr.HTML("", elem_id="compare-queue")
            gr.HTML(unavailable(bench.methods))
    ui["settings"] = _lay_out_cards(bench.methods)
    ui["status"] = gr.HTML(
        "",
        elem_id="compare-status",
        js_on_load="element.setAttribute('aria-live', 'polite');",
    )
    ui["viewer"] = viewer(first, elem_id="viewer")
    ui["said"] = gr.HTML("", elem_id="compare-said")
    if scenes:
        gr.HTML(f'<p class="note">{credits()}</p>')
    return ui


def _lay_out_cards(methods: Mapping[str, Method]) -> dict[tuple[str, str], Any]:
    """A card for each method, with its settings if it can run; these by method and setting."""
    found: dict[tuple[str, str], Any] = {}
    main, _ = offered(methods)
    with gr.Accordion("Settings and licences of the methods", open=False, elem_id="cards"):
        for method in methods.values():
            if method.variant_of is not None:
                continue
            with gr.Accordion(method.title, open=False, elem_id=f"card-{method.name}"):
                gr.HTML(about(method))
                if method in main:
                    for setting in method.settings:
                        found[method.name, setting.name] = _control(setting)
    return found


def _control(setting: Setting) -> Any:  # Any: a component
    named: dict[str, Any] = {"label": setting.label, "info": setting.info or None}
    if isinstance(setting.default, int | float):
        limits: dict[str, Any] = {"minimum": setting.lowest, "maximum": setting.highest}
        return gr.Slider(value=setting.default, step=setting.step, **limits, **named)
    if setting.choices:
        return gr.Radio([*setting.choices], value=setting.default, **named)
    return gr.Textbox(setting.default or "", max_length=LONGEST_TEXT, **named)


def _wire(
    ui: dict[str, Any],
    bench: Bench,
    limits: Settings,
    scenes: Mapping[str, Scene],
    page: gr.Blocks,
    tabs: gr.Tabs,
) -> None:
    # Raw values, see `ui.restore_tab`: the photo is read in one tested place.
    private: dict[str, Any] = {"api_visibility": "private", "preprocess": False}
    quick: dict[str, Any] = private | {"queue": False, "show_progress": "hidden"}
    controls = ui["settings"]
    request = [ui["photo"], ui["methods"], ui["variants"], ui["seed"], *controls.values()]

    def job(photo: Any, methods: Any, variants: Any, seed: Any, *settings: Any) -> Job:
        names = [*methods, *(variants or [])] if isinstance(methods, list) else methods
        values: dict[str, dict[str, Any]] = {}
        for (method, setting), value in zip(controls, settings, strict=True):
            values.setdefault(method, {})[setting] = value
        return start(uploaded(photo), names, seed, bench, limits, values)

    def at_work(running: bool) -> dict[Any, Any]:
        return {
            ui["compare"]: gr.update(interactive=not running),
            ui["stop"]: gr.update(interactive=running),
        }

    def checked(*values: Any) -> Iterator[dict[Any, Any]]:
        """Before the queue, so that a request nobody takes on does not wait in it."""
        job(*values)
        # a photo of the visitor's is none of the gallery's
        yield at_work(True) | ({ui["scene"]: None} if scenes else {})

    def compared(*values: Any) -> Iterator[dict[Any, Any]]:
        with TemporaryDirectory() as folder:
            asked = job(*values)
            key = Path(folder).name  # new for every run: the viewer starts afresh
            entries: tuple[Entry, ...] = ()
            for entries in compare(bench, asked, Path(folder)):
                yield at_work(True) | {
                    ui["viewer"]: payload(scene(asked, entries, key)),
                    ui["status"]: status(entries),
                    ui["said"]: said(entries),
                }
            yield at_work(False) | {ui["status"]: status(entries)}

    parts = [ui["compare"], ui["stop"], ui["viewer"], ui["status"], ui["said"]]
    begun = ui["compare"].click(
        guarded(checked),
        request,
        [*parts, *([ui["scene"]] if scenes else [])],
        **private,
        show_progress="hidden",
        concurrency_limit=None,
    )
    started = begun.success(
        guarded(compared),
        request,
        parts,
        **private,
        show_progress="minimal",
        show_progress_on=ui["queue"],
        concurrency_limit=1,
        concurrency_id=QUEUE,
    )
    started.failure(lambda: at_work(False), None, [ui["compare"], ui["stop"]], **quick)
    ui["stop"].click(
        lambda: at_work(False) | {ui["status"]: status((), stopped=True)},
        None,
        [ui["compare"], ui["stop"], ui["status"]],
        cancels=[started],
        **quick,
    )
    ui["stop"].click(None, js=TELL_STOPPED, **private)
    if not scenes:
        return

    def chosen(key: Any) -> Any:
        return (payload(scenes[key]), "") if key in scenes else (gr.skip(), gr.skip())

    ui["scene"].input(guarded(chosen), [ui["scene"]], [ui["viewer"], ui["said"]], **quick)
    fragment = gr.Textbox(visible=False)

    def opened(fragment: Any) -> tuple[Any, ...]:
        key = asked_for(fragment, scenes)
        if key is None:
            return gr.skip(), gr.skip(), gr.skip()
        return gr.update(selected=TAB), key, payload(scenes[key])

    page.load(guarded(opened), [fragment], [tabs, ui["scene"], ui["viewer"]], js=FRAGMENT, **quick)


def _endpoint(bench: Bench, limits: Settings) -> None:
    """`/compare`: the same run for programs, with plain values."""
    able = [method for group in offered(bench.methods) for method in group]
    with gr.Column(visible=False):
        image = gr.File(label="Photo, any format of the page", type="filepath")
        names = gr.CheckboxGroup(
            [method.name for method in able],
            value=[method.name for method in able if method.name in PRESELECTED],
            label=f"Names of methods, 1 to {MOST_METHODS}",
        )
        seed = gr.Number(0, label="Seed, the same for every method", precision=0)
        settings = gr.JSON(
            {}, label='Settings by method, where not the published: {"seesr": {"steps": 20}}'
        )
        progress = gr.JSON(label="Progress by method: state, title, seconds, problem")
        files = gr.Files(label="Restored pictures so far, PNG")
        cards = gr.JSON(label="Run cards by method")
        trigger = gr.Button()

    def compared(
        image: str | None, methods: list[str], seed: int, settings: Any
    ) -> Iterator[tuple[dict[str, Any], list[str], dict[str, Any]]]:
        with TemporaryDirectory() as folder:
            asked = start(image, methods, seed, bench, limits, settings)
            for entries in compare(bench, asked, Path(folder)):
                yield plain(entries)

    trigger.click(
        guarded(compared),
        [image, names, seed, settings],
        [progress, files, cards],
        api_name="compare",
        api_description=ABOUT_COMPARE,
        concurrency_limit=1,
        concurrency_id=QUEUE,
        show_progress="hidden",
    )


def plain(entries: Sequence[Entry]) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
    """A comparison as `/compare` tells it: progress, files, run cards."""
    progress = {
        entry.method.name: {
            "state": entry.state,
            "title": entry.method.title,
            "seconds": None if entry.seconds is None else round(entry.seconds, 3),
            "problem": entry.problem,
        }
        for entry in entries
    }
    files = [str(entry.file) for entry in entries if entry.file is not None]
    cards = {entry.method.name: entry.card.to_dict() for entry in entries if entry.card is not None}
    return progress, files, cards
