"""Scalers are invertible whatever the dimension holds; near-binary dimensions are found, and no others."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from daps_robot.data.normalize import Scaler, near_binary
from daps_robot.errors import DataError


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(2, 50),
    spread=st.lists(st.sampled_from([0.0, 1e-3, 0.1, 1.0, 50.0]), min_size=1, max_size=6),
    centre=st.floats(-100, 100),
    shared=st.booleans(),
)
def test_normalising_and_back(seed, rows, spread, centre, shared):
    values = np.random.default_rng(seed).normal(size=(rows, len(spread))) * spread + centre
    scaler = Scaler.fit(values, shared=shared)
    x = torch.from_numpy(values).float()
    normalised = scaler.normalize(x)
    assert normalised.isfinite().all()
    torch.testing.assert_close(scaler.denormalize(normalised), x, rtol=1e-5, atol=1e-5)
    for i, width in enumerate(spread):
        if width == 0:
            assert (normalised[:, i] == 0).all()
            moving = [scaler.scale[j] for j, other in enumerate(spread) if other > 0 and scaler.scale[j] > 0]
            assert scaler.scale[i] == (min(moving) if moving else 1)


def test_mean_zero_and_standard_deviation_one():
    values = np.random.default_rng(0).normal([3, -2], [0.1, 7], (500, 2))
    normalised = Scaler.fit(values).normalize(torch.from_numpy(values).float())
    torch.testing.assert_close(normalised.mean(0), torch.zeros(2), rtol=0, atol=1e-4)
    torch.testing.assert_close(normalised.std(0, unbiased=False), torch.ones(2), rtol=1e-4, atol=0)


def test_a_shared_scale_is_the_root_mean_square_of_the_moving_dimensions():
    rng = np.random.default_rng(0)
    values = np.stack([rng.normal(0, 1, 200), rng.normal(5, 3, 200), np.full(200, 2.0), rng.choice([-1.0, 1.0], 200)], 1)
    scaler = Scaler.fit(values, binary=(3,), shared=True)
    expected = np.sqrt((values[:, 0].var() + values[:, 1].var()) / 2)
    np.testing.assert_allclose(scaler.scale, [expected, expected, expected, 2], rtol=1e-6)
    np.testing.assert_allclose(scaler.shift, [values[:, 0].mean(), values[:, 1].mean(), 2, -1], rtol=1e-6)


def test_dimensions_of_one_unit_share_a_scale():
    values = np.random.default_rng(0).normal(0, [0.1, 0.3, 2.0, 1.0, 0.0], (300, 5))
    scaler = Scaler.fit(values, shared=("m", "m", "rad", "rad", "rad"))
    deviation = values.std(0)
    metres, radians = (np.sqrt(np.square(deviation[part]).mean()) for part in ([0, 1], [2, 3]))
    np.testing.assert_allclose(scaler.scale, [metres, metres, radians, radians, metres], rtol=1e-6)  # the constant: the smallest


def test_binary_dimensions_become_zero_and_one():
    values = np.array([[-1.0, 0.0], [1.0, 0.04], [-1.0, 0.04]])
    scaler = Scaler.fit(values, binary=(0, 1))
    normalised = scaler.normalize(torch.from_numpy(values).float())
    torch.testing.assert_close(normalised, torch.tensor([[0.0, 0], [1, 1], [0, 1]]))
    torch.testing.assert_close(scaler.denormalize(normalised), torch.from_numpy(values).float())


@pytest.mark.parametrize("constant", [0.0, 1e-4, -3.0, 1e6, -1e6])
def test_a_constant_dimension_comes_back_exactly(constant):
    values = np.full((10, 1), constant)
    scaler = Scaler.fit(values)
    assert scaler.denormalize(torch.zeros(1)).item() == np.float32(constant)
    assert scaler.scale.item() == 1


def test_windows_and_leading_axes():
    scaler = Scaler(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0]))
    x = torch.randn(3, 5, 2)
    torch.testing.assert_close(scaler.normalize(x)[1, 2], scaler.normalize(x[1, 2]))
    torch.testing.assert_close(scaler.normalize(torch.tensor([3.0, 10.0])), torch.tensor([1.0, 2.0]))


def test_the_numbers_are_part_of_the_checkpoint():
    scaler = Scaler(torch.tensor([1.0]), torch.tensor([2.0]))
    other = Scaler.identity(1)
    other.load_state_dict(scaler.state_dict())
    assert other.normalize(torch.tensor([5.0])).item() == 2
    assert not list(scaler.parameters())


@pytest.mark.parametrize("shift, scale", [(0.0, 0.0), (0.0, -1.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_a_scaler_that_cannot_be_inverted_is_refused(shift, scale):
    with pytest.raises(DataError):
        Scaler(torch.tensor([shift]), torch.tensor([scale]))


def columns():
    rng = np.random.default_rng(0)
    gripper = rng.choice([-1.0, 1.0], 1000)
    rare = gripper.copy()
    rare[:5] = 0.3
    pulses = np.zeros(1000)
    pulses[:8] = np.linspace(0.1, 0.9, 8)
    return {
        "a gripper": (gripper, True),
        "a gripper with rare exceptions": (rare, True),
        "open and close of unequal share": (np.where(np.arange(1000) < 950, 0.0, 0.04), True),
        "noise": (rng.normal(size=1000), False),
        "a constant": (np.full(1000, 0.7), False),
        "three values": (rng.choice([-1.0, 0.0, 1.0], 1000), False),
        "rest with rare movements": (pulses, False),
        "uniform": (rng.uniform(-1, 1, 1000), False),
    }


@pytest.mark.parametrize("name", columns())
def test_near_binary(name):
    values, expected = columns()[name]
    assert near_binary(np.stack([values, np.zeros(1000)], 1).astype(np.float32)) == ((0,) if expected else ())


def test_a_range_becomes_minus_one_to_one():
    values = np.array([[0.0, 5.0, -3.0], [512.0, 5.0, -1.0], [128.0, 5.0, -2.0]])
    scaler = Scaler.fit_range(values)
    normalised = scaler.normalize(torch.from_numpy(values).float())
    torch.testing.assert_close(normalised, torch.tensor([[-1.0, 0, -1], [1, 0, 1], [-0.5, 0, 0]]))
    assert scaler.scale[1] == 1  # a constant dimension has the smallest scale of the others
    assert Scaler.fit_range(values[:, 1:2]).scale.tolist() == [1.0]
