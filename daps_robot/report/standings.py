"""What a leaderboard says of its policies: means over seeds and start states, differences, and which of them are clear."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Literal

import numpy as np
from jaxtyping import Float

from daps_robot.rollout.across_seeds import Interval, mean_over_seeds, paired_difference
from daps_robot.types import JSON

Outcome = Literal["success", "score"]
Models = Literal["best", "last"]


@dataclass(frozen=True)
class Figure:
    """One measure of one policy.

    Attributes:
        interval: mean and interval over seeds and start states.
        by_seed: the mean of each seed.
        difference: to the reference policy on the same start states; None for itself.
        first: whether it is ahead of every other policy by a difference that is clear of zero.
    """

    interval: Interval
    by_seed: tuple[float, ...]
    difference: Interval | None
    first: bool


@dataclass(frozen=True)
class Standing:
    """A policy of a leaderboard.

    Attributes:
        policy: its name.
        seeds: how many trainings.
        figures: "success.best" and so on → figure; "last" is the mean over the last models of a run, "score" is there where the
            task gives scores that are not success alone.
        ceiling: success of the scripted expert through the tokenizers, or None.
        bits: of a chunk, or None without a tokenizer.
        parameters: of the saved policy, those of the tokenizer included.
        horizon, execute: steps of a chunk, and how many of them are executed.
        seconds: of training, tokenizer included, mean over seeds.
        latency: milliseconds of a decision, "p50" and "p99"; empty where it was not measured.
    """

    policy: str
    seeds: int
    figures: dict[str, Figure]
    ceiling: Interval | None
    bits: float | None
    parameters: int
    horizon: int
    execute: int
    seconds: float
    latency: dict[str, float]


def outcomes(runs: Sequence[JSON], models: Models, outcome: Outcome) -> Float[np.ndarray, "s e"]:
    """A policy's outcomes, a row for each of its runs; of "last", the mean over the last models."""
    played = [[run["best"]] if models == "best" else list(run["last"].values()) for run in runs]
    return np.array([np.mean([each[outcome] for each in of_run], axis=0) for of_run in played], dtype=float)


def standings(runs: Sequence[JSON], reference: str, latency: dict[str, dict[str, float]]) -> list[Standing]:
    """The policies of all runs, the best first: by score, or success where there is none, of the last (else the best) models."""
    of = {name: [run for run in runs if run["policy"] == name] for name in dict.fromkeys(run["policy"] for run in runs)}
    figures: dict[str, dict[str, Figure]] = {name: {} for name in of}
    for models in models_of(runs):
        for outcome in outcomes_of(runs):
            found = {name: outcomes(mine, models, outcome) for name, mine in of.items()}
            first = clear_first(found)
            for name, values in found.items():
                difference = None if name == reference else paired_difference(values, found[reference])
                of_seed = tuple(float(each) for each in values.mean(1))
                figures[name][f"{outcome}.{models}"] = Figure(mean_over_seeds(values), of_seed, difference, name == first)
    key = f"{outcomes_of(runs)[-1]}.{models_of(runs)[-1]}"
    ordered = sorted(of, key=lambda name: -figures[name][key].interval.mean)
    return [
        Standing(
            policy=name,
            seeds=len(of[name]),
            figures=figures[name],
            ceiling=ceiling(of[name]),
            **{key: of[name][0][key] for key in ("bits", "parameters", "horizon", "execute")},
            seconds=mean(sum(run["seconds"].values()) for run in of[name]),
            latency=latency.get(name, {}),
        )
        for name in ordered
    ]


def conditions(runs: Sequence[JSON]) -> str:
    """In words, how codes were chosen, and what all policies saw where the study said that."""
    chosen: dict[str, dict[str, None]] = {}
    for run in runs:
        if run["method"] is not None:
            chosen.setdefault(run["method"], {})[run["policy"]] = None
    parts = [f"{method} ({', '.join(policies)})" for method, policies in chosen.items()]
    text = f"Codes are chosen by {' and '.join(parts)}. " if parts else ""
    n = runs[0]["history"]
    seen = [] if n is None else [f"{n} observation{'s' if n > 1 else ''}"]
    if runs[0]["obs_rotation"] == "6d":
        seen.append("quaternions as 6-D rotations")
    return text + (f"Every policy sees {' and '.join(seen)}." if seen else "")


def models_of(runs: Sequence[JSON]) -> tuple[Models, ...]:
    """Which models were rolled out."""
    return ("best", "last") if all(run["last"] for run in runs) else ("best",)


def outcomes_of(runs: Sequence[JSON]) -> tuple[Outcome, ...]:
    """What an episode was measured by: scores are left out where they are success itself."""
    graded = any(run["best"]["score"] != [float(success) for success in run["best"]["success"]] for run in runs)
    return ("success", "score") if graded else ("success",)


def clear_first(found: dict[str, Float[np.ndarray, "s e"]]) -> str | None:
    """The policy whose difference to every other is above zero with its whole interval, if there is one among several."""
    first = max(found, key=lambda name: found[name].mean())
    others = [paired_difference(found[first], values) for name, values in found.items() if name != first]
    return first if others and all(each.low > 0 for each in others) else None


def ceiling(runs: Sequence[JSON]) -> Interval | None:
    """The expert's success through the tokenizers of these runs."""
    if any(run["ceiling"] is None or "missing" in run["ceiling"] for run in runs):
        return None
    return mean_over_seeds(np.array([run["ceiling"]["success"] for run in runs], dtype=float))
