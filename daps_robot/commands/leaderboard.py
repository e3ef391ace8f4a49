"""Train policies with several seeds on the same demonstrations, roll them out on the same start states, and rank them.

Every piece of a run (tokenizer, policy, rollouts of each model, ceiling) is a process of its own, in <out>/<policy>-<seed>/; what
is finished is not run again, so an interrupted leaderboard goes on where it was, and more policies or seeds can be added to it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from daps_robot.commands.distill_policy import fingerprint
from daps_robot.commands.piece_results import Latencies
from daps_robot.commands.pieces import readable, results_folder, save_results, start_process
from daps_robot.commands.policy_pieces import VALIDATIONS
from daps_robot.commands.policy_run import (
    PIECES,
    LatencyJob,
    Learning,
    PolicyRun,
    Study,
    check_horizon,
    check_policy,
    check_rotation,
    horizon_of,
    run_policy,
    usual_method,
)
from daps_robot.commands.rollout_env import study_env
from daps_robot.config import from_json, load_json, save_json, to_json
from daps_robot.data.catalog import dataset_name, fetch
from daps_robot.data.demos import read_demos
from daps_robot.errors import ConfigError
from daps_robot.models.policy import Method
from daps_robot.report.leaderboard import write_leaderboard
from daps_robot.report.standings import Standing, standings
from daps_robot.types import JSON


@dataclass(frozen=True)
class Leaderboard(Study):
    """Rank policies by success over several seeds: a table with intervals, CSV, JSON and a page.

    Attributes:
        policies: estimators whose codes a policy is distilled from (daps, fsq, …) and policies without tokenizer (regression, …).
        last: models of the last validations (of 10, evenly spread over a policy's training) to be rolled out beside the best.
        execute: steps executed of a chunk, by a policy that plans fewer all of them; by default each policy's own.
    """

    policies: tuple[str, ...] = ("daps", "fsq", "vq", "regression", "diffusion")
    last: int = 3
    execute: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.policies:
            raise ConfigError("a leaderboard needs --policies")
        if self.execute is not None and self.execute < 1:
            raise ConfigError(f"--execute {self.execute}: a plan has steps to execute from 1 on")
        if not 0 <= self.last <= VALIDATIONS:
            raise ConfigError(f"--last {self.last}: a training has {VALIDATIONS} validations")


def run(config: Leaderboard) -> list[Standing]:
    """All pieces that are not there yet, then table and page; the page is written anew after every seed."""
    names = list(dict.fromkeys(config.policies))
    for name in names:
        check_policy(name, config.tokenizer, config.method)  # a wrong name costs nothing yet
    path, started = fetch(config.dataset), time.perf_counter()
    demos = read_demos(path)
    check_rotation(config, demos)
    for name in names:
        check_horizon(name, config.tokenizer, demos)
    env = study_env(demos, config.env)
    learning = Learning(demos.sha256, env, budget=config.budget)
    out = results_folder("leaderboard", config.name or dataset_name(config.dataset))
    runs: list[JSON] = []
    for seed in range(config.seeds):
        for i, name in enumerate(names):
            done, minutes = seed * len(names) + i + 1, (time.perf_counter() - started) / 60
            print(f"[{done}/{config.seeds * len(names)}] {name}, seed {seed}  ({minutes:.0f} min so far)", flush=True)
            execute = config.execute and min(config.execute, horizon_of(name, config.tokenizer))
            planned = PolicyRun(name, seed, str(path), learning, last=config.last, execute=execute, **config.said)
            runs.append(run_policy(out / f"{name}-{seed}", planned, config.workers))
        ranked = standings(runs, "daps" if "daps" in names else names[0], latencies(out, runs, str(path), config.method))
        everything = {"settings": to_json(config), "env": env, "standings": ranked, "runs": runs}
        save_results(out, [row(each) for each in runs], everything)
        page = write_leaderboard(out, ranked, runs, config.name or dataset_name(config.dataset), env)
    for place in ranked:
        print(line(place))
    print(f"{out / 'results.csv'}, {out / 'results.json'} and {page}")
    return ranked


def latencies(out: Path, runs: list[JSON], dataset: str, method: Method) -> dict[str, dict[str, float]]:
    """Milliseconds of a decision of each policy's first seed: all in turns, and all again where one is new or changed."""
    path = out / "latency.json"
    models = {run["policy"]: run["model"] for run in reversed(runs)}
    made = {name: f"{fingerprint(Path(model))} {method if usual_method(name) else ''}".strip() for name, model in models.items()}
    known: JSON = {"fingerprints": {}, "milliseconds": {}}
    if path.is_file():
        known = readable(path, path)
        try:
            from_json(Latencies, known, str(path))
        except ConfigError as error:
            raise ConfigError(f"{error}: delete {path} to measure anew") from error
    timed = known["fingerprints"]
    if any(timed.get(name) != each for name, each in made.items()):
        job = LatencyJob(dataset, models, made, method)
        start_process(f"{PIECES}:latency_piece", out / "latency", job)
        known = {"fingerprints": made, "milliseconds": load_json(out / "latency" / "result.json")}
        save_json(known, path)
    found: dict[str, dict[str, float]] = known["milliseconds"]
    return found


def row(run: JSON) -> JSON:
    """A run's line of the CSV; `last` is the mean over the last models."""

    def rate(played: list[JSON], outcome: str) -> float | None:
        values = [value for each in played for value in each.get(outcome, ())]
        return sum(values) / len(values) if values else None

    last = list(run["last"].values())
    return {
        **{name: run[name] for name in ("policy", "seed")},
        **{f"{outcome}.best": rate([run["best"]], outcome) for outcome in ("success", "score")},
        **{f"{outcome}.last": rate(last, outcome) for outcome in ("success", "score")},
        "best_step": run["best_step"],
        "last_steps": " ".join(str(step) for step in run["last"]),
        "ceiling": rate([run["ceiling"] or {}], "success"),
        **{name: run[name] for name in ("bits", "horizon", "execute", "method", "history", "obs_rotation", "parameters")},
        **{f"seconds.{stage}": run["seconds"].get(stage) for stage in ("tokenizer", "policy")},
    }


def line(place: Standing) -> str:
    """A policy in a line of text."""
    parts = [f"{place.policy:>14}"]
    for name, figure in place.figures.items():
        of = figure.interval
        parts.append(f"{name} {of.mean:.3f} ({of.low:.3f} to {of.high:.3f})")
    return "  ".join(parts)
