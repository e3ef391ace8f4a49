"""Distil a policy: predict the tokenizer's codes from observations."""

from __future__ import annotations

import glob
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from daps_robot import parallel
from daps_robot.commands.rollout_env import check_rollout_env
from daps_robot.commands.train_action_vae import split
from daps_robot.config import load_json, save_json
from daps_robot.data.catalog import dataset_name, fetch
from daps_robot.data.demos import DemoSet, read_demos
from daps_robot.data.lerobot import folder_sha256
from daps_robot.data.normalize import Scaler
from daps_robot.data.quaternions import ObservedRotation, observed_quaternions
from daps_robot.data.rotations import expand_quaternions
from daps_robot.errors import CheckpointError
from daps_robot.models.action_tokenizer import load_tokenizer
from daps_robot.models.blocks import TransformerConfig
from daps_robot.models.code_model import CodeModelConfig
from daps_robot.models.frontends import ChunkFrontEndConfig, ObservationFrontEndConfig
from daps_robot.models.policy import LatentPolicy, PolicyConfig
from daps_robot.models.tokenizer import TokenizerConfig
from daps_robot.models.vision import front_end_for
from daps_robot.training.distill import CodeSource, DistillObjective
from daps_robot.training.imitation import action_scale
from daps_robot.training.objective import TrainerConfig
from daps_robot.training.optimizer import OptimizerConfig
from daps_robot.training.trainer import Trainer
from daps_robot.types import JSON, SizedPolicy


@dataclass(frozen=True)
class LatentPolicyConfig:
    """The policy's networks.

    Attributes:
        history: observations it sees, n.
        width: embedding width.
        layers: encoder and decoder layers, each.
        heads: attention heads.
        autoregressive: condition each code on those before it.
        offset_head: add a predicted offset to the decoded chunk, as VQ-BeT does.
    """

    history: int = 2
    width: int = 128
    layers: int = 2
    heads: int = 4
    autoregressive: bool = True
    offset_head: bool = False


@dataclass(frozen=True)
class DistillPolicy:
    """Distil a policy that predicts the tokenizer's codes from observations.

    Attributes:
        dataset: a name of the catalogue, a robomimic HDF5 file or a LeRobot folder; by default the one that the tokenizer was
            trained on.
        tokenizer: directory of a tokenizer's run; by default the newest (of the data set, if one is named).
        out: directory of the run; by default `policy` beside the tokenizer's.
        resume: go on with an interrupted run in that directory.
        overwrite: throw a run away that is in that directory.
        codes: learn from codes sampled from q(z|x), or from its most likely ones.
        cameras: whose pictures it sees, such as agentview robot0_eye_in_hand (scripts/render_demos.py makes them); by default
            none, and numbers alone.
        picture_size: height and width that the pictures of a LeRobot folder are scaled to; by default they stay as they are.
        obs_keys: observation keys; by default the low-dimensional ones of the file, beside cameras without `object`: where things
            are, they are to see.
        obs_rotation: let the networks see quaternions (the keys that end in _quat, and those inside of other keys) as 6-D
            rotations, which know no sign and no jumps.
        env: Gymnasium id to roll out in, or "none"; by default what the tokenizer was trained with, else what the data set names.
        demonstrations: learn from so many of the training split, drawn by the seed; by default from as many as the tokenizer did.
        policy: the networks.
        trainer: how long and on what.
    """

    dataset: str | None = None
    tokenizer: Path | None = None
    out: Path | None = None
    resume: bool = False
    overwrite: bool = False
    codes: CodeSource = "sampled"
    cameras: tuple[str, ...] = ()
    picture_size: tuple[int, int] | None = None
    obs_keys: tuple[str, ...] = ()
    obs_rotation: ObservedRotation = "as-recorded"
    env: str | None = None
    demonstrations: int | None = None
    policy: LatentPolicyConfig = field(default_factory=LatentPolicyConfig)
    trainer: TrainerConfig = field(
        default_factory=lambda: TrainerConfig(
            max_steps=1500,
            batch_size=128,
            optimizer=OptimizerConfig(lr=2e-3, weight_decay=1e-2, warmup_steps=50, decay_fraction=0.5, clip="norm", ema=0.995),
        )
    )


def run(config: DistillPolicy) -> dict[str, float]:
    """Distil; the metrics of the best validation. The policy lies in <out>/model."""
    started = time.perf_counter()
    name = dataset_name(config.dataset) if config.dataset else None
    tokenizer_run = config.tokenizer or newest_run("tokenizer", name)
    tokenizer = load_tokenizer(tokenizer_run / "model")
    dataset = config.dataset or run_description(tokenizer_run)["dataset"]["path"]
    count = inherited_demonstrations(config, tokenizer_run)
    config = replace(config, env=config.env or env_of(tokenizer_run), demonstrations=count)
    demos = read_demos(fetch(dataset), config.obs_keys or None, cameras=config.cameras, picture_size=config.picture_size)
    demos = demos.fewer(config.demonstrations, config.trainer.seed)
    if isinstance(tokenizer.config, TokenizerConfig) and not isinstance(tokenizer.config.front_end, ChunkFrontEndConfig):
        raise CheckpointError(f"the tokenizer in {tokenizer_run} is one of pictures: a policy needs one of action chunks")
    if demos.demos[0].actions.shape[1] != tokenizer.action_dim:
        raise CheckpointError(
            f"the tokenizer in {tokenizer_run} encodes actions of {tokenizer.action_dim} dimensions, "
            f"{demos.path} has {demos.demos[0].actions.shape[1]}: train a tokenizer on this data set"
        )
    check_rollout_env(demos, config.env, demos.obs_keys)
    out = config.out or tokenizer_run.parent / "policy"
    train, valid = split(demos, tokenizer.horizon, config.policy.history)
    quaternions = observed_quaternions(demos, config.obs_rotation)
    observations = expand_quaternions(train.observations, quaternions).numpy()
    torch.manual_seed(config.trainer.seed)
    codes, size = tokenizer.config.codes, config.policy
    transformer = TransformerConfig(size.width, size.heads, size.layers)
    networks = PolicyConfig(
        tokenizer=tokenizer.config,
        obs_keys=demos.obs_keys,
        front_end=ObservationFrontEndConfig(
            size.history, observations.shape[1], transformer=transformer, pictures=front_end_for(train)
        ),
        codes=CodeModelConfig(codes.positions, codes.vocabulary, size.autoregressive, transformer),
        offset_head=size.offset_head,
        quaternions=quaternions,
        cameras=train.cameras,
        obs_dims=tuple(demos.obs_dims.values()),
    )
    policy = LatentPolicy(networks, tokenizer, Scaler.fit(observations))
    print(f"distilling the tokenizer of {tokenizer_run} on {len(train)} windows of {demos.path}", flush=True)
    description = {
        "command": replace(config, out=None, resume=False, overwrite=False),
        "dataset": {"path": str(demos.path), "sha256": demos.sha256},
        "tokenizer": str(tokenizer_run),
        "tokenizer_sha256": fingerprint(tokenizer_run / "model"),
    }
    objective = DistillObjective(policy, valid, action_scale(train, demos.action_units), config.codes)
    metrics = Trainer(config.trainer, out, description).fit(objective, train, config.resume, config.overwrite)
    if parallel.is_main():
        save_json({"policy": time.perf_counter() - started}, out / "timing.json")
    accuracy = " ".join(f"{metrics[f'accuracy/{i}']:.2f}" for i in range(codes.positions))
    print(f"validation: {metrics['nll']:.2f} nats a chunk, accuracy per position {accuracy}; policy in {out}")
    return metrics


def fingerprint(model: Path) -> str:
    """SHA-256 of a saved model's files: what was made with another one is told from it.

    Raises:
        CheckpointError: there is none.
    """
    files = [file for file in model.rglob("*") if file.is_file() and file.name != "README.md"]  # which is about it
    if not files:
        raise CheckpointError(f"{model} is gone: delete {model.parent} to train it anew")
    return folder_sha256(model, files)


def newest_run(kind: str, name: str | None, root: Path = Path("runs")) -> Path:
    """The newest finished run of a kind ("tokenizer", "policy"), of one data set or of any.

    Raises:
        CheckpointError: there is none.
    """
    runs = list(root.glob(f"{glob.escape(name) if name else '*'}/{kind}/timing.json"))  # the last file that a run writes
    if not runs:
        if begun := sorted(root.glob(f"{glob.escape(name) if name else '*'}/{kind}/config.json")):
            raise CheckpointError(f"the {kind} in {begun[0].parent} was not trained to the end: repeat its command with --resume")
        script = {"tokenizer": "train_action_vae.py", "policy": "distill_policy.py"}[kind]
        raise CheckpointError(f"no trained {kind} under {root / (name or '*')}: run scripts/{script} first, or pass --{kind}")
    return max(runs, key=lambda path: path.stat().st_mtime).parent


def inherited_demonstrations(config: DistillPolicy, tokenizer_run: Path) -> int | None:
    """How many demonstrations to learn from: as many as asked for, else as the tokenizer's run, which is said."""
    count = command_of(tokenizer_run).get("demonstrations")
    if config.demonstrations is not None or not isinstance(count, int):
        return config.demonstrations
    print(f"learning from {count} training demonstrations, as many as the tokenizer did (--demonstrations)", flush=True)
    return count


def env_of(directory: Path) -> str | None:
    """The --env that a run was trained with, if any."""
    path = directory / "config.json"
    return env_in(load_json(path) if path.is_file() else None)


def env_in(description: Any) -> str | None:
    """The --env in the config.json of a run, if any."""
    env = command_in(description).get("env")
    return env if isinstance(env, str) else None


def command_of(directory: Path) -> JSON:
    """The command that a run was trained by, as far as its config.json says."""
    path = directory / "config.json"
    return command_in(load_json(path) if path.is_file() else None)


def command_in(description: Any) -> JSON:
    """The command in the config.json of a run, as far as there is one."""
    command = description.get("command") if isinstance(description, dict) else None
    return command if isinstance(command, dict) else {}


def check_trained_on(policy: SizedPolicy, policy_run: Path, demos: DemoSet) -> None:
    """Raises CheckpointError where a policy takes other numbers than a data set has."""
    observed, dims = policy.obs_dims or policy.observation_dim, demos.obs_dims
    if (demos.action_dim, dims if policy.obs_dims else sum(dims.values())) != (policy.action_dim, observed):
        raise CheckpointError(
            f"the policy in {policy_run} maps observed values ({observed}) to {policy.action_dim} action dimensions, "
            f"{demos.path} has {dims} and {demos.action_dim}: pass the data set it was trained on"
        )


def run_description(directory: Path) -> dict[str, Any]:
    """The config.json of a run."""
    path = directory / "config.json"
    return with_dataset(load_json(path), path)


def with_dataset(description: Any, path: Path) -> dict[str, Any]:
    """What a run says of itself, in that file.

    Raises:
        CheckpointError: the data set is not in it.
    """
    dataset = description.get("dataset") if isinstance(description, dict) else None
    if not isinstance(dataset, dict) or not isinstance(dataset.get("path"), str):
        raise CheckpointError(f"{path} does not say which data set the run used: train anew, or copy the file again")
    return description
