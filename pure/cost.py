"""What a restoration costs: seconds for one picture from shapes and a machine's published figures.

A model on paper, never a measurement: whoever shows a number of it calls it an estimate. A pass
reads every weight and both caches once and multiplies with them, and the slower of memory,
arithmetic and launching kernels decides. Knows no time, no device and no weights, only shapes.
"""

from dataclasses import dataclass

from pure.model import TransformerConfig

MEMORY_SHARE = 0.65  # of the bandwidth that decoding reaches; gpt-fast's published table: 0.69
COMPUTE_SHARE = 0.6  # of the peak that a wide pass reaches; assumed
PREFILL_SHARE = 0.5  # of the peak that reading a prompt reaches; assumed
EAGER_LAUNCH = 28.5e-3  # seconds of launching one pass of the 7B without a graph; 25 to 30 ms


@dataclass(frozen=True)
class Machine:
    """Bandwidth (bytes a second) and peak bfloat16 arithmetic (operations a second), published."""

    name: str
    bandwidth: float
    flops: float


A100 = Machine("A100 80 GB", 2.04e12, 312e12)
H100 = Machine("H100 SXM", 3.35e12, 989e12)
# Half of an RTX Pro 6000 Blackwell; the arithmetic is assumed to be halved with it.
ZERO_GPU = Machine("ZeroGPU large", 0.9e12, 250e12)
MACHINES = (A100, H100, ZERO_GPU)


@dataclass(frozen=True)
class Workload:
    """One picture.

    Attributes:
        rows, columns: its code grid.
        codes: entries of the codebook, the rows of the head that are read.
        instruction: tokens of the prompt besides the picture; estimated.
        text: tokens of label and caption; estimated.
        guided: whether there is an unconditional row.
        weight_bytes, cache_bytes: of one number.
    """

    rows: int = 64
    columns: int = 64
    codes: int = 16_384
    instruction: int = 25
    text: int = 130
    guided: bool = True
    weight_bytes: float = 2
    cache_bytes: float = 2

    @property
    def image(self) -> int:
        """Tokens of a picture, begin to end."""
        return self.rows * (self.columns + 1) + 4

    @property
    def cells(self) -> int:
        """Codes to decide, the passes of plain decoding."""
        return self.rows * self.columns


def body_weights(config: TransformerConfig) -> int:
    """Numbers in the projections of all layers, which every pass reads."""
    width, kv = config.hidden_size, config.num_key_value_heads * config.head_dim
    attention = 2 * width * width + 2 * width * kv
    return config.num_hidden_layers * (attention + 3 * width * config.intermediate_size)


def cache_bytes(config: TransformerConfig, tokens: int, bytes_each: float = 2) -> float:
    """Keys and values of `tokens` tokens."""
    width = config.num_key_value_heads * config.head_dim
    return 2 * config.num_hidden_layers * width * bytes_each * tokens


def kept_bytes(config: TransformerConfig, work: Workload) -> float:
    """Keys and values of a whole picture, prompt to end, both rows."""
    tokens = work.instruction + work.image + work.text + work.image
    return cache_bytes(config, tokens + work.image * work.guided, work.cache_bytes)


def pass_bytes(config: TransformerConfig, work: Workload) -> float:
    """Bytes that deciding a code reads, averaged over a picture."""
    context = work.instruction + work.image + work.text + work.image / 2
    if work.guided:
        context += work.image / 2
    head = work.codes * config.hidden_size
    weights = (body_weights(config) + head) * work.weight_bytes
    return weights + cache_bytes(config, 1, work.cache_bytes) * context


def pass_seconds(
    read: float,
    flops: float,
    machine: Machine,
    *,
    memory_share: float = MEMORY_SHARE,
    launch: float = 0.0,
) -> float:
    """One pass: the slowest of reading, multiplying and launching, which overlap."""
    memory = read / (memory_share * machine.bandwidth)
    return max(memory, flops / (COMPUTE_SHARE * machine.flops), launch)


def image_seconds(
    config: TransformerConfig,
    machine: Machine,
    work: Workload | None = None,
    *,
    ids_per_pass: float = 1.0,
    width: int = 1,
    memory_share: float = MEMORY_SHARE,
    launch: float = 0.0,
) -> float:
    """Estimated seconds from prompt to last code; the VQ tokenizer is left out.

    Args:
        config: shape of the transformer.
        machine: what runs it.
        work: the picture; 512 × 512 by the released model if not given.
        ids_per_pass: codes a pass decides on average, 1 for plain decoding.
        width: codes a pass tries, which is what it computes.
        memory_share: of the bandwidth that is reached.
        launch: seconds to launch the kernels of a pass; 0 where a graph is replayed.
    """
    work = work or Workload()
    weights = body_weights(config)
    prompt = work.instruction + work.image
    prefill = 2 * weights * prompt / (PREFILL_SHARE * machine.flops)
    text_read = weights * work.weight_bytes + cache_bytes(config, prompt, work.cache_bytes)
    text = work.text * pass_seconds(
        text_read, 2 * weights, machine, memory_share=memory_share, launch=launch
    )
    rows = 2 if work.guided else 1
    flops = 2.0 * rows * width * (weights + work.codes * config.hidden_size)
    one = pass_seconds(
        pass_bytes(config, work), flops, machine, memory_share=memory_share, launch=launch
    )
    return prefill + text + work.cells / ids_per_pass * one
