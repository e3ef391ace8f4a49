"""What cameras of a LeRobotDataset v3 saw: frames of its films, or pictures (PNG, JPEG) in the data files.

One film holds many episodes, one after the other; meta/episodes says in columns videos/<key>/… which film an episode is in, and
from when to when. Frame i of an episode is the one at from_timestamp + i / fps, as lerobot itself reads them
(`DatasetReader._get_query_timestamps` of huggingface/lerobot), and not the next best: half a frame off is an error.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from jaxtyping import Int, UInt8
from PIL import Image

from daps_robot.data.cameras import MAX_SIDE, check_cameras, resized
from daps_robot.data.demo_checks import MAX_BYTES, check_bytes
from daps_robot.data.films import film_frames, import_av
from daps_robot.data.hdf5 import damage_named, short
from daps_robot.data.lerobot_info import Camera, Info, camera_name
from daps_robot.errors import ConfigError, DataError

UNSCALED = 256
"""Pixels of a side up to which pictures are kept as they are unless a size is asked for."""

_AT_ONCE = 64
_ABSENT = "These are features under 'observation.' of dtype video or image with three colours."
_UNLIKE = "scale them to one with --picture-size <height> <width>, or choose cameras alike."


def asked_cameras(info: Info, wanted: Sequence[str], size: tuple[int, int] | None) -> dict[str, Camera]:
    """Name -> camera of those that are asked for by name or key, which pictures of `size` can be had from here.

    Raises:
        DataError: there are no such pictures, or they are of different or of large sizes and no `size` is given.
        ConfigError: the size is none, or PyAV is not installed.
    """
    names = [name if name in info.cameras else camera_name(name) for name in wanted]
    sizes = {name: size or camera.size for name, camera in info.cameras.items()}
    check_cameras(info.path, names, sizes, _ABSENT, _UNLIKE)
    found = {name: info.cameras[name] for name in names}
    if size is not None and not 1 <= min(size) <= max(size) <= MAX_SIDE:
        raise ConfigError(f"pictures of {size[0]} × {size[1]} pixels: a side has from 1 to {MAX_SIDE}")
    for name, camera in found.items():
        if size is None and max(camera.size) > UNSCALED:
            height, width = (max(1, round(128 * side / max(camera.size))) for side in camera.size)
            raise DataError(
                f"{info.path}: pictures of {name} are {camera.size[0]} × {camera.size[1]}; say to what height and width they are "
                f"scaled, such as --picture-size {height} {width}"
            )
    if any(camera.filmed for camera in found.values()):
        import_av()
    return found


def film_columns(cameras: Mapping[str, Camera]) -> dict[str, tuple[str, ...]]:
    """Columns of meta/episodes that say where the episodes' films are -> what their types may begin with."""
    whole, seconds = ("int",), ("double", "float", "int")
    kinds = {"chunk_index": whole, "file_index": whole, "from_timestamp": seconds, "to_timestamp": seconds}
    keys = [camera.key for camera in cameras.values() if camera.filmed]
    return {f"videos/{key}/{name}": kind for key in keys for name, kind in kinds.items()}


@dataclass(frozen=True)
class Recording:
    """Where the pictures of a folder are.

    Attributes:
        info: of the folder.
        lengths: of the episodes.
        columns: of meta/episodes, a value an episode, among them `film_columns`.
        data: the data files, in the order of their episodes.
    """

    info: Info
    lengths: Int[np.ndarray, " e"]
    columns: Mapping[str, np.ndarray]
    data: Sequence[Path]

    def films(self, camera: Camera) -> dict[Path, list[int]]:
        """Films of a camera -> the episodes in each, in order of time."""
        chunks, files, starts = (self._column(camera, name) for name in ("chunk_index", "file_index", "from_timestamp"))
        if min(chunks.min(), files.min()) < 0:
            raise DataError(f"{self.info.path}: meta/episodes has negative numbers of films of {camera.key}; copy it again.")
        found: dict[Path, list[int]] = {}
        for episode in np.argsort(starts, kind="stable").tolist():
            found.setdefault(self.info.film(camera.key, int(chunks[episode]), int(files[episode])), []).append(episode)
        return found

    def read(self, camera: Camera, size: tuple[int, int]) -> UInt8[np.ndarray, "t height width 3"]:
        """All pictures of a camera, episode after episode, each scaled to `size`.

        Raises:
            DataError: some are missing, damaged or of another size than meta/info.json says.
        """
        pictures = np.empty((self.info.frames, *size, 3), np.uint8)
        for step, picture in self._filmed(camera) if camera.filmed else enumerate(self._stored(camera)):
            pictures[step] = resized(picture, size)
        return pictures

    def _column(self, camera: Camera, name: str) -> np.ndarray:
        return self.columns[f"videos/{camera.key}/{name}"]

    def _filmed(self, camera: Camera) -> Iterator[tuple[int, UInt8[np.ndarray, "height width 3"]]]:
        """Number of a step in the folder, and its frame; film after film."""
        period, firsts = 1 / self.info.fps, np.cumsum(self.lengths) - self.lengths
        starts, ends = (self._column(camera, name).astype(np.float64) for name in ("from_timestamp", "to_timestamp"))
        if (wrong := ~((starts >= 0) & (ends < 1e7) & (self.lengths * period < ends - starts + 1.5 * period))).any():
            i = int(np.argmax(wrong))
            raise DataError(
                f"{self.info.path}: demo_{i}: its {self.lengths[i]} steps at {self.info.fps:g} a second do not lie between "
                f"{starts[i]:.3f} and {ends[i]:.3f} s of a film of {camera.key}; copy it again, or remove this episode."
            )
        for film, episodes in self.films(camera).items():
            frames = np.concatenate([np.arange(self.lengths[i]) for i in episodes])
            owners = np.repeat(episodes, self.lengths[episodes])
            times = starts[owners] + frames * period
            if len(early := np.flatnonzero(np.diff(times) <= period / 2)):
                raise DataError(f"{film}: demo_{owners[early[0] + 1]} begins before demo_{owners[early[0]]} ends; copy it again.")
            names = [f"demo_{episode}, step {frame}" for episode, frame in zip(owners, frames, strict=True)]
            found = film_frames(film, times, period, camera.size, names)
            yield from zip((firsts[owners] + frames).tolist(), found, strict=True)

    def _stored(self, camera: Camera) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
        """The pictures in the data files, in their order."""
        import pyarrow
        import pyarrow.parquet

        for path in self.data:
            with damage_named(path):
                file = pyarrow.parquet.ParquetFile(path)
                kinds = [field.type for field in file.schema_arrow if field.name == camera.key]
                if len(kinds) != 1 or not pyarrow.types.is_struct(kinds[0]) or kinds[0].get_field_index("bytes") < 0:
                    raise DataError(f"{path}: '{camera.key}' is not one column of pictures (struct of bytes and path).")
                check_bytes(path, _unpacked(file.metadata, camera.key), path.stat().st_size)
                rows = (row for batch in file.iter_batches(_AT_ONCE, columns=[camera.key]) for row in batch.column(0))
                for number, row in enumerate(rows):
                    yield _decoded(row["bytes"].as_py(), camera, f"{path}: '{camera.key}' in row {number}")


def check_memory(info: Info, cameras: Mapping[str, Camera], size: tuple[int, int] | None) -> None:
    """Refuses more pictures than memory holds, before any is read."""
    needed = sum(3 * info.frames * (size or camera.size)[0] * (size or camera.size)[1] for camera in cameras.values())
    if needed > (limit := min(MAX_BYTES, psutil.virtual_memory().available)):
        raise DataError(
            f"{info.path}: {info.frames:,} pictures of {', '.join(cameras)} take {needed / 2**30:.1f} GiB of memory, of which "
            f"{limit / 2**30:.1f} may be had: read fewer cameras or smaller pictures (--picture-size <height> <width>)"
        )


def _unpacked(metadata: Any, key: str) -> int:
    """Bytes of the largest piece of a column that is unpacked at once, as the file's header states them."""
    leaves = [j for j in range(metadata.num_columns) if metadata.schema.column(j).path.startswith(f"{key}.")]
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    return max((sum(group.column(j).total_uncompressed_size for j in leaves) for group in groups), default=0)


def _decoded(data: object, camera: Camera, what: str) -> UInt8[np.ndarray, "height width 3"]:
    """A PNG or JPEG of the size and colours that the metadata state, checked before its pixels are unpacked."""
    if not isinstance(data, bytes):
        raise DataError(f"{what} has no bytes: pictures in files of their own are not read.")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            if (image.height, image.width) == camera.size and image.mode == "RGB":
                return np.asarray(image)
            found = f"{image.height} × {image.width} ({image.mode})"
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        raise DataError(f"{what} cannot be decoded ({short(error)}); copy it again.") from error
    raise DataError(f"{what} is {found}, where {camera.size[0]} × {camera.size[1]} (RGB) is needed.")
