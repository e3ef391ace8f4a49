"""The core trainer, on Lightning Fabric. It knows nothing of actions or images.

A step is a function of the weights, the data and (seed, step) alone: the batch's indices and all noise are derived from these
two numbers, so an interrupted run goes on exactly where it was.
"""

from __future__ import annotations

import math
import shutil
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from tqdm import tqdm

from daps_robot.checkpoints import load_state, owned_directory, save_state
from daps_robot.config import differences, load_json, save_json, to_json
from daps_robot.data.hdf5 import short
from daps_robot.errors import CheckpointError, ConfigError, DapsRobotError, RunDirectoryError
from daps_robot.estimators.base import Loss
from daps_robot.training.logger import MetricLogger
from daps_robot.training.optimizer import (
    OptimizerConfig,
    WeightAverage,
    clip_gradients,
    learning_rate_scale,
    make_optimizer,
    set_learning_rates,
)


@runtime_checkable
class Batches(Protocol):
    """Data that can be gathered by index."""

    def __len__(self) -> int: ...

    def gather(self, index: Tensor) -> Any: ...


class Objective(nn.Module, ABC):
    """What is trained: a loss on batches, and an evaluation whose `criterion` says which weights are best."""

    criterion: str = "loss"
    """The validation metric that is smaller for better weights."""

    @abstractmethod
    def forward(self, batch: Any, step: int) -> Loss:
        """The loss of a batch at a step."""

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Metrics over the whole validation split."""

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write the trained model for users."""

    def own_learning_rates(self) -> dict[str, float]:
        """Learning rates of parameters that do not follow the schedule, by parameter name."""
        return {}

    def warnings(self, metrics: dict[str, float]) -> list[str]:
        """What the metrics warn of, each with a remedy."""
        return []


@dataclass(frozen=True)
class TrainerConfig:
    """How long, on what, and how a model is trained.

    Attributes:
        max_steps: optimiser steps.
        max_minutes: stop early after so many minutes of training; 0 for no limit.
        mark_minutes: go on for at least so many minutes of training, beyond max_steps if need be, and validate once they have
            passed: runs of different speed can then be compared after equal steps and after equal time. 0 for none.
        batch_size: examples of a step.
        seed: of initial weights, batches and noise.
        device: where to train; "auto" takes a GPU where there is one.
        precision: float32, or bfloat16 autocast in which log-probabilities stay float32.
        eval_every: steps between validations and checkpoints; 0 only at the end.
        log_every: steps between logged training metrics (their means).
        patience: stop after so many validations without improvement; 0 never.
        max_skipped: non-finite steps in a row that end the run.
        tensorboard: write TensorBoard files beside the JSONL.
        optimizer: AdamW and what surrounds it.
    """

    max_steps: int = 1000
    max_minutes: float = 0.0
    mark_minutes: float = 0.0
    batch_size: int = 64
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    eval_every: int = 500
    log_every: int = 50
    patience: int = 0
    max_skipped: int = 50
    tensorboard: bool = True
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        for name in ("patience", "max_skipped", "eval_every"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} {getattr(self, name)} must be at least 0")
        for name in ("max_steps", "batch_size", "log_every"):
            if not 1 <= getattr(self, name) <= 10**9:
                raise ConfigError(f"{name} {getattr(self, name)} must be from 1 to 10⁹")
        for name in ("max_minutes", "mark_minutes"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ConfigError(f"{name} {getattr(self, name)} must be a number of at least 0")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed {self.seed} must be from 0 to 2⁶³ − 1")


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint."""

    step: int = 0
    seconds: float = 0.0
    best: float = math.inf
    best_step: int = 0
    evaluations_since_best: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    finished: bool = False


NO_STEP = 2**40
"""In place of a step, for noise that belongs to none."""


def step_seed(seed: int, step: int) -> int:
    """One number from two; its streams are independent for different steps."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0]) & (2**63 - 1)


def batch_index(examples: int, batch_size: int, seed: int, step: int) -> Tensor:
    """Indices of the batch at a step: an endless stream of permutations, one after another, cut into batches."""
    first = step * batch_size
    epochs = range(first // examples, (first + batch_size - 1) // examples + 1)
    order = torch.cat([_permutation(examples, seed, epoch) for epoch in epochs])
    offset = first - epochs[0] * examples
    return order[offset : offset + batch_size]


_PERMUTATIONS: dict[tuple[int, int, int], Tensor] = {}


def _permutation(examples: int, seed: int, epoch: int) -> Tensor:
    key = (examples, seed, epoch)
    if key not in _PERMUTATIONS:
        while len(_PERMUTATIONS) >= 4:
            _PERMUTATIONS.pop(next(iter(_PERMUTATIONS)))
        generator = torch.Generator().manual_seed(step_seed(seed, -1 - epoch & 0x7FFFFFFF))
        _PERMUTATIONS[key] = torch.randperm(examples, generator=generator)
    return _PERMUTATIONS[key]


class Trainer:
    """Runs the loop in a directory: config.json, metrics.jsonl, tensorboard/, state.pt (to resume), model/ (the best)."""

    def __init__(self, config: TrainerConfig, directory: Path, description: Any = None) -> None:
        """`description` is saved as config.json beside the results; a resumed run must have the same."""
        self.config, self.directory = config, directory
        self.description = to_json(description if description is not None else config)

    def fit(self, objective: Objective, data: Batches, resume: bool = False, overwrite: bool = False) -> dict[str, float]:
        """Train until a limit is met; the metrics of the best validation.

        `resume` goes on with a run that is in the directory (and starts one where there is none); `overwrite` throws it away.

        Raises:
            RunDirectoryError: the directory is in use, not writable, or holds a run and `resume` is False.
            DapsRobotError: too many non-finite steps in a row.
            KeyboardInterrupt: after SIGINT or SIGTERM; the state was saved.
        """
        if overwrite and resume:
            raise ConfigError("--resume goes on with a run and --overwrite throws it away: give one of them")
        if self.config.batch_size > max(10_000, 100 * len(data)):
            raise ConfigError(f"batch_size {self.config.batch_size} is out of proportion to {len(data)} examples")
        fabric = self._fabric()
        with owned_directory(self.directory), _stop_signals() as stop:
            self._claim(resume, overwrite)
            return self._fit(fabric, objective, data, resume, stop)

    def _fabric(self) -> Fabric:
        device, precision = self.config.device, self.config.precision
        try:
            return Fabric(accelerator=device, devices=1, precision=precision)
        except (ValueError, RuntimeError) as error:
            raise ConfigError(f"device {device!r} in {precision!r} cannot be used: {short(error)}") from error

    def _claim(self, resume: bool, overwrite: bool) -> None:
        path = self.directory / "config.json"
        if overwrite and path.is_file():  # without it, whatever lies there is not ours to throw away
            for name in ("config.json", "state.pt", "best.json", "metrics.jsonl", "timing.json"):
                (self.directory / name).unlink(missing_ok=True)
            for name in ("model", "tensorboard"):
                shutil.rmtree(self.directory / name, ignore_errors=True)
        if resume and path.is_file() and self._holds_results():
            found = load_json(path)
            if not isinstance(found, dict):
                raise RunDirectoryError(f"{path} is damaged: start again with --overwrite")
            changed = differences(found, self.description)
            if changed:
                raise RunDirectoryError(
                    f"{self.directory} was started with other settings ({'; '.join(changed[:5])}): "
                    "give the same ones, or --overwrite"
                )
        elif path.is_file() and not resume and self._holds_results():
            raise RunDirectoryError(f"{self.directory} already holds a run: use --resume, --overwrite or another --out")
        try:
            save_json(self.description, path)
        except OSError as error:
            raise RunDirectoryError(f"cannot write {path}: {error.strerror}") from error

    def _holds_results(self) -> bool:
        return any((self.directory / name).exists() for name in ("state.pt", "best.json"))

    def _fit(self, fabric: Fabric, objective: Objective, data: Batches, resume: bool, stop: _Stop) -> dict[str, float]:
        config, progress = self.config, Progress()
        optimizer = make_optimizer(config.optimizer, objective, objective.own_learning_rates())
        model, optimizer = fabric.setup(objective, optimizer)
        average = WeightAverage(objective, config.optimizer.ema) if config.optimizer.ema else None
        interval = _Mean()
        if resume and (self.directory / "state.pt").is_file():
            self._load(objective, optimizer, average, progress, interval)
        logger = MetricLogger(self.directory, progress.step, config.tensorboard)
        last: dict[str, float] = {}
        bar = tqdm(total=config.max_steps, initial=progress.step, disable=not sys.stderr.isatty(), unit="step")
        clock = time.perf_counter()
        next_line = clock
        try:
            while not progress.finished:
                step = progress.step
                torch.manual_seed(step_seed(config.seed, step))
                set_learning_rates(optimizer, learning_rate_scale(config.optimizer, step, config.max_steps))
                batch = fabric.to_device(data.gather(batch_index(len(data), config.batch_size, config.seed, step)))
                loss = model(batch, step)
                fabric.backward(loss.value)
                norm = clip_gradients(config.optimizer, optimizer)
                if torch.isfinite(norm + loss.value.detach()):
                    optimizer.step()
                    progress.skipped_in_a_row = 0
                    interval.add({"loss": loss.value.detach(), "gradient_norm": norm, **loss.metrics})
                else:
                    self._skip(objective, progress)
                optimizer.zero_grad()
                if average is not None:
                    average.update(step)
                progress.step += 1
                bar.update()

                now = time.perf_counter()
                before, progress.seconds, clock = progress.seconds, progress.seconds + now - clock, now
                marked = before < 60 * config.mark_minutes <= progress.seconds
                if progress.step % config.log_every == 0 or progress.step == config.max_steps:
                    means = interval.means()
                    last = {f"train/{name}": value for name, value in means.items()}
                    rate = {"seconds": progress.seconds, "steps_per_second": progress.step / progress.seconds}
                    logger.log(progress.step, "train", {**means, "skipped": float(progress.skipped), **rate})
                    if bar.disable and now >= next_line:
                        print(_line(progress, config, means), flush=True)
                        next_line = now + 10
                out_of_time = bool(config.max_minutes) and progress.seconds >= 60 * config.max_minutes
                at_end = progress.step >= config.max_steps
                finished = out_of_time or (at_end and progress.seconds >= 60 * config.mark_minutes)
                regular = config.eval_every and progress.step % config.eval_every == 0
                if finished or marked or regular or progress.step == config.max_steps:
                    self._evaluate(objective, average, progress, logger, last)
                    finished = finished or 0 < config.patience <= progress.evaluations_since_best
                    if not finished:
                        self._save(objective, optimizer, average, progress, interval)
                    clock = time.perf_counter()
                if finished:
                    progress.finished = True
                    break
                if stop.requested:
                    self._save(objective, optimizer, average, progress, interval)
                    raise KeyboardInterrupt(f"stopped at step {progress.step}; state saved in {self.directory}")
        finally:
            bar.close()
            logger.close()
        self._save(objective, optimizer, average, progress, interval)
        if not math.isfinite(progress.best):
            raise DapsRobotError(
                f"no validation of {self.directory} was finite: lower --lr, or look for absurd values in the data; "
                "nothing was kept"
            )
        return load_json(self.directory / "best.json")

    def _skip(self, objective: Objective, progress: Progress) -> None:
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        if progress.skipped_in_a_row > self.config.max_skipped:
            names = [n for n, p in objective.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
            raise DapsRobotError(
                f"{progress.skipped_in_a_row} steps in a row had a non-finite loss or gradient "
                f"(first in {names[0] if names else 'the loss'}): lower the learning rate or check the data"
            )

    def _evaluate(
        self,
        objective: Objective,
        average: WeightAverage | None,
        progress: Progress,
        logger: MetricLogger,
        last: dict[str, float],
    ) -> None:
        """Validate (the averaged weights if there are such), log, and keep the model if it is the best so far."""
        if average is not None:
            average.swap()
        objective.eval()
        torch.manual_seed(step_seed(self.config.seed, NO_STEP))  # the same noise at every validation
        metrics = {**objective.evaluate(), "step": progress.step, "train_seconds": progress.seconds}
        logger.log(progress.step, "valid", metrics)
        for warning in objective.warnings({**last, **metrics}):
            print(f"warning: {warning}", file=sys.stderr, flush=True)
        progress.evaluations_since_best += 1
        value = metrics[objective.criterion]
        if value < progress.best:
            progress.best, progress.best_step = value, progress.step
            progress.evaluations_since_best = 0
            objective.save(self.directory / "model")
            save_json(metrics, self.directory / "best.json")
        objective.train()
        if average is not None:
            average.swap()

    def _save(
        self, objective: Objective, optimizer: Any, average: WeightAverage | None, progress: Progress, interval: _Mean
    ) -> None:
        state = {
            "model": objective.state_dict(),
            "optimizer": optimizer.state_dict(),
            "average": None if average is None else average.average,
            "progress": vars(progress),
            "interval": vars(interval),
        }
        save_state(state, self.directory / "state.pt")

    def _load(
        self, objective: Objective, optimizer: Any, average: WeightAverage | None, progress: Progress, interval: _Mean
    ) -> None:
        path = self.directory / "state.pt"
        state = load_state(path)
        try:
            objective.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            if average is not None:
                for own, saved in zip(average.average, state["average"], strict=True):
                    own.copy_(saved)
            vars(progress).update(state["progress"])
            vars(interval).update(state["interval"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path} is not the training state of this run: start anew with --overwrite") from error


class _Mean:
    """Means of scalars that stay tensors until they are asked for."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, metrics: dict[str, Tensor]) -> None:
        for name, value in metrics.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        means = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means


@dataclass
class _Stop:
    requested: bool = False


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """SIGINT and SIGTERM ask the loop to save and stop after the current step; a second one stops at once."""
    stop = _Stop()

    def handle(number: int, frame: Any) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True

    try:
        previous = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread
        previous = {}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _line(progress: Progress, config: TrainerConfig, means: dict[str, float]) -> str:
    shown = ("reconstruction", "nll", "ess", "eta", "distinct")
    values = "  ".join(f"{name} {means[name]:.4g}" for name in shown if name in means)
    return f"step {progress.step}/{config.max_steps}  {progress.seconds:.0f} s  {values}"
