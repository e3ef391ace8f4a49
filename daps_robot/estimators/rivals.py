"""Rival action tokenizers, with the networks that make them what they are: QueST, OAT, and the residual VQ of VQ-BeT.

They quantise, so they train as `quantized` does; likelihood, width and layers are those that were asked for, and the encoder's
MLPs are as wide as makes it as large as the other estimators' ones.
docs/tokenizers.md says how each differs from its original.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from daps_robot.errors import ConfigError
from daps_robot.estimators.base import ESTIMATORS, EstimatorConfig
from daps_robot.estimators.quantized import CodebookConfig, QuantizedEstimator, import_codebooks
from daps_robot.models.decoders import ChunkDecoderConfig
from daps_robot.models.frontends import ChunkFrontEndConfig, make_front_end
from daps_robot.models.posteriors import PosteriorConfig, QuantizedPosterior, ResidualPosterior, make_posterior
from daps_robot.models.tokenizer import Inputs, Tokenizer, TokenizerConfig
from daps_robot.parallel import launched


class RivalEstimator(QuantizedEstimator):
    """A quantiser of action chunks whose networks are its own."""

    own_networks = True

    @classmethod
    def tokenizer_config(cls, config: TokenizerConfig) -> TokenizerConfig:
        front_end, decoder = config.front_end, config.decoder
        if not isinstance(front_end, ChunkFrontEndConfig) or not isinstance(decoder, ChunkDecoderConfig):
            raise ConfigError(f"{cls.__name__} tokenizes action chunks, not pictures: choose another --estimator")
        return front_end_as_large(cls.networks(config, front_end, decoder), config)

    @classmethod
    @abstractmethod
    def networks(cls, config: TokenizerConfig, front_end: ChunkFrontEndConfig, decoder: ChunkDecoderConfig) -> TokenizerConfig:
        """The method's networks, of the size that was asked for."""


def front_end_as_large(config: TokenizerConfig, reference: TokenizerConfig) -> TokenizerConfig:
    """`config` with the MLP ratio in its front end (in its posterior: `as_large`) at which its encoder comes nearest to the
    reference's in size."""

    def widened(ratio: int) -> TokenizerConfig:
        front_end = config.front_end
        return replace(config, front_end=replace(front_end, transformer=replace(front_end.transformer, mlp_ratio=ratio)))

    def parameters(of: TokenizerConfig) -> int:
        assert isinstance(of.front_end, ChunkFrontEndConfig)
        parts = make_front_end(of.front_end), make_posterior(of.posterior, of.codes, of.front_end.tokens)
        return sum(p.numel() for part in parts for p in part.parameters())

    ratio, wanted = config.front_end.transformer.mlp_ratio, parameters(reference)
    return min((widened(r) for r in range(1, min(2 * ratio + 4, 64) + 1)), key=lambda found: abs(parameters(found) - wanted))


def fsq_on_front_end(
    config: TokenizerConfig, front_end: ChunkFrontEndConfig, decoder: ChunkDecoderConfig, kind: Literal["causal", "registers"]
) -> TokenizerConfig:
    """FSQ on a front end with a token for each position, and with the layers that a trunk behind it would have had."""
    own = front_end.transformer
    stack = replace(own, layers=own.layers + config.codes.transformer.layers)
    return replace(
        config,
        front_end=replace(front_end, tokens=config.codes.positions, kind=kind, transformer=stack),
        posterior=PosteriorConfig("fsq", trunk=False),
        decoder=replace(decoder, kind="queries"),
    )


@ESTIMATORS.register("quest")
class QueST(RivalEstimator):
    """FSQ over time with causal networks (Mete et al. 2024, arXiv 2407.15840)."""

    kind = "fsq"

    @classmethod
    def networks(cls, config: TokenizerConfig, front_end: ChunkFrontEndConfig, decoder: ChunkDecoderConfig) -> TokenizerConfig:
        return fsq_on_front_end(config, front_end, decoder, "causal")


@ESTIMATORS.register("oat")
class OAT(RivalEstimator):
    """Ordered action tokens: registers, FSQ and nested dropout (Liu et al. 2026, arXiv 2602.04215)."""

    kind = "fsq"

    @classmethod
    def networks(cls, config: TokenizerConfig, front_end: ChunkFrontEndConfig, decoder: ChunkDecoderConfig) -> TokenizerConfig:
        return replace(fsq_on_front_end(config, front_end, decoder, "registers"), nested_dropout=True)


@dataclass(frozen=True)
class RVQConfig(CodebookConfig):
    """Settings of residual vector quantisation; each level has a codebook."""

    revive_below: float = 0.02


@ESTIMATORS.register("rvq")
class RVQ(RivalEstimator):
    """Residual VQ of one vector a chunk, as VQ-BeT has it (Lee et al. 2024, arXiv 2403.03181): position i is level i.

    vector-quantize-pytorch (the extra `vq`) moves the codebooks.
    """

    kind = "rvq"
    divisible = False
    config_type: ClassVar[type[EstimatorConfig]] = RVQConfig

    def __init__(self, tokenizer: Tokenizer, config: RVQConfig, total_steps: int) -> None:
        super().__init__(tokenizer, config, total_steps)
        library = import_codebooks("rvq")
        with contextlib.suppress(ImportError):  # older versions of the library say nothing
            from loguru import logger

            logger.disable(
                "vector_quantize_pytorch"
            )  # it warns, level by level, that a batch holds fewer vectors than a codebook
        posterior = tokenizer.posterior
        assert isinstance(posterior, ResidualPosterior)
        levels, vocabulary, dimensions = posterior.quantizer.vectors.shape
        self.quantizer = library.ResidualVQ(
            dim=dimensions,
            num_quantizers=levels,
            codebook_size=vocabulary,
            decay=config.codebook_decay,
            kmeans_init=True,
            threshold_ema_dead_code=config.revive_below,
            commitment_weight=config.commitment,
            sync_codebook=launched() > 1,  # the processes have not met yet
        )

    @classmethod
    def networks(cls, config: TokenizerConfig, front_end: ChunkFrontEndConfig, decoder: ChunkDecoderConfig) -> TokenizerConfig:
        posterior = PosteriorConfig("rvq", dimensions=config.codes.transformer.width)
        return replace(config, posterior=posterior, decoder=replace(decoder, kind="sum"))

    def quantize(self, posterior: QuantizedPosterior, inputs: Inputs) -> tuple[Tensor, Tensor]:
        assert isinstance(posterior, ResidualPosterior)
        latents = posterior.latents(self.tokenizer.prepare(inputs)).float()
        _, _, commitment = self.quantizer(latents[:, None])
        with torch.no_grad():
            posterior.quantizer.vectors.copy_(self.quantizer.codebooks)
        return posterior.quantize_latents(latents)[0], commitment.sum()
