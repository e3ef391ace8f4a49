"""Ordered codes: any prefix decodes, in the tokenizer and in a policy that predicts no more than that."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import make_policy, make_tokenizer, tokenizer_config

from daps_robot.errors import ConfigError
from daps_robot.models.decoders import ChunkDecoderConfig
from daps_robot.models.policy import DecodingConfig, LatentPolicy
from daps_robot.models.prefixes import drawn_prefixes, over_prefix, prefix_lengths
from daps_robot.models.tokenizer import Tokenizer
from daps_robot.types import PlanRequest


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def ordered_tokenizer(**changes):
    return Tokenizer(replace(tokenizer_config(**changes), nested_dropout=True)).eval()


@pytest.mark.parametrize("kind", ["conv", "queries", "sum"])
def test_a_prefix_decodes_as_the_codes_with_the_rest_masked(kind):
    plain = tokenizer_config()
    decoder = ChunkDecoderConfig(8, 3, 0, plain.codes.transformer, kind)
    tokenizer = Tokenizer(replace(plain, decoder=decoder, nested_dropout=True)).eval()
    codes = torch.randint(16, (3, 5, 4))
    embedded = tokenizer.embed(codes).detach()
    embedded[:, :, 2:] = tokenizer.mask_embedding.detach()
    torch.testing.assert_close(tokenizer.decode(codes[..., :2]), tokenizer.decode_embedded(embedded))
    others = codes.clone()
    others[..., 2:] = (others[..., 2:] + 1) % 16
    assert not torch.equal(tokenizer.decode(codes), tokenizer.decode(others))


def test_the_likelihood_given_kept_codes_is_that_of_the_prefix():
    tokenizer = ordered_tokenizer()
    x, codes, kept = torch.randn(4, 8, 3), torch.randint(16, (4, 2, 4)), torch.tensor([1, 4, 2, 3])
    found = tokenizer.log_likelihood(codes, tokenizer.inputs(x)._replace(kept=kept))
    for row, m in enumerate(kept.tolist()):
        one = tokenizer.inputs(x[row : row + 1])
        alone = tokenizer.embedded_log_likelihood(tokenizer.embed(codes[row : row + 1, :, :m]), one)
        torch.testing.assert_close(found[row], alone[0], rtol=1e-5, atol=1e-3)


def test_over_prefix_is_a_sum():
    values, kept = torch.randn(3, 2, 5), torch.tensor([1, 5, 3])
    expected = torch.stack([values[row, :, :m].sum(-1) for row, m in enumerate(kept.tolist())])
    torch.testing.assert_close(over_prefix(values, kept), expected)
    torch.testing.assert_close(over_prefix(values, None), values.sum(-1))


@pytest.mark.parametrize("length", [0, 5])
def test_other_lengths_are_refused(length):
    with pytest.raises(ConfigError, match="1 to 4 codes"):
        ordered_tokenizer().decode(torch.zeros(2, 1, length, dtype=torch.long))


def test_without_nested_dropout_all_codes_are_needed():
    tokenizer = make_tokenizer()
    with pytest.raises(ConfigError, match="4 codes"):
        tokenizer.decode(torch.zeros(2, 1, 3, dtype=torch.long))
    with pytest.raises(ConfigError, match="nested dropout"):
        tokenizer.decode_embedded(torch.zeros(2, 1, 3, 16))


def test_an_ordered_tokenizer_comes_back(tmp_path):
    tokenizer = ordered_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    codes = torch.randint(16, (3, 1, 2))
    assert torch.equal(Tokenizer.from_pretrained(tmp_path).decode(codes), tokenizer.decode(codes))


def test_every_prefix_length_is_as_likely():
    drawn = drawn_prefixes(30_000, 5, torch.device("cpu"))
    shares = torch.bincount(drawn, minlength=6) / 30_000
    assert shares[0] == 0
    torch.testing.assert_close(shares[1:], torch.full((5,), 0.2), rtol=0, atol=0.012)


def test_prefixes_are_measured_at_all_lengths_or_powers_of_two():
    assert prefix_lengths(8) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert prefix_lengths(40) == [1, 2, 4, 8, 16, 32, 40]


# -- a policy that predicts the first codes alone ------------------------------------------------------------------------------


def ordered_policy(decoding):
    policy = make_policy()
    config = replace(policy.config, tokenizer=replace(policy.config.tokenizer, nested_dropout=True), decoding=decoding)
    torch.manual_seed(0)
    found = LatentPolicy(config).eval()
    with torch.no_grad():
        found.code_model.head.scale.mul_(2)
    return found


@pytest.mark.parametrize("method", ["expected", "greedy", "sample", "consensus", "beam"])
def test_a_policy_plans_from_fewer_codes(method):
    decoding = DecodingConfig(method, samples=5, beam_width=3)
    policy = ordered_policy(decoding)
    short = policy.with_decoding(replace(decoding, prefix=2))
    observations, keys = torch.randn(6, 2, 5), np.arange(6)
    codes = short.codes(observations, keys)
    assert codes.shape == (6, 2)
    if method not in ("consensus", "beam"):  # which choose by what follows
        assert torch.equal(codes, policy.codes(observations, keys)[:, :2])
    plan = short.plan(PlanRequest(observations.numpy(), keys))
    assert not np.allclose(plan, policy.plan(PlanRequest(observations.numpy(), keys)), atol=1e-4)
    if method != "expected":
        np.testing.assert_allclose(plan, policy.tokenizer.decode(codes[:, None])[:, 0], atol=1e-5)


def test_all_codes_are_no_prefix():
    policy = ordered_policy(DecodingConfig("greedy"))
    observations = torch.randn(4, 2, 5)
    whole = policy.with_decoding(DecodingConfig("greedy", prefix=4))
    assert torch.equal(whole.chunks(observations), policy.chunks(observations))


@pytest.mark.parametrize("prefix", [0, 5])
def test_a_prefix_that_does_not_decode_is_refused(prefix):
    with pytest.raises(ConfigError, match="prefix"):
        ordered_policy(DecodingConfig("greedy", prefix=prefix))


def test_a_policy_of_unordered_codes_has_no_prefix():
    with pytest.raises(ConfigError, match="nested-dropout"):
        make_policy(DecodingConfig("greedy", prefix=2))
