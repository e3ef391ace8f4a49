"""The plots of the page. Each function takes plain data and a palette, and returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeGuard

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from daps_robot.report.measure import ChunkTrace, CodeUsage
from daps_robot.report.style import HEAT, HEIGHT, SMALL, WIDTH, Palette, dress, legend, panel

ROUND = [1, 2, 2.5, 5, 10]
"""Distances of ticks, times powers of ten."""

MANY = 16
"""Positions of a code sequence above which they are no longer numbered one by one."""

Series = Float[np.ndarray, "2 _"]


def compact(value: float) -> str:
    """Three significant digits in at most six characters: 0.325, 1540, 15.4k, −1.25M; two digits of what is small."""
    for size, unit in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= size * 0.99995:
            return _minus(f"{value / (1e6 if unit == 'M' else 1e3):.3g}{unit}")
    if abs(value) >= 999.5:
        return _minus(f"{value:.0f}")
    return _minus(f"{value:.{3 if abs(value) >= 0.01 else 2}g}".replace("e-0", "e-"))


def tick(value: float, _: int = 0) -> str:
    """A number at an axis, exactly: 0.25, 5000, 15.5k, −16k."""
    return _minus(f"{value / 1000:.10g}k" if abs(value) >= 10_000 else f"{value:.10g}".replace("e-0", "e-"))


def _minus(text: str) -> str:
    return text.replace("-", "−")


@dataclass(frozen=True)
class Phases:
    """The warm start of a tokenizer's training, in steps; 0 where there was none.

    Attributes:
        end: last logged step of the warm start.
        last: last step of the training.
    """

    end: int = 0
    last: int = 0


def curve(
    palette: Palette,
    y: str,
    *,
    valid: Series | None = None,
    train: Series | None = None,
    names: tuple[str, str] = ("validation", "training"),
    phases: Phases | None = None,
    line: tuple[float, str] | None = None,
    limits: tuple[float | None, float | None] = (None, None),
    log: bool = False,
) -> Figure:
    """A metric over the training steps, on validation in the accent and on the training batches in grey (or either alone).

    Args:
        palette: colours.
        y: the metric's unit.
        valid, train: steps and values; empty or None where there are none.
        names: of the two, where they are something else.
        phases: shades the warm start.
        line: a height worth comparing with, and its name.
        limits: of the heights; None fits them to the curve.
        log: logarithmic heights.
    """
    figure, ax = panel(palette, "training step", y)
    shown = [series for series in (valid, train) if drawable(series)]
    last = max([phases.last if phases else 0, *(int(series[0, -1]) for series in shown)])
    if phases and phases.end:
        _shade(ax, palette, phases)
    both = len(shown) == 2
    if drawable(train):
        _line(ax, train, palette.muted if both else palette.accent, names[1], thin=both)
    if drawable(valid):
        _line(ax, valid, palette.accent, names[0])
    if log:
        ax.set_yscale("log")
        _plain_log_ticks(ax, np.concatenate([series[1] for series in shown]))
    else:
        ax.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
        ax.yaxis.set_major_formatter(FuncFormatter(tick))
    if line is not None:
        ax.axhline(line[0], color=palette.ink, linewidth=0.8, linestyle=(0, (4, 3)))
        ax.annotate(
            line[1], (0, line[0]), (4, 3), xycoords=("axes fraction", "data"), textcoords="offset points", color=palette.ink,
            fontsize=SMALL,
        )  # fmt: skip
    ax.set_ylim(*limits)
    if phases and phases.end:
        _headroom(ax)
    ax.set_xlim(0, last * 1.01)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=ROUND))
    if both:
        legend(ax, palette)
    make_room(figure, ax)
    return figure


def drawable(series: Series | None) -> TypeGuard[Series]:
    """Whether a curve has anything to show."""
    return series is not None and bool(np.isfinite(series).all(axis=0).any())


def make_room(figure: Figure, ax: Axes) -> None:
    """Move the left edge inwards where the numbers at it are long."""
    low, high = sorted(ax.get_ylim())
    longest = max((len(tick(value)) for value in ax.get_yticks() if low <= value <= high), default=0)
    box = ax.get_position()
    shift = 0.08 * max(0, longest - 5) / figure.get_figwidth()
    ax.set_position((box.x0 + shift, box.y0, box.width - shift, box.height))


def _line(ax: Axes, series: Series, colour: str, label: str, thin: bool = False) -> None:
    """A curve; few points get markers (of a thin one, a single point), and the last one its value."""
    finite = np.isfinite(series[1])
    marker = "o" if finite.sum() <= (1 if thin else 25) else None
    ax.plot(*series, color=colour, linewidth=1.1 if thin else 1.7, marker=marker, markersize=3.2, label=label)
    if not thin and finite.any():
        x, y = series[:, finite][:, -1]
        ax.annotate(compact(y), (x, y), (4, 0), textcoords="offset points", color=colour, va="center", fontsize=SMALL)


def _headroom(ax: Axes) -> None:
    """Place above the curves, for the name of the shaded phase."""
    low, high = ax.get_ylim()
    ax.set_ylim(low, high * (high / low) ** 0.12 if ax.get_yscale() == "log" else high + 0.12 * (high - low))


def _shade(ax: Axes, palette: Palette, phases: Phases) -> None:
    ax.axvspan(0, phases.end, color=palette.pale, linewidth=0, zorder=0)
    ax.annotate(
        "warm start",
        (phases.end / 2, 1),
        (0, -3),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="center",
        va="top",
        color=palette.muted,
        fontsize=SMALL,
    )


def _plain_log_ticks(ax: Axes, values: Float[np.ndarray, " n"]) -> None:
    values = values[np.isfinite(values) & (values > 0)]
    wide = values.size > 0 and values.max() / values.min() > 300
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    ax.yaxis.set_minor_locator(LogLocator(subs=()))
    ax.yaxis.set_major_formatter(FuncFormatter(tick))


def positions(palette: Palette, series: Sequence[Series], y: str) -> Figure:
    """One curve for each code position: the first darkest, the last faintest."""
    figure, ax = panel(palette, "training step", y)
    ends = []
    for i, (steps, values) in enumerate(series):
        strength = 1 - 0.72 * i / max(len(series) - 1, 1)
        marker = "o" if len(steps) <= 25 else None
        ax.plot(steps, values, color=palette.accent, alpha=strength, linewidth=1.5, marker=marker, markersize=3)
        ends.append((values[-1], i))
    if len(series) <= MANY:
        _label_ends(ax, palette, ends, float(series[0][0, -1]))
    ax.set_xlim(0, series[0][0, -1] * 1.01)
    ax.set_ylim(0, None)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=ROUND))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
    return figure


def _label_ends(ax: Axes, palette: Palette, ends: Sequence[tuple[float, int]], x: float) -> None:
    """The number of each curve beside its end, moved apart where two would overlap."""
    low, high = ax.get_ylim()
    gap = (high - min(low, 0)) * 0.085
    height = -np.inf
    for value, number in sorted(ends):
        height = max(value, height + gap)
        ax.annotate(str(number), (x, height), (6, 0), textcoords="offset points", va="center", color=palette.ink, fontsize=SMALL)


def chunk(palette: Palette, trace: ChunkTrace, dimension: int, name: str) -> Figure:
    """One action dimension of one demonstration: true, reconstructed (by a policy with codes), planned."""
    figure, ax = panel(palette, "step", name, size=(3.3, 1.9))
    _chunk_lines(ax, palette, trace, dimension)
    return figure


def chunk_sheet(palette: Palette, trace: ChunkTrace, names: Sequence[str]) -> Figure:
    """All action dimensions of one demonstration in one picture."""
    columns = min(len(names), 4)
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(2.9 * columns, 1.9 * rows + 0.35))
    figure.subplots_adjust(left=0.05, right=0.985, bottom=0.14 if rows > 1 else 0.22, top=0.82, wspace=0.26, hspace=0.75)
    for i, name in enumerate(names):
        ax = figure.add_subplot(rows, columns, i + 1)
        dress(ax, palette, "step", name)
        _chunk_lines(ax, palette, trace, i)
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", ncols=3, frameon=False, labelcolor=palette.ink)
    return figure


def _chunk_lines(ax: Axes, palette: Palette, trace: ChunkTrace, dimension: int) -> None:
    steps = len(trace.true)
    for start in trace.starts[1:]:
        ax.axvline(start - 0.5, color=palette.faint, linewidth=0.6)
    ax.plot(trace.true[:, dimension], color=palette.muted, linewidth=3, alpha=0.5, label="demonstrated", solid_capstyle="round")
    through_codes = [] if trace.tokenizer is None else [("tokenizer", trace.tokenizer, "-")]
    for name, values, style in (*through_codes, ("policy", trace.policy, (0, (2, 1.4)))):
        colour = palette.accent if name == "tokenizer" else palette.ink
        for i, (a, b) in enumerate(pairwise([*trace.starts, steps])):
            ax.plot(
                np.arange(a, b), values[a:b, dimension], color=colour, linewidth=1.3, linestyle=style, label=None if i else name
            )
    ax.set_xlim(-1, steps)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=ROUND))
    ax.yaxis.set_major_locator(MaxNLocator(4, steps=ROUND))


def usage(palette: Palette, used: CodeUsage) -> Figure:
    """Codes of every position, most frequent first; the darker, the more often."""
    l, v = used.counts.shape
    figure, ax = panel(palette, "codes, most frequent first", "position", size=(WIDTH, HEIGHT))
    share = np.sort(used.counts, axis=1)[:, ::-1] / max(used.windows, 1)
    pixels = np.zeros((l, v, 4))
    pixels[..., :3] = HEAT
    pixels[..., 3] = (share / max(share.max(), 1e-12)) ** 0.4  # rare codes stay visible
    ax.imshow(pixels, aspect="auto", interpolation="nearest", extent=(0.5, v + 0.5, l - 0.5, -0.5))
    ax.grid(False)
    if l <= MANY:
        ax.set_yticks(range(l))
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=ROUND))
    for i, row in enumerate(used.counts):
        last = int((row > 0).sum())
        ax.plot([last + 0.5] * 2, [i - 0.4, i + 0.4], color=palette.accent, linewidth=1.6)
    return figure


def per_position(palette: Palette, values: Float[np.ndarray, " l"], y: str, top: float | None = None) -> Figure:
    """A bar for each code position; those of a share, up to `top` = 1, are labelled in percent."""
    figure, ax = panel(palette, "position in the code sequence", y)
    numbers = np.arange(len(values))
    ax.bar(numbers, values, color=palette.accent, width=0.62)
    for x, value in zip(numbers, values, strict=True) if len(values) <= MANY else ():
        text = f"{value:.0%}" if top == 1 else f"{value:.0f}"
        ax.annotate(text, (x, value), (0, 2), textcoords="offset points", ha="center", color=palette.ink, fontsize=SMALL)
    ax.set_ylim(0, 1.12 * (top or float(max(values))))
    if len(values) <= MANY:
        ax.set_xticks(numbers)
    if top == 1:
        ax.set_yticks(np.linspace(0, 1, 5))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
    return figure


def by_prefix(palette: Palette, errors: Series) -> Figure:
    """Reconstruction error against the number of leading codes that are decoded."""
    figure, ax = panel(palette, "codes, from the first on", "root mean square error, action units")
    _line(ax, errors, palette.accent, "error")
    ax.set_xlim(0, errors[0, -1] * 1.08)
    ax.set_ylim(0, 1.1 * float(errors[1].max()))
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=ROUND))
    return figure


def errors(
    palette: Palette, names: Sequence[str], bars: Sequence[tuple[str, Sequence[float]]], deviation: Float[np.ndarray, " a"] | None
) -> Figure:
    """Reconstruction error of each action dimension, one group of bars each, with the actions' own spread across them."""
    size = (WIDTH, 1.11 + 0.42 * len(names))
    figure, ax = panel(palette, "root mean square error, action units", "", size, left=0.8, top=0.62)
    centres = np.arange(len(names))
    height = 0.76 / max(len(bars), 1)
    looks = [(palette.accent, 1.0), (palette.accent, 0.45), (palette.ink, 0.7), (palette.muted, 0.5)]
    for i, ((label, values), (colour, alpha)) in enumerate(zip(bars, looks, strict=False)):
        place = centres + (i - (len(bars) - 1) / 2) * height
        ax.barh(place, values, height * 0.88, label=label, color=colour, alpha=alpha)
    if deviation is not None:
        ax.vlines(deviation, centres - 0.44, centres + 0.44, color=palette.ink, linewidth=1.4, label="standard deviation")
    row_names(ax, palette, names)
    legend(ax, palette, columns=2)
    return figure


def row_names(ax: Axes, palette: Palette, names: Sequence[str]) -> None:
    """Names down the left side of a plot of horizontal bars, the first on top."""
    ax.set_yticks(np.arange(len(names)), list(names))
    ax.tick_params(axis="y", labelcolor=palette.ink, length=0)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(False)
    ax.grid(True, axis="x", color=palette.faint, linewidth=0.5)


def lengths(palette: Palette, won: Sequence[int], lost: Sequence[int], max_steps: int | None) -> Figure:
    """How long the episodes took; failures hatched."""
    figure, ax = panel(palette, "steps until success, or until given up", "episodes")
    top = max([*won, *lost, max_steps or 1])
    edges = np.linspace(0, top, 31)
    below = np.histogram(won, edges)[0]
    above = np.histogram(lost, edges)[0]
    width = float(edges[1])
    ax.bar(edges[:-1], below, width, align="edge", color=palette.accent, label=f"success ({len(won)})")
    shown = np.flatnonzero(above)  # without the outlines of empty bars
    ax.bar(
        edges[shown], above[shown], width, below[shown], align="edge", facecolor="none", edgecolor=palette.ink,
        hatch="/////", linewidth=0.8, label=f"failure ({len(lost)})",
    )  # fmt: skip
    ax.set_xlim(0, top * 1.01)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=ROUND))
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True, steps=ROUND))
    legend(ax, palette)
    return figure


def stages(palette: Palette, seconds: Sequence[tuple[str, float]]) -> Figure:
    """Seconds of each stage, in the order in which they ran."""
    figure, ax = panel(palette, "seconds", "", (WIDTH, 0.6 + 0.25 * len(seconds)), left=1.15, top=0.06)
    ax.barh(np.arange(len(seconds)), [value for _, value in seconds], height=0.6, color=palette.accent)
    for row, (_, value) in enumerate(seconds):
        text = f"{value:.1f}" if value < 100 else f"{value:.0f}"
        ax.annotate(text, (value, row), (4, 0), textcoords="offset points", va="center", color=palette.ink, fontsize=SMALL)
    row_names(ax, palette, [name for name, _ in seconds])
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    return figure
