"""Roll a policy out, measure what its tokenizer alone would reach, and write the report of the whole chain."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch

from daps_robot.commands.distill_policy import check_trained_on, env_in, newest_run, run_description, with_dataset
from daps_robot.commands.rollout_env import check_counts, look_at, rollout_env
from daps_robot.commands.through_tokenizer import OtherCodes, ceilings, describe, malformed_codes, replays, tokenizer_figures
from daps_robot.commands.train_action_vae import describe_share, split, unexplained
from daps_robot.config import load_json, save_json, to_json
from daps_robot.data.catalog import dataset_name, fetch
from daps_robot.data.demos import EVAL_SEED_START, DemoSet, read_demos
from daps_robot.errors import CheckpointError, ConfigError, RunDirectoryError, SimulationError
from daps_robot.exported import ExportedPolicy
from daps_robot.models.fast import FASTTokenizer
from daps_robot.models.policies import read_policy
from daps_robot.models.policy import DecodingConfig, LatentPolicy
from daps_robot.report.page import write_page
from daps_robot.rollout.evaluate import evaluate
from daps_robot.rollout.latency import plan_latency
from daps_robot.training.imitation import action_scale, planning_error
from daps_robot.types import JSON, SizedPolicy


@dataclass(frozen=True)
class RolloutConfig:
    """How episodes are played.

    Attributes:
        episodes: of the policy.
        ceiling_episodes: of the scripted expert through a latent policy's tokenizer; 0 leaves the ceilings and replays out.
        execute: steps executed of a chunk before the next plan, e; by default the policy's own.
        max_steps: control steps of an episode; by default the environment's own limit. Success counts if reached at any of them,
            and of scores the largest.
        first_seed: episode i starts from reset(seed = first_seed + i), far from the demonstrations' seeds.
        slots: the policy's fixed batch size; two such groups of episodes are under way in turn.
        workers: simulator processes; by default one a core.
        videos: films of the first successes and failures.
    """

    episodes: int = 100
    ceiling_episodes: int = 50
    execute: int | None = None
    max_steps: int | None = None
    first_seed: int = EVAL_SEED_START
    slots: int = 25
    workers: int | None = None
    videos: int = 2

    def __post_init__(self) -> None:
        if min(self.episodes, self.slots, 1 if self.execute is None else self.execute) < 1:
            raise ConfigError("--episodes, --slots and --execute count from 1")
        if self.ceiling_episodes < 0 or self.videos < 0:
            raise ConfigError("--ceiling-episodes and --videos count from 0")
        check_counts(self.workers, self.max_steps)
        if self.first_seed < EVAL_SEED_START:
            raise ConfigError(f"--first-seed {self.first_seed} lies among the demonstrations' seeds: from {EVAL_SEED_START} on")


@dataclass(frozen=True)
class Evaluate:
    """Measure a policy's success rate in simulation, with the ceiling of its tokenizer, if it has one, and write a report.

    Attributes:
        policy: directory of a policy's run, of any kind, or a file that export_policy.py wrote; by default the newest latent one
            (of the data set, if one is named).
        dataset: a name of the catalogue, a robomimic HDF5 file or a LeRobot folder; by default the one that the policy was
            trained on.
        out: where report.json and report.html go; by default the directory above a latent policy's run, another's run itself,
            of a file the directory beside it that has its name without the ending.
        env: Gymnasium id to roll out in, or "none"; by default what the policy was trained with, else what the data set names.
        rollout: how episodes are played.
        decoding: how a latent policy chooses codes; an exported one does so as it was exported.
    """

    policy: Path | None = None
    dataset: str | None = None
    out: Path | None = None
    env: str | None = None
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)


class Laps:
    """Seconds of the stages of a command, each from the end of the one before."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.clock = time.perf_counter()

    def end(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage], self.clock = now - self.clock, now


def run(config: Evaluate) -> JSON:
    """Evaluate; the report, which is also written to <out>/report.json with a page beside it."""
    laps = Laps()
    torch.set_num_threads(1)
    torch.manual_seed(0)  # of the posterior samples in the held-out figures
    name = dataset_name(config.dataset) if config.dataset else None
    policy_run = config.policy or newest_run("policy", name)
    policy = read_policy(policy_run)
    if isinstance(policy, ExportedPolicy):
        if config.decoding != DecodingConfig():
            raise ConfigError(
                f"{policy_run} decodes as it was exported ({policy.config.decoding}): export it anew to change that"
            )
        description = with_dataset(policy.config.run, policy_run)
    else:
        description = run_description(policy_run)
    if isinstance(policy, LatentPolicy):
        policy = policy.with_decoding(config.decoding)
    if (config.rollout.execute or 1) > policy.horizon:
        raise ConfigError(f"--execute {config.rollout.execute}: the policy in {policy_run} plans {policy.horizon} steps")
    path = fetch(config.dataset or description["dataset"]["path"])
    demos = read_demos(path, policy.obs_keys, cameras=policy.cameras, picture_size=policy.picture_size)
    check_trained_on(policy, policy_run, demos)
    env_id, without = playable(demos, config.env, env_in(description))
    out = config.out or report_directory(policy, policy_run)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunDirectoryError(f"cannot write to {out}: {error.strerror}; choose another --out") from error
    trained = stage_seconds(policy_run, description)
    train, valid = split(demos, policy.horizon, policy.history)
    planned = planning_error(policy, valid, action_scale(train, demos.action_units))
    report: JSON = {
        "dataset": {"path": str(demos.path), "sha256": demos.sha256, "demonstrations": len(demos.demos)},
        "policy_kind": policy.kind,
        "policy_parameters": weights(policy),
        "chunk_error": planned["chunk_error"],
        "policy_rmse": [planned[f"rmse/{i}"] for i in range(policy.action_dim)],
    }
    report["policy_error"] = unexplained(report["policy_rmse"], valid)
    print(f"held-out chunks: the plans miss {describe_share(report['policy_error'])} of the actions' variance", flush=True)
    others = None
    if isinstance(policy, LatentPolicy):
        others = OtherCodes(policy.tokenizer, train)
        report |= tokenizer_figures(policy.tokenizer, others, valid)
        if isinstance(policy.tokenizer, FASTTokenizer) and policy.config.decoding.prefix is None:  # a prefix never holds all
            report["malformed_codes"] = malformed_codes(policy, policy.tokenizer, valid)
            share = f"{report['malformed_codes']:.1%}"
            print(f"{share} of its held-out code sequences would not have decoded with the published FAST")
        report["reconstruction_error"] = unexplained(report["reconstruction_rmse"], valid)
        print(f"  and the tokenizer alone {describe_share(report['reconstruction_error'])}", flush=True)
    laps.end("held_out")
    if env_id is None:
        print(f"no rollouts: {without}")
    else:
        report |= roll_out(config.rollout, env_id, policy, others, demos, out, laps)
    report["seconds"] = {**trained, **laps.seconds}
    packages = ("torch", "mujoco", "robosuite", "gym-pusht", "pymunk", "daps-robot")
    report["versions"] = {package: installed(package) for package in packages}
    report["configuration"] = {
        "evaluate": to_json(replace(config, policy=policy_run)),
        "policy": description,
        "tokenizer": tokenizer_description(description),
    }
    save_json(report, out / "report.json")
    page = write_page(out, policy, demos)
    print(f"report: {out / 'report.json'} and {page}")
    return report


def report_directory(policy: SizedPolicy, policy_run: Path) -> Path:
    """Where the report of a policy goes."""
    if isinstance(policy, ExportedPolicy):
        return policy_run.with_suffix("")
    return policy_run.parent if isinstance(policy, LatentPolicy) else policy_run


def weights(policy: SizedPolicy) -> int:
    """How many numbers it has learned."""
    if isinstance(policy, ExportedPolicy):
        return policy.config.weights
    assert isinstance(policy, torch.nn.Module)
    return sum(parameter.numel() for parameter in policy.parameters())


def playable(demos: DemoSet, asked: str | None, trained: str | None) -> tuple[str | None, str]:
    """The environment to roll out in, or None and why there are no rollouts.

    Raises:
        SimulationError: the environment that was asked for cannot be had.
    """
    env_id = rollout_env(demos, asked or trained)
    if env_id is None:
        return None, f"{demos.path} names no environment (pass --env to name one), or --env none was asked for"
    try:
        look_at(env_id, demos)
    except SimulationError as error:
        if asked is not None:
            raise
        return None, f"{error}; --env none leaves them out without a try"
    return env_id, ""


def roll_out(
    config: RolloutConfig,
    env_id: str,
    policy: SizedPolicy,
    others: OtherCodes | None,
    demos: DemoSet,
    out: Path,
    laps: Laps,
) -> JSON:
    """Everything that needs the simulator; `others` only of a latent policy."""
    common: dict[str, Any] = {
        "first_seed": config.first_seed,
        "max_steps": config.max_steps,
        "execute": policy.execute if config.execute is None else config.execute,
        "slots": config.slots,
        "workers": config.workers,
    }
    video = out / "videos" if config.videos else None
    played = evaluate(env_id, policy, episodes=config.episodes, video=video, videos=config.videos, **common)
    print(f"success rate {describe(played)}", flush=True)
    laps.end("rollouts")
    report: JSON = {}
    if isinstance(policy, LatentPolicy):
        report["decoding"] = policy.config.decoding.method
        if policy.config.decoding.method == "expected":
            through_codes = policy.with_decoding(replace(policy.config.decoding, method="consensus"))
            codes = evaluate(env_id, through_codes, episodes=config.episodes, **common)
            print(f"  through one code sequence a plan (consensus) in place of the expectation {describe(codes)}", flush=True)
            report["codes_success_rate"], report["codes_ci95"] = codes.success_rate, list(codes.ci95)
            report["codes_mean_score"], report["codes_score_ci95"] = codes.mean_score, list(codes.score_ci95)
            laps.end("codes_rollouts")
    assert played.observations is not None
    latency = plan_latency(policy, played.observations, images=played.images)
    laps.end("latency")
    report |= {
        "success_rate": played.success_rate,
        "successes": played.successes,
        "episodes": played.episodes,
        "ci95": list(played.ci95),
        "mean_score": played.mean_score,
        "score_ci95": list(played.score_ci95),
        "policy_latency_ms": {"p50": latency.p50, "p99": latency.p99},
        "rollouts": played.to_json(),
    }
    if isinstance(policy, LatentPolicy) and others is not None and config.ceiling_episodes:
        usual = round(median(len(demo) for demo in demos.demos))
        report |= ceilings(env_id, policy.tokenizer, others, usual, episodes=config.ceiling_episodes, **common)
        laps.end("ceiling")
        report |= replays(env_id, policy.tokenizer, demos, config.workers)
        laps.end("replay")
    return report


def stage_seconds(policy_run: Path, description: JSON) -> dict[str, float]:
    """How long the earlier stages took, one number a stage."""
    stages: dict[str, float] = {}
    tokenizer = description.get("tokenizer")
    for run in (*([Path(tokenizer)] if isinstance(tokenizer, str) else []), policy_run):
        if (run / "timing.json").is_file():
            found = load_json(run / "timing.json")
            if not isinstance(found, dict) or not all(isinstance(seconds, int | float) for seconds in found.values()):
                raise CheckpointError(f"{run / 'timing.json'} does not hold the seconds of stages: remove it, or train anew")
            stages |= found
    return stages


def tokenizer_description(description: JSON) -> JSON | None:
    path = Path(str(description.get("tokenizer", ""))) / "config.json"
    return load_json(path) if "tokenizer" in description and path.is_file() else None


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
