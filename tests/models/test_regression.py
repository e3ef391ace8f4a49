"""Regression of chunks: its loss against torch's own distributions, and that acting knows no style."""

from dataclasses import replace

import numpy as np
import torch
from tiny import SETTINGS, make_imitation
from torch.distributions import Normal, kl_divergence

from daps_robot.types import ChunkBatch, PlanRequest


def test_the_loss_is_l1_plus_the_weighted_kl():
    policy, windows = make_imitation("regression")
    batch = windows.gather(torch.arange(len(windows)))
    observations, actions = policy.scaler.normalize(batch.observations), policy.action_scaler.normalize(batch.actions)
    value, logged = policy.losses(batch)
    mean, log_variance = policy.style_encoder(observations[:, -1], actions * batch.mask[..., None])
    kl = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(-1).mean()
    torch.testing.assert_close(logged["kl"], kl)
    torch.testing.assert_close(value, logged["l1"] + 10 * kl)


def test_the_style_is_computed_in_float32_under_autocast():
    policy, windows = make_imitation("regression")
    batch = windows.gather(torch.arange(len(windows)))
    with torch.no_grad():
        policy.style_encoder.head.bias.fill_(500.0)  # whose exponential no float holds
    with torch.autocast("cpu", torch.bfloat16):
        mean, log_variance = policy.style_encoder(batch.observations[:, -1], batch.actions)
        value, logged = policy.losses(batch)
    assert mean.dtype == log_variance.dtype == logged["kl"].dtype == torch.float32
    assert log_variance.max() == 20 and value.isfinite()


def test_the_error_is_the_mean_over_the_steps_that_were_demonstrated():
    policy, windows = make_imitation("regression", replace(SETTINGS["regression"], style=0))
    batch = windows.gather(torch.arange(len(windows)))
    value, logged = policy.losses(batch)
    planned = policy.action_scaler.normalize(policy.chunks(batch.observations, np.zeros(len(windows))))
    error = (planned - policy.action_scaler.normalize(batch.actions)).abs().mean(-1)
    torch.testing.assert_close(value, error[batch.mask].mean())
    assert logged.keys() == {"l1"}


def test_plans_are_those_of_the_mean_style():
    policy, windows = make_imitation("regression")
    batch = windows.gather(torch.arange(4))
    observations = policy.scaler.normalize(batch.observations)
    with torch.no_grad():
        expected = policy.action_scaler.denormalize(policy.decode(observations, torch.zeros(4, 4)))
        other = policy.action_scaler.denormalize(policy.decode(observations, torch.ones(4, 4)))
    plans = policy.plan(PlanRequest(batch.observations.numpy(), np.arange(4)))
    np.testing.assert_allclose(plans, expected, rtol=1e-5)
    assert np.abs(plans - other.numpy()).max() > 1e-2


def test_a_style_costs_nothing_that_the_observation_says():
    """Where all demonstrations agree, the style has nothing to add: its KL falls to nothing, and the error with it."""
    policy, windows = make_imitation("regression")
    batch = windows.gather(torch.arange(len(windows)))
    batch = ChunkBatch(torch.ones_like(batch.actions), batch.mask, batch.observations)
    optimizer = torch.optim.Adam(policy.parameters(), 1e-2)
    for _ in range(60):
        value, logged = policy.losses(batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert logged["kl"] < 0.01 and logged["l1"] < 0.5
