"""A pass whose shapes never change, recorded once and replayed.

On a GPU the time of a pass with one new token a row goes to launching its kernels, and a CUDA graph
launches them all at once. A recorded pass needs fixed addresses and shapes: it takes ids and places
as tensors and attends to the whole cache, masked. **Not run here on a GPU**, for want of one: what
is tested is that the fixed pass decides as the engine does, eagerly and compiled, on a CPU. There
it does not pay (decision 30), so nothing is recorded unless asked for or on a GPU.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pure.engine import BlockFunction, Engine
from pure.model import KVCache

Pass = Callable[[Tensor, Tensor], Tensor]  # ids and places (rows, n) to states (rows * n, hidden)
Recorder = Callable[["FixedPass"], Pass]
MOST_TOKENS = 2  # of a row: a code, and at the beginning of a line the newline before it
WARM_UPS = 3  # passes before a graph is captured, so that libraries have made their choices


class FixedPass(nn.Module):
    """As `Engine.hidden` for rows of `n` tokens each, with the caches' lengths left alone.

    Args:
        engine: that runs the model.
        caches: one for each row, of any lengths.
        n: new tokens in each row.
        block: a compiled `Engine.block` for these shapes; the engine's own if not given.
    """

    def __init__(
        self,
        engine: Engine,
        caches: Sequence[KVCache],
        n: int,
        block: BlockFunction | None = None,
    ) -> None:
        super().__init__()
        self.engine, self.caches, self.n, self.block = engine, list(caches), n, block
        self.engine.tabulate(max(cache.capacity for cache in caches))
        self._keys = [torch.arange(cache.capacity, device=engine.device) for cache in caches]

    def forward(self, ids: Tensor, places: Tensor) -> Tensor:
        """States (rows * n, hidden) after ids (rows, n) at places (rows, n) of their sequences."""
        masks = []
        for at, keys in zip(places, self._keys, strict=True):
            hidden_keys = keys > at[:, None]  # (n, capacity)
            empty = torch.zeros(hidden_keys.shape, dtype=self.engine.dtype, device=keys.device)
            masks.append(empty.masked_fill(hidden_keys, -torch.inf))
        return torch.cat(self.engine.run(list(ids), self.caches, list(places), masks, self.block))


def cuda_graph(fixed: FixedPass) -> Pass:
    """Capture a pass as a CUDA graph. Not run here."""
    shape = (len(fixed.caches), fixed.n)
    ids = torch.zeros(shape, dtype=torch.long, device=fixed.engine.device)
    places = torch.stack(
        [torch.arange(c.length, c.length + fixed.n, device=ids.device) for c in fixed.caches]
    )
    # The warm-up writes keys where the next tokens will write theirs before anything reads them.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            fixed(ids, places)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        states = fixed(ids, places)

    def replay(new: Tensor, at: Tensor) -> Tensor:
        ids.copy_(new)
        places.copy_(at)
        graph.replay()
        return states

    return replay


def compiled(fixed: FixedPass) -> Pass:
    """Compile a pass, which takes seconds to minutes.

    Raises:
        ValueError: a weight is in oneDNN's own layout, which the compiler cannot read.
    """
    if packed := [kind for kind, name in fixed.engine.kernels.items() if name == "packed"]:
        raise ValueError(f"a pass with packed weights ({', '.join(packed)}) cannot be compiled")
    return torch.compile(fixed, dynamic=False)


def recorder(engine: Engine) -> Recorder | None:
    """How an engine's passes are recorded; None where they are not."""
    if engine.record is not None:
        return engine.record
    return cuda_graph if engine.device.type == "cuda" else None


class Reader:
    """Reads new tokens, by a recorded pass where it can.

    Belongs to one loop over some pictures: recorded passes hold those pictures' caches.

    Args:
        engine: that runs the model.
        record: how a pass is recorded; None never does.
    """

    def __init__(self, engine: Engine, record: Recorder | None) -> None:
        self.engine, self._record = engine, record
        self._caches: list[KVCache] = []
        self._passes: dict[int, Pass] = {}
        self._places = torch.empty(0, dtype=torch.long)

    @torch.inference_mode()
    def hidden(self, rows: Sequence[Tensor], caches: Sequence[KVCache]) -> list[Tensor]:
        """As `Engine.hidden`. The states are overwritten by the next call."""
        n = len(rows[0])
        if (
            self._record is None
            or n > MOST_TOKENS
            or any(len(row) != n for row in rows)
            or any(cache.length + n > cache.capacity for cache in caches)
        ):
            return self.engine.hidden(rows, caches)
        if [id(cache) for cache in caches] != [id(cache) for cache in self._caches]:
            self._caches, self._passes = list(caches), {}
            most = max(cache.capacity for cache in caches)
            self._places = torch.arange(most, device=self.engine.device)
        if n not in self._passes:
            self._passes[n] = self._record(FixedPass(self.engine, caches, n))
        # slices of what is on the device already: nothing is copied there for a pass
        places = torch.stack([self._places[c.length : c.length + n] for c in caches])
        states = self._passes[n](torch.stack(list(rows)), places)
        self.engine.passes += 1
        for cache in caches:
            cache.length += n
        return list(states.split(n))
