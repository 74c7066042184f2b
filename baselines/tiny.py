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

from baselines.diffusion.feature_wrap import LEVELS, Fusion
from baselines.diffusion.image_attention import add_image_attention, released
from baselines.diffusion.pixel_attention import PixelAwareUNet, released_names
from baselines.diffusion.sources import RANDOM_MARK
from baselines.diffusion.stable import WEIGHTS_FILE
from baselines.diffusion.state import Network
from baselines.diffusion.tagger import TaggerConfig
from baselines.rrdb import RRDBNet

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
# Its normalisations have 32 groups whatever the width. With a channel each they would take out what
# the timestep adds, so where there is time there are more.
STABLESR: Mapping[str, Any] = {
    "unet": {
        "sample_size": 16,
        "block_out_channels": [64, 64, 96, 96],
        "attention_head_dim": [4, 4, 6, 6],
        "cross_attention_dim": TEXT_WIDTH,
        "use_linear_projection": True,
    },
    "encoder": {"in_channels": 4, "widths": [64, 64, 96, 96], "features": 32},
    "vae": {
        "block_out_channels": [32, 32, 64, 64],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 1,
        "scaling_factor": 0.18215,
    },
    "text": {
        "vocab_size": 64,
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 2 * TEXT_WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "hidden_act": "gelu",
        "bos_token_id": 62,
        "eos_token_id": 63,
        "pad_token_id": 0,
    },
}
LORA_RANK = 4  # OSEDiff's
DAPE_RANK = 8


def random_state(shapes: Mapping[str, Iterable[int]], seed: int) -> dict[str, Tensor]:
    """Random tensors that keep activations near their size: nothing is zero, nothing explodes."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in shapes.items():
        value = torch.randn(tuple(shape), generator=generator)
        if value.ndim == 0:
            pass
        elif key.endswith("bias"):
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
    config: dict[str, Any] = {"model_type": "blip", "text_config": text, "vision_config": vision}
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


def write_stablesr(out: Path, seed: int = 0) -> None:
    """Both checkpoints of StableSR, and beside them the sizes of their networks."""
    folder = out / "stablesr"
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "sizes.json", STABLESR)
    unet = ldm_unet_shapes(STABLESR["unet"], modulation=STABLESR["encoder"]["features"])
    vae = ldm_vae_shapes(STABLESR["vae"])
    shapes: dict[str, tuple[int, ...]] = {}
    for prefix, part in (
        ("model.diffusion_model.", unet),
        ("structcond_stage_model.", structure_shapes(STABLESR["encoder"])),
        ("first_stage_model.", vae),
        ("cond_stage_model.model.", openclip_shapes(STABLESR["text"])),
    ):
        shapes |= {prefix + key: shape for key, shape in part.items()}
    state = random_state(shapes, seed + 40)
    # what else the file carries
    state["betas"] = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    state["alphas_cumprod"] = (1 - state["betas"]).cumprod(0)
    torch.save(
        {"epoch": 1, "global_step": 16_500, "state_dict": state},
        folder / "stablesr_000117.ckpt",
    )
    # the VAE of the first file is kept, as training kept it
    state = {key: state[f"first_stage_model.{key}"] for key in vae}
    state |= random_state(fusion_shapes(STABLESR["vae"]), seed + 41)
    state["loss.logvar"] = torch.zeros(())
    state["loss.perceptual_loss.lin0.model.1.weight"] = torch.zeros(1, 4, 1, 1)
    state["loss.discriminator.main.0.bias"] = torch.zeros(4)
    torch.save({"epoch": 11, "state_dict": state}, folder / "vqgan_cfw_00011.ckpt")


def ldm_unet_shapes(
    config: Mapping[str, Any], *, modulation: int | None = None, control: int | None = None
) -> dict[str, tuple[int, ...]]:
    """What a checkpoint of the original code holds of a U-Net, by its names.

    Args:
        config: of diffusers' U-Net.
        modulation: channels of the features each residual block sees, in StableSR's.
        control: channels of the condition, for a ControlNet that sees one beside the latents.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    widths, context = config["block_out_channels"], config["cross_attention_dim"]
    first, layers = widths[0], 2

    def both(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, (shape[0],)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    def resnet(name: str, of: int, out: int) -> None:
        _ldm_resnet(shapes, name, of, out, 4 * first)
        if modulation is not None:
            norm(f"{name}.spade.param_free_norm", out)
            both(f"{name}.spade.mlp_shared.0", 128, modulation, 3, 3)
            both(f"{name}.spade.mlp_gamma", out, 128, 3, 3)
            both(f"{name}.spade.mlp_beta", out, 128, 3, 3)

    def transformer(name: str, width: int) -> None:
        norm(f"{name}.norm", width)
        both(f"{name}.proj_in", width, width)
        both(f"{name}.proj_out", width, width)
        block = f"{name}.transformer_blocks.0"
        for i, of in ((1, width), (2, context)):
            shapes[f"{block}.attn{i}.to_q.weight"] = (width, width)
            shapes[f"{block}.attn{i}.to_k.weight"] = (width, of)
            shapes[f"{block}.attn{i}.to_v.weight"] = (width, of)
            both(f"{block}.attn{i}.to_out.0", width, width)
        both(f"{block}.ff.net.0.proj", 8 * width, width)
        both(f"{block}.ff.net.2", width, 4 * width)
        for i in (1, 2, 3):
            norm(f"{block}.norm{i}", width)

    both("time_embed.0", 4 * first, first)
    both("time_embed.2", 4 * first, 4 * first)
    both("input_blocks.0.0", first, 4 + (control or 0), 3, 3)
    width, skips = first, [first]
    for level, out in enumerate(widths):
        for _ in range(layers):
            block = f"input_blocks.{len(skips)}"
            resnet(f"{block}.0", width, out)
            if level + 1 < len(widths):
                transformer(f"{block}.1", out)
            width = out
            skips.append(width)
        if level + 1 < len(widths):
            both(f"input_blocks.{len(skips)}.0.op", width, width, 3, 3)
            skips.append(width)
    resnet("middle_block.0", width, width)
    transformer("middle_block.1", width)
    resnet("middle_block.2", width, width)
    if control is not None:
        for i, channels in enumerate(skips):
            both(f"zero_convs.{i}.0", channels, channels, 1, 1)
        both("middle_block_out.0", width, width, 1, 1)
        return shapes
    for i in range(len(widths) * (layers + 1)):
        level = len(widths) - 1 - i // (layers + 1)
        block, out = f"output_blocks.{i}", widths[level]
        resnet(f"{block}.0", width + skips.pop(), out)
        width, last = out, i % (layers + 1) == layers
        if level + 1 < len(widths):
            transformer(f"{block}.1", width)
        if last and level > 0:
            both(f"{block}.{1 if level + 1 == len(widths) else 2}.conv", width, width, 3, 3)
    norm("out.0", width)
    both("out.2", 4, width, 3, 3)
    return shapes


def _ldm_resnet(
    shapes: dict[str, tuple[int, ...]], name: str, of: int, out: int, time: int
) -> None:
    """Add a residual block's tensors by the names of guided diffusion."""
    for layer, shape in (
        ("in_layers.0", (of,)),
        ("in_layers.2", (out, of, 3, 3)),
        ("emb_layers.1", (out, time)),
        ("out_layers.0", (out,)),
        ("out_layers.3", (out, out, 3, 3)),
        *([] if of == out else [("skip_connection", (out, of, 1, 1))]),
    ):
        shapes[f"{name}.{layer}.weight"], shapes[f"{name}.{layer}.bias"] = shape, shape[:1]


def structure_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """What StableSR's file holds of its time-aware encoder, by its names."""
    shapes: dict[str, tuple[int, ...]] = {}
    widths = config["widths"]
    first = widths[0]

    def both(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, (shape[0],)

    def attention(name: str, width: int) -> None:
        shapes[f"{name}.norm.weight"] = shapes[f"{name}.norm.bias"] = (width,)
        both(f"{name}.qkv", 3 * width, width, 1)
        both(f"{name}.proj_out", width, width, 1)

    both("time_embed.0", 4 * first, first)
    both("time_embed.2", 4 * first, 4 * first)
    both("input_blocks.0.0", first, config["in_channels"], 3, 3)
    width, block = first, 1
    for level, out in enumerate(widths):
        for _ in range(2):
            _ldm_resnet(shapes, f"input_blocks.{block}.0", width, out, 4 * first)
            if level + 1 < len(widths):
                attention(f"input_blocks.{block}.1", out)
            width, block = out, block + 1
        if level + 1 < len(widths):
            both(f"input_blocks.{block}.0.op", width, width, 3, 3)
            block += 1
    for i in (0, 2):
        _ldm_resnet(shapes, f"middle_block.{i}", width, width, 4 * first)
    attention("middle_block.1", width)
    for i, of in enumerate(widths):
        _ldm_resnet(shapes, f"fea_tran.{i}", of, config["features"], 4 * first)
    return shapes


def ldm_vae_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """What a checkpoint of the original code holds of a VAE, by its names."""
    shapes: dict[str, tuple[int, ...]] = {}
    widths, layers = config["block_out_channels"], config["layers_per_block"]
    first, last = widths[0], widths[-1]

    def both(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, (shape[0],)

    def resnet(name: str, of: int, out: int) -> None:
        for i, channels in ((1, of), (2, out)):
            shapes[f"{name}.norm{i}.weight"] = shapes[f"{name}.norm{i}.bias"] = (channels,)
            both(f"{name}.conv{i}", out, channels, 3, 3)
        if of != out:
            both(f"{name}.nin_shortcut", out, of, 1, 1)

    def rest(half: str, width: int, out: int) -> None:
        resnet(f"{half}.mid.block_1", last, last)
        resnet(f"{half}.mid.block_2", last, last)
        shapes[f"{half}.mid.attn_1.norm.weight"] = shapes[f"{half}.mid.attn_1.norm.bias"] = (last,)
        for name in ("q", "k", "v", "proj_out"):
            both(f"{half}.mid.attn_1.{name}", last, last, 1, 1)
        shapes[f"{half}.norm_out.weight"] = shapes[f"{half}.norm_out.bias"] = (width,)
        both(f"{half}.conv_out", out, width, 3, 3)

    both("encoder.conv_in", first, 3, 3, 3)
    width = first
    for level, out in enumerate(widths):
        for i in range(layers):
            resnet(f"encoder.down.{level}.block.{i}", width, out)
            width = out
        if level + 1 < len(widths):
            both(f"encoder.down.{level}.downsample.conv", width, width, 3, 3)
    rest("encoder", last, 8)
    both("decoder.conv_in", last, 4, 3, 3)
    width = last
    for level in reversed(range(len(widths))):
        for i in range(layers + 1):
            resnet(f"decoder.up.{level}.block.{i}", width, widths[level])
            width = widths[level]
        if level > 0:
            both(f"decoder.up.{level}.upsample.conv", width, width, 3, 3)
    rest("decoder", first, 3)
    both("quant_conv", 8, 8, 1, 1)
    both("post_quant_conv", 4, 4, 1, 1)
    return shapes


def fusion_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """What StableSR's second file holds beside a VAE, by its names."""
    shapes: dict[str, tuple[int, ...]] = {}
    for level in LEVELS:
        with _unfilled():
            network = Fusion(config["block_out_channels"][level])
        shapes |= {f"decoder.fusion_layer_{level}.{k}": v for k, v in _shapes(network).items()}
    return shapes


def openclip_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """What a checkpoint of the original code holds of OpenCLIP's text tower, by its names."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (77, width),
        "text_projection": (width, width),
        "logit_scale": (),
        "token_embedding.weight": (config["vocab_size"], width),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
    }
    for i in range(config["num_hidden_layers"] + 1):  # the last is not run
        layer = f"transformer.resblocks.{i}"
        for name in ("ln_1", "ln_2"):
            shapes[f"{layer}.{name}.weight"] = shapes[f"{layer}.{name}.bias"] = (width,)
        shapes[f"{layer}.attn.in_proj_weight"] = (3 * width, width)
        shapes[f"{layer}.attn.in_proj_bias"] = (3 * width,)
        for name, out, of in (
            ("attn.out_proj", width, width),
            ("mlp.c_fc", inner, width),
            ("mlp.c_proj", width, inner),
        ):
            shapes[f"{layer}.{name}.weight"] = (out, of)
            shapes[f"{layer}.{name}.bias"] = (out,)
    return shapes


def write_diffbir(out: Path, seed: int = 0) -> None:
    """Everything DiffBIR needs."""
    write_base(out / "stable-diffusion-2-1-base", seed, unet=True)
    control = random_state(ldm_unet_shapes(UNET, control=4), seed + 50)
    (out / "diffbir").mkdir(parents=True, exist_ok=True)
    torch.save(control, out / "diffbir" / "v2.pth")

    with _unfilled():
        network = RRDBNet(blocks=1)
    cleaner = random_state(_shapes(network), seed + 51)
    cleaner["conv_last.bias"] += 0.5  # about the range of pictures
    (out / "bsrnet").mkdir(exist_ok=True)
    old = {"conv_body": "trunk_conv", "conv_hr": "HRconv", "conv_up": "upconv"}
    old |= {"body.": "RRDB_trunk.", "rdb": "RDB"}
    renamed = {}
    for key, value in cleaner.items():
        name = key
        for new, first in old.items():
            name = name.replace(new, first)
        renamed[name] = value
    torch.save(renamed, out / "bsrnet" / "BSRNet.pth")


WRITERS: Mapping[str, Callable[[Path, int], None]] = {
    "osediff": write_osediff,
    "seesr": write_seesr,
    "pasd": write_pasd,
    "stablesr": write_stablesr,
    "diffbir": write_diffbir,
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
    """Command line: `python -m baselines.tiny METHOD OUT`, or `all` for every method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method", choices=["all", *WRITERS])
    parser.add_argument("out", type=Path, help="a weights folder, for WEIGHTS_DIR")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for method in WRITERS if arguments.method == "all" else (arguments.method,):
        write(method, arguments.out, seed=arguments.seed)


if __name__ == "__main__":
    main()
