import numpy as np
import pytest
import torch

from baselines.diffusion.schedule import spaced, spaced_ddpm

BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2


@pytest.mark.parametrize("steps", [2, 4, 10, 50, 200, 1000])
def test_timesteps_are_evenly_spaced_from_the_last_to_the_first(steps):
    expected = [round(i * 999 / (steps - 1)) for i in range(steps)]
    assert spaced(steps) == expected[::-1]


def test_the_stride_is_added_up_as_published():
    """21 steps: 10 strides of 49.95 are 499.49999999999994 if added, which rounds down."""
    assert spaced(21)[10] == 499
    assert round(10 * 999 / 20) == 500


@pytest.mark.parametrize("steps", [0, 1, 1001])
def test_too_few_or_too_many_steps_are_refused(steps):
    with pytest.raises(ValueError, match=f"got {steps}"):
        spaced(steps)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_step_is_that_of_a_chain_of_its_own_betas(weights, prediction):
    """The respaced chain written out: betas from the kept products, then DDPM's posterior."""
    schedule = spaced_ddpm(7, prediction=prediction)
    times = spaced(7)[::-1]
    kept = np.cumprod(1 - BETAS)[times]
    before = np.append(1.0, kept[:-1])
    betas = 1 - kept / before
    generator = torch.Generator().manual_seed(0)
    x, predicted = (torch.randn(1, 4, 3, 3, generator=generator) for _ in range(2))
    for i, t in enumerate(times):
        a, b = kept[i], before[i]
        if prediction == "epsilon":
            clean = (x - (1 - a) ** 0.5 * predicted) / a**0.5
        else:
            clean = a**0.5 * x - (1 - a) ** 0.5 * predicted
        mean = betas[i] * b**0.5 / (1 - a) * clean
        mean = mean + (1 - b) * (1 - betas[i]) ** 0.5 / (1 - a) * x
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        expected = mean + (betas[i] * (1 - b) / (1 - a)) ** 0.5 * noise
        found = schedule.step(
            predicted, torch.tensor(t), x, generator=torch.Generator().manual_seed(1)
        ).prev_sample
        torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)


def test_the_noise_is_diffusers_own_for_stable_diffusion(weights):
    from diffusers import DDPMScheduler

    for zero_snr in (False, True):
        theirs = DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            rescale_betas_zero_snr=zero_snr,
        )
        found = spaced_ddpm(4, prediction="epsilon", zero_snr=zero_snr).alphas_cumprod
        torch.testing.assert_close(found.float(), theirs.alphas_cumprod, rtol=1e-4, atol=1e-6)
    assert float(found[-1]) == 0
