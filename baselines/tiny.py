"""Small random checkpoints in exactly the released formats, to exercise a whole method in seconds.

Names of files and tensors, and what else the released files carry, are those a loader meets; sizes
and values are not. A folder made here is marked, and what comes of it says "random weights".
"""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor

from baselines.diffusion.image_attention import add_image_attention, released
from baselines.diffusion.pixel_attention import PixelAwareUNet, released_names
from baselines.diffusion.sources import RANDOM_MARK
from baselines.diffusion.stable import WEIGHTS_FILE
from baselines.diffusion.state import Network
from baselines.diffusion.tagger import TaggerConfig

# Colours and things, so that a prompt reads like one.
TAGS = (
    "bird",
    "blue",
    "branch",
    "cloud",
    "dog",
    "flower",
    "grass",
    "house",
    "red",
    "river",
    "sky",
    "stone",
    "tree",
)
TAGGER = TaggerConfig(
    image=96,
    embed=16,
    depths=(2, 2, 2, 2),
    heads=(2, 2, 4, 4),
    window=3,
    tokens=24,
    hidden=32,
    inner=64,
    tags=len(TAGS),
)
TEXT_WIDTH = 24
# Stable Diffusion 2's shape at a sixteenth of its width, for 128 pixels.
UNET: Mapping[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [16, 32, 32, 32],
    "layers_per_block": 2,
    "norm_num_groups": 8,
    "cross_attention_dim": TEXT_WIDTH,
    "attention_head_dim": [2, 4, 4, 4],
    "use_linear_projection": True,
}
# Stable Diffusion 1.5's shape; unequal widths show which skip connection is read where.
PASD_UNET: Mapping[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [16, 24, 32, 32],
    "layers_per_block": 2,
    "norm_num_groups": 8,
    "cross_attention_dim": TEXT_WIDTH,
    "attention_head_dim": 4,
}
CONDITION = (8, 16, 16, 24)  # widths of the ControlNet's reading of the photo
VAE: Mapping[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [8, 16, 16, 16],
    "layers_per_block": 2,
    "norm_num_groups": 4,
    "sample_size": 128,
    "scaling_factor": 0.18215,
}
SCHEDULE: Mapping[str, Any] = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.10.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
LORA_RANK = 4  # OSEDiff's
DAPE_RANK = 8


def random_state(shapes: Mapping[str, Iterable[int]], seed: int) -> dict[str, Tensor]:
    """Random tensors that keep activations near their size: nothing is zero, nothing explodes."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in shapes.items():
        value = torch.randn(tuple(shape), generator=generator)
        if key.endswith("bias"):
            value *= 0.1
        elif value.ndim == 1:
            value = 1 + 0.1 * value
        else:
            value *= float(value[0].numel()) ** -0.5
        state[key] = value
    return state


def write_vae(folder: Path, seed: int) -> None:
    """A VAE by the attention names of its time, before diffusers 0.15."""
    from diffusers import AutoencoderKL

    with _unfilled():
        network = AutoencoderKL.from_config(dict(VAE))
    state = random_state(_shapes(network), seed)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, name in old.items():
        for end in ("weight", "bias"):
            for half in ("encoder", "decoder"):
                stem = f"{half}.mid_block.attentions.0"
                state[f"{stem}.{name}.{end}"] = state.pop(f"{stem}.{new}.{end}")
    _write_network(folder, VAE, state, "AutoencoderKL")


def write_captioner(folder: Path, seed: int) -> None:
    """BLIP; whole words alone, and unknown letters for all others."""
    from transformers import BlipConfig, BlipForConditionalGeneration

    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    names = [*special, "a", "picture", "of", "with", "and", *TAGS]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    marks = {f"{name[1:-1].lower()}_token": name for name in special}
    _write_json(folder / "special_tokens_map.json", marks)
    settings = {"do_lower_case": True, "model_max_length": 512, "tokenizer_class": "BertTokenizer"}
    _write_json(folder / "tokenizer_config.json", marks | settings)

    text: dict[str, Any] = {
        "model_type": "blip_text_model",
        "vocab_size": len(names) + 2,  # the first one begins a caption; the second is not used
        "bos_token_id": len(names),
        "sep_token_id": special.index("[SEP]"),
        "eos_token_id": special.index("[SEP]"),
        "pad_token_id": special.index("[PAD]"),
        "hidden_size": 24,
        "encoder_hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "is_decoder": True,
    }
    vision: dict[str, Any] = {
        "model_type": "blip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 48,
        "patch_size": 16,
    }
    config = {"model_type": "blip", "text_config": text, "vision_config": vision}
    config |= {"image_text_hidden_size": 16, "projection_dim": 16}
    with _unfilled():
        shapes = _shapes(BlipForConditionalGeneration(BlipConfig.from_dict(config)))
    state = random_state(shapes, seed)
    words = "text_decoder.bert.embeddings.word_embeddings.weight"
    state[words] *= text["hidden_size"] ** 0.5  # of order one, or all words are alike
    said = "text_decoder.cls.predictions"
    state[f"{said}.bias"][text["sep_token_id"]] += 18  # or no caption comes to its end
    # tied: the same tensors under two names
    state[f"{said}.decoder.weight"] = state[words]
    state[f"{said}.decoder.bias"] = state[f"{said}.bias"]
    # with the positions transformers 4 kept among the tensors
    state["text_decoder.bert.embeddings.position_ids"] = torch.arange(64)[None]
    notes = {"architectures": ["BlipForConditionalGeneration"]}
    _write_json(folder / "config.json", notes | config)
    torch.save(state, folder / "pytorch_model.bin")


def write_text(base: Path, seed: int) -> None:
    """Tokenizer and text encoder; every byte is a word piece, nothing is merged."""
    from transformers import CLIPTextConfig, CLIPTextModel

    pieces = sorted(ByteLevel.alphabet())
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
    names = [*pieces, *(f"{piece}</w>" for piece in pieces), *special.values()]
    folder = base / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "vocab.json", {name: i for i, name in enumerate(names)})
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    special |= {"pad_token": "!", "unk_token": special["eos_token"]}
    _write_json(folder / "special_tokens_map.json", special)
    settings = {"do_lower_case": True, "errors": "replace", "add_prefix_space": False}
    settings |= {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    _write_json(folder / "tokenizer_config.json", special | settings)

    config: dict[str, Any] = {
        "vocab_size": len(names),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 2 * TEXT_WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 77,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-05,
        "bos_token_id": len(names) - 2,
        "eos_token_id": len(names) - 1,
        "pad_token_id": 1,
    }
    with _unfilled():
        shapes = _shapes(CLIPTextModel(CLIPTextConfig(**config)))
    # as transformers 4 wrote them, with the positions it kept among the tensors
    state = {f"text_model.{k.removeprefix('text_model.')}": shape for k, shape in shapes.items()}
    tensors = random_state(state, seed)
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    folder = base / "text_encoder"
    folder.mkdir(parents=True, exist_ok=True)
    notes = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"}
    _write_json(folder / "config.json", notes | config)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def write_base(folder: Path, seed: int, *, unet: bool) -> None:
    """A Stable Diffusion folder, with or without its U-Net."""
    write_vae(folder / "vae", seed)
    write_text(folder, seed + 1)
    (folder / "scheduler").mkdir(exist_ok=True)
    _write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULE)
    if unet:
        from diffusers import UNet2DConditionModel

        with _unfilled():
            shapes = _shapes(UNet2DConditionModel.from_config(dict(UNET)))
        state = random_state(shapes, seed + 2)
        _write_network(folder / "unet", UNET, state, "UNet2DConditionModel")


def ram_shapes(config: TaggerConfig) -> dict[str, tuple[int, ...]]:
    """What RAM's file holds of the tagger, by its names."""
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, out: int, of: int, *, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (out, of)
        if bias:
            shapes[f"{name}.bias"] = (out,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    shapes["visual_encoder.patch_embed.proj.weight"] = (config.embed, 3, 4, 4)
    shapes["visual_encoder.patch_embed.proj.bias"] = (config.embed,)
    norm("visual_encoder.patch_embed.norm", config.embed)
    width = config.embed
    for stage, (depth, heads) in enumerate(zip(config.depths, config.heads, strict=True)):
        for i in range(depth):
            block = f"visual_encoder.layers.{stage}.blocks.{i}"
            norm(f"{block}.norm1", width)
            table = f"{block}.attn.relative_position_bias_table"
            shapes[table] = ((2 * config.window - 1) ** 2, heads)
            linear(f"{block}.attn.qkv", 3 * width, width)
            linear(f"{block}.attn.proj", width, width)
            norm(f"{block}.norm2", width)
            linear(f"{block}.mlp.fc1", 4 * width, width)
            linear(f"{block}.mlp.fc2", width, 4 * width)
        if stage + 1 < len(config.depths):
            shrink = f"visual_encoder.layers.{stage}.downsample"
            norm(f"{shrink}.norm", 4 * width)
            linear(f"{shrink}.reduction", 2 * width, 4 * width, bias=False)
            width *= 2
    norm("visual_encoder.norm", width)
    linear("image_proj", config.tokens, width)
    shapes["label_embed"] = (config.tags, config.tokens)
    linear("wordvec_proj", config.hidden, config.tokens)
    hidden = config.hidden
    for i in range(config.layers):
        layer = f"tagging_head.encoder.layer.{i}"
        linear(f"{layer}.crossattention.self.query", hidden, hidden)
        linear(f"{layer}.crossattention.self.key", hidden, config.tokens)
        linear(f"{layer}.crossattention.self.value", hidden, config.tokens)
        linear(f"{layer}.crossattention.output.dense", hidden, hidden)
        norm(f"{layer}.crossattention.output.LayerNorm", hidden)
        linear(f"{layer}.intermediate.dense", config.inner, hidden)
        linear(f"{layer}.output.dense", hidden, config.inner)
        norm(f"{layer}.output.LayerNorm", hidden)
    linear("fc", 1, hidden)
    return shapes


def dape_shapes(config: TaggerConfig) -> dict[str, tuple[int, ...]]:
    """What DAPE's file holds, those of the captioning branch included."""
    shapes: dict[str, tuple[int, ...]] = {}

    def pair(name: str, out: int, of: int, groups: int = 1) -> None:
        shapes[f"{name}.lora_A"] = (groups * DAPE_RANK, of)
        shapes[f"{name}.lora_B"] = (groups * out, DAPE_RANK)

    for stage, depth in enumerate(config.depths):
        width = config.embed * 2**stage
        for i in range(depth):
            pair(f"visual_encoder.layers.{stage}.blocks.{i}.attn.qkv", width, width, groups=2)
    hidden = config.hidden
    for i in range(config.layers):
        for branch in ("tagging_head", "tag_encoder"):
            attention = f"{branch}.encoder.layer.{i}.crossattention.self"
            pair(f"{attention}.query", hidden, hidden)
            pair(f"{attention}.key", hidden, config.tokens)
        pair(f"tag_encoder.encoder.layer.{i}.attention.self.query", hidden, hidden)
        pair(f"text_decoder.bert.encoder.layer.{i}.attention.self.query", hidden, hidden)
    return shapes


def write_tagger(out: Path, seed: int) -> None:
    """RAM, its list and thresholds, and DAPE."""
    config = TAGGER
    state = random_state(ram_shapes(config), seed)
    # all of order one, or every tag is as likely as the next
    state["label_embed"] *= config.tokens**0.5
    # what else the file carries
    state["visual_encoder.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(9, 9)
    state["visual_encoder.layers.0.blocks.1.attn_mask"] = torch.zeros(64, 9, 9)
    state["tag_encoder.embeddings.word_embeddings.weight"] = torch.zeros(2, config.hidden)
    state["text_decoder.cls.predictions.bias"] = torch.zeros(2)
    (out / "ram").mkdir(parents=True, exist_ok=True)
    torch.save({"model": state}, out / "ram" / "ram_swin_large_14m.pth")
    thresholds = [("0.6", "0.7", "0.8")[i % 3] for i in range(len(TAGS))]
    lines = {"ram_tag_list.txt": TAGS, "ram_tag_list_threshold.txt": thresholds}
    for name, content in lines.items():
        (out / "ram" / name).write_text("\n".join(content) + "\n", encoding="utf-8")

    lora = random_state(dape_shapes(config), seed + 1)
    for key in lora:
        # training never reached this branch
        if key.startswith("tag_encoder") and key.endswith("lora_B"):
            lora[key].zero_()
    (out / "dape").mkdir(exist_ok=True)
    torch.save(lora, out / "dape" / "DAPE.pth")


def write_osediff(out: Path, seed: int = 0) -> None:
    """Everything OSEDiff needs."""
    base = out / "stable-diffusion-2-1-base"
    write_base(base, seed, unet=True)
    write_tagger(out, seed + 10)
    (out / "osediff").mkdir(exist_ok=True)
    torch.save(osediff_checkpoint(seed + 20), out / "osediff" / "osediff.pkl")


def osediff_checkpoint(seed: int) -> dict[str, Any]:
    """OSEDiff's file: ranks, names of the changed modules, tensors."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with _unfilled():
        unet = UNet2DConditionModel.from_config(dict(UNET))
        vae = AutoencoderKL.from_config(dict(VAE))
    convolutions = ("conv", "conv1", "conv2", "conv_in", "conv_out", "conv_shortcut")
    in_both = ("to_q", "to_k", "to_v", "to_out.0", *convolutions)
    ends = (*in_both, "proj_in", "proj_out", "ff.net.2", "ff.net.0.proj")
    groups: dict[str, list[str]] = {"encoder": [], "decoder": [], "others": []}
    for name, _ in unet.named_modules():
        if name.endswith(tuple(f".{end}" for end in ends)) or name in ends:
            if name.startswith("down_blocks") or name == "conv_in":
                groups["encoder"].append(name)
            elif name.startswith("up_blocks") or name == "conv_out":
                groups["decoder"].append(name)
            else:
                groups["others"].append(name)
    in_vae = [
        name
        for name, _ in vae.named_modules()
        if name == "quant_conv"
        or (name.startswith("encoder.") and name.endswith(tuple(f".{end}" for end in in_both)))
    ]
    shapes = _shapes(unet)
    unet_tensors = {
        key: shape
        for group, names in groups.items()
        for key, shape in _lora_shapes(shapes, names, f"default_{group}").items()
    }
    unet_tensors |= {f"conv_in.base_layer.{e}": shapes[f"conv_in.{e}"] for e in ("weight", "bias")}
    vae_tensors = _lora_shapes(_shapes(vae), in_vae, "default_encoder")
    return {
        "vae_lora_encoder_modules": [name for name in in_vae for _ in range(2)],
        **{f"unet_lora_{group}_modules": names for group, names in groups.items()},
        "rank_unet": LORA_RANK,
        "rank_vae": LORA_RANK,
        "state_dict_unet": random_state(unet_tensors, seed),
        "state_dict_vae": random_state(vae_tensors, seed + 1),
    }


def _lora_shapes(
    shapes: Mapping[str, tuple[int, ...]], modules: Iterable[str], adapter: str
) -> dict[str, tuple[int, ...]]:
    result = {}
    for module in modules:
        out, *rest = shapes[f"{module}.weight"]
        result[f"{module}.lora_A.{adapter}.weight"] = (LORA_RANK, *rest)
        ones = (1,) * (len(rest) - 1)
        result[f"{module}.lora_B.{adapter}.weight"] = (out, LORA_RANK, *ones)
    return result


def write_seesr(out: Path, seed: int = 0) -> None:
    """Everything SeeSR needs."""
    from diffusers import ControlNetModel, UNet2DConditionModel

    write_base(out / "stable-diffusion-2-base", seed, unet=False)
    write_tagger(out, seed + 10)
    control = {k: v for k, v in UNET.items() if k not in ("sample_size", "out_channels")}
    control["conditioning_embedding_out_channels"] = list(CONDITION)
    for name, kind, config, number in (
        ("unet", UNet2DConditionModel, dict(UNET), 30),
        ("controlnet", ControlNetModel, control, 31),
    ):
        with _unfilled():
            network = kind.from_config(config)
            add_image_attention(network, TAGGER.tokens)
        state = random_state(_shapes(network), seed + number)
        config |= {"use_image_cross_attention": True}
        _write_network(out / "seesr" / name, config, released(state), kind.__name__)


def write_pasd(out: Path, seed: int = 0) -> None:
    """Everything PASD needs."""
    from diffusers import ControlNetModel, UNet2DConditionModel

    write_base(out / "stable-diffusion-v1-5", seed, unet=False)
    write_captioner(out / "blip", seed + 10)
    with _unfilled():
        unet = PixelAwareUNet(UNet2DConditionModel.from_config(dict(PASD_UNET)))
    state = released_names(random_state(_shapes(unet), seed + 20))
    # A prediction that knows nothing is made 9 / 0.07 times larger by guidance and the first step:
    # quieter, or rounding errors grow to a picture of their own.
    state["conv_out.weight"] *= 0.05
    _write_network(out / "pasd" / "unet", PASD_UNET, state, "UNet2DConditionModel")

    control = {k: v for k, v in PASD_UNET.items() if k not in ("sample_size", "out_channels")}
    control["conditioning_embedding_out_channels"] = list(CONDITION)
    with _unfilled():
        shapes = _shapes(ControlNetModel.from_config(control))
    for i, width in enumerate(CONDITION[1:]):
        # of training alone
        to_rgb = f"controlnet_cond_embedding.to_rgbs.{i}"
        shapes |= {f"{to_rgb}.weight": (3, width, 3, 3), f"{to_rgb}.bias": (3,)}
    control |= {"return_rgbs": True, "use_rrdb": False}
    state = random_state(shapes, seed + 21)
    _write_network(out / "pasd" / "controlnet", control, state, "ControlNetModel")


WRITERS: Mapping[str, Callable[[Path, int], None]] = {
    "osediff": write_osediff,
    "seesr": write_seesr,
    "pasd": write_pasd,
}


def write(method: str, out: Path, *, seed: int = 0) -> None:
    """Write the weights folder of one method, beside those of others if there are any.

    Raises:
        ValueError: there is no such method.
    """
    if method not in WRITERS:
        raise ValueError(f"no tiny checkpoint for {method!r}; there are {', '.join(WRITERS)}")
    out.mkdir(parents=True, exist_ok=True)
    WRITERS[method](out, seed)
    (out / RANDOM_MARK).write_text("Random weights, for testing.\n", encoding="utf-8")


def _shapes(network: Network) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


def _unfilled() -> torch.device:
    """Networks are built here for their shapes alone."""
    return torch.device("meta")


def _write_network(
    folder: Path, config: Mapping[str, Any], state: dict[str, Tensor], kind: str
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    notes = {"_class_name": kind, "_diffusers_version": "0.10.0.dev0"}
    _write_json(folder / "config.json", notes | dict(config))
    state = {key: value.contiguous() for key, value in state.items()}
    save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Command line: `python -m baselines.tiny METHOD OUT`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method", choices=[*WRITERS])
    parser.add_argument("out", type=Path, help="a weights folder, for WEIGHTS_DIR")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write(arguments.method, arguments.out, seed=arguments.seed)


if __name__ == "__main__":
    main()
