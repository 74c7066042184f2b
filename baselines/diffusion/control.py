"""One prediction of a U-Net led by a ControlNet that reads the photo, guided by two prompts."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from baselines.diffusion.sizes import CELL
from baselines.diffusion.state import Network


def led_by_photo(
    unet: Network,
    controlnet: Network,
    t: Tensor,
    *,
    photo: Tensor,
    context: Tensor,
    conditioning: float,
    guidance: float,
    attention: Mapping[str, Any] | None = None,  # Any: as diffusers
) -> Callable[[Tensor, int, int], Tensor]:
    """The prediction at one timestep, as `tiles.predict_tiled` takes it.

    Args:
        unet: takes a ControlNet's residuals.
        controlnet: reads the piece of the photo that lies under the tile.
        t: timestep.
        photo: (1, 3, 8 H, 8 W) in [0, 1].
        context: (2, 77, C) of the negative prompt and the prompt, or (1, 77, C) of the prompt.
        conditioning: weight of the residuals.
        guidance: weight of the prompt against the negative one, if there are two.
        attention: for the attention of both networks.

    Returns:
        Takes latents (1, 4, h, w), top and left cell; gives (1, 4, h, w), float32.
    """
    batch, dtype = len(context), context.dtype

    def predict(tile: Tensor, top: int, left: int) -> Tensor:
        both = tile.to(dtype).expand(batch, -1, -1, -1)
        height, width = tile.shape[-2:]
        seen = photo[..., top * CELL : (top + height) * CELL, left * CELL : (left + width) * CELL]
        down, mid = controlnet(
            both,
            t,
            encoder_hidden_states=context,
            controlnet_cond=seen.to(dtype).expand(batch, -1, -1, -1),
            conditioning_scale=conditioning,
            cross_attention_kwargs=attention,
            return_dict=False,
        )
        predicted = unet(
            both,
            t,
            encoder_hidden_states=context,
            cross_attention_kwargs=attention,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample.float()
        if batch == 1:
            return predicted
        away, towards = predicted.chunk(2)
        return away + guidance * (towards - away)

    return predict
