"""Uniform bins: codes that come back as they were, errors within half a bin, and what lies outside."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from daps_robot.data.chunks import ChunkDataset
from daps_robot.data.normalize import Scaler
from daps_robot.errors import CheckpointError, ConfigError, DataError
from daps_robot.estimators.fitted import BinsConfig, fit_bins
from daps_robot.models.action_tokenizer import load_tokenizer
from daps_robot.models.bins import BinsTokenizer, BinsTokenizerConfig, hat_functions
from daps_robot.types import Demo


def dataset(horizon=8):
    rng = np.random.default_rng(0)
    demos = [
        Demo(f"demo_{i}", rng.normal(size=(n, 3)).astype(np.float32), {"state": rng.normal(size=(n, 5)).astype(np.float32)})
        for i, n in enumerate((40, 60, 50))
    ]
    return ChunkDataset(demos, ("state",), horizon)


def made(bins=16, knots=8, low=(-1.0, 0.0, -5.0), high=(1.0, 0.5, 5.0)):
    tokenizer = BinsTokenizer(BinsTokenizerConfig(8, 3, bins, knots))
    tokenizer.low.copy_(torch.tensor(low))
    tokenizer.high.copy_(torch.tensor(high))
    return tokenizer


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 300), st.sampled_from([1, 2, 3, 5, 8]), st.integers(0, 1000))
def test_codes_come_back_as_they_were(bins, knots, seed):
    tokenizer = made(bins, knots)
    codes = torch.randint(bins, (5, 2, 3 * knots), generator=torch.Generator().manual_seed(seed))
    decoded = tokenizer.decode(codes)
    assert torch.equal(tokenizer.encode(decoded[:, 0])[:, 0], codes[:, 0])


def test_numbers_within_the_range_are_off_by_half_a_bin_at_most():
    tokenizer = made(bins=20)
    x = tokenizer.low + torch.rand(50, 8, 3) * (tokenizer.high - tokenizer.low)
    error = (tokenizer.decode(tokenizer.encode(x))[:, 0] - x).abs().amax((0, 1))
    half = (tokenizer.high - tokenizer.low) / 40
    assert (error <= half * 1.001).all() and (error > 0.9 * half).all()
    assert (tokenizer.facts(x)["clipped"] == 0).all()


def test_numbers_outside_go_to_the_outermost_bins_and_are_counted():
    tokenizer = made(bins=4)
    x = torch.zeros(1, 8, 3)
    x[0, :2] = torch.tensor([9.0, 9.0, 9.0])
    codes = tokenizer.encode(x).view(8, 3)
    assert (codes[:2] == 3).all()
    assert tokenizer.facts(x)["clipped"].item() == pytest.approx(0.25)


def test_a_dimension_that_does_not_move_keeps_its_value():
    tokenizer = made(low=(-1.0, 0.3, -5.0), high=(1.0, 0.3, 5.0))
    x = torch.zeros(4, 8, 3)
    x[..., 1] = 0.3
    torch.testing.assert_close(tokenizer.decode(tokenizer.encode(x))[..., 1], torch.full((4, 1, 8), 0.3))
    assert tokenizer.facts(x)["clipped"].sum() == 0


def test_knots_carry_polylines_and_the_nearest_of_them():
    basis = hat_functions(8, 3)
    assert basis[0].tolist() == [1, 0, 0] and basis[-1].tolist() == [0, 0, 1]
    torch.testing.assert_close(basis.sum(1), torch.ones(8, dtype=torch.float64))
    assert torch.equal(hat_functions(8, 8), torch.eye(8, dtype=torch.float64))
    tokenizer = made(bins=4000, knots=3)
    line = (basis.float() @ torch.tensor([[-0.5, 0.1, 0.0], [0.5, 0.3, 2.0], [0.0, 0.2, -3.0]]))[None]
    torch.testing.assert_close(tokenizer.decode(tokenizer.encode(line))[:, 0], line, rtol=0, atol=2e-3)
    x = line + 0.05 * torch.randn(1, 8, 3)
    best = torch.linalg.lstsq(basis.float(), x[0]).solution
    torch.testing.assert_close(tokenizer.decode(tokenizer.encode(x))[0, 0], basis.float() @ best, rtol=0, atol=3e-3)


def test_bits():
    assert made(bins=256).bits == 8 * 3 * 8
    assert made(bins=8, knots=3).bits == 3 * 3 * 3


def test_the_range_is_that_of_the_percentiles():
    train = dataset()
    tokenizer = fit_bins(train, BinsConfig(), Scaler.identity(3))
    low, high = np.quantile(train.actions.numpy(), [0.01, 0.99], axis=0)
    np.testing.assert_allclose(tokenizer.low, low, rtol=1e-5)
    np.testing.assert_allclose(tokenizer.high, high, rtol=1e-5)
    assert tokenizer.config.knots == 8


def test_saved_and_read(tmp_path):
    tokenizer = fit_bins(dataset(), BinsConfig(10, 2), Scaler(torch.ones(3), torch.ones(3) * 2))
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert isinstance(again, BinsTokenizer) and again.config == tokenizer.config
    x = torch.randn(6, 8, 3)
    assert torch.equal(again.encode(x), tokenizer.encode(x))
    assert torch.equal(again.decode(again.encode(x)), tokenizer.decode(tokenizer.encode(x)))
    assert torch.equal(again.scaler.scale, tokenizer.scaler.scale)
    found = again.reconstruct(x.numpy(), np.zeros((6, 1, 0), np.float32), np.arange(6))
    np.testing.assert_array_equal(found, tokenizer.decode(tokenizer.encode(x))[:, 0].numpy())


def test_other_shapes_and_codes_are_refused():
    tokenizer = made()
    with pytest.raises(ConfigError, match="shape"):
        tokenizer.encode(torch.zeros(2, 7, 3))
    with pytest.raises(DataError, match=r"\[0, 3, 1\] is nan"):
        tokenizer.encode(torch.where(torch.arange(24).view(1, 8, 3) == 10, math.nan, 0.0))
    for codes in (torch.full((1, 1, 24), 16), torch.zeros(1, 1, 23, dtype=torch.long)):
        with pytest.raises(ConfigError, match="24 codes"):
            tokenizer.decode(codes)


@pytest.mark.parametrize(
    "sizes", [{"bins": 1}, {"bins": 10**400}, {"knots": 0}, {"knots": 17}, {"horizon": 10**6}, {"channels": 0}]
)
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ConfigError):
        BinsTokenizerConfig(**sizes)


def test_a_directory_of_something_else(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"format": "daps_robot/policy"}')
    with pytest.raises(CheckpointError, match="not a tokenizer"):
        load_tokenizer(tmp_path)


def test_a_dimension_that_seldom_moves_is_not_constant():
    """Pressed in 6 of 1000 steps: both percentiles are 0."""
    actions = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
    actions[:, 1] = 0
    actions[500:506, 1] = 1
    actions[:, 2] = 5
    tokenizer = made(bins=256)
    tokenizer.fit_range(actions)
    x = torch.from_numpy(actions[498:506])[None]
    again = tokenizer.decode(tokenizer.encode(x))[:, 0]
    assert (again[..., 1] - x[..., 1]).abs().max() < 1 / 256
    assert (again[..., 2] == 5).all()
