"""StableSR's change to Stable Diffusion's U-Net: the photo's structure in every residual block.

A time-aware encoder, half a U-Net without text, reads the photo's latents and the timestep and
gives features at four sizes. In each residual block the features of its size scale and shift what
the block adds (SPADE, Park et al., CVPR 2019). Stock networks get it by putting a module behind
their second convolution; blocks stay as they are.
"""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from baselines.diffusion.state import Network

HEADS = 4  # of every attention of the encoder
HIDDEN = 128  # channels between features and scale, of every block
GROUPS = 32
EPSILON = 1e-5

Features = dict[tuple[int, int], Tensor]  # by (height, width)


class Modulation(nn.Module):
    """Normalise, then scale and shift by features of the same size; by the released names."""

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.param_free_norm = nn.GroupNorm(GROUPS, channels, EPSILON)
        self.mlp_shared = nn.Sequential(nn.Conv2d(features, HIDDEN, 3, padding=1))
        self.mlp_gamma = nn.Conv2d(HIDDEN, channels, 3, padding=1)
        self.mlp_beta = nn.Conv2d(HIDDEN, channels, 3, padding=1)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """(B, channels, H, W) and (B, features, H, W) to (B, channels, H, W)."""
        shared = F.relu(self.mlp_shared(features))
        return self.param_free_norm(x) * (1 + self.mlp_gamma(shared)) + self.mlp_beta(shared)


class Modulated(nn.Module):
    """A convolution and the modulation of what it makes.

    The features come by way of the network, whose blocks hand on nothing but hidden states: `seen`
    is shared by all blocks of one network, and filled before it is called.
    """

    def __init__(self, conv: nn.Module, spade: Modulation, seen: Features) -> None:
        super().__init__()
        self.conv, self.spade = conv, spade
        self.seen = seen

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.spade(x, self.seen[tuple(x.shape[-2:])])  # type: ignore[index]  # two sizes


def add_structure(unet: Network, features: int) -> Features:
    """Put a modulation into every residual block of a U-Net, in place.

    Returns:
        What the blocks look at: fill it with the features of a step before calling the U-Net. One
        thread at a time may do so.
    """
    seen: Features = {}
    middle = unet.mid_block
    for block in (*unet.down_blocks, middle, *unet.up_blocks):
        for resnet in block.resnets:
            spade = Modulation(resnet.conv2.out_channels, features)
            resnet.conv2 = Modulated(resnet.conv2, spade, seen)
    return seen


def modulated(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A U-Net's tensors as released, by diffusers' names, to those after `add_structure`."""
    renamed = {}
    for key, value in state.items():
        name = key.replace(".spade.", ".conv2.spade.")
        if ".resnets." in name and name.endswith((".conv2.weight", ".conv2.bias")):
            name = name.replace(".conv2.", ".conv2.conv.")
        renamed[name] = value
    return renamed


class StructureEncoder(nn.Module):
    """The time-aware encoder, of diffusers' blocks.

    Attributes:
        features: channels it gives at each size.
    """

    def __init__(self, *, in_channels: int, widths: tuple[int, ...], features: int) -> None:
        """Take the channels of its four levels; the first is also that of the time's waves."""
        from diffusers.models.embeddings import TimestepEmbedding, Timesteps
        from diffusers.models.resnet import ResnetBlock2D
        from diffusers.models.unets.unet_2d_blocks import (
            AttnDownBlock2D,
            DownBlock2D,
            UNetMidBlock2D,
        )

        super().__init__()
        self.features = features
        first, last = widths[0], widths[-1]
        time = 4 * first
        common: dict[str, Any] = {  # Any: arguments of several types
            "temb_channels": time,
            "resnet_eps": EPSILON,
            "resnet_groups": GROUPS,
        }
        self.conv_in = nn.Conv2d(in_channels, first, 3, padding=1)
        self.time_proj = Timesteps(first, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(first, time)
        inputs = (first, *widths[:-2])
        self.down_blocks = nn.ModuleList(
            AttnDownBlock2D(
                of,
                width,
                num_layers=2,
                attention_head_dim=width // HEADS,
                **common,
            )
            for of, width in zip(inputs, widths[:-1], strict=True)
        )
        self.down_blocks.append(
            DownBlock2D(widths[-2], last, num_layers=2, add_downsample=False, **common)
        )
        self.mid_block = UNetMidBlock2D(last, attention_head_dim=last // HEADS, **common)
        self.fea_tran = nn.ModuleList(
            ResnetBlock2D(
                in_channels=width,
                out_channels=features,
                temb_channels=time,
                eps=EPSILON,
                groups=GROUPS,
            )
            for width in widths
        )

    def forward(self, latents: Tensor, t: Tensor) -> Features:
        """Features of the photo's latents (B, 4, H, W) at timestep t, by their size."""
        waves = self.time_proj(t.reshape(1).to(latents.device)).to(latents.dtype)
        time = self.time_embedding(waves)
        x = self.conv_in(latents)
        found = []
        for block in self.down_blocks:
            x, states = block(x, time)
            if block.downsamplers is not None:
                found.append(states[-2])  # before it shrinks
        found.append(self.mid_block(x, time))
        mapped = [resnet(h, time) for resnet, h in zip(self.fea_tran, found, strict=True)]
        return {(h.shape[-2], h.shape[-1]): h for h in mapped}
