import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from baselines import diffbir, tiny
from baselines.base import MethodUnavailableError, run
from baselines.diffbir import NEGATIVE, DiffBIR, DiffBIROptions, DiffBIROptionsError
from baselines.diffusion.schedule import spaced
from baselines.diffusion.stable import network_config
from baselines.diffusion.tiles import LatentTiling
from imaging.convert import to_tensor
from tests.baselines.diffusion import fakes

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/diffusion.json").read_text())
ALPHA = 0.00466009508818388  # what is left of the variance at timestep 999


def test_a_card_can_be_read_without_weights(tmp_path):
    card = diffbir.method(tmp_path)
    assert "stable-diffusion-2-1-base" in card.missing()
    assert (card.steps, card.scale) == (50, 4)
    with pytest.raises(MethodUnavailableError, match=r"python -m baselines\.weights diffbir"):
        card.load("cpu")


def test_parameters_are_the_paper_s_but_for_what_version_one_had(weights):
    """Table 4 of the PURE paper says 1717 million, which is version 1.

    That has SwinIR, 15,792,587, in place of BSRNet, and a second copy of the VAE's encoder.
    """
    from diffusers import AutoencoderKL, ControlNetModel

    from baselines import stablesr
    from baselines.rrdb import RRDBNet

    sizes = stablesr.SIZES
    with torch.device("meta"):
        vae = AutoencoderKL(**sizes["vae"])
        cleaner = RRDBNet()
        control = ControlNetModel(
            block_out_channels=(320, 640, 1280, 1280),
            cross_attention_dim=1024,
            attention_head_dim=(5, 10, 20, 20),
            use_linear_projection=True,
        )
        control.controlnet_cond_embedding = torch.nn.Conv2d(4, 320, 3, bias=False)

    def count(*networks):
        return sum(value.numel() for network in networks for value in network.parameters())

    assert count(control) == 363_153_280
    unet, text, unused = 865_910_724, 340_387_840, 12_596_224 + 1024 * 1024 + 1
    assert diffbir.METHOD.parameters == count(vae, cleaner, control) + unet + text
    second = count(vae.encoder, vae.quant_conv)
    first_version = diffbir.METHOD.parameters - count(cleaner) + 15_792_587 + second + unused
    assert first_version / 1e6 == pytest.approx(1717, abs=1)


class Truth:
    """Networks that know the photo: what the ControlNet sees is what the U-Net finds behind noise.

    The ControlNet hands its piece to the U-Net, so that a piece cut in the wrong place would
    restore the wrong place.
    """

    def __init__(self):
        betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        self.alphas = np.cumprod(1 - betas)
        self.times, self.batches, self.strengths, self.sizes = [], [], [], set()
        cleaner = fakes.Network(
            lambda x: F.interpolate(x, scale_factor=4, mode="bicubic", align_corners=False)
        )
        self.method = DiffBIR(
            cleaner=cleaner,
            unet=fakes.Network(self.predict, 64),
            controlnet=fakes.Network(self.control),
            vae=fakes.PoolingVAE(),
            text=fakes.Text(),
        )

    def control(self, latents, t, *, controlnet_cond, conditioning_scale, **named):
        self.strengths.append(conditioning_scale)
        assert controlnet_cond.shape == latents.shape
        return (), controlnet_cond

    def predict(self, latents, t, *, mid_block_additional_residual, **named):
        self.times.append(int(t))
        self.batches.append(len(latents))
        self.sizes.add(tuple(latents.shape[-2:]))
        a = self.alphas[t]
        noise = (latents - a**0.5 * mid_block_additional_residual) / (1 - a) ** 0.5
        return SimpleNamespace(sample=noise.float())


@pytest.mark.parametrize(
    ("size", "pieces"),
    [
        ((32, 32), (64, 64)),
        ((128, 128), (64, 64)),
        ((100, 180), (120, 64)),  # 921 px, filled up to 960
        ((512, 512), (64, 64)),  # 256 × 256 cells, in pieces
    ],
)
def test_pictures_of_any_size_come_back_in_place_and_without_seams(draw_wave, size, pieces):
    truth = Truth()
    lq = draw_wave(32, 32).resize(size, Image.Resampling.BICUBIC)
    options = DiffBIROptions(steps=2, colour_fix="none")
    restored = truth.method.restore(lq, options=options).image
    assert restored.size == (4 * size[0], 4 * size[1])
    assert truth.sizes == {pieces}
    reference = to_tensor(lq.resize(restored.size, Image.Resampling.BICUBIC))
    found = to_tensor(restored)
    assert fakes.shift(found, reference) == pytest.approx([0, 0], abs=0.5)
    for axis in (-1, -2):
        # less at the right and the bottom, where latents are averaged with the black beyond
        inner = (..., slice(0, -16), slice(0, -16))
        steps = found[inner].diff(dim=axis).abs().max()
        assert steps <= reference.diff(dim=axis).abs().max() + 0.05


def test_the_published_fifty_steps_run_both_prompts(draw_wave):
    truth, told = Truth(), []
    restoration = truth.method.restore(
        draw_wave(32, 32), progress=lambda done, steps: told.append((done, steps))
    )
    assert truth.times == spaced(50)
    assert truth.batches == [2] * 50
    assert truth.strengths == [1.0] * 50
    assert truth.method.text.prompts == [[NEGATIVE, ""]]
    assert told == [(i, 50) for i in range(1, 51)]
    assert restoration.details["negative_prompt"] == NEGATIVE


def test_without_guidance_the_prompt_alone_is_run(draw_wave):
    truth = Truth()
    options = DiffBIROptions(steps=2, guidance=1, strength=0.5, prompt="a cat", negative="bad")
    restoration = truth.method.restore(draw_wave(32, 32), options=options)
    assert truth.batches == [1, 1]
    assert truth.strengths == [0.5, 0.5]
    assert truth.method.text.prompts == [["bad", "a cat"]]
    assert restoration.details["negative_prompt"] is None


def test_progress_may_stop_a_run(draw_wave):
    def stop(done, steps):
        raise KeyboardInterrupt

    truth = Truth()
    with pytest.raises(KeyboardInterrupt):
        truth.method.restore(draw_wave(32, 32), progress=stop)
    assert len(truth.times) == 1


@torch.inference_mode()
def test_guidance_leads_from_the_negative_prompt_to_the_prompt():
    """A prediction that is the batch's index shows what becomes of the two."""
    truth, seen = Truth(), []

    def predict(latents, t, **named):
        values = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
        return SimpleNamespace(sample=values.expand_as(latents))

    truth.method.unet = fakes.Network(predict)
    schedule = SimpleNamespace(
        timesteps=torch.tensor([7]),
        step=lambda noise, t, latents, generator: (
            seen.append(noise) or SimpleNamespace(prev_sample=latents)
        ),
    )
    latents, context = torch.zeros(1, 4, 8, 8), torch.zeros(2, 77, 24)
    truth.method.denoise(
        latents, latents, context, schedule, torch.Generator(), DiffBIROptions(guidance=4), None
    )
    torch.testing.assert_close(seen[0], torch.full((1, 4, 8, 8), 1 + 4 * 2.0))


@pytest.mark.parametrize("start", ["noise", "photo"])
@pytest.mark.parametrize("noise", [0, 150])
def test_start_and_view_of_the_photo_get_the_noise_that_was_asked_for(draw_wave, start, noise):
    truth, begun = Truth(), []
    lq = draw_wave(128, 128)

    def denoise(latents, condition, *others):
        begun.extend([latents, condition])
        return condition

    truth.method.denoise = denoise
    truth.method.restore(lq, seed=5, options=DiffBIROptions(start=start, noise=noise))
    generator = torch.Generator().manual_seed(5)
    first, second = (torch.randn(1, 4, 64, 64, generator=generator) for _ in range(2))
    plain = fakes.cells_of(truth.method.clean(lq))
    expected = first
    if start == "photo":
        expected = ALPHA**0.5 * plain + (1 - ALPHA) ** 0.5 * first
    torch.testing.assert_close(begun[0], expected, rtol=1e-4, atol=1e-5)
    if noise:
        left = float(truth.alphas[noise])
        plain = left**0.5 * plain + (1 - left) ** 0.5 * second
    torch.testing.assert_close(begun[1], plain, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("size", "cleaned"),
    [
        ((128, 128), (512, 512)),
        ((32, 45), (512, 720)),
        ((45, 32), (720, 512)),
        ((130, 200), (520, 800)),
    ],
)
def test_photos_are_cleaned_and_then_brought_to_what_the_networks_know(draw_wave, size, cleaned):
    found = Truth().method.clean(draw_wave(*size))
    assert (found.shape[-1], found.shape[-2]) == cleaned


@torch.inference_mode()
def test_large_photos_are_cleaned_in_pieces():
    truth, asked = Truth(), []
    truth.method.cleaner = lambda x: (
        asked.append(x.shape) or x.repeat_interleave(4, -1).repeat_interleave(4, -2)
    )
    y, x = np.mgrid[0:520, 0:530] % 256
    photo = Image.fromarray(np.stack([x, y, x], -1).astype(np.uint8))
    found = truth.method.clean(photo)
    assert {tuple(shape[-2:]) for shape in asked} == {(512, 512)}
    expected = to_tensor(photo).repeat_interleave(4, -1).repeat_interleave(4, -2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(11, 17), (50, 70), (24, 9)])
def test_pictures_are_resized_as_pillow_does_bicubically(size):
    """Pillow's bicubic smooths where it shrinks, and is code of its own."""
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(1, 3, 24, 32, generator=generator)
    bands = [Image.fromarray(band.numpy()) for band in picture[0]]
    resized = [np.asarray(band.resize(size[::-1], Image.Resampling.BICUBIC)) for band in bands]
    np.testing.assert_allclose(diffbir.resized(picture, size)[0], np.stack(resized), atol=1e-5)


@pytest.mark.parametrize(("size", "expected"), [((64, 128), (64, 128)), ((65, 60), (128, 64))])
def test_black_is_added_to_whole_multiples(size, expected):
    picture = torch.rand(1, 3, *size)
    found = diffbir.padded(picture, 64)
    assert found.shape[-2:] == expected
    assert torch.equal(found[..., : size[0], : size[1]], picture)
    assert float(found.sum()) == pytest.approx(float(picture.sum()), rel=1e-5)


def test_a_run_keeps_the_promises_of_a_method(weights, controlled, lq):
    few = DiffBIROptions(steps=2)
    restorer = SimpleNamespace(
        restore=lambda lq, *, seed=0: controlled.restore(lq, seed=seed, options=few)
    )
    card_of = diffbir.method(weights)
    before = lq.tobytes()
    restoration, card = run(card_of, restorer, lq, seed=3)
    again, _ = run(card_of, restorer, lq, seed=3)
    other, _ = run(card_of, restorer, lq, seed=4)
    assert restoration.image.tobytes() == again.image.tobytes()
    assert restoration.image.tobytes() != other.image.tobytes()
    assert lq.tobytes() == before
    assert card.details["weights"] == "random weights, for testing"
    assert card.details["steps"] == 2


@pytest.mark.parametrize(
    "changed",
    [
        {"steps": 3},
        {"guidance": 1.0},
        {"strength": 0.5},
        {"noise": 150},
        {"prompt": "a tree"},
        {"negative": "a stone"},
        {"start": "photo"},
        {"colour_fix": "adain"},
        {"tiling": LatentTiling(12, 4)},
    ],
)
def test_every_option_changes_the_picture(controlled, draw_wave, changed):
    lq = draw_wave(32, 32)
    pictures = [
        controlled.restore(lq, options=DiffBIROptions(**{"steps": 2} | extra)).image.tobytes()
        for extra in ({}, changed)
    ]
    assert pictures[0] != pictures[1]


def test_outputs_are_the_recorded_ones(controlled):
    from tools import golden_diffusion as golden

    options = DiffBIROptions(steps=3, prompt="sharp")
    restoration = controlled.restore(golden.photo(), seed=golden.SEED, options=options)
    pixels = golden.some(to_tensor(restoration.image))
    np.testing.assert_allclose(pixels, GOLDEN["diffbir"]["pixels"], atol=2.5 / 255)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": 1}, "steps must be 2 to 1000, not 1"),
        ({"noise": 1000}, "noise must be 0 to 999, not 1000"),
        ({"guidance": -1}, "guidance must be 0 or more"),
        ({"strength": float("nan")}, "strength must be 0 or more"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, sentence):
    with pytest.raises(DiffBIROptionsError, match=sentence):
        DiffBIROptions(**settings)


def released(weights):
    return torch.load(weights / "diffbir" / "v2.pth", weights_only=True)


@torch.inference_mode()
def test_two_convolutions_make_what_the_released_one_makes_of_both(weights, controlled):
    weight, bias = (released(weights)[f"input_blocks.0.0.{end}"] for end in ("weight", "bias"))
    assert weight.shape[1] == 8
    generator = torch.Generator().manual_seed(0)
    latents, condition = (torch.randn(2, 4, 5, 6, generator=generator) for _ in range(2))
    expected = F.conv2d(torch.cat([latents, condition], 1), weight, bias, padding=1)
    network = controlled.controlnet
    found = network.conv_in(latents) + network.controlnet_cond_embedding(condition)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_at_strength_zero_it_is_the_stock_u_net(controlled):
    """Guided by nothing: one step of the stock U-Net by hand."""
    generator = torch.Generator().manual_seed(0)
    latents, condition = (torch.randn(1, 4, 16, 16, generator=generator) for _ in range(2))
    context = controlled.text(["", "a tree"])
    seen = []
    schedule = SimpleNamespace(
        timesteps=torch.tensor([500]),
        step=lambda noise, t, latents, generator: (
            seen.append(noise) or SimpleNamespace(prev_sample=latents)
        ),
    )
    options = DiffBIROptions(strength=0, guidance=1)
    controlled.denoise(latents, condition, context, schedule, generator, options, None)
    expected = controlled.unet(latents, 500, encoder_hidden_states=context[1:]).sample
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrapped", [True, False])
def test_wrapped_and_parallel_checkpoints_are_read(weights, controlled, tmp_path, wrapped):
    for name in ("stable-diffusion-2-1-base", "bsrnet"):
        shutil.copytree(weights / name, tmp_path / name)
    state = {f"module.{key}": value for key, value in released(weights).items()}
    (tmp_path / "diffbir").mkdir()
    torch.save({"state_dict": state} if wrapped else state, tmp_path / "diffbir" / "v2.pth")
    found = diffbir.load("cpu", weights=tmp_path).controlnet.state_dict()
    expected = controlled.controlnet.state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def pop(state):
    del state["zero_convs.3.0.bias"]


def add(state):
    state["input_hint_block.0.weight"] = torch.zeros(1)


def shrink(state):
    state["input_blocks.0.0.weight"] = state["input_blocks.0.0.weight"][:, :4]


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (pop, r"1 missing: controlnet_down_blocks\.3\.bias"),
        (add, r"1 left over: input_hint_block\.0\.weight"),
        (shrink, r"1 missing: controlnet_cond_embedding\.weight"),
    ],
)
def test_a_controlnet_that_does_not_fit_is_refused_by_name(weights, edit, sentence):
    state = released(weights)
    edit(state)
    config = network_config(weights / "stable-diffusion-2-1-base" / "unet")
    with pytest.raises(MethodUnavailableError, match=rf"of a file do not fit: {sentence}"):
        diffbir.load_controlnet(state, config, "a file")


def test_every_released_name_of_the_controlnet_has_its_place_at_full_size(weights):
    from baselines import stablesr

    config = {**stablesr.SIZES["unet"], "in_channels": 4}
    with torch.device("meta"):
        shapes = tiny.ldm_unet_shapes(config, control=4)
        state = {key: torch.empty(shape) for key, shape in shapes.items()}
        network = diffbir.load_controlnet(state, config, "a file")
    assert sum(value.numel() for value in network.parameters()) == 363_153_280


def test_a_cleaner_that_does_not_fit_is_refused(weights):
    state = torch.load(weights / "bsrnet" / "BSRNet.pth", weights_only=True)
    assert "RRDB_trunk.0.RDB3.conv5.bias" in state
    diffbir.load_cleaner(state, "a file")
    del state["HRconv.bias"]
    with pytest.raises(MethodUnavailableError, match="The tensors of a file do not fit"):
        diffbir.load_cleaner(state, "a file")
