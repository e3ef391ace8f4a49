"""What the page about the codes of a tokenizer draws."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from daps_robot.report.code_meaning import BINS, CodeGroup, PositionUse
from daps_robot.report.plots import MANY, ROUND
from daps_robot.report.style import HEAT, SMALL, Palette, dress, legend, panel

Limits = Sequence[tuple[float, float]]
"""Of each action dimension, the same in every plot of it, so that codes can be compared."""

ACROSS = 4
"""Plots in a row of a sheet."""


def phase_information(palette: Palette, uses: Sequence[PositionUse]) -> Figure:
    """What the code of each position tells of the phase, and what it would by chance."""
    figure, ax = panel(palette, "position in the code sequence", "bits", (5.6, 2.9))
    numbers = np.arange(len(uses))
    ax.bar(numbers, [use.information for use in uses], color=palette.accent, width=0.62, label="found")
    ax.hlines([use.chance for use in uses], numbers - 0.42, numbers + 0.42, color=palette.ink, linewidth=1.6, label="by chance")
    for x, use in zip(numbers, uses, strict=True) if len(uses) <= MANY else ():
        ax.annotate(
            f"{use.information - use.chance:.2f}", (x, use.information), (0, 2), textcoords="offset points", ha="center",
            color=palette.ink, fontsize=SMALL,
        )  # fmt: skip
    ax.set_ylim(0, max(1.12 * max(use.information for use in uses), 0.01))
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=ROUND))
    if len(uses) <= MANY:
        ax.set_xticks(numbers)
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    legend(ax, palette)
    return figure


def phases(palette: Palette, codes: Sequence[int], counts: Int[np.ndarray, "c bins"]) -> Figure:
    """When each code occurs: a row a code, those of the beginning above; the darker, the more of its windows."""
    share = counts / counts.sum(1, keepdims=True)
    order = np.argsort(share @ np.arange(BINS), kind="stable")
    size = (5.6, 1.05 + 0.17 * len(codes))
    figure, ax = panel(palette, "share of the demonstration that is over, %", "code", size)
    pixels = np.zeros((*share.shape, 4))
    pixels[..., :3] = HEAT
    pixels[..., 3] = share[order] / share.max()
    ax.imshow(pixels, aspect="auto", interpolation="nearest", extent=(0, 100, len(codes) - 0.5, -0.5))
    ax.grid(False)
    ax.set_yticks(range(len(codes)), [str(codes[i]) for i in order])
    ax.tick_params(axis="y", labelsize=SMALL, length=0)
    ax.set_xticks(range(0, 101, 20))
    for row, i in enumerate(order):
        ax.annotate(
            f"{counts[i].sum():,}", (100, row), (4, 0), textcoords="offset points", va="center", color=palette.muted,
            fontsize=SMALL,
        )  # fmt: skip
    return figure


def actions(palette: Palette, group: CodeGroup, names: Sequence[str], limits: Limits) -> Figure:
    """A small plot for each action dimension: the mean of a code's windows, their spread, and what the codes decode to; pale from
    the step on at which half of the windows are past the end of their demonstration."""
    columns = min(len(names), ACROSS)
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(2.75 * columns, 1.45 * rows + 0.3))
    figure.subplots_adjust(
        left=0.5 / figure.get_figwidth(), right=0.99, bottom=0.45 / figure.get_figheight(), top=1 - 0.3 / figure.get_figheight(),
        wspace=0.28, hspace=0.62,
    )  # fmt: skip
    last = max(1, int((group.present >= 0.5).sum()))  # the shares fall
    often, seldom = np.arange(last), np.arange(last - 1, len(group.mean))
    for i, name in enumerate(names):
        ax = figure.add_subplot(rows, columns, i + 1)
        dress(ax, palette, "step of the chunk" if i >= len(names) - columns else "", name)
        for steps, strength in ((often, 1.0), (seldom, 0.35)):
            mean, spread, decoded = (values[steps, i] for values in (group.mean, group.deviation, group.decoded))
            ax.fill_between(steps, mean - spread, mean + spread, color=palette.accent, alpha=0.2 * strength, linewidth=0)
            ax.plot(steps, mean, color=palette.accent, alpha=strength, linewidth=1.6)
            ax.plot(steps, decoded, color=palette.ink, alpha=strength, linewidth=1.3, linestyle=(0, (2, 1.4)))
        ax.set_ylim(*limits[i])
        ax.set_xlim(-0.3, len(group.mean) - 0.7)
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=ROUND))
        ax.yaxis.set_major_locator(MaxNLocator(3, steps=ROUND))
    return figure


def action_limits(groups: Sequence[CodeGroup]) -> list[tuple[float, float]]:
    """Heights that hold everything `actions` draws of some codes."""
    drawn: list[Float[np.ndarray, "h a"]] = []
    for group in groups:
        drawn += [group.mean - group.deviation, group.mean + group.deviation, group.decoded]
    low, high = np.nanmin(drawn, axis=(0, 1)), np.nanmax(drawn, axis=(0, 1))
    margin = 0.06 * (high - low) + 1e-6 * np.maximum(1.0, np.abs(high))
    return list(zip((low - margin).tolist(), (high + margin).tolist(), strict=True))
