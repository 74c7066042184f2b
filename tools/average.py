"""Average two checkpoints of one shape: `python -m tools.average A B --share 0.5 --out C`.

For weights trained on from others: the straight line between them often has better ones than
either end, and is a place to train on from.
"""

import argparse
import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"


def average(first: Path, second: Path, share: float, out: Path) -> None:
    """Write `out`: the folder `second`, its transformer's weights averaged with those of `first`.

    Args:
        first: checkpoint folder.
        second: another one.
        share: weight of the second, 0 to 1.
        out: folder to write.

    Raises:
        ValueError: the share is outside 0 to 1, or the checkpoints have not the same tensors.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share is from 0 to 1, not {share}")
    a, b = load_file(first / WEIGHTS), load_file(second / WEIGHTS)
    if {n: t.shape for n, t in a.items()} != {n: t.shape for n, t in b.items()}:
        raise ValueError(f"{first} and {second} have not the same tensors")
    mean = {n: a[n].float().lerp(t.float(), share).to(t.dtype) for n, t in b.items()}
    shutil.copytree(second, out, dirs_exist_ok=True)
    with safe_open(second / WEIGHTS, framework="pt") as file:
        save_file(mean, out / WEIGHTS, metadata=file.metadata())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("first", type=Path, help="checkpoint folder")
    parser.add_argument("second", type=Path, help="checkpoint folder")
    parser.add_argument("--share", type=float, default=0.5, help="weight of the second")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        average(arguments.first, arguments.second, arguments.share, arguments.out)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
