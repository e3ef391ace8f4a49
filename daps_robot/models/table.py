"""Tokenizers without networks: codes by a fixed rule, whose few numbers are fitted to the demonstrations.

They have what policies, rollouts and reports ask of a tokenizer: `encode`, `decode`, `reconstruct`, sizes, files. They have no
distribution over codes, no likelihood and no code embeddings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from daps_robot.data.normalize import Scaler
from daps_robot.errors import ConfigError
from daps_robot.models.prefixes import check_codes, encodable
from daps_robot.models.pretrained import find_model, load_pretrained, restore, save_pretrained

STILL = 1e-6
"""A dimension whose range is no wider than this, in action units, does not move."""

PERCENTILES = (0.01, 0.99)
"""Of the training actions, dimension by dimension: what a table counts as the range of an action."""


class TableTokenizer(nn.Module, ABC):
    """Action chunks to codes and back by a rule.

    Attributes:
        scaler: as other tokenizers have it; errors of policies are measured in its units.
        low, high: (a) the range of each action dimension.
    """

    kind: ClassVar[str]
    config_type: ClassVar[type]
    history = 1
    obs_keys: tuple[str, ...] = ()
    low: Tensor
    high: Tensor

    def __init__(self, config: Any, scaler: Scaler | None = None) -> None:
        super().__init__()
        self.config = config
        self.scaler = scaler or Scaler.identity(config.channels)
        self.register_buffer("low", torch.zeros(config.channels))
        self.register_buffer("high", torch.ones(config.channels))

    def fit_range(self, actions: Float[np.ndarray, "t a"]) -> None:
        """Set the range to the percentiles of some actions; to the extremes where the percentiles coincide, as of a button that
        is seldom pressed."""
        low, high = np.quantile(actions, PERCENTILES, axis=0)
        still = high - low <= STILL
        low[still], high[still] = actions.min(0)[still], actions.max(0)[still]
        self.low.copy_(torch.from_numpy(low))
        self.high.copy_(torch.from_numpy(high))

    @property
    def span(self) -> Float[Tensor, " a"]:
        """Width of the range; 1 where a dimension does not move."""
        span = self.high - self.low
        return torch.where(span > STILL, span, 1.0)

    @property
    def centre(self) -> Float[Tensor, " a"]:
        """Of the range."""
        return (self.low + self.high) / 2

    @property
    def horizon(self) -> int:
        """Steps of a chunk, h."""
        return self.config.horizon

    @property
    def action_dim(self) -> int:
        """Dimension of an action, a."""
        return self.config.channels

    @property
    @abstractmethod
    def bits(self) -> float:
        """Bits of a chunk."""

    @abstractmethod
    def encode_chunks(self, x: Float[Tensor, "b h a"]) -> Int[Tensor, "b l"]:
        """The codes of chunks in action units."""

    @abstractmethod
    def decode_chunks(self, codes: Int[Tensor, "s l"]) -> Float[Tensor, "s h a"]:
        """The chunks of codes, or of prefixes of such, in action units."""

    def facts(self, x: Float[Tensor, "b h a"]) -> dict[str, Float[Tensor, " b"]]:
        """What the rule did to chunks that a reader of errors should know."""
        return {}

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "b h a"], uniforms: Float[Tensor, "b k l"] | None = None) -> Int[Tensor, "b k l"]:
        """Codes of chunks; nothing is drawn, so of k samples all are the same.

        Raises:
            ConfigError: x has another shape than this tokenizer was built for, or is not of floating point.
            DataError: a value of x is not finite.
        """
        x = encodable(x, (self.horizon, self.action_dim))
        return self.encode_chunks(x)[:, None].expand(-1, 1 if uniforms is None else uniforms.shape[1], -1)

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "b k l"], observation: Float[Tensor, "b o"] | None = None) -> Float[Tensor, "b k h a"]:
        """Chunks in action units; every sequence of codes decodes (`observation` is not needed).

        Raises:
            ConfigError: a code lies outside the vocabulary, or the sequences have a length that does not decode.
        """
        check_codes(codes, self.config.codes, self.config.ordered)
        return self.decode_chunks(codes.flatten(0, 1)).unflatten(0, codes.shape[:2])

    def reconstruct(
        self,
        chunks: Float[np.ndarray, "b h a"],
        observations: Float[np.ndarray, "b n o"],
        keys: Int[np.ndarray, " b"],
    ) -> Float[np.ndarray, "b h a"]:
        """Chunks through their codes and back, for rollouts."""
        x = torch.from_numpy(chunks).to(self.low.device)
        return self.decode(self.encode(x))[:, 0].cpu().numpy()

    def save_pretrained(self, directory: Path) -> None:
        """Write configuration and tables; see `from_pretrained`."""
        save_pretrained(self, self.config, self.kind, directory)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> Self:
        """Read a saved one, ready for use; `source` as `find_model` takes it.

        Raises:
            CheckpointError: the directory holds none, or a damaged or later one.
        """
        directory = find_model(source)
        loaded: tuple[Any, dict[str, Tensor]] = load_pretrained(cls.config_type, cls.kind, directory)
        config, tensors = loaded
        return restore(lambda: cls(config), tensors, directory)


def check_chunk(horizon: int, channels: int) -> None:
    """Raises ConfigError where no chunk has these sizes."""
    if not (1 <= horizon <= 4096 and 1 <= channels <= 4096):
        raise ConfigError(f"chunks of {horizon} steps × {channels}: each from 1 to 4096")
