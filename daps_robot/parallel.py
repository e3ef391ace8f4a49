"""Several processes that train one model on one batch (torchrun), and how their random numbers stay those of one process.

Each process, a rank, has some rows of every batch. Noise is drawn for the rows of all and cut to its own, so what a row gets
depends on its place in the batch and not on how many ranks there are. With one process and whole batches everything here is
the identity.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from daps_robot.errors import DapsRobotError


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def launched() -> int:
    """How many processes torchrun has started, before they have met; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is, from 0; known before they have met, too."""
    if world_size() > 1:
        return dist.get_rank()
    return int(os.environ.get("RANK", "0")) if launched() > 1 else 0


def is_main() -> bool:
    """Whether this process writes files and speaks to the user."""
    return rank() == 0


def wait_for_all() -> None:
    """Return when every rank has come here."""
    if world_size() > 1:
        dist.barrier()


def own_share(total: int) -> slice:
    """This rank's rows of `total`: consecutive, as evenly as can be."""
    size, n = world_size(), rank()
    return slice(total * n // size, total * (n + 1) // size) if size > 1 else slice(0, total)


_rows: tuple[int, int] | None = None  # first row of those at hand, and rows of the whole batch


@contextmanager
def rows_of(first: int, total: int) -> Iterator[None]:
    """Within, batches are the rows from `first` on of a batch of `total`."""
    global _rows
    before, _rows = _rows, (first, total)
    try:
        yield
    finally:
        _rows = before


def noise(fill: Callable[[Tensor], Tensor], shape: Sequence[int], device: torch.device | str, axis: int = 0) -> Tensor:
    """Random numbers of a batch: `fill` (such as `Tensor.uniform_`) for all its rows, of which those at hand are returned.

    Args:
        shape: of what is returned.
        axis: of the rows.
    """
    if _rows is None:
        return fill(torch.empty(*shape, device=device))
    first, total = _rows
    whole = fill(torch.empty(*shape[:axis], total, *shape[axis + 1 :], device=device))
    return whole.narrow(axis, first, shape[axis])


def uniform(*shape: int, device: torch.device | str) -> Tensor:
    """Uniform noise in [0, 1) for the rows at hand."""
    return noise(lambda t: t.uniform_(), shape, device)


def all_rows(x: Tensor) -> Tensor:
    """The rows of all ranks, in order; those of other ranks carry no gradient. Every rank must hold equally many."""
    if world_size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    parts[rank()] = x
    return torch.cat(parts)


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of a tensor over all ranks."""
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def with_names_of_all(sums: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Sums by name, zeros under those that only other ranks have: one that got no part of the data has none of its own."""
    if world_size() == 1:
        return sums
    names: list[list[str]] = [[] for _ in range(world_size())]
    dist.all_gather_object(names, list(sums))
    return {name: sums.get(name, torch.zeros((), dtype=torch.float64, device=device)) for name in max(names, key=len)}


def died(error: RuntimeError) -> DapsRobotError | None:
    """What an error of the connections between the ranks means, if it is one: which rank it was, its own output tells."""
    if world_size() == 1 or not any(word in str(error) for word in ("Connection", "peer", "NCCL", "Socket")):
        return None
    return DapsRobotError(
        "another process of this training has died: see what it said; --resume goes on from the last checkpoint"
    )


def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean of a tensor over all ranks."""
    return sum_over_ranks(x.detach().clone()) / world_size()


def largest(values: list[float], device: torch.device) -> list[float]:
    """Of each number, the largest that any rank has: what they must agree on, such as whether to stop."""
    return _reduced(values, device, dist.ReduceOp.MAX)


def mean_of_each(values: list[float], device: torch.device) -> list[float]:
    """Of each number, the mean over the ranks."""
    return [total / world_size() for total in sum_of_each(values, device)]


def sum_of_each(values: list[float], device: torch.device) -> list[float]:
    """Of each number, the sum over the ranks."""
    return _reduced(values, device, dist.ReduceOp.SUM)


def _reduced(values: list[float], device: torch.device, operation: Any) -> list[float]:
    if world_size() == 1:
        return values
    numbers = torch.tensor(values, dtype=torch.float64, device=device)  # where the ranks' library can reach it
    dist.all_reduce(numbers, op=operation)
    return numbers.tolist()
