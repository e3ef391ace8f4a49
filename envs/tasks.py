"""The tasks as Gymnasium environments: Lift, Can and Square of robosuite, with a Panda that takes 20 actions a second.

Observations carry robomimic's names (those of its low-dimensional data sets):

    robot0_eef_pos       (3)  metres, the point between the fingers, in the world
    robot0_eef_quat      (4)  x y z w, the robot's hand (the body, as in robomimic; robosuite's `…_quat_site` is another)
    robot0_gripper_qpos  (2)  metres, the two finger joints
    object               (10) Lift: position, quaternion, position less robot0_eef_pos
                         (14) Can, Square: position and quaternion seen from the hand, position, quaternion in the world

With `cameras`, also their pictures, `<camera>_image` (size size 3) uint8 (robomimic's image data sets have "agentview" and
"robot0_eye_in_hand").

They are taken after the control step, from the state that the next action starts in, as robomimic's converter takes them when
it replays states (robosuite's own `step` returns those of 48 ms earlier).

Actions are (7) in [-1, 1]: the move of the hand in units of 5 cm and 0.5 rad (a rotation vector), and the gripper (-1 opens,
+1 closes). `actions="absolute"` takes (10) instead, goal poses in the world, and `actions="joint"` (8), goal angles of the joints
(see `control.CONTROLLERS`); the states of one can be set in another. The reward is 1 where the task is solved, else 0.
`terminated` is always False, so that the time after success can be seen; stop at `info["success"]`, which is there after every
reset and step.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from jaxtyping import Float, UInt8

from daps_robot.data.cameras import image_key
from daps_robot.envs.control import CONTROLLERS, ArmController
from daps_robot.envs.registration import env_id_of
from daps_robot.envs.simulator import CONTROL_FREQUENCY, ROBOSUITE_VERSION, build_robosuite, robosuite_arguments
from daps_robot.errors import SimulationError

if TYPE_CHECKING:
    from daps_robot.envs.expert import Expert

Observation = dict[str, np.ndarray]


class RobosuiteEnv(gymnasium.Env[Observation, np.ndarray]):
    """A robosuite task whose start state depends on the seed alone, and whose whole state can be copied and put back.

    robosuite builds the model and draws the start states; the control loop is an `ArmController`, which gives the same
    trajectories in a fraction of the time.

    Attributes:
        actions: "relative", "absolute" or "joint".
        controller: that takes them.
        drawing: whether observations hold the cameras' pictures. One costs as much as seven steps: who needs but some of
            them sets this to False, and asks `pictures` for those.
        model_xml: the MuJoCo model, as robomimic's data sets store it.
        start_seed: what the present episode was seeded with.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": CONTROL_FREQUENCY}
    env_id: ClassVar[str]
    robosuite_name: ClassVar[str]
    _body: ClassVar[str]
    _object_size: ClassVar[int]

    def __init__(
        self,
        render_mode: str | None = None,
        actions: str = "relative",
        cameras: Sequence[str] = (),
        camera_size: int = 84,
    ) -> None:
        """Builds the model (half a second). No OpenGL is needed before the first picture.

        Args:
            render_mode: "rgb_array" or None.
            actions: how actions are written down: "relative", "absolute" or "joint".
            cameras: whose pictures are observed.
            camera_size: height and width of these, in pixels.

        Raises:
            SimulationError: robosuite is not installed, or the render mode, the actions or a camera are not known.
        """
        if render_mode not in (None, "rgb_array"):
            raise SimulationError(f"render_mode {render_mode!r} is not known; use 'rgb_array' or None.")
        if actions not in CONTROLLERS:
            raise SimulationError(f"actions={actions!r} is not known; use one of {', '.join(CONTROLLERS)}.")
        self.render_mode, self.actions = render_mode, actions
        sizes = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2, "object": self._object_size}
        self.observation_space = spaces.Dict(
            {key: spaces.Box(-np.inf, np.inf, (size,), np.float32) for key, size in sizes.items()}
        )
        if not 1 <= camera_size <= 4096:
            raise SimulationError(f"camera_size={camera_size}: pictures have from 1 to 4096 rows.")
        self.cameras, self.camera_size, self.drawing = tuple(cameras), camera_size, True
        for camera in self.cameras:
            self.observation_space[image_key(camera)] = spaces.Box(0, 255, (camera_size, camera_size, 3), np.uint8)
        self.start_seed: int | None = None
        self._opened: dict[tuple[tuple[str, ...], int], Any] = {}
        self._build()
        known = [self._model.camera(i).name for i in range(self._model.ncam)]
        if unknown := [camera for camera in self.cameras if camera not in known]:
            raise SimulationError(f"{self.robosuite_name} has no camera {', '.join(unknown)}; it has {', '.join(known)}.")
        low, high = self.controller.low, self.controller.high
        self.action_space = spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)

    def _build(self) -> None:
        """(Re)creates model, data and controller."""
        self._close_cameras()
        self._suite = build_robosuite(self.robosuite_name)
        import mujoco  # after robosuite, whose import sees to it that MuJoCo imports also where OpenGL is missing

        self._suite.visualize(dict.fromkeys(self._suite._visualizations, False))
        # MuJoCo names the type of a mesh file only where it has loaded the file before: left out, the text is always the same.
        self.model_xml: str = re.sub(r' content_type="[^"]*"', "", self._suite.sim.model.get_xml())
        self._mujoco = mujoco
        self._model, self._data = self._suite.sim.model._model, self._suite.sim.data._data
        robot = self._suite.robots[0]
        simulator_steps = int(self._suite.control_timestep / self._suite.model_timestep)
        self.controller: ArmController = CONTROLLERS[self.actions](robot, self._model, self._data, simulator_steps)
        self._state_kind = mujoco.mjtState.mjSTATE_INTEGRATION
        self._state_size = mujoco.mj_stateSize(self._model, self._state_kind)
        # Views of MuJoCo's arrays, which stay where they are for the life of `_data`.
        data, hand = self._data, self._model.body(robot.robot_model.eef_name["right"]).id
        body = self._model.body(self._body).id
        self._eef_pos = data.site_xpos[robot.eef_site_id["right"]]
        self._hand_quat, self._hand_rotation = data.xquat[hand], data.xmat[hand].reshape(3, 3)
        self._object_pos, self._object_quat = data.xpos[body], data.xquat[body]
        self._finger_index = np.array(robot._ref_gripper_joint_pos_indexes["right"])
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode.

        Args:
            seed: decides the start state, bit for bit, whatever ran before and in whichever process. Without it, the
                environment's own generator draws one.
            options: `{"state": flat}` starts from a flattened MuJoCo state (time, qpos, qvel), as a demonstration's first
                row, with the controllers fresh; `{"hard": True}` builds the model anew first (the result is the same).

        Raises:
            SimulationError: unknown options, or a state of the wrong size or with values that are not finite.
        """
        super().reset(seed=seed)
        options = options or {}
        if unknown := set(options) - {"state", "hard"}:
            raise SimulationError(f"reset(options=…) knows 'state' and 'hard', not {sorted(unknown)}.")
        if options.get("hard", False):
            self._build()
        if "state" in options:
            self.start_seed = None
            self._start(np.asarray(options["state"], np.float64))
        else:
            self.start_seed = int(self.np_random.integers(2**31)) if seed is None else int(seed)
            self._start(self._draw_start(self.start_seed))
        return self._observe(), {"success": self.success()}

    def _draw_start(self, seed: int) -> Float[np.ndarray, " s"]:
        """robosuite's random start state for a seed. One generator serves the robot's joints and the object's place."""
        self._suite.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
        self._suite.sim.reset()
        self._suite._reset_internal()
        return self.flat_state()

    def _start(self, flat: np.ndarray) -> None:
        """Puts the simulation at rest in a state, with nothing left over from before (solver's warm start, controllers)."""
        sizes = (1, self._model.nq, self._model.nv)
        if flat.shape != (sum(sizes),):
            raise SimulationError(
                f"{self.robosuite_name}: a flattened state holds time, {sizes[1]} positions and {sizes[2]} velocities, "
                f"{sum(sizes)} numbers; got shape {flat.shape}. Is it of another task, or of another robosuite?"
            )
        if not np.isfinite(flat).all():
            raise SimulationError(f"{self.robosuite_name}: the state to start from holds NaN or infinity.")
        time, qpos, qvel = np.split(flat, np.cumsum(sizes)[:-1])
        self._mujoco.mj_resetData(self._model, self._data)
        self._data.time, self._data.qpos[:], self._data.qvel[:] = time[0], qpos, qvel
        self._mujoco.mj_forward(self._model, self._data)
        self.controller.reset()
        self._steps = 0

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One control step, 50 ms.

        Args:
            action: (a,); relative ones are clipped to [-1, 1].

        Raises:
            SimulationError: the action has another shape, is not finite, or no rotation can be made of it.
        """
        action, size = np.asarray(action, np.float64), len(self.controller.units)
        if action.shape != (size,) or not np.isfinite(action).all():
            raise SimulationError(f"{self.robosuite_name} takes {size} finite numbers as {self.actions} action, got {action!r}.")
        self.controller.step(action)
        self._mujoco.mj_kinematics(self._model, self._data)
        self._steps += 1
        success = self.success()
        return self._observe(), float(success), False, False, {"success": success}

    def success(self) -> bool:
        """Whether the task is solved in the present state, by robosuite's own criterion."""
        return bool(self._suite._check_success())

    def get_state(self) -> dict[str, Any]:
        """Everything that the future depends on, as a dictionary of arrays and numbers that can be pickled.

        Another environment of the same task, in this process or another, that is given it by `set_state` answers the same
        actions with the same observations, bit for bit.
        """
        physics = np.empty(self._state_size)
        self._mujoco.mj_getState(self._model, self._data, physics, self._state_kind)
        return {
            "task": self.robosuite_name,
            "physics": physics,
            "posture": self.controller.posture.copy(),
            "fingers": self.controller.fingers.copy(),
            "steps": self._steps,
            "start_seed": self.start_seed,
        }

    def set_state(self, state: dict[str, Any]) -> Observation:
        """Puts a state of `get_state` back, and returns what is seen in it.

        A time limit wrapped around the environment counts on by itself.

        Raises:
            SimulationError: the state is of another task.
        """
        if state["task"] != self.robosuite_name or len(state["physics"]) != self._state_size:
            raise SimulationError(f"A state of {state['task']} cannot be put into {self.robosuite_name}.")
        self._mujoco.mj_setState(self._model, self._data, state["physics"], self._state_kind)
        self._mujoco.mj_kinematics(self._model, self._data)
        self.controller.posture, self.controller.fingers = state["posture"].copy(), state["fingers"].copy()
        self._steps, self.start_seed = state["steps"], state["start_seed"]
        return self._observe()

    def positions(self) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"]]:
        """Of the point between the fingers and of the object, in metres in the world."""
        return self._eef_pos.copy(), self._object_pos.copy()

    def flat_state(self) -> Float[np.ndarray, " s"]:
        """The flattened MuJoCo state (time, qpos, qvel), as robomimic's data sets store it."""
        return np.concatenate([[self._data.time], self._data.qpos, self._data.qvel])

    def from_relative(self, action: Float[np.ndarray, " 7"]) -> Float[np.ndarray, " a"]:
        """This environment's action that does in the present state what a relative one would.

        An absolute one does just that. One of joint angles leads to nearly the same place (the arm's stiffness is another), which
        a step in relative actions, taken and taken back, finds out.
        """
        return self.controller.from_relative(np.asarray(action, np.float64))

    @classmethod
    def env_args(cls, actions: str = "relative") -> dict[str, Any]:
        """What robomimic's data sets say of their environment, with this environment's Gymnasium id beside it."""
        more = {} if actions == "relative" else {"actions": actions, "action_units": list(CONTROLLERS[actions].units)}
        return {
            "env_name": cls.robosuite_name,
            "env_version": ROBOSUITE_VERSION,
            "type": 1,
            "env_kwargs": robosuite_arguments(actions),
            "gymnasium_id": env_id_of(cls.env_id, actions),
            **more,
        }

    def make_expert(self, noise: float = 0.0, seed: int = 0, nudges: float = 0.0, style: str = "plain") -> Expert:
        """The scripted expert for this task; it answers with this environment's actions, for the state that it is in.

        Args:
            noise: standard deviation of the Gaussian noise on the six arm actions, in units of the relative action.
            seed: of noise, nudges and style.
            nudges: chance that a step begins a nudge (see `Expert`).
            style: "plain" or "human" (see `styles.STYLES`).
        """
        from daps_robot.envs.experts import EXPERTS

        translate = None if self.actions == "relative" else self.from_relative
        return EXPERTS[self.robosuite_name](noise=noise, seed=seed, nudges=nudges, style=style, translate=translate)

    def render(self) -> UInt8[np.ndarray, "256 256 3"] | None:  # type: ignore[override]
        """A 256 × 256 RGB picture from the camera "agentview", or None without a render mode.

        Raises:
            SimulationError: no OpenGL library works here; the message says what to install.
        """
        if self.render_mode is None:
            return None
        return self._draw(("agentview",), 256)[0]

    def pictures(self) -> dict[str, UInt8[np.ndarray, "size size 3"]]:
        """What the cameras see of the present state, by observation key.

        Raises:
            SimulationError: no OpenGL library works here; the message says what to install.
        """
        if not self.cameras:
            return {}
        drawn = self._draw(self.cameras, self.camera_size)
        return {image_key(camera): picture for camera, picture in zip(self.cameras, drawn, strict=True)}

    def _draw(self, cameras: tuple[str, ...], size: int) -> UInt8[np.ndarray, "c size size 3"]:
        """Pictures of the present state; each kind keeps its OpenGL context."""
        if (cameras, size) not in self._opened:
            from daps_robot.envs.render import Cameras

            self._opened[cameras, size] = Cameras(self._model, cameras, size)
        return self._opened[cameras, size].draw(self._data)

    def close(self) -> None:
        """Gives open OpenGL contexts back."""
        self._close_cameras()

    def _close_cameras(self) -> None:
        while self._opened:
            self._opened.popitem()[1].close()

    def _observe(self) -> Observation:
        quat = self._hand_quat
        numbers = {
            "robot0_eef_pos": self._eef_pos.astype(np.float32),
            "robot0_eef_quat": quat[[1, 2, 3, 0]].astype(np.float32),
            "robot0_gripper_qpos": self._data.qpos[self._finger_index].astype(np.float32),
            "object": self._observe_object().astype(np.float32),
        }
        return numbers | self.pictures() if self.drawing else numbers

    def _observe_object(self) -> Float[np.ndarray, " o"]:
        """Pose seen from the hand (position between the fingers, the hand's axes), then pose in the world."""
        relative_pos = np.dot(self._object_pos - self._eef_pos, self._hand_rotation)
        conjugate, relative_quat = np.empty(4), np.empty(4)
        self._mujoco.mju_negQuat(conjugate, self._hand_quat)
        self._mujoco.mju_mulQuat(relative_quat, conjugate, self._object_quat)
        if relative_quat[0] < 0:  # one of the two quaternions of a rotation, as robosuite chooses
            relative_quat = -relative_quat
        to_xyzw = [1, 2, 3, 0]
        return np.concatenate([relative_pos, relative_quat[to_xyzw], self._object_pos, self._object_quat[to_xyzw]])


class LiftEnv(RobosuiteEnv):
    """Lift a cube 4 cm off the table."""

    env_id, robosuite_name = "daps_robot/Lift-v0", "Lift"
    _body, _object_size = "cube_main", 10

    def _observe_object(self) -> Float[np.ndarray, " 10"]:
        """Pose in the world, then the position less that of the point between the fingers."""
        return np.concatenate([self._object_pos, self._object_quat[[1, 2, 3, 0]], self._object_pos - self._eef_pos])


class CanEnv(RobosuiteEnv):
    """Carry a can from one bin to its quarter of the other, and let go."""

    env_id, robosuite_name = "daps_robot/Can-v0", "PickPlaceCan"
    _body, _object_size = "Can_main", 14


class SquareEnv(RobosuiteEnv):
    """Put a square nut over a square peg."""

    env_id, robosuite_name = "daps_robot/Square-v0", "NutAssemblySquare"
    _body, _object_size = "SquareNut_main", 14
