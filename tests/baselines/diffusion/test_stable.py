import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from baselines.base import MethodUnavailableError
from baselines.diffusion.stable import (
    VAE,
    TextEncoder,
    added,
    draw,
    load_schedule,
    on_device,
    placed,
)
from imaging.convert import to_tensor


@pytest.fixture(scope="module")
def base(weights):
    return weights / "stable-diffusion-2-base"


@pytest.fixture(scope="module")
def vae(base):
    return VAE.load(base / "vae", tile=256)


@pytest.fixture(scope="module")
def text(base):
    return TextEncoder.load(base)


def test_old_and_new_names_of_the_vae_give_the_same_network(base, vae, tmp_path, lq):
    from diffusers import AutoencoderKL

    shutil.copy(base / "vae" / "config.json", tmp_path)
    new = vae.module.state_dict()
    assert not set(new) <= set(load_file(base / "vae" / "diffusion_pytorch_model.safetensors"))
    save_file(new, tmp_path / "diffusion_pytorch_model.safetensors")
    again = VAE.load(tmp_path, tile=256).module.state_dict()
    assert all(torch.equal(again[key], new[key]) for key in new)
    # diffusers' own reading of the old names
    theirs = AutoencoderKL.from_pretrained(base / "vae").state_dict()
    assert all(torch.equal(theirs[key], new[key]) for key in new)


@torch.inference_mode()
def test_encoding_is_mean_plus_spread_times_the_noise_of_the_seed(vae, lq):
    image = to_tensor(lq)
    moments = vae.module.quant_conv(vae.module.encoder(2 * image - 1))
    mean, log_variance = moments.chunk(2, dim=1)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    expected = 0.18215 * (mean + torch.exp(log_variance.clamp(-30, 20) / 2) * noise)
    found = vae.encode(image, torch.Generator().manual_seed(3))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(found, vae.encode(image, torch.Generator().manual_seed(4)))


@torch.inference_mode()
def test_decoding_is_clamped_to_the_range_of_pictures(vae):
    latents = torch.randn(1, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    expected = (vae.module.decoder(vae.module.post_quant_conv(latents / 0.18215)) + 1) / 2
    torch.testing.assert_close(vae.decode(latents), expected.clamp(0, 1))


@torch.inference_mode()
@pytest.mark.parametrize("texture", [False, True])
def test_tiles_of_the_vae_leave_no_seam(base, draw_wave, texture):
    """Rows and columns where tiles meet change no more than others do."""
    tiled = VAE.load(base / "vae", tile=128)
    photo = draw_wave(32, 32).resize((320, 320)) if not texture else draw_wave(320, 320)
    latents = tiled.encode(to_tensor(photo), torch.Generator().manual_seed(0))
    assert latents.shape == (1, 4, 40, 40)
    picture = tiled.decode(latents)[0]
    assert picture.shape == (3, 320, 320)
    for axis in (1, 2):
        steps = picture.diff(dim=axis).abs().mean(dim=(0, 3 - axis)).numpy()
        # tiles of 128 px begin every 96 px and are cut there, after fading over 32
        meeting = [95, 127, 191, 223, 287]
        elsewhere = np.delete(steps, meeting)
        assert steps[meeting].max() < 1.2 * elsewhere.max()


@torch.inference_mode()
def test_up_to_the_tile_the_vae_works_in_one_piece(vae, draw_wave):
    latents = vae.encode(to_tensor(draw_wave(256, 128)), torch.Generator().manual_seed(0))
    whole = vae.module.decoder(vae.module.post_quant_conv(latents / vae.scaling))
    assert torch.equal(vae.decode(latents), (whole / 2 + 0.5).clamp(0, 1))


def test_prompts_are_begun_ended_and_filled_up_with_the_release_s_padding(text):
    vocabulary = text.tokenizer.get_vocab()
    ids = text.tokenizer(["ab"], padding="max_length", max_length=77, return_tensors="pt").input_ids
    expected = [vocabulary[name] for name in ("<|startoftext|>", "a", "b</w>", "<|endoftext|>")]
    expected += [vocabulary["!"]] * 73
    assert ids[0].tolist() == expected


def test_prompts_are_encoded_one_by_one_and_long_ones_cut(text):
    prompts = ["a sky, ,", "x" * 300, "x" * 200]
    together = text(prompts)
    assert together.shape == (3, 77, 24)
    torch.testing.assert_close(together[0], text(prompts[:1])[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together[1], together[2])
    assert not torch.allclose(together[0], together[1])


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_both_prefixes_of_the_text_encoder_are_read(base, text, tmp_path, prefix):
    shutil.copytree(base, tmp_path / "base")
    file = tmp_path / "base/text_encoder/model.safetensors"
    state = {
        prefix + key.removeprefix("text_model."): value for key, value in load_file(file).items()
    }
    save_file(state, file)
    torch.testing.assert_close(TextEncoder.load(tmp_path / "base")(["sky"]), text(["sky"]))


def test_a_text_encoder_without_a_tensor_is_refused(base, tmp_path):
    shutil.copytree(base, tmp_path / "base")
    file = tmp_path / "base/text_encoder/model.safetensors"
    state = load_file(file)
    del state["text_model.final_layer_norm.bias"]
    save_file(state, file)
    with pytest.raises(MethodUnavailableError, match="missing"):
        TextEncoder.load(tmp_path / "base")


def test_the_schedule_is_stable_diffusion_s(base):
    schedule = load_schedule(base)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alphas = np.cumprod(1 - betas)
    assert float(schedule.alphas_cumprod[999]) == pytest.approx(alphas[999], rel=1e-4)
    assert float(schedule.alphas_cumprod[999]) == pytest.approx(0.00466009508818388, rel=1e-4)
    schedule.set_timesteps(50)
    assert schedule.timesteps.tolist() == list(range(981, 0, -20))
    # the fields of the file, not defaults of the class
    assert schedule.config.clip_sample is False
    assert schedule.config.steps_offset == 1


def test_changes_are_added_in_float32():
    state = {"a": torch.ones(2, dtype=torch.float16), "b": torch.zeros(1)}
    result = added(state, {"a": torch.full((2,), 1e-4)}, "it")
    assert result["a"].dtype is torch.float32
    torch.testing.assert_close(result["a"], torch.full((2,), 1.0001))
    assert result["b"] is state["b"]


@pytest.mark.parametrize("change", [{"c": torch.zeros(1)}, {"a": torch.zeros(3)}])
def test_changes_without_a_place_are_refused(change):
    with pytest.raises(MethodUnavailableError, match="does not fit it"):
        added({"a": torch.zeros(2)}, change, "it")


def test_noise_is_drawn_on_the_cpu_whatever_the_device():
    noise = draw((2, 3), torch.Generator().manual_seed(0), "meta")
    assert (noise.shape, noise.device.type) == ((2, 3), "meta")


class Places(nn.Linear):
    def __init__(self):
        super().__init__(1, 1)
        self.seen = []

    def to(self, *arguments, **named):
        self.seen.append(str(arguments[0]))
        return self


@pytest.mark.parametrize(("offload", "seen"), [(True, ["cuda", "cpu"]), (False, [])])
def test_offloaded_networks_visit_the_device(offload, seen):
    module = Places()
    with pytest.raises(KeyError), on_device(module, "cuda", offload=offload):
        raise KeyError
    assert module.seen == seen


def test_offloaded_networks_wait_on_the_cpu():
    with torch.device("meta"):
        module = nn.Linear(1, 1)
    assert placed(module, "meta", torch.float16, offload=False).weight.dtype is torch.float16
    assert not module.training
    waiting = placed(nn.Linear(1, 1), "meta", torch.float32, offload=True)
    assert waiting.weight.device.type == "cpu"


def test_configurations_are_read_from_the_folder(base):
    config = json.loads((base / "vae/config.json").read_text())
    assert config["block_out_channels"] == [8, 16, 16, 16]
