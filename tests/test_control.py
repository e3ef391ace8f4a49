"""A policy in a control loop: histories, plans, what is refused, held and clipped."""

import subprocess
import sys
from typing import ClassVar

import numpy as np
import pytest
import torch
from tiny import make_imitation, make_policy

from daps_robot.control import Controller, plan_keys
from daps_robot.errors import ConfigError, ControlError, DataError
from daps_robot.models.policy import DecodingConfig
from daps_robot.plan_ahead import PlanAhead


class Recorder:
    """Plans (10 · number of the plan + step of the plan, sum of what it saw last); keeps what it was asked."""

    kind, obs_keys, needs_expert = "recorder", ("b", "a"), False
    cameras, picture_size = (), None
    observation_dim, action_dim, history, horizon, execute = 3, 2, 3, 6, 2
    obs_dims: ClassVar = {}

    def __init__(self):
        self.requests = []

    def plan(self, request):
        self.requests.append(request)
        number = 10 * (len(self.requests) - 1) + np.arange(self.horizon)
        return np.stack([number, np.full(self.horizon, request.observations[0, -1].sum())], -1)[None].astype(np.float32)


def seen(t):
    return {"a": np.array([t, t + 0.25]), "unused": "text", "b": np.array([[-t]], dtype=np.float64)}


def first(controller, steps, start=0):
    return [float(controller.act(seen(t))[0]) for t in range(start, start + steps)]


def test_every_e_steps_it_plans_from_the_last_n_observations():
    policy = Recorder()
    controller = Controller(policy)
    assert first(controller, 6) == [0, 1, 10, 11, 20, 21]
    asked = [request.observations[0] for request in policy.requests]
    row = [[-t, t, t + 0.25] for t in range(6)]
    for observations, steps in zip(asked, ([0, 0, 0], [0, 1, 2], [2, 3, 4]), strict=True):
        assert observations.tolist() == [row[t] for t in steps]
    assert (controller.counts.steps, controller.counts.plans) == (6, 3)
    controller.reset()
    assert first(controller, 1, start=9) == [30]
    assert policy.requests[-1].observations[0].tolist() == [[-9, 9, 9.25]] * 3
    assert controller.counts.plans == 1


def test_another_number_of_steps_is_executed():
    assert first(Controller(Recorder(), execute=3), 7) == [0, 1, 2, 10, 11, 12, 20]
    for wrong in (0, 7):
        with pytest.raises(ConfigError, match="execute"):
            Controller(Recorder(), execute=wrong)


class Seeing(Recorder):
    cameras, picture_size = ("wrist", "side"), (4, 5)


def test_pictures_go_with_the_history_and_must_fit():
    policy = Seeing()
    controller = Controller(policy)
    pictures = np.random.default_rng(0).integers(0, 256, (3, 2, 4, 5, 3), dtype=np.uint8)

    def looking(t):
        return seen(t) | {"side_image": pictures[t, 1], "wrist_image": pictures[t, 0]}

    for t in range(3):
        controller.act(looking(t))
    assert np.array_equal(policy.requests[-1].images[0], pictures)
    assert np.array_equal(policy.requests[0].images[0], pictures[[0, 0, 0]])
    wrong = {"wrist_image": pictures[0, 0, :, :4]}, {"wrist_image": pictures[0, 0] / 255}
    for change in wrong:
        with pytest.raises(ControlError, match=r"'wrist_image' is .* sees uint8 of \(4, 5, 3\)"):
            controller.act(looking(0) | change)
    with pytest.raises(ControlError, match="lacks 'wrist_image', a picture"):
        controller.act(seen(0))


def test_noise_is_keyed_by_seed_and_plan():
    policy = make_policy(DecodingConfig("sample"))
    observations = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)

    def played(seed):
        policy.reset(seed)
        return np.stack([policy.act(observation) for observation in observations])

    once = played(3)
    assert not np.array_equal(played(4), once)
    np.testing.assert_array_equal(played(3), once)
    with pytest.raises(ConfigError, match="seed"):
        policy.reset(-1)


def test_a_flat_vector_is_as_good_as_a_mapping():
    one, other = Controller(Recorder()), Controller(Recorder())
    for t in range(4):
        flat = np.concatenate([seen(t)["b"].ravel(), seen(t)["a"]])
        np.testing.assert_array_equal(one.act(seen(t)), other.act(flat))


def test_actions_and_observations_are_copies():
    policy = Recorder()
    controller, reused = Controller(policy, execute=1), np.zeros(3, np.float32)
    controller.act(reused)[:] = 99
    reused[:] = 7
    assert controller.act(reused)[0] == 10
    assert policy.requests[1].observations[0].tolist() == [[0, 0, 0], [0, 0, 0], [7, 7, 7]]


BAD = {
    "lacks 'b'": {"a": np.zeros(2)},
    "'a' is not finite: value 1": {"a": np.array([0, np.nan]), "b": np.zeros(1)},
    "'b' is not finite": {"a": np.zeros(2), "b": np.array([1e300])},
    "'a' is no array of numbers": {"a": np.array(["x", "y"]), "b": np.zeros(1)},
    r"4 values \('b' 1 \+ 'a' 3\), the policy sees 3": {"a": np.zeros(3), "b": np.zeros(1)},
    "4 values": np.zeros(4),
    "6 values": np.zeros((2, 3)),
    "no array of numbers: it is object of shape": None,
    "no array": [[1.0], [2.0, 3.0]],
    "no array of numbers: it is complex128": np.zeros(3, complex),
    "no array of numbers: it is object": [10**400, 0, 0],
    "no array of numbers: .*requires grad": torch.zeros(3, requires_grad=True),
}


@pytest.mark.parametrize("message", BAD)
def test_an_observation_that_does_not_fit_is_refused_and_forgotten(message):
    policy = Recorder()
    controller = Controller(policy)
    assert first(controller, 1) == [0]
    with pytest.raises(ControlError, match=message):
        controller.act(BAD[message])
    assert first(controller, 2, start=1) == [1, 10]
    assert policy.requests[1].observations[0, :, 0].tolist() == [0, -1, -2]


def test_keys_that_exchange_values_are_refused():
    """Three values in all are not enough where it is known which are whose."""
    policy = Recorder()
    policy.obs_dims = {"b": 1, "a": 2}
    controller = Controller(policy)
    with pytest.raises(ControlError, match="'b' has 2 values, the policy sees 1"):
        controller.act({"a": np.zeros(1), "b": np.zeros(2)})
    assert first(controller, 1) == [0]


def test_a_flat_observation_is_no_key_of_that_name():
    policy = Recorder()
    policy.obs_keys, policy.obs_dims = ("observation", "goal"), {"observation": 2, "goal": 1}
    controller = Controller(policy)
    controller.act(np.zeros(3))
    controller.act({"observation": np.zeros(2), "goal": np.zeros(1)})
    with pytest.raises(ControlError, match="'observation' has 1 values, the policy sees 2"):
        controller.act({"observation": np.zeros(1), "goal": np.zeros(2)})


@pytest.mark.parametrize("choice", ["Raise", "stop", None, False])
def test_what_is_no_choice_does_not_mean_hold(choice):
    with pytest.raises(ConfigError, match='neither "raise" nor "hold"'):
        Controller(Recorder(), on_bad_observation=choice)
    with pytest.raises(ConfigError, match="on_late"):
        PlanAhead(Recorder(), 1, on_late=choice)


def test_a_plan_that_was_refused_is_not_counted():
    """Its number keys the noise of the next."""
    policy, plan = Recorder(), Recorder.plan
    controller = Controller(policy, execute=1)
    assert first(controller, 1) == [0]
    policy.plan = overflow
    with pytest.raises(ControlError, match="overflows"):
        controller.act(seen(1))
    policy.plan = plan.__get__(policy)
    assert first(controller, 1, start=2) == [10] and controller.counts.plans == 2
    assert policy.requests[1].keys == plan_keys(np.array([0]), np.array([1]))


def overflow(request):
    raise DataError("row 0 overflows")


def test_or_the_last_action_is_given_again_while_the_plan_waits():
    policy = Recorder()
    controller = Controller(policy, on_bad_observation="hold")
    with pytest.raises(ControlError):
        controller.act(np.full(3, np.nan))  # there is nothing to give again
    bad = np.full(3, np.inf)
    given = [controller.act(each)[0] for each in (seen(0), bad, bad, seen(1), bad, seen(2))]
    assert given == [0, 0, 0, 1, 1, 10]
    assert policy.requests[1].observations[0, :, 0].tolist() == [0, -1, -2]
    assert (controller.counts.bad_observations, controller.counts.steps) == (3, 6)


@pytest.mark.parametrize("on_bad_observation", ["raise", "hold"])
def test_an_observation_that_overflows_in_the_policy_is_forgotten(on_bad_observation):
    policy = Recorder()
    controller = Controller(policy, on_bad_observation=on_bad_observation)
    assert first(controller, 2) == [0, 1]
    plan = policy.plan

    def overflow(request):
        raise DataError("row 0 of the request overflows in the policy")

    policy.plan = overflow
    if on_bad_observation == "hold":
        assert controller.act(seen(7))[0] == 1
        assert controller.counts.bad_observations == 1
    else:
        with pytest.raises(ControlError, match="overflows"):
            controller.act(seen(7))
    policy.plan = plan
    assert controller.act(seen(2))[0] == 10
    assert policy.requests[-1].observations[0, :, 0].tolist() == [0, -1, -2]


def test_actions_are_clipped_and_counted():
    controller = Controller(Recorder(), bounds=([0, -1], [10.5, 1]))
    given = np.stack([controller.act(seen(t)) for t in range(4)])
    assert given.tolist() == [[0, 0.25], [1, 0.25], [10, 1], [10.5, 1]]
    assert given.dtype == np.float32
    assert controller.counts.clipped == 3  # 11, and twice 2.25
    assert first(Controller(Recorder(), bounds=(-np.inf, 0.5)), 2) == [0, 0.5]
    for wrong in (([0, 0, 0], 1), (1, 0), (np.nan, 1), (0,), (0, "x")):
        with pytest.raises(ConfigError, match="bound"):
            Controller(Recorder(), bounds=wrong)


def test_a_plan_that_is_not_finite_or_of_another_shape_is_not_executed():
    policy = Recorder()
    wrong = ((np.full((1, 6, 2), np.nan), "not finite"), (np.full((1, 6, 2), 1e300), "not finite"), (np.zeros((6, 2)), "shape"))
    for plan, message in wrong:
        policy.plan = lambda request, plan=plan: plan
        with pytest.raises(ControlError, match=message):
            Controller(policy).act(seen(0))


def test_a_policy_that_needs_an_expert_cannot_act():
    policy = Recorder()
    policy.needs_expert = True
    with pytest.raises(ConfigError, match="expert"):
        Controller(policy)


@pytest.mark.parametrize("kind", ["latent", "regression"])
def test_policies_act_by_themselves(kind):
    policy = make_policy() if kind == "latent" else make_imitation(kind)[0]
    observations = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    controller = Controller(policy)
    for observation in observations:
        np.testing.assert_array_equal(policy.act({"state": observation}), controller.act(observation))
    policy.reset()
    np.testing.assert_array_equal(policy.act(observations[0]), Controller(policy).act(observations[0]))


def test_a_copy_of_a_policy_acts_by_its_own_decoding():
    torch.manual_seed(0)
    policy = make_policy()
    policy.act(np.zeros(5))
    other = policy.with_decoding(DecodingConfig("expected"))
    np.testing.assert_array_equal(other.act(np.zeros(5)), Controller(other).act(np.zeros(5)))
    assert not np.array_equal(other.act(np.zeros(5)), policy.act(np.zeros(5)))


def test_control_does_without_torch():
    code = "import sys; from daps_robot import Controller, PlanAhead; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
