"""Train a tokenizer of action chunks on demonstrations."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from daps_robot import parallel
from daps_robot.commands.cli import given
from daps_robot.commands.rollout_env import check_rollout_env
from daps_robot.config import save_json
from daps_robot.data.catalog import dataset_name, fetch
from daps_robot.data.chunks import ChunkDataset
from daps_robot.data.demos import DemoSet, read_demos
from daps_robot.data.normalize import Scaler, near_binary
from daps_robot.data.quaternions import ObservedRotation, observed_quaternions
from daps_robot.data.rotations import expand_quaternions
from daps_robot.errors import ConfigError, DataError
from daps_robot.estimators import ESTIMATORS, DAPSConfig, Estimator, EstimatorConfig
from daps_robot.estimators.fitted import FITTED
from daps_robot.models.action_tokenizer import ActionTokenizer
from daps_robot.models.blocks import TransformerConfig
from daps_robot.models.code_model import CodeModelConfig
from daps_robot.models.decoders import ChunkDecoderConfig
from daps_robot.models.frontends import ChunkFrontEndConfig
from daps_robot.models.likelihoods import LikelihoodConfig
from daps_robot.models.tokenizer import Tokenizer, TokenizerConfig
from daps_robot.registry import unknown_name
from daps_robot.training.fitted import save_fitted
from daps_robot.training.objective import TrainerConfig
from daps_robot.training.optimizer import OptimizerConfig
from daps_robot.training.tokenizer import TokenizerObjective
from daps_robot.training.trainer import Trainer


@dataclass(frozen=True)
class ChunkTokenizerConfig:
    """The tokenizer.

    Attributes:
        horizon: steps of a chunk, h.
        positions: codes of a chunk, l.
        vocabulary: values of a code, v; a chunk then carries l·log2(v) bits.
        width: embedding width of all its networks.
        layers: encoder and decoder layers of the posterior, each.
        autoregressive: condition each code on those before it.
        variance: of the Gaussian likelihood, in normalised units squared (action noise of .1 in units of .25).
        scaling: one scale for all continuous action dimensions (of one unit, where the data set says its units), or one for each.
        condition_decoder: let the decoder see the observation at which a chunk starts.
        nested_dropout: order the codes, so that any prefix of them decodes.
    """

    horizon: int = 16
    positions: int = 8
    vocabulary: int = 256
    width: int = 64
    layers: int = 2
    autoregressive: bool = True
    variance: float = 0.16
    scaling: Literal["shared", "per-dimension"] = "shared"
    condition_decoder: bool = False
    nested_dropout: bool = False


@dataclass(frozen=True)
class TrainActionVAE:
    """Train a tokenizer of action chunks on demonstrations.

    Attributes:
        dataset: a name of the catalogue (generated or downloaded where it is not there yet), a robomimic HDF5 file or the folder
            of a LeRobotDataset v3.
        out: directory of the run; by default runs/<data set>/tokenizer.
        resume: go on with an interrupted run in that directory.
        overwrite: throw a run away that is in that directory.
        obs_keys: observation keys that a conditioned decoder sees; by default the low-dimensional ones of the file.
        obs_rotation: let it see quaternions (the keys that end in _quat, and those inside of other keys) as 6-D rotations, which
            know no sign and no jumps.
        env: Gymnasium id of the environment that a policy is to be rolled out in, or "none"; by default the one that the data
            set names, which must then be the one that the demonstrations were recorded in.
        demonstrations: learn from so many of the training split, drawn by the seed; by default from all.
        estimator: how the encoder learns through the codes, or a tokenizer without networks (bins, fast), which is fitted in
            one go; with --help after it, its settings.
        tokenizer: the networks.
        settings: of the estimator.
        trainer: how long and on what.
    """

    dataset: str = "lift"
    out: Path | None = None
    resume: bool = False
    overwrite: bool = False
    obs_keys: tuple[str, ...] = ()
    obs_rotation: ObservedRotation = "as-recorded"
    env: str | None = None
    demonstrations: int | None = None
    estimator: str = "daps"
    tokenizer: ChunkTokenizerConfig = field(default_factory=ChunkTokenizerConfig)
    settings: EstimatorConfig = field(default_factory=DAPSConfig)
    trainer: TrainerConfig = field(
        default_factory=lambda: TrainerConfig(max_steps=1600, batch_size=64, optimizer=OptimizerConfig(lr=1e-3))
    )

    @classmethod
    def default(cls, arguments: Sequence[str]) -> TrainActionVAE:
        """What the command line changes: the settings are those of the estimator that it names."""
        name = given(arguments, "--estimator") or cls.estimator
        return cls(estimator=name, settings=FITTED[name].settings() if name in FITTED else named_estimator(name).configure())


def run(config: TrainActionVAE) -> dict[str, float]:
    """Train; the metrics of the best validation. The tokenizer lies in <out>/model."""
    started = time.perf_counter()
    if config.estimator not in FITTED:
        named_estimator(config.estimator)  # a wrong name costs nothing yet
    if config.obs_rotation == "6d" and not config.tokenizer.condition_decoder:
        raise ConfigError("--obs-rotation 6d, but nothing sees observations: add --condition-decoder, or give it to the policy")
    path = fetch(config.dataset)
    fetched = time.perf_counter()
    demos = read_demos(path, config.obs_keys or None).fewer(config.demonstrations, config.trainer.seed)
    check_rollout_env(demos, config.env, demos.obs_keys if config.tokenizer.condition_decoder else ())
    out = config.out or Path("runs") / dataset_name(config.dataset) / "tokenizer"
    train, valid = split(demos, config.tokenizer.horizon)
    torch.manual_seed(config.trainer.seed)
    command = replace(config, out=None, resume=False, overwrite=False)  # how it is called is no part of what is trained
    description = {"command": command, "dataset": {"path": str(demos.path), "sha256": demos.sha256}}
    trainer = Trainer(config.trainer, out, description)
    what = (
        f"{config.estimator} on {demos.path}: {len(train)} windows of {len(demos.train)} demonstrations, "
        f"{len(valid)} of {len(demos.valid)} held out"
    )
    if config.estimator in FITTED:
        table = fit_table(config, train, demos.action_units)
        print(f"{what}; {table.bits:.1f} bits a chunk of {config.tokenizer.horizon}", flush=True)
        metrics = save_fitted(table, valid, trainer, config.resume, config.overwrite)
    else:
        tokenizer = build_tokenizer(config, train, demos)
        estimator = ESTIMATORS[config.estimator](tokenizer, config.settings, config.trainer.max_steps)
        print(f"{what}; {tokenizer.bits:.1f} bits a chunk of {config.tokenizer.horizon}", flush=True)
        metrics = trainer.fit(TokenizerObjective(tokenizer, estimator, valid), train, config.resume, config.overwrite)
    if parallel.is_main():
        save_json({"demonstrations": fetched - started, "tokenizer": time.perf_counter() - fetched}, out / "timing.json")
    rmse = " ".join(f"{metrics[f'rmse/{i}']:.3f}" for i in range(train.actions.shape[1]))
    share = unexplained([metrics[f"rmse/{i}"] for i in range(train.actions.shape[1])], valid)
    print(f"reconstruction error per action dimension (RMSE, action units): {rmse}")
    print(f"the tokenizer misses {describe_share(share)} of the held-out actions' variance")
    if share is not None and share >= 1:
        print("! that is no better than the mean action: train longer (--max-steps), or look at the data (inspect_data.py)")
    if prefixes := [f"{m} {metrics[f'rmse_prefix/{m}']:.3f}" for m in range(1, 4097) if f"rmse_prefix/{m}" in metrics]:
        print(f"error of all dimensions by number of codes: {', '.join(prefixes)}")
    if "perplexity" in metrics:
        print(f"codes in effective use: {metrics['perplexity']:.0f} a position")
    print(f"tokenizer in {out}")
    return metrics


def split(demos: DemoSet, horizon: int, history: int = 1) -> tuple[ChunkDataset, ChunkDataset]:
    """Windows of the training and of the validation demonstrations."""

    def windows(names: Sequence[str]) -> ChunkDataset:
        return ChunkDataset(demos.select(names), demos.obs_keys, horizon, history, str(demos.path))

    if not demos.valid:
        raise DataError(
            f"{demos.path} holds no demonstration out for validation: it needs two or more, or some named in mask/valid"
        )
    if history > (longest := max(map(len, demos.demos))):
        raise DataError(f"{demos.path}: a history of {history} steps, but the longest demonstration has {longest}")
    return windows(demos.train), windows(demos.valid)


def describe_share(share: float | None) -> str:
    return "nothing (it has none)" if share is None else f"{share:.1%}"


def unexplained(rmse: list[float], valid: ChunkDataset) -> float | None:
    """Squared error over variance, mean of the dimensions that vary: 0 is exact, 1 as good as always the mean action."""
    deviation = valid.actions.double().std(0, correction=0)
    varies = deviation > 1e-6
    return float((torch.tensor(rmse, dtype=torch.float64) / deviation)[varies].square().mean()) if varies.any() else None


def named_estimator(name: str) -> type[Estimator]:
    """An estimator that trains networks.

    Raises:
        ConfigError: neither an estimator nor a fitted tokenizer has that name.
    """
    if name not in [*ESTIMATORS, *FITTED]:
        raise unknown_name("estimator", name, [*ESTIMATORS, *FITTED])
    return ESTIMATORS[name]


def fit_table(config: TrainActionVAE, train: ChunkDataset, units: tuple[str, ...] | None = None) -> ActionTokenizer:
    """A tokenizer without networks, fitted to the training windows; `units` are those of the actions, if known.

    Raises:
        ConfigError: options were given that only networks have.
    """
    check_table_options(config.estimator, config.tokenizer)
    actions = train.actions.numpy()
    scaler = Scaler.fit(actions, near_binary(actions), shared=config.tokenizer.scaling == "shared" and (units or True))
    return FITTED[config.estimator].fit(train, config.settings, scaler)


def check_table_options(name: str, tokenizer: ChunkTokenizerConfig) -> None:
    """Raises ConfigError where a tokenizer without networks is given options that only networks have."""
    given, plain = vars(tokenizer), vars(ChunkTokenizerConfig())
    if extra := [option for option in plain if option not in ("horizon", "scaling") and given[option] != plain[option]]:
        options = ", ".join(f"--{option.replace('_', '-')}" for option in extra)
        raise ConfigError(f"{name} has no networks to which {options} would apply: see --help for its own settings")


def build_tokenizer(config: TrainActionVAE, train: ChunkDataset, demos: DemoSet) -> Tokenizer:
    """An untrained tokenizer whose scalers are fitted to the training windows of these demonstrations."""
    size = config.tokenizer
    actions, binary = train.actions.numpy(), near_binary(train.actions.numpy())
    quaternions = observed_quaternions(demos, config.obs_rotation)
    observations = expand_quaternions(train.observations, quaternions).numpy()
    transformer = TransformerConfig(width=size.width, layers=size.layers)
    channels = actions.shape[1]
    networks = TokenizerConfig(
        codes=CodeModelConfig(size.positions, size.vocabulary, size.autoregressive, transformer),
        front_end=ChunkFrontEndConfig(size.horizon, channels, min(size.positions, size.horizon), transformer),
        decoder=ChunkDecoderConfig(
            size.horizon,
            channels,
            observations.shape[1] if size.condition_decoder else 0,
            replace(transformer, layers=2),
        ),
        likelihood=LikelihoodConfig("action", size.variance, binary=binary),
        obs_keys=demos.obs_keys if size.condition_decoder else (),
        quaternions=quaternions,
        nested_dropout=size.nested_dropout,
    )
    scaler = Scaler.fit(actions, binary, shared=size.scaling == "shared" and (demos.action_units or True))
    return Tokenizer(ESTIMATORS[config.estimator].tokenizer_config(networks), scaler, Scaler.fit(observations))
