"""What a policy is asked, as its networks take it, and what it answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from daps_robot.errors import ConfigError, DataError
from daps_robot.models.vision import Images
from daps_robot.types import PlanRequest


def observed(policy: Any, request: PlanRequest) -> tuple[Float[Tensor, "b n o"], Images]:
    """The observations and pictures of a request, where the policy's networks are.

    Raises:
        ConfigError: they are of another shape than the policy was made for.
    """
    found, wanted = request.observations.shape[1:], (policy.history, policy.observation_dim)
    if found != wanted:
        raise ConfigError(
            f"the policy plans from {wanted[0]} observations of {wanted[1]} values ({', '.join(policy.obs_keys)}), not from "
            f"{found[0]} of {found[1]}"
        )
    if (request.images is None) == bool(policy.cameras):
        seen = ", ".join(policy.cameras) or "no camera"
        raise ConfigError(f"the policy sees pictures of {seen}, the request has {'none' if policy.cameras else 'some'}")
    device = policy.scaler.shift.device
    images = None if request.images is None else torch.from_numpy(request.images).to(device)
    return torch.from_numpy(request.observations).to(device), images


def answered(chunks: Float[Tensor, "b h a"]) -> Float[np.ndarray, "b h a"]:
    """Action chunks as a policy hands them out. Raises DataError as `check_finite` does."""
    check_finite(chunks)
    return chunks.cpu().numpy()


def check_finite(values: Float[Tensor, "b *x"]) -> None:
    """Refuses what finite observations may become in a network: the most likely of NaN is a code like any other.

    Raises:
        DataError: a value is not finite, naming the row.
    """
    finite = values.isfinite().flatten(1).all(1)
    if not finite.all():
        raise DataError(
            f"row {int(finite.int().argmin())} of the request overflows in the policy: its observations are far outside of those "
            "it was trained on, or its weights are damaged"
        )
