"""DAPS: discrete autoencoding via policy search (arXiv 2509.24716).

One step on a batch x: draw K code sequences z_k ~ q(z|x); score them, ℓ_k = log q(z_k|x) and r_k = log p(x|z_k); weight them
by the closed-form target q* ∝ q·exp((A − β log q)/(η + β)); fit q to the weighted samples by maximum likelihood, and p to all
of them; keep the effective sample size of the weights at its target through the temperature η.

The functions are pure and work in float32; rewards and log-probabilities have shape (b k), weights too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from daps_robot.errors import ConfigError
from daps_robot.estimators.base import ESTIMATORS, Estimator, Loss
from daps_robot.estimators.parts import loss_by_parts, part_size_for
from daps_robot.estimators.warm_start import WarmStart
from daps_robot.models.code_model import CodeModel, Memory
from daps_robot.models.sampling import sample
from daps_robot.models.tokenizer import Inputs, Tokenizer


def beta_schedule(step: int, start: float, end: float, steps: int) -> float:
    """β_t = max(β_end, β_0·(β_end/β_0)^(t/N)): geometric, then constant."""
    return max(end, start * (end / start) ** (step / steps))


def daps_weights(r: Float[Tensor, "b k"], log_q: Float[Tensor, "b k"], eta: float | Tensor, beta: float) -> Float[Tensor, "b k"]:
    """w_k = softmax_k[(A_k − β ℓ_k)/(η + β)], the target q* self-normalised over the samples.

    A baseline that is constant over k cancels here and in the effective sample size. The largest reward is subtracted for
    precision alone: rewards reach 1e5 nats, where float32 would round β ℓ and the quotient to 0.01.
    """
    r = r.float()
    return torch.softmax((r - r.amax(-1, keepdim=True) - beta * log_q.float()) / (eta + beta), dim=-1)


def effective_sample_size(weights: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
    """ESS = 1/Σ_k w_k², between 1 and K."""
    return 1 / weights.square().sum(-1)


def encoder_loss(weights: Float[Tensor, "b k"], log_q: Float[Tensor, "b k"], centred: bool = False) -> Float[Tensor, ""]:
    """−mean_b Σ_k w_k ℓ_k; centred, −mean_b Σ_k (w_k − 1/K) ℓ_k.

    The score has zero mean under on-policy, independent samples, so subtracting the constant 1/K leaves the expected update
    unchanged and removes the noise that near-uniform weights carry.
    """
    if centred:
        weights = weights - 1 / weights.shape[-1]
    return -(weights * log_q).sum(-1).mean()


def eta_loss(
    log_eta: Tensor, r: Float[Tensor, "b k"], log_q: Float[Tensor, "b k"], beta: float, ess_target: float
) -> Float[Tensor, ""]:
    """(mean_b ESS_b − K·ess_target)² as a function of log η; rewards and log-probabilities carry no gradient here."""
    weights = daps_weights(r.detach(), log_q.detach(), log_eta.exp(), beta)
    return (effective_sample_size(weights).mean() - r.shape[-1] * ess_target).square()


def solve_eta(
    r: Float[Tensor, "b k"],
    log_q: Float[Tensor, "b k"],
    beta: float,
    ess_target: float,
    bounds: tuple[float, float],
    per_input: bool = False,
    iterations: int = 18,
) -> tuple[Float[Tensor, "b 1"], Float[Tensor, "b 1"]]:
    """η in `bounds` at which the ESS (its mean over the batch, or each input's) meets K·ess_target, by bisection on log η.

    The ESS grows with η for fixed rewards. Where the target lies outside the reachable range the bound is returned.

    Returns:
        η and whether it sits on a bound (1.0 or 0.0), one per input.
    """
    target = r.shape[-1] * ess_target
    low = torch.full((len(r), 1), math.log(bounds[0]), device=r.device)
    high = torch.full_like(low, math.log(bounds[1]))

    def below(log_eta: Tensor) -> Tensor:
        ess = effective_sample_size(daps_weights(r, log_q, log_eta.exp(), beta))[:, None]
        return (ess if per_input else ess.mean().expand_as(ess)) < target

    clamped = (~below(low) | below(high)).float()
    for _ in range(iterations):
        middle = (low + high) / 2
        too_low = below(middle)
        low, high = torch.where(too_low, middle, low), torch.where(too_low, high, middle)
    return ((low + high) / 2).exp(), clamped


def distinct_samples(codes: Tensor) -> Float[Tensor, ""]:
    """How many different sequences there are among the K of an input, averaged over the batch; codes (b k l)."""
    same = (codes[:, :, None] == codes[:, None]).all(-1)
    return (1 / same.sum(-1)).sum(-1).mean()


@dataclass(frozen=True)
class DAPSConfig:
    """How DAPS trains a tokenizer.

    Attributes:
        k: samples per input, K.
        ess_target: effective sample size aimed at, as a fraction of K.
        trust_region: how η is set: "solved" for the batch's mean ESS, "solved-per-input", "learned" by its own AdamW from
            `eta` (as published), or "fixed" at `eta`.
        eta: initial η where learned, η where fixed.
        eta_min, eta_max: bounds of a solved η.
        eta_lr: learning rate of log η where learned.
        centred: weights w − 1/K in place of w.
        beta_start, beta_end: β falls geometrically from one to the other over the DAPS steps.
        warm_start_steps: steps of the quantiser phase before DAPS; 0 starts from scratch.
        teach_steps: the last of them, in which only the code model learns, from a quantiser that no longer moves.
        part_size: inputs whose update is computed at a time: memory against the overhead of small operations; 0 chooses.
    """

    k: int = 8
    ess_target: float = 0.33
    trust_region: Literal["solved", "solved-per-input", "learned", "fixed"] = "solved"
    eta: float = 100.0
    eta_min: float = 0.1
    eta_max: float = 1e6
    eta_lr: float = 1e-3
    centred: bool = True
    beta_start: float = 0.5
    beta_end: float = 0.1
    warm_start_steps: int = 1000
    teach_steps: int = 300
    part_size: int = 0

    def __post_init__(self) -> None:
        if self.k < 2:
            raise ConfigError(f"DAPS weighs samples against each other: K={self.k} must be at least 2")
        if not 1 / self.k < self.ess_target < 1:
            raise ConfigError(
                f"ESS target {self.ess_target} of K={self.k} samples is out of reach: use a fraction between "
                f"{1 / self.k:.3g} and 1"
            )
        if not 0 < self.beta_end <= self.beta_start:
            raise ConfigError(f"β falls from {self.beta_start} to {self.beta_end}: both positive, the second no larger")
        if not 0 < self.eta_min < self.eta_max or self.eta <= 0:
            raise ConfigError("η and its bounds must be positive, the lower bound below the upper")
        if self.part_size < 0:
            raise ConfigError(f"part_size {self.part_size} counts inputs; 0 chooses")
        if not 0 <= self.teach_steps <= self.warm_start_steps:
            raise ConfigError(f"{self.teach_steps} teaching steps do not fit a warm start of {self.warm_start_steps}")


@ESTIMATORS.register("daps")
class DAPS(Estimator):
    """The DAPS step of the module's docstring, after a warm start if there is one."""

    config: DAPSConfig

    def __init__(self, tokenizer: Tokenizer, config: DAPSConfig, total_steps: int) -> None:
        super().__init__(tokenizer, config, total_steps)
        if not isinstance(tokenizer.posterior, CodeModel):
            raise ConfigError("DAPS trains a code model q(z|x): leave the tokenizer's quantizer unset")
        if config.trust_region == "learned":
            self.log_eta = nn.Parameter(torch.tensor(math.log(config.eta)))
            self.learning_rates = {"log_eta": config.eta_lr}
        self.first_step = config.warm_start_steps
        self.warm_start = WarmStart(tokenizer, self.first_step, config.teach_steps) if self.first_step else None
        if self.first_step >= total_steps:
            raise ConfigError(
                f"a warm start of {self.first_step} steps leaves nothing of {total_steps} for DAPS: "
                "lower --warm-start-steps (0 starts from scratch) or raise --max-steps"
            )

    def beta(self, step: int) -> float:
        after = max(step - self.first_step, 0)
        return beta_schedule(after, self.config.beta_start, self.config.beta_end, self.total_steps - self.first_step)

    def loss(self, inputs: Inputs, step: int) -> Loss:
        if self.warm_start is not None and step < self.first_step:
            return self.warm_start.loss(inputs, step)
        if self.warm_start is not None and step == self.first_step:
            self.warm_start.hand_over()
        tokenizer, config, beta = self.tokenizer, self.config, self.beta(step)
        posterior = tokenizer.posterior
        assert isinstance(posterior, CodeModel)

        memory = tokenizer.prepare(inputs)  # encoded once, for drawing and for the update
        uniforms = torch.rand(len(inputs.x), config.k, posterior.config.positions, device=inputs.x.device)
        z = sample(posterior, memory, uniforms)
        part = config.part_size or part_size_for(z.codes)
        decoder_loss, r = self._decoder_update(z.codes, inputs, part)
        with torch.no_grad():
            eta, clamped = self._eta(r, z.log_prob, beta)
            weights = daps_weights(r, z.log_prob, eta, beta)
        loss = decoder_loss + self._encoder_update(weights, z.codes, memory, part)
        metrics = {
            "elbo_beta": (r - beta * (z.log_prob + posterior.config.bits * math.log(2))).mean(),
            "reconstruction": -r.mean(),
            "log_q": z.log_prob.mean(),
            "entropy": z.entropy.sum(-1).mean(),
            "ess": effective_sample_size(weights).mean(),
            "eta": eta.mean(),
            "eta_clamped": clamped.mean(),
            "beta": torch.tensor(beta),
            "distinct": distinct_samples(z.codes),
        }
        if config.trust_region == "learned":
            loss = loss + eta_loss(self.log_eta, r, z.log_prob, beta, config.ess_target)
        return Loss(loss, {name: value.detach() for name, value in metrics.items()})

    def _decoder_update(self, codes: Tensor, inputs: Inputs, part_size: int) -> tuple[Tensor, Tensor]:
        """−mean r, and r (b k)."""
        tokenizer = self.tokenizer

        def loss_of(part: slice) -> tuple[Tensor, Tensor]:
            r = tokenizer.log_likelihood(codes[part], inputs.part(part))
            return -r.mean(), r

        parameters = [*tokenizer.embedding.parameters(), *tokenizer.decoder.parameters(), *tokenizer.likelihood.parameters()]
        return loss_by_parts(loss_of, len(codes), part_size, parameters)

    def _encoder_update(self, weights: Tensor, codes: Tensor, memory: Memory, part_size: int) -> Tensor:
        """The encoder's loss; the teacher-forced ℓ carries the gradient, its value is that of the draw."""
        posterior = self.tokenizer.posterior
        assert isinstance(posterior, CodeModel)

        def loss_of(part: slice, *memory: Tensor) -> tuple[Tensor, Tensor]:
            keys, values = memory[::2], memory[1::2]
            log_q = posterior.log_prob(list(zip(keys, values, strict=True)), codes[part]).sum(-1)
            return encoder_loss(weights[part], log_q, self.config.centred), log_q

        keys_values = [tensor for layer in memory for tensor in layer]
        return loss_by_parts(loss_of, len(codes), part_size, list(posterior.parameters()), keys_values)[0]

    def _eta(self, r: Tensor, log_q: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        config = self.config
        if config.trust_region == "learned":
            return self.log_eta.exp(), torch.zeros_like(self.log_eta)
        if config.trust_region == "fixed":
            return torch.full_like(r[:1, :1], config.eta), torch.zeros_like(r[:1, :1])
        bounds = (config.eta_min, config.eta_max)
        return solve_eta(r, log_q, beta, config.ess_target, bounds, config.trust_region == "solved-per-input")

    def warnings(self, metrics: Mapping[str, float]) -> list[str]:
        found = []
        vocabulary = self.tokenizer.config.codes.vocabulary
        if metrics.get("perplexity", vocabulary) < 0.05 * vocabulary:
            found.append(
                f"code perplexity {metrics['perplexity']:.1f} is under 5% of the vocabulary ({vocabulary}): "
                "use a warm start, a larger --beta-start, or fewer codes"
            )
        if metrics.get("train/distinct", 2) < 2:
            found.append(
                f"{metrics['train/distinct']:.1f} distinct samples of {self.config.k}: the posterior has concentrated; "
                "a larger β or ESS target keeps it spread"
            )
        if metrics.get("train/eta_clamped", 0) > 0.5:
            found.append(
                f"η sits on a bound (η = {metrics['train/eta']:.3g}) for {metrics['train/eta_clamped']:.0%} of the inputs: "
                "the ESS target is out of reach there; lower the ESS target, or widen --eta-min / --eta-max"
            )
        return found


@ESTIMATORS.register("daps-published")
class PublishedDAPS(DAPS):
    """DAPS as published: η learned from 100 by its own AdamW, plain weights, from scratch. It never changes."""

    def __init__(self, tokenizer: Tokenizer, config: DAPSConfig, total_steps: int) -> None:
        published = replace(
            config, trust_region="learned", eta=100.0, eta_lr=1e-3, centred=False, warm_start_steps=0, teach_steps=0
        )
        super().__init__(tokenizer, published, total_steps)
