"""One policy of a study with one seed: trained and rolled out piece by piece, each a process of its own (see `pieces`).

    <run>/tokenizer/       of a policy that predicts codes: the run of train_action_vae.py
    <run>/policy/          the run of distill_policy.py or train_policy.py
    <run>/best/            rollouts of the best validation's model
    <run>/step-<n>/        of the models of the last validations
    <run>/ceiling/         of the scripted expert through the tokenizer

A name after them tells apart what shares a tokenizer (policy-most-likely) or a policy (best-e8).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daps_robot.commands.pieces import result_of
from daps_robot.commands.train_action_vae import ChunkTokenizerConfig, TrainActionVAE
from daps_robot.commands.train_policy import policy_class
from daps_robot.errors import ConfigError
from daps_robot.models.policies import POLICIES
from daps_robot.training.distill import CodeSource
from daps_robot.types import JSON

PIECES = "daps_robot.commands.policy_pieces"
"""The module whose functions run in the processes."""


@dataclass(frozen=True)
class Learning:
    """What tokenizers and policies of a study learn from, and for how long.

    Attributes:
        dataset: a robomimic HDF5 file.
        sha256: of the file.
        env: Gymnasium id of the rollouts.
        demonstrations: of the training split, drawn by the seed; None for all.
        budget: share of the training steps that each has by default.
    """

    dataset: str
    sha256: str
    env: str
    demonstrations: int | None = None
    budget: float = 1.0


@dataclass(frozen=True)
class TokenizerJob:
    """A tokenizer to train."""

    estimator: str
    seed: int
    learning: Learning
    tokenizer: ChunkTokenizerConfig


@dataclass(frozen=True)
class PolicyJob:
    """A policy to train; one that predicts codes is distilled from the tokenizer beside it."""

    policy: str
    seed: int
    learning: Learning
    codes: CodeSource
    keep_last: int


@dataclass(frozen=True)
class RolloutJob:
    """A saved policy to roll out, or the scripted expert through its tokenizer.

    Attributes:
        model: the policy's directory, from the folder of the run; None for the expert through the tokenizer.
        env: Gymnasium id.
        episodes: on the start states EVAL_SEED_START + i.
        max_steps: control steps of an episode; None for the environment's own limit.
        execute: steps executed of a chunk.
    """

    model: str | None
    env: str
    episodes: int
    max_steps: int | None
    execute: int


@dataclass(frozen=True)
class LatencyJob:
    """Saved policies to be timed in turns: name → directory."""

    dataset: str
    models: dict[str, str]


@dataclass(frozen=True)
class PolicyRun:
    """A policy of a study.

    Attributes:
        policy: an estimator of codes, whose tokenizer is trained first, or a policy without tokenizer.
        seed: of both trainings.
        learning: what from, for how long, and where it is rolled out.
        tokenizer: its networks.
        codes: that the policy learns from.
        last: models of the last validations to be rolled out beside the best.
        episodes: of each.
        ceiling_episodes: of the scripted expert through the tokenizer.
        max_steps: see `RolloutJob`.
        execute: steps executed of a chunk; None for the policy's own.
    """

    policy: str
    seed: int
    learning: Learning
    tokenizer: ChunkTokenizerConfig = field(default_factory=ChunkTokenizerConfig)
    codes: CodeSource = "sampled"
    last: int = 0
    episodes: int = 100
    ceiling_episodes: int = 0
    max_steps: int | None = None
    execute: int | None = None


def predicts_codes(policy: str) -> bool:
    """Whether a policy of this name is distilled from a tokenizer, whose estimator the name then is."""
    return policy not in POLICIES


def check_policy(name: str) -> None:
    """Whether there is such a policy and what it needs, before anything is trained.

    Raises:
        ConfigError: it is neither an estimator with codes nor a policy, or a package that it needs is not installed.
    """
    if not predicts_codes(name):
        policy_class(name).import_extra()
        return
    if name == "vae":
        raise ConfigError("a vae has no codes that a policy could predict: leave it out of --policies")
    try:
        TrainActionVAE.default(["--estimator", name])
    except ConfigError as error:
        others = ", ".join(each for each in POLICIES if each != "policy")
        raise ConfigError(f"{error} Or a policy without tokenizer: {others}.") from error


def run_policy(folder: Path, run: PolicyRun, workers: int | None) -> JSON:
    """What all pieces of a run found; those that are not there yet are run."""
    learning, seed = run.learning, run.seed
    seconds = {}
    if predicts_codes(run.policy):
        tokenizer = piece("tokenizer_piece", folder / "tokenizer", TokenizerJob(run.policy, seed, learning, run.tokenizer))
        seconds["tokenizer"] = tokenizer["seconds"]
    source = "" if run.codes == "sampled" else f"-{run.codes}"
    place = f"policy{source}"
    policy = piece("policy_piece", folder / place, PolicyJob(run.policy, seed, learning, run.codes, run.last))
    seconds["policy"] = policy["seconds"]
    execute = run.execute or policy["execute"]
    executed = f"-e{run.execute}" if run.execute else ""

    def roll_out(name: str, model: str) -> JSON:
        job = RolloutJob(f"{place}/{model}", learning.env, run.episodes, run.max_steps, execute)
        return piece("rollout_piece", folder / f"{name}{source}{executed}", job, str(workers))

    result: JSON = {
        "policy": run.policy,
        "seed": seed,
        **{name: policy[name] for name in ("bits", "parameters", "horizon", "best_step")},
        "execute": execute,
        "seconds": seconds,
        "best": roll_out("best", "model"),
        "last": {step: roll_out(f"step-{step}", f"checkpoints/{step}") for step in policy["kept"]},
        "ceiling": None,
    }
    if policy["bits"] is not None and run.ceiling_episodes:
        job = RolloutJob(None, learning.env, run.ceiling_episodes, run.max_steps, execute)
        # whichever policy the tokenizer is read from: it is the same
        result["ceiling"] = piece("ceiling_piece", folder / f"ceiling{executed}", job, str(workers), f"{place}/model")
    return result


def piece(function: str, folder: Path, job: Any, *arguments: str) -> JSON:
    return result_of(f"{PIECES}:{function}", folder, job, *arguments)


def environment(asked: str | None, named: str | None, path: Path) -> str:
    """The Gymnasium id to roll out in: the one that was asked for, else the one that the data set names.

    Raises:
        ConfigError: there is neither.
    """
    if asked is None and named is None:
        raise ConfigError(f"{path} names no environment to roll out in: pass --env")
    return asked or str(named)
