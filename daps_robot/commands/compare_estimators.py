"""Train every estimator on the same data, networks and bits, and put them side by side.

Each run is a process of its own, in <out>/<estimator>-<seed>/; one that is finished is not run again. Read-outs of a run: after
`steps` steps (equal steps), after `minutes` of training (equal time), whatever comes later ending the run.
"""

from __future__ import annotations

import csv
import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from daps_robot.commands.cli import keep_freed_memory
from daps_robot.commands.train_action_vae import ChunkTokenizerConfig, TrainActionVAE, build_tokenizer, split
from daps_robot.commands.train_image_tokenizer import Material, TrainImageTokenizer, evenly, read_pictures
from daps_robot.config import differences, from_json, load_json, save_json, to_json
from daps_robot.data.catalog import dataset_name, fetch
from daps_robot.data.demos import EVAL_SEED_START, read_demos
from daps_robot.errors import ConfigError, DapsRobotError, SimulationError
from daps_robot.estimators import ESTIMATORS
from daps_robot.models.blocks import TransformerConfig
from daps_robot.models.code_model import CodeModelConfig
from daps_robot.models.decoders import ChunkDecoderConfig
from daps_robot.models.frontends import ChunkFrontEndConfig
from daps_robot.models.tokenizer import Tokenizer, TokenizerConfig
from daps_robot.presets import preset
from daps_robot.report.comparison import write_comparison
from daps_robot.rollout.ceiling import tokenizer_ceiling
from daps_robot.training.logger import read_rows
from daps_robot.training.optimizer import OptimizerConfig
from daps_robot.training.tokenizer import TokenizerObjective
from daps_robot.training.trainer import Trainer, TrainerConfig
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


VALIDATE_ON = 1000
"""Held-out pictures, evenly spaced, that read-outs are of, or all where there are fewer."""

Preset = Literal["small", "claim", "mnist", "cifar10", "test"]

BUDGETS: dict[Preset, Budget] = {
    "small": Budget(500, 0.6, 32, 1e-3, 250, 10, 20),
    "claim": Budget(2400, 3.0, 64, 1e-3, 1200, 10, 50),
    "mnist": Budget(3000, 1.75, 64, 3e-4, 1500, 100, 0),
    "cifar10": Budget(2000, 6.0, 32, 1e-3, 1000, 10, 0),
    "test": Budget(6, 0.0, 8, 1e-3, 3, 2, 0),
}


PICTURES = {"mnist-10k": "mnist", "mnist": "mnist", "cifar10": "cifar10-quick"}
"""Data sets of pictures, and whose networks and settings they get."""


@dataclass(frozen=True)
class CompareEstimators:
    """Compare estimators at equal bits: a table with intervals, CSV, JSON and a page with curves.

    Attributes:
        dataset: a name of the catalogue, a robomimic HDF5 file, or mnist-10k, mnist or cifar10, which have networks of their own.
        estimators: their names, or "all".
        seeds: runs of each, from seed 0 on; a claim of quality needs three.
        preset: "small" explores (about a minute a run), "claim" trains for three minutes or longer, "mnist" is the budget
            of the MNIST protocol (3000 steps of 64), "cifar10" that of two processor cores (2000 of 32), "test" tests.
        name: of the comparison; by default <data set>-<preset>.
        tokenizer: the networks.
        lr: learning rate in place of the preset's (3e-4 of "mnist", 1e-3 of the others).
        json: print the results as one JSON line at the end.
    """

    dataset: str = "lift"
    estimators: tuple[str, ...] = ("all",)
    seeds: int = 3
    preset: Preset = "small"
    name: str | None = None
    tokenizer: ChunkTokenizerConfig = field(default_factory=ChunkTokenizerConfig)
    lr: float | None = None
    json: bool = False

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ConfigError(f"{self.seeds} seeds: take at least 1; intervals need 2, claims 3")


@dataclass(frozen=True)
class OneRun:
    """One variant with one seed: what a process of its own is given.

    Attributes:
        label: what the variant is called.
        overrides: settings of the estimator.
    """

    dataset: str
    label: str
    estimator: str
    overrides: dict[str, Any]
    seed: int
    budget: Budget
    tokenizer: ChunkTokenizerConfig


class LatestObjective(TokenizerObjective):
    """Keeps the latest weights, not the best: read-outs are at given steps and times."""

    criterion = "age"

    def evaluate(self) -> dict[str, float]:
        return {**super().evaluate(), "age": -float(self.steps)}


def run(config: CompareEstimators) -> list[JSON]:
    """All runs that are not there yet, then the table; one object per estimator and seed."""
    names = sorted(ESTIMATORS) if "all" in config.estimators else list(dict.fromkeys(config.estimators))
    return run_variants(config, {name: (name, {}) for name in names})


def run_variants(config: CompareEstimators, variants: Mapping[str, tuple[str, JSON]]) -> list[JSON]:
    """As `run`, for variants: label → estimator and settings."""
    for name, overrides in variants.values():
        check(name, overrides, config)  # a wrong name or budget costs nothing yet
    path = config.dataset if config.dataset in PICTURES else str(fetch(config.dataset))
    out = results_folder(config.name or f"{dataset_name(config.dataset)}-{config.preset}")
    budget, started, results = BUDGETS[config.preset], time.perf_counter(), []
    budget = replace(budget, lr=budget.lr if config.lr is None else config.lr)
    jobs = [(label, seed) for seed in range(config.seeds) for label in variants]
    for done, (label, seed) in enumerate(jobs):
        folder = out / f"{label}-{seed}"
        job = OneRun(path, label, *variants[label], seed, budget, config.tokenizer)
        if not finished(folder, job):
            elapsed = time.perf_counter() - started
            print(f"[{done + 1}/{len(jobs)}] {label}, seed {seed}  ({elapsed / 60:.0f} min so far)", flush=True)
            start_run(folder, job)
        results.append(load_json(folder / "result.json"))
    save_results(out, results)
    exploratory = config.preset in ("small", "test") or config.seeds < 3
    page = write_comparison(out, results, exploratory)
    print(f"{out / 'results.csv'}, {out / 'results.json'} and {page}")
    if config.json:
        print(json.dumps(results))
    return results


def results_folder(name: str) -> Path:
    """Where the results of a comparison or an ablation of that name go; made if need be."""
    out = Path("runs") / "compare" / name
    out.mkdir(parents=True, exist_ok=True)
    return out


def check(name: str, overrides: JSON, config: CompareEstimators) -> None:
    """Whether an estimator exists, has what it needs, and meets the budget of bits."""
    kind = ESTIMATORS[name]
    networks = preset(PICTURES[config.dataset]).tokenizer if config.dataset in PICTURES else chunk_networks(config.tokenizer)
    tokenizer = Tokenizer(kind.tokenizer_config(networks))
    kind(tokenizer, kind.configure(**overrides), 10**9)
    if tokenizer.bits < 0.95 * networks.codes.bits:
        raise ConfigError(f"{name} reaches {tokenizer.bits:.1f} of {networks.codes.bits:.1f} bits: choose another --vocabulary")


def chunk_networks(size: ChunkTokenizerConfig) -> TokenizerConfig:
    """The networks for action chunks, but for what the data decides."""
    transformer = TransformerConfig(width=size.width, layers=size.layers)
    return TokenizerConfig(
        codes=CodeModelConfig(size.positions, size.vocabulary, size.autoregressive, transformer),
        front_end=ChunkFrontEndConfig(size.horizon, 1, min(size.positions, size.horizon), transformer),
        decoder=ChunkDecoderConfig(size.horizon, 1, transformer=transformer),
    )


def start_run(folder: Path, job: OneRun) -> None:
    """In a process of its own, so that its peak memory is its own."""
    folder.mkdir(parents=True, exist_ok=True)
    save_json(job, folder / "job.json")
    code = "import sys; from daps_robot.commands.compare_estimators import run_one_file; run_one_file(sys.argv[1])"
    ended = subprocess.run([sys.executable, "-c", code, str(folder)], stderr=subprocess.PIPE, text=True)
    if ended.returncode:
        last = ended.stderr.strip().splitlines()[-1:] or [f"exit status {ended.returncode}"]
        raise DapsRobotError(f"{job.label}, seed {job.seed}: {last[0]} (in {folder}; the finished runs are kept)")


def finished(folder: Path, job: OneRun) -> bool:
    """Whether the result of this very job lies in a folder.

    Raises:
        ConfigError: the result there is of another job.
    """
    if not (folder / "result.json").is_file():
        return False
    changed = differences(load_json(folder / "job.json"), to_json(job))
    if changed:
        raise ConfigError(f"{folder} holds a run with other settings ({'; '.join(changed[:3])}): choose another --name")
    return True


def run_one_file(folder: str) -> None:
    """What the process of one run does: train, or go on training, and write result.json."""
    place = Path(folder)
    job = from_json(OneRun, load_json(place / "job.json"))
    keep_freed_memory()
    save_json(run_one(job, place), place / "result.json")


def run_one(job: OneRun, folder: Path) -> JSON:
    """One run's columns."""
    budget, kind = job.budget, ESTIMATORS[job.estimator]
    tokenizer, material, env_id = prepare(job)
    given = {name: getattr(budget, name) for name in ("warm_start_steps", "draws")}
    if job.dataset in PICTURES:
        given = {**preset(PICTURES[job.dataset]).settings, **given}
    estimator = kind(tokenizer, kind.configure(**{**given, **job.overrides}), budget.steps)
    trainer = TrainerConfig(
        max_steps=budget.steps,
        mark_minutes=budget.minutes,
        batch_size=budget.batch_size,
        seed=job.seed,
        eval_every=max(1, budget.steps // 10),
        tensorboard=False,
        optimizer=OptimizerConfig(lr=budget.lr, ema=0.99),
    )
    objective = LatestObjective(tokenizer, estimator, material.valid, material.measure)
    Trainer(trainer, folder, job).fit(objective, material.train, resume=True)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    rows = read_rows(folder / "metrics.jsonl")
    at_steps = next(row for row in rows if row["split"] == "valid" and row["step"] == budget.steps)
    at_time = next(
        row for row in rows if (row["split"] == "valid" and row["train_seconds"] >= 60 * budget.minutes) or row is rows[-1]
    )
    trained = [row for row in rows if row["split"] == "train"][-1]
    result: JSON = {
        "estimator": job.label,
        "seed": job.seed,
        "bits": tokenizer.bits if tokenizer.bits != float("inf") else None,
        "encoder_parameters": sum(p.numel() for m in (tokenizer.front_end, tokenizer.posterior) for p in m.parameters()),
        **{f"steps.{name}": value for name, value in columns(at_steps).items()},
        **{f"time.{name}": value for name, value in columns(at_time).items()},
        "ess": trained.get("ess"),
        "distinct": trained.get("distinct"),
        "steps_per_second": trained["steps_per_second"],
        "peak_memory_gb": memory,
        "ceiling": None,
    }
    if budget.ceiling_episodes and env_id is not None:
        final = Tokenizer.from_pretrained(folder / "model")
        torch.set_num_threads(1)
        try:
            ceiling = tokenizer_ceiling(
                env_id, final, first_seed=EVAL_SEED_START, episodes=budget.ceiling_episodes, max_steps=200, progress=False
            )
            result["ceiling"] = ceiling.success_rate
        except SimulationError as error:
            print(f"no ceiling: {error}")
    return result


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
    tokenizer = build_tokenizer(command, train, demos.obs_keys)
    return tokenizer, Material(job.dataset, train, valid, tokenizer.scaler, None), demos.env_id


def columns(row: JSON) -> JSON:
    """What a validation says about a run."""
    errors = [row[f"rmse/{i}"] for i in range(sum(name.startswith("rmse/") for name in row))]
    likelihood = ("reconstruction", "elbo", "elbo_beta_end", "kl")
    names = ("psnr", "psnr_sample", "ssim", *likelihood, "perplexity", "unused_codes", "bits_used")
    return {
        "step": row["step"],
        "seconds": row["train_seconds"],
        "rmse": (sum(error**2 for error in errors) / len(errors)) ** 0.5,
        **{name: row.get(name) for name in names},
    }


def save_results(out: Path, results: Sequence[JSON]) -> None:
    """results.json and results.csv, one row a run."""
    save_json(list(results), out / "results.json")
    temporary = out / "results.csv.tmp"
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(results[0]))
        writer.writeheader()
        writer.writerows(results)
    temporary.replace(out / "results.csv")
