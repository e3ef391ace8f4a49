"""Training a tokenizer: an estimator's loss on chunk windows, and what is measured on the validation split."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from daps_robot.estimators.base import Estimator, Loss
from daps_robot.models.code_model import CodeModel
from daps_robot.models.tokenizer import Inputs, Tokenizer
from daps_robot.training.metrics import code_counts, perplexity, squared_error
from daps_robot.training.trainer import Batches, Objective
from daps_robot.types import ChunkBatch

EVAL_SAMPLES = 8
EVAL_BATCH = 256


def chunk_inputs(tokenizer: Tokenizer, batch: ChunkBatch) -> Inputs:
    """A window's normalised chunk, and the observation at which it starts where the decoder is conditioned on it."""
    return tokenizer.inputs(batch.actions, batch.mask, batch.observations[:, -1])


class TokenizerObjective(Objective):
    """The loss of an estimator; validated by the negative ELBO at the final β, over the whole split."""

    criterion = "loss"

    def __init__(self, tokenizer: Tokenizer, estimator: Estimator, valid: Batches) -> None:
        super().__init__()
        self.tokenizer, self.estimator = tokenizer, estimator
        self.valid = valid

    def forward(self, batch: ChunkBatch, step: int) -> Loss:
        return self.estimator.loss(chunk_inputs(self.tokenizer, batch), step)

    def own_learning_rates(self) -> dict[str, float]:
        return {f"estimator.{name}": rate for name, rate in self.estimator.learning_rates.items()}

    def evaluate(self) -> dict[str, float]:
        return evaluate_tokenizer(self.tokenizer, self.valid, self.estimator.beta(self.estimator.total_steps))

    def save(self, directory: Path) -> None:
        self.tokenizer.save_pretrained(directory)

    def warnings(self, metrics: dict[str, float]) -> list[str]:
        return self.estimator.warnings(metrics)


@torch.no_grad()
def evaluate_tokenizer(tokenizer: Tokenizer, data: Batches, beta_end: float) -> dict[str, float]:
    """Metrics over a whole split.

    `reconstruction` (−log p(x|z), z ~ q), `kl`, `elbo` (β=1), `elbo_beta_end`, `entropy`: nats per chunk of normalised
    data, means over windows of 8 posterior samples. The KL is the sum of the exact conditional KL to the uniform prior at each
    position given the sampled prefix. `rmse/i` and `rmse_sample/i`: action units, most likely codes and one posterior sample.
    `perplexity`: of the most likely codes, per position over the split, then averaged. `unused_codes`: share of the vocabulary
    that no window uses, averaged over positions. `loss` is −`elbo_beta_end` (−`elbo` terms that exist, for quantisers).
    """
    codes_config = tokenizer.config.codes
    stochastic = isinstance(tokenizer.posterior, CodeModel)
    sums: dict[str, float] = {}
    counts = torch.zeros(codes_config.positions, codes_config.vocabulary, dtype=torch.long)
    greedy_error: Any = 0.0
    sample_error: Any = 0.0
    steps: Any = 0.0
    device = tokenizer.scaler.shift.device
    for index in torch.arange(len(data)).split(EVAL_BATCH):
        batch = ChunkBatch(*(t.to(device) for t in data.gather(index)))
        inputs = chunk_inputs(tokenizer, batch)
        memory = tokenizer.prepare(inputs)
        k = EVAL_SAMPLES if stochastic else 1
        z = tokenizer.draw(memory, torch.rand(len(index), k, codes_config.positions, device=device))
        entropy = z.entropy.sum(-1)
        values = {
            "reconstruction": -tokenizer.log_likelihood(z.codes, inputs),
            "entropy": entropy,
            "kl": codes_config.bits * math.log(2) - entropy,
        }
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + float(value.mean(1).double().sum())
        likely = tokenizer.draw(memory).codes
        counts += code_counts(likely[:, 0], codes_config.vocabulary).cpu()
        observation = batch.observations[:, -1]
        for codes, which in ((likely, "greedy"), (z.codes[:, :1], "sample")):
            error, n = squared_error(batch.actions, tokenizer.decode(codes, observation)[:, 0], batch.mask)
            if which == "greedy":
                greedy_error, steps = greedy_error + error, steps + n
            else:
                sample_error = sample_error + error
    means = {name: value / len(data) for name, value in sums.items()}
    result = {"reconstruction": means["reconstruction"]}
    if stochastic:
        result |= {
            "kl": means["kl"],
            "entropy": means["entropy"],
            "elbo": -means["reconstruction"] - means["kl"],
            "elbo_beta_end": -means["reconstruction"] - beta_end * means["kl"],
        }
    result["loss"] = -result.get("elbo_beta_end", -result["reconstruction"])
    result |= {f"rmse/{i}": v for i, v in enumerate(_roots(greedy_error, steps))}
    result |= {f"rmse_sample/{i}": v for i, v in enumerate(_roots(sample_error, steps))}
    result["perplexity"] = float(perplexity(counts).mean())
    result["unused_codes"] = float((counts == 0).double().mean())
    return result


def _roots(squares: Tensor, steps: Tensor) -> list[float]:
    return [float(v) for v in (squares / steps).sqrt()]
