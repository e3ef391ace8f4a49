"""A loss computed part by part: the same value and gradients as the whole, also under autocast."""

import pytest
import torch
from tiny import make_tokenizer
from torch import nn

from daps_robot.estimators import ESTIMATORS, DAPSConfig
from daps_robot.estimators.parts import loss_by_parts, part_size_for

sizes = pytest.mark.parametrize("part_size", [1, 2, 4, 5, 7])


@sizes
def test_value_gradients_and_kept_values_are_those_of_the_whole(part_size):
    torch.manual_seed(0)
    layer, unused = nn.Linear(3, 2), nn.Parameter(torch.ones(1))
    x, weights = torch.randn(5, 3, requires_grad=True), torch.randn(5, 2)

    def loss_of(part, x):
        y = layer(x).tanh()
        return (y * weights[part]).sum(-1).mean(), y

    whole, kept = loss_of(slice(0, 5), x)
    wanted = torch.autograd.grad(3 * whole, [x, *layer.parameters()])
    loss, values, seen = loss_by_parts(loss_of, 5, part_size, [*layer.parameters(), unused], [x])
    (3 * loss).backward()
    torch.testing.assert_close(loss, whole)
    torch.testing.assert_close(values, kept)
    assert not values.requires_grad
    for got, expected in zip([x.grad, *(p.grad for p in layer.parameters())], wanted, strict=True):
        torch.testing.assert_close(got, expected)
    assert unused.grad is None
    torch.testing.assert_close(3 * seen[0], x.grad)


def test_tensors_and_parameters_that_need_no_gradient_get_none():
    layer = nn.Linear(3, 1)
    layer.weight.requires_grad_(False)
    x = torch.randn(4, 3)
    loss, _, seen = loss_by_parts(lambda part, x: (layer(x).mean(), x), 4, 3, list(layer.parameters()), [x])
    loss.backward()
    assert seen == (None,)
    assert layer.weight.grad is None and x.grad is None and layer.bias.grad.item() == pytest.approx(1)


@sizes
@pytest.mark.parametrize("autocast", [False, True])
def test_daps_learns_the_same_whatever_the_part(part_size, autocast):
    gradients = []
    for size in (6, part_size):
        torch.manual_seed(0)
        tokenizer = make_tokenizer()
        config = DAPSConfig(k=4, warm_start_steps=0, part_size=size)
        estimator = ESTIMATORS["daps"](tokenizer, config, 10)
        inputs = tokenizer.inputs(torch.randn(6, 8, 3), torch.arange(8) < torch.tensor([8, 8, 6, 3, 8, 1])[:, None])
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            estimator.loss(inputs, 0).value.backward()
        gradients.append([p.grad for p in tokenizer.parameters() if p.requires_grad])
    for whole, parts in zip(*gradients, strict=True):
        assert whole.abs().max() > 0
        torch.testing.assert_close(whole, parts, rtol=0, atol=1e-5 if not autocast else 0.02 * float(whole.abs().max()))


def test_a_part_holds_at_least_one_input():
    assert part_size_for(torch.zeros(256, 8, 8)) == 64
    assert part_size_for(torch.zeros(2, 8, 1024)) == 1
