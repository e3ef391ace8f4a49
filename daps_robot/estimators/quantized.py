"""Estimators of quantised posteriors: straight-through gradients, no distribution over codes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from daps_robot.errors import ConfigError
from daps_robot.estimators.base import ESTIMATORS, Estimator, EstimatorConfig, Loss, as_large
from daps_robot.models.posteriors import PosteriorConfig, QuantizedPosterior
from daps_robot.models.quantizers import VQ
from daps_robot.models.tokenizer import Inputs, Tokenizer, TokenizerConfig
from daps_robot.parallel import launched


class QuantizedEstimator(Estimator):
    """−log p(x | quantised f(x)), and whatever else the quantiser wants."""

    kind: ClassVar[Any]

    def __init__(self, tokenizer: Tokenizer, config: Any, total_steps: int) -> None:
        super().__init__(tokenizer, config, total_steps)
        if tokenizer.config.posterior is None or tokenizer.config.posterior.kind != self.kind:
            raise ConfigError(f"the {self.kind} estimator trains a posterior of that kind: set the tokenizer's posterior to it")

    @classmethod
    def tokenizer_config(cls, config: TokenizerConfig) -> TokenizerConfig:
        return as_large(replace(config, posterior=PosteriorConfig(cls.kind)), config)

    def settle(self, steps: int) -> None:
        posterior = self.tokenizer.posterior
        assert isinstance(posterior, QuantizedPosterior)
        posterior.write_table(self.tokenizer.embedding)  # decoding looks codes up

    def quantize(self, posterior: QuantizedPosterior, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """The embedded quantised values (b l d), with gradient, and a further loss."""
        return posterior.quantize(self.tokenizer.prepare(inputs))[0], torch.zeros((), device=inputs.x.device)

    def loss(self, inputs: Inputs, step: int) -> Loss:
        tokenizer, posterior = self.tokenizer, self.tokenizer.posterior
        assert isinstance(posterior, QuantizedPosterior)
        embedded, further = self.quantize(posterior, inputs)
        params = tokenizer.decoder_params(embedded[:, None], inputs)
        reconstruction = -tokenizer.likelihood.log_prob(params, inputs.x, inputs.mask).mean()
        return Loss(reconstruction + further, {"reconstruction": reconstruction.detach(), "further_loss": further.detach()})


@ESTIMATORS.register("fsq")
class FSQEstimator(QuantizedEstimator):
    """Finite scalar quantisation (arXiv 2309.15505)."""

    kind = "fsq"


@dataclass(frozen=True)
class CodebookConfig(EstimatorConfig):
    """Settings of codebooks that vector-quantize-pytorch trains.

    Attributes:
        commitment: weight of the commitment loss, of each codebook.
        codebook_decay: of a codebook's exponential moving average.
        revive_below: a code whose average use per batch falls below this is put onto one of the batch's vectors; 0 never.
    """

    commitment: float = 0.25
    codebook_decay: float = 0.99
    revive_below: float = 0.1

    def __post_init__(self) -> None:
        if self.commitment < 0 or not 0 < self.codebook_decay < 1 or self.revive_below < 0:
            raise ConfigError("commitment and revive_below are at least 0, codebook_decay lies between 0 and 1")


@dataclass(frozen=True)
class VQConfig(CodebookConfig):
    """Settings of vector quantisation.

    Attributes:
        kmeans: start the codebook from k-means of the first batch.
        rotation_trick: rotate gradients onto the code (Fifty et al. 2024, arXiv 2410.06424) in place of copying them.
    """

    kmeans: bool = True
    rotation_trick: bool = True


def import_codebooks(estimator: str) -> Any:
    """vector-quantize-pytorch.

    Raises:
        ConfigError: it is not installed; the message names the estimator that needs it.
    """
    try:
        import vector_quantize_pytorch
    except ImportError as error:
        raise ConfigError(
            f"the {estimator} estimator needs vector-quantize-pytorch: pip install 'daps-robot[vq]' ({error})"
        ) from error
    return vector_quantize_pytorch


@ESTIMATORS.register("vq")
class VQEstimator(QuantizedEstimator):
    """VQ-VAE with an EMA codebook, by vector-quantize-pytorch (the extra `vq`), which trains the codebook."""

    kind = "vq"
    divisible = False
    config_type = VQConfig

    def __init__(self, tokenizer: Tokenizer, config: VQConfig, total_steps: int) -> None:
        super().__init__(tokenizer, config, total_steps)
        vocabulary, dimensions = self._codebook().vectors.shape
        self.quantizer = import_codebooks("vq").VectorQuantize(
            dimensions,
            vocabulary,
            decay=config.codebook_decay,
            kmeans_init=config.kmeans,
            threshold_ema_dead_code=config.revive_below,
            commitment_weight=config.commitment,
            rotation_trick=config.rotation_trick,
            sync_codebook=launched() > 1,  # the processes have not met yet
        )

    def quantize(self, posterior: QuantizedPosterior, inputs: Inputs) -> tuple[Tensor, Tensor]:
        latents = posterior.latents(self.tokenizer.prepare(inputs)).float()
        values, _, further = self.quantizer(latents)
        with torch.no_grad():
            self._codebook().vectors.copy_(self.quantizer.codebook)
        return posterior.project_out(values), further.sum()

    def _codebook(self) -> VQ:
        posterior = self.tokenizer.posterior
        assert isinstance(posterior, QuantizedPosterior) and isinstance(posterior.quantizer, VQ)
        return posterior.quantizer
