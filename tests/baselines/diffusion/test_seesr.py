import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from baselines import osediff, seesr
from baselines.base import MethodUnavailableError, run
from baselines.diffusion.image_attention import IMAGE_TOKENS
from baselines.diffusion.stable import load_schedule
from baselines.seesr import SeeSR, SeeSROptions, SeeSROptionsError
from imaging.convert import to_tensor
from tests.baselines.diffusion import fakes

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/diffusion.json").read_text())


def test_a_card_can_be_read_without_weights(tmp_path):
    card = seesr.method(tmp_path)
    assert "stable-diffusion-2-base" in card.missing()
    assert (card.steps, card.scale) == (50, 4)
    with pytest.raises(MethodUnavailableError, match=r"python -m baselines\.weights seesr"):
        card.load("cpu")


def test_parameters_are_the_paper_s_without_what_is_not_run():
    """Table 4 of the PURE paper says 2524 million; the parts are counted where they are tested."""
    unet, controlnet, plain_unet = 1_126_760_324, 489_031_440, 865_910_724
    assert seesr.METHOD.parameters == osediff.METHOD.parameters - plain_unet + unet + controlnet
    captioning = 470_926_449 - 212_117_045  # RAM and DAPE as published, the tagger as built
    text = 12_596_224 + 1024 * 1024  # OpenCLIP's last layer and projection
    total = (seesr.METHOD.parameters + captioning + text) / 1e6
    assert total == pytest.approx(2524, abs=0.5)


class Truth:
    """A U-Net and a ControlNet that know the photo, and predict the noise on top of it.

    The ControlNet hands its piece of the photo to the U-Net, so that a piece cut in the wrong place
    would restore the wrong place.
    """

    def __init__(self, schedule):
        self.alphas = schedule.alphas_cumprod
        self.times, self.batches, self.scales = [], [], []

    def control(self, latents, t, *, controlnet_cond, conditioning_scale, **named):
        assert named["cross_attention_kwargs"][IMAGE_TOKENS].shape[0] == len(latents)
        self.scales.append(conditioning_scale)
        return (), fakes.cells_of(controlnet_cond[:1]).expand(len(latents), -1, -1, -1)

    def predict(self, latents, t, *, mid_block_additional_residual, **named):
        self.times.append(int(t))
        self.batches.append(len(latents))
        a = self.alphas[t]
        noise = (latents - a**0.5 * mid_block_additional_residual) / (1 - a) ** 0.5
        return SimpleNamespace(sample=noise)


@pytest.fixture
def truth(weights):
    return Truth(load_schedule(weights / "stable-diffusion-2-base"))


def fake(weights, truth):
    return SeeSR(
        unet=fakes.Network(truth.predict),
        controlnet=fakes.Network(truth.control),
        vae=fakes.PoolingVAE(),
        text=fakes.Text(),
        tagger=fakes.Tagger(),
        schedule=load_schedule(weights / "stable-diffusion-2-base"),
    )


@pytest.mark.parametrize("size", [(32, 32), (128, 128), (100, 180), (512, 512)])
def test_pictures_of_any_size_come_back_in_place_and_without_seams(weights, truth, draw_wave, size):
    lq = draw_wave(32, 32).resize(size, Image.Resampling.BICUBIC)
    options = SeeSROptions(steps=2, colour_fix="none")
    restored = fake(weights, truth).restore(lq, options=options).image
    assert restored.size == (4 * size[0], 4 * size[1])
    reference = to_tensor(lq.resize(restored.size, Image.Resampling.BICUBIC))
    found = to_tensor(restored)
    assert fakes.shift(found, reference) == pytest.approx([0, 0], abs=0.5)
    # t = 1 leaves a little noise of the last step, 0.03 of the latents' scale
    for axis in (-1, -2):
        assert found.diff(dim=axis).abs().max() <= reference.diff(dim=axis).abs().max() + 0.05


def test_the_photo_as_it_came_is_tagged_and_the_prompts_are_the_published_ones(
    weights, truth, draw_wave
):
    method = fake(weights, truth)
    restoration = method.restore(draw_wave(40, 32), options=SeeSROptions(steps=1))
    assert method.tagger.sizes == [(40, 32)]
    assert method.text.prompts == [
        ["dotted, noise, blur, lowres, smooth", "tree, sky, ,clean, high-resolution, 8k"]
    ]
    assert restoration.text == "tree, sky"
    options = SeeSROptions(steps=1, tags="cat", prompt="sharp", added="8k", negative="bad")
    method.restore(draw_wave(40, 32), options=options)
    assert method.text.prompts[1] == ["bad", "cat, sharp,8k"]


def test_the_published_fifty_steps_run_both_prompts_from_981_down(weights, truth, draw_wave):
    told = []
    method = fake(weights, truth)
    method.restore(draw_wave(32, 32), progress=lambda done, steps: told.append((done, steps)))
    assert truth.times == list(range(981, 0, -20))
    assert truth.batches == [2] * 50
    assert truth.scales == [1.0] * 50
    assert told == [(i, 50) for i in range(1, 51)]


def test_without_guidance_the_prompt_alone_is_run(weights, truth, draw_wave):
    options = SeeSROptions(steps=2, guidance=1, conditioning=0.5)
    restoration = fake(weights, truth).restore(draw_wave(32, 32), options=options)
    assert truth.batches == [1, 1]
    assert truth.scales == [0.5, 0.5]
    assert restoration.details["negative_prompt"] is None


def test_progress_may_stop_a_run(weights, truth, draw_wave):
    def stop(done, steps):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fake(weights, truth).restore(draw_wave(32, 32), progress=stop)
    assert len(truth.times) == 1


@torch.inference_mode()
def test_guidance_leads_from_the_negative_prompt_to_the_prompt(weights, truth):
    """A prediction that is the batch's index shows what becomes of the two."""
    method = fake(weights, truth)
    seen = []

    def predict(latents, t, **named):
        batch = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1).expand_as(latents)
        return SimpleNamespace(sample=batch)

    method.unet = fakes.Network(predict)
    method.schedule = SimpleNamespace(
        timesteps=torch.tensor([7]),
        set_timesteps=lambda steps: None,
        step=lambda noise, t, latents, generator: (
            seen.append(noise) or SimpleNamespace(prev_sample=latents)
        ),
    )
    photo, context = torch.zeros(1, 3, 64, 64), torch.zeros(2, 77, 24)
    latents = torch.zeros(1, 4, 8, 8)
    options = SeeSROptions(guidance=5.5)
    method.denoise(latents, photo, context, torch.zeros(1, 10, 24), torch.Generator(), options)
    torch.testing.assert_close(seen[0], torch.full((1, 4, 8, 8), 1 + 5.5 * 2))


@torch.inference_mode()
def test_it_starts_at_the_photo_drowned_in_the_noise_of_timestep_999(weights, truth, draw_wave):
    method = fake(weights, truth)
    photo = to_tensor(draw_wave(64, 64))
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    started = method._start(photo, torch.Generator().manual_seed(2), "photo")
    expected = 0.068265 * fakes.cells_of(photo) + 0.997667 * noise
    torch.testing.assert_close(started, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        method._start(photo, torch.Generator().manual_seed(2), "noise"), noise
    )


def test_a_run_keeps_the_promises_of_a_method(weights, many_steps, lq):
    few = SeeSROptions(steps=2)
    method = seesr.method(weights)
    restorer = SimpleNamespace(
        restore=lambda lq, *, seed=0: many_steps.restore(lq, seed=seed, options=few)
    )
    before = lq.tobytes()
    restoration, card = run(method, restorer, lq, seed=3)
    again, _ = run(method, restorer, lq, seed=3)
    other, _ = run(method, restorer, lq, seed=4)
    assert restoration.image.tobytes() == again.image.tobytes()
    assert restoration.image.tobytes() != other.image.tobytes()
    assert lq.tobytes() == before
    assert card.details["weights"] == "random weights, for testing"
    assert card.details["steps"] == 2


def test_outputs_are_the_recorded_ones(many_steps):
    from tools import golden_diffusion as golden

    options = SeeSROptions(steps=3, prompt="sharp")
    restoration = many_steps.restore(golden.photo(), seed=golden.SEED, options=options)
    expected = GOLDEN["seesr"]
    assert restoration.details["prompt"] == expected["prompt"]
    pixels = golden.some(to_tensor(restoration.image))
    np.testing.assert_allclose(pixels, expected["pixels"], atol=2.5 / 255)
    tokens = golden.some(many_steps.tagger(golden.photo()).tokens)
    np.testing.assert_allclose(tokens, GOLDEN["tagger"]["tokens"], atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": 0}, "steps must be 1 to 999, not 0"),
        ({"steps": 1000}, "not 1000"),
        ({"guidance": -1}, "guidance must be 0 or more"),
        ({"conditioning": float("nan")}, "conditioning must be 0 or more"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, sentence):
    with pytest.raises(SeeSROptionsError, match=sentence):
        SeeSROptions(**settings)


def edited(weights, tmp_path, name, edit):
    folder = tmp_path / name
    shutil.copytree(weights / "seesr" / name, folder)
    file = folder / "diffusion_pytorch_model.safetensors"
    save_file(edit(load_file(file)), file)
    return folder


def test_a_stock_network_is_refused(weights, tmp_path):
    """It would load, and give blurred pictures."""
    from diffusers import UNet2DConditionModel

    folder = edited(
        weights,
        tmp_path,
        "unet",
        lambda state: {k: v for k, v in state.items() if "image_attentions" not in k},
    )
    with pytest.raises(MethodUnavailableError, match="no image attention"):
        seesr.load_network(UNet2DConditionModel, folder)


def test_a_missing_tensor_is_named(weights, tmp_path):
    from diffusers import ControlNetModel

    def drop(state):
        del state["mid_block.image_attentions.0.norm.weight"]
        return state

    folder = edited(weights, tmp_path, "controlnet", drop)
    missing = r"1 missing: mid_block\.attentions\.0\.image\.norm\.weight"
    with pytest.raises(MethodUnavailableError, match=missing):
        seesr.load_network(ControlNetModel, folder)


def test_pooling_is_the_inverse_of_spreading():
    """The fakes' own promise: latents of a decoded picture are the latents."""
    cells = torch.full((1, 4, 4, 4), 0.3)
    assert torch.allclose(F.avg_pool2d(fakes.PoolingVAE().decode(cells), 8), cells[:, :3])
