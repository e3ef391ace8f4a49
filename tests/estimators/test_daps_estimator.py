"""The DAPS estimator on a tiny tokenizer: the loss by hand, the phases, the warnings."""

import math

import pytest
import torch
from tiny import make_tokenizer, tokenizer_config

from daps_robot.errors import ConfigError
from daps_robot.estimators import ESTIMATORS, DAPSConfig
from daps_robot.estimators.daps import DAPS
from daps_robot.models.posteriors import PosteriorConfig
from daps_robot.models.sampling import sample
from daps_robot.models.tokenizer import Tokenizer, TokenizerConfig

SCRATCH = {"k": 4, "warm_start_steps": 0, "teach_steps": 0}
regions = pytest.mark.parametrize("trust_region", ["solved", "solved-per-input", "learned", "fixed"])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make(name="daps", total_steps=100, **settings):
    tokenizer = make_tokenizer()
    estimator = ESTIMATORS[name](tokenizer, ESTIMATORS[name].configure(**{**SCRATCH, **settings}), total_steps)
    mask = torch.arange(8) < torch.tensor([8, 8, 6, 3, 8, 1])[:, None]
    return tokenizer, estimator, tokenizer.inputs(torch.randn(6, 8, 3), mask)


@pytest.mark.parametrize("centred", [True, False])
def test_the_loss_by_hand(centred):
    """Section 3 of the paper, in plain numbers: weights, encoder loss, decoder loss."""
    tokenizer, estimator, inputs = make(trust_region="fixed", eta=7.0, centred=centred, beta_start=0.5, beta_end=0.02)
    torch.manual_seed(3)
    loss = estimator.loss(inputs, step=40)
    torch.manual_seed(3)
    memory = tokenizer.prepare(inputs)
    z = sample(tokenizer.posterior, memory, torch.rand(6, 4, 4)).codes
    log_q = tokenizer.posterior.log_prob(memory, z).sum(-1).double().detach()
    r = tokenizer.log_likelihood(z, inputs).double().detach()
    beta = 0.5 * (0.02 / 0.5) ** 0.4
    total = 0.0
    for b in range(6):
        scores = [math.exp((r[b, k] - r[b].max() - beta * log_q[b, k]) / (7 + beta)) for k in range(4)]
        total -= sum((s / sum(scores) - centred / 4) * log_q[b, k].item() for k, s in enumerate(scores)) / 6
        total -= r[b].mean().item() / 6
    assert loss.value.item() == pytest.approx(total, rel=1e-5)
    assert loss.metrics["beta"].item() == pytest.approx(beta)
    assert loss.metrics["reconstruction"].item() == pytest.approx(-r.mean().item(), rel=1e-5)
    elbo = r.mean() - beta * (log_q.mean() + 4 * math.log(16))
    assert loss.metrics["elbo_beta"].item() == pytest.approx(elbo.item(), rel=1e-4)


def test_no_gradient_reaches_the_encoder_through_rewards_or_weights():
    """With one η far above every reward the centred weights vanish, and with them the whole encoder update."""
    tokenizer, estimator, inputs = make(trust_region="fixed", eta=1e12)
    estimator.loss(inputs, 0).value.backward()
    encoder = [*tokenizer.posterior.parameters(), *tokenizer.front_end.parameters()]
    assert max(p.grad.abs().max() for p in encoder) < 1e-4
    assert max(p.grad.abs().max() for p in tokenizer.decoder.parameters()) > 1e-2


@regions
def test_every_parameter_learns_in_every_trust_region(trust_region):
    _, estimator, inputs = make(trust_region=trust_region)
    loss = estimator.loss(inputs, 0)
    loss.value.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in estimator.parameters())
    assert sum(bool(p.grad.abs().sum() > 0) for p in estimator.parameters()) == len(list(estimator.parameters()))
    assert all(value.ndim == 0 and not value.requires_grad for value in loss.metrics.values())
    assert ("log_eta" in dict(estimator.named_parameters())) == (trust_region == "learned")
    assert estimator.learning_rates == ({"log_eta": 1e-3} if trust_region == "learned" else {})


def test_the_learned_eta_moves_towards_the_target():
    for eta, sign in ((1e4, 1), (1e-3, -1)):  # too uniform: down; too peaked: up
        _, estimator, inputs = make(trust_region="learned", eta=eta, ess_target=0.5)
        estimator.loss(inputs, 0).value.backward()
        assert math.copysign(1, estimator.log_eta.grad.item()) == sign


def test_bfloat16_autocast_keeps_log_probabilities_and_gradients():
    _, estimator, inputs = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = estimator.loss(inputs, 0)
    assert loss.value.dtype == torch.float32
    assert all(value.dtype == torch.float32 for value in loss.metrics.values())
    loss.value.backward()
    # drawing without gradient must not leave weights without gradient in autocast's cache
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in estimator.parameters())


def test_training_improves_the_elbo():
    tokenizer, estimator, inputs = make(total_steps=150, beta_start=0.1, beta_end=0.1)
    optimizer = torch.optim.Adam(estimator.parameters(), lr=3e-3)
    elbos = []
    for step in range(150):
        loss = estimator.loss(inputs, step)
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
        elbos.append(loss.metrics["elbo_beta"].item())
    assert sum(elbos[-10:]) / 10 > sum(elbos[:10]) / 10 + 20


def test_the_published_mode_is_fixed():
    settings = {"trust_region": "solved", "eta": 3.0, "eta_lr": 1.0, "centred": True, "warm_start_steps": 5, "teach_steps": 1}
    _, estimator, _ = make("daps-published", **settings)
    config = estimator.config
    assert (config.trust_region, config.eta, config.eta_lr, config.centred) == ("learned", 100.0, 1e-3, False)
    assert config.warm_start_steps == 0
    assert estimator.warm_start is None
    assert estimator.log_eta.exp().item() == pytest.approx(100)
    assert config.k == 4


def test_beta_falls_over_the_steps_after_the_warm_start():
    _, estimator, _ = make(total_steps=110, warm_start_steps=10, teach_steps=3, beta_start=0.5, beta_end=0.02)
    assert estimator.beta(0) == estimator.beta(10) == 0.5
    assert estimator.beta(60) == pytest.approx(math.sqrt(0.5 * 0.02))
    assert estimator.beta(110) == pytest.approx(0.02)


# -- the warm start --------------------------------------------------------------------------------------------------------


def test_the_quantiser_trains_everything_then_only_the_code_model_learns():
    tokenizer, estimator, inputs = make(warm_start_steps=10, teach_steps=4)
    quantizer = estimator.warm_start.quantizer
    estimator.loss(inputs, 5).value.backward()
    for module in (quantizer, tokenizer.front_end, tokenizer.decoder, tokenizer.posterior):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
    estimator.zero_grad(set_to_none=True)
    estimator.loss(inputs, 6).value.backward()
    for module in (quantizer, tokenizer.front_end, tokenizer.decoder):
        assert all(p.grad is None for p in module.parameters())
    assert all(p.grad is not None for p in tokenizer.posterior.parameters())


def test_the_code_model_teaches_nothing_to_the_front_end():
    """In the quantiser phase the front end follows the reconstruction alone."""
    tokenizer, estimator, inputs = make(warm_start_steps=10, teach_steps=4)
    estimator.loss(inputs, 5).value.backward()
    found = [p.grad.clone() for p in tokenizer.front_end.parameters()]
    with torch.no_grad():
        tokenizer.posterior.head.weight *= 100
    estimator.zero_grad(set_to_none=True)
    estimator.loss(inputs, 5).value.backward()
    for before, parameter in zip(found, tokenizer.front_end.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, before)


def warm(steps=40):
    tokenizer, estimator, inputs = make(total_steps=200, warm_start_steps=steps, teach_steps=10)
    optimizer = torch.optim.Adam(estimator.parameters(), lr=3e-3)
    for step in range(steps):
        loss = estimator.loss(inputs, step)
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
    return tokenizer, estimator, inputs


def test_hand_over_changes_no_reconstruction():
    """The first DAPS step finds every code embedded as the quantiser, now done, embedded it."""
    tokenizer, estimator, inputs = warm()
    estimator.loss(inputs, 40)
    quantizer = estimator.warm_start.quantizer
    with torch.no_grad():
        embedded, codes = quantizer.quantize(quantizer.prepare(tokenizer.front_end(inputs.x)))
        by_quantiser = tokenizer.likelihood.mean(tokenizer.decoder_params(embedded[:, None], inputs))
    assert len(codes.unique(dim=0)) > 1
    torch.testing.assert_close(tokenizer.decode(codes[:, None]), by_quantiser, rtol=0, atol=1e-5)
    torch.testing.assert_close(tokenizer.embedding(codes), embedded, rtol=0, atol=1e-5)


def test_the_code_model_learns_the_quantisers_codes():
    tokenizer, estimator, inputs = make(total_steps=400, warm_start_steps=300, teach_steps=200)
    optimizer = torch.optim.Adam(tokenizer.posterior.parameters(), lr=5e-3)
    for _ in range(150):
        loss = estimator.warm_start.loss(inputs, 250)
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
    quantizer = estimator.warm_start.quantizer
    codes = quantizer.quantize(quantizer.prepare(tokenizer.front_end(inputs.x)))[1]
    assert torch.equal(tokenizer.draw(tokenizer.prepare(inputs)).codes[:, 0], codes)
    assert loss.metrics["student_nll"] < 0.5


def test_daps_leaves_the_quantiser_behind():
    tokenizer, estimator, inputs = warm()
    for step in (40, 41):
        estimator.zero_grad(set_to_none=True)
        estimator.loss(inputs, step).value.backward()
        assert all(p.grad is None for p in estimator.warm_start.quantizer.parameters())
        assert tokenizer.embedding.weight.grad.abs().sum() > 0
    with torch.no_grad():
        tokenizer.embedding.weight += 1
    moved = tokenizer.embedding.weight.clone()
    estimator.loss(inputs, 41)
    assert torch.equal(tokenizer.embedding.weight, moved)  # handed over once


# -- refusals and warnings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"k": 1},
        {"k": 4, "ess_target": 0.25},
        {"ess_target": 1.0},
        {"ess_target": float("nan")},
        {"beta_start": 0.01, "beta_end": 0.1},
        {"beta_end": 0.0},
        {"eta": -1.0},
        {"eta": 0.0, "trust_region": "learned"},
        {"eta_min": 0.0},
        {"eta_min": 10.0, "eta_max": 1.0},
        {"warm_start_steps": 5, "teach_steps": 6},
        {"warm_start_steps": 5, "teach_steps": -1},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigError):
        DAPSConfig(**settings)


def test_a_warm_start_as_long_as_the_run_is_refused_with_the_remedy():
    with pytest.raises(ConfigError, match="warm") as error:
        make(total_steps=10, warm_start_steps=10, teach_steps=3)
    assert "--warm-start-steps" in str(error.value)


def test_daps_needs_a_code_model_and_fsq_a_quantiser():
    config = tokenizer_config()
    quantised = Tokenizer(TokenizerConfig(**{**vars(config), "posterior": PosteriorConfig("fsq")}))
    with pytest.raises(ConfigError, match="posterior unset"):
        DAPS(quantised, DAPSConfig(**SCRATCH), 10)
    with pytest.raises(ConfigError, match="posterior"):
        ESTIMATORS["fsq"](Tokenizer(config), ESTIMATORS["fsq"].configure(), 10)


def test_an_unknown_estimator_has_a_near_miss():
    with pytest.raises(ConfigError, match="Did you mean 'daps'"):
        ESTIMATORS["dabs"]


@pytest.mark.parametrize(
    "metrics, word",
    [
        ({"perplexity": 0.7}, "perplexity"),
        ({"train/distinct": 1.5}, "distinct"),
        ({"train/eta_clamped": 0.9, "train/eta": 1.0}, "bound"),
    ],
)
def test_warnings_come_with_a_remedy(metrics, word):
    _, estimator, _ = make()
    healthy = {"perplexity": 9.0, "train/distinct": 3.0, "train/eta_clamped": 0.0, "train/eta": 5.0}
    assert estimator.warnings(healthy) == []
    assert estimator.warnings({}) == []
    (warning,) = estimator.warnings({**healthy, **metrics})
    assert word in warning


def test_fsq_trains_and_its_lookup_decodes_as_it_was_trained():
    config = ESTIMATORS["fsq"].tokenizer_config(tokenizer_config())
    tokenizer = Tokenizer(config)
    estimator = ESTIMATORS["fsq"](tokenizer, DAPSConfig(**SCRATCH), 100)
    inputs = tokenizer.inputs(torch.randn(16, 8, 3))
    optimizer = torch.optim.Adam(estimator.parameters(), lr=3e-3)
    losses = []
    for step in range(100):
        loss = estimator.loss(inputs, step)
        losses.append(loss.value.item())
        optimizer.zero_grad()
        loss.value.backward()
        assert all(p.grad is not None for n, p in tokenizer.named_parameters() if n != "embedding.weight")
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    with torch.no_grad():
        loss = estimator.loss(inputs, 99).value
        estimator.settle(100)
        codes = tokenizer.draw(tokenizer.prepare(inputs)).codes
        assert -tokenizer.log_likelihood(codes, inputs).mean().item() == pytest.approx(loss.item(), rel=1e-5)
