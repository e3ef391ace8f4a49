"""FSQ against the reference numbers, its codebook, and the choice of levels."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import TRANSFORMER, make_memory

from daps_robot.errors import ConfigError
from daps_robot.models.code_model import CodeModelConfig
from daps_robot.models.posteriors import PosteriorConfig, QuantizedPosterior, make_posterior
from daps_robot.models.quantizers import FSQ, fsq_levels


@pytest.mark.parametrize("case", range(4))
def test_reference_numbers(reference, case):
    numbers = {key.split("/")[1]: value for key, value in reference.items() if key.startswith(f"fsq{case}/")}
    z = torch.from_numpy(numbers["z"]).requires_grad_()
    values, codes = FSQ(tuple(numbers["levels"].tolist()))(z)
    np.testing.assert_allclose(values.detach(), numbers["quantized"], rtol=1e-5, atol=1e-7)
    assert np.array_equal(codes, numbers["index"])
    values.sum().backward()
    # where tanh saturates, 1 − tanh² cancels: the float32 reference is itself up to 2.5e-7 from the exact gradient below
    np.testing.assert_allclose(z.grad, numbers["grad_of_sum"], rtol=1e-5, atol=3e-7)
    levels = numbers["levels"].astype(float)
    half = (levels - 1) * (1 - 1e-3) / 2
    shift = np.tan(np.where(levels % 2 == 0, 0.5, 0) / half)
    exact = (1 - np.tanh(numbers["z"].astype(float) + shift) ** 2) * half / (levels // 2)
    np.testing.assert_allclose(z.grad, exact, rtol=1e-5, atol=1.5e-7)


@pytest.mark.parametrize("levels", [(8, 8, 4), (5, 3), (2,), (7,), (2, 2, 3, 2)])
def test_codebook_is_the_grid_in_mixed_radix(levels):
    fsq = FSQ(levels)
    digits = list(itertools.product(*map(range, levels)))  # the last dimension fastest
    grid = [[(digit - level // 2) / (level // 2) for digit, level in zip(row, levels, strict=True)] for row in digits]
    torch.testing.assert_close(fsq.codebook(), torch.tensor(grid))
    assert fsq.codebook_size == len(grid) == math.prod(levels)


@pytest.mark.parametrize("levels", [(8, 8, 4), (5, 3), (2,), (7, 6, 5)])
def test_every_code_is_reached_and_its_value_is_in_the_codebook(levels):
    torch.manual_seed(0)
    fsq = FSQ(levels)
    values, codes = fsq(4 * torch.randn(60_000, len(levels)))
    assert set(codes.tolist()) == set(range(fsq.codebook_size))
    torch.testing.assert_close(values, fsq.codebook()[codes], rtol=0, atol=1e-6)


@given(st.floats(-(2.0**100), 2.0**100, width=32))
def test_extreme_inputs_stay_on_the_grid(z):
    for level in (2, 5, 8):
        values, codes = FSQ((level,))(torch.tensor([[z]]))
        assert 0 <= codes.item() < level
        assert abs(values.item()) <= 1 + 1e-6


def test_autocast_does_not_merge_codes():
    z = torch.linspace(-3, 3, 4000)[:, None]
    expected = FSQ((32,))(z).codes
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(FSQ((32,))(z).codes, expected)


def test_levels_of_the_usual_vocabularies():
    assert fsq_levels(256) == (8, 8, 4)
    assert fsq_levels(512) == (8, 8, 8)
    assert fsq_levels(1024) == (16, 8, 8)


@pytest.mark.parametrize("vocabulary", [2, 3, 5, 7, 8, 16, 60, 100, 128, 240, 256, 1000, 4096])
def test_levels_fit_the_vocabulary_and_use_its_bits(vocabulary):
    size = math.prod(fsq_levels(vocabulary))
    assert size <= vocabulary
    assert math.log2(size) >= 0.95 * math.log2(vocabulary)


def test_a_vocabulary_without_levels_is_refused():
    with pytest.raises(ConfigError, match="vocabulary"):
        fsq_levels(2**20)


@pytest.mark.parametrize("levels", [(), (8, 1), (0,)])
def test_levels_below_two_are_refused(levels):
    with pytest.raises(ConfigError, match="at least 2"):
        FSQ(levels)


def test_an_unknown_quantiser_is_refused():
    with pytest.raises(ConfigError, match="lfq"):
        PosteriorConfig("lfq")


def test_levels_that_exceed_the_vocabulary_are_refused():
    """Codes past the vocabulary would have no embedding to decode from."""
    with pytest.raises(ConfigError, match="vocabulary"):
        QuantizedPosterior(CodeModelConfig(4, 16, True, TRANSFORMER), "fsq", levels=(8, 8))


def test_embedding_table_is_what_quantising_embeds_to():
    torch.manual_seed(0)
    posterior = QuantizedPosterior(CodeModelConfig(4, 60, True, TRANSFORMER), "fsq").eval()
    with torch.no_grad():
        posterior.project_in.weight *= 20
        embedded, codes = posterior.quantize(make_memory(posterior, batch=50))
        table = posterior.embedding_table()
    assert len(table) == posterior.quantizer.codebook_size
    assert len(codes.unique()) >= 10
    torch.testing.assert_close(table[codes], embedded, rtol=0, atol=1e-5)


def test_a_residual_quantiser_needs_a_fixed_memory():
    with pytest.raises(ConfigError, match="no fixed number"):
        make_posterior(PosteriorConfig("rvq"), CodeModelConfig(4, 16))
