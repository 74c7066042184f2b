"""What guidance costs: both rows in one pass, against one pass each. `make bench`.

A random transformer decodes tokens with a conditional cache that begins long and an unconditional
one that begins empty, as in PURE. The arms are interleaved, round by round, on one thread, and
medians of the ratio are printed: single times on a shared machine say little.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch

from pure.model import KVCache, Transformer, TransformerConfig

SIZES = {
    "small": TransformerConfig(1024, 256, 704, 6, 4, 4),
    "mid": TransformerConfig(1024, 1024, 2816, 8, 8, 8),
}
PROMPT = 300  # tokens of the conditional row before the picture


def together(model: Transformer, token: torch.Tensor, caches: list[KVCache]) -> None:
    """Both rows in one pass."""
    model.hidden(token.expand(2, 1), caches)


def apart(model: Transformer, token: torch.Tensor, caches: list[KVCache]) -> None:
    """A pass for each row."""
    for cache in caches:
        model.hidden(token, [cache])


def seconds(model: Transformer, step: Callable[..., None], tokens: int) -> float:
    """Processor seconds to decode `tokens` ids after a prompt."""
    caches = [model.cache(PROMPT + tokens), model.cache(tokens)]
    model.hidden(torch.zeros(1, PROMPT, dtype=torch.long), caches[:1])
    start = time.process_time()
    for i in range(tokens):
        step(model, torch.tensor([[i % 1024]]), caches)
    return time.process_time() - start


def main() -> None:
    """Command line: `python -m tools.bench [--size small|mid] [--tokens 64] [--rounds 7]`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="mid")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Transformer(SIZES[arguments.size]).eval()
    with torch.inference_mode():
        seconds(model, together, 4)  # warm up
        rounds = [
            (seconds(model, apart, arguments.tokens), seconds(model, together, arguments.tokens))
            for _ in range(arguments.rounds)
        ]
    ratios = [a / b for a, b in rounds]
    per_token = statistics.median(b for _, b in rounds) / arguments.tokens
    sys.stdout.write(
        f"{arguments.size}: two passes / one pass {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}, {arguments.rounds} rounds); "
        f"{per_token * 1000:.1f} ms of processor a token in one pass\n"
    )


if __name__ == "__main__":
    main()
