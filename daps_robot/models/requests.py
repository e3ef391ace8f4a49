"""What a policy is asked, as its networks take it."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from daps_robot.errors import ConfigError
from daps_robot.types import PlanRequest


def observed(policy: Any, request: PlanRequest) -> Float[Tensor, "b n o"]:
    """The observations of a request, where the policy's networks are.

    Raises:
        ConfigError: they are of another shape than the policy was made for.
    """
    found, wanted = request.observations.shape[1:], (policy.history, policy.observation_dim)
    if found != wanted:
        raise ConfigError(
            f"the policy plans from {wanted[0]} observations of {wanted[1]} values ({', '.join(policy.obs_keys)}), not from "
            f"{found[0]} of {found[1]}"
        )
    return torch.from_numpy(request.observations).to(policy.scaler.shift.device)
