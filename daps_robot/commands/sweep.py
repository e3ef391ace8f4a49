"""Success as one thing varies: bits of a chunk, its length, the steps executed of it, or the number of demonstrations.

The pieces are those of a leaderboard (see `policy_run`), in <out>/<policy>-<factor><value>-<seed>/.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from daps_robot.commands.pieces import results_folder, save_results
from daps_robot.commands.policy_run import (
    Learning,
    PolicyRun,
    Study,
    check_horizon,
    check_policy,
    check_rotation,
    horizon_of,
    predicts_codes,
    run_policy,
)
from daps_robot.commands.rollout_env import study_env
from daps_robot.commands.train_action_vae import ChunkTokenizerConfig
from daps_robot.config import to_json
from daps_robot.data.catalog import dataset_name, fetch
from daps_robot.data.demos import DemoSet, read_demos
from daps_robot.errors import ConfigError
from daps_robot.models.frontends import ChunkFrontEndConfig, make_front_end
from daps_robot.report.sweep import Factor, Line, lines_of, write_sweep
from daps_robot.training.distill import CodeSource
from daps_robot.types import JSON

VALUES: dict[Factor, tuple[int, ...]] = {
    "vocabulary": (4, 16, 64, 256, 1024),
    "positions": (1, 2, 4, 8, 16),
    "horizon": (8, 16, 32),
    "execute": (1, 2, 4, 8, 16),
    "demonstrations": (10, 20, 50, 100, 180),
}
"""What is tried of each factor by default."""


@dataclass(frozen=True)
class Sweep(Study):
    """Draw success, with the tokenizer's ceiling, against one factor: a page with plots, CSV and JSON.

    Attributes:
        vary: vocabulary, positions or horizon of the tokenizer, steps executed of a chunk (execute), or demonstrations.
        values: of it; by default a few that span its range.
        policies: a line each. Those without tokenizer have no vocabulary, positions or horizon to vary.
        codes: that policies learn from: sampled, most-likely, or both, which makes two lines.
    """

    vary: Factor = "vocabulary"
    values: tuple[int, ...] = ()
    policies: tuple[str, ...] = ("daps",)
    codes: tuple[CodeSource, ...] = ("sampled",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.policies or not self.codes:
            raise ConfigError("a sweep needs --policies and --codes")

    @property
    def all_values(self) -> tuple[int, ...]:
        """In order, each once."""
        return tuple(sorted(set(self.values or VALUES[self.vary])))


def run(config: Sweep) -> list[Line]:
    """All pieces that are not there yet, then the page, which is written anew after every seed."""
    path, started = fetch(config.dataset), time.perf_counter()
    demos = read_demos(path)
    check(config, demos)
    env = study_env(demos, config.env)
    out = results_folder("sweep", config.name or f"{dataset_name(config.dataset)}-{config.vary}")
    learning = Learning(demos.sha256, env, budget=config.budget)
    results: list[JSON] = []
    for seed in range(config.seeds):
        for folder, value, planned in plans(config, str(path), learning, seed):
            minutes = (time.perf_counter() - started) / 60
            line = label(config, planned)
            print(f"{line}, {config.vary} {value}, seed {seed}  ({minutes:.0f} min so far)", flush=True)
            results.append({"line": line, "value": value, **run_policy(out / folder, planned, config.workers)})
        lines = lines_of(results, config.vary)
        everything = {"settings": to_json(config), "env": env, "lines": lines, "runs": results}
        save_results(out, [row(each) for each in results], everything)
        page = write_sweep(out, lines, results, config.vary, dataset_name(config.dataset), env)
    print(f"{out / 'results.csv'}, {out / 'results.json'} and {page}")
    return lines


def check(config: Sweep, demos: DemoSet) -> None:
    """Raises ConfigError or DataError for what cannot be run, before anything is."""
    for name in config.policies:
        check_policy(name, config.tokenizer, config.method)
        if config.vary in ("vocabulary", "positions", "horizon") and not predicts_codes(name):
            raise ConfigError(f"{name} has no tokenizer whose {config.vary} could vary: leave it out of --policies")
    if config.all_values[0] < 1:
        raise ConfigError(f"--values {config.all_values[0]}: from 1")
    if config.vary == "demonstrations" and config.all_values[-1] > len(demos.train):
        raise ConfigError(f"--values {config.all_values[-1]}: {config.dataset} has {len(demos.train)} training demonstrations")
    check_rotation(config, demos)
    for value in config.all_values:
        size = tokenizer_with(config, value)
        make_front_end(ChunkFrontEndConfig(size.horizon, 1, min(size.positions, size.horizon)))  # horizon and positions must fit
        for name in config.policies:
            check_policy(name, size)
            check_horizon(name, size, demos)
            if config.vary == "execute" and value > (steps := horizon_of(name, size)):
                raise ConfigError(f"--values {value}: chunks of {name} have {steps} steps to execute")


def tokenizer_with(config: Sweep, value: int) -> ChunkTokenizerConfig:
    varied: Any = {config.vary: value} if config.vary in ("vocabulary", "positions", "horizon") else {}
    return replace(config.tokenizer, **varied)


def plans(config: Sweep, dataset: str, learning: Learning, seed: int) -> Iterator[tuple[Path, int, PolicyRun]]:
    """The runs of a seed, each with the name of its folder and the value that it stands at."""
    for name in dict.fromkeys(config.policies):
        for value in config.all_values:
            fewer = replace(learning, demonstrations=value) if config.vary == "demonstrations" else learning
            execute = value if config.vary == "execute" else None
            said = {**config.said, "tokenizer": tokenizer_with(config, value)}
            planned = PolicyRun(name, seed, dataset, fewer, execute=execute, **said)
            # of what is executed alone, nothing has to be trained again
            folder = f"{name}-{seed}" if config.vary == "execute" else f"{name}-{config.vary}{value}-{seed}"
            for codes in dict.fromkeys(config.codes if predicts_codes(name) else ("sampled",)):
                yield Path(folder), value, replace(planned, codes=codes)


def label(config: Sweep, planned: PolicyRun) -> str:
    """Which line a run belongs to."""
    return (
        f"{planned.policy}, {planned.codes} codes"
        if len(set(config.codes)) > 1 and predicts_codes(planned.policy)
        else planned.policy
    )


def row(result: JSON) -> JSON:
    """A run's line of the CSV."""
    ceiling = (result["ceiling"] or {}).get("success")
    best = result["best"]
    return {
        **{name: result[name] for name in ("line", "value", "seed")},
        **{name: sum(best[name]) / len(best[name]) for name in ("success", "score")},
        "ceiling": sum(ceiling) / len(ceiling) if ceiling else None,
        **{
            name: result[name]
            for name in ("bits", "horizon", "execute", "method", "history", "obs_rotation", "parameters", "best_step")
        },
        **{f"seconds.{stage}": result["seconds"].get(stage) for stage in ("tokenizer", "policy")},
    }
