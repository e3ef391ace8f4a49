"""Figures over a split, the metrics file, and the validation of tokenizer and policy against slow references."""

import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import make_policy, make_tokenizer

from daps_robot.data.chunks import ChunkDataset
from daps_robot.data.normalize import Scaler
from daps_robot.estimators.fitted import BinsConfig, fit_bins
from daps_robot.models.policy import LatentPolicy
from daps_robot.models.prefixes import over_prefix
from daps_robot.models.tokenizer import Tokenizer
from daps_robot.training import tokenizer as tokenizer_training
from daps_robot.training.distill import DistillObjective
from daps_robot.training.logger import MetricLogger, read_rows
from daps_robot.training.metrics import code_counts, perplexity, squared_error
from daps_robot.training.tokenizer import evaluate_tokenizer
from daps_robot.types import Demo


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def dataset(history=1):
    rng = np.random.default_rng(0)
    demos = [
        Demo(f"demo_{i}", rng.normal(size=(n, 3)).astype(np.float32), {"state": rng.normal(size=(n, 5)).astype(np.float32)})
        for i, n in enumerate((9, 12, 30))
    ]
    return ChunkDataset(demos, ("state",), 8, history)


def test_code_counts_and_perplexity():
    codes = torch.randint(5, (50, 3))
    counts = code_counts(codes, 7)
    for position in range(3):
        counted = Counter(codes[:, position].tolist())
        assert counts[position].tolist() == [counted[v] for v in range(7)]
        shares = [c / 50 for c in counted.values()]
        expected = math.exp(-sum(p * math.log(p) for p in shares))
        assert perplexity(counts)[position].item() == pytest.approx(expected, rel=1e-5)
    assert perplexity(torch.tensor([[9, 0, 0], [3, 3, 3]])).tolist() == pytest.approx([1, 3])


def test_squared_error_counts_unmasked_steps_alone():
    x, y = torch.randn(4, 6, 3), torch.randn(4, 6, 3)
    mask = torch.arange(6) < torch.tensor([6, 4, 1, 3])[:, None]
    total, steps = torch.zeros(3, dtype=torch.float64), 0
    for b in range(4):
        for h in range(6):
            if mask[b, h]:
                total += (x[b, h] - y[b, h]).double().square()
                steps += 1
    found, n = squared_error(x, y, mask)
    torch.testing.assert_close(found.double(), total)
    assert int(n) == steps == 14
    everything, n = squared_error(x, y, None)
    torch.testing.assert_close(everything.double(), (x - y).double().square().sum((0, 1)))
    assert int(n) == 24


def test_the_validation_of_a_tokenizer(monkeypatch):
    data, tokenizer = dataset(), make_tokenizer()
    tokenizer.scaler = Scaler(torch.tensor([0.1, 0.0, -1.0]), torch.tensor([1.0, 2.0, 0.5]))
    torch.manual_seed(1)
    found = evaluate_tokenizer(tokenizer, data, beta_end=0.3)
    batch = data.gather(torch.arange(len(data)))
    codes = tokenizer.encode(batch.actions)
    error = (tokenizer.decode(codes)[:, 0] - batch.actions)[batch.mask].square().mean(0).sqrt()
    assert [found[f"rmse/{i}"] for i in range(3)] == pytest.approx(error.tolist(), rel=1e-4)
    used = [len(codes[:, 0, i].unique()) for i in range(4)]
    assert found["unused_codes"] == pytest.approx(1 - sum(used) / (4 * 16))
    assert found["perplexity"] == pytest.approx(float(perplexity(code_counts(codes[:, 0], 16)).mean()), rel=1e-5)
    assert found["kl"] == pytest.approx(4 * math.log(16) - found["entropy"], rel=1e-5)
    assert found["elbo"] == pytest.approx(-found["reconstruction"] - found["kl"], rel=1e-6)
    assert found["loss"] == pytest.approx(found["reconstruction"] + 0.3 * found["kl"], rel=1e-6)
    # many more samples say the same within their noise
    inputs = tokenizer.inputs(batch.actions, batch.mask)
    with torch.no_grad():
        memory = tokenizer.prepare(inputs)
        z = tokenizer.draw(memory, torch.rand(len(data), 300, 4)).codes
        log_q = tokenizer.posterior.log_prob(memory, z).sum(-1)
        assert found["entropy"] == pytest.approx(-log_q.mean().item(), abs=0.3)
        assert found["reconstruction"] == pytest.approx(-tokenizer.log_likelihood(z, inputs).mean().item(), rel=0.02)
    # the figures are of the whole split, however it is cut
    monkeypatch.setattr(tokenizer_training, "EVAL_POSITIONS", 7 * 8 * 4)
    torch.manual_seed(1)
    again = evaluate_tokenizer(tokenizer, data, beta_end=0.3)
    for name in ("rmse/0", "rmse/2", "perplexity", "unused_codes"):
        assert again[name] == pytest.approx(found[name], rel=1e-4)


def test_the_validation_of_a_policy():
    data, policy = dataset(history=2), make_policy()
    found = DistillObjective(policy, data, torch.tensor([1.0, 2.0, 4.0])).evaluate()
    batch = data.gather(torch.arange(len(data)))
    codes = policy.tokenizer.encode(batch.actions)
    with torch.no_grad():
        log_prob = policy.log_prob(batch.observations, codes)
        logits = policy.code_model.logits(policy.prepare(batch.observations), codes)
    assert found["nll"] == pytest.approx(-log_prob.sum(-1).mean().item(), rel=1e-4)
    for i in range(4):
        hits = (logits[:, 0, i].argmax(-1) == codes[:, 0, i]).float().mean().item()
        assert found[f"accuracy/{i}"] == pytest.approx(hits)
    decoded = policy.tokenizer.decode(policy.codes(batch.observations)[:, None])[:, 0]
    error = (decoded - batch.actions)[batch.mask].square().mean(0)
    assert [found[f"rmse/{i}"] for i in range(3)] == pytest.approx(error.sqrt().tolist(), rel=1e-4)
    assert found["chunk_error"] == pytest.approx((error / torch.tensor([1.0, 4.0, 16.0])).mean().item(), rel=1e-4)


def test_the_validation_of_an_ordered_tokenizer():
    data = dataset()
    tokenizer = Tokenizer(replace(make_tokenizer().config, nested_dropout=True)).eval()
    with torch.no_grad():
        for parameter in tokenizer.decoder.parameters():
            parameter *= 2  # so that it matters how many codes are kept
    found = evaluate_tokenizer(tokenizer, data, beta_end=0.3)
    batch = data.gather(torch.arange(len(data)))
    codes = tokenizer.encode(batch.actions)
    for m in (1, 2, 3, 4):
        error = (tokenizer.decode(codes[..., :m])[:, 0] - batch.actions)[batch.mask].square().mean().sqrt()
        assert found[f"rmse_prefix/{m}"] == pytest.approx(error.item(), rel=1e-4)
    assert "rmse_prefix/1" not in evaluate_tokenizer(make_tokenizer(), data, beta_end=0.3)
    # its loss is the mean over prefix lengths of the bound
    inputs, kept = tokenizer.inputs(batch.actions, batch.mask), 1 + torch.arange(len(data)) % 4
    with torch.no_grad():
        memory = tokenizer.prepare(inputs)
        z = tokenizer.draw(memory, torch.rand(len(data), 300, 4))
        r = tokenizer.log_likelihood(z.codes, inputs._replace(kept=kept)).mean()
        kl = over_prefix(math.log(16) - z.entropy, kept).mean()
    assert found["reconstruction_kept"] == pytest.approx(-r.item(), rel=0.03)
    assert found["reconstruction_kept"] != pytest.approx(found["reconstruction"], rel=0.06)
    assert found["kl_kept"] == pytest.approx(kl.item(), rel=0.03) != pytest.approx(found["kl"], rel=0.1)
    assert found["loss"] == found["reconstruction_kept"] + 0.3 * found["kl_kept"]


def test_the_validation_of_a_table():
    data = dataset()
    tokenizer = fit_bins(data, BinsConfig(12, 3), Scaler.identity(3))
    found = evaluate_tokenizer(tokenizer, data, beta_end=1.0)
    batch = data.gather(torch.arange(len(data)))
    codes = tokenizer.encode(batch.actions)
    error = (tokenizer.decode(codes)[:, 0] - batch.actions)[batch.mask].square().mean(0).sqrt()
    assert [found[f"rmse/{i}"] for i in range(3)] == pytest.approx(error.tolist(), rel=1e-4)
    assert [found[f"rmse_sample/{i}"] for i in range(3)] == pytest.approx(error.tolist(), rel=1e-4)
    counts = code_counts(codes[:, 0], 12)
    assert found["bits_used"] == pytest.approx(float(perplexity(counts).log2().sum()), rel=1e-4)
    assert found["clipped"] == pytest.approx(tokenizer.facts(batch.actions)["clipped"].mean().item())
    assert not {"reconstruction", "loss", "elbo"} & found.keys()


def test_an_offset_head_learns_what_the_decoded_codes_lack():
    data = dataset(history=2)
    policy = LatentPolicy(replace(make_policy().config, offset_head=True))
    policy.tokenizer.scaler = Scaler(torch.tensor([0.1, 0.0, -1.0]), torch.tensor([1.0, 2.0, 0.5]))
    batch = data.gather(torch.arange(len(data)))
    objective = DistillObjective(policy, data, policy.tokenizer.scaler.scale, "most-likely")
    loss = objective(batch, 0)
    decoded = policy.tokenizer.decode(policy.tokenizer.encode(batch.actions))[:, 0]
    lacking = ((batch.actions - decoded) / policy.tokenizer.scaler.scale * batch.mask[..., None]).abs()
    assert loss.metrics["offset"].item() == pytest.approx(lacking.sum((1, 2)).mean().item(), rel=1e-4)
    assert loss.value.item() == pytest.approx(loss.metrics["nll"].item() + loss.metrics["offset"].item(), rel=1e-5)
    optimizer = torch.optim.Adam(policy.offset.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        objective(batch, 0).value.backward()
        optimizer.step()
    assert objective(batch, 0).metrics["offset"] < 0.9 * loss.metrics["offset"]


def test_a_policy_learns_from_sampled_or_most_likely_codes():
    data, policy = dataset(history=2), make_policy()
    batch = data.gather(torch.arange(20))
    likely = policy.tokenizer.encode(batch.actions)
    objective = DistillObjective(policy, data, policy.tokenizer.scaler.scale, "most-likely")
    assert torch.equal(objective.targets(batch, "most-likely"), likely)
    drawn = [objective.targets(batch, "sampled") for _ in range(3)]
    assert not torch.equal(drawn[0], drawn[1])
    loss = objective(batch, 0)
    assert loss.value.item() == pytest.approx(-policy.log_prob(batch.observations, likely).sum(-1).mean().item(), rel=1e-5)
    loss.value.backward()
    assert all(p.grad is None for p in policy.tokenizer.parameters())


def test_the_metrics_file(tmp_path):
    logger = MetricLogger(tmp_path, 0, tensorboard=False)
    logger.log(5, "train", {"loss": 1.5, "bad": float("nan"), "worse": float("inf")})
    logger.log(10, "valid", {"loss": 0.5})
    logger.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == read_rows(tmp_path / "metrics.jsonl")
    assert rows[0] == {"step": 5, "split": "train", "loss": 1.5, "bad": None, "worse": None}


def test_a_resumed_metrics_file_keeps_what_came_before(tmp_path):
    logger = MetricLogger(tmp_path, 0, tensorboard=False)
    for step in (5, 10, 15):
        logger.log(step, "train", {"loss": float(step)})
    logger.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "spl')  # cut short by a crash
    logger = MetricLogger(tmp_path, 10, tensorboard=False)
    logger.log(15, "train", {"loss": -15.0})
    logger.close()
    assert [(row["step"], row["loss"]) for row in read_rows(tmp_path / "metrics.jsonl")] == [(5, 5), (10, 10), (15, -15)]


def test_tensorboard_files(tmp_path):
    logger = MetricLogger(tmp_path, 0, tensorboard=True)
    logger.log(5, "train", {"loss": 1.5})
    logger.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(5, 1.5)]


def test_a_resumed_tensorboard_keeps_the_last_step_before(tmp_path):
    for first, steps in ((0, (5, 10, 15)), (10, (15, 20))):
        logger = MetricLogger(tmp_path, first, tensorboard=True)
        for step in steps:
            logger.log(step, "train", {"loss": float(first + step)})
        logger.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(5, 5), (10, 10), (15, 25), (20, 30)]
