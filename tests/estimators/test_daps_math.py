"""The DAPS step as pure functions: reference numbers, identities, and its gradient against the enumerated one."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from daps_robot.estimators.base import anneal
from daps_robot.estimators.daps import (
    centre,
    daps_weights,
    effective_sample_size,
    eta_loss,
    solve_eta,
)
from daps_robot.estimators.score import distinct_samples, encoder_loss


def numbers_of(reference, case):
    """Arrays of a case, (k b) turned to (b k)."""
    found = {key.split("/")[1]: torch.from_numpy(value) for key, value in reference.items() if key.startswith(f"daps{case}/")}
    return {key: value.T if value.ndim == 2 else value for key, value in found.items()}


@pytest.mark.parametrize("case", range(5))
def test_reference_numbers(reference, case):
    n = numbers_of(reference, case)
    weights = daps_weights(n["r"], n["logq"], float(n["eta"]), float(n["beta"]))
    np.testing.assert_allclose(weights, n["weights"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(encoder_loss(weights, n["logq"]), n["encoder_loss"], rtol=1e-5, atol=1e-7)
    ess = effective_sample_size(weights).mean() / weights.shape[1]
    np.testing.assert_allclose(ess, n["ess_normalised"], rtol=1e-5, atol=1e-7)
    log_eta = n["eta"].log().requires_grad_()
    loss = eta_loss(log_eta, n["r"], n["logq"], float(n["beta"]), float(n["ess_target"]))
    np.testing.assert_allclose(loss.detach(), n["eta_loss"], rtol=1e-4, atol=1e-7)
    loss.backward()
    np.testing.assert_allclose(log_eta.grad, n["eta_grad"], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name, start, end", [("mnist", 0.5, 0.01), ("imagenet", 50.0, 1.0)])
def test_reference_schedule(reference, name, start, end):
    found = [anneal(int(t), start, end, 1000) for t in reference["beta/t"]]
    np.testing.assert_allclose(found, reference[f"beta/{name}"], rtol=1e-4)


def test_the_schedule_is_geometric_and_stays_at_its_end():
    assert anneal(500, 0.5, 0.01, 1000) == pytest.approx(math.sqrt(0.5 * 0.01))  # 0.0707107
    assert anneal(0, 0.5, 0.01, 1000) == 0.5
    assert anneal(1000, 0.5, 0.01, 1000) == anneal(5000, 0.5, 0.01, 1000) == pytest.approx(0.01)
    assert anneal(300, 0.2, 0.2, 1000) == pytest.approx(0.2)


def batches(k=6):
    """Rewards and log-probabilities (b k) as they come: nats, of any spread."""
    return st.tuples(st.integers(0, 10_000), st.integers(1, 4), st.floats(0.01, 100), st.floats(-1e4, 1e4)).map(
        lambda t: (
            torch.randn(t[1], k, generator=torch.Generator().manual_seed(t[0])) * t[2] + t[3],
            -torch.rand(t[1], k, generator=torch.Generator().manual_seed(t[0] + 1)) * 20,
        )
    )


@settings(max_examples=100, deadline=None)
@given(batches(), st.floats(0.01, 100), st.floats(0.01, 2), st.floats(-1e3, 1e3))
def test_a_baseline_changes_neither_weights_nor_ess(batch, eta, beta, constant):
    r, log_q = batch
    baseline = torch.linspace(-1, 1, len(r))[:, None] * constant
    before, after = (daps_weights(values.double(), log_q, eta, beta) for values in (r, r + baseline))
    tolerance = 2e-2 * max(1.0, 0.1 / (eta + beta))  # r + baseline is rounded to float32: 1e-3 nats at 1e4
    torch.testing.assert_close(after, before, rtol=0, atol=tolerance)
    mean = r.mean(-1, keepdim=True)
    exact = torch.softmax((r.double() - mean.double() - beta * log_q.double()) / (eta + beta), -1)
    torch.testing.assert_close(before.double(), exact, rtol=0, atol=tolerance)


@settings(max_examples=100, deadline=None)
@given(batches(), st.floats(0.01, 2))
def test_ess_grows_with_eta(batch, beta):
    r, log_q = batch
    ess = torch.stack([effective_sample_size(daps_weights(r, log_q, eta, beta)) for eta in np.geomspace(1e-3, 1e6, 40)])
    assert (ess.diff(dim=0) >= -1e-4).all()
    assert (ess >= 1 - 1e-4).all()
    assert (ess <= 6 + 1e-4).all()


def test_ess_of_known_weights():
    weights = torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0, 0, 0, 0], [0.5, 0.5, 0, 0]])
    torch.testing.assert_close(effective_sample_size(weights), torch.tensor([4.0, 1.0, 2.0]))


@pytest.mark.parametrize("ess_target", [0.2, 0.33, 0.75, 0.95])
@pytest.mark.parametrize("per_input", [False, True])
def test_the_solver_meets_its_target(ess_target, per_input):
    torch.manual_seed(0)
    r = 30 * torch.randn(16, 8) * torch.linspace(0.5, 3, 16)[:, None] - 1e3
    log_q = -20 * torch.rand(16, 8)
    eta, clamped = solve_eta(r, log_q, 0.05, ess_target, (1e-3, 1e6), per_input)
    assert eta.shape == clamped.shape == (16, 1)
    assert not clamped.any()
    ess = effective_sample_size(daps_weights(r, log_q, eta, 0.05))
    if per_input:
        torch.testing.assert_close(ess, torch.full((16,), 8 * ess_target), rtol=1e-3, atol=0)
        assert eta.std() > 0.1 * eta.mean()
    else:
        assert ess.mean().item() == pytest.approx(8 * ess_target, rel=1e-3)
        assert (eta == eta[0]).all()


def test_the_solver_clamps_and_says_so():
    torch.manual_seed(0)
    ordinary = 30 * torch.randn(8)
    r = torch.stack([torch.zeros(8), ordinary, 1e5 * torch.randn(8)])  # ESS always 8; reachable; far too peaked
    log_q = torch.zeros(3, 8)
    eta, clamped = solve_eta(r, log_q, 0.05, 0.33, (1.0, 1e3), per_input=True)
    assert clamped[:, 0].tolist() == [1, 0, 1]
    assert eta[0].item() == pytest.approx(1, rel=1e-4)
    assert eta[2].item() == pytest.approx(1e3, rel=1e-4)
    for row, bound in ((0, 1.0), (2, 1e3)):
        batch_eta, batch_clamped = solve_eta(r[row : row + 1].repeat(5, 1), log_q[:1].repeat(5, 1), 0.05, 0.33, (1.0, 1e3))
        assert (batch_clamped == 1).all()
        torch.testing.assert_close(batch_eta, torch.full((5, 1), bound), rtol=1e-4, atol=0)


def test_the_solver_makes_any_reward_scale_work():
    """Images have log-likelihoods of 1e5 nats."""
    torch.manual_seed(0)
    for scale in (1.0, 1e3, 1e5):
        r, log_q = scale * torch.randn(4, 8), -torch.rand(4, 8)
        eta, clamped = solve_eta(r, log_q, 0.01, 0.5, (1e-3, 1e7), per_input=True)
        assert not clamped.any()
        torch.testing.assert_close(
            effective_sample_size(daps_weights(r, log_q, eta, 0.01)), torch.full((4,), 4.0), rtol=1e-2, atol=0
        )


def test_without_trust_region_and_beta_one_it_is_reweighted_wake_sleep():
    """η → 0, β = 1: self-normalised importance weights p(x|z)/q(z|x), under a uniform prior."""
    torch.manual_seed(0)
    logits = torch.randn(5, 12, requires_grad=True)
    log_p = torch.randn(5, 12)
    z = torch.distributions.Categorical(logits=logits).sample((8,)).T
    log_q = torch.log_softmax(logits, -1).gather(1, z)
    r = log_p.gather(1, z)
    found = torch.autograd.grad(encoder_loss(daps_weights(r, log_q.detach(), 1e-7, 1.0), log_q), logits)[0]
    importance = r.exp() / log_q.detach().exp()
    normalised = importance / importance.sum(-1, keepdim=True)
    onehot = torch.nn.functional.one_hot(z, 12).float()
    score = onehot - torch.softmax(logits.detach(), -1)[:, None]  # ∇ log q(z)
    expected = -(normalised[..., None] * score).sum(1) / 5
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_everything_is_float32(dtype):
    r, log_q = torch.randn(3, 4, dtype=dtype), -torch.rand(3, 4, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weights = daps_weights(r, log_q, 2.0, 0.5)
        assert weights.dtype == effective_sample_size(weights).dtype == torch.float32
        assert encoder_loss(weights, log_q.float()).dtype == torch.float32


def test_distinct_samples():
    codes = torch.tensor([[[1, 2], [1, 2], [2, 1], [0, 0]], [[5, 5], [5, 5], [5, 5], [5, 5]]])
    assert distinct_samples(codes).item() == pytest.approx((3 + 1) / 2)
    pairs = torch.tensor([[[1, 2], [1, 3], [2, 1], [2, 0]]]).expand(2, -1, -1)
    assert distinct_samples(pairs, torch.tensor([1, 2])).item() == pytest.approx((2 + 4) / 2)  # of those that are kept
    torch.manual_seed(0)
    codes = torch.randint(3, (20, 7, 2))
    expected = np.mean([len({tuple(z) for z in row}) for row in codes.tolist()])
    assert distinct_samples(codes).item() == pytest.approx(expected, rel=1e-6)


# -- an enumerable problem: two positions of four codes, x = c¹[i] + c²[j] + noise, q a table of logits per x ---------------

POINTS, V, K, SIGMA, BETA = 32, 4, 8, 0.5, 1.0


class Table:
    """q(z|x) = q(z_1|x) q(z_2|z_1, x) from logits, with rewards of all 16 sequences under the true codewords."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        codewords = 1.2 * torch.randn(2, V, 6, generator=generator)
        means = codewords[0][:, None] + codewords[1]
        index = torch.randint(V, (2, POINTS), generator=generator)
        x = means[index[0], index[1]] + 0.3 * torch.randn(POINTS, 6, generator=generator)
        elements = torch.distributions.Normal(means.flatten(0, 1), SIGMA).log_prob(x[:, None])
        self.rewards = elements.sum(-1)
        self.first = (0.1 * torch.randn(POINTS, V, generator=generator)).requires_grad_()
        self.second = (0.1 * torch.randn(POINTS, V, V, generator=generator)).requires_grad_()

    def log_q(self):
        first = torch.log_softmax(self.first, -1)
        return (first[..., None] + torch.log_softmax(self.second, -1)).flatten(1)

    def gradient(self, objective):
        return torch.cat([g.flatten() for g in torch.autograd.grad(objective, [self.first, self.second])])

    def exact(self):
        """The gradient of the β-ELBO, by enumeration."""
        log_q = self.log_q()
        elbo = (log_q.exp() * (self.rewards - BETA * (log_q + math.log(V * V)))).sum(-1).mean()
        return self.gradient(elbo)

    def estimate(self, repeats, eta, centred):
        """The DAPS update direction from `repeats`·K samples of every point."""
        log_q = self.log_q()
        z = torch.multinomial(log_q.detach().exp(), repeats * K, replacement=True)
        drawn = log_q.gather(1, z).view(POINTS * repeats, K)
        r = self.rewards.gather(1, z).view(POINTS * repeats, K)
        weights = daps_weights(r, drawn.detach(), eta, BETA)
        return self.gradient(-encoder_loss(centre(weights) if centred else weights, drawn))


def cosine(a, b):
    return torch.nn.functional.cosine_similarity(a, b, dim=0).item()


def test_the_centred_update_follows_the_gradient_of_the_elbo():
    torch.manual_seed(0)
    table = Table()
    exact = table.exact()
    centred = table.estimate(4000, 100.0, centred=True)
    assert cosine(centred, exact) >= 0.98
    # far from the clouds of near-uniform weights the first order holds to scale, too: (1 − 1/K)·∇/(η + β)
    sharp = table.estimate(4000, 1e4, centred=True)
    torch.testing.assert_close(sharp.norm(), exact.norm() * (1 - 1 / K) / (1e4 + BETA), rtol=0.05, atol=0)


def test_plain_weights_have_the_same_mean_and_far_more_noise():
    table = Table()
    exact = table.exact()
    updates = {}
    for centred in (True, False):
        torch.manual_seed(0)
        updates[centred] = torch.stack([table.estimate(1, 100.0, centred) for _ in range(400)])
    noise = {centred: u.var(0).sum() for centred, u in updates.items()}
    assert noise[False] > 10 * noise[True]
    difference = (updates[False] - updates[True]).mean(0)  # the same samples: −1/K Σ ∇ℓ, of mean zero
    spread = (updates[False] - updates[True]).var(0).sum() / 400
    assert difference.square().sum() < 1.5 * spread
    assert cosine(updates[True].mean(0), exact) > 0.95
    assert cosine(updates[True].mean(0), exact) > cosine(updates[False].mean(0), exact)


def test_the_centred_loss_is_the_plain_one_less_the_mean_log_prob():
    torch.manual_seed(0)
    log_q, weights = -torch.rand(5, K), torch.softmax(torch.randn(5, K), -1)
    expected = encoder_loss(weights, log_q) + log_q.mean()
    torch.testing.assert_close(encoder_loss(centre(weights), log_q), expected)
