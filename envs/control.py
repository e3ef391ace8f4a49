"""robosuite's arm and gripper controllers, written for one fixed-base arm and called once per simulator step.

The numbers are robosuite's, bit for bit (a test compares the trajectories); what is left out is the bookkeeping that makes
robosuite's control loop five times dearer than MuJoCo's own step: Jacobians taken six times over, look-ups by name, buffers
of past forces and observables that nobody reads.

There are three, one for each way to write an action down (`CONTROLLERS`). Two of them obey one law, operational space control
(Khatib 1987, with position and orientation uncoupled): a decision sets a goal pose, relative to the present one or in the world;
each simulator step turns the pose error into joint torques, and a weak spring in the null space pulls the joints to the posture
that the episode began in. The third pulls the joints themselves to goals of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from daps_robot.errors import SimulationError

JOINT_STIFFNESS = 150.0
"""Of `JointController`, in 1/s² (it multiplies the mass matrix); robosuite's own default, 50, lets the arm trail far behind."""

_REACH = 1.0  # metres from the base; a Panda's arm is .855 long
_COLUMN = 2.0  # a rotation's columns are at most 1: room for what a network puts out
_JOINT_ROOM = 0.5  # radians that a goal may lie beyond a joint's range, to pull it there with force
_TRIES = 3  # with which Square's joints end .2 mm off (median) where they end 1 mm off without
_TINY = 1e-6


class ArmController:
    """What the controllers share: the arm's arrays, and the two-finger gripper.

    What lasts from one decision to the next is in two arrays and nowhere else:

    Attributes:
        posture: (7,) joint angles in radians that the null space is pulled to.
        fingers: (2,) the gripper's accumulated command, in [-1, 1].
        low, high: (a,) bounds of the actions. The last number of every action is the gripper (negative opens, positive closes).
    """

    units: ClassVar[tuple[str, ...]]
    """What each number of an action measures; numbers of one unit may be compared, and scaled alike."""

    def __init__(self, robot: Any, model: Any, data: Any, simulator_steps: int) -> None:
        """Reads scales and indices from a robosuite robot that has been reset.

        Args:
            robot: `robosuite.robots.FixedBaseRobot` with its default composite controller.
            model, data: the `mujoco.MjModel` and `mujoco.MjData` that it acts on.
            simulator_steps: MuJoCo steps in a control step.
        """
        import mujoco

        self._mujoco, self._simulator_steps = mujoco, simulator_steps
        arm = robot.part_controllers["right"]
        gripper = robot.gripper["right"]
        self._model, self._data = model, data
        arm_ctrl, finger_ctrl = (_run(robot._ref_actuators_indexes_dict[part]) for part in ("right", "right_gripper"))
        arm_range = model.actuator_ctrlrange[arm_ctrl]
        self._torque_low, self._torque_high = arm_range[:, 0].copy(), arm_range[:, 1].copy()
        finger_range = model.actuator_ctrlrange[finger_ctrl]
        self._finger_bias = 0.5 * (finger_range[:, 1] + finger_range[:, 0])
        self._finger_weight = 0.5 * (finger_range[:, 1] - finger_range[:, 0])
        self._finger_speed = np.array([-1.0, 1.0]) * gripper.speed
        self._dofs = _run(arm.qvel_index)
        self._mass, self._arm_mass = np.zeros((model.nv, model.nv)), np.zeros((7, 7), order="F")
        # Views of MuJoCo's arrays, which stay where they are for the life of `data`.
        self._angles = _run(arm.qpos_index)
        self._joint_pos, self._joint_vel = data.qpos[self._angles], data.qvel[self._dofs]
        self._gravity = data.qfrc_bias[self._dofs]  # and Coriolis forces
        self._arm_ctrl, self._finger_ctrl = data.ctrl[arm_ctrl], data.ctrl[finger_ctrl]
        self.posture: Float[np.ndarray, " 7"] = np.zeros(7)
        self.fingers: Float[np.ndarray, " 2"] = np.zeros(2)
        self.low, self.high = np.full(len(self.units), -1.0), np.full(len(self.units), 1.0)

    def reset(self) -> None:
        """A fresh controller: the posture is the present one, the gripper's command is neutral."""
        self.posture = self._joint_pos.copy()
        self.fingers = np.zeros(2)

    def step(self, action: Float[np.ndarray, " a"]) -> None:
        """Advances the simulation by one control step; the action is as the class says."""
        step1, step2, model, data = self._mujoco.mj_step1, self._mujoco.mj_step2, self._model, self._data
        for i in range(self._simulator_steps):
            step1(model, data)
            if i == 0:
                self._set_goal(action)
                self.fingers = np.clip(self.fingers + self._finger_speed * np.sign(action[-1:]), -1.0, 1.0)
                self._finger_ctrl[:] = self._finger_bias + self._finger_weight * self.fingers
            self._arm_ctrl[:] = np.minimum(np.maximum(self._torques(), self._torque_low), self._torque_high)
            step2(model, data)

    def from_relative(self, action: Float[np.ndarray, " 7"]) -> Float[np.ndarray, " a"]:
        """The action of this controller that does in the present state what a relative one would; the state stays."""
        raise NotImplementedError

    def _set_goal(self, action: Float[np.ndarray, " a"]) -> None:
        """Fixes the arm's goal for the coming control step."""
        raise NotImplementedError

    def _torques(self) -> Float[np.ndarray, " 7"]:
        """Joint torques in N·m toward the goal, from the quantities that `mj_step1` has just computed."""
        raise NotImplementedError

    def _arm_inertia(self) -> Float[np.ndarray, "7 7"]:
        """The arm's part of the mass matrix."""
        self._mujoco.mj_fullM(self._model, self._mass, self._data.qM)
        self._arm_mass[:] = self._mass[self._dofs, self._dofs]
        return self._arm_mass


class RelativePoseController(ArmController):
    """OSC_POSE with fixed gains and relative goals.

    Actions: (7,) x, y, z in units of 5 cm, rotation vector in units of 0.5 rad, both relative to the present pose in the frame
    of the robot's base, and the gripper; clipped to [-1, 1].
    """

    units = ("5 cm or 0.5 rad",) * 6 + ("gripper",)

    def __init__(self, robot: Any, model: Any, data: Any, simulator_steps: int) -> None:
        super().__init__(robot, model, data, simulator_steps)
        import robosuite.utils.transform_utils as transforms
        from robosuite.utils import control_utils

        self._transforms, self._control_utils = transforms, control_utils
        arm = robot.part_controllers["right"]
        self._site = model.site(arm.ref_name).id
        self._base_site = model.site(f"{arm.naming_prefix}{arm.part_name}_center").id
        self._kp, self._kd = np.array(arm.kp), np.array(arm.kd)
        self._scale = np.abs(arm.output_max - arm.output_min) / np.abs(arm.input_max - arm.input_min)
        self._jac = np.zeros((6, model.nv))
        self._arm_jac = np.zeros((6, 7))
        self._ref_pos = data.site_xpos[self._site]  # views, as above
        self._ref_ori = data.site_xmat[self._site].reshape(3, 3)
        self._qvel = data.qvel

    def goal(self, action: Float[np.ndarray, " 7"]) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, "3 3"]]:
        """Position (metres) and rotation, in the world, that a relative action asks for in the present state."""
        transforms = self._transforms
        delta = np.clip(action[:6], -1.0, 1.0) * self._scale
        base_pos = self._data.site_xpos[self._base_site].copy()
        base_ori = self._data.site_xmat[self._base_site].reshape(3, 3).copy()
        from_world = transforms.pose_inv(transforms.make_pose(base_pos, base_ori))
        goal_pos = from_world.dot(transforms.make_pose(self._ref_pos, np.eye(3)))[:3, 3] + delta[:3]
        present = from_world.dot(transforms.make_pose(self._ref_pos, self._ref_ori))[:3, :3]
        goal_ori = np.dot(transforms.quat2mat(transforms.axisangle2quat(delta[3:])), present)
        return base_pos + np.dot(base_ori, goal_pos), np.dot(base_ori, goal_ori)

    def from_relative(self, action: Float[np.ndarray, " 7"]) -> Float[np.ndarray, " a"]:
        return action

    def _set_goal(self, action: Float[np.ndarray, " a"]) -> None:
        self._goal_pos, self._goal_ori = self.goal(action)

    def _torques(self) -> Float[np.ndarray, " 7"]:
        jac, arm_jac, mass, functions = self._jac, self._arm_jac, self._arm_inertia(), self._control_utils
        self._mujoco.mj_jacSite(self._model, self._data, jac[:3], jac[3:], self._site)
        arm_jac[:] = jac[:, self._dofs]
        kp, kd = self._kp, self._kd
        ori_error = functions.orientation_error(self._goal_ori, self._ref_ori)
        force = (self._goal_pos - self._ref_pos) * kp[:3] - np.dot(jac[:3], self._qvel) * kd[:3]
        torque = ori_error * kp[3:] - np.dot(jac[3:], self._qvel) * kd[3:]
        _, inertia_pos, inertia_ori, nullspace = functions.opspace_matrices(mass, arm_jac, arm_jac[:3], arm_jac[3:])
        wrench = np.concatenate([np.dot(inertia_pos, force), np.dot(inertia_ori, torque)])
        torques = np.dot(arm_jac.T, wrench) + self._gravity
        return torques + functions.nullspace_torques(mass, nullspace, self.posture, self._joint_pos, self._joint_vel)


class AbsolutePoseController(RelativePoseController):
    """OSC_POSE with fixed gains and goals in the world (robosuite's `input_type: absolute, input_ref_frame: world`).

    Actions: (10,) x, y, z in metres of the point between the fingers; the first two columns of its rotation matrix, one after
    the other; the gripper. The columns need be neither of unit length nor perpendicular (see `rotation_of`): any network's output
    is a rotation, and there is no angle at which it jumps (Zhou et al. 2019, arXiv 1812.07035). In all tasks the hand points
    down, half a turn away from no rotation, which is just where rotation vectors do jump.
    """

    units = ("m",) * 3 + ("rotation",) * 6 + ("gripper",)

    def __init__(self, robot: Any, model: Any, data: Any, simulator_steps: int) -> None:
        super().__init__(robot, model, data, simulator_steps)
        base = data.site_xpos[self._base_site]
        self.low[:3], self.high[:3] = base - _REACH, base + _REACH
        self.low[3:9], self.high[3:9] = -_COLUMN, _COLUMN

    def from_relative(self, action: Float[np.ndarray, " 7"]) -> Float[np.ndarray, " a"]:
        position, rotation = self.goal(action)
        return np.concatenate([position, rotation[:, 0], rotation[:, 1], action[6:]])

    def to_relative(self, action: Float[np.ndarray, " 10"]) -> Float[np.ndarray, " 7"]:
        """The inverse of `from_relative`, not clipped."""
        base_ori = self._data.site_xmat[self._base_site].reshape(3, 3)
        turn = Rotation.from_matrix(base_ori.T @ rotation_of(action[3:9]) @ self._ref_ori.T @ base_ori)
        delta = np.concatenate([base_ori.T @ (action[:3] - self._ref_pos), turn.as_rotvec()])
        return np.concatenate([delta / self._scale, action[9:]])

    def _set_goal(self, action: Float[np.ndarray, " a"]) -> None:
        self._goal_pos, self._goal_ori = action[:3], rotation_of(action[3:9])


class JointController(ArmController):
    """JOINT_POSITION with fixed gains and absolute goals (robosuite's `input_type: absolute`), as stiff as OSC_POSE.

    Actions: (8,) joint angles in radians, and the gripper.
    """

    units = ("rad",) * 7 + ("gripper",)

    def __init__(self, robot: Any, model: Any, data: Any, simulator_steps: int) -> None:
        super().__init__(robot, model, data, simulator_steps)
        self._kp, self._kd = JOINT_STIFFNESS, 2.0 * np.sqrt(JOINT_STIFFNESS)
        ranges = model.jnt_range[robot.part_controllers["right"].joint_index]
        self.low[:7], self.high[:7] = ranges[:, 0] - _JOINT_ROOM, ranges[:, 1] + _JOINT_ROOM
        self._pose = RelativePoseController(robot, model, data, simulator_steps)
        self._state_kind = self._mujoco.mjtState.mjSTATE_INTEGRATION
        self._state = np.empty(self._mujoco.mj_stateSize(model, self._state_kind))
        self._seconds, root = simulator_steps * model.opt.timestep, np.sqrt(self._kp)
        self._decay = np.exp(-root * self._seconds)
        self._stays, self._flies = (1.0 + root * self._seconds) * self._decay, (1.0 - root * self._seconds) * self._decay
        self._gain = np.array([1.0 - self._stays, self._kp * self._seconds**2 * self._decay])  # on angle, velocity · seconds

    def from_relative(self, action: Float[np.ndarray, " 7"]) -> Float[np.ndarray, " a"]:
        with self._taken_back():
            self._pose.posture, self._pose.fingers = self.posture, self.fingers
            self._pose.step(action)
            reached = self._joint_pos.copy(), self._joint_vel.copy()
        return np.append(self.towards(*reached), action[6])

    def towards(self, pos: Float[np.ndarray, " 7"], vel: Float[np.ndarray, " 7"]) -> Float[np.ndarray, " 7"]:
        """The goal with which the joints are nearest to given angles and velocities after the coming control step.

        By the closed form of the law, x'' = kp (goal - x) - kd x', joint by joint. One number cannot meet both; the angle alone
        would make the velocity swing from step to step.
        """
        seconds = self._seconds
        free = self._stays * self._joint_pos + seconds * self._decay * self._joint_vel
        free_vel = self._flies * self._joint_vel - self._kp * seconds * self._decay * self._joint_pos
        return self._goal_step(pos - free, vel - free_vel)

    def reaching(self, flat: Float[np.ndarray, " s"], gripper: float) -> Float[np.ndarray, " 8"]:
        """The action that leads to the joints of a flattened MuJoCo state (time, qpos, qvel).

        The closed form knows neither friction nor what the hand carries, so the goal is tried, and moved by what it missed.
        """
        _, qpos, qvel = np.split(flat, [1, 1 + self._model.nq])
        pos, vel = qpos[self._angles], qvel[self._dofs]
        goal = self.towards(pos, vel)
        for _ in range(_TRIES):
            with self._taken_back():
                self.step(np.append(goal, gripper))
                missed = pos - self._joint_pos, vel - self._joint_vel
            goal = goal + self._goal_step(*missed)
        return np.append(goal, gripper)

    def _goal_step(self, pos: Float[np.ndarray, " 7"], vel: Float[np.ndarray, " 7"]) -> Float[np.ndarray, " 7"]:
        """How far the goal must move to move angles and velocities by so much (least squares)."""
        return self._gain @ np.stack([pos, vel * self._seconds]) / (self._gain @ self._gain)

    @contextmanager
    def _taken_back(self) -> Iterator[None]:
        """Puts the simulation back as it was."""
        self._mujoco.mj_getState(self._model, self._data, self._state, self._state_kind)
        fingers = self.fingers
        yield
        self._mujoco.mj_setState(self._model, self._data, self._state, self._state_kind)
        self._mujoco.mj_kinematics(self._model, self._data)
        self.fingers = fingers

    def _set_goal(self, action: Float[np.ndarray, " a"]) -> None:
        self._goal = action[:7]

    def _torques(self) -> Float[np.ndarray, " 7"]:
        pull = (self._goal - self._joint_pos) * self._kp + -self._joint_vel * self._kd
        return np.dot(self._arm_inertia(), pull) + self._gravity


CONTROLLERS: dict[str, type[ArmController]] = {
    "relative": RelativePoseController,
    "absolute": AbsolutePoseController,
    "joint": JointController,
}
"""How actions are written down -> the controller that takes them."""


def rotation_of(columns: Float[np.ndarray, " 6"]) -> Float[np.ndarray, "3 3"]:
    """The rotation matrix whose first column points along the first three numbers, and whose second is nearest to the others.

    Raises:
        SimulationError: the two columns are parallel, or one is zero.
    """
    first, second = columns[:3], columns[3:]
    x = first / max(np.linalg.norm(first), _TINY)
    y = second - x * np.dot(x, second)
    y = y / max(np.linalg.norm(y), _TINY)
    if abs(np.dot(x, x) - 1.0) > _TINY or abs(np.dot(y, y) - 1.0) > _TINY:
        raise SimulationError(
            f"{np.array2string(columns, precision=3)} are no two columns of a rotation: one is zero, or they are parallel."
        )
    return np.stack([x, y, np.cross(x, y)], axis=1)


def _run(indices: Iterable[Any]) -> slice:
    """Consecutive indices as a slice, which numpy takes as a view."""
    numbers = [int(index) for index in indices]
    if numbers != list(range(numbers[0], numbers[-1] + 1)):
        raise SimulationError(f"The robot's joints or motors do not follow one another in the model: {numbers}.")
    return slice(numbers[0], numbers[-1] + 1)
