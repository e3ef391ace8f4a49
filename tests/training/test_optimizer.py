"""Learning rates, clipping and averages against slow references."""

import pytest
import torch
from torch import nn

from daps_robot.errors import ConfigError
from daps_robot.training.optimizer import (
    OptimizerConfig,
    WeightAverage,
    clip_gradients,
    learning_rate_scale,
    make_optimizer,
    set_learning_rates,
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 4)
        self.conv = nn.Conv1d(3, 2, 4)
        self.embedding = nn.Embedding(6, 3)
        self.zero = nn.Parameter(torch.zeros(2, 2))
        self.scalar = nn.Parameter(torch.tensor(0.5))
        self.own = nn.Parameter(torch.tensor(1.0))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)


def make(clip="agc", value=1.0, scale=3.0, **settings):
    torch.manual_seed(0)
    net = Net()
    config = OptimizerConfig(clip=clip, clip_value=value, **settings)
    optimizer = make_optimizer(config, net, {"own": 0.7})
    for parameter in net.parameters():
        if parameter.requires_grad:
            parameter.grad = scale * torch.randn_like(parameter)
    return net, config, optimizer


def gradients(net):
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("value", [0.01, 0.3, 1.0, 1e6])
def test_adaptive_clipping_unit_by_unit(value):
    """Brock et al. 2021: each output unit's gradient is at most λ times the norm of its weights, themselves at least 1e-3."""
    net, config, optimizer = make("agc", value)
    before = gradients(net)
    clip_gradients(config, optimizer)
    clipped = 0
    for name, parameter in net.named_parameters():
        if name in ("own", "frozen"):
            continue
        units = [...] if parameter.ndim <= 1 else range(len(parameter))
        for unit in units:
            weight, gradient = parameter.detach()[unit], before[name][unit]
            limit = value * max(float(weight.norm()), 1e-3)
            norm = float(gradient.norm())
            expected = gradient * (limit / norm) if norm > limit else gradient
            torch.testing.assert_close(parameter.grad[unit], expected, rtol=1e-3, atol=1e-7)
            clipped += norm > limit
    assert clipped > 0 or value > 1
    assert torch.equal(net.own.grad, before["own"])


@pytest.mark.parametrize("value", [0.01, 1e6])
def test_clipping_by_the_global_norm(value):
    net, config, optimizer = make("norm", value)
    before = gradients(net)
    norm = clip_gradients(config, optimizer)
    followed = [gradient for name, gradient in before.items() if name != "own"]
    expected = torch.cat([g.flatten() for g in followed]).norm()
    torch.testing.assert_close(norm, expected)
    for name, parameter in net.named_parameters():
        if name in before:
            factor = min(1.0, value / float(expected)) if name != "own" else 1.0
            torch.testing.assert_close(parameter.grad, before[name] * factor, rtol=1e-4, atol=1e-8)


def test_no_clipping_still_measures():
    net, config, optimizer = make("none")
    before = gradients(net)
    assert clip_gradients(config, optimizer) > 0
    assert all(torch.equal(before[name], gradient) for name, gradient in gradients(net).items())


@pytest.mark.parametrize("clip", ["agc", "norm", "none"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_gradient_shows_in_the_norm(clip, bad):
    net, config, optimizer = make(clip)
    net.conv.bias.grad[1] = bad
    assert not clip_gradients(config, optimizer).isfinite()


def test_groups():
    net, _, optimizer = make(lr=0.01, weight_decay=0.3, beta2=0.95)
    names = {id(p): name for name, p in net.named_parameters()}
    groups = [({names[id(p)] for p in g["params"]}, g) for g in optimizer.param_groups]
    decayed = {"linear.weight", "conv.weight", "embedding.weight", "zero"}
    plain = {"linear.bias", "conv.bias", "scalar"}
    assert [members for members, _ in groups] == [decayed, plain, {"own"}]
    assert [g["weight_decay"] for _, g in groups] == [0.3, 0.0, 0.0]
    assert [g["lr"] for _, g in groups] == [0.01, 0.01, 0.7]
    assert all(g["betas"] == (0.9, 0.95) for _, g in groups)
    set_learning_rates(optimizer, 0.5)
    assert [g["lr"] for _, g in groups] == [0.005, 0.005, 0.7]
    set_learning_rates(optimizer, 1.0)
    assert [g["lr"] for _, g in groups] == [0.01, 0.01, 0.7]


def test_the_learning_rate_rises_stays_and_falls():
    config = OptimizerConfig(warmup_steps=4, decay_fraction=0.25)
    scales = [learning_rate_scale(config, step, 100) for step in range(100)]
    assert scales[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert scales[5:76] == [1.0] * 71
    assert scales[75:] == pytest.approx([1 - i / 25 for i in range(25)])
    assert all(scale > 0 for scale in scales)
    assert [learning_rate_scale(OptimizerConfig(), step, 10) for step in range(10)] == [1.0] * 10


def test_the_moving_average():
    net = nn.Linear(2, 1)
    average = WeightAverage(net, 0.9)
    expected = {name: p.detach().clone() for name, p in net.named_parameters()}
    for step in range(200):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_(torch.randn_like(parameter))
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, parameter in net.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach()
    current = {name: p.detach().clone() for name, p in net.named_parameters()}
    average.swap()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name])
    average.swap()
    assert all(torch.equal(p, current[name]) for name, p in net.named_parameters())


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 0.0},
        {"lr": float("nan")},
        {"decay_fraction": 1.5},
        {"ema": 1.0},
        {"ema": -0.1},
        {"beta2": 1.0},
        {"weight_decay": -1.0},
        {"clip_value": 0.0},
        {"warmup_steps": -1},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigError):
        OptimizerConfig(**settings)
