"""Fit anew what names a level: `python -m tools.refit_labels CHECKPOINT --data D --out OUT`.

A label is one word of three, read off one hidden state by three rows of the head. Those six rows
are few enough to be fitted to the end, by logistic regression on sequences the model has not been
trained on, after training has stopped. Nothing else changes: of the same label the model makes the
same caption and the same picture.
"""

import argparse
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pure.belief import LEVELS
from pure.checkpoint import Checkpoint, load
from pure.pretokenise import PARTS, TokenisedSet

log = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
HEAD = "lm_head.weight"
BATCH = 8


def level_ids(checkpoint: Checkpoint) -> list[list[int]]:
    """Ids of small, medium and large as a label has them: for blur, and for noise.

    Raises:
        ValueError: the levels are not one token each, so no row of the head stands for one.
    """
    answers = [checkpoint.text.answer(f"{w.capitalize()} blur, {w} noise.") for w in LEVELS]
    if len({len(ids) for ids in answers}) > 1:
        raise ValueError("this checkpoint writes some levels with more tokens than others")
    places = [list(ids) for ids in zip(*answers, strict=True) if len(set(ids)) > 1]
    if len(places) != 2:
        raise ValueError("this checkpoint writes a level with more than one token")
    return places


@torch.no_grad()
def read(
    checkpoint: Checkpoint, data: TokenisedSet, places: Sequence[Sequence[int]]
) -> list[tuple[Tensor, Tensor]]:
    """For blur and noise: hidden states (N, hidden_size) before the word, and which it is (N,).

    Raises:
        ValueError: the data hold no label, or are in other words.
    """
    label = PARTS.index("label")
    result: list[tuple[list[Tensor], list[int]]] = [([], []) for _ in places]
    for first in range(0, len(data), BATCH):
        some = [data.sequence(i) for i in range(first, min(first + BATCH, len(data)))]
        # what follows the label is not looked at
        cut = [[i for i, p in zip(s.ids, s.parts, strict=True) if p in (-1, label)] for s in some]
        length = max(map(len, cut))
        padded = torch.tensor([ids + ids[-1:] * (length - len(ids)) for ids in cut])
        hidden = checkpoint.model.hidden(padded).float()
        for row, sequence in enumerate(some):
            for i, part in enumerate(sequence.parts):
                for place, (states, words) in zip(places, result, strict=True):
                    if part == label and sequence.ids[i] in place:
                        states.append(hidden[row, i - 1].clone())
                        words.append(place.index(sequence.ids[i]))
        if first // BATCH % 40 == 0:
            log.info("read %d of %d", first, len(data))
    if not all(words for _, words in result):
        raise ValueError(f"{data.folder} holds no label in this checkpoint's words")
    return [(torch.stack(states), torch.tensor(words)) for states, words in result]


def fit(rows: Tensor, states: Tensor, words: Tensor, decay: float) -> Tensor:
    """Rows (3, hidden_size) that name the words (N,) of states (N, hidden_size) best.

    Minimises mean cross-entropy + decay / 2 |rows - those given|², which has one minimum.
    """
    start, found = rows.float(), rows.float().clone().requires_grad_(True)
    optimiser = torch.optim.LBFGS([found], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        far = (found - start).square().sum()
        result = F.cross_entropy(states @ found.T, words) + decay / 2 * far
        result.backward()
        return result

    optimiser.step(loss)
    return found.detach()


def refit(source: Path, data: Path, out: Path, decay: float) -> dict[str, dict[str, float]]:
    """Write `out`: the checkpoint `source` with fitted rows.

    Returns:
        For blur and noise, of the last fifth of the sequences: the share named right by the rows
        as they were, and by rows fitted to the other four fifths. Those written are fitted to all.

    Raises:
        ValueError: levels are not one token each, or the data hold no label in these words.
    """
    checkpoint = load(source, dtype=torch.float32)
    head = checkpoint.model.lm_head.weight.detach()
    places = level_ids(checkpoint)
    report: dict[str, dict[str, float]] = {}
    fitted: dict[int, Tensor] = {}
    sets = read(checkpoint, TokenisedSet(data), places)
    for what, place, (states, words) in zip(("blur", "noise"), places, sets, strict=True):
        rows, most = head[place], len(words) * 4 // 5
        ways = {"before": rows, "after": fit(rows, states[:most], words[:most], decay)}
        right = {n: (states[most:] @ w.T).argmax(1) == words[most:] for n, w in ways.items()}
        report[what] = {name: float(r.float().mean()) for name, r in right.items()}
        fitted |= zip(place, fit(rows, states, words, decay), strict=True)
    tensors = load_file(source / WEIGHTS)
    for i, row in fitted.items():
        tensors[HEAD][i] = row.to(tensors[HEAD].dtype)
    shutil.copytree(source, out, dirs_exist_ok=True)
    with safe_open(source / WEIGHTS, framework="pt") as file:
        save_file(tensors, out / WEIGHTS, metadata=file.metadata())
    return report


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="checkpoint folder")
    parser.add_argument("--data", type=Path, required=True, help="of `python -m pure.pretokenise`")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--decay", type=float, default=0.03, help="pull towards the rows there are")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        report = refit(arguments.checkpoint, arguments.data, arguments.out, arguments.decay)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    log.info(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
