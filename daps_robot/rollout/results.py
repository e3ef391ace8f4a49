"""What an evaluation found, and how long it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Float, UInt8

from daps_robot.rollout.statistics import bounded_mean_interval, success_interval
from daps_robot.types import JSON


@dataclass(frozen=True)
class EpisodeRecord:
    """One episode.

    Attributes:
        index: its number; the start state is that of `reset(seed=seed)`.
        seed: as above; None for a replayed demonstration, which has its own start state.
        success: whether the task was done at any step.
        length: steps until success, or until the episode ended without.
        plans: how often the policy was asked.
        clipped: action values outside the action space, clipped to its bounds.
        score: how well the task was done, from 0 to 1: the largest `info["score"]` of its steps where the environment reports
            one, else 1 for success and 0 for failure.
        name: the demonstration that was replayed, if one was.
    """

    index: int
    seed: int | None
    success: bool
    length: int
    plans: int
    clipped: int
    score: float
    name: str | None = None


@dataclass(frozen=True)
class Seconds:
    """Where the time went.

    The bare simulator's time is the processor time that the busiest worker spends inside the environments' `step` and
    `reset` (and on the expert's lookahead where there is one): the time that the same episodes would take with
    free-running workers, no policy and nothing else. What the wall clock shows beyond it is overhead.

    Attributes:
        total: from the first reset to the last step; waiting + policy + other.
        simulator: of the busiest worker, in `step` and `reset`.
        lookahead: of the same worker, in the expert's lookahead.
        waiting: for the simulators, with nothing left to plan.
        policy: in `policy.plan`; with workers, the simulators work meanwhile.
        other: messages and bookkeeping.
        startup: starting processes and making environments; not in `total`.
    """

    total: float
    simulator: float
    lookahead: float
    waiting: float
    policy: float
    other: float
    startup: float

    @property
    def overhead(self) -> float:
        """What policy and bookkeeping add to the bare simulator's time, as a share of it."""
        bare = self.simulator + self.lookahead
        return (self.total - bare) / bare if bare > 0 else float("nan")


@dataclass(frozen=True)
class Evaluation:
    """A success rate and what stands behind it.

    Attributes:
        env_id: the environment.
        records: one per episode, by index.
        seconds: where the time went.
        settings: of the evaluation, as given.
        actions: per episode (t a) the executed actions, from which it can be filmed. Not in the JSON.
        observations: (m n o) some of what the policy was asked, for measuring its latency. Not in the JSON.
        images: (m n c height width 3) the pictures beside them, of a policy with cameras. Not in the JSON.
        videos: files written.
        video_note: why there are none, or fewer than asked for.
    """

    env_id: str
    records: tuple[EpisodeRecord, ...]
    seconds: Seconds
    settings: JSON = field(default_factory=dict)
    actions: Sequence[Float[np.ndarray, "_ a"]] = field(default=(), repr=False)
    observations: Float[np.ndarray, "m n o"] | None = field(default=None, repr=False)
    images: UInt8[np.ndarray, "m n c height width 3"] | None = field(default=None, repr=False)
    videos: tuple[str, ...] = ()
    video_note: str | None = None

    @property
    def episodes(self) -> int:
        """How many episodes were played."""
        return len(self.records)

    @property
    def successes(self) -> int:
        """How many of them succeeded."""
        return sum(record.success for record in self.records)

    @property
    def success_rate(self) -> float:
        """The share of successes."""
        return success_interval(self.successes, self.episodes).rate

    @property
    def ci95(self) -> tuple[float, float]:
        """Its 95% Wilson interval."""
        return success_interval(self.successes, self.episodes).ci95

    @property
    def graded(self) -> bool:
        """Whether the environment tells more than success from failure: some score is neither's."""
        return any(record.score != record.success for record in self.records)

    @property
    def mean_score(self) -> float:
        """The mean of the episodes' scores; NaN for none."""
        return mean([record.score for record in self.records])

    @cached_property
    def score_ci95(self) -> tuple[float, float]:
        """Its 95% interval, see `bounded_mean_interval`."""
        return bounded_mean_interval([record.score for record in self.records])

    @property
    def clipped(self) -> int:
        """Action values, of those executed, that lay outside the action space and were clipped."""
        return sum(record.clipped for record in self.records)

    @property
    def mean_length(self) -> float:
        """Steps an episode, successful or not; NaN for none."""
        return mean([record.length for record in self.records])

    @property
    def mean_success_length(self) -> float:
        """Steps until success, over the successful episodes; NaN for none."""
        return mean([record.length for record in self.records if record.success])

    def __str__(self) -> str:
        score = f", mean score {self.mean_score:.3f}" if self.graded else ""
        rate = success_interval(self.successes, self.episodes)
        return f"{self.env_id}: {rate}{score}, {self.mean_length:.0f} steps an episode"

    def to_json(self) -> JSON:
        """Everything but arrays; NaN becomes None, which JSON has."""
        return {
            "env_id": self.env_id,
            "success_rate": finite(self.success_rate),
            "successes": self.successes,
            "episodes": self.episodes,
            "ci95": list(self.ci95),
            "mean_score": finite(self.mean_score),
            "score_ci95": list(self.score_ci95),
            "mean_length": finite(self.mean_length),
            "mean_success_length": finite(self.mean_success_length),
            "clipped_action_values": self.clipped,
            "overhead": finite(self.seconds.overhead),
            "seconds": asdict(self.seconds),
            "settings": dict(self.settings),
            "videos": list(self.videos),
            "video_note": self.video_note,
            "records": [asdict(record) for record in self.records],
        }


def mean(values: Sequence[float] | Sequence[int]) -> float:
    """The mean; NaN of nothing, without numpy's warning."""
    return float(np.mean(values)) if values else float("nan")


def finite(value: float) -> float | None:
    """The value where it is finite, else None."""
    return value if np.isfinite(value) else None
