"""Ablations by name: one factor at a time from the default, on data; or the quality of gradient estimates, on a toy."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from daps_robot.commands.compare_estimators import CompareEstimators, run_variants
from daps_robot.commands.one_run import BudgetName
from daps_robot.commands.pieces import results_folder
from daps_robot.commands.train_action_vae import ChunkTokenizerConfig
from daps_robot.config import save_json
from daps_robot.errors import ConfigError
from daps_robot.estimators import ESTIMATORS
from daps_robot.estimators.base import Loss
from daps_robot.estimators.toy import Toy, ToyConfig, train_toy
from daps_robot.models.tokenizer import Inputs
from daps_robot.registry import unknown_name
from daps_robot.types import JSON

Variants = dict[str, tuple[str, JSON]]


def daps(**settings: object) -> tuple[str, JSON]:
    return "daps", settings


STUDIES: dict[str, Variants] = {
    "trust-region": {
        "solved": daps(),
        "solved-plain": daps(centred=False),
        "per-input": daps(trust_region="solved-per-input"),
        "learned": daps(trust_region="learned"),
        "learned-plain": daps(trust_region="learned", centred=False),
        "eta-1": daps(trust_region="fixed", eta=1.0),
        "eta-10": daps(trust_region="fixed", eta=10.0),
        "eta-100": daps(trust_region="fixed", eta=100.0),
    },
    "ess-target": {f"ess-{target}": daps(ess_target=target) for target in (0.6, 0.75, 0.9)},
    "samples": {
        "k-2": daps(),
        "k-4": daps(k=4, ess_target=0.5),
        "k-8": daps(k=8, ess_target=0.33),
        "k-16": daps(k=16, ess_target=0.33),
    },
    "beta": {
        "beta-.05-.01": daps(beta_start=0.05, beta_end=0.01),
        "beta-.5-.01": daps(beta_start=0.5, beta_end=0.01),
        "beta-.5-.1": daps(beta_start=0.5, beta_end=0.1),
        "beta-1-1": daps(beta_start=1.0, beta_end=1.0),
    },
    "encoder": {"autoregressive": daps(), "factorised": ("daps-na", {})},
    "warm-start": {"warm": daps(straight_through=0.0), "scratch": daps(warm_start_steps=0, k=8, ess_target=0.33)},
    "straight-through": {"straight-through": daps(), "samples-only": daps(straight_through=0.0)},
}
"""Each study's variants: label → estimator and settings."""

GRADIENT_ESTIMATORS: Variants = {
    "daps": daps(k=8, ess_target=0.33),
    "daps, plain": daps(k=8, ess_target=0.33, centred=False),
    "daps, η=100": daps(k=8, trust_region="fixed", eta=100.0),
    "daps, η=100, plain": daps(k=8, trust_region="fixed", eta=100.0, centred=False),
    "rloo": ("rloo", {}),
    "rws": ("rws", {}),
    "gumbel-na": ("gumbel-na", {}),
    "gr-mck-na": ("gr-mck-na", {"draws": 10}),
    "reinmax": ("reinmax", {}),
}
SIZES = ((2, 4), (3, 8), (8, 64), (8, 256), (64, 512))

TOY_ESTIMATORS: Variants = {
    "daps": daps(),
    "daps, K=4": daps(k=4, ess_target=0.5),
    "daps, K=8": daps(k=8, ess_target=0.33),
    "daps, ESS .75": daps(k=8, ess_target=0.75),
    "rloo": ("rloo", {}),
    "rws": ("rws", {}),
    "reinmax": ("reinmax", {}),
    "gumbel-na": ("gumbel-na", {}),
    "gr-mck-na": ("gr-mck-na", {"draws": 10}),
}
TOY_SIZES = ((2, 4), (3, 8))
ON_TOY: JSON = {"beta_start": 1.0, "beta_end": 1.0, "warm_start_steps": 0, "temperature_end": 1.0}
"""Settings of every estimator on the toy, which has no quantiser to start from."""


@dataclass(frozen=True)
class Ablate:
    """Run an ablation.

    Attributes:
        study: trust-region, ess-target, samples, beta, encoder, warm-start or straight-through, on data; or on a
            toy gradient, the bias and the noise of each estimator's update against the exact gradient, and toy, how near each
            comes to the optimum.
        dataset: a name of the catalogue, a robomimic HDF5 file, a LeRobot folder, mnist-10k, mnist or cifar10.
        seeds: runs of each variant; one screens, three are for claims.
        preset: as compare_estimators.py has it.
        name: of the ablation; by default the study's.
        tokenizer: the networks.
        lr: learning rate in place of the preset's.
        draws: gradient estimates of each estimator and size ("gradient").
        max_steps: of each training ("toy").
    """

    study: str = "trust-region"
    dataset: str = "lift"
    seeds: int = 1
    preset: BudgetName = "small"
    name: str | None = None
    tokenizer: ChunkTokenizerConfig = field(default_factory=ChunkTokenizerConfig)
    lr: float | None = None
    draws: int = 400
    max_steps: int = 4000

    def __post_init__(self) -> None:
        if self.draws < 2:
            raise ConfigError(f"{self.draws} draws have no deviation: take at least 2")
        if self.seeds < 1 or self.max_steps < 1:
            raise ConfigError(f"{self.seeds} seeds of {self.max_steps} steps: take at least 1 of each")

    @property
    def results_name(self) -> str:
        """Of the folder of its results."""
        return self.name or f"ablate-{self.study}"


def run(config: Ablate) -> list[JSON]:
    """One study; its rows."""
    if config.study == "gradient":
        return gradient_study(config)
    if config.study == "toy":
        return toy_study(config)
    if config.study not in STUDIES:
        raise unknown_name("study", config.study, [*STUDIES, "gradient", "toy"])
    comparison = CompareEstimators(
        config.dataset, (), config.seeds, config.preset, config.results_name, config.tokenizer, config.lr
    )
    return run_variants(comparison, STUDIES[config.study])


def gradient_study(config: Ablate) -> list[JSON]:
    """Cosine of the mean update to the exact gradient of the ELBO (β = 1), and the signal-to-noise ratio of one update.

    Both are free of scale: DAPS takes steps of another size than the gradient. The mean of n updates has noise of its own,
    so a cosine below 1 need not be bias: `cosine_floor` is what an unbiased estimate of this noise would show.
    """
    rows = []
    print(f"{'size':>8} {'estimator':>20} {'cosine':>8} {'floor':>8} {'SNR':>9}")
    for positions, vocabulary in SIZES:
        toy = Toy(ToyConfig(positions, vocabulary, points=8, dimensions=max(6, positions)))
        exact = toy.exact_gradient(1.0)
        for label, (name, settings) in GRADIENT_ESTIMATORS.items():
            kind = ESTIMATORS[name]
            estimator = kind(toy, kind.configure(**{**ON_TOY, **settings}), 1)
            torch.manual_seed(0)
            mean, square = torch.zeros_like(exact), torch.zeros_like(exact)
            for _ in range(config.draws):
                toy.logits.grad = None
                estimator.loss(toy.batch, 0).value.backward()
                assert toy.logits.grad is not None
                mean, square = mean - toy.logits.grad / config.draws, square + toy.logits.grad.square() / config.draws
            variance = (square - mean.square()).clamp(min=0).sum() * config.draws / (config.draws - 1)
            signal = (mean.square().sum() - variance / config.draws).clamp(min=0)
            row: JSON = {
                "positions": positions,
                "vocabulary": vocabulary,
                "estimator": label,
                "cosine": float((mean * exact).sum() / (mean.norm() * exact.norm())),
                "cosine_floor": float((signal / mean.square().sum()).sqrt()),
                "snr": float((signal / variance).sqrt()),
            }
            rows.append(row)
            size = f"{positions}×{vocabulary}"
            print(f"{size:>8} {label:>20} {row['cosine']:8.3f} {row['cosine_floor']:8.3f} {row['snr']:9.4f}", flush=True)
    return save(config, rows)


class ExactGradient(nn.Module):
    """Stands in for an estimator: the ELBO itself."""

    def __init__(self, toy: Toy) -> None:
        super().__init__()
        self.toy = toy

    def loss(self, inputs: Inputs, step: int) -> Loss:
        return Loss(-self.toy.elbo(1.0).mean(), {})


def toy_study(config: Ablate) -> list[JSON]:
    """The gap to the best factorised q after training, in nats at β = 1, seed by seed; the exact gradient for comparison."""
    rows: list[JSON] = []
    print(f"{'size':>6} {'estimator':>14} {'mean gap':>9}  by seed")
    for positions, vocabulary in TOY_SIZES:
        for label, (name, settings) in {"exact gradient": ("", {}), **TOY_ESTIMATORS}.items():
            gaps = []
            for seed in range(config.seeds):
                toy = Toy(ToyConfig(positions, vocabulary, seed=seed))
                kind = ESTIMATORS[name] if name else None
                estimator = kind(toy, kind.configure(**{**ON_TOY, **settings}), config.max_steps) if kind else ExactGradient(toy)
                gaps.append(train_toy(toy, estimator, config.max_steps, seed=seed))
            mean = sum(gaps) / len(gaps)
            rows.append({"positions": positions, "vocabulary": vocabulary, "estimator": label, "mean": mean, "gaps": gaps})
            size = f"{positions}×{vocabulary}"
            print(f"{size:>6} {label:>14} {mean:9.3f}  {' '.join(f'{gap:.3f}' for gap in gaps)}", flush=True)
    return save(config, rows)


def save(config: Ablate, rows: list[JSON]) -> list[JSON]:
    save_json(rows, results_folder("compare", config.results_name) / "results.json")
    return rows
