"""A point on a plane that is pushed to a goal: everything that a rollout asks of a simulator, in microseconds."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import gymnasium as gym
import numpy as np


class PointExpert:
    """Waits two steps, then heads for the goal: a phase memory that must be carried from plan to plan."""

    def __init__(self, noise: float, seed: int) -> None:
        self.noise, self.rng, self.seen = noise, np.random.default_rng(seed), 0

    def act(self, obs: dict[str, np.ndarray]) -> np.ndarray:
        self.seen += 1
        noise = self.noise * self.rng.standard_normal(2)
        if self.seen <= 2:
            return np.zeros(2, np.float32)
        return np.clip(5.0 * (obs["goal"] - obs["position"]) + noise, -1, 1).astype(np.float32)


class PointEnv(gym.Env):
    """`fault` at step `fault_step` of the episode seeded `fault_seed` breaks it: "raise", "kill", "exit", "mute" or "nan".

    With `score`, it reports one: 1 for success, and up to that number, by the distance, without.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(
        self,
        render_mode: str | None = None,
        fault: str | None = None,
        fault_step: int = 3,
        fault_seed: int | None = None,
        step_seconds: float = 0.0,
        drift: float = 0.01,
        no_gl: bool = False,
        score: float | None = None,
    ) -> None:
        box = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.observation_space = gym.spaces.Dict({"position": box, "goal": box})
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.render_mode, self.fault, self.fault_step, self.fault_seed = render_mode, fault, fault_step, fault_seed
        self.step_seconds, self.drift, self.no_gl, self.score = step_seconds, drift, no_gl, score
        self.position, self.goal, self.steps, self.seed = np.zeros(2), np.zeros(2), 0, None
        self.executed: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.seed, self.steps, self.executed = seed, 0, []
        if options and "state" in options:
            self.position, self.goal = options["state"][:2].copy(), options["state"][2:].copy()
        else:
            self.position, self.goal = self.np_random.uniform(-1, 1, 2), self.np_random.uniform(-1, 1, 2)
        return self._observe(), {}

    def step(self, action: np.ndarray):
        if self.fault and self.steps == self.fault_step and self.fault_seed in (None, self.seed):
            if self.fault == "raise":
                raise RuntimeError("the point fell off the plane")
            if self.fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "exit":
                os._exit(3)
            if self.fault == "nan":
                self.goal[1] = np.nan
        if self.step_seconds:
            time.sleep(self.step_seconds)
        print("a chatty simulator")  # must not disturb the messages of a worker
        self.steps += 1
        self.executed.append(np.array(action))
        # The drift makes a chunk's effect depend on when and where it is executed, random numbers included.
        self.position += 0.1 * action + self.drift * self.np_random.standard_normal(2)
        distance = float(np.linalg.norm(self.goal - self.position))
        success = distance < 0.1
        info: dict[str, Any] = {} if self.fault == "mute" else {"success": success}
        if self.score is not None:
            info["score"] = 1.0 if success else self.score * max(0.0, 1.0 - distance / 3)
        return self._observe(), float(success), False, False, info

    def _observe(self) -> dict[str, np.ndarray]:
        return {"position": self.position, "goal": self.goal}  # the arrays themselves: a simulator that reuses them

    def get_state(self) -> dict[str, Any]:
        return {
            "position": self.position.copy(),
            "goal": self.goal.copy(),
            "steps": self.steps,
            "seed": self.seed,
            "rng": self.np_random.bit_generator.state,
            "executed": list(self.executed),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        self.position[:], self.goal[:] = state["position"], state["goal"]
        self.steps, self.seed = state["steps"], state["seed"]
        self.np_random.bit_generator.state = state["rng"]
        self.executed = list(state["executed"])

    def flat_state(self) -> np.ndarray:
        return np.concatenate([self.position, self.goal])

    def make_expert(self, noise: float, seed: int) -> PointExpert:
        return PointExpert(noise, seed)

    def render(self) -> np.ndarray:
        if self.no_gl:
            raise RuntimeError("no GL here")
        frame = np.full((48, 64, 3), 32, np.uint8)
        for point, colour in ((self.goal, (0, 200, 0)), (self.position, (220, 40, 40))):
            x, y = np.clip((point * 14 + (32, 24)).astype(int), 3, 44)
            frame[y - 3 : y + 3, x - 3 : x + 3] = colour
        return frame


class StatelessPointEnv(PointEnv):
    """The same without `get_state`, which makes it serve one slot only."""

    def __getattribute__(self, name: str) -> Any:
        if name == "get_state":
            raise AttributeError(name)
        return super().__getattribute__(name)


class LinePointEnv(PointEnv):
    """Of the same observations, and other actions."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = gym.spaces.Box(-1.0, 1.0, (3,))


class PointPolicy:
    """Heads for the goal from the last observation; its output depends on key and history, in every row."""

    obs_keys: tuple[str, ...] = ("goal", "position")
    needs_expert = False

    def __init__(self, history: int = 2, horizon: int = 8, noise: float = 0.2) -> None:
        self.history, self.horizon, self.noise = history, horizon, noise
        self.requests: list[Any] = []

    def plan(self, request: Any) -> np.ndarray:
        self.requests.append(request)
        now = request.observations[:, -1]
        rng = [np.random.default_rng(int(key)) for key in request.keys]
        noise = np.stack([each.standard_normal((self.horizon, 2)) for each in rng])
        # (1 + the last bit of the batch's own sum): what a matrix product of another shape may do to a row.
        wobble = np.float32(1.0) + np.float32(1e-6) * np.float32(request.observations.sum())
        heading = 4.0 * (now[:, :2] - now[:, 2:]) * wobble
        return np.clip(heading[:, None] + self.noise * noise, -1, 1).astype(np.float32)


SEEN = (24, 28)
"""Height and width of the point's pictures."""


def seen_from(camera: str, position: np.ndarray) -> np.ndarray:
    """A picture that names camera and place."""
    return np.full((*SEEN, 3), (100 if camera == "left" else 0) + int(50 * (1 + np.tanh(position[0]))), np.uint8)


class OpenEyedPointEnv(PointEnv):
    """Its observations always hold the pictures of two cameras, as an environment from elsewhere might have it."""

    cameras: tuple[str, ...] = ("left", "right")

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for camera in self.cameras:
            self.observation_space[f"{camera}_image"] = gym.spaces.Box(0, 255, (*SEEN, 3), np.uint8)

    def pictures_now(self) -> dict[str, np.ndarray]:
        return {f"{camera}_image": seen_from(camera, self.position) for camera in self.cameras}

    def _observe(self) -> dict[str, np.ndarray]:
        return super()._observe() | self.pictures_now()


class SeeingPointEnv(OpenEyedPointEnv):
    """Draws the cameras that it is asked for, when it is asked, as ours do."""

    drawn: int = 0

    def __init__(self, cameras: tuple[str, ...] = (), camera_size: int = 0, blind: bool = False, **settings: Any) -> None:
        self.cameras, self.camera_size, self.blind, self.drawing = cameras, camera_size, blind, True
        super().__init__(**settings)

    def pictures(self) -> dict[str, np.ndarray]:
        if self.blind:
            raise RuntimeError("no GL here")
        SeeingPointEnv.drawn += 1
        return self.pictures_now()

    def _observe(self) -> dict[str, np.ndarray]:
        return PointEnv._observe(self) | (self.pictures() if self.drawing and self.cameras else {})


class SeeingPolicy(PointPolicy):
    """Heads for the goal, and has the cameras of the environments above."""

    cameras, picture_size = ("right", "left"), SEEN
