"""Behaviour cloning of chunks by regression, after ACT (Zhao et al. 2023, arXiv 2304.13705).

o ──observation front end──► memory ◄──cross-attention── h queries ──► chunk
chunk, o ──► z  (a style, in training only; 0 when acting)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from daps_robot.data.normalize import Scaler
from daps_robot.errors import ConfigError
from daps_robot.models.blocks import DecoderBlock, TransformerConfig, TransformerEncoder, sinusoidal_positions
from daps_robot.models.frontends import ObservationFrontEnd, ObservationFrontEndConfig
from daps_robot.models.imitation import ImitationConfig, ImitationPolicy, PolicySettings, masked_mean
from daps_robot.models.vision import Images
from daps_robot.parallel import noise


@dataclass(frozen=True)
class RegressionSettings(PolicySettings):
    """Regression of action chunks.

    Attributes:
        width: embedding width.
        layers: encoder and decoder layers, each.
        heads: attention heads.
        style: dimensions of the style variable z, by which demonstrations of the same situation may differ; 0 for none.
        kl_weight: weight of KL(q(z | chunk, o) ‖ N(0, 1)), in nats a chunk.
    """

    execute: int = 4
    width: int = 128
    layers: int = 2
    heads: int = 4
    style: int = 32
    kl_weight: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.style <= 4096:
            raise ConfigError(f"style {self.style} must be from 0 (none) to 4096 dimensions")
        if not 0 <= self.kl_weight < float("inf"):
            raise ConfigError(f"kl_weight {self.kl_weight} must be at least 0")

    @property
    def transformer(self) -> TransformerConfig:
        """Of all its stacks."""
        return TransformerConfig(self.width, self.heads, self.layers)


class StyleEncoder(nn.Module):
    """q(z | chunk, o): self-attention over a query, the last observation and the actions; the query's output gives z."""

    def __init__(self, config: ImitationConfig, settings: RegressionSettings) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, 1, settings.width))
        self.observe = nn.Linear(config.seen_dim, settings.width)
        self.act = nn.Linear(config.action_dim, settings.width)
        self.encoder = TransformerEncoder(settings.transformer, 2 + settings.horizon)
        self.head = nn.Linear(settings.width, 2 * settings.style)

    def forward(
        self, observation: Float[Tensor, "b o"], actions: Float[Tensor, "b h a"]
    ) -> tuple[Float[Tensor, "b z"], Float[Tensor, "b z"]]:
        """Mean and log-variance of z, in float32 under any autocast."""
        query = self.query.expand(len(actions), -1, -1)
        tokens = torch.cat([query, self.observe(observation)[:, None], self.act(actions)], dim=1)
        mean, log_variance = self.head(self.encoder(tokens)[:, 0]).float().chunk(2, dim=-1)
        return mean, log_variance.clamp(-20, 20)


class RegressionPolicy(ImitationPolicy):
    """One chunk for an observation history: L1 regression by a transformer with a query for each step."""

    kind = "regression"
    settings_type = RegressionSettings
    sees_pictures = True

    def __init__(self, config: ImitationConfig, scaler: Scaler | None = None, action_scaler: Scaler | None = None) -> None:
        super().__init__(config, scaler, action_scaler)
        assert isinstance(config.settings, RegressionSettings)
        self.settings = settings = config.settings
        transformer = settings.transformer
        self.front_end = ObservationFrontEnd(
            ObservationFrontEndConfig(settings.history, config.seen_dim, transformer=transformer, pictures=config.pictures)
        )
        self.queries = nn.Parameter(sinusoidal_positions(settings.horizon, settings.width))
        self.blocks = nn.ModuleList(DecoderBlock(transformer) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(settings.width)
        self.head = nn.Linear(settings.width, config.action_dim)
        if settings.style:
            self.style_encoder = StyleEncoder(config, settings)
            self.style = nn.Linear(settings.style, settings.width)

    @classmethod
    def fit_actions(cls, actions: Float[np.ndarray, "t a"]) -> Scaler:
        """Mean 0 and standard deviation 1, as ACT has them."""
        return Scaler.fit(actions)

    def decode(
        self, observations: Float[Tensor, "b n o"], style: Float[Tensor, "b z"] | None = None, images: Images = None
    ) -> Float[Tensor, "b h a"]:
        """Normalised chunks; without a style, of the mean one."""
        memory = self.front_end(observations, images)
        if self.settings.style:
            z = observations.new_zeros(len(observations), self.settings.style) if style is None else style
            memory = torch.cat([memory, self.style(z)[:, None]], dim=1)
        x = self.queries.expand(len(observations), -1, -1)
        for block in self.blocks:
            assert isinstance(block, DecoderBlock)
            x = block(x, block.cross.memory(memory), None)
        return self.head(self.norm(x))

    def loss(
        self,
        observations: Float[Tensor, "b n o"],
        actions: Float[Tensor, "b h a"],
        mask: Bool[Tensor, "b h"],
        images: Images = None,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """|error| + kl_weight · KL(q(z | chunk, o) ‖ N(0, 1)) (equation 2 there)."""
        if not self.settings.style:
            error = masked_mean((self.decode(observations, None, images) - actions).abs(), mask)
            return error, {"l1": error.detach()}
        # what lies past the end of the demonstration says nothing of how it was done
        mean, log_variance = self.style_encoder(observations[:, -1], actions * mask[..., None])
        z = mean + (0.5 * log_variance).exp() * noise(lambda t: t.normal_(), mean.shape, mean.device)
        error = masked_mean((self.decode(observations, z, images) - actions).abs(), mask)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1).mean()
        return error + self.settings.kl_weight * kl, {"l1": error.detach(), "kl": kl.detach()}

    def sample(
        self, observations: Float[Tensor, "b n o"], keys: Int[np.ndarray, " b"], images: Images = None
    ) -> Float[Tensor, "b h a"]:
        """The chunk of the mean style; nothing is drawn."""
        return self.decode(observations, None, images)
