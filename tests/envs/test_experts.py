"""The scripted experts: success, noise, recovery, and that they can be copied and dropped in anywhere."""

import copy

import numpy as np
import pytest

from daps_robot.envs.experts import Hand, rotation_matrix, wrap


def episode(env, seed, noise=0.0, before=None, steps=400):
    """Steps until success (None: none within `steps`) and the actions."""
    observation, _ = env.reset(seed=seed)
    expert = env.make_expert(noise=noise, seed=seed)
    if before is not None:
        observation = before(observation)
    actions = []
    for step in range(steps):
        actions.append(expert.act(observation))
        observation, _, _, _, info = env.step(actions[-1])
        if info["success"]:
            return step + 1, np.stack(actions)
    return None, np.stack(actions)


def test_a_few_episodes_succeed(env):
    lengths = [episode(env, seed=2_000_000_000 + i)[0] for i in range(3)]
    assert None not in lengths


def test_lift_is_smooth_decisive_and_robust_to_noise(make_env):
    env = make_env("daps_robot/Lift-v0")
    lengths = [episode(env, seed=2_000_000_000 + i, noise=0.1)[0] for i in range(10)]
    assert None not in lengths
    assert 30 <= np.mean(lengths) <= 70


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Lift", "Can", "Square"])
def test_49_of_50_succeed_without_noise(make_env, name):
    env = make_env(f"daps_robot/{name}-v0")
    assert sum(episode(env, seed=3_000_000_000 + i)[0] is not None for i in range(50)) >= 49


def test_actions_are_float32_clipped_with_a_binary_gripper(make_env):
    env = make_env("daps_robot/Lift-v0")
    _, actions = episode(env, seed=1, noise=0.5, steps=60)
    assert actions.dtype == np.float32
    assert np.abs(actions).max() <= 1.0
    assert set(np.unique(actions[:, 6])) <= {-1.0, 1.0}


def test_noise_is_of_the_size_asked_for_and_spares_the_gripper(make_env):
    env = make_env("daps_robot/Square-v0")
    observation, _ = env.reset(seed=0)
    plain = env.make_expert().act(observation)
    expert = env.make_expert(noise=0.02, seed=1)
    errors = np.stack([expert.act(observation) for _ in range(4000)]) - plain
    np.testing.assert_allclose(errors[:, :6].std(axis=0), 0.02, rtol=0.1)
    assert (errors[:, 6] == 0).all()


def test_the_seed_decides_the_noise_and_a_copy_acts_alike(make_env):
    observation, _ = make_env("daps_robot/Lift-v0").reset(seed=0)
    first, same, other = (make_env("daps_robot/Lift-v0").make_expert(noise=0.1, seed=seed) for seed in (1, 1, 2))
    first.act(observation)
    same.act(observation)
    copied = copy.deepcopy(first)
    action = first.act(observation)
    assert np.array_equal(action, same.act(observation))
    assert np.array_equal(action, copied.act(observation))
    assert not np.array_equal(action, other.act(observation))


def test_it_picks_up_again_what_it_dropped(env):
    """With the object just in its grasp, another hand opens the gripper for a while and pushes about."""
    grasped = {"Lift": 28, "PickPlaceCan": 50, "NutAssemblySquare": 45}[env.robosuite_name]

    def disturb(observation):
        expert = env.make_expert()
        for _ in range(grasped):
            observation, *_ = env.step(expert.act(observation))
        for _ in range(12):
            observation, *_ = env.step(np.array([0.1, -0.2, 0.3, 0, 0, 0.2, -1.0]))
        return observation

    assert episode(env, seed=10_000_101, before=disturb)[0] is not None


def test_the_hands_yaw_is_zero_at_rest(env):
    yaws = [Hand(env.reset(seed=seed)[0]).yaw for seed in range(5)]
    assert np.abs(yaws).max() < 0.3


def test_wrap_and_rotation_matrix():
    assert wrap(3.5 * np.pi, np.pi) == pytest.approx(-0.5 * np.pi)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(rotation_matrix(np.array([0, 0, half, half])) @ [1, 0, 0], [0, 1, 0], atol=1e-12)
