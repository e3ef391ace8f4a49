"""Optimiser, learning-rate schedule, gradient clipping and moving average of the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from daps_robot.errors import ConfigError


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and what surrounds it.

    Attributes:
        lr: learning rate.
        weight_decay: of matrices; biases, norms and embeddings of one axis have none.
        beta2: AdamW's second-moment decay.
        warmup_steps: linear warm-up of the learning rate.
        decay_fraction: the last share of the steps, over which the learning rate falls linearly to zero; 0 keeps it constant.
        clip: "agc", adaptive unit-wise clipping (Brock et al. 2021, arXiv 2102.06171); "norm", the global norm; or "none".
        clip_value: λ of agc, or the norm.
        ema: decay of an exponential moving average of the weights, which is then evaluated and saved; 0 for none.
    """

    lr: float = 3e-4
    weight_decay: float = 1e-4
    beta2: float = 0.999
    warmup_steps: int = 0
    decay_fraction: float = 0.0
    clip: Literal["agc", "norm", "none"] = "agc"
    clip_value: float = 1.0
    ema: float = 0.0

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ConfigError(f"learning rate {self.lr} must be positive")
        if not 0 <= self.decay_fraction <= 1 or not 0 <= self.ema < 1:
            raise ConfigError("decay_fraction lies in [0, 1], ema in [0, 1)")
        if not 0 <= self.beta2 < 1 or not self.weight_decay >= 0 or not self.clip_value > 0 or self.warmup_steps < 0:
            raise ConfigError("beta2 lies in [0, 1), weight_decay and warmup_steps are at least 0, clip_value is positive")


def make_optimizer(config: OptimizerConfig, module: nn.Module, own_rates: dict[str, float]) -> torch.optim.AdamW:
    """AdamW; parameters named in `own_rates` get that learning rate, constant, without weight decay.

    Each group carries `base_lr`, and `scheduled` says whether the schedule moves it.
    """
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    own = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        if name in own_rates:
            own.append({"params": [parameter], "lr": own_rates[name], "weight_decay": 0.0, "scheduled": False})
        else:
            (matrices if parameter.ndim > 1 else vectors).append(parameter)
    groups = [
        {"params": matrices, "lr": config.lr, "weight_decay": config.weight_decay, "scheduled": True},
        {"params": vectors, "lr": config.lr, "weight_decay": 0.0, "scheduled": True},
        *own,
    ]
    groups = [{**group, "base_lr": group["lr"]} for group in groups if group["params"]]
    return torch.optim.AdamW(groups, betas=(0.9, config.beta2), fused=True)


def learning_rate_scale(config: OptimizerConfig, step: int, total: int) -> float:
    """The factor on the learning rate at a step: up over the warm-up, down over the last `decay_fraction`."""
    up = min(1.0, (step + 1) / (config.warmup_steps + 1))
    decay_steps = config.decay_fraction * total
    down = min(1.0, max(0.0, (total - step) / decay_steps)) if decay_steps else 1.0
    return up * down


def set_learning_rates(optimizer: torch.optim.Optimizer, scale: float) -> None:
    """Scale the base rates of the groups that follow the schedule."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * (scale if group["scheduled"] else 1.0)


def clip_gradients(config: OptimizerConfig, optimizer: torch.optim.Optimizer) -> Tensor:
    """Clip the scheduled groups' gradients in place; returns their norm before clipping, NaN if any other is not finite."""
    parameters = [p for group in optimizer.param_groups if group["scheduled"] for p in group["params"] if p.grad is not None]
    gradients = [p.grad for p in parameters]
    norms = torch._foreach_norm(gradients)
    total = torch.stack(norms).norm()
    own = [p.grad for group in optimizer.param_groups if not group["scheduled"] for p in group["params"] if p.grad is not None]
    if own:
        total = total + 0 * torch.stack(torch._foreach_norm(own)).norm()
    if not total.isfinite():
        return total  # the step is skipped; the gradients stay, to tell which of them is at fault
    if config.clip == "norm":
        torch._foreach_mul_(gradients, (config.clip_value / (total + 1e-6)).clamp(max=1.0))
    elif config.clip == "agc":
        for parameter, gradient in zip(parameters, gradients, strict=True):
            limit = config.clip_value * unit_norm(parameter).clamp_(min=1e-3)
            gradient.mul_((limit / (unit_norm(gradient) + 1e-6)).clamp_(max=1.0))
    return total


def unit_norm(x: Tensor) -> Tensor:
    """Norm of each output unit's weights (over all but the first axis, kept for broadcasting); of a vector, its norm."""
    if x.ndim <= 1:
        return torch.linalg.vector_norm(x.detach())
    return torch.linalg.vector_norm(x.detach(), dim=tuple(range(1, x.ndim)), keepdim=True)


class WeightAverage:
    """Exponential moving average of a module's parameters."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))  # the first steps follow closely
        torch._foreach_lerp_(self.average, self.parameters, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average and the weights; call again to exchange them back."""
        for parameter, average in zip(self.parameters, self.average, strict=True):
            held = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(held)
