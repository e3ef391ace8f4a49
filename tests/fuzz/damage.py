"""Damage to bytes and to JSON, drawn from a generator: the same seed, the same damage."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from random import Random
from typing import Any

OUTSIDE = "/nonexistent/outside"
"""Where hostile paths lead to: into a folder that is not there, so that nothing is read or written, not even by root, whatever a
reader or a library does with such a path. Never the path of a real file."""

WEIRD: tuple[Any, ...] = (
    *(None, True, False, "", "x", [], {}, [[]], [1, 2, 3], {"a": 1}, 0, 1, -1, 2, 3, 7, 63, 255, 10**6),
    *(2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 10**30, 10**400),
    *(0.0, -0.0, 0.5, 5e-324, 1e-30, 1e30, 1e308, float("nan"), float("inf"), float("-inf")),
    *("\0", "\x1b[2J\n", "../../.." + OUTSIDE, OUTSIDE, "{0.__class__}", "{:>999999999d}", "ü" * 5000, "\udcff"),
)
"""What a reader may find in place of any value."""

LENGTHS = (0, 1, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)


def damage(rng: Random, data: bytes) -> bytes:
    """One to four injuries."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice(INJURIES)(rng, data)
    return data


def _flip(rng: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _set(rng: Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + bytes([rng.choice((0, 1, 0x20, 0x7F, 0x80, 0xFF, rng.randrange(256)))]) + data[at + 1 :]


def _truncate(rng: Random, data: bytes) -> bytes:
    return data[: rng.choice((rng.randrange(len(data) + 1), max(0, len(data) - rng.randrange(1, 64))))]


def _block(rng: Random, data: bytes) -> tuple[int, int]:
    """Where a short or a long block begins and ends."""
    at = rng.randrange(len(data) + 1)
    return at, min(len(data), at + rng.choice((1, 4, 16, 512, 4096)))


def _zero(rng: Random, data: bytes) -> bytes:
    at, end = _block(rng, data)
    return data[:at] + bytes(end - at) + data[end:]


def _noise(rng: Random, data: bytes) -> bytes:
    at, end = _block(rng, data)
    return data[:at] + rng.randbytes(end - at) + data[end:]


def _cut(rng: Random, data: bytes) -> bytes:
    at, end = _block(rng, data)
    return data[:at] + data[end:]


def _splice(rng: Random, data: bytes) -> bytes:
    """A copy of a block, over or between what is elsewhere."""
    (at, end), (to, _) = _block(rng, data), _block(rng, data)
    return data[:to] + data[at:end] + data[to + rng.choice((0, end - at)) :]


def _length(rng: Random, data: bytes) -> bytes:
    """Another number in place of what may be a length, an offset or a count."""
    size, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
    at = rng.randrange(max(1, len(data) - size))
    before = int.from_bytes(data[at : at + size], order)
    value = rng.choice((rng.choice(LENGTHS), before + 1, before - 1, 2 * before, before << 16)) % 256**size
    return data[:at] + value.to_bytes(size, order) + data[at + size :]


INJURIES = (_flip, _flip, _set, _truncate, _zero, _noise, _cut, _splice, _length, _length)


def damage_file(rng: Random, folder: Path) -> None:
    """Damages the bytes of a file of a folder."""
    path = rng.choice(files_of(folder))
    path.write_bytes(damage(rng, path.read_bytes()))


def files_of(folder: Path, pattern: str = "*") -> list[Path]:
    return sorted(path for path in folder.rglob(pattern) if path.is_file() and not path.is_symlink())


def change_json(rng: Random, folder: Path) -> None:
    """Changes a value, a name or the shape of a JSON file."""
    path = rng.choice(files_of(folder, "*.json"))
    text = json.dumps(changed_tree(rng, json.loads(path.read_text())))
    if rng.random() < 0.03:
        text = text.replace(":", ": " + "[" * 100_000 + "]" * 100_000 + ', "x": ', 1)
    path.write_text(text)


def change_json_lines(rng: Random, folder: Path) -> None:
    """The same of a line of a file of JSON lines."""
    path = rng.choice(files_of(folder, "*.jsonl"))
    lines = path.read_text().splitlines()
    i = rng.randrange(len(lines))
    lines[i] = json.dumps(changed_tree(rng, json.loads(lines[i])))
    path.write_text("\n".join(lines) + "\n")


def changed_tree(rng: Random, tree: Any) -> Any:
    """A tree of dictionaries, lists and values with one to three changes."""
    holder = {"": copy.deepcopy(tree)}
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        parent, key = rng.choice(list(_places(holder)))
        _change(rng, holder, parent, key)
    return holder.get("")


def _places(node: Any) -> Any:
    for key in list(node) if isinstance(node, dict) else range(len(node)):
        yield node, key
        if isinstance(node[key], dict | list):
            yield from _places(node[key])


def _change(rng: Random, holder: Any, parent: Any, key: Any) -> None:
    value = parent[key]
    how = rng.choice(("weird", "weird", "number", "delete", "rename", "more", "swap"))
    if how == "number" and isinstance(value, int | float):
        value = 2 if isinstance(value, bool) else value
        parent[key] = rng.choice((value + 1, value - 1, -value, value * 2, value * 1000, value / 2, float(value), str(value)))
    elif how == "delete" and parent is not holder:
        del parent[key]
    elif how == "rename" and isinstance(parent, dict) and parent is not holder:
        parent[rng.choice((f"{key}x", "", "_type", "\x1b[2J", key.upper()))] = parent.pop(key)
    elif how == "more" and isinstance(value, list) and value:
        value *= rng.choice((2, 3, 100))
    elif how == "more" and isinstance(value, dict):
        value[rng.choice(("extra", "_type", "", "0"))] = rng.choice(WEIRD)
    elif how == "swap":
        other, name = rng.choice(list(_places(holder)))
        parent[key] = copy.deepcopy(other[name])
    else:
        parent[key] = copy.deepcopy(rng.choice(WEIRD))
