"""Roll a policy out, measure what its tokenizer alone would reach, and write the report of the whole chain."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from daps_robot.commands.distill_policy import newest_run, run_description
from daps_robot.commands.train_action_vae import split
from daps_robot.config import load_json, save_json, to_json
from daps_robot.data.catalog import dataset_name, fetch
from daps_robot.data.chunks import ChunkDataset
from daps_robot.data.demos import EVAL_SEED_START, DemoSet, read_demos
from daps_robot.errors import CheckpointError, ConfigError, RunDirectoryError, SimulationError
from daps_robot.models.policy import DecodingConfig, LatentPolicy
from daps_robot.models.tokenizer import Tokenizer
from daps_robot.report.page import write_page
from daps_robot.rollout.ceiling import Reconstructor, tokenizer_ceiling
from daps_robot.rollout.evaluate import evaluate
from daps_robot.rollout.latency import plan_latency
from daps_robot.rollout.replay import replay_demos
from daps_robot.rollout.results import Evaluation
from daps_robot.training.metrics import squared_error
from daps_robot.training.tokenizer import evaluate_tokenizer
from daps_robot.types import JSON


@dataclass(frozen=True)
class RolloutConfig:
    """How episodes are played.

    Attributes:
        episodes: of the policy.
        ceiling_episodes: of the scripted expert through the tokenizer; 0 leaves the ceilings and replays out.
        execute: steps executed of a chunk before the next plan, e.
        max_steps: control steps of an episode; success counts if reached at any of them.
        first_seed: episode i starts from reset(seed = first_seed + i), far from the demonstrations' seeds.
        slots: the policy's fixed batch size; two such groups of episodes are under way in turn.
        workers: simulator processes; by default one a core.
        videos: films of the first successes and failures.
    """

    episodes: int = 100
    ceiling_episodes: int = 50
    execute: int = 4
    max_steps: int = 400
    first_seed: int = EVAL_SEED_START
    slots: int = 25
    workers: int | None = None
    videos: int = 2

    def __post_init__(self) -> None:
        if self.ceiling_episodes < 0 or self.videos < 0:
            raise ConfigError("--ceiling-episodes and --videos count from 0")
        if self.first_seed < EVAL_SEED_START:
            raise ConfigError(f"--first-seed {self.first_seed} lies among the demonstrations' seeds: from {EVAL_SEED_START} on")


@dataclass(frozen=True)
class Evaluate:
    """Measure a policy's success rate in simulation, with the tokenizer's ceiling beside it, and write a report.

    Attributes:
        policy: directory of a policy's run; by default the newest (of the data set, if one is named).
        dataset: a name of the catalogue or a robomimic HDF5 file; by default the one that the policy was trained on.
        out: where report.json and report.html go; by default the directory above the policy's run.
        env: Gymnasium id to roll out in; by default the one that the data set names.
        rollout: how episodes are played.
        decoding: how the policy chooses codes.
    """

    policy: Path | None = None
    dataset: str | None = None
    out: Path | None = None
    env: str | None = None
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)


class OtherCodes:
    """A tokenizer that decodes the codes of another, random chunk: what a decoder makes of an action without its code."""

    def __init__(self, tokenizer: Tokenizer, codes: Int[torch.Tensor, "n l"]) -> None:
        self.tokenizer, self.codes = tokenizer, codes
        self.obs_keys, self.history, self.horizon = tokenizer.obs_keys, tokenizer.history, tokenizer.horizon

    def reconstruct(
        self,
        chunks: Float[np.ndarray, "b h a"],
        observations: Float[np.ndarray, "b n o"],
        keys: Int[np.ndarray, " b"],
    ) -> Float[np.ndarray, "b h a"]:
        chosen = self.codes[torch.from_numpy(np.asarray(keys) % len(self.codes))]
        return self.tokenizer.decode(chosen[:, None], torch.from_numpy(observations[:, -1]))[:, 0].numpy()


def run(config: Evaluate) -> JSON:
    """Evaluate; the report, which is also written to <out>/report.json with a page beside it."""
    started = time.perf_counter()
    torch.set_num_threads(1)
    torch.manual_seed(0)  # of the posterior samples in the held-out figures
    name = dataset_name(config.dataset) if config.dataset else None
    policy_run = config.policy or newest_run("policy", name)
    policy = LatentPolicy.from_pretrained(policy_run / "model")
    policy = policy.with_decoding(config.decoding)
    description = run_description(policy_run)
    demos = read_demos(fetch(config.dataset or description["dataset"]["path"]), policy.obs_keys)
    if (demos.action_dim, sum(demos.obs_dims.values())) != (policy.action_dim, policy.observation_dim):
        raise CheckpointError(
            f"the policy in {policy_run} maps {policy.observation_dim} observed values to {policy.action_dim} action dimensions, "
            f"{demos.path} has {sum(demos.obs_dims.values())} and {demos.action_dim}: pass the data set it was trained on"
        )
    out = config.out or policy_run.parent
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunDirectoryError(f"cannot write to {out}: {error.strerror}; choose another --out") from error
    trained = stage_seconds(policy_run, description)
    tokenizer = policy.tokenizer
    train, valid = split(demos, policy.horizon, policy.history)
    held_out = evaluate_tokenizer(tokenizer, valid, beta_end=1.0)
    actions = range(policy.action_dim)
    report: JSON = {
        "dataset": {"path": str(demos.path), "sha256": demos.sha256, "demonstrations": len(demos.demos)},
        "bits_per_chunk": tokenizer.bits,
        "reconstruction_rmse": [held_out[f"rmse/{i}"] for i in actions],
        "reconstruction_rmse_sample": [held_out[f"rmse_sample/{i}"] for i in actions],
        "code_perplexity": held_out["perplexity"],
        "elbo": held_out.get("elbo"),
        "entropy": held_out.get("entropy"),
        "policy_parameters": sum(p.numel() for p in policy.parameters()),
    }
    others = OtherCodes(tokenizer, tokenizer.encode(train.gather(torch.arange(0, len(train), 7)).actions)[:, 0])
    report["other_codes_rmse"] = reconstruction_rmse(others, valid)
    stages = {"reconstruction": time.perf_counter() - started}
    env_id = config.env or demos.env_id
    if env_id is None:
        print(f"{demos.path} names no environment that is installed here: no rollouts (pass --env to name one)")
    else:
        report |= roll_out(config.rollout, env_id, policy, tokenizer, others, demos, out, stages)
    report["seconds"] = {**trained, **stages}
    report["versions"] = {package: installed(package) for package in ("torch", "mujoco", "robosuite", "daps-robot")}
    report["configuration"] = {
        "evaluate": to_json(replace(config, policy=policy_run)),
        "policy": description,
        "tokenizer": tokenizer_description(description),
    }
    save_json(report, out / "report.json")
    page = write_page(out, policy, demos)
    print(f"report: {out / 'report.json'} and {page}")
    return report


def roll_out(
    config: RolloutConfig,
    env_id: str,
    policy: LatentPolicy,
    tokenizer: Tokenizer,
    others: Reconstructor,
    demos: DemoSet,
    out: Path,
    stages: dict[str, float],
) -> JSON:
    """Everything that needs the simulator; `stages` gets the seconds of each."""
    clock = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        stages[stage], clock = now - clock, now

    common: dict[str, Any] = {
        "max_steps": config.max_steps,
        "execute": config.execute,
        "slots": config.slots,
        "workers": config.workers,
    }
    video = out / "videos" if config.videos else None
    played = evaluate(
        env_id,
        policy,
        first_seed=config.first_seed,
        episodes=config.episodes,
        video=video,
        videos=config.videos,
        **common,
    )
    print(f"success rate {describe(played)}", flush=True)
    lap("rollouts")
    report: JSON = {}
    if policy.config.decoding.method == "expected":
        through_codes = policy.with_decoding(replace(policy.config.decoding, method="consensus"))
        codes = evaluate(env_id, through_codes, first_seed=config.first_seed, episodes=config.episodes, **common)
        print(f"  through one code sequence a plan (consensus) in place of the expected embedding {describe(codes)}", flush=True)
        report["codes_success_rate"], report["codes_ci95"] = codes.success_rate, list(codes.ci95)
        lap("codes_rollouts")
    assert played.observations is not None
    latency = plan_latency(policy, played.observations)
    lap("latency")
    report |= {
        "decoding": policy.config.decoding.method,
        "success_rate": played.success_rate,
        "successes": played.successes,
        "episodes": played.episodes,
        "ci95": list(played.ci95),
        "policy_latency_ms": {"p50": latency.p50, "p99": latency.p99},
        "rollouts": played.to_json(),
    }
    if config.ceiling_episodes:
        more = {**common, "episodes": config.ceiling_episodes, "first_seed": config.first_seed}
        try:
            ceiling = tokenizer_ceiling(env_id, tokenizer, **more)
            print(f"tokenizer ceiling {describe(ceiling)}", flush=True)
            other = tokenizer_ceiling(env_id, others, **{**more, "max_steps": min(config.max_steps, 100)})
            print(f"  with the codes of another chunk ({min(config.max_steps, 100)} steps) {describe(other)}", flush=True)
            report |= {
                "tokenizer_ceiling": ceiling.success_rate,
                "tokenizer_ceiling_ci95": list(ceiling.ci95),
                "ceiling_in_100_steps": sum(r.success and r.length <= 100 for r in ceiling.records) / ceiling.episodes,
                "other_codes_ceiling": other.success_rate,
                "other_codes_ceiling_ci95": list(other.ci95),
            }
        except SimulationError as error:  # an environment without an expert
            print(f"no tokenizer ceiling: {error}")
        lap("ceiling")
        held_out = demos.select(demos.valid)
        if any(demo.states is None for demo in held_out):
            print(f"no replay of held-out demonstrations: {demos.path} has no simulator states")
        else:
            try:
                tokenized = replay_demos(env_id, held_out, tokenizer=tokenizer, workers=config.workers)
                plain = replay_demos(env_id, held_out, workers=config.workers)
                print(
                    f"open-loop replay of held-out demonstrations {describe(tokenized)}, without the tokenizer {describe(plain)}"
                )
                report["replay_success"] = {"tokenized": tokenized.success_rate, "plain": plain.success_rate}
            except SimulationError as error:  # states of another simulator
                print(f"no replay of the held-out demonstrations of {demos.path}: {error}")
            lap("replay")
    return report


def describe(evaluation: Evaluation) -> str:
    low, high = evaluation.ci95
    return f"{evaluation.successes}/{evaluation.episodes} (95% interval {low:.1%} to {high:.1%})"


def reconstruction_rmse(tokenizer: Reconstructor, valid: ChunkDataset) -> list[float]:
    """Per action dimension, in action units, over the windows of the validation demonstrations."""
    squares, steps = torch.zeros(valid.actions.shape[1]), 0.0
    for index in torch.arange(len(valid)).split(256):
        batch = valid.gather(index)
        again = tokenizer.reconstruct(batch.actions.numpy(), batch.observations.numpy(), 7919 * index.numpy())
        error, n = squared_error(batch.actions, torch.from_numpy(again), batch.mask)
        squares, steps = squares + error, steps + float(n)
    return [float(value) for value in (squares / steps).sqrt()]


def stage_seconds(policy_run: Path, description: JSON) -> dict[str, float]:
    """How long the earlier stages took, one number a stage."""
    stages: dict[str, float] = {}
    for run in (Path(str(description.get("tokenizer"))), policy_run):
        if (run / "timing.json").is_file():
            found = load_json(run / "timing.json")
            if not isinstance(found, dict) or not all(isinstance(seconds, int | float) for seconds in found.values()):
                raise CheckpointError(f"{run / 'timing.json'} does not hold the seconds of stages: remove it, or train anew")
            stages |= found
    return stages


def tokenizer_description(description: JSON) -> JSON | None:
    path = Path(str(description.get("tokenizer"))) / "config.json"
    return load_json(path) if path.is_file() else None


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
