"""p(x|z): what the decoder's outputs mean. All log-probabilities are sums over the data's dimensions, in nats, float32."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from daps_robot.errors import ConfigError


@dataclass(frozen=True)
class LikelihoodConfig:
    """A likelihood over normalised data.

    Attributes:
        kind: "gaussian"; "bernoulli" for data in {0, 1}; "action" for Gaussian dimensions beside binary ones.
        variance: of the Gaussian, in normalised units squared; "per-dimension" learns one for each entry of the last axis, a
            calibrated decoder (σ-VAE, Rybkin et al. 2021, arXiv 2006.13202); "per-output" lets the decoder predict each.
        min_variance, max_variance: bounds of a learned variance.
        binary: for "action", the indices of the last axis that are binary (a gripper's open / close).
    """

    kind: str = "gaussian"
    variance: float | Literal["per-dimension", "per-output"] = 0.05
    min_variance: float = 1e-3
    max_variance: float = 1.0
    binary: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in ("gaussian", "bernoulli", "action"):
            raise ConfigError(f"likelihood kind {self.kind!r}: use 'gaussian', 'bernoulli' or 'action'")
        if not isinstance(self.variance, str) and not self.variance > 0:
            raise ConfigError(f"likelihood variance {self.variance} must be positive, or be learned (per-dimension, per-output)")
        if not 0 < self.min_variance < self.max_variance:
            raise ConfigError(f"learned variance in [{self.min_variance}, {self.max_variance}] is an empty or negative range")


class Likelihood(nn.Module, ABC):
    """log p(x|z) from the decoder's outputs, which have `outputs` channels per channel of x on the last axis."""

    outputs: int = 1

    @abstractmethod
    def per_element(self, params: Tensor, x: Tensor) -> Tensor:
        """Log-density of each element, broadcast over leading axes, float32."""

    @abstractmethod
    def mean(self, params: Tensor) -> Tensor:
        """The reconstruction, in normalised units: mean of a Gaussian, the more likely value of a binary dimension."""

    def log_prob(
        self, params: Float[Tensor, "b k *x p"], x: Float[Tensor, "b *x c"], mask: Bool[Tensor, "b h"] | None = None
    ) -> Float[Tensor, "b k"]:
        """log p(x|z_k) in nats, summed over everything but b and k; masked steps do not count."""
        elements = self.per_element(params.float(), x.float()[:, None])
        if mask is not None:
            elements = elements * mask[:, None, :, None]
        return elements.flatten(2).sum(-1)


class Gaussian(Likelihood):
    """Independent Gaussians of fixed or learned variance."""

    def __init__(self, config: LikelihoodConfig, dimensions: int) -> None:
        super().__init__()
        self.config = config
        self.outputs = 2 if config.variance == "per-output" else 1
        if config.variance == "per-dimension":
            self.raw = nn.Parameter(torch.zeros(dimensions))

    def log_variance(self, raw: Tensor) -> Tensor:
        """A learned log-variance, squashed smoothly into its bounds (a hard clip would have no gradient outside)."""
        low, high = math.log(self.config.min_variance), math.log(self.config.max_variance)
        return low + (high - low) * torch.sigmoid(raw)

    def per_element(self, params: Tensor, x: Tensor) -> Tensor:
        variance = self.config.variance
        if not isinstance(variance, str):
            return (params - x).square() * (-0.5 / variance) - 0.5 * math.log(2 * math.pi * variance)
        mean = self.mean(params)
        log_variance = self.log_variance(self.raw if variance == "per-dimension" else params.chunk(2, dim=-1)[1])
        return -0.5 * ((mean - x).square() * torch.exp(-log_variance) + log_variance + math.log(2 * math.pi))

    def mean(self, params: Tensor) -> Tensor:
        return params if self.outputs == 1 else params.chunk(2, dim=-1)[0]


class Bernoulli(Likelihood):
    """Independent Bernoullis on data in {0, 1}; the mean is the probability of 1."""

    def per_element(self, params: Tensor, x: Tensor) -> Tensor:
        return -F.binary_cross_entropy_with_logits(params, x.expand_as(params), reduction="none")

    def mean(self, params: Tensor) -> Tensor:
        return torch.sigmoid(params)


class ActionLikelihood(Likelihood):
    """Gaussian on continuous dimensions, Bernoulli on binary ones (normalised to {0, 1}), e.g. a gripper's command."""

    binary: Tensor

    def __init__(self, config: LikelihoodConfig, dimensions: int) -> None:
        super().__init__()
        self.gaussian = Gaussian(config, dimensions)
        self.bernoulli = Bernoulli()
        self.outputs = self.gaussian.outputs
        if not all(0 <= i < dimensions for i in config.binary):
            raise ConfigError(f"binary dimensions {config.binary} of a {dimensions}-dimensional action")
        binary = torch.zeros(dimensions, dtype=torch.bool)
        binary[list(config.binary)] = True
        self.register_buffer("binary", binary, persistent=False)

    def per_element(self, params: Tensor, x: Tensor) -> Tensor:
        logits = self.gaussian.mean(params)
        bernoulli = self.bernoulli.per_element(logits, (x > 0.5).float())
        return torch.where(self.binary, bernoulli, self.gaussian.per_element(params, x))

    def mean(self, params: Tensor) -> Tensor:
        mean = self.gaussian.mean(params)
        return torch.where(self.binary, (mean > 0).to(mean.dtype), mean)


def make_likelihood(config: LikelihoodConfig, channels: int) -> Likelihood:
    """The likelihood of data whose last axis has `channels` entries."""
    if config.kind == "action":
        return ActionLikelihood(config, channels)
    return Gaussian(config, channels) if config.kind == "gaussian" else Bernoulli()
