"""Worker processes for work on one demonstration after the other, from collecting to converting."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from daps_robot.errors import SimulationError


@contextmanager
def worker_pool(count: int, start: Callable[..., object], *arguments: Any) -> Iterator[ProcessPoolExecutor]:
    """So many processes, each prepared by `start(*arguments)`; what is not begun at the end is left undone.

    Raises:
        SimulationError: a process was killed.
    """
    # Spawned, not forked: a forked child shares locks and OpenGL contexts with its parent.
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _begin, (start, arguments))
    try:
        yield pool
    except BrokenProcessPool as error:
        raise SimulationError("A worker process was killed (out of memory?); take fewer --workers.") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(start: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    """Prepares a worker process: it leaves Ctrl-C to its parent, and dies with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    start(*arguments)
