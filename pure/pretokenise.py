"""Pairs to token sequences on disk, once, so that training reads instead of encoding.

A sequence is stored whole, with the part every token belongs to, so training can still leave
out label, caption or prompt. Shard k of a data set is a function of the settings and k alone:
shards may be made in any order and by any number of processes, and one that is there is not
made again. When the last is there, a card (`card.json` and `README.md`) says what they are.

    python -m pure.pretokenise        # PURE-nano

docs/training.md has the paper's command.
"""

import argparse
import hashlib
import json
import logging
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from imaging.degrade import Thresholds
from pure import nano
from pure.belief import TextTokenizer
from pure.captions import CaptionError, Captions, read_captions
from pure.checkpoint import (
    CheckpointError,
    Tokenizers,
    load_tokenizers,
    load_vq,
)
from pure.data import Crop, CropSampler, KnownLabels, Labeller, Pair, Split, label, load_photos
from pure.dem import THRESHOLDS as ESTIMATOR_THRESHOLDS
from pure.dem import EstimatedLabels, EstimatorError, load_estimator
from pure.grammar import Grammar
from pure.pairs import (
    BakedPairs,
    FolderCrops,
    MadePairs,
    PairsError,
    PairSettings,
    PairSource,
    add_rank_arguments,
    folder_argument,
    list_hash,
    photo_files,
)
from pure.vocab import Vocab

log = logging.getLogger(__name__)

PARTS = ("label", "caption", "image")
PROMPT = -1  # part of what is not trained on
NANO_SHARDS = 100


class DataSetError(ValueError):
    """A tokenised data set cannot be written or read as asked; the message says why."""


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
        split: of the photographs of `python -m tools.photos`.
        native: side of the pictures, pixels.
        heavy: share of pairs degraded by the preset "realesrgan".
        graded: share degraded by "graded"; the others by "mild".
        sharpen: 1 sharpens references where the preset expects it.
        smallest: photos whose shorter side is below this share of `native` are left out; the
            others are enlarged to it.
        picture_every: only every so many-th sequence goes on after the label. One that ends there
            costs a third of the time, and teaches as much about labels.
        text_limit: most tokens of label and caption together; a longer caption is cut.
        shard: sequences in one file.
    """

    split: Split = "train"
    native: int = 256
    heavy: float = 0.6
    graded: float = 0.0
    sharpen: int = 0
    smallest: float = 0.84
    picture_every: int = 1
    text_limit: int = 512
    shard: int = 64
    seed: int = 0


class NanoCaptions:
    """The truthful captions of `pure.nano`."""

    source: Mapping[str, Any] = {"form": nano.FORM, "words": "of the photograph, the rest measured"}

    def __init__(self, known: frozenset[str]) -> None:
        self.known = known

    def caption(self, crop: Crop) -> str:
        return nano.caption(crop.photo, crop.pixels, self.known)


@dataclass(frozen=True)
class Material:
    """Where sequences come from.

    Attributes:
        origin: what the photographs are, for the card.
        tokenizers: of the vocabulary sequences are written in.
    """

    pairs: PairSource
    labels: Labeller
    captions: Captions
    tokenizers: Tokenizers
    origin: Mapping[str, Any]


def nano_material(
    settings: Pretokenisation, photos: Path, vq: Path, labels: Labeller | None = None
) -> Material:
    """PURE-nano's: photographs of `python -m tools.photos`, its own few words.

    Words and their ids come from the training photographs, whichever split is tokenised.
    """
    known = nano.frequent_words(load_photos(photos, "train", min_side=128))
    model = load_vq(vq)
    names = nano.token_names(sorted(known), model.config.codebook_size)
    vocab = Vocab.from_names(names, len(names))
    text = TextTokenizer(nano.tokenizer(names), vocab.text)
    least = round(settings.native * settings.smallest)
    chosen = load_photos(photos, settings.split, min_side=least)
    ids = hashlib.sha256("\n".join(photo.id for photo in chosen).encode()).hexdigest()
    return Material(
        MadePairs(
            CropSampler(chosen, settings.native, seed=settings.seed), _pair_settings(settings)
        ),
        labels or KnownLabels(),
        NanoCaptions(known),
        Tokenizers(names, Grammar(vocab, model.factor), text, model),
        {"photos": len(chosen), "list": ids},
    )


def _pair_settings(s: Pretokenisation) -> PairSettings:
    return PairSettings(
        size=s.native, heavy=s.heavy, graded=s.graded, sharpen=s.sharpen, seed=s.seed
    )


class Pretokeniser:
    """Makes the sequences of a data set."""

    def __init__(self, settings: Pretokenisation, material: Material) -> None:
        self.settings, self.material = settings, material
        self.grammar, self.text = material.tokenizers.grammar, material.tokenizers.text
        # twice as fast on a CPU
        self.vq = material.tokenizers.vq.to(memory_format=torch.channels_last)

    def codes(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """Codes (B, h, w) of pictures, uint8 (H, W, 3)."""
        x = torch.from_numpy(np.stack(pictures)).movedim(-1, 1).float() / 255  # (B, 3, H, W)
        x = x.to(next(self.vq.parameters()).device, memory_format=torch.channels_last)
        return self.vq.encode(x).cpu()

    def sequence(self, index: int) -> TrainingSequence:
        """Sequence number `index`, with nothing left out."""
        pair = self.material.pairs.pair(index)
        return self._sequence(index, pair, label(pair, self.material.labels))

    def _sequence(self, index: int, pair: Pair, label_text: str) -> TrainingSequence:
        label_ids = self.text.answer(label_text)
        if index % self.settings.picture_every:
            (lq,) = self.codes([pair.lq])
            prompt = self.grammar.prompt(self.text.instruction(), lq)
            parts = [PROMPT] * len(prompt) + [PARTS.index("label")] * len(label_ids)
            return TrainingSequence([*prompt, *label_ids], parts)
        lq, gt = self.codes([pair.lq, pair.crop.pixels])
        caption = self.material.captions.caption(pair.crop)
        # the caption's ids are what the whole text has after the label's, as when it is read
        both = self.text.answer(f"{label_text} {caption}" if caption else label_text)
        return build_sequence(
            self.grammar,
            self.grammar.prompt(self.text.instruction(), lq),
            label_ids,
            both[len(label_ids) : self.settings.text_limit],
            gt,
        )

    def description(self) -> dict[str, Any]:
        """What every shard says about itself; two shards of a data set say the same."""
        labels, vq = self.material.labels, self.vq
        return {
            "settings": asdict(self.settings),
            "photographs": dict(self.material.origin),
            "labels": {"source": labels.source, "thresholds": asdict(labels.thresholds)},
            "captions": dict(self.material.captions.source),
            "tokens": len(self.material.tokenizers.names),
            "names_sha256": _sha256(json.dumps(self.material.tokenizers.names).encode()),
            "vq_sha256": _sha256(*(t.cpu().numpy().tobytes() for t in vq.state_dict().values())),
        }

    def write(self, out: Path, shard: int) -> Path:
        """Write a shard, unless it is there; it appears whole or not at all.

        Raises:
            DataSetError: the one that is there is of another data set.
        """
        path = shard_path(out, shard)
        description = json.loads(json.dumps(self.description()))
        if path.exists():
            _check_same(path, description)
            return path
        size = self.settings.shard
        sequences, labels = [], Counter[str]()
        for index in range(shard * size, (shard + 1) * size):
            pair = self.material.pairs.pair(index)
            words = label(pair, self.material.labels)
            labels[words] += 1
            sequences.append(self._sequence(index, pair, words))
        temporary = path.with_suffix(".tmp")
        save_file(
            {
                "ids": torch.tensor([i for s in sequences for i in s.ids], dtype=torch.int32),
                "parts": torch.tensor([p for s in sequences for p in s.parts], dtype=torch.int8),
                "lengths": torch.tensor([len(s.ids) for s in sequences], dtype=torch.int32),
            },
            temporary,
            # one entry: several are written in no fixed order, and equal shards would differ
            metadata={"shard": json.dumps({"description": description, "labels": labels})},
        )
        temporary.replace(path)
        return path


def _sha256(*parts: bytes) -> str:
    result = hashlib.sha256()
    for part in parts:
        result.update(part)
    return result.hexdigest()


def _metadata(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return json.loads((file.metadata() or {}).get("shard", "{}"))


def _check_same(path: Path, wanted: Mapping[str, Any]) -> None:
    there = _metadata(path).get("description", {})
    if there != wanted:
        keys = sorted(k for k in there.keys() | wanted.keys() if there.get(k) != wanted.get(k))
        raise DataSetError(
            f"{path} was made otherwise: it differs in {', '.join(keys)}. "
            "Remove it, or write to another folder."
        )


def shard_path(folder: Path, shard: int) -> Path:
    """Where a shard is."""
    return folder / f"{shard:05d}.safetensors"


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


class TokenisedSet:
    """Random access to the sequences of a folder of shards; only what is asked for is read.

    Args:
        folder: of the shards; they need not all be there yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        first = shard_path(folder, 0)
        if not first.exists():
            raise DataSetError(f"{folder} holds no shards: run `python -m pure.pretokenise`")
        self.shard = len(self.lengths(0))
        self._ends: dict[int, list[int]] = {}

    def __len__(self) -> int:
        """Sequences there are now."""
        return self.shard * len(list(self.folder.glob("*.safetensors")))

    def lengths(self, shard: int) -> list[int]:
        """Tokens of each sequence of a shard."""
        with safe_open(shard_path(self.folder, shard), framework="pt") as file:
            return file.get_tensor("lengths").tolist()

    def sequence(self, index: int) -> TrainingSequence:
        """Sequence number `index`.

        Raises:
            FileNotFoundError: its shard is not there.
        """
        shard, place = divmod(index, self.shard)
        path = shard_path(self.folder, shard)
        if not path.exists():
            raise FileNotFoundError(path)
        if shard not in self._ends:
            self._ends[shard] = [0, *np.cumsum(self.lengths(shard)).tolist()]
        start, end = self._ends[shard][place : place + 2]
        with safe_open(path, framework="pt") as file:
            ids, parts = (file.get_slice(name)[start:end].tolist() for name in ("ids", "parts"))
        return TrainingSequence(ids, parts)


def write_card(folder: Path, shards: int) -> dict[str, Any] | None:
    """Write `card.json` and `README.md` of a data set, if all its shards are there.

    Returns:
        The card, a function of the shards alone, or None where some are missing.

    Raises:
        DataSetError: the shards are of different data sets.
    """
    paths = [shard_path(folder, i) for i in range(shards)]
    if not all(path.exists() for path in paths):
        return None
    description = _metadata(paths[0])["description"]
    files, labels, parts = {}, Counter[str](), Counter[int]()
    lengths: list[int] = []
    for path in paths:
        _check_same(path, description)
        labels.update(_metadata(path)["labels"])
        with safe_open(path, framework="pt") as file:
            lengths += file.get_tensor("lengths").tolist()
            counts = torch.bincount(file.get_tensor("parts").long() + 1, minlength=4).tolist()
        parts.update(dict(enumerate(counts)))
        files[path.name] = _sha256(path.read_bytes())
    card = description | {
        "sequences": len(lengths),
        "lengths": {"min": min(lengths), "mean": float(np.mean(lengths)), "max": max(lengths)},
        "tokens_by_part": {name: parts[i] for i, name in enumerate(("prompt", *PARTS))},
        "label_counts": dict(sorted(labels.items())),
        "shards_sha256": files,
    }
    pages = {"card.json": json.dumps(card, indent=1) + "\n", "README.md": _page(card)}
    for name, text in pages.items():
        # several processes may get here at once, and write the same
        temporary = folder / f".{name}.{secrets.token_hex(4)}"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(folder / name)
    return card


def _page(card: Mapping[str, Any]) -> str:
    labels, lengths = card["labels"], card["lengths"]
    limits = "\n".join(
        f"| {what} | {low:.4g} | {high:.4g} |" for what, (low, high) in labels["thresholds"].items()
    )
    counts = "\n".join(f"| {text} | {n} |" for text, n in card["label_counts"].items())
    parts = ", ".join(f"{n} {part}" for part, n in card["tokens_by_part"].items())
    return f"""# A tokenised data set

{card["sequences"]} sequences of {lengths["min"]} to {lengths["max"]} tokens (mean \
{lengths["mean"]:.1f}) over a vocabulary of {card["tokens"]}; tokens by part: {parts}.

- Settings: `{json.dumps(card["settings"])}`
- Photographs: `{json.dumps(card["photographs"])}`
- Captions: `{json.dumps(card["captions"])}`
- Labels: {labels["source"]}
- VQ tokenizer, SHA-256 of its weights: `{card["vq_sha256"]}`

| | small below | large from |
| --- | --- | --- |
{limits}

| label | sequences |
| --- | --- |
{counts}

SHA-256 of every shard: `card.json`.
"""


def _numbers(text: str) -> tuple[float, float]:
    low, high = (float(part) for part in text.split(","))
    return low, high


def _labeller(arguments: Mapping[str, Any], device: torch.device) -> Labeller:
    known = KnownLabels()
    default = ESTIMATOR_THRESHOLDS if arguments["dem"] else known.thresholds
    thresholds = Thresholds(
        arguments["blur_thresholds"] or default.blur, arguments["noise_thresholds"] or default.noise
    )
    if not arguments["dem"]:
        return KnownLabels(thresholds)
    estimator = load_estimator(arguments["dem"], device=device)
    return EstimatedLabels(estimator, thresholds, enlarged=arguments["dem_enlarged"])


def _material(
    settings: Pretokenisation, arguments: Mapping[str, Any], device: torch.device
) -> tuple[Material, int]:
    """What the command line asks for, and how many shards that makes."""
    labels = _labeller(arguments, device)
    if not arguments["vocabulary"]:
        if arguments["gt"] or arguments["baked"] or arguments["captions"]:
            raise DataSetError(
                "folders and captions of your own need a --vocabulary to be written in"
            )
        return nano_material(settings, arguments["photos"], arguments["vq"], labels), NANO_SHARDS
    if bool(arguments["gt"]) == bool(arguments["baked"]) or not arguments["captions"]:
        raise DataSetError("a --vocabulary needs --captions, and either --gt or --baked")
    captions = read_captions(arguments["captions"])
    tokenizers = load_tokenizers(arguments["vocabulary"], device=device)
    pairs: PairSource
    if arguments["baked"]:
        pairs = BakedPairs(arguments["baked"])
        count, origin = len(pairs), {"baked": pairs.description}
        if (size := pairs.description["settings"]["size"]) != settings.native:
            raise DataSetError(f"the baked pairs have {size} pixels, --native is {settings.native}")
    else:
        files = photo_files(arguments["gt"])
        captions.check(files)
        crops = FolderCrops(files, settings.native, seed=settings.seed)
        pairs = MadePairs(crops, _pair_settings(settings))
        count, origin = len(files), {"photos": len(files), "list": list_hash(files)}
    return Material(pairs, labels, captions, tokenizers, origin), -(-count // settings.shard)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--photos", type=Path, default=Path("data/photos"), help="of `make data`")
    parser.add_argument("--vq", type=Path, default=Path("pure/weights/nano"))
    parser.add_argument("--out", type=Path, default=Path("data/sequences/train"))
    parser.add_argument("--shards", type=int, help=f"{NANO_SHARDS}, or each photograph once")
    full = parser.add_argument_group("other photographs and another vocabulary than PURE-nano's")
    full.add_argument("--vocabulary", type=Path, help="checkpoint folder with its VQ tokenizer")
    full.add_argument(
        "--gt", type=folder_argument, action="append", help="PATH or PATH:FIRST_N; repeatable"
    )
    full.add_argument("--baked", type=Path, help="folder of `python -m pure.pairs`")
    full.add_argument("--captions", type=Path, help="file or folder, see `pure.captions`")
    labels = parser.add_argument_group("degradation labels")
    labels.add_argument("--dem", type=Path, help="MM-RealSR's weights; else known parameters")
    labels.add_argument("--dem-enlarged", action="store_true", help="score the enlarged picture")
    labels.add_argument("--blur-thresholds", type=_numbers, help="LOW,HIGH")
    labels.add_argument("--noise-thresholds", type=_numbers, help="LOW,HIGH")
    parser.add_argument("--device", help="of the networks; by default a GPU, if there is one")
    add_rank_arguments(parser)
    defaults = asdict(Pretokenisation())
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    arguments = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    settings = Pretokenisation(**{name: arguments[name] for name in defaults})
    rank, ranks, gpus = arguments["rank"], arguments["ranks"], torch.cuda.device_count()
    device = torch.device(arguments["device"] or (f"cuda:{rank % gpus}" if gpus else "cpu"))
    try:
        material, shards = _material(settings, arguments, device)
    except (CaptionError, CheckpointError, DataSetError, EstimatorError, PairsError) as error:
        parser.error(str(error))
    shards = arguments["shards"] or shards
    out = arguments["out"]
    out.mkdir(parents=True, exist_ok=True)
    maker = Pretokeniser(settings, material)
    temporary = out.parent / f"names.{rank}.tmp"
    temporary.write_text(json.dumps(dict(material.tokenizers.names)))
    temporary.replace(out.parent / "names.json")
    for shard in range(rank, shards, ranks):
        maker.write(out, shard)
        log.info("shard %d of %d", shard + 1, shards)
    write_card(out, shards)


if __name__ == "__main__":
    main()
