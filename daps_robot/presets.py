"""Named sets of networks and settings: those of the paper's code (arXiv 2509.24716), and ours for action chunks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from daps_robot.models.blocks import TransformerConfig
from daps_robot.models.code_model import CodeModelConfig
from daps_robot.models.decoders import ChunkDecoderConfig, ConvDecoderConfig, MLPDecoderConfig
from daps_robot.models.frontends import ChunkFrontEndConfig, PatchFrontEndConfig
from daps_robot.models.likelihoods import LikelihoodConfig
from daps_robot.models.tokenizer import TokenizerConfig
from daps_robot.registry import unknown_name


@dataclass(frozen=True)
class Preset:
    """Networks, estimator settings and batch size of one data set.

    Attributes:
        tokenizer: the networks.
        settings: of estimators (`Estimator.configure` takes those that concern it), as in the paper: K, ESS target, β schedule,
            no warm start.
        batch_size: examples of a step.
    """

    tokenizer: TokenizerConfig
    settings: dict[str, Any]
    batch_size: int


def _transformer(width: int, layers: int) -> TransformerConfig:
    return TransformerConfig(width=width, heads=4, layers=layers, mlp_ratio=4)


def _settings(beta_start: float, beta_end: float) -> dict[str, Any]:
    return {"k": 8, "ess_target": 0.33, "beta_start": beta_start, "beta_end": beta_end, "warm_start_steps": 0}


def _chunks(horizon: int, positions: int, vocabulary: int, width: int, batch_size: int) -> Preset:
    size = _transformer(width, 2)
    tokenizer = TokenizerConfig(
        codes=CodeModelConfig(positions, vocabulary, transformer=size),
        front_end=ChunkFrontEndConfig(horizon, 7, positions, size),
        decoder=ChunkDecoderConfig(horizon, 7, transformer=size),
        likelihood=LikelihoodConfig("gaussian", 0.25),
    )
    return Preset(tokenizer, _settings(0.5, 0.01), batch_size)


PRESETS: dict[str, Preset] = {
    "mnist": Preset(
        TokenizerConfig(
            codes=CodeModelConfig(8, 256, transformer=_transformer(64, 1)),
            front_end=PatchFrontEndConfig(28, 28, 1, 14, 7, _transformer(64, 1)),
            decoder=MLPDecoderConfig(28, 28, 1, (64, 256)),
            likelihood=LikelihoodConfig("bernoulli"),
        ),
        _settings(0.5, 0.01),
        batch_size=256,
    ),
    "cifar10": Preset(
        TokenizerConfig(
            codes=CodeModelConfig(64, 512, transformer=_transformer(128, 2)),
            front_end=PatchFrontEndConfig(32, 32, 3, 4, 4, _transformer(128, 2)),
            decoder=ConvDecoderConfig(32, 3, 64, 2),
            likelihood=LikelihoodConfig("gaussian", "per-output", max_variance=10.0),
        ),
        _settings(6.0, 0.01),
        batch_size=256,
    ),
    "chunk16": _chunks(16, 8, 256, 64, 256),
    "chunk32": _chunks(32, 64, 1024, 128, 32),
}


def preset(name: str) -> Preset:
    """A preset by name.

    Raises:
        ConfigError: there is none of that name (with the nearest one).
    """
    if name not in PRESETS:
        raise unknown_name("preset", name, list(PRESETS))
    return PRESETS[name]
