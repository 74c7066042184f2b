import math

import pytest
import torch

from baselines import stablesr, tiny
from baselines.base import MethodUnavailableError
from baselines.diffusion import ldm

SIZES = tiny.STABLESR


def same(found, expected):
    assert set(found) == set(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.fixture(scope="module")
def theirs():
    """diffusers' own converters, which our names are compared with."""
    return pytest.importorskip("diffusers.loaders.single_file_utils")


def test_a_u_net_is_named_as_diffusers_names_it(theirs):
    state = tiny.random_state(tiny.ldm_unet_shapes(SIZES["unet"]), 0)
    prefixed = {f"model.diffusion_model.{key}": value for key, value in state.items()}
    config = {"layers_per_block": 2, "class_embed_type": None, "addition_embed_type": None}
    config |= {"num_class_embeds": None}
    same(ldm.unet(state), theirs.convert_ldm_unet_checkpoint(prefixed, config))


def test_a_controlnet_is_named_as_diffusers_names_it(theirs):
    state = tiny.random_state(tiny.ldm_unet_shapes(SIZES["unet"], control=4), 0)
    expected = theirs.convert_controlnet_checkpoint(state, {"layers_per_block": 2})
    same(ldm.unet(state), expected)


def test_a_vae_is_named_as_diffusers_names_it(theirs):
    state = tiny.random_state(tiny.ldm_vae_shapes(SIZES["vae"]), 0)
    prefixed = {f"first_stage_model.{key}": value for key, value in state.items()}
    same(ldm.vae(state), theirs.convert_ldm_vae_checkpoint(prefixed, SIZES["vae"]))


def test_openclip_is_named_as_transformers_names_it(theirs):
    from transformers import CLIPTextConfig, CLIPTextModel

    state = tiny.random_state(tiny.openclip_shapes(SIZES["text"]), 0)
    prefix = "cond_stage_model.model."
    prefixed = {prefix + key: value for key, value in state.items()}
    module = CLIPTextModel(CLIPTextConfig(**SIZES["text"]))
    converted = theirs.convert_open_clip_checkpoint(module, prefixed, prefix)
    expected = {
        key.removeprefix("text_model."): value
        for key, value in converted.items()
        if "layers.2." not in key and "projection" not in key and "position_ids" not in key
    }
    same(ldm.text(state, 2), expected)


def test_full_size_has_the_released_numbers_of_tensors_and_parameters():
    """StableSR's U-Net has 862, 176 of them its own, its encoder 200; DiffBIR's control 324."""
    sizes = stablesr.SIZES
    unet = tiny.ldm_unet_shapes(sizes["unet"], modulation=256)
    assert len(unet) == 862
    assert sum(".spade." in key for key in unet) == 176
    assert len(tiny.structure_shapes(sizes["encoder"])) == 200
    control = tiny.ldm_unet_shapes(sizes["unet"], control=4)
    assert len(control) == 324
    assert sum(map(math.prod, control.values())) == 363_153_280


def test_queries_keys_and_values_are_taken_apart_head_by_head():
    """Attention as guided diffusion computes it from one tensor, beside three of their own."""
    heads, width, length = 4, 8, 5
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = (
        torch.randn(shape, generator=generator)
        for shape in ((3 * width, width, 1), (3 * width,), (2, width, length))
    )
    joint = torch.nn.functional.conv1d(x, weight, bias)
    of_heads = joint.reshape(2 * heads, 3 * width // heads, length)
    stem = "down_blocks.0.attentions.0"
    parts = ldm.split_qkv({f"{stem}.qkv.weight": weight, f"{stem}.qkv.bias": bias}, heads)
    for name, expected in zip("qkv", of_heads.chunk(3, dim=1), strict=True):
        found = parts[f"{stem}.to_{name}.weight"] @ x + parts[f"{stem}.to_{name}.bias"][:, None]
        torch.testing.assert_close(found.reshape(expected.shape), expected)


def test_what_has_no_counterpart_keeps_its_name():
    state = {"strange.weight": torch.zeros(1)}
    for convert in (ldm.unet, ldm.vae):
        assert list(convert(state)) == ["strange.weight"]
    assert list(ldm.split_qkv(state, 4)) == ["strange.weight"]
    assert list(ldm.text(state, 2)) == ["strange.weight"]


@pytest.mark.parametrize("wrap", [True, False])
def test_wrapped_and_parallel_checkpoints_are_read(wrap):
    tensors = {"module.a": torch.zeros(1)}
    content = {"state_dict": tensors, "epoch": 3} if wrap else tensors
    assert list(ldm.plain(content, "it")) == ["a"]


@pytest.mark.parametrize("content", [{}, {"state_dict": {}}, {"state_dict": 3}, {"a": 1}])
def test_a_checkpoint_without_tensors_is_refused(content):
    with pytest.raises(MethodUnavailableError, match="it holds no tensors"):
        ldm.plain(content, "it")
