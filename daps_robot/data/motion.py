"""Motion capture: windows of a humanoid's frames, gathered by indexing into one flat array.

    0 … 2    root position x, y, z [m], z up
    3 … 6    root quaternion x, y, z, w
    7 … 35   29 joint angles [rad] of a Unitree G1

The file, lafan1_g1.npz, is LAFAN1 (Harvey et al. 2020) retargeted to the G1, 30 frames a second. Under its licence, CC BY-NC-ND
4.0, windows of it and their codes must not be passed on. The DAPS paper's frames hold other features, which are not published
(its β-ELBOs and PSNRs together imply about 122), so its figures are no reference for these 36.
"""

from __future__ import annotations

import math
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from daps_robot.data.catalog import data_folders, find_file
from daps_robot.data.files import unreadable_named
from daps_robot.data.hdf5 import check_printable, listing, short, suggest
from daps_robot.errors import ConfigError, DataError

LAFAN_FILE = "lafan1_g1.npz"
LAFAN_VALID = ("dance2_subject2", "fight1_subject2", "run2_subject1", "walk2_subject4")
"""The DAPS paper's validation clips (arXiv 2509.24716)."""

CHANNELS = 36
POSITION, QUATERNION, JOINTS = slice(0, 3), slice(3, 7), slice(7, CHANNELS)
FPS = 30
LAYOUT = "root xyz(3) quat xyzw(4) then 29 G1 joint angles"

UNIT_TOLERANCE = 1e-3
"""How far from 1 the norm of a quaternion may be; rounding to float32 leaves 1e-6."""

MAX_BYTES = 2**30
"""Of all arrays together: 66 hours of motion."""
_MAX_COMPRESSION = 200
_UNSUSPICIOUS_BYTES = 64 * 2**20
_ARRAYS = {
    "motion": ("f", 2, f"float32 of (t, {CHANNELS})"),
    "clip": ("U", 1, "names, (n,)"),
    "clip_ends": ("iu", 1, "integers, (n,)"),
    "fps": ("iuf", 0, "one number"),
    "layout": ("U", 0, "one text"),
}
"""Arrays of the file: kinds of dtype, axes, and both in words."""

Root = Literal["relative", "raw"]
"""How a window tells where the root is: "relative" to its first frame, which stands at x = y = 0 with heading 0, or "raw", as the
file does. Height, tilt and joint angles are the same in both."""


class MotionWindows:
    """Windows of h frames that lie inside a clip, as examples for the core trainer.

    Attributes:
        frames: (t 36) of the whole file; the splits share it.
        starts: (n,) first frame of each window.
        horizon: frames h of a window.
        root: how its place is told.
    """

    def __init__(
        self, frames: Float[Tensor, "t 36"], clips: Sequence[tuple[int, int]], horizon: int, stride: int, root: Root
    ) -> None:
        """Windows at every `stride` frames of each clip (first frame, end); the last one ends with the clip."""
        self.frames, self.clips, self.horizon, self.root = frames, clips, horizon, root
        starts = [np.append(np.arange(start, end - horizon, stride), end - horizon) for start, end in clips]
        self.starts = torch.from_numpy(np.concatenate(starts))
        self._ahead = torch.arange(horizon)

    def __len__(self) -> int:
        return len(self.starts)

    def gather(self, index: Int[Tensor, " b"]) -> Float[Tensor, "b h 36"]:
        """Some of the windows."""
        frames = self._frames(index)
        return frames if self.root == "raw" else relative_to(place_of(frames), frames)

    def places(self, index: Int[Tensor, " b"]) -> Float[Tensor, "b 3"]:
        """Where these windows begin; `placed_at` it, a relative window is again as in the file."""
        return place_of(self._frames(index))

    def features(self) -> Float[np.ndarray, "n 36"]:
        """Every frame of the split as a window tells it, to fit scalers on: the windows lie side by side (stride h)."""
        side_by_side = MotionWindows(self.frames, self.clips, self.horizon, self.horizon, self.root)
        return side_by_side.gather(torch.arange(len(side_by_side))).flatten(0, 1).numpy()

    def _frames(self, index: Int[Tensor, " b"]) -> Float[Tensor, "b h 36"]:
        return self.frames[self.starts[index, None] + self._ahead]


class MotionSplits(NamedTuple):
    """Whole clips are in one split or the other.

    Attributes:
        train: a window from every frame that has h − 1 more after it.
        valid: windows side by side, the last of a clip ending with it: every frame is measured, few of them twice.
    """

    train: MotionWindows
    valid: MotionWindows


def place_of(frames: Float[Tensor, "b h 36"]) -> Float[Tensor, "b 3"]:
    """x, y [m] and heading [rad] of each window's first frame.

    The heading is the rotation's twist about the vertical. Unlike an Euler angle it is smooth for a body that lies on the ground,
    and undefined (0 here) only for one exactly upside down. It lies in (−2π, 2π], so that its half keeps the quaternion's sign.
    """
    x, y, _, _, _, qz, qw = frames[:, 0, :7].unbind(-1)
    return torch.stack([x, y, 2 * torch.atan2(qz, qw)], dim=-1)


def relative_to(place: Float[Tensor, "b 3"], frames: Float[Tensor, "b h 36"]) -> Float[Tensor, "b h 36"]:
    """Windows as seen from a place and heading; from its own, a window's first quaternion has z = 0 and w ≥ 0."""
    moved = frames.clone()
    moved[..., :2] -= place[:, None, :2]
    return _turned(moved, -place[:, 2])


def placed_at(place: Float[Tensor, "b 3"], windows: Float[Tensor, "b h 36"]) -> Float[Tensor, "b h 36"]:
    """The inverse of `relative_to`: windows put down at a place and heading."""
    frames = _turned(windows, place[:, 2])
    frames[..., :2] += place[:, None, :2]
    return frames


def _turned(frames: Float[Tensor, "b h 36"], angle: Float[Tensor, " b"]) -> Float[Tensor, "b h 36"]:
    """Windows turned about the vertical axis; on quaternions that is two rotations in a plane by half the angle."""
    turned = frames.clone()
    for i, j, by in ((0, 1, angle), (3, 4, angle / 2), (6, 5, angle / 2)):
        cos, sin = torch.cos(by)[:, None], torch.sin(by)[:, None]
        turned[..., i] = cos * frames[..., i] - sin * frames[..., j]
        turned[..., j] = sin * frames[..., i] + cos * frames[..., j]
    return turned


@unreadable_named()
def read_motion(
    path: Path | None, horizon: int = 32, valid_clips: tuple[str, ...] = LAFAN_VALID, root: Root = "relative"
) -> MotionSplits:
    """Windows of lafan1_g1.npz, or of a file of the same layout; without a path, where data sets are looked for.

    q and −q are one rotation: along a clip the sign is kept continuous (in LAFAN1 it is already).

    Raises:
        ConfigError: a horizon below 1.
        DataError: the file is missing, damaged or of another layout, a clip is shorter than a window, or a split is empty.
    """
    if horizon < 1:
        raise ConfigError(f"a window of {horizon} frames: it must have at least 1")
    path = _located() if path is None else Path(path)
    arrays = _read_arrays(path)
    motion, clips = arrays["motion"], _clips(path, arrays)
    _check_frames(path, motion, clips)
    if unknown := sorted(set(valid_clips) - clips.keys()):
        raise DataError(f"{path}: no clip '{unknown[0]}' to validate on. {suggest(unknown[0], list(clips))}")
    for name, (start, end) in clips.items():
        if end - start < horizon:
            raise DataError(
                f"{path}: the clip {name} has {end - start} frames, fewer than a window of {horizon}: "
                f"use windows of {end - start} frames or less, or leave the clip out"
            )
    valid = [span for name, span in clips.items() if name in valid_clips]
    train = [span for name, span in clips.items() if name not in valid_clips]
    if not train or not valid:
        raise DataError(f"{path}: {len(valid)} of {len(clips)} clips to validate on leave a split empty; choose other clips")
    for start, end in clips.values():
        _keep_sign(motion[start:end, QUATERNION])
    frames = torch.from_numpy(motion)
    return MotionSplits(MotionWindows(frames, train, horizon, 1, root), MotionWindows(frames, valid, horizon, horizon, root))


def _located() -> Path:
    found = find_file(LAFAN_FILE)
    if found is None:
        folders = " or ".join(map(str, data_folders()))
        raise DataError(f"{LAFAN_FILE} is not in {folders}: put it there, or set DAPS_ROBOT_DATA to the folder that has it")
    return found


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of the file, each of the right kind, once it is clear that they fit into memory."""
    if not path.is_file():
        raise DataError(f"{path} is {'not a file' if path.exists() else 'not there'}; motion is read from one .npz file")
    try:
        with zipfile.ZipFile(path) as archive:
            declared = sum(_declared_bytes(path, archive, name) for name in _ARRAYS)
            if declared > min(MAX_BYTES, max(_UNSUSPICIOUS_BYTES, _MAX_COMPRESSION * path.stat().st_size)):
                raise DataError(
                    f"{path}: declares {declared / 2**20:.0f} MiB in a file of {path.stat().st_size / 2**20:.2f} MiB, "
                    f"and may have up to {MAX_BYTES // 2**20}; split it, or if it is not so long, download it again"
                )
            arrays = {}
            for name in _ARRAYS:
                with archive.open(f"{name}.npy") as stream:
                    arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
            for name in ("clip", "layout"):
                _check_text(path, name, arrays[name])
            return arrays
    except DataError:
        raise
    except Exception as error:  # zipfile, its decompressors and numpy's parser raise a dozen kinds on damaged files
        raise DataError(f"{path} is damaged or no .npz file ({short(error)}); copy or download it again") from error


def _declared_bytes(path: Path, archive: zipfile.ZipFile, name: str) -> int:
    """What an array will take, by its header, which must be of the right kind."""
    present = [member.removesuffix(".npy") for member in archive.namelist()]
    if name not in present:
        raise DataError(f"{path}: no array '{name}'; motion files have {', '.join(_ARRAYS)}. {listing('This has', present)}")
    with archive.open(f"{name}.npy") as stream:
        if np.lib.format.read_magic(stream) != (1, 0):  # later versions allow headers of 4 GiB
            raise DataError(f"{path}: '{name}' is not in version 1.0 of the npy format; write it with numpy.savez")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    kinds, axes, words = _ARRAYS[name]
    fits = dtype.kind in kinds and len(shape) == axes
    fits = fits and min((*shape, dtype.itemsize)) >= 0  # numpy lets absurd lengths of text overflow to negative sizes
    if not fits or (name == "motion" and (dtype != np.float32 or shape[1] != CHANNELS)):
        raise DataError(f"{path}: '{name}' is {dtype} of shape {shape}; it must be {words}: convert it")
    return math.prod(shape) * dtype.itemsize


def _check_text(path: Path, name: str, texts: np.ndarray) -> None:
    """numpy hands on code points that no text has, at which Python's own functions fail."""
    points = np.ascontiguousarray(texts.astype(texts.dtype.newbyteorder("="))).view(np.uint32)
    if points.max(initial=0) > sys.maxunicode:
        raise DataError(f"{path}: '{name}' holds what is no text; copy or download it again")
    for text in texts.ravel().tolist():
        check_printable(path, text)


def _clips(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, tuple[int, int]]:
    """First frame and end of each clip, by name."""
    if str(arrays["layout"]) != LAYOUT or arrays["fps"] != FPS:
        found = f"'{arrays['layout']!s:.80}' at {arrays['fps']} frames a second"
        raise DataError(f"{path}: holds {found}; '{LAYOUT}' at {FPS} is read: convert it")
    names, ends, frames = arrays["clip"].tolist(), arrays["clip_ends"].tolist(), len(arrays["motion"])
    if len(names) != len(ends) or len(set(names)) != len(names):
        raise DataError(f"{path}: {len(ends)} clip_ends for {len(names)} clips ({len(set(names))} names): one each is needed")
    starts = [0, *ends][:-1]
    for name, start, end in zip(names, starts, ends, strict=True):
        if end <= start:
            raise DataError(f"{path}: the clip {name} ends at frame {end}, but starts at {start}; clip_ends must increase from 1")
    if not ends or ends[-1] != frames:
        raise DataError(f"{path}: {len(ends)} clips end at frame {max(ends, default=0)}, but there are {frames} frames")
    return dict(zip(names, zip(starts, ends, strict=True), strict=True))


def _check_frames(path: Path, motion: Float[np.ndarray, "t 36"], clips: dict[str, tuple[int, int]]) -> None:
    """Every number finite, every quaternion a rotation."""
    for name, (start, end) in clips.items():
        frames = motion[start:end]
        finite = np.isfinite(frames).all(axis=1)
        if not finite.all():
            raise DataError(f"{path}: {name} is NaN or infinite at frame {int(np.argmin(finite))}; remove or repair this clip")
        norms = np.linalg.norm(frames[:, QUATERNION].astype(np.float64), axis=1)
        worst = int(np.abs(norms - 1).argmax())
        if abs(norms[worst] - 1) > UNIT_TOLERANCE:
            raise DataError(
                f"{path}: {name}: the root quaternion at frame {worst} has norm {norms[worst]:.4g}, not 1 (± {UNIT_TOLERANCE}); "
                "normalise it, and see that columns 3 to 6 are the quaternion"
            )


def _keep_sign(quaternions: Float[np.ndarray, "t 4"]) -> None:
    """Changes signs in place where q jumps to −q."""
    dots = np.einsum("tc,tc->t", quaternions[1:], quaternions[:-1])
    quaternions[1:] *= np.cumprod(np.where(dots < 0, np.float32(-1), np.float32(1)))[:, None]
