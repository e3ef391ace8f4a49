"""Data sets of pictures by name, from files as they are published, and what becomes of pictures before training."""

import gzip
import io
import os
import tarfile
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from daps_robot.data import cifar10, images, mnist
from daps_robot.data.demos import file_sha256
from daps_robot.data.images import ImageDataset, ImageTransform, locate_mnist, read_images
from daps_robot.data.pictures import ArrayPictures
from daps_robot.errors import ConfigError, DataError

RNG = np.random.default_rng(0)


def real(name):
    path = Path(os.environ.get("DAPS_ROBOT_DATA", "data")) / name
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return path


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """A place without data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAPS_ROBOT_DATA", str(tmp_path / "shelf"))
    (tmp_path / "shelf").mkdir()
    return tmp_path


# transforms


def test_pictures_as_numbers():
    pixels = np.array([0, 127, 128, 255], np.uint8).reshape(1, 2, 2, 1)
    one = torch.tensor([0])
    assert torch.equal(
        ImageDataset(ArrayPictures(pixels), ImageTransform()).gather(one).ravel() * 255, torch.tensor([0, 127, 128, 255.0])
    )
    binary = ImageDataset(ArrayPictures(pixels), ImageTransform(threshold=127))
    assert binary.gather(one).ravel().tolist() == [0, 0, 1, 1]
    assert torch.equal(binary.augmented(one, one), binary.gather(one))


def test_chance_depends_on_the_key_of_a_row_alone():
    data = ImageDataset(ArrayPictures(RNG.integers(0, 256, (50, 4, 6, 3), np.uint8)), ImageTransform(flip=True, dequantise=True))
    index, keys = torch.arange(50), torch.arange(50) * 2**50 - 2**55
    rows = data.augmented(index, keys)
    order = torch.randperm(50)
    assert torch.equal(data.augmented(index[order], keys[order]), rows[order])
    assert torch.equal(data.augmented(index[7:8], keys[7:8]), rows[7:8])
    assert not torch.equal(data.augmented(index, keys + 1), rows)
    with pytest.raises(ValueError, match=r"shorter|longer"):
        data.augmented(index, keys[:3])


def test_half_of_the_pictures_are_mirrored():
    pictures = ArrayPictures(RNG.integers(0, 256, (2000, 2, 3, 3), np.uint8))
    before = pictures.pixels.clone()
    data = ImageDataset(pictures, ImageTransform(flip=True))
    index = torch.arange(2000)
    plain, rows = data.gather(index), data.augmented(index, index)
    same, mirrored = ((rows == way).flatten(1).all(1) for way in (plain, plain.flip(2)))
    assert (same ^ mirrored).all()
    assert abs(int(mirrored.sum()) - 1000) < 4 * 500**0.5  # four standard deviations
    assert torch.equal(pictures.pixels, before)


def test_dequantised_pictures_are_uniform_within_their_level():
    pixels = np.full((100, 10, 10, 1), 200, np.uint8)
    data = ImageDataset(ArrayPictures(pixels), ImageTransform(dequantise=True))
    noise = data.augmented(torch.arange(100), torch.arange(100)) * 256 - 200
    assert 0 <= noise.min() < 0.001
    assert 0.999 < noise.max() <= 1
    assert abs(float(noise.mean()) - 0.5) < 4 * (1 / 12 / 10_000) ** 0.5
    assert abs(float(noise.var()) - 1 / 12) < 0.003
    both = ImageDataset(ArrayPictures(pixels), ImageTransform(flip=True, dequantise=True)).augmented(
        torch.arange(9), torch.arange(9)
    )
    assert torch.equal(both * 256 - 200, noise[:9])  # flat pictures: mirroring changes nothing, and takes no noise away


def test_transforms_that_cannot_be():
    for options in ({"threshold": 255}, {"threshold": -1}, {"threshold": 127, "dequantise": True}):
        with pytest.raises(ConfigError):
            ImageTransform(**options)


# MNIST


def test_the_protocols_digits():
    splits = read_images("mnist-10k", real("mnist.npz"), None)
    train, test = (ImageDataset(split, ImageTransform(threshold=127)) for split in splits)
    assert (len(train), len(test)) == (9000, 1000)
    with np.load(real("mnist.npz")) as arrays:
        digits, labels = arrays["x_train"][:10_000], arrays["y_train"][:10_000]
    everything = sum(data.gather(torch.arange(len(data))).sum() for data in (train, test))
    assert int(everything) == int((digits > 127).sum())  # each of the first ten thousand once
    assert train.gather(torch.tensor([5, 1])).shape == (2, 28, 28, 1)
    assert set(train.gather(torch.arange(10)).unique().tolist()) == {0.0, 1.0}
    splits = read_images("mnist-10k", real("mnist.npz"), None)
    assert (np.bincount(np.concatenate([part.labels for part in splits])) == np.bincount(labels)).all()


def test_the_official_files_are_the_same_digits(monkeypatch, tmp_path):
    monkeypatch.setattr(mnist, "_COUNTS", {"train": 7, "test": 3})
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DAPS_ROBOT_DATA", raising=False)
    arrays = {}
    (tmp_path / "data" / "mnist").mkdir(parents=True)
    for split, name, count in (("train", "train", 7), ("test", "t10k", 3)):
        pixels, labels = RNG.integers(0, 256, (count, 28, 28), np.uint8), np.arange(count, dtype=np.uint8)
        arrays |= {f"x_{split}": pixels, f"y_{split}": labels}
        (tmp_path / f"data/mnist/{name}-images-idx3-ubyte").write_bytes(
            b"\0\0\x08\x03" + np.array([count, 28, 28], ">i4").tobytes() + pixels.tobytes()
        )
        with gzip.open(tmp_path / f"data/mnist/{name}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(b"\0\0\x08\x01" + np.array([count], ">i4").tobytes() + labels.tobytes())
    np.savez_compressed(tmp_path / "mnist.npz", **arrays)
    for path in (None, tmp_path / "mnist.npz", tmp_path):
        splits = read_images("mnist", path, 28)
        for part, split in zip(splits, ("train", "test"), strict=True):
            assert np.array_equal(part.gather(torch.arange(len(part)))[..., 0], arrays[f"x_{split}"])
            assert part.labels.tolist() == arrays[f"y_{split}"].tolist()
            assert (part.shape, len(part.classes)) == ((28, 28, 1), 10)

    labels = tmp_path / "data/mnist/t10k-labels-idx1-ubyte.gz"
    for content in (
        gzip.compress(b"\0\0\x08\x01\0\0\0\x04\0\0\0\0"),
        gzip.compress(bytes(10**6)),
        labels.read_bytes()[:-9],
        b"hello",
    ):
        labels.write_bytes(content)
        with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte.gz (is not|cannot be read)"):
            read_images("mnist", tmp_path / "data" / "mnist", None)
    labels.unlink()
    with pytest.raises(DataError, match=r"neither t10k-labels-idx1-ubyte\(.gz\) nor mnist.npz"):
        read_images("mnist", tmp_path / "data" / "mnist", None)


def test_mnist_that_is_not_there(nowhere):
    with pytest.raises(DataError, match=r"mnist.npz is not in .*shelf or data.*--download"):
        locate_mnist()


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "mnist.npz")
    for path, message in (
        (tmp_path / "mnist.npz", "neither"),
        (Path("/dev/zero"), "neither"),
        (tmp_path / "x", "does not exist"),
    ):
        with pytest.raises(DataError, match=message):
            read_images("mnist", path, None)
    for dataset in ("mnist", "cifar10", "folder", "imagenet256"):
        with pytest.raises(DataError, match=r"cannot be read .File name too long.; check its permissions"):
            read_images(dataset, tmp_path / ("x" * 300), None if dataset != "folder" else 8)


@pytest.mark.parametrize("content", ["text", "npy", "other", "shape", "pickle", "truncated", "lzma", "version", "header"])
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
    elif content == "pickle":
        np.savez(path, x_train=np.array([{}, {}], object))
    elif content in ("lzma", "version", "header"):
        array = io.BytesIO()
        np.lib.format.write_array(array, np.zeros((60000, 28, 28), np.uint8), (2, 0) if content == "version" else (1, 0))
        data = array.getvalue().replace(b"{", b"(" if content == "header" else b"{", 1)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
            archive.writestr("x_train.npy", data)
        if content == "lzma":
            path.write_bytes(path.read_bytes()[:60] + b"\xff" * 40 + path.read_bytes()[100:])
    else:
        np.savez(path, x_train=np.random.default_rng(0).integers(0, 255, (100, 28, 28), np.uint8))
        path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"mnist\.npz"):
        read_images("mnist-10k", path, None)


# CIFAR-10


@pytest.fixture
def few_cifar(monkeypatch, tmp_path):
    """CIFAR-10's binary version with 4 pictures a file: its folder, and what should be read from it."""
    monkeypatch.setattr(cifar10, "_ROWS", 4)
    folder = tmp_path / "shelf" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    pixels, labels = RNG.integers(0, 256, (24, 32, 32, 3), np.uint8), RNG.integers(0, 10, 24, np.uint8)
    for i, name in enumerate((*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")):
        rows = [bytes([labels[k]]) + pixels[k].transpose(2, 0, 1).tobytes() for k in range(4 * i, 4 * i + 4)]
        (folder / name).write_bytes(b"".join(rows))
    return folder, pixels, labels


def test_cifar10_from_the_folder_and_from_the_archive(few_cifar, monkeypatch, tmp_path):
    folder, pixels, labels = few_cifar
    archive = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, "cifar-10-batches-bin")
    monkeypatch.setattr(cifar10, "SHA256", file_sha256(archive))
    monkeypatch.setenv("DAPS_ROBOT_DATA", str(tmp_path / "shelf"))
    (tmp_path / "shelf" / "cifar10_jpeg.h5").write_text("not looked at: lossy")
    for path in (folder, folder.parent, archive, None):
        splits = read_images("cifar10", path, None)
        assert "binary version" in splits.train.where
        for part, first, end in zip(splits, (0, 20), (20, 24), strict=True):
            assert np.array_equal(part.gather(torch.arange(len(part))), pixels[first:end])
            assert np.array_equal(part.labels, labels[first:end])
            assert part.classes[3] == "cat"


def test_cifar10_that_is_damaged_or_pickled(few_cifar, tmp_path):
    folder, *_ = few_cifar
    batch = folder / "data_batch_3.bin"
    whole = batch.read_bytes()
    for content, message in (
        (whole[:-1], "not of 12292 bytes"),
        (whole + b"1", "not of 12292"),
        (b"\x0a" + whole[1:], "label 10"),
    ):
        batch.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_images("cifar10", folder, None)
    for make in (batch.mkdir, lambda: batch.symlink_to(batch.name), lambda: os.mkfifo(batch)):
        batch.rmdir() if batch.is_dir() else batch.unlink()
        make()
        with pytest.raises(DataError, match=r"data_batch_3.bin is missing, no file"):
            read_images("cifar10", folder, None)
    batch.unlink()
    with pytest.raises(DataError, match=r"data_batch_3.bin is missing.*download https://"):
        read_images("cifar10", folder, None)
    python = tmp_path / "cifar-10-batches-py"
    python.mkdir()
    (python / "data_batch_1").write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(gzip.compress(b"hello"))
    for path in (python, python / "data_batch_1", tmp_path / "cifar-10-python.tar.gz"):
        with pytest.raises(DataError, match=r"is not CIFAR|is missing.*unpickling runs code"):
            read_images("cifar10", path, None)
    with pytest.raises(DataError, match=r"none does not exist.*unpickling runs code"):
        read_images("cifar10", tmp_path / "none", None)


def test_cifar10_from_jpegs(monkeypatch, tmp_path):
    monkeypatch.setattr(cifar10, "_ROWS", 10)
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (9, 9, 9)).save(buffer, "JPEG")
    one = np.frombuffer(buffer.getvalue(), np.uint8)
    path = tmp_path / "cifar10_jpeg.h5"

    def write(**labels):
        with h5py.File(path, "w") as file:
            for group, count in (("train", 50), ("test", 10)):
                file[f"{group}/jpeg"], file[f"{group}/offset"] = np.tile(one, count), np.arange(count + 1) * len(one)
                file[f"{group}/label"] = labels.get(group, np.arange(count) % 10)

    write()
    splits = read_images("cifar10", tmp_path, None)
    assert (len(splits.train), splits.train.shape, splits.train.classes[0]) == (50, (32, 32, 3), "airplane")
    assert "JPEG: lossy" in splits.valid.where
    with pytest.raises(DataError, match="50 pictures of 10 classes; CIFAR-10 has 49"):
        cifar10._decoded(path, "train", 49)
    write(test=np.arange(10) % 9)
    with pytest.raises(DataError, match="10 pictures of 9 classes"):
        read_images("cifar10", path, None)
    with h5py.File(path, "a") as file:
        del file["train/label"]
    with pytest.raises(DataError, match="50 pictures of 0 classes"):
        read_images("cifar10", path, None)
    write()
    with h5py.File(path, "a") as file:
        file["train/jpeg"][: len(one)] = 0
    with pytest.raises(DataError, match="train: picture 0 is not a JPEG") as caught:
        read_images("cifar10", path, None)
    assert "--skip-damaged" not in str(caught.value)


def test_downloads_happen_only_when_asked_for(nowhere, monkeypatch):
    asked = []
    for module in (mnist, cifar10):
        monkeypatch.setattr(module, "download", lambda url, path, sha256, size: asked.append((url, path)))
    for name in ("mnist", "cifar10"):
        with pytest.raises(DataError, match="--download"):
            read_images(name, None, None)
        assert asked == []
    (nowhere / "shelf" / "cifar10_jpeg.h5").write_text("lossy, so not what a download is for")
    for name, url, file in (("mnist", mnist.URL, "mnist.npz"), ("cifar10", cifar10.URL, "cifar-10-binary.tar.gz")):
        with pytest.raises(DataError, match=file):  # nothing came
            read_images(name, None, None, download=True)
        assert asked.pop() == (url, Path("data") / file)


# ImageNet and folders


def save(path, level=0, size=(16, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, level, level)).save(path)


def first_values(pictures):
    return pictures.gather(torch.arange(len(pictures)))[:, 0, 0, 0].tolist()


def test_every_twentieth_picture_of_a_folder_is_held_out(tmp_path):
    for i in range(41):
        save(tmp_path / f"{i:03}.png", i)
    splits = read_images("folder", tmp_path, 12)
    assert first_values(splits.valid) == [19, 39]
    assert first_values(splits.train) == [i for i in range(41) if i not in (19, 39)]
    for i in range(3, 41):
        (tmp_path / f"{i:03}.png").unlink()
    splits = read_images("folder", tmp_path, 8)
    assert (first_values(splits.train), first_values(splits.valid), splits.train.shape) == ([0, 1], [2], (8, 8, 3))
    for i in (1, 2):
        (tmp_path / f"{i:03}.png").unlink()
    with pytest.raises(DataError, match="one picture"):
        read_images("folder", tmp_path, 8)


def test_train_and_val_folders_share_their_classes(tmp_path):
    for i, name in enumerate(("train/ant/0.png", "train/bee/1.png", "train/cow/2.png", "val/cow/3.png")):
        save(tmp_path / name, i)
    for dataset in ("imagenet256", "folder"):
        splits = read_images(dataset, tmp_path, 12)
        assert (first_values(splits.train), first_values(splits.valid)) == ([0, 1, 2], [3])
        assert (splits.train.labels.tolist(), splits.valid.labels.tolist()) == ([0, 1, 2], [2])
    (tmp_path / "val" / "cow").rename(tmp_path / "val" / "dog")
    with pytest.raises(DataError, match="val: 'dog' is no class"):
        read_images("imagenet256", tmp_path, 12)


@pytest.mark.parametrize("name", ["{split}/shard-{i}.tar", "imagenet-{split}-{i}.tar"])
def test_imagenet_from_tar_shards(name, tmp_path):
    save(tmp_path / "one.png")
    for split, shards in (("train", 2), ("val", 1)):
        for i in range(shards):
            shard = tmp_path / "set" / name.format(split=split, i=i)
            shard.parent.mkdir(parents=True, exist_ok=True)
            with tarfile.open(shard, "w") as tar:
                for label in ("a", "b", "c")[: 3 - i]:
                    tar.add(tmp_path / "one.png", f"{label}/{i}.png")
    splits = read_images("imagenet256", tmp_path / "set", 12)
    assert (len(splits.train), splits.train.labels.tolist(), splits.valid.labels.tolist()) == (5, [0, 1, 2, 0, 1], [0, 1, 2])
    (tmp_path / "set" / "wds-trainval.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"wds-trainval.tar (has 'train' and 'val' in its name|lies beside)"):
        read_images("imagenet256", tmp_path / "set", 12)
    (tmp_path / "set" / "wds-trainval.tar").unlink()
    for place in ("a.png", "val/b/a.png"):
        save(tmp_path / "set" / place)
        with pytest.raises(DataError, match=r"holds tar shards|a.png lies beside"):
            read_images("imagenet256", tmp_path / "set", 12)
        with pytest.raises(DataError, match=r"holds tar shards|a.png lies beside"):
            read_images("folder", tmp_path / "set", 12)
        (tmp_path / "set" / place).unlink()
    for shard in (tmp_path / "set").rglob("*val*/*.tar" if "/" in name else "*val*.tar"):
        shard.unlink()
    if "/" not in name:
        with pytest.raises(DataError, match="2 have 'train' and 0 'val'"):
            read_images("imagenet256", tmp_path / "set", 12)


def test_imagenets_pictures_have_classes(tmp_path):
    for name in ("train/0.png", "val/ant/0.png"):
        save(tmp_path / name)
    with pytest.raises(DataError, match="train: the pictures have no classes"):
        read_images("imagenet256", tmp_path, 12)
    assert read_images("folder", tmp_path, 12).train.labels is None


def test_imagenets_sample():
    path = real("imagenet_sample_256_jpeg.h5")
    splits = read_images("imagenet256", path, None)
    assert (len(splits.train), len(splits.valid), splits.train.shape) == (512, 128, (256, 256, 3))
    assert (len(splits.train.classes), splits.valid.labels[0]) == (1000, 17)
    pixels = splits.valid.gather(torch.tensor([127, 0]))
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (2, 256, 256, 3))
    small = read_images("imagenet256", path, 64).valid.gather(torch.tensor([127, 0]))
    means = pixels.unflatten(1, (64, 4)).unflatten(3, (64, 4)).float().mean((2, 4))
    assert (small - means).abs().mean() < 6  # about what averaging gives


def test_damaged_pictures_are_counted_and_named(tmp_path, capsys):
    for i in range(25):
        save(tmp_path / f"{i:03}.png", i)
    (tmp_path / "003.png").write_bytes((tmp_path / "003.png").read_bytes()[:-30])
    save(tmp_path / "007.png", size=(11, 40))
    splits = read_images("folder", tmp_path, 12)
    with pytest.raises(DataError, match=r"003.png cannot be decoded"):
        first_values(splits.train)
    splits = read_images("folder", tmp_path, 12, skip_damaged=True)
    assert first_values(splits.train) + first_values(splits.valid) == [*(set(range(25)) - {3, 7, 21}), 21]
    said = capsys.readouterr().out
    assert all(text in said for text in ("left out 2 of 25", "003.png cannot be decoded", "007.png is 11×40 pixels"))
    assert "--skip-damaged" not in said
    with pytest.raises(DataError, match="not one of 25 pictures can be used"):
        read_images("folder", tmp_path, 50, skip_damaged=True)
    assert len(read_images("folder", tmp_path, 50, enlarge=True, skip_damaged=True).train) == 23


def test_names_and_options_that_do_not_go_together(nowhere):
    for arguments, options, message in (
        (("imagenet", None, 256), {}, "Did you mean 'imagenet256'"),
        (("mnist", None, 32), {}, "28×28 pixels: leave out --size 32"),
        (("mnist", None, 0), {}, "leave out --size 0"),
        (("folder", nowhere, 0), {}, "from 1 to 4096"),
        (("imagenet256", nowhere, 0), {}, "from 1 to 4096"),
        (("mnist-10k", None, None), {"alpha": "white"}, "leave out --alpha"),
        (("cifar10", None, None), {"enlarge": True, "skip_damaged": True}, "leave out --enlarge and --skip-damaged"),
        (("cifar10", None, 64), {}, "32×32 pixels"),
        (("folder", None, 64), {}, "--data, where it is, and --size"),
        (("folder", nowhere, None), {}, "--data, where it is, and --size"),
        (("imagenet256", None, None), {"download": True}, "cannot be downloaded: leave out --download"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_images(*arguments, **options)
    for arguments, message in (
        (("imagenet256", None, None), "no folder imagenet256 in .*shelf or data"),
        (("imagenet256", nowhere, None), "must hold folders 'train' and 'val'"),
        (("folder", nowhere / "none", 8), "not a folder"),
        (("imagenet256", nowhere / "none.h5", 8), "none.h5 does not exist"),
    ):
        with pytest.raises(DataError, match=message):
            read_images(*arguments)
    assert images.IMAGE_DATASETS[0] == "mnist"
