"""Write a tiny random checkpoint in exactly the released format of `nonwhy/PURE`.

Same files, fields, key names, vocabulary and ids; two thin layers of noise instead of 7 billion
trained parameters. For tests and for trying a loader without 14 GB. The stale fields of the
release (bos 1, eos 2, Chameleon's own VQ) are there on purpose: a loader must not use them.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from pure.belief import INSTRUCTION, LEVELS
from pure.model import Transformer, TransformerConfig
from pure.vocab import (
    BOS,
    CONTROLS,
    END_TURN,
    EOS,
    PAD,
    RELEASED_SIZE,
    UNK,
    code_name,
    grid_name,
    released_ids,
)
from pure.vq import CONFIGS, VQConfig, VQModel

SHARDS = 3
SMALL_CODES = 64
SMALL_GRIDS = 32  # side tokens of the small vocabulary
# Whole words a label and a caption are made of; everything else is spelled out in bytes.
CAPTION = "The image features a photo of an old red house"
WORDS = (*INSTRUCTION.split(), *CAPTION.split())
LABEL_WORDS = ("blur", "noise", *LEVELS, *(level.capitalize() for level in LEVELS))
# Chameleon's own image tokenizer: in every config of the family, and wrong for PURE.
STALE_VQ = {
    "attn_resolutions": None,
    "attn_type": "vanilla",
    "base_channels": 128,
    "channel_multiplier": [1, 1, 2, 2, 4],
    "double_latent": False,
    "dropout": 0.0,
    "embed_dim": 256,
    "in_channels": 3,
    "initializer_range": 0.02,
    "latent_channels": 256,
    "model_type": "chameleon_vqgan",
    "num_embeddings": 8192,
    "num_res_blocks": 2,
    "resolution": 512,
}


@dataclass(frozen=True)
class TinyFormat:
    """What may differ between two tiny checkpoints.

    Attributes:
        model_parallel_size: rows of the QK-norm parameters.
        kv_heads: key-value heads of the 4 heads; 4 is the release's.
        small_vocab: the same names over few codes and ids, for speed; else all 73,728.
        native_pixels: written in a section of our own that the release does not have; None
            leaves it out, and with it the release's 512 pixels.
        text_limit: as `native_pixels`.
        hidden_size: width; a multiple of 8.
    """

    model_parallel_size: int = 1
    swin_norm: bool = False
    kv_heads: int = 4
    small_vocab: bool = False
    native_pixels: int | None = None
    text_limit: int | None = None
    hidden_size: int = 32

    def config(self, vocab_size: int) -> TransformerConfig:
        """The shape of the transformer."""
        return TransformerConfig(
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.hidden_size * 3 // 2,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=self.kv_heads,
            model_parallel_size=self.model_parallel_size,
            swin_norm=self.swin_norm,
            dropout=0.05,
        )


def text_pieces() -> tuple[list[str], list[tuple[str, str]]]:
    """Pieces of a byte-level tokenizer, and the merges that make the longer ones."""
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = []
    words = [word.strip(",.") for word in (*WORDS, *LABEL_WORDS)]
    for word in dict.fromkeys([*words, *(f"Ġ{word}" for word in words)]):
        for end in range(2, len(word) + 1):
            if word[:end] not in pieces:
                pieces.append(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    return pieces, merges


def vocabulary(*, small: bool) -> dict[str, int]:
    """Name to id: the released one, its text pieces made up, or one with the names we need."""
    pieces, _ = text_pieces()
    if small:
        names = [*CONTROLS, *(grid_name(n) for n in range(1, SMALL_GRIDS + 1))]
        names += [*(code_name(code) for code in range(SMALL_CODES)), *pieces]
        return {name: i for i, name in enumerate(names)}
    ids = released_ids()
    free = sorted(set(range(RELEASED_SIZE)) - set(ids.values()))
    pieces += [f"Ġpiece{i:05d}" for i in range(len(free) - len(pieces))]
    return ids | dict(zip(pieces, free, strict=True))


def tokenizer(names: Mapping[str, int]) -> Tokenizer:
    """A byte-level tokenizer; codes and controls are added tokens, as in the release."""
    pieces, merges = text_pieces()
    result = Tokenizer(models.BPE(vocab=dict(names), merges=merges))
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    result.decoder = decoders.ByteLevel()
    spelled = set(pieces)
    result.add_special_tokens(
        [
            AddedToken(name, normalized=False)
            for name in sorted(names, key=lambda name: names[name])
            if name not in spelled and not name.startswith("Ġ")
        ]
    )
    return result


def random_state(config: TransformerConfig, seed: int) -> dict[str, Tensor]:
    """Random weights by released key, in bfloat16, lively enough to be far from uniform."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in Transformer(config).state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key in sorted(shapes):
        noise = torch.randn(shapes[key], generator=generator) * 0.25
        if key.endswith("norm.weight"):
            noise += 1
        state[key] = noise.bfloat16()
    return state


def random_vq(config: VQConfig, seed: int) -> dict[str, Tensor]:
    """Random weights of a VQ tokenizer that uses many codes and decodes to visible contrast."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in VQModel(config).state_dict().items()}
    state = {}
    for key, shape in shapes.items():
        state[key] = torch.randn(shape, generator=generator)
        if key.endswith("bias"):
            state[key] *= 0.1
        elif len(shape) == 1:
            state[key] = 1 + 0.1 * state[key]
        elif key != "quantize.embedding.weight":
            state[key] *= float(shape[1:].numel()) ** -0.5
    return state


def write_vq(folder: Path, config: VQConfig, *, seed: int = 0) -> None:
    """Write `vq.safetensors`, the tokenizer with its configuration."""
    metadata = {"config": json.dumps(asdict(config))}
    save_file(random_vq(config, seed), folder / "vq.safetensors", metadata=metadata)


def write_released_vq(folder: Path, config: VQConfig, *, seed: int = 0) -> None:
    """Write `vq_ds8_c2i.pt`, the tokenizer as LlamaGen released it: no configuration inside."""
    state = random_vq(config, seed) | {"quantize.codebook_used": torch.zeros(65_536)}
    torch.save({"model": state}, folder / "vq_ds8_c2i.pt")


def _config_json(config: TransformerConfig, names: Mapping[str, int]) -> dict[str, Any]:
    return asdict(config) | {
        "_name_or_path": "starting_point",
        "architectures": ["ChameleonXLLMXForConditionalGeneration"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "mask_image_logits": False,
        "mlp_bias": False,
        "model_type": "chameleon",
        "pretraining_tp": 1,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.43.3",
        "use_cache": True,
        "vocabulary_map": dict(names),
        "vq_config": STALE_VQ,
        "z_loss_weight": 0.0,
    }


def _tokenizer_config(text: Tokenizer) -> dict[str, Any]:
    return {
        "added_tokens_decoder": {
            str(i): {
                "content": token.content,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for i, token in sorted(text.get_added_tokens_decoder().items())
        },
        "bos_token": BOS,
        "clean_up_tokenization_spaces": False,
        "eos_token": EOS,
        "model_max_length": 1_000_000_000_000_000_019_884_624_838_656,
        "pad_token": PAD,
        "sep_token": END_TURN,
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": UNK,
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_shards(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Spread tensors over `SHARDS` files, with the index that says which is where."""
    keys = list(state)
    weight_map: dict[str, str] = {}
    for shard in range(SHARDS):
        name = f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors"
        part = {key: state[key] for key in keys[shard::SHARDS]}
        save_file(part, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    total = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(folder / "model.safetensors.index.json", index)


def write(folder: Path, *, seed: int = 0, form: TinyFormat | None = None) -> None:
    """Write a tiny checkpoint, its small VQ tokenizer (`vq.safetensors`) included.

    Args:
        folder: where; made if missing.
        seed: of the weights.
        form: the shape; the release's with all its 73,728 tokens if not given.
    """
    form = form or TinyFormat()
    folder.mkdir(parents=True, exist_ok=True)
    names = vocabulary(small=form.small_vocab)
    config = form.config(len(names))
    content = _config_json(config, names)
    ours = {"native_pixels": form.native_pixels, "text_limit": form.text_limit}
    if ours := {key: value for key, value in ours.items() if value is not None}:
        content["pure"] = ours
    _write_json(folder / "config.json", content)
    generation = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2}
    _write_json(folder / "generation_config.json", generation | {"transformers_version": "4.43.3"})
    text = tokenizer(names)
    text.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(text))
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    special |= {"sep_token": END_TURN, "unk_token": UNK}
    _write_json(folder / "special_tokens_map.json", special)
    _write_shards(folder, random_state(config, seed))
    codes = SMALL_CODES if form.small_vocab else 16_384
    write_vq(folder, replace(CONFIGS["tiny"], codebook_size=codes), seed=seed)


def main() -> None:
    """Command line: `python -m tools.tiny_checkpoint OUT`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model-parallel-size", type=int, choices=(1, 2), default=1)
    parser.add_argument("--swin-norm", action="store_true")
    parser.add_argument("--kv-heads", type=int, choices=(1, 2, 4), default=4)
    parser.add_argument("--small-vocab", action="store_true")
    parser.add_argument("--native-pixels", type=int)
    parser.add_argument("--text-limit", type=int)
    arguments = vars(parser.parse_args())
    out, seed = arguments.pop("out"), arguments.pop("seed")
    write(out, seed=seed, form=TinyFormat(**arguments))


if __name__ == "__main__":
    main()
