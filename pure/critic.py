"""A small patch discriminator, for the last stage of the tokenizer's training.

L1 and perceptual distances are content with a texture that is the mean of all that could stand
there. A critic that tells decoded patches from photographed ones is not (Isola et al. 2017). It
comes late and weighs little: early it breaks the tokenizer.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class PatchCritic(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] to one score per patch of 22 px: (B, 1, H/4, W/4), about.

    Spectrally normalised, so it needs no statistics of a batch.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        sizes = ((3, width, 2), (width, 2 * width, 2), (2 * width, 4 * width, 1))
        layers: list[nn.Module] = []
        for a, b, stride in sizes:
            conv = nn.Conv2d(a, b, 4, stride=stride, padding=1)
            layers += [nn.utils.parametrizations.spectral_norm(conv), nn.LeakyReLU(0.2)]
        last = nn.Conv2d(sizes[-1][1], 1, 3, padding=1)
        self.layers = nn.Sequential(*layers, nn.utils.parametrizations.spectral_norm(last))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the critic's scores: real above 1, fake below -1. Source: Lim & Ye 2017."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def generator_loss(fake: Tensor) -> Tensor:
    """What the decoder minimises: the negated mean score."""
    return -fake.mean()
