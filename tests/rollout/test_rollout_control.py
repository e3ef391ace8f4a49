"""A controller does what an evaluation does."""

from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
from point_env import PointPolicy

from daps_robot.control import Controller
from daps_robot.rollout.evaluate import evaluate


class WildPointPolicy(PointPolicy):
    """Some of its actions lie outside the bounds."""

    kind, observation_dim, action_dim, execute = "wild", 4, 2, 3
    obs_dims: ClassVar = {"position": 2, "goal": 2}
    cameras, picture_size = (), None

    def plan(self, request):
        return 1.5 * super().plan(request)


@pytest.mark.parametrize("history", [1, 3])
def test_a_controller_acts_as_an_evaluation_does(env_id, history):
    policy = WildPointPolicy(history)
    played = evaluate(env_id, policy, first_seed=100, episodes=3, max_steps=20, execute=3, slots=1, workers=0, progress=False)
    env = gym.make(env_id, disable_env_checker=True)
    controller = Controller(policy, bounds=(env.action_space.low, env.action_space.high))
    for record, actions in zip(played.records, played.actions, strict=True):
        seen, _ = env.reset(seed=record.seed)
        controller.reset(record.index)
        for action in actions:
            given = controller.act(seen)
            np.testing.assert_array_equal(given, action)
            seen, *_ = env.step(given)
        assert (controller.counts.plans, controller.counts.clipped) == (record.plans, record.clipped)
    assert played.clipped > 0
