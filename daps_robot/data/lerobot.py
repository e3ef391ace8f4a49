"""Demonstrations in a LeRobotDataset v3 folder: the reader (`lerobot_pictures.py` has the cameras).

    meta/info.json                              fps, features (dtype and shape of every key), data_path, totals
    meta/episodes/chunk-000/file-000.parquet    a row an episode: its length, and the data file that holds it
    data/chunk-000/file-000.parquet             a row a step, many episodes one after the other
    videos/<key>/chunk-000/file-000.mp4         what cameras saw, many episodes one after the other

(Format: huggingface/lerobot, `CODEBASE_VERSION = "v3.0"`.) A folder comes from anywhere, so nothing in it is believed: paths that
lead out of it and sizes that it cannot hold are refused before memory is taken; types, shapes, episode and frame numbers must
be those that the metadata state.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from daps_robot.data.demo_checks import asked_keys, check_bytes, check_finite, rounded, split_names
from daps_robot.data.demos import DemoSet, file_sha256
from daps_robot.data.files import shown
from daps_robot.data.hdf5 import damage_named, listing, suggest
from daps_robot.data.lerobot_info import ACTION, OBSERVATION, Info, read_info, read_splits, resolve_keys
from daps_robot.data.lerobot_pictures import Recording, asked_cameras, check_memory, film_columns
from daps_robot.errors import ConfigError, DataError
from daps_robot.types import Demo

_BOOKKEEPING = {"episode_index": 1, "frame_index": 1}
_EPISODE_COLUMNS = dict.fromkeys(("episode_index", "length", "data/chunk_index", "data/file_index"), ("int",))
"""With what their types may begin."""


@dataclass(frozen=True)
class _Episodes:
    """Lengths of the episodes 0, 1, 2, …, the data file (chunk, file) of each, and all that was read of meta/episodes."""

    lengths: Int[np.ndarray, " e"]
    files: list[tuple[int, int]]
    columns: Mapping[str, np.ndarray]


def read_lerobot(
    path: Path,
    obs_keys: Sequence[str] | None,
    finite: bool = True,
    cameras: Sequence[str] = (),
    picture_size: tuple[int, int] | None = None,
) -> DemoSet:
    """`demos.read_demos` of a folder; episode i is the demonstration demo_i, and what is left out is printed.

    `obs_keys` may name any feature that is a row of numbers; None takes all of those under "observation.", beside cameras
    without `lerobot_info.ENVIRONMENT`.

    Raises:
        DataError: the folder is damaged, of an older version, or something in it does not fit.
        ConfigError: pyarrow is not installed, or PyAV for the films of `cameras`.
    """
    parquet = _import_parquet()
    info = read_info(path)
    seen = asked_cameras(info, cameras, picture_size)
    keys = resolve_keys(info, None if obs_keys is None else asked_keys(path, obs_keys, info.observations), bool(seen))
    meta = sorted((path / "meta" / "episodes").glob("*/*.parquet"))
    episodes = _read_episodes(parquet, info, meta, _EPISODE_COLUMNS | film_columns(seen))
    dims = {**_BOOKKEEPING, **{key: info.dims[key] for key in (ACTION, *keys)}}
    data = {pair: info.data_file(*pair) for pair in dict.fromkeys(episodes.files)}
    _check_files(parquet, info, episodes, data, dims)
    check_memory(info, seen, picture_size)
    tables = [_read_columns(parquet, file, dims) for file in data.values()]
    steps = {key: np.concatenate([table[key] for table in tables]) for key in dims}
    _check_order(path, steps, episodes)
    if seen:
        print(f"{path}: reading {info.frames:,} pictures each of {', '.join(seen)}", flush=True)
    recording = Recording(info, episodes.lengths, episodes.columns, list(data.values()))
    pictures = {name: recording.read(camera, picture_size or camera.size) for name, camera in seen.items()}
    demos = _cut(path, steps, episodes, keys, pictures, finite)
    there = {*keys, *(camera.key for camera in seen.values())}
    left_out = sorted(key for key in info.dtypes if key.startswith(OBSERVATION) and key not in there)
    if left_out and obs_keys is None:
        read = f"observations read: {', '.join(keys)}"
        print(f"{path}: {listing(f'{read}; left out', left_out)}", flush=True)
    train, valid = split_names(path, [demo.name for demo in demos], *read_splits(info))
    env_args = {"fps": info.fps, "robot_type": info.robot}
    films = [film for camera in seen.values() if camera.filmed for film in recording.films(camera)]
    sha256 = folder_sha256(path, [path / "meta" / "info.json", *meta, *data.values(), *films])
    sizes = {name: camera.size for name, camera in info.cameras.items()}
    return DemoSet(path, demos, train, valid, keys, env_args, sha256, None, sizes)


def folder_sha256(folder: Path, files: Sequence[Path]) -> str:
    """SHA-256 of the lines that `sha256sum` would print of some files in the folder, sorted by name, in hexadecimal."""
    lines = (f"{file_sha256(file)}  {file.relative_to(folder).as_posix()}\n" for file in sorted(set(files)))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _import_parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(f"reading a LeRobot data set needs pyarrow ({error}): pip install 'daps-robot[lerobot]'") from error
    return pyarrow.parquet


def _read_episodes(parquet: Any, info: Info, files: Sequence[Path], wanted: Mapping[str, tuple[str, ...]]) -> _Episodes:
    """All rows of meta/episodes, by episode number, which must run from 0 without a gap.

    `wanted`: columns -> what their types begin with.
    """
    if not files:
        raise DataError(f"{info.path}: no episodes in meta/episodes/chunk-*/file-*.parquet; copy or download the folder again.")
    read: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
    for file in files:
        with damage_named(file):
            opened = parquet.ParquetFile(file)
            check_bytes(file, 8 * opened.metadata.num_rows * len(wanted), file.stat().st_size)
            for name, kinds in wanted.items():
                if not str(kind := _field(opened, file, name).type).startswith(kinds):
                    meant = "whole numbers" if kinds == ("int",) else "numbers"
                    raise DataError(f"{file}: '{name}' holds {kind} instead of {meant}.")
        table = _read_columns(parquet, file, dict.fromkeys(wanted, 1), np.float64)
        for name in wanted:
            read[name].append(table[name][:, 0])
    together = {name: np.concatenate(values) for name, values in read.items()}
    order = np.argsort(together["episode_index"], kind="stable")
    columns = {name: values[order] for name, values in together.items()}
    number, lengths, chunk, part = (columns[name] for name in _EPISODE_COLUMNS)
    wrong = np.flatnonzero(number != np.arange(len(order)))
    if len(wrong):
        raise DataError(f"{info.path}: meta/episodes: episode {wrong[0]} is missing, or another is there twice.")
    if not len(order):
        raise DataError(f"{info.path}: meta/episodes has no episode in it; copy or download the folder again.")
    if len(order) != info.episodes:
        raise DataError(
            f"{info.path}: meta/info.json says {info.episodes} episodes, but meta/episodes has {len(order)}; copy it again."
        )
    if len(short_ones := np.flatnonzero(lengths < 1)):
        raise DataError(f"{info.path}: demo_{short_ones[0]} has no steps; remove this episode.")
    if chunk.min() < 0 or part.min() < 0:
        raise DataError(f"{info.path}: meta/episodes has negative file numbers; copy it again.")
    if (total := int(lengths.sum())) != info.frames:
        raise DataError(
            f"{info.path}: meta/info.json says {info.frames} frames, but the episodes add up to {total}; copy it again."
        )
    return _Episodes(lengths, list(zip(chunk.tolist(), part.tolist(), strict=True)), columns)


def _check_files(
    parquet: Any, info: Info, episodes: _Episodes, data: Mapping[tuple[int, int], Path], dims: Mapping[str, int]
) -> None:
    """Refuses, before anything is read, data files that are not there, or do not hold what the metadata state."""
    rows = dict.fromkeys(data, 0)
    for pair, length in zip(episodes.files, episodes.lengths, strict=True):
        rows[pair] += int(length)
    stored = 0
    for pair, file in data.items():
        if not file.is_file():
            raise DataError(f"{file} does not exist, but meta/episodes names it; copy or download the folder again.")
        with damage_named(file):
            opened = parquet.ParquetFile(file)
            if opened.metadata.num_rows != rows[pair]:
                raise DataError(f"{file} has {opened.metadata.num_rows} rows, but its episodes add up to {rows[pair]}.")
            for key, dim in dims.items():
                _check_column(opened, file, key, info.dtypes.get(key, "int64"), dim)
        stored += file.stat().st_size
    check_bytes(info.path, 4 * info.frames * sum(dims.values()), stored)


def _field(opened: Any, file: Path, key: str) -> Any:
    schema = opened.schema_arrow
    if schema.names.count(key) != 1:
        raise DataError(f"{file}: no column '{key}', or several. {suggest(key, sorted(map(shown, schema.names)))}")
    return schema.field(key)


def _check_column(opened: Any, file: Path, key: str, dtype: str, dim: int) -> None:
    """Type, shape and number of values of a column, as the file's own header states them."""
    import pyarrow

    kind, item = (_field(opened, file, key).type,) * 2
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind) or pyarrow.types.is_fixed_size_list(kind):
        item = kind.value_type
    elif dim != 1:
        item = None
    sized = kind.list_size if pyarrow.types.is_fixed_size_list(kind) else dim
    if item is None or sized != dim or not item.equals(pyarrow.type_for_alias(dtype)):
        raise DataError(f"{file}: '{key}' holds {kind}, but meta/info.json says {dtype} of {dim}.")
    meta = opened.metadata
    path = re.compile(rf"{re.escape(key)}(\.list\.\w+)?")
    leaves = [j for j in range(meta.num_columns) if path.fullmatch(meta.schema.column(j).path)]
    values = sum(meta.row_group(i).column(j).num_values for i in range(meta.num_row_groups) for j in leaves)
    if values != meta.num_rows * dim:
        raise DataError(f"{file}: '{key}' has {values} values in {meta.num_rows} rows, but meta/info.json says {dim} each.")


def _read_columns(parquet: Any, file: Path, dims: Mapping[str, int], floats: type = np.float32) -> dict[str, np.ndarray]:
    """(t d) numbers of each column."""
    import pyarrow.compute as compute

    found = {}
    with damage_named(file):
        table = parquet.ParquetFile(file).read(columns=list(dims))
        for key, dim in dims.items():
            column = table.column(key)
            lists = hasattr(column.type, "value_type")
            if lists and not column.null_count and (lengths := compute.list_value_length(column).to_numpy() != dim).any():
                raise DataError(f"{file}: '{key}' has another length than {dim} in row {int(np.argmax(lengths))}.")
            flat = compute.list_flatten(column) if lists else column
            if column.null_count or flat.null_count:
                raise DataError(f"{file}: '{key}' has rows or values that are null; remove or repair this episode.")
            values = flat.to_numpy().reshape(table.num_rows, dim)
            indices = values.dtype.kind in "iu" and dim == 1
            found[key] = values.astype(np.int64) if indices else rounded(f"{file}: '{key}'", values, floats)
    return found


def _check_order(path: Path, steps: Mapping[str, np.ndarray], episodes: _Episodes) -> None:
    """The rows must be the episodes' frames 0, 1, 2, …, one episode after the other."""
    lengths = episodes.lengths
    number = np.repeat(np.arange(len(lengths)), lengths)
    frame = np.arange(len(number)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    for key, expected in (("episode_index", number), ("frame_index", frame)):
        found = steps[key][:, 0]
        if (wrong := np.flatnonzero(found != expected)).size:
            row = int(wrong[0])
            raise DataError(
                f"{path}: demo_{number[row]}: {key} is {found[row]} at step {frame[row]}, where {expected[row]} is expected; "
                "frames are missing or out of order, remove or repair this episode."
            )


def _cut(
    path: Path,
    steps: Mapping[str, Float[np.ndarray, "t _"]],
    episodes: _Episodes,
    keys: Sequence[str],
    pictures: Mapping[str, UInt8[np.ndarray, "t height width 3"]],
    finite: bool,
) -> tuple[Demo, ...]:
    demos = []
    for i, end in enumerate(np.cumsum(episodes.lengths)):
        part = slice(int(end - episodes.lengths[i]), int(end))
        name, values = f"demo_{i}", {}
        for key in (ACTION, *keys):
            what = f"{path}: {name}: '{key}'"
            values[key] = rounded(what, steps[key][part], np.float32)
            if finite:
                check_finite(what, values[key])
        images = {camera: seen[part] for camera, seen in pictures.items()}
        demos.append(Demo(name, values[ACTION], {key: values[key] for key in keys}, images=images))
    return tuple(demos)
