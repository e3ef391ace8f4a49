"""How many threads torch computes a plan with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Sets torch to `count` threads on the CPU, and back afterwards.

    Plans are small: on a busy machine, two threads that wait for each other at every operation can take 50 times as long
    as one. A fixed count also keeps the last bit of a result the same on machines with different numbers of cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
