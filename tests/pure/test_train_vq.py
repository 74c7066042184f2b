import csv
import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from pure import train_vq
from pure.checkpoint import load_vq
from pure.data import CropSampler, Photo
from pure.train_vq import (
    PerceptualDistance,
    VQTrainer,
    VQTraining,
    batch_pixels,
    psnr,
    quantise,
    spherical_kmeans,
    start_as_reduction,
)
from pure.vq import CONFIGS, VQModel

TINY = VQTraining(
    size="trainable",
    crop=16,
    batch=1,
    autoencoder_steps=3,
    steps=20,
    warm_up=2,
    lq_share=0.5,
    perceptual=0.0,
    restart_every=2,
)


@pytest.fixture(autouse=True, scope="module")
def trainable():
    """The tiny tokenizer as training can start it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONFIGS, "trainable", replace(CONFIGS["tiny"], output_norm=False))
        yield


def unit_vectors(n, dim, seed=0):
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three photographs with their index."""
    folder = tmp_path_factory.mktemp("photos")
    records = []
    for i, split in enumerate(("train", "train", "held_out")):
        y, x = np.mgrid[0:130, 0:140] / 140
        pixels = np.stack([x, y, np.sin(9 * (i + 1) * x * y) / 2 + 0.5], -1)
        noise = np.random.default_rng(i).normal(0, 0.05, pixels.shape)
        Image.fromarray(((pixels + noise).clip(0, 1) * 255).astype(np.uint8)).save(
            folder / f"{i}.png"
        )
        record = {"id": str(i), "file": f"{i}.png", "split": split, "kind": "animal"}
        record |= {"words": [], "plain_background": False, "width": 140, "height": 130}
        records.append(record)
    (folder / "index.json").write_text(json.dumps(records))
    return folder


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """SqueezeNet features of noise."""
    from torchvision.models import squeezenet1_1

    path = tmp_path_factory.mktemp("features") / "features.safetensors"
    shapes = squeezenet1_1().features.state_dict()
    g = torch.Generator().manual_seed(0)
    save_file(
        {
            key: torch.randn(v.shape, generator=g) * v[0].numel() ** -0.5
            for key, v in shapes.items()
        },
        path,
    )
    return path


def train(photos, out, *, stop_at=None, settings=TINY):
    """Run to the end; or save after `stop_at` steps and be killed before the next one."""

    class Killed(Exception):  # noqa: N818
        pass

    trainer = VQTrainer(settings, photos, photos, out)
    step = trainer._train_step

    def mortal():
        if trainer.step == stop_at:
            raise Killed
        row = step()
        if trainer.step == stop_at:
            trainer._save()
        return row

    trainer._train_step = mortal
    if stop_at is None:
        trainer.run(evaluate_every=20)
    else:
        with pytest.raises(Killed):
            trainer.run(evaluate_every=20)
    return trainer


@pytest.fixture(scope="module")
def undisturbed(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    train(photos, out)
    return out


def equal(a, b):
    """Whether two nested states are the same, bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@pytest.mark.parametrize("stop_at", [2, 3, 12], ids=["autoencoder", "codebook", "quantised"])
def test_an_interrupted_run_ends_bit_for_bit_as_an_undisturbed_one(
    photos, undisturbed, tmp_path, stop_at
):
    train(photos, tmp_path, stop_at=stop_at)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == stop_at
    torch.manual_seed(99)  # nothing may depend on it
    train(photos, tmp_path)
    states = [torch.load(p / "state.pt", weights_only=True) for p in (tmp_path, undisturbed)]
    assert equal(*states)
    weights = [load_file(p / "vq.safetensors") for p in (tmp_path, undisturbed)]
    assert equal(*weights)


def test_a_run_writes_a_loadable_tokenizer(undisturbed):
    vq = load_vq(undisturbed)
    assert vq.config == CONFIGS["trainable"]
    assert vq.decode(vq.encode(torch.rand(1, 3, 16, 24))).shape == (1, 3, 16, 24)


def test_a_run_writes_its_curve(undisturbed):
    with (undisturbed / "curve.csv").open() as file:
        [row] = csv.DictReader(file)  # every twentieth step
    assert row["step"] == "19"
    measured = ("l1", "coarse", "codebook", "commitment", "psnr", "codes_used")
    assert all(math.isfinite(float(row[key])) for key in measured)
    assert row["perceptual"] == ""  # turned off


def test_a_run_shows_held_out_crops(undisturbed):
    with Image.open(undisturbed / "held_out.png") as sheet:
        assert sheet.size == (12 * 128, 2 * 128)


def test_a_finished_run_is_not_trained_further(photos, undisturbed, tmp_path):
    (tmp_path / "state.pt").write_bytes((undisturbed / "state.pt").read_bytes())
    trainer = VQTrainer(TINY, photos, photos, tmp_path)
    trainer._train_step = None
    trainer.run()
    assert trainer.step == 20


def test_the_perceptual_loss_takes_part(photos, features, tmp_path):
    settings = replace(TINY, perceptual=0.5, crop=32)
    losses = VQTrainer(settings, photos, features, tmp_path)._train_step()
    assert losses["perceptual"] > 0


def test_a_loss_that_is_not_finite_stops_the_run(photos, tmp_path, monkeypatch):
    trainer = VQTrainer(TINY, photos, photos, tmp_path)
    monkeypatch.setattr(train_vq, "batch_pixels", lambda *_: torch.full((1, 3, 16, 16), math.nan))
    with pytest.raises(FloatingPointError, match="nan at step 0"):
        trainer._train_step()


def test_the_command_line_fills_the_settings(monkeypatch, tmp_path):
    made = []

    class Fake:
        def __init__(self, *arguments):
            made.append(arguments)

        def run(self):
            made.append("ran")

    monkeypatch.setattr(train_vq, "VQTrainer", Fake)
    monkeypatch.setattr(sys, "argv", ["train_vq", "--steps", "7", "--lr", "0.1", "--out", "x"])
    train_vq.main()
    assert made[0][0] == VQTraining(steps=7, lr=0.1)
    assert str(made[0][3]) == "x"
    assert made[1] == "ran"


@pytest.mark.parametrize("seed", range(5))
def test_kmeans_finds_two_separate_clusters(seed):
    axis = F.normalize(torch.tensor([1.0, 2, -1, 0.5]), dim=0)
    noise = 0.1 * torch.randn(200, 4, generator=torch.Generator().manual_seed(seed))
    signs = torch.tensor([1.0, -1.0]).repeat(100)[:, None]
    centres = spherical_kmeans(F.normalize(signs * axis + noise, dim=1), 2, seed=seed)
    cosines = (centres @ axis).sort().values
    torch.testing.assert_close(cosines, torch.tensor([-1.0, 1.0]), rtol=0, atol=2e-3)


def test_kmeans_centres_are_the_directions_of_their_clusters():
    z = unit_vectors(300, 3)
    centres = spherical_kmeans(z, 8, iterations=100)
    nearest = (z @ centres.mT).argmax(1)
    for code in range(8):
        mean = z[nearest == code].mean(0)
        torch.testing.assert_close(centres[code], mean / mean.norm(), rtol=0, atol=1e-5)


def test_kmeans_does_not_get_worse():
    z = unit_vectors(500, 4)
    fits = [
        float((z @ spherical_kmeans(z, 20, iterations=n).mT).amax(1).mean()) for n in (0, 1, 3, 10)
    ]
    assert fits == sorted(fits)


def test_kmeans_restarts_clusters_nobody_chose():
    z = F.normalize(torch.eye(3).repeat(20, 1), dim=1)
    centres = spherical_kmeans(z, 12)
    assert torch.isfinite(centres).all()
    torch.testing.assert_close(centres.norm(dim=1), torch.ones(12))


def test_kmeans_is_a_function_of_its_seed():
    z = unit_vectors(200, 4)
    assert torch.equal(spherical_kmeans(z, 9, seed=1), spherical_kmeans(z, 9, seed=1))
    assert not torch.equal(spherical_kmeans(z, 9, seed=1), spherical_kmeans(z, 9, seed=2))


@pytest.fixture
def latents(vq):
    return F.normalize(torch.randn(2, 8, 3, 4, generator=torch.Generator().manual_seed(0)), dim=1)


def test_quantised_latents_are_unit_codes(vq, latents):
    z_q, _, _, codes = quantise(vq, latents)
    unit = F.normalize(vq.quantize.embedding.weight)
    expected = unit[codes.view(2, 3, 4)].permute(0, 3, 1, 2)
    torch.testing.assert_close(z_q, expected, rtol=0, atol=1e-6)
    cosines = torch.einsum("bdhw,kd->bhwk", latents, unit)
    assert torch.equal(cosines.argmax(-1).flatten(), codes)


def test_gradients_go_straight_through(latents):
    model = VQModel(CONFIGS["tiny"])
    latents.requires_grad_()
    z_q, *_ = quantise(model, latents)
    weights = torch.randn(z_q.shape, generator=torch.Generator().manual_seed(1))
    (z_q * weights).sum().backward()
    assert torch.equal(latents.grad, weights)
    assert model.quantize.embedding.weight.grad is None


def test_the_two_losses_pull_one_side_each(latents):
    model = VQModel(CONFIGS["tiny"])
    latents.requires_grad_()
    _, codebook, commitment, codes = quantise(model, latents)
    unit = F.normalize(model.quantize.embedding.weight.detach())[codes]
    flat = latents.detach().movedim(1, -1).reshape(-1, 8)
    expected = float((unit - flat).pow(2).sum(1).mean())
    assert (codebook.item(), commitment.item()) == pytest.approx((expected, expected), rel=1e-5)
    codebook.backward()
    assert latents.grad is None
    assert model.quantize.embedding.weight.grad.abs().sum() > 0
    model.zero_grad()
    commitment.backward()
    assert latents.grad.abs().sum() > 0
    assert model.quantize.embedding.weight.grad is None


def test_a_new_model_writes_the_mean_colour_of_a_cell():
    torch.manual_seed(0)
    model = VQModel(CONFIGS["trainable"])
    start_as_reduction(model)
    cells = torch.rand(4, 3, 5, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        y = model.pixels(model.latents(cells.repeat_interleave(8, 2).repeat_interleave(8, 3)))
    means = F.avg_pool2d(y, 8)
    r = np.corrcoef(means.flatten().numpy(), cells.flatten().numpy())[0, 1]
    assert r > 0.95
    # nearest enlargement: within a cell the picture is flat
    flat = means.repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert float((y - flat).square().mean()) < 0.01 * float(means.var())


def test_a_model_that_normalises_its_output_cannot_start_so():
    with pytest.raises(ValueError, match="without output_norm"):
        start_as_reduction(VQModel(CONFIGS["tiny"]))


def test_psnr_is_that_of_the_mean_squared_error():
    x = torch.zeros(2, 3, 4, 4)
    y = torch.stack([torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), 0.02)])
    # errors of 0.1 and 0.01 of the range: 20 and 40 dB
    assert psnr(x, y) == pytest.approx(30, abs=1e-4)


def test_psnr_clamps_the_picture():
    assert psnr(torch.full((1, 3, 2, 2), 5.0), torch.full((1, 3, 2, 2), 0.8)) == pytest.approx(20)


@pytest.fixture
def sampler():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    return CropSampler([Photo("a", "animal", (), False, pixels)], 16, seed=0, max_reduction=1.0)


def test_batches_are_crops_one_after_the_other(sampler):
    settings = replace(TINY, lq_share=0.0, batch=3)
    x = batch_pixels(sampler, 3, settings)
    for i in range(3):
        expected = torch.from_numpy(sampler.crop(9 + i).pixels).movedim(-1, 0) / 127.5 - 1
        torch.testing.assert_close(x[i], expected)


def test_a_share_of_the_crops_is_degraded(sampler):
    clean, all_lq = (replace(TINY, lq_share=share) for share in (0.0, 1.0))
    n, changed = 60, 0
    for step in range(n):
        a, b, some = (batch_pixels(sampler, step, s) for s in (clean, all_lq, TINY))
        assert (a != b).flatten(1).any(1).all()
        changed += int((a != some).flatten(1).any(1).sum())
    assert abs(changed - n / 2) < 4 * math.sqrt(n / 4)


def test_the_perceptual_distance_is_that_of_normalised_features(features):
    from torchvision.models import squeezenet1_1

    distance = PerceptualDistance(features)
    network = squeezenet1_1().features.eval().requires_grad_(False)
    network.load_state_dict(load_file(features))
    g = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 1, 3, 48, 48, generator=g) * 2 - 1
    means = torch.tensor([103.939, 116.779, 123.68]).view(1, 3, 1, 1)  # Caffe: BGR, 0 to 255

    def prepared(x):
        return (x[:, [2, 1, 0]] + 1) * 127.5 - means

    total = 0.0
    for last in (1, 4, 7, 9, 10, 11, 12):
        maps = [network[: last + 1](prepared(x)) for x in (a, b)]
        p, q = (m / m.norm(dim=1, keepdim=True).clamp_min(1e-12) for m in maps)
        total += float((p - q).pow(2).sum(1).mean())
    assert float(distance(a, b)) == pytest.approx(total / 7, rel=1e-4)
    assert float(distance(a, a)) == 0


def test_the_perceptual_distance_leaves_its_network_alone(features):
    distance = PerceptualDistance(features)
    x = torch.zeros(1, 3, 48, 48, requires_grad=True)
    distance(x, torch.ones(1, 3, 48, 48)).backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None for p in distance.parameters())
