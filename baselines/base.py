"""What a method is: its card, how it is loaded, what it gives back, and how it is run fairly.

Knows no method. Whoever compares methods calls `run`: every method is handed the same pixels, gives
back a picture of the promised size, and leaves a run card that says how the picture came about.
"""

import hashlib
import importlib.util
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, Protocol

from PIL import Image

Family = Literal["interpolation", "gan", "diffusion", "autoregressive", "other"]

# Memory bandwidth of an A100 over that of the half card ZeroGPU lends, 2.04 to 0.9 TB/s: how much
# longer a network takes there at worst, see `pure.cost`.
A100_TO_LENT = 2.27

# Decide about pixels whatever the method; its own packages are added to them.
COMMON_PACKAGES = ("numpy", "pillow", "torch")


class MethodUnavailableError(RuntimeError):
    """A method cannot run here; the message says what is missing and how to get it."""


class SettingError(ValueError):
    """A setting of a method that cannot be; the message says which and what it may be."""


class MethodError(RuntimeError):
    """A method cannot restore this picture, or broke its promise; the message says which."""


@dataclass(frozen=True)
class Restoration:
    """One restored picture and how it came about.

    Attributes:
        image: RGB, 8 bit, scale × the input.
        method: name of the method.
        seed: that reached the sampler; methods without chance carry it all the same.
        seconds: wall clock, loading excluded; None if it was not measured (saved outputs).
        text: what the method said it saw, if it speaks.
        details: further facts for the run card, JSON-able.
    """

    image: Image.Image
    method: str
    seed: int
    seconds: float | None
    text: str | None = None
    details: Mapping[str, str | int | float | None] = field(default_factory=dict)


class Restorer(Protocol):
    """A loaded method."""

    def restore(self, lq: Image.Image, *, seed: int = 0) -> Restoration:
        """Restore an upright RGB picture, which stays as it is.

        Raises:
            MethodError: this picture cannot be restored, with a sentence that says why.
        """
        ...


LONGEST_TEXT = 500  # characters of a setting; networks read about a hundred words at most


@dataclass(frozen=True)
class Setting:
    """Something about a method that is worth a visitor's while to change.

    Attributes:
        name: of the field of the method's options.
        label: for people.
        default: the published value; its type is that of the setting. None is a text that the
            method finds itself unless it is given.
        lowest: of a number.
        highest: of a number.
        step: of a number, on a slider.
        choices: of a text that is one of a few.
        info: what it does.
    """

    name: str
    label: str
    default: str | int | float | None
    lowest: float | None = None
    highest: float | None = None
    step: float | None = None
    choices: tuple[str, ...] = ()
    info: str = ""

    def read(self, value: object) -> str | int | float | None:
        """A value somebody sent, as the method takes it.

        An empty text, where the method finds one itself, asks the method; blanks are a text that
        says nothing.

        Raises:
            SettingError: it is of another kind, or outside the limits.
        """
        if isinstance(self.default, int | float):
            return self._number(value)
        if value is None or (value == "" and self.default is None):
            return self.default
        if not isinstance(value, str):
            raise SettingError(f"{self.label} is a text, not {value!r:.80}")
        if self.choices and value not in self.choices:
            allowed = ", ".join(self.choices)
            raise SettingError(f"{self.label} is one of {allowed}; not {value!r:.80}")
        if len(value) > LONGEST_TEXT:
            raise SettingError(
                f"{self.label} has {len(value)} characters; it may have {LONGEST_TEXT}"
            )
        return value.strip()

    def _number(self, value: object) -> int | float:
        assert self.lowest is not None, "a number has limits"
        assert self.highest is not None, "a number has limits"
        whole = isinstance(self.default, int)
        kind = "a whole number" if whole else "a number"
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise SettingError(f"{self.label} is {kind}, not {value!r:.80}")
        if not self.lowest <= value <= self.highest:  # what is not a number is not, either
            raise SettingError(
                f"{self.label} is {self.lowest:g} to {self.highest:g}, not {value:g}"
            )
        if whole and value != int(value):
            raise SettingError(f"{self.label} is {kind}, not {value!r}")
        return int(value) if whole else float(value)


def _nothing_missing() -> str | None:
    return None


@dataclass(frozen=True)
class Method:
    """A method's card and the way to load it; importing one loads no framework.

    Attributes:
        name: stable key in files, votes and tables: "seesr".
        title: for people: "SeeSR".
        family: how it makes pictures.
        scale: how many times larger the result is.
        load: takes a device, "cpu" or "cuda", and gives the loaded method. Threads are those of
            torch (`torch.set_num_threads`), for every method. Raises `MethodUnavailableError`.
        requires: import names of its packages.
        packages: distribution names whose versions decide about its pixels.
        missing: says in a sentence what besides `requires` is not there, without loading
            anything; None if nothing is.
        memory_bytes: what it takes on its device when loaded and restoring one picture of the
            usual size, about; of this the memory budget is made.
        concurrent: whether several threads may restore with one loaded copy at once.
        parameters: of all its networks.
        source: paper and code.
        licence: of code and weights.
        preprocessing: what happens to the input before the network.
        postprocessing: what happens to its output.
        prompt: text it is given, if any.
        steps: of diffusion or decoding, if it has any.
        colour_fix: how colours are taken over from the input, if they are.
        paper_settings: how the PURE paper ran it, as far as known, and where this differs.
        gpu_seconds: an estimate for an input of (width, height) on the half card that ZeroGPU
            lends, loading excluded; 0 if it works without a GPU. None: nobody knows.
        order: where it stands among the others; equal ones stand by name.
        variant_of: name of the method of which this is another setting, if it is one.
        settings: what a visitor may change.
        options: makes of the values of `settings`, by their names, what the loaded method takes
            as `options`; None if there are none.
        random: whether its weights are random, for testing; its pictures are no results.
    """

    name: str
    title: str
    family: Family
    scale: int
    load: Callable[[str], Restorer]
    requires: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    missing: Callable[[], str | None] = _nothing_missing
    memory_bytes: int = 0
    concurrent: bool = False
    parameters: int | None = None
    source: str = ""
    licence: str = ""
    preprocessing: str = "none"
    postprocessing: str = "none"
    prompt: str | None = None
    steps: int | None = None
    colour_fix: str | None = None
    paper_settings: str = ""
    gpu_seconds: Callable[[tuple[int, int]], float] | None = None
    order: int = 50
    variant_of: str | None = None
    settings: tuple[Setting, ...] = ()
    options: Callable[..., object] | None = None
    random: bool = False

    def chosen(self, values: Mapping[str, object]) -> dict[str, str | int | float | None]:
        """Of the values somebody sent, by name of the setting, those that are not the published.

        Raises:
            SettingError: there is no such setting, or it cannot be this.
        """
        known = {setting.name: setting for setting in self.settings}
        if unknown := sorted(set(values) - set(known)):
            there = f"there are {', '.join(known)}" if known else "there are none"
            raise SettingError(f"{self.title} has no setting {unknown[0]!r:.80}; {there}")
        read = {name: known[name].read(value) for name, value in values.items()}
        return {name: value for name, value in read.items() if value != known[name].default}

    def unavailable(self) -> str | None:
        """Why it cannot run here, in a sentence; None if it can. Loads nothing."""
        for package in self.requires:
            if importlib.util.find_spec(package) is None:
                return (
                    f"{self.title} needs the package {package}, which is not installed. "
                    f"Install it: pip install {package.replace('_', '-')}"
                )
        return self.missing()


@dataclass(frozen=True)
class RunCard:
    """Everything needed to make a restoration again; no time, no place, so equal runs are equal.

    Attributes:
        input_sha256: of the input's pixels, see `pixels_sha256`.
        output_sha256: of the output's pixels.
        versions: of Python and the packages that decide about pixels.
    """

    method: str
    title: str
    family: str
    scale: int
    seed: int
    device: str
    input_size: tuple[int, int]
    input_sha256: str
    output_sha256: str
    preprocessing: str
    postprocessing: str
    prompt: str | None
    steps: int | None
    colour_fix: str | None
    parameters: int | None
    source: str
    licence: str
    text: str | None
    details: Mapping[str, str | int | float | None]
    versions: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:  # Any: what JSON holds
        """Itself as JSON-able values."""
        return {**asdict(self), "input_size": list(self.input_size)}


def run(
    method: Method,
    restorer: Restorer,
    lq: Image.Image,
    *,
    seed: int = 0,
    device: str = "cpu",
    values: Mapping[str, object] | None = None,
) -> tuple[Restoration, RunCard]:
    """Restore one picture the way every method of a comparison has to.

    The method gets a copy of its own of the same pixels, so it can change nobody else's.

    Args:
        method: its card.
        restorer: `method`, loaded.
        lq: upright RGB.
        seed: 0 or more.
        device: `restorer` was loaded onto, for the card.
        values: of `method.settings`, by name; the published ones where there are none.

    Raises:
        SettingError: a value cannot be.
        MethodError: from the method, or because its picture is not RGB or not `scale` × the input.
        ValueError: the input is not RGB.
    """
    if lq.mode != "RGB":
        raise ValueError(f"expected an RGB picture, got {lq.mode}")
    restoration = _restored(method, restorer, lq.copy(), seed, method.chosen(values or {}))
    expected = (lq.width * method.scale, lq.height * method.scale)
    image = restoration.image
    if image.mode != "RGB" or image.size != expected:
        raise MethodError(
            f"{method.title} returned a picture of {image.width} × {image.height} in mode "
            f"{image.mode}; {expected[0]} × {expected[1]} in RGB was promised."
        )
    card = RunCard(
        method=method.name,
        title=method.title,
        family=method.family,
        scale=method.scale,
        seed=seed,
        device=device,
        input_size=lq.size,
        input_sha256=pixels_sha256(lq),
        output_sha256=pixels_sha256(image),
        preprocessing=method.preprocessing,
        postprocessing=method.postprocessing,
        prompt=method.prompt,
        steps=method.steps,
        colour_fix=method.colour_fix,
        parameters=method.parameters,
        source=method.source,
        licence=method.licence,
        text=restoration.text,
        details=dict(restoration.details),
        versions=versions((*COMMON_PACKAGES, *method.packages)),
    )
    return restoration, card


def _restored(
    method: Method, restorer: Any, lq: Image.Image, seed: int, values: Mapping[str, object]
) -> Restoration:  # Any: only methods with settings take options
    if not values:
        return restorer.restore(lq, seed=seed)
    assert method.options is not None, "a method with settings has options"
    return restorer.restore(lq, seed=seed, options=method.options(**values))


def no_gpu(size: tuple[int, int]) -> float:
    """`Method.gpu_seconds` of what works on the CPU or elsewhere."""
    del size
    return 0.0


def by_area(seconds: float) -> Callable[[tuple[int, int]], float]:
    """`Method.gpu_seconds` in proportion to the area, from the seconds for 128 × 128."""
    return partial(_by_area, seconds)  # a partial, because a lease pickles the card


def _by_area(seconds: float, size: tuple[int, int]) -> float:
    return seconds * size[0] * size[1] / 128**2


def timed(
    method: str, seed: int, restore: Callable[[], Image.Image], **details: str | int | float | None
) -> Restoration:
    """A restoration by `restore`, with its wall-clock seconds."""
    started = time.perf_counter()
    image = restore()
    return Restoration(image, method, seed, time.perf_counter() - started, details=details)


def pixels_sha256(image: Image.Image) -> str:
    """Of size, mode and pixels: the same for the same picture in whatever file."""
    digest = hashlib.sha256(f"{image.mode} {image.width} {image.height} ".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Of Python and those of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
