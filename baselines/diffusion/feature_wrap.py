"""StableSR's decoder: the VAE's own, to which features of the photo are added on the way.

Controllable feature wrapping (Wang et al., IJCV 2024): at two sizes a small network looks at what
the VAE's encoder makes of the photo and at what the decoder has so far, and adds to the latter. A
weight says how much; at 0 what is left is the stock decoder.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.diffusion.state import Network, load_strict
from baselines.rrdb import RRDB

LEVELS = (1, 2)  # counted by halvings of the picture
GROUPS = 32
EPSILON = 1e-6


class ResidualBlock(nn.Module):
    """Two convolutions behind normalisations; by the released names."""

    def __init__(self, of: int, out: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, of, EPSILON)
        self.conv1 = nn.Conv2d(of, out, 3, padding=1)
        self.norm2 = nn.GroupNorm(GROUPS, out, EPSILON)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.conv_out = nn.Conv2d(of, out, 1) if of != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.conv2(F.silu(self.norm2(h))) + self.conv_out(x)


class Fusion(nn.Module):
    """What is to be added to the decoder's features at one size; by the released names."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.encode_enc_1 = ResidualBlock(2 * channels, channels)
        self.encode_enc_2 = nn.Sequential(RRDB(channels), RRDB(channels))
        self.encode_enc_3 = ResidualBlock(channels, channels)

    def forward(self, encoded: Tensor, decoded: Tensor) -> Tensor:
        """Both (B, channels, H, W), the encoder's and the decoder's; so is the result."""
        both = torch.cat([encoded, decoded], dim=1)
        return self.encode_enc_3(self.encode_enc_2(self.encode_enc_1(both)))


class WrappedVAE(nn.Module):
    """A stock VAE with the two networks."""

    def __init__(self, vae: Network) -> None:
        super().__init__()
        self.vae = vae
        self.scaling: float = vae.config.scaling_factor
        widths = vae.config.block_out_channels
        self.fusion = nn.ModuleDict({str(level): Fusion(widths[level]) for level in LEVELS})

    def decode(self, latents: Tensor, photo: Tensor, weight: float) -> Tensor:
        """Scaled latents to pictures (B, 3, 8 H, 8 W), about [-1, 1], float32.

        Args:
            latents: (B, 4, H, W).
            photo: (B, 3, 8 H, 8 W) in [-1, 1], enlarged.
            weight: of what is added; 0 does without it.
        """
        dtype = next(self.vae.parameters()).dtype
        seen = self._features(photo.to(dtype)) if weight else {}
        decoder = self.vae.decoder
        x = decoder.conv_in(self.vae.post_quant_conv((latents / self.scaling).to(dtype)))
        x = decoder.mid_block(x)
        deepest = len(decoder.up_blocks) - 1
        for i, block in enumerate(decoder.up_blocks):
            for resnet in block.resnets:
                x = resnet(x, temb=None)
            if (level := deepest - i) in seen:
                x = x + weight * self.fusion[str(level)](seen[level], x)
            for upsampler in block.upsamplers or ():
                x = upsampler(x)
        x = decoder.conv_act(decoder.conv_norm_out(x))
        return decoder.conv_out(x).float()

    def _features(self, photo: Tensor) -> dict[int, Tensor]:
        """What the encoder makes of a photo at `LEVELS`, before it shrinks further."""
        encoder = self.vae.encoder
        x = encoder.conv_in(photo)
        found = {}
        for level, block in enumerate(encoder.down_blocks[: max(LEVELS) + 1]):
            for resnet in block.resnets:
                x = resnet(x, temb=None)
            if level in LEVELS:
                found[level] = x
            for downsampler in block.downsamplers or ():
                x = downsampler(x)
        return found


def load_fusion(wrapped: WrappedVAE, state: Mapping[str, Tensor], what: str) -> None:
    """Put the two networks' tensors, `fusion_layer_1.…` and `fusion_layer_2.…`, in their place.

    Raises:
        MethodUnavailableError: they do not fit.
    """
    names = {f"fusion_layer_{level}.": f"{level}." for level in LEVELS}
    renamed = {}
    for key, value in state.items():
        prefix = next((old for old in names if key.startswith(old)), "")
        renamed[names.get(prefix, "") + key.removeprefix(prefix)] = value
    load_strict(wrapped.fusion, renamed, what)
