"""A batch's loss, part by part: the gradient of a part is taken before the next part is computed.

The gradient is that of the whole, in the memory of one part. It asks that a part's loss be known when the part is computed,
which holds for both updates of DAPS: the decoder's is not weighted, and the weights of the encoder's come with the draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from torch.autograd.function import once_differentiable

PART_ROWS = 4096
"""Code positions of a part on a CPU: below it small operations cost time, above it activations leave the cache."""

PartLoss = Callable[..., tuple[Tensor, Tensor]]
"""(part, *tensors of that part) → (the part's mean loss, values (part …) to keep)."""


def part_size_for(codes: Int[Tensor, "b k l"]) -> int:
    """Inputs of a part: all of them on a GPU, `PART_ROWS` code positions on a CPU."""
    return len(codes) if codes.is_cuda else max(1, PART_ROWS // codes[0].numel())


class PartsLoss(NamedTuple):
    """Attributes: loss, the mean of a batch; kept, the values of all its examples, in order; gradients, of the loss with
    respect to each of `tensors` (None where it is independent of one, or no gradient is taken)."""

    loss: Tensor
    kept: Tensor
    gradients: tuple[Tensor | None, ...]


def loss_by_parts(
    loss_of: PartLoss, examples: int, part_size: int, parameters: Sequence[Tensor], tensors: Sequence[Tensor] = ()
) -> PartsLoss:
    """A batch's loss, computed and differentiated part by part.

    Args:
        loss_of: called with a slice of the examples, and `tensors` cut to it.
        examples: in the batch, b.
        part_size: examples of a part.
        parameters: what the loss depends on besides `tensors`; nothing else receives a gradient.
        tensors: (b …) each; they receive gradients where they require them.
    """
    inputs = [*tensors, *parameters]
    if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in inputs):
        # no gradient to take; whatever is frozen comes whole
        return PartsLoss(*loss_of(slice(0, examples), *tensors), (None,) * len(tensors))
    loss, kept, *gradients = _LossByParts.apply(loss_of, examples, part_size, len(tensors), *inputs)  # type: ignore[no-untyped-call]
    return PartsLoss(loss, kept, tuple(gradients))


class _LossByParts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, loss_of: PartLoss, examples: int, part_size: int, split: int, *inputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        tensors, parameters = inputs[:split], inputs[split:]
        total, kept = torch.zeros((), device=inputs[-1].device), []
        of_tensors: list[list[Tensor]] = [[] for _ in tensors]
        of_parameters: list[Tensor | None] = [None] * len(parameters)
        for first in range(0, examples, part_size):
            part = slice(first, min(first + part_size, examples))
            share = (part.stop - part.start) / examples
            with torch.enable_grad():
                cut = [t[part].detach().requires_grad_(t.requires_grad) for t in tensors]
                loss, values = loss_of(part, *cut)
                wanted = [(i, t) for i, t in enumerate([*cut, *parameters]) if t.requires_grad]
                gradients = torch.autograd.grad(loss * share, [t for _, t in wanted], allow_unused=True)
            for (i, of), gradient in zip(wanted, gradients, strict=True):
                if i < split:
                    of_tensors[i].append(torch.zeros_like(of) if gradient is None else gradient)
                elif gradient is not None:
                    sum_so_far = of_parameters[i - split]
                    of_parameters[i - split] = gradient if sum_so_far is None else sum_so_far + gradient
            total += share * loss.detach()
            kept.append(values.detach())
        ctx.gradients = [torch.cat(parts) if parts else None for parts in of_tensors] + of_parameters
        values, seen = torch.cat(kept), ctx.gradients[:split]
        ctx.mark_non_differentiable(values, *(gradient for gradient in seen if gradient is not None))
        return total, values, *seen

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_loss: Tensor, *of_others: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, None, None, *(None if g is None else g * of_loss for g in ctx.gradients))
