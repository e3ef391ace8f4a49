"""Likelihoods against torch.distributions."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Normal

from daps_robot.errors import ConfigError
from daps_robot.models.likelihoods import LikelihoodConfig, make_likelihood

B, K, H, A = 3, 4, 5, 6


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def data():
    """Reconstructions (b k h a), data (b h a) and a mask (b h) with a padded end."""
    mask = torch.arange(H) < torch.tensor([[5], [3], [1]])
    return torch.randn(B, K, H, A), torch.randn(B, H, A), mask


@pytest.mark.parametrize("variance", [0.05, 1.0, 3.0])
def test_gaussian_of_fixed_variance(variance):
    likelihood = make_likelihood(LikelihoodConfig("gaussian", variance), A)
    mean, x, mask = data()
    elements = Normal(mean, variance**0.5).log_prob(x[:, None])
    torch.testing.assert_close(likelihood.log_prob(mean, x), elements.sum((2, 3)), rtol=1e-5, atol=1e-4)
    masked = (elements * mask[:, None, :, None]).sum((2, 3))
    torch.testing.assert_close(likelihood.log_prob(mean, x, mask), masked, rtol=1e-5, atol=1e-4)
    assert torch.equal(likelihood.mean(mean), mean)


def test_gaussian_with_a_learned_variance_for_each_dimension():
    likelihood = make_likelihood(LikelihoodConfig("gaussian", "per-dimension", 1e-2, 4.0), A)
    (raw,) = likelihood.parameters()
    with torch.no_grad():
        raw.copy_(torch.randn(A))
    mean, x, mask = data()
    variance = torch.exp(math.log(1e-2) + math.log(4.0 / 1e-2) * torch.sigmoid(raw))
    elements = Normal(mean, variance.sqrt()).log_prob(x[:, None]) * mask[:, None, :, None]
    torch.testing.assert_close(likelihood.log_prob(mean, x, mask), elements.sum((2, 3)), rtol=1e-5, atol=1e-4)


def test_a_learned_variance_is_the_mean_squared_error_at_its_optimum():
    """The calibrated decoder: maximum likelihood puts each variance where the error is."""
    likelihood = make_likelihood(LikelihoodConfig("gaussian", "per-dimension"), 3)
    error = torch.randn(2000, 1, 3) * torch.tensor([0.06, 0.2, 0.7])
    optimizer = torch.optim.Adam(likelihood.parameters(), lr=0.1)
    for _ in range(200):
        loss = -likelihood.log_prob(error[:, None], torch.zeros_like(error)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    (raw,) = likelihood.parameters()
    torch.testing.assert_close(likelihood.log_variance(raw).exp(), error.square().mean((0, 1)), rtol=0.02, atol=0)


def test_gaussian_whose_variance_the_decoder_predicts():
    likelihood = make_likelihood(LikelihoodConfig("gaussian", "per-output", 1e-2, 4.0), A)
    assert likelihood.outputs == 2
    mean, x, mask = data()
    raw = 20 * torch.randn_like(mean)
    variance = torch.exp(math.log(1e-2) + math.log(4.0 / 1e-2) * torch.sigmoid(raw))
    assert variance.min() >= 1e-2 * 0.999
    assert variance.max() <= 4.0 * 1.001
    elements = Normal(mean, variance.sqrt()).log_prob(x[:, None]) * mask[:, None, :, None]
    params = torch.cat([mean, raw], -1)
    torch.testing.assert_close(likelihood.log_prob(params, x, mask), elements.sum((2, 3)), rtol=1e-5, atol=1e-3)
    assert torch.equal(likelihood.mean(params), mean)


def test_bernoulli_on_images():
    likelihood = make_likelihood(LikelihoodConfig("bernoulli"), 1)
    logits, x = 5 * torch.randn(B, K, 7, 8, 1), (torch.rand(B, 7, 8, 1) > 0.5).float()
    expected = Bernoulli(logits=logits).log_prob(x[:, None].expand_as(logits)).sum((2, 3, 4))
    torch.testing.assert_close(likelihood.log_prob(logits, x), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(likelihood.mean(logits), Bernoulli(logits=logits).probs)


@pytest.mark.parametrize("variance", [0.05, "per-dimension", "per-output"])
def test_actions_with_binary_dimensions(variance):
    likelihood = make_likelihood(LikelihoodConfig("action", variance, binary=(2, 5)), A)
    gaussian = make_likelihood(LikelihoodConfig("gaussian", variance), A)
    mean, x, mask = data()
    x[..., [2, 5]] = (x[..., [2, 5]] > 0).float()
    params = torch.cat([mean, torch.randn_like(mean)], -1) if variance == "per-output" else mean
    elements = gaussian.per_element(params, x[:, None])
    for i in (2, 5):
        elements[..., i] = Bernoulli(logits=mean[..., i]).log_prob(x[:, None, :, i].expand(B, K, H))
    expected = (elements * mask[:, None, :, None]).sum((2, 3))
    torch.testing.assert_close(likelihood.log_prob(params, x, mask), expected, rtol=1e-5, atol=1e-4)
    reconstruction = likelihood.mean(params)
    assert torch.equal(reconstruction[..., [2, 5]], (mean[..., [2, 5]] > 0).float())
    others = [0, 1, 3, 4]
    assert torch.equal(reconstruction[..., others], mean[..., others])


def test_masked_steps_count_for_nothing():
    likelihood = make_likelihood(LikelihoodConfig("action", 0.05, binary=(0,)), A)
    params, x, mask = data()
    changed = torch.where(mask[..., None], x, 1e6 * torch.randn_like(x))
    assert torch.equal(likelihood.log_prob(params, x, mask), likelihood.log_prob(params, changed, mask))
    params.requires_grad_()
    likelihood.log_prob(params, changed, mask).sum().backward()
    assert (params.grad.abs().sum((1, 3)) > 0).equal(mask)


def test_log_prob_is_float32_under_autocast():
    likelihood = make_likelihood(LikelihoodConfig("action", 0.05, binary=(2,)), A)
    params, x, mask = data()
    expected = likelihood.log_prob(params.bfloat16().float(), x, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = likelihood.log_prob(params.bfloat16(), x, mask)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "laplace"},
        {"variance": 0.0},
        {"variance": -1.0},
        {"variance": float("nan")},
        {"min_variance": 0.0},
        {"min_variance": 2.0},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigError):
        LikelihoodConfig(**settings)


@pytest.mark.parametrize("binary", [(6,), (-1,)])
def test_binary_dimensions_must_exist(binary):
    with pytest.raises(ConfigError, match="binary"):
        make_likelihood(LikelihoodConfig("action", binary=binary), A)
