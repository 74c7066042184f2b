"""The viewer: 2 to 8 pictures of one scene, at one zoom and one place.

Knows what is shown and how it is handed over; how it is looked at is `static/viewer.js`, how it
looks `static/viewer.css`. There is no build step, and nothing is fetched but the pictures.

A name and numbers are optional. A picture without a name gets a letter, and its file is written
anew without a name and without metadata, so that nothing in the page says which method made it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import gradio as gr
import numpy as np
from gradio import processing_utils
from gradio.utils import get_upload_folder
from PIL import Image

from imaging import maps

STATIC = Path(__file__).parent / "static"
FEWEST, MOST = 2, 8
# Two pictures of one scene may differ by what rounding a side to whole pixels does.
SIDE_TOLERANCE = 0.02

Role = Literal["lq", "sr", "gt"]
Mode = Literal["grid", "swipe", "flip", "difference"]
Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Metric:
    """A number under a picture.

    Attributes:
        name: "PSNR".
        value: what is compared; not a number is shown as a dash.
        better: which way is good; None if neither is.
        digits: after the point.
        unit: behind the number.
    """

    name: str
    value: float
    better: Better | None = None
    digits: int = 2
    unit: str = ""

    @property
    def text(self) -> str:
        """The number as it is shown."""
        if not np.isfinite(self.value):
            return "–" if np.isnan(self.value) else ("∞" if self.value > 0 else "−∞")
        number = f"{self.value:.{self.digits}f}".replace("-", "−")
        return f"{number} {self.unit}".rstrip()


@dataclass(frozen=True)
class Picture:
    """One picture of a scene.

    Attributes:
        source: a PNG file, handed over byte for byte; or pixels. None: not there yet, or not at
            all, and `note` says why.
        name: below it and in figures. None: a letter, and nothing that says what it is.
        role: input, restoration or reference.
        alt: text for those who do not see it; made of name and title if None.
        metrics: in the order they are shown; of equal names the best restoration's is marked.
        seconds: the restoration took.
        parameters: of the method's networks.
        note: shown in place of a picture that is not there.
        pending: whether it is still to come.
    """

    source: Path | Image.Image | None
    name: str | None = None
    role: Role = "sr"
    alt: str | None = None
    metrics: Sequence[Metric] = ()
    seconds: float | None = None
    parameters: int | None = None
    note: str = ""
    pending: bool = False


@dataclass(frozen=True)
class Scene:
    """What a viewer shows.

    Attributes:
        pictures: 2 to 8, an input first and a reference last, all of one shape. Smaller ones are
            enlarged to the largest by repeating pixels.
        key: while it stays the same so does the visitor's view; it also names the scene in links.
        title: of the scene, for alternative texts and figures.
        modes: layouts on offer.
        start: zoom of a new scene: as large as the frame, or a pixel on a pixel.
        linked: whether a link can reopen the view, which it can if `key` is found again.
        exported: whether figures can be made of it.
        boxed: whether a box can be drawn.
        expected: width and height of the largest picture, if that is not there yet.

    Raises:
        ValueError: it is not as said above.
    """

    pictures: tuple[Picture, ...]
    key: str = ""
    title: str = ""
    modes: tuple[Mode, ...] = get_args(Mode)
    start: Literal["fit", "actual"] = "fit"
    linked: bool = False
    exported: bool = True
    boxed: bool = True
    expected: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        count = len(self.pictures)
        if not FEWEST <= count <= MOST:
            raise ValueError(f"a scene has {FEWEST} to {MOST} pictures, not {count}")
        order = [("lq", "sr", "gt").index(picture.role) for picture in self.pictures]
        if order != sorted(order):
            raise ValueError("the input comes first and the reference last")
        if not self.modes or not set(self.modes) <= set(get_args(Mode)):
            raise ValueError(f"modes are some of {', '.join(get_args(Mode))}, not {self.modes}")
        if self.linked and not self.key:
            raise ValueError("a link needs a key to find the scene by")
        sizes = [size for picture in self.pictures if (size := _size(picture))]
        width, height = self.size
        for w, h in sizes:
            if abs(w * height - h * width) > SIDE_TOLERANCE * width * h:
                raise ValueError(
                    f"pictures of one scene have one shape; {w} × {h} is not that of "
                    f"{width} × {height}"
                )

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the largest picture; of a square if nothing is known yet."""
        sizes = [self.expected, *(_size(picture) for picture in self.pictures)]
        return max((size for size in sizes if size), default=(1, 1))


def _size(picture: Picture) -> tuple[int, int] | None:
    if isinstance(picture.source, Image.Image):
        return picture.source.size
    if picture.source is None:
        return None
    with Image.open(picture.source, formats=("PNG",)) as image:  # reads the header only
        return image.size


def viewer(scene: Scene | None = None, *, elem_id: str | None = None) -> gr.HTML:
    """The component. As an output it takes a `payload`; it gives nothing back.

    A function and not a class derived from `gr.HTML`, because Gradio writes a file beside the
    module of every such class when it is imported.
    """
    return gr.HTML(
        payload(scene),
        elem_id=elem_id,
        html_template='<div class="viewer"></div>',
        css_template=(STATIC / "viewer.css").read_text(encoding="utf-8"),
        js_on_load=(STATIC / "viewer.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        stops=maps.MAGMA,
    )


def payload(scene: Scene | None) -> dict[str, Any] | None:
    """A scene as the script reads it, pictures as files that Gradio serves; None shows nothing."""
    if scene is None:
        return None
    width, height = scene.size
    best = best_values(scene.pictures)
    return {
        "key": scene.key,
        "title": scene.title,
        "width": width,
        "height": height,
        "modes": list(scene.modes),
        "start": scene.start,
        "linked": scene.linked,
        "exported": scene.exported,
        "boxed": scene.boxed,
        "pictures": [
            _plain(picture, picture.name or letter(index), scene.title, best)
            for index, picture in enumerate(scene.pictures)
        ],
    }


def _plain(picture: Picture, name: str, title: str, best: dict[str, float]) -> dict[str, Any]:
    return {
        "file": _file(picture),
        "name": name,
        "role": picture.role,
        "alt": picture.alt or (f"{name}: {title}" if title else name),
        "note": picture.note,
        "pending": picture.pending,
        "metrics": [
            {
                "name": metric.name,
                "text": metric.text,
                "better": metric.better,
                "best": picture.role == "sr" and best.get(metric.name) == metric.value,
            }
            for metric in picture.metrics
        ],
        "facts": facts(picture),
    }


def _file(picture: Picture) -> dict[str, Any] | None:
    """A copy in Gradio's cache, which it serves and clears; None if there is no picture."""
    if picture.source is None:
        return None
    if isinstance(picture.source, Path) and picture.name is not None:
        path = _cached(picture.source)
    else:
        # Not `save_pil_to_cache`, which empties and refills a file that may be on its way to a
        # page: the same picture comes again with every method that finishes.
        with TemporaryDirectory() as folder:
            file = Path(folder) / "picture.png"
            pixels(picture.source).save(file)
            path = _cached(file)
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def _cached(file: Path) -> str:
    return processing_utils.save_file_to_cache(file, get_upload_folder())


def letter(index: int) -> str:
    """A name that says nothing: A, B and so on."""
    return "ABCDEFGH"[index]


def pixels(source: Path | Image.Image) -> Image.Image:
    """A picture of nothing but RGB pixels: no text, profile or time goes along."""
    if isinstance(source, Path):
        with Image.open(source, formats=("PNG",)) as image:
            return Image.fromarray(np.asarray(image.convert("RGB")))
    return Image.fromarray(np.asarray(source.convert("RGB")))


def best_values(pictures: Sequence[Picture]) -> dict[str, float]:
    """By metric, the best value among restorations; none where there is nothing to compare."""
    values: dict[str, list[Metric]] = {}
    for picture in pictures:
        if picture.role == "sr":
            for metric in picture.metrics:
                values.setdefault(metric.name, []).append(metric)
    best = {}
    for name, metrics in values.items():
        numbers = [metric.value for metric in metrics if not np.isnan(metric.value)]
        if len(numbers) > 1 and metrics[0].better is not None:
            best[name] = max(numbers) if metrics[0].better == "higher" else min(numbers)
    return best


def facts(picture: Picture) -> list[str]:
    """Time and size as they are shown."""
    words = []
    if picture.seconds is not None:
        words.append(seconds(picture.seconds))
    if picture.parameters is not None:
        words.append(f"{parameters(picture.parameters)} parameters")
    return words


def seconds(value: float) -> str:
    """A time with two digits that say something: <1 ms, 4 ms, 1.2 s, 37 s."""
    if value < 0.0005:
        return "<1 ms"
    if value < 0.9995:
        return f"{value * 1000:.0f} ms"
    return f"{value:.1f} s" if value < 9.95 else f"{value:.0f} s"


def parameters(count: int) -> str:
    """A count in thousands, millions or billions: 0, 3.4 M, 7.1 B."""
    for size, unit in ((10**9, " B"), (10**6, " M"), (10**3, " k")):
        if count >= size:
            return f"{count / size:.{0 if count >= 100 * size else 1}f}{unit}"
    return str(count)
