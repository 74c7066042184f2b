"""SeeSR's change to Stable Diffusion's networks: image tokens are attended to after the text.

After every transformer that reads the prompt comes a second one of the same shape that reads the
tagger's image tokens. Stock diffusers networks get it by wrapping these transformers; their blocks
pass on what the wrapper needs and stay as they are.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from baselines.diffusion.state import Network

IMAGE_TOKENS = "image_tokens"  # name in `cross_attention_kwargs`


class TextThenImage(nn.Module):
    """A text transformer followed by an image transformer, called like the text transformer."""

    def __init__(self, text: Network, image: Network) -> None:
        super().__init__()
        self.text = text
        self.image = image

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        **others: Any,  # Any: whatever the block hands to its transformers
    ) -> tuple[Tensor]:
        """Hidden states (B, C, H, W) through both; the tokens come in `cross_attention_kwargs`."""
        rest = dict(cross_attention_kwargs or {})
        tokens = rest.pop(IMAGE_TOKENS)
        others["return_dict"] = False
        (hidden_states,) = self.text(
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            cross_attention_kwargs=rest or None,
            **others,
        )
        # no mask: the prompt's, were there one, is of another length
        return self.image(hidden_states, encoder_hidden_states=tokens, return_dict=False)


def add_image_attention(network: Network, width: int) -> None:
    """Wrap every transformer of a U-Net or ControlNet, in place.

    Args:
        network: a stock diffusers network.
        width: of an image token.
    """
    from diffusers import Transformer2DModel

    for block in _blocks(network):
        for i, text in enumerate(block.attentions):
            config = {k: v for k, v in text.config.items() if not k.startswith("_")}
            image = Transformer2DModel.from_config({**config, "cross_attention_dim": width})
            block.attentions[i] = TextThenImage(text, image)


def _blocks(network: Network) -> Iterator[Network]:
    blocks = [*network.down_blocks, network.mid_block, *getattr(network, "up_blocks", ())]
    return (block for block in blocks if hasattr(block, "attentions"))


_OF_A_BLOCK = re.compile(
    r"((?:down_blocks\.\d+|mid_block|up_blocks\.\d+))\.(image_)?attentions\.(\d+)\.(.+)"
)


def wrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Released names, `image_attentions` beside `attentions`, to those of the wrapped network."""
    renamed = {}
    for key, value in state.items():
        if match := _OF_A_BLOCK.fullmatch(key):
            block, image, i, rest = match.groups()
            key = f"{block}.attentions.{i}.{'image' if image else 'text'}.{rest}"
        renamed[key] = value
    return renamed


def released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `wrapped`."""
    renamed = {}
    for key, value in state.items():
        if match := re.fullmatch(r"(.+)\.attentions\.(\d+)\.(text|image)\.(.+)", key):
            block, i, kind, rest = match.groups()
            key = f"{block}.{'image_' if kind == 'image' else ''}attentions.{i}.{rest}"
        renamed[key] = value
    return renamed


def token_width(state: Mapping[str, Tensor]) -> int | None:
    """Width of an image token by released tensors; None if they have no image attention."""
    for key, value in state.items():
        if re.fullmatch(r".*image_attentions\..*attn2\.to_k\.weight", key):
            return value.shape[1]
    return None
