"""One model over many processes: fully sharded training, its memory and time computed beforehand.

The units are the published ones: every decoder block, the embedding, the head; what is left (the
last norm) goes with the whole. Every process keeps a part of each parameter in float32, gathers a
unit in bfloat16 when it runs, and reduces gradients in float32.

Differs from accelerate's own FSDP: units are wrapped here, because it shards only on GPUs, so
nothing of it could be tested without them, and because it recomputes blocks under another dropout
mask than they ran with (accelerate 1.15). Processes, devices and precision remain accelerate's.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from pure.checkpoint import IGNORED_PREFIXES, CheckpointError, weight_files
from pure.model import Transformer, TransformerConfig

GIB = 2**30


def shard(root: nn.Module, model: Transformer, mesh: DeviceMesh, *, dtype: torch.dtype) -> None:
    """Shard the parameters of `model`, in place; an optimiser is made afterwards.

    Args:
        root: the module that is called in training; holds `model`.
        model: on the meta device, too.
        mesh: of all processes, one dimension.
        dtype: units are gathered and run in; kept and reduced in float32.
    """
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for unit in (model.model.embed_tokens, *model.model.layers, model.lm_head):
        fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    fully_shard(root, mesh=mesh, mp_policy=policy)


def fill(model: Transformer, folder: Path) -> None:
    """Read a checkpoint into a model, sharded or not, each process only its own rows.

    Raises:
        CheckpointError: the folder does not hold exactly the model's tensors.
    """
    parameters = dict(model.named_parameters())
    seen = set()
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict, it has no iterator
                if name.startswith(IGNORED_PREFIXES):
                    continue
                stored = file.get_slice(name)
                shape = tuple(stored.get_shape())
                if name not in parameters or shape != parameters[name].shape:
                    raise CheckpointError(f"{path}: {name} {list(shape)} is not of this model")
                _copy_rows(parameters[name], stored)
                seen.add(name)
    if missing := sorted(parameters.keys() - seen):
        raise CheckpointError(f"{folder} lacks {', '.join(missing[:8])}")


@torch.no_grad()
def _copy_rows(parameter: Tensor, stored: Any) -> None:  # Any: safetensors' slice has no type
    if not isinstance(parameter, DTensor):
        parameter.copy_(stored[:])
        return
    # rows are dealt out in equal chunks, the last ones shorter or empty
    chunk = -(-parameter.shape[0] // parameter.device_mesh.size())
    first = parameter.device_mesh.get_local_rank() * chunk
    local = parameter.to_local()
    if len(local):
        local.copy_(stored[first : first + len(local)])


def whole_weights(model: Transformer) -> dict[str, Tensor]:
    """All weights on the CPU by released name, on the first process; on the others nothing."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: dict[str, Any] = get_model_state_dict(model, options=options)
    return weights


def write_sharded_state(
    folder: Path, root: nn.Module, optimiser: torch.optim.Optimizer, step: int
) -> None:
    """Save what a sharded run resumes from, each process its part; any number may read it."""
    model, moments = get_state_dict(root, optimiser)
    dcp.save({"model": model, "optimiser": moments, "step": step}, checkpoint_id=folder)


def read_sharded_state(folder: Path, root: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    """Fill model and optimiser with what `write_sharded_state` saved; the steps done."""
    model, moments = get_state_dict(root, optimiser)
    state: dict[str, Any] = {"model": model, "optimiser": moments, "step": 0}
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(
        root, optimiser, model_state_dict=state["model"], optim_state_dict=state["optimiser"]
    )
    return int(state["step"])


def parameter_count(config: TransformerConfig) -> int:
    """Parameters of a transformer."""
    with torch.device("meta"):
        return sum(p.numel() for p in Transformer(config).parameters())


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes one process needs in fully sharded training; computed, not measured.

    Attributes:
        parameters: float32, this process's share.
        gradients: the same.
        moments: of Adam, two float32 a parameter.
        gathered: two units in bfloat16 (the one that runs and the next), and one unit's gradient in
            bfloat16 and, being reduced, float32.
        kept: what enters each block, for recomputing it; or all activations, if not recomputed.
        block: the activations of one block while it is recomputed (estimated).
        logits: of all trained positions: bfloat16, float32, and the gradients of both.
    """

    parameters: int
    gradients: int
    moments: int
    gathered: int
    kept: int
    block: int
    logits: int

    @property
    def total(self) -> int:
        """All of it; an upper bound, since not everything is there at once."""
        return sum(getattr(self, field.name) for field in fields(self))

    def table(self) -> str:
        """The plan as a Markdown table in GiB."""
        rows = [f"| {f.name} | {getattr(self, f.name) / GIB:.2f} |" for f in fields(self)]
        total = f"| total | {self.total / GIB:.2f} |"
        return "\n".join(["| what | GiB |", "| --- | --- |", *rows, total])


def memory_plan(
    config: TransformerConfig,
    *,
    processes: int,
    sequences: int,
    tokens: int,
    targets: int,
    recompute: bool,
) -> MemoryPlan:
    """What fully sharded training takes of each process's memory.

    Args:
        config: of the transformer.
        processes: it is sharded over.
        sequences: in one process's batch.
        tokens: of a sequence.
        targets: of those, how many are trained on.
        recompute: whether blocks are run again in the backward pass.
    """
    with torch.device("meta"):
        model = Transformer(config)
    share = sum(-(-p.shape[0] // processes) * p[0].numel() for p in model.parameters())
    block = sum(p.numel() for p in model.model.layers[0].parameters())
    head = model.lm_head.weight.numel()
    largest, second = max(block, head), sorted((block, block, head, head))[-2]
    D, M, rows = config.hidden_size, config.intermediate_size, sequences * tokens
    # bfloat16 unless said: two norms with their float32 inside (6 bytes each), q, k, v and both of
    # them normalised in float32 and rotated, attention's result and output; gate, up, their product
    inside = rows * (2 * 6 * D + 2 * 3 * D + 2 * (4 + 2) * D + 2 * 2 * D + 2 * 4 * M)
    entering = rows * D * 2
    layers = config.num_hidden_layers
    return MemoryPlan(
        parameters=4 * share,
        gradients=4 * share,
        moments=8 * share,
        gathered=2 * (largest + second) + (2 + 4) * largest,
        kept=layers * (entering if recompute else inside),
        block=inside if recompute else 0,
        logits=sequences * targets * config.vocab_size * 2 * (2 + 4),
    )


@dataclass(frozen=True)
class TimePlan:
    """How long a training takes; computed.

    Attributes:
        operations: floating-point operations in all.
        steps: optimiser steps.
        hours: at the stated speed.
    """

    operations: float
    steps: int
    hours: float


def time_plan(
    config: TransformerConfig,
    *,
    processes: int,
    steps: int,
    batch: int,
    tokens: int,
    recompute: bool,
    flops: float,
    utilisation: float,
) -> TimePlan:
    """Time from counted operations.

    A parameter that multiplies takes 2 operations a token forwards and 4 backwards, as many again
    as forwards where blocks are recomputed; causal attention 2 * tokens * width a token and layer
    forwards, likewise. The embedding multiplies nothing.

    Args:
        config: of the transformer.
        processes: that share the work.
        steps: optimiser steps.
        batch: sequences a step, of all processes together.
        tokens: of a sequence.
        recompute: whether blocks are run again in the backward pass.
        flops: peak of one process, operations a second.
        utilisation: share of it that is reached; an assumption.
    """
    multiplying = parameter_count(config) - config.vocab_size * config.hidden_size
    attention = 2 * tokens * config.hidden_size * config.num_hidden_layers
    forwards = 2 * multiplying + attention
    operations = float(steps) * batch * tokens * forwards * (4 if recompute else 3)
    seconds = operations / (processes * flops * utilisation)
    return TimePlan(operations, steps, seconds / 3600)
