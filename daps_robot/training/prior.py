"""Training a prior: p(z|y) learns, by maximum likelihood, the codes that the tokenizer gives to the examples of a class."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from daps_robot.data.images import ImageDataset
from daps_robot.errors import DataError
from daps_robot.estimators.base import Loss
from daps_robot.models.prior import CodePrior
from daps_robot.parallel import uniform
from daps_robot.training.objective import Objective
from daps_robot.training.tokenizer import examples_at_a_time


class LabelledBatch(NamedTuple):
    """Attributes: x (b *x) in the data's units; labels (b)."""

    x: Float[Tensor, b * x]
    labels: Int[Tensor, " b"]


class LabelledImages:
    """Pictures with their classes."""

    def __init__(self, images: ImageDataset) -> None:
        """Raises DataError where the pictures have no labels."""
        if images.pictures.labels is None:
            raise DataError(f"{images.pictures.where} has no classes: put the pictures of each into a folder of its own")
        self.images, self.labels = images, torch.from_numpy(images.pictures.labels).long()

    def __len__(self) -> int:
        return len(self.images)

    def gather(self, index: Int[Tensor, " b"]) -> LabelledBatch:
        return LabelledBatch(self.images.gather(index), self.labels[index])


class PriorObjective(Objective):
    """−log p(z|y) with z ~ q(z|x); validated by the same, over the whole split."""

    criterion = "nll"

    def __init__(self, prior: CodePrior, valid: LabelledImages) -> None:
        super().__init__()
        self.prior, self.valid = prior, valid

    def nll(self, batch: LabelledBatch) -> Float[Tensor, " b"]:
        """Nats per example, of one code sequence drawn for it."""
        tokenizer = self.prior.tokenizer
        with torch.no_grad():
            memory = tokenizer.prepare(tokenizer.inputs(batch.x))
            noise = uniform(len(batch.x), 1, tokenizer.config.codes.positions, device=batch.x.device)
            codes = tokenizer.draw(memory, noise).codes
        return -self.prior.log_prob(batch.labels, codes).sum((1, 2))

    def forward(self, batch: LabelledBatch, step: int) -> Loss:
        nll = self.nll(batch).mean()
        return Loss(nll, {"nll": nll.detach()})

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """`nll`: nats per example; `bits`: the same in bits, beside the capacity of the code sequence."""
        codes, device = self.prior.config.codes, self.prior.tokenizer.scaler.shift.device
        total = 0.0
        for index in torch.arange(len(self.valid)).split(examples_at_a_time(codes, device)):
            batch = LabelledBatch(*(t.to(device) for t in self.valid.gather(index)))
            total += float(self.nll(batch).double().sum())
        nll = total / len(self.valid)
        return {"nll": nll, "bits": nll / math.log(2)}

    def save(self, directory: Path) -> None:
        self.prior.save_pretrained(directory)
