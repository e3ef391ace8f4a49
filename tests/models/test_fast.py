"""FAST: cosine coefficients, lossless byte-pair encoding of their rounded values, and a decoder that is total."""

import importlib

import numpy as np
import pytest
import torch
from scipy.fft import dct
from test_bins import dataset

from daps_robot.data.normalize import Scaler
from daps_robot.errors import CheckpointError, ConfigError
from daps_robot.estimators.fitted import FASTConfig, fit_fast
from daps_robot.models.action_tokenizer import load_tokenizer
from daps_robot.models.fast import FASTTokenizer, FASTTokenizerConfig, cosine_matrix

needs_library = pytest.mark.skipif(importlib.util.find_spec("tokenizers") is None, reason="tokenizers is not installed")
SETTINGS = FASTConfig(dct_scale=4.0, bpe_vocabulary=120)


@pytest.fixture(scope="module")
def fitted():
    return fit_fast(dataset(), SETTINGS, Scaler.identity(3))


def by_hand():
    """Two merges over the symbols −1, 0, 1 of chunks of 2 steps × 2: codes 1 2 3, then 4 = 1 1 and 5 = 4 2."""
    config = FASTTokenizerConfig(2, 2, 1.0, -1, 1, merges=2, vocabulary=6, positions=4)
    tokenizer = FASTTokenizer(config)
    tokenizer.pairs.copy_(torch.tensor([[2, 2], [4, 3]]))
    return tokenizer


def coefficients_of(tokenizer, codes):
    return tokenizer.coefficients(tokenizer.decode(torch.tensor([[codes]]))[:, 0])[0].tolist()


def test_the_cosines_are_scipys():
    x = np.random.default_rng(0).normal(size=(16, 5))
    np.testing.assert_allclose(cosine_matrix(16).double() @ torch.from_numpy(x), dct(x, axis=0, norm="ortho"), atol=1e-6)


def test_decoding_by_hand():
    tokenizer = by_hand()
    assert coefficients_of(tokenizer, [5, 1, 0, 0]) == [0, 0, 1, -1]
    assert coefficients_of(tokenizer, [3, 3]) == [1, 1, 0, 0]  # a prefix: what is missing is zero
    assert coefficients_of(tokenizer, [0, 3, 3, 3]) == [0, 0, 0, 0]  # nothing counts after the end
    assert coefficients_of(tokenizer, [3, 5, 5, 5]) == [1, 0, 0, 1]  # what is too much is left out
    codes = torch.tensor([[5, 1, 0, 0], [3, 3, 0, 0], [0, 3, 3, 3], [3, 5, 5, 5], [2, 2, 2, 2], [4, 4, 0, 5]])
    assert tokenizer.malformed(codes).tolist() == [False, True, True, True, False, False]


@needs_library
def test_encoding_by_hand():
    """Pairs are merged in their order: 0 0 first, then with a 1 behind it."""
    tokenizer = by_hand()
    x = tokenizer.chunks(torch.tensor([[0.0, 0, 1, -1], [1, 0, 0, 1], [0, 0, 0, 0], [-1, 1, 0, -1]]))
    assert tokenizer.encode(x)[:, 0].tolist() == [[5, 1, 0, 0], [3, 5, 0, 0], [4, 4, 0, 0], [1, 3, 2, 1]]


@needs_library
def test_a_chunk_is_off_by_the_rounding_alone(fitted):
    x = dataset().gather(torch.arange(60)).actions
    again = fitted.decode(fitted.encode(x))[:, 0]
    torch.testing.assert_close(again, fitted.chunks(fitted.coefficients(x).float()))  # byte-pair encoding loses nothing
    normalised = 2 * (again - x) / fitted.span
    assert normalised.square().sum((1, 2)).max() <= 24 * (0.5 / 4.0) ** 2  # orthonormal: an error of half a unit in each
    assert not fitted.malformed(fitted.encode(x)).any()


@needs_library
def test_every_sequence_decodes(fitted):
    size = fitted.config.codes
    codes = torch.randint(size.vocabulary, (300, 2, size.positions))
    assert fitted.decode(codes).isfinite().all()
    assert fitted.malformed(codes).float().mean() > 0.5
    for length in (1, 3):
        padded = torch.nn.functional.pad(codes[..., :length], (0, size.positions - length))
        torch.testing.assert_close(fitted.decode(codes[..., :length]), fitted.decode(padded))


@needs_library
def test_lengths_and_bits(fitted):
    train = dataset()
    x = train.gather(torch.arange(len(train))).actions
    lengths = torch.tensor([len(codes) for codes in fitted.sequences(x)])
    assert fitted.config.positions == lengths.max()
    codes = fitted.encode(x)[:, 0]
    assert torch.equal((codes != 0).sum(1), lengths)
    facts = fitted.facts(x)
    assert fitted.bits == pytest.approx(facts["codes"].mean().item() * np.log2(fitted.config.vocabulary), rel=1e-5)
    assert facts["cut"].sum() == facts["clipped"].sum() == 0
    assert fitted.config.vocabulary <= 120 and len(codes.unique()) > 60


@needs_library
def test_too_few_positions_say_how_many_are_needed(fitted):
    with pytest.raises(ConfigError, match=f"takes {fitted.config.positions} codes, not 3"):
        fit_fast(dataset(), FASTConfig(dct_scale=4.0, bpe_vocabulary=120, max_codes=3), Scaler.identity(3))
    wide = fit_fast(dataset(), FASTConfig(dct_scale=4.0, bpe_vocabulary=120, max_codes=24), Scaler.identity(3))
    assert wide.config.positions == 24 and wide.bits == pytest.approx(fitted.bits, abs=8)


@needs_library
def test_a_vocabulary_without_room_for_the_symbols():
    with pytest.raises(ConfigError, match="values, more than 20"):
        fit_fast(dataset(), FASTConfig(bpe_vocabulary=20), Scaler.identity(3))


@needs_library
def test_what_no_training_chunk_had_is_counted(fitted):
    x = 8 * dataset().gather(torch.arange(10)).actions
    facts = fitted.facts(x)
    assert (facts["clipped"] > 0).all()
    assert fitted.decode(fitted.encode(x)).isfinite().all()
    short = FASTTokenizer(fitted.config)
    short.load_state_dict(fitted.state_dict())
    short.config = FASTTokenizerConfig(**{**vars(fitted.config), "positions": 2})
    assert short.facts(x)["cut"].all() and (short.facts(x)["codes"] == 2).all()
    torch.testing.assert_close(short.encode(x)[:, 0], fitted.encode(x)[:, 0, :2])


@needs_library
def test_saved_and_read(fitted, tmp_path):
    fitted.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert isinstance(again, FASTTokenizer) and again.config == fitted.config and again.bits == fitted.bits
    x = torch.randn(20, 8, 3)
    assert torch.equal(again.encode(x), fitted.encode(x))
    assert torch.equal(again.decode(again.encode(x)), fitted.decode(fitted.encode(x)))


@pytest.mark.parametrize("pairs", [[[2, 2], [9, 1]], [[0, 1], [4, 3]], [[2, 2], [2, 2]], [[2, 2], [5, 1]]])
def test_damaged_merges_are_refused(pairs):
    tokenizer = by_hand()
    tokenizer.pairs.copy_(torch.tensor(pairs))
    with pytest.raises(CheckpointError, match="merge"):
        tokenizer.decode(torch.zeros(1, 1, 4, dtype=torch.long))


def test_merges_that_would_take_all_memory_stay_as_long_as_a_chunk():
    config = FASTTokenizerConfig(2, 2, 1.0, -1, 1, merges=40, vocabulary=6, positions=4)
    tokenizer = FASTTokenizer(config)
    tokenizer.pairs.copy_(torch.tensor([[1, 1], [4, 4]] + [[5, 5]] * 38))  # 2, 4, 8, … symbols
    assert tokenizer.pieces.shape == (6, 4)


@pytest.mark.parametrize(
    "sizes", [{"scale": 0.0}, {"lowest": 50}, {"highest": 10**6}, {"vocabulary": 80}, {"positions": 0}, {"horizon": 10**9}]
)
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ConfigError):
        FASTTokenizerConfig(**sizes)


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    tokenizer = by_hand()
    with pytest.raises(ConfigError, match=r"daps-robot\[fast\]"):
        tokenizer.encode(torch.zeros(1, 2, 2))
    assert tokenizer.decode(torch.ones(1, 1, 4, dtype=torch.long)).isfinite().all()


def test_without_coefficients_a_chunk_lies_amid_its_range():
    tokenizer = by_hand()
    tokenizer.low.copy_(torch.tensor([-1.0, 0.3]))
    tokenizer.high.copy_(torch.tensor([3.0, 0.3]))  # the second does not move
    decoded = tokenizer.decode(torch.zeros(1, 1, 1, dtype=torch.long))
    torch.testing.assert_close(decoded[0, 0], torch.tensor([[1.0, 0.3], [1.0, 0.3]]))
