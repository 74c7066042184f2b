"""PASD's change to Stable Diffusion's U-Net: its way up attends to the ControlNet's residuals.

Every residual is used twice: added to the skip connection it belongs to, as any ControlNet's, and
read, cell by cell, by a transformer of its own behind the layer that takes that skip. A stock
diffusers U-Net gets these by wrapping the layers of its up blocks; its blocks stay as they are.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from baselines.diffusion.state import Network


class ThenPixels(nn.Module):
    """A layer of an up block, then a transformer that reads a residual; called like the layer.

    Attributes:
        residual: (B, C, H, W), of the call that is going on. The blocks hand nothing of the kind
            to their layers, so it is laid down here before and taken away after.
    """

    def __init__(self, inner: Network, pixel: Network) -> None:
        super().__init__()
        self.inner = inner
        self.pixel = pixel
        self.residual: Tensor | None = None

    def forward(
        self,
        hidden_states: Tensor,
        *arguments: Any,  # Any: whatever the block hands to its layers
        **named: Any,
    ) -> Tensor | tuple[Tensor]:
        """Hidden states (B, C, H, W) through both; a tuple if the layer gives one."""
        if self.residual is None:
            raise ValueError("expected the ControlNet's residuals, got none: call PixelAwareUNet")
        result = self.inner(hidden_states, *arguments, **named)
        within = isinstance(result, tuple)
        seen = self.residual.flatten(2).mT  # (B, H*W, C)
        (hidden_states,) = self.pixel(
            result[0] if within else result, encoder_hidden_states=seen, return_dict=False
        )
        return (hidden_states,) if within else hidden_states


class PixelAwareUNet(nn.Module):
    """A stock diffusers U-Net with pixel attention, called like it; one call at a time."""

    def __init__(self, unet: Network) -> None:
        """Take `unet` over and change it."""
        super().__init__()
        self.unet = unet
        self._wrapped = _wrap(unet)

    @property
    def config(self) -> Any:  # Any: diffusers' own
        return self.unet.config

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | int,
        encoder_hidden_states: Tensor,
        *,
        down_block_additional_residuals: Sequence[Tensor],
        mid_block_additional_residual: Tensor,
        **named: Any,  # Any: what else the U-Net takes
    ) -> Any:  # Any: what the U-Net gives
        """As the U-Net's; the residuals are those of a ControlNet, scaled already."""
        # skips are taken from the last to the first
        residuals = reversed(down_block_additional_residuals)
        for layer, residual in zip(self._wrapped, residuals, strict=True):
            layer.residual = residual
        try:
            return self.unet(
                sample,
                timestep,
                encoder_hidden_states,
                down_block_additional_residuals=down_block_additional_residuals,
                mid_block_additional_residual=mid_block_additional_residual,
                **named,
            )
        finally:
            for layer in self._wrapped:
                layer.residual = None


def _wrap(unet: Network) -> list[ThenPixels]:
    """Wrap the layers of the up blocks, in place; the wrapped ones in the order they run."""
    from diffusers import Transformer2DModel

    config = unet.config
    widths, layers = config.block_out_channels, config.layers_per_block
    # the release's name of the number of heads; diffusers keeps it for old files
    heads = config.attention_head_dim
    skips = list(reversed(_skip_widths(widths, layers)))
    wrapped: list[ThenPixels] = []
    for block, width in zip(unet.up_blocks, reversed(widths), strict=True):
        # text, where the block reads it, comes before the pixels
        inside = block.attentions if hasattr(block, "attentions") else block.resnets
        for i, inner in enumerate(inside):
            pixel = Transformer2DModel(
                heads,
                width // heads,
                in_channels=width,
                cross_attention_dim=skips[len(wrapped)],
                norm_num_groups=config.norm_num_groups,
                use_linear_projection=config.use_linear_projection,
            )
            inside[i] = ThenPixels(inner, pixel)
            wrapped.append(inside[i])
    return wrapped


def _skip_widths(widths: Sequence[int], layers: int) -> list[int]:
    """Channels of the skip connections, from the first to the last."""
    skips = [widths[0]]
    for i, width in enumerate(widths):
        skips += [width] * layers
        if i + 1 < len(widths):  # the layer that halves
            skips.append(width)
    return skips


_IN_UP_BLOCK = re.compile(r"up_blocks\.(\d+)\.(pixel_attentions|attentions|resnets)\.(\d+)\.(.+)")
_WRAPPED = re.compile(r"unet\.up_blocks\.(\d+)\.(attentions|resnets)\.(\d+)\.(inner|pixel)\.(.+)")


def wrapped_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Released names, `pixel_attentions` beside the layers, to those of `PixelAwareUNet`."""
    reads_text = {
        match[1]
        for key in state
        if (match := _IN_UP_BLOCK.fullmatch(key)) and match[2] == "attentions"
    }
    renamed = {}
    for key, value in state.items():
        name = key
        if match := _IN_UP_BLOCK.fullmatch(key):
            block, kind, i, rest = match.groups()
            last = "attentions" if block in reads_text else "resnets"
            if kind == "pixel_attentions":
                name = f"up_blocks.{block}.{last}.{i}.pixel.{rest}"
            elif kind == last:
                name = f"up_blocks.{block}.{last}.{i}.inner.{rest}"
        renamed[f"unet.{name}"] = value
    return renamed


def released_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `wrapped_names`."""
    renamed = {}
    for key, value in state.items():
        if match := _WRAPPED.fullmatch(key):
            block, kind, i, half, rest = match.groups()
            place = kind if half == "inner" else "pixel_attentions"
            key = f"unet.up_blocks.{block}.{place}.{i}.{rest}"
        renamed[key.removeprefix("unet.")] = value
    return renamed
