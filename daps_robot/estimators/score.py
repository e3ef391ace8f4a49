"""Estimators of the score-function family: draw K code sequences, say how much the encoder should move towards each.

One step on a batch x: draw z_k ~ q(z|x); score them, ℓ_k = log q(z_k|x) and r_k = log p(x|z_k); the encoder's loss is
−mean_b Σ_k c_k ℓ_k with coefficients c_k that carry no gradient, the decoder's −mean_{b,k} r_k. Estimators differ in c.

Where an example keeps the first m of its codes (nested dropout), its model is the one of m codes, p(x|z_≤m), with the ELBO
E_q r − β KL(q(z_≤m|x) ‖ uniform), and the step is taken on that: ℓ_k = log q(z_≤m|x). The codes past m touch neither r nor this
bound, so they get no gradient. With ℓ of the whole sequence their −β log q would enter the weights, which is noise in comparing
rewards that do not depend on them; and it would charge late codes the full price β in every example, while only the share of
examples with m ≥ i rewards code i. As it is, price and reward of every code count in the same examples.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from daps_robot.errors import ConfigError
from daps_robot.estimators.base import ESTIMATORS, AnnealedConfig, Estimator, EstimatorConfig, Loss
from daps_robot.estimators.parts import loss_by_parts, part_size_for
from daps_robot.models.code_model import CodeModel, Memory
from daps_robot.models.prefixes import over_prefix, seen_codes
from daps_robot.models.sampling import sample
from daps_robot.models.tokenizer import Inputs, Tokenizer
from daps_robot.parallel import uniform

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

    def straight_through_weight(self, metrics: Metrics, beta: float) -> Tensor | None:
        """The weight of the straight-through term (see `encoder_update`), given what `coefficients` logs; None leaves it out."""
        return None

    def loss(self, inputs: Inputs, step: int) -> Loss:
        tokenizer, config, beta = self.tokenizer, self.config, self.beta(step)
        posterior = tokenizer.posterior
        assert isinstance(posterior, CodeModel)

        memory = tokenizer.prepare(inputs)  # encoded once, for drawing and for the update
        uniforms = uniform(len(inputs.x), config.k, posterior.config.positions, device=inputs.x.device)
        z = sample(posterior, memory, uniforms)
        part = config.part_size or part_size_for(z.codes)
        decoder_loss, r, slopes = decoder_update(tokenizer, z.codes, inputs, part)
        with torch.no_grad():
            log_q = over_prefix(z.log_prob, inputs.kept)
            coefficients, metrics = self.coefficients(r, log_q, beta)
            weight = self.straight_through_weight(metrics, beta)
        through = None if weight is None else StraightThrough(weight * slopes, tokenizer.embedding.weight.detach())
        loss = decoder_loss + encoder_update(posterior, coefficients, z.codes, memory, part, through, inputs.kept)
        loss = loss + self.own_loss(r, log_q, beta)
        kl = over_prefix(z.log_prob + math.log(posterior.config.vocabulary), inputs.kept)
        metrics |= {
            "elbo_beta": (r - beta * kl).mean(),
            "reconstruction": -r.mean(),
            "log_q": log_q.mean(),
            "entropy": over_prefix(z.entropy, inputs.kept).mean(),
            "beta": torch.tensor(beta),
            "distinct": distinct_samples(z.codes, inputs.kept),
        }
        return Loss(loss, {name: value.detach() for name, value in metrics.items()})


def encoder_loss(coefficients: Float[Tensor, "b k"], log_q: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
    """−mean_b Σ_k c_k ℓ_k."""
    return -(coefficients * log_q).sum(-1).mean()


def decoder_update(tokenizer: Tokenizer, codes: Tensor, inputs: Inputs, part_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """−mean r with gradient, r (b k), and the slopes of r: its gradient with respect to the embedded codes (b k l d)."""
    embedded = tokenizer.embedding(codes)
    if not embedded.requires_grad:
        embedded.requires_grad_()  # a frozen table: its slopes may be wanted all the same

    def loss_of(part: slice, embedded: Tensor) -> tuple[Tensor, Tensor]:
        r = tokenizer.embedded_log_likelihood(embedded, inputs.part(part))
        return -r.mean(), r

    parameters = [*tokenizer.decoder.parameters(), *tokenizer.likelihood.parameters()]
    if tokenizer.mask_embedding is not None:
        parameters.append(tokenizer.mask_embedding)
    loss, r, gradients = loss_by_parts(loss_of, len(codes), part_size, parameters, [embedded])
    slopes = torch.zeros_like(embedded) if gradients[0] is None else -r.numel() * gradients[0]
    return loss, r, slopes


class StraightThrough(NamedTuple):
    """What the reward of other codes would be, to first order.

    Attributes:
        slopes: gradient of the reward with respect to the embedded codes.
        table: of all embeddings.
    """

    slopes: Float[Tensor, "b k l d"]
    table: Float[Tensor, "v d"]


def encoder_update(
    posterior: CodeModel,
    coefficients: Tensor,
    codes: Tensor,
    memory: Memory,
    part_size: int,
    through: StraightThrough | None = None,
    kept: Tensor | None = None,
) -> Tensor:
    """The encoder's loss: a teacher-forced pass gives ℓ its gradient; ℓ is that of the `kept` codes.

    The straight-through term (Bengio et al. 2013, arXiv 1308.3432) adds −mean_{b,k} Σ_i Σ_c q(c | z_<i, x)·e_c·s_i: the
    expected reward, linear in the embedding of each code in turn around the sample, with slopes s_i from the decoder. Its
    gradient is that of a one-hot code passed back onto its probabilities. It asks for no further sample and, as nothing flows
    through the drawing, no sequential pass; it knows nothing of how a code changes those after it, nor of the KL.
    """

    def loss_of(part: slice, *memory: Tensor) -> tuple[Tensor, Tensor]:
        keys_values = list(zip(memory[::2], memory[1::2], strict=True))
        seen = None if kept is None else kept[part]
        if through is None:
            log_q = over_prefix(posterior.log_prob(keys_values, codes[part]), seen)
            return encoder_loss(coefficients[part], log_q), log_q
        with torch.autocast(codes.device.type, enabled=False):
            rewards = through.slopes[part] @ through.table.T
        log_q, expected = posterior.log_prob_and_expectation(keys_values, codes[part], rewards)
        # a code that the decoder did not see has no slope
        return encoder_loss(coefficients[part], over_prefix(log_q, seen)) - expected.sum(-1).mean(), log_q

    tensors = [tensor for layer in memory for tensor in layer]
    return loss_by_parts(loss_of, len(codes), part_size, list(posterior.parameters()), tensors).loss


def distinct_samples(codes: Int[Tensor, "b k l"], kept: Int[Tensor, " b"] | None = None) -> Float[Tensor, ""]:
    """How many different sequences, of the codes that are kept, there are among the K of an input, averaged over the batch."""
    if kept is not None:
        codes = codes * seen_codes(kept, codes.shape[-1])[:, None]
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
