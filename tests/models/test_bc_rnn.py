"""robomimic's BC-RNN-GMM behind our protocol: its published settings, its loss, how modes are drawn."""

import numpy as np
import pytest
import torch
from tiny import make_imitation, skip_without_extra

from daps_robot.data.chunks import ObservedSteps
from daps_robot.models.bc_rnn import BCRNNPolicy, BCRNNSettings
from daps_robot.models.imitation import ImitationConfig
from daps_robot.types import PlanRequest


@pytest.fixture(autouse=True)
def extra():
    skip_without_extra("bc-rnn-gmm")


def test_the_networks_are_robomimics_with_its_published_settings():
    policy = BCRNNPolicy(ImitationConfig(("state",), 19, 7, BCRNNSettings()))
    actor = policy.nets["policy"]
    assert type(actor).__module__ == "robomimic.models.policy_nets" and type(actor).__name__ == "RNNGMMActorNetwork"
    lstm = actor.nets["rnn"].nets
    assert (type(lstm).__name__, lstm.input_size, lstm.hidden_size, lstm.num_layers) == ("LSTM", 19, 400, 2)
    assert (actor.num_modes, actor.min_std, actor.std_activation, actor.low_noise_eval) == (5, 1e-4, "softplus", True)
    assert (policy.history, policy.horizon, policy.execute) == (10, 1, 1)


def test_the_loss_is_the_mixtures_negative_log_likelihood():
    policy, windows = make_imitation("bc-rnn-gmm")
    policy.train()
    batch = ObservedSteps(windows).gather(torch.arange(len(windows)))
    value, logged = policy.losses(batch)
    with torch.no_grad():
        mixtures = policy.mixtures(policy.scaler.normalize(batch.observations))
        modes, weights = mixtures.component_distribution.base_dist, mixtures.mixture_distribution.logits
        actions = policy.action_scaler.normalize(batch.actions)
        each = weights.log_softmax(-1) + modes.log_prob(actions[:, :, None]).sum(-1)
        expected = -each.logsumexp(-1)[batch.mask].mean()
    torch.testing.assert_close(value.detach(), expected)
    assert float(logged["nll"]) == value.item()
    assert modes.scale.min() > 0.01  # in training, the network's own


def test_the_likelihood_is_float32_under_autocast():
    policy, windows = make_imitation("bc-rnn-gmm")
    policy.train()
    batch = ObservedSteps(windows).gather(torch.arange(len(windows)))
    value, _ = policy.losses(batch)
    with torch.autocast("cpu", torch.bfloat16):
        again, _ = policy.losses(batch)
    assert again.dtype == torch.float32
    torch.testing.assert_close(again, value)


def test_acting_draws_a_mode_by_its_weight_with_little_noise():
    policy, windows = make_imitation("bc-rnn-gmm")
    observations = windows.gather(torch.tensor([9])).observations
    with torch.no_grad():
        mixtures = policy.mixtures(policy.scaler.normalize(observations))
    modes = mixtures.component_distribution.base_dist.loc[0, -1]
    weights = mixtures.mixture_distribution.probs[0, -1]
    plans = policy.plan(PlanRequest(observations.repeat(3000, 1, 1).numpy(), np.arange(3000)))
    drawn = policy.action_scaler.normalize(torch.from_numpy(plans[:, 0]))
    distance, which = (drawn[:, None] - modes).abs().amax(-1).min(-1)
    assert distance.max() < 1e-3  # 1e-4 is robomimic's low-noise evaluation
    frequency = torch.bincount(which, minlength=3) / 3000
    torch.testing.assert_close(frequency, weights, atol=0.04, rtol=0)


def test_the_last_step_alone_is_planned_from_all_that_is_seen():
    policy, _ = make_imitation("bc-rnn-gmm")
    seen = np.random.default_rng(0).normal(size=(1, 4, 5)).astype(np.float32)
    plan = policy.plan(PlanRequest(seen, np.array([3])))
    earlier = seen.copy()
    earlier[:, 0] += 5
    assert np.abs(policy.plan(PlanRequest(earlier, np.array([3]))) - plan).max() > 1e-4
