"""Demonstrations by scripted experts, gathered in parallel, the same file for any number of workers."""

from __future__ import annotations

import difflib
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from daps_robot.data.demo_writer import DemoWriter, Episode
from daps_robot.envs.episodes import record_episode
from daps_robot.envs.simulator import import_robosuite
from daps_robot.envs.styles import STYLES
from daps_robot.envs.tasks import CanEnv, LiftEnv, RobosuiteEnv, SquareEnv
from daps_robot.envs.workers import worker_pool
from daps_robot.errors import ConfigError, DataError, SimulationError
from daps_robot.rollout.vector import worker_count

SEEDS_PER_COLLECTION = 1_000_000
_MAX_COLLECTION_SEED = 999  # the seeds of demonstrations stay below those of evaluations (demos.EVAL_SEED_START)
_SECONDS_BETWEEN_LINES = 15.0
_HOPELESS_AFTER, _HOPELESS_RATE = 40, 0.05


@dataclass(frozen=True)
class Manner:
    """How the experts of a collection act.

    Attributes:
        noise, nudges, style: arguments of `make_expert`.
        strays: chance that an episode begins after the hand was led astray (see `record_episode`).
    """

    noise: float
    nudges: float
    style: str
    strays: float

    def record(self, env: RobosuiteEnv, seed: int) -> Episode | None:
        """One attempt from a start seed."""
        expert = env.make_expert(noise=self.noise, seed=seed, nudges=self.nudges, style=self.style)
        return record_episode(env, expert, seed, self.strays)


@dataclass(frozen=True)
class Task:
    """A task as collection knows it: its environment, and what its demonstrations bear by default (see `Manner`)."""

    env: type[RobosuiteEnv]
    noise: float
    nudges: float = 0.03
    strays: float = 0.5


TASKS = {
    "lift": Task(LiftEnv, noise=0.1, strays=0.0),
    "can": Task(CanEnv, noise=0.1),
    "square": Task(SquareEnv, noise=0.05),
}


@dataclass(frozen=True)
class CollectionReport:
    """What came of a collection.

    Attributes:
        path: the file.
        demos: demonstrations in it.
        steps: control steps in it.
        failed: attempts in which the expert failed, left out.
        seconds: wall-clock time of this sitting.
    """

    path: Path
    demos: int
    steps: int
    failed: int
    seconds: float


def collect_demos(
    task: str = "lift",
    out: str | Path | None = None,
    demos: int = 200,
    style: str = "plain",
    noise: float | None = None,
    nudges: float | None = None,
    strays: float | None = None,
    seed: int = 0,
    workers: int | None = None,
    valid_fraction: float = 0.1,
    overwrite: bool = False,
) -> CollectionReport:
    """Writes a file of successful demonstrations in robomimic's layout.

    Attempt i starts from the seed DEMO_SEED_START + 1_000_000 · seed + i, which also seeds the expert's noise; a failed attempt
    is counted and left out, and the next one is made. Called again after an interruption, it goes on where it stopped.

    Args:
        task: lift, can or square.
        out: the file; data/<task>.hdf5 by default, data/<task>-<style>.hdf5 for another style than plain.
        demos: how many.
        style: of the expert, plain or human (see `envs.styles`).
        noise: standard deviation of the Gaussian noise on the arm's actions; None takes the task's own.
        nudges: chance that a step begins a nudge (see `envs.expert.Expert`); None takes the task's own.
        strays: chance that a demonstration begins after the hand was led astray (see `envs.episodes.record_episode`); None takes
            the task's own, and 0 for another style than plain.
        seed: of the collection, 0 to 999.
        workers: processes; None takes one per processor.
        valid_fraction: of the demonstrations are put in mask/valid, the others in mask/train.
        overwrite: replace an existing file, once the new one is complete.

    Raises:
        ConfigError: an argument that cannot be.
        DataError: the file cannot be written, or an interrupted collection had other settings.
        SimulationError: robosuite is missing, or the expert (almost) always fails.
        KeyboardInterrupt: when interrupted; what was collected is kept for the next call.
    """
    started = time.monotonic()
    chosen = _check(task, demos, style, noise, nudges, strays, seed, workers, valid_fraction)
    manner = Manner(
        noise=chosen.noise if noise is None else noise,
        nudges=chosen.nudges if nudges is None else nudges,
        style=style,
        strays=(chosen.strays if style == "plain" else 0.0) if strays is None else strays,
    )
    out = Path("data", f"{task}.hdf5" if style == "plain" else f"{task}-{style}.hdf5") if out is None else Path(out)
    if out.exists() and not overwrite:
        raise DataError(f"{out} exists: choose another --out, or pass --overwrite to replace it.")
    robosuite = import_robosuite()
    settings = {
        "env_id": chosen.env.env_id,
        **asdict(manner),
        "seed": seed,
        "robosuite": robosuite.__version__,
        "layout": 3,  # of the file and of what experts do: a collection under another number is not gone on with
    }
    with DemoWriter(out, settings) as writer:
        collection = _Collection(writer, demos)
        if not collection.complete:
            processes = worker_count(workers, demos)
            with _attempts(chosen.env, manner, seed, processes) as submit:
                collection.run(submit, ahead=1 if processes == 1 else 2 * processes)
        steps = writer.finish(demos, valid_fraction, chosen.env.env_args())
    return CollectionReport(out, demos, steps, collection.failed, time.monotonic() - started)


class _Collection:
    """Which attempts are done, and which are still wanted."""

    def __init__(self, writer: DemoWriter, demos: int) -> None:
        self._writer, self._demos = writer, demos
        self._done = writer.attempts()

    @property
    def succeeded(self) -> int:
        return sum(self._done.values())

    @property
    def failed(self) -> int:
        """Failures among the attempts that count: those up to the last demonstration that is kept."""
        successes = [attempt for attempt, success in sorted(self._done.items()) if success][: self._demos]
        last = successes[-1] if successes else -1
        return sum(not success for attempt, success in self._done.items() if attempt < last or len(successes) < self._demos)

    @property
    def complete(self) -> bool:
        """Whether the first `demos` successes are known: no attempt before the last of them is still open."""
        successes = 0
        for attempt in range(len(self._done)):
            if attempt not in self._done:
                return False
            successes += self._done[attempt]
            if successes >= self._demos:
                return True
        return False

    def run(self, submit: Any, ahead: int) -> None:
        """Makes attempts, in order and `ahead` at a time, until the collection is complete."""
        running: dict[Future[Episode | None], int] = {}
        with _Progress(self._demos, self.succeeded) as progress:
            while not self.complete:
                while (len(running) < ahead and self.succeeded + len(running) < self._demos) or not running:
                    attempt = next(i for i in range(10**9) if i not in self._done and i not in running.values())
                    running[submit(attempt)] = attempt
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in sorted(finished, key=running.__getitem__):
                    attempt = running.pop(future)
                    episode = future.result()
                    self._writer.add(attempt, episode)
                    self._done[attempt] = episode is not None
                    progress.update(self.succeeded, self.failed)
                if len(self._done) >= _HOPELESS_AFTER and self.succeeded < _HOPELESS_RATE * len(self._done):
                    raise SimulationError(
                        f"The expert solved {self.succeeded} of {len(self._done)} attempts; collect with less noise."
                    )


class _Progress:
    """A bar on a terminal; elsewhere a line now and then."""

    def __init__(self, total: int, initial: int) -> None:
        self._total, self._line_at = total, time.monotonic() + _SECONDS_BETWEEN_LINES
        self._bar = tqdm(total=total, initial=initial, unit="demo", disable=None)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def update(self, succeeded: int, failed: int) -> None:
        self._bar.set_postfix(failed=failed, refresh=False)
        self._bar.update(succeeded - self._bar.n)
        if self._bar.disable and time.monotonic() >= self._line_at:
            self._line_at = time.monotonic() + _SECONDS_BETWEEN_LINES
            print(f"{succeeded}/{self._total} demonstrations, {failed} attempts failed", file=sys.stderr, flush=True)


@contextmanager
def _attempts(make_env: type[RobosuiteEnv], manner: Manner, seed: int, processes: int) -> Iterator[Any]:
    """A function that starts an attempt and returns its future: in worker processes, or right here for one process."""
    first_seed = SEEDS_PER_COLLECTION * seed
    if processes == 1:
        env = make_env()
        try:
            yield lambda attempt: _at_once(env, manner, first_seed + attempt)
        finally:
            env.close()
        return
    with worker_pool(processes, _start_worker, make_env, manner) as pool:
        yield lambda attempt: pool.submit(_work, first_seed + attempt)


_worker: tuple[RobosuiteEnv, Manner]


def _start_worker(make_env: type[RobosuiteEnv], manner: Manner) -> None:
    """Prepares a worker process."""
    global _worker
    _worker = (make_env(), manner)


def _work(start_seed: int) -> Episode | None:
    env, manner = _worker
    return manner.record(env, start_seed)


def _at_once(env: RobosuiteEnv, manner: Manner, start_seed: int) -> Future[Episode | None]:
    future: Future[Episode | None] = Future()
    future.set_result(manner.record(env, start_seed))
    return future


def _check(
    task: str,
    demos: int,
    style: str,
    noise: float | None,
    nudges: float | None,
    strays: float | None,
    seed: int,
    workers: int | None,
    valid_fraction: float,
) -> Task:
    """The task, if the arguments can be."""
    if task not in TASKS:
        near = difflib.get_close_matches(task, TASKS, n=1)
        raise ConfigError(f"No task '{task}'. {f'Did you mean {near[0]}? ' if near else ''}There are {', '.join(TASKS)}.")
    if style not in STYLES:
        raise ConfigError(f"No style '{style}': there are {', '.join(STYLES)}.")
    if not 1 <= demos <= SEEDS_PER_COLLECTION // 2:
        raise ConfigError(f"demos must be from 1 to {SEEDS_PER_COLLECTION // 2}, not {demos}.")
    if noise is not None and not 0.0 <= noise <= 1.0:
        raise ConfigError(f"noise must be from 0 to 1 (action units), not {noise}.")
    if nudges is not None and not 0.0 <= nudges <= 1.0:
        raise ConfigError(f"nudges must be a chance from 0 to 1 a step, not {nudges}.")
    if strays is not None and not 0.0 <= strays <= 1.0:
        raise ConfigError(f"strays must be a chance from 0 to 1 a demonstration, not {strays}.")
    if not 0 <= seed <= _MAX_COLLECTION_SEED:
        raise ConfigError(f"seed must be from 0 to {_MAX_COLLECTION_SEED}, not {seed}: seeds above are for evaluation.")
    worker_count(workers, demos)
    if not 0.0 <= valid_fraction < 1.0:
        raise ConfigError(f"valid_fraction must be at least 0 and below 1, not {valid_fraction}.")
    return TASKS[task]
