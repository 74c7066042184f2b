import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from baselines import stablesr
from baselines.base import MethodUnavailableError, run
from baselines.diffusion.schedule import spaced
from baselines.diffusion.tiles import LatentTiling
from baselines.stablesr import StableSR, StableSROptions, StableSROptionsError
from imaging.convert import to_tensor
from tests.baselines.diffusion import fakes

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/diffusion.json").read_text())
ALPHA = 0.00466009508818388  # what is left of the variance at timestep 999


def test_a_card_can_be_read_without_weights(tmp_path):
    card = stablesr.method(tmp_path)
    assert "stablesr_000117.ckpt" in card.missing()
    assert (card.steps, card.scale) == (200, 4)
    with pytest.raises(MethodUnavailableError, match=r"python -m baselines\.weights stablesr"):
        card.load("cpu")


def test_parameters_are_the_paper_s_and_those_of_the_decoder_s_networks(weights):
    """Table 4 of the PURE paper says 1410 million, which leaves the two networks out."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from baselines.diffusion.feature_wrap import WrappedVAE
    from baselines.diffusion.structure import StructureEncoder, add_structure

    sizes = stablesr.SIZES
    with torch.device("meta"):
        unet = UNet2DConditionModel(**sizes["unet"])
        add_structure(unet, sizes["encoder"]["features"])
        decoder = WrappedVAE(AutoencoderKL(**sizes["vae"]))
        encoder = StructureEncoder(**sizes["encoder"])
        text = CLIPTextModel(CLIPTextConfig(**sizes["text"]))

    def count(network):
        return sum(value.numel() for value in network.parameters())

    counts = [count(network) for network in (unet, encoder, decoder.vae, decoder.fusion, text)]
    assert counts == [918_930_884, 52_494_080, 83_653_863, 44_393_728, 340_387_840]
    assert stablesr.METHOD.parameters == sum(counts)
    unused = 12_596_224 + 1024 * 1024 + 1  # OpenCLIP's last layer, projection and temperature
    assert (sum(counts) - counts[3] + unused) / 1e6 == pytest.approx(1410, abs=1)


class Truth:
    """Networks that know the photo: what the encoder was shown is what the U-Net sees behind noise.

    The encoder hands its piece of the photo to the U-Net the way the true one does, so that a piece
    cut in the wrong place would restore the wrong place.
    """

    def __init__(self, sample_size=64):
        betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        self.alphas = np.cumprod(1 - betas)
        self.times, self.encoder_times, self.sizes, self.weights = [], [], set(), []
        vae = fakes.PoolingVAE()
        self.seen = {}

        def decode(latents, photo, weight):
            self.weights.append(weight)
            assert photo.shape[-2:] == (8 * latents.shape[-2], 8 * latents.shape[-1])
            return 2 * vae.decode(latents) - 1

        decoder = torch.nn.Identity()
        decoder.decode = decode
        self.method = StableSR(
            unet=fakes.Network(self.predict, sample_size),
            seen=self.seen,
            encoder=fakes.Network(self.encode),
            vae=vae,
            decoder=decoder,
            context=torch.zeros(1, 77, 24),
        )

    def encode(self, latents, t):
        self.encoder_times.append(int(t))
        return {(0, 0): latents}

    def predict(self, latents, t, *, encoder_hidden_states):
        assert encoder_hidden_states is self.method.context
        self.times.append(int(t))
        self.sizes.add(tuple(latents.shape[-2:]))
        a = self.alphas[t]
        noise = (latents - a**0.5 * self.seen[0, 0]) / (1 - a) ** 0.5
        return SimpleNamespace(sample=noise.float())


@pytest.mark.parametrize("size", [(32, 32), (128, 128), (100, 180), (512, 512)])
def test_pictures_of_any_size_come_back_in_place_and_without_seams(draw_wave, size):
    truth = Truth()
    lq = draw_wave(32, 32).resize(size, Image.Resampling.BICUBIC)
    options = StableSROptions(steps=2, colour_fix="none")
    restored = truth.method.restore(lq, options=options).image
    assert restored.size == (4 * size[0], 4 * size[1])
    assert truth.sizes == {(64, 64)}  # as trained, never a larger piece
    reference = to_tensor(lq.resize(restored.size, Image.Resampling.BICUBIC))
    found = to_tensor(restored)
    assert fakes.shift(found, reference) == pytest.approx([0, 0], abs=0.5)
    for axis in (-1, -2):
        assert found.diff(dim=axis).abs().max() <= reference.diff(dim=axis).abs().max() + 0.05


def test_the_published_two_hundred_steps_go_from_999_to_0_with_the_encoder(draw_wave):
    truth, told = Truth(), []
    truth.method.restore(draw_wave(32, 32), progress=lambda done, steps: told.append((done, steps)))
    assert truth.times == truth.encoder_times == spaced(200)
    assert (truth.times[0], truth.times[-1]) == (999, 0)
    assert truth.weights == [0.5]
    assert told == [(i, 200) for i in range(1, 201)]


def test_progress_may_stop_a_run(draw_wave):
    def stop(done, steps):
        raise KeyboardInterrupt

    truth = Truth()
    with pytest.raises(KeyboardInterrupt):
        truth.method.restore(draw_wave(32, 32), progress=stop)
    assert len(truth.times) == 1


@pytest.mark.parametrize("start", ["photo", "noise"])
def test_it_starts_in_the_noise_of_timestep_999_with_or_without_the_photo(draw_wave, start):
    truth, begun = Truth(), []

    def denoise(latents, structure, *others):
        begun.extend([latents, structure])
        return structure

    truth.method.denoise = denoise
    truth.method.restore(draw_wave(128, 128), seed=5, options=StableSROptions(start=start))
    noise = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(5))
    expected = noise
    if start == "photo":
        expected = ALPHA**0.5 * begun[1] + (1 - ALPHA) ** 0.5 * noise
    torch.testing.assert_close(begun[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "large"), [((128, 128), (512, 512)), ((32, 48), (768, 512)), ((200, 150), (600, 800))]
)
def test_photos_are_enlarged_to_what_the_networks_were_trained_at(draw_wave, size, large):
    found = stablesr.enlarge(draw_wave(*size), native=512)
    assert found.shape[-2:] == large
    # interpolated in floating point, without smoothing: a constant stays what it is
    flat = stablesr.enlarge(Image.new("RGB", size, (10, 20, 30)), native=512)
    torch.testing.assert_close(flat[0, :, 3, 5], 2 * torch.tensor([10, 20, 30]) / 255 - 1)


def test_enlarging_is_the_interpolation_of_the_scripts():
    lq = Image.fromarray(np.array([[[0] * 3, [255] * 3]], np.uint8).repeat(2, 0))
    bilinear = stablesr.enlarge(lq, native=8, mode="bilinear")[0, 0, 0]
    expected = [-1, -1, -0.75, -0.25, 0.25, 0.75, 1, 1]
    torch.testing.assert_close(bilinear, torch.tensor(expected))
    bicubic = stablesr.enlarge(lq, native=8)[0, 0, 0]
    assert bicubic[:2].tolist() == [-1, -1]  # undershoots and is clamped
    assert 0.25 < float(bicubic[4]) < float(bicubic[5]) <= 1


@pytest.mark.parametrize(
    ("size", "expected"),
    [((64, 96), (64, 96)), ((33, 47), (64, 64)), ((64, 70), (96, 96)), ((95, 64), (96, 96))],
)
def test_photos_are_mirrored_to_whole_pieces_as_published(size, expected):
    photo = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    found = stablesr.padded(photo)
    assert found.shape[-2:] == expected
    assert torch.equal(found[..., : size[0], : size[1]], photo)
    if expected[0] > size[0]:
        assert torch.equal(found[..., size[0], : size[1]], photo[..., -2, :])


def test_colours_are_those_of_the_photo():
    generator = torch.Generator().manual_seed(0)
    restored, photo = (torch.rand(1, 3, 40, 40, generator=generator) for _ in range(2))
    photo = photo * 0.2 + torch.tensor([0.1, 0.3, 0.0]).view(1, 3, 1, 1)  # of [-1, 1]
    plain = stablesr.fix_colour(restored, photo, "none")
    torch.testing.assert_close(plain, restored / 2 + 0.5)
    for fix in ("adain", "wavelet"):
        means = stablesr.fix_colour(restored, photo, fix).mean((0, 2, 3))
        torch.testing.assert_close(means, photo.mean((0, 2, 3)) / 2 + 0.5, atol=0.02, rtol=0)


def test_a_run_keeps_the_promises_of_a_method(weights, structured, lq):
    few = StableSROptions(steps=2)
    restorer = SimpleNamespace(
        restore=lambda lq, *, seed=0: structured.restore(lq, seed=seed, options=few)
    )
    method = stablesr.method(weights)
    before = lq.tobytes()
    restoration, card = run(method, restorer, lq, seed=3)
    again, _ = run(method, restorer, lq, seed=3)
    other, _ = run(method, restorer, lq, seed=4)
    assert restoration.image.tobytes() == again.image.tobytes()
    assert restoration.image.tobytes() != other.image.tobytes()
    assert lq.tobytes() == before
    assert card.details["weights"] == "random weights, for testing"
    assert card.details["steps"] == 2
    assert structured.seen == {}


@pytest.mark.parametrize(
    "changed",
    [
        {"steps": 3},
        {"fidelity": 1.0},
        {"start": "noise"},
        {"upsampling": "bilinear"},
        {"colour_fix": "wavelet"},
        {"tiling": LatentTiling(16, 12)},
    ],
)
def test_every_option_changes_the_picture(structured, draw_wave, changed):
    lq = draw_wave(64, 32) if "tiling" in changed else draw_wave(32, 32)
    pictures = [
        structured.restore(lq, options=StableSROptions(**{"steps": 2} | extra)).image.tobytes()
        for extra in ({}, changed)
    ]
    assert pictures[0] != pictures[1]


def test_outputs_are_the_recorded_ones(structured):
    from tools import golden_diffusion as golden

    options = StableSROptions(steps=3)
    restoration = structured.restore(golden.photo(), seed=golden.SEED, options=options)
    pixels = golden.some(to_tensor(restoration.image))
    np.testing.assert_allclose(pixels, GOLDEN["stablesr"]["pixels"], atol=2.5 / 255)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": 1}, "steps must be 2 to 1000, not 1"),
        ({"steps": 1001}, "not 1001"),
        ({"fidelity": 1.5}, "fidelity must be 0 to 1"),
        ({"fidelity": float("nan")}, "fidelity must be 0 to 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, sentence):
    with pytest.raises(StableSROptionsError, match=sentence):
        StableSROptions(**settings)


def edited(weights, tmp_path, file, edit):
    """A weights folder in which the tensors of one file went through `edit`."""
    shutil.copytree(weights / "stablesr", tmp_path / "stablesr")
    path = tmp_path / "stablesr" / file
    state = torch.load(path, weights_only=True)["state_dict"]
    edit(state)
    torch.save({"state_dict": state}, path)
    return tmp_path


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        (
            "model.diffusion_model.middle_block.2.spade.mlp_beta.bias",
            r"the U-Net of stablesr_000117\.ckpt do not fit: 1 missing: "
            r"mid_block\.resnets\.1\.conv2\.spade\.mlp_beta\.bias",
        ),
        (
            "structcond_stage_model.fea_tran.3.in_layers.0.bias",
            r"missing: fea_tran\.3\.norm1\.bias",
        ),
        ("first_stage_model.quant_conv.bias", r"the VAE of .* 1 missing: quant_conv\.bias"),
        ("cond_stage_model.model.ln_final.bias", r"the text encoder of .* 1 missing: .*norm\.bias"),
    ],
)
def test_a_missing_tensor_is_named(weights, tmp_path, key, sentence):
    folder = edited(weights, tmp_path, "stablesr_000117.ckpt", lambda state: state.pop(key))
    with pytest.raises(MethodUnavailableError, match=sentence):
        stablesr.load("cpu", weights=folder)


def test_a_tensor_of_another_shape_is_named(weights, tmp_path):
    def edit(state):
        state["structcond_stage_model.input_blocks.0.0.weight"] = torch.zeros(64, 3, 3, 3)

    folder = edited(weights, tmp_path, "stablesr_000117.ckpt", edit)
    sentence = r"1 of another shape: conv_in\.weight is \(64, 3, 3, 3\), expected \(64, 4, 3, 3\)"
    with pytest.raises(MethodUnavailableError, match=sentence):
        stablesr.load("cpu", weights=folder)


def test_what_is_not_known_is_refused_and_what_is_not_needed_is_left_out():
    state = {"model.diffusion_model.x": 1, "betas": 2, "model_ema.x": 3}
    assert stablesr.diffusion_parts(state, "it")["unet"] == {"x": 1}
    with pytest.raises(MethodUnavailableError, match=r"it holds control_model\.x, which"):
        stablesr.diffusion_parts(state | {"control_model.x": 4}, "it")


def test_a_plain_vae_in_place_of_the_decoder_is_refused():
    with pytest.raises(MethodUnavailableError, match="no fusion layers"):
        stablesr.decoder_parts({"decoder.conv_in.weight": 1}, "it")


def test_photos_are_encoded_by_the_first_file_s_vae_if_the_second_s_is_another(
    weights, structured, tmp_path
):
    assert structured.vae.module is structured.decoder.vae

    def edit(state):
        state["quant_conv.bias"] += 1

    folder = edited(weights, tmp_path, "vqgan_cfw_00011.ckpt", edit)
    loaded = stablesr.load("cpu", weights=folder)
    first = loaded.vae.module.state_dict()["quant_conv.bias"]
    assert torch.equal(first, structured.vae.module.state_dict()["quant_conv.bias"])
    assert torch.equal(loaded.decoder.vae.state_dict()["quant_conv.bias"], first + 1)
