"""The environments: seeded starts, copies of the whole state, observations, agreement with robosuite."""

import json
import os
import pickle
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from daps_robot.data.env_args import ARM, ENV_IDS, ROBOSUITE, SETTINGS, env_differences
from daps_robot.envs.registration import ENV_CLASSES, MAX_EPISODE_STEPS
from daps_robot.envs.simulator import ROBOSUITE_VERSION, build_robosuite
from daps_robot.errors import SimulationError

pytest.importorskip("robosuite", reason="robosuite (the extra 'sim') is not installed")
mujoco = pytest.importorskip("mujoco", reason="mujoco (the extra 'sim') is not installed")

ANOTHER_PROCESS = """
import json, pickle, sys
import gymnasium, numpy as np, daps_robot.envs
env = gymnasium.make(sys.argv[1]).unwrapped
starts = {}
for seed in (5, 3):
    env.reset(seed=seed)
    starts[seed] = env.flat_state().tobytes().hex()
with open(sys.argv[2], "rb") as file:
    state, actions = pickle.load(file)
env.set_state(state)
seen = b""
for action in actions:
    observation, *_ = env.step(action)
    seen += b"".join(observation[key].tobytes() for key in sorted(observation))
print(json.dumps({"starts": starts, "seen": seen.hex(), "model": env.model_xml}))
"""


def random_actions(steps, seed=0):
    actions = np.random.default_rng(seed).uniform(-1, 1, (steps, 7))
    actions[:, 2] -= 0.4  # down, into contact
    return actions


def roll(env, actions):
    """Everything seen along the way, as bytes."""
    seen = b""
    for action in actions:
        observation, *_ = env.step(action)
        seen += b"".join(observation[key].tobytes() for key in sorted(observation))
    return seen + env.flat_state().tobytes()


def test_make_gives_a_time_limit_and_robomimics_keys():
    env = gymnasium.make("daps_robot/Lift-v0")
    observation, info = env.reset(seed=0)
    assert env.spec.max_episode_steps == MAX_EPISODE_STEPS == 400
    assert {key: value.shape for key, value in observation.items()} == {
        "robot0_eef_pos": (3,),
        "robot0_eef_quat": (4,),
        "robot0_gripper_qpos": (2,),
        "object": (10,),
    }
    assert all(value.dtype == np.float32 for value in observation.values())
    assert info["success"] is False


@pytest.mark.filterwarnings("ignore:.*observation space (minimum|maximum) value.*")
def test_gymnasiums_checker_passes(env):
    check_env(env, skip_render_check=True)


def test_a_seed_gives_the_same_start_whatever_ran_before(env):
    first, _ = env.reset(seed=3)
    start = env.flat_state()
    roll(env, random_actions(20))
    env.reset(seed=99)
    roll(env, random_actions(5))
    again, _ = env.reset(seed=3)
    assert np.array_equal(start, env.flat_state())
    assert all(np.array_equal(first[key], again[key]) for key in first)
    env.reset(seed=4)
    assert not np.array_equal(start, env.flat_state())


def test_a_hard_reset_gives_the_same_start_and_future(env):
    env.reset(seed=3)
    start, seen = env.flat_state(), roll(env, random_actions(5))
    env.reset(seed=3, options={"hard": True})
    assert np.array_equal(start, env.flat_state())
    assert seen == roll(env, random_actions(5))


def test_another_process_starts_the_same_and_goes_on_from_a_state(env, tmp_path):
    starts = {}
    for seed in (3, 5):
        env.reset(seed=seed)
        starts[str(seed)] = env.flat_state().tobytes().hex()
    roll(env, random_actions(12))
    actions = random_actions(10, seed=1)
    (tmp_path / "state.pkl").write_bytes(pickle.dumps((env.get_state(), actions)))
    seen = b""
    for action in actions:
        observation, *_ = env.step(action)
        seen += b"".join(observation[key].tobytes() for key in sorted(observation))
    command = [sys.executable, "-c", ANOTHER_PROCESS, env.env_id, str(tmp_path / "state.pkl")]
    answer = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert answer["starts"] == starts
    assert answer["seen"] == seen.hex()
    assert answer["model"] == env.model_xml


def test_a_state_put_back_has_the_same_future_also_in_another_environment(env):
    env.reset(seed=1)
    roll(env, random_actions(30))
    state, actions = env.get_state(), random_actions(40, seed=2)
    seen = roll(env, actions)
    env.reset(seed=8)
    roll(env, random_actions(7, seed=3))
    env.set_state(state)
    assert roll(env, actions) == seen
    other = type(env)()
    observation = other.set_state(state)
    assert roll(other, actions) == seen
    env.set_state(state)
    assert all(np.array_equal(observation[key], env.set_state(state)[key]) for key in observation)


def test_a_state_is_a_snapshot(env):
    env.reset(seed=1)
    roll(env, random_actions(3))
    state = env.get_state()
    copy = pickle.loads(pickle.dumps(state))
    roll(env, random_actions(10, seed=4))
    assert all(np.array_equal(state[key], copy[key]) for key in state)


def test_replay_from_a_flat_state_repeats_an_episode(env):
    env.reset(seed=6)
    start, actions = env.flat_state(), random_actions(40)
    seen = roll(env, actions)
    env.reset(seed=7)
    roll(env, random_actions(3))
    env.reset(options={"state": start})
    assert roll(env, actions) == seen


def test_trajectories_are_robosuites_bit_for_bit(env):
    """The control loop is our own; robosuite's is the reference, from a state inside an episode on."""
    suite = build_robosuite(env.robosuite_name)
    suite.reset()
    suite.step(np.zeros(7))
    env.reset(seed=0)
    state = env.get_state()
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    model, data = suite.sim.model._model, suite.sim.data._data
    mujoco.mj_getState(model, data, state["physics"], kind)
    state["posture"] = suite.robots[0].part_controllers["right"].initial_joint.copy()
    state["fingers"] = suite.robots[0].gripper["right"].current_action.copy()
    env.set_state(state)
    for action in random_actions(80):
        suite.step(action)
        env.step(action)
        assert np.array_equal(env.flat_state()[1:], np.concatenate([data.qpos, data.qvel]))


def test_observations_are_robosuites(env):
    """robosuite takes what depends on other readings from the step before; read twice, it has settled."""
    env.reset(seed=2)
    ours, _, _, _, info = env.step(np.full(7, 0.3))
    suite = env._suite
    mujoco.mj_forward(env._model, env._data)
    suite._get_observations(force_update=True)
    theirs = suite._get_observations(force_update=True)
    theirs["object"] = theirs["object-state"]
    for key, value in ours.items():
        np.testing.assert_allclose(value, theirs[key], atol=1e-5, err_msg=key)
    assert info["success"] == bool(suite._check_success())


def test_the_set_up_is_the_one_that_files_are_compared_with(env):
    said = env.env_args()
    assert ENV_IDS[said["env_name"]] == said["gymnasium_id"]
    assert ROBOSUITE_VERSION.startswith(f"{ROBOSUITE[-1]}.")
    assert env_differences(said) == []
    robot = env._suite.robots[0]
    assert SETTINGS["robots"] == robot.name and SETTINGS["control_freq"] == env._suite.control_freq
    arm = robot.part_controller_config["right"]
    assert arm["input_type"] == "delta"
    stated = {name: arm[name] for name in ARM if name in arm}
    assert len(stated) >= 11 and stated == {name: ARM[name] for name in stated}
    base = env._data.site_xmat[env.controller._base_site].reshape(3, 3)
    np.testing.assert_array_equal(base, np.eye(3))  # so that actions seen from the base and from the world are the same


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stat": None}, "stat"),
        ({"state": np.zeros(3)}, r"shape \(3,\)"),
        ({"state": None}, "shape"),
    ],
)
def test_wrong_options_are_refused(make_env, options, message):
    with pytest.raises(SimulationError, match=message):
        make_env("daps_robot/Lift-v0").reset(options=options)


@pytest.mark.parametrize("action", [np.zeros(6), np.full(7, np.nan)])
def test_wrong_actions_are_refused(make_env, action):
    env = make_env("daps_robot/Lift-v0")
    env.reset(seed=0)
    with pytest.raises(SimulationError, match="7 finite numbers"):
        env.step(action)


def test_a_state_of_another_task_is_refused(make_env):
    can, lift = make_env("daps_robot/Can-v0"), make_env("daps_robot/Lift-v0")
    with pytest.raises(SimulationError, match="PickPlaceCan"):
        lift.set_state(can.get_state())


def run_python(code, **environment):
    variables = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=variables | environment)


STEP = """
import os, gymnasium, daps_robot.envs
before = dict(os.environ)
env = gymnasium.make("daps_robot/Lift-v0")
env.reset(seed=0); env.step(env.action_space.sample())
assert dict(os.environ) == before, "the environment variables have changed"
"""


@pytest.mark.parametrize("mujoco_gl", [None, "egl", "disable"])
def test_stepping_needs_no_opengl_and_is_silent(mujoco_gl, tmp_path):
    """With OpenCV and every OpenGL back end broken, as on a machine without libGL."""
    for module in ("cv2", "glfw"):
        (tmp_path / f"{module}.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    (tmp_path / "OpenGL.py").write_text("None.eglQueryString  # as PyOpenGL fails without libEGL")
    variables = {"PYTHONPATH": str(tmp_path)} | ({} if mujoco_gl is None else {"MUJOCO_GL": mujoco_gl})
    done = run_python(STEP, **variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""


def test_importing_the_package_loads_no_simulator():
    done = run_python("import sys, daps_robot.envs; assert not {'robosuite', 'mujoco', 'torch'} & set(sys.modules)")
    assert done.returncode == 0, done.stderr


def test_a_missing_robosuite_names_the_extra(tmp_path):
    (tmp_path / "robosuite.py").write_text("raise ModuleNotFoundError(\"No module named 'robosuite'\")")
    code = "import gymnasium, daps_robot.envs; gymnasium.make('daps_robot/Lift-v0')"
    done = run_python(code, PYTHONPATH=str(tmp_path))
    assert "SimulationError" in done.stderr
    assert "daps-robot[sim]" in done.stderr


def test_rendering_gives_a_picture_and_leaves_the_simulation_alone():
    env = gymnasium.make("daps_robot/Lift-v0", render_mode="rgb_array").unwrapped
    env.reset(seed=0)
    before = env.get_state()
    try:
        picture = env.render()
    except SimulationError as error:
        pytest.skip(f"no OpenGL here: {error}")
    assert picture.shape == (256, 256, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 10
    assert np.array_equal(before["physics"], env.get_state()["physics"])
    env.close()


def test_rendering_without_opengl_says_what_to_install(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "off")
    env = gymnasium.make("daps_robot/Lift-v0", render_mode="rgb_array").unwrapped
    env.reset(seed=0)
    with pytest.raises(SimulationError, match="apt-get install"):
        env.render()


def test_an_unknown_render_mode_is_refused():
    from daps_robot.envs.tasks import LiftEnv

    with pytest.raises(SimulationError, match="human"):
        LiftEnv(render_mode="human")


def test_every_registered_class_exists():
    from daps_robot.envs import tasks

    assert {getattr(tasks, name).env_id for name in ENV_CLASSES.values()} == set(ENV_CLASSES) == set(ENV_IDS.values())
