"""What an estimator is: how the encoder learns through discrete codes.

To add one: a class with the decorator `ESTIMATORS.register(name)`, or an entry point of the group "daps_robot.estimators".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from daps_robot.models.tokenizer import Inputs, Tokenizer, TokenizerConfig
from daps_robot.registry import Registry


class Loss(NamedTuple):
    """Attributes: value, a scalar with gradient; metrics, detached scalars to log."""

    value: Tensor
    metrics: dict[str, Tensor]


class Estimator(nn.Module, ABC):
    """Trains a tokenizer's posterior and decoder. Modules and parameters of its own exist during training only."""

    learning_rates: Mapping[str, float] = {}
    """Learning rates of parameters of its own that do not follow the trainer's: name → rate."""

    def __init__(self, tokenizer: Tokenizer, config: Any, total_steps: int) -> None:
        """`config` holds the settings of all estimators (today `DAPSConfig`); each takes what concerns it."""
        super().__init__()
        self.tokenizer = tokenizer
        self.config = config
        self.total_steps = total_steps

    @classmethod
    def tokenizer_config(cls, config: TokenizerConfig) -> TokenizerConfig:
        """The tokenizer that this estimator trains, given what was asked for (a quantised one swaps the posterior)."""
        return config

    @abstractmethod
    def loss(self, inputs: Inputs, step: int) -> Loss:
        """The loss of one batch at step 0 … total_steps−1; noise comes from torch's global generator."""

    def beta(self, step: int) -> float:
        """The weight of the KL term at this step; 1 where an estimator has none."""
        return 1.0

    def warnings(self, metrics: Mapping[str, float]) -> list[str]:
        """What the validation metrics warn of, each with a remedy."""
        return []


ESTIMATORS: Registry[type[Estimator]] = Registry("estimator", "daps_robot.estimators")
