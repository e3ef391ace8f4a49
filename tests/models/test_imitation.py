"""Policies without a tokenizer, of every kind: the protocol, rows, masks, files, refusals."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import SETTINGS, make_imitation, make_policy, make_tokenizer

from daps_robot.errors import CheckpointError, ConfigError
from daps_robot.models import diffusion
from daps_robot.models.imitation import ImitationConfig
from daps_robot.models.policies import POLICIES, load_policy
from daps_robot.models.regression import RegressionPolicy
from daps_robot.types import ChunkBatch, PlanRequest, Policy, TrainedPolicy

every_kind = pytest.mark.parametrize("kind", sorted(SETTINGS))


def request(policy, rows=5):
    rng = np.random.default_rng(0)
    observations = 7 + 3 * rng.normal(size=(rows, policy.history, policy.observation_dim))
    return PlanRequest(observations.astype(np.float32), np.arange(40, 40 + rows))


@every_kind
def test_it_is_a_policy(kind):
    policy, windows = make_imitation(kind)
    assert isinstance(policy, Policy) and isinstance(policy, TrainedPolicy)
    settings = SETTINGS[kind]
    assert (policy.kind, policy.obs_keys, policy.needs_expert) == (kind, ("state",), False)
    assert (policy.history, policy.horizon, policy.execute) == (settings.history, settings.horizon, settings.execute)
    assert (policy.observation_dim, policy.action_dim) == (5, 3)
    plan = policy.plan(request(policy))
    assert plan.shape == (5, settings.horizon, 3)
    assert plan.dtype == np.float32
    assert 50 < plan[..., 0].mean() < 350  # in the actions' own units


@every_kind
def test_a_plan_depends_on_its_own_row_alone(kind):
    policy, _ = make_imitation(kind)
    asked = request(policy)
    plans = policy.plan(asked)
    torch.manual_seed(99)  # the global generator has no say
    for row in range(5):
        alone = policy.plan(PlanRequest(asked.observations[row : row + 1], asked.keys[row : row + 1]))
        np.testing.assert_allclose(plans[row], alone[0], atol=1e-2)  # of actions of 150 to 250
        mixed = PlanRequest(asked.observations + 3, asked.keys + 100)
        mixed.observations[row], mixed.keys[row] = asked.observations[row], asked.keys[row]
        np.testing.assert_allclose(policy.plan(mixed)[row], plans[row], atol=1e-2)


@pytest.mark.parametrize("kind", ["diffusion", "bc-rnn-gmm"])
def test_drawn_plans_are_keyed_by_their_numbers(kind):
    policy, _ = make_imitation(kind)
    asked = request(policy)
    same = PlanRequest(np.repeat(asked.observations[:1], 6, 0), np.array([1, 1, 2, 3, 4, 5]))
    plans = policy.plan(same)
    np.testing.assert_allclose(plans[0], plans[1], atol=1e-2)
    assert np.abs(plans[2:] - plans[0]).max(axis=(1, 2)).min() > 1e-4


@pytest.mark.parametrize("kind", ["bc-rnn-gmm", "regression"])
def test_the_loss_ignores_what_is_masked(kind):
    policy, windows = make_imitation(kind)
    data = policy.windows(windows)
    batch = data.gather(torch.arange(len(data)))
    assert not batch.mask.all()
    other = ChunkBatch(torch.where(batch.mask[..., None], batch.actions, 1e3), batch.mask, batch.observations)

    def loss(of):
        policy.zero_grad()
        torch.manual_seed(0)
        value, logged = policy.losses(of)
        value.backward()
        assert all(not scalar.requires_grad for scalar in logged.values())
        return value.detach(), [p.grad.clone() for p in policy.parameters() if p.grad is not None]

    (value, slopes), (again, same) = loss(batch), loss(other)
    torch.testing.assert_close(value, again)
    torch.testing.assert_close(slopes, same)
    seen = ChunkBatch(batch.actions + 1, batch.mask, batch.observations)
    assert loss(seen)[0] != value


@every_kind
def test_units_make_no_difference(kind):
    """Observations and actions in other units, the same scaled data: the same plans, in those units."""
    policy, windows = make_imitation(kind)
    with torch.no_grad():
        windows.actions, windows.observations = 10 * windows.actions - 3, 0.5 * windows.observations + 20
    torch.manual_seed(0)
    other = POLICIES[kind].for_data(policy.config.settings, policy.obs_dims, windows).eval()
    asked = request(policy)
    moved = PlanRequest(0.5 * asked.observations + 20, asked.keys)
    np.testing.assert_allclose(other.plan(moved), 10 * policy.plan(asked) - 3, rtol=1e-3, atol=1)


@every_kind
def test_the_sign_of_a_quaternion_makes_no_difference(kind, tmp_path):
    _, windows = make_imitation(kind)
    policy = POLICIES[kind].for_data(SETTINGS[kind], {"state": 5}, windows, (1,)).eval()
    asked = request(policy)
    flipped = PlanRequest(asked.observations * np.float32([1, -1, -1, -1, -1]), asked.keys)
    np.testing.assert_array_equal(policy.plan(flipped), policy.plan(asked))
    policy.save_pretrained(tmp_path)
    np.testing.assert_array_equal(load_policy(tmp_path).plan(flipped), policy.plan(asked))


@every_kind
def test_a_saved_policy_plans_the_same(kind, tmp_path):
    policy, _ = make_imitation(kind)
    policy.save_pretrained(tmp_path)
    again = load_policy(tmp_path)
    assert type(again) is type(policy)
    assert again.config == policy.config and not again.training
    assert again.state_dict().keys() == policy.state_dict().keys()
    assert np.array_equal(again.plan(request(policy)), policy.plan(request(policy)))


def test_a_latent_policy_is_loaded_by_the_same_function(tmp_path):
    policy = make_policy()
    policy.save_pretrained(tmp_path)
    again = load_policy(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["format"] == "daps_robot/policy"
    assert isinstance(again, TrainedPolicy) and again.execute == 4
    assert again.config == policy.config


# -- refusals ------------------------------------------------------------------------------------------------------------------


def test_no_policy(tmp_path):
    with pytest.raises(CheckpointError, match="no saved model"):
        load_policy(tmp_path)
    (tmp_path / "config.json").write_text("[1, 2")
    with pytest.raises(CheckpointError, match="not JSON"):
        load_policy(tmp_path)
    for other in ("{}", "[]", '{"format": "daps_robot/policyx"}', '{"format": ["policy"]}'):
        (tmp_path / "config.json").write_text(other)
        with pytest.raises(CheckpointError, match=r"not a policy .*bc-rnn-gmm, diffusion, policy, regression"):
            load_policy(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="'tokenizer', not a policy"):
        load_policy(tmp_path)


def test_another_kinds_directory_is_refused(tmp_path):
    make_policy().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="not a regression"):
        RegressionPolicy.from_pretrained(tmp_path)


def test_another_kinds_settings_are_refused(tmp_path):
    config = ImitationConfig(("state",), 5, 3, SETTINGS["diffusion"])
    with pytest.raises(ConfigError, match="RegressionSettings"):
        RegressionPolicy(config)
    policy, _ = make_imitation("regression")
    policy.config = config
    policy.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="settings of another kind"):
        load_policy(tmp_path)


@pytest.mark.parametrize(
    "path, value, message",
    [
        (("settings", "width"), 10**9, "width"),
        (("settings", "horizon"), 10**9, "horizon"),
        (("settings", "history"), 0, "history"),
        (("settings", "execute"), 9, "execute 9 must be from 1 to 8"),
        (("settings", "style"), 10**9, "style"),
        (("settings", "kl_weight"), -1.0, "kl_weight"),
        (("settings", "widht"), 3, "Did you mean 'width'"),
        (("action_dim",), 10**9, "action dimensions"),
        (("action_dim",), 4, "shape"),
        (("obs_keys",), "state", "obs_keys"),
    ],
)
def test_a_hostile_configuration_is_refused(path, value, message, tmp_path):
    policy, _ = make_imitation("regression")
    policy.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    place = saved["config"]
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(CheckpointError, match=message):
        load_policy(tmp_path)


@pytest.mark.parametrize(
    "kind, settings",
    [
        ("diffusion", {"inference_steps": 7}),
        ("diffusion", {"inference_steps": 0}),
        ("diffusion", {"step_width": 0}),
        ("bc-rnn-gmm", {"horizon": 4}),
        ("bc-rnn-gmm", {"modes": 0}),
        ("regression", {"heads": 3}),
    ],
)
def test_impossible_settings_are_refused(kind, settings):
    with pytest.raises(ConfigError, match=next(iter(settings)).split("_")[0]):
        make_imitation(kind, replace(SETTINGS[kind], **settings))


def test_a_missing_extra_is_named(monkeypatch, tmp_path):
    policy, _ = make_imitation("diffusion")
    policy.save_pretrained(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(ConfigError, match=r"pip install 'daps-robot\[diffusion\]'"):
        load_policy(tmp_path)
    with pytest.raises(ConfigError, match=r"pip install 'daps-robot\[diffusion\]'"):
        diffusion.make_scheduler("sample", 10, 10)


def test_a_missing_torchvision_is_not_had_from_the_extra(monkeypatch):
    """Which would replace the installed torch."""
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ConfigError, match=r"pip install --no-deps torchvision.*docs/policies.md"):
        POLICIES["bc-rnn-gmm"].import_extra()
