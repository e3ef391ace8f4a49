"""The words and letters used everywhere, and the few containers that travel.

Axis letters, in every shape of this package:

    b  batch                 k  samples per input      l  positions in a code sequence
    v  vocabulary size       d  embedding width        h  chunk horizon (steps)
    n  observation history   a  action dimension       o  observation dimension (all keys, flattened)
    c  cameras
    t  steps of a demo       m  memory tokens

Time, for a decision taken at step t:

    observations   o_{t-n+1} … o_t |
    chunk                          a_t  a_{t+1} … a_{t+h-1}
    executed                       a_t … a_{t+e-1}             e ≤ h, then re-plan
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

if TYPE_CHECKING:  # an exported policy acts without torch
    from torch import Tensor, nn

from daps_robot.errors import DataError


@dataclass(frozen=True)
class Demo:
    """One demonstration: what was seen and done, step by step, in the environment's own units.

    Attributes:
        name: its key in the file, such as "demo_12".
        actions: (t a) float32.
        obs: observation key -> (t o_key) float32; row i is what was seen before action i.
        states: (t s) float64 flattened MuJoCo states (time, qpos, qvel) before each action, or None where the file has none.
        seed: the seed that the environment was reset with, or None where it is not known. A demonstration may begin later in
            that episode: what it starts from is states[0].
        images: camera -> (t height width 3) what it saw before each action, in RGB, of the cameras that were asked for.
    """

    name: str
    actions: Float[np.ndarray, "t a"]
    obs: Mapping[str, Float[np.ndarray, "t _"]]
    states: Float[np.ndarray, "t s"] | None = None
    seed: int | None = None
    images: Mapping[str, UInt8[np.ndarray, "t height width 3"]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.actions)

    def flat_obs(self, keys: Sequence[str]) -> Float[np.ndarray, "t o"]:
        """The observations of `keys`, in that order, side by side."""
        return np.concatenate([self.obs[key] for key in keys], axis=1)


class ChunkBatch(NamedTuple):
    """A batch of action-chunk windows in the environment's units.

    Attributes:
        actions: (b h a); steps past the end of the demonstration repeat its last action.
        mask: (b h) True where the step belongs to the demonstration.
        observations: (b n o); steps before the start repeat the first observation.
        images: (b n c height width 3) likewise, of demonstrations with pictures.
    """

    actions: Float[Tensor, "b h a"]
    mask: Bool[Tensor, "b h"]
    observations: Float[Tensor, "b n o"]
    images: UInt8[Tensor, "b n c height width 3"] | None = None


@dataclass(frozen=True)
class PlanRequest:
    """What a policy is asked at a decision, for a fixed number of slots (finished slots hold stale rows).

    Attributes:
        observations: (b n o) float32, keys in the policy's `obs_keys` order.
        keys: (b,) one number per row that alone decides the row's sampling noise, whatever else is in the batch.
        expert_chunk: (b h a) the scripted expert's next h actions, only for a policy with `needs_expert`.
        images: (b n c height width 3) RGB, cameras in the order of the policy's `cameras`, only for a policy that has some.

    Raises:
        DataError: the arrays are not of these shapes and types, or hold NaN or infinity, on which no policy is to act: the most
            likely codes of NaN decode to actions like any others.
    """

    observations: Float[np.ndarray, "b n o"]
    keys: Int[np.ndarray, " b"]
    expert_chunk: Float[np.ndarray, "b h a"] | None = None
    images: UInt8[np.ndarray, "b n c height width 3"] | None = None

    def __post_init__(self) -> None:
        keys = np.asarray(self.keys)
        if keys.ndim != 1 or not len(keys) or keys.dtype.kind not in "iu" or (keys < 0).any():
            raise DataError(f"keys of a request are whole numbers of at least 0, one a row, not {keys.dtype} of {keys.shape}")
        for name in ("observations", "expert_chunk"):
            values = getattr(self, name)
            if name == "expert_chunk" and values is None:
                continue
            kind = np.float32 if name == "observations" else np.floating
            fits = isinstance(values, np.ndarray) and np.issubdtype(values.dtype, kind) and values.dtype.isnative
            if not fits or values.ndim != 3 or len(values) != len(keys):
                found = f"{getattr(values, 'dtype', type(values).__name__)} of {getattr(values, 'shape', 'no shape')}"
                raise DataError(
                    f"{name} of a request are {kind.__name__} of 3 axes, a row for each of {len(keys)} keys, not {found}"
                )
            if not np.isfinite(values).all():
                row = int(np.argwhere(~np.isfinite(values))[0, 0])
                raise DataError(f"{name} of row {row} of a request are NaN or infinite: no policy acts on such")
        images = self.images
        if images is not None and not (images.dtype == np.uint8 and images.ndim == 6 and len(images) == len(keys)):
            raise DataError(f"images of a request are uint8 of 6 axes, a row for each of {len(keys)} keys")


def plan_request(batch: ChunkBatch, keys: Int[Tensor, " b"]) -> PlanRequest:
    """What a policy would be asked at the windows of a batch."""
    images = None if batch.images is None else batch.images.numpy()
    return PlanRequest(batch.observations.numpy(), keys.numpy(), images=images)


@runtime_checkable
class Policy(Protocol):
    """Anything that answers a `PlanRequest` with action chunks in the environment's units."""

    obs_keys: tuple[str, ...]
    history: int
    horizon: int
    needs_expert: bool

    def plan(self, request: PlanRequest) -> Float[np.ndarray, "b h a"]:
        """Action chunks for every row; row i depends on nothing but row i of the request."""
        ...


@runtime_checkable
class SizedPolicy(Policy, Protocol):
    """A policy that knows what it was trained for.

    Attributes:
        kind: the name under which it is saved (see `daps_robot.models.policies.POLICIES`).
        observation_dim, action_dim: o and a.
        obs_dims: how many of the o values are each key's; empty of a policy saved before that was kept.
        execute: e, the steps of a plan that it is meant to be executed for.
        cameras: whose pictures it sees, in this order; () for a policy of numbers alone.
        picture_size: height and width of these pictures; None without cameras.
    """

    kind: str
    cameras: tuple[str, ...]
    picture_size: tuple[int, int] | None
    observation_dim: int
    obs_dims: dict[str, int]
    action_dim: int
    execute: int


@runtime_checkable
class TrainedPolicy(SizedPolicy, Protocol):
    """A policy that can be trained further, and saved."""

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def save_pretrained(self, directory: Path) -> None: ...


JSON = dict[str, Any]
