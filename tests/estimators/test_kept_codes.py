"""Estimators when an example keeps a prefix of its codes: the step is that of a model of so many codes."""

import math
from dataclasses import replace

import pytest
import torch
from test_all_estimators import TINY, each
from tiny import tokenizer_config

from daps_robot.estimators import ESTIMATORS
from daps_robot.estimators.daps import centre, daps_weights
from daps_robot.estimators.score import encoder_loss
from daps_robot.estimators.toy import Toy, ToyConfig
from daps_robot.models.prefixes import over_prefix
from daps_robot.models.tokenizer import Inputs, Tokenizer

BETA = 0.7
SETTINGS = {"beta_start": BETA, "beta_end": BETA, "warm_start_steps": 0}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def enumerated(toy, kept):
    """The gradient of the mean over points of E_q r − β KL(q(z_≤m|x) ‖ uniform), all sequences written down."""
    sequences = toy.sequences
    inputs = toy.batch._replace(kept=kept)
    rewards = toy.log_likelihood(sequences.expand(len(toy.points), -1, -1), inputs)
    by_code = toy.logits.log_softmax(-1)
    log_q = torch.stack([by_code[:, i, sequences[:, i]] for i in range(sequences.shape[1])], dim=-1)  # (n s l)
    price = over_prefix(log_q + math.log(by_code.shape[-1]), kept)
    elbo = (log_q.sum(-1).exp() * (rewards - BETA * price)).sum(-1).mean()
    return torch.autograd.grad(elbo, toy.logits)[0]


def mean_update(estimator, toy, kept, draws):
    total = torch.zeros_like(toy.logits)
    for _ in range(draws):
        toy.logits.grad = None
        estimator.loss(toy.batch._replace(kept=kept), 0).value.backward()
        total -= toy.logits.grad / draws
    return total


def cosine(a, b):
    return float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


@pytest.mark.parametrize(
    ("name", "settings"),
    [("rloo", {"k": 8}), ("daps", {"k": 8, "trust_region": "fixed", "eta": 1e4}), ("gumbel-na", {"temperature_end": 1.0})],
)
def test_the_update_is_the_gradient_of_the_elbo_of_the_kept_codes(name, settings):
    """Points that keep one, two or three codes: their mean update points along the enumerated gradient."""
    toy = Toy(ToyConfig(3, 4, points=12))
    kept = 1 + torch.arange(12) % 3
    kind = ESTIMATORS[name]
    estimator = kind(toy, kind.configure(**{**SETTINGS, **settings}), 100)
    update, exact = mean_update(estimator, toy, kept, 400), enumerated(toy, kept)
    assert cosine(update, exact) > (0.97 if name == "gumbel-na" else 0.985)
    past = torch.arange(3) >= kept[:, None]
    assert (update[past] == 0).all() and (exact[past].abs() < 1e-5).all()
    if name == "rloo":  # unbiased in size, too
        torch.testing.assert_close(update.norm(), exact.norm(), rtol=0.05, atol=0)


def test_log_q_of_the_whole_sequence_would_not_do():
    """It follows the ELBO that charges for codes which the decoder does not see, and with more noise."""
    toy, k = Toy(ToyConfig(3, 4, points=12)), 8
    kept = torch.ones(12, dtype=torch.long)
    exact, eta = enumerated(toy, kept), 1e4
    updates = {True: [], False: []}
    for _ in range(200):
        log_probs = toy.logits.log_softmax(-1)
        z = torch.distributions.Categorical(logits=toy.logits.detach()).sample((k,)).transpose(0, 1)  # (n k l)
        log_q = log_probs[:, None].expand(-1, k, -1, -1).gather(-1, z[..., None])[..., 0]
        r = toy.log_likelihood(z, toy.batch._replace(kept=kept))
        for prefix in updates:
            scored = over_prefix(log_q, kept if prefix else None)
            weights = centre(daps_weights(r, scored.detach(), eta, BETA))
            updates[prefix].append(torch.autograd.grad(-encoder_loss(weights, scored), toy.logits, retain_graph=True)[0])
    means = {prefix: torch.stack(found).mean(0) for prefix, found in updates.items()}
    noise = {prefix: torch.stack(found).var(0).sum() for prefix, found in updates.items()}
    assert cosine(means[True], exact) > cosine(means[False], exact)
    assert noise[False] > 1.5 * noise[True]


def make(name, nested=True):
    kind = ESTIMATORS[name]
    tokenizer = Tokenizer(kind.tokenizer_config(replace(tokenizer_config(), nested_dropout=nested)))
    return tokenizer, kind(tokenizer, kind.configure(**TINY), 400)


@each
def test_keeping_all_codes_is_keeping_no_prefix(name):
    tokenizer, estimator = make(name)
    x, losses = torch.randn(8, 8, 3), []
    state = {key: value.clone() for key, value in estimator.state_dict().items()}
    for kept in (None, torch.full((8,), 4)):
        estimator.load_state_dict(state)  # codebooks and critics move
        torch.manual_seed(1)
        losses.append(estimator.loss(Inputs(x, kept=kept), 0).value)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-4)


@each
def test_the_mask_learns_and_the_codes_past_the_prefix_do_not_matter(name):
    tokenizer, estimator = make(name)
    inputs = Inputs(torch.randn(8, 8, 3), kept=torch.arange(8) % 4 + 1)
    estimator.loss(inputs, 0).value.backward()
    assert tokenizer.mask_embedding.grad.abs().max() > 0
    embedded = torch.randn(8, 2, 4, tokenizer.config.codes.transformer.width)
    other = embedded.clone()
    for row, m in enumerate(inputs.kept.tolist()):
        other[row, :, m:] += 1
    assert torch.equal(tokenizer.decoder_params(embedded, inputs), tokenizer.decoder_params(other, inputs))
