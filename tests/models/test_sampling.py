"""Sampling, the most likely codes and beam search, against teacher forcing and enumeration."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import all_sequences, enumerated_log_prob, make_code_model, make_memory

from daps_robot.errors import ConfigError
from daps_robot.models.sampling import beam, greedy, inverse_cdf, sample

both_kinds = pytest.mark.parametrize("autoregressive", [True, False])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def uniforms_that_draw(model, memory, codes):
    """Noise in the middle of each wanted code's interval of the conditional distribution function."""
    with torch.no_grad():
        probs = torch.softmax(model.logits(memory, codes).double(), -1)
    upper = probs.cumsum(-1).gather(-1, codes[..., None])[..., 0]
    return (upper - probs.gather(-1, codes[..., None])[..., 0] / 2).float()


@both_kinds
def test_sampling_and_teacher_forcing_agree_on_every_sequence(autoregressive):
    """Every sequence is forced, so every code value occurs at every position, 0 included, and the all-zero sequence."""
    model = make_code_model(autoregressive, sharpness=3)
    memory = make_memory(model, batch=2)
    codes = all_sequences(3, 4).expand(2, -1, -1)
    drawn = sample(model, memory, uniforms_that_draw(model, memory, codes))
    assert torch.equal(drawn.codes, codes)
    torch.testing.assert_close(drawn.log_prob, model.log_prob(memory, codes), rtol=0, atol=1e-5)
    torch.testing.assert_close(drawn.log_prob.sum(-1).double(), enumerated_log_prob(model, memory), rtol=0, atol=1e-5)


@both_kinds
def test_the_same_at_the_usual_size(autoregressive):
    model = make_code_model(autoregressive, positions=8, vocabulary=256, sharpness=1)
    memory = make_memory(model, batch=3)
    codes = torch.randint(256, (3, 34, 8))
    codes[:, 0] = 0
    codes[:, 1] = 255
    codes[:, 2:].reshape(3, -1)[:, :256] = torch.arange(256)
    drawn = sample(model, memory, uniforms_that_draw(model, memory, codes))
    assert (drawn.codes == codes).float().mean() > 0.999  # an interval of 1/256 may be missed by a rounding
    torch.testing.assert_close(drawn.log_prob, model.log_prob(memory, drawn.codes), rtol=0, atol=1e-4)
    entropy = torch.distributions.Categorical(logits=model.logits(memory, drawn.codes)).entropy()
    torch.testing.assert_close(drawn.entropy.expand_as(entropy), entropy, rtol=0, atol=1e-4)


def chi_square(codes, expected, vocabulary):
    """Pearson's statistic of drawn sequences (n l) in standard deviations from its mean; rare sequences are pooled."""
    radix = vocabulary ** np.arange(codes.shape[-1])[::-1]
    counts = np.bincount((codes.numpy() * radix).sum(-1), minlength=len(expected)).astype(float)
    expected = expected.numpy() * len(codes)
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    freedom = len(counts) - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / (2 * freedom) ** 0.5


@both_kinds
@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_samples_follow_the_enumerated_distribution(autoregressive, temperature):
    model = make_code_model(autoregressive)
    memory = make_memory(model, batch=1)
    codes = sample(model, memory, torch.rand(1, 8000, 3), temperature).codes[0]
    expected = enumerated_log_prob(model, memory, temperature).exp()[0]
    wrong = enumerated_log_prob(model, memory, 1.15 * temperature).exp()[0]
    assert chi_square(codes, expected, 4) < 4
    assert chi_square(codes, wrong, 4) > 4


@both_kinds
def test_log_prob_and_entropy_are_of_the_sampled_distribution(autoregressive):
    model = make_code_model(autoregressive)
    memory = make_memory(model)
    codes = all_sequences(3, 4)
    drawn = sample(model, memory, torch.rand(2, 50, 3), temperature=0.5)
    index = (drawn.codes * torch.tensor([16, 4, 1])).sum(-1)
    assert torch.equal(codes[index], drawn.codes)
    expected = enumerated_log_prob(model, memory, 0.5).gather(1, index)
    torch.testing.assert_close(drawn.log_prob.sum(-1).double(), expected, rtol=0, atol=1e-4)
    conditional = torch.distributions.Categorical(logits=model.logits(memory, drawn.codes) / 0.5).entropy()
    torch.testing.assert_close(drawn.entropy.expand_as(conditional), conditional, rtol=0, atol=1e-4)


def test_the_cache_changes_nothing():
    """Position by position with a cache equals the whole pass without one, for k samples of each input."""
    model = make_code_model(positions=6, vocabulary=5).requires_grad_(False)
    memory = make_memory(model, batch=3)
    codes = torch.randint(5, (3, 4, 6))
    full = model.logits(memory, codes)
    shared, caches = model.trunk.start(memory)
    assert shared.shape == (3, 1, 16)  # position 0 is computed once for all samples of an input
    torch.testing.assert_close(model.head(shared).expand(-1, 4, -1), full[:, :, 0], rtol=0, atol=1e-5)
    for cache in caches:
        cache.repeat(4)
    for i in range(1, 6):
        step = model.trunk.extend(codes[..., i - 1], i, memory, caches)
        torch.testing.assert_close(model.head(step), full[:, :, i], rtol=0, atol=1e-5)


@both_kinds
def test_sequences_of_one_code(autoregressive):
    model = make_code_model(autoregressive, positions=1, vocabulary=5)
    memory = make_memory(model)
    codes = all_sequences(1, 5).expand(2, -1, -1)
    drawn = sample(model, memory, uniforms_that_draw(model, memory, codes))
    assert torch.equal(drawn.codes, codes)
    log_prob = model.log_prob(memory, codes)
    torch.testing.assert_close(drawn.log_prob.sum(-1), log_prob.sum(-1), rtol=0, atol=1e-5)
    torch.testing.assert_close(log_prob.exp().sum(1), torch.ones(2, 1), rtol=0, atol=1e-5)
    log_prob.sum().backward()
    assert torch.equal(beam(model, memory, 5)[0], codes.gather(1, log_prob.argsort(1, descending=True)))


@both_kinds
def test_with_and_without_gradient_it_is_the_same_model(autoregressive):
    """Attention takes another path where no gradient is needed."""
    model = make_code_model(autoregressive, positions=6, vocabulary=5)
    memory, codes = make_memory(model), torch.randint(5, (2, 3, 6))
    with torch.no_grad():
        without = model.log_prob(memory, codes)
    torch.testing.assert_close(model.log_prob(memory, codes), without, rtol=0, atol=1e-5)


@both_kinds
def test_a_row_depends_on_its_own_noise_alone(autoregressive):
    """Neither the other inputs of a batch, nor their number, nor the other samples of an input matter."""
    model = make_code_model(autoregressive, positions=5, vocabulary=9)
    memory = make_memory(model, batch=6)
    uniforms = torch.rand(6, 3, 5)
    codes = sample(model, memory, uniforms).codes
    for row in range(6):
        own = [(k[row : row + 1], v[row : row + 1]) for k, v in memory]
        assert torch.equal(sample(model, own, uniforms[row : row + 1]).codes[0], codes[row])
        assert torch.equal(sample(model, own, uniforms[row : row + 1, 1:2]).codes[0, 0], codes[row, 1])
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = [(k[order], v[order]) for k, v in memory]
    assert torch.equal(sample(model, shuffled, uniforms[order]).codes, codes[order])


@both_kinds
def test_greedy_takes_the_best_code_at_each_step(autoregressive):
    model = make_code_model(autoregressive)
    memory = make_memory(model, batch=8)
    joint = enumerated_log_prob(model, memory).exp().view(8, 4, 4, 4)
    drawn = greedy(model, memory)
    assert drawn.codes.shape == (8, 1, 3)
    for b in range(8):
        first = joint[b].sum((1, 2)).argmax()
        second = joint[b, first].sum(1).argmax()
        third = joint[b, first, second].argmax()
        assert drawn.codes[b, 0].tolist() == [first, second, third]
        assert drawn.log_prob[b, 0].sum().item() == pytest.approx(joint[b, first, second, third].log().item(), abs=1e-5)


@both_kinds
def test_full_beam_is_the_exact_order_of_all_sequences(autoregressive):
    model = make_code_model(autoregressive)
    memory = make_memory(model, batch=3)
    log_prob, order = enumerated_log_prob(model, memory).sort(-1, descending=True)
    codes, scores = beam(model, memory, 1000)  # more than there are sequences
    assert torch.equal(codes, all_sequences(3, 4)[order])
    torch.testing.assert_close(scores.double(), log_prob, rtol=0, atol=1e-4)


def test_a_narrow_beam_is_exact_for_a_factorised_model():
    model = make_code_model(autoregressive=False)
    memory = make_memory(model, batch=5)
    order = enumerated_log_prob(model, memory).argsort(-1, descending=True)
    codes, _ = beam(model, memory, 6)
    assert torch.equal(codes, all_sequences(3, 4)[order[:, :6]])


@both_kinds
def test_a_narrow_beam_is_beam_search_by_the_book(autoregressive):
    """Against a plain loop over prefixes that scores each by teacher forcing."""
    model = make_code_model(autoregressive, positions=4, vocabulary=4)
    memory = make_memory(model, batch=1)
    prefixes = [((), 0.0)]
    for i in range(4):
        grown = []
        for prefix, score in prefixes:
            codes = torch.tensor([*prefix, *[0] * (4 - i)])[None, None]
            conditional = torch.log_softmax(model.logits(memory, codes)[0, 0, i], -1)
            grown += [((*prefix, c), score + conditional[c].item()) for c in range(4)]
        prefixes = sorted(grown, key=lambda entry: -entry[1])[:3]
    codes, scores = beam(model, memory, 3)
    assert [tuple(c) for c in codes[0].tolist()] == [prefix for prefix, _ in prefixes]
    assert scores[0].tolist() == pytest.approx([score for _, score in prefixes], abs=1e-4)


def test_a_beam_of_one_is_greedy():
    model = make_code_model()
    memory = make_memory(model, batch=4)
    assert torch.equal(beam(model, memory, 1)[0], greedy(model, memory).codes)


def test_a_low_temperature_is_greedy():
    model = make_code_model()
    memory = make_memory(model, batch=4)
    drawn = sample(model, memory, torch.rand(4, 5, 3), temperature=1e-4)
    assert torch.equal(drawn.codes, greedy(model, memory).codes.expand(-1, 5, -1))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_must_be_positive(temperature):
    model = make_code_model()
    with pytest.raises(ConfigError, match="temperature"):
        sample(model, make_memory(model), torch.rand(2, 1, 3), temperature)


@pytest.mark.parametrize("width", [0, -3])
def test_a_beam_has_a_width(width):
    model = make_code_model()
    with pytest.raises(ConfigError, match="beam width"):
        beam(model, make_memory(model), width)


@settings(max_examples=200, deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.0, 1e-6, 0.1, 0.5, 1.0, 7.0]), min_size=1, max_size=12).filter(any),
    uniform=st.one_of(st.floats(0, 1 - 2**-24, width=32), st.sampled_from([0.0, 1 - 2**-24])),
)
def test_inverse_cdf_against_a_loop(weights, uniform):
    probs = torch.tensor(weights) / sum(weights)
    code = int(inverse_cdf(probs[None], torch.tensor([uniform]))[0])
    assert probs[code] > 0  # never an impossible code, at the ends either
    cumulative = np.cumsum(probs.double().numpy())
    assert cumulative[code] >= uniform * cumulative[-1] - 1e-6
    assert code == 0 or cumulative[code - 1] <= uniform * cumulative[-1] + 1e-6
