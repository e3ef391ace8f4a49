"""Errors of reconstructed motion against closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from daps_robot.data.motion import POSITION, QUATERNION, placed_at
from daps_robot.errors import DataError
from daps_robot.training.motion_metrics import MotionMetrics, joint_error, root_angle_error, root_position_error


def motion(b=5, h=4, seed=0):
    rng = np.random.default_rng(seed)
    windows = rng.standard_normal((b, h, 36))
    windows[..., QUATERNION] = Rotation.random(b * h, random_state=seed).as_quat().reshape(b, h, 4)
    return torch.from_numpy(windows).float()


def limits(x):
    return x.flatten(0, 1).amin(0), x.flatten(0, 1).amax(0)


def test_joint_angles():
    x, y = motion(), motion()
    y[..., 7] += 0.29
    y[..., 35] -= 0.58
    y[..., :7] += 1  # the root is no joint
    metrics = MotionMetrics(*limits(x))
    metrics.update(x, y)
    assert joint_error(x, y).shape == (5, 4, 29)
    assert metrics.result()["joint_mae"] == pytest.approx(0.03, rel=1e-5)
    assert metrics.result()["joint_rmse"] == pytest.approx(math.sqrt((0.29**2 + 0.58**2) / 29), rel=1e-5)


def test_root_position_is_a_distance():
    x, y = motion(), motion()
    y[..., POSITION] += torch.tensor([2.0, -3.0, 6.0])
    torch.testing.assert_close(root_position_error(x, y), torch.full((5, 4), 7.0).double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("angle", [0.0, 1e-10, 1e-5, 0.3, 3.0, math.pi - 1e-4, math.pi])
def test_the_angle_between_rotations(angle):
    """To a relative error of 1e-6 near 0, whatever the sign and length of the quaternions."""
    x = motion().double()
    axes = np.random.default_rng(1).standard_normal((20, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    turned = Rotation.from_rotvec(angle * axes) * Rotation.from_quat(x[..., QUATERNION].reshape(-1, 4).numpy())
    y = x.clone()
    y[..., QUATERNION] = torch.from_numpy(turned.as_quat()).view(5, 4, 4)
    y[::2, :, QUATERNION] *= -3
    torch.testing.assert_close(root_angle_error(x, y), torch.full((5, 4), angle).double(), rtol=1e-5, atol=1e-14)


def test_equal_rotations_are_exactly_equal_and_zeros_are_far_away():
    x = motion()
    assert root_angle_error(x, x).max() == 0
    y = x.clone()
    y[..., QUATERNION] = 0
    torch.testing.assert_close(root_angle_error(x, y), torch.full((5, 4), math.pi).double())


def test_the_papers_psnr():
    """Errors of a tenth of the range everywhere are 20 dB."""
    x = torch.rand(6, 4, 36)
    low, high = torch.linspace(-3, 4, 36), torch.linspace(-1, 90, 36)
    metrics = MotionMetrics(low, high)
    metrics.update(low + (high - low) * x, low + (high - low) * (x + torch.where(x > 0.5, -0.1, 0.1)))
    assert metrics.result()["paper_psnr"] == pytest.approx(20, abs=1e-4)


def test_the_papers_psnr_clips_and_leaves_out_what_never_changes():
    low, high = torch.zeros(36), torch.ones(36)
    high[:9] = 0
    x = torch.full((2, 4, 36), 0.5)
    y = x + 0.2
    y[..., :9] += 5
    x[..., 9:18], y[..., 9:18] = 1.5, 7.0  # both outside the training range
    metrics = MotionMetrics(low, high)
    metrics.update(x, y)
    assert metrics.result()["paper_psnr"] == pytest.approx(-10 * math.log10(0.2**2 * 18 / 27), abs=1e-5)


def test_parts_give_the_figures_of_the_whole():
    x, y = motion(9), motion(9, seed=1)
    whole, parts = MotionMetrics(*limits(x)), MotionMetrics(*limits(x))
    whole.update(x, y)
    for part in (slice(0, 2), slice(2, 8), slice(8, 9)):
        parts.update(x[part], y[part])
    assert whole.result() == pytest.approx(parts.result(), rel=1e-12)
    assert whole.result()["root_angle_error"] == pytest.approx(float(root_angle_error(x, y).mean()), rel=1e-12)


def test_it_does_not_matter_where_windows_are_placed():
    x, y = motion(), motion(seed=1)
    place = torch.randn(5, 3)
    moved = [placed_at(place, windows) for windows in (x, y)]
    for error in (root_position_error, root_angle_error, joint_error):
        torch.testing.assert_close(error(*moved), error(x, y), atol=1e-5, rtol=1e-5)


def test_perfect_motion_and_none_at_all():
    x = motion()
    metrics = MotionMetrics(*limits(x))
    with pytest.raises(DataError, match="no windows"):
        metrics.result()
    metrics.update(x, x)
    assert metrics.result() == {
        "joint_mae": 0,
        "joint_rmse": 0,
        "root_position_error": 0,
        "root_angle_error": 0,
        "paper_psnr": math.inf,
    }
    with pytest.raises(DataError, match="no feature"):
        MotionMetrics(torch.zeros(36), torch.zeros(36))
