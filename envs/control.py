"""robosuite's arm and gripper controllers, written for one fixed-base arm and called once per simulator step.

The numbers are robosuite's, bit for bit (a test compares the trajectories); what is left out is the bookkeeping that makes
robosuite's control loop five times dearer than MuJoCo's own step: Jacobians taken six times over, look-ups by name, buffers
of past forces and observables that nobody reads.

The law is operational space control (Khatib 1987, with position and orientation uncoupled): a decision sets a goal pose
relative to the present one; each simulator step turns the pose error into joint torques, and a weak spring in the null space
pulls the joints to the posture that the episode began in.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float

from daps_robot.errors import SimulationError

_POSTURE_STIFFNESS = 10


class ArmController:
    """OSC_POSE with fixed gains and relative goals, and the two-finger gripper beside it.

    What lasts from one decision to the next is in two arrays and nowhere else:

    Attributes:
        posture: (7,) joint angles in radians that the null space is pulled to.
        fingers: (2,) the gripper's accumulated command, in [-1, 1].
    """

    def __init__(self, robot: Any, model: Any, data: Any) -> None:
        """Reads gains, scales and indices from a robosuite robot that has been reset.

        Args:
            robot: `robosuite.robots.FixedBaseRobot` with its default composite controller.
            model, data: the `mujoco.MjModel` and `mujoco.MjData` that it acts on.
        """
        import mujoco
        import robosuite.utils.transform_utils as transforms
        from robosuite.utils import control_utils

        self._mujoco, self._transforms, self._control_utils = mujoco, transforms, control_utils
        arm = robot.part_controllers["right"]
        gripper = robot.gripper["right"]
        self._model, self._data = model, data
        self._site = model.site(arm.ref_name).id
        self._base_site = model.site(f"{arm.naming_prefix}{arm.part_name}_center").id
        self._kp, self._kd = np.array(arm.kp), np.array(arm.kd)
        self._scale = np.abs(arm.output_max - arm.output_min) / np.abs(arm.input_max - arm.input_min)
        arm_ctrl, finger_ctrl = (_run(robot._ref_actuators_indexes_dict[part]) for part in ("right", "right_gripper"))
        arm_range = model.actuator_ctrlrange[arm_ctrl]
        self._torque_low, self._torque_high = arm_range[:, 0].copy(), arm_range[:, 1].copy()
        finger_range = model.actuator_ctrlrange[finger_ctrl]
        self._finger_bias = 0.5 * (finger_range[:, 1] + finger_range[:, 0])
        self._finger_weight = 0.5 * (finger_range[:, 1] - finger_range[:, 0])
        self._finger_speed = np.array([-1.0, 1.0]) * gripper.speed
        self._dofs = _run(arm.qvel_index)
        self._jac = np.zeros((6, model.nv))
        self._arm_jac = np.zeros((6, 7))
        self._mass = np.zeros((model.nv, model.nv))
        self._arm_mass = np.zeros((7, 7), order="F")
        # Views of MuJoCo's arrays, which stay where they are for the life of `data`.
        self._ref_pos = data.site_xpos[self._site]
        self._ref_ori = data.site_xmat[self._site].reshape(3, 3)
        self._qvel = data.qvel
        self._joint_pos, self._joint_vel = data.qpos[_run(arm.qpos_index)], data.qvel[self._dofs]
        self._gravity = data.qfrc_bias[self._dofs]  # and Coriolis forces
        self._arm_ctrl, self._finger_ctrl = data.ctrl[arm_ctrl], data.ctrl[finger_ctrl]
        self.posture: Float[np.ndarray, " 7"] = np.zeros(7)
        self.fingers: Float[np.ndarray, " 2"] = np.zeros(2)

    def reset(self) -> None:
        """A fresh controller: the posture is the present one, the gripper's command is neutral."""
        self.posture = self._joint_pos.copy()
        self.fingers = np.zeros(2)

    def step(self, action: Float[np.ndarray, " 7"], simulator_steps: int) -> None:
        """Advances the simulation by one control step.

        Args:
            action: (7,) x, y, z in units of 5 cm, rotation vector in units of 0.5 rad, both relative to the present pose in
                the frame of the robot's base, and the gripper (negative opens, positive closes); clipped to [-1, 1].
            simulator_steps: MuJoCo steps in a control step.
        """
        step1, step2, model, data = self._mujoco.mj_step1, self._mujoco.mj_step2, self._model, self._data
        for i in range(simulator_steps):
            step1(model, data)
            if i == 0:
                self._set_goal(action)
            self._arm_ctrl[:] = self._torques()
            step2(model, data)

    def _set_goal(self, action: Float[np.ndarray, " 7"]) -> None:
        """Fixes the goal pose in the world and the finger command for the coming control step."""
        transforms = self._transforms
        delta = np.clip(action[:6], -1.0, 1.0) * self._scale
        base_pos = self._data.site_xpos[self._base_site].copy()
        base_ori = self._data.site_xmat[self._base_site].reshape(3, 3).copy()
        from_world = transforms.pose_inv(transforms.make_pose(base_pos, base_ori))
        goal_pos = from_world.dot(transforms.make_pose(self._ref_pos, np.eye(3)))[:3, 3] + delta[:3]
        present = from_world.dot(transforms.make_pose(self._ref_pos, self._ref_ori))[:3, :3]
        goal_ori = np.dot(transforms.quat2mat(transforms.axisangle2quat(delta[3:])), present)
        self._goal_pos = base_pos + np.dot(base_ori, goal_pos)
        self._goal_ori = np.dot(base_ori, goal_ori)
        self.fingers = np.clip(self.fingers + self._finger_speed * np.sign(action[6:]), -1.0, 1.0)
        self._finger_ctrl[:] = self._finger_bias + self._finger_weight * self.fingers

    def _torques(self) -> Float[np.ndarray, " 7"]:
        """Joint torques in N·m toward the goal pose, from the quantities that `mj_step1` has just computed."""
        jac, arm_jac, mass, functions = self._jac, self._arm_jac, self._arm_mass, self._control_utils
        self._mujoco.mj_jacSite(self._model, self._data, jac[:3], jac[3:], self._site)
        self._mujoco.mj_fullM(self._model, self._mass, self._data.qM)
        arm_jac[:] = jac[:, self._dofs]
        mass[:] = self._mass[self._dofs, self._dofs]
        kp, kd = self._kp, self._kd
        ori_error = functions.orientation_error(self._goal_ori, self._ref_ori)
        force = (self._goal_pos - self._ref_pos) * kp[:3] - np.dot(jac[:3], self._qvel) * kd[:3]
        torque = ori_error * kp[3:] - np.dot(jac[3:], self._qvel) * kd[3:]
        _, inertia_pos, inertia_ori, nullspace = functions.opspace_matrices(mass, arm_jac, arm_jac[:3], arm_jac[3:])
        wrench = np.concatenate([np.dot(inertia_pos, force), np.dot(inertia_ori, torque)])
        torques = np.dot(arm_jac.T, wrench) + self._gravity
        torques += functions.nullspace_torques(mass, nullspace, self.posture, self._joint_pos, self._joint_vel)
        return np.minimum(np.maximum(torques, self._torque_low), self._torque_high)


def _run(indices: Iterable[Any]) -> slice:
    """Consecutive indices as a slice, which numpy takes as a view."""
    numbers = [int(index) for index in indices]
    if numbers != list(range(numbers[0], numbers[-1] + 1)):
        raise SimulationError(f"The robot's joints or motors do not follow one another in the model: {numbers}.")
    return slice(numbers[0], numbers[-1] + 1)
