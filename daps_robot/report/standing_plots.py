"""The plots of a leaderboard. Each function takes standings and a palette, and returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from daps_robot.report.plots import ROUND, row_names, tick
from daps_robot.report.standings import Standing
from daps_robot.report.style import SMALL, Palette, legend, panel
from daps_robot.rollout.across_seeds import Interval

NAMES = {"best": "best validation", "last": "last validations"}
WIDE = 5.6


def _rows(palette: Palette, places: Sequence[Standing], x: str, top: float = 0.3) -> tuple[Figure, Axes]:
    """A plot with a row for every policy."""
    drawn, ax = panel(palette, x, "", (WIDE, 0.8 + top + 0.36 * len(places)), left=1.2, top=top)
    row_names(ax, palette, [place.policy for place in places])
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=ROUND))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}".replace("-", "−") + "%"))
    return drawn, ax


def _kinds(places: Sequence[Standing], outcome: str) -> list[tuple[str, float, float]]:
    """Which models are shown, where in their row, how strongly."""
    found = [models for models in ("best", "last") if f"{outcome}.{models}" in places[0].figures]
    return list(zip(found, (-0.16, 0.16) if len(found) == 2 else (0.0,), (0.45, 1.0) if len(found) == 2 else (1.0,), strict=True))


def means(palette: Palette, places: Sequence[Standing], outcome: str) -> Figure:
    """Mean success or score of each policy with its interval, the mean of every seed, and the tokenizer's ceiling."""
    drawn, ax = _rows(palette, places, f"{outcome}, with 95% interval")
    for models, shift, strength in _kinds(places, outcome):
        for i, place in enumerate(places):
            figure = place.figures[f"{outcome}.{models}"]
            _interval(ax, palette, i + shift, figure.interval, strength, NAMES[models] if i == 0 else None)
            ax.plot(figure.by_seed, [i + shift] * len(figure.by_seed), "|", color=palette.ink, markersize=7, markeredgewidth=0.9)
    if outcome == "success":
        shown = [(i, place.ceiling.mean) for i, place in enumerate(places) if place.ceiling is not None]
        if shown:
            rows, values = zip(*shown, strict=True)
            ax.plot(values, rows, "D", color="none", markeredgecolor=palette.ink, markersize=5, label="tokenizer ceiling")
    lows = [figure.interval.low for place in places for name, figure in place.figures.items() if name.startswith(outcome)]
    ax.set_xlim(max(0.0, min(lows) - 0.03), 1.01)
    legend(ax, palette)
    return drawn


def differences(palette: Palette, places: Sequence[Standing], outcome: str) -> Figure:
    """Each policy's difference to the reference; pale where the interval holds zero."""
    others = [place for place in places if place.figures[f"{outcome}.best"].difference is not None]
    drawn, ax = _rows(palette, others, f"difference in {outcome}, with 95% interval")
    ax.axvline(0, color=palette.ink, linewidth=0.8, linestyle=(0, (4, 3)))
    for models, shift, strength in _kinds(others, outcome):
        for i, place in enumerate(others):
            found = place.figures[f"{outcome}.{models}"].difference
            assert found is not None
            _interval(ax, palette, i + shift, found, strength, NAMES[models] if i == 0 else None, hollow=not found.clear_of_zero)
    legend(ax, palette)
    return drawn


def _interval(
    ax: Axes, palette: Palette, row: float, of: Interval, strength: float, label: str | None, hollow: bool = False
) -> None:
    ax.plot([of.low, of.high], [row, row], color=palette.accent, alpha=strength, linewidth=2.2, solid_capstyle="round")
    face = "none" if hollow else palette.accent
    ax.plot(of.mean, row, "o", color=face, markeredgecolor=palette.accent, alpha=strength, markersize=6, label=label)


def over_latency(palette: Palette, places: Sequence[Standing], key: str) -> Figure:
    """A figure of the policies over the time of a decision, on a logarithmic axis."""
    drawn, ax = panel(palette, "milliseconds of a decision (median)", key.partition(".")[0], (WIDE, 3.4))
    for place in places:
        if not place.latency:
            continue
        x, of = place.latency["p50"], place.figures[key].interval
        ax.plot([x, x], [of.low, of.high], color=palette.accent, alpha=0.35, linewidth=2.2, solid_capstyle="round")
        ax.plot(x, of.mean, "o", color=palette.accent, markersize=6)
        ax.annotate(place.policy, (x, of.mean), (6, 4), textcoords="offset points", color=palette.ink, fontsize=SMALL)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_minor_locator(LogLocator(subs=()))
    ax.xaxis.set_major_formatter(FuncFormatter(tick))
    ax.margins(x=0.15)
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
    return drawn
