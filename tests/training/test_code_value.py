import json

import numpy as np
import pytest
import torch
from tiny import all_sequences, enumerated_log_prob, make_policy

from daps_robot.commands.compare_codes import CompareCodes, finished_runs, run
from daps_robot.data.chunks import ChunkDataset
from daps_robot.errors import ConfigError
from daps_robot.models.policy import LatentPolicy
from daps_robot.models.posteriors import PosteriorConfig
from daps_robot.models.tokenizer import Tokenizer
from daps_robot.training.code_value import action_bound, calibration
from daps_robot.training.tokenizer import chunk_inputs
from daps_robot.types import Demo


@pytest.fixture
def windows():
    rng = np.random.default_rng(0)
    demos = [
        Demo(f"demo_{i}", rng.normal(size=(12, 3)).astype(np.float32), {"state": rng.normal(size=(12, 5)).astype(np.float32)})
        for i in range(2)
    ]
    return ChunkDataset(demos, ["state"], horizon=8, history=2)


def exact_terms(policy, windows):
    """log p(a|z), log q(z|a) and log π(z|o) of every window and sequence."""
    codes = policy.config.codes
    batch = windows.gather(torch.arange(len(windows)))
    inputs = chunk_inputs(policy.tokenizer, batch)
    sequences = all_sequences(codes.positions, codes.vocabulary).expand(len(windows), -1, -1)
    with torch.no_grad():
        likelihood = policy.tokenizer.log_likelihood(sequences, inputs).double()
        posterior = enumerated_log_prob(policy.tokenizer.posterior, policy.tokenizer.prepare(inputs))
        prior = policy.log_prob(batch.observations, sequences).sum(-1).double()
    return likelihood, posterior, prior


def test_the_bound_is_its_enumerated_value_and_lies_below_the_log_likelihood(windows):
    torch.manual_seed(1)
    policy = make_policy(positions=2, vocabulary=4)
    likelihood, posterior, prior = exact_terms(policy, windows)
    exact = (posterior.exp() * (likelihood + prior - posterior)).sum(-1).mean()
    found = action_bound(policy, windows, samples=600)
    assert found["bound"] == pytest.approx(float(exact), rel=0.02)
    assert found["bound"] == pytest.approx(-found["reconstruction"] - found["cross_entropy"] + found["entropy"])
    assert found["bound"] < torch.logsumexp(likelihood + prior, -1).mean()


def test_a_quantisers_codes_have_no_entropy(windows):
    torch.manual_seed(1)
    policy = make_policy(positions=2, vocabulary=4)
    config = policy.tokenizer.config
    quantised = LatentPolicy(
        policy.config, Tokenizer(type(config)(**{**vars(config), "posterior": PosteriorConfig("fsq", (2, 2))})).eval()
    )
    found = action_bound(quantised, windows)
    assert found["entropy"] == 0
    assert found["kl_to_policy"] == found["cross_entropy"] > 0
    with pytest.raises(ConfigError, match="quantiser has none"):
        calibration(quantised, windows, beta=1.0)


def test_calibration_is_1_for_the_exact_posterior_and_low_for_a_wrong_one(windows):
    torch.manual_seed(1)
    policy = make_policy(positions=2, vocabulary=4)
    with torch.no_grad():  # a decoder that ignores the codes: the posterior is the uniform prior
        for parameter in policy.tokenizer.embedding.parameters():
            parameter.zero_()
    wrong = calibration(policy, windows, beta=1.0, samples=64)
    with torch.no_grad():
        policy.tokenizer.posterior.head.weight.zero_()
        if policy.tokenizer.posterior.head.bias is not None:
            policy.tokenizer.posterior.head.bias.zero_()
    exact = calibration(policy, windows, beta=1.0, samples=64)
    assert exact["ess"] == pytest.approx(1.0, abs=1e-4)
    assert wrong["ess"] < 0.95
    assert -1 <= wrong["spread"] <= 1
    assert "spread" not in exact


def test_runs_are_found_by_their_label(tmp_path):
    for name in ("rws-0", "rws-1-0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps({}))
    assert [path.name for path in finished_runs(tmp_path, ["rws"])] == ["rws-0"]
    assert len(finished_runs(tmp_path, [])) == 2
    with pytest.raises(ConfigError, match=r"no finished run of fsq \(there: rws-0, rws-1-0\)"):
        finished_runs(tmp_path, ["fsq"])
    with pytest.raises(ConfigError, match="there: none"):
        run(CompareCodes(tmp_path / "nothing"))
