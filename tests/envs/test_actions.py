"""Actions as moves, poses and joint angles: agreement with robosuite's controllers, and that they mean the same thing."""

import gymnasium
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.spatial.transform import Rotation

from daps_robot.envs.control import CONTROLLERS, JOINT_STIFFNESS, rotation_of
from daps_robot.envs.registration import ACTIONS, env_id_of
from daps_robot.envs.simulator import build_robosuite
from daps_robot.errors import SimulationError
from daps_robot.rollout.ceiling import Identity, tokenizer_ceiling

pytest.importorskip("robosuite", reason="robosuite (the extra 'sim') is not installed")
mujoco = pytest.importorskip("mujoco", reason="mujoco (the extra 'sim') is not installed")

LIFT = "daps_robot/Lift-v0"


def random_moves(steps, seed=0):
    actions = np.random.default_rng(seed).uniform(-1, 1, (steps, 7))
    actions[:, 2] -= 0.4  # down, into contact
    return actions


@pytest.fixture(scope="module")
def lift(make_env):
    """Lift with each kind of actions."""
    return {actions: make_env(env_id_of(LIFT, actions)) for actions in ACTIONS}


def test_the_ids_name_the_actions(lift):
    assert tuple(CONTROLLERS) == ACTIONS == tuple(lift)
    for (actions, env), size in zip(lift.items(), (7, 10, 8), strict=True):
        assert env.actions == actions
        assert env.action_space.shape == (size,) == (len(CONTROLLERS[actions].units),)
        assert gymnasium.spec(env_id_of("daps_robot/Can-v0", actions)).kwargs.get("actions", "relative") == actions
    assert env_id_of(LIFT, "absolute") == "daps_robot/LiftAbsolute-v0"


def test_unknown_actions_are_refused():
    with pytest.raises(SimulationError, match=r"'polar' is not known; use one of relative, absolute, joint"):
        gymnasium.make(LIFT, actions="polar")


@pytest.mark.parametrize(("actions", "tolerance"), [("absolute", 1e-7), ("joint", 0.0)])
def test_trajectories_are_robosuites(make_env, actions, tolerance):
    """Joint goals bit for bit; poses up to the rounding of a rotation vector, which robosuite takes in place of our columns."""
    env = make_env(env_id_of("daps_robot/Can-v0", actions))
    suite = build_robosuite(env.robosuite_name, actions)
    suite.reset()
    env.reset(seed=0)
    suite.step(np.zeros(suite.action_dim))
    state, kind = env.get_state(), mujoco.mjtState.mjSTATE_INTEGRATION
    model, data = suite.sim.model._model, suite.sim.data._data
    mujoco.mj_setState(model, data, state["physics"], kind)
    mujoco.mj_forward(model, data)
    mujoco.mj_getState(model, data, state["physics"], kind)
    suite.robots[0].part_controllers["right"].initial_joint = state["posture"].copy()
    state["fingers"] = suite.robots[0].gripper["right"].current_action.copy()
    env.set_state(state)
    for move in random_moves(30):
        action = env.from_relative(move)
        theirs = action
        if actions == "absolute":
            theirs = np.concatenate([action[:3], Rotation.from_matrix(rotation_of(action[3:9])).as_rotvec(), action[9:]])
        suite.step(theirs)
        env.step(action)
        np.testing.assert_allclose(env.flat_state()[1 : 1 + model.nq], data.qpos, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("actions", "millimetres"), [("absolute", 1e-6), ("joint", 3.0)])
def test_a_move_means_the_same_in_other_actions(lift, actions, millimetres):
    lift["relative"].reset(seed=5)
    for move in random_moves(25, seed=1):
        state = lift["relative"].get_state()
        lift[actions].set_state(state)
        lift[actions].step(lift[actions].from_relative(move))
        lift["relative"].step(move)
        expected, found = lift["relative"].positions(), lift[actions].positions()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3 * millimetres)
        assert np.array_equal(lift[actions].get_state()["fingers"], lift["relative"].get_state()["fingers"])


def test_asking_what_a_move_means_leaves_no_trace(lift):
    env, move = lift["joint"], random_moves(1)[0]
    env.reset(seed=2)
    env.step(env.from_relative(move))
    before, seen = env.get_state(), env.positions()
    first, again = env.from_relative(move), env.from_relative(move)
    assert np.array_equal(first, again)
    assert all(np.array_equal(before[key], value) for key, value in env.get_state().items())
    assert np.array_equal(seen, env.positions())


def test_poses_turn_back_into_moves(lift):
    env = lift["absolute"]
    env.reset(seed=3)
    for move in random_moves(10).clip(-1, 1):
        pose = env.from_relative(move)
        np.testing.assert_allclose(env.controller.to_relative(pose), move, atol=1e-6)  # robosuite turns by quaternions of float32
        assert env.action_space.contains(pose.astype(np.float32))
        env.step(pose)


def test_columns_of_any_length_and_angle_are_a_rotation():
    chance = np.random.default_rng(0)
    for rotation in Rotation.random(20, random_state=0).as_matrix():
        x, y = rotation[:, 0], rotation[:, 1]
        np.testing.assert_allclose(rotation_of(np.concatenate([x, y])), rotation, atol=1e-12)
        a, b, c = chance.uniform(0.2, 3.0, 3)
        np.testing.assert_allclose(rotation_of(np.concatenate([a * x, b * y + c * x])), rotation, atol=1e-12)


@pytest.mark.parametrize("columns", [np.zeros(6), [1, 0, 0, 0, 0, 0], [1, 0, 0, 2, 0, 0]])
def test_columns_that_are_no_rotation_are_refused(lift, columns):
    lift["absolute"].reset(seed=0)
    with pytest.raises(SimulationError, match="two columns"):
        lift["absolute"].step(np.array([0, 0, 1, *columns, 0.0]))


def test_a_joints_goal_is_found_from_where_it_leads(lift):
    """The law x'' = kp (goal - x) - 2 √kp x' integrated numerically from each joint's state."""
    env = lift["joint"]
    env.reset(seed=4)
    env.step(env.from_relative(random_moves(1)[0]))  # so that the joints are moving
    controller = env.controller
    start = np.concatenate([controller._joint_pos, controller._joint_vel])
    goal = start[:7] + np.linspace(-0.3, 0.3, 7)

    def law(_, x):
        return np.concatenate([x[7:], JOINT_STIFFNESS * (goal - x[:7]) - 2 * np.sqrt(JOINT_STIFFNESS) * x[7:]])

    end = solve_ivp(law, (0, 1 / env.metadata["render_fps"]), start, rtol=1e-10, atol=1e-12).y[:, -1]
    np.testing.assert_allclose(controller.towards(end[:7], end[7:]), goal, atol=1e-7)


@pytest.mark.parametrize("actions", ["absolute", "joint"])
def test_the_expert_acts_and_looks_ahead_in_other_actions(actions):
    found = tokenizer_ceiling(
        env_id_of(LIFT, actions), Identity(16), first_seed=60_000, episodes=1, max_steps=90, slots=1, workers=1, progress=False
    )
    assert found.successes == 1
    assert found.actions[0].shape[1] == len(CONTROLLERS[actions].units)
