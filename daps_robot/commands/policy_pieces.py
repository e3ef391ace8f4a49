"""The pieces of `policy_run`, each the work of a process: it finds its job in a folder, and leaves its result there."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from daps_robot.checkpoints import has_state, kept_steps
from daps_robot.commands.cli import keep_freed_memory
from daps_robot.commands.distill_policy import DistillPolicy
from daps_robot.commands.distill_policy import run as distill
from daps_robot.commands.policy_run import LatencyJob, Learning, PolicyJob, RolloutJob, TokenizerJob, predicts_codes
from daps_robot.commands.train_action_vae import TrainActionVAE
from daps_robot.commands.train_action_vae import run as train_tokenizer
from daps_robot.commands.train_policy import TrainPolicy
from daps_robot.commands.train_policy import run as train_policy
from daps_robot.config import from_json, load_json, save_json
from daps_robot.data.chunks import ChunkDataset
from daps_robot.data.demos import EVAL_SEED_START, read_demos
from daps_robot.errors import DataError
from daps_robot.models.policies import load_policy
from daps_robot.models.policy import DecodingConfig, LatentPolicy, Method
from daps_robot.rollout.ceiling import tokenizer_ceiling
from daps_robot.rollout.evaluate import evaluate
from daps_robot.rollout.latency import plan_latency
from daps_robot.rollout.results import Evaluation
from daps_robot.rollout.simulation import EXPERT, find_spec, make_env
from daps_robot.training.logger import read_rows
from daps_robot.training.objective import TrainerConfig
from daps_robot.types import JSON, SizedPolicy, plan_request

VALIDATIONS = 10
"""Of a policy's training, evenly spread: its best model is the best of so many, and the last ones are the last of so many."""

SLOTS = 25
LATENCY_CALLS, LATENCY_ROUNDS = 100, 3


def tokenizer_piece(folder: str, dataset: str) -> None:
    """Train a tokenizer, or go on training it."""
    place, job = _begin(folder, TokenizerJob)
    command, learning = TrainActionVAE.default(["--estimator", job.estimator]), job.learning
    _check_unchanged(dataset, learning)
    settings: Any = command.settings
    if warm := getattr(settings, "warm_start_steps", 0):
        settings = replace(settings, warm_start_steps=round(learning.budget * warm))
    trainer = within(command.trainer, learning.budget, job.seed)
    given: Any = {"dataset": dataset, "demonstrations": learning.demonstrations, "env": learning.env}
    command = replace(command, obs_rotation=job.obs_rotation, **given)
    train_tokenizer(replace(command, tokenizer=job.tokenizer, settings=settings, trainer=trainer, **_sitting(place)))
    save_json({"seconds": train_seconds(place)}, place / "result.json")


def policy_piece(folder: str, dataset: str) -> None:
    """Train a policy, or go on training it."""
    place, job = _begin(folder, PolicyJob)
    learning = job.learning
    _check_unchanged(dataset, learning)
    given: Any = {"dataset": dataset, "demonstrations": learning.demonstrations, "env": learning.env, **_sitting(place)}
    given["obs_rotation"] = job.obs_rotation

    def trainer(default: TrainerConfig) -> TrainerConfig:
        scaled = within(default, learning.budget, job.seed)
        return replace(scaled, eval_every=max(1, scaled.max_steps // VALIDATIONS), keep_last=VALIDATIONS if job.keep else 0)

    if predicts_codes(job.policy):
        command = DistillPolicy(tokenizer=place.parent / "tokenizer", codes=job.codes)
        networks = replace(command.policy, history=job.history or command.policy.history)
        best = distill(replace(command, policy=networks, trainer=trainer(command.trainer), **given))
    else:
        rival = TrainPolicy.default(["--policy", job.policy])
        settings = replace(rival.settings, history=job.history or rival.settings.history)
        best = train_policy(replace(rival, settings=settings, trainer=trainer(rival.trainer), **given))
    policy = load_policy(place / "model")
    tokenizer = getattr(policy, "tokenizer", None)
    result = {
        "seconds": train_seconds(place),
        "best_step": best["step"],
        "kept": kept_steps(place / "checkpoints"),
        "bits": tokenizer.bits if tokenizer is not None else None,
        "parameters": sum(p.numel() for p in policy.parameters()),
        "horizon": policy.horizon,
        "execute": policy.execute,
    }
    save_json(result, place / "result.json")


def rollout_piece(folder: str, workers: str) -> None:
    """Play episodes with a saved policy; outcomes do not depend on the number of workers."""
    place, job = _begin(folder, RolloutJob)
    policy = choosing(load_policy(place.parent / job.model), job.method)
    _save_outcomes(place, evaluate(job.env, policy, **_how(job, workers)))


def ceiling_piece(folder: str, workers: str, policy: str) -> None:
    """Play episodes with the scripted expert, through the tokenizer of a saved policy."""
    place, job = _begin(folder, RolloutJob)
    if not has_expert(job.env):
        save_json({"missing": f"{job.env} has no scripted expert"}, place / "result.json")
        return
    latent: Any = load_policy(place.parent / policy)
    _save_outcomes(place, tokenizer_ceiling(job.env, latent.tokenizer, **_how(job, workers)))


def choosing(policy: SizedPolicy, method: Method) -> SizedPolicy:
    """The policy, told how to choose its codes if it has any."""
    return policy.with_decoding(DecodingConfig(method)) if isinstance(policy, LatentPolicy) else policy


def _how(job: RolloutJob, workers: str) -> dict[str, Any]:
    return {
        "first_seed": EVAL_SEED_START,
        "episodes": job.episodes,
        "execute": job.execute,
        "slots": SLOTS,
        "workers": None if workers == "None" else int(workers),
        "progress": False,
        "max_steps": job.max_steps,
    }


def _save_outcomes(place: Path, found: Evaluation) -> None:
    print(f"{place.parent.name}, {place.name}: {found}", flush=True)
    names = ("success", "length", "score")
    save_json({name: [getattr(record, name) for record in found.records] for name in names}, place / "result.json")


def latency_piece(folder: str) -> None:
    """Time policies on held-out observations, in turns, each call by itself: whatever else the machine does meets all alike."""
    place, job = _begin(folder, LatencyJob)
    timed = {}
    for name, model in job.models.items():
        policy = choosing(load_policy(Path(model)), job.method)
        demos = read_demos(Path(job.dataset), policy.obs_keys, cameras=policy.cameras, picture_size=policy.picture_size)
        held_out = ChunkDataset(demos.select(demos.valid), policy.obs_keys, 1, policy.history)
        request = plan_request(held_out.gather(index := torch.arange(min(LATENCY_CALLS, len(held_out)))), index)
        timed[name] = policy, request
    found: dict[str, list[JSON]] = {name: [] for name in timed}
    for _ in range(LATENCY_ROUNDS):
        for name, (policy, asked) in timed.items():
            found[name].append(plan_latency(policy, asked.observations, images=asked.images, n=LATENCY_CALLS).to_json())
    middle = LATENCY_ROUNDS // 2
    save_json(
        {name: {p: sorted(each[p] for each in rounds)[middle] for p in ("p50", "p99")} for name, rounds in found.items()},
        place / "result.json",
    )


def _begin(folder: str, kind: type[Any]) -> tuple[Path, Any]:
    """The folder and the job of a piece."""
    keep_freed_memory()
    place = Path(folder)
    return place, from_json(kind, load_json(place / "job.json"), str(place / "job.json"))


def _check_unchanged(dataset: str, learning: Learning) -> None:
    """Raises DataError where the data set is no longer the one that the study began with."""
    if read_demos(Path(dataset)).sha256 != learning.sha256:
        raise DataError(f"{dataset} is not what it was when the study began: start the study again once it stays as it is")


def _sitting(place: Path) -> dict[str, Any]:
    """Whether a run begins or goes on. What left no state, such as a table that is fitted in one go, begins again."""
    started = has_state(place)
    return {"out": place, "resume": started, "overwrite": not started}


def within(trainer: TrainerConfig, budget: float, seed: int) -> TrainerConfig:
    """A training cut to a share of its steps."""
    steps = max(1, round(budget * trainer.max_steps))
    return replace(trainer, max_steps=steps, eval_every=min(trainer.eval_every, steps), seed=seed, tensorboard=False)


def train_seconds(run: Path) -> float:
    """Seconds of training, validations left out, over all sittings."""
    return [row["train_seconds"] for row in read_rows(run / "metrics.jsonl") if row["split"] == "valid"][-1]


def has_expert(env_id: str) -> bool:
    """Whether an environment has what a ceiling needs."""
    with closing(make_env(find_spec(env_id), {})) as env:
        return all(hasattr(env.unwrapped, name) for name in EXPERT)
