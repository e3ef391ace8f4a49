"""Distilling a policy: π(z|o) learns, by maximum likelihood, the codes that the tokenizer gives to the demonstrated chunks."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from daps_robot.estimators.base import Loss
from daps_robot.models.policy import LatentPolicy
from daps_robot.parallel import uniform
from daps_robot.training.metrics import squared_error
from daps_robot.training.objective import Objective
from daps_robot.training.stream import Batches
from daps_robot.training.tokenizer import chunk_inputs, examples_at_a_time, to_device
from daps_robot.types import ChunkBatch

CodeSource = Literal["sampled", "most-likely"]


class DistillObjective(Objective):
    """−log π(z|o) with z ~ q(z|x), or z the most likely codes; validated by the error of the decoded chunk."""

    criterion = "chunk_error"

    def __init__(self, policy: LatentPolicy, valid: Batches, source: CodeSource = "sampled") -> None:
        super().__init__()
        self.policy, self.valid, self.source = policy, valid, source

    def targets(self, batch: ChunkBatch, source: CodeSource) -> Int[Tensor, "b 1 l"]:
        """The tokenizer's codes of a batch's chunks."""
        tokenizer = self.policy.tokenizer
        with torch.no_grad():
            memory = tokenizer.prepare(chunk_inputs(tokenizer, batch))
            size = (len(batch.actions), 1, tokenizer.config.codes.positions)
            uniforms = uniform(*size, device=batch.actions.device) if source == "sampled" else None
            return tokenizer.draw(memory, uniforms).codes

    def forward(self, batch: ChunkBatch, step: int) -> Loss:
        log_prob = self.policy.log_prob(batch.observations, self.targets(batch, self.source))
        nll = -log_prob.sum(-1).mean()
        return Loss(nll, {"nll": nll.detach()})

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Over the whole validation split, against the tokenizer's most likely codes.

        `nll`: nats per chunk. `accuracy/i`: share of windows whose code i is the most likely one given the true codes before
        it. `rmse/i`: of the policy's chunk, by its configured decoding, in action units. `chunk_error`: mean over dimensions of
        the squared error, each divided by the square of the dimension's scale.
        """
        policy = self.policy
        device = policy.scaler.shift.device
        nll, hits, error, steps = 0.0, torch.zeros(policy.config.codes.positions), torch.zeros(1), 0.0
        for index in torch.arange(len(self.valid)).split(examples_at_a_time(policy.config.codes, device)):
            batch = to_device(self.valid.gather(index), device)
            assert isinstance(batch, ChunkBatch)
            codes = self.targets(batch, "most-likely")
            logits = policy.code_model.logits(policy.prepare(batch.observations), codes)
            log_prob = torch.log_softmax(logits, -1).gather(-1, codes[..., None])[..., 0]
            nll -= float(log_prob.double().sum())
            hits = hits + (logits.argmax(-1) == codes).double().sum((0, 1)).cpu()
            chunks = policy.chunks(batch.observations, keys=index.numpy())
            squares, n = squared_error(batch.actions, chunks, batch.mask)
            error, steps = error + squares.cpu(), steps + float(n)
        scale = policy.tokenizer.scaler.scale.double().cpu()
        return {
            "nll": nll / len(self.valid),
            **{f"accuracy/{i}": float(h) / len(self.valid) for i, h in enumerate(hits)},
            **{f"rmse/{i}": float(v) for i, v in enumerate((error / steps).sqrt())},
            "chunk_error": float((error / steps / scale.square()).mean()),
        }

    def save(self, directory: Path) -> None:
        self.policy.save_pretrained(directory)
