import pytest
import torch

from baselines.base import MethodUnavailableError
from baselines.diffusion.feature_wrap import WrappedVAE, load_fusion


@pytest.fixture(scope="module")
def wrapped(structured):
    return structured.decoder


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 5, 6, generator=generator)
    return latents, torch.rand(1, 3, 40, 48, generator=generator) * 2 - 1


@torch.inference_mode()
def test_at_weight_zero_it_is_the_stock_decoder(wrapped, inputs):
    latents, photo = inputs
    stock = wrapped.vae.decode(latents / 0.18215).sample
    assert torch.equal(wrapped.decode(latents, photo, 0), stock)


@torch.inference_mode()
@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_features_of_the_photo_are_added_at_two_sizes(wrapped, inputs, weight):
    """The stock VAE with hooks: what the encoder had goes to the decoder's block of its size."""
    latents, photo = inputs
    vae, found, handles = wrapped.vae, {}, []
    for level in (1, 2):
        last = vae.encoder.down_blocks[level].resnets[-1]
        handles.append(
            last.register_forward_hook(lambda _, __, out, level=level: found.update({level: out}))
        )
        last = vae.decoder.up_blocks[3 - level].resnets[-1]
        fusion = wrapped.fusion[str(level)]
        handles.append(
            last.register_forward_hook(
                lambda _, __, out, level=level, fusion=fusion: (
                    out + weight * fusion(found[level], out)
                )
            )
        )
    vae.encode(photo)
    assert found[1].shape[-2:] == (20, 24)
    assert found[2].shape[-2:] == (10, 12)
    expected = vae.decode(latents / 0.18215).sample
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(wrapped.decode(latents, photo, weight), expected)
    assert (expected - wrapped.decode(latents, photo, 0)).abs().max() > 0.1


def test_a_missing_tensor_is_named(wrapped):
    state = {
        f"fusion_layer_{key}": value
        for key, value in wrapped.fusion.state_dict().items()
        if key != "2.encode_enc_3.conv2.bias"
    }
    state["fusion_layer_3.x"] = torch.zeros(1)
    expected = r"1 missing: 2\.encode_enc_3\.conv2\.bias; 1 left over: fusion_layer_3\.x"
    with pytest.raises(MethodUnavailableError, match=expected):
        load_fusion(WrappedVAE(wrapped.vae), state, "a file")
