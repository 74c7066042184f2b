"""One photo in; what PURE perceived, what it understood, and one restoration out.

Three layers: `prepare` and `views` decide what happens and know no component; `updates` says what
each part of the page shows for a view; `build` lays out and wires. The public endpoint `/restore`
is the same generator with plain values at both ends.
"""

import html
import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import gradio as gr
import numpy as np
from PIL import Image

from imaging import convert
from imaging.load import ACCEPTED, PhotoError, read_photo
from pure.pipeline import (
    SCALES,
    ColourFix,
    Done,
    Event,
    Guidance,
    Perceived,
    PureOutput,
    RestoreError,
    RestoreSettings,
    Row,
    Understood,
)
from pure.sampling import MAX_ENTROPY, SamplingConfig, SamplingError
from ui import components, runcard
from ui.boundary import Model, guarded, shown
from ui.settings import Settings

EXAMPLES = Path(__file__).parents[1] / "examples"
LIMIT_SCALE = max(SCALES)  # the scale at which `Settings.max_pixels` holds
STAGE_HEIGHT = 440  # pixels of the page, for the picture
PREVIEW_SIDE = 384  # pixels; a larger PNG several times a second is felt on a slow connection
SECONDS_BETWEEN_VIEWS = 0.25
NEW_SEEDS = 2**31  # a browser's numbers are exact far beyond that
LONGEST_TEXT = 2000  # characters of a label or caption that is given
QUEUE = "model"  # every listener that uses the model waits in this line

ABOUT_RESTORE = (
    "Restore a photo. Every answer has the progress so far: stage, done (0 to 1), seconds, label "
    "and caption; the last also has the restored picture (PNG) and the run card. To leave words "
    "out, choose the guidance perception, understanding or none."
)
# By name: what says how codes are drawn, what `run` takes besides the photo, and what `updates` may
# change.
# fmt: off
DRAWN = ("mode", "k_max", "mu", "top_k", "temperature", "guidance_scale")
OPTIONS = (
    "scale", "seed", *DRAWN, "guidance", "colour_fix",
)
PARTS = (
    "restore", "stop", "status", "belief", "preview", "after", "entropy", "k", "slider", "facts",
    "picture_file", "card_file", "label", "caption", "rerun",
)
# fmt: on

# On a phone the result is below the fold.
TO_THE_RESULT = """() => { if (innerWidth < 800) {
  const calm = matchMedia('(prefers-reduced-motion: reduce)').matches;
  document.getElementById('right').scrollIntoView({behavior: calm ? 'auto' : 'smooth'}); } }"""

Stage = Literal["idle", "waiting", "reading", "writing", "painting", "done", "stopped", "failed"]
RUNNING = ("waiting", "reading", "writing", "painting")

PRESETS: dict[str, tuple[str, str]] = {
    "Faithful": ("always the likeliest code", "top1"),
    "Balanced": ("more codes where it is unsure", "dynamic"),
    "Detailed": ("from 2,000 codes", "topk:2000"),
}
GUIDANCE: dict[Guidance, str] = {
    "full": "Label and caption, as published",
    "perception": "The label only",
    "understanding": "The caption only",
    "none": "Nothing: restore without words",
}
COLOUR_FIX: dict[ColourFix, str] = {
    "wavelet": "Wavelet, as published",
    "adain": "Mean and spread (AdaIN)",
    "none": "None",
}
MODES = {
    "dynamic": "Dynamic: more candidates where the model is unsure",
    "topk": "Top k: the same number everywhere",
    "top1": "Top 1: no chance involved",
}


# What happens


@dataclass(frozen=True)
class View:
    """What there is to see at one moment of a run.

    Attributes:
        stage: where it stands.
        done: share of the picture, 0 to 1.
        seconds: since the start.
        left: seconds still to come, if that can be said.
        label, caption: None until they are there.
        preview: None if there is no newer one.
        entropy: (rows, columns) nats, NaN where not decided, None if there is no newer map.
        k: (rows, columns) candidates, 0 where not decided.
        k_max: the most candidates there can be.
        codes: size of the codebook.
        output, files: of a finished run.
        lq: name and size of the input.
        problem: why it failed.
    """

    stage: Stage
    done: float = 0.0
    seconds: float = 0.0
    left: float | None = None
    label: str | None = None
    caption: str | None = None
    preview: Image.Image | None = None
    entropy: np.ndarray | None = None
    k: np.ndarray | None = None
    k_max: int = 2000
    codes: int = 4096
    output: PureOutput | None = None
    files: runcard.Files | None = None
    lq_size: tuple[int, int] | None = None
    problem: str = ""


@dataclass(frozen=True)
class Job:
    """A checked request.

    Attributes:
        path: the file that came in.
        image: what was read from it.
    """

    path: Path
    image: Image.Image
    settings: RestoreSettings = field(default_factory=RestoreSettings)


def prepare(photo: str | None, settings: RestoreSettings, limits: Settings) -> Job:
    """Read the photo and see whether this demo takes it on.

    Raises:
        PhotoError: there is none, it cannot be read, or it is too large here.
    """
    if not photo:
        raise PhotoError(f"There is no photo yet. Choose one: {ACCEPTED}.")
    image = read_photo(photo, max_bytes=limits.max_file_mb * 1_000_000)
    if problem := too_large(image.size, settings.scale, limits):
        raise PhotoError(problem)
    return Job(Path(photo), image, settings)


def largest(scale: int, limits: Settings) -> int:
    """Pixels of the largest photo restored at a scale: the result decides, not the input."""
    return limits.max_pixels * LIMIT_SCALE**2 // scale**2


def too_large(size: tuple[int, int], scale: int, limits: Settings) -> str:
    """A sentence with the numbers if a photo is too large at a scale, else nothing."""
    width, height = size
    most = largest(scale, limits)
    if width * height <= most:
        return ""
    side = int(most**0.5)
    ways = ["shrink it", "crop it"] + ["choose a smaller scale"] * (scale > min(SCALES))
    return (
        f"The photo is {width} × {height}; at {scale}× this demo restores up to {most:,} "
        f"pixels, for example {side} × {side}. "
        f"{', '.join(ways[:-1]).capitalize()} or {ways[-1]}."
    )


def shrunk(image: Image.Image, most: int) -> Image.Image:
    """The whole photo, as large as `most` pixels allow."""
    factor = min(1.0, (most / (image.width * image.height)) ** 0.5)
    width = min(most, max(1, int(image.width * factor)))
    height = min(most // width, max(1, int(image.height * factor)))
    return convert.resize(image, (width, height))


def centre(image: Image.Image, most: int) -> Image.Image:
    """The middle of the photo, as square as it goes with `most` pixels."""
    width = min(image.width, max(int(most**0.5), most // image.height))
    height = min(image.height, max(1, most // width))
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def views(model: Model, job: Job, folder: Path) -> Iterator[View]:
    """Run a job. The last view is "done" or "failed"; a failure is raised after it was shown.

    Args:
        model: whose events become views.
        job: what to do.
        folder: where a finished run's files go.
    """
    sampling = job.settings.draw()
    k_max = {"top1": 1, "topk": sampling.top_k, "dynamic": sampling.k_max}[sampling.mode]
    view = View("reading", k_max=k_max, codes=model.codes, lq_size=job.image.size)
    start = time.monotonic()
    painting_since, last = start, 0.0
    expected = model.seconds(job.image.size, job.settings.scale)
    yield replace(view, left=expected, preview=_enlarged(job))
    try:
        for event in model.stream(job.image, job.settings):
            now = time.monotonic()
            view = replace(_seen(view, event), seconds=now - start)
            match event:
                case Understood():
                    painting_since = now
                case Row() if now - last < SECONDS_BETWEEN_VIEWS and event.preview is None:
                    continue
                case Row() if event.done > 0:
                    spent = now - painting_since
                    view = replace(view, left=spent * (1 - event.done) / event.done)
                case Done():
                    files = runcard.save(event.output, lq=job.path, image=job.image, folder=folder)
                    view = replace(view, files=files)
            last = now
            yield view
            view = replace(view, preview=None)
    except Exception as error:
        told = shown(error)
        yield replace(view, stage="failed", problem=html.unescape(str(told.message)))
        raise told from error


def _enlarged(job: Job) -> Image.Image:
    """What the preview shows before the first row, so that the place is not empty."""
    scale = job.settings.scale
    return smaller(convert.resize(job.image, (job.image.width * scale, job.image.height * scale)))


def _seen(view: View, event: Event) -> View:
    """The view after an event."""
    match event:
        case Perceived():
            return replace(view, stage="writing", label=event.belief.label)
        case Understood():
            label, caption = event.belief.label, event.belief.caption
            return replace(view, stage="painting", label=label, caption=caption)
        case Row():
            preview = event.preview and smaller(event.preview)
            return replace(view, done=event.done, preview=preview, entropy=event.entropy, k=event.k)
        case Done():
            output = event.output
            return replace(
                view,
                stage="done",
                done=1.0,
                left=None,
                label=output.belief.label,
                caption=output.belief.caption,
                entropy=output.entropy,
                k=output.k,
                output=output,
            )


def smaller(image: Image.Image) -> Image.Image:
    """A preview no larger than it needs to be."""
    image = image.copy()
    image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    return image


def restore_settings(
    scale: Any,
    seed: Any,
    sampling: SamplingConfig | str,
    guidance: Any,
    colour_fix: Any,
    label: Any = None,
    caption: Any = None,
) -> RestoreSettings:
    """Settings from values a stranger sent, of whatever type.

    Raises:
        RestoreError: one of them is not what it should be.
    """
    for what, text in (("label", label), ("caption", caption)):
        if text is not None and not isinstance(text, str):
            raise RestoreError(f"the {what} is text, not {text!r}")
        if text is not None and len(text) > LONGEST_TEXT:
            raise RestoreError(
                f"the {what} has {len(text):,} characters; up to {LONGEST_TEXT:,} are read"
            )
    return RestoreSettings(
        scale=_whole(scale, "scale"),
        seed=_whole(seed, "seed"),
        sampling=sampling,
        guidance=guidance,
        colour_fix=colour_fix,
        label=label,
        caption=caption,
    )


def sampling_config(
    mode: Any, k_max: Any, mu: Any, top_k: Any, temperature: Any, guidance_scale: Any
) -> SamplingConfig:
    """How codes are drawn, from the values of the page.

    Raises:
        SamplingError: one of them is not what it should be.
    """
    numbers = {"mu": mu, "temperature": temperature, "guidance scale": guidance_scale}
    for what, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise SamplingError(f"the {what} is a number, not {value!r}")
    try:
        return SamplingConfig(
            mode=mode,
            k_max=_whole(k_max, "largest k"),
            mu=float(mu),
            top_k=_whole(top_k, "k"),
            temperature=float(temperature),
            guidance_scale=float(guidance_scale),
        )
    except RestoreError as error:
        raise SamplingError(str(error)) from error


def _whole(value: Any, what: str) -> int:
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if not whole or isinstance(value, bool):
        raise RestoreError(f"the {what} is a whole number, not {value!r}")
    return int(value)


# What the page shows


def updates(view: View) -> dict[str, Any]:
    """What the parts of the page, by name, show for a view; those not named stay as they are."""
    running = view.stage in RUNNING
    result: dict[str, Any] = {
        "restore": gr.update(interactive=not running),
        "stop": gr.update(interactive=running),
        "status": gr.update(value=status(view)),
        "belief": gr.update(value=belief_lines(view)),
    }
    if view.stage in ("waiting", "reading"):
        result |= {
            "preview": gr.update(value=None, visible=True),
            "after": gr.update(visible=False),
            "rerun": gr.update(interactive=False),
            "entropy": gr.update(
                value=components.heat_map(None, components.entropy_heat(view.codes))
            ),
            "k": gr.update(value=components.heat_map(None, components.k_heat(view.k_max))),
        }
    if view.preview is not None:
        result["preview"] = gr.update(value=view.preview, visible=True)
    if view.entropy is not None and view.k is not None:
        k = np.where(view.k > 0, view.k, np.nan)
        result |= {
            "entropy": gr.update(
                value=components.heat_map(view.entropy, components.entropy_heat(view.codes))
            ),
            "k": gr.update(value=components.heat_map(k, components.k_heat(view.k_max))),
        }
    if view.output is not None and view.files is not None:
        files = view.files
        result |= {
            "preview": gr.update(visible=False),
            "after": gr.update(visible=True),
            "slider": gr.update(
                value=(files.before, files.restored),
                slider_position=50,
                max_height=min(STAGE_HEIGHT, view.output.image.height),  # 1:1 where it fits
            ),
            "facts": gr.update(value=components.facts(facts(view))),
            "picture_file": gr.update(value=files.restored),
            "card_file": gr.update(value=files.card),
            "label": gr.update(value=view.label, interactive=True),
            "caption": gr.update(value=view.caption, interactive=True),
            "rerun": gr.update(interactive=True),
        }
    return result


def belief_lines(view: View) -> str:
    """The two lines of what the model perceived and understood."""
    waits = "…" if view.stage in RUNNING else "–"
    lines = []
    for name, text, kind in (
        ("Perceived", view.label, "label"),
        ("Understood", view.caption, "caption"),
    ):
        if text is None:
            shown_text = f'<span class="pending">{waits}</span>'
        elif not text:
            shown_text = '<span class="pending">nothing</span>'
        else:
            shown_text = html.escape(text)
        lines.append(f'<dt>{name}</dt><dd class="{kind}">{shown_text}</dd>')
    return f"<dl>{''.join(lines)}</dl>"


def status(view: View) -> str:
    """What is going on, how far it is and how long it takes."""
    what = {
        "idle": "Ready.",
        "waiting": "Waiting for the model",
        "reading": "Perceiving the damage",
        "writing": "Understanding the scene",
        "painting": f"Restoring: {view.done:.0%}",
        "done": "Restored",
        "stopped": "Stopped. The photo and the options are as they were.",
        "failed": f'<span class="problem">{html.escape(view.problem)}</span>',
    }[view.stage]
    times = []
    if view.seconds >= 0.05:
        times.append(f"{view.seconds:.0f} s" if view.stage in RUNNING else f"{view.seconds:.1f} s")
    if view.left is not None and view.stage in RUNNING:
        times.append(f"about {max(1, round(view.left))} s left")
    if view.stage in ("waiting", "reading", "writing"):
        inside = '<i class="busy"></i>'
    else:
        inside = f'<i style="width:{view.done:.1%}"></i>'
    return (
        f'<div class="line"><span>{what}</span><span>{", ".join(times)}</span></div>'
        f'<div class="bar" role="progressbar" aria-label="Progress" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{view.done * 100:.0f}">{inside}</div>'
    )


def facts(view: View) -> dict[str, str]:
    """What is worth knowing about a finished run."""
    assert view.output is not None
    output, settings = view.output, view.output.settings
    sampling = settings.draw()
    how = {
        "top1": "the likeliest code",
        "topk": f"top {sampling.top_k:,}",
        "dynamic": f"dynamic, at most {sampling.k_max:,}, half of it at {sampling.mu:g} nats",
    }[sampling.mode]
    rows = {}
    if view.lq_size:
        before, after = (f"{w} × {h}" for w, h in (view.lq_size, output.image.size))
        rows["Size"] = f"{before} → {after} pixels"
    return rows | {
        "Seed": str(settings.seed),
        "Sampling": f"{how}; temperature {sampling.temperature:g}, "
        f"guidance {sampling.guidance_scale:g}",
        "Tokens": f"{output.steps:,} in {output.passes:,} passes",
        "Seconds": ", ".join(f"{phase} {s:.1f}" for phase, s in output.seconds.items()),
        "Checkpoint": output.checkpoint,
    }


# The page


def build(model: Model, limits: Settings) -> None:
    """Lay out the tab and wire it, and add the endpoint `/restore`."""
    ui: dict[str, Any] = {}
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320, elem_id="left"):
            _lay_out_input(ui, model, limits)
        with gr.Column(scale=7, min_width=320, elem_id="right"):
            _lay_out_result(ui, model)
    _wire(ui, model, limits)
    _endpoint(model, limits)


def _lay_out_input(ui: dict[str, Any], model: Model, limits: Settings) -> None:
    gr.HTML('<h2 class="visually-hidden">Photo</h2>', js_on_load=components.region("left", "Photo"))
    ui["photo"] = gr.Image(
        label="Photo",
        type="filepath",
        format="png",
        image_mode=None,
        sources=["upload", "webcam", "clipboard"],
        height=300,
        buttons=["fullscreen"],
        elem_id="photo",
        alt_text="The photo to restore",
    )
    with gr.Group(visible=False, elem_id="fit") as ui["fit"]:
        ui["fit_text"] = gr.HTML(padding=True)
        with gr.Row() as ui["fit_ways"]:
            ui["shrink"] = gr.Button("Shrink it", elem_id="shrink")
            ui["crop"] = gr.Button("Keep the centre", elem_id="crop")
    with gr.Row():
        ui["restore"] = gr.Button(
            "Restore", variant="primary", elem_id="restore", scale=2, min_width=140
        )
        ui["stop"] = gr.Button(
            "Stop", variant="secondary", interactive=False, elem_id="stop", min_width=100
        )
    side = int(limits.max_pixels**0.5)
    gr.HTML(
        f'<p class="note">Up to {limits.max_pixels:,} pixels at {LIMIT_SCALE}×, for example '
        f"{side} × {side}. Photos are deleted within an hour or two.</p>"
    )
    examples = sorted(p for p in EXAMPLES.glob("*.png") if not p.stem.endswith("_gt"))
    if examples:
        gr.Examples(
            [[str(path)] for path in examples],
            [ui["photo"]],
            label="Examples",
            elem_id="examples",
            api_visibility="private",
            examples_per_page=len(examples),
        )
        gr.HTML(f'<p class="note" id="credits">{credits()}</p>')
    with gr.Accordion("Options", open=False, elem_id="options"):
        ui["preset"] = gr.Radio(
            [(f"{name}: {what}", name) for name, (what, _) in PRESETS.items()],
            value="Balanced",
            label="Preset",
            elem_id="preset",
        )
        ui["scale"] = gr.Radio(
            [(f"{scale}×", scale) for scale in SCALES], value=4, label="Scale", elem_id="scale"
        )
        with gr.Row(elem_id="seed-row"):
            ui["seed"] = gr.Number(
                0, label="Seed", precision=0, minimum=0, elem_id="seed", min_width=120,
                info="The same seed gives the same picture.",
            )  # fmt: skip
            ui["new_seed"] = gr.Button("New seed", elem_id="new-seed", min_width=120)
        ui["guidance"] = gr.Radio(
            [(text, name) for name, text in GUIDANCE.items()],
            value="full",
            label="What the model reads of its own words before it paints",
            elem_id="guidance",
        )
        ui["colour_fix"] = gr.Radio(
            [(text, name) for name, text in COLOUR_FIX.items()],
            value="wavelet",
            label="Colours taken over from the photo",
            elem_id="colour-fix",
        )
        default = model.sampling
        ui["mode"] = gr.Radio(
            [(text, name) for name, text in MODES.items()],
            value=default.mode,
            label="Sampling",
            elem_id="mode",
        )
        with gr.Row():
            ui["k_max"] = gr.Number(
                default.k_max, label="Largest k (dynamic)", precision=0, minimum=1, min_width=140
            )
            ui["mu"] = gr.Number(
                default.mu,
                label="mu, in nats (dynamic)",
                step=0.1,
                minimum=0,
                maximum=MAX_ENTROPY,
                min_width=140,
            )
            ui["top_k"] = gr.Number(
                default.top_k, label="k (top k)", precision=0, minimum=1, min_width=140
            )
        with gr.Row():
            ui["temperature"] = gr.Number(
                default.temperature, label="Temperature", step=0.05, minimum=0.01, min_width=140
            )
            ui["guidance_scale"] = gr.Number(
                default.guidance_scale, label="Guidance scale", step=0.05, minimum=0, min_width=140
            )


def _lay_out_result(ui: dict[str, Any], model: Model) -> None:
    idle = View("idle", codes=model.codes)
    gr.HTML(
        '<h2 class="visually-hidden">Restoration</h2>',
        js_on_load=components.region("right", "Restoration"),
    )
    ui["belief"] = gr.HTML(
        belief_lines(idle),
        elem_id="belief-lines",
        # on the element that stays, so that new text in it is announced
        js_on_load="element.setAttribute('aria-live', 'polite');",
    )
    ui["status"] = gr.HTML(status(idle), elem_id="status")
    ui["queue"] = gr.HTML("", elem_id="queue")
    ui["preview"] = gr.Image(
        label="Restoration as it forms",
        format="png",
        type="pil",
        interactive=False,
        buttons=[],
        height=STAGE_HEIGHT,
        elem_id="preview",
        alt_text="The photo so far: finished rows over the enlarged input",
    )
    with gr.Column(visible=False, elem_id="after") as ui["after"]:
        ui["slider"] = gr.ImageSlider(
            label="Bicubic input on the left, restored on the right",
            show_label=False,  # it would cover the picture
            format="png",
            type="filepath",
            interactive=False,
            buttons=["fullscreen"],
            max_height=STAGE_HEIGHT,
            elem_id="slider",
        )
        # Captions, which the slider has none of, and its keyboard, which it has none of either.
        with gr.Row(elem_id="sides"):
            ui["before_only"] = gr.Button("◀ Bicubic input", min_width=90, elem_id="show-before")
            ui["half"] = gr.Button("Half", min_width=90, elem_id="show-half")
            ui["after_only"] = gr.Button("Restored ▶", min_width=90, elem_id="show-after")
        with gr.Row():
            ui["picture_file"] = gr.DownloadButton(
                "Download picture (PNG)", variant="primary", elem_id="download-picture"
            )
            ui["card_file"] = gr.DownloadButton("Download run card (JSON)", elem_id="download-card")
        ui["facts"] = gr.HTML("", elem_id="facts")
    with gr.Row(elem_id="maps"):
        for name, heat in (
            ("entropy", components.entropy_heat(model.codes)),
            ("k", components.k_heat(idle.k_max)),
        ):
            ui[name] = gr.HTML(
                components.heat_map(None, heat), elem_id=f"{name}-map", min_width=140
            )
    with gr.Column(elem_id="edit"):
        gr.HTML(
            '<h3>What if it believed something else?</h3><p class="note">After a run, change the '
            "words and run again: the picture follows what is written. An empty line is left "
            "out.</p>"
        )
        ui["label"] = gr.Textbox(
            label="Label", interactive=False, elem_id="label", max_length=LONGEST_TEXT
        )
        ui["caption"] = gr.Textbox(
            label="Caption", interactive=False, lines=2, elem_id="caption", max_length=LONGEST_TEXT
        )
        ui["rerun"] = gr.Button("Rerun with this belief", interactive=False, elem_id="rerun")


def uploaded(photo: Any) -> str | None:
    """The path in the value of `gr.Image`, as it comes unprocessed."""
    return photo.get("path") if isinstance(photo, dict) else None


def credits() -> str:
    """Whose photographs the examples are, from the table of licences."""
    lines = (EXAMPLES / "LICENCES.md").read_text(encoding="utf-8").splitlines()
    people: dict[str, None] = {}  # a set that keeps the order
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 6 and cells[0].endswith(".png") and not cells[0].endswith("_gt.png"):
            licence = cells[3].partition("]")[0].removeprefix("[").replace("-", " ")
            people.setdefault(f"{cells[2]} ({licence})", None)
    return "Photographs: " + html.escape(", ".join(people)) + "."


def _wire(ui: dict[str, Any], model: Model, limits: Settings) -> None:
    options = [ui[name] for name in OPTIONS]
    outputs = [ui[name] for name in PARTS]
    # Raw values: `gr.Image` would open the photo with every plugin Pillow has, and turn what it
    # cannot read into a message of its own. Gradio has checked that the file was uploaded here.
    private: dict[str, Any] = {"api_visibility": "private", "preprocess": False}
    quick: dict[str, Any] = private | {"queue": False, "show_progress": "hidden"}

    def job(photo: Any, *values: Any) -> Job:
        """From the values of the photo, `OPTIONS`, and possibly label and caption."""
        scale, seed, *drawn = values[: len(OPTIONS) - 2]
        guidance, colour_fix, *belief = values[len(OPTIONS) - 2 :]
        sampling = sampling_config(*drawn)
        settings = restore_settings(scale, seed, sampling, guidance, colour_fix, *belief)
        return prepare(uploaded(photo), settings, limits)

    def at(view: View) -> dict[Any, Any]:
        return {ui[name]: update for name, update in updates(view).items()}

    def checked(*request: Any) -> Iterator[dict[Any, Any]]:
        """Before the queue, so that a photo nobody takes on does not wait in it."""
        try:
            job(*request)
        except Exception as error:
            told = shown(error)
            yield at(View("failed", problem=html.unescape(str(told.message))))
            raise told from error
        yield at(View("waiting", codes=model.codes))

    def run(*request: Any) -> Iterator[dict[Any, Any]]:
        with TemporaryDirectory() as folder:
            for view in views(model, job(*request), Path(folder)):
                yield at(view)  # Gradio copies the files before it asks for more

    words = [ui["label"], ui["caption"]]

    def stopped(label: Any, caption: Any) -> dict[Any, Any]:
        shows = at(View("stopped"))
        del shows[ui["belief"]]  # what was perceived by then stays
        return shows | {ui["rerun"]: gr.update(interactive=bool(label or caption))}

    def failed(label: Any, caption: Any) -> dict[Any, Any]:
        """After any error, those included of which no view told, such as a full queue."""
        return {
            ui["restore"]: gr.update(interactive=True),
            ui["stop"]: gr.update(interactive=False),
            ui["rerun"]: gr.update(interactive=bool(label or caption)),
        }

    runs = []
    request = [ui["photo"], *options]
    for button, inputs in (
        (ui["restore"], request),
        (ui["rerun"], [*request, *words]),
    ):
        # Through the queue, for only there an error reaches the page; but in no line of its own.
        begun = button.click(
            guarded(checked),
            inputs,
            outputs,
            **private,
            show_progress="hidden",
            concurrency_limit=None,
        )
        started = begun.success(
            guarded(run),
            inputs,
            outputs,
            **private,
            show_progress="minimal",
            show_progress_on=ui["queue"],
            concurrency_limit=1,
            concurrency_id=QUEUE,
        )
        started.failure(failed, words, [ui["restore"], ui["stop"], ui["rerun"]], **quick)
        button.click(None, js=TO_THE_RESULT, **private)
        runs.append(started)
    ui["stop"].click(stopped, words, outputs, cancels=runs, **quick)

    def fits(photo: Any, scale: Any) -> tuple[Any, ...]:
        """What is wrong with the photo, if anything, and whether it only is too large."""
        problem, large = "", False
        if path := uploaded(photo):
            try:
                image = read_photo(path, max_bytes=limits.max_file_mb * 1_000_000)
                problem = too_large(image.size, _whole(scale, "scale"), limits)
                large = bool(problem)
            except PhotoError as error:
                problem = str(error)
        return (
            gr.update(visible=bool(problem)),
            f'<p role="alert">{html.escape(problem)}</p>',
            gr.update(visible=large),
        )

    gr.on(
        [ui["photo"].change, ui["scale"].change],
        guarded(fits),
        [ui["photo"], ui["scale"]],
        [ui["fit"], ui["fit_text"], ui["fit_ways"]],
        **quick,
    )

    def made_smaller(how: Any, suffix: str) -> Any:
        def smaller_photo(photo: Any, scale: Any) -> Iterator[str]:
            source = uploaded(photo)
            if source is None:
                raise PhotoError("There is no photo any more.")
            image = read_photo(source, max_bytes=limits.max_file_mb * 1_000_000)
            with TemporaryDirectory() as folder:
                path = Path(folder) / f"{runcard.stem(Path(source))}_{suffix}.png"
                how(image, largest(_whole(scale, "scale"), limits)).save(path)
                yield str(path)

        return guarded(smaller_photo)

    for name, how, suffix in (("shrink", shrunk, "small"), ("crop", centre, "centre")):
        ui[name].click(
            made_smaller(how, suffix), [ui["photo"], ui["scale"]], [ui["photo"]],
            **private, show_progress="hidden", concurrency_limit=4,
        )  # fmt: skip

    def preset(name: Any) -> tuple[Any, ...]:
        config = SamplingConfig.parse(PRESETS[name][1], model.sampling)
        return tuple(getattr(config, option) for option in DRAWN)

    ui["preset"].input(
        guarded(preset),
        [ui["preset"]],
        [ui[option] for option in DRAWN],
        **quick,
    )
    ui["new_seed"].click(lambda: secrets.randbelow(NEW_SEEDS), None, [ui["seed"]], **quick)
    for name, position in (("before_only", 100), ("half", 50), ("after_only", 0)):
        ui[name].click(
            lambda position=position: gr.update(slider_position=position),
            None,
            [ui["slider"]],
            **quick,
        )


def _endpoint(model: Model, limits: Settings) -> None:
    """`/restore`: the same run for programs, with plain values."""
    with gr.Column(visible=False):
        image = gr.File(label="Photo, any format of the page", type="filepath")
        scale = gr.Number(4, label="Times larger, 1 to 4", precision=0)
        seed = gr.Number(0, label="Seed of the sampling", precision=0)
        sampling = gr.Textbox("dynamic", label="dynamic, top1 or topk:K")
        guidance = gr.Radio(list(get_args(Guidance)), value="full", label="Words kept")
        colour_fix = gr.Radio(list(get_args(ColourFix)), value="wavelet", label="Colour fix")
        label = gr.Textbox("", label="Label to use; empty: the model's own")
        caption = gr.Textbox("", label="Caption to use; empty: the model's own")
        progress = gr.JSON(label="Progress: stage, done, seconds, label, caption")
        picture = gr.File(label="Restored photo, PNG")
        card = gr.JSON(label="Run card")
        trigger = gr.Button()

    def restore(
        image: str | None,
        scale: int,
        seed: int,
        sampling: str,
        guidance: str,
        colour_fix: str,
        label: str,
        caption: str,
    ) -> Iterator[tuple[dict[str, Any], str | None, dict[str, Any] | None]]:
        settings = restore_settings(
            scale,
            seed,
            sampling,
            guidance,
            colour_fix,
            label or None,
            caption or None,
        )
        with TemporaryDirectory() as folder:
            for view in views(model, prepare(image, settings, limits), Path(folder)):
                yield plain(view)

    trigger.click(
        guarded(restore),
        [image, scale, seed, sampling, guidance, colour_fix, label, caption],
        [progress, picture, card],
        api_name="restore",
        api_description=ABOUT_RESTORE,
        concurrency_limit=1,
        concurrency_id=QUEUE,
        show_progress="hidden",
    )


def plain(view: View) -> tuple[dict[str, Any], str | None, dict[str, Any] | None]:
    """A view as `/restore` tells it: progress, and at the end the picture and its run card."""
    progress = {
        "stage": view.stage,
        "done": round(view.done, 4),
        "seconds": round(view.seconds, 2),
        "label": view.label,
        "caption": view.caption,
    }
    if view.files is None:
        return progress, None, None
    return progress, str(view.files.restored), json.loads(view.files.card.read_text("utf-8"))
