"""Loaded methods under a budget of memory.

A method is loaded when it is first used and stays until room is needed; then whatever was used
longest ago goes. Loads happen one at a time, so that two never peak together. Knows no method and
measures nothing: a method's card says what it takes.
"""

import gc
import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch

from baselines.base import Method, MethodUnavailableError, Restorer

log = logging.getLogger(__name__)


@dataclass
class _Loaded:
    method: Method
    restorer: Restorer
    last_use: int
    users: int = 0
    turn: threading.Lock = field(default_factory=threading.Lock)


class Shelf:
    """Methods of one device, loaded on first use. Safe for use by many threads."""

    def __init__(self, budget_bytes: int, *, device: str = "cpu") -> None:
        """Nothing is loaded yet.

        Args:
            budget_bytes: that all loaded methods may take together, by their cards.
            device: they are loaded onto.
        """
        self.budget_bytes, self.device = budget_bytes, device
        self._loaded: dict[str, _Loaded] = {}
        self._changed = threading.Condition()  # guards `_loaded` and its counts
        self._loading = threading.Lock()
        self._uses = 0
        self._mine = threading.local()

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the loaded methods, the one used longest ago first."""
        with self._changed:
            return tuple(sorted(self._loaded, key=lambda name: self._loaded[name].last_use))

    @contextmanager
    def use(self, method: Method) -> Iterator[Restorer]:
        """The loaded method, for the length of a `with` block.

        Waits for its turn if the method serves one caller at a time, and for memory if methods in
        use leave none. A thread may use one method at a time, else two could wait for each other.

        Raises:
            MethodUnavailableError: it cannot be loaded, or is larger than the whole budget.
        """
        assert not getattr(self._mine, "busy", False), "a thread uses one method at a time"
        self._mine.busy = True
        try:
            entry = self._take(method)
            try:
                with ExitStack() as stack:
                    if not method.concurrent:
                        stack.enter_context(entry.turn)
                    yield entry.restorer
            finally:
                with self._changed:
                    entry.users -= 1
                    self._changed.notify_all()
        finally:
            self._mine.busy = False

    def unload(self, name: str) -> bool:
        """Unload a method that nobody uses; tells whether it was loaded and now is not."""
        with self._changed:
            entry = self._loaded.get(name)
            if entry is None or entry.users:
                return False
            del self._loaded[name], entry
            self._release()
            self._changed.notify_all()
            return True

    def _take(self, method: Method) -> _Loaded:
        """The entry of a method, counted as in use; loads it if need be."""
        if (entry := self._find(method)) is not None:
            return entry
        with self._loading:  # one load at a time; who waited may find it loaded
            if (entry := self._find(method)) is not None:
                return entry
            self._make_room(method)
            log.info("loading %s onto %s", method.name, self.device)
            restorer = method.load(self.device)
            with self._changed:
                self._uses += 1
                entry = _Loaded(method, restorer, self._uses, users=1)
                self._loaded[method.name] = entry
                return entry

    def _find(self, method: Method) -> _Loaded | None:
        with self._changed:
            entry = self._loaded.get(method.name)
            if entry is None:
                return None
            if entry.method != method:
                raise ValueError(f"two different methods are called {method.name!r}")
            self._uses += 1
            entry.users, entry.last_use = entry.users + 1, self._uses
            return entry

    def _make_room(self, method: Method) -> None:
        """Evict, longest unused first, until the method fits; waits for those in use."""
        room = self.budget_bytes - method.memory_bytes
        if room < 0:
            raise MethodUnavailableError(
                f"{method.title} takes {method.memory_bytes / 2**30:.1f} GiB of memory; here "
                f"methods may take {self.budget_bytes / 2**30:.1f} GiB. Run it on a larger machine."
            )
        with self._changed:
            while sum(entry.method.memory_bytes for entry in self._loaded.values()) > room:
                idle = [entry for entry in self._loaded.values() if not entry.users]
                if not idle:
                    self._changed.wait()
                    continue
                oldest = min(idle, key=lambda entry: entry.last_use)
                log.info("unloading %s", oldest.method.name)
                del self._loaded[oldest.method.name], oldest, idle
                self._release()

    def _release(self) -> None:
        """Give back what unloaded methods held; restorers may hold cycles."""
        gc.collect()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
