"""Saved models: a directory with config.json (format, version, configuration), model.safetensors and a README.md about it.

The same directory may lie on the Hugging Face hub: of a repository there only these two files are ever fetched, safetensors and
JSON, neither of which can run code.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from daps_robot.checkpoints import load_tensors, load_weights, save_tensors, write_atomically
from daps_robot.config import from_json, load_json, save_json, to_json
from daps_robot.data.hdf5 import short
from daps_robot.errors import CheckpointError, ConfigError, RunDirectoryError
from daps_robot.models.card import model_card

VERSION = 1
FILES = ("config.json", "model.safetensors")
HUB_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.ASCII)

SLACK = 2**22
"""Numbers that a model of a few weights may need besides them, such as tables that are computed."""

_MAKERS = ("empty", "zeros", "ones", "full", "rand", "randn", "randint", "arange", "linspace", "eye")
C = TypeVar("C")
M = TypeVar("M", bound=nn.Module)


def save_pretrained(module: nn.Module, config: Any, kind: str, directory: Path) -> None:
    """Write a model that `load_pretrained` reads; weights first, so that a configuration always has its weights.

    Raises:
        RunDirectoryError: the directory cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        save_tensors(module.state_dict(), directory / "model.safetensors")
        values = {"format": f"daps_robot/{kind}", "version": VERSION, "config": to_json(config)}
        save_json(values, directory / "config.json")
        card = model_card(module, config, kind, directory)
        write_atomically(directory / "README.md", lambda temporary: temporary.write_text(card, encoding="utf-8"))
    except OSError as error:
        raise RunDirectoryError(f"cannot write {directory}: {error.strerror}") from error


def find_model(source: str | Path) -> Path:
    """The directory of a saved model.

    Args:
        source: that directory; the directory of a training run, whose model is in `model/`; or, as a string that names nothing
            here, "owner/name" or "owner/name@revision" on the Hugging Face hub. A `Path` never leads to the network.

    Raises:
        CheckpointError: the hub does not have it, or cannot be reached. What a directory lacks is left to whoever reads it.
        ConfigError: it would have to come from the hub, and huggingface_hub is not installed.
    """
    path = Path(source)
    try:
        there = path.exists()
    except OSError as error:
        raise CheckpointError(f"{str(source)[:100]} cannot be the name of a directory: {error.strerror}") from error
    if there:
        in_run = (path / "model" / "config.json").is_file() and not (path / "model.safetensors").exists()
        return path / "model" if in_run else path
    named = HUB_ID.fullmatch(source) if isinstance(source, str) else None
    return path if named is None else _from_hub(named["repository"], named["revision"])


def _from_hub(repository: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ConfigError(
            f"there is no directory {repository} here; to look for it on the Hugging Face hub: pip install 'daps-robot[hub]'"
        ) from error
    endpoint = os.environ.get("HF_ENDPOINT", "https:")
    if not endpoint.startswith("https:"):
        raise ConfigError(f"HF_ENDPOINT={endpoint}: models are fetched over https alone; give another, or none")
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(FILES)))
    except Exception as error:  # the hub's client has many, and those of the network come through
        at = f" at revision {revision}" if revision else ""
        raise CheckpointError(
            f"{repository} is no directory here, and cannot be had from the Hugging Face hub{at}: {short(error)}"
        ) from error


def saved_kind(directory: Path) -> str:
    """Which kind of model a directory holds.

    Raises:
        CheckpointError: none, or a damaged one.
    """
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{directory} holds no saved model (no config.json): give the directory of a trained one")
    try:
        values = load_json(path)
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    return str(values.get("format") if isinstance(values, dict) else values).removeprefix("daps_robot/")


def load_pretrained(cls: type[C], kind: str, directory: Path) -> tuple[C, dict[str, Tensor]]:
    """The configuration (an instance of `cls`) and the tensors of a saved model.

    Raises:
        CheckpointError: not a directory of this kind of model, damaged, or written by a later version.
    """
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{directory} holds no saved {kind} (no config.json): give the directory of a trained one")
    try:
        values = load_json(path)
        if not isinstance(values, dict) or values.get("format") != f"daps_robot/{kind}":
            found = values.get("format") if isinstance(values, dict) else values
            raise CheckpointError(f"{path} describes {str(found)[:60]!r}, not a {kind}: give the directory of a trained {kind}")
        if values.get("version") != VERSION:
            raise CheckpointError(
                f"{path} has format version {values.get('version')!r:.40}, this daps_robot reads {VERSION}: update daps_robot"
            )
        config = from_json(cls, values.get("config", {}), str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    return config, load_tensors(path.with_name("model.safetensors"))


class AtMost(TorchFunctionMode):
    """Within, new tensors may have so many numbers in all: what a configuration asks for is refused before memory is taken."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.left = numbers

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _MAKERS:
            first = args[0] if args else kwargs.get("size", ())
            size = first if isinstance(first, tuple | list) else [n for n in args if isinstance(n, int)]
            self.left -= max(size, default=0) if func is torch.arange else math.prod(size)
            if self.left < 0:
                raise ConfigError("its networks would be far larger than the weights beside it")
        return func(*args, **kwargs)


def restore(build: Callable[[], M], tensors: dict[str, Tensor], directory: Path) -> M:
    """The module that `build` makes, with the tensors of `load_pretrained`, ready for use.

    Raises:
        CheckpointError: the configuration describes no module, or another than the tensors are of.
    """
    weights = Path(directory) / "model.safetensors"
    try:
        with AtMost(SLACK + 4 * sum(tensor.numel() for tensor in tensors.values())):
            module = build()
    except (ConfigError, RuntimeError, ValueError, TypeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{weights.with_name('config.json')} describes no model that can be built: {short(error)}"
        ) from error
    load_weights(module, tensors, weights)
    return module.eval()
