"""Rotations against SciPy's, and there and back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from daps_robot.data.rotations import (
    axis_angle_from_quaternion,
    check_quaternions,
    consistent_signs,
    expand_quaternions,
    quaternion_from_axis_angle,
    quaternion_from_rotation_6d,
    rotation_6d_from_quaternion,
)
from daps_robot.errors import ConfigError

HALF_TURNS = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0.6, 0.8, 0, 0], [0.6, 0, 0.8, 1e-9], [0, 0, 0, 1], [1e-9, 0, 0, 1]]


def quaternions(n=500):
    random = Rotation.random(n, random_state=0).as_quat()
    return torch.from_numpy(np.concatenate([random, np.array(HALF_TURNS, float)]))


def same_rotation(p, q, tolerance=1e-12):
    torch.testing.assert_close((p * q).sum(-1).abs(), torch.ones(len(p), dtype=p.dtype), atol=tolerance, rtol=0)


def test_against_scipy():
    q = quaternions()
    theirs = Rotation.from_quat(q.numpy())
    np.testing.assert_allclose(axis_angle_from_quaternion(q[:500]), theirs.as_rotvec()[:500], atol=1e-9)
    columns = theirs.as_matrix()[:, :, :2].transpose(0, 2, 1).reshape(-1, 6)
    np.testing.assert_allclose(rotation_6d_from_quaternion(q), columns, atol=1e-12)


def test_there_and_back():
    q = quaternions()
    same_rotation(quaternion_from_rotation_6d(rotation_6d_from_quaternion(q)), q)
    same_rotation(quaternion_from_axis_angle(axis_angle_from_quaternion(q)), q)
    assert (quaternion_from_rotation_6d(rotation_6d_from_quaternion(q))[:, 3] >= 0).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=3, max_size=3), st.floats(0, 3.14))
def test_axis_angles_come_back(axis, angle):
    axis = torch.tensor(axis, dtype=torch.float64)
    vector = angle * axis / axis.norm() if axis.norm() > 1e-6 else torch.zeros(3, dtype=torch.float64)
    torch.testing.assert_close(axis_angle_from_quaternion(quaternion_from_axis_angle(vector)), vector, atol=1e-9, rtol=1e-9)


def test_the_6d_form_knows_no_sign_and_no_length():
    q = quaternions()
    torch.testing.assert_close(rotation_6d_from_quaternion(-3 * q), rotation_6d_from_quaternion(q))


def test_two_columns_that_are_not_quite_orthonormal_give_the_nearest_by_gram_and_schmidt():
    q = quaternions()
    columns = rotation_6d_from_quaternion(q)
    skewed = torch.cat([3 * columns[:, :3], 2 * columns[:, 3:] + 0.4 * columns[:, :3]], -1)
    same_rotation(quaternion_from_rotation_6d(skewed), q)


def test_signs_are_made_consistent():
    rng = np.random.default_rng(0)
    axis = rng.normal(size=3) / 2
    smooth = torch.from_numpy(Rotation.from_rotvec(np.linspace(0, 6, 200)[:, None] * axis).as_quat())
    smooth = consistent_signs(smooth)
    assert ((smooth[1:] * smooth[:-1]).sum(-1) > 0).all()
    flipped = smooth * torch.from_numpy(rng.choice([-1.0, 1.0], (200, 1)))
    flipped[0] = smooth[0]
    torch.testing.assert_close(consistent_signs(flipped), smooth)
    assert consistent_signs(smooth[:1]).shape == (1, 4)


@pytest.mark.parametrize("starts", [(), (0,), (2,), (1, 5)])
def test_quaternions_among_other_columns(starts):
    values = torch.randn(3, 2, 9)
    expanded = expand_quaternions(values, starts)
    assert expanded.shape == (3, 2, 9 + 2 * len(starts))
    for i, start in enumerate(starts):
        rotation = rotation_6d_from_quaternion(values[..., start : start + 4])
        torch.testing.assert_close(expanded[..., start + 2 * i : start + 2 * i + 6], rotation)
    kept = [i for i in range(9) if not any(s <= i < s + 4 for s in starts)]
    theirs = [i for i in range(expanded.shape[-1]) if not any(s + 2 * k <= i < s + 2 * k + 6 for k, s in enumerate(starts))]
    torch.testing.assert_close(expanded[..., theirs], values[..., kept])


@pytest.mark.parametrize("starts", [(-1,), (6,), (1, 4), (5, 0)])
def test_quaternions_that_cannot_lie_there_are_refused(starts):
    check_quaternions((1, 5), 9)
    with pytest.raises(ConfigError, match="of 9: four columns each"):
        check_quaternions(starts, 9)
