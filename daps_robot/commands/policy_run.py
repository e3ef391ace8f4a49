"""One policy of a study with one seed: trained and rolled out piece by piece, each a process of its own (see `pieces`).

    <run>/tokenizer/       of a policy that predicts codes: the run of train_action_vae.py
    <run>/policy/          the run of distill_policy.py or train_policy.py
    <run>/best-n100/       100 rollouts of the best validation's model
    <run>/step-<s>-n100/   of the models of the last validations
    <run>/ceiling-n50/     of the scripted expert through the tokenizer

A name after them tells apart what shares a tokenizer (policy-most-likely-h1) or a policy (best-consensus-e8-n100).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daps_robot.commands.distill_policy import fingerprint
from daps_robot.commands.piece_results import PolicyResult, TokenizerResult, check_outcomes
from daps_robot.commands.pieces import result_of
from daps_robot.commands.rollout_env import check_counts
from daps_robot.commands.train_action_vae import ChunkTokenizerConfig, TrainActionVAE, check_table_options
from daps_robot.commands.train_policy import TrainPolicy, policy_class
from daps_robot.config import from_json
from daps_robot.data.demos import DemoSet
from daps_robot.data.quaternions import ObservedRotation, quaternion_columns
from daps_robot.errors import ConfigError, DataError
from daps_robot.estimators.fitted import FITTED
from daps_robot.models.policies import POLICIES
from daps_robot.models.policy import Method
from daps_robot.training.distill import CodeSource
from daps_robot.types import JSON


@dataclass(frozen=True)
class Study:
    """What every study of policies is told.

    Attributes:
        dataset: a name of the catalogue or a robomimic HDF5 file.
        seeds: runs of each, from seed 0 on; a claim needs three.
        episodes: of each model, on the same start states for all.
        ceiling_episodes: of the scripted expert through each tokenizer; 0 leaves the ceilings out.
        max_steps: control steps of an episode; by default the environment's own limit.
        env: Gymnasium id to roll out in; by default the one that the data set names.
        name: of the study; by default the data set's, of a sweep <data set>-<what varies>.
        budget: share of the training steps that each policy has by default, to explore with.
        workers: simulator processes; by default one a core. Changes no figure.
        tokenizer: the networks of all tokenizers, but for what a sweep varies.
        history: observations that every policy sees; by default each one's own number.
        method: how policies that predict codes choose them, as `evaluate.py --method`.
        obs_rotation: let all networks that see observations see quaternions as 6-D rotations (see `quaternions`).
    """

    dataset: str = "lift"
    seeds: int = 3
    episodes: int = 100
    ceiling_episodes: int = 50
    max_steps: int | None = None
    env: str | None = None
    name: str | None = None
    budget: float = 1.0
    workers: int | None = None
    tokenizer: ChunkTokenizerConfig = field(default_factory=ChunkTokenizerConfig)
    history: int | None = None
    method: Method = "auto"
    obs_rotation: ObservedRotation = "as-recorded"

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.episodes < 2 or self.ceiling_episodes == 1:
            raise ConfigError("a study needs --seeds from 1 and --episodes from 2 (ceilings: none, or from 2)")
        check_counts(self.workers, self.max_steps)
        if self.history is not None and self.history < 1:
            raise ConfigError(f"--history {self.history}: a policy sees one observation or more")
        if not 0 < self.budget <= 100:
            raise ConfigError(f"--budget {self.budget} is a share of each policy's training steps, above 0")

    @property
    def said(self) -> dict[str, Any]:
        """What it says of every `PolicyRun`."""
        names = ("episodes", "ceiling_episodes", "max_steps", "tokenizer", "history", "method", "obs_rotation")
        return {name: getattr(self, name) for name in names}


PIECES = "daps_robot.commands.policy_pieces"
"""The module whose functions run in the processes."""


@dataclass(frozen=True)
class Learning:
    """What tokenizers and policies of a study learn from, and for how long.

    Attributes:
        sha256: of the data set, wherever it lies.
        env: Gymnasium id of the rollouts.
        demonstrations: of the training split, drawn by the seed; None for all.
        budget: share of the training steps that each has by default.
    """

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
    obs_rotation: ObservedRotation = "as-recorded"


@dataclass(frozen=True)
class PolicyJob:
    """A policy to train; one that predicts codes is distilled from the tokenizer beside it.

    Attributes:
        tokenizer: fingerprint of that tokenizer.
        keep: whether to keep the models of all validations.
        history: observations that it sees; None for its own number.
        obs_rotation: how it sees quaternions.
    """

    policy: str
    seed: int
    learning: Learning
    codes: CodeSource
    tokenizer: str | None = field(metadata={"made_of": "tokenizer"})
    keep: bool
    history: int | None = None
    obs_rotation: ObservedRotation = "as-recorded"


@dataclass(frozen=True)
class RolloutJob:
    """A saved policy to roll out, or the scripted expert through its tokenizer.

    Attributes:
        model: the policy's directory, from the folder of the run; None for the expert through the tokenizer.
        fingerprint: of that model, or of the tokenizer.
        env: Gymnasium id.
        episodes: on the start states EVAL_SEED_START + i.
        max_steps: control steps of an episode; None for the environment's own limit.
        execute: steps executed of a chunk.
        method: how a policy that predicts codes chooses them.
    """

    model: str | None
    fingerprint: str = field(metadata={"made_of": "model"})
    env: str
    episodes: int
    max_steps: int | None
    execute: int
    method: Method = "auto"


@dataclass(frozen=True)
class LatencyJob:
    """Saved policies to be timed in turns: name → directory, and name → what it was made of."""

    dataset: str
    models: dict[str, str]
    fingerprints: dict[str, str]
    method: Method = "auto"


@dataclass(frozen=True)
class PolicyRun:
    """A policy of a study.

    Attributes:
        policy: an estimator of codes, whose tokenizer is trained first, or a policy without tokenizer.
        seed: of both trainings.
        dataset: where the data set lies.
        learning: what from, for how long, and where it is rolled out.
        tokenizer: its networks.
        codes: that the policy learns from.
        last: models of the last validations to be rolled out beside the best; None where none need be kept.
        episodes: of each.
        ceiling_episodes: of the scripted expert through the tokenizer.
        max_steps: see `RolloutJob`.
        execute: steps executed of a chunk; None for the policy's own.
        method: how a policy that predicts codes chooses them.
        history, obs_rotation: see `PolicyJob`.
    """

    policy: str
    seed: int
    dataset: str
    learning: Learning
    tokenizer: ChunkTokenizerConfig = field(default_factory=ChunkTokenizerConfig)
    codes: CodeSource = "sampled"
    last: int | None = None
    episodes: int = 100
    ceiling_episodes: int = 0
    max_steps: int | None = None
    execute: int | None = None
    method: Method = "auto"
    history: int | None = None
    obs_rotation: ObservedRotation = "as-recorded"


def predicts_codes(policy: str) -> bool:
    """Whether a policy of this name is distilled from a tokenizer, whose estimator the name then is."""
    return policy not in POLICIES


def usual_method(policy: str) -> Method | None:
    """How a policy of this name chooses its codes unless told otherwise; None where it has none."""
    if not predicts_codes(policy):
        return None
    return "consensus" if policy in FITTED else "expected"


def check_policy(name: str, tokenizer: ChunkTokenizerConfig, method: Method = "auto") -> None:
    """Whether there is such a policy and what it needs, before anything is trained.

    Raises:
        ConfigError: it is neither an estimator with codes nor a policy, a package that it needs is not installed, or it has no
            networks to which options of the tokenizer, or the expectation over codes, would apply.
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
    if name in FITTED:
        check_table_options(name, tokenizer)
        if method == "expected":
            raise ConfigError(f"codes of {name} have no embeddings to mix: leave it out of --policies, or take another --method")


def horizon_of(name: str, tokenizer: ChunkTokenizerConfig) -> int:
    """Steps of a policy's chunks."""
    return tokenizer.horizon if predicts_codes(name) else TrainPolicy.default(["--policy", name]).settings.horizon


def check_horizon(name: str, tokenizer: ChunkTokenizerConfig, demos: DemoSet) -> None:
    """Raises DataError where a demonstration is shorter than a policy's chunks."""
    shortest, horizon = min(demos.demos, key=len), horizon_of(name, tokenizer)
    if len(shortest) < horizon:
        raise DataError(
            f"{demos.path}: {shortest.name} has {len(shortest)} steps, fewer than a chunk of {horizon} of {name}: "
            "take shorter chunks, or leave the demonstration out"
        )


def check_rotation(study: Study, demos: DemoSet) -> None:
    """Raises ConfigError or DataError where policies are to see 6-D rotations of quaternions that are not there, or are none."""
    if study.obs_rotation != "as-recorded":
        quaternion_columns(demos)


def run_policy(folder: Path, run: PolicyRun, workers: int | None) -> JSON:
    """What all pieces of a run found; those that are not there yet are run."""
    learning, seed = run.learning, run.seed
    seconds, tokenizer_made = {}, None
    if predicts_codes(run.policy):
        observes = run.obs_rotation if run.tokenizer.condition_decoder else "as-recorded"
        job = TokenizerJob(run.policy, seed, learning, run.tokenizer, observes)
        seconds["tokenizer"] = piece("tokenizer_piece", folder / "tokenizer", job, run.dataset, kind=TokenizerResult)["seconds"]
        tokenizer_made = fingerprint(folder / "tokenizer" / "model")
    trained = ("" if run.codes == "sampled" else f"-{run.codes}") + (f"-h{run.history}" if run.history else "")
    trained += "" if run.obs_rotation == "as-recorded" else f"-{run.obs_rotation}"
    place = f"policy{trained}"
    keep = run.last is not None
    to_train = PolicyJob(run.policy, seed, learning, run.codes, tokenizer_made, keep, run.history, run.obs_rotation)
    policy = piece("policy_piece", folder / place, to_train, run.dataset, kind=PolicyResult)
    seconds["policy"] = policy["seconds"]
    execute = run.execute or policy["execute"]
    executed = "" if execute == policy["execute"] else f"-e{execute}"
    usual = usual_method(run.policy)
    method: Method = "auto" if usual in (None, run.method) else run.method
    decoded = "" if method == "auto" else f"-{method}"

    def roll_out(name: str, model: str) -> JSON:
        made = fingerprint(folder / place / model)
        job = RolloutJob(f"{place}/{model}", made, learning.env, run.episodes, run.max_steps, execute, method)
        return piece("rollout_piece", folder / f"{name}{trained}{decoded}{executed}-n{run.episodes}", job, str(workers))

    result: JSON = {
        "policy": run.policy,
        "seed": seed,
        **{name: policy[name] for name in ("bits", "parameters", "horizon", "best_step")},
        "execute": execute,
        "method": usual if method == "auto" else method,
        "history": run.history,
        "obs_rotation": run.obs_rotation,
        "model": str(folder / place / "model"),
        "seconds": seconds,
        "best": roll_out("best", "model"),
        "last": {
            step: roll_out(f"step-{step}", f"checkpoints/{step}")
            for step in policy["kept"][len(policy["kept"]) - (run.last or 0) :]
        },
        "ceiling": None,
    }
    if policy["bits"] is not None and run.ceiling_episodes:
        assert tokenizer_made is not None
        ceiling = RolloutJob(None, tokenizer_made, learning.env, run.ceiling_episodes, run.max_steps, execute)
        # whichever policy the tokenizer is read from: it is the same
        played = folder / f"ceiling{executed}-n{run.ceiling_episodes}"
        result["ceiling"] = piece("ceiling_piece", played, ceiling, str(workers), f"{place}/model")
    return result


def piece(function: str, folder: Path, job: Any, *arguments: str, kind: type | None = None) -> JSON:
    """The result of a training, a `kind`, or of rollouts."""

    def check(found: JSON) -> None:
        if kind is None:
            check_outcomes(found, job.episodes)
        else:
            from_json(kind, found, "result")

    return result_of(f"{PIECES}:{function}", folder, job, *arguments, check=check)
