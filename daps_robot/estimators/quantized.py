"""Estimators of quantised posteriors: straight-through gradients, no distribution over codes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from daps_robot.errors import ConfigError
from daps_robot.estimators.base import ESTIMATORS, Estimator, Loss
from daps_robot.models.quantizers import FSQPosterior, QuantizerConfig
from daps_robot.models.tokenizer import Inputs, Tokenizer, TokenizerConfig


@ESTIMATORS.register("fsq")
class FSQEstimator(Estimator):
    """Finite scalar quantisation (arXiv 2309.15505): −log p(x | round(f(x))) with a straight-through gradient."""

    def __init__(self, tokenizer: Tokenizer, config: Any, total_steps: int) -> None:
        super().__init__(tokenizer, config, total_steps)
        if not isinstance(tokenizer.posterior, FSQPosterior):
            raise ConfigError("the fsq estimator trains an FSQ posterior: set the tokenizer's quantizer")

    @classmethod
    def tokenizer_config(cls, config: TokenizerConfig) -> TokenizerConfig:
        return replace(config, quantizer=QuantizerConfig("fsq"))

    def loss(self, inputs: Inputs, step: int) -> Loss:
        tokenizer, posterior = self.tokenizer, self.tokenizer.posterior
        assert isinstance(posterior, FSQPosterior)
        embedded, _ = posterior.quantize(tokenizer.prepare(inputs))
        params = tokenizer.decoder_params(embedded[:, None], inputs)
        loss = -tokenizer.likelihood.log_prob(params, inputs.x, inputs.mask).mean()
        posterior.write_table(tokenizer.embedding)  # decoding looks codes up, so the table follows the quantiser
        return Loss(loss, {"reconstruction": loss.detach()})
