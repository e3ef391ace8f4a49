"""Training a tokenizer: an estimator's loss on chunk windows, and what is measured on the validation split."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from daps_robot.estimators.base import Estimator, Loss
from daps_robot.models.tokenizer import Inputs, Tokenizer
from daps_robot.training.metrics import code_counts, mean_squared_error, perplexity, squared_error
from daps_robot.training.trainer import Batches, Objective
from daps_robot.types import ChunkBatch

EVAL_SAMPLES = 8
EVAL_BATCH = 256


def chunk_inputs(tokenizer: Tokenizer, batch: ChunkBatch) -> Inputs:
    """A window's normalised chunk, and the observation at which it starts where the decoder is conditioned on it."""
    return tokenizer.inputs(batch.actions, batch.mask, batch.observations[:, -1])


def batch_inputs(tokenizer: Tokenizer, batch: ChunkBatch | Tensor) -> Inputs:
    """Normalised inputs of a batch of windows, or of plain examples (b *x)."""
    return chunk_inputs(tokenizer, batch) if isinstance(batch, ChunkBatch) else tokenizer.inputs(batch)


class TokenizerObjective(Objective):
    """The loss of an estimator; validated by the negative ELBO at the final β, over the whole split."""

    criterion = "loss"

    def __init__(self, tokenizer: Tokenizer, estimator: Estimator, valid: Batches) -> None:
        super().__init__()
        self.tokenizer, self.estimator = tokenizer, estimator
        self.valid = valid
        self.steps = 0

    def forward(self, batch: ChunkBatch | Tensor, step: int) -> Loss:
        self.steps = step + 1
        return self.estimator.loss(batch_inputs(self.tokenizer, batch), step)

    def own_learning_rates(self) -> dict[str, float]:
        return {f"estimator.{name}": rate for name, rate in self.estimator.learning_rates.items()}

    def evaluate(self) -> dict[str, float]:
        self.estimator.settle(self.steps)
        return evaluate_tokenizer(self.tokenizer, self.valid, self.estimator.beta(self.estimator.total_steps))

    def save(self, directory: Path) -> None:
        self.tokenizer.save_pretrained(directory)

    def warnings(self, metrics: dict[str, float]) -> list[str]:
        return self.estimator.warnings(metrics)


@torch.no_grad()
def evaluate_tokenizer(tokenizer: Tokenizer, data: Batches, beta_end: float) -> dict[str, float]:
    """Metrics over a whole split.

    `reconstruction` (−log p(x|z), z ~ q), `kl`, `elbo` (β=1), `elbo_beta_end`, `entropy`: nats per example of normalised
    data, means over 8 posterior samples of each; the last four only where the posterior is a distribution, `entropy` only
    over codes. `rmse/i` and `rmse_sample/i`: of entry i of the last axis in the data's units, from the most likely codes and
    from one posterior sample. `psnr`: dB, 10·log10(peak²/mse) of each example's most likely reconstruction, then averaged;
    the peak is the range of the split's data. `perplexity`: of the most likely codes, per position over the split, then
    averaged. `unused_codes`: share of the vocabulary that no example uses, averaged over positions. `bits_used`: sum over
    positions of the entropy of those frequencies; of a Gaussian, its KL in bits. `loss` is −`elbo_beta_end`, of quantisers
    `reconstruction`.
    """
    codes_config, device = tokenizer.config.codes, tokenizer.scaler.shift.device
    sums: dict[str, float] = {}
    counts = torch.zeros(codes_config.positions, codes_config.vocabulary, dtype=torch.long)
    squares: dict[str, Any] = {"rmse": 0.0, "rmse_sample": 0.0}
    steps: Any = 0.0
    low, high, errors = math.inf, -math.inf, []
    for index in torch.arange(len(data)).split(EVAL_BATCH):
        batch = data.gather(index)
        batch = ChunkBatch(*(t.to(device) for t in batch)) if isinstance(batch, ChunkBatch) else batch.to(device)
        x, observation = (batch.actions, batch.observations[:, -1]) if isinstance(batch, ChunkBatch) else (batch, None)
        inputs = batch_inputs(tokenizer, batch)
        memory = tokenizer.prepare(inputs)
        drawn, likely = tokenizer.encoded(memory, EVAL_SAMPLES), tokenizer.encoded(memory)
        params = tokenizer.decoder_params(drawn.embedded, inputs)
        values = {"reconstruction": -tokenizer.likelihood.log_prob(params, inputs.x, inputs.mask)}
        if drawn.kl is not None:
            values["kl"] = drawn.kl
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + float(value.mean(1).double().sum())
        if likely.codes is not None:
            counts += code_counts(likely.codes[:, 0], codes_config.vocabulary).cpu()
        for name, embedded in (("rmse", likely.embedded), ("rmse_sample", drawn.embedded[:, :1])):
            again = tokenizer.decode_embedded(embedded, observation)[:, 0]
            error, n = squared_error(x, again, inputs.mask)
            squares[name] = squares[name] + error
            if name == "rmse":
                steps = steps + n
                errors.append(mean_squared_error(x, again, inputs.mask))
        low, high = min(low, float(x.min())), max(high, float(x.max()))
    result = {name: value / len(data) for name, value in sums.items()}
    if "kl" in result:
        result["elbo"] = -result["reconstruction"] - result["kl"]
        result["elbo_beta_end"] = -result["reconstruction"] - beta_end * result["kl"]
        if math.isfinite(tokenizer.bits):
            result["entropy"] = codes_config.bits * math.log(2) - result["kl"]
    result["loss"] = -result.get("elbo_beta_end", -result["reconstruction"])
    for name, total in squares.items():
        result |= {f"{name}/{i}": float(v) for i, v in enumerate((total / steps).sqrt())}
    peak = (high - low) or 1.0
    result["psnr"] = float((10 * torch.log10(peak**2 / torch.cat(errors).clamp(min=1e-12))).mean())
    if math.isfinite(tokenizer.bits):
        result["perplexity"] = float(perplexity(counts).mean())
        result["unused_codes"] = float((counts == 0).double().mean())
        result["bits_used"] = float(perplexity(counts).double().log2().sum())
    else:
        result["bits_used"] = result["kl"] / math.log(2)
    return result
