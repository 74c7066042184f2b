"""Pairs to token sequences on disk, once, so that training reads instead of encoding.

A sequence is stored whole, with the part every token belongs to, so training can still leave
out label, caption or prompt. Shard k of a data set is a function of the settings and k alone:
shards may be made in any order and by any number of processes, and one that is there is not
made again. Command: `python -m pure.pretokenise --help`.
"""

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pure import nano
from pure.belief import TextTokenizer
from pure.checkpoint import load_vq
from pure.data import CropSampler, Pair, Photo, Split, load_photos, make_pair
from pure.grammar import Grammar
from pure.vocab import Vocab

log = logging.getLogger(__name__)

PARTS = ("label", "caption", "image")
PROMPT = -1  # part of what is not trained on


@dataclass(frozen=True)
class TrainingSequence:
    """One training sequence.

    Attributes:
        ids: the tokens.
        parts: for each token the index into `PARTS` it is trained as, -1 for not at all.
    """

    ids: list[int]
    parts: list[int]

    def without(self, *parts: int) -> "TrainingSequence":
        """The sequence with all tokens of these parts left out."""
        kept = [(i, p) for i, p in zip(self.ids, self.parts, strict=True) if p not in parts]
        return TrainingSequence([i for i, _ in kept], [p for _, p in kept])


def build_sequence(
    grammar: Grammar,
    prompt: Sequence[int],
    label: Sequence[int],
    caption: Sequence[int],
    codes: Tensor,
) -> TrainingSequence:
    """Prompt and answer; the prompt, its end-turn included, is not trained on."""
    picture = [*grammar.image(codes), grammar.vocab.end_turn]
    ids = [*prompt, *label, *caption, *picture]
    parts = [PROMPT] * len(prompt) + [0] * len(label) + [1] * len(caption) + [2] * len(picture)
    return TrainingSequence(ids, parts)


@dataclass(frozen=True)
class Pretokenisation:
    """What a tokenised data set is made of.

    Attributes:
        native: side of the pictures, pixels.
        heavy: share of pairs degraded by the preset "realesrgan", the others by "mild".
        smallest: photos whose shorter side is below this share of `native` are left out; the
            others are enlarged to it.
        shard: sequences in one file.
    """

    split: Split = "train"
    native: int = 256
    heavy: float = 0.6
    smallest: float = 0.84
    shard: int = 64
    seed: int = 0


class Pretokeniser:
    """Makes the sequences of a data set.

    Args:
        settings: what they are made of.
        photos: folder of `python -m tools.photos`.
        vq: folder of the VQ tokenizer.
    """

    def __init__(self, settings: Pretokenisation, photos: Path, vq: Path) -> None:
        self.settings = settings
        self.vq = load_vq(vq).to(memory_format=torch.channels_last)  # twice as fast on a CPU
        least = round(settings.native * settings.smallest)
        train = load_photos(photos, "train", min_side=128)
        self.known = nano.frequent_words(train)
        self.names = nano.token_names(sorted(self.known), self.vq.config.codebook_size)
        self.grammar = Grammar(Vocab.from_names(self.names, len(self.names)), self.vq.factor)
        self.text = TextTokenizer(nano.tokenizer(self.names), self.grammar.vocab.text)
        self.photos: list[Photo] = load_photos(photos, settings.split, min_side=least)
        self.sampler = CropSampler(self.photos, settings.native, seed=settings.seed)

    def pair(self, index: int) -> Pair:
        """Pair number `index`."""
        s = self.settings
        rng = np.random.default_rng([s.seed, 11, index])
        preset = "realesrgan" if rng.random() < s.heavy else "mild"
        return make_pair(self.sampler.crop(index), int(rng.integers(2**31)), preset)

    def codes(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """Codes (B, h, w) of pictures, uint8 (H, W, 3)."""
        x = torch.from_numpy(np.stack(pictures)).movedim(-1, 1).float() / 255  # (B, 3, H, W)
        return self.vq.encode(x.to(memory_format=torch.channels_last))

    def sequence(self, index: int) -> TrainingSequence:
        """Sequence number `index`, with nothing left out."""
        pair = self.pair(index)
        lq, gt = self.codes([pair.lq, pair.crop.pixels])
        caption = nano.caption(pair.crop.photo, pair.crop.pixels, self.known)
        return build_sequence(
            self.grammar,
            self.grammar.prompt(self.text.instruction(), lq),
            self.text.answer(pair.label),
            self.text.answer(caption),
            gt,
        )

    def write(self, out: Path, shard: int) -> Path:
        """Write a shard, unless it is there; it appears whole or not at all."""
        path = out / f"{shard:05d}.safetensors"
        if path.exists():
            return path
        size = self.settings.shard
        sequences = [self.sequence(i) for i in range(shard * size, (shard + 1) * size)]
        temporary = path.with_suffix(".tmp")
        save_file(
            {
                "ids": torch.tensor([i for s in sequences for i in s.ids], dtype=torch.int32),
                "parts": torch.tensor([p for s in sequences for p in s.parts], dtype=torch.int8),
                "lengths": torch.tensor([len(s.ids) for s in sequences], dtype=torch.int32),
            },
            temporary,
            metadata={"settings": json.dumps(asdict(self.settings))},
        )
        temporary.replace(path)
        return path


def read_shard(path: Path) -> list[TrainingSequence]:
    """The sequences of a shard, in order."""
    with safe_open(path, framework="pt") as file:
        ids, parts = file.get_tensor("ids").tolist(), file.get_tensor("parts").tolist()
        lengths = file.get_tensor("lengths").tolist()
    ends = np.cumsum(lengths).tolist()
    return [
        TrainingSequence(ids[end - n : end], parts[end - n : end])
        for n, end in zip(lengths, ends, strict=True)
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, default=Path("data/photos"))
    parser.add_argument("--vq", type=Path, default=Path("pure/weights/nano"))
    parser.add_argument("--out", type=Path, default=Path("data/sequences"))
    parser.add_argument("--shards", type=int, default=100)
    defaults = asdict(Pretokenisation())
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    arguments = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    settings = Pretokenisation(**{name: arguments[name] for name in defaults})
    out = arguments["out"]
    out.mkdir(parents=True, exist_ok=True)
    maker = Pretokeniser(settings, arguments["photos"], arguments["vq"])
    (out.parent / "names.json").write_text(json.dumps(maker.names))
    for shard in range(arguments["shards"]):
        maker.write(out, shard)
        log.info("shard %d of %d", shard + 1, arguments["shards"])


if __name__ == "__main__":
    main()
