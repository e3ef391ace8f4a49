"""Training a policy on demonstrations by its own loss, and how far any policy's plans are from held-out demonstrations."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from daps_robot.data.chunks import ChunkDataset
from daps_robot.data.normalize import Scaler, near_binary
from daps_robot.estimators.base import Loss
from daps_robot.models.imitation import ImitationPolicy
from daps_robot.training.metrics import chunk_errors
from daps_robot.training.objective import Objective
from daps_robot.training.tokenizer import to_device
from daps_robot.types import ChunkBatch, Policy, plan_request


class ImitationObjective(Objective):
    """A policy's own loss; validated by that and by the error of what it plans."""

    def __init__(self, policy: ImitationPolicy, valid: ChunkDataset, scale: Float[Tensor, " a"]) -> None:
        """`scale` is that of the chunk error (see `action_scale`)."""
        super().__init__()
        self.policy, self.valid, self.scale = policy, valid, scale
        self.criterion = policy.criterion

    def forward(self, batch: ChunkBatch, step: int) -> Loss:
        return Loss(*self.policy.losses(batch))

    def evaluate(self) -> dict[str, float]:
        """`loss`, the policy's own, and what `planning_error` says, over the whole validation split."""
        return {"loss": self.held_out_loss(), **planning_error(self.policy, self.valid, self.scale)}

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """The mean over batches of 256 windows, by their numbers of windows, with noise from torch's global generator."""
        data, device, total = self.policy.windows(self.valid), self.policy.scaler.shift.device, 0.0
        for index in torch.arange(len(data)).split(256):
            batch = to_device(data.gather(index), device)
            assert isinstance(batch, ChunkBatch)
            total += len(index) * float(self.policy.losses(batch)[0])
        return total / len(data)

    def save(self, directory: Path) -> None:
        self.policy.save_pretrained(directory)


def action_scale(train: ChunkDataset, units: tuple[str, ...] | None) -> Float[Tensor, " a"]:
    """The scale of each action dimension, the same for whatever policy is measured by it.

    As a tokenizer has it by default: one for all continuous dimensions of a unit (of all, where `units` are not known), the
    range of binary ones.
    """
    actions = train.actions.numpy()
    return Scaler.fit(actions, near_binary(actions), shared=units or True).scale


def planning_error(policy: Policy, valid: ChunkDataset, scale: Float[Tensor, " a"], at_a_time: int = 256) -> dict[str, float]:
    """How far plans are from what was demonstrated, over all windows.

    `rmse/i`: in action units. `chunk_error`: mean over dimensions of the squared error, each divided by the square of its
    scale. Both over all steps of a chunk, so policies of different horizons are not to be compared by them.
    """
    errors = chunk_errors(valid, lambda batch, index: policy.plan(plan_request(batch, index)), at_a_time)
    return {
        **{f"rmse/{i}": float(v) for i, v in enumerate(errors.sqrt())},
        "chunk_error": float((errors / scale.double().square()).mean()),
    }
