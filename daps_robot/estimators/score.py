"""Estimators of the score-function family: draw K code sequences, say how much the encoder should move towards each.

One step on a batch x: draw z_k ~ q(z|x); score them, ℓ_k = log q(z_k|x) and r_k = log p(x|z_k); the encoder's loss is
−mean_b Σ_k c_k ℓ_k with coefficients c_k that carry no gradient, the decoder's −mean_{b,k} r_k. Estimators differ in c.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from daps_robot.errors import ConfigError
from daps_robot.estimators.base import ESTIMATORS, AnnealedConfig, Estimator, EstimatorConfig, Loss
from daps_robot.estimators.parts import loss_by_parts, part_size_for
from daps_robot.models.code_model import CodeModel, Memory
from daps_robot.models.sampling import sample
from daps_robot.models.tokenizer import Inputs, Tokenizer

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class ScoreConfig(AnnealedConfig):
    """Settings of the score-function family.

    Attributes:
        k: samples per input, K.
        part_size: inputs whose update is computed at a time: memory against the overhead of small operations; 0 chooses.
    """

    k: int = 8
    part_size: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 2:
            raise ConfigError(f"samples are weighed against each other: K={self.k} must be at least 2")
        if self.part_size < 0:
            raise ConfigError(f"part_size {self.part_size} counts inputs; 0 chooses")


class ScoreEstimator(Estimator):
    """The step of the module's docstring."""

    config_type: ClassVar[type[EstimatorConfig]] = ScoreConfig
    config: ScoreConfig

    def __init__(self, tokenizer: Tokenizer, config: Any, total_steps: int) -> None:
        super().__init__(tokenizer, config, total_steps)
        self.check_code_model()

    @abstractmethod
    def coefficients(
        self, r: Float[Tensor, "b k"], log_q: Float[Tensor, "b k"], beta: float
    ) -> tuple[Float[Tensor, "b k"], Metrics]:
        """c, and what to log; called without gradient."""

    def own_loss(self, r: Float[Tensor, "b k"], log_q: Float[Tensor, "b k"], beta: float) -> Tensor:
        """The loss of parameters of the estimator's own."""
        return torch.zeros((), device=r.device)

    def loss(self, inputs: Inputs, step: int) -> Loss:
        tokenizer, config, beta = self.tokenizer, self.config, self.beta(step)
        posterior = tokenizer.posterior
        assert isinstance(posterior, CodeModel)

        memory = tokenizer.prepare(inputs)  # encoded once, for drawing and for the update
        uniforms = torch.rand(len(inputs.x), config.k, posterior.config.positions, device=inputs.x.device)
        z = sample(posterior, memory, uniforms)
        part = config.part_size or part_size_for(z.codes)
        decoder_loss, r = decoder_update(tokenizer, z.codes, inputs, part)
        with torch.no_grad():
            coefficients, metrics = self.coefficients(r, z.log_prob, beta)
        loss = decoder_loss + encoder_update(posterior, coefficients, z.codes, memory, part)
        loss = loss + self.own_loss(r, z.log_prob, beta)
        metrics |= {
            "elbo_beta": (r - beta * (z.log_prob + posterior.config.bits * math.log(2))).mean(),
            "reconstruction": -r.mean(),
            "log_q": z.log_prob.mean(),
            "entropy": z.entropy.sum(-1).mean(),
            "beta": torch.tensor(beta),
            "distinct": distinct_samples(z.codes),
        }
        return Loss(loss, {name: value.detach() for name, value in metrics.items()})


def encoder_loss(coefficients: Float[Tensor, "b k"], log_q: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
    """−mean_b Σ_k c_k ℓ_k."""
    return -(coefficients * log_q).sum(-1).mean()


def decoder_update(tokenizer: Tokenizer, codes: Tensor, inputs: Inputs, part_size: int) -> tuple[Tensor, Tensor]:
    """−mean r with gradient, and r (b k)."""

    def loss_of(part: slice) -> tuple[Tensor, Tensor]:
        r = tokenizer.log_likelihood(codes[part], inputs.part(part))
        return -r.mean(), r

    parameters = [*tokenizer.embedding.parameters(), *tokenizer.decoder.parameters(), *tokenizer.likelihood.parameters()]
    return loss_by_parts(loss_of, len(codes), part_size, parameters)


def encoder_update(posterior: CodeModel, coefficients: Tensor, codes: Tensor, memory: Memory, part_size: int) -> Tensor:
    """The encoder's loss: a teacher-forced pass gives ℓ its gradient."""

    def loss_of(part: slice, *memory: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = memory[::2], memory[1::2]
        log_q = posterior.log_prob(list(zip(keys, values, strict=True)), codes[part]).sum(-1)
        return encoder_loss(coefficients[part], log_q), log_q

    keys_values = [tensor for layer in memory for tensor in layer]
    return loss_by_parts(loss_of, len(codes), part_size, list(posterior.parameters()), keys_values)[0]


def distinct_samples(codes: Tensor) -> Float[Tensor, ""]:
    """How many different sequences there are among the K of an input, averaged over the batch; codes (b k l)."""
    same = (codes[:, :, None] == codes[:, None]).all(-1)
    return (1 / same.sum(-1)).sum(-1).mean()


@ESTIMATORS.register("rloo")
class RLOO(ScoreEstimator):
    """REINFORCE with the leave-one-out baseline (Kool et al. 2019): unbiased for the gradient of the β-ELBO."""

    def coefficients(self, r: Tensor, log_q: Tensor, beta: float) -> tuple[Tensor, Metrics]:
        return leave_one_out(r - beta * log_q), {}


def leave_one_out(rewards: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    """(R_k − mean_{j≠k} R_j)/K."""
    return (rewards - rewards.mean(-1, keepdim=True)) / (rewards.shape[-1] - 1)
