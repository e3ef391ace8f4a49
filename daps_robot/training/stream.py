"""The batches of a run: an endless stream of permutations of the data, cut into batches.

Batch and random choices of a step depend on (seed, step) alone, whatever loads it, in however many processes: a run can be
interrupted anywhere, and go on from there.
"""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from itertools import count
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader

from daps_robot.errors import DapsRobotError, DataError


@runtime_checkable
class Batches(Protocol):
    """Data that can be gathered by index."""

    def __len__(self) -> int: ...

    def gather(self, index: Int[Tensor, " b"]) -> Any: ...


@runtime_checkable
class Augmenting(Batches, Protocol):
    """Data with random choices in training: key i alone decides those of row i."""

    def augmented(self, index: Int[Tensor, " b"], keys: Int[Tensor, " b"]) -> Any: ...


def step_seed(seed: int, step: int) -> int:
    """One number from two; its streams are independent for different steps."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0]) & (2**63 - 1)


class Shuffled:
    """Data by its place in the endless stream; DataLoader asks for whole batches of places."""

    def __init__(self, data: Batches, seed: int) -> None:
        self.data, self.seed = data, seed
        self.permutations: dict[int, Tensor] = {}

    def index(self, places: range) -> Int[Tensor, " b"]:
        """Which examples lie there."""
        n = len(self.data)
        epochs = range(places.start // n, (places.stop - 1) // n + 1)
        order = torch.cat([self._permutation(epoch) for epoch in epochs])
        first = places.start - epochs.start * n
        return order[first : first + len(places)]

    def __getitems__(self, places: range) -> Any:
        index = self.index(places)
        if not isinstance(self.data, Augmenting):
            return self.data.gather(index)
        key = step_seed(self.seed, 2**33)  # a stream of its own, beside those of steps and epochs
        return self.data.augmented(index, torch.tensor([(key + place) & (2**63 - 1) for place in places]))

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self.permutations:
            while len(self.permutations) >= 4:
                self.permutations.pop(next(iter(self.permutations)))
            generator = torch.Generator().manual_seed(step_seed(self.seed, -1 - epoch & 0x7FFFFFFF))
            self.permutations[epoch] = torch.randperm(len(self.data), generator=generator)
        return self.permutations[epoch]


def batches(
    data: Batches,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    share: slice | None = None,
    workers: int = 0,
    pin: bool = False,
) -> Generator[Any]:
    """The batches of steps first_step, first_step + 1, … without end.

    Args:
        share: the rows of each batch that are wanted; all by default.
        workers: processes that gather ahead; 0 gathers when asked.
        pin: let workers put them into page-locked memory, from which a GPU copies faster.

    Raises:
        DataError: what the data raises, in a worker too.
        DapsRobotError: a worker died.
    """
    start, stop, _ = (share or slice(None)).indices(batch_size)
    shuffled = Shuffled(data, seed)
    places = (range(step * batch_size + start, step * batch_size + stop) for step in count(first_step))
    if not workers:
        yield from map(shuffled.__getitems__, places)
        return
    loader: DataLoader[Any] = DataLoader(
        _Guarded(shuffled),  # type: ignore[arg-type]
        batch_sampler=places,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pin,
        worker_init_fn=_leave_signals,
    )
    try:
        for batch in loader:
            if isinstance(batch, DapsRobotError):
                raise batch
            yield batch
    except (RuntimeError, ConnectionError, EOFError) as error:
        raise dead_worker(error, workers) or error from None


def dead_worker(error: Exception, workers: int) -> DapsRobotError | None:
    """What the death of a loading process means, if the error is that: it may come up wherever the main process then is.

    One that dies while it hands over a batch breaks the connection. Where a file is being written, closing it may fail over it.
    """
    if isinstance(error, RuntimeError):
        known = [each for each in _with_contexts(error) if "DataLoader worker (pid" in str(each)]
        if not known:
            return None
        error = known[0]
    first = (str(error) or type(error).__name__).splitlines()[0]
    return DapsRobotError(f"a process that loads data died ({first}): is there memory for --workers {workers}? --resume goes on")


def _with_contexts(error: BaseException | None) -> Iterator[Exception]:
    """An error, and those during whose handling it was raised."""
    while isinstance(error, Exception):
        yield error
        error = error.__context__


class _Guarded:
    """Carries a reader's error out of a worker as it is: DataLoader would wrap it in a traceback."""

    def __init__(self, shuffled: Shuffled) -> None:
        self.shuffled = shuffled

    def __getitems__(self, places: range) -> Any:
        try:
            return self.shuffled.__getitems__(places)
        except DataError as error:
            return error


def _leave_signals(worker: int) -> None:
    """The main process alone decides what a signal means."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _as_it_is(batch: Any) -> Any:
    return batch
