"""The core trainer, on Lightning Fabric. It knows nothing of actions or images.

A step is a function of the weights, the data and (seed, step) alone: the batch's indices and all noise are derived from these
two numbers, so an interrupted run goes on exactly where it was, and several processes (torchrun) take the steps of one.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor, nn
from tqdm import tqdm

from daps_robot import parallel
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
from daps_robot.training.stream import Batches, batches, dead_worker, step_seed


class Objective(nn.Module, ABC):
    """What is trained: a loss on batches, and an evaluation whose `criterion` says which weights are best."""

    criterion: str = "loss"
    """The validation metric that is smaller for better weights."""

    divisible: bool = True
    """Whether the loss of a batch is the mean over its parts, whatever `forward` was called on before in the same step."""

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
        validate_at: steps at which to validate, besides those of eval_every and the last.
        batch_size: examples of a step, over all processes.
        accumulate: parts of a batch whose gradients are added up, one after the other, for memory's sake; DAPS keeps to its
            effective sample size in each part.
        workers: processes that load data ahead; 0 loads it when it is needed.
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
    validate_at: tuple[int, ...] = ()
    batch_size: int = 64
    accumulate: int = 1
    workers: int = 0
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
        for name in ("patience", "max_skipped", "eval_every", "workers"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} {getattr(self, name)} must be at least 0")
        for name in ("max_steps", "batch_size", "accumulate", "log_every"):
            if not 1 <= getattr(self, name) <= 10**9:
                raise ConfigError(f"{name} {getattr(self, name)} must be from 1 to 10⁹")
        if not (math.isfinite(self.max_minutes) and self.max_minutes >= 0):
            raise ConfigError(f"max_minutes {self.max_minutes} must be a number of at least 0")
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
        if self.config.accumulate > 1 and not objective.divisible:
            raise ConfigError("this estimator's steps cannot be divided into parts: leave out --accumulate")
        if self.config.batch_size > max(10_000, 100 * len(data)):
            raise ConfigError(f"batch_size {self.config.batch_size} is out of proportion to {len(data)} examples")
        fabric = self._fabric()
        with owned_directory(self.directory) if parallel.is_main() else nullcontext(), _stop_signals() as stop:
            if parallel.is_main():
                self._claim(resume, overwrite)
            parallel.wait_for_all()
            training = _Training(self.config, self.directory, fabric, objective)
            if resume and (self.directory / "state.pt").is_file():
                training.load()
            at = float(training.progress.step)
            if parallel.largest([at, -at], fabric.device) != [at, -at]:
                raise RunDirectoryError(f"not all processes find the same run in {self.directory}: it must be shared by all")
            training.run(data, stop)
            parallel.wait_for_all()
        if not math.isfinite(training.progress.best):
            raise DapsRobotError(
                f"no validation of {self.directory} was finite: lower --lr, or look for absurd values in the data; "
                "nothing was kept"
            )
        return load_json(self.directory / "best.json")

    def _fabric(self) -> Fabric:
        """The device and the precision; under torchrun, one of several processes that share each batch."""
        config, processes = self.config, int(os.environ.get("WORLD_SIZE", "1"))
        if config.batch_size % (processes * config.accumulate):
            raise ConfigError(
                f"batch_size {config.batch_size} is not divisible by {processes} processes × {config.accumulate} parts: "
                "choose a multiple"
            )
        several: dict[str, Any] = {"devices": 1}
        if processes > 1:
            here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
            # a warm start leaves parts of the network unused, which the reducer must find out
            ddp = DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)
            several = {"devices": here, "num_nodes": processes // here, "strategy": ddp}
        try:
            fabric = Fabric(accelerator=config.device, precision=config.precision, **several)
            fabric.launch()
        except Exception as error:  # Fabric has kinds of its own
            raise ConfigError(f"device {config.device!r} in {config.precision!r} cannot be used: {short(error)}") from error
        return fabric

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
            changed = [text for text in differences(found, self.description) if ".workers:" not in text]  # which changes nothing
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


class _Training:
    """A run of the loop: the model, what trains it, and where it stands."""

    def __init__(self, config: TrainerConfig, directory: Path, fabric: Fabric, objective: Objective) -> None:
        self.config, self.directory, self.fabric, self.objective = config, directory, fabric, objective
        optimizer = make_optimizer(config.optimizer, objective, objective.own_learning_rates())
        self.model, self.optimizer = fabric.setup(objective, optimizer)
        self.average = WeightAverage(objective, config.optimizer.ema) if config.optimizer.ema else None
        self.progress, self.interval = Progress(), _Mean()
        self.logger: MetricLogger | None = None
        self.trained: dict[str, float] = {}  # the last means that were logged

    def run(self, data: Batches, stop: _Stop) -> None:
        config, progress, device = self.config, self.progress, self.fabric.device
        if parallel.is_main():
            self.logger = MetricLogger(self.directory, progress.step, config.tensorboard)
        share = parallel.own_share(config.batch_size)
        pin = device.type == "cuda"
        stream = batches(data, config.batch_size, config.seed, progress.step, share, config.workers, pin)
        hidden = not (sys.stderr.isatty() and parallel.is_main())
        bar = tqdm(total=config.max_steps, initial=progress.step, disable=hidden, unit="step")
        clock = time.perf_counter()
        next_line = clock
        try:
            while not progress.finished:
                self.step(self.fabric.to_device(next(stream)), share)
                progress.step += 1
                bar.update()

                now = time.perf_counter()
                elapsed, stopping = parallel.largest([now - clock, float(stop.requested)], device)
                progress.seconds, clock = progress.seconds + elapsed, now
                if progress.step % config.log_every == 0 or progress.step == config.max_steps:
                    self.log_means()
                    if bar.disable and now >= next_line and parallel.is_main():
                        print(_line(progress, config, self.trained), flush=True)
                        next_line = now + 10
                finished = progress.step >= config.max_steps or 0 < 60 * config.max_minutes <= progress.seconds
                regular = config.eval_every and progress.step % config.eval_every == 0
                if finished or regular or progress.step in config.validate_at:
                    self.evaluate()
                    finished = finished or 0 < config.patience <= progress.evaluations_since_best
                    if not finished:
                        self.save()
                    clock = time.perf_counter()
                if finished:
                    progress.finished = True
                    break
                if stopping:
                    self.save()
                    parallel.wait_for_all()  # the first to leave makes the others' launcher end them
                    raise KeyboardInterrupt(f"stopped at step {progress.step}; state saved in {self.directory}")
        except RuntimeError as error:
            raise dead_worker(error, config.workers) or error from None
        finally:
            stream.close()  # its processes end with it
            bar.close()
            if self.logger is not None:
                self.logger.close()
        self.save()

    def step(self, batch: Any, rows: slice) -> None:
        """One optimiser step on a batch, of which these are the rows of this process."""
        config, progress = self.config, self.progress
        set_learning_rates(self.optimizer, learning_rate_scale(config.optimizer, progress.step, config.max_steps))
        losses = [self.gradient(batch, rows, part) for part in range(config.accumulate)]
        norm = clip_gradients(config.optimizer, self.optimizer)
        finite = bool(torch.isfinite(norm + sum(loss.value for loss in losses)))
        if parallel.largest([float(not finite)], norm.device) == [0]:
            self.optimizer.step()
            progress.skipped_in_a_row = 0
            for loss in losses:
                self.interval.add({"loss": loss.value, "gradient_norm": norm, **loss.metrics})
        else:
            self.skip()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(progress.step)

    def gradient(self, batch: Any, rows: slice, part: int) -> Loss:
        """Add the gradient of one of the parts of a batch to what is there; its loss, detached."""
        parts = self.config.accumulate
        size = (rows.stop - rows.start) // parts
        own = slice(part * size, (part + 1) * size)
        torch.manual_seed(step_seed(self.config.seed, self.progress.step))
        with (
            parallel.rows_of(rows.start + own.start, self.config.batch_size),
            self.fabric.no_backward_sync(self.model, enabled=part < parts - 1),
        ):
            loss = self.model(_cut(batch, own), self.progress.step)
            self.fabric.backward(loss.value / parts)
        return Loss(loss.value.detach(), loss.metrics)

    def skip(self) -> None:
        progress = self.progress
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        if progress.skipped_in_a_row > self.config.max_skipped:
            gradients = [(name, p.grad) for name, p in self.objective.named_parameters() if p.grad is not None]
            names = [name for name, gradient in gradients if not gradient.isfinite().all()]
            raise DapsRobotError(
                f"{progress.skipped_in_a_row} steps in a row had a non-finite loss or gradient "
                f"(first in {names[0] if names else 'the loss'}): lower the learning rate or check the data"
            )

    def log_means(self) -> None:
        """Log the means since the last time."""
        progress = self.progress
        means = self.interval.means(self.fabric.device)
        self.trained = {f"train/{name}": value for name, value in means.items()}
        rate = {"seconds": progress.seconds, "steps_per_second": progress.step / progress.seconds}
        if self.logger is not None:
            self.logger.log(progress.step, "train", {**means, "skipped": float(progress.skipped), **rate})

    def evaluate(self) -> None:
        """Validate (the averaged weights if there are such), log, and keep the model if it is the best so far."""
        objective, progress = self.objective, self.progress
        if self.average is not None:
            self.average.swap()
        objective.eval()
        torch.manual_seed(step_seed(self.config.seed, NO_STEP))  # the same noise at every validation
        metrics = {**objective.evaluate(), "step": progress.step, "train_seconds": progress.seconds}
        progress.evaluations_since_best += 1
        # each rank's own value may differ in the last bit, and all must decide alike
        (value,) = parallel.mean_of_each([metrics[objective.criterion]], self.fabric.device)
        better = value < progress.best
        if better:
            progress.best, progress.best_step = value, progress.step
            progress.evaluations_since_best = 0
        if self.logger is not None:
            self.logger.log(progress.step, "valid", metrics)
            for warning in objective.warnings({**self.trained, **metrics}):
                print(f"warning: {warning}", file=sys.stderr, flush=True)
            if better:
                objective.save(self.directory / "model")
                save_json(metrics, self.directory / "best.json")
        objective.train()
        if self.average is not None:
            self.average.swap()

    def save(self) -> None:
        self.interval.share(self.fabric.device)
        if not parallel.is_main():
            return
        state = {
            "model": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.average,
            "progress": vars(self.progress),
            "interval": vars(self.interval),
        }
        save_state(state, self.directory / "state.pt")

    def load(self) -> None:
        path = self.directory / "state.pt"
        state = load_state(path)
        try:
            self.objective.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.average is not None:
                for own, saved in zip(self.average.average, state["average"], strict=True):
                    own.copy_(saved)
            vars(self.progress).update(state["progress"])
            vars(self.interval).update(state["interval"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path} is not the training state of this run: start anew with --overwrite") from error


def _cut(batch: Any, rows: slice) -> Any:
    """Some rows of a batch: a tensor, or a (named) tuple of them."""
    if isinstance(batch, Tensor):
        return batch[rows]
    if not isinstance(batch, tuple):
        raise ConfigError(f"a batch is a tensor or a tuple of tensors, not {type(batch).__name__}")
    parts = tuple(tensor[rows] for tensor in batch)
    return batch._make(parts) if hasattr(batch, "_make") else parts


class _Mean:
    """Means of scalars that stay tensors until they are asked for."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, metrics: dict[str, Tensor]) -> None:
        for name, value in metrics.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def share(self, device: torch.device) -> None:
        """Make the sums of all ranks the same, with the same mean."""
        if parallel.world_size() > 1:
            totals = parallel.mean_of_each([float(total) for total in self.sums.values()], device)
            self.sums = dict(zip(self.sums, map(torch.tensor, totals), strict=True))

    def means(self, device: torch.device) -> dict[str, float]:
        self.share(device)
        means = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means


@dataclass
class _Stop:
    requested: bool = False


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """SIGINT and SIGTERM ask the loop to save and stop after the current step; a second SIGINT stops at once."""
    stop = _Stop()

    def handle(number: int, frame: Any) -> None:
        if stop.requested and number == signal.SIGINT:  # a launcher may pass the same SIGTERM on twice
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
    values = "  ".join(f"{name} {means[f'train/{name}']:.4g}" for name in shown if f"train/{name}" in means)
    return f"step {progress.step}/{config.max_steps}  {progress.seconds:.0f} s  {values}"
