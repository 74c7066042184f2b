"""Which methods there are.

A module of this package that defines `METHOD`, or `METHODS` for several, adds them everywhere:
runner, report, picker and contract test ask here and know no names. Methods that come from outside,
a folder of saved outputs or a remote endpoint, are joined to these by their callers.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

from baselines.base import Method, MethodUnavailableError, Restorer
from baselines.diffusion.sources import DEFAULT_FOLDER, is_random

PACKAGE = "baselines"


# A picture made with random weights is never to be taken for a method's.
RANDOM = "random weights, for testing"
RANDOM_BYTES = 2**28  # of memory; tiny networks and what their packages need


def discover(
    *packages: str, weights: Path = DEFAULT_FOLDER, offload: bool = False
) -> dict[str, Method]:
    """The methods of some packages, by name, in the order they are shown.

    Args:
        packages: import names; this package if none are given.
        weights: folder for the methods whose weights come apart.
        offload: whether their networks wait on the CPU, which saves half of a GPU's memory.

    Raises:
        ValueError: two methods have one name.
    """
    return joined(
        method
        for package in packages or (PACKAGE,)
        for module in _modules(package)
        for method in _methods(module, weights, offload)
    )


def joined(*groups: Iterable[Method]) -> dict[str, Method]:
    """Methods from several places by name, in the order they are shown.

    Raises:
        ValueError: two methods have one name.
    """
    methods: dict[str, Method] = {}
    for method in sorted((m for group in groups for m in group), key=lambda m: (m.order, m.name)):
        if method.name in methods:
            raise ValueError(f"two methods are called {method.name!r}")
        methods[method.name] = method
    return methods


def choose(names: Iterable[str], methods: Mapping[str, Method]) -> list[Method]:
    """The methods of these names that can run here.

    Raises:
        MethodUnavailableError: one is unknown or cannot run here; the message lists all of them.
    """
    chosen, problems = [], []
    for name in names:
        if name not in methods:
            problems.append(f"There is no method {name!r}; there are {', '.join(methods)}.")
        elif (reason := methods[name].unavailable()) is not None:
            problems.append(reason)
        else:
            chosen.append(methods[name])
    if problems:
        raise MethodUnavailableError(" ".join(problems))
    return chosen


def _modules(package: str) -> Iterable[ModuleType]:
    home = importlib.import_module(package)
    for info in pkgutil.iter_modules(home.__path__):
        yield importlib.import_module(f"{package}.{info.name}")


def _methods(module: ModuleType, weights: Path, offload: bool) -> tuple[Method, ...]:
    single = getattr(module, "METHOD", None)
    if single is not None and hasattr(module, "PARTS"):
        single = _placed(module.method(weights), weights, offload)
    return (*getattr(module, "METHODS", ()), *([] if single is None else [single]))


def _placed(method: Method, weights: Path, offload: bool) -> Method:
    """A card for weights in a folder: what they are and where they run."""
    if offload:
        # about half, see docs/methods.md: the largest of the networks and its activations
        load: Callable[..., Restorer] = method.load
        memory = method.memory_bytes // 2
        method = replace(method, load=partial(load, offload=True), memory_bytes=memory)
    if is_random(weights):
        title = f"{method.title} ({RANDOM})"
        method = replace(
            method, title=title, random=True, memory_bytes=RANDOM_BYTES, parameters=None
        )
    return method
