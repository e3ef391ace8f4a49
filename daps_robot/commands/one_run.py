"""One run of a comparison: a variant of an estimator with one seed, trained and read in a process of its own; and its pace.

A comparison after equal time should not depend on what else the machine was doing while a run lasted. So paces are measured
first, in turns; how many steps a variant takes in the budget's minutes follows, and its runs are read after so many steps.
"""

from __future__ import annotations

import resource
import statistics
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch

from daps_robot.commands.cli import keep_freed_memory
from daps_robot.commands.train_action_vae import ChunkTokenizerConfig, TrainActionVAE, build_tokenizer, split
from daps_robot.commands.train_image_tokenizer import Material, TrainImageTokenizer, evenly, read_pictures
from daps_robot.config import from_json, load_json, save_json
from daps_robot.data.demos import EVAL_SEED_START, read_demos
from daps_robot.errors import SimulationError
from daps_robot.estimators import ESTIMATORS
from daps_robot.models.tokenizer import Tokenizer
from daps_robot.presets import preset
from daps_robot.rollout.ceiling import tokenizer_ceiling
from daps_robot.training.logger import read_rows
from daps_robot.training.objective import TrainerConfig
from daps_robot.training.optimizer import OptimizerConfig
from daps_robot.training.pace import Pace
from daps_robot.training.tokenizer import TokenizerObjective
from daps_robot.training.trainer import Trainer
from daps_robot.types import JSON


@dataclass(frozen=True)
class Budget:
    """What every run gets.

    Attributes:
        steps: of the equal-steps read-out; schedules last as long.
        minutes: of training, of the equal-time read-out.
        batch_size: examples of a step.
        lr: learning rate, constant; the evaluated weights are their moving average.
        warm_start_steps: of estimators that have a warm start; they count.
        draws: of Gumbel-Rao estimators.
        ceiling_episodes: of the scripted expert through each tokenizer, after all training; 0 for none.
    """

    steps: int
    minutes: float
    batch_size: int
    lr: float
    warm_start_steps: int
    draws: int
    ceiling_episodes: int


TIMED_STEPS, LOG_EVERY = 40, 10
"""Of each phase, when a pace is measured."""

VALIDATE_ON = 1000
"""Held-out pictures, evenly spaced, that read-outs are of, or all where there are fewer."""

BudgetName = Literal["small", "claim", "mnist", "cifar10", "test"]

BUDGETS: dict[BudgetName, Budget] = {
    "small": Budget(500, 0.6, 32, 1e-3, 375, 10, 20),
    "claim": Budget(2400, 3.0, 64, 1e-3, 1800, 10, 50),
    "mnist": Budget(3000, 1.75, 64, 3e-4, 2250, 10, 0),
    "cifar10": Budget(2000, 4.0, 32, 1e-3, 1500, 10, 0),
    "test": Budget(6, 0.0, 8, 1e-3, 3, 2, 0),
}


PICTURES = {"mnist-10k": "mnist", "mnist": "mnist", "cifar10": "cifar10-quick"}
"""Data sets of pictures, and whose networks and settings they get."""


@dataclass(frozen=True)
class OneRun:
    """One variant with one seed: what a process of its own is given.

    Attributes:
        label: what the variant is called.
        overrides: settings of the estimator.
        pace: of its steps; None where there is no equal-time read-out.
    """

    dataset: str
    label: str
    estimator: str
    overrides: dict[str, Any]
    seed: int
    budget: Budget
    tokenizer: ChunkTokenizerConfig
    pace: Pace | None = None


class LatestObjective(TokenizerObjective):
    """Keeps the latest weights, not the best: read-outs are at given steps."""

    criterion = "age"

    def evaluate(self) -> dict[str, float]:
        return {**super().evaluate(), "age": -float(self.steps)}


def run_one_file(folder: str) -> None:
    """What the process of a run does: train, or go on training, and write result.json."""
    place = Path(folder)
    job = from_json(OneRun, load_json(place / "job.json"))
    keep_freed_memory()
    save_json(run_one(job, place), place / "result.json")


def pace_file(folder: str) -> None:
    """What the process that measures a pace does: write pace.json."""
    place = Path(folder)
    job = from_json(OneRun, load_json(place / "job.json"))
    keep_freed_memory()
    save_json(measured_pace(job, place), place / "pace.json")


def run_one(job: OneRun, folder: Path) -> JSON:
    """One run's columns."""
    budget, pace = job.budget, job.pace
    read_out = {"steps": budget.steps, "time": pace.steps(60 * budget.minutes) if pace else budget.steps}
    config = configuration(job, max(read_out.values()), tuple(read_out.values()))
    tokenizer, env_id = train(job, config, folder, settings_of(job), budget.steps)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    rows = read_rows(folder / "metrics.jsonl")
    found = {name: next(r for r in rows if r["split"] == "valid" and r["step"] == step) for name, step in read_out.items()}
    trained = [row for row in rows if row["split"] == "train"][-1]
    seconds = {name: pace.seconds(step) if pace else found[name]["train_seconds"] for name, step in read_out.items()}
    result: JSON = {
        "estimator": job.label,
        "seed": job.seed,
        "bits": tokenizer.bits if tokenizer.bits != float("inf") else None,
        "encoder_parameters": sum(p.numel() for m in (tokenizer.front_end, tokenizer.posterior) for p in m.parameters()),
        **{f"{name}.seconds": value for name, value in seconds.items()},
        **{f"{name}.{key}": value for name, row in found.items() for key, value in columns(row).items()},
        "ess": trained.get("ess"),
        "distinct": trained.get("distinct"),
        "steps_per_second": read_out["time"] / seconds["time"],
        "peak_memory_gb": memory,
        "ceiling": ceiling(folder, env_id, budget.ceiling_episodes),
    }
    return result


def measured_pace(job: OneRun, folder: Path) -> Pace:
    """The median pace of a few steps of each phase, the first ones left out."""
    settings = settings_of(job)
    warm_steps = getattr(settings, "warm_start_steps", 0)
    if warm_steps:
        settings = replace(settings, warm_start_steps=TIMED_STEPS)
    train(job, configuration(job, 2 * TIMED_STEPS, ()), folder, settings, 2 * TIMED_STEPS, validate_on=8)
    seconds = [row["seconds"] for row in read_rows(folder / "metrics.jsonl") if row["split"] == "train"]
    ms = [1e3 * (after - before) / LOG_EVERY for before, after in pairwise(seconds)]
    half = len(ms) // 2
    step = statistics.median(ms[half + 1 :] if warm_steps else ms)
    return Pace(warm_steps, statistics.median(ms[:half]) if warm_steps else step, step)


def configuration(job: OneRun, steps: int, validate_at: tuple[int, ...]) -> TrainerConfig:
    return TrainerConfig(
        max_steps=steps,
        validate_at=validate_at,
        batch_size=job.budget.batch_size,
        seed=job.seed,
        eval_every=max(1, job.budget.steps // 10) if validate_at else 0,
        log_every=50 if validate_at else LOG_EVERY,
        tensorboard=False,
        optimizer=OptimizerConfig(lr=job.budget.lr, ema=0.99),
    )


def settings_of(job: OneRun) -> Any:
    """The estimator's settings: its own defaults, the budget's, for pictures the β schedule of their preset, the variant's."""
    given: JSON = {"warm_start_steps": job.budget.warm_start_steps, "draws": job.budget.draws}
    if job.dataset in PICTURES:
        given |= {name: preset(PICTURES[job.dataset]).settings[name] for name in ("beta_start", "beta_end")}
    return ESTIMATORS[job.estimator].configure(**{**given, **job.overrides})


def train(
    job: OneRun, config: TrainerConfig, folder: Path, settings: Any, schedule: int, validate_on: int = 0
) -> tuple[Tokenizer, str | None]:
    """Train, or go on training; the tokenizer and the environment of its ceiling if there is one."""
    tokenizer, material, env_id = prepare(job)
    estimator = ESTIMATORS[job.estimator](tokenizer, settings, schedule)
    objective = LatestObjective(tokenizer, estimator, evenly(material.valid, validate_on), material.measure)
    Trainer(config, folder, job).fit(objective, material.train, resume=True)
    return tokenizer, env_id


def ceiling(folder: Path, env_id: str | None, episodes: int) -> float | None:
    """Success rate of the scripted expert through the trained tokenizer; None without an environment."""
    if not episodes or env_id is None:
        return None
    final = Tokenizer.from_pretrained(folder / "model")
    torch.set_num_threads(1)
    try:
        first = EVAL_SEED_START
        return tokenizer_ceiling(env_id, final, first_seed=first, episodes=episodes, max_steps=200, progress=False).success_rate
    except SimulationError as error:
        print(f"no ceiling: {error}")
        return None


def prepare(job: OneRun) -> tuple[Tokenizer, Material, str | None]:
    """An untrained tokenizer, the data, and the environment of its ceiling if there is one."""
    if job.dataset in PICTURES:
        chosen = preset(PICTURES[job.dataset])
        material = read_pictures(TrainImageTokenizer(job.dataset), chosen)
        material = material._replace(valid=evenly(material.valid, VALIDATE_ON))
        torch.manual_seed(job.seed)
        return Tokenizer(ESTIMATORS[job.estimator].tokenizer_config(chosen.tokenizer), material.scaler), material, None
    demos = read_demos(Path(job.dataset))
    train, valid = split(demos, job.tokenizer.horizon)
    torch.manual_seed(job.seed)
    command = TrainActionVAE(estimator=job.estimator, tokenizer=job.tokenizer)
    tokenizer = build_tokenizer(command, train, demos)
    return tokenizer, Material(job.dataset, train, valid, tokenizer.scaler, None), demos.env_id


def columns(row: JSON) -> JSON:
    """What a validation says about a run."""
    errors = [row[f"rmse/{i}"] for i in range(sum(name.startswith("rmse/") for name in row))]
    likelihood = ("reconstruction", "elbo", "elbo_beta_end", "kl")
    names = ("psnr", "psnr_sample", "ssim", *likelihood, "perplexity", "unused_codes", "bits_used")
    return {
        "step": row["step"],
        "rmse": (sum(error**2 for error in errors) / len(errors)) ** 0.5,
        **{name: row.get(name) for name in names},
    }
