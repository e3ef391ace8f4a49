"""Windows and masks against a slow, obvious loop."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from daps_robot.data.chunks import ChunkDataset, ObservedSteps
from daps_robot.errors import DataError
from daps_robot.types import Demo


def demo(number, steps):
    """Every value names its demonstration and step, so that a window cannot be mistaken for another."""
    values = 1000 * number + np.arange(steps, dtype=np.float32)
    return Demo(
        f"demo_{number}",
        np.stack([values, -values], 1),
        {"position": np.stack([values + 0.25] * 3, 1), "state": values[:, None] + 0.5},
    )


@settings(max_examples=60, deadline=None)
@given(
    horizon=st.integers(1, 7),
    history=st.integers(1, 5),
    extra=st.lists(st.integers(0, 9), min_size=1, max_size=5),
)
def test_windows_and_masks(horizon, history, extra):
    demos = [demo(i, horizon + more) for i, more in enumerate(extra)]
    data = ChunkDataset(demos, ("state", "position"), horizon, history)
    assert len(data) == sum(len(d) for d in demos)
    order = torch.randperm(len(data))
    batch = data.gather(order)
    windows = [(d, t) for d in demos for t in range(len(d))]
    for row, index in enumerate(order.tolist()):
        d, t = windows[index]
        for i in range(horizon):
            inside = t + i < len(d)
            assert bool(batch.mask[row, i]) == inside
            expected = d.actions[t + i] if inside else d.actions[-1]
            assert np.array_equal(batch.actions[row, i], expected)
        for i in range(history):
            seen = max(t - history + 1 + i, 0)
            expected = np.concatenate([d.obs["state"][seen], d.obs["position"][seen]])
            assert np.array_equal(batch.observations[row, i], expected)


def test_dtypes_and_shapes():
    batch = ChunkDataset([demo(0, 9)], ("state",), 4, 2).gather(torch.tensor([8, 0, 0]))
    assert batch.actions.shape == (3, 4, 2)
    assert batch.observations.shape == (3, 2, 1)
    assert batch.mask.dtype == torch.bool
    assert batch.actions.dtype == batch.observations.dtype == torch.float32


def test_the_data_are_copied():
    source = demo(0, 9)
    data = ChunkDataset([source], ("state",), 4)
    source.actions[:] = -1
    assert data.gather(torch.tensor([3])).actions[0, 0, 0] == 3


def test_a_demonstration_shorter_than_a_chunk_is_named():
    with pytest.raises(DataError, match=r"here\.hdf5: demo_1 has 3 steps, fewer than a chunk of 4"):
        ChunkDataset([demo(0, 9), demo(1, 3)], ("state",), 4, where="here.hdf5")


def test_a_split_without_demonstrations_is_refused():
    with pytest.raises(DataError, match=r"here\.hdf5"):
        ChunkDataset([], ("state",), 4, where="here.hdf5")


@pytest.mark.parametrize("history", [1, 4])
def test_observed_steps_come_with_their_own_actions(history):
    demos = [demo(i, steps) for i, steps in enumerate((3, 7))]
    data = ObservedSteps(ChunkDataset(demos, ("state",), horizon=1, history=history))
    windows = [(d, t) for d in demos for t in range(len(d))]
    assert len(data) == len(windows)
    batch = data.gather(torch.arange(len(data)))
    for row, (d, t) in enumerate(windows):
        for i, step in enumerate(range(t - history + 1, t + 1)):
            assert batch.actions[row, i].tolist() == d.actions[max(step, 0)].tolist()
            assert batch.observations[row, i].tolist() == d.obs["state"][max(step, 0)].tolist()
            assert bool(batch.mask[row, i]) == (step >= 0)
