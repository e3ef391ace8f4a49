"""LatentPolicy: plans that depend on their own row alone, decoding, files, shapes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import TRANSFORMER, all_sequences, make_policy, make_tokenizer, tokenizer_config

from daps_robot.data.normalize import Scaler
from daps_robot.errors import CheckpointError, ConfigError, DataError
from daps_robot.models.bins import BinsTokenizerConfig
from daps_robot.models.code_model import CodeModelConfig
from daps_robot.models.frontends import ObservationFrontEndConfig
from daps_robot.models.likelihoods import LikelihoodConfig
from daps_robot.models.policy import DecodingConfig, LatentPolicy, PolicyConfig
from daps_robot.models.sampling import sample
from daps_robot.models.tokenizer import Tokenizer
from daps_robot.types import PlanRequest, Policy

METHODS = [
    DecodingConfig("expected"),
    DecodingConfig("greedy"),
    DecodingConfig("sample"),
    DecodingConfig("sample", 0.5),
    DecodingConfig("consensus", samples=5),
    DecodingConfig("beam", beam_width=3),
]
all_methods = pytest.mark.parametrize("decoding", METHODS, ids=lambda d: f"{d.method}-{d.temperature}")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def request(rows=6, start=0):
    rng = np.random.default_rng(0)
    return PlanRequest(rng.normal(size=(rows, 2, 5)).astype(np.float32), np.arange(start, start + rows))


def test_it_is_a_policy():
    policy = make_policy()
    assert isinstance(policy, Policy)
    assert (policy.obs_keys, policy.history, policy.horizon, policy.action_dim) == (("state",), 2, 8, 3)
    assert not policy.needs_expert
    plan = policy.plan(request())
    assert plan.shape == (6, 8, 3)
    assert plan.dtype == np.float32


def test_a_short_plan_is_executed_to_its_end():
    policy = make_policy(horizon=2, positions=2)
    policy.reset()
    assert policy.execute == 2 and [policy.act(np.zeros(5)).shape for _ in range(3)] == [(3,)] * 3


@all_methods
def test_a_plan_depends_on_its_own_row_alone(decoding):
    policy = make_policy(decoding)
    asked = request()
    plans = policy.plan(asked)
    others = PlanRequest(asked.observations + 3, asked.keys + 100)
    for row in range(6):
        alone = policy.plan(PlanRequest(asked.observations[row : row + 1], asked.keys[row : row + 1]))
        np.testing.assert_allclose(plans[row], alone[0], atol=1e-5)
        mixed = PlanRequest(others.observations.copy(), others.keys.copy())
        mixed.observations[row], mixed.keys[row] = asked.observations[row], asked.keys[row]
        np.testing.assert_allclose(policy.plan(mixed)[row], plans[row], atol=1e-5)


@all_methods
def test_no_policy_acts_on_what_is_not_finite(decoding):
    policy, asked = make_policy(decoding), request()
    for value in (np.nan, np.inf, -np.inf):
        asked.observations[3, 1, 2] = value
        with pytest.raises(DataError, match="observations of row 3 of a request are NaN or infinite"):
            PlanRequest(asked.observations, asked.keys)
    with pytest.raises(DataError, match="row 3 of the request overflows"):
        policy.plan(asked)  # an array that was changed since
    asked.observations[3, 1, 2] = 3e38
    with pytest.raises(DataError, match=r"row 3 of the request overflows.*far outside"):
        policy.plan(PlanRequest(asked.observations, asked.keys))


@pytest.mark.parametrize(
    "observations, keys, words",
    [
        (np.zeros((2, 2, 5)), np.arange(2), "float64"),
        (np.zeros((2, 5), np.float32), np.arange(2), r"\(2, 5\)"),
        (np.zeros((3, 2, 5), np.float32), np.arange(2), "each of 2 keys"),
        (np.zeros((0, 2, 5), np.float32), np.arange(0), "one a row"),
        (np.zeros((2, 2, 5), np.float32), np.arange(2) - 1, "at least 0"),
        (np.zeros((2, 2, 5), np.float32), np.arange(2.0), "whole numbers"),
        ([[[0.0]]], np.arange(1), "list"),
    ],
)
def test_requests_are_checked(observations, keys, words):
    with pytest.raises(DataError, match=words):
        PlanRequest(observations, keys)


def test_another_shape_than_a_policy_was_made_for_is_named():
    with pytest.raises(ConfigError, match=r"plans from 2 observations of 5 values \(state\), not from 1 of 6"):
        make_policy().plan(PlanRequest(np.zeros((2, 1, 6), np.float32), np.arange(2)))


def test_sampled_plans_are_keyed_by_their_numbers():
    policy = make_policy(DecodingConfig("sample"))
    asked = request()
    same = PlanRequest(np.repeat(asked.observations[:1], 6, 0), np.array([1, 1, 2, 3, 4, 5]))
    codes = policy.codes(torch.from_numpy(same.observations), same.keys)
    assert torch.equal(codes[0], codes[1])
    assert len({tuple(c) for c in codes.tolist()}) > 2
    torch.manual_seed(99)  # the global generator has no say
    assert torch.equal(policy.codes(torch.from_numpy(same.observations), same.keys), codes)
    with pytest.raises(ConfigError, match="key"):
        policy.codes(torch.from_numpy(same.observations))


def test_quaternions_are_seen_as_rotations(tmp_path):
    plain = make_policy(DecodingConfig("expected"), observation=9)
    policy = LatentPolicy(replace(plain.config, quaternions=(1,))).eval()  # 7 observed columns, of which 1 to 4 are a quaternion
    assert policy.observation_dim == 7
    observations = torch.randn(5, 2, 7)
    flipped = observations.clone()
    flipped[..., 1:5] *= -1
    torch.testing.assert_close(policy.chunks(flipped), policy.chunks(observations))
    flipped[..., 5] += 1
    assert not torch.allclose(policy.chunks(flipped), policy.chunks(observations))
    policy.save_pretrained(tmp_path)
    torch.testing.assert_close(LatentPolicy.from_pretrained(tmp_path).chunks(observations), policy.chunks(observations))


def test_a_plan_is_the_tokenizers_reconstruction_of_the_codes():
    policy = make_policy()
    asked = request()
    codes = policy.codes(torch.from_numpy(asked.observations))
    np.testing.assert_allclose(policy.plan(asked), policy.tokenizer.decode(codes[:, None])[:, 0], atol=1e-6)


def test_beam_finds_no_less_than_greedy_and_the_best_at_full_width():
    policy = make_policy(positions=2, vocabulary=4, horizon=8)
    observations = torch.from_numpy(request(20).observations)
    codes = all_sequences(2, 4).expand(20, -1, -1)
    with torch.no_grad():
        scores = policy.log_prob(observations, codes).sum(-1)
    best = codes[0][scores.argmax(1)]
    policy.config = replace(policy.config, decoding=DecodingConfig("beam", beam_width=16))
    found = policy.codes(observations)
    assert torch.equal(found, best)


def test_consensus_takes_the_draw_whose_chunk_is_nearest_to_the_mean_of_all():
    policy = make_policy(DecodingConfig("consensus", consensus_temperature=1.0, samples=7))
    asked = request()
    observations = torch.from_numpy(asked.observations)
    found = policy.codes(observations, asked.keys)
    noise = np.stack([np.random.default_rng(int(key)).random((7, policy.config.codes.positions)) for key in asked.keys])
    with torch.no_grad():
        drawn = sample(policy.code_model, policy.prepare(observations), torch.from_numpy(noise).float()).codes
    chunks = policy.tokenizer.scaler.normalize(policy.tokenizer.decode(drawn)).numpy()
    for row in range(6):
        risk = [((chunks[row] - mine) ** 2).sum() for mine in chunks[row]]  # Bayes risk of each draw under the others
        assert torch.equal(found[row], drawn[row, int(np.argmin(risk))])
    assert len({tuple(codes) for codes in drawn[0].tolist()}) > 1


def test_observations_are_normalised():
    policy = make_policy()
    scaled = LatentPolicy(policy.config, scaler=Scaler(torch.full((5,), 7.0), torch.full((5,), 3.0))).eval()
    scaled.load_state_dict({k: v for k, v in policy.state_dict().items() if not k.startswith("scaler")}, strict=False)
    asked = request()
    moved = PlanRequest(asked.observations * 3 + 7, asked.keys)
    np.testing.assert_allclose(scaled.plan(moved), policy.plan(asked), atol=1e-4)


@all_methods
def test_a_saved_policy_plans_the_same(decoding, tmp_path):
    policy = make_policy(decoding)
    policy.save_pretrained(tmp_path)
    again = LatentPolicy.from_pretrained(tmp_path)
    assert again.config == policy.config
    assert not again.training
    assert np.array_equal(again.plan(request()), policy.plan(request()))


def test_the_expected_chunk_is_decoded_from_the_expected_embedding():
    """Σ_z p(z_i | z_<i, o) e_z along the most likely prefix, by a loop over the positions."""
    policy = make_policy(DecodingConfig("expected"))
    asked = request()
    observations = torch.from_numpy(asked.observations)
    codes = policy.codes(observations)
    with torch.no_grad():
        logits = policy.code_model.logits(policy.prepare(observations), codes[:, None])[:, 0]
    assert torch.equal(logits.argmax(-1), codes)
    embedded = torch.einsum("blv,vd->bld", torch.softmax(logits, -1), policy.tokenizer.embedding.weight)
    expected = policy.tokenizer.decode_embedded(embedded[:, None])[:, 0]
    plans = policy.plan(asked)
    np.testing.assert_allclose(plans, expected, atol=1e-5)
    with torch.no_grad():
        policy.code_model.head.scale *= 1e4  # a sure policy expects its most likely codes
    sure = policy.plan(asked)
    np.testing.assert_allclose(sure, policy.tokenizer.decode(policy.codes(observations)[:, None])[:, 0], atol=1e-4)
    assert np.abs(plans - sure).max() > 1e-2


def test_the_tokenizer_does_not_learn():
    policy = make_policy()
    assert not any(p.requires_grad for p in policy.tokenizer.parameters())
    policy.log_prob(torch.randn(3, 2, 5), torch.randint(16, (3, 2, 4))).sum().backward()
    assert all(p.grad is not None for name, p in policy.named_parameters() if not name.startswith("tokenizer"))


def test_a_tokenizer_directory_is_no_policy(tmp_path):
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="not a policy"):
        LatentPolicy.from_pretrained(tmp_path)
    make_policy().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="not a tokenizer"):
        Tokenizer.from_pretrained(tmp_path)


def test_other_codes_than_the_tokenizers_are_refused():
    with pytest.raises(ConfigError, match="codes"):
        PolicyConfig(tokenizer_config(), ("state",), codes=CodeModelConfig(4, 17))


def test_other_observations_than_a_conditioned_decoder_reads_are_refused():
    """The decoder would read the policy's observations as if they were those it was trained on."""
    tokenizer = tokenizer_config(observation=5, obs_keys=("position", "velocity"))
    PolicyConfig(tokenizer, ("position", "velocity"), codes=tokenizer.codes)
    with pytest.raises(ConfigError, match="obs"):
        PolicyConfig(tokenizer, ("velocity", "position"), codes=tokenizer.codes)


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"beam_width": 0}])
def test_impossible_decoding_is_refused(settings):
    with pytest.raises(ConfigError):
        DecodingConfig(**settings)


# -- tokenizers without embeddings, and offsets --------------------------------------------------------------------------------


def make_table_policy(decoding=None, offset_head=False):
    tokenizer = BinsTokenizerConfig(8, 3, 16, 2)
    front_end = ObservationFrontEndConfig(2, 5, tokens_per_step=2, hidden=16, transformer=TRANSFORMER)
    codes = CodeModelConfig(6, 16, True, TRANSFORMER)
    config = PolicyConfig(tokenizer, ("state",), front_end, codes, decoding or DecodingConfig(), offset_head=offset_head)
    return LatentPolicy(config).eval()


def test_auto_decodes_the_expected_embedding_or_by_consensus_where_there_is_none():
    assert make_policy(DecodingConfig()).config.decoding.method == "expected"
    policy = make_table_policy()
    assert policy.config.decoding == DecodingConfig("consensus")
    assert policy.with_decoding(DecodingConfig(samples=3)).config.decoding == DecodingConfig("consensus", samples=3)
    with pytest.raises(ConfigError, match="consensus, greedy"):
        policy.with_decoding(DecodingConfig("expected"))


@pytest.mark.parametrize("method", ["consensus", "greedy", "sample", "beam"])
def test_a_policy_of_a_table_plans_and_is_saved(method, tmp_path):
    policy = make_table_policy(DecodingConfig(method, samples=4))
    asked = request()
    plan = policy.plan(asked)
    codes = policy.codes(torch.from_numpy(asked.observations), asked.keys)
    np.testing.assert_array_equal(plan, policy.tokenizer.decode(codes[:, None])[:, 0])
    policy.save_pretrained(tmp_path)
    again = LatentPolicy.from_pretrained(tmp_path)
    assert again.config == policy.config
    assert np.array_equal(again.plan(asked), plan)
    with pytest.raises(ConfigError, match="prefix"):
        policy.with_decoding(DecodingConfig(method, prefix=2))


@pytest.mark.parametrize("table", [False, True])
def test_an_offset_is_added_to_the_decoded_chunk(table, tmp_path):
    plain = make_policy(DecodingConfig("greedy"))
    policy = make_table_policy(DecodingConfig("greedy"), offset_head=True) if table else None
    if policy is None:
        policy = LatentPolicy(replace(plain.config, offset_head=True)).eval()
    policy.tokenizer.scaler = Scaler(torch.randn(3), torch.tensor([1.0, 2.0, 0.5]))
    asked = request()
    observations = torch.from_numpy(asked.observations)
    decoded = policy.tokenizer.decode(policy.codes(observations)[:, None])[:, 0]
    np.testing.assert_allclose(policy.plan(asked), decoded, atol=1e-5)  # it starts at zero
    with torch.no_grad():
        policy.offset.layers[-1].bias.copy_(torch.arange(24.0))
    offset = torch.arange(24.0).view(8, 3) * policy.tokenizer.scaler.scale
    np.testing.assert_allclose(policy.plan(asked), decoded + offset, atol=1e-4)
    policy.save_pretrained(tmp_path)
    np.testing.assert_array_equal(LatentPolicy.from_pretrained(tmp_path).plan(asked), policy.plan(asked))


def test_an_offset_leaves_binary_dimensions_alone():
    plain = make_policy(DecodingConfig("greedy"), likelihood=LikelihoodConfig("action", 0.1, binary=(1,)))
    policy = LatentPolicy(replace(plain.config, offset_head=True)).eval()
    policy.tokenizer.scaler = Scaler(torch.zeros(3), torch.tensor([1.0, 2.0, 0.5]))
    with torch.no_grad():
        policy.offset.layers[-1].bias.fill_(0.3)
    asked = request()
    decoded = policy.tokenizer.decode(policy.codes(torch.from_numpy(asked.observations))[:, None])[:, 0]
    moved = policy.plan(asked) - decoded.numpy()
    np.testing.assert_allclose(moved, np.broadcast_to([0.3, 0.0, 0.15], moved.shape), atol=1e-5)
    assert set(np.unique(policy.plan(asked)[..., 1])) <= {0.0, 2.0}


def test_an_offset_head_knows_nothing_of_prefixes():
    config = make_policy().config
    ordered = replace(config, tokenizer=replace(config.tokenizer, nested_dropout=True), offset_head=True)
    with pytest.raises(ConfigError, match="--offset-head"):
        LatentPolicy(ordered).with_decoding(DecodingConfig("greedy", prefix=2))
