"""The warm start of DAPS: the code model's most likely codes, trained as a quantiser's.

From scratch DAPS spends most of its time finding any useful code at all. A code model with a `LatticeHead` is an FSQ quantiser
that also says how likely the neighbours of its code are. So straight-through gradients train it as a quantiser first, fast, as
if no code depended on those before it; every code's embedding follows what the quantiser makes of it. At any step it then is a
posterior that DAPS can improve: there is nothing to hand over.
"""

from __future__ import annotations

import torch
from torch import nn

from daps_robot.errors import ConfigError
from daps_robot.estimators.base import Loss
from daps_robot.models.code_model import CodeModel, LatticeHead
from daps_robot.models.quantizers import embed_codebook
from daps_robot.models.tokenizer import Inputs, Tokenizer


class WarmStart(nn.Module):
    """The loss of the quantiser phase."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises ConfigError where the tokenizer's codes do not lie on a lattice."""
        super().__init__()
        posterior = tokenizer.posterior
        if not isinstance(posterior, CodeModel) or not isinstance(posterior.head, LatticeHead):
            raise ConfigError(
                "a warm start trains a lattice posterior: build the tokenizer from the estimator's tokenizer_config, or set "
                "warm_start_steps to 0"
            )
        self.parts = (tokenizer, posterior, posterior.head)  # not submodules: the estimator holds them already
        self.project_out = nn.Linear(len(posterior.head.fsq.levels), posterior.config.transformer.width)

    def loss(self, inputs: Inputs) -> Loss:
        tokenizer, posterior, head = self.parts
        values, _ = head.quantize(posterior.trunk.all_positions(tokenizer.prepare(inputs)))
        params = tokenizer.decoder_params(self.project_out(values)[:, None], inputs)
        reconstruction = -tokenizer.likelihood.log_prob(params, inputs.x, inputs.mask).mean()
        self.embed_codes()
        return Loss(reconstruction, {"reconstruction": reconstruction.detach()})

    @torch.no_grad()
    def embed_codes(self) -> None:
        """Embed every code of the grid as the quantiser does (see `embed_codebook`).

        At every step, so that a moving average of the weights averages this too. Codes that the grid lacks are put amid them.
        """
        tokenizer, _, head = self.parts
        table = embed_codebook(head.fsq, self.project_out)
        tokenizer.embedding.weight[: len(table)] = table
        tokenizer.embedding.weight[len(table) :] = table.mean(0)
