"""Files that a run leaves: weights as safetensors, configuration as JSON, training state loaded with `weights_only=True`.

Every file is written whole or not at all (`atomic`), and says when it was damaged since: each holds its own checksum.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from daps_robot.atomic import flush_names, put
from daps_robot.data.hdf5 import short
from daps_robot.errors import CheckpointError, RunDirectoryError

_MARK = b"\ncrc32 of all before: "
"""Behind a training state, which torch does not mind; a checksum in hexadecimal follows."""


def write_atomically(path: Path, write: Any) -> None:
    """Call `write(temporary_path)`, flush it to disk and rename it to `path`.

    Raises:
        RunDirectoryError: the directory is not writable, or there is no space left.
    """
    try:
        put(path, write)
    except (OSError, RuntimeError, SafetensorError) as error:
        beneath = error.__context__ if isinstance(error.__context__, OSError) else None
        if isinstance(error, RuntimeError) and beneath is None:
            raise  # of something else that came up here, as the death of a loading process may
        cause = beneath or error
        raise RunDirectoryError(
            f"cannot write {path}: {short(cause)}. What was there before is untouched; free some space and --resume."
        ) from error


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Tensors as safetensors, atomically, with their checksum in the header (alone: the order of several entries varies)."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    about = {"crc32": _checksum(contiguous)}
    write_atomically(path, lambda temporary: safetensors.torch.save_file(contiguous, temporary, about))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Raises:
        CheckpointError: missing, truncated, not safetensors, or with another checksum than it states.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is not there: give the directory of a saved model")
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = file.metadata() or {}
        tensors = safetensors.torch.load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:  # the last two of a type torch has not
        raise CheckpointError(
            f"{path} is not a readable safetensors file: copy it again, or train anew ({short(error)})"
        ) from error
    if about.get("crc32", found := _checksum(tensors)) != found:  # files of other programs, and older ones, state none
        raise CheckpointError(f"{path} is damaged (its checksum does not fit): copy it again, or train anew")
    return tensors


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of names, types, shapes and values, in hexadecimal."""
    crc = 0
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def load_weights(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load named tensors into a module, all of them and nothing else.

    Raises:
        CheckpointError: names or shapes differ, naming the first.
    """
    own = module.state_dict()
    for name in sorted({*own, *tensors}):
        if name not in tensors:
            raise CheckpointError(f"{path} lacks the tensor {name}: it was saved by another model or version")
        if name not in own:
            raise CheckpointError(f"{path} holds {name}, which this model has not: it was saved by another model or version")
        if own[name].dtype != tensors[name].dtype:
            raise CheckpointError(f"{path}: {name} holds {tensors[name].dtype}, the model needs {own[name].dtype}")
        if tensors[name].is_floating_point() and not tensors[name].isfinite().all():
            raise CheckpointError(
                f"{path}: {name} holds values that are not finite: the file is damaged, or its training diverged"
            )
        if own[name].shape != tensors[name].shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(tensors[name].shape)}, the model needs {tuple(own[name].shape)}"
            )
    module.load_state_dict(tensors)


def save_state(state: dict[str, Any], path: Path) -> None:
    """Training state (tensors, numbers, strings, lists, dictionaries), atomically."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # torch's own writer would hide why it failed
            torch.save(state, file)
        mark = _MARK + f"{_file_checksum(temporary, temporary.stat().st_size):08x}".encode()
        with temporary.open("ab") as file:
            file.write(mark)

    write_atomically(path, write)


def load_state(path: Path) -> dict[str, Any]:
    """Training state of our own; nothing in it can run code.

    Raises:
        CheckpointError: missing, damaged, or holding anything but plain values.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is not there: nothing to resume; start without --resume")
    try:
        _check_state(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and zipfile raise many kinds for a damaged file
        raise CheckpointError(f"{path} is not a readable training state: start anew with --overwrite ({short(error)})") from error


def _check_state(path: Path) -> None:
    """Raises ValueError where a training state is not as it was written."""
    end = path.stat().st_size - len(_MARK) - 8
    with path.open("rb") as file:
        file.seek(max(0, end))
        mark = file.read()
    if mark.startswith(_MARK):
        if f"{_file_checksum(path, end):08x}".encode() != mark.removeprefix(_MARK):
            raise ValueError("its checksum does not fit")
        return
    if not mark[-22:].startswith(b"PK\5\6"):  # with which a zip file ends
        raise ValueError("it is cut off")
    with zipfile.ZipFile(path) as archive:  # of an earlier version: torch stores checksums, but does not look at them
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of {damaged} does not fit")


def _file_checksum(path: Path, size: int) -> int:
    """CRC-32 of the first bytes of a file."""
    crc = 0
    with path.open("rb") as file:
        while size > 0 and (block := file.read(min(size, 2**24))):
            crc, size = zlib.crc32(block, crc), size - len(block)
    return crc


def before(path: Path) -> Path:
    """Where the training state is kept that a file replaced."""
    return path.with_name(f"{path.stem}.before{path.suffix}")


def has_state(directory: Path) -> bool:
    """Whether a run's directory holds a training state to go on from: the last, or the one before it."""
    state = directory / "state.pt"
    return state.is_file() or before(state).is_file()


def replace_state(state: dict[str, Any], path: Path) -> None:
    """As `save_state`; the state that was there stays as `before(path)`, for the day when the disk damages this one.

    Raises:
        RunDirectoryError: it cannot be written.
    """
    new = path.with_name(f"{path.stem}.new{path.suffix}")
    try:
        save_state(state, new)
        if path.is_file():
            path.replace(before(path))
        new.replace(path)  # `save_state` has flushed it
        flush_names(path.parent)
    except OSError as error:
        raise RunDirectoryError(f"cannot write {path}: {error.strerror}") from error
    finally:
        new.unlink(missing_ok=True)


def load_last_state(path: Path) -> dict[str, Any]:
    """The training state in a file, or, where that is damaged, the one that it replaced, which is said.

    The damaged file is put aside, so that it does not replace the one before it.

    Raises:
        CheckpointError: neither can be read.
    """
    try:
        return load_state(path)
    except CheckpointError as error:
        try:
            state = load_state(before(path))
        except CheckpointError:
            raise error from None
        print(f"{path} is missing or damaged: going on from the state before it, {before(path).name}", flush=True)
        with contextlib.suppress(OSError):  # it is missing
            path.replace(path.with_name(f"{path.stem}.damaged{path.suffix}"))
        return state


def keep_checkpoint(folder: Path, step: int, count: int, save: Callable[[Path], None]) -> None:
    """Save a model as <folder>/<step>, whole or not at all; of those before it, only the last `count` − 1 stay.

    Raises:
        RunDirectoryError: it cannot be written.
    """
    partial, place = folder / ".partial", folder / str(step)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        save(partial)
        shutil.rmtree(place, ignore_errors=True)  # of a run that was killed before its state was saved
        partial.replace(place)
        flush_names(folder)
    except OSError as error:
        raise RunDirectoryError(f"cannot write {place}: {error.strerror}; free some space and --resume") from error
    for old in kept_steps(folder)[:-count]:
        shutil.rmtree(folder / str(old))


def kept_steps(folder: Path) -> list[int]:
    """The steps whose models `keep_checkpoint` left in a folder, in order."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())


def forget_checkpoints(folder: Path, after: int) -> None:
    """Remove the models of later steps than the one that a run goes on from: it will come to them again."""
    for step in kept_steps(folder):
        if step > after:
            shutil.rmtree(folder / str(step))


_OWNED: set[Path] = set()
"""By this process, which its own locks would not keep out; to close a second handle of a file even gives its lock back."""


@contextmanager
def owned_directory(directory: Path) -> Iterator[None]:
    """Hold a run directory for writing; the lock goes with the process, however it ends: its children do not inherit it.

    Raises:
        RunDirectoryError: another run holds it, or it cannot be written.
    """
    name = directory.resolve()
    in_use = RunDirectoryError(f"{directory} is in use by another run: wait for it, or choose another --out")
    if name in _OWNED:
        raise in_use
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / ".lock").open("w")
    except OSError as error:
        raise RunDirectoryError(f"cannot write to {directory}: {error.strerror}; choose another --out") from error
    with lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise in_use from error
        _OWNED.add(name)
        try:
            yield
        finally:
            _OWNED.discard(name)
