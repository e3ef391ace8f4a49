"""Windows of h actions with the observations before them, gathered by indexing into flat arrays.

    observations   o_{t-n+1} … o_t |
    chunk                          a_t  a_{t+1} … a_{t+h-1}

There is one window for every step of every demonstration. Past the end of a demonstration the last action is repeated and
masked; before its start the first observation is repeated. Demonstrations are split whole, so no window crosses a split.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from daps_robot.errors import ConfigError, DataError
from daps_robot.types import ChunkBatch, Demo


class ChunkDataset:
    """All windows of some demonstrations.

    Attributes:
        actions: (T a) every action, one demonstration after another, in environment units.
        observations: (T o) likewise.
        starts, ends: (T,) first step and end (exclusive) of the demonstration that each step belongs to.
        cameras: whose pictures the demonstrations have; () for none.
        pictures: of each demonstration, one array (t height width 3) a camera; they stay where they are, and a batch of them is
            copied when it is gathered.
    """

    def __init__(
        self, demos: Sequence[Demo], obs_keys: Sequence[str], horizon: int, history: int = 1, where: str = "the data set"
    ) -> None:
        """Raises DataError, naming the file `where`, if there is no demonstration or one is shorter than a chunk."""
        if horizon < 1 or history < 1:
            raise ConfigError(f"a horizon of {horizon} steps and a history of {history}: each must be at least 1")
        if not demos:
            raise DataError(f"{where} has no demonstrations in this split to cut into chunks")
        for demo in demos:
            if len(demo) < horizon:
                raise DataError(
                    f"{where}: {demo.name} has {len(demo)} steps, fewer than a chunk of {horizon}: "
                    "use shorter chunks, or leave the demonstration out"
                )
        lengths = np.array([len(demo) for demo in demos])
        ends = np.cumsum(lengths)
        self.horizon, self.history = horizon, history
        self.actions = torch.from_numpy(np.concatenate([demo.actions for demo in demos]))
        self.observations = torch.from_numpy(np.concatenate([demo.flat_obs(obs_keys) for demo in demos]))
        self.ends = torch.from_numpy(np.repeat(ends, lengths))
        self.starts = torch.from_numpy(np.repeat(ends - lengths, lengths))
        self.cameras = tuple(demos[0].images)
        self.pictures = [tuple(demo.images[camera] for camera in self.cameras) for demo in demos]
        self._owners = torch.from_numpy(np.repeat(np.arange(len(demos)), lengths))
        self._ahead = torch.arange(horizon)
        self.back = torch.arange(1 - history, 1)

    def __len__(self) -> int:
        return len(self.actions)

    def ahead(self, index: Int[Tensor, " b"]) -> tuple[Float[Tensor, "b h a"], Bool[Tensor, "b h"]]:
        """The chunks that start at these steps, and where they belong to the demonstration."""
        future = index[:, None] + self._ahead
        end = self.ends[index, None]
        return self.actions[torch.minimum(future, end - 1)], future < end

    def gather(self, index: Int[Tensor, " b"]) -> ChunkBatch:
        """The windows that start at these steps."""
        past = torch.maximum(index[:, None] + self.back, self.starts[index, None])
        images = self._images(index, past) if self.cameras else None
        return ChunkBatch(*self.ahead(index), self.observations[past], images)

    def _images(self, index: Int[Tensor, " b"], past: Int[Tensor, "b n"]) -> UInt8[Tensor, "b n c height width 3"]:
        steps, owners = (past - self.starts[index, None]).numpy(), self._owners[index].tolist()
        images = np.empty((*steps.shape, len(self.cameras), *self.pictures[0][0].shape[1:]), np.uint8)
        for row, owner, seen in zip(images, owners, steps, strict=True):
            for camera, pictures in enumerate(self.pictures[owner]):
                row[:, camera] = pictures[seen]
        return torch.from_numpy(images)


class ObservedSteps:
    """The windows of a data set with the actions of the observed steps, a_{t-n+1} … a_t, in place of the chunk ahead.

    For a policy that learns at every step of a sequence. Steps before the start of the demonstration repeat its first
    action and are masked.
    """

    def __init__(self, windows: ChunkDataset) -> None:
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def gather(self, index: Int[Tensor, " b"]) -> ChunkBatch:
        """The windows that end at these steps; their actions are (b n a)."""
        data = self.windows
        past = index[:, None] + data.back
        start = data.starts[index, None]
        steps = torch.maximum(past, start)
        return ChunkBatch(actions=data.actions[steps], mask=past >= start, observations=data.observations[steps])
