"""Frames of an mp4 film at given times, decoded with PyAV (the extra `lerobot-video`).

A film comes from anywhere, so nothing in it is believed. The decoder is handed an open file, not a name: it follows neither
protocols nor references to other files. Other containers and codecs than those of robots' data sets are refused, and so is a
frame that is larger than the metadata say, or that the decoder marks as damaged. A film is decoded once, from its start to the
last frame that is wanted, one frame in memory at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8

from daps_robot.data.cameras import MAX_SIDE
from daps_robot.data.hdf5 import damage_named, short
from daps_robot.errors import ConfigError, DataError

_MAX_SAMPLES = 2**22
_MAX_EDITS = 16
_MAX_HEADERS = 64 * 2**20
_CODECS = ("av1", "h264", "hevc", "vp9")
_MAX_RATE = 250
_DAMAGED = "is damaged, or something in it is not supported"


def import_av() -> Any:
    """PyAV.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise ConfigError(f"reading films needs PyAV ({error}): pip install 'daps-robot[lerobot-video]'") from error
    return av


def film_frames(
    path: Path, times: Float64[np.ndarray, " t"], period: float, size: tuple[int, int], names: Sequence[str]
) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    """For each time the nearest frame of a film, which must be less than half a period away, in RGB.

    Args:
        path: of the film.
        times: seconds from the film's start, increasing.
        period: seconds from one frame of the data set to the next.
        size: height and width that every frame must have.
        names: of the times, for messages, such as "demo_3, step 7".

    Raises:
        DataError: the film is missing, damaged or of another size or codec, or has no frame at one of the times.
        ConfigError: PyAV is not installed.
    """
    av = import_av()
    i, last = 0, None
    with damage_named(path):
        if not path.is_file():
            raise DataError(f"{path} does not exist, but meta/episodes names it; copy or download the folder again.")
        _check_headers(path)
        try:
            for frame in _decoded(av, path, size, limit=_MAX_RATE * (times[-1] + 1)):
                if last is not None and frame.time <= last.time:
                    raise DataError(f"{path} {_DAMAGED} (its frames are not in order); copy or download it again.")
                while i < len(times) and frame.time >= times[i]:
                    near = frame if last is None or frame.time - times[i] < times[i] - last.time else last
                    yield _pixels(path, near, times[i], period, names[i])
                    i += 1
                if i == len(times):
                    return
                last = frame
            if last is None:
                raise DataError(f"{path} has no frames; copy or download it again.")
            for rest in range(i, len(times)):  # the last frame may lie a little before its time
                yield _pixels(path, last, times[rest], period, names[rest])
        except av.FFmpegError as error:
            raise DataError(f"{path} {_DAMAGED} ({short(error)}); copy or download it again.") from error


def _check_headers(path: Path) -> None:
    """Refuses, before the library does it, to make room for more frames than the file has bytes for.

    A film of 2.5 kB that states 50 million frames (box stsz) took 3.5 GB; a list of edits (elst) can repeat them, and films in
    fragments (trun) and packed headers (cmov) state them elsewhere. So the boxes beside the frames' own are searched for these.
    """
    stored = path.stat().st_size
    headers = _headers(path, stored)
    if any(name in headers for name in (b"trun", b"cmov")):
        raise DataError(
            f"{path} is a film in fragments, or has packed headers (or a title that looks like such: 'trun', 'cmov'); "
            "write it anew: ffmpeg -i <old> -c copy -map_metadata -1 <new>.mp4"
        )
    for found in re.finditer(b"stsz|stz2|stts|ctts|stsc|stco|co64|stss|elst", headers):
        start = found.end() + (8 if found[0] in (b"stsz", b"stz2") else 4)
        count = int.from_bytes(headers[start : start + 4], "big")
        if count > min(stored, _MAX_EDITS if found[0] == b"elst" else _MAX_SAMPLES):
            raise DataError(f"{path}: {count} frames or edits are stated in {stored} bytes; copy or download it again.")


def _headers(path: Path, stored: int) -> bytearray:
    """All boxes of an mp4 file but those of the frames (mdat)."""
    headers, position = bytearray(), 0
    with path.open("rb") as file:
        while position + 8 <= stored:
            file.seek(position)
            head = file.read(16)
            size = int.from_bytes(head[:4], "big")
            size = int.from_bytes(head[8:], "big") if size == 1 else size or stored - position
            size = min(max(size, 8), stored - position)
            if head[4:8] != b"mdat":
                if len(headers) + size > _MAX_HEADERS:
                    raise DataError(f"{path} has more than {_MAX_HEADERS // 2**20} MiB of headers: that is no film of a camera.")
                file.seek(position)
                headers += file.read(size)
            position += size
    return headers


def _decoded(av: Any, path: Path, size: tuple[int, int], limit: float) -> Iterator[Any]:
    """The frames of the film from its start, each checked; `limit` is of their number."""
    with path.open("rb") as stream, av.open(stream, format="mp4", options={"enable_drefs": "0"}) as film:
        if len(film.streams.video) != 1:
            raise DataError(f"{path} has {len(film.streams.video)} video streams instead of one.")
        video = film.streams.video[0]
        codec = video.codec_context.codec.canonical_name if video.codec_context else "nothing known"
        if codec not in _CODECS:
            raise DataError(f"{path} is encoded as {codec}; {', '.join(_CODECS)} are read.")
        video.codec_context.options = {"max_pixels": str(MAX_SIDE**2), "err_detect": "explode"}
        video.thread_type = "AUTO"
        for count, frame in enumerate(film.decode(video)):
            if (frame.height, frame.width) != size:
                raise DataError(
                    f"{path} has frames of {frame.height} × {frame.width}, where meta/info.json says {size[0]} × {size[1]}."
                )
            if frame.time is None or frame.is_corrupt:
                raise DataError(f"{path} {_DAMAGED} (frame {count}); copy or download it again.")
            if count > limit:
                raise DataError(f"{path} has more than {_MAX_RATE} frames a second.")
            yield frame


def _pixels(path: Path, frame: Any, time: float, period: float, name: str) -> UInt8[np.ndarray, "height width 3"]:
    if abs(frame.time - time) >= period / 2:
        raise DataError(
            f"{path} has no frame at {time:.3f} s ({name}), the nearest is at {frame.time:.3f} s: it has a gap or ends early; "
            "copy it again, or remove this episode."
        )
    return frame.to_ndarray(format="rgb24")
