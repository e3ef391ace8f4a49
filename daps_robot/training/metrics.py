"""Figures over a whole split: code usage, perplexity, reconstruction error."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from daps_robot.data.chunks import ChunkDataset
from daps_robot.types import ChunkBatch


def code_counts(codes: Int[Tensor, "b l"], vocabulary: int) -> Int[Tensor, "l v"]:
    """How often each code occurs at each position."""
    positions = codes.shape[1]
    flat = codes + vocabulary * torch.arange(positions, device=codes.device)
    return torch.bincount(flat.flatten(), minlength=positions * vocabulary).view(positions, vocabulary)


def perplexity(counts: Int[Tensor, "l v"]) -> Float[Tensor, " l"]:
    """exp of the entropy of each position's code frequencies: the number of codes in effective use."""
    p = counts.double() / counts.sum(-1, keepdim=True).clamp(min=1)
    return torch.exp(-torch.special.xlogy(p, p).sum(-1)).float()


def squared_error(
    x: Float[Tensor, "b h a"], y: Float[Tensor, "b h a"], mask: Bool[Tensor, "b h"] | None
) -> tuple[Float[Tensor, " a"], Float[Tensor, ""]]:
    """Sum over unmasked steps of (x − y)² per dimension, and how many steps that are."""
    error = (x - y).double().square()
    if mask is None:
        return error.flatten(0, -2).sum(0), torch.tensor(float(error[..., 0].numel()))
    return (error * mask[..., None]).flatten(0, -2).sum(0), mask.sum().float()


def chunk_errors(
    valid: ChunkDataset, answer: Callable[[ChunkBatch, Int[Tensor, " b"]], Float[np.ndarray, "b h a"]], at_a_time: int = 256
) -> Float[Tensor, " a"]:
    """Mean of (action − answer)² over unmasked steps of all windows, per dimension; `answer` gets windows and their indices."""
    error, steps = torch.zeros(valid.actions.shape[1], dtype=torch.float64), 0.0
    for index in torch.arange(len(valid)).split(at_a_time):
        batch = valid.gather(index)
        squares, n = squared_error(batch.actions, torch.from_numpy(answer(batch, index)), batch.mask)
        error, steps = error + squares, steps + float(n)
    return error / steps


def mean_squared_error(
    x: Float[Tensor, "b *x"], y: Float[Tensor, "b *x"], mask: Bool[Tensor, "b h"] | None
) -> Float[Tensor, " b"]:
    """Mean of (x − y)² of each example, over unmasked steps."""
    error = (x - y).double().square()
    if mask is None:
        return error.flatten(1).mean(1)
    return (error.mean(-1) * mask).sum(-1) / mask.sum(-1)
