"""Configurations are frozen dataclasses; here they become JSON and come back, with every name and value checked."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from daps_robot.atomic import put
from daps_robot.errors import ConfigError, RunDirectoryError
from daps_robot.registry import unknown_name
from daps_robot.types import JSON

C = TypeVar("C")
MAX_JSON_BYTES = 16 * 2**20


def to_json(config: Any) -> Any:
    """A dataclass as plain JSON values; each carries its class name, so that unions come back as what they were."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        fields = {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {"_type": type(config).__name__, **fields}
    if isinstance(config, tuple | list):
        return [to_json(item) for item in config]
    if isinstance(config, dict):
        return {key: to_json(value) for key, value in config.items()}
    if isinstance(config, Path):
        return str(config)
    return config


def from_json(cls: type[C], values: JSON, where: str = "configuration") -> C:
    """The inverse of `to_json`.

    Raises:
        ConfigError: a field is missing, unknown, or of another type, with its path inside the file.
    """
    return _parse(cls, values, where)


def _parse(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _parse_union(typing.get_args(hint), value, where)
    if dataclasses.is_dataclass(hint):
        return _parse_dataclass(typing.cast(type, hint), value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where}: expected a list, found {value!r:.80}")
        item = typing.get_args(hint)[0]
        return tuple(_parse(item, v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        return _parse(dict, value, where)
    if origin is typing.Literal:
        if value not in typing.get_args(hint):
            raise ConfigError(f"{where}: {value!r:.80} is none of {', '.join(map(repr, typing.get_args(hint)))}")
        return value
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**1000:
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where}: expected {hint.__name__}, found {value!r:.80}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: {value} is no number to reckon with")
    return value


def _parse_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    options = tuple(option for option in options if option is not type(None))
    if isinstance(value, dict) and "_type" in value:
        for option in options:
            if getattr(option, "__name__", None) == value["_type"]:
                return _parse(option, value, where)
    if len(options) == 1:
        return _parse(options[0], value, where)
    for option in options:
        if not dataclasses.is_dataclass(option):
            with contextlib.suppress(ConfigError):
                return _parse(option, value, where)
    names = ", ".join(getattr(option, "__name__", str(option)) for option in options)
    raise ConfigError(f"{where}: expected one of {names}, found {str(value)[:80]}")


def _parse_dataclass(cls: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected the fields of {cls.__name__}, found {value!r:.80}")
    named = value.get("_type", cls.__name__)
    cls = next((found for found in (cls, *_subclasses(cls)) if found.__name__ == named), None) or _no_class(cls, named, where)
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for name in value:
        if name != "_type" and name not in fields:
            raise ConfigError(f"{where}: {unknown_name(f'field of {cls.__name__}', name, list(fields))}")
    parsed = {name: _parse(hints[name], value[name], f"{where}.{name}") for name in fields if name in value}
    missing = [
        name
        for name, field in fields.items()
        if name not in parsed and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where}: {cls.__name__} lacks {', '.join(missing)}")
    try:
        return cls(**parsed)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _no_class(cls: type, named: Any, where: str) -> typing.NoReturn:
    raise ConfigError(f"{where}: these are fields of {named!r:.80}, where {cls.__name__} is expected")


def _subclasses(cls: type) -> list[type]:
    direct: list[type] = cls.__subclasses__()
    return direct + [found for each in direct for found in _subclasses(each)]


def save_json(values: Any, path: Path) -> None:
    """Write JSON atomically: a reader sees the old file or the new one.

    Raises:
        RunDirectoryError: it cannot be written, or there is no space left.
    """
    text = json.dumps(to_json(values), indent=2) + "\n"
    try:
        put(path, lambda temporary: temporary.write_text(text))
    except OSError as error:
        raise RunDirectoryError(f"cannot write {path}: {error.strerror}") from error


def load_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ConfigError: it is missing, too large to be one of ours, or not JSON.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ConfigError(f"{path} has {path.stat().st_size} bytes: too large to be a configuration or report")
        return json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; give the directory of a trained run") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} cannot be read: it is not text ({error})") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error


def differences(old: JSON, new: Any) -> list[str]:
    """The fields in which a saved configuration (as JSON) and another differ, as "name: old → new".

    A field of a dataclass in `new` that the saved one lacks, as an earlier version would have written it, had its default.
    """
    return _differences(_with_defaults(old, new), to_json(new), "")


def _with_defaults(old: Any, new: Any) -> Any:
    if not isinstance(old, dict):
        return old
    if isinstance(new, dict):
        return {name: _with_defaults(value, new.get(name)) for name, value in old.items()}
    if not dataclasses.is_dataclass(new) or old.get("_type") != type(new).__name__:
        return old
    filled = {name: _with_defaults(value, getattr(new, name, None)) for name, value in old.items()}
    for field in dataclasses.fields(new):
        if field.default is not dataclasses.MISSING:
            filled.setdefault(field.name, to_json(field.default))
        elif field.default_factory is not dataclasses.MISSING:
            filled.setdefault(field.name, to_json(field.default_factory()))
    return filled


def _differences(old: JSON, new: JSON, prefix: str) -> list[str]:
    found = []
    for name in sorted({*old, *new}):
        a, b, path = old.get(name), new.get(name), f"{prefix}{name}"
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{path}.")
        elif a != b:
            found.append(f"{path[:100]}: {a!r:.100} → {b!r:.100}")
    return found
