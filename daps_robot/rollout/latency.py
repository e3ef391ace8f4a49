"""The time of one decision: observation history in, action chunk out, on one core."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np
from jaxtyping import Float, UInt8

from daps_robot.control import plan_keys
from daps_robot.errors import ConfigError
from daps_robot.rollout.statistics import percentiles
from daps_robot.rollout.threads import torch_threads
from daps_robot.types import JSON, PlanRequest, Policy


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a call that plans.

    Attributes:
        p50, p99: percentiles.
        mean: the mean.
        calls: how many were timed.
    """

    p50: float
    p99: float
    mean: float
    calls: int

    def to_json(self) -> JSON:
        """As a flat object."""
        return {"p50": self.p50, "p99": self.p99, "mean": self.mean, "calls": self.calls}


def plan_latency(
    policy: Policy,
    observations: Float[np.ndarray, "m n o"],
    *,
    expert_chunks: Float[np.ndarray, "m h a"] | None = None,
    images: UInt8[np.ndarray, "m n c height width 3"] | None = None,
    n: int = 200,
    warmup: int = 20,
) -> Latency:
    """Times `policy.plan` at batch 1 with torch on one thread, which is set back afterwards.

    Args:
        policy: timed as a whole, normalisation and conversion included.
        observations: what it has really to plan from, taken in turn; `Evaluation.observations` has some.
        expert_chunks: the expert's plans, for a policy that needs them.
        images: what its cameras saw, for a policy that has some.
        n: calls that count.
        warmup: calls before that, which do not.

    Raises:
        ConfigError: for no observations, no calls, or a policy that needs the expert's plans and gets none.
    """
    if len(observations) == 0 or n < 1:
        raise ConfigError(f"latency needs observations and calls; got {len(observations)} observations and n={n}")
    if policy.needs_expert and expert_chunks is None:
        raise ConfigError("this policy needs the expert's plans: pass expert_chunks to plan_latency")
    times = []
    with torch_threads(1):
        for call in range(warmup + n):
            row = [call % len(observations)]
            expert = None if expert_chunks is None else expert_chunks[[call % len(expert_chunks)]]
            seen = None if images is None else images[row]
            request = PlanRequest(observations[row], plan_keys(np.array(row), np.array([call])), expert, seen)
            start = perf_counter()
            policy.plan(request)
            times.append(1000.0 * (perf_counter() - start))
    counted = times[warmup:]
    return Latency(**percentiles(counted, (50, 99)), mean=float(np.mean(counted)), calls=n)
