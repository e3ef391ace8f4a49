"""A policy in the control loop of one robot: an observation in, an action out, at every tick. No torch of its own.

    policy.reset(seed=0)
    while running:
        action = policy.act(observation)

With a plan of h steps of which e are executed, every e-th call plans; `daps_robot.plan_ahead` keeps that out of the loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from numpy.typing import ArrayLike

from daps_robot.data.cameras import image_key
from daps_robot.errors import ConfigError, ControlError, DataError
from daps_robot.types import PlanRequest, SizedPolicy

Observation = Mapping[str, Any] | ArrayLike
"""Observation key → array, as environments give it (other keys than the policy's may be there; a camera's picture has the key
<camera>_image), or, of a policy without cameras, the values of its keys side by side."""

OnTrouble = Literal["raise", "hold"]


class _UnfitError(ControlError):
    """It is the observation that is at fault: a loop may go on with the next one."""


class _Seen(NamedTuple):
    """Of one step: the numbers, and what the cameras saw (None of a policy without)."""

    values: Float[np.ndarray, " o"]
    pictures: UInt8[np.ndarray, "c height width 3"] | None


@dataclass
class Counts:
    """What happened since the last reset.

    Attributes:
        steps: actions given, repeated ones included.
        plans: that were made.
        clipped: values of them, of steps executed, that lay outside the bounds.
        bad_observations: steps at which an observation could not be acted on, and the last action was given again.
        late: steps at which a plan was due that had not come (planning ahead only).
        held: those of them at which the plan before was at its end, and the last action was given again.
    """

    steps: int = 0
    plans: int = 0
    clipped: int = 0
    bad_observations: int = 0
    late: int = 0
    held: int = 0


class Controller:
    """Executes a policy's plans, e steps of each; what it does is what `rollout.evaluate` does with the same observations.

    Attributes:
        policy: that it asks.
        counts: since the last reset.
    """

    def __init__(
        self,
        policy: SizedPolicy,
        *,
        execute: int | None = None,
        bounds: tuple[ArrayLike, ArrayLike] | None = None,
        on_bad_observation: OnTrouble = "raise",
    ) -> None:
        """Ready for the first step, as after `reset()`.

        Args:
            policy: any that has been trained, or exported.
            execute: e, steps executed of a plan before the next; by default the policy's own.
            bounds: lowest and highest action values, (a,) or a number each; what lies outside is clipped and counted.
            on_bad_observation: what to do where an observation is not finite or does not fit: raise ControlError, or give the
                last action again (there must be one). The plan then waits, and the observation is forgotten.

        Raises:
            ConfigError: settings that cannot work, or a policy that needs a scripted expert.
        """
        if policy.needs_expert:
            raise ConfigError("this policy needs a scripted expert, which only a simulator has: it cannot act by itself")
        self.policy = policy
        self.execute = policy.execute if execute is None else execute
        if not 1 <= self.execute <= policy.horizon:
            raise ConfigError(f"execute={self.execute} does not fit the policy's plans of {policy.horizon} steps; take 1 to h")
        check_trouble("on_bad_observation", on_bad_observation)
        self.bounds = None if bounds is None else _bounds(bounds, policy.action_dim)
        self.on_bad_observation = on_bad_observation
        self.reset()

    def reset(self, seed: int = 0) -> None:
        """Begin an episode: forget observations, plan and counts.

        Args:
            seed: keys the noise of policies that draw, with the number of the plan. Episode i of an evaluation has seed i.
        """
        if not 0 <= seed < 2**31:
            raise ConfigError(f"seed={seed} cannot be; take one from 0 to 2³¹ − 1")
        self.counts, self._seed = Counts(), seed
        self._history: deque[_Seen] = deque(maxlen=self.policy.history)
        self._plan: Float[np.ndarray, "h a"] | None = None
        self._step = self._planned_at = 0  # of the plan's clock, which stands still while an action is repeated
        self._last: Float[np.ndarray, " a"] | None = None

    def act(self, observation: Observation) -> Float[np.ndarray, " a"]:
        """The action for this step, float32, in the environment's units.

        Raises:
            ControlError: the observation cannot be acted on (unless such are held over), or a plan is not finite. Nothing of the
                bad observation is kept: the next call goes on.
        """
        before = self._history.copy()
        try:
            seen = self._read(observation)
            self._history.append(seen)
            while len(self._history) < self.policy.history:  # the first one, as often as there are none before it
                self._history.append(seen)
            has_plan = self._has_plan()
        except _UnfitError:
            self._history = before
            if self.on_bad_observation == "raise" or self._last is None:
                raise
            self.counts.bad_observations += 1
            return self._hold()
        if not has_plan:
            self.counts.held += 1
            return self._hold()
        assert self._plan is not None
        action = self._plan[self._step - self._planned_at]
        if self.bounds is not None:
            action, outside = within_bounds(action, *self.bounds)
            self.counts.clipped += int(outside.sum())
        self._step += 1
        self.counts.steps += 1
        self._last = np.asarray(action, np.float32)
        return self._last.copy()

    def _has_plan(self) -> bool:
        """Sees to it that there is a plan for this step; whether there is one."""
        if self._plan is None or self._step - self._planned_at >= self.execute:
            try:
                plans = self.policy.plan(self._request())
            except DataError as error:
                raise _UnfitError(str(error)) from error
            self._adopt(plans, self._step)
        return True

    def _request(self) -> PlanRequest:
        """What the next plan is asked with."""
        keys = plan_keys(np.array([self._seed]), np.array([self.counts.plans]))
        values, images = zip(*self._history, strict=True)
        return PlanRequest(np.stack(values)[None], keys, images=np.stack(images)[None] if self.policy.cameras else None)

    def _adopt(self, plans: Float[np.ndarray, "1 h a"], step: int) -> None:
        """Go on with a plan whose first action is, or would have been, for `step`."""
        expected = (1, self.policy.horizon, self.policy.action_dim)
        if np.shape(plans) != expected:
            raise ControlError(f"the policy's plan has shape {np.shape(plans)}, its horizon and action dimension make {expected}")
        with np.errstate(over="ignore"):  # of float64, becomes infinite here and is refused below
            plan = np.asarray(plans, np.float32)[0]
        if not np.isfinite(plan).all():
            raise ControlError("the policy's plan is not finite: was it trained to the end on this task?")
        self._plan, self._planned_at = plan, step
        self.counts.plans += 1

    def _hold(self) -> Float[np.ndarray, " a"]:
        assert self._last is not None
        self.counts.steps += 1
        return self._last.copy()

    def _read(self, observation: Observation) -> _Seen:
        """What the policy sees of it, as a copy.

        Raises:
            _UnfitError: a key is missing, or the values are no finite numbers, or not as many as the policy sees, or a picture
                is not of the size that it sees.
        """
        by_key = isinstance(observation, Mapping)
        parts = cast("Mapping[str, Any]", observation) if by_key else {"observation": observation}
        values = {}
        for key in self.policy.obs_keys if by_key else parts:
            if key not in parts:
                raise _UnfitError(f"the observation lacks {key!r}, which the policy sees; it has {', '.join(map(repr, parts))}")
            values[key] = _finite(parts[key], key)
            wanted = self.policy.obs_dims.get(key, len(values[key]))
            if by_key and len(values[key]) != wanted:
                raise _UnfitError(f"the observation's {key!r} has {len(values[key])} values, the policy sees {wanted}")
        seen = np.concatenate(list(values.values()))
        if len(seen) != self.policy.observation_dim:
            sizes = " + ".join(f"{key!r} {len(part)}" for key, part in values.items())
            raise _UnfitError(f"the observation has {len(seen)} values ({sizes}), the policy sees {self.policy.observation_dim}")
        if not self.policy.cameras:
            return _Seen(seen, None)
        size = self.policy.picture_size
        assert size is not None
        return _Seen(seen, np.stack([_picture(parts, image_key(camera), size) for camera in self.policy.cameras]))


class Acting:
    """Gives a policy `reset` and `act`, by a `Controller` with its defaults."""

    _controller: Controller | None = None

    def reset(self, seed: int = 0) -> None:
        """Begin an episode; see `Controller.reset`."""
        policy = cast(SizedPolicy, self)
        if self._controller is None or self._controller.policy is not policy:  # not that of a policy this is a copy of
            self._controller = Controller(policy)
        self._controller.reset(seed)

    def act(self, observation: Observation) -> Float[np.ndarray, " a"]:
        """The action for this step; see `Controller.act`."""
        if self._controller is None or self._controller.policy is not cast(SizedPolicy, self):
            self.reset()
        assert self._controller is not None
        return self._controller.act(observation)


def check_trouble(name: str, choice: str) -> None:
    """Raises ConfigError for a choice that is none: one that is not known must not come to mean "hold"."""
    if choice not in get_args(OnTrouble):
        raise ConfigError(f'{name}={choice!r} is neither "raise" nor "hold"')


def plan_keys(episode: Int[np.ndarray, " b"], plan: Int[np.ndarray, " b"]) -> Int[np.ndarray, " b"]:
    """`PlanRequest.keys`: the SplitMix64 hash (Steele et al. 2014) of episode·2³² + plan, its lowest bit dropped.

    A function of the two numbers alone, one to one but for the dropped bit, and without visible pattern: neighbouring
    episodes and plans get unrelated sampling noise, the same in every run and for every number of workers.

    Args:
        episode: (b,) index of the episode, from 0; -1 in a slot that has none counts as 0.
        plan: (b,) number of the plan within it, from 0.
    """
    z = (np.maximum(episode, 0).astype(np.uint64) << np.uint64(32)) + plan.astype(np.uint64)
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(1)).astype(np.int64)


def check_obs_dims(obs_dims: tuple[int, ...], obs_keys: tuple[str, ...], observation_dim: int) -> None:
    """Raises ConfigError where what a policy says of its keys' sizes is neither nothing nor o in all."""
    if obs_dims and (len(obs_dims) != len(obs_keys) or min(obs_dims) < 0 or sum(obs_dims) != observation_dim):
        raise ConfigError(f"obs_dims {obs_dims} are not the sizes of {', '.join(obs_keys)}, of {observation_dim} values in all")


def within_bounds(
    actions: Float[np.ndarray, "*rows a"], low: Float[np.ndarray, " a"], high: Float[np.ndarray, " a"]
) -> tuple[Float[np.ndarray, "*rows a"], Bool[np.ndarray, "*rows a"]]:
    """Actions within the bounds, and where that took clipping.

    A value that lies outside by no more than rounding (1e-6 of the range) is set to the bound without being marked.
    """
    span = high.astype(np.float64) - low
    slack = 1e-6 * np.where(np.isfinite(span), span, 0.0)
    outside = (actions < low - slack) | (actions > high + slack)
    return np.clip(actions, low, high), outside


def _finite(value: Any, key: str) -> Float[np.ndarray, " _"]:
    try:
        found = np.asarray(value)
        if found.dtype.kind not in "fiub":
            raise TypeError(f"it is {found.dtype} of shape {found.shape}")
        with np.errstate(over="ignore"):  # of float64, becomes infinite here and is refused below
            part = found.astype(np.float32).ravel()
    except (TypeError, ValueError, RuntimeError) as error:  # the last of a tensor with a gradient
        raise _UnfitError(f"the observation's {key!r} is no array of numbers: {error}") from error
    if not np.isfinite(part).all():
        raise _UnfitError(f"the observation's {key!r} is not finite: value {int(np.argmin(np.isfinite(part)))} of {len(part)}")
    return part


def _picture(parts: Mapping[str, Any], key: str, size: tuple[int, int]) -> UInt8[np.ndarray, "height width 3"]:
    if key not in parts:
        raise _UnfitError(f"the observation lacks {key!r}, a picture that the policy sees; it has {', '.join(map(repr, parts))}")
    picture = np.asarray(parts[key])
    if picture.dtype != np.uint8 or picture.shape != (*size, 3):
        raise _UnfitError(
            f"the observation's {key!r} is {picture.dtype} of shape {picture.shape}, the policy sees uint8 of {(*size, 3)}"
        )
    return picture


def _bounds(bounds: tuple[ArrayLike, ArrayLike], action_dim: int) -> tuple[Float[np.ndarray, " a"], Float[np.ndarray, " a"]]:
    try:
        low, high = (np.broadcast_to(np.asarray(bound, np.float32), (action_dim,)) for bound in bounds)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"bounds are a lowest and a highest value of each of the {action_dim} action dimensions") from error
    if not (low <= high).all():
        raise ConfigError(f"a lower bound lies above the upper one, or is not a number: {low} and {high}")
    return low, high
