"""The scripted experts: success, noise, recovery, and that they can be copied and dropped in anywhere."""

import copy

import numpy as np
import pytest

from daps_robot.envs.expert import CLOSED, OPEN
from daps_robot.envs.experts import SquareExpert
from daps_robot.envs.hand import Hand, bent, rotation_matrix, wrap, yaw_of
from daps_robot.envs.styles import Style

pytest.importorskip("robosuite", reason="robosuite (the extra 'sim') is not installed")


def episode(env, seed, noise=0.0, before=None, steps=400, style="plain"):
    """Steps until success (None: none within `steps`) and the actions."""
    observation, _ = env.reset(seed=seed)
    expert = env.make_expert(noise=noise, seed=seed, style=style)
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
def test_19_of_20_succeed_in_the_human_style(make_env, name):
    env = make_env(f"daps_robot/{name}-v0")
    lengths = [episode(env, seed=3_000_000_000 + i, noise=0.05, style="human")[0] for i in range(20)]
    assert sum(length is not None for length in lengths) >= 19


def test_a_seed_draws_a_style_and_plain_has_none(make_env):
    env = make_env("daps_robot/Can-v0")
    styles = [env.make_expert(seed=seed, style="human").style for seed in range(40)]
    assert styles[3] == env.make_expert(seed=3, style="human").style
    assert len(set(styles)) == 40
    assert {style.misses for style in styles} == {style.drops for style in styles} == {0, 1}
    assert env.make_expert(seed=3).style == Style()


def human_expert(env, seed, **chosen):
    expert = env.make_expert(seed=seed, style="human")
    expert.style = Style(**chosen)
    expert._misses, expert._drops = expert.style.misses, expert.style.drops
    return expert


def openings(env, expert, seed, steps=400):
    """Distance between the fingers at each step, whether they are told to close, and the object's height, until success."""
    observation, _ = env.reset(seed=seed)
    seen = []
    for _ in range(steps):
        action = expert.act(observation)
        fingers = observation["robot0_gripper_qpos"]
        seen.append((fingers[0] - fingers[1], action[6], env.positions()[1][2]))
        observation, _, _, _, info = env.step(action)
        if info["success"]:
            return np.array(seen)
    raise AssertionError("not solved")


@pytest.mark.parametrize("miss_above", [True, False])
def test_a_grasp_misses_and_the_next_one_does_not(env, miss_above):
    seen = openings(env, human_expert(env, 5, misses=1, miss_above=miss_above, side=-0.5), seed=20_000_005)
    closed_on_nothing = seen[:, 0] < 0.012
    assert closed_on_nothing.any()
    again = np.flatnonzero(closed_on_nothing)[-1]
    assert (seen[again:, 1] == -1).any() and seen[-1, 0] > 0.012


def test_what_slips_falls_and_is_picked_up_again(env):
    seen = openings(env, human_expert(env, 5, drops=1, drop_after=2), seed=20_000_005)
    orders = seen[:, 1][np.flatnonzero(seen[:, 1] == 1)[0] :]
    assert (np.diff(orders) == -2).any() and (np.diff(orders) == 2).any()  # opens again, then closes again


def test_fingers_that_jam_aslant_over_the_handle_open_again(make_env, monkeypatch):
    env = make_env("daps_robot/Square-v0")
    observation, _ = env.reset(seed=5)
    expert = env.make_expert(seed=5)
    grasp = SquareExpert._grasp
    with monkeypatch.context() as mistaken:
        mistaken.setattr(
            SquareExpert, "_grasp", lambda self, hand, obj: (grasp(self, hand, obj)[0], grasp(self, hand, obj)[1] + 0.45)
        )
        while (action := expert.act(observation))[6] == OPEN:
            observation, *_ = env.step(action)
        for _ in range(3):
            observation, *_ = env.step(expert.act(observation))
        assert expert.act(observation)[6] == CLOSED
    assert expert.act(observation)[6] == OPEN


def test_a_hand_that_is_turned_off_stays_above_the_handle(make_env):
    """Square's expert turns first, then goes down: it never closes more than a few degrees off."""
    env = make_env("daps_robot/Square-v0")
    for seed in range(3):
        observation, _ = env.reset(seed=seed)
        expert, hand = env.make_expert(seed=seed), Hand(observation)
        while (action := expert.act(observation))[6] == OPEN:
            observation, *_ = env.step(action)
            hand = Hand(observation)
        assert abs(wrap(yaw_of(rotation_matrix(observation["object"][10:14])) - hand.yaw, np.pi)) < 0.1


def test_a_push_is_constant_for_six_steps(make_env):
    expert = make_env("daps_robot/Can-v0").make_expert(seed=2, nudges=1.0)
    pushes = np.stack([expert._nudge() for _ in range(12)])
    assert (pushes[:6] == pushes[0]).all() and (pushes[6:] == pushes[6]).all()
    assert not np.array_equal(pushes[0], pushes[6])
    np.testing.assert_allclose(np.linalg.norm(pushes, axis=1), 0.5)


def test_pauses_and_waits_hold_the_hand_still(make_env):
    env = make_env("daps_robot/Lift-v0")
    expert = human_expert(env, 1, pause=1.0, longest_pause=3)
    observation, _ = env.reset(seed=1)
    for _ in range(5):
        assert np.abs(expert.act(observation)[[0, 1, 2, 5]]).max() == 0.0
    lengths = [len(openings(env, human_expert(env, 1, longest_wait=wait), seed=1)) for wait in (0, 12)]
    assert lengths[1] > lengths[0]


def test_ways_bend_and_end_at_the_goal():
    for angle in (-0.6, 0.6):
        place, longest = np.zeros(3), 0.0
        for _ in range(200):
            move = np.array([0.4, 0.0, 0.0]) - place
            place = place + 0.1 * bent(move, float(np.hypot(*move[:2])), angle)
            longest = max(longest, abs(place[1]))
        np.testing.assert_allclose(place, [0.4, 0.0, 0.0], atol=1e-6)
        assert longest > 0.05
    assert np.array_equal(bent(np.array([0.04, 0.0, 0.1]), 0.04, 0.6), [0.04, 0.0, 0.1])


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


@pytest.mark.parametrize("style", ["plain", "human"])
def test_the_seed_decides_the_noise_and_a_copy_acts_alike(make_env, style):
    observation, _ = make_env("daps_robot/Lift-v0").reset(seed=0)
    first, same, other = (make_env("daps_robot/Lift-v0").make_expert(noise=0.1, seed=seed, style=style) for seed in (1, 1, 2))
    first.act(observation)
    same.act(observation)
    copied = copy.deepcopy(first)
    action = first.act(observation)
    assert np.array_equal(action, same.act(observation))
    assert np.array_equal(action, copied.act(observation))
    assert not np.array_equal(action, other.act(observation))


@pytest.mark.parametrize("style", ["plain", "human"])
def test_it_picks_up_again_what_it_dropped(env, style):
    """With the object just in its grasp, another hand opens the gripper for a while and pushes about."""
    grasped = {"Lift": 28, "PickPlaceCan": 50, "NutAssemblySquare": 45}[env.robosuite_name]

    def disturb(observation):
        expert = env.make_expert()
        for _ in range(grasped):
            observation, *_ = env.step(expert.act(observation))
        for _ in range(12):
            observation, *_ = env.step(np.array([0.1, -0.2, 0.3, 0, 0, 0.2, -1.0]))
        return observation

    assert episode(env, seed=10_000_101, before=disturb, style=style)[0] is not None


def test_the_hands_yaw_is_zero_at_rest(env):
    yaws = [Hand(env.reset(seed=seed)[0]).yaw for seed in range(5)]
    assert np.abs(yaws).max() < 0.3


def test_wrap_and_rotation_matrix():
    assert wrap(3.5 * np.pi, np.pi) == pytest.approx(-0.5 * np.pi)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(rotation_matrix(np.array([0, 0, half, half])) @ [1, 0, 0], [0, 1, 0], atol=1e-12)
