"""Names to things: one decorator inside the package, an entry point from outside."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from daps_robot.errors import ConfigError

T = TypeVar("T")


def unknown_name(kind: str, name: str, known: list[str]) -> ConfigError:
    """The error for a wrong name: the near miss if there is one, and what exists."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ConfigError(f"no {kind} is called {name[:80]!r}.{hint} There are: {', '.join(sorted(known))}.")


class Registry(Generic[T]):
    """What is registered here by decorator, and by other installed packages under the entry-point group `group`."""

    def __init__(self, kind: str, group: str) -> None:
        self.kind, self.group = kind, group
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: make the object known as `name`."""

        def decorate(item: T) -> T:
            if name in self._items:
                raise ConfigError(f"two things are registered as {self.kind} {name!r}")
            self._items[name] = item
            return item

        return decorate

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._items, *(point.name for point in entry_points(group=self.group))}))

    def __getitem__(self, name: str) -> T:
        """Raises ConfigError, with the nearest name, for an unknown one."""
        if name in self._items:
            return self._items[name]
        for point in entry_points(group=self.group):
            if point.name == name:
                return point.load()
        raise unknown_name(self.kind, name, list(self))
