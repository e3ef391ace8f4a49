"""Every estimator on a problem small enough to enumerate: exact gradients, expected updates, and where they lead."""

import pytest
import torch

from daps_robot.estimators import ESTIMATORS
from daps_robot.estimators.toy import Toy, ToyConfig, train_toy

SETTINGS = {"beta_start": 1.0, "beta_end": 1.0, "warm_start_steps": 0}


def make(name, toy, **settings):
    return ESTIMATORS[name](toy, ESTIMATORS[name].configure(**{**SETTINGS, **settings}), 100)


def mean_gradient(estimator, toy, draws, beta=1.0):
    """Mean gradient of the logits over many draws, as ascent, and the deviation of a single one."""
    torch.manual_seed(0)
    total, square = torch.zeros_like(toy.logits), 0.0
    for _ in range(draws):
        toy.logits.grad = None
        estimator.loss(toy.batch, 0).value.backward()
        total, square = total - toy.logits.grad, square + toy.logits.grad.square()
    mean = total / draws
    return mean, (square / draws - mean.square()).clamp(min=0).sqrt() / draws**0.5


def cosine(a, b):
    return float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


def test_the_exact_elbo_and_its_gradient_by_brute_force():
    toy = Toy(ToyConfig(points=3))
    probs = toy.logits.detach().softmax(-1)
    for n in range(3):
        total = 0.0
        for s, (i, j) in enumerate(toy.sequences.tolist()):
            q = probs[n, 0, i] * probs[n, 1, j]
            distance = (toy.points[n] - toy.decoder.codewords[0, i] - toy.decoder.codewords[1, j]).square().sum()
            r = -0.5 * distance / 0.25 - 3 * torch.log(torch.tensor(2 * torch.pi * 0.25))
            assert toy.rewards()[n, s].item() == pytest.approx(r.item(), rel=1e-4)
            total += q * (r - 0.7 * (q.log() + torch.tensor(16.0).log()))
        assert toy.elbo(0.7)[n].item() == pytest.approx(total.item(), rel=1e-4)


def test_the_optimum_is_one():
    """No factorised q near it is better, and none lies above the log-evidence."""
    toy = Toy(ToyConfig(points=6, seed=3))
    best = toy.optimum()
    evidence = toy.rewards().logsumexp(-1) - torch.tensor(16.0).log()
    assert (best <= evidence + 1e-4).all()
    optimizer = torch.optim.Adam([toy.logits], lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        (-toy.elbo(1.0).mean()).backward()
        optimizer.step()
    assert (toy.elbo(1.0) <= best + 1e-3).all()
    assert float((best - toy.elbo(1.0)).median().detach()) < 0.05


def test_rloo_is_unbiased():
    toy = Toy(ToyConfig(points=8))
    mean, error = mean_gradient(make("rloo", toy), toy, 2000)
    difference = mean - toy.exact_gradient(1.0)
    assert (difference.abs() < 5 * error + 1e-6).all()
    assert cosine(mean, toy.exact_gradient(1.0)) > 0.98


@pytest.mark.parametrize(
    ("name", "settings", "least"),
    [
        ("daps", {"trust_region": "fixed", "eta": 100.0}, 0.98),
        ("daps", {}, 0.8),
        ("rws", {}, 0.6),
        ("reinmax", {}, 0.9),
        ("gumbel-na", {"temperature_end": 1.0}, 0.6),
        ("gr-mck-na", {"temperature_end": 1.0, "draws": 10}, 0.6),
    ],
)
def test_expected_updates_point_up_the_elbo(name, settings, least):
    toy = Toy(ToyConfig(points=8))
    mean, _ = mean_gradient(make(name, toy, **settings), toy, 600)
    assert cosine(mean, toy.exact_gradient(1.0)) > least


def test_rao_blackwellisation_keeps_the_mean_and_lowers_the_variance():
    toy = Toy(ToyConfig(points=4))
    settings = {"temperature_start": 0.5, "temperature_end": 0.5}
    one, one_error = mean_gradient(make("gumbel-na", toy, **settings), toy, 1500)
    many, many_error = mean_gradient(make("gr-mck-na", toy, draws=20, **settings), toy, 800)
    assert (one - many).abs().max() < 6 * torch.hypot(one_error, many_error).max()
    assert (many_error * 800**0.5).mean() < 0.9 * (one_error * 1500**0.5).mean()


@pytest.mark.parametrize("name", ["daps", "rloo", "reinmax", "rws-1", "gumbel-na"])
def test_training_closes_the_gap(name):
    toy = Toy(ToyConfig(points=12, seed=1))
    before = float((toy.optimum() - toy.elbo(1.0)).mean().detach())
    after = train_toy(toy, make(name, toy), 300, lr=0.08)
    assert after < 0.2 * before
