"""Push-T as a Gymnasium environment over gym-pusht: a round agent pushes a T-shaped block onto its mark, seen from above.

Lengths are pixels of a field of 512 × 512, x to the right and y down; angles are radians. Observations:

    agent_pos      (2)  the agent's centre
    block_pos      (2)  the block's origin, in the middle of the T's top edge
    block_cos_sin  (2)  cosine and sine of the block's angle
    keypoints      (18) x and y of nine points on the block, those of Diffusion Policy's data (Chi et al. 2023)

Actions are (2): where the agent is to go in this tenth of a second, in pixels. The score of a step is Diffusion Policy's reward,
the share of the mark that the block covers, over .95 and at most 1; success, which ends the episode, is a share above .95.
"""

from __future__ import annotations

import importlib
import os
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from jaxtyping import Float, UInt8

from daps_robot.errors import SimulationError

SIZES = {"agent_pos": 2, "block_pos": 2, "block_cos_sin": 2, "keypoints": 18}
FIELD = 512

_KEYPOINTS = np.array(
    [
        (9.2698, 90.0410),
        (-60.9835, -1.1867),
        (60.9128, -1.3934),
        (-0.2705, 25.5436),
        (-14.0649, 122.8159),
        (39.0027, 32.8574),
        (-39.9664, 32.7297),
        (-16.8243, 62.8632),
        (23.5415, -1.7003),
    ]
)
"""Seen from the block: what the keypoints of the human demonstrations are, turned back by its recorded pose (median)."""

_APART = (20.0, 20.0, 256.0, 256.0, 0.0)
"""A state in which nothing touches."""

_PICTURE = 256


def observe(states: Float[np.ndarray, "*t 5"]) -> dict[str, Float[np.ndarray, "*t _"]]:
    """What is seen in some states; demonstrations are converted by it too."""
    agent, block, angle = states[..., :2], states[..., 2:4], states[..., 4]
    cos_sin = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    cos, sin = cos_sin[..., :1], cos_sin[..., 1:]
    x, y = _KEYPOINTS.T
    keypoints = block[..., None, :] + np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)
    seen = {"agent_pos": agent, "block_pos": block, "block_cos_sin": cos_sin, "keypoints": keypoints.reshape(*angle.shape, 18)}
    return {key: value.astype(np.float32) for key, value in seen.items()}


class PushTEnv(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """gym-pusht with observations for a network, start states that depend on the seed alone, and exact starts from given ones.

    A state is (5): agent x, y, block x, y and angle, as demonstrations store it. It is not all that the future depends on (speed,
    contacts), so the environment has no `get_state` and is never shared among episodes.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}
    env_id: ClassVar[str] = "daps_robot/PushT-v0"

    def __init__(self, render_mode: str | None = None) -> None:
        """Raises SimulationError: gym-pusht is not installed, or the render mode is not "rgb_array" or None."""
        if render_mode not in (None, "rgb_array"):
            raise SimulationError(f"render_mode {render_mode!r} is not known; use 'rgb_array' or None.")
        self.render_mode = render_mode
        self.observation_space = spaces.Dict(
            {key: spaces.Box(-np.inf, np.inf, (size,), np.float32) for key, size in SIZES.items()}
        )
        self.action_space = spaces.Box(0, FIELD, (2,), np.float32)
        self._sim = import_gym_pusht().PushTEnv(visualization_width=_PICTURE, visualization_height=_PICTURE)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Starts an episode.

        Args:
            seed: decides the start state, bit for bit: it is that of gym-pusht's own `reset(seed=seed)`, distributed as the
                starts of the demonstrations. Without it, the environment's own generator draws one.
            options: `{"state": state}` starts at rest from a state (5), as a demonstration's first row.

        Raises:
            SimulationError: unknown options, or a state that is not 5 finite numbers.
        """
        super().reset(seed=seed)
        options = options or {}
        if unknown := set(options) - {"state"}:
            raise SimulationError(f"reset(options=…) knows 'state', not {sorted(unknown)}.")
        if "state" in options:
            self._start(np.asarray(options["state"], np.float64))
        else:
            self._sim.reset(seed=int(self.np_random.integers(2**31)) if seed is None else int(seed))
        return observe(self.flat_state()), {}

    def _start(self, state: np.ndarray) -> None:
        """gym-pusht's own way sets the block's angle last, which turns it about its centre of mass and so moves its origin."""
        if state.shape != (5,) or not np.isfinite(state).all():
            raise SimulationError(f"Push-T starts from 5 finite numbers (agent x, y, block x, y, angle), got {state!r}.")
        self._sim.reset(options={"reset_to_state": _APART})
        agent_x, agent_y, x, y, angle = state.tolist()
        self._sim.agent.position = agent_x, agent_y
        self._sim.block.angle = angle
        self._sim.block.position = x, y
        self._sim.space.step(self._sim.dt)  # as after every reset: moves apart what overlaps

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """A tenth of a second.

        Args:
            action: (2,), pixels; one outside the field is followed too.

        Raises:
            SimulationError: the action has another shape, or is not finite.
        """
        action = np.asarray(action, np.float64)
        if action.shape != (2,) or not np.isfinite(action).all():
            raise SimulationError(f"Push-T takes 2 finite numbers as action, got {action!r}.")
        _, reward, success, _, info = self._sim.step(action)
        # The area's last bits depend on where in memory the polygons lie.
        told = {"success": bool(success), "score": round(float(reward), 9), "coverage": round(float(info["coverage"]), 9)}
        return observe(self.flat_state()), told["score"], told["success"], False, told

    def flat_state(self) -> Float[np.ndarray, " 5"]:
        """The state: agent x, y, block x, y and angle in [0, 2π), as the demonstrations have it."""
        agent, block = self._sim.agent, self._sim.block
        return np.array([*agent.position, *block.position, block.angle % (2 * np.pi)])

    def render(self) -> UInt8[np.ndarray, "256 256 3"] | None:  # type: ignore[override]
        """A 256 × 256 RGB picture, with a cross where the last action pointed; None without a render mode."""
        return None if self.render_mode is None else self._sim.render()

    def close(self) -> None:
        """Nothing is open."""


def import_gym_pusht() -> Any:
    """The module with gym-pusht's environment, imported without pygame's greeting.

    Raises:
        SimulationError: it is not installed, or does not import.
    """
    greeting = "PYGAME_HIDE_SUPPORT_PROMPT"
    before = os.environ.get(greeting)
    os.environ[greeting] = "1"
    try:
        return importlib.import_module("gym_pusht.envs.pusht")
    except ImportError as error:
        raise SimulationError(
            f"Push-T needs gym-pusht, and importing it failed ({error}).\nInstall it with: pip install 'daps-robot[pusht]'"
        ) from error
    finally:
        if before is None:
            del os.environ[greeting]
        else:
            os.environ[greeting] = before
