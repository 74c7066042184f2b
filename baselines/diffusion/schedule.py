"""The steps of a spaced DDPM, as guided diffusion spaces them."""

from typing import Any

import numpy as np
import torch

TRAINED = 1000  # timesteps the networks were trained with
BETAS = (0.00085, 0.012)  # the first and the last; between them the roots are evenly spaced


def spaced(steps: int) -> list[int]:
    """Timesteps from 999 down to 0, as evenly as whole numbers allow; at least 2.

    The stride is added up in floating point as published, so that for some numbers of steps one
    of them differs from that of `round(i * 999 / (steps - 1))`.
    """
    if not 2 <= steps <= TRAINED:
        raise ValueError(f"expected 2 to {TRAINED} steps, got {steps}")
    stride = (TRAINED - 1) / (steps - 1)
    reached, found = 0.0, []
    for _ in range(steps):
        found.append(round(reached))
        reached += stride
    return found[::-1]


def spaced_ddpm(steps: int, *, prediction: str, zero_snr: bool = False) -> Any:
    """A DDPMScheduler with Stable Diffusion's noise, ready to run `spaced` steps.

    Any, because diffusers is optional.

    Args:
        steps: as of `spaced`.
        prediction: "epsilon" or "v_prediction".
        zero_snr: whether nothing of the picture is left at the last timestep.
    """
    from diffusers import DDPMScheduler

    schedule: Any = DDPMScheduler(
        num_train_timesteps=TRAINED,
        variance_type="fixed_small",
        clip_sample=False,
        prediction_type=prediction,
    )
    # Multiplied in double precision, as published; diffusers' own are off in the sixth digit, which
    # the division at the last timestep makes fifteen times larger.
    schedule.alphas_cumprod = torch.from_numpy(signal_left(zero_snr=zero_snr))
    schedule.set_timesteps(timesteps=spaced(steps))
    return schedule


def signal_left(*, zero_snr: bool = False) -> np.ndarray:
    """Share of the picture's variance that is left at each timestep of Stable Diffusion, (1000,).

    With `zero_snr` its root is shifted and scaled so that nothing is left at the last (Lin et al.,
    Common Diffusion Noise Schedules, WACV 2024).
    """
    betas = np.linspace(BETAS[0] ** 0.5, BETAS[1] ** 0.5, TRAINED) ** 2
    left = np.cumprod(1 - betas)
    if zero_snr:
        root = np.sqrt(left)
        left = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return left
