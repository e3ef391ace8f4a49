"""The page's curves of the two trainings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from daps_robot.models.policy import LatentPolicy
from daps_robot.report import plots
from daps_robot.report.html import figure, grid, missing, paragraph, section
from daps_robot.report.run import Metrics, Run
from daps_robot.report.style import PAGE, to_svg
from daps_robot.types import SizedPolicy

BITS = np.array([[1.0], [1 / math.log(2)]])
"""Bits in a nat, to multiply (2 n) steps and values with."""


class Panel(NamedTuple):
    """A curve to draw: its title, the metric's unit, what good looks like, and how `plots.curve` is to draw it."""

    title: str
    unit: str
    caption: str
    how: dict[str, Any]


def tokenizer_curves(run: Run, policy: LatentPolicy) -> str:
    """How the tokenizer learned."""
    title, metrics = "How the tokenizer learned", run.tokenizer
    if not metrics.rows:
        return section(title, missing(f"No curves: the tokenizer's metrics are not at {metrics.path}."))
    if not metrics.last_step:
        return section(title, missing("It did not: its tables were fitted in one go."))
    warm = phases(metrics)
    daps = run.get("configuration.tokenizer.command.settings", {})
    panels = [*_what_it_reaches(metrics, policy), *how_it_searches(metrics, daps.get("k"), daps.get("ess_target"))]
    drawn, absent = [], []
    for i, panel in enumerate(panels):
        if any(plots.drawable(panel.how.get(split)) for split in ("valid", "train")):
            svg = to_svg(plots.curve(PAGE, panel.unit, phases=warm, **panel.how), f"tokenizer{i}", panel.title)
            drawn.append(figure(svg, panel.title, panel.caption))
        else:
            absent.append(panel.title)
    return section(title, paragraph(_phase_text(warm), "muted"), grid(drawn), *_not_logged(absent, metrics))


def _what_it_reaches(metrics: Metrics, policy: LatentPolicy) -> list[Panel]:
    codes = policy.tokenizer.config.codes
    return [
        Panel(
            "Reconstruction",
            "nats per chunk",
            "How surprised the decoder is by the true actions, given their codes. Good: falls, with validation close to "
            "training.",
            {"valid": metrics.series("valid", "reconstruction"), "train": metrics.series("train", "reconstruction")},
        ),
        Panel(
            "Evidence lower bound (ELBO)",
            "nats per chunk",
            "Minus reconstruction, minus the full cost of the codes (β = 1). Good: rises and levels off.",
            {"valid": metrics.series("valid", "elbo")},
        ),
        Panel(
            "Codes in use (perplexity)",
            f"of {codes.vocabulary} codes",
            "Mean over the positions. Good: tens or more; a fall towards 1 is a collapse.",
            {"valid": metrics.series("valid", "perplexity"), "limits": (0.0, None)},
        ),
        Panel(
            "Information (KL) and entropy",
            "bits per chunk",
            "What the codes tell about a chunk (KL), and what the encoder leaves open (entropy). Good: KL rises, under the "
            "capacity; entropy falls, but not to zero at once.",
            {
                "valid": metrics.series("valid", "kl") * BITS,
                "train": metrics.series("valid", "entropy") * BITS,
                "names": ("KL", "entropy"),
                "line": (codes.bits, "capacity"),
                "limits": (0.0, codes.bits * 1.15),
            },
        ),
    ]


def how_it_searches(metrics: Metrics, k: int | None, ess_target: float | None) -> list[Panel]:
    """The quantities of DAPS; `k` samples per input and the target of their effective size as a share, where known."""
    limits = (0.0, 1.2 * k) if k else (0.0, None)
    return [
        Panel(
            "Effective sample size (ESS)",
            "samples",
            f"How many of the {k or 'K'} sampled code sequences have a say in an update. Good: on its target.",
            {
                "train": metrics.series("train", "ess"),
                "line": (k * ess_target, "target") if k and ess_target else None,
                "limits": limits,
            },
        ),
        Panel(
            "Distinct samples",
            "samples",
            "Different sequences among those sampled for an input. Good: near --k, or there is nothing to compare.",
            {"train": metrics.series("train", "distinct"), "line": (float(k), "all different") if k else None, "limits": limits},
        ),
        Panel(
            "Temperature η",
            "logarithmic",
            "How gently an update treats the worse samples; set so that the ESS meets its target. Good: changes slowly, no wall.",
            {"train": metrics.series("train", "eta"), "log": True},
        ),
        Panel(
            "Weight of the codes' cost, β",
            "logarithmic",
            "How much undecidedness is rewarded; falls by plan. Good: a straight line.",
            {"train": metrics.series("train", "beta"), "log": True},
        ),
    ]


def phases(metrics: Metrics) -> plots.Phases:
    """Where the warm start ended: it logs no ELBO yet."""
    steps, elbo = metrics.series("train", "elbo_beta")
    there = np.isfinite(elbo)
    first = int(np.argmax(there)) if there.any() else 0
    return plots.Phases(int(steps[first - 1]) if first else 0, metrics.last_step)


def _phase_text(phases: plots.Phases) -> str:
    if not phases.end:
        return "Trained without a warm start."
    return (
        f"Up to step {phases.end} (shaded) the encoder trains as a quantiser, which finds first codes; from there DAPS improves "
        "them: it samples several codes for a chunk, sees which rebuild it best, and makes those likelier."
    )


def _not_logged(absent: list[str], metrics: Metrics) -> list[str]:
    return [missing(f"Not logged by this training, so not drawn: {', '.join(absent)} ({metrics.path}).")] if absent else []


def policy_curves(run: Run, policy: SizedPolicy) -> str:
    """How the policy learned."""
    title, metrics = "How the policy learned", run.policy
    if not metrics.rows:
        return section(title, missing(f"No curves: the policy's metrics are not at {metrics.path}."))
    drawn: list[str] = []
    absent: list[str] = []
    learned = _codes_learned(metrics, policy) if isinstance(policy, LatentPolicy) else _loss(metrics)
    for name, caption, there, draw in (*learned, _planning_error(metrics)):
        if there:
            drawn.append(figure(to_svg(draw(), f"policy{len(drawn)}", name), name, caption))
        else:
            absent.append(name)
    return section(title, grid(drawn), *_not_logged(absent, metrics))


Drawing = tuple[str, str, bool, Callable[[], Figure]]
"""A title, what good looks like, whether there is anything to draw, and how."""


def _loss(metrics: Metrics) -> list[Drawing]:
    valid, train = metrics.series("valid", "loss"), metrics.series("train", "loss")
    caption = "What this kind of policy makes small. Good: falls; if validation turns up, it learns by heart."
    return [("Loss", caption, bool(valid.size or train.size), lambda: plots.curve(PAGE, "as trained", valid=valid, train=train))]


def _codes_learned(metrics: Metrics, policy: LatentPolicy) -> list[Drawing]:
    blind = policy.config.codes.bits * math.log(2)
    nll = metrics.series("valid", "nll"), metrics.series("train", "nll")
    accuracy = metrics.numbered("valid", "accuracy")
    return [
        (
            "Surprise at the codes",
            f"In the codes of a chunk; guessing blindly costs {blind:.0f}. Good: falls; if validation turns up, it learns by "
            "heart.",
            bool(nll[0].size or nll[1].size),
            lambda: plots.curve(PAGE, "nats per chunk", valid=nll[0], train=nll[1]),
        ),
        (
            "Accuracy per position",
            "Held-out codes predicted exactly, given those before; numbers are positions. Good: rises, but need not be high: "
            "many codes decode alike.",
            bool(accuracy),
            lambda: plots.positions(PAGE, accuracy, "codes right"),
        ),
    ]


def _planning_error(metrics: Metrics) -> Drawing:
    error = metrics.series("valid", "chunk_error")
    return (
        "Error of the planned chunk",
        "Squared error of the planned actions over the square of each dimension's scale. Good: falls, down to the noise of "
        "the demonstrations.",
        bool(error.size),
        lambda: plots.curve(PAGE, "squared error / scale²", valid=error, limits=(0.0, 1.08 * float(np.nanmax(error[1])))),
    )
