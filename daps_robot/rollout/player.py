"""What runs in a process that plays fixed action sequences, from given states or before a camera. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import thread_time
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec
from jaxtyping import Float, UInt8

from daps_robot.atomic import rename_whole
from daps_robot.data.cameras import HAND, check_hand
from daps_robot.errors import SimulationError
from daps_robot.rollout.simulation import as_dict, fit_actions, layout_of, make_env, score_of, succeeded

HOLD_SECONDS = 0.5
"""How long a film stays on its last frame."""

GAP = 4
"""Pixels between films side by side."""


@dataclass(frozen=True)
class Outcome:
    """What became of a fixed action sequence.

    Attributes:
        success: whether it succeeded at any step.
        score: the largest score of its steps.
        length: steps until then, or until the end.
        clipped: values, of the actions executed, that lay outside the action space.
        simulator_seconds: processor time inside the environment's `step` and `reset`.
    """

    success: bool
    score: float
    length: int
    clipped: int
    simulator_seconds: float


class Player:
    """Plays action sequences from given simulator states.

    Raises:
        SimulationError: where the environment cannot be made, or not be set to a state.
    """

    def __init__(self, spec: EnvSpec, env_kwargs: Mapping[str, Any]) -> None:
        self._spec, self._env = spec, make_env(spec, env_kwargs)
        self._layout = layout_of(self._env, spec.id)
        if not hasattr(self._env.unwrapped, "flat_state"):
            raise SimulationError(f"{spec.id} cannot start from a demonstration's state: it lacks flat_state")

    def play(self, name: str, state: Float[np.ndarray, " s"], actions: Float[np.ndarray, "t a"]) -> Outcome:
        """Plays `actions` from `state` until success.

        Raises:
            SimulationError: naming the demonstration, for actions that do not fit or are not finite, a state that the
                environment does not take, or a failing step.
        """
        if actions.shape[1:] != self._layout.low.shape:
            raise SimulationError(
                f"{name} has {actions.shape[1]} action dimensions, but {self._spec.id} takes {len(self._layout.low)}"
            )
        if not np.isfinite(actions).all():
            step = int(np.argwhere(~np.isfinite(actions))[0, 0])
            raise SimulationError(f"{name}: the action at step {step} is not finite")
        fitted, outside = fit_actions(actions, self._layout)
        start, length, success, score = thread_time(), 0, False, 0.0
        try:
            self._env.reset(options={"state": state})
            for action in fitted:
                _, _, terminated, truncated, info = self._env.step(action)
                length += 1
                success = succeeded(info, self._spec.id)
                score = max(score, score_of(info, success, self._spec.id))
                if success or terminated or truncated:
                    break
        except SimulationError:
            raise
        except Exception as error:
            raise SimulationError(
                f"{self._spec.id} failed on {name} at step {length}: {type(error).__name__}: {error}"
            ) from error
        return Outcome(success, score, length, int(outside[:length].sum()), thread_time() - start)

    def close(self) -> None:
        """Closes the environment."""
        self._env.close()


class FirstLook:
    """Looks once through an environment's cameras, in a process of its own: a broken GL may take it down.

    Raises:
        SimulationError: where they do not draw; the message says why.
    """

    def __init__(self, spec: EnvSpec, env_kwargs: Mapping[str, Any], keys: Sequence[str]) -> None:
        env = make_env(spec, env_kwargs)
        seen, _ = env.reset(seed=0)
        if missing := [key for key in keys if key not in as_dict(seen)]:
            raise SimulationError(f"{spec.id} has no {', '.join(missing)} in what it observes after a reset")
        env.close()


@dataclass(frozen=True)
class Clip:
    """Some steps of a demonstration, to be filmed from its recorded states.

    Attributes:
        where: file and demonstration, for messages.
        start: its first step.
        states: one for each frame.
        hand: where the demonstration says that the hand was, if it does: a state of another model shows in it.
    """

    where: str
    start: int
    states: Float[np.ndarray, "t s"]
    hand: Float[np.ndarray, "t 3"] | None = None


class Camera:
    """Films action sequences from seeded start states, and recorded states; made in a process of its own, which a broken GL
    may take down.

    Raises:
        SimulationError: where the environment does not render.
    """

    def __init__(self, spec: EnvSpec, env_kwargs: Mapping[str, Any]) -> None:
        self._env = make_env(spec, {**env_kwargs, "render_mode": "rgb_array"})
        self._fps = int(self._env.metadata.get("render_fps") or 20)
        self._spec = spec
        self._env.reset(seed=0)
        self._frame()

    def film(self, seed: int, actions: Float[np.ndarray, "t a"], path: str) -> bool:
        """Writes a film of `actions` from `reset(seed=seed)`; whether the last step succeeded."""
        self._env.reset(seed=seed)
        frame, success = self._frame(), False
        with written(Path(path), frame, self._fps) as write:
            for action in actions:
                _, _, _, _, info = self._env.step(action)
                success, frame = succeeded(info, self._spec.id), self._frame()
                write(frame)
        return success

    def film_states(self, clips: Sequence[Clip], path: str) -> None:
        """Writes a film of recorded states at half speed, the clips side by side; one that is shorter stays on its last frame.

        Nothing is stepped: the environment is reset to each state by `options={"state": state}`, and drawn.

        Raises:
            SimulationError: the environment does not take the states.
            DataError: a state is of another model.
        """
        if not hasattr(self._env.unwrapped, "flat_state"):
            raise SimulationError(f"{self._spec.id} cannot be set to a demonstration's state: it lacks flat_state")
        drawn = [[self._draw(clip, t) for t in range(len(clip.states))] for clip in clips]
        frames = [[each[min(t, len(each) - 1)] for each in drawn] for t in range(max(map(len, drawn)))]
        first, *rest = [side_by_side(row) for row in frames]
        with written(Path(path), first, max(1, self._fps // 2)) as write:
            for frame in rest:
                write(frame)

    def close(self) -> None:
        """Closes the environment."""
        self._env.close()

    def _draw(self, clip: Clip, t: int) -> UInt8[np.ndarray, "height width 3"]:
        observation, _ = self._env.reset(options={"state": clip.states[t]})
        seen = as_dict(observation)
        if clip.hand is not None and HAND in seen:
            check_hand(f"{clip.where}: step {clip.start + t}", seen[HAND], clip.hand[t])
        return self._frame()

    def _frame(self) -> UInt8[np.ndarray, "height width 3"]:
        frame: Any = self._env.render()
        if not isinstance(frame, np.ndarray) or frame.ndim != 3 or frame.shape[2] != 3:
            got = getattr(frame, "shape", type(frame).__name__)
            raise SimulationError(f"{self._spec.id} renders {got}, not a picture of shape (height, width, 3)")
        return frame


def side_by_side(frames: Sequence[UInt8[np.ndarray, "height width 3"]]) -> UInt8[np.ndarray, "height wide 3"]:
    """One frame of several, with a light line between them."""
    line = np.full((len(frames[0]), GAP, 3), 255, np.uint8)
    return np.concatenate([part for frame in frames for part in (line, frame)][1:], axis=1)


@contextmanager
def written(
    path: Path, first: UInt8[np.ndarray, "height width 3"], fps: int
) -> Iterator[Callable[[UInt8[np.ndarray, "height width 3"]], None]]:
    """Takes the further frames of an H.264 film (yuv420p, which every browser plays), which appears when it is complete."""
    import imageio_ffmpeg

    partial, last = path.with_suffix(".partial.mp4"), first
    size = (first.shape[1], first.shape[0])
    writer = imageio_ffmpeg.write_frames(str(partial), size, fps=fps, codec="libx264", macro_block_size=2)
    writer.send(None)

    def write(frame: UInt8[np.ndarray, "height width 3"]) -> None:
        nonlocal last
        last = frame
        writer.send(np.ascontiguousarray(frame))

    try:
        write(first)
        yield write
        for _ in range(round(HOLD_SECONDS * fps)):
            write(last)
        writer.close()
        rename_whole(partial, path)
    finally:
        writer.close()
        partial.unlink(missing_ok=True)
