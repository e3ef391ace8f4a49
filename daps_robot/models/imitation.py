"""What policies share that learn from demonstrations directly, by a loss of their own, without a tokenizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from daps_robot.control import Acting, check_obs_dims
from daps_robot.data.chunks import ChunkDataset, ObservedSteps
from daps_robot.data.hdf5 import short
from daps_robot.data.normalize import Scaler
from daps_robot.data.rotations import check_quaternions, expand_quaternions
from daps_robot.errors import CheckpointError, ConfigError
from daps_robot.models.pretrained import find_model, load_pretrained, restore, save_pretrained
from daps_robot.models.requests import answered, observed
from daps_robot.models.vision import Images, PictureFrontEndConfig, check_cameras_seen, front_end_for, picture_size
from daps_robot.types import ChunkBatch, PlanRequest


@dataclass(frozen=True)
class PolicySettings:
    """What every such policy states.

    Attributes:
        history: observations it sees, n.
        horizon: steps of a chunk, h.
        execute: steps executed of a chunk before the next plan, e.
    """

    history: int = 2
    horizon: int = 16
    execute: int = 8

    def __post_init__(self) -> None:
        check_range(self, history=1024, horizon=1024, execute=self.horizon)


def check_range(settings: PolicySettings, **most: int) -> None:
    """Raises ConfigError where one of the named settings is not from 1 to its largest value."""
    for name, limit in most.items():
        if not 1 <= getattr(settings, name) <= limit:
            raise ConfigError(f"{name} {getattr(settings, name)} must be from 1 to {limit}")


@dataclass(frozen=True)
class ImitationConfig:
    """A policy for a task.

    Attributes:
        obs_keys: observation keys, in the order in which they are laid side by side.
        observation_dim: o.
        action_dim: a.
        settings: of this kind of policy.
        cameras: whose pictures it sees, in this order.
        pictures: how it sees them.
        obs_dims: how many values each observation key has; () of a policy saved before that was kept.
        quaternions: first columns of the observed quaternions (x y z w) that the networks see as 6-D rotations.
    """

    obs_keys: tuple[str, ...]
    observation_dim: int
    action_dim: int
    settings: PolicySettings
    cameras: tuple[str, ...] = ()
    pictures: PictureFrontEndConfig | None = None
    obs_dims: tuple[int, ...] = ()
    quaternions: tuple[int, ...] = ()

    @property
    def seen_dim(self) -> int:
        """What the networks see of an observation, quaternions in six numbers."""
        return self.observation_dim + 2 * len(self.quaternions)

    def __post_init__(self) -> None:
        if not (1 <= self.observation_dim <= 10**6 and 1 <= self.action_dim <= 10**4):
            raise ConfigError(f"{self.observation_dim} observed values and {self.action_dim} action dimensions cannot be")
        check_cameras_seen(self.cameras, self.pictures)
        check_obs_dims(self.obs_dims, self.obs_keys, self.observation_dim)
        check_quaternions(self.quaternions, self.observation_dim)


class ImitationPolicy(Acting, nn.Module, ABC):
    """Observations to action chunks; trained on demonstrated windows by its own loss.

    A kind of policy states `kind` and `settings_type` and has `loss` and `sample`. Both see normalised numbers; of a kind that
    `sees_pictures`, and was made for cameras, also these.
    """

    kind: ClassVar[str]
    """The name under which it is registered and saved."""

    settings_type: ClassVar[type[PolicySettings]]
    """The class of its settings."""

    criterion: ClassVar[Literal["chunk_error", "loss"]] = "chunk_error"
    """What the best weights have least of on held-out demonstrations: error of their plans, or loss."""

    sees_pictures: ClassVar[bool] = False
    """Whether it can be trained on pictures."""

    needs_expert = False

    def __init__(self, config: ImitationConfig, scaler: Scaler | None = None, action_scaler: Scaler | None = None) -> None:
        super().__init__()
        if not isinstance(config.settings, self.settings_type):
            raise ConfigError(f"a {self.kind} policy needs {self.settings_type.__name__}, not {type(config.settings).__name__}")
        if config.cameras and not self.sees_pictures:
            raise ConfigError(f"a {self.kind} policy sees no pictures: leave out --cameras, or take another kind")
        self.config = config
        self.cameras, self.picture_size = config.cameras, picture_size(config.pictures)
        self.scaler = scaler or Scaler.identity(config.seen_dim)
        self.action_scaler = action_scaler or Scaler.identity(config.action_dim)
        self.obs_keys, self.obs_dims = config.obs_keys, dict(zip(config.obs_keys, config.obs_dims, strict=False))
        self.observation_dim, self.action_dim = config.observation_dim, config.action_dim
        self.history, self.horizon = config.settings.history, config.settings.horizon
        self.execute = config.settings.execute

    @classmethod
    def import_extra(cls) -> None:
        """Raises ConfigError where a package that this kind of policy needs is not installed."""

    @classmethod
    def for_data(
        cls, settings: PolicySettings, obs_dims: dict[str, int], train: ChunkDataset, quaternions: tuple[int, ...] = ()
    ) -> Self:
        """An untrained policy of observation keys of these sizes, whose scalers are fitted to the training windows."""
        actions = train.actions.numpy()
        config = ImitationConfig(
            obs_keys=tuple(obs_dims),
            observation_dim=train.observations.shape[1],
            action_dim=actions.shape[1],
            settings=settings,
            cameras=train.cameras,
            pictures=front_end_for(train),
            obs_dims=tuple(obs_dims.values()),
            quaternions=quaternions,
        )
        seen = expand_quaternions(train.observations, quaternions).numpy()
        return cls(config, Scaler.fit(seen), cls.fit_actions(actions))

    @classmethod
    def fit_actions(cls, actions: Float[np.ndarray, "t a"]) -> Scaler:
        """How actions are normalised: here, their smallest and largest values to −1 and 1."""
        return Scaler.fit_range(actions)

    def windows(self, data: ChunkDataset) -> ChunkDataset | ObservedSteps:
        """What it learns from: here, the chunk ahead of every step."""
        return data

    def seen(self, observations: Float[Tensor, "*b o"]) -> Float[Tensor, "*b p"]:
        """What the networks see of observations in the environment's units."""
        return self.scaler.normalize(expand_quaternions(observations, self.config.quaternions))

    def losses(self, batch: ChunkBatch) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The loss of a batch in the environment's units, and detached scalars to log."""
        observations = self.seen(batch.observations)
        pictures = (batch.images,) if self.cameras else ()
        return self.loss(observations, self.action_scaler.normalize(batch.actions), batch.mask, *pictures)

    @abstractmethod
    def loss(
        self,
        observations: Float[Tensor, "b n o"],
        actions: Float[Tensor, "b h a"],
        mask: Bool[Tensor, "b h"],
        images: Images = None,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """A scalar with gradient, the mean over steps, and detached scalars to log."""

    @abstractmethod
    def sample(
        self, observations: Float[Tensor, "b n o"], keys: Int[np.ndarray, " b"], images: Images = None
    ) -> Float[Tensor, "b h a"]:
        """Normalised chunks; `keys[i]` alone decides the noise of row i, where there is any."""

    @torch.no_grad()
    def chunks(
        self, observations: Float[Tensor, "b n o"], keys: Int[np.ndarray, " b"], images: Images = None
    ) -> Float[Tensor, "b h a"]:
        """One action chunk per observation history, both in the environment's units."""
        pictures = (images,) if self.cameras else ()
        return self.action_scaler.denormalize(self.sample(self.seen(observations), keys, *pictures))

    def plan(self, request: PlanRequest) -> Float[np.ndarray, "b h a"]:
        """Action chunks in the environment's units; see `daps_robot.types.Policy`.

        Raises:
            ConfigError: the observations are not of the shape that this policy was made for.
            DataError: they are too large to be reckoned with.
        """
        observations, images = observed(self, request)
        return answered(self.chunks(observations, request.keys, images))

    def save_pretrained(self, directory: Path) -> None:
        """Write everything that acting needs."""
        save_pretrained(self, self.config, self.kind, directory)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> Self:
        """Read a saved policy, ready for use; `source` as `find_model` takes it.

        Raises:
            CheckpointError: the directory holds none of this kind, or a damaged or later one.
            ConfigError: a package that this kind of policy needs is not installed.
        """
        cls.import_extra()
        directory = find_model(source)
        config, tensors = load_pretrained(ImitationConfig, cls.kind, directory)
        if not isinstance(config.settings, cls.settings_type):
            raise CheckpointError(f"{directory} holds a {cls.kind} policy with the settings of another kind: train it anew")
        return restore(lambda: cls(config), tensors, directory)


def masked_mean(values: Float[Tensor, "b h a"], mask: Bool[Tensor, "b h"]) -> Float[Tensor, ""]:
    """The mean over unmasked steps and all dimensions."""
    return (values * mask[..., None]).sum() / (mask.sum() * values.shape[-1])


def keyed_normal(keys: Int[np.ndarray, " b"], shape: tuple[int, ...], like: Tensor) -> Tensor:
    """(b *shape) standard normal noise; row i is a function of keys[i] alone."""
    noise = [np.random.default_rng(int(key)).standard_normal(shape, dtype=np.float32) for key in keys]
    return torch.from_numpy(np.stack(noise)).to(like.device)


def missing_extra(kind: str, error: Exception, extra: str) -> ConfigError:
    """The error for a package that is not installed, or does not work."""
    return ConfigError(f"a {kind} policy cannot be had here ({short(error)}): pip install 'daps-robot[{extra}]'")
