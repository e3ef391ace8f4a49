"""Tokenizer: units, files, and codes that decode."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import make_tokenizer, tokenizer_config

from daps_robot.data.normalize import Scaler
from daps_robot.errors import CheckpointError, ConfigError, DataError
from daps_robot.models.decoders import MLPDecoderConfig
from daps_robot.models.frontends import PatchFrontEndConfig
from daps_robot.models.likelihoods import LikelihoodConfig
from daps_robot.models.posteriors import PosteriorConfig
from daps_robot.models.tokenizer import Tokenizer, TokenizerConfig


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_encoding_and_decoding_work_in_the_units_of_the_data():
    config = tokenizer_config()
    scaler = Scaler(torch.tensor([1.0, -2.0, 30.0]), torch.tensor([0.1, 5.0, 2.0]))
    tokenizer = Tokenizer(config, scaler).eval()
    plain = Tokenizer(config).eval()
    plain.load_state_dict({**tokenizer.state_dict(), **{f"scaler.{k}": v for k, v in plain.scaler.state_dict().items()}})
    x = torch.randn(5, 8, 3)
    codes = plain.encode(x)
    assert torch.equal(tokenizer.encode(scaler.denormalize(x)), codes)
    torch.testing.assert_close(tokenizer.decode(codes), scaler.denormalize(plain.decode(codes)))


def test_encode_draws_by_the_given_noise():
    tokenizer = make_tokenizer()
    x, uniforms = torch.randn(4, 8, 3), torch.rand(4, 3, 4)
    codes = tokenizer.encode(x, uniforms)
    assert codes.shape == (4, 3, 4)
    assert torch.equal(codes, tokenizer.encode(x, uniforms))
    assert torch.equal(codes[2:3], tokenizer.encode(x[2:3], uniforms[2:3]))
    assert not torch.equal(codes, tokenizer.encode(x, 1 - uniforms))


def test_every_code_decodes():
    tokenizer = make_tokenizer()
    codes = torch.randint(16, (3, 7, 4))
    decoded = tokenizer.decode(codes)
    assert decoded.shape == (3, 7, 8, 3)
    assert decoded.isfinite().all()
    torch.testing.assert_close(tokenizer.decode(codes[1:2, 4:5])[0, 0], decoded[1, 4], rtol=0, atol=1e-5)


def test_log_likelihood_is_that_of_the_reconstruction():
    tokenizer = make_tokenizer(likelihood=LikelihoodConfig("gaussian", 0.3))
    x, codes = torch.randn(4, 8, 3), torch.randint(16, (4, 5, 4))
    mask = torch.arange(8) < torch.tensor([8, 5, 2, 1])[:, None]
    elements = torch.distributions.Normal(tokenizer.decode(codes), 0.3**0.5).log_prob(x[:, None])
    expected = (elements * mask[:, None, :, None]).sum((2, 3))
    found = tokenizer.log_likelihood(codes, tokenizer.inputs(x, mask))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("shape", [(8, 4), (7, 3), (8,)])
def test_another_shape_is_refused(shape):
    with pytest.raises(ConfigError, match="shape"):
        make_tokenizer().encode(torch.randn(2, *shape))


def test_what_holds_no_number_is_refused_and_float64_is_taken():
    tokenizer = make_tokenizer()
    x = torch.randn(2, 8, 3)
    assert torch.equal(tokenizer.encode(x.double()), tokenizer.encode(x))
    with pytest.raises(ConfigError, match="int64"):
        tokenizer.encode(x.long())
    for value in (math.nan, math.inf, 1e300):
        spoilt = x.double()
        spoilt[1, 7, 2] = value
        with pytest.raises(DataError, match=r"\[1, 7, 2\] is (nan|inf|1e\+300), no number of float32"):
            tokenizer.encode(spoilt)


KINDS = {
    "plain": tokenizer_config(),
    "factorised": tokenizer_config(autoregressive=False),
    "conditioned": tokenizer_config(observation=5, obs_keys=("state",)),
    "action": tokenizer_config(likelihood=LikelihoodConfig("action", "per-dimension", binary=(2,))),
    "per-output": tokenizer_config(likelihood=LikelihoodConfig("gaussian", "per-output")),
    "fsq": TokenizerConfig(**{**vars(tokenizer_config()), "posterior": PosteriorConfig("fsq")}),
    "image": TokenizerConfig(
        codes=tokenizer_config().codes,
        front_end=PatchFrontEndConfig(6, 6, 1, 3, 3, tokenizer_config().codes.transformer),
        decoder=MLPDecoderConfig(6, 6, 1, (12,)),
        likelihood=LikelihoodConfig("bernoulli"),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tokenizer_comes_back(kind, tmp_path):
    config = KINDS[kind]
    channels = config.front_end.channels
    scaler = Scaler(torch.randn(channels), torch.rand(channels) + 0.5) if kind != "image" else None
    tokenizer = Tokenizer(config, scaler, Scaler(torch.randn(5), torch.rand(5) + 0.5)).eval()
    tokenizer.save_pretrained(tmp_path / "deep" / "model")
    again = Tokenizer.from_pretrained(tmp_path / "deep" / "model")
    assert again.config == config
    assert not again.training
    x = torch.rand(6, 6, 6, 1) if kind == "image" else torch.randn(6, 8, 3)
    observation = torch.randn(6, 5)
    codes = tokenizer.encode(x)
    assert torch.equal(again.encode(x), codes)
    assert torch.equal(again.decode(codes, observation), tokenizer.decode(codes, observation))


def test_a_conditioned_decoder_may_see_quaternions_of_which_the_sign_is_nothing():
    config = replace(tokenizer_config(observation=8, obs_keys=("state",)), quaternions=(1,))
    tokenizer = Tokenizer(config).eval()
    assert tokenizer.observation_dim == 6
    codes, observation = torch.randint(16, (3, 2, 4)), torch.randn(3, 6)
    expected = tokenizer.decode(codes, observation)
    torch.testing.assert_close(tokenizer.decode(codes, observation * torch.tensor([1, -1, -1, -1, -1, 1])), expected)
    assert not torch.allclose(tokenizer.decode(codes, observation * torch.tensor([1, -1, 1, 1, 1, 1])), expected)
    with pytest.raises(ConfigError, match="quaternions at columns"):
        Tokenizer(replace(config, quaternions=(3,)))


@pytest.mark.parametrize(
    ("observation", "error", "message"),
    [
        (None, ConfigError, "conditioned on the observation"),
        (torch.zeros(3, 1), ConfigError, r"shape \(3, 5\), not \(3, 1\)"),
        (torch.zeros(1, 5), ConfigError, r"shape \(3, 5\), not \(1, 5\)"),
        (torch.tensor([[0.0] * 5, [0.0] * 3 + [math.nan, 0.0], [0.0] * 5]), DataError, "observation 1 is nan at value 3"),
    ],
)
def test_a_conditioned_decoder_refuses_what_it_cannot_read(observation, error, message):
    with pytest.raises(error, match=message):
        Tokenizer(KINDS["conditioned"]).decode(torch.zeros(3, 1, 4, dtype=torch.int64), observation)


def test_a_conditioned_decoder_reads_the_normalised_observation():
    config = KINDS["conditioned"]
    scaler = Scaler(torch.full((5,), 100.0), torch.full((5,), 10.0))
    tokenizer = Tokenizer(config, obs_scaler=scaler).eval()
    plain = Tokenizer(config, obs_scaler=Scaler.identity(5)).eval()
    state = {k: v for k, v in tokenizer.state_dict().items() if not k.startswith("obs_scaler")}
    plain.load_state_dict(state, strict=False)
    codes, observation = torch.randint(16, (3, 2, 4)), torch.randn(3, 5)
    expected = plain.decode(codes, observation)
    torch.testing.assert_close(tokenizer.decode(codes, 100 + 10 * observation), expected, rtol=0, atol=1e-4)
    assert not torch.allclose(plain.decode(codes, -observation), expected)
    with pytest.raises(ConfigError, match="observation"):
        plain.decode(codes)


def test_a_draw_of_a_quantiser_repeats_its_one_code():
    tokenizer = Tokenizer(KINDS["fsq"]).eval()
    x = torch.randn(3, 8, 3)
    codes = tokenizer.encode(x, torch.rand(3, 5, 4))
    assert torch.equal(codes, tokenizer.encode(x).expand(-1, 5, -1))


def test_reconstruct_takes_and_gives_arrays():
    tokenizer = make_tokenizer()
    chunks = np.random.default_rng(0).normal(size=(3, 8, 3)).astype(np.float32)
    observations = np.zeros((3, 1, 5), np.float32)
    found = tokenizer.reconstruct(chunks, observations, np.arange(3))
    expected = tokenizer.decode(tokenizer.encode(torch.from_numpy(chunks)))[:, 0]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def damage(directory, file, change):
    path = directory / file
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    "file, change, words",
    [
        ("model.safetensors", lambda data: data[: len(data) // 2], "safetensors"),
        ("model.safetensors", lambda data: b"", "safetensors"),
        ("model.safetensors", lambda data: b"\xff" * 100, "safetensors"),
        ("config.json", lambda data: data[:100], "JSON"),
        ("config.json", lambda data: b"[1, 2]", "tokenizer"),
        ("config.json", lambda data: b"\xff\xfe\xfa", "config.json"),
        ("config.json", lambda data: data.replace(b'"version": 1', b'"version": 2'), "update daps_robot"),
        ("config.json", lambda data: data.replace(b"daps_robot/tokenizer", b"daps_robot/policy"), "tokenizer"),
        ("config.json", lambda data: data.replace(b'"vocabulary": 16', b'"vocabulary": 15'), "shape"),
        ("config.json", lambda data: data.replace(b'"vocabulary"', b'"vocabularies"'), "Did you mean 'vocabulary'"),
        ("config.json", lambda data: data.replace(b'"vocabulary": 16', b'"vocabulary": "16"'), "codes.vocabulary"),
        ("config.json", lambda data: data.replace(b'"vocabulary": 16', b'"vocabulary": 1'), "cannot hold a bit"),
        (
            "config.json",
            lambda data: data.replace(b'"vocabulary": 16', b'"vocabulary": 9000000000'),
            "far larger than the weights",
        ),
        ("config.json", lambda data: data.replace(b'"heads": 2', b'"heads": 3'), "heads"),
        ("config.json", lambda data: data.replace(b'"width": 16', b'"width": -16'), "width"),
    ],
)
def test_a_damaged_tokenizer_is_refused(tmp_path, file, change, words):
    make_tokenizer().save_pretrained(tmp_path)
    damage(tmp_path, file, change)
    with pytest.raises(CheckpointError, match=words) as error:
        Tokenizer.from_pretrained(tmp_path)
    assert len(str(error.value).splitlines()) <= 2


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_missing_file_is_named(tmp_path, file):
    make_tokenizer().save_pretrained(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(CheckpointError, match=file):
        Tokenizer.from_pretrained(tmp_path)
