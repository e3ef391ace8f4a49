"""Training a tokenizer: an estimator's loss on chunk windows, and what is measured on the validation split."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from daps_robot import parallel
from daps_robot.estimators.base import Estimator, Loss
from daps_robot.models.action_tokenizer import ActionTokenizer
from daps_robot.models.code_model import CodeModelConfig
from daps_robot.models.prefixes import drawn_prefixes, over_prefix, prefix_lengths
from daps_robot.models.tokenizer import Inputs, Tokenizer
from daps_robot.training.metrics import code_counts, mean_squared_error, perplexity, squared_error
from daps_robot.training.objective import Objective
from daps_robot.training.stream import Batches, step_seed
from daps_robot.types import ChunkBatch

EVAL_SAMPLES = 8
EVAL_POSITIONS = 16384


class Measure(Protocol):
    """Further metrics of reconstructions in the data's units.

    Attributes:
        sums: over what was seen; over what all processes have seen, before `result`.
    """

    sums: dict[str, float]

    def update(self, x: Tensor, y: Tensor) -> None: ...

    def result(self) -> dict[str, float]: ...


def chunk_inputs(tokenizer: Tokenizer, batch: ChunkBatch) -> Inputs:
    """A window's normalised chunk, and the observation at which it starts where the decoder is conditioned on it."""
    return tokenizer.inputs(batch.actions, batch.mask, batch.observations[:, -1])


def to_device(batch: ChunkBatch | Tensor, device: torch.device) -> ChunkBatch | Tensor:
    """A batch, all its parts, on a device."""
    if not isinstance(batch, ChunkBatch):
        return batch.to(device)
    return ChunkBatch(*(None if part is None else part.to(device) for part in batch))  # type: ignore[arg-type]


def batch_inputs(tokenizer: Tokenizer, batch: ChunkBatch | Tensor) -> Inputs:
    """Normalised inputs of a batch of windows, or of plain examples (b *x)."""
    return chunk_inputs(tokenizer, batch) if isinstance(batch, ChunkBatch) else tokenizer.inputs(batch)


class TokenizerObjective(Objective):
    """The loss of an estimator; validated by the negative ELBO at the final β, over the whole split (and prefix lengths)."""

    criterion = "loss"

    def __init__(
        self, tokenizer: Tokenizer, estimator: Estimator, valid: Batches, measure: Callable[[], Measure] | None = None
    ) -> None:
        """`measure` makes what each validation measures besides (see `evaluate_tokenizer`)."""
        super().__init__()
        self.tokenizer, self.estimator = tokenizer, estimator
        self.valid, self.measure = valid, measure
        self.divisible = estimator.divisible
        self.steps = 0

    def forward(self, batch: ChunkBatch | Tensor, step: int) -> Loss:
        self.steps = step + 1
        inputs = batch_inputs(self.tokenizer, batch)
        if self.tokenizer.config.nested_dropout:
            inputs = inputs._replace(kept=drawn_prefixes(len(inputs.x), self.tokenizer.config.codes.positions, inputs.x.device))
        return self.estimator.loss(inputs, step)

    def own_learning_rates(self) -> dict[str, float]:
        return {f"estimator.{name}": rate for name, rate in self.estimator.learning_rates.items()}

    def evaluate(self) -> dict[str, float]:
        self.estimator.settle(self.steps)
        beta_end = self.estimator.beta(self.estimator.total_steps)
        return evaluate_tokenizer(self.tokenizer, self.valid, beta_end, self.measure)

    def save(self, directory: Path) -> None:
        self.tokenizer.save_pretrained(directory)

    def warnings(self, metrics: dict[str, float]) -> list[str]:
        return self.estimator.warnings(metrics)


@torch.no_grad()
def evaluate_tokenizer(
    tokenizer: ActionTokenizer,
    data: Batches,
    beta_end: float,
    measure: Callable[[], Measure] | None = None,
    counts: Tensor | None = None,
) -> dict[str, float]:
    """Metrics over a whole split.

    `reconstruction` (−log p(x|z), z ~ q), `kl`, `elbo` (β=1), `elbo_beta_end`, `entropy`: nats per example of normalised
    data, means over 8 posterior samples of each; the last four only where the posterior is a distribution, `entropy` only
    over codes. `rmse/i` and `rmse_sample/i`: of entry i of the last axis in the data's units, from the most likely codes and
    from one posterior sample. `psnr`: dB, 10·log10(peak²/mse) of each example's most likely reconstruction, then averaged;
    the peak is the range of the split's data (a `measure` may have a `psnr` of its own, which then stands there).
    `perplexity`: of the most likely codes, per position over the split, then averaged. `unused_codes`: share of the vocabulary
    that no example uses, averaged over positions. `bits_used`: sum over positions of the entropy of those frequencies; of a
    Gaussian, its KL in bits. `loss` is −`elbo_beta_end`, of quantisers `reconstruction`; under nested dropout it is what is
    trained, the mean of that over prefix lengths, from `reconstruction_kept` and `kl_kept`. `rmse_prefix/m`: over all entries,
    in the data's units, from the first m most likely codes, where prefixes decode. Of a table (bins, fast), which has no
    likelihood, everything in action units and about codes, and the means of its `facts`.

    Args:
        beta_end: β of `elbo_beta_end`.
        measure: makes what measures further; its results are of the most likely reconstructions, and with the suffix
            `_sample` of those from one posterior sample.
        counts: (l v), if given, is added to: how often each code was the most likely one.
    """
    codes_config, device = tokenizer.config.codes, tokenizer.scaler.shift.device
    n, channels = len(data), tokenizer.action_dim
    sums: dict[str, Tensor] = {}
    if isinstance(tokenizer, Tokenizer):
        sums["reconstruction"] = torch.zeros((), dtype=torch.float64, device=device)

    def add(name: str, values: Tensor) -> None:
        sums[name] = sums.get(name, 0) + values.double().sum()

    if counts is None:
        counts = torch.zeros(codes_config.positions, codes_config.vocabulary, dtype=torch.long, device=device)
    squares = torch.zeros(2, channels, dtype=torch.float64, device=device)  # of the most likely codes, of a sample
    measures = [measure(), measure()] if measure else []
    coded = math.isfinite(tokenizer.bits)
    lengths = prefix_lengths(codes_config.positions) if tokenizer.config.ordered and coded else []
    of_prefixes = torch.zeros(len(lengths), dtype=torch.float64, device=device)
    steps = torch.zeros((), dtype=torch.float64, device=device)
    low, high, decibels = math.inf, -math.inf, torch.zeros((), dtype=torch.float64, device=device)
    seed = int(torch.randint(2**62, ()))
    for i, index in enumerate(torch.arange(n).split(examples_at_a_time(codes_config, device))):
        if i % parallel.world_size() != parallel.rank():
            continue
        torch.manual_seed(step_seed(seed, i))  # the same noise, whichever rank has these examples
        batch = to_device(data.gather(index), device)
        x, observation = (batch.actions, batch.observations[:, -1]) if isinstance(batch, ChunkBatch) else (batch, None)
        mask = batch.mask if isinstance(batch, ChunkBatch) else None
        if isinstance(tokenizer, Tokenizer):
            inputs = batch_inputs(tokenizer, batch)
            memory = tokenizer.prepare(inputs)
            drawn, likely = tokenizer.encoded(memory, EVAL_SAMPLES), tokenizer.encoded(memory)
            params = tokenizer.decoder_params(drawn.embedded, inputs)
            add("reconstruction", -tokenizer.likelihood.log_prob(params, inputs.x, mask).mean(1))
            if drawn.kl is not None:
                add("kl", drawn.kl.sum(-1).mean(1))
            if tokenizer.config.nested_dropout:  # example i keeps 1 + i mod l codes, so all lengths count alike
                kept = 1 + index.to(device) % codes_config.positions
                params = tokenizer.decoder_params(drawn.embedded, inputs._replace(kept=kept))
                add("reconstruction_kept", -tokenizer.likelihood.log_prob(params, inputs.x, mask).mean(1))
                if drawn.kl is not None:
                    add("kl_kept", over_prefix(drawn.kl, kept).mean(1))
            codes = likely.codes
            both = [tokenizer.decode_embedded(e.embedded[:, :1], observation)[:, 0] for e in (likely, drawn)]
        else:
            for name, values in tokenizer.facts(x).items():
                add(name, values)
            codes = tokenizer.encode(x)
            both = 2 * [tokenizer.decode(codes)[:, 0]]
        if codes is not None:
            counts += code_counts(codes[:, 0], codes_config.vocabulary)
        for which, m in enumerate(lengths):
            assert codes is not None
            of_prefixes[which] += squared_error(x, tokenizer.decode(codes[..., :m], observation)[:, 0], mask)[0].sum()
        for which, again in enumerate(both):
            error, of_steps = squared_error(x, again, mask)
            squares[which] += error
            if measures:
                measures[which].update(x, again)
            if which == 0:
                steps += of_steps
                decibels -= 10 * mean_squared_error(x, again, mask).clamp(min=1e-12).log10().sum()
        low, high = min(low, float(x.min())), max(high, float(x.max()))
    low, high = -parallel.largest([-low], device)[0], parallel.largest([high], device)[0]
    sums = parallel.with_names_of_all(sums, device)
    for total in (*sums.values(), counts, squares, of_prefixes, steps, decibels):
        parallel.sum_over_ranks(total)
    result = {name: float(total) / n for name, total in sums.items()}
    if "kl" in result:
        result["elbo"] = -result["reconstruction"] - result["kl"]
        result["elbo_beta_end"] = -result["reconstruction"] - beta_end * result["kl"]
        if coded:
            result["entropy"] = codes_config.bits * math.log(2) - result["kl"]
    if "reconstruction" in result:
        kept_or_all = "_kept" if "reconstruction_kept" in result else ""
        result["loss"] = result["reconstruction" + kept_or_all] + beta_end * result.get("kl" + kept_or_all, 0.0)
    for name, total in zip(("rmse", "rmse_sample"), squares, strict=True):
        result |= {f"{name}/{i}": float(v) for i, v in enumerate((total / steps).sqrt())}
    result |= {f"rmse_prefix/{m}": float((s / steps / channels).sqrt()) for m, s in zip(lengths, of_prefixes, strict=True)}
    result["psnr"] = float(decibels) / n + 20 * math.log10((high - low) or 1.0)
    if coded:
        result["perplexity"] = float(perplexity(counts).mean())
        result["unused_codes"] = float((counts == 0).double().mean())
        result["bits_used"] = float(perplexity(counts).double().log2().sum())
    else:
        result["bits_used"] = result["kl"] / math.log(2)
    for measured, suffix in zip(measures, ("", "_sample"), strict=False):
        totals = parallel.sum_of_each(list(measured.sums.values()), device)
        measured.sums = dict(zip(measured.sums, totals, strict=True))
        result |= {name + suffix: value for name, value in measured.result().items()}
    return result


def examples_at_a_time(codes: CodeModelConfig, device: torch.device) -> int:
    """Examples that are evaluated together: 256, or as many as keep to EVAL_POSITIONS codes, on a GPU to 32 times as many."""
    positions = EVAL_POSITIONS * (32 if device.type == "cuda" else 1)
    return max(1, min(256, positions // (EVAL_SAMPLES * codes.positions)))
