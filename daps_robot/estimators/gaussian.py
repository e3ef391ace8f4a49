"""The continuous VAE: what the same networks reach without a discrete bottleneck."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from daps_robot.errors import ConfigError
from daps_robot.estimators.base import ESTIMATORS, AnnealedConfig, Estimator, Loss, as_large
from daps_robot.models.posteriors import GaussianPosterior, PosteriorConfig
from daps_robot.models.prefixes import over_prefix
from daps_robot.models.tokenizer import Inputs, Tokenizer, TokenizerConfig


@ESTIMATORS.register("vae")
class VAE(Estimator):
    """Gaussian VAE (Kingma & Welling 2014): −log p(x|z) + β·KL, reparametrised. Its rate is its KL; it has no codes."""

    config_type = AnnealedConfig

    def __init__(self, tokenizer: Tokenizer, config: Any, total_steps: int) -> None:
        super().__init__(tokenizer, config, total_steps)
        if not isinstance(tokenizer.posterior, GaussianPosterior):
            raise ConfigError("the vae estimator trains a Gaussian posterior: set the tokenizer's posterior to it")

    @classmethod
    def tokenizer_config(cls, config: TokenizerConfig) -> TokenizerConfig:
        return as_large(replace(config, posterior=PosteriorConfig("gaussian")), config)

    def loss(self, inputs: Inputs, step: int) -> Loss:
        tokenizer, posterior, beta = self.tokenizer, self.tokenizer.posterior, self.beta(step)
        assert isinstance(posterior, GaussianPosterior)
        embedded, kl = posterior.draw(tokenizer.prepare(inputs), 1)
        r = tokenizer.likelihood.log_prob(tokenizer.decoder_params(embedded, inputs), inputs.x, inputs.mask)
        kl = over_prefix(kl, inputs.kept)
        loss = beta * kl.mean() - r.mean()
        metrics = {"elbo_beta": -loss, "reconstruction": -r.mean(), "kl": kl.mean(), "beta": torch.tensor(beta)}
        return Loss(loss, {name: value.detach() for name, value in metrics.items()})
