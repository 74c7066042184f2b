"""The transformer: Chameleon's decoder, its configuration and its key-value cache.

Weight-compatible with the released PURE checkpoint (a Lumina-mGPT, in turn a Chameleon): key
names, `[model_parallel_size, head_dim]` QK-norm rows and numerics are those. Knows nothing of
vocabularies, sampling or files. `transformers`' Chameleon is its reference in the tests.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

QK_NORM_EPS = 1e-5  # fixed in Chameleon, independent of rms_norm_eps


@dataclass(frozen=True)
class TransformerConfig:
    """The shape of a transformer; defaults are the released 7B.

    Attributes:
        hidden_size: width of the residual stream.
        intermediate_size: width inside the SwiGLU.
        num_key_value_heads: fewer than `num_attention_heads` shares keys among heads.
        model_parallel_size: rows of each QK-norm parameter; a row serves a run of heads.
        swin_norm: normalise after attention and MLP instead of before.
        dropout: on both residual branches, in training only.
        max_position_embeddings: longest sequence the training cut to; rotary embeddings
            themselves have no limit.
    """

    vocab_size: int = 73_728
    hidden_size: int = 4096
    intermediate_size: int = 11_008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    model_parallel_size: int = 1
    swin_norm: bool = False
    dropout: float = 0.0
    max_position_embeddings: int = 11_776

    @property
    def head_dim(self) -> int:
        """Channels per attention head."""
        return self.hidden_size // self.num_attention_heads


CONFIGS = {
    "7b": TransformerConfig(),
    "nano": TransformerConfig(
        vocab_size=0,  # filled in from the vocabulary
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=8,
        model_parallel_size=8,  # QK-norm parameters of its own for every head
        max_position_embeddings=4096,
    ),
}


class KVCache:
    """Keys and values of one sequence, preallocated, one tensor per layer.

    Args:
        config: of the model it serves.
        capacity: tokens it can hold.
    """

    def __init__(
        self,
        config: TransformerConfig,
        capacity: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = (config.num_key_value_heads, capacity, config.head_dim)
        self.capacity = capacity
        self.length = 0
        self.keys = [
            torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_hidden_layers)
        ]
        self.values = [torch.zeros_like(k) for k in self.keys]
        self._single = torch.zeros(capacity, dtype=torch.bool, device=device)

    def truncate(self, length: int) -> None:
        """Forget everything after the first `length` tokens."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot cut a cache of {self.length} tokens to {length}")
        self.length = length
        self._single[length:] = False

    def mark(self, places: Tensor) -> None:
        """Note that tokens were put at single `places` (T,), beyond `length`."""
        self._single[places] = True

    @property
    def held(self) -> Tensor:
        """(capacity,) bool: which places hold a token."""
        held = self._single.clone()
        held[: self.length] = True
        return held

    def copy(self, other: "KVCache", length: int) -> None:
        """Hold the first `length` tokens of another cache of the same model, and nothing else."""
        if not 0 <= length <= min(other.length, self.capacity):
            raise ValueError(
                f"cannot copy {length} tokens from a cache of {other.length} "
                f"to one with room for {self.capacity}"
            )
        for mine, theirs in zip(
            [*self.keys, *self.values], [*other.keys, *other.values], strict=True
        ):
            mine[:, :length] = theirs[:, :length]
        self.length = length

    @property
    def bytes(self) -> int:
        """Memory it takes."""
        return 2 * sum(k.numel() * k.element_size() for k in self.keys)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation, in float32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        h = x.float()
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)
        return h.to(x.dtype) * self.weight


class HeadNorm(nn.Module):
    """LayerNorm over the channels of each head; runs of heads share a parameter row.

    Computed in float32, as the published inference does under autocast.
    """

    def __init__(self, rows: int, head_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(rows, head_dim))
        self.bias = nn.Parameter(torch.zeros(rows, head_dim))

    def forward(self, x: Tensor) -> Tensor:
        """`x` (B, T, heads, head_dim)."""
        repeats = x.shape[2] // self.weight.shape[0]
        weight = self.weight.repeat_interleave(repeats, dim=0)
        bias = self.bias.repeat_interleave(repeats, dim=0)
        h = F.layer_norm(x.float(), (x.shape[-1],), eps=QK_NORM_EPS)
        return (h * weight.float() + bias.float()).to(x.dtype)


def rotary(
    positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B, T, 1, head_dim) of rotary embeddings, half-split layout.

    Computed in float32 from duplicated halves, then cast. Source: Su et al. 2021.
    """
    channel = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    angles = positions[..., None].float() * theta ** (-channel / head_dim)  # (B, T, head_dim / 2)
    angles = torch.cat([angles, angles], dim=-1)[:, :, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary embeddings to `x` (B, T, heads, head_dim)."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], dim=-1) * sin


class Attention(nn.Module):
    """Causal self-attention with per-head normalised queries and keys."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        D = config.hidden_size
        kv = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(D, D, bias=False)
        self.k_proj = nn.Linear(D, kv, bias=False)
        self.v_proj = nn.Linear(D, kv, bias=False)
        self.o_proj = nn.Linear(D, D, bias=False)
        self.q_norm = HeadNorm(config.model_parallel_size, config.head_dim)
        self.k_norm = HeadNorm(config.model_parallel_size, config.head_dim)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        layer: int,
        caches: Sequence[KVCache] | None,
    ) -> Tensor:
        B, T, D = x.shape
        q, k, v = (
            projection(x).view(B, T, -1, self.config.head_dim)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q = rotate(self.q_norm(q), cos, sin).transpose(1, 2)  # (B, heads, T, head_dim)
        k = rotate(self.k_norm(k), cos, sin).transpose(1, 2)
        v = v.transpose(1, 2)
        gqa = self.config.num_key_value_heads != self.config.num_attention_heads
        if caches is None:
            h = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa)
        else:
            rows = [
                self._cached(q[b], k[b], v[b], cache.keys[layer], cache.values[layer], cache.length)
                for b, cache in enumerate(caches)
            ]
            h = torch.stack(rows)
        return self.o_proj(h.transpose(1, 2).reshape(B, T, D))

    def _cached(
        self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, length: int
    ) -> Tensor:
        """One row: append `k`, `v` (heads, T, head_dim) to the cache and attend to all of it."""
        T = q.shape[1]
        keys[:, length : length + T] = k
        values[:, length : length + T] = v
        mask = None
        if T > 1:
            mask = torch.ones(T, length + T, dtype=torch.bool, device=q.device).tril(length)
        return F.scaled_dot_product_attention(
            q[None],
            keys[None, :, : length + T],
            values[None, :, : length + T],
            attn_mask=mask,
            enable_gqa=q.shape[0] != k.shape[0],
        )[0]


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        D, M = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(D, M, bias=False)
        self.up_proj = nn.Linear(D, M, bias=False)
        self.down_proj = nn.Linear(M, D, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention and MLP with residuals; the norms stand before or, in swin_norm, after."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.swin_norm = config.swin_norm
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        layer: int,
        caches: Sequence[KVCache] | None,
    ) -> Tensor:
        if self.swin_norm:
            h = self.self_attn(x, cos, sin, layer, caches)
            x = x + self.dropout(self.input_layernorm(h))
            return x + self.dropout(self.post_attention_layernorm(self.mlp(x)))
        h = self.self_attn(self.input_layernorm(x), cos, sin, layer, caches)
        x = x + self.dropout(h)
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class Stack(nn.Module):
    """What the released keys call `model.`: embedding, blocks, final norm."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Transformer(nn.Module):
    """Token ids to logits.

    Attributes:
        recompute: keep only what enters each block, and run it again in the backward pass; slower
            by about a third, and a training on long sequences may not fit otherwise.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        self.model = Stack(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.lm_head.weight.device

    def cache(self, capacity: int) -> KVCache:
        """An empty cache for one sequence, on the model's device and in its dtype."""
        return KVCache(self.config, capacity, device=self.device, dtype=self.lm_head.weight.dtype)

    def hidden(self, ids: Tensor, caches: Sequence[KVCache] | None = None) -> Tensor:
        """Final hidden states (B, T, hidden_size) of `ids` (B, T).

        With caches, one per row and of any lengths, the ids continue what each row's cache
        holds: they are appended to it and positions count on from its length.

        Raises:
            ValueError: a cache has no room, or their number is not B.
        """
        B, T = ids.shape
        starts = torch.zeros(B, 1, dtype=torch.long, device=ids.device)
        if caches is not None:
            if len(caches) != B:
                raise ValueError(f"{len(caches)} caches for {B} rows")
            for cache in caches:
                if cache.length + T > cache.capacity:
                    raise ValueError(
                        f"{T} more tokens do not fit a cache of {cache.capacity} "
                        f"that holds {cache.length}"
                    )
            starts = torch.tensor([[c.length] for c in caches], device=ids.device)
        positions = starts + torch.arange(T, device=ids.device)
        x = self.model.embed_tokens(ids)
        cos, sin = rotary(positions, self.config.head_dim, self.config.rope_theta, x.dtype)
        for i, block in enumerate(self.model.layers):
            if self.recompute:
                x = checkpoint(block, x, cos, sin, i, caches, use_reentrant=False)
            else:
                x = block(x, cos, sin, i, caches)
        for cache in caches or ():
            cache.length += T
        return self.model.norm(x)

    def logits(self, hidden: Tensor, ids: Tensor | None = None) -> Tensor:
        """Logits, float32, of hidden states: of the whole vocabulary, or of `ids` (N,) only."""
        if ids is None:
            return self.lm_head(hidden).float()
        return F.linear(hidden, self.lm_head.weight[ids]).float()

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (B, T, vocab_size), float32, of whole sequences `ids` (B, T)."""
        return self.logits(self.hidden(ids))
