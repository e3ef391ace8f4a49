"""The Fréchet distance against closed forms; rFID's errors, and what it asks of libraries that are not installed here."""

import hashlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from daps_robot.errors import ConfigError, DataError
from daps_robot.report import fid
from daps_robot.report.fid import ReconstructionFID, frechet_distance, rfid


def test_of_numbers():
    one = np.ones((1, 1))
    assert frechet_distance(np.array([1.0]), 4 * one, np.array([-2.0]), 25 * one) == pytest.approx(3**2 + (2 - 5) ** 2)


def test_of_covariances_that_commute():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    a, b = rng.uniform(0, 3, size=(2, 6))
    mu1, mu2 = rng.normal(size=(2, 6))
    found = frechet_distance(mu1, basis * a @ basis.T, mu2, basis * b @ basis.T)
    assert found == pytest.approx(np.sum((mu1 - mu2) ** 2) + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2))


def test_of_covariances_that_do_not():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 40, 8)) @ rng.normal(size=(2, 8, 8))
    cov1, cov2 = np.cov(x.T), np.cov(y.T)
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(cov1 + cov2 - 2 * sqrtm(cov1 @ cov2).real)
    assert frechet_distance(x.mean(0), cov1, y.mean(0), cov2) == pytest.approx(expected)
    assert frechet_distance(y.mean(0), cov2, x.mean(0), cov1) == pytest.approx(expected)


def test_of_singular_covariances():
    rng = np.random.default_rng(2)
    few = rng.normal(size=(5, 60))  # of rank 4
    mean, cov = few.mean(0), np.cov(few.T)
    assert frechet_distance(mean, cov, mean, cov) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(mean, cov, mean, 4 * cov) == pytest.approx(np.trace(cov))  # (2 − 1)² of each
    assert frechet_distance(mean, cov, mean + 1, 0 * cov) == pytest.approx(60 + np.trace(cov))


@pytest.mark.parametrize("spoil", [lambda cov: cov[:2], lambda cov: cov * np.nan])
def test_what_is_no_gaussian(spoil):
    mean, cov = np.zeros(3), np.eye(3)
    with pytest.raises(DataError, match="finite means"):
        frechet_distance(mean, cov, mean, spoil(cov))


class FakeMetric(torch.nn.Module):
    """What is used of torchmetrics' FrechetInceptionDistance 1.9; its "features" are the mean colours."""

    def __init__(self, **arguments):
        super().__init__()
        self.arguments, self.dtypes, self.largest_batch = arguments, set(), 0
        for which in ("real", "fake"):
            setattr(self, f"{which}_features_sum", torch.zeros(3).double())
            setattr(self, f"{which}_features_cov_sum", torch.zeros(3, 3).double())
            setattr(self, f"{which}_features_num_samples", torch.tensor(0))

    def update(self, imgs, real):
        assert imgs.shape[1:] == (3, 8, 6)
        self.dtypes.add(imgs.dtype)
        self.largest_batch = max(self.largest_batch, len(imgs))
        features = imgs.double().mean((2, 3))
        which = "real" if real else "fake"
        for name, value in (
            ("features_sum", features.sum(0)),
            ("features_cov_sum", features.T @ features),
            ("features_num_samples", len(imgs)),
        ):
            setattr(self, f"{which}_{name}", getattr(self, f"{which}_{name}") + value)


@pytest.fixture
def weights(tmp_path, monkeypatch) -> Path:
    """A file that passes for the weights."""
    path = tmp_path / fid.WEIGHTS
    path.write_bytes(b"weights")
    monkeypatch.setattr(fid, "WEIGHTS_SHA256", hashlib.sha256(b"weights").hexdigest())
    return path


@pytest.fixture
def library(monkeypatch) -> ModuleType:
    """A stand-in for torchmetrics."""
    module = ModuleType("torchmetrics.image.fid")
    module.FrechetInceptionDistance = FakeMetric
    for name in ("torchmetrics", "torchmetrics.image"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", module)
    return module


def test_what_the_library_is_asked(weights, library):
    measure = ReconstructionFID(weights)
    assert measure._metric.arguments == {
        "feature": 2048, "normalize": False, "feature_extractor_weights_path": str(weights), "antialias": False
    }  # fmt: skip
    torch.manual_seed(0)
    x = torch.randint(256, (70, 8, 6, 3)) / 255
    y = x + 0.1 * torch.randn(70, 1, 1, 3)
    measure.update(x[:50], y[:50])
    measure.update(x[50:], y[50:])
    a, b = ((z.clamp(0, 1) * 255).round().double().mean((1, 2)).numpy() for z in (x, y))
    expected = frechet_distance(a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T))
    assert measure.result() == pytest.approx(expected) == pytest.approx(rfid(x, y, weights))
    assert rfid(x, x, weights) == pytest.approx(0, abs=1e-6)
    assert measure._metric.dtypes == {torch.uint8} and measure._metric.largest_batch <= 32


def test_pictures_that_have_no_fid(weights, library):
    grey = torch.rand(4, 8, 6, 1)
    with pytest.raises(DataError, match=r"colour.*\(4, 8, 6, 1\)"):
        rfid(grey, grey, weights)
    one = torch.rand(1, 8, 6, 3)
    with pytest.raises(DataError, match="two pictures or more, not 1"):
        rfid(one, one, weights)


def test_weights_that_are_not_given_not_there_or_of_another_network(tmp_path, library):
    with pytest.raises(ConfigError, match=r"needs the weights.*torch-fidelity's release v0.2.0"):
        ReconstructionFID(None)
    for path in (tmp_path / "absent.pth", tmp_path):
        with pytest.raises(DataError, match=r"is not there, or no file: get weights-inception-2015-12-05-6726825d.pth"):
            ReconstructionFID(path)
    other = tmp_path / "other.pth"
    torch.save({"fc.weight": torch.zeros(1008, 2048)}, other)
    with pytest.raises(DataError, match=r"other.pth is not FID's Inception network \(SHA-256 \w{8}…, not 6726825d…\)"):
        ReconstructionFID(other)


class Broken:
    """Finds the module torchmetrics, and fails as it does beside a torchvision of another torch."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "torchmetrics":
            raise RuntimeError("operator torchvision::nms does not exist")


def test_libraries_that_are_missing_broken_or_old(weights, library, monkeypatch):
    def old(feature, normalize, feature_extractor_weights_path):
        raise AssertionError

    def without_fidelity(**arguments):
        raise ModuleNotFoundError("FrechetInceptionDistance metric requires that `Torch-fidelity` is installed")

    for constructor, told in ((old, "antialias"), (without_fidelity, "Torch-fidelity")):
        library.FrechetInceptionDistance = constructor
        with pytest.raises(ConfigError, match=rf"torchmetrics 1.8 .*pip install 'daps-robot\[fid\]' \(.*{told}"):
            ReconstructionFID(weights)
    for name in ("torchmetrics", "torchmetrics.image", "torchmetrics.image.fid"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken, *sys.meta_path])
    with pytest.raises(ConfigError, match=r"a torchvision made for this torch .*torchvision::nms does not exist"):
        ReconstructionFID(weights)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)  # as if not installed
    with pytest.raises(ConfigError, match=r"pip install 'daps-robot\[fid\]'"):
        ReconstructionFID(weights)
