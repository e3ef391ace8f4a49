"""What the pieces of studies leave in result.json, and its checks: a study may find there what a failing disk left."""

from __future__ import annotations

from dataclasses import dataclass

from daps_robot.config import from_json
from daps_robot.errors import ConfigError
from daps_robot.types import JSON


@dataclass(frozen=True)
class TokenizerResult:
    """Of a tokenizer: seconds of training."""

    seconds: float


@dataclass(frozen=True)
class PolicyResult:
    """Of a policy.

    Attributes:
        seconds: of training.
        best_step: of the best validation.
        kept: steps whose models lie in checkpoints/.
        bits: of a chunk, or None without a tokenizer.
        parameters: of the saved policy, those of the tokenizer included.
        horizon, execute: steps of a chunk, and how many of them are executed.
    """

    seconds: float
    best_step: int
    kept: tuple[int, ...]
    bits: float | None
    parameters: int
    horizon: int
    execute: int


@dataclass(frozen=True)
class Outcomes:
    """Of episodes: how each of them ended."""

    success: tuple[bool, ...]
    length: tuple[int, ...]
    score: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.success) == len(self.length) == len(self.score):
            raise ConfigError(f"{len(self.success)} outcomes, {len(self.length)} lengths and {len(self.score)} scores")
        if not all(0 <= score <= 1 for score in self.score):
            raise ConfigError("scores outside [0, 1]")


def check_outcomes(found: JSON, episodes: int) -> None:
    """Raises ConfigError unless these are the outcomes of so many episodes, or say why there are none (`missing`)."""
    if found.keys() != {"missing"} and len(from_json(Outcomes, found, "result").success) != episodes:
        raise ConfigError(f"outcomes of other than {episodes} episodes")


NUMBERS = (
    *("bits", "encoder_parameters", "ess", "distinct", "steps_per_second", "peak_memory_gb", "ceiling"),
    *(f"{readout}.{name}" for readout in ("steps", "time") for name in ("seconds", "step", "rmse", "psnr", "bits_used")),
)


def check_columns(found: JSON, estimator: str, seed: int) -> None:
    """Raises ConfigError unless these are the columns of a comparison's run: numbers, or None where there is none."""
    if (found.get("estimator"), found.get("seed")) != (estimator, seed):
        raise ConfigError(f"of {found.get('estimator')!r:.40}, seed {found.get('seed')!r:.40}")
    for name in (*NUMBERS, *found):
        if name != "estimator" and (name not in found or not isinstance(found[name], int | float | None)):
            raise ConfigError(f"{name!r:.40} is {found.get(name, 'missing')!r:.40}, not a number")


@dataclass(frozen=True)
class Latencies:
    """Of policies: what each was made of, and milliseconds of a decision, p50 and p99."""

    fingerprints: dict[str, str]
    milliseconds: dict[str, dict[str, float]]

    def __post_init__(self) -> None:
        for name in {**self.fingerprints, **self.milliseconds}:
            timed = self.milliseconds.get(name)
            if not isinstance(timed, dict) or not all(isinstance(timed.get(p), int | float) for p in ("p50", "p99")):
                raise ConfigError(f"no p50 and p99 of {name!r:.40}")
