"""Networks so simple that a whole method becomes the identity, up to the blur of the latents."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F

from baselines.diffusion.tagger import Perceived


class PoolingVAE:
    """Latents are cells of 8 × 8 pixels averaged; decoding spreads them again."""

    def __init__(self):
        self.module = torch.nn.Identity()

    def encode(self, image, noise):
        return cells_of(image)

    def encode_signed(self, image, noise):
        return cells_of(image / 2 + 0.5)

    def decode(self, latents):
        return F.interpolate(latents[:, :3], scale_factor=8, mode="bilinear").clamp(0, 1)

    def decode_signed(self, latents):
        return 2 * self.decode(latents) - 1


def cells_of(image):
    """(1, 3, H, W) in [0, 1] to (1, 4, H/8, W/8)."""
    return F.pad(F.avg_pool2d(image, 8), (0, 0, 0, 0, 0, 1))


class Network(torch.nn.Module):
    """A network of one weight, of any sampled size, that calls `predict`."""

    def __init__(self, predict, sample_size=16):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(sample_size=sample_size, in_channels=4)
        self.predict = predict

    def forward(self, *arguments, **named):
        return self.predict(*arguments, **named)


class Text:
    """Remembers its prompts."""

    def __init__(self):
        self.module = torch.nn.Identity()
        self.prompts = []

    def __call__(self, prompts):
        self.prompts.append(prompts)
        return torch.zeros(len(prompts), 77, 24)


class Tagger:
    """Sees a tree in everything, and remembers the sizes of what it saw."""

    def __init__(self):
        self.network = torch.nn.Identity()
        self.sizes = []

    def __call__(self, photo):
        self.sizes.append(photo.size)
        return Perceived("tree, sky", torch.zeros(1, 10, 24))


def shift(picture, reference):
    """By how many pixels `picture` is moved against `reference`, (x, y); least squares."""
    moves = []
    for axis in (-1, -2):
        slope = (reference.roll(-1, axis) - reference.roll(1, axis)) / 2
        inner = (..., slice(16, -16), slice(16, -16))
        difference = (reference - picture)[inner]
        difference = difference - difference.mean()  # truncation darkens, and moves nothing
        moves.append(float((difference * slope[inner]).sum() / (slope[inner] ** 2).sum()))
    return moves
