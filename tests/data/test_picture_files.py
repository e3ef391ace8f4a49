"""Pictures in HDF5, folders and tar shards: the same pixels from all three, and files that are damaged or hostile."""

import io
import os
import pickle
import tarfile

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from daps_robot.data.decode import PictureDecoder
from daps_robot.data.picture_files import FolderPictures, JpegPictures
from daps_robot.data.tar_files import TarPictures
from daps_robot.errors import DataError

DECODER = PictureDecoder(8)


def jpeg(seed):
    """A JPEG of noise, 8×8 (seed even) or 12×8."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8 + 4 * (seed % 2), 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


JPEGS = [jpeg(i) for i in range(6)]
PIXELS = np.stack([DECODER(data) for data in JPEGS])
NAMES = ["ant/0.jpg", "ant/1.JPEG", "bee/2.jpg", "cow/3.jpg", "cow/4.jpg", "cow/5.jpg"]
LABELS = [0, 0, 1, 2, 2, 2]


def write_h5(path, group="train", attribute=None, **changes):
    ends = np.cumsum([0, *map(len, JPEGS)])
    arrays = {"jpeg": np.frombuffer(b"".join(JPEGS), np.uint8), "offset": ends, "label": np.array(LABELS, np.int16)} | changes
    with h5py.File(path, "a") as file:
        for name, array in arrays.items():
            if array is not None:
                file[f"{group}/{name}"] = array
        if attribute:
            file.attrs["classes"] = attribute
    return path


def write_folder(folder, names=NAMES):
    for name, data in zip(names, JPEGS, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_tar(path, members, **options):
    """Members are (name, bytes), or ready-made `TarInfo`s."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for member in members:
            info, data = (member, b"") if isinstance(member, tarfile.TarInfo) else (tarfile.TarInfo(member[0]), member[1])
            info.size = len(data) or info.size
            tar.addfile(info, io.BytesIO(data))
    return path


def write_shards(folder, extension=".cls"):
    """Two shards in WebDataset's convention; the class stands before its picture or behind it."""
    for number, part in enumerate((range(4), range(4, 6))):
        members = [
            [(f"./{i:05}.jpg", JPEGS[i]), (f"./{i:05}{extension}", b"%d\n" % LABELS[i]), (f"./{i:05}.json", b"{}")] for i in part
        ]
        write_tar(
            folder / f"train-{number}.tar", [m for i, three in zip(part, members, strict=True) for m in three[:: (-1) ** i]]
        )
    return sorted(folder.glob("*.tar"))


def all_sources(tmp_path):
    yield JpegPictures(write_h5(tmp_path / "set.h5", attribute="ant,bee,cow"), "train", DECODER)
    yield FolderPictures(write_folder(tmp_path / "folder"), DECODER)
    yield TarPictures(write_shards(tmp_path / "numbered"), DECODER, ("ant", "bee", "cow"))
    yield TarPictures([write_tar(tmp_path / "named" / "a.tar", zip(NAMES, JPEGS, strict=True))], DECODER)
    long = [f"{'x' * 200}é/{name.split('/')[1]}" for name in NAMES]
    yield TarPictures([write_tar(tmp_path / "pax" / "a.tar", zip(long, JPEGS, strict=True), format=tarfile.PAX_FORMAT)], DECODER)
    yield TarPictures([write_tar(tmp_path / "gnu" / "a.tar", zip(long, JPEGS, strict=True), format=tarfile.GNU_FORMAT)], DECODER)


def test_the_same_pictures_from_everywhere(tmp_path):
    order = torch.tensor([5, 0, 3, 3])
    for number, source in enumerate(all_sources(tmp_path)):
        again = pickle.loads(pickle.dumps(source))
        assert (len(source), source.shape) == (6, (8, 8, 3))
        assert np.array_equal(again.gather(order), PIXELS[order])
        assert source.gather(order[:0]).shape == (0, 8, 8, 3)
        if number < 4:
            assert (source.labels.tolist(), source.classes) == (LABELS, ("ant", "bee", "cow"))
        loader = DataLoader(
            range(6), batch_size=3, num_workers=1, collate_fn=lambda i, source=source: source.gather(torch.tensor(i))
        )
        assert np.array_equal(torch.cat(list(loader)), PIXELS)


def test_pictures_without_classes(tmp_path):
    flat = FolderPictures(write_folder(tmp_path / "flat", ["a/b/0.jpg", *(f"{i}.jpg" for i in range(1, 6))]), DECODER)
    assert (flat.labels, flat.classes) == (None, ())
    assert np.array_equal(flat.gather(torch.arange(6)), PIXELS[[1, 2, 3, 4, 5, 0]])  # in the order of their paths
    shards = TarPictures(write_shards(tmp_path, extension=".txt"), DECODER)
    assert (shards.labels, shards.classes, len(shards)) == (None, (), 6)
    assert JpegPictures(write_h5(tmp_path / "set.h5", label=None), "train", DECODER).labels is None


def test_classes_without_names_are_numbers(tmp_path):
    assert TarPictures(write_shards(tmp_path), DECODER).classes == ("0", "1", "2")
    assert JpegPictures(write_h5(tmp_path / "set.h5"), "train", DECODER).classes == ("0", "1", "2")


def test_classes_that_were_not_expected(tmp_path):
    for make in (
        lambda: FolderPictures(write_folder(tmp_path / "folder"), DECODER, ("ant", "bee")),
        lambda: TarPictures([write_tar(tmp_path / "a.tar", zip(NAMES, JPEGS, strict=True))], DECODER, ("ant", "bee")),
    ):
        with pytest.raises(DataError, match=r"'cow' is no class. The classes are: ant, bee"):
            make()
    for make in (
        lambda: TarPictures(write_shards(tmp_path / "shards"), DECODER, ("ant", "bee")),
        lambda: JpegPictures(write_h5(tmp_path / "set.h5"), "train", DECODER, ("ant", "bee")),
    ):
        with pytest.raises(DataError, match="picture 3 has label 2, but there are 2 classes"):
            make()


def test_damage_found_late_is_named(tmp_path):
    broken = [*JPEGS[:4], JPEGS[4][:-300], JPEGS[5]]
    folder = write_folder(tmp_path / "folder")
    (folder / NAMES[4]).write_bytes(broken[4])
    arrays = {"jpeg": np.frombuffer(b"".join(broken), np.uint8), "offset": np.cumsum([0, *map(len, broken)])}
    for source, name in (
        (FolderPictures(folder, DECODER), "folder/cow/4.jpg"),
        (TarPictures([write_tar(tmp_path / "a.tar", zip(NAMES, broken, strict=True))], DECODER), "a.tar: cow/4.jpg"),
        (JpegPictures(write_h5(tmp_path / "set.h5", **arrays), "train", DECODER), "set.h5: train: picture 4"),
    ):
        assert np.array_equal(source.gather(torch.tensor([3, 5])), PIXELS[[3, 5]])
        with pytest.raises(DataError, match=f"{name} cannot be decoded.*, or give --skip-damaged$"):
            source.gather(torch.arange(6))


def test_files_that_vanish_are_named(tmp_path):
    for source, path in (
        (FolderPictures(write_folder(tmp_path / "folder"), DECODER), tmp_path / "folder" / NAMES[0]),
        (TarPictures([write_tar(tmp_path / "a.tar", zip(NAMES, JPEGS, strict=True))], DECODER), tmp_path / "a.tar"),
        (JpegPictures(write_h5(tmp_path / "set.h5"), "train", DECODER), tmp_path / "set.h5"),
    ):
        path.unlink()
        with pytest.raises(DataError, match=path.name):
            source.gather(torch.tensor([0]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"jpeg": None}, "no 'jpeg'"),
        ({"offset": None}, "no 'offset'"),
        ({"jpeg": np.zeros(9000, np.int32)}, "do not belong together"),
        ({"jpeg": np.zeros((90, 100), np.uint8)}, "list of integers"),
        ({"offset": np.linspace(0, 9000, 7)}, "list of integers"),
        ({"offset": np.array([0])}, "do not belong together"),
        ({"label": np.zeros(5, int)}, "do not belong together"),
        ({"label": np.array([0, 0, 0, 0, -1, 0])}, "picture 4 has label -1"),
        ({"label": np.array([0, 0, 0, 0, 2**60, 0])}, "picture 4 has label"),
        ({"offset": np.array([0, 600, 500, 700, 800, 900, 1000])}, "picture 1 goes from byte 600 to 500"),
        ({"offset": np.array([0, 100, 200, 300, 400, 500, 10**9])}, "picture 5 goes from"),
        ({"offset": np.array([0, 100, 200, 300, 400, 500, 2**63], np.uint64)}, "picture 5 goes from"),
        ({"offset": np.array([-9, 100, 200, 300, 400, 500, 600])}, "picture 0 goes from byte -9"),
        ({"offset": np.array([0, 0, 200, 300, 400, 500, 600])}, "picture 0 goes from byte 0 to 0"),
        ({"jpeg": h5py.SoftLink("/elsewhere")}, "is a link"),
        ({"offset": h5py.ExternalLink("other.h5", "/offset")}, "is a link"),
    ],
)
def test_hdf5_that_is_refused(changes, message, tmp_path):
    with pytest.raises(DataError, match=message):
        JpegPictures(write_h5(tmp_path / "set.h5", **changes), "train", DECODER)


@pytest.mark.parametrize(("name", "size", "said"), [("jpeg", 2**50, "1073741824 MiB"), ("offset", 10**6 + 1, "1000000 pictures")])
def test_hdf5_that_declares_more_than_it_holds(name, size, said, tmp_path):
    path = write_h5(tmp_path / "set.h5", **{name: None})
    with h5py.File(path, "a") as file:
        file.create_dataset(f"train/{name}", (size,), np.uint8, chunks=(2**16,))
    with pytest.raises(DataError, match=f"declares.*{said}.*exhaust memory"):
        JpegPictures(path, "train", DECODER)
    with pytest.raises(DataError, match="no group 'val'"):
        JpegPictures(path, "val", DECODER)


def test_folders_that_are_refused(tmp_path):
    for path, message in ((tmp_path / "none", "not a folder"), (tmp_path, "holds no pictures")):
        with pytest.raises(DataError, match=message):
            FolderPictures(path, DECODER)
    (tmp_path / "secret.jpg").write_bytes(JPEGS[0])
    folder = write_folder(tmp_path / "folder")
    (folder / "ant" / "again.jpg").symlink_to(folder / NAMES[0])
    (folder / "ant" / "notes.txt").symlink_to(tmp_path / "secret.jpg")
    assert len(FolderPictures(folder, DECODER)) == 7  # links within, and what is no picture, do no harm
    for name, target in (("dog", tmp_path), ("ant/up", ".."), ("ant/x.jpg", "../../secret.jpg"), ("ant/x.png", "/dev/zero")):
        (folder / name).symlink_to(target)
        with pytest.raises(DataError, match=f"{name} is a link to"):
            FolderPictures(folder, DECODER)
        (folder / name).unlink()
    for target, told in (("loop.png", "loop.png"), ("/a\n\x1b", r"'/a\\n\\x1b'")):
        (folder / "loop.png").symlink_to(target)
        with pytest.raises(DataError, match=rf"loop\.png is a link to {told};"):
            FolderPictures(folder, DECODER)
        (folder / "loop.png").unlink()
    os.mkfifo(folder / "ant" / "pipe.jpg")
    with pytest.raises(DataError, match=r"pipe.jpg has a picture's name, but is not a file"):
        FolderPictures(folder, DECODER)


def test_names_that_would_upset_a_terminal_are_spelt_out(tmp_path):
    strange = "a\n\x1b[2J\udcff.jpg"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / strange).write_bytes(b"no picture")
    write_tar(tmp_path / "a.tar", [("a\n\x1b[2J.jpg", b"no picture")])
    for source in (FolderPictures(tmp_path / "folder", DECODER), TarPictures([tmp_path / "a.tar"], DECODER)):
        with pytest.raises(DataError, match=r"a\\n\\x1b\[2J.*is not a JPEG") as caught:
            source.gather(torch.tensor([0]))
        assert str(caught.value).isprintable()
    assert FolderPictures(tmp_path / "folder", DECODER).path(0).read_bytes() == b"no picture"


def test_pictures_of_other_formats_are_counted(tmp_path, capsys):
    folder = write_folder(tmp_path / "folder")
    assert len(FolderPictures(folder, DECODER)) == 6 and capsys.readouterr().out == ""
    for name in ("x.tif", "ant/y.HEIC", "notes.txt"):
        (folder / name).write_bytes(b"")
    source = FolderPictures(folder, DECODER)
    assert (len(source), source.classes) == (6, ("ant", "bee", "cow"))
    said = capsys.readouterr().out
    assert said.startswith("passed over 2 files") and said.count("\n") == 1


def special(name, **attributes):
    info = tarfile.TarInfo(name)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (special("x.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "x.jpg is a link"),
        (special("x.jpg", type=tarfile.LNKTYPE, linkname="0.jpg"), "x.jpg is a link"),
        (special("x.jpg", type=tarfile.FIFOTYPE), "x.jpg is a link or another special member"),
        (("../x.jpg", JPEGS[0]), "'../x.jpg' lies outside"),
        (("/x.jpg", JPEGS[0]), "'/x.jpg' lies outside"),
        (("x.jpg", b""), "x.jpg has 0 bytes"),
        (("0.cls", b"-1"), "0.cls says b'-1'"),
        (("0.cls", b"9" * 20), "0.cls says"),
        (("0.cls", b""), "0.cls says b''"),
    ],
)
def test_tar_members_that_are_refused(member, message, tmp_path):
    with pytest.raises(DataError, match=f"a.tar: {message}"):
        TarPictures([write_tar(tmp_path / "a.tar", [("0.jpg", JPEGS[0]), member, ("1.jpg", JPEGS[1])])], DECODER)


def test_pictures_without_a_class_beside_others_that_have_one(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("0.jpg", JPEGS[0]), ("0.cls", b"0"), ("1.jpg", JPEGS[1])])
    with pytest.raises(DataError, match=r"a.tar: 1.jpg has no class \(.cls\) beside it"):
        TarPictures([path], DECODER)


def test_tar_shards_that_end_early_or_are_damaged(tmp_path):
    path = write_tar(tmp_path / "a.tar", zip(NAMES, JPEGS, strict=True))
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    for end in (0, 100, last.offset, last.offset + 100, last.offset_data, last.offset_data + 100):
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match=r"a.tar"):
            TarPictures([path], DECODER)
    for start in (0, last.offset):
        path.write_bytes(whole[:start] + b"\1" * 100 + whole[start + 100 :])
        with pytest.raises(DataError, match=r"a.tar"):
            TarPictures([path], DECODER)


def test_tar_shards_that_go_on_behind_their_end(tmp_path):
    path = write_tar(tmp_path / "a.tar", zip(NAMES, JPEGS, strict=True))
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        second = tar.getmembers()[1].offset
    for content in (whole + whole, whole[:second] + bytes(1024) + whole[second:], whole + b"\1"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a.tar goes on behind its end at byte \d+"):
            TarPictures([path], DECODER)
    path.write_bytes(whole + bytes(99_999))
    assert len(TarPictures([path], DECODER)) == 6


@pytest.mark.parametrize("kind", ["x", "L", "0"])
@pytest.mark.parametrize("size", [-512, -1024, 2**40])
def test_tar_headers_with_absurd_sizes(kind, size, tmp_path):
    """A size below zero would send tarfile back, to read the same header for ever."""
    header = special("x.txt", type=kind.encode()).tobuf(tarfile.GNU_FORMAT)
    number = bytes([0x80 if size > 0 else 0xFF]) + (size % 2**88).to_bytes(11, "big")
    fields = header[:124] + number + header[136:148] + b" " * 8 + header[156:512]
    header = fields[:148] + b"%06o\0 " % sum(fields) + fields[156:]
    path = write_tar(tmp_path / "a.tar", [("0.jpg", JPEGS[0])])
    end = 512 + 512 * -(-len(JPEGS[0]) // 512)
    path.write_bytes(path.read_bytes()[:end] + header + bytes(10240))
    with pytest.raises(DataError, match=r"a.tar"):
        TarPictures([path], DECODER)


def test_what_is_no_plain_tar(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("x"))
    with pytest.raises(DataError, match=r"compressed.*gzip -d"):
        TarPictures([tmp_path / "a.tar"], DECODER)
    (tmp_path / "b.tar").write_bytes(bytes(range(256)) * 40)
    with pytest.raises(DataError, match=r"b.tar is not a tar file, or damaged"):
        TarPictures([tmp_path / "b.tar"], DECODER)
    with pytest.raises(DataError, match="hold no pictures"):
        TarPictures([write_tar(tmp_path / "c.tar", [("readme.txt", b"hello")])], DECODER)
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(DataError, match=r"pipe.tar is not a file"):
        TarPictures([tmp_path / "pipe.tar"], DECODER)
    with pytest.raises(DataError, match=r"none.tar"):
        TarPictures([tmp_path / "none.tar"], DECODER)
