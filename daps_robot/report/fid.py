"""rFID: the Fréchet inception distance of reconstructions to their own originals. Needs the extra `fid` and a file of weights.

The features are those of Heusel et al. (2017, arXiv 1706.08500): Inception v3 of 2015, pool3, 2048 numbers of each picture,
resized to 299×299 as TensorFlow did. The reference is the split's own originals, so the figure compares with other rFIDs on the
same pictures only, and not with FIDs against stored statistics. It is biased upwards for few pictures: say how many there were.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from daps_robot.data.demos import file_sha256
from daps_robot.data.hdf5 import short
from daps_robot.errors import ConfigError, DataError
from daps_robot.training.image_metrics import matched

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
"""torch-fidelity's file, of its release v0.2.0; pytorch-fid's pt_inception-2015-12-05-6726825d.pth is the same."""

WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
FEATURES = 2048
_BATCH = 32


def frechet_distance(
    mu1: Float[np.ndarray, " d"], cov1: Float[np.ndarray, "d d"], mu2: Float[np.ndarray, " d"], cov2: Float[np.ndarray, "d d"]
) -> float:
    """|μ1 − μ2|² + Tr(Σ1 + Σ2 − 2(Σ1 Σ2)^½), in float64, between two Gaussians (Dowson & Landau 1982).

    (Σ1 Σ2)^½ has the trace of (Σ1^½ Σ2 Σ1^½)^½, which is symmetric: its eigenvalues are real whatever the ranks of the
    covariances, and those that rounding has left below 0 count as 0.

    Raises:
        DataError: a mean or covariance is not finite, or shapes differ.
    """
    mu1, cov1, mu2, cov2 = (np.asarray(values, dtype=np.float64) for values in (mu1, cov1, mu2, cov2))
    shapes = [values.shape for values in (mu1, cov1, mu2, cov2)]
    if shapes != [(len(mu1),), (len(mu1), len(mu1))] * 2 or not all(np.isfinite(v).all() for v in (mu1, cov1, mu2, cov2)):
        raise DataError(f"a Fréchet distance needs finite means (d) and covariances (d d) of one size, not {shapes}")
    values, vectors = np.linalg.eigh(cov1)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    overlap = np.sqrt(np.linalg.eigvalsh(root @ cov2 @ root).clip(min=0)).sum()
    distance = np.square(mu1 - mu2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * overlap
    return max(0.0, float(distance))  # below by rounding alone


class ReconstructionFID:
    """rFID of a split that is seen batch by batch; whatever it needs is looked for when it is made, not after the work."""

    def __init__(self, weights: Path | None) -> None:
        """`weights` is torch-fidelity's file of the Inception network.

        Raises:
            ConfigError: torchmetrics, torch-fidelity or torchvision is missing or broken, or no weights are given.
            DataError: the weights are not there, or not that network's.
        """
        self._metric = _inception_metric(checked_weights(weights))

    @torch.no_grad()
    def update(self, x: Float[Tensor, "b height width 3"], y: Float[Tensor, "b height width 3"]) -> None:
        """Some more originals and reconstructions in [0, 1]; reconstructions are clipped, both are rounded to 8 bits.

        Raises:
            DataError: they have other than three channels, or see `matched`.
        """
        x, y = matched(x, y)
        if x.dim() != 4 or x.shape[-1] != 3:
            raise DataError(f"FID is of colour pictures (b height width 3), not of {tuple(x.shape)}")
        self._metric.to(x.device)
        for originals, reconstructions in zip(x.split(_BATCH), y.split(_BATCH), strict=True):
            self._metric.update(_bytes(originals), real=True)
            self._metric.update(_bytes(reconstructions), real=False)

    def result(self) -> float:
        """The distance, by `frechet_distance`: torchmetrics' own `compute` rounds it to float32.

        Raises:
            DataError: there were fewer than two pictures.
        """
        return frechet_distance(*self._moments("real"), *self._moments("fake"))

    def _moments(self, which: str) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
        """Mean and covariance of the features."""
        names = ("features_sum", "features_cov_sum", "features_num_samples")
        total, products, n = (getattr(self._metric, f"{which}_{name}").double().cpu().numpy() for name in names)
        if n < 2:
            raise DataError(f"FID needs two pictures or more, not {n:.0f}")
        mean = total / n
        return mean, (products - n * np.outer(mean, mean)) / (n - 1)


def rfid(
    originals: Float[Tensor, "b height width 3"], reconstructions: Float[Tensor, "b height width 3"], weights: Path | None
) -> float:
    """rFID of pictures that fit into memory; see `ReconstructionFID` for arguments and errors."""
    measure = ReconstructionFID(weights)
    measure.update(originals, reconstructions)
    return measure.result()


def checked_weights(path: Path | None) -> Path:
    """The weights, if they are those that make the number an FID; other ones would make it another number.

    torch-fidelity unpickles the file, so nothing but the known bytes may reach it.
    """
    remedy = f"get {WEIGHTS} from torch-fidelity's release v0.2.0 and give its path"
    if path is None:
        raise ConfigError(f"rFID needs the weights of its Inception network: {remedy}")
    if not path.is_file():
        raise DataError(f"{path} is not there, or no file: {remedy}")
    try:
        found = file_sha256(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if found != WEIGHTS_SHA256:
        raise DataError(f"{path} is not FID's Inception network (SHA-256 {found[:8]}…, not {WEIGHTS_SHA256[:8]}…): {remedy}")
    return path


def _inception_metric(weights: Path) -> Any:
    """torchmetrics' FrechetInceptionDistance with torch-fidelity's network and the resizing of the original."""
    try:
        module = importlib.import_module("torchmetrics.image.fid")
        return module.FrechetInceptionDistance(
            feature=FEATURES, normalize=False, feature_extractor_weights_path=str(weights), antialias=False
        )
    except Exception as error:  # a torchvision that does not fit torch breaks the import with RuntimeError and others
        raise ConfigError(
            "rFID needs torchmetrics 1.8 or newer, torch-fidelity, and a torchvision made for this torch "
            f"{torch.__version__}: pip install 'daps-robot[fid]' ({short(error)})"
        ) from error


def _bytes(x: Float[Tensor, "b height width 3"]) -> UInt8[Tensor, "b 3 height width"]:
    return (x * 255).round().byte().movedim(-1, 1).contiguous()
