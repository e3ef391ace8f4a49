"""Named sets of networks and settings: those of the paper's code (arXiv 2509.24716), and ours for action chunks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from daps_robot.errors import ConfigError
from daps_robot.models.blocks import TransformerConfig
from daps_robot.models.code_model import CodeModelConfig
from daps_robot.models.decoders import ChunkDecoderConfig, ConvDecoderConfig, MLPDecoderConfig
from daps_robot.models.frontends import ChunkFrontEndConfig, PatchFrontEndConfig
from daps_robot.models.likelihoods import LikelihoodConfig
from daps_robot.models.tokenizer import TokenizerConfig
from daps_robot.registry import unknown_name


@dataclass(frozen=True)
class Preset:
    """Networks and settings of one data set.

    Attributes:
        tokenizer: the networks.
        settings: of estimators (`Estimator.configure` takes those that concern it): K, ESS target and β schedule of the paper,
            and our warm start, which its `daps-published` does not have.
        batch_size: examples of a step.
        steps: of a training.
        lr: learning rate, constant.
        ema: decay of the moving average of the weights that is evaluated; 0, as in the paper, for none.
        threshold: pictures are binarised above it; None leaves them as they are.
    """

    tokenizer: TokenizerConfig
    settings: dict[str, Any]
    batch_size: int = 256
    steps: int = 250_000
    lr: float = 3e-4
    ema: float = 0.0
    threshold: int | None = None


def _transformer(width: int, layers: int) -> TransformerConfig:
    return TransformerConfig(width=width, heads=4, layers=layers, mlp_ratio=4)


def _settings(beta_start: float, beta_end: float, k: int = 8, ess_target: float = 0.33, warm_start: int = 5000) -> dict[str, Any]:
    return {"k": k, "ess_target": ess_target, "beta_start": beta_start, "beta_end": beta_end, "warm_start_steps": warm_start}


def _sequences(horizon: int, channels: int, positions: int, vocabulary: int, width: int) -> TokenizerConfig:
    size = _transformer(width, 2)
    return TokenizerConfig(
        codes=CodeModelConfig(positions, vocabulary, transformer=size),
        front_end=ChunkFrontEndConfig(horizon, channels, positions, size),
        decoder=ChunkDecoderConfig(horizon, channels, transformer=size),
        likelihood=LikelihoodConfig("gaussian", 0.25),
    )


def _pictures(size: int, patch: int, vocabulary: int, width: int, layers: int, likelihood: LikelihoodConfig) -> TokenizerConfig:
    """Colour pictures of size × size, a code for each patch."""
    transformer = _transformer(width, layers)
    return TokenizerConfig(
        codes=CodeModelConfig((size // patch) ** 2, vocabulary, transformer=transformer),
        front_end=PatchFrontEndConfig(size, size, 3, patch, patch, transformer),
        decoder=ConvDecoderConfig(size, 3, width // 2, layers),
        likelihood=likelihood,
    )


MNIST = TokenizerConfig(
    codes=CodeModelConfig(8, 256, transformer=_transformer(64, 1)),
    front_end=PatchFrontEndConfig(28, 28, 1, 14, 7, _transformer(64, 1)),
    decoder=MLPDecoderConfig(28, 28, 1, (64, 256)),
    likelihood=LikelihoodConfig("bernoulli"),
)
WIDE = LikelihoodConfig("gaussian", "per-output", max_variance=10.0)
NARROW = LikelihoodConfig("gaussian", "per-output", min_variance=0.01, max_variance=1.0)

PRESETS: dict[str, Preset] = {
    "mnist": Preset(MNIST, _settings(0.5, 0.01), threshold=127),
    "mnist-quick": Preset(
        MNIST,
        _settings(0.5, 0.01, k=2, ess_target=0.75, warm_start=6000),
        batch_size=64,
        steps=7000,
        ema=0.99,
        threshold=127,
    ),
    "cifar10": Preset(_pictures(32, 4, 512, 128, 2, WIDE), _settings(6.0, 0.01)),
    "cifar10-quick": Preset(
        _pictures(32, 4, 512, 64, 1, WIDE),
        _settings(6.0, 0.01, k=2, ess_target=0.75, warm_start=6000),
        batch_size=32,
        steps=7500,
        lr=1e-3,
        ema=0.99,
    ),
    "imagenet256": Preset(
        _pictures(256, 8, 1024, 128, 2, NARROW), _settings(50.0, 1.0, ess_target=0.25), batch_size=64, steps=300_000
    ),
    "lafan": Preset(_sequences(32, 36, 64, 1024, 128), _settings(3.0, 0.01)),
    "chunk16": Preset(_sequences(16, 7, 8, 256, 64), _settings(0.5, 0.01)),
    "chunk32": Preset(_sequences(32, 7, 64, 1024, 128), _settings(0.5, 0.01), batch_size=32),
}
"""`-quick` ones are sized for two processor cores; the others are the paper's, and ours for action chunks."""


def picture_preset(size: int) -> Preset:
    """Networks for colour pictures of a size of one's own: CIFAR-10's up to 64, ImageNet-256's above, β growing with the picture.

    Raises:
        ConfigError: the size is no power of two from 32 to 1024.
    """
    if size not in (32, 64, 128, 256, 512, 1024):
        raise ConfigError(f"pictures of size {size}: choose 32, 64, 128, 256, 512 or 1024")
    ratio = size / 32
    tokenizer = _pictures(size, 4, 512, 128, 2, WIDE) if size <= 64 else _pictures(size, 8, 1024, 128, 2, NARROW)
    return Preset(tokenizer, _settings(6 * ratio, 0.01 * ratio**2), batch_size=64)


def preset(name: str) -> Preset:
    """A preset by name.

    Raises:
        ConfigError: there is none of that name (with the nearest one).
    """
    if name not in PRESETS:
        raise unknown_name("preset", name, list(PRESETS))
    return PRESETS[name]
