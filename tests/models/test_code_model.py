"""CodeModel: a normalised, causal distribution, the same by teacher forcing, step by step and in closed form."""

import math

import pytest
import torch
from tiny import TRANSFORMER, all_sequences, enumerated_log_prob, make_code_model, make_memory

from daps_robot.errors import ConfigError
from daps_robot.models.blocks import TransformerConfig
from daps_robot.models.code_model import (
    CodeModel,
    CodeModelConfig,
    EmbeddingHead,
    LatticeHead,
    code_log_prob,
    code_log_prob_and_expectation,
)

both_kinds = pytest.mark.parametrize("autoregressive", [True, False])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@both_kinds
def test_probabilities_of_all_sequences_sum_to_one(autoregressive):
    model = make_code_model(autoregressive)
    log_prob = enumerated_log_prob(model, make_memory(model, batch=3))
    assert log_prob.shape == (3, 64)
    torch.testing.assert_close(log_prob.exp().sum(-1), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-6)
    assert log_prob.exp().max() > 3 / 64  # a nearly uniform model would pass most tests unnoticed


@both_kinds
def test_log_prob_is_the_log_softmax_of_the_logits(autoregressive):
    model = make_code_model(autoregressive, positions=5, vocabulary=7)
    memory = make_memory(model)
    codes = torch.randint(7, (2, 6, 5))
    by_hand = torch.log_softmax(model.logits(memory, codes), -1).gather(-1, codes[..., None])[..., 0]
    torch.testing.assert_close(model.log_prob(memory, codes), by_hand, rtol=0, atol=1e-5)


def test_each_conditional_sees_the_codes_before_it_and_no_others():
    model = make_code_model(positions=4, vocabulary=5)
    memory = make_memory(model)
    codes = torch.randint(5, (2, 1, 4))
    logits = model.logits(memory, codes)
    for changed in range(4):
        other = codes.clone()
        other[..., changed] = (codes[..., changed] + 1) % 5
        difference = (model.logits(memory, other) - logits).abs().amax((0, 1, 3))
        assert (difference[: changed + 1] < 1e-6).all()
        assert (difference[changed + 1 :] > 1e-3).all()


def test_code_zero_is_a_code_like_any_other():
    """The start of a sequence is an embedding of its own, so a code 0 changes what follows as any other code does."""
    model = make_code_model(positions=2, vocabulary=6)
    memory = make_memory(model, batch=1)
    codes = torch.stack([torch.arange(6), torch.zeros(6, dtype=torch.long)], -1)[None]
    second = torch.log_softmax(model.logits(memory, codes)[0, :, 1], -1)
    distance = torch.cdist(second, second) + torch.eye(6)
    assert distance.min() > 1e-2
    assert not torch.equal(model.trunk.bos, model.trunk.embedding.weight[0])


@both_kinds
def test_samples_of_an_input_do_not_see_each_other(autoregressive):
    model = make_code_model(autoregressive)
    memory = make_memory(model, batch=3)
    codes = torch.randint(4, (3, 5, 3))
    together = model.log_prob(memory, codes)
    alone = torch.cat([model.log_prob(memory, codes[:, k : k + 1]) for k in range(5)], 1)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_factorised_log_prob_and_entropy_have_a_closed_form():
    """log p(z) = Σ_i log p_i(z_i) and H = Σ_i H_i, checked against the enumerated joint distribution."""
    model = make_code_model(autoregressive=False)
    memory = make_memory(model)
    marginals = torch.softmax(model.logits(memory, torch.zeros(2, 1, 3, dtype=torch.long))[:, 0].double(), -1)
    joint = torch.einsum("bi,bj,bk->bijk", *marginals.unbind(1)).flatten(1)
    torch.testing.assert_close(enumerated_log_prob(model, memory), joint.log(), rtol=0, atol=1e-5)
    entropy = -(marginals * marginals.log()).sum((1, 2))
    torch.testing.assert_close(-(joint * joint.log()).sum(-1), entropy, rtol=0, atol=1e-6)


@both_kinds
def test_log_prob_is_float32_under_autocast_and_every_parameter_learns(autoregressive):
    model = make_code_model(autoregressive)
    codes = all_sequences(3, 4)[:8].expand(2, -1, -1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        log_prob = model.log_prob(make_memory(model), codes)
    assert log_prob.dtype == torch.float32
    log_prob.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_bits():
    assert CodeModelConfig(8, 256).bits == 64
    assert CodeModelConfig(3, 10).bits == pytest.approx(3 * math.log2(10))


@pytest.mark.parametrize("positions, vocabulary", [(0, 4), (3, 1), (-1, 4)])
def test_a_model_that_can_hold_nothing_is_refused(positions, vocabulary):
    with pytest.raises(ConfigError, match="cannot hold a bit"):
        CodeModelConfig(positions, vocabulary)


@pytest.mark.parametrize("size", [{"width": 30, "heads": 4}, {"width": 0}, {"heads": 0}, {"layers": -1}, {"mlp_ratio": 0}])
def test_a_transformer_of_impossible_size_is_refused(size):
    with pytest.raises(ConfigError):
        CodeModel(CodeModelConfig(3, 4, True, TransformerConfig(**size)))


def test_a_factorised_model_has_no_code_embedding():
    model = CodeModel(CodeModelConfig(3, 4, False, TRANSFORMER))
    assert not any("embedding" in name or "bos" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("spread", [1.0, 50.0, 500.0])
def test_code_log_prob_is_cross_entropy_and_so_is_its_gradient(spread):
    logits = (spread * torch.randn(3, 4, 5, 7)).requires_grad_()
    codes = torch.randint(7, (3, 4, 5))
    upstream = torch.randn(3, 4, 5)
    found = code_log_prob(logits, codes)
    expected = -torch.nn.functional.cross_entropy(logits.flatten(0, 2), codes.flatten(), reduction="none").view(3, 4, 5)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * spread)
    gradients = [torch.autograd.grad((upstream * values).sum(), logits)[0] for values in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_code_log_prob_by_finite_differences():
    logits = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    codes = torch.randint(4, (2, 3))
    assert torch.autograd.gradcheck(lambda values: code_log_prob(values, codes), logits)
    shared = torch.randn(2, 1, 4, dtype=torch.float64, requires_grad=True)  # one distribution for several samples
    assert torch.autograd.gradcheck(lambda values: code_log_prob(values.expand(-1, 3, -1), codes), shared)


def test_an_embedding_head_scores_by_inner_products():
    vectors = 3 + 5 * torch.randn(6, 4)
    head = EmbeddingHead(8, vectors)
    with torch.no_grad():
        head.bias.copy_(torch.randn(6))
    hidden = torch.randn(2, 3, 8)
    centred = vectors - vectors.mean(0)
    unit = centred / centred.square().sum(1).mean().sqrt()
    query = head.query(hidden)
    expected = torch.stack([head.scale * (query * unit[v]).sum(-1) + head.bias[v] for v in range(6)], -1)
    torch.testing.assert_close(head(hidden), expected)
    torch.testing.assert_close(EmbeddingHead(8, vectors + 100).vectors, head.vectors, rtol=0, atol=1e-4)
    assert "vectors" in head.state_dict()
    assert EmbeddingHead(8, torch.ones(6, 4))(hidden).isfinite().all()  # codes that all mean the same


# -- codes on a lattice ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("vocabulary, levels", [(64, (4, 4, 4)), (30, (5, 5)), (1024, (16, 8, 8))])
def test_a_lattice_starts_as_distances_to_its_points(vocabulary, levels, autocast):
    torch.manual_seed(0)
    head = LatticeHead(16, vocabulary, levels)
    hidden = torch.randn(200, 16)
    points = head.fsq.codebook() * head.fsq.half_width
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = head.fsq.bound(head.project_in(hidden))
        log_q, codes = head(hidden).log_softmax(-1), head.quantize(hidden).codes
    assert log_q.dtype == torch.float32
    expected = (-2.0 * torch.cdist(y, points).square()).log_softmax(-1)
    torch.testing.assert_close(log_q[:, : len(points)], expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(log_q.argmax(-1), codes)
    assert len(points) == vocabulary or log_q[:, len(points) :].max() < -15  # codes without a point


@pytest.mark.parametrize("autoregressive", [False, True])
def test_expectations_are_over_each_conditional(autoregressive):
    torch.manual_seed(0)
    model = make_code_model(autoregressive)
    memory, codes = make_memory(model), torch.randint(4, (2, 5, 3))
    values = torch.randn(2, 5, 3, 4)
    log_prob, expectation = model.log_prob_and_expectation(memory, codes, values)
    torch.testing.assert_close(log_prob, model.log_prob(memory, codes))
    torch.testing.assert_close(expectation, (model.logits(memory, codes).softmax(-1) * values).sum(-1))


def test_the_gradient_of_log_probabilities_and_expectations():
    torch.manual_seed(0)
    logits = torch.randn(4, 3, 7, dtype=torch.double, requires_grad=True)
    codes, values = torch.randint(7, (4, 3)), torch.randn(4, 3, 7, dtype=torch.double)
    assert torch.autograd.gradcheck(lambda x: code_log_prob_and_expectation(x, codes, values), logits)
