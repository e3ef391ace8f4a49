"""The DAPS estimator on a tiny tokenizer: the loss by hand, the phases, the warnings."""

import math

import pytest
import torch
from tiny import tokenizer_config

from daps_robot.errors import ConfigError
from daps_robot.estimators import ESTIMATORS, DAPSConfig
from daps_robot.estimators.daps import DAPS
from daps_robot.models.posteriors import PosteriorConfig
from daps_robot.models.sampling import sample
from daps_robot.models.tokenizer import Tokenizer, TokenizerConfig

SCRATCH = {"k": 4, "warm_start_steps": 0}
regions = pytest.mark.parametrize("trust_region", ["solved", "solved-per-input", "learned", "fixed"])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make(name="daps", total_steps=100, **settings):
    tokenizer = Tokenizer(ESTIMATORS[name].tokenizer_config(tokenizer_config())).eval()
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
    settings = {"trust_region": "solved", "eta": 3.0, "eta_lr": 1.0, "centred": True, "warm_start_steps": 5}
    _, estimator, _ = make("daps-published", **settings)
    config = estimator.config
    assert (config.trust_region, config.eta, config.eta_lr, config.centred) == ("learned", 100.0, 1e-3, False)
    assert config.warm_start_steps == 0
    assert estimator.warm_start is None
    assert estimator.log_eta.exp().item() == pytest.approx(100)
    assert config.k == 4


def test_beta_falls_over_the_steps_after_the_warm_start():
    _, estimator, _ = make(total_steps=110, warm_start_steps=10, beta_start=0.5, beta_end=0.02)
    assert estimator.beta(0) == estimator.beta(10) == 0.5
    assert estimator.beta(60) == pytest.approx(math.sqrt(0.5 * 0.02))
    assert estimator.beta(110) == pytest.approx(0.02)


# -- the warm start --------------------------------------------------------------------------------------------------------


def quantised(tokenizer, inputs):
    """The codes and the reconstruction of the quantiser that a lattice posterior is in its warm start."""
    posterior = tokenizer.posterior
    return posterior.head.quantize(posterior.trunk.all_positions(tokenizer.prepare(inputs)))


def test_the_warm_start_trains_all_but_what_daps_adds():
    """The code embeddings follow the quantiser, and nothing else depends on codes yet."""
    tokenizer, estimator, inputs = make(warm_start_steps=10)
    estimator.loss(inputs, 5).value.backward()
    untouched = {name for name, p in tokenizer.named_parameters() if p.grad is None}
    head = {f"posterior.head.{name}" for name in ("linear.weight", "linear.bias", "log_precision")}
    assert untouched == {"embedding.weight", "posterior.trunk.embedding.weight", *head}
    assert all(p.grad.abs().sum() > 0 for p in estimator.warm_start.project_out.parameters())


def warm(steps=40, name="daps", **settings):
    tokenizer, estimator, inputs = make(name, total_steps=200, warm_start_steps=steps, **settings)
    optimizer = torch.optim.Adam(estimator.parameters(), lr=3e-3)
    for step in range(steps):
        loss = estimator.loss(inputs, step)
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
    estimator.settle(steps)
    return tokenizer, estimator, inputs


@pytest.mark.parametrize("name", ["daps", "daps-na"])
def test_there_is_nothing_to_hand_over(name):
    """After the warm start the most likely codes are the quantiser's, and a lookup decodes them as it did."""
    tokenizer, estimator, inputs = warm(name=name)
    with torch.no_grad():
        values, codes = quantised(tokenizer, inputs)
        embedded = estimator.warm_start.project_out(values)
    assert len(codes.unique(dim=0)) > 1
    assert torch.equal(tokenizer.draw(tokenizer.prepare(inputs)).codes[:, 0], codes)
    torch.testing.assert_close(tokenizer.embedding(codes), embedded, rtol=0, atol=1e-5)


def test_daps_leaves_the_quantiser_behind():
    tokenizer, estimator, inputs = warm()
    estimator.zero_grad(set_to_none=True)
    estimator.loss(inputs, 40).value.backward()
    assert all(p.grad is None for p in estimator.warm_start.project_out.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in tokenizer.named_parameters()), "all else learns"
    with torch.no_grad():
        tokenizer.embedding.weight += 1
    moved = tokenizer.embedding.weight.clone()
    estimator.loss(inputs, 41)
    assert torch.equal(tokenizer.embedding.weight, moved)


def test_the_straight_through_term_by_hand():
    """−λ/(η+β) mean_{b,k} Σ_i Σ_c q(c|z_<i)·e_c·∂r/∂e_i, beside the loss without it."""
    losses, gradients = [], []
    for weight in (0.0, 0.7):
        torch.manual_seed(0)
        tokenizer, estimator, inputs = warm(straight_through=weight, trust_region="fixed", eta=2.0, beta_start=0.5, beta_end=0.5)
        estimator.zero_grad(set_to_none=True)
        torch.manual_seed(3)
        loss = estimator.loss(inputs, 40).value
        loss.backward()
        losses.append(loss.item())
        gradients.append([None if p.grad is None else p.grad.clone() for p in tokenizer.parameters()])
    torch.manual_seed(3)
    memory = tokenizer.prepare(inputs)
    z = sample(tokenizer.posterior, memory, torch.rand(6, 4, 4)).codes
    embedded = tokenizer.embedding(z).detach().requires_grad_()
    slopes = torch.autograd.grad(tokenizer.embedded_log_likelihood(embedded, inputs).sum(), embedded)[0]
    expected = tokenizer.posterior.logits(memory, z).softmax(-1) @ tokenizer.embedding.weight.detach()
    term = -0.7 / 2.5 * (expected * slopes).sum((-1, -2)).mean()
    assert losses[1] - losses[0] == pytest.approx(term.item(), rel=1e-4)
    wanted = torch.autograd.grad(term, list(tokenizer.parameters()), allow_unused=True)
    for without, with_term, difference in zip(*gradients, wanted, strict=True):
        if difference is not None:
            torch.testing.assert_close(with_term - without, difference, rtol=1e-3, atol=1e-5)
        elif without is not None:
            torch.testing.assert_close(with_term, without)


def test_the_straight_through_term_needs_neighbours_that_a_warm_start_makes():
    _, estimator, _ = make()
    assert estimator.straight_through_weight({"eta": torch.tensor(1.0)}, 0.1) is None


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
        {"warm_start_steps": -1},
        {"straight_through": -1.0},
        {"straight_through": float("inf")},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigError):
        DAPSConfig(**settings)


def test_a_warm_start_as_long_as_the_run_is_refused_with_the_remedy():
    with pytest.raises(ConfigError, match="warm") as error:
        make(total_steps=10, warm_start_steps=10)
    assert "--warm-start-steps" in str(error.value)


def test_a_warm_start_needs_a_lattice():
    with pytest.raises(ConfigError, match="lattice"):
        DAPS(Tokenizer(tokenizer_config()), DAPSConfig(warm_start_steps=5), 10)


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
