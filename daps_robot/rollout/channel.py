"""Worker processes: an object lives in each, and its methods are called by messages over a pipe.

Workers are started afresh (no fork: it hangs with EGL contexts and torch threads) as a plain interpreter rather than
through `multiprocessing`, whose spawn would run the caller's main script again in every worker, with its import of
torch: two seconds and 200 MB each, for nothing. Scripts and notebooks also need no `if __name__ == "__main__"`.

Messages are pickles, between a process and its own children only.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

from daps_robot import errors
from daps_robot.errors import DapsRobotError, SimulationError

ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)
"""Environment variables under which numerical libraries stay on one thread: a simulator worker is worth one core."""


@runtime_checkable
class Worker(Protocol):
    """An object somewhere, to call methods of; calls are answered in order."""

    def submit(self, method: str, *arguments: Any) -> None:
        """Starts a call; `result` brings its answer."""

    def result(self) -> Any:
        """The answer of the oldest call that has not been answered.

        Raises:
            SimulationError: where the call raised (an error of this library keeps its own class), or the worker died.
        """

    def dismiss(self) -> None:
        """Lets the worker end by itself, without waiting for it."""

    def close(self, patience: float = 2.0) -> None:
        """Ends the worker, by force if it is busy for `patience` seconds more; harmless when called twice."""


def resolve(factory: str) -> Any:
    """The object that "package.module:name" names."""
    module, _, name = factory.partition(":")
    return getattr(importlib.import_module(module), name)


class LocalWorker:
    """The object in this very process; calls run when their result is asked for."""

    def __init__(self, factory: str, *arguments: Any) -> None:
        self._target: Any = None
        self._calls: deque[tuple[str, tuple[Any, ...]]] = deque([(factory, arguments)])

    def submit(self, method: str, *arguments: Any) -> None:
        self._calls.append((method, arguments))

    def result(self) -> Any:
        name, arguments = self._calls.popleft()
        try:
            if self._target is None:
                self._target = resolve(name)(*arguments)
                return None
            return getattr(self._target, name)(*arguments)
        except DapsRobotError:
            raise
        except Exception as error:
            raise SimulationError(f"the simulation failed in `{name}`: {type(error).__name__}: {error}") from error

    def dismiss(self) -> None:
        pass

    def close(self, patience: float = 2.0) -> None:
        if self._target is not None and hasattr(self._target, "close"):
            self._target.close()
        self._target = None


class ProcessWorker:
    """The object in a process of its own.

    Args:
        factory: "package.module:name" of a class; that module should import little.
        *arguments: picklable arguments of the class. The answer to the construction is the first `result`.
        environment: environment variables to set there, on top of `ONE_THREAD`.
        keep_stderr: holds back what the process writes to its standard error, for the message if it dies; otherwise it
            goes where this process's goes.
    """

    def __init__(
        self, factory: str, *arguments: Any, environment: Mapping[str, str] | None = None, keep_stderr: bool = False
    ) -> None:
        self._stderr: IO[bytes] | None = tempfile.TemporaryFile() if keep_stderr else None  # noqa: SIM115
        self._doing = "starting"
        path = [entry or str(Path.cwd()) for entry in sys.path]
        code = f"import sys; sys.path[:] = {path!r}; from daps_robot.rollout.channel import serve; serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, **ONE_THREAD, **(environment or {})},
        )
        try:
            self.submit(factory, *arguments)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def submit(self, method: str, *arguments: Any) -> None:
        assert self._process.stdin is not None
        try:
            message = pickle.dumps((method, arguments), protocol=5)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise SimulationError(
                f"cannot be sent to a simulator process: {error}; define it at the top level of an importable module, "
                "or use workers=1"
            ) from error
        self._doing = f"calling `{method}`"
        try:
            self._process.stdin.write(message)
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise self._death() from None

    def result(self) -> Any:
        assert self._process.stdout is not None
        try:
            answer = pickle.load(self._process.stdout)
        except (EOFError, pickle.UnpicklingError, ValueError):
            raise self._death() from None
        if answer[0] == "ok":
            return answer[1]
        _, kind, text, trace = answer
        error: DapsRobotError = getattr(errors, kind, SimulationError)(text)
        error.add_note(f"In the simulator process:\n{trace}")
        raise error

    def _death(self) -> SimulationError:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        how = f"was ended by signal {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
        last = self.last_words()
        hint = f": {last}" if last else "; out of memory? try fewer `slots` or `workers`"
        return SimulationError(f"simulator process {self.pid} {how} while {self._doing}{hint}")

    def last_words(self) -> str:
        """The last line that the process wrote to its standard error, where that was kept."""
        if self._stderr is None:
            return ""
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""

    def dismiss(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        for stream in (self._process.stdin, self._process.stdout):  # the end of its input is the worker's sign to leave
            with contextlib.suppress(OSError):  # unsent bytes for a process that is no more
                stream.close()

    def close(self, patience: float = 2.0) -> None:
        process = self._process
        self.dismiss()
        try:
            process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if self._stderr is not None:
            self._stderr.close()


def start_workers(factory: str, arguments: Sequence[tuple[Any, ...]], *, in_process: bool) -> list[Worker]:
    """One worker per entry of `arguments`, all built at the same time; on any failure none is left behind.

    Args:
        factory: "package.module:name" of the class that lives in each.
        arguments: the constructor's arguments, one tuple a worker.
        in_process: builds them in this process, one after the other, instead.

    Raises:
        SimulationError: where one cannot be built.
    """
    workers: list[Worker] = []
    try:
        for each in arguments:
            worker: Worker = LocalWorker(factory, *each) if in_process else ProcessWorker(factory, *each)
            workers.append(worker)  # at once: whatever is in the list is closed if the next one fails
        for worker in workers:
            worker.result()
    except BaseException:
        close_all(workers)
        raise
    return workers


def close_all(workers: Sequence[Worker]) -> None:
    """Ends all workers, those that are busy after two seconds by force."""
    deadline = time.monotonic() + 2
    for worker in workers:
        worker.dismiss()
    for worker in workers:
        worker.close(max(0.0, deadline - time.monotonic()))


def _read_calls(source: IO[bytes], calls: queue.SimpleQueue[Any]) -> None:
    try:
        while True:
            calls.put(pickle.load(source))
    except (EOFError, pickle.UnpicklingError):
        calls.put(None)


def serve() -> None:
    """The main loop of a worker process: reads calls from standard input until it ends."""
    # Ctrl-C reaches the whole process group; the main process decides what becomes of the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # What an environment prints must not mix with the messages.
    os.dup2(2, 1)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    # Calls are read as they come, whatever is being answered: a caller that submits one before it asks for the answer to
    # the last never waits for a pipe that nobody reads.
    calls: queue.SimpleQueue[tuple[str, tuple[Any, ...]] | None] = queue.SimpleQueue()
    threading.Thread(target=_read_calls, args=(source, calls), daemon=True).start()
    target: Any = None
    while (call := calls.get()) is not None:
        name, arguments = call
        try:
            if target is None:
                target, value = resolve(name)(*arguments), None
            else:
                value = getattr(target, name)(*arguments)
            reply = pickle.dumps(("ok", value), protocol=5)
        except Exception as error:
            own = isinstance(error, DapsRobotError)
            text = str(error) if own else f"the simulation failed in `{name}`: {type(error).__name__}: {error}"
            reply = pickle.dumps(("error", type(error).__name__ if own else "SimulationError", text, traceback.format_exc()))
        try:
            sink.write(reply)
            sink.flush()
        except BrokenPipeError:
            break
    if target is not None and hasattr(target, "close"):
        target.close()
