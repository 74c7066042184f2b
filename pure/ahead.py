"""Blocks compiled ahead of time, as ZeroGPU needs it: there every call is a process of its own.

What a process compiles is gone when it ends, so a block is compiled once, when the app starts, with
the helpers of `spaces`. All blocks of a transformer have one shape, and weights and caches are
arguments, so one compiled block serves them all. **Not run on ZeroGPU here**; the same helpers were
run on a CPU, where what they compile gives what the engine gives (`tests/pure/test_ahead.py`).
"""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pure.capture import FixedPass, Pass, cuda_graph
from pure.checkpoint import Checkpoint
from pure.engine import BlockFunction, Engine
from pure.grammar import Grid

log = logging.getLogger(__name__)


Work = Callable[[], BlockFunction]


def capacities(checkpoint: Checkpoint) -> list[int]:
    """Of the caches that a whole tile takes, guided."""
    side = checkpoint.native // checkpoint.vq.factor
    codes = torch.zeros(side, side, dtype=torch.long)
    prompt = checkpoint.grammar.prompt(checkpoint.text.instruction(), codes)
    picture = Grid(side, side).body + 5  # with what opens and ends it, and the end of the turn
    return [len(prompt) + checkpoint.text_limit + picture, picture]


class BlockPass(nn.Module):
    """`Engine.block` as the helpers of `spaces` take it: a module, here without weights."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        places: list[Tensor],
        masks: list[Tensor],
        keys: list[Tensor],
        values: list[Tensor],
        weights: tuple[Tensor, ...],
    ) -> Tensor:
        return self._engine.block(x, cos, sin, places, masks, keys, values, weights)


@torch.inference_mode(mode=False)
@torch.no_grad()
def compile_block(engine: Engine, capacities: Sequence[int], n: int = 1) -> BlockFunction:
    """Compile the block for passes of `n` tokens in rows with caches of these capacities.

    On ZeroGPU to be called where there is a GPU, so within `spaces.GPU`; takes up to minutes.

    Raises:
        ImportError: the package `spaces` is missing.
        ValueError: the weights are in int8, whose product is a kernel of its own.
    """
    if engine.precision == "int8":
        raise ValueError("a block with int8 weights is not compiled")
    import spaces

    module = BlockPass(engine)
    caches = [engine.cache(capacity) for capacity in capacities]
    zeros = torch.zeros(len(caches), n, dtype=torch.long, device=engine.device)
    with spaces.aoti_capture(module) as call:
        FixedPass(engine, caches, n, module)(zeros, zeros + torch.arange(n, device=engine.device))
    return spaces.aoti_compile(torch.export.export(module, call.args, call.kwargs))


class Blocks:
    """Compiled blocks by the shapes they are for, as a `Recorder`.

    A pass of other shapes runs as if there were none, and so does every pass after compiling
    failed: that is logged, and costs time, not the picture.
    """

    def __init__(self) -> None:
        self._compiled: dict[tuple[int, tuple[int, ...]], BlockFunction] = {}

    def prepare(
        self,
        engine: Engine,
        capacities: Sequence[int],
        n: int = 1,
        *,
        lease: Callable[[Work], Work] = lambda work: work,
    ) -> bool:
        """Compile for these shapes; whether that worked.

        Args:
            engine: that is to run the blocks.
            capacities: of the rows' caches.
            n: tokens in each row.
            lease: puts a GPU around a function, as `spaces.GPU` does.
        """
        try:
            block = lease(lambda: compile_block(engine, capacities, n))()
        except Exception:  # whatever a compiler may say: without it, it is only slower
            log.exception("no block was compiled ahead of time: passes run eagerly")
            return False
        self._compiled[n, tuple(capacities)] = block
        return True

    def record(self, fixed: FixedPass) -> Pass:
        """As `capture.Recorder`: with the compiled block, and on a GPU as a graph."""
        shape = (fixed.n, tuple(cache.capacity for cache in fixed.caches))
        fixed.block = self._compiled.get(shape)
        return cuda_graph(fixed) if fixed.engine.device.type == "cuda" else fixed
