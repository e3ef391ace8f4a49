"""The training loop: steps, validations, checkpoints, signals.

A step is a function of the weights, the data and (seed, step) alone: the batch's indices and all noise are derived from these
two numbers, so an interrupted run goes on exactly where it was, and several processes (torchrun) take the steps of one.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from tqdm import tqdm

from daps_robot import parallel
from daps_robot.checkpoints import before, forget_checkpoints, keep_checkpoint, load_last_state, replace_state
from daps_robot.config import save_json
from daps_robot.errors import CheckpointError, ConfigError, DapsRobotError, DataError
from daps_robot.estimators.base import Loss
from daps_robot.training.logger import MetricLogger
from daps_robot.training.objective import Objective, TrainerConfig
from daps_robot.training.optimizer import WeightAverage, clip_gradients, learning_rate_scale, make_optimizer, set_learning_rates
from daps_robot.training.progress import Mean, Progress
from daps_robot.training.stream import Batches, batches, dead_worker, step_seed

NO_STEP = 2**40
"""In place of a step, for noise that belongs to none."""

STATE_VERSION = 1
"""Of what a state holds; those written before there were versions count as the first."""


class Training:
    """A run of the loop: the model, what trains it, and where it stands."""

    def __init__(self, config: TrainerConfig, directory: Path, fabric: Fabric, objective: Objective) -> None:
        self.config, self.directory, self.fabric, self.objective = config, directory, fabric, objective
        optimizer = make_optimizer(config.optimizer, objective, objective.own_learning_rates())
        self.model, self.optimizer = fabric.setup(objective, optimizer)
        self.average = WeightAverage(objective, config.optimizer.ema) if config.optimizer.ema else None
        self.progress, self.interval = Progress(), Mean()
        self.logger: MetricLogger | None = None
        self.trained: dict[str, float] = {}  # the last means that were logged

    def run(self, data: Batches, stop: Stop) -> None:
        config, progress, device = self.config, self.progress, self.fabric.device
        if parallel.is_main():
            self.logger = MetricLogger(self.directory, progress.step, config.tensorboard, config.wandb)
            if config.keep_last:
                forget_checkpoints(self.directory / "checkpoints", progress.step)
        share = parallel.own_share(config.batch_size)
        pin = device.type == "cuda"
        stream = batches(data, config.batch_size, config.seed, progress.step, share, config.workers, pin)
        hidden = not (sys.stderr.isatty() and parallel.is_main())
        bar = tqdm(total=config.max_steps, initial=progress.step, disable=hidden, unit="step")
        clock = time.perf_counter()
        next_line = clock
        try:
            while not progress.finished:
                self.step(self.fabric.to_device(self.next_batch(stream)), share)
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
            self.save()
        except RuntimeError as error:
            raise dead_worker(error, config.workers) or parallel.died(error) or error from None
        finally:
            stream.close()  # its processes end with it
            bar.close()
            if self.logger is not None:
                self.logger.close()

    def next_batch(self, stream: Iterator[Any]) -> Any:
        """The next batch; where the data cannot be had, what was trained so far is saved before the error goes on."""
        try:
            return next(stream)
        except DataError:
            if parallel.world_size() == 1:
                self.save()
            raise

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
                f"(first in {f'the gradient of {names[0]}' if names else 'the loss'}): lower the learning rate or check the data"
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
        """Validate (the averaged weights if there are such), log, and keep the model if it is the best, or as one of the last."""
        with self.evaluated_weights():
            self.validate()

    @contextmanager
    def evaluated_weights(self) -> Iterator[None]:
        """The averaged weights in place of the trained ones, which are back however this ends: they are what is saved."""
        if self.average is not None:
            self.average.swap()
        self.objective.eval()
        try:
            yield
        finally:
            self.objective.train()
            if self.average is not None:
                self.average.swap()

    def validate(self) -> None:
        objective, progress = self.objective, self.progress
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
            if keep := self.config.keep_last:
                keep_checkpoint(self.directory / "checkpoints", progress.step, keep, objective.save)

    def save(self) -> None:
        self.interval.share(self.fabric.device)
        if self.logger is None:  # another process writes
            return
        self.logger.flush()  # what was logged before a state must be there wherever the state is
        state = {
            "version": STATE_VERSION,
            "model": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.average,
            "progress": vars(self.progress),
            "interval": vars(self.interval),
        }
        replace_state(state, path := self.directory / "state.pt")
        if self.progress.finished:
            before(path).unlink(missing_ok=True)

    def load(self) -> None:
        path = self.directory / "state.pt"
        state = load_last_state(path)
        if isinstance(state, dict) and state.get("version", STATE_VERSION) != STATE_VERSION:
            raise CheckpointError(
                f"{path} has version {state['version']!r:.40}, this daps_robot goes on from {STATE_VERSION}: "
                "resume it with the daps_robot that began it"
            )
        try:
            self.objective.load_state_dict(state["model"])
            own = self.optimizer.state_dict()["param_groups"]  # the settings are those of config.json
            self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": own})
            for parameter, moments in self.optimizer.state.items():
                found = {name: moment.shape for name, moment in moments.items()}
                if found != {"step": (), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}:
                    raise ValueError("moments of another parameter or optimiser")
            if self.average is not None:
                for own, saved in zip(self.average.average, state["average"], strict=True):
                    own.copy_(saved.view(own.shape))
            progress = Progress(**state["progress"])
            self.interval.restore(**state["interval"])
            vars(self.progress).update(vars(progress))
        except (ConfigError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path} is not the training state of this run: start anew with --overwrite") from error


def _cut(batch: Any, rows: slice) -> Any:
    """Some rows of a batch: a tensor, or a (named) tuple of them; what there is none of stays None."""
    if isinstance(batch, Tensor):
        return batch[rows]
    if not isinstance(batch, tuple):
        raise ConfigError(f"a batch is a tensor or a tuple of tensors, not {type(batch).__name__}")
    parts = tuple(None if tensor is None else tensor[rows] for tensor in batch)
    return batch._make(parts) if hasattr(batch, "_make") else parts


@dataclass
class Stop:
    """Whether somebody asked the loop to stop."""

    requested: bool = False


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """SIGINT and SIGTERM ask the loop to save and stop after the current step; a second SIGINT stops at once."""
    stop = Stop()

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
    names = [name for name in shown if f"train/{name}" in means] or ["loss"] * ("train/loss" in means)
    values = "  ".join(f"{name} {means[f'train/{name}']:.4g}" for name in names)
    return f"step {progress.step}/{config.max_steps}  {progress.seconds:.0f} s  {values}"
