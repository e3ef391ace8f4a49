"""Distilling a policy: π(z|o) learns, by maximum likelihood, the codes that the tokenizer gives to the demonstrated chunks.

An offset head learns besides what those codes, decoded, lack of the chunk: the mean over chunks of the summed absolute error,
in normalised units.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from daps_robot.estimators.base import Loss
from daps_robot.models.fast import FASTTokenizer
from daps_robot.models.policy import DecodingConfig, LatentPolicy
from daps_robot.parallel import uniform
from daps_robot.training.metrics import squared_error
from daps_robot.training.objective import Objective
from daps_robot.training.stream import Batches
from daps_robot.training.tokenizer import examples_at_a_time, to_device
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
        size = (len(batch.actions), 1, tokenizer.config.codes.positions)
        uniforms = uniform(*size, device=batch.actions.device) if source == "sampled" else None
        return tokenizer.encode(batch.actions, uniforms)

    def forward(self, batch: ChunkBatch, step: int) -> Loss:
        policy, codes = self.policy, self.targets(batch, self.source)
        tokens = policy.observe(batch.observations)
        nll = -policy.code_model.log_prob(policy.code_model.prepare(tokens), codes).sum(-1).mean()
        if policy.offset is None:
            return Loss(nll, {"nll": nll.detach()})
        scaler = policy.tokenizer.scaler
        decoded = scaler.normalize(policy.tokenizer.decode(codes, batch.observations[:, -1])[:, 0])
        lacking = (scaler.normalize(batch.actions) - decoded - policy.offset(tokens, decoded)).abs()
        offset = (lacking * batch.mask[..., None]).sum((1, 2)).mean()
        return Loss(nll + offset, {"nll": nll.detach(), "offset": offset.detach()})

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Over the whole validation split, against the tokenizer's most likely codes.

        `nll`: nats per chunk. `accuracy/i`: share of windows whose code i is the most likely one given the true codes before
        it. `rmse/i`: of the policy's chunk, by its configured decoding, in action units. `chunk_error`: mean over dimensions of
        the squared error, each divided by the square of the dimension's scale. `malformed`, of fast: share of the policy's most
        likely code sequences that the published decoder would have failed on.
        """
        policy = self.policy
        device = policy.scaler.shift.device
        nll, hits, error, steps = 0.0, torch.zeros(policy.config.codes.positions), torch.zeros(1), 0.0
        malformed, likely = 0.0, policy.with_decoding(DecodingConfig("greedy"))
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
            if isinstance(policy.tokenizer, FASTTokenizer):
                malformed += float(policy.tokenizer.malformed(likely.codes(batch.observations)).sum())
        scale = policy.tokenizer.scaler.scale.double().cpu()
        return {
            "nll": nll / len(self.valid),
            **{f"accuracy/{i}": float(h) / len(self.valid) for i, h in enumerate(hits)},
            **{f"rmse/{i}": float(v) for i, v in enumerate((error / steps).sqrt())},
            "chunk_error": float((error / steps / scale.square()).mean()),
            **({"malformed": malformed / len(self.valid)} if isinstance(policy.tokenizer, FASTTokenizer) else {}),
        }

    def save(self, directory: Path) -> None:
        self.policy.save_pretrained(directory)
