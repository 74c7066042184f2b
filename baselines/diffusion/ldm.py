"""Names of the original Stable Diffusion code to those of diffusers and transformers.

Checkpoints trained with CompVis' and Stability's code number the blocks of a U-Net through and keep
attention in one tensor. What has no counterpart keeps its name, so that `state.load_strict` names
it: nothing is dropped here. The names are facts of both code bases.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from baselines.base import MethodUnavailableError

LAYERS = 2  # residual blocks of a level, of every Stable Diffusion U-Net
LEVELS = 4  # of U-Net and VAE

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_UNET = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "middle_block_out.0": "controlnet_mid_block",
}
_VAE = {
    "mid.block_1": "mid_block.resnets.0",
    "mid.block_2": "mid_block.resnets.1",
    "mid.attn_1": "mid_block.attentions.0",
    "norm_out": "conv_norm_out",
}
_VAE_ATTENTION = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}
_TEXT = {
    "token_embedding": "embeddings.token_embedding",
    "ln_final": "final_layer_norm",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, by the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def unet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a U-Net, its encoding half or a ControlNet, by diffusers' names."""
    return {_unet_name(key): value for key, value in state.items()}


def vae(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of an AutoencoderKL by diffusers' names; attention becomes linear, as it is there."""
    renamed = {}
    for key, value in state.items():
        name = _vae_name(key)
        if ".attentions.0.to_" in name and name.endswith(".weight"):
            value = value.flatten(1)  # (C, C, 1, 1) to (C, C)
        renamed[name] = value
    return renamed


def split_qkv(state: Mapping[str, Tensor], heads: int) -> dict[str, Tensor]:
    """Attention without a prompt, as guided diffusion has it, by diffusers' names; the rest as is.

    One convolution makes queries, keys and values, head by head.

    Args:
        state: where attention is `….attentions.N.{norm,qkv,proj_out}`.
        heads: of every attention.
    """
    renamed = {}
    for key, value in state.items():
        match = re.fullmatch(r"(.+\.attentions\.\d+)\.(norm|qkv|proj_out)\.(weight|bias)", key)
        if match is None:
            renamed[key] = value
            continue
        stem, part, end = match.groups()
        if end == "weight" and value.ndim > 1:
            value = value.flatten(1)  # (out, C, 1) to (out, C)
        if part == "norm":
            renamed[f"{stem}.group_norm.{end}"] = value
        elif part == "proj_out":
            renamed[f"{stem}.to_out.0.{end}"] = value
        else:
            per_head = value.unflatten(0, (heads, 3, -1))  # (heads, 3, C / heads, …)
            for i, name in enumerate(("to_q", "to_k", "to_v")):
                renamed[f"{stem}.{name}.{end}"] = per_head[:, i].flatten(0, 1)
    return renamed


def text(state: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Tensors of OpenCLIP's text tower by the names of transformers' CLIP.

    Left out is what Stable Diffusion 2 does not run: layers from number `layers` on, the projection
    to the space of pictures, its temperature, and the mask, which follows from the length.
    """
    renamed = {}
    for key, value in state.items():
        if key in ("text_projection", "logit_scale", "attn_mask"):
            continue
        if key == "positional_embedding":
            renamed["embeddings.position_embedding.weight"] = value
            continue
        match = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", key)
        if match is None:
            renamed[_renamed(key, _TEXT)] = value
            continue
        layer, rest = int(match[1]), match[2]
        if layer >= layers:
            continue
        stem = f"encoder.layers.{layer}"
        if joint := re.fullmatch(r"attn\.in_proj_(weight|bias)", rest):
            names = ("q_proj", "k_proj", "v_proj")
            for name, part in zip(names, value.chunk(3), strict=True):
                renamed[f"{stem}.self_attn.{name}.{joint[1]}"] = part
        else:
            renamed[f"{stem}.{_renamed(rest, _TEXT)}"] = value
    return renamed


def plain(content: Mapping[str, object], what: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint that may wrap them and may have been saved in parallel.

    Raises:
        MethodUnavailableError: there are no tensors in it.
    """
    inner = content.get("state_dict", content)
    if not isinstance(inner, Mapping) or not any(isinstance(v, Tensor) for v in inner.values()):
        raise MethodUnavailableError(f"{what} holds no tensors.")
    return {k.removeprefix("module."): v for k, v in inner.items() if isinstance(v, Tensor)}


def _unet_name(key: str) -> str:
    if match := re.fullmatch(r"zero_convs\.(\d+)\.0\.(.+)", key):
        return f"controlnet_down_blocks.{match[1]}.{match[2]}"
    if match := re.fullmatch(r"input_blocks\.([1-9]\d*)\.(\d)\.(.+)", key):
        block, layer = divmod(int(match[1]) - 1, LAYERS + 1)
        stem, rest = f"down_blocks.{block}", match[3]
        if rest.startswith("op."):
            return f"{stem}.downsamplers.0.conv.{rest.removeprefix('op.')}"
    elif match := re.fullmatch(r"output_blocks\.(\d+)\.(\d)\.(.+)", key):
        block, layer = divmod(int(match[1]), LAYERS + 1)
        stem, rest = f"up_blocks.{block}", match[3]
        if rest.startswith("conv."):
            return f"{stem}.upsamplers.0.{rest}"
    else:
        return _resnet_name(_renamed(key, _UNET))
    kind = "resnets" if match[2] == "0" else "attentions"
    return _resnet_name(f"{stem}.{kind}.{layer}.{rest}")


def _resnet_name(name: str) -> str:
    for old, new in _RESNET.items():
        name = name.replace(f".{old}.", f".{new}.")
    return name


def _vae_name(key: str) -> str:
    match = re.fullmatch(r"(encoder|decoder)\.(.+)", key)
    if match is None:
        return key  # quant_conv and post_quant_conv
    half, rest = match.groups()
    if block := re.fullmatch(r"(down|up)\.(\d)\.block\.(\d)\.(.+)", rest):
        level = int(block[2]) if block[1] == "down" else LEVELS - 1 - int(block[2])
        inner = block[4].replace("nin_shortcut", "conv_shortcut")
        return f"{half}.{block[1]}_blocks.{level}.resnets.{block[3]}.{inner}"
    if sampler := re.fullmatch(r"(down|up)\.(\d)\.(?:down|up)sample\.(.+)", rest):
        level = int(sampler[2]) if sampler[1] == "down" else LEVELS - 1 - int(sampler[2])
        return f"{half}.{sampler[1]}_blocks.{level}.{sampler[1]}samplers.0.{sampler[3]}"
    name = _renamed(rest, _VAE)
    if attention := re.fullmatch(r"(mid_block\.attentions\.0)\.(\w+)\.(\w+)", name):
        part = _VAE_ATTENTION.get(attention[2], attention[2])
        name = f"{attention[1]}.{part}.{attention[3]}"
    return f"{half}.{name}"


def _renamed(key: str, names: Mapping[str, str]) -> str:
    """`key` with the one of `names` it begins with replaced."""
    for old, new in names.items():
        if key.startswith(f"{old}."):
            return new + key.removeprefix(old)
    return key
