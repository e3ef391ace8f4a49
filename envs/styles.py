"""How an expert goes about an episode: what people do differently from one demonstration to the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Style:
    """The choices of one episode. They never say what to do next, which follows from the observation, but how.

    Attributes:
        speed: factor on the speed of the hand.
        bend: how far ways swing off the straight line, -1 (to the right) to 1 (to the left).
        lift: metres that hand and object travel higher than they must.
        side: which of the ways round that fit an object the hand takes it, -1 to 1.
        along: where on its length an object is taken, and where it is put, -1 to 1.
        pause: chance that a step begins a pause.
        longest_pause, longest_wait: steps of a pause, and of the hesitation before the fingers close or open; they are drawn
            each time, evenly.
        misses: grasps that go wrong on purpose before one is meant.
        miss_above: whether they close above the object, or else beside it.
        drops: times that the object slips, soon after it was lifted.
        drop_after: steps after which it does.
    """

    speed: float = 1.0
    bend: float = 0.0
    lift: float = 0.0
    side: float = 0.0
    along: float = 0.0
    pause: float = 0.0
    longest_pause: int = 0
    longest_wait: int = 0
    misses: int = 0
    miss_above: bool = True
    drops: int = 0
    drop_after: int = 0


PLAIN = Style()


def human(rng: np.random.Generator) -> Style:
    """One person's way on one occasion. One episode in four begins with a grasp that misses, one in six has a drop."""
    return Style(
        speed=rng.uniform(0.7, 1.0),
        bend=rng.uniform(-1.0, 1.0),
        lift=rng.uniform(0.0, 0.06),
        side=rng.uniform(-1.0, 1.0),
        along=rng.uniform(-1.0, 1.0),
        pause=0.01,
        longest_pause=12,
        longest_wait=int(rng.integers(1, 7)),
        misses=int(rng.random() < 1 / 4),
        miss_above=bool(rng.random() < 0.5),
        drops=int(rng.random() < 1 / 6),
        drop_after=int(rng.integers(3, 7)),
    )


STYLES: dict[str, Callable[[np.random.Generator], Style]] = {"plain": lambda _: PLAIN, "human": human}
"""Name -> what draws an episode's style."""
