"""The warm start of DAPS: a quantiser trains front end and decoder while the code model learns its codes.

From scratch DAPS spends most of its time finding any useful code at all. An FSQ quantiser on the same front end and decoder
finds one in seconds by straight-through gradients; meanwhile the autoregressive posterior is taught the quantiser's codes by
maximum likelihood. Then every code's embedding is set to what the quantiser made of it, so that the decoder goes on exactly
as it was, the quantiser is left behind, and DAPS improves both from there.
"""

from __future__ import annotations

import torch
from torch import nn

from daps_robot.estimators.base import Loss
from daps_robot.models.code_model import CodeModel
from daps_robot.models.posteriors import QuantizedPosterior
from daps_robot.models.tokenizer import Inputs, Tokenizer


class WarmStart(nn.Module):
    """Losses of the quantiser phase, and the hand-over at its end."""

    def __init__(self, tokenizer: Tokenizer, steps: int, teach_steps: int) -> None:
        """`steps` in all, the last `teach_steps` of which train the code model alone."""
        super().__init__()
        self.tokenizer = [tokenizer]  # not a submodule: the estimator holds it already
        self.teach_from = steps - teach_steps
        self.quantizer = QuantizedPosterior(tokenizer.config.codes, "fsq")

    def loss(self, inputs: Inputs, step: int) -> Loss:
        tokenizer = self.tokenizer[0]
        posterior = tokenizer.posterior
        assert isinstance(posterior, CodeModel)
        teaching_only = step >= self.teach_from
        with torch.set_grad_enabled(not teaching_only):
            memory = tokenizer.front_end(inputs.x)
            embedded, codes = self.quantizer.quantize(self.quantizer.prepare(memory))
        student_memory = posterior.prepare(memory.detach())
        nll = -posterior.log_prob(student_memory, codes[:, None]).sum(-1).mean()
        metrics = {"student_nll": nll.detach()}
        loss = nll
        if not teaching_only:
            params = tokenizer.decoder_params(embedded[:, None], inputs)
            reconstruction = -tokenizer.likelihood.log_prob(params, inputs.x, inputs.mask).mean()
            metrics["reconstruction"] = reconstruction.detach()
            loss = loss + reconstruction
        return Loss(loss, metrics)

    def hand_over(self) -> None:
        """Set every code's embedding to the quantiser's, so that a lookup decodes as the quantiser did."""
        self.quantizer.write_table(self.tokenizer[0].embedding)
