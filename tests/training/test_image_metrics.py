"""Picture metrics against closed forms and an independent SSIM."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from daps_robot.data.normalize import Scaler
from daps_robot.errors import DataError
from daps_robot.training.image_metrics import ImageMetrics, bits_per_dimension, psnr, ssim


@pytest.fixture
def pictures():
    torch.manual_seed(0)
    x = torch.rand(5, 13, 17, 3)
    return x, x + 0.2 * torch.randn_like(x)


def test_psnr_of_a_constant_error():
    x = torch.full((3, 4, 5, 1), 0.5)
    y = x + torch.tensor([0.1, 0.01, 0.0])[:, None, None, None]
    assert psnr(x, y).tolist() == pytest.approx([20, 40, 120], abs=1e-3)


def test_reconstructions_are_clipped():
    x = torch.tensor([0.0, 1.0]).repeat(1, 12, 6, 1).view(1, 12, 12, 1)
    y = torch.where(x > 0.5, 7.0, -3.0)
    assert psnr(x, y).tolist() == [120]
    assert ssim(x, y).tolist() == pytest.approx([1])


def independent_ssim(x, y):
    def blur(z):
        return gaussian_filter(z, 1.5, radius=5)[5:-5, 5:-5]

    ux, uy = blur(x), blur(y)
    xx, yy, xy = blur(x * x) - ux * ux, blur(y * y) - uy * uy, blur(x * y) - ux * uy
    c1, c2 = 0.01**2, 0.03**2
    return np.mean((2 * ux * uy + c1) * (2 * xy + c2) / ((ux**2 + uy**2 + c1) * (xx + yy + c2)))


def test_ssim_against_scipy(pictures):
    x, y = pictures
    a, b = x.double().numpy(), y.double().clamp(0, 1).numpy()
    expected = [np.mean([independent_ssim(a[i, ..., c], b[i, ..., c]) for c in range(3)]) for i in range(5)]
    np.testing.assert_allclose(ssim(x, y).numpy(), expected, rtol=1e-9)
    assert min(expected) > 0.1 and max(expected) < 0.95


def test_ssim_of_many_pictures_is_that_of_each(pictures):
    x, y = (t.repeat(7, 1, 1, 1) for t in pictures)
    torch.testing.assert_close(ssim(x, y), torch.cat([ssim(x[i : i + 1], y[i : i + 1]) for i in range(35)]))


def test_ssim_of_flat_pictures_compares_their_brightness():
    a, b = 0.3, 0.8
    flat = torch.ones(1, 11, 11, 1)
    assert float(ssim(a * flat, b * flat)) == pytest.approx((2 * a * b + 1e-4) / (a * a + b * b + 1e-4), rel=1e-6)
    assert float(ssim(a * flat, a * flat)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.rand(2, 10, 28, 1), torch.rand(2, 10, 28, 1), r"11×11.*\(2, 10, 28, 1\)"),
        (torch.rand(2, 28, 28), torch.rand(2, 28, 28), r"\(2, 28, 28\)"),
        (torch.rand(2, 28, 28, 1), torch.rand(2, 28, 28, 3), r"\(2, 28, 28, 1\).*\(2, 28, 28, 3\)"),
        (torch.zeros(0, 28, 28, 1), torch.zeros(0, 28, 28, 1), "as many"),
        (torch.full((1, 28, 28, 1), 128.0), torch.rand(1, 28, 28, 1), "divide 8-bit pictures by 255"),
        (torch.full((1, 28, 28, 1), math.nan), torch.rand(1, 28, 28, 1), r"in \[0, 1\]"),
    ],
)
def test_what_cannot_be_measured_is_refused(x, y, message):
    with pytest.raises(DataError, match=message):
        ssim(x, y)


def test_a_uniform_density_needs_eight_bits():
    torch.manual_seed(0)
    scaler = Scaler.fit(torch.rand(100, 3).numpy() * np.array([0.3, 0.7, 1.0]))
    dimensions = 5 * 7 * 3
    elbo = float(5 * 7 * scaler.scale.log().sum())  # 1 over [0, 1] is `scale` over normalised numbers
    assert bits_per_dimension(elbo, dimensions, float(scaler.scale.log().mean())) == pytest.approx(8, abs=1e-6)


def test_bits_bound_those_of_a_density_that_can_be_integrated():
    scale = 0.37  # p(x) = 2x over [0, 1]: a byte k has the probability (2k + 1)/256²

    def integral(x):  # of log 2x
        return x * math.log(2 * x) - x if x else 0.0

    shares = [(2 * k + 1) / 256**2 for k in range(256)]
    log_density = [256 * (integral((k + 1) / 256) - integral(k / 256)) for k in range(256)]  # mean over u, for x
    elbo = sum(share * (mean + math.log(scale)) for share, mean in zip(shares, log_density, strict=True))
    exact = -sum(share * math.log2(share) for share in shares)
    bound = bits_per_dimension(elbo, 1, math.log(scale))
    assert exact < bound < exact + 1e-3


def test_a_split_that_is_seen_in_batches(pictures):
    x, y = pictures
    found = ImageMetrics()
    for part in (slice(0, 3), slice(3, 5)):
        found.update(x[part], y[part])
    result = found.result()
    assert result == pytest.approx({
        "psnr": float(psnr(x, y).mean()),
        "ssim": float(ssim(x, y).mean()),
        "rmse": float((x.double() - y.double().clamp(0, 1)).square().mean().sqrt()),
    })  # fmt: skip
    halves = ImageMetrics(), ImageMetrics()  # in two processes
    halves[0].update(x[:3], y[:3])
    halves[1].update(x[3:], y[3:])
    halves[0].sums = {name: value + halves[1].sums[name] for name, value in halves[0].sums.items()}
    assert halves[0].result() == pytest.approx(result)
    with pytest.raises(DataError, match="no pictures"):
        ImageMetrics().result()
