"""What an estimator is: how the encoder learns through discrete codes.

To add one: a class with the decorator `ESTIMATORS.register(name)`, or an entry point of the group "daps_robot.estimators".
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from daps_robot.errors import ConfigError
from daps_robot.models.code_model import CodeModel
from daps_robot.models.posteriors import make_posterior
from daps_robot.models.tokenizer import Inputs, Tokenizer, TokenizerConfig
from daps_robot.registry import Registry


class Loss(NamedTuple):
    """Attributes: value, a scalar with gradient; metrics, detached scalars to log."""

    value: Tensor
    metrics: dict[str, Tensor]


@dataclass(frozen=True)
class EstimatorConfig:
    """An estimator's settings: a frozen dataclass, with a field for each. Here, none."""


@dataclass(frozen=True)
class AnnealedConfig(EstimatorConfig):
    """Settings of an estimator whose posterior is a distribution.

    Attributes:
        beta_start: weight β of the KL term at first; it falls geometrically.
        beta_end: β at last.
    """

    beta_start: float = 0.05
    beta_end: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.beta_end <= self.beta_start < math.inf:
            raise ConfigError(f"β falls from {self.beta_start} to {self.beta_end}: both positive, the second no larger")


def anneal(step: int, start: float, end: float, steps: int) -> float:
    """β_t = max(β_end, β_0·(β_end/β_0)^(t/N)): geometric, then constant."""
    return max(end, start * (end / start) ** (step / steps))


class Estimator(nn.Module, ABC):
    """Trains a tokenizer's posterior and decoder. Modules and parameters of its own exist during training only."""

    config_type: ClassVar[type[EstimatorConfig]] = EstimatorConfig
    """The class of its settings."""

    autoregressive: ClassVar[bool | None] = None
    """Whether its posterior is autoregressive; None where that is for the user to say."""

    divisible: ClassVar[bool] = True
    """Whether a step's batch may be cut into parts, one after the other: not where `loss` changes what the next one finds."""

    own_networks: ClassVar[bool] = False
    """Whether the tokenizer's networks are the method's own, and not those that the other estimators share."""

    learning_rates: Mapping[str, float] = {}
    """Learning rates of parameters of its own that do not follow the trainer's: name → rate."""

    def __init__(self, tokenizer: Tokenizer, config: Any, total_steps: int) -> None:
        """`config` is of `config_type`; `total_steps` is how long its schedules last."""
        super().__init__()
        self.tokenizer = tokenizer
        self.config = config
        self.total_steps = total_steps

    @classmethod
    def tokenizer_config(cls, config: TokenizerConfig) -> TokenizerConfig:
        """The tokenizer that this estimator trains, given what was asked for.

        Its encoder is as large as the autoregressive one that was asked for: another kind has a wider MLP.
        """
        if cls.autoregressive in (None, config.codes.autoregressive):
            return config
        return as_large(replace(config, codes=replace(config.codes, autoregressive=cls.autoregressive)), config)

    @classmethod
    def configure(cls, **settings: Any) -> Any:
        """Its settings, from those of `settings` that it has."""
        known = {field.name for field in fields(cls.config_type)}
        return cls.config_type(**{name: value for name, value in settings.items() if name in known})

    @abstractmethod
    def loss(self, inputs: Inputs, step: int) -> Loss:
        """The loss of one batch at step 0 … total_steps−1; noise comes from torch's global generator."""

    def check_code_model(self) -> None:
        """Raises ConfigError where the tokenizer's posterior is no code model, for estimators that train one."""
        if not isinstance(self.tokenizer.posterior, CodeModel):
            raise ConfigError(
                f"{type(self).__name__} trains a code model q(z|x): leave the tokenizer's posterior unset, or a lattice"
            )

    def settle(self, steps: int) -> None:
        """Bring the tokenizer into the state in which it is used; called after `steps` steps, before each evaluation."""

    def beta(self, step: int) -> float:
        """The weight of the KL term at this step; 1 where an estimator has none."""
        if not isinstance(self.config, AnnealedConfig):
            return 1.0
        return anneal(step, self.config.beta_start, self.config.beta_end, self.total_steps)

    def warnings(self, metrics: Mapping[str, float]) -> list[str]:
        """What the validation metrics warn of, each with a remedy."""
        return []


def as_large(config: TokenizerConfig, reference: TokenizerConfig) -> TokenizerConfig:
    """`config` with the MLP ratio in its posterior at which that has as many parameters as the reference's, or nearly."""

    def widened(ratio: int) -> TokenizerConfig:
        return replace(config, codes=replace(config.codes, transformer=replace(config.codes.transformer, mlp_ratio=ratio)))

    def parameters(of: TokenizerConfig) -> int:
        return sum(p.numel() for p in make_posterior(of.posterior, of.codes).parameters())

    ratio, wanted = config.codes.transformer.mlp_ratio, parameters(reference)
    sizes = {r: abs(parameters(widened(r)) - wanted) for r in range(ratio, min(2 * ratio + 4, 64) + 1)}
    return widened(min(sizes, key=lambda r: sizes[r]))


ESTIMATORS: Registry[type[Estimator]] = Registry("estimator", "daps_robot.estimators")
