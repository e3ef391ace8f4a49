"""MNIST from a local file: the protocol's digits, and what is refused."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from daps_robot.data.images import BinaryImages, locate_mnist, read_mnist_10k
from daps_robot.errors import DataError


def real() -> Path:
    path = Path(os.environ.get("DAPS_ROBOT_DATA", "data")) / "mnist.npz"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return path


def test_the_protocols_digits():
    train, test = read_mnist_10k(real())
    assert (len(train), len(test)) == (9000, 1000)
    with np.load(real()) as arrays:
        images = arrays["x_train"][:10_000]
    everything = torch.cat([train.pixels, test.pixels]).sum()
    assert int(everything) == int((images > 127).sum())  # each of the first ten thousand once
    assert train.gather(torch.tensor([5, 1])).shape == (2, 28, 28, 1)
    assert set(train.gather(torch.arange(10)).unique().tolist()) == {0.0, 1.0}


def test_binary_images_are_gathered_by_index():
    images = BinaryImages((torch.arange(24).view(6, 2, 2, 1) % 2).to(torch.uint8))
    assert torch.equal(images.gather(torch.tensor([3])), images.pixels[3:4].float())


def test_mnist_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAPS_ROBOT_DATA", str(tmp_path / "shelf"))
    with pytest.raises(DataError, match=r"mnist.npz is not in .*shelf or data"):
        locate_mnist()


@pytest.mark.parametrize("content", ["text", "npy", "other", "shape", "truncated"])
def test_a_file_that_is_not_mnist(content, tmp_path):
    path = tmp_path / "mnist.npz"
    if content == "text":
        path.write_text("hello")
    elif content == "npy":
        np.save(path.with_suffix(".npy"), np.zeros(3))
        path.with_suffix(".npy").rename(path)
    elif content == "other":
        np.savez(path, images=np.zeros(3))
    elif content == "shape":
        np.savez(path, x_train=np.zeros((60000, 3), np.uint8))
    else:
        np.savez(path, x_train=np.random.default_rng(0).integers(0, 255, (100, 28, 28), np.uint8))
        path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"mnist\.npz"):
        read_mnist_10k(path)
