"""The VQ image tokenizer: a picture to a grid of codes and back.

One class at any width. The full size is LlamaGen's VQ-8 (Sun et al. 2024), whose released
weights `vq_ds8_c2i.pt` load without renaming; PURE-nano trains the same class thinner. The
module knows nothing of token ids, sequences or files.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

# torch's own epsilon in `F.normalize`; spelled out because codes depend on it.
NORMALISE_EPS = 1e-12


@dataclass(frozen=True)
class VQConfig:
    """The shape of a tokenizer. Defaults are LlamaGen's VQ-8 (`vq_ds8_c2i.pt`).

    Attributes:
        channels: width at full resolution; level i is `channels * multipliers[i]` wide.
        multipliers: one per level; every level but the last halves the resolution.
        encoder_blocks: residual blocks per encoder level.
        decoder_blocks: residual blocks per decoder level.
        z_channels: width between encoder and quantiser.
        codebook_size: number of codes.
        codebook_dim: length of a code vector; vectors live on the unit sphere.
        norm_groups: groups of every GroupNorm. Thin networks need fewer than 32: with one
            channel a group the norm would erase each channel's mean, and colour with it.
        output_norm: normalise before the last convolution of encoder and decoder. It divides
            brightness and colour by the contrast of the picture, which a thin network does not
            learn to undo in reasonable time.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    encoder_blocks: int = 2
    decoder_blocks: int = 3
    z_channels: int = 256
    codebook_size: int = 16384
    codebook_dim: int = 8
    norm_groups: int = 32
    output_norm: bool = True

    @property
    def factor(self) -> int:
        """Pixels along one side of a code cell."""
        return 2 ** (len(self.multipliers) - 1)


CONFIGS = {
    "vq8": VQConfig(),
    "nano": VQConfig(
        channels=24,
        multipliers=(1, 2, 4, 6),
        encoder_blocks=2,
        decoder_blocks=2,
        z_channels=96,
        codebook_size=4096,
        norm_groups=8,
        output_norm=False,
    ),
    "tiny": VQConfig(
        channels=8,
        multipliers=(1, 1, 2, 2),
        encoder_blocks=1,
        decoder_blocks=1,
        z_channels=8,
        codebook_size=16,
        norm_groups=4,
    ),
}


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """norm, SiLU, 3×3, norm, SiLU, 3×3, plus the input (through a 1×1 when widths differ)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions, with 1×1 convolutions, residual."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        h = self.norm(x)
        q, k, v = (
            layer(h).reshape(B, 1, C, H * W).mT  # (B, 1, H*W, C): one head
            for layer in (self.q, self.k, self.v)
        )
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h.mT.reshape(B, C, H, W))


class Downsample(nn.Module):
    """Halve the resolution: one zero pixel on the right and bottom, then a strided 3×3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the resolution: nearest, then a 3×3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """One resolution of the encoder or decoder: residual blocks, attention when deepest."""

    def __init__(
        self, in_channels: int, out_channels: int, blocks: int, groups: int, *, attention: bool
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * blocks
        self.res = nn.ModuleList(ResidualBlock(a, b, groups) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(
            AttentionBlock(out_channels, groups) for _ in range(blocks if attention else 0)
        )

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.res):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        for name in ("downsample", "upsample"):
            if name in self._modules:
                x = self.get_submodule(name)(x)
        return x


def _middle(channels: int, groups: int) -> nn.ModuleList:
    return nn.ModuleList(
        [
            ResidualBlock(channels, channels, groups),
            AttentionBlock(channels, groups),
            ResidualBlock(channels, channels, groups),
        ]
    )


class Encoder(nn.Module):
    """(B, 3, H, W) in [-1, 1] to (B, z_channels, H/factor, W/factor)."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        groups, last = config.norm_groups, len(config.multipliers) - 1
        width = config.channels
        self.conv_in = nn.Conv2d(3, width, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        for i, multiplier in enumerate(config.multipliers):
            out = config.channels * multiplier
            level = Level(width, out, config.encoder_blocks, groups, attention=i == last)
            if i != last:
                level.downsample = Downsample(out)
            self.conv_blocks.append(level)
            width = out
        self.mid = _middle(width, groups)
        self.norm_out = _norm(width, groups) if config.output_norm else nn.Identity()
        self.conv_out = nn.Conv2d(width, config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in [*self.conv_blocks, *self.mid]:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """(B, z_channels, h, w) to (B, 3, h*factor, w*factor), about [-1, 1], unclamped."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        groups = config.norm_groups
        width = config.channels * config.multipliers[-1]
        self.conv_in = nn.Conv2d(config.z_channels, width, 3, padding=1)
        self.mid = _middle(width, groups)
        self.conv_blocks = nn.ModuleList()  # in execution order: 0 is the deepest level
        for i, multiplier in reversed(list(enumerate(config.multipliers))):
            out = config.channels * multiplier
            deepest = i == len(config.multipliers) - 1
            level = Level(width, out, config.decoder_blocks, groups, attention=deepest)
            if i != 0:
                level.upsample = Upsample(out)
            self.conv_blocks.append(level)
            width = out
        self.norm_out = _norm(width, groups) if config.output_norm else nn.Identity()
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.conv_in(z)
        for block in [*self.mid, *self.conv_blocks]:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Codebook(nn.Module):
    """Code vectors, compared and looked up on the unit sphere."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, dim)
        # nn.Embedding draws N(0, 1); on the sphere only the direction counts.

    def unit(self) -> Tensor:
        """The l2-normalised rows, (K, D)."""
        return F.normalize(self.embedding.weight, eps=NORMALISE_EPS)

    def nearest(self, z: Tensor) -> Tensor:
        """Codes of unit vectors `z` (N, D): the nearest row, the lower index on a tie."""
        e = self.unit()
        distance = (z**2).sum(1, keepdim=True) + (e**2).sum(1)
        distance -= 2 * z @ e.mT  # in place: with 16,384 codes this is the largest tensor of all
        return distance.argmin(1)


class VQModel(nn.Module):
    """Encoder, quantiser and decoder under the released key names."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.codebook_dim, 1)
        self.quantize = Codebook(config.codebook_size, config.codebook_dim)
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.z_channels, 1)
        self.decoder = Decoder(config)

    @property
    def factor(self) -> int:
        """Pixels along one side of a code cell."""
        return self.config.factor

    def latents(self, x: Tensor) -> Tensor:
        """Unit latents (B, D, h, w) of pictures `x` (B, 3, H, W) in [-1, 1]."""
        return F.normalize(self.quant_conv(self.encoder(x)), dim=1, eps=NORMALISE_EPS)

    def pixels(self, z: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), about [-1, 1], of unit latents `z` (B, D, h, w)."""
        return self.decoder(self.post_quant_conv(z))

    @torch.inference_mode()
    def encode(self, image: Tensor) -> Tensor:
        """Codes (B, h, w), int64, of pictures (B, 3, H, W), RGB in [0, 1], float32 or float64.

        The latents are computed in the weights' dtype and compared in float32.

        Raises:
            ValueError: a side is not a multiple of the cell size.
        """
        _, _, H, W = image.shape
        if H % self.factor or W % self.factor or not H or not W:
            raise ValueError(f"picture sides must be multiples of {self.factor}, got {W} × {H}")
        z = self.latents((image * 2 - 1).to(self.quant_conv.weight))
        B, D, h, w = z.shape
        return self.quantize.nearest(z.movedim(1, -1).reshape(-1, D).float()).view(B, h, w)

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), float32 in [0, 1], of codes (B, h, w).

        Raises:
            ValueError: a code lies outside the codebook.
        """
        if codes.numel() and not (codes.min() >= 0 and codes.max() < self.config.codebook_size):
            raise ValueError(
                f"codes must lie in 0..{self.config.codebook_size - 1}, "
                f"got {int(codes.min())}..{int(codes.max())}"
            )
        z = self.quantize.unit()[codes].movedim(-1, 1)
        y = self.pixels(z.to(self.post_quant_conv.weight)).float()
        return (y.clamp(-1, 1) + 1) / 2

    def encode_image(self, image: Image.Image) -> Tensor:
        """Codes (h, w) of an RGB picture, as published.

        The scaling to [-1, 1] runs in float64 and is cast once: doing it in float32 moves
        some values by one unit in the last place and can flip a code.

        Raises:
            ValueError: a side is not a multiple of the cell size.
        """
        pixels = np.asarray(image, dtype=np.float64) / 255  # (H, W, 3)
        return self.encode(torch.from_numpy(pixels).movedim(-1, 0)[None])[0]

    def decode_image(self, codes: Tensor) -> Image.Image:
        """The RGB picture of codes (h, w); truncated to 8 bit, not rounded, as published."""
        pixels = self.decode(codes[None])[0] * 255
        return Image.fromarray(pixels.to(torch.uint8).movedim(0, -1).cpu().numpy())
