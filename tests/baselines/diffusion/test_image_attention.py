import pytest
import torch
from safetensors.torch import load_file

from baselines import tiny
from baselines.diffusion.image_attention import (
    IMAGE_TOKENS,
    add_image_attention,
    released,
    token_width,
    wrapped,
)
from baselines.diffusion.state import load_strict

# The released U-Net has image attention at these places, and its ControlNet at those not going up.
PLACES = {
    *(f"down_blocks.{i}.image_attentions.{j}" for i in range(3) for j in range(2)),
    "mid_block.image_attentions.0",
    *(f"up_blocks.{i}.image_attentions.{j}" for i in range(1, 4) for j in range(3)),
}


@pytest.fixture(scope="module")
def state(weights):
    return load_file(weights / "seesr/unet/diffusion_pytorch_model.safetensors")


def unet():
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_config(dict(tiny.UNET)).eval()


def inputs(*, height=8, width=8):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, height, width, generator=generator)
    context = torch.randn(2, 77, tiny.TEXT_WIDTH, generator=generator)
    tokens = torch.randn(2, 10, tiny.TAGGER.tokens, generator=generator)
    return latents, context, tokens


def test_image_attention_stands_where_the_release_has_it(state):
    found = {".".join(key.split(".")[: key.split(".").index("image_attentions") + 2])
             for key in state if "image_attentions" in key}  # fmt: skip
    assert found == PLACES
    assert len([key for key in state if "image_attentions" in key]) == 416


def test_the_full_size_has_the_released_number_of_parameters():
    from diffusers import ControlNetModel, UNet2DConditionModel

    full = {
        "in_channels": 4,
        "block_out_channels": [320, 640, 1280, 1280],
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
    }
    expected = {UNet2DConditionModel: 1_126_760_324, ControlNetModel: 489_031_440}
    for kind, parameters in expected.items():
        with torch.device("meta"):
            network = kind.from_config(full)
            add_image_attention(network, 512)
        assert sum(p.numel() for p in network.parameters()) == parameters


def test_names_there_and_back(state):
    assert set(released(wrapped(state))) == set(state)
    assert token_width(state) == tiny.TAGGER.tokens
    assert token_width({"conv_in.weight": torch.zeros(1)}) is None


@torch.inference_mode()
def test_image_attention_that_adds_nothing_leaves_the_stock_network(state):
    quiet = {
        key: torch.zeros_like(value) if "image_attentions" in key and ".proj_out." in key else value
        for key, value in state.items()
    }
    stock, changed = unet(), unet()
    load_strict(stock, {k: v for k, v in state.items() if "image_attentions" not in k}, "stock")
    add_image_attention(changed, tiny.TAGGER.tokens)
    load_strict(changed, wrapped(quiet), "changed")
    latents, context, tokens = inputs(height=5, width=7)
    expected = stock(latents, 500, encoder_hidden_states=context).sample
    attention = {IMAGE_TOKENS: tokens}
    found = changed(
        latents, 500, encoder_hidden_states=context, cross_attention_kwargs=attention
    ).sample
    torch.testing.assert_close(found, expected)
    assert attention == {IMAGE_TOKENS: tokens}


@torch.inference_mode()
def test_the_image_is_read_after_the_text(state):
    """The wrapper is the image transformer applied to what the text transformer gives."""
    network = unet()
    add_image_attention(network, tiny.TAGGER.tokens)
    load_strict(network, wrapped(state), "network")
    block = network.mid_block.attentions[0]
    _, context, tokens = inputs()
    hidden = torch.randn(2, 32, 3, 2, generator=torch.Generator().manual_seed(1))
    (found,) = block(
        hidden, encoder_hidden_states=context, cross_attention_kwargs={IMAGE_TOKENS: tokens}
    )
    (read,) = block.text(hidden, encoder_hidden_states=context, return_dict=False)
    (expected,) = block.image(read, encoder_hidden_states=tokens, return_dict=False)
    torch.testing.assert_close(found, expected)


@torch.inference_mode()
def test_every_place_reads_the_tokens(state):
    """Without the tokens' values any of the 16 places would go unnoticed."""
    network = unet()
    add_image_attention(network, tiny.TAGGER.tokens)
    load_strict(network, wrapped(state), "network")
    seen = []
    for name, module in network.named_modules():
        if name.endswith(".image"):
            module.register_forward_hook(
                lambda _, args, named, out, name=name: seen.append(
                    (name, named["encoder_hidden_states"].shape)
                ),
                with_kwargs=True,
            )
    latents, context, tokens = inputs()
    network(
        latents, 1, encoder_hidden_states=context, cross_attention_kwargs={IMAGE_TOKENS: tokens}
    )
    assert len({name for name, _ in seen}) == 16
    assert {shape for _, shape in seen} == {tokens.shape}
