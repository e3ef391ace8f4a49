"""Relaxed estimators: one-hot codes forward, the gradient of something continuous backward.

One code sequence per input, decoded as its one-hot vectors times the embedding table; the loss is −log p(x|z) + β·KL, the KL
being the exact one of each position's conditional to the uniform prior. Estimators differ in the gradient of a one-hot vector
with respect to its logits. Through an autoregressive encoder it flows back through the drawing itself, l passes one after
another.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from daps_robot.errors import ConfigError
from daps_robot.estimators.base import ESTIMATORS, AnnealedConfig, Estimator, Loss, anneal
from daps_robot.models.code_model import CodeModel
from daps_robot.models.prefixes import over_prefix
from daps_robot.models.sampling import relaxed
from daps_robot.models.tokenizer import Inputs, Tokenizer
from daps_robot.parallel import noise

Logits = Float[Tensor, "... v"]


@dataclass(frozen=True)
class RelaxedConfig(AnnealedConfig):
    """Settings of a relaxed estimator.

    Attributes:
        temperature_start: of the relaxation, at first; it falls geometrically.
        temperature_end: at last.
    """

    temperature_start: float = 1.0
    temperature_end: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.temperature_end <= self.temperature_start:
            raise ConfigError(
                f"the temperature falls from {self.temperature_start} to {self.temperature_end}: both must be positive, "
                "the second no larger"
            )


class RelaxedEstimator(Estimator):
    """The loss of the module's docstring."""

    config_type = RelaxedConfig
    config: RelaxedConfig

    def __init__(self, tokenizer: Tokenizer, config: Any, total_steps: int) -> None:
        super().__init__(tokenizer, config, total_steps)
        self.check_code_model()

    @abstractmethod
    def relax(self, logits: Logits, temperature: float) -> Logits:
        """A one-hot draw from softmax(logits), with this estimator's gradient."""

    def temperature(self, step: int) -> float:
        return anneal(step, self.config.temperature_start, self.config.temperature_end, self.total_steps)

    def loss(self, inputs: Inputs, step: int) -> Loss:
        tokenizer, posterior, beta, temperature = (
            self.tokenizer,
            self.tokenizer.posterior,
            self.beta(step),
            self.temperature(step),
        )
        assert isinstance(posterior, CodeModel)
        one_hot, logits = relaxed(posterior, tokenizer.prepare(inputs), lambda logits: self.relax(logits, temperature))
        params = tokenizer.decoder_params((one_hot @ tokenizer.embedding.weight)[:, None], inputs)
        r = tokenizer.likelihood.log_prob(params, inputs.x, inputs.mask)
        log_probs = logits.log_softmax(-1)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        kl = over_prefix(math.log(posterior.config.vocabulary) - entropy[:, None], inputs.kept)
        loss = beta * kl.mean() - r.mean()
        metrics = {
            "elbo_beta": -loss,
            "reconstruction": -r.mean(),
            "entropy": entropy.sum(-1).mean(),
            "beta": torch.tensor(beta),
            "temperature": torch.tensor(temperature),
        }
        return Loss(loss, {name: value.detach() for name, value in metrics.items()})


def straight_through(hard: Logits, soft: Logits) -> Logits:
    """`hard`, with the gradient of `soft`."""
    return hard + soft - soft.detach()


def one_hot_of(codes: Tensor, logits: Logits) -> Logits:
    """One-hot rows (… v) of codes (…), in the type of the logits."""
    return F.one_hot(codes, logits.shape[-1]).to(logits.dtype)


def gumbel_noise(like: Tensor) -> Tensor:
    """Standard Gumbel noise."""
    return -noise(lambda t: t.exponential_(), like.shape, like.device).log()


def gumbel_softmax(logits: Logits, temperature: float) -> Logits:
    """Straight-through Gumbel-Softmax (Jang et al. 2017, arXiv 1611.01144; Maddison et al. 2017, arXiv 1611.00712)."""
    perturbed = logits + gumbel_noise(logits)
    return straight_through(one_hot_of(perturbed.argmax(-1), logits), torch.softmax(perturbed / temperature, dim=-1))


def gumbel_rao(logits: Logits, temperature: float, draws: int) -> Logits:
    """Gumbel-Rao Monte Carlo (Paulus et al. 2021, arXiv 2010.04838): the straight-through gradient averaged over the noise.

    A code is drawn once; `draws` sets of Gumbel noise that would have led to it are drawn given it (eq. 10 there): with
    E_i ~ Exp(1), the perturbed logit of the code is −log E_D + log Z, and of every other −log(E_i/exp(θ_i) + E_D/Z).
    """
    log_probs = logits.detach().log_softmax(-1)  # Z = 1
    codes = (log_probs + gumbel_noise(log_probs)).argmax(-1)
    hard = one_hot_of(codes, logits)
    exponential = noise(lambda t: t.exponential_(), (draws, *logits.shape), logits.device, axis=1)
    of_code = (exponential * hard).sum(-1, keepdim=True)
    perturbed = torch.where(hard.bool(), -of_code.log(), -(exponential * (-log_probs).exp() + of_code).log())
    soft = torch.softmax((logits.log_softmax(-1) + (perturbed - log_probs)) / temperature, dim=-1).mean(0)
    return straight_through(hard, soft)


def reinmax(logits: Logits, temperature: float) -> Logits:
    """ReinMax (Liu et al. 2023, arXiv 2304.08612, algorithm 2): second-order accurate by Heun's method.

    π0 = softmax(θ), D ~ π0, π1 = (D + softmax(θ/τ))/2, taken as a softmax of θ shifted by a constant; the gradient is that
    of 2 π1 − π0/2.
    """
    probs = torch.softmax(logits, dim=-1)
    codes = (logits.detach() + gumbel_noise(logits)).argmax(-1)
    hard = one_hot_of(codes, logits)
    middle = (hard + torch.softmax(logits / temperature, dim=-1)) / 2
    shift = (middle.log() - logits).detach()
    soft = 2 * torch.softmax(logits + shift, dim=-1) - probs / 2
    return straight_through(hard, soft)


@ESTIMATORS.register("gumbel")
class Gumbel(RelaxedEstimator):
    """Straight-through Gumbel-Softmax, back-propagated through the drawing."""

    def relax(self, logits: Logits, temperature: float) -> Logits:
        return gumbel_softmax(logits, temperature)


@ESTIMATORS.register("gumbel-na")
class FactorisedGumbel(Gumbel):
    """Straight-through Gumbel-Softmax with a factorised posterior."""

    autoregressive = False


@dataclass(frozen=True)
class GumbelRaoConfig(RelaxedConfig):
    """Settings of Gumbel-Rao Monte Carlo.

    Attributes:
        draws: conditional Gumbel draws of a step.
    """

    draws: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws < 1:
            raise ConfigError(f"{self.draws} conditional Gumbel draws: take at least 1")


@ESTIMATORS.register("gr-mck")
class GumbelRao(RelaxedEstimator):
    """Gumbel-Rao Monte Carlo, back-propagated through the drawing."""

    config_type = GumbelRaoConfig
    config: GumbelRaoConfig

    def relax(self, logits: Logits, temperature: float) -> Logits:
        return gumbel_rao(logits, temperature, self.config.draws)


@ESTIMATORS.register("gr-mck-na")
class FactorisedGumbelRao(GumbelRao):
    """Gumbel-Rao Monte Carlo with a factorised posterior."""

    autoregressive = False


@dataclass(frozen=True)
class ReinMaxConfig(RelaxedConfig):
    """Settings of ReinMax: at a temperature of 1 its second-order accuracy holds."""

    temperature_start: float = 1.0
    temperature_end: float = 1.0


@ESTIMATORS.register("reinmax")
class ReinMax(RelaxedEstimator):
    """ReinMax with a factorised posterior."""

    autoregressive = False
    config_type = ReinMaxConfig

    def relax(self, logits: Logits, temperature: float) -> Logits:
        return reinmax(logits, temperature)
