"""How near rebuilt pictures come to their originals, and what the ELBO says in bits: each figure by its exact definition.

Originals lie in [0, 1]; reconstructions may lie slightly outside, and are clipped to [0, 1] before anything is measured.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from daps_robot.errors import DataError

SMALLEST_ERROR = 1e-12
"""A mean squared error below it counts as this much (120 dB), so that a perfect reconstruction does not make means infinite."""

WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03
AT_ONCE = 2**16
"""Numbers whose SSIM is computed together: all that is computed of them then stays in the processor's cache."""


def matched(x: Float[Tensor, "b *x"], y: Float[Tensor, "b *x"]) -> tuple[Float[Tensor, "b *x"], Float[Tensor, "b *x"]]:
    """Originals x and reconstructions y, the latter clipped to [0, 1].

    Raises:
        DataError: their shapes differ, or the originals are not in [0, 1].
    """
    if x.shape != y.shape or len(x) == 0:
        raise DataError(f"originals {tuple(x.shape)} and reconstructions {tuple(y.shape)} must be as many and of one shape")
    low, high = float(x.min()), float(x.max())
    if not (low >= -1e-6 and high <= 1 + 1e-6):
        raise DataError(f"originals must lie in [0, 1], these lie in [{low:.4g}, {high:.4g}]: divide 8-bit pictures by 255")
    return x, y.clamp(0, 1)


def psnr(x: Float[Tensor, "b *x"], y: Float[Tensor, "b *x"]) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio of each example in dB: 10·log10(1/mse), y clipped to [0, 1]. To be averaged by the caller.

    Raises:
        DataError: see `matched`.
    """
    return _decibels(_squared_error(x, y))


def _squared_error(x: Float[Tensor, "b *x"], y: Float[Tensor, "b *x"]) -> Float[Tensor, " b"]:
    """Mean of (x − y)² over each example."""
    x, y = matched(x, y)
    return (x.double() - y.double()).square().flatten(1).mean(1)


def _decibels(error: Tensor) -> Tensor:
    return -10 * torch.log10(error.clamp(min=SMALLEST_ERROR))


def ssim(x: Float[Tensor, "b height width c"], y: Float[Tensor, "b height width c"]) -> Float[Tensor, " b"]:
    """Structural similarity of each picture (Wang et al. 2004, equation 13); 1 for equal ones, y clipped to [0, 1].

    Means, variances and covariance under a Gaussian window of 11×11 pixels with σ = 1.5 and sum 1, at the places where it fits
    whole; K1 = .01, K2 = .03, dynamic range 1. Mean over places, then over channels.

    Raises:
        DataError: the pictures are smaller than the window, or see `matched`.
    """
    x, y = matched(x, y)
    if x.dim() != 4 or min(x.shape[1:3]) < WINDOW:
        raise DataError(f"SSIM is of pictures (b height width c) of {WINDOW}×{WINDOW} pixels or more, not of {tuple(x.shape)}")
    few = max(1, AT_ONCE // x[0].numel())
    return torch.cat([_ssim(a, b) for a, b in zip(x.split(few), y.split(few), strict=True)])


def _ssim(x: Float[Tensor, "b height width c"], y: Float[Tensor, "b height width c"]) -> Float[Tensor, " b"]:
    x, y = x.double(), y.double()
    mean_x, mean_y = _window(x), _window(y)
    variances = _window(x * x) - mean_x**2 + _window(y * y) - mean_y**2
    covariance = _window(x * y) - mean_x * mean_y
    c1, c2 = K1**2, K2**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variances + c2)
    return (luminance * structure).flatten(1).mean(1)


def _window(x: Float[Tensor, "b height width c"]) -> Float[Tensor, "b _ _ c"]:
    """Weighted means under the window, one axis after the other."""
    distance = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    weights = torch.softmax(-(distance**2) / (2 * SIGMA**2), 0)
    for axis in (1, 2):
        places = x.shape[axis] - WINDOW + 1
        mean = torch.zeros_like(x.narrow(axis, 0, places))
        for i in range(WINDOW):
            mean += weights[i] * x.narrow(axis, i, places)
        x = mean
    return x


def bits_per_dimension(elbo_nats: float, dimensions: int, log_scale: float) -> float:
    """Upper bound of the bits that the model needs for a number of an 8-bit picture, from its ELBO with β = 1.

    The model is a density over normalised = (x − shift)/scale, where x = (u8 + u)/256 with u ~ U[0, 1) dequantises the bytes
    (a model of x = u8/255 has no such bound). As a density over x it is 1/scale as high in each dimension, and a picture's
    probability is its integral over a cell of volume 256^−dimensions. By Jensen's inequality, twice (over u, and over z in the
    ELBO), −log2 P(picture) ≤ 8·dimensions − (ELBO − Σ ln scale)/ln 2 in expectation. A uniform density over [0, 1] gives 8.

    Args:
        elbo_nats: mean over pictures, in nats per picture of normalised data, of log p(x|z) − KL.
        dimensions: numbers of a picture, height·width·c.
        log_scale: mean over the dimensions of ln scale; of a `Scaler` over channels, `scale.log().mean()`.
    """
    return 8 - (elbo_nats / dimensions - log_scale) / math.log(2)


class ImageMetrics:
    """Means over a split that is seen batch by batch; holds sums alone, of which those of several processes can be added up."""

    def __init__(self) -> None:
        self.sums = dict.fromkeys(("pictures", "psnr", "ssim", "squared_error"), 0.0)

    def update(self, x: Float[Tensor, "b height width c"], y: Float[Tensor, "b height width c"]) -> None:
        """Some more originals and reconstructions.

        Raises:
            DataError: see `ssim`.
        """
        error = _squared_error(x, y)
        for name, values in (("psnr", _decibels(error)), ("ssim", ssim(x, y)), ("squared_error", error)):
            self.sums[name] += float(values.sum())
        self.sums["pictures"] += len(x)

    def result(self) -> dict[str, float]:
        """`psnr` and `ssim`: means over the pictures of these functions; `rmse`: root of the mean of (x − y)² over all.

        Raises:
            DataError: there was no picture.
        """
        if not self.sums["pictures"]:
            raise DataError("there are no pictures to measure: the split is empty")
        means = {name: value / self.sums["pictures"] for name, value in self.sums.items()}
        return {"psnr": means["psnr"], "ssim": means["ssim"], "rmse": math.sqrt(means["squared_error"])}
