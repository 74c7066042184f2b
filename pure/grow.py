"""Grow Lumina-mGPT's vocabulary to PURE's: 65,536 tokens and 8,192 more image codes.

PURE was fine-tuned from Lumina-mGPT-7B, whose image tokenizer has 8,192 codes; its own has 16,384.
This writes the starting point, a folder `pure.checkpoint` loads, one weight file after the other:

    python -m pure.grow Lumina-mGPT-7B-768 grown --vq vq_ds8_c2i.pt

How the authors filled the new rows is not published. Here a new row of the embedding is drawn
from a normal distribution with the mean and spread, channel by channel, of the old codes' rows, so
that it is as large as what the first layer knows and no two are alike. The head's rows of all
codes, old ones too, are zero: the published training script does this to a model it starts from,
and the old codes are another tokenizer's, so what the head knew of them does not hold.
"""

import argparse
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pure.checkpoint import (
    IGNORED_PREFIXES,
    INDEX,
    VQ_FILE,
    VQ_SAFETENSORS,
    CheckpointError,
    read_names,
    transformer_config,
    weight_files,
)
from pure.vocab import RELEASED_CODES, RELEASED_SIZE, Vocab, code_of, released_ids

log = logging.getLogger(__name__)

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def new_codes() -> dict[str, int]:
    """Name to id of the image codes PURE adds."""
    return {
        name: i
        for name, i in released_ids().items()
        if (code := code_of(name)) is not None and code >= RELEASED_CODES // 2
    }


def grown_embedding(weight: Tensor, codes: Tensor, rows: int, *, seed: int) -> Tensor:
    """`weight` (V, D) with drawn rows after it, `rows` in all.

    Args:
        weight: of any floating type, which is kept.
        codes: ids (K,) whose rows' mean and standard deviation new ones are drawn with.
        rows: of the result.
        seed: of the draw.
    """
    known = weight[codes].float()
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows - len(weight), weight.shape[1], generator=generator)
    drawn = known.mean(0) + known.std(0) * noise
    return torch.cat([weight, drawn.to(weight.dtype)])


def grown_head(weight: Tensor, codes: Tensor, rows: int) -> Tensor:
    """`weight` (V, D) with zero rows after it, `rows` in all, and those of `codes` zero, too."""
    result = torch.zeros(rows, weight.shape[1], dtype=weight.dtype)
    result[: len(weight)] = weight
    result[codes] = 0
    return result


def grow(source: Path, out: Path, *, vq: Path | None = None, seed: int = 0) -> None:
    """Write a grown copy of a checkpoint folder; files that are there already are kept.

    Takes the memory of one weight file and its copy. Chameleon's own VQ encoder is left out.

    Args:
        source: folder of Lumina-mGPT's layout: config.json, tokenizer.json, safetensors.
        out: the new folder.
        vq: the VQ tokenizer that goes with it, LlamaGen's `vq_ds8_c2i.pt`.
        seed: of the new rows.

    Raises:
        CheckpointError: the folder is not complete, or not of the size that is grown.
    """
    added = new_codes()
    old = RELEASED_SIZE - len(added)
    names, config = read_names(source), _config(source)
    if (tokens := transformer_config(config).vocab_size) != old:
        raise CheckpointError(f"{source} has {tokens} tokens, not the {old} that are grown")
    if clash := sorted(added.keys() & names.keys()):
        raise CheckpointError(f"{source} already has {clash[0]}")
    codes = torch.tensor(Vocab.from_names(names, old).codes)
    out.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    size = 0
    for path in weight_files(source):
        size += _grow_file(path, out / path.name, codes, weight_map, seed)
        log.info("%s", path.name)
    if missing := {EMBEDDING, HEAD} - weight_map.keys():
        raise CheckpointError(f"{source} lacks {', '.join(sorted(missing))}")
    if (source / INDEX).exists():
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
        _write_json(out / INDEX, index)
    _grow_texts(source, out, names, added)
    if vq is not None:
        shutil.copyfile(vq, out / (VQ_SAFETENSORS if vq.suffix == ".safetensors" else VQ_FILE))


def _config(folder: Path) -> dict[str, Any]:
    """The configuration, with image codes allowed: a model of text may forbid them."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config | {"mask_image_logits": False}


def _grow_file(
    path: Path, target: Path, codes: Tensor, weight_map: dict[str, str], seed: int
) -> int:
    """One weight file; notes its tensors in `weight_map` and gives their bytes."""
    if not target.exists():
        state = {}
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            for name in file.keys():  # noqa: SIM118 - not a dict, it has no iterator
                if name.startswith(IGNORED_PREFIXES):
                    continue
                tensor = file.get_tensor(name)
                if name == EMBEDDING:
                    tensor = grown_embedding(tensor, codes, RELEASED_SIZE, seed=seed)
                elif name == HEAD:
                    tensor = grown_head(tensor, codes, RELEASED_SIZE)
                state[name] = tensor
        temporary = target.with_suffix(".tmp")
        save_file(state, temporary, metadata=metadata)
        temporary.replace(target)
    size = 0
    with safe_open(target, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - as above
            tensor = file.get_tensor(name)
            size += tensor.numel() * tensor.element_size()
            weight_map[name] = target.name
    return size


def _grow_texts(
    source: Path, out: Path, names: Mapping[str, int], added: Mapping[str, int]
) -> None:
    """The JSON files: the new names wherever the old ones are listed."""
    for path in source.glob("*.json"):
        if path.name != INDEX:
            shutil.copyfile(path, out / path.name)
    grown = {"vocab_size": RELEASED_SIZE, "vocabulary_map": {**names, **added}}
    _write_json(out / "config.json", _config(source) | grown)
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"] |= added
    tokenizer["added_tokens"] += [{"id": i, **_token(name)} for name, i in added.items()]
    _write_json(out / "tokenizer.json", tokenizer)
    if (source / "tokenizer_config.json").exists():
        settings = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
        listed = settings.setdefault("added_tokens_decoder", {})
        listed |= {str(i): _token(name) for name, i in added.items()}
        _write_json(out / "tokenizer_config.json", settings)


def _token(name: str) -> dict[str, Any]:
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    return {"content": name, "special": True, **flags}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", type=Path, help="folder of Lumina-mGPT-7B")
    parser.add_argument("out", type=Path)
    parser.add_argument("--vq", type=Path, help="LlamaGen's vq_ds8_c2i.pt, copied beside it")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        grow(arguments.source, arguments.out, vq=arguments.vq, seed=arguments.seed)
    except CheckpointError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
