"""PPO (Schulman et al. 2017, arXiv 1707.06347) as a baseline: one sample, a learned critic, a clipped ratio."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from daps_robot.errors import ConfigError
from daps_robot.estimators.base import ESTIMATORS, AnnealedConfig, Estimator, Loss
from daps_robot.models.code_model import CodeModel
from daps_robot.models.prefixes import over_prefix
from daps_robot.models.sampling import sample
from daps_robot.models.tokenizer import Inputs, Tokenizer
from daps_robot.parallel import all_rows, mean_over_ranks, uniform


@dataclass(frozen=True)
class PPOConfig(AnnealedConfig):
    """Settings of PPO.

    Attributes:
        clip_ratio: ε; the ratio of new to old probability counts within 1 ± ε.
        kl_target: nats from the old posterior to the new that the penalty's coefficient is adapted to.
        lag: steps between copies of the posterior that codes are drawn from; 1 as in the paper's code.
    """

    clip_ratio: float = 0.2
    kl_target: float = 0.1
    lag: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.clip_ratio > 0 or not self.kl_target > 0 or self.lag < 1:
            raise ConfigError("clip_ratio and kl_target are positive, lag is at least 1")


def clipped_surrogate(log_ratio: Float[Tensor, "*b"], advantages: Float[Tensor, "*b"], clip_ratio: float) -> Float[Tensor, "*b"]:
    """min(ρ A, clip(ρ, 1 ± ε) A), eq. 7 there."""
    ratio = log_ratio.exp()
    return torch.minimum(ratio * advantages, ratio.clamp(1 - clip_ratio, 1 + clip_ratio) * advantages)


def adapted(coefficient: Tensor, kl: Tensor, target: float) -> Tensor:
    """The penalty's coefficient after a step (section 4 there): doubled above 1.5 times the target, halved below target/1.5."""
    factor = torch.where(kl > 1.5 * target, 2.0, torch.where(kl < target / 1.5, 0.5, 1.0))
    return (coefficient * factor).clamp(1e-3, 1e3)


@ESTIMATORS.register("ppo")
class PPO(Estimator):
    """One code sequence per input, drawn from a copy of the posterior some steps old; rewards are scaled to unit deviation.

    The critic sees the input, not how many codes are kept of it (nested dropout): the spread of the rewards over prefix lengths
    then stays in the advantages, as noise without bias.
    """

    config_type = PPOConfig
    divisible = False
    config: PPOConfig
    kl_coefficient: Tensor
    reward_scale: Tensor

    def __init__(self, tokenizer: Tokenizer, config: PPOConfig, total_steps: int) -> None:
        super().__init__(tokenizer, config, total_steps)
        self.check_code_model()
        width = tokenizer.config.codes.transformer.width
        self.old = nn.ModuleList(copy.deepcopy(part) for part in (tokenizer.front_end, tokenizer.posterior))
        self.old.requires_grad_(False)
        self.critic = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, 1))
        self.register_buffer("kl_coefficient", torch.tensor(1.0))
        self.register_buffer("reward_scale", torch.tensor(0.0))

    def loss(self, inputs: Inputs, step: int) -> Loss:
        tokenizer, config, beta, posterior = self.tokenizer, self.config, self.beta(step), self.tokenizer.posterior
        old_front_end, old_posterior = self.old
        assert isinstance(posterior, CodeModel) and isinstance(old_posterior, CodeModel)
        if step % config.lag == 0:
            snapshot = [p.detach().clone() for p in (*tokenizer.front_end.parameters(), *posterior.parameters())]
        with torch.no_grad():
            old_memory = old_posterior.prepare(old_front_end(inputs.x))
            uniforms = uniform(len(inputs.x), 1, posterior.config.positions, device=inputs.x.device)
            codes = sample(old_posterior, old_memory, uniforms).codes
            old = old_posterior.logits(old_memory, codes).log_softmax(-1)
        encoded = tokenizer.front_end(inputs.x)
        new = posterior.logits(posterior.prepare(encoded), codes).log_softmax(-1)
        r = tokenizer.log_likelihood(codes, inputs)

        with torch.no_grad():
            spread = all_rows(r).std()
            self.reward_scale.copy_(spread if self.reward_scale == 0 else self.reward_scale.lerp(spread, 0.01))
        rewards = r.detach() / self.reward_scale.clamp(min=1e-6)
        values = self.critic(encoded.detach().mean(1))
        log_ratio = over_prefix((new - old).gather(-1, codes[..., None])[..., 0], inputs.kept)
        surrogate = clipped_surrogate(log_ratio, rewards - values.detach(), config.clip_ratio).mean()
        old_kl = over_prefix((old.exp() * (old - new)).sum(-1), inputs.kept).mean()
        entropy = -(new.exp() * new).sum(-1)
        kl = over_prefix(math.log(posterior.config.vocabulary) - entropy, inputs.kept).mean()
        critic_loss = (rewards - values).square().mean()
        penalty = self.kl_coefficient.clone() * old_kl + beta / self.reward_scale * kl
        loss = penalty - surrogate - r.mean() + critic_loss
        with torch.no_grad():
            self.kl_coefficient.copy_(adapted(self.kl_coefficient, mean_over_ranks(old_kl), config.kl_target))
            if step % config.lag == 0:
                for parameter, value in zip(self.old.parameters(), snapshot, strict=True):
                    parameter.copy_(value)
        metrics = {
            "elbo_beta": r.mean() - beta * kl,
            "reconstruction": -r.mean(),
            "entropy": entropy.sum(-1).mean(),
            "old_kl": old_kl,
            "kl_coefficient": self.kl_coefficient,
            "critic_loss": critic_loss,
            "beta": torch.tensor(beta),
        }
        return Loss(loss, {name: value.detach().clone() for name, value in metrics.items()})
