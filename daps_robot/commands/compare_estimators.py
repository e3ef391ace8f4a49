"""Train every estimator on the same data, networks and bits, and put them side by side.

Each run is a process of its own, in <out>/<estimator>-<seed>/; one that is finished is not run again. Read-outs of a run: after
the budget's steps (equal steps), and after as many as it takes in the budget's minutes (equal time), by paces that are measured
first, the estimators taking turns: nothing else should be running then, while the runs themselves can share the machine.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from daps_robot.commands.one_run import BUDGETS, PICTURES, BudgetName, OneRun
from daps_robot.commands.piece_results import check_columns
from daps_robot.commands.pieces import result_of, results_folder, save_results, start_process
from daps_robot.commands.train_action_vae import ChunkTokenizerConfig
from daps_robot.config import from_json, load_json, save_json
from daps_robot.data.catalog import dataset_name, fetch
from daps_robot.data.demos import read_demos
from daps_robot.errors import ConfigError
from daps_robot.estimators import ESTIMATORS
from daps_robot.models.blocks import TransformerConfig
from daps_robot.models.code_model import CodeModelConfig
from daps_robot.models.decoders import ChunkDecoderConfig
from daps_robot.models.frontends import ChunkFrontEndConfig
from daps_robot.models.tokenizer import Tokenizer, TokenizerConfig
from daps_robot.presets import preset
from daps_robot.report.comparison import write_comparison
from daps_robot.training.pace import Pace
from daps_robot.types import JSON

ROUNDS = 3
"""In which paces are measured."""

ONE_RUN = "daps_robot.commands.one_run"


@dataclass(frozen=True)
class CompareEstimators:
    """Compare estimators at equal bits: a table with intervals, CSV, JSON and a page with curves.

    Attributes:
        dataset: a name of the catalogue, a robomimic HDF5 file, a LeRobot folder, or mnist-10k, mnist or cifar10, which have
            networks of their own.
        estimators: their names, or "all" that share their networks.
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
    preset: BudgetName = "small"
    name: str | None = None
    tokenizer: ChunkTokenizerConfig = field(default_factory=ChunkTokenizerConfig)
    lr: float | None = None
    json: bool = False

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ConfigError(f"{self.seeds} seeds: take at least 1; intervals need 2, claims 3")


def run(config: CompareEstimators) -> list[JSON]:
    """All runs that are not there yet, then the table; one object per estimator and seed."""
    shared = [name for name in sorted(ESTIMATORS) if not ESTIMATORS[name].own_networks]
    names = shared if "all" in config.estimators else list(dict.fromkeys(config.estimators))
    return run_variants(config, {name: (name, {}) for name in names})


def run_variants(config: CompareEstimators, variants: Mapping[str, tuple[str, JSON]]) -> list[JSON]:
    """As `run`, for variants: label → estimator and settings."""
    for name, overrides in variants.values():
        check(name, overrides, config)  # a wrong name or budget costs nothing yet
    path = config.dataset if config.dataset in PICTURES else str(fetch(config.dataset))
    if config.dataset not in PICTURES:
        read_demos(path)  # nor does a data set that is not there, or damaged
    out = results_folder("compare", config.name or f"{dataset_name(config.dataset)}-{config.preset}")
    budget, started, results = BUDGETS[config.preset], time.perf_counter(), []
    budget = replace(budget, lr=budget.lr if config.lr is None else config.lr)
    of = {label: OneRun(path, label, *variant, 0, budget, config.tokenizer) for label, variant in variants.items()}
    paces = measure_paces(out, of) if budget.minutes else {}
    jobs = [replace(of[label], seed=seed, pace=paces.get(label)) for seed in range(config.seeds) for label in variants]
    for done, job in enumerate(jobs):
        elapsed = time.perf_counter() - started
        print(f"[{done + 1}/{len(jobs)}] {job.label}, seed {job.seed}  ({elapsed / 60:.0f} min so far)", flush=True)
        check_found = partial(check_columns, estimator=job.label, seed=job.seed)
        results.append(result_of(f"{ONE_RUN}:run_one_file", out / f"{job.label}-{job.seed}", job, check=check_found))
    save_results(out, results)
    exploratory = config.preset in ("small", "test") or config.seeds < 3
    page = write_comparison(out, results, exploratory)
    print(f"{out / 'results.csv'}, {out / 'results.json'} and {page}")
    if config.json:
        print(json.dumps(results))
    return results


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
        nested_dropout=size.nested_dropout,
    )


def measure_paces(out: Path, of: Mapping[str, OneRun]) -> dict[str, Pace]:
    """The pace of each variant: the median of a few rounds in which they take turns. Kept in <out>/paces.json."""
    path = out / "paces.json"
    known = {label: from_json(Pace, pace, str(path)) for label, pace in (load_json(path) if path.is_file() else {}).items()}
    missing = [label for label in of if label not in known]
    rounds: dict[str, list[Pace]] = {label: [] for label in missing}
    for i in range(ROUNDS):
        for label in missing:
            print(f"measuring paces, round {i + 1} of {ROUNDS}: {label}", flush=True)
            with tempfile.TemporaryDirectory() as folder:
                start_process(f"{ONE_RUN}:pace_file", Path(folder), of[label])
                rounds[label].append(from_json(Pace, load_json(Path(folder) / "pace.json")))
    for label, found in rounds.items():
        warm_ms, step_ms = (statistics.median(getattr(pace, name) for pace in found) for name in ("warm_ms", "step_ms"))
        known[label] = Pace(found[0].warm_steps, warm_ms, step_ms)
    save_json(known, path)
    return {label: known[label] for label in of}
