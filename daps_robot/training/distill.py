"""Distilling a policy: π(z|o) learns, by maximum likelihood, the codes that the tokenizer gives to the demonstrated chunks.

An offset head learns besides what those codes, decoded, lack of the chunk: the mean over chunks of the summed absolute error,
in normalised units, over the dimensions that are not binary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from daps_robot.data.chunks import ChunkDataset
from daps_robot.estimators.base import Loss
from daps_robot.models.policy import LatentPolicy
from daps_robot.parallel import uniform
from daps_robot.training.imitation import planning_error
from daps_robot.training.objective import Objective
from daps_robot.training.tokenizer import examples_at_a_time, to_device
from daps_robot.types import ChunkBatch

CodeSource = Literal["sampled", "most-likely"]


class DistillObjective(Objective):
    """−log π(z|o) with z ~ q(z|x), or z the most likely codes; validated by the error of the decoded chunk."""

    criterion = "chunk_error"

    def __init__(
        self, policy: LatentPolicy, valid: ChunkDataset, scale: Float[Tensor, " a"], source: CodeSource = "sampled"
    ) -> None:
        """`scale` is that of the chunk error (see `action_scale`)."""
        super().__init__()
        self.policy, self.valid, self.scale, self.source = policy, valid, scale, source

    def targets(self, batch: ChunkBatch, source: CodeSource) -> Int[Tensor, "b 1 l"]:
        """The tokenizer's codes of a batch's chunks."""
        tokenizer = self.policy.tokenizer
        size = (len(batch.actions), 1, tokenizer.config.codes.positions)
        uniforms = uniform(*size, device=batch.actions.device) if source == "sampled" else None
        return tokenizer.encode(batch.actions, uniforms)

    def forward(self, batch: ChunkBatch, step: int) -> Loss:
        policy, codes = self.policy, self.targets(batch, self.source)
        tokens = policy.observe(batch.observations, batch.images)
        nll = -policy.code_model.log_prob(policy.code_model.prepare(tokens), codes).sum(-1).mean()
        if policy.offset is None:
            return Loss(nll, {"nll": nll.detach()})
        scaler = policy.tokenizer.scaler
        decoded = scaler.normalize(policy.tokenizer.decode(codes, batch.observations[:, -1])[:, 0])
        lacking = (scaler.normalize(batch.actions) - decoded - policy.offset(tokens, decoded)).abs()
        offset = (lacking * batch.mask[..., None] * policy.offset.moved).sum((1, 2)).mean()
        return Loss(nll + offset, {"nll": nll.detach(), "offset": offset.detach()})

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Over the whole validation split, against the tokenizer's most likely codes.

        `nll`: nats per chunk. `accuracy/i`: share of windows whose code i is the most likely one given the true codes before
        it. And, of the policy's chunk by its configured decoding, what `planning_error` says.
        """
        policy = self.policy
        device = policy.scaler.shift.device
        nll, hits = 0.0, torch.zeros(policy.config.codes.positions)
        at_a_time = examples_at_a_time(policy.config.codes, device)
        for index in torch.arange(len(self.valid)).split(at_a_time):
            batch = to_device(self.valid.gather(index), device)
            assert isinstance(batch, ChunkBatch)
            codes = self.targets(batch, "most-likely")
            logits = policy.code_model.logits(policy.prepare(batch.observations, batch.images), codes)
            log_prob = torch.log_softmax(logits, -1).gather(-1, codes[..., None])[..., 0]
            nll -= float(log_prob.double().sum())
            hits = hits + (logits.argmax(-1) == codes).double().sum((0, 1)).cpu()
        return {
            "nll": nll / len(self.valid),
            **{f"accuracy/{i}": float(h) / len(self.valid) for i, h in enumerate(hits)},
            **planning_error(policy, self.valid, self.scale, at_a_time),
        }

    def save(self, directory: Path) -> None:
        self.policy.save_pretrained(directory)
