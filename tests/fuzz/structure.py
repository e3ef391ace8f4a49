"""Changes that keep a file's format whole, and so reach deeper into a reader than damaged bytes do."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np
import torch

from .damage import OUTSIDE, WEIRD, changed_tree, damage, files_of

SHAPES = (
    (),
    (0,),
    (1,),
    (3,),
    (13,),
    (20, 7),
    (7, 20),
    (20, 0),
    (0, 7),
    (20, 7, 1),
    (2**20, 7),
    (2**40,),
    (2**32, 2**32),
    (2**62, 4),
)
DTYPES = ("f2", "f4", "f8", ">f4", "g", "i1", "u1", "i8", "u8", ">i4", "?", "c8", "S8", "S0", "V16", "O", "U3", "M8[s]")


# -- HDF5 --------------------------------------------------------------------------------------------------------------------


def change_hdf5(rng: Random, folder: Path) -> None:
    """Attributes, links, groups and data sets of an HDF5 file."""
    path = rng.choice(files_of(folder, "*.h*5"))
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        for _ in range(rng.choice((1, 1, 2))):
            name = rng.choice(names)
            if name in file:
                try:
                    rng.choice((_attribute, _attribute, _link, _data, _data, _data, _values, _move))(rng, file, name)
                except Exception:
                    continue  # h5py will not write it: nothing to be read either


def _attribute(rng: Random, file: h5py.File, name: str) -> None:
    of = file[rng.choice((name, name.split("/")[0], "/"))]
    key = rng.choice([*of.attrs, "num_samples", "env_args", "seed"])
    old = of.attrs.get(key)
    if isinstance(old, str) and rng.random() < 0.7:
        try:
            of.attrs[key] = json.dumps(changed_tree(rng, json.loads(old)))
            return
        except ValueError:
            pass
    kind = rng.choice(("delete", "weird", "array", "empty", "text"))
    if kind == "delete" and key in of.attrs:
        del of.attrs[key]
    elif kind == "array":
        of.attrs[key] = np.zeros(rng.choice(((0,), (2,), (3, 3))), rng.choice(("f4", "i8", "S3", "?")))
    elif kind == "empty":
        of.attrs[key] = h5py.Empty("f")
    elif kind == "text":
        of.attrs[key] = np.bytes_(rng.randbytes(20).replace(b"\0", b"x"))
    else:
        value = rng.choice(WEIRD)
        of.attrs[key] = value if isinstance(value, str | int | float) else json.dumps(value)


def _link(rng: Random, file: h5py.File, name: str) -> None:
    targets = [
        h5py.SoftLink("/" + name),
        h5py.SoftLink(rng.choice(("/", "/data", "/data/demo_0", "/nowhere", "."))),
        h5py.ExternalLink(rng.choice((OUTSIDE, "other.hdf5", file.filename)), "/data"),
        file,
        file[name.split("/")[0]],
        np.dtype("f4"),
    ]
    target = rng.choice(targets)
    if rng.random() < 0.7:
        del file[name]
    else:
        name = f"{name}/{rng.choice(('obs', 'demo_99', 'x'))}"
    file[name] = target


def _move(rng: Random, file: h5py.File, name: str) -> None:
    other = rng.choice(("data/demo_7", "data/demo_" + "9" * 5000, "data/demo_٣", "x", "data/\x1b[2J", "mask/train", name + "x"))
    file.move(name, other) if rng.random() < 0.7 else file.copy(name, other)


def _values(rng: Random, file: h5py.File, name: str) -> None:
    """Numbers that no sensor gives."""
    dataset = file[name]
    own = isinstance(dataset, h5py.Dataset) and not dataset.external and not dataset.is_virtual
    if own and dataset.size and dataset.dtype.kind in "fiu":
        index = tuple(rng.randrange(n) for n in dataset.shape)
        dataset[index] = rng.choice(
            (0, 1, 255, 3e38, -3e38, 1e-45, np.nan, np.inf) if dataset.dtype.kind == "f" else (0, 1, 255, 127)
        )


def _data(rng: Random, file: h5py.File, name: str) -> None:
    """Another type, shape, storage or place of the values."""
    old = file[name]
    shape = rng.choice((rng.choice(SHAPES), getattr(old, "shape", (3,))))
    dtype: Any = rng.choice((rng.choice(DTYPES), getattr(old, "dtype", "f4")))
    if rng.random() < 0.2:
        dtype = rng.choice(
            (
                h5py.string_dtype(),
                h5py.vlen_dtype("f4"),
                h5py.enum_dtype({"a": 0, "b": 1}),
                h5py.ref_dtype,
                np.dtype([("a", "f4", (1000, 1000)), ("b", "S100")]),
                np.dtype(("f4", (7,))),
            )
        )
    del file[name]
    if rng.random() < 0.1:
        file.create_group(name)
        return
    more: dict[str, Any] = {}
    how = rng.choice(("plain", "plain", "gzip", "chunks", "external", "virtual", "fill", "filters"))
    if how == "gzip":
        more = {"compression": "gzip", "chunks": tuple(min(n or 1, 2**16) for n in shape) or None}
    elif how == "chunks":  # larger than the data themselves
        more = {
            "maxshape": (None,) * len(shape),
            "chunks": tuple(rng.choice((1, 2**10, 2**14)) for _ in shape),
            "compression": "gzip",
        }
    elif how == "external":
        more = {"external": [(rng.choice((OUTSIDE, "values.bin")), 0, h5py.h5f.UNLIMITED)]}
    elif how == "fill":
        more = {"fillvalue": rng.choice((np.nan, np.inf, 1, -1))}
    elif how == "filters":
        more = {"scaleoffset": 2, "shuffle": True, "fletcher32": True, "chunks": True}
    if how == "virtual":
        layout = h5py.VirtualLayout(shape, dtype)
        layout[...] = h5py.VirtualSource(rng.choice((".", OUTSIDE, "other.h5")), "/data/demo_0/actions", shape)
        file.create_virtual_dataset(name, layout)
        return
    made = file.create_dataset(name, shape, dtype, **more)
    if made.external:
        return  # to write values would be to write into the file that it names
    if made.size and made.nbytes < 2**20 and made.dtype.kind in "fiu" and rng.random() < 0.7:
        made[...] = np.random.default_rng(rng.randrange(99)).random(shape) * 2
    elif how == "chunks" and made.size:
        made[(0,) * made.ndim] = 1  # so that one chunk is really there


# -- arrays ------------------------------------------------------------------------------------------------------------------


def change_npz(rng: Random, folder: Path) -> None:
    """Headers, types, shapes and packing of the arrays in an .npz file."""
    path = rng.choice(files_of(folder, "*.npz"))
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    name = rng.choice(list(members))
    how = rng.choice(("header", "header", "header", "array", "array", "drop", "rename", "twice", "damage"))
    if how == "header":
        members[name] = _npy_header(rng, members[name])
    elif how == "array":
        array: Any = np.zeros(rng.choice([s for s in SHAPES if np.prod(s, dtype=float) < 1e5]), rng.choice(DTYPES))
        stream = io.BytesIO()
        np.save(stream, array, allow_pickle=True)
        members[name] = stream.getvalue()
    elif how in ("drop", "rename"):
        kept = members.pop(name)
        if how == "rename":
            members[rng.choice((name + "x", "../" + name, "/" + name, name.upper(), name * 20))] = kept
    elif how == "damage":
        members[name] = damage(rng, members[name])
    packing = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(path, "w", packing) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
            if how == "twice" and member == name:
                archive.writestr(member, damage(rng, data))


def _npy_header(rng: Random, data: bytes) -> bytes:
    stream = io.BytesIO(data)
    np.lib.format.read_magic(stream)
    shape, order, dtype = np.lib.format.read_array_header_1_0(stream)
    rest = stream.read()
    descr: Any = rng.choice(
        (dtype.str, rng.choice(DTYPES), "|O", "<U999999999", "<U2147483647", [("a", "<f4")], "x", ("<f4", (2,)))
    )
    found: Any = {
        "descr": descr,
        "fortran_order": rng.choice((order, not order, 3, None)),
        "shape": rng.choice((shape, rng.choice(SHAPES), (-1,), (-5, 36), tuple(n + 1 for n in shape), (2**70,), "x", [3])),
    }
    text = (repr(found) if rng.random() < 0.9 else "{" * 5000).encode("latin1") + b"\n"
    version = rng.choice(((1, 0), (1, 0), (2, 0), (3, 0), (9, 9)))
    size = struct.pack("<H" if version == (1, 0) else "<I", rng.choice((len(text), len(text), 65535)))
    return b"\x93NUMPY" + bytes(version) + size + text + rest


# -- weights -----------------------------------------------------------------------------------------------------------------


def change_safetensors(rng: Random, folder: Path) -> None:
    """The header of a safetensors file, or its tensors under a header that fits them."""
    path = rng.choice(files_of(folder, "*.safetensors"))
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + size]), data[8 + size :]
    if rng.random() < 0.4:
        tensors = [name for name in header if name != "__metadata__"]
        name, other = rng.choice(tensors), rng.choice(tensors)
        how = rng.choice(("swap", "type", "shape", "value", "drop"))
        if how == "swap":
            header[name], header[other] = header[other], header[name]
        elif how == "type":
            header[name]["dtype"] = rng.choice(("F32", "I32", "U32", "F64", "BF16", "F8_E4M3", "BOOL", "U8", "X"))
        elif how == "shape":
            header[name]["shape"] = rng.choice((header[name]["shape"][::-1], [1, *header[name]["shape"]], [0], [2**62, 4], [-1]))
        elif how == "drop":
            del header[name]
        elif len(rest) >= 4:
            at = 4 * rng.randrange(len(rest) // 4)
            rest = rest[:at] + struct.pack("<f", rng.choice((np.nan, np.inf, 3e38, 0.0))) + rest[at + 4 :]
    else:
        header = changed_tree(rng, header)
    if rng.random() < 0.5 and isinstance(header, dict):
        header.pop("__metadata__", None)  # and with it the checksum
    text = json.dumps(header).encode()
    path.write_bytes(rng.choice((len(text), len(text), size, 2**62)).to_bytes(8, "little") + text + rest)


def change_state(rng: Random, folder: Path) -> None:
    """Values of a training state, in a file that torch itself wrote."""
    path = rng.choice(files_of(folder, "*.pt"))
    state = torch.load(path, weights_only=True)
    for _ in range(rng.choice((1, 2))):
        places = [(node, key) for node, key in _state_places(state)]
        node, key = rng.choice(places)
        value = node[key]
        if isinstance(value, torch.Tensor) and rng.random() < 0.7:
            node[key] = rng.choice(
                (value.double(), value.flatten(), value[None], value.new_zeros(0), value * np.nan, value.long(), 3)
            )
        else:
            node[key] = rng.choice(WEIRD)
    torch.save(state, path)


def _state_places(node: Any) -> Any:
    for key in list(node) if isinstance(node, dict) else range(len(node)):
        yield node, key
        if isinstance(node[key], dict | list):
            yield from _state_places(node[key])


# -- archives and pictures ---------------------------------------------------------------------------------------------------


def change_tar(rng: Random, folder: Path) -> None:
    """Names, kinds and sizes of the members of a tar file."""
    path = rng.choice(files_of(folder, "*.tar"))
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read() if member.isreg() else b"") for member in tar.getmembers()]  # type: ignore[union-attr]
    chosen = rng.randrange(len(members))
    stream = io.BytesIO()
    with tarfile.open(
        fileobj=stream, mode="w", format=rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT))
    ) as tar:
        for i, (member, data) in enumerate(members):
            if i == chosen:
                how = rng.choice(("name", "kind", "size", "pax", "drop"))
                if how == "drop":
                    continue
                if how == "name":
                    member.name = rng.choice(
                        ("../out.jpg", OUTSIDE, "a/../b.png", "0.cls", "\x1b[2J.png", "x.png", "d/" * 40 + "x.png")
                    )
                elif how == "kind":
                    member.type = rng.choice(
                        (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
                    )
                    member.linkname = rng.choice((OUTSIDE, "x.png"))
                elif how == "pax" and tar.format == tarfile.PAX_FORMAT:
                    member.pax_headers = {
                        rng.choice(("GNU.sparse.major", "size", "GNU.sparse.map", "path", "hdrcharset")): rng.choice(
                            ("1", "99999999999", "x", "-1")
                        )
                    }
            tar.addfile(member, io.BytesIO(data) if member.isreg() else None)
    packed = bytearray(stream.getvalue())
    if rng.random() < 0.3:  # a size that lies, in a header whose checksum fits
        at = 512 * rng.randrange(max(1, len(packed) // 512 - 20))
        packed[at + 124 : at + 136] = rng.choice((b"77777777777\0", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"00000000000\0"))
        packed[at + 148 : at + 156] = b" " * 8
        packed[at + 148 : at + 156] = b"%06o\0 " % (sum(packed[at : at + 512]) % 2**18)
    path.write_bytes(bytes(packed))


def change_png(rng: Random, folder: Path) -> None:
    """A chunk of a PNG, with a checksum that fits."""
    found = files_of(folder, "*.png")
    path = rng.choice(found)
    data = path.read_bytes()
    chunks, at = [], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    i = rng.randrange(len(chunks))
    kind, body = chunks[i]
    if kind == b"IHDR" and rng.random() < 0.8:
        sides = [rng.choice((0, 1, 8, 32, 2**15, 2**31 - 1)) for _ in "wh"]
        body = struct.pack(">II5B", *sides, rng.choice((1, 8, 16)), rng.choice((0, 2, 3, 4, 6)), 0, 0, rng.choice((0, 1)))
    else:
        body = damage(rng, body)
    chunks[i] = (rng.choice((kind, kind, b"tRNS", b"acTL", b"iTXt", b"PLTE")), body)
    written = [struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks]
    path.write_bytes(data[:8] + b"".join(written))


def change_mp4(rng: Random, folder: Path) -> None:
    """A number in the headers of a film, behind the name of a box."""
    path = rng.choice(files_of(folder, "*.mp4"))
    data = bytearray(path.read_bytes())
    names = (b"stsz", b"stts", b"stsc", b"ctts", b"stco", b"elst", b"mdhd", b"mvhd", b"tkhd", b"avc1", b"avcC", b"stsd", b"trak")
    at = rng.choice([i for name in names if (i := data.find(name)) >= 0]) + 4 * rng.randrange(-1, 8)
    data[at : at + 4] = struct.pack(">I", rng.choice((0, 1, 2, 255, 2**16, 2**24, 2**31 - 1, 2**32 - 1, rng.getrandbits(32))))
    path.write_bytes(data)


# -- tables ------------------------------------------------------------------------------------------------------------------


def change_parquet(rng: Random, folder: Path) -> None:
    """Columns of a parquet file: types, lengths, nulls, names, order, packing."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    path = rng.choice(files_of(folder, "*.parquet"))
    table = parquet.ParquetFile(path).read()
    for _ in range(rng.choice((1, 1, 2))):
        i = rng.randrange(table.num_columns)
        name, column, rows = table.column_names[i], table.column(i), table.num_rows
        how = rng.choice(("type", "nulls", "lists", "drop", "twice", "rename", "rows", "value", "order", "nested"))
        try:
            if how == "type":
                kind = rng.choice((pa.float64(), pa.float16(), pa.int8(), pa.string(), pa.bool_(), pa.uint64()))
                flat = pa.array([str(v) if kind == pa.string() else 1 for v in range(rows)], kind)
                table = table.set_column(i, name, flat)
            elif how == "nulls":
                table = table.set_column(i, name, pa.array([None] * rows, column.type))
            elif how == "lists":
                ragged = [[1.0] * rng.choice((0, 1, 3, 4)) for _ in range(rows)]
                table = table.set_column(
                    i, name, pa.array(ragged, rng.choice((pa.list_(pa.float32()), pa.large_list(pa.float32()))))
                )
            elif how == "nested":
                table = table.set_column(i, name, pa.array([{"a": [[1.0]]}] * rows))
            elif how == "drop":
                table = table.remove_column(i)
            elif how == "twice":
                table = table.append_column(name, column)
            elif how == "rename":
                table = table.rename_columns(
                    [rng.choice((n + "x", "\x1b[2J", n)) if n == name else n for n in table.column_names]
                )
            elif how == "rows":
                table = rng.choice(
                    (table.slice(1), table.slice(0, 0), table.slice(0, rows - 1), pa.concat_tables([table, table]))
                )
            elif how == "order":
                table = table.take(pa.array(rng.sample(range(rows), rows)))
            elif pa.types.is_integer(column.type):
                values = column.to_pylist()
                values[rng.randrange(rows)] = rng.choice((-1, 0, 1, 2**31, 2**62, -(2**63)))
                table = table.set_column(i, name, pa.array(values, column.type))
        except (pa.ArrowException, ValueError, IndexError, OverflowError):
            continue
    dictionary, packing = rng.choice((True, False)), rng.choice(("none", "snappy", "gzip"))
    parquet.write_table(table, path, use_dictionary=dictionary, compression=packing, row_group_size=rng.choice((None, 7)))
