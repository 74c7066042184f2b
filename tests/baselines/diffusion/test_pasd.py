import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from baselines import pasd
from baselines.base import MethodUnavailableError, run
from baselines.diffusion.stable import load_schedule
from baselines.diffusion.tiles import LatentTiling
from baselines.pasd import PASD, PASDOptions, PASDOptionsError
from imaging.convert import to_tensor
from tests.baselines.diffusion import fakes

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/diffusion.json").read_text())
# what is left of the variance, paper's and sheet's roots: 0.068265, 0.118959 and 0.975488
LEFT = {999: 0.00466009508818388, 900: 0.118959**2, 50: 0.975488**2}


def test_a_card_can_be_read_without_weights(tmp_path):
    card = pasd.method(tmp_path)
    assert "stable-diffusion-v1-5" in card.missing()
    assert (card.steps, card.scale) == (20, 4)
    with pytest.raises(MethodUnavailableError, match=r"python -m baselines\.weights pasd"):
        card.load("cpu")


def test_parameters_are_the_paper_s():
    """Table 4 of the PURE paper says 1900 million; the parts are counted where they are tested."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        networks = [
            AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(128, 256, 512, 512),
                layers_per_block=2,
            ),
            CLIPTextModel(
                CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
            ),
        ]
    rest = sum(p.numel() for network in networks for p in network.parameters())
    unet, controlnet, blip = 1_107_755_524, 361_279_120, 223_971_644
    assert unet + controlnet + blip + rest == pasd.METHOD.parameters
    assert pasd.METHOD.parameters / 1e6 == pytest.approx(1900, abs=0.5)


class Truth:
    """A U-Net and a ControlNet that know the photo, and predict the noise on top of it.

    The ControlNet hands its piece of the photo to the U-Net, so that a piece cut in the wrong place
    would restore the wrong place.
    """

    def __init__(self, schedule):
        self.alphas = schedule.alphas_cumprod
        self.times, self.batches, self.scales, self.sizes = [], [], [], []

    def control(self, latents, t, *, controlnet_cond, conditioning_scale, **named):
        self.scales.append(conditioning_scale)
        self.sizes.append(tuple(controlnet_cond.shape[-2:]))
        return (), fakes.cells_of(controlnet_cond[:1]).expand(len(latents), -1, -1, -1)

    def predict(self, latents, t, *, mid_block_additional_residual, **named):
        self.times.append(int(t))
        self.batches.append(len(latents))
        a = self.alphas[t]
        noise = (latents - a**0.5 * mid_block_additional_residual) / (1 - a) ** 0.5
        return SimpleNamespace(sample=noise)


class Captioner:
    """Sees a blurry dog in everything, and remembers the sizes of what it saw."""

    def __init__(self):
        self.network = torch.nn.Identity()
        self.sizes = []

    def __call__(self, photo):
        self.sizes.append(photo.size)
        return "a blurry and noisy dog"


@pytest.fixture
def schedule(weights):
    return load_schedule(weights / "stable-diffusion-v1-5", "UniPCMultistepScheduler")


@pytest.fixture
def truth(schedule):
    return Truth(schedule)


@pytest.fixture
def method(schedule, truth):
    return PASD(
        unet=fakes.Network(truth.predict),
        controlnet=fakes.Network(truth.control),
        vae=fakes.PoolingVAE(),
        text=fakes.Text(),
        captioner=Captioner(),
        schedule=schedule,
    )


@pytest.mark.parametrize("size", [(32, 32), (128, 128), (100, 180), (512, 512)])
def test_pictures_of_any_size_come_back_in_place_and_without_seams(method, truth, draw_wave, size):
    lq = draw_wave(32, 32).resize(size, Image.Resampling.BICUBIC)
    restored = method.restore(lq, options=PASDOptions(steps=2, colour_fix="none")).image
    assert restored.size == (4 * size[0], 4 * size[1])
    assert method.tiling == LatentTiling(80, 8)  # of 320 and 32, at a quarter of the release's size
    # in tiles where it is larger than five times the networks' own size
    assert (len(truth.times) > 2) == (min(size) == 512)
    reference = to_tensor(lq.resize(restored.size, Image.Resampling.BICUBIC))
    found = to_tensor(restored)
    assert fakes.shift(found, reference) == pytest.approx([0, 0], abs=0.5)
    for axis in (-1, -2):
        assert found.diff(dim=axis).abs().max() <= reference.diff(dim=axis).abs().max() + 0.02


def test_the_photo_as_it_came_is_captioned_and_the_prompts_are_the_published_ones(
    method, draw_wave
):
    restoration = method.restore(draw_wave(40, 32), options=PASDOptions(steps=1))
    assert method.captioner.sizes == [(40, 32)]
    negative = "blurry, dotted, noise, raster lines, unclear, lowres, over-smoothed"
    prompt = "a clear and clean dog, clean, high-resolution, 8k"
    assert method.text.prompts == [[negative, prompt]]
    assert restoration.text == "a clear and clean dog"
    assert restoration.details["prompt"] == prompt


@pytest.mark.parametrize(
    ("settings", "prompt"),
    [
        ({"caption": "cat", "prompt": "sharp"}, "cat, sharp, clean, high-resolution, 8k"),
        ({"caption": ""}, "clean, high-resolution, 8k"),
        ({"caption": "", "prompt": "sharp", "added": ""}, "sharp"),
    ],
)
def test_a_caption_of_the_visitor_replaces_the_captioner_s(method, draw_wave, settings, prompt):
    options = PASDOptions(steps=1, negative="bad", **settings)
    restoration = method.restore(draw_wave(40, 32), options=options)
    assert method.captioner.sizes == []
    assert method.text.prompts == [["bad", prompt]]
    assert restoration.text == settings["caption"]


def test_the_published_twenty_steps_run_both_prompts_from_999_down(method, truth, draw_wave):
    told = []
    method.restore(draw_wave(32, 32), progress=lambda done, steps: told.append((done, steps)))
    expected = [*range(999, 548, -50), *range(500, 0, -50)]
    assert truth.times == expected
    assert truth.batches == [2] * 20
    assert truth.scales == [1.0] * 20
    assert told == [(i, 20) for i in range(1, 21)]


def test_without_guidance_the_prompt_alone_is_run(method, truth, draw_wave):
    options = PASDOptions(steps=2, guidance=1, conditioning=0.5)
    restoration = method.restore(draw_wave(32, 32), options=options)
    assert truth.batches == [1, 1]
    assert truth.scales == [0.5, 0.5]
    assert restoration.details["negative_prompt"] is None


def test_the_short_side_is_one_and_a_half_times_the_networks_own_or_chosen(
    method, truth, draw_wave
):
    """768 of 512 in the release, 192 of 128 here."""
    method.restore(draw_wave(40, 32), options=PASDOptions(steps=1))
    method.restore(draw_wave(40, 32), options=PASDOptions(steps=1, short_side=1.25))
    method.restore(draw_wave(60, 64), options=PASDOptions(steps=1, short_side=1.25))
    assert truth.sizes == [(192, 240), (160, 200), (256, 240)]


@torch.inference_mode()
@pytest.mark.parametrize("level", [900, 50])
def test_it_starts_at_the_photo_drowned_twice(method, draw_wave, level):
    photo = to_tensor(draw_wave(64, 64))
    generator = torch.Generator().manual_seed(2)
    started = method._start(photo, generator, PASDOptions(noise_level=level))
    drawn = torch.Generator().manual_seed(2)
    first, second = (torch.randn(1, 4, 8, 8, generator=drawn) for _ in range(2))
    once = LEFT[999] ** 0.5 * fakes.cells_of(photo) + (1 - LEFT[999]) ** 0.5 * first
    expected = LEFT[level] ** 0.5 * once + (1 - LEFT[level]) ** 0.5 * second
    torch.testing.assert_close(started, expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_it_may_start_at_noise_alone(method, draw_wave):
    photo = to_tensor(draw_wave(64, 64))
    started = method._start(photo, torch.Generator().manual_seed(2), PASDOptions(start="noise"))
    expected = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(started, expected)


def test_the_decoded_picture_is_rounded(method, draw_wave, monkeypatch):
    level = torch.full((1, 3, 192, 240), 100.6 / 255)
    monkeypatch.setattr(method.vae, "decode", lambda latents: level)
    options = PASDOptions(steps=1, colour_fix="none")
    assert method.restore(draw_wave(40, 32), options=options).image.getpixel((5, 5)) == (101,) * 3


def test_progress_may_stop_a_run(method, truth, draw_wave):
    def stop(done, steps):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        method.restore(draw_wave(32, 32), progress=stop)
    assert len(truth.times) == 1


def test_a_run_keeps_the_promises_of_a_method(weights, pixel_aware, lq):
    few = PASDOptions(steps=2, short_side=1)
    restorer = SimpleNamespace(
        restore=lambda lq, *, seed=0: pixel_aware.restore(lq, seed=seed, options=few)
    )
    method = pasd.method(weights)
    before = lq.tobytes()
    restoration, card = run(method, restorer, lq, seed=3)
    again, _ = run(method, restorer, lq, seed=3)
    other, _ = run(method, restorer, lq, seed=4)
    assert restoration.image.tobytes() == again.image.tobytes()
    assert restoration.image.tobytes() != other.image.tobytes()
    assert lq.tobytes() == before
    assert card.text == restoration.text
    assert card.details["weights"] == "random weights, for testing"
    assert card.details["noise_level"] == 900


def test_networks_wait_on_the_cpu_between_uses(weights, lq):
    """Both devices are the CPU here: what comes and goes is the same picture."""
    options = PASDOptions(steps=1, short_side=1, caption="a dog")
    pictures = [
        pasd.load("cpu", weights=weights, offload=offload).restore(lq, options=options).image
        for offload in (False, True)
    ]
    assert pictures[0].tobytes() == pictures[1].tobytes()


def test_outputs_are_the_recorded_ones(pixel_aware):
    from tools import golden_diffusion as golden

    restoration = pixel_aware.restore(golden.photo(), seed=golden.SEED, options=golden.PASD_OPTIONS)
    expected = GOLDEN["pasd"]
    assert restoration.details["prompt"] == expected["prompt"]
    assert restoration.text == expected["tags"]
    pixels = golden.some(to_tensor(restoration.image))
    np.testing.assert_allclose(pixels, expected["pixels"], atol=2.5 / 255)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": 0}, "steps must be 1 to 999, not 0"),
        ({"noise_level": 1000}, "noise_level must be 1 to 999, not 1000"),
        ({"guidance": -1}, "guidance must be 0 or more"),
        ({"conditioning": float("nan")}, "conditioning must be 0 or more"),
        ({"short_side": 5}, "short_side must be 0.25 to 4, not 5"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, sentence):
    with pytest.raises(PASDOptionsError, match=sentence):
        PASDOptions(**settings)


def edited(weights, tmp_path, name, edit):
    folder = tmp_path / name
    shutil.copytree(weights / "pasd" / name, folder)
    file = folder / "diffusion_pytorch_model.safetensors"
    save_file(edit(load_file(file)), file)
    return folder


def test_what_only_training_needs_is_left_out(weights):
    state = load_file(weights / "pasd/controlnet/diffusion_pytorch_model.safetensors")
    ours = pasd.load_controlnet(weights / "pasd/controlnet").state_dict()
    left_out = {key for key in state if "to_rgbs" in key}
    assert len(left_out) == 6
    assert set(ours) == set(state) - left_out


def test_a_network_without_pixel_attention_is_refused(weights, tmp_path):
    """It would load, and not follow the photo closely."""
    folder = edited(
        weights,
        tmp_path,
        "unet",
        lambda state: {k: v for k, v in state.items() if "pixel_attentions" not in k},
    )
    with pytest.raises(MethodUnavailableError, match="no pixel attention"):
        pasd.load_unet(folder)


def test_a_missing_tensor_is_named(weights, tmp_path):
    def drop(state):
        del state["up_blocks.0.pixel_attentions.1.norm.weight"]
        return state

    missing = r"1 missing: unet\.up_blocks\.0\.resnets\.1\.pixel\.norm\.weight"
    with pytest.raises(MethodUnavailableError, match=missing):
        pasd.load_unet(edited(weights, tmp_path, "unet", drop))


def test_the_variant_with_rrdb_blocks_is_refused_by_name(weights, tmp_path):
    extra = "controlnet_cond_embedding.preprocesser.0.rdb1.conv1.weight"

    def add(state):
        return state | {extra: torch.zeros(16, 8, 3, 3)}

    with pytest.raises(MethodUnavailableError, match=f"1 left over: {extra}"):
        pasd.load_controlnet(edited(weights, tmp_path, "controlnet", add))
