"""The sampler against the library's DDPM and against distributions that are known; the U-Net's shapes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import SETTINGS, make_imitation

from daps_robot.errors import ConfigError
from daps_robot.models.diffusion import denoise, make_scheduler
from daps_robot.models.imitation import keyed_normal
from daps_robot.models.unet import UNet

diffusers = pytest.importorskip("diffusers")


@pytest.mark.parametrize("prediction", ["sample", "epsilon"])
def test_all_steps_are_ddpm(prediction):
    """One step of ours is one of the library's DDPM, at every diffusion step, with samples that are clipped."""
    ours = make_scheduler(prediction, 20, 20)
    theirs = diffusers.DDPMScheduler(
        num_train_timesteps=20, beta_schedule="squaredcos_cap_v2", clip_sample=True, prediction_type=prediction
    )
    assert ours.timesteps.tolist() == theirs.timesteps.tolist() == list(range(19, -1, -1))
    generator = torch.Generator().manual_seed(0)
    for step in range(20):
        noisy, estimate = torch.randn(2, 50, 4, generator=generator)
        added = torch.randn(50, 4, generator=torch.Generator().manual_seed(step))
        expected = theirs.step(estimate, step, noisy, generator=torch.Generator().manual_seed(step)).prev_sample
        more = {"eta": 1.0, "variance_noise": added}
        found = ours.step(estimate, step, noisy, use_clipped_model_output=True, **more).prev_sample
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def exact_denoiser(scheduler, mean, deviation):
    """The best noise estimate for samples of N(m, s²): E[ε | x_τ] = √(1−ᾱ) (x_τ − √ᾱ m) / (ᾱ s² + 1 − ᾱ)."""

    def estimate(noisy, step):
        a = scheduler.alphas_cumprod[step]
        return (1 - a).sqrt() * (noisy - a.sqrt() * mean) / (a * deviation**2 + 1 - a)

    return estimate


def ddpm_deviation(scheduler, deviation):
    """The standard deviation that DDPM then ends with: its chain is linear, and every step adds the posterior's variance."""
    above = scheduler.alphas_cumprod.double().numpy()
    below = np.concatenate([[1.0], above[:-1]])
    variance = 1.0
    for a, b in zip(above[::-1], below[::-1], strict=True):
        beta = 1 - a / b
        of_sample, of_noisy = np.sqrt(b) * beta / (1 - a), np.sqrt(a / b) * (1 - b) / (1 - a)
        gain = np.sqrt(a) * deviation**2 / (a * deviation**2 + 1 - a)
        variance = (of_sample * gain + of_noisy) ** 2 * variance + beta * (1 - b) / (1 - a)
    return np.sqrt(variance)


@pytest.mark.parametrize("steps, error", [(100, 0.25), (500, 0.1)])
def test_a_gaussian_is_recovered_by_its_own_denoiser(steps, error):
    mean, deviation = torch.tensor([0.3, -0.2]), torch.tensor([0.15, 0.05])
    scheduler = make_scheduler("epsilon", steps, steps)
    noise = torch.randn(20_000, steps + 1, 2, generator=torch.Generator().manual_seed(0))
    drawn = denoise(scheduler, exact_denoiser(scheduler, mean, deviation), noise)
    torch.testing.assert_close(drawn.mean(0), mean, atol=0.005, rtol=0)
    expected = torch.from_numpy(ddpm_deviation(scheduler, deviation.numpy())).float()
    torch.testing.assert_close(drawn.std(0), expected, atol=0, rtol=0.03)
    torch.testing.assert_close(expected, deviation, atol=0, rtol=error)  # the finer the steps, the nearer


@pytest.mark.parametrize("inference_steps", [5, 10, 20])
def test_ddim_finds_the_mean_from_one_draw_of_noise(inference_steps):
    mean, deviation = torch.tensor([0.3, -0.2]), torch.tensor([0.15, 0.05])
    scheduler = make_scheduler("epsilon", 100, inference_steps)
    noise = torch.randn(20_000, 1, 2, generator=torch.Generator().manual_seed(0))
    drawn = denoise(scheduler, exact_denoiser(scheduler, mean, deviation), noise)
    torch.testing.assert_close(drawn.mean(0), mean, atol=0.01, rtol=0)  # it starts a little below the noisiest step
    assert (drawn.std(0) < deviation).all()  # few large steps draw towards the mean
    assert (drawn[:, 0] > drawn[:, 0].mean()).eq(noise[:, 0, 0] > noise[:, 0, 0].mean()).float().mean() > 0.99


@pytest.mark.parametrize("prediction, inference_steps", [("sample", 5), ("epsilon", 20)])
def test_a_trained_policy_draws_from_what_was_demonstrated(prediction, inference_steps):
    """Two commands, whatever is seen: plans are the one or the other, about as often, and not their mean."""
    size = {"horizon": 2, "execute": 1, "widths": (16,), "inference_steps": inference_steps}
    settings = replace(SETTINGS["diffusion"], prediction=prediction, **size)
    policy, _ = make_imitation("diffusion", settings)
    sides = torch.where(torch.arange(64) % 2 == 0, -1.0, 1.0)[:, None, None].expand(-1, 2, 3)
    observations, mask = torch.zeros(64, 2, 5), torch.ones(64, 2, dtype=torch.bool)
    optimizer = torch.optim.Adam(policy.parameters(), 1e-2)
    for _ in range(150):
        value, _ = policy.loss(observations, sides, mask)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    with torch.no_grad():
        drawn = policy.sample(torch.zeros(200, 2, 5), np.arange(200))
    assert (drawn.abs() > 0.7).float().mean() > 0.9
    assert 0.3 < (drawn[:, 0, 0] > 0).float().mean() < 0.7


def test_noise_is_a_function_of_the_key():
    noise = keyed_normal(np.arange(2000), (3, 2), torch.zeros(1))
    assert torch.equal(keyed_normal(np.array([7, 3]), (3, 2), torch.zeros(1)), noise[[7, 3]])
    torch.testing.assert_close(noise.mean(0), torch.zeros(3, 2), atol=0.1, rtol=0)
    torch.testing.assert_close(noise.std(0), torch.ones(3, 2), atol=0.1, rtol=0)


@pytest.mark.parametrize("widths", [(8,), (8, 16), (16, 8, 24)])
def test_the_network_sees_every_step_and_the_condition(widths):
    network = UNet(8, 3, widths, 4)
    chunk = torch.randn(2, 8, 3, requires_grad=True)
    condition = torch.randn(2, 4, requires_grad=True)
    out = network(chunk, condition)
    assert out.shape == (2, 8, 3)
    out[0, 4].square().sum().backward()
    assert (chunk.grad[0].abs().sum(-1) > 0).sum() >= 5  # half a kernel on either side at least
    assert (chunk.grad[1] == 0).all() and (condition.grad[1] == 0).all()
    assert (condition.grad[0] != 0).all()


@pytest.mark.parametrize(
    "horizon, widths, message",
    [(6, (8, 8, 8), "halved 2 times"), (8, (), "halved"), (8, (12,), "multiples of 8"), (8, (8192,), "up to 4096")],
)
def test_networks_that_cannot_be(horizon, widths, message):
    with pytest.raises(ConfigError, match=message):
        UNet(horizon, 3, widths, 4)
