import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from baselines import osediff, tiny
from baselines.base import MethodUnavailableError, run
from baselines.diffusion.tiles import LatentTiling
from baselines.osediff import OSEDiff, OSEDiffOptions, low_rank_changes, split_checkpoint
from imaging.convert import to_tensor
from tests.baselines.diffusion import fakes

ALPHA = 0.00466009508818388  # what is left of the variance at timestep 999
GOLDEN = json.loads((Path(__file__).parents[2] / "golden/diffusion.json").read_text())


def test_a_card_can_be_read_without_weights(tmp_path):
    card = osediff.method(tmp_path)
    assert "osediff.pkl" in card.missing() or "unet/config.json" in card.missing()
    assert (card.steps, card.scale) == (1, 4)
    with pytest.raises(MethodUnavailableError, match=r"python -m baselines\.weights osediff"):
        card.load("cpu")


def test_parameters_are_the_paper_s_without_what_is_not_run():
    """Table 4 of the PURE paper says 1775 million."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from baselines.diffusion.tagger import TaggerConfig, TaggerNetwork

    with torch.device("meta"):
        networks = [
            UNet2DConditionModel(
                block_out_channels=(320, 640, 1280, 1280),
                cross_attention_dim=1024,
                attention_head_dim=(5, 10, 20, 20),
                use_linear_projection=True,
            ),
            AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(128, 256, 512, 512),
                layers_per_block=2,
            ),
            CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=49408,
                    hidden_size=1024,
                    intermediate_size=4096,
                    num_hidden_layers=23,
                    num_attention_heads=16,
                )
            ),
            TaggerNetwork(TaggerConfig()),
        ]
    total = sum(p.numel() for network in networks for p in network.parameters())
    assert osediff.METHOD.parameters == total
    captioning = 470_926_449 - 212_117_045  # RAM and DAPE as published, the tagger as built
    text = 12_596_224 + 1024 * 1024  # OpenCLIP's last layer and projection
    assert (total + captioning + text) / 1e6 == pytest.approx(1775, abs=0.6)


@torch.inference_mode()
def test_merged_changes_act_as_the_two_small_layers_would(weights, one_step):
    """A stock U-Net that runs A and B beside every changed layer."""
    from diffusers import UNet2DConditionModel

    folder = weights / "stable-diffusion-2-1-base/unet"
    lora = torch.load(weights / "osediff/osediff.pkl")
    unet = UNet2DConditionModel.from_config(dict(tiny.UNET)).eval()
    base = load_file(folder / "diffusion_pytorch_model.safetensors")
    tensors = lora["state_dict_unet"]
    base["conv_in.weight"] = tensors["conv_in.base_layer.weight"]
    base["conv_in.bias"] = tensors["conv_in.base_layer.bias"]
    unet.load_state_dict(base)

    def beside(a, b):
        def hook(layer, args, out):
            (x,) = args[:1]
            if isinstance(layer, torch.nn.Linear):
                return out + 2 * (x @ a.T @ b.T)
            low = torch.nn.functional.conv2d(x, a, None, layer.stride, layer.padding)
            return out + 2 * torch.nn.functional.conv2d(low, b)

        return hook

    changed = 0
    for group in ("encoder", "decoder", "others"):
        for name in lora[f"unet_lora_{group}_modules"]:
            a, b = (tensors[f"{name}.lora_{half}.default_{group}.weight"] for half in "AB")
            unet.get_submodule(name).register_forward_hook(beside(a, b))
            changed += 1
    assert changed == 258 - 1  # at full size one more layer changes its width by a shortcut
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 16, 16, generator=generator)
    context = torch.randn(1, 77, tiny.TEXT_WIDTH, generator=generator)
    expected = unet(latents, 999, encoder_hidden_states=context).sample
    found = one_step.unet(latents, 999, encoder_hidden_states=context).sample
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_vae_s_encoder_is_changed_and_its_decoder_is_not(weights, one_step):
    lora = torch.load(weights / "osediff/osediff.pkl")
    changed = set(lora["vae_lora_encoder_modules"])
    assert len(changed) == 32 - 1  # as above
    assert len(lora["vae_lora_encoder_modules"]) > len(
        changed
    )  # the release lists some more than once
    from baselines.diffusion.stable import VAE

    plain = VAE.load(weights / "stable-diffusion-2-1-base/vae", tile=256).module.state_dict()
    for key, value in one_step.vae.module.state_dict().items():
        same = torch.equal(value, plain[key])
        assert same == (key.removesuffix(".weight") not in changed), key


def test_the_clean_latents_are_those_a_ddpm_would_noise_to_the_input():
    from diffusers import DDPMScheduler

    latents = torch.randn(1, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(1, 4, 5, 6, generator=torch.Generator().manual_seed(1))
    method = fake(lambda tile, t, **_: SimpleNamespace(sample=noise))
    found = method.denoise(latents, torch.zeros(1, 77, 24), LatentTiling(24, 8))
    schedule = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )
    assert float(schedule.alphas_cumprod[999]) == pytest.approx(method.alpha, rel=1e-4)
    torch.testing.assert_close(schedule.add_noise(found, noise, torch.tensor([999])), latents)


def fake(predict):
    return OSEDiff(
        unet=fakes.Network(predict),
        vae=fakes.PoolingVAE(),
        text=fakes.Text(),
        tagger=fakes.Tagger(),
        alpha=ALPHA,
    )


def noiseless(tile, t, encoder_hidden_states):
    """The prediction under which the latents are clean already."""
    assert t == 999
    return SimpleNamespace(sample=tile * (1 - ALPHA**0.5) / (1 - ALPHA) ** 0.5)


@pytest.mark.parametrize("size", [(32, 32), (128, 128), (100, 180), (512, 512)])
def test_pictures_of_any_size_come_back_in_place_and_without_seams(draw_wave, size):
    """Networks that change nothing: what remains is the blur of the latents, and no shift."""
    lq = draw_wave(32, 32).resize(size, Image.Resampling.BICUBIC)
    options = OSEDiffOptions(colour_fix="none")
    restored = fake(noiseless).restore(lq, options=options).image
    assert restored.size == (4 * size[0], 4 * size[1])
    reference = to_tensor(lq.resize(restored.size, Image.Resampling.BICUBIC))
    found = to_tensor(restored)
    assert fakes.shift(found, reference) == pytest.approx([0, 0], abs=0.5)
    # smooth as the input: nowhere a larger step than it has
    for axis in (-1, -2):
        assert found.diff(dim=axis).abs().max() <= reference.diff(dim=axis).abs().max() + 0.02


def test_the_enlarged_photo_is_tagged_and_the_prompt_is_the_published_one(draw_wave):
    method = fake(noiseless)
    restoration = method.restore(draw_wave(40, 32), options=OSEDiffOptions(prompt="sharp"))
    assert method.tagger.sizes == [(160, 128)]
    assert method.text.prompts == [["tree, sky, sharp,"]]
    assert restoration.text == "tree, sky"
    assert restoration.details["prompt"] == "tree, sky, sharp,"


def test_tags_of_the_visitor_replace_the_tagger_s(draw_wave):
    method = fake(noiseless)
    restoration = method.restore(draw_wave(40, 32), options=OSEDiffOptions(tags="cat"))
    assert method.tagger.sizes == []
    assert method.text.prompts == [["cat, ,"]]
    assert restoration.text == "cat"


def test_a_run_keeps_the_promises_of_a_method(weights, one_step, lq):
    before = lq.tobytes()
    restoration, card = run(osediff.method(weights), one_step, lq, seed=3)
    again, _ = run(osediff.method(weights), one_step, lq, seed=3)
    other, _ = run(osediff.method(weights), one_step, lq, seed=4)
    assert restoration.image.tobytes() == again.image.tobytes()
    assert restoration.image.tobytes() != other.image.tobytes()
    assert lq.tobytes() == before
    assert card.details["weights"] == "random weights, for testing"
    assert card.text == restoration.text


def test_the_colour_fix_can_be_chosen(one_step, lq):
    pictures = {
        fix: one_step.restore(lq, options=OSEDiffOptions(colour_fix=fix)).image.tobytes()
        for fix in ("adain", "wavelet", "none")
    }
    assert len(set(pictures.values())) == 3
    assert one_step.restore(lq).image.tobytes() == pictures["adain"]


def test_outputs_are_the_recorded_ones(one_step):
    from tools import golden_diffusion as golden

    restoration = one_step.restore(golden.photo(), seed=golden.SEED)
    expected = GOLDEN["osediff"]
    assert restoration.details["prompt"] == expected["prompt"]
    pixels = golden.some(to_tensor(restoration.image))
    # a level or two where another processor rounds differently
    np.testing.assert_allclose(pixels, expected["pixels"], atol=2.5 / 255)
    states = golden.some(one_step.text(["a sky, a tree, ,"]))
    np.testing.assert_allclose(states, GOLDEN["text"]["states"], atol=1e-3)


@pytest.fixture
def checkpoint():
    return tiny.osediff_checkpoint(0)


def test_a_checkpoint_is_taken_whole(checkpoint):
    unet, vae = split_checkpoint(checkpoint, "file")
    assert set(unet) == set(checkpoint["state_dict_unet"])
    assert set(vae) == set(checkpoint["state_dict_vae"])


def test_gaps_in_a_checkpoint_are_named(checkpoint):
    key = "conv_out.lora_B.default_decoder.weight"
    value = checkpoint["state_dict_unet"].pop(key)
    with pytest.raises(MethodUnavailableError, match=f"file lacks {key}"):
        split_checkpoint(checkpoint, "file")
    checkpoint["state_dict_unet"] |= {key: value, "time.lora_A.default_others.weight": value}
    with pytest.raises(MethodUnavailableError, match=r"holds, but does not list, time\.lora_A"):
        split_checkpoint(checkpoint, "file")
    del checkpoint["rank_vae"]
    with pytest.raises(MethodUnavailableError, match="file lacks rank_vae"):
        split_checkpoint(checkpoint, "file")


def test_another_rank_than_announced_is_refused():
    state = {"x.lora_A.d.weight": torch.zeros(3, 5), "x.lora_B.d.weight": torch.zeros(2, 3)}
    with pytest.raises(MethodUnavailableError, match="rank 3 at x; 4 was announced"):
        low_rank_changes(state, 4, "file")


def test_the_checkpoint_holds_tensors_numbers_and_names_alone(weights):
    content = torch.load(weights / "osediff/osediff.pkl", weights_only=True)
    assert {type(value) for value in content.values()} <= {dict, int, list}
