"""Logits to tokens: guidance, entropy, how many candidates to keep, the draw.

Order, as published: guidance, mask, entropy and top-k, temperature last. The mask is the
grammar's: vectors here hold the allowed ids only, which gives the same softmax, entropy and
threshold as a full row with the rest at minus infinity. Functions only; no model, no state.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch
from torch import Tensor

MAX_ENTROPY = 10.0  # nats; the published code clamps to it before the sigmoid


class SamplingError(ValueError):
    """Sampling settings that cannot work; the message says which and why."""


@dataclass(frozen=True)
class SamplingConfig:
    """How image tokens are drawn; the text is always written by its most likely tokens.

    The defaults are the released behaviour; a checkpoint may have others of its own. With the
    published sigmoid k stays within 14..1987, so the limits 1 and 2000 are never reached; kept,
    because it is the release.

    Attributes:
        mode: "dynamic" sizes the candidates by entropy, "topk" keeps `top_k`, "top1" one.
        guidance_scale: weight of the conditional logits; below 1 it leans towards the
            unconditional ones, 1 needs no unconditional pass.
        temperature: divides the logits after the candidates are chosen.
        k_min, k_max: limits of the dynamic k.
        mu: entropy in nats at which k is half way.
        top_k: candidates in mode "topk".
    """

    mode: Literal["dynamic", "topk", "top1"] = "dynamic"
    guidance_scale: float = 0.8
    temperature: float = 0.9
    k_min: int = 1
    k_max: int = 2000
    mu: float = 5.0
    top_k: int = 2000

    def __post_init__(self) -> None:
        if self.mode not in ("dynamic", "topk", "top1"):
            raise SamplingError(f"sampling is dynamic, topk or top1, not {self.mode!r}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise SamplingError(f"temperature must be above 0, not {self.temperature}")
        if not math.isfinite(self.guidance_scale) or self.guidance_scale < 0:
            raise SamplingError(f"guidance must be 0 or more, not {self.guidance_scale}")
        if not 1 <= self.k_min <= self.k_max:
            raise SamplingError(f"k needs 1 <= k_min <= k_max, not {self.k_min}..{self.k_max}")
        if self.top_k < 1:
            raise SamplingError(f"top-k keeps at least 1 candidate, not {self.top_k}")
        if not math.isfinite(self.mu):
            raise SamplingError(f"mu must be a number of nats, not {self.mu}")

    @classmethod
    def parse(cls, text: str, own: "SamplingConfig | None" = None) -> "SamplingConfig":
        """The configuration of `dynamic`, `dynamic:K_MAX`, `top1` or `topk:K`, as people write it.

        Args:
            text: one of these.
            own: the checkpoint's, for all that the text does not say; by default the released.
        """
        own = own or cls()
        name, _, number = text.partition(":")
        if text in ("dynamic", "top1"):
            return replace(own, mode=text)  # type: ignore[arg-type]  # narrowed above
        if name == "dynamic" and number.isdecimal():
            return replace(own, mode="dynamic", k_max=int(number))
        if name == "topk" and number.isdecimal():
            return replace(own, mode="topk", top_k=int(number))
        raise SamplingError(f"sampling is dynamic, top1 or topk:K, not {text!r}")

    @classmethod
    def from_dict(cls, settings: Mapping[str, object]) -> "SamplingConfig":
        """What a checkpoint's `config.json` says; the released where it says nothing.

        Raises:
            SamplingError: it names what there is not, or settings that cannot work.
        """
        kinds = {name: type(value) for name, value in asdict(cls()).items()}
        if unknown := ", ".join(sorted(settings.keys() - kinds.keys())):
            raise SamplingError(f"there is no {unknown} among the settings of sampling")
        try:
            return cls(**{name: kinds[name](value) for name, value in settings.items()})
        except (TypeError, ValueError) as error:
            raise SamplingError(f"sampling {dict(settings)} cannot be used: {error}") from error


def guide(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: `uncond + scale * (cond - uncond)`, logits of any shape.

    At 1 this is `cond`. PURE's published setting, 0.8, leans *towards* the unconditional
    prediction. Source: Ho & Salimans 2022, with scale = 1 + w.
    """
    return scale * (cond - uncond) + uncond


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats, (...), of logits (..., N) at temperature 1, float32.

    Differs from the published code: `log_softmax` instead of the logarithm of the probability plus
    1e-10, because it is the faster one. The two differ by at most N · 1e-10 nats.
    """
    logits = logits.float()
    return -(torch.softmax(logits, dim=-1) * torch.log_softmax(logits, dim=-1)).sum(-1)


def dynamic_k(nats: Tensor, config: SamplingConfig) -> Tensor:
    """Candidates to keep at each entropy (...): a sigmoid around `mu` between the limits, int64.

    In float64 and rounded half to even, which is Python's arithmetic in the published code.
    """
    e = nats.double().clamp(0, MAX_ENTROPY)
    span = config.k_max - config.k_min
    k = torch.round(config.k_min + span / (1 + torch.exp(-(e - config.mu))))
    return k.long().clamp(config.k_min, config.k_max)


def keep_top(logits: Tensor, k: Tensor, most: int) -> Tensor:
    """Mask (..., N) of the `k` (...) largest logits; what ties with the k-th is kept.

    Args:
        logits: (..., N).
        k: candidates of each row, at least 1.
        most: upper limit of every k, so that shapes do not depend on values.
    """
    most = min(most, logits.shape[-1])
    ranked = torch.topk(logits, most).values  # (..., most)
    threshold = ranked.gather(-1, k.clamp(max=most)[..., None] - 1)
    return logits >= threshold


def noise(seed: int, position: int, n: int) -> Tensor:
    """Exponential noise (n,), float32, a function of the seed and the position alone.

    Drawn on the CPU whatever the device of the model, so that a seed gives the same picture
    everywhere as far as the logits do; and keyed by position, so that tokens may be decided
    in any order. The numbers are those of `Tensor.exponential_`, which takes the logarithms one
    by one, in two thirds of its time.
    """
    generator = torch.Generator().manual_seed(_mix(seed, position))
    uniform = torch.rand(n, dtype=torch.float64, generator=generator)
    return uniform.neg_().log1p_().neg_().float()


def _mix(seed: int, position: int) -> int:
    """One 64-bit generator seed from two integers (the finaliser of SplitMix64)."""
    z = (seed * 0x9E3779B97F4A7C15 + position * 0xD1B54A32D192ED03 + 1) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return z ^ (z >> 31)


@dataclass(frozen=True)
class Choice:
    """One drawn token: its index among the allowed ids, and how uncertain the model was."""

    index: int
    entropy: float  # nats, before top-k and temperature
    k: int  # candidates asked for


@dataclass(frozen=True)
class Draws:
    """Drawn tokens, on the device of the logits.

    Attributes:
        index: (...) int64, among the allowed ids.
        entropy: (...) float32, nats, before top-k and temperature.
        k: (...) int64, candidates asked for.
    """

    index: Tensor
    entropy: Tensor
    k: Tensor

    def __getitem__(self, rows: slice) -> "Draws":
        return Draws(self.index[rows], self.entropy[rows], self.k[rows])


def _is_cheap_to_read(tensor: Tensor) -> bool:
    """Whether looking at a value on the host stalls nothing."""
    return tensor.device.type == "cpu"


def draw(logits: Tensor, config: SamplingConfig, race: Tensor) -> Draws:
    """Draw one of the allowed ids in every row.

    An exponential race, which is an exact draw: the arrival times race / p of independent
    exponentials have their minimum at i with probability p_i. Nothing is read back from the
    device, except on a CPU, where looking first is cheaper than ranking: the winner among all
    is usually among the best k, and then it is the winner among them.

    Args:
        logits: (..., N) guided logits of the allowed ids, float32.
        config: how many candidates, and the temperature.
        race: (..., N) exponential noise.
    """
    nats = entropy(logits)
    if config.mode == "top1":
        return Draws(logits.argmax(-1), nats, torch.ones_like(nats, dtype=torch.long))
    if config.mode == "topk":
        k, most = torch.full_like(nats, config.top_k, dtype=torch.long), config.top_k
    else:
        k, most = dynamic_k(nats, config), config.k_max
    speed = torch.softmax(logits / config.temperature, dim=-1) / race
    if _is_cheap_to_read(logits):
        index = speed.argmax(-1)
        better = (logits > logits.gather(-1, index[..., None])).sum(-1)
        late = better >= k
        if bool(late.any()):
            kept = keep_top(logits[late], k[late], most)
            index[late] = (speed[late] * kept).argmax(-1)
        return Draws(index, nats, k)
    return Draws((speed * keep_top(logits, k, most)).argmax(-1), nats, k)
