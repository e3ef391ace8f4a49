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
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from daps_robot.errors import ConfigError
from daps_robot.estimators.base import ESTIMATORS, EstimatorConfig, Loss, anneal
from daps_robot.estimators.score import Metrics, ScoreConfig, ScoreEstimator
from daps_robot.estimators.warm_start import WarmStart
from daps_robot.models.posteriors import PosteriorConfig
from daps_robot.models.tokenizer import Inputs, Tokenizer, TokenizerConfig
from daps_robot.parallel import all_rows, mean_over_ranks


def daps_weights(r: Float[Tensor, "b k"], log_q: Float[Tensor, "b k"], eta: float | Tensor, beta: float) -> Float[Tensor, "b k"]:
    """w_k = softmax_k[(A_k − β ℓ_k)/(η + β)], the target q* self-normalised over the samples.

    A baseline that is constant over k cancels here and in the effective sample size. The largest reward is subtracted for
    precision alone: rewards reach 1e5 nats, where float32 would round β ℓ and the quotient to 0.01.
    """
    r = r.float()
    return torch.softmax((r - r.amax(-1, keepdim=True) - beta * log_q.float()) / (eta + beta), dim=-1)


def centre(weights: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    """w − 1/K. The score has zero mean under on-policy, independent samples, so as coefficients of ℓ these have the expected
    update of w, without the noise that near-uniform weights carry."""
    return weights - 1 / weights.shape[-1]


def effective_sample_size(weights: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
    """ESS = 1/Σ_k w_k², between 1 and K."""
    return 1 / weights.square().sum(-1)


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


def check_ess_target(ess_target: float, k: int) -> None:
    """Raises ConfigError for an effective sample size, as a fraction of K, that no weights have."""
    if not 1 / k < ess_target < 1:
        raise ConfigError(f"ESS target {ess_target} of K={k} samples is out of reach: use a fraction between {1 / k:.3g} and 1")


@dataclass(frozen=True)
class DAPSConfig(ScoreConfig):
    """Settings of DAPS.

    Two samples are enough after a warm start: a step with four or eight costs 1.7 or 2.8 times as much, and is worth no more
    (docs/estimators.md). From scratch, where samples are all that the encoder learns from, take the paper's `k` 8 and .33.

    Attributes:
        ess_target: effective sample size aimed at, as a fraction of K.
        trust_region: how η is set: "solved" for the batch's mean ESS, "solved-per-input", "learned" by its own AdamW from
            `eta` (as published), or "fixed" at `eta`.
        eta: initial η where learned, η where fixed.
        eta_min: lower bound of a solved η.
        eta_max: upper bound of a solved η.
        eta_lr: learning rate of log η where learned.
        centred: weights w − 1/K in place of w (see `centre`).
        straight_through: weight of the straight-through term, in which the decoder says how the reward changes, to first order,
            from a code to its neighbours (see `score.encoder_update`); tempered by the batch's η + β, as the weights are. Only
            after a warm start, which makes neighbours of codes that decode alike: between codes far apart it misleads. 0 leaves
            it out.
        warm_start_steps: steps of the quantiser phase before DAPS; 0 starts from scratch. β falls over the DAPS steps.
    """

    k: int = 2
    ess_target: float = 0.75
    trust_region: Literal["solved", "solved-per-input", "learned", "fixed"] = "solved"
    eta: float = 100.0
    eta_min: float = 0.1
    eta_max: float = 1e6
    eta_lr: float = 1e-3
    centred: bool = True
    straight_through: float = 1.0
    warm_start_steps: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ess_target(self.ess_target, self.k)
        if not 0 < self.eta_min < self.eta_max or self.eta < 0:
            raise ConfigError("the bounds of η must be positive, the lower below the upper, and η at least 0")
        if self.trust_region == "learned" and (self.eta == 0 or not self.eta_lr > 0):
            raise ConfigError("a learned η starts above 0 and has a positive learning rate")
        if not 0 <= self.straight_through < math.inf:
            raise ConfigError(f"straight_through {self.straight_through}: a weight is at least 0, and 0 leaves the term out")
        if self.warm_start_steps < 0:
            raise ConfigError(f"a warm start of {self.warm_start_steps} steps: 0 is the fewest, and starts from scratch")


@ESTIMATORS.register("daps")
class DAPS(ScoreEstimator):
    """The DAPS step of the module's docstring, after a warm start if there is one."""

    config_type: ClassVar[type[EstimatorConfig]] = DAPSConfig
    config: DAPSConfig

    def __init__(self, tokenizer: Tokenizer, config: DAPSConfig, total_steps: int) -> None:
        super().__init__(tokenizer, config, total_steps)
        if config.trust_region == "learned":
            self.log_eta = nn.Parameter(torch.tensor(math.log(config.eta)))
            self.learning_rates = {"log_eta": config.eta_lr}
        self.first_step = config.warm_start_steps
        self.warm_start = WarmStart(tokenizer) if self.first_step else None
        if self.first_step >= total_steps:
            raise ConfigError(
                f"a warm start of {self.first_step} steps leaves nothing of {total_steps} for DAPS: "
                "lower --warm-start-steps (0 starts from scratch) or raise --max-steps"
            )

    @classmethod
    def tokenizer_config(cls, config: TokenizerConfig) -> TokenizerConfig:
        return super().tokenizer_config(replace(config, posterior=config.posterior or PosteriorConfig("lattice")))

    def beta(self, step: int) -> float:
        after = max(step - self.first_step, 0)
        return anneal(after, self.config.beta_start, self.config.beta_end, self.total_steps - self.first_step)

    def loss(self, inputs: Inputs, step: int) -> Loss:
        if self.warm_start is not None and step < self.first_step:
            return self.warm_start.loss(inputs)
        if self.warm_start is not None and step == self.first_step:
            self.warm_start.embed_codes()
        return super().loss(inputs, step)

    def settle(self, steps: int) -> None:
        if self.warm_start is not None and steps <= self.first_step:
            self.warm_start.embed_codes()

    def coefficients(self, r: Tensor, log_q: Tensor, beta: float) -> tuple[Tensor, Metrics]:
        eta, clamped = self._eta(r, log_q, beta)
        weights = daps_weights(r, log_q, eta, beta)
        metrics = {
            "ess": effective_sample_size(weights).mean(),
            "eta": mean_over_ranks(eta.log().mean()).exp(),
            "eta_clamped": clamped.mean(),
        }
        return centre(weights) if self.config.centred else weights, metrics

    def straight_through_weight(self, metrics: Metrics, beta: float) -> Tensor | None:
        if self.warm_start is None or not self.config.straight_through:
            return None
        return self.config.straight_through / (metrics["eta"] + beta)

    def own_loss(self, r: Tensor, log_q: Tensor, beta: float) -> Tensor:
        if self.config.trust_region != "learned":
            return super().own_loss(r, log_q, beta)
        return eta_loss(self.log_eta, all_rows(r), all_rows(log_q), beta, self.config.ess_target)

    def _eta(self, r: Tensor, log_q: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        config = self.config
        if config.trust_region == "learned":
            return self.log_eta.exp(), torch.zeros_like(self.log_eta)
        if config.trust_region == "fixed":
            return torch.full_like(r[:1, :1], config.eta), torch.zeros_like(r[:1, :1])
        bounds = (config.eta_min, config.eta_max)
        if config.trust_region == "solved-per-input":
            return solve_eta(r, log_q, beta, config.ess_target, bounds, per_input=True)
        eta, clamped = solve_eta(all_rows(r), all_rows(log_q), beta, config.ess_target, bounds)
        return eta[:1], clamped[:1]  # one for the whole batch, whichever ranks its rows lie on

    def warnings(self, metrics: Mapping[str, float]) -> list[str]:
        found = []
        vocabulary = self.tokenizer.config.codes.vocabulary
        warm = metrics.get("step", math.inf) <= self.first_step
        if metrics.get("perplexity", vocabulary) < 0.05 * vocabulary and not warm:
            remedy = "" if self.warm_start else "a warm start (--estimator daps), "
            found.append(
                f"code perplexity {metrics['perplexity']:.1f} is under 5% of the vocabulary ({vocabulary}): "
                f"use {remedy}a larger --beta-start, or fewer codes"
            )
        if metrics.get("train/distinct", math.inf) < min(2.0, 0.8 * self.config.k):
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


@ESTIMATORS.register("daps-na")
class FactorisedDAPS(DAPS):
    """DAPS with a factorised posterior: all positions from one pass."""

    autoregressive = False


@dataclass(frozen=True)
class PublishedDAPSConfig(ScoreConfig):
    """Settings of the published DAPS: K, the ESS target and the β schedule of its MNIST runs.

    Attributes:
        ess_target: effective sample size aimed at, as a fraction of K.
    """

    beta_start: float = 0.5
    beta_end: float = 0.01
    ess_target: float = 0.33

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ess_target(self.ess_target, self.k)


@ESTIMATORS.register("daps-published")
class PublishedDAPS(DAPS):
    """DAPS as published: η learned from 100 by its own AdamW, plain weights, from scratch. It never changes."""

    config_type = PublishedDAPSConfig

    @classmethod
    def tokenizer_config(cls, config: TokenizerConfig) -> TokenizerConfig:
        return config

    def __init__(self, tokenizer: Tokenizer, config: PublishedDAPSConfig, total_steps: int) -> None:
        published = DAPSConfig(
            **vars(config),
            trust_region="learned",
            eta=100.0,
            eta_lr=1e-3,
            centred=False,
            straight_through=0.0,
            warm_start_steps=0,
        )
        super().__init__(tokenizer, published, total_steps)


@ESTIMATORS.register("rws")
class RWS(ScoreEstimator):
    """Reweighted wake-sleep (Bornschein & Bengio 2015), wake-phase update of q: DAPS with η = 0, at the schedule's β."""

    def coefficients(self, r: Tensor, log_q: Tensor, beta: float) -> tuple[Tensor, Metrics]:
        weights = daps_weights(r, log_q, 0.0, beta)
        return weights, {"ess": effective_sample_size(weights).mean()}


@dataclass(frozen=True)
class RWS1Config(ScoreConfig):
    """Settings of the textbook form: β = 1 throughout."""

    beta_start: float = 1.0
    beta_end: float = 1.0


@ESTIMATORS.register("rws-1")
class RWS1(RWS):
    """Reweighted wake-sleep in its textbook form, β = 1."""

    config_type = RWS1Config
