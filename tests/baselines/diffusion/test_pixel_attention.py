import pytest
import torch
from safetensors.torch import load_file

from baselines import tiny
from baselines.diffusion.pixel_attention import PixelAwareUNet, released_names, wrapped_names
from baselines.diffusion.state import load_strict

# Behind every layer that takes a skip connection, in the released U-Net.
PLACES = {f"up_blocks.{i}.pixel_attentions.{j}" for i in range(4) for j in range(3)}


@pytest.fixture(scope="module")
def state(weights):
    return load_file(weights / "pasd/unet/diffusion_pytorch_model.safetensors")


def stock():
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_config(dict(tiny.PASD_UNET)).eval()


@pytest.fixture
def unet(state):
    network = PixelAwareUNet(stock()).eval()
    load_strict(network, wrapped_names(state), "network")
    return network


@pytest.fixture(scope="module")
def inputs(weights):
    """Latents of an odd size, a prompt, and what the ControlNet makes of a photo."""
    from baselines import pasd

    controlnet = pasd.load_controlnet(weights / "pasd/controlnet").eval()
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 7, 9, generator=generator)
    context = torch.randn(1, 77, tiny.TEXT_WIDTH, generator=generator)
    photo = torch.rand(1, 3, 56, 72, generator=generator)
    with torch.inference_mode():
        down, mid = controlnet(
            latents, 500, context, controlnet_cond=photo, conditioning_scale=0.8, return_dict=False
        )
    residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
    return (latents, 500, context), residuals


def test_pixel_attention_stands_where_the_release_has_it(state):
    keys = [key for key in state if "pixel_attentions" in key]
    assert {".".join(key.split(".")[:4]) for key in keys} == PLACES
    assert len(keys) == 312


def test_the_full_size_has_the_released_number_of_parameters():
    from diffusers import ControlNetModel, UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        # the release holds 10,377 more, which only training needs
        controlnet = ControlNetModel(cross_attention_dim=768, attention_head_dim=8)
        aware = PixelAwareUNet(unet)
    counts = [sum(p.numel() for p in network.parameters()) for network in (aware, controlnet)]
    assert counts == [1_107_755_524, 361_279_120]
    shapes = {key: tuple(value.shape) for key, value in released_names(aware.state_dict()).items()}
    widths = [
        shapes[f"up_blocks.{i}.pixel_attentions.{j}.transformer_blocks.0.attn2.to_k.weight"][1]
        for i in range(4)
        for j in range(3)
    ]
    assert widths == [1280] * 5 + [640] * 3 + [320] * 4


def test_names_there_and_back(state):
    wrapped = wrapped_names(state)
    assert set(released_names(wrapped)) == set(state)
    # the first up block reads no text: its pixels come behind its plain layers
    assert "unet.up_blocks.0.resnets.2.pixel.norm.weight" in wrapped
    assert "unet.up_blocks.0.resnets.2.inner.conv1.weight" in wrapped
    assert "unet.up_blocks.1.attentions.2.pixel.norm.weight" in wrapped
    assert "unet.up_blocks.1.resnets.2.conv1.weight" in wrapped


@torch.inference_mode()
def test_pixel_attention_that_adds_nothing_leaves_the_stock_network(state, inputs):
    quiet = {
        key: torch.zeros_like(value) if "pixel_attentions" in key and ".proj_out." in key else value
        for key, value in state.items()
    }
    plain, aware = stock(), PixelAwareUNet(stock()).eval()
    load_strict(plain, {k: v for k, v in state.items() if "pixel_att" not in k}, "stock")
    load_strict(aware, wrapped_names(quiet), "aware")
    arguments, residuals = inputs
    expected = plain(*arguments, **residuals).sample
    torch.testing.assert_close(aware(*arguments, **residuals).sample, expected)


@torch.inference_mode()
def test_every_layer_reads_the_residual_of_the_skip_it_takes(unet, inputs):
    """Told apart by values: the residuals of one block have the same shape."""
    arguments, residuals = inputs
    seen = []
    for block in unet.unet.up_blocks:
        for layer in getattr(block, "attentions", block.resnets):
            layer.pixel.register_forward_hook(
                lambda _, args, named, out: seen.append(named["encoder_hidden_states"]),
                with_kwargs=True,
            )
    unet(*arguments, **residuals)
    down = residuals["down_block_additional_residuals"]
    assert len(seen) == 12
    for i in range(4):
        for j in range(3):
            k = 3 * i + j
            expected = down[11 - k].reshape(*down[11 - k].shape[:2], -1).transpose(1, 2)
            torch.testing.assert_close(seen[k], expected)


@torch.inference_mode()
def test_pixels_are_read_after_the_text(unet):
    layer = unet.unet.up_blocks[1].attentions[0]
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(1, 32, 3, 2, generator=generator)
    context = torch.randn(1, 77, tiny.TEXT_WIDTH, generator=generator)
    layer.residual = torch.randn(1, 32, 3, 2, generator=generator)
    (found,) = layer(hidden, encoder_hidden_states=context, return_dict=False)
    (text,) = layer.inner(hidden, encoder_hidden_states=context, return_dict=False)
    cells = layer.residual.flatten(2).transpose(1, 2)
    (expected,) = layer.pixel(text, encoder_hidden_states=cells, return_dict=False)
    torch.testing.assert_close(found, expected)


@torch.inference_mode()
def test_nothing_of_a_call_is_kept(unet, inputs):
    arguments, residuals = inputs
    unet(*arguments, **residuals)
    layers = [m for m in unet.modules() if hasattr(m, "residual")]
    assert len(layers) == 12
    assert all(layer.residual is None for layer in layers)
    with pytest.raises(RuntimeError, match="mat1"):
        unet(arguments[0], 500, torch.zeros(1, 77, 5), **residuals)  # no such prompt
    assert all(layer.residual is None for layer in layers)
    with pytest.raises(ValueError, match="got none"):
        unet.unet(*arguments, **residuals)


@torch.inference_mode()
def test_another_number_of_residuals_is_refused(unet, inputs):
    arguments, residuals = inputs
    fewer = residuals["down_block_additional_residuals"][:-1]
    with pytest.raises(ValueError, match="shorter"):
        unet(*arguments, **residuals | {"down_block_additional_residuals": fewer})
