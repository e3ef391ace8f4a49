"""Train a policy without a tokenizer, to compare the latent ones with."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from daps_robot import parallel
from daps_robot.commands.cli import given
from daps_robot.commands.rollout_env import check_rollout_env
from daps_robot.commands.train_action_vae import split
from daps_robot.config import save_json
from daps_robot.data.catalog import dataset_name, fetch
from daps_robot.data.demos import read_demos
from daps_robot.data.quaternions import ObservedRotation, observed_quaternions
from daps_robot.errors import ConfigError
from daps_robot.estimators import ESTIMATORS
from daps_robot.estimators.fitted import FITTED
from daps_robot.models.imitation import ImitationPolicy, PolicySettings
from daps_robot.models.policies import POLICIES
from daps_robot.models.policy import LatentPolicy
from daps_robot.models.regression import RegressionSettings
from daps_robot.registry import unknown_name
from daps_robot.training.imitation import ImitationObjective, action_scale
from daps_robot.training.objective import TrainerConfig
from daps_robot.training.optimizer import OptimizerConfig
from daps_robot.training.trainer import Trainer


def trainer(max_steps: int, batch_size: int, lr: float, weight_decay: float) -> TrainerConfig:
    """What suits a policy on two processor cores: a few minutes, with the average of the weights."""
    optimizer = OptimizerConfig(lr, weight_decay, warmup_steps=50, decay_fraction=0.5, clip="norm", ema=0.995)
    return TrainerConfig(max_steps=max_steps, batch_size=batch_size, optimizer=optimizer)


TRAINERS = {
    "regression": trainer(1500, 128, 1e-3, 1e-2),
    "diffusion": trainer(3000, 128, 1e-3, 1e-6),
    "bc-rnn-gmm": trainer(2000, 100, 1e-3, 0.0),
}
"""How long each is trained, and on what; a kind from another package as regression is."""


@dataclass(frozen=True)
class TrainPolicy:
    """Train a policy on demonstrations without a tokenizer: regression, diffusion or bc-rnn-gmm.

    Attributes:
        dataset: a name of the catalogue (generated where it is not there yet), a robomimic HDF5 file or a LeRobot folder.
        policy: its kind; with --help after it, its settings.
        out: directory of the run; by default runs/<data set>/<policy>.
        resume: go on with an interrupted run in that directory.
        overwrite: throw a run away that is in that directory.
        cameras: whose pictures it sees, of a regression policy (scripts/render_demos.py makes them); by default none.
        picture_size: height and width that the pictures of a LeRobot folder are scaled to; by default they stay as they are.
        obs_keys: observation keys; by default the low-dimensional ones of the file, beside cameras without `object`: where things
            are, they are to see.
        obs_rotation: let the networks see quaternions (the keys that end in _quat, and those inside of other keys) as 6-D
            rotations, which know no sign and no jumps.
        env: Gymnasium id to roll out in, or "none"; by default the one that the data set names, which must then be the one that
            the demonstrations were recorded in.
        demonstrations: learn from so many of the training split, drawn by the seed; by default from all.
        settings: of the policy.
        trainer: how long and on what.
    """

    dataset: str = "lift"
    policy: str = "regression"
    out: Path | None = None
    resume: bool = False
    overwrite: bool = False
    cameras: tuple[str, ...] = ()
    picture_size: tuple[int, int] | None = None
    obs_keys: tuple[str, ...] = ()
    obs_rotation: ObservedRotation = "as-recorded"
    env: str | None = None
    demonstrations: int | None = None
    settings: PolicySettings = field(default_factory=RegressionSettings)
    trainer: TrainerConfig = TRAINERS["regression"]

    @classmethod
    def default(cls, arguments: Sequence[str]) -> TrainPolicy:
        """What the command line changes: settings and trainer are those of the policy that it names."""
        name = given(arguments, "--policy") or cls.policy
        return cls(policy=name, settings=policy_class(name).settings_type(), trainer=TRAINERS.get(name, cls.trainer))


def policy_class(name: str) -> type[ImitationPolicy]:
    """The policy of this name.

    Raises:
        ConfigError: there is none, or it is not trained by this command.
    """
    if name in [*ESTIMATORS, *FITTED, LatentPolicy.kind]:
        estimator = "" if name == LatentPolicy.kind else f" --estimator {name}"
        raise ConfigError(
            f"a {name} that predicts codes is distilled from a tokenizer: scripts/train_action_vae.py{estimator}, "
            "then scripts/distill_policy.py"
        )
    if name not in POLICIES:
        raise unknown_name("policy", name, [each for each in POLICIES if each != LatentPolicy.kind])
    found: type[ImitationPolicy] = POLICIES[name]
    return found


def run(config: TrainPolicy) -> dict[str, float]:
    """Train; the metrics of the best validation. The policy lies in <out>/model."""
    kind = policy_class(config.policy)
    kind.import_extra()
    path = fetch(config.dataset)
    started = time.perf_counter()
    demos = read_demos(path, config.obs_keys or None, cameras=config.cameras, picture_size=config.picture_size)
    demos = demos.fewer(config.demonstrations, config.trainer.seed)
    check_rollout_env(demos, config.env, demos.obs_keys)
    out = config.out or Path("runs") / dataset_name(config.dataset) / config.policy
    train, valid = split(demos, config.settings.horizon, config.settings.history)
    torch.manual_seed(config.trainer.seed)
    policy = kind.for_data(config.settings, demos.obs_dims, train, observed_quaternions(demos, config.obs_rotation))
    print(
        f"{config.policy} on {demos.path}: {len(train)} windows of {len(demos.train)} demonstrations, "
        f"{len(valid)} of {len(demos.valid)} held out; {sum(p.numel() for p in policy.parameters()):,} parameters",
        flush=True,
    )
    objective = ImitationObjective(policy, valid, action_scale(train, demos.action_units))
    command = replace(config, out=None, resume=False, overwrite=False)
    description = {"command": command, "dataset": {"path": str(demos.path), "sha256": demos.sha256}}
    data = policy.windows(train)
    metrics = Trainer(config.trainer, out, description).fit(objective, data, config.resume, config.overwrite)
    if parallel.is_main():
        save_json({"policy": time.perf_counter() - started}, out / "timing.json")
    rmse = " ".join(f"{metrics[f'rmse/{i}']:.3f}" for i in range(policy.action_dim))
    print(f"error of held-out plans per action dimension (RMSE, action units): {rmse}")
    print(f"policy in {out}")
    return metrics
