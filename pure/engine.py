"""The transformer as it runs: fused weights, one pass for rows of any lengths, fast products.

An inference view of `model.Transformer`, which stays the reference it is tested against. Rows
are packed: their new tokens stand one after another, whatever their number, so nothing is padded
and each row has a cache of its own. Knows nothing of grammar and sampling.

On a CPU a product of two rows is where the time goes, and which kernel is fastest depends on the
machine, so the candidates are tried when the weights are loaded.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from pure.model import QK_NORM_EPS, Block, HeadNorm, KVCache, Transformer, rotary

if TYPE_CHECKING:
    from pure.capture import Recorder

Precision = Literal["float32", "bfloat16", "int8"]
Product = Callable[[Tensor], Tensor]  # (n, in) to (n, out)
Place = slice | Tensor  # where new tokens go in a cache
# A block with all it reads as arguments, see `Engine.block`.
BlockFunction = Callable[..., Tensor]

# Rows of queries and of keys in whole blocks. The CPU kernels then add up each row in the same
# order however many rows there are; with fewer than 4 they take another path and round otherwise.
QUERY_BLOCK, KEY_BLOCK = 4, 512
# On a CPU attention of so few queries over bfloat16 keys takes three times as long as widening the
# keys to float32 first.
FEW_QUERIES = 8
PROBE_ROWS = 2  # the two guidance rows of plain decoding
MANY_ROWS = 64  # from here on `F.linear` reads a weight often enough
PROBE_ROUNDS = 5
PROBE_TRAFFIC = 64 * 2**20  # bytes between two uses of a weight that empty any cache
CLEARLY_FASTER = 0.9  # of the time of the first candidate, else the probe keeps that one


def plain_product(weight: Tensor) -> Product:
    """`F.linear`."""
    return lambda x: F.linear(x, weight)


def transposed_product(weight: Tensor) -> Product:
    """The product the other way round, weight first.

    With two rows a float32 `F.linear` can take twice the time of one; this reads the weight
    once. `x.T` must be the transposed view of contiguous rows, or the same product takes five
    times as long; and what comes out is transposed, so it is laid out anew for the next product.
    Several pictures at once go through a packed copy, made when it is first needed, which halves
    the time of `F.linear`; a whole prompt goes the usual way.
    """
    packed: list[Product] = []

    def product(x: Tensor) -> Tensor:
        if len(x) <= 2 * PROBE_ROWS:
            return (weight @ x.contiguous().T).T.contiguous()
        if len(x) > MANY_ROWS or not can_pack(weight):
            return F.linear(x, weight)
        if not packed:
            packed.append(packed_product(weight))
        return packed[0](x)

    return product


def packed_product(weight: Tensor) -> Product:
    """The weight laid out in oneDNN's own blocks, a copy. CPU only.

    It rounds each row alike however many rows there are.
    """
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PROBE_ROWS)
    run = torch.ops.mkldnn._linear_pointwise
    return lambda x: run(x, packed, None, "none", [], "")


def int8_product(weight: Tensor) -> Product:
    """Weights in int8 with one scale for each output, activations in bfloat16."""
    scale = weight.float().abs().amax(1).clamp(min=1e-12) / 127  # (out,)
    rounded = (weight.float() / scale[:, None]).round().to(torch.int8)
    scale = scale.to(torch.bfloat16)
    return lambda x: torch._weight_int8pack_mm(x, rounded, scale)


def can_pack(weight: Tensor) -> bool:
    """Whether `packed_product` takes this weight, on this machine."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype is torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def candidates(weight: Tensor) -> dict[str, Product]:
    """The kernels that can multiply with `weight`, by name; the reproducible one first."""
    result = {"packed": packed_product(weight)} if can_pack(weight) else {}
    result["plain"] = plain_product(weight)
    if weight.device.type == "cpu":
        result["transposed"] = transposed_product(weight)
    return result


@torch.inference_mode()
def fastest(weight: Tensor, between: int = 0) -> tuple[str, Product]:
    """The kernel with the least processor time for two rows, by a short trial.

    A kernel runs over as many copies of the weight as make up the bytes that a pass reads between
    two uses of it, because one kernel can be the fastest from the processor's cache and another
    from memory. The first candidate keeps its place unless another is clearly faster, so that
    noise on the machine does not change which kernel, and so which rounding, a model is run with.
    """
    products = candidates(weight)
    if len(products) == 1:
        return next(iter(products.items()))
    copies = max(1, min(between, PROBE_TRAFFIC) // (weight.numel() * weight.itemsize))
    x = torch.ones(PROBE_ROWS, weight.shape[1], dtype=weight.dtype, device=weight.device)
    trials = {name: [product] for name, product in products.items()}
    for _ in range(copies - 1):
        for name, product in candidates(weight.clone()).items():
            trials[name].append(product)
    seconds: dict[str, list[float]] = {name: [] for name in products}
    for _ in range(PROBE_ROUNDS + 1):  # the first warms up
        for name, same in trials.items():
            start = time.process_time()
            for product in same:
                product(x)
            seconds[name].append(time.process_time() - start)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    first = next(iter(products))
    best = min(medians, key=lambda name: medians[name])
    if medians[best] > CLEARLY_FASTER * medians[first]:
        best = first
    return best, products[best]


@dataclass(frozen=True)
class _Causal:
    """The mask of tokens that begin a sequence: each sees itself and what precedes it.

    Attributes:
        queries: rows, those that only fill a block included.
        keys: likewise.
    """

    queries: int
    keys: int


# What new tokens may see: (queries, keys) to add to the scores; None: everything.
Mask = Tensor | _Causal | None


@dataclass(frozen=True)
class _Held:
    """What a block needs to know of a cache whose mask says how much of it counts."""

    keys: list[Tensor]
    values: list[Tensor]
    length: int = 0


@dataclass(frozen=True)
class _Layer:
    """One block, its projections fused."""

    attention_norm: Tensor  # (hidden,)
    mlp_norm: Tensor
    head_weight: Tensor  # (heads + kv heads, head_dim), float32
    head_bias: Tensor
    qkv: Product
    out: Product
    gate_up: Product
    down: Product
    weights: tuple[Tensor, ...]  # in the order of `Engine.block`


class Engine:
    """A transformer ready to decode.

    Args:
        model: in evaluation mode. Its projections become views of the fused weights, so they
            are held once, except where a kernel needs a layout or a precision of its own.
        image_ids: ids of the image codes in order; inside a picture only they are predicted.
        precision: of the weights; None keeps the model's. With int8 the embedding, the norms and
            the head stay in bfloat16, which also is the type of the activations.
        reproducible: round every token alike however many are read in one pass, so that
            decoding in parallel gives the ids of plain decoding to the last bit. Costs a little
            time where tokens are read one by one. Only float32 on a CPU promises it.

    Attributes:
        passes: runs of the transformer so far.
        record: how passes of plain decoding are recorded, see `pure.capture`; None for the usual.
        kernels: name of the kernel of each kind of projection.
    """

    def __init__(
        self,
        model: Transformer,
        image_ids: Tensor,
        *,
        precision: Precision | None = None,
        reproducible: bool = True,
    ) -> None:
        own = {torch.float32: "float32", torch.bfloat16: "bfloat16"}[model.lm_head.weight.dtype]
        if precision is None:
            precision = own  # type: ignore[assignment]  # both are members
        if precision not in get_args(Precision):
            raise ValueError(f"precision is {', '.join(get_args(Precision))}, not {precision!r}")
        self.config = model.config
        self.device = model.device
        self.precision: Precision = precision  # type: ignore[assignment]  # narrowed above
        self.dtype = torch.float32 if precision == "float32" else torch.bfloat16
        self.reproducible = (
            reproducible
            and self.device.type == "cpu"
            and can_pack(torch.empty(1, 1, dtype=self.dtype))
        )
        self.passes = 0
        self.record: Recorder | None = None
        self.kernels: dict[str, str] = {}
        self._bytes = sum(p.numel() for p in model.parameters()) * self.dtype.itemsize
        self._probed: dict[tuple[int, ...], str] = {}
        self._embedding = model.model.embed_tokens.weight.detach().to(self.dtype)
        self._norm = model.model.norm.weight.detach().to(self.dtype)
        self._eps = torch.tensor(self.config.rms_norm_eps, device=self.device)
        self._layers = [self._layer(block) for block in model.model.layers]  # type: ignore[arg-type]  # ModuleList forgets that they are Blocks
        head = model.lm_head.weight.detach().to(self.dtype)
        self._head = plain_product(head)  # the text's; image codes have a smaller one
        self._image_head = self._product("image head", head[image_ids.to(self.device)], keep=True)
        self._cos = self._sin = torch.empty(0)
        self.tabulate(self.config.max_position_embeddings)

    @property
    def exact(self) -> bool:
        """Whether the same ids come out however many tokens are read in one pass."""
        return self.precision == "float32"

    def cache(self, capacity: int) -> KVCache:
        """An empty cache for one sequence of up to `capacity` tokens."""
        return KVCache(self.config, capacity, device=self.device, dtype=self.dtype)

    @torch.inference_mode()
    def hidden(
        self, rows: Sequence[Tensor], caches: Sequence[KVCache], *, last: bool = False
    ) -> list[Tensor]:
        """Final hidden states (T, hidden) of each row's new ids (T,); rows may differ in T.

        The ids are appended to the row's cache, and positions count on from its length. With
        `last` the states are those of each row's last id, (1, hidden), and the last block does
        no more for the others than keep their keys and values.

        Raises:
            ValueError: a cache has no room, or their number is not that of the rows.
        """
        if len(rows) != len(caches):
            raise ValueError(f"{len(caches)} caches for {len(rows)} rows")
        lengths = [len(row) for row in rows]
        for row, cache in zip(rows, caches, strict=True):
            if cache.length + len(row) > cache.capacity:
                raise ValueError(
                    f"{len(row)} more tokens do not fit a cache of {cache.capacity} "
                    f"that holds {cache.length}"
                )
        places: list[Place] = [
            slice(c.length, c.length + n) for c, n in zip(caches, lengths, strict=True)
        ]
        masks = [self._mask(c, c.length, n) for c, n in zip(caches, lengths, strict=True)]
        ends = None
        if last:
            ends = [
                self._mask(c, c.length + n - 1, 1) for c, n in zip(caches, lengths, strict=True)
            ]
        self.passes += 1
        hidden = self.run(rows, caches, places, masks, ends=ends)
        for cache, n in zip(caches, lengths, strict=True):
            cache.length += n
        return hidden

    @torch.inference_mode()
    def hidden_at(
        self, rows: Sequence[Tensor], caches: Sequence[KVCache], places: Sequence[Tensor]
    ) -> list[Tensor]:
        """As `hidden`, with new ids anywhere: each row's at its `places` (T,) in its sequence.

        A token sees what the cache holds before its place, as `KVCache.length` says, and what was
        put at single places before its own since. The length does not change.
        """
        masks: list[Mask] = []
        for cache, at in zip(caches, places, strict=True):
            cache.mark(at)
            keys = torch.arange(cache.capacity, device=self.device)
            seen = cache.held & (keys <= at[:, None])  # (T, capacity)
            empty = torch.zeros(seen.shape, dtype=self.dtype, device=self.device)
            masks.append(empty.masked_fill(~seen, -torch.inf))
        self.passes += 1
        return self.run(rows, caches, places, masks)

    @torch.inference_mode()
    def image_logits(self, hidden: Tensor) -> Tensor:
        """Logits (n, codes), float32, of the image codes alone, after hidden states (n, hidden)."""
        return self._image_head(hidden).float()

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (n, vocab_size), float32, after hidden states (n, hidden)."""
        return self._head(hidden).float()

    # Loading

    def _product(self, kind: str, weight: Tensor, *, keep: bool = False) -> Product:
        """The kernel for a weight: probed once for each shape. `keep` exempts it from int8."""
        if self.precision == "int8" and not keep:
            name, product = "int8", int8_product(weight)
        elif self.reproducible:
            name, product = "packed", packed_product(weight)
        elif (known := self._probed.get(tuple(weight.shape))) is not None:
            name, product = known, candidates(weight)[known]
        else:
            name, product = fastest(weight, self._bytes)
            self._probed[tuple(weight.shape)] = name
        self.kernels[kind] = name
        return product

    def _layer(self, block: Block) -> _Layer:
        attention, mlp = block.self_attn, block.mlp
        qkv = _fuse([attention.q_proj, attention.k_proj, attention.v_proj])
        norms = [
            (attention.q_norm, self.config.num_attention_heads),
            (attention.k_norm, self.config.num_key_value_heads),
        ]
        small = (
            block.input_layernorm.weight.detach().to(self.dtype),
            block.post_attention_layernorm.weight.detach().to(self.dtype),
            torch.cat([_for_heads(n, n.weight, heads) for n, heads in norms]),
            torch.cat([_for_heads(n, n.bias, heads) for n, heads in norms]),
        )
        large = {
            "qkv": qkv,
            "out": attention.o_proj.weight.detach(),
            "gate and up": _fuse([mlp.gate_proj, mlp.up_proj]),
            "down": mlp.down_proj.weight.detach(),
        }
        large = {kind: weight.to(self.dtype) for kind, weight in large.items()}
        products = [self._product(kind, weight) for kind, weight in large.items()]
        return _layer_of((*small, *large.values()), products)

    def tabulate(self, length: int) -> None:
        """Have rotary embeddings for `length` positions."""
        if length <= len(self._cos):
            return
        positions = torch.arange(length, device=self.device)[None]
        dim = self.config.head_dim
        cos, sin = rotary(positions, dim, self.config.rope_theta, torch.float32)
        self._cos, self._sin = cos[0], sin[0]
        self._sin[..., : dim // 2].neg_()

    # Running

    def run(
        self,
        rows: Sequence[Tensor],
        caches: Sequence[KVCache],
        places: Sequence[Place],
        masks: Sequence[Mask],
        block: BlockFunction | None = None,
        ends: Sequence[Mask] | None = None,
    ) -> list[Tensor]:
        """One pass: each row's ids at its places in its cache, under its mask.

        What `hidden` and `hidden_at` share. With places and masks that are tensors nothing in it
        depends on how much the caches hold, so that it can be recorded (`pure.capture`). Then
        `block` may be a compiled `Engine.block`. With `ends`, masks of each row's last token, the
        states are those of these tokens.
        """
        self.tabulate(max(cache.capacity for cache in caches))
        cos = torch.cat([self._cos[place] for place in places])  # (n, 1, head_dim)
        sin = torch.cat([self._sin[place] for place in places])
        lengths = [len(row) for row in rows]
        x = F.embedding(torch.cat(list(rows)), self._embedding)  # (n, hidden)
        for i, layer in enumerate(self._layers):
            if ends is not None and i == len(self._layers) - 1:
                x = self._block(x, layer, i, cos, sin, lengths, caches, places, ends, last=True)
                lengths = [1] * len(rows)
            elif block is None:
                x = self._block(x, layer, i, cos, sin, lengths, caches, places, masks)
            else:
                keys, values = [c.keys[i] for c in caches], [c.values[i] for c in caches]
                x = block(x, cos, sin, list(places), list(masks), keys, values, layer.weights)
        return list(self._normed(x, self._norm).split(lengths))

    def block(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        places: Sequence[Tensor],
        masks: Sequence[Tensor],
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        weights: Sequence[Tensor],
    ) -> Tensor:
        """One block with all it reads as arguments, so that one compiled form serves every block.

        Products are `F.linear`'s. Keys and values are written in place.

        Args:
            x: (rows * n, hidden).
            cos: (rows * n, 1, head_dim) of the tokens' places.
            sin: likewise.
            places: (n,) of each row.
            masks: (n, capacity) of each row, to add to the scores.
            keys: (kv heads, capacity, head_dim) of each row.
            values: likewise.
            weights: norms of attention and MLP, QK-norms' scale and shift, and the projections
                qkv, out, gate and up, down.
        """
        layer = _layer_of(weights, [plain_product(weight) for weight in weights[4:]])
        caches = [_Held([k], [v]) for k, v in zip(keys, values, strict=True)]
        lengths = [len(place) for place in places]
        return self._block(x, layer, 0, cos, sin, lengths, caches, places, masks)

    def _mask(self, cache: KVCache, start: int, n: int) -> Mask:
        """What `n` tokens from `start` on may see, once the cache holds them.

        In whole blocks where rounding is to be reproducible. The last block of keys may be a
        short one: it ends with the cache, for one token as for many.
        """
        queries, keys = n, start + n
        if self.reproducible:
            queries = -(-n // QUERY_BLOCK) * QUERY_BLOCK
            keys = min(-(-keys // KEY_BLOCK) * KEY_BLOCK, cache.capacity)
        elif n == 1:
            return None
        if start == 0:
            return _Causal(queries, keys)
        seen = torch.ones(queries, keys, dtype=torch.bool, device=self.device).tril(start)
        return torch.zeros(queries, keys, dtype=self.dtype, device=self.device).masked_fill(
            ~seen, -torch.inf
        )

    def _block(
        self,
        x: Tensor,
        layer: _Layer,
        index: int,
        cos: Tensor,
        sin: Tensor,
        lengths: Sequence[int],
        caches: Sequence[KVCache | _Held],
        places: Sequence[Place],
        masks: Sequence[Mask],
        *,
        last: bool = False,
    ) -> Tensor:
        """One block over the packed tokens `x` (n, hidden), or only each row's last (rows, hidden).

        Masks are then those of the last tokens.
        """
        swin = self.config.swin_norm
        qkv = layer.qkv(x if swin else self._normed(x, layer.attention_norm))
        asking = [1] * len(lengths) if last else lengths
        attended = self._attend(qkv, layer, index, cos, sin, lengths, asking, caches, places, masks)
        h = layer.out(attended)
        if last:
            x = torch.stack([part[-1] for part in x.split(list(lengths))])
        x = x + (self._normed(h, layer.attention_norm) if swin else h)
        gate, up = layer.gate_up(x if swin else self._normed(x, layer.mlp_norm)).chunk(2, dim=-1)
        h = layer.down(F.silu(gate) * up)
        return x + (self._normed(h, layer.mlp_norm) if swin else h)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        """`model.RMSNorm`, in fewer kernels. In half precision it rounds once, not twice."""
        if self.device.type != "cpu" or x.dtype is not torch.float32:
            return F.rms_norm(x, weight.shape, weight, self.config.rms_norm_eps)
        # no kernel of its own on a CPU: these four calls take two thirds of the time of its six
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * torch.addcmul(self._eps, norm, norm, value=1 / x.shape[-1]).rsqrt_() * weight

    def _attend(
        self,
        qkv: Tensor,
        layer: _Layer,
        index: int,
        cos: Tensor,
        sin: Tensor,
        lengths: Sequence[int],
        asking: Sequence[int],
        caches: Sequence[KVCache | _Held],
        places: Sequence[Place],
        masks: Sequence[Mask],
    ) -> Tensor:
        """Append each row's keys and values to its cache and let its last `asking` attend to all.

        Returns:
            (all that ask, hidden).
        """
        heads, shared = self.config.num_attention_heads, self.config.num_key_value_heads
        dim = self.config.head_dim
        qkv = qkv.view(len(qkv), -1, dim)  # (n, heads + 2 * kv heads, head_dim)
        qk = F.layer_norm(qkv[:, : heads + shared].float(), (dim,), eps=QK_NORM_EPS)
        qk = torch.addcmul(layer.head_bias, qk, layer.head_weight)
        # rotary embeddings: the halves change places, and the sign is in the sine
        qk = torch.addcmul(qk * cos, qk.roll(dim // 2, -1), sin).to(qkv.dtype)
        q, k = qk.transpose(0, 1).split([heads, shared])  # (heads, n, head_dim)
        v = qkv[:, heads + shared :].transpose(0, 1)
        rows, at = [], 0
        for n, asks, cache, place, mask in zip(lengths, asking, caches, places, masks, strict=True):
            end = cache.length + n
            keys, values = cache.keys[index], cache.values[index]
            keys[:, place] = k[:, at : at + n]
            values[:, place] = v[:, at : at + n]
            at += n
            queries = q[:, at - asks : at]
            if mask is not None:
                whole, end = (mask.queries, mask.keys) if isinstance(mask, _Causal) else mask.shape
                queries = F.pad(queries, (0, 0, 0, whole - asks))
            held = keys[:, :end], values[:, :end]
            if asks <= FEW_QUERIES and self.device.type == "cpu":  # no change in float32
                queries, held = queries.float(), (held[0].float(), held[1].float())
                mask = mask.float() if isinstance(mask, Tensor) else mask
            if mask is None and heads == shared and self.device.type == "cpu":
                attended = _attended_by_one(queries, *held)
            else:
                attended = F.scaled_dot_product_attention(
                    queries[None],
                    held[0][None],
                    held[1][None],
                    attn_mask=mask if isinstance(mask, Tensor) else None,
                    is_causal=isinstance(mask, _Causal),
                    enable_gqa=heads != shared,
                )[0]
            rows.append(attended[:, :asks].transpose(0, 1).reshape(asks, -1))
        return (rows[0] if len(rows) == 1 else torch.cat(rows)).to(qkv.dtype)


def _attended_by_one(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of one query (heads, 1, head_dim) over all keys (heads, T, head_dim).

    On a CPU the two products take three quarters of the time of the fused kernel, which is made for
    many queries; the first one with the keys on the left, as they lie in memory.
    """
    scores = torch.bmm(keys, query.transpose(1, 2)).transpose(1, 2) * query.shape[-1] ** -0.5
    return torch.bmm(scores.softmax(-1), values)


def _layer_of(weights: Sequence[Tensor], products: Sequence[Product]) -> _Layer:
    """A layer of its weights, in the order of `Engine.block`, and the products of the last four."""
    attention_norm, mlp_norm, head_weight, head_bias = weights[:4]
    qkv, out, gate_up, down = products
    return _Layer(
        attention_norm,
        mlp_norm,
        head_weight,
        head_bias,
        qkv,
        out,
        gate_up,
        down,
        tuple(weights),
    )


def _fuse(projections: Sequence[torch.nn.Linear]) -> Tensor:
    """One weight of several projections; they become views of it."""
    fused = torch.cat([projection.weight.detach() for projection in projections])
    parts = fused.split([projection.out_features for projection in projections])
    for projection, part in zip(projections, parts, strict=True):
        projection.weight = torch.nn.Parameter(part, requires_grad=False)
    return fused


def _for_heads(norm: HeadNorm, parameter: Tensor, heads: int) -> Tensor:
    """A QK-norm parameter with one row for each head, float32."""
    return parameter.detach().float().repeat_interleave(heads // norm.weight.shape[0], dim=0)
