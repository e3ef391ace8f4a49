"""The scripted expert drives through a tokenizer: what a perfect policy over its codes could reach.

At each plan the expert's next h actions are looked up in a copy of the simulator, encoded and decoded, and e of them
executed:

    expert, h steps ahead  ->  codes  ->  chunk  ->  e steps  ->  look ahead again from where that led

Success lost here is the tokenizer's; what the policy loses on top is its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from daps_robot.errors import ConfigError
from daps_robot.rollout.evaluate import evaluate
from daps_robot.rollout.results import Evaluation
from daps_robot.types import PlanRequest


@runtime_checkable
class Reconstructor(Protocol):
    """Anything that takes action chunks through codes and back.

    A variant (one posterior sample, the codes of another chunk for the code gain) is another object of this kind.

    Attributes:
        obs_keys: what its decoder sees; () for one without observation.
        history: n, observations that it sees.
        horizon: h.
    """

    @property
    def obs_keys(self) -> tuple[str, ...]: ...

    @property
    def history(self) -> int: ...

    @property
    def horizon(self) -> int: ...

    def reconstruct(
        self,
        chunks: Float[np.ndarray, "b h a"],
        observations: Float[np.ndarray, "b n o"],
        keys: Int[np.ndarray, " b"],
    ) -> Float[np.ndarray, "b h a"]:
        """The chunks encoded and decoded, in the environment's units; row i depends on row i alone.

        `keys[i]` alone decides the row's noise where there is any. Observations have o = 0 where `obs_keys` is ().
        """
        ...


@dataclass(frozen=True)
class Identity:
    """No tokenizer at all: the plain expert, re-planned like any other. The reference beside every ceiling."""

    horizon: int
    obs_keys: tuple[str, ...] = ()
    history: int = 1

    def reconstruct(
        self,
        chunks: Float[np.ndarray, "b h a"],
        observations: Float[np.ndarray, "b n o"],
        keys: Int[np.ndarray, " b"],
    ) -> Float[np.ndarray, "b h a"]:
        """The chunks as they are."""
        return chunks


class ThroughTokenizer:
    """A policy that plays the expert's plan, taken through a tokenizer."""

    needs_expert = True

    def __init__(self, tokenizer: Reconstructor) -> None:
        self.tokenizer = tokenizer
        self.obs_keys = tuple(tokenizer.obs_keys)
        self.history = tokenizer.history
        self.horizon = tokenizer.horizon

    def plan(self, request: PlanRequest) -> Float[np.ndarray, "b h a"]:
        """The expert's chunks, encoded and decoded.

        Raises:
            ConfigError: for a request without expert.
        """
        if request.expert_chunk is None:
            raise ConfigError("this policy plays the scripted expert through a tokenizer: its requests need expert_chunk")
        return self.tokenizer.reconstruct(request.expert_chunk, request.observations, request.keys)


def tokenizer_ceiling(
    env_id: str,
    tokenizer: Reconstructor,
    *,
    first_seed: int,
    episodes: int = 50,
    max_steps: int | None = None,
    execute: int = 8,
    slots: int = 20,
    workers: int | None = None,
    threads: int = 1,
    expert_noise: float = 0.0,
    env_kwargs: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Evaluation:
    """The success rate of the scripted expert through `tokenizer`; with `Identity(horizon)`, without one.

    Args: as `evaluate` has them.

    Raises:
        SimulationError: for an environment without `make_expert`, `get_state` and `set_state`, and as `evaluate` does.
    """
    return evaluate(
        env_id,
        ThroughTokenizer(tokenizer),
        first_seed=first_seed,
        episodes=episodes,
        max_steps=max_steps,
        execute=execute,
        slots=slots,
        workers=workers,
        threads=threads,
        expert_noise=expert_noise,
        env_kwargs=env_kwargs,
        progress=progress,
    )
