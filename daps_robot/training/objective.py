"""What is trained, and for how long."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn

from daps_robot.errors import ConfigError
from daps_robot.estimators.base import Loss
from daps_robot.training.optimizer import OptimizerConfig


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
        keep_last: models of the last validations to keep in checkpoints/<step>, beside the best one.
        patience: stop after so many validations without improvement; 0 never.
        max_skipped: non-finite steps in a row that end the run.
        tensorboard: write TensorBoard files beside the JSONL.
        wandb: log to this project of Weights & Biases too (extra `wandb`); by default to none.
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
    keep_last: int = 0
    patience: int = 0
    max_skipped: int = 50
    tensorboard: bool = True
    wandb: str = ""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        for name in ("patience", "max_skipped", "eval_every", "keep_last", "workers"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} {getattr(self, name)} must be at least 0")
        for name in ("max_steps", "batch_size", "accumulate", "log_every"):
            if not 1 <= getattr(self, name) <= 10**9:
                raise ConfigError(f"{name} {getattr(self, name)} must be from 1 to 10⁹")
        if not (math.isfinite(self.max_minutes) and self.max_minutes >= 0):
            raise ConfigError(f"max_minutes {self.max_minutes} must be a number of at least 0")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed {self.seed} must be from 0 to 2⁶³ − 1")
