"""Train the VQ tokenizer: first as a plain autoencoder, then with its codebook.

Starting quantised wastes the first hours on codes that chase a moving encoder. Here an
autoencoder whose unit latents carry noise is trained first; k-means on its latents gives the
codebook; only then are latents quantised. Command: `python -m pure.train_vq --help`.
"""

import argparse
import json
import logging
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from imaging.degrade import synthesise
from pure.critic import PatchCritic, critic_loss, generator_loss
from pure.data import CropSampler, load_photos
from pure.training import Curve, learning_rate, read_state, update_average, write_state
from pure.vq import (
    CONFIGS,
    NORMALISE_EPS,
    AttentionBlock,
    Downsample,
    ResidualBlock,
    Upsample,
    VQModel,
)

log = logging.getLogger(__name__)

CURVE = [
    *("step", "seconds", "l1", "coarse", "perceptual", "codebook", "commitment"),
    *("adversarial", "critic", "restarted", "psnr", "codes_used"),
]
LOWEST_RATE = 0.02  # of the peak: what the learning rate ends at


@dataclass(frozen=True)
class VQTraining:
    """How a tokenizer is trained.

    Attributes:
        crop: side of the training crops, pixels.
        autoencoder_steps: steps before the codebook is made.
        steps: all steps.
        latent_noise: standard deviation of the noise on unit latents before there are codes;
            it grows to that over the first quarter of these steps.
        lq_share: share of crops that are degraded and enlarged again; the tokenizer reads
            low-quality pictures too.
        vivid_share: share of crops whose hue is turned and saturation raised: photographs hold
            few saturated colours, and a code book made from them alone has none to show.
        coarse: weight of the L1 distance of 4× reduced pictures, which carry the colour.
        perceptual: weight of the distance of SqueezeNet features; 0 turns it off.
        adversarial: weight of the critic's opinion (`pure.critic`); 0 turns it off.
        adversarial_from: step at which the decoder begins to listen to the critic, which learns
            from the first step; over as many steps again its weight grows to the full.
        commitment: weight of the encoder's pull towards its code.
        ema: decay of the averaged weights that are saved for use.
        decoder_only: improve the decoder of a finished tokenizer; the codes of every picture
            stay what they are, so a transformer trained on them stays valid.
    """

    size: str = "nano"
    crop: int = 64
    batch: int = 8
    autoencoder_steps: int = 900
    steps: int = 2600
    lr: float = 5e-4
    warm_up: int = 30
    latent_noise: float = 0.03
    lq_share: float = 0.2
    vivid_share: float = 0.0
    coarse: float = 1.0
    perceptual: float = 0.2
    adversarial: float = 0.0
    adversarial_from: int = 200
    commitment: float = 0.25
    ema: float = 0.998
    restart_every: int = 200
    decoder_only: bool = False
    seed: int = 0


class PerceptualDistance(nn.Module):
    """Mean squared distance of channel-normalised SqueezeNet 1.1 features, unweighted.

    The form of LPIPS (Zhang et al. 2018) without its learned heads; a training loss, not a
    metric. Pictures are (B, 3, H, W) in [-1, 1].
    """

    LAYERS = (1, 4, 7, 9, 10, 11, 12)
    # Caffe's BGR means over 255, as these weights were trained with; RGB order here
    MEAN = (123.68 / 255, 116.779 / 255, 103.939 / 255)

    def __init__(self, weights: Path) -> None:
        super().__init__()
        from torchvision.models import squeezenet1_1  # noqa: PLC0415 - slow to import

        self.features = squeezenet1_1().features
        self.features.load_state_dict(load_file(weights))
        self.requires_grad_(False)
        self.mean: Tensor
        self.register_buffer("mean", torch.tensor(self.MEAN).view(1, 3, 1, 1))

    def _maps(self, x: Tensor) -> list[Tensor]:
        x = (((x + 1) / 2 - self.mean) * 255).flip(1)  # BGR
        maps = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.LAYERS:
                maps.append(F.normalize(x.float(), dim=1))
        return maps

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        pairs = zip(self._maps(a), self._maps(b), strict=True)
        return torch.stack([(p - q).pow(2).sum(1).mean() for p, q in pairs]).mean()


def batch_pixels(sampler: CropSampler, step: int, settings: VQTraining) -> Tensor:
    """Training batch number `step`: (B, 3, H, W) in [-1, 1]."""
    pictures = []
    for i in range(step * settings.batch, (step + 1) * settings.batch):
        pixels = sampler.crop(i).pixels
        if np.random.default_rng([settings.seed, 7, i]).random() < settings.lq_share:
            lq, _ = synthesise(pixels, "realesrgan", seed=i)
            enlarged = Image.fromarray(lq).resize(pixels.shape[1::-1], Image.Resampling.BICUBIC)
            pixels = np.asarray(enlarged)
        pictures.append(vivid(pixels, settings, i))
    x = torch.from_numpy(np.stack(pictures)).movedim(-1, 1)  # (B, 3, H, W)
    return x.float() / 127.5 - 1


def vivid(pixels: np.ndarray, settings: VQTraining, index: int) -> np.ndarray:
    """A share of pictures, uint8 (H, W, 3), in stronger and other colours; others as they are."""
    rng = np.random.default_rng([settings.seed, 17, index])
    if rng.random() >= settings.vivid_share:
        return pixels
    hsv = np.asarray(Image.fromarray(pixels).convert("HSV")).astype(np.float32)
    if rng.random() < 0.5:
        hsv[..., 0] = (hsv[..., 0] + rng.uniform(0, 256)) % 256
    hsv[..., 1] = np.minimum(hsv[..., 1] * rng.uniform(1, 3), 255)
    return np.asarray(Image.fromarray(hsv.astype(np.uint8), "HSV").convert("RGB"))


@torch.no_grad()
def start_as_reduction(model: VQModel, jitter: float = 0.3) -> None:
    """Start as the plainest autoencoder: the mean colour of a cell, written out again.

    Three channels of the main path carry RGB through box reduction and nearest enlargement,
    every residual branch is zeroed, and three of the latents' coordinates are RGB beside a
    constant fourth. The other channels start random. From torch's default weights a thin network
    spends its first hour finding just this (measured; see docs/decisions).

    Raises:
        ValueError: the configuration normalises its output, which leaves no such path.
    """
    if model.config.output_norm:
        raise ValueError("this start needs a configuration without output_norm")
    shift = 4.0  # around here SiLU is nearly linear

    def pass_through(conv: nn.Conv2d) -> None:
        straight = nn.init.dirac_(torch.empty_like(conv.weight))
        conv.weight.mul_(jitter).add_(straight)
        conv.weight[:3] = straight[:3]
        _bias(conv).zero_()

    for module in model.modules():
        if isinstance(module, ResidualBlock):
            nn.init.zeros_(module.conv2.weight)
            _bias(module.conv2).zero_()
            if hasattr(module, "nin_shortcut"):
                pass_through(module.nin_shortcut)
        elif isinstance(module, AttentionBlock):
            nn.init.zeros_(module.proj_out.weight)
            _bias(module.proj_out).zero_()
        elif isinstance(module, Upsample | Downsample):
            pass_through(module.conv)
            if isinstance(module, Downsample):
                channel = torch.arange(module.conv.out_channels)
                module.conv.weight[channel, channel] = 0.0
                module.conv.weight[channel, channel, :2, :2] = 0.25
    rgb = torch.arange(3)
    for entry, exit_ in (
        (model.encoder.conv_in, model.encoder.conv_out),
        (model.decoder.conv_in, model.decoder.conv_out),
    ):
        pass_through(entry)
        pass_through(exit_)
        _bias(entry)[rgb] = shift
        _bias(exit_)[rgb] = -F.silu(torch.tensor(shift))
    constant = 2.5
    model.quant_conv.weight[:4] = 0.0
    model.quant_conv.weight[rgb, rgb] = 1.0
    _bias(model.quant_conv).zero_()
    _bias(model.quant_conv)[3] = constant
    model.post_quant_conv.weight[:3] = 0.0
    model.post_quant_conv.weight[rgb, rgb] = math.hypot(constant, 0.8)  # a typical length
    _bias(model.post_quant_conv).zero_()


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias


@torch.no_grad()
def spherical_kmeans(z: Tensor, k: int, *, iterations: int = 15, seed: int = 0) -> Tensor:
    """`k` unit centres (k, D) of unit vectors `z` (N, D); empty clusters restart at a vector."""
    generator = torch.Generator().manual_seed(seed)
    centres = z[torch.randperm(len(z), generator=generator)[:k]].clone()
    for _ in range(iterations):
        nearest = torch.cat([(part @ centres.mT).argmax(1) for part in z.split(16384)])
        sums = torch.zeros_like(centres).index_add_(0, nearest, z)
        counts = torch.bincount(nearest, minlength=k)
        empty = counts == 0
        fresh = torch.randint(len(z), (int(empty.sum()),), generator=generator)
        sums[empty] = z[fresh]
        centres = F.normalize(sums, dim=1)
    return centres


def quantise(model: VQModel, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Straight-through codes for latents `z` (B, D, h, w).

    Returns:
        The quantised latents, the codebook loss, the commitment loss, and the codes (B*h*w).
    """
    B, D, h, w = z.shape
    flat = z.movedim(1, -1).reshape(-1, D).float()
    with torch.no_grad():
        codes = model.quantize.nearest(flat)
    chosen = F.normalize(model.quantize.embedding(codes), eps=NORMALISE_EPS)
    codebook = (chosen - flat.detach()).pow(2).sum(1).mean()
    commitment = (chosen.detach() - flat).pow(2).sum(1).mean()
    through = flat + (chosen - flat).detach()
    return through.view(B, h, w, D).movedim(-1, 1), codebook, commitment, codes


def psnr(x: Tensor, y: Tensor) -> float:
    """Mean over the batch of the RGB PSNR in dB of pictures in [-1, 1]."""
    mse = ((x.clamp(-1, 1) - y) / 2).pow(2).flatten(1).mean(1)
    return float((-10 * mse.log10()).mean())


class VQTrainer:
    """Holds what a training run holds; `run` takes it to its last step."""

    def __init__(
        self,
        settings: VQTraining,
        photos: Path,
        perceptual: Path,
        out: Path,
        start: Path | None = None,
    ) -> None:
        if settings.decoder_only and start is None:
            raise ValueError("training the decoder only needs a finished tokenizer to start from")
        self.settings, self.out = settings, out
        out.mkdir(parents=True, exist_ok=True)
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="bf16")
        torch.manual_seed(settings.seed)  # initial weights only: later draws have own generators
        self.model = VQModel(CONFIGS[settings.size])
        if not self.model.config.output_norm:
            start_as_reduction(self.model)
        if start is not None:
            self.model.load_state_dict(load_file(start))
        if settings.decoder_only:
            self.model.requires_grad_(False)
            for part in (self.model.post_quant_conv, self.model.decoder):
                part.requires_grad_(True)
        self.average = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.optimiser = torch.optim.AdamW(
            [p for p in self.model.parameters() if p.requires_grad],
            lr=settings.lr,
            betas=(0.9, 0.99),
            weight_decay=0.0,
        )
        self.model, self.optimiser = self.accelerator.prepare(self.model, self.optimiser)
        self.sampler = CropSampler(
            load_photos(photos, "train", min_side=settings.crop),
            settings.crop,
            seed=settings.seed,
        )
        held_out = CropSampler(load_photos(photos, "held_out", min_side=128), 128, seed=1)
        self.held_out = (
            torch.from_numpy(np.stack([held_out.crop(i).pixels for i in range(48)]))
            .movedim(-1, 1)
            .float()
            / 127.5
            - 1
        )
        self.distance = PerceptualDistance(perceptual) if settings.perceptual else None
        self.critic = PatchCritic() if settings.adversarial else None
        if self.critic is not None:
            self.critic_optimiser = torch.optim.AdamW(
                self.critic.parameters(), lr=2e-4, betas=(0.5, 0.9), weight_decay=0.0
            )
        self.usage = torch.zeros(self.model.config.codebook_size, dtype=torch.long)
        self.step = 0
        self._resume()

    @property
    def quantised(self) -> bool:
        return self.settings.decoder_only or self.step >= self.settings.autoencoder_steps

    def _resume(self) -> None:
        state = read_state(self.out / "state.pt")
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average, self.usage, self.step = state["average"], state["usage"], state["step"]
        if self.critic is not None:
            self.critic.load_state_dict(state["critic"])
            self.critic_optimiser.load_state_dict(state["critic_optimiser"])
        log.info("resumed at step %d", self.step)

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average,
            "usage": self.usage,
            "step": self.step,
        }
        if self.critic is not None:
            state["critic"] = self.critic.state_dict()
            state["critic_optimiser"] = self.critic_optimiser.state_dict()
        write_state(self.out / "state.pt", state)
        config = json.dumps(asdict(self.model.config))
        save_file(self.average, self.out / "vq.safetensors", metadata={"config": config})

    def _make_codebook(self) -> None:
        with torch.no_grad(), self.accelerator.autocast():
            z = torch.cat(
                [
                    self.model.latents(batch_pixels(self.sampler, 10**6 + i, self.settings))
                    .movedim(1, -1)
                    .flatten(0, 2)
                    .float()
                    for i in range(300)
                ]
            )
        centres = spherical_kmeans(z, self.model.config.codebook_size, seed=self.settings.seed)
        self.model.quantize.embedding.weight.data.copy_(centres)
        self.average["quantize.embedding.weight"].copy_(centres)
        log.info("codebook of %d made from %d latents", len(centres), len(z))

    def _restart_unused(self, z: Tensor) -> int:
        """Move codes nobody chose since the last restart onto latents of this batch."""
        unused = (self.usage == 0).nonzero().flatten()
        flat = z.detach().movedim(1, -1).flatten(0, 2).float()
        generator = torch.Generator().manual_seed(self.step)
        unused = unused[torch.randperm(len(unused), generator=generator)][: len(flat)]
        picks = torch.randperm(len(flat), generator=generator)[: len(unused)]
        self.model.quantize.embedding.weight.data[unused] = flat[picks]
        self.average["quantize.embedding.weight"][unused] = flat[picks]
        self.usage.zero_()
        return len(unused)

    def _train_step(self) -> dict[str, float]:
        s = self.settings
        x = batch_pixels(self.sampler, self.step, s)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(
                self.step, peak=s.lr, warm_up=s.warm_up, steps=s.steps, floor=LOWEST_RATE
            )
        losses: dict[str, Tensor] = {}
        restarted = 0
        with self.accelerator.autocast():
            with torch.set_grad_enabled(not s.decoder_only):
                z = self.model.latents(x)
            if s.decoder_only:
                with torch.no_grad():
                    z_q = quantise(self.model, z)[0]
            elif self.quantised:
                z_q, losses["codebook"], commitment, codes = quantise(self.model, z)
                losses["commitment"] = s.commitment * commitment
                self.usage += torch.bincount(codes, minlength=len(self.usage))
                if self.step % s.restart_every == 0 and self.step < 0.8 * s.steps:
                    restarted = self._restart_unused(z)
            else:
                generator = torch.Generator().manual_seed(self.step)
                level = s.latent_noise * min(1.0, self.step / (s.autoencoder_steps / 4))
                noise = torch.randn(z.shape, generator=generator) * level
                z_q = F.normalize(z + noise, dim=1)
            y = self.model.pixels(z_q).float()
            losses["l1"] = (y - x).abs().mean()
            losses["coarse"] = s.coarse * (F.avg_pool2d(y, 4) - F.avg_pool2d(x, 4)).abs().mean()
            if self.distance is not None:
                losses["perceptual"] = s.perceptual * self.distance(y, x)
            if self.critic is not None and self.step >= s.adversarial_from:
                grown = min(1.0, (self.step - s.adversarial_from) / s.adversarial_from)
                losses["adversarial"] = s.adversarial * grown * generator_loss(self.critic(y))
        total = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(total):
            raise FloatingPointError(f"the loss is {total.item()} at step {self.step}")
        self.accelerator.backward(total)
        self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        if self.critic is not None:
            losses["critic"] = self._critic_step(x, y.detach())
        update_average(self.average, self.model.state_dict(), s.ema, self.step)
        self.step += 1
        return {k: v.item() for k, v in losses.items()} | {"restarted": restarted}

    def _critic_step(self, real: Tensor, fake: Tensor) -> Tensor:
        assert self.critic is not None
        self.critic_optimiser.zero_grad()  # also of what the decoder's step left there
        with self.accelerator.autocast():
            loss = critic_loss(self.critic(real), self.critic(fake))
        self.accelerator.backward(loss)
        self.critic_optimiser.step()
        return loss.detach()

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """PSNR and codebook use of the averaged weights on fixed held-out crops of 128 px."""
        model = VQModel(self.model.config)
        model.load_state_dict(self.average)
        with self.accelerator.autocast():
            z = model.latents(self.held_out)
            used = math.nan
            if self.quantised:
                z, _, _, codes = quantise(model, z)
                used = len(codes.unique())
            y = model.pixels(z).float()
        pictures = torch.cat([self.held_out[:12], y[:12].clamp(-1, 1)])
        rows = [torch.cat(list(half), dim=2) for half in pictures.split(12)]
        sheet = ((torch.cat(rows, dim=1) + 1) * 127.5).to(torch.uint8).movedim(0, -1).numpy()
        Image.fromarray(sheet).save(self.out / "held_out.png")
        return {"psnr": psnr(y, self.held_out), "codes_used": used}

    def run(self, *, save_seconds: float = 120, evaluate_every: int = 200) -> None:
        """Train to the last step, saving every `save_seconds`."""
        saved = time.monotonic()
        curve = Curve(self.out, CURVE, step=self.step)
        while self.step < self.settings.steps:
            if self.step == self.settings.autoencoder_steps and not self.settings.decoder_only:
                self._make_codebook()
                self._save()
            started = time.monotonic()
            row = {"step": self.step} | self._train_step()
            row["seconds"] = time.monotonic() - started
            if self.step % 20 == 0:
                if self.step % evaluate_every == 0:
                    row |= self.evaluate()
                curve.write(row)
            if time.monotonic() - saved > save_seconds:
                self._save()
                saved = time.monotonic()
        self._save()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, default=Path("data/photos"))
    parser.add_argument(
        "--features", type=Path, default=Path("data/squeezenet1_1_features.safetensors")
    )
    parser.add_argument("--out", type=Path, default=Path("runs/vq"))
    parser.add_argument("--start", type=Path, help="vq.safetensors to start from")
    parser.add_argument("--decoder-only", action="store_true")
    defaults = asdict(VQTraining())
    for name, value in defaults.items():
        if name == "decoder_only":
            continue
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    arguments = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    settings = VQTraining(**{name: arguments[name] for name in defaults})
    paths = (arguments[name] for name in ("photos", "features", "out", "start"))
    VQTrainer(settings, *paths).run()


if __name__ == "__main__":
    main()
