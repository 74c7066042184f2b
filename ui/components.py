"""Theme, style sheet and the pieces of a page that more than one tab may show.

Everything here is HTML or colour made from plain values; nothing knows the model or an event.
Text that comes from a model or a visitor is escaped here.
"""

import base64
import html
import io
from dataclasses import dataclass

import gradio as gr
import numpy as np
from PIL import Image

from imaging import maps

FONT = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]


def theme() -> gr.themes.Base:
    """System fonts, so that nothing is fetched; one accent."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        font=FONT,
        font_mono=MONO,
    ).set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        color_accent="*primary_700",
        color_accent_soft="*primary_50",
        block_label_text_size="*text_sm",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )


CSS = """
/* 100 %: what does not fit must not make the page wider */
.gradio-container { max-width: min(1180px, 100%) !important; margin: 0 auto !important;
  overflow: clip !important; } /* not hidden: nothing could stick to the window's edge */
.dark { --color-accent: var(--primary-400); }
.gradio-container .html-container { padding-left: 0; padding-right: 0; }
.visually-hidden { position: absolute; width: 1px; height: 1px; overflow: hidden;
  clip-path: inset(50%); white-space: nowrap; }
/* tables scroll in themselves: a page as wide as its widest table could not be read on a phone */
:is(#numbers, #results) { contain: inline-size; width: 100%; }
#unavailable summary { min-height: 44px; line-height: 44px; cursor: pointer; }
#unavailable { overflow-wrap: anywhere; }
.numbers-table { overflow-x: auto; }
.numbers-table table.sortable { border: 0; border-collapse: collapse; width: 100%;
  font-size: .95rem;
  font-variant-numeric: tabular-nums; }
/* a list and not `:is`: inside that Gradio adds its scope, and the rule outweighs those below */
.numbers-table .sortable th, .numbers-table .sortable td { padding: .3rem .6rem; text-align: right;
  white-space: nowrap; border: 0; border-bottom: 1px solid var(--border-color-primary); }
.numbers-table .sortable :is(thead, tbody, tr) { border: 0; }
.numbers-table .sortable :is(th, td):first-child { text-align: left; }
.numbers-table .sortable td:first-child { min-width: 7.5rem; white-space: normal; }
.numbers-table .sortable th { vertical-align: bottom; white-space: normal; }
.numbers-table .sortable th button { min-height: 44px; padding: 0; font-size: .9rem;
  font-weight: 600; text-align: inherit; color: inherit; background: none; border-radius: 0;
  box-shadow: none; cursor: pointer; line-height: 1.3; white-space: normal; }
.numbers-table .sortable th button:hover { text-decoration: underline; }
.numbers-table th[aria-sort=ascending] button::after { content: " ▴"; }
.numbers-table th[aria-sort=descending] button::after { content: " ▾"; }
.numbers-table td[data-rank]::before { content: attr(data-rank) ". ";
  color: var(--body-text-color-subdued); }
.numbers-table :is(button, [tabindex]):focus-visible, .numbers-table:focus-visible {
  outline: 3px solid var(--color-accent); outline-offset: -3px; }
.numbers-table th[scope=row] { font-weight: 500; }
.numbers-table.words { overflow-x: visible; }
.numbers-table.words .sortable :is(th, td) { white-space: normal; text-align: left;
  vertical-align: top; overflow-wrap: anywhere; }
.numbers-table.words .sortable th[scope=row] { width: 34%; overflow-wrap: normal;
  word-break: normal; }
#results .numbers-table .sortable thead th { white-space: normal; }
#results .headline { margin: .3rem 0; padding: 14px 16px; font-size: 1.1rem; line-height: 1.5;
  border: 1px solid var(--border-color-primary); border-left: 4px solid var(--color-accent);
  border-radius: 6px; background: var(--background-fill-secondary); }
#results .note { overflow-wrap: anywhere; } /* hashes, on a phone */
/* one grey cannot be read on both grounds; the matrix has colours of its own behind its numbers */
#results .js-plotly-plot text:not(.heatmap-label text) { fill: var(--body-text-color) !important; }
#results pre { margin: 0; padding: 10px 12px; overflow-x: auto; font-family: var(--font-mono);
  font-size: .88rem; border: 1px solid var(--border-color-primary); border-radius: 6px; }
.numbers-head h3 { margin: .6rem 0 .1rem; font-size: 1.1rem; font-weight: 600; }
.numbers-head details { color: var(--body-text-color-subdued); font-size: .9rem; }
@media (max-width: 640px) { /* all tabs in sight, none in a menu */
  .tab-container > button { padding: 0 4px; font-size: .8rem; }
}
#left, #right { gap: 12px; }

#head h1 { font-size: 1.7rem; line-height: 1.25; margin: .4rem 0 .2rem; font-weight: 700; }
#head p { margin: 0; color: var(--body-text-color-subdued); line-height: 1.5; font-size: 1rem; }
#head p.model { display: inline-block; margin-top: .6rem; padding: .3rem .7rem;
  border-radius: 6px; background: var(--background-fill-secondary);
  border: 1px solid var(--border-color-primary); font-size: .92rem;
  color: var(--body-text-color); }

.gradio-container :is(button, [role=tab], input[type=number], select) { min-height: 44px; }
.gradio-container :is(.source-selection button, .icon-button) { min-width: 44px; }
.gradio-container .icon-button { justify-content: center; }
.gradio-container .icon-button svg { width: 18px; height: 18px; }
.gradio-container .tab-like-container { height: auto; } /* of a slider's number */
.gradio-container textarea { min-height: 44px; }
.gradio-container .source-selection svg { width: 22px; height: 22px; }
.gradio-container label:has(:is(input[type=radio], input[type=checkbox])) { min-height: 44px; }
.gradio-container .label-wrap { align-items: center; } /* of an accordion */
.gradio-container :is(button, a, input, textarea, select, [tabindex]):focus-visible {
  outline: 3px solid var(--color-accent) !important; outline-offset: 2px; }
#new-seed { align-self: flex-end; margin: 0 12px 12px 0; }
#photo img { width: 100%; height: 100%; object-fit: contain; }

#belief-lines { padding: 14px 16px; border: 1px solid var(--border-color-primary);
  border-left: 4px solid var(--color-accent); border-radius: 6px;
  background: var(--background-fill-secondary); }
#belief-lines dl { margin: 0; display: grid; grid-template-columns: 7.2rem 1fr; row-gap: .45rem; }
#belief-lines dt { font-weight: 600; color: var(--body-text-color-subdued); line-height: 1.6rem; }
#belief-lines dd { margin: 0; font-size: 1.1rem; line-height: 1.6rem; min-height: 1.6rem;
  overflow-wrap: anywhere; }
#belief-lines dd.caption { min-height: 3.2rem; }
#belief-lines .pending { color: var(--body-text-color-subdued); font-size: 1rem; }

#status .line { display: flex; justify-content: space-between; gap: 1rem; min-height: 1.6rem;
  font-variant-numeric: tabular-nums; }
#status .line span:last-child { color: var(--body-text-color-subdued); text-align: right;
  flex: none; }
#status .bar { height: 8px; border-radius: 4px; background: var(--border-color-primary);
  overflow: hidden; margin-top: .3rem; }
#status .bar i { display: block; height: 100%; background: var(--primary-600); border-radius: 4px;
  transition: width .25s linear; }
#status .bar i.busy { width: 30%; animation: sweep 1.4s ease-in-out infinite alternate; }
@keyframes sweep { from { margin-left: 0 } to { margin-left: 70% } }
@media (prefers-reduced-motion: reduce) {
  #status .bar i { transition: none }
  #status .bar i.busy { animation: none; width: 100%; opacity: .45 }
}
:is(#status, #compare-status) .problem { color: #b42318; font-weight: 600; }
.dark :is(#status, #compare-status) .problem { color: #fda29b; }
#compare-heading { position: absolute; }
#compare-status:not(:has(p)) { margin-bottom: -16px; } /* no gap around nothing */
#compare-status p { margin: 0; min-height: 1.6rem; }
#compare-photo img { width: 100%; height: 100%; object-fit: contain; }
.note ul { margin: .2rem 0 0; padding-left: 1.2rem; }

/* Gradio writes the place in the queue into these */
:is(#queue, #compare-queue) { min-height: 26px; overflow: visible !important; }
:is(#queue, #compare-queue) .wrap { padding: 0 !important; background: none;
  justify-content: flex-start; }
:is(#queue, #compare-queue) .wrap :is(.progress-text, .meta-text) { position: static; padding: 0;
  margin: 0; transform: none; font-family: var(--font); font-size: .92rem;
  color: var(--body-text-color); background: none; }

#sides { flex-wrap: nowrap; gap: 8px; }
#sides button { flex: 1 1 auto; min-width: 0 !important; }
#sides button { font-size: .92rem; font-weight: 600; white-space: nowrap; padding: 0 10px; }
#sides button:first-child { justify-content: flex-start; }
#sides button:last-child { justify-content: flex-end; }

.heat { margin: 0; }
.heat .title { font-size: .92rem; margin-bottom: .35rem; min-height: 2.7rem; line-height: 1.35rem; }
.heat .title b { font-weight: 600; display: block; }
.heat .title span { color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums; }
.heat .frame { height: 190px; display: flex; align-items: center; justify-content: center;
  border: 1px solid var(--border-color-primary); border-radius: 6px; overflow: hidden;
  background: var(--background-fill-secondary); color: var(--body-text-color-subdued);
  font-size: .92rem; text-align: center; padding: 4px; }
.heat img { width: 100%; height: 100%; object-fit: contain; image-rendering: pixelated; }
.heat .scale { height: 10px; border-radius: 3px; margin-top: .45rem; }
.heat .ticks { display: flex; justify-content: space-between; font-size: .85rem;
  color: var(--body-text-color-subdued); margin-top: .15rem; font-variant-numeric: tabular-nums; }

#edit { padding: 14px 16px; border: 1px solid var(--border-color-primary); border-radius: 6px;
  gap: 10px; }
#edit h3 { margin: 0 0 .2rem; font-size: 1.05rem; }
.facts dl { margin: 0; display: grid; grid-template-columns: 7rem 1fr; row-gap: .3rem;
  font-variant-numeric: tabular-nums; font-size: .95rem; }
.facts dt { color: var(--body-text-color-subdued); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.note { font-size: .9rem; color: var(--body-text-color-subdued); line-height: 1.45; margin: 0; }
@media (max-width: 640px) {
  #belief-lines dl { grid-template-columns: 1fr; row-gap: .1rem; }
  #belief-lines dd + dt { margin-top: .5rem; }
  #slider .icon-button-wrapper { display: none; } /* it would cover the picture; pinch works */
  #sides button { font-size: .85rem; padding: 0 6px; }
  .heat .frame { height: 130px; }
  :is(#numbers, #results) .modebar { display: none; } /* it would cover the points */
  .heat .title { min-height: 4.1rem; }
}
"""


def region(column: str, name: str) -> str:
    """JavaScript for `js_on_load` that makes a column, by its `elem_id`, a named region."""
    return (
        f"const box = document.getElementById('{column}');"
        f"box.setAttribute('role', 'region'); box.setAttribute('aria-label', '{name}');"
    )


def header(name: str, note: str) -> str:
    """Title, one sentence, and which model this is."""
    about = f": {html.escape(note)}" if note else ""
    return (
        "<header><h1>PURE: perceive, understand, restore</h1>"
        "<p>An autoregressive model names the damage, says what it sees, "
        "and then paints the photo anew, four times as large.</p>"
        f'<p class="model"><b>{html.escape(name)}</b>{about}</p></header>'
    )


@dataclass(frozen=True)
class Heat:
    """How a map of numbers is shown.

    Attributes:
        title: above it.
        alt: for those who do not see it.
        unit: of the numbers.
        low, high: where the colours begin and end.
        stops: of the colours.
        log: whether the colours follow the logarithm.
    """

    title: str
    alt: str
    unit: str
    low: float
    high: float
    stops: str
    log: bool = False


def entropy_heat(codes: int) -> Heat:
    """Of the entropy of each code's distribution; a codebook's size bounds it."""
    return Heat(
        "Entropy", "how unsure the model is of each code", "nats", 0, np.log(codes), maps.MAGMA
    )


def k_heat(k_max: int) -> Heat:
    """Of the candidates kept for each code."""
    return Heat(
        "Candidates",
        "how many codes were drawn from",
        "codes",
        1,
        max(k_max, 2),
        maps.VIRIDIS,
        True,
    )


def heat_map(values: np.ndarray | None, heat: Heat) -> str:
    """The map, its range and its legend; a quiet frame as long as there is nothing."""
    summary, inside = "", "appears with the first rows"
    if values is not None and (known := values[np.isfinite(values)]).size:
        middle = float(np.median(known))
        summary = (
            f"median {_number(middle)}, {_number(known.min())} to {_number(known.max())} "
            f"{heat.unit}"
        )
        alt = f"Map of {heat.alt}: {summary}."
        cells = maps.heat_map(values, heat.low, heat.high, stops=heat.stops, log=heat.log)
        inside = f'<img src="{png_uri(cells)}" alt="{html.escape(alt)}">'
    gradient = ", ".join(f"#{stop}" for stop in heat.stops.split())
    middle = (heat.low * heat.high) ** 0.5 if heat.log else (heat.low + heat.high) / 2
    ticks = "".join(
        f"<span>{_number(value)}{suffix}</span>"
        for value, suffix in ((heat.low, ""), (middle, ""), (heat.high, f" {heat.unit}"))
    )
    return (
        f'<figure class="heat"><div class="title"><b>{heat.title}</b><span>{summary}</span></div>'
        f'<div class="frame">{inside}</div>'
        f'<div class="scale" style="background:linear-gradient(90deg,{gradient})"></div>'
        f'<div class="ticks">{ticks}</div></figure>'
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or float(value).is_integer() else f"{value:.1f}"


def png_uri(image: Image.Image) -> str:
    """A small picture inside the page itself."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def facts(rows: dict[str, str]) -> str:
    """A list of names and values."""
    lines = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in rows.items()
    )
    return f'<div class="facts"><dl>{lines}</dl></div>'
