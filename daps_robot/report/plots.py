"""The plots of the page. Each function takes plain data and a palette, and returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from daps_robot.report.measure import ChunkTrace, CodeUsage
from daps_robot.report.style import HEAT, HEIGHT, WIDTH, Palette, dress, legend, panel

Series = Float[np.ndarray, "2 n"]


@dataclass(frozen=True)
class Phases:
    """The warm start of a tokenizer's training, in steps; 0 where there was none.

    Attributes:
        end: last logged step of the warm start.
        teach: last logged step before the code model alone learned; 0 if it never did.
        last: last step of the training.
    """

    end: int = 0
    teach: int = 0
    last: int = 0


def curve(
    palette: Palette,
    y: str,
    *,
    valid: Series | None = None,
    train: Series | None = None,
    phases: Phases | None = None,
    line: tuple[float, str] | None = None,
    log: bool = False,
) -> Figure:
    """A metric over the training steps: the training batches in grey, validation (or the only one there is) in the accent.

    Args:
        palette: colours.
        y: the metric's unit.
        valid, train: steps and values; empty or None where there are none.
        phases: shades the warm start.
        line: a height worth comparing with, and its name.
        log: logarithmic heights.
    """
    figure, ax = panel(palette, "training step", y)
    shown = [series for series in (valid, train) if series is not None and series.size]
    last = max([phases.last if phases else 0, *(int(series[0, -1]) for series in shown)])
    if phases and phases.end:
        _shade(ax, palette, phases)
    both = len(shown) == 2
    if train is not None and train.size:
        _line(ax, train, palette.muted if both else palette.accent, "training", thin=both)
    if valid is not None and valid.size:
        _line(ax, valid, palette.accent, "validation")
    if log:
        ax.set_yscale("log")
        _plain_log_ticks(ax, np.concatenate([series[1] for series in shown]))
    else:
        ax.yaxis.set_major_locator(MaxNLocator(5))
    if line is not None:
        ax.axhline(line[0], color=palette.ink, linewidth=0.8, linestyle=(0, (4, 3)))
        ax.annotate(
            line[1], (1, line[0]), (0, 3), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right",
            color=palette.ink, fontsize=8,
        )  # fmt: skip
        ax.margins(y=0.12)
    ax.set_xlim(0, last * 1.01)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if both:
        legend(ax, palette)
    return figure


def _line(ax: Axes, series: Series, colour: str, label: str, thin: bool = False) -> None:
    """A curve; few points get markers, and the last one its value."""
    finite = np.isfinite(series[1])
    marker = "o" if finite.sum() <= 25 and not thin else None
    ax.plot(*series, color=colour, linewidth=1.1 if thin else 1.7, marker=marker, markersize=3.2, label=label)
    if not thin and finite.any():
        x, y = series[:, finite][:, -1]
        ax.annotate(f"{y:.3g}", (x, y), (4, 0), textcoords="offset points", color=colour, va="center", fontsize=8)


def _shade(ax: Axes, palette: Palette, phases: Phases) -> None:
    ax.axvspan(0, phases.end, color=palette.pale, linewidth=0, zorder=0)
    if phases.teach:
        ax.axvline(phases.teach, color=palette.muted, linewidth=0.7, linestyle=(0, (1, 2)))
    ax.annotate(
        "warm start",
        (0, 1),
        (4, -3),
        xycoords="axes fraction",
        textcoords="offset points",
        va="top",
        color=palette.muted,
        fontsize=8,
    )


def _plain_log_ticks(ax: Axes, values: Float[np.ndarray, " n"]) -> None:
    values = values[np.isfinite(values) & (values > 0)]
    wide = values.size > 0 and values.max() / values.min() > 300
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    ax.yaxis.set_minor_locator(LogLocator(subs=()))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def positions(palette: Palette, series: Sequence[Series], y: str) -> Figure:
    """One curve for each code position: the first darkest, the last faintest."""
    figure, ax = panel(palette, "training step", y)
    ends = []
    for i, (steps, values) in enumerate(series):
        strength = 1 - 0.72 * i / max(len(series) - 1, 1)
        marker = "o" if len(steps) <= 25 else None
        ax.plot(steps, values, color=palette.accent, alpha=strength, linewidth=1.5, marker=marker, markersize=3)
        ends.append((values[-1], i + 1))
    _label_ends(ax, palette, ends, float(series[0][0, -1]))
    ax.set_xlim(0, series[0][0, -1] * 1.01)
    ax.set_ylim(0, None)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
    return figure


def _label_ends(ax: Axes, palette: Palette, ends: Sequence[tuple[float, int]], x: float) -> None:
    """The number of each curve beside its end, moved apart where two would overlap."""
    low, high = ax.get_ylim()
    gap = (high - min(low, 0)) * 0.062
    height = -np.inf
    for value, number in sorted(ends):
        height = max(value, height + gap)
        ax.annotate(str(number), (x, height), (6, 0), textcoords="offset points", va="center", color=palette.ink, fontsize=8)


def chunk(palette: Palette, trace: ChunkTrace, dimension: int, name: str) -> Figure:
    """One action dimension of one demonstration: true, reconstructed, planned."""
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
    for name, values, style in (("tokenizer", trace.tokenizer, "-"), ("policy", trace.policy, (0, (2, 1.4)))):
        colour = palette.accent if name == "tokenizer" else palette.ink
        for i, (a, b) in enumerate(pairwise([*trace.starts, steps])):
            ax.plot(
                np.arange(a, b), values[a:b, dimension], color=colour, linewidth=1.3, linestyle=style, label=None if i else name
            )
    ax.set_xlim(-1, steps)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(4))


def usage(palette: Palette, used: CodeUsage) -> Figure:
    """Codes of every position, most frequent first; the darker, the more often."""
    l, v = used.counts.shape
    figure, ax = panel(palette, "codes, most frequent first", "position", size=(2 * WIDTH + 0.4, HEIGHT))
    share = np.sort(used.counts, axis=1)[:, ::-1] / max(used.windows, 1)
    pixels = np.zeros((l, v, 4))
    pixels[..., :3] = HEAT
    pixels[..., 3] = (share / max(share.max(), 1e-12)) ** 0.4  # rare codes stay visible
    ax.imshow(pixels, aspect="auto", interpolation="nearest", extent=(0.5, v + 0.5, l + 0.5, 0.5))
    ax.grid(False)
    ax.set_yticks(range(1, l + 1))
    ax.xaxis.set_major_locator(MaxNLocator(9, integer=True))
    for i, row in enumerate(used.counts):
        last = int((row > 0).sum())
        ax.plot([last + 0.5] * 2, [i + 0.6, i + 1.4], color=palette.accent, linewidth=1.6)
    return figure


def per_position(
    palette: Palette, values: Float[np.ndarray, " l"], y: str, *, top: float | None = None, line: tuple[float, str] | None = None
) -> Figure:
    """A bar for each code position."""
    figure, ax = panel(palette, "position in the code sequence", y)
    numbers = np.arange(1, len(values) + 1)
    ax.bar(numbers, values, color=palette.accent, width=0.62)
    for x, value in zip(numbers, values, strict=True):
        text = f"{value:.0%}" if top == 1 else f"{value:.0f}"
        ax.annotate(text, (x, value), (0, 2), textcoords="offset points", ha="center", color=palette.ink, fontsize=8)
    if line is not None:
        ax.axhline(line[0], color=palette.ink, linewidth=0.8, linestyle=(0, (4, 3)))
        ax.annotate(
            line[1], (1, line[0]), (0, 3), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right",
            color=palette.ink, fontsize=8,
        )  # fmt: skip
    ax.set_ylim(0, top if top is not None else 1.15 * max([*values, line[0] if line else 0]))
    ax.set_xticks(numbers)
    if top == 1:
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
    return figure


def errors(
    palette: Palette, names: Sequence[str], bars: Sequence[tuple[str, Sequence[float]]], deviation: Sequence[float] | None
) -> Figure:
    """Reconstruction error of each action dimension, one group of bars each, with the actions' own spread across them."""
    figure, ax = panel(palette, "", "RMSE, action units", size=(2 * WIDTH + 0.4, 2.9))
    centres = np.arange(len(names))
    width = 0.72 / max(len(bars), 1)
    looks: list[dict[str, object]] = [
        {"color": palette.accent},
        {"color": palette.accent, "alpha": 0.45},
        {"color": palette.muted, "alpha": 0.55},
    ]
    for i, (label, values) in enumerate(bars):
        ax.bar(centres + (i - (len(bars) - 1) / 2) * width, values, width * 0.9, label=label, **looks[i % 3])  # type: ignore[arg-type]
    if deviation is not None:
        ax.hlines(deviation, centres - 0.42, centres + 0.42, color=palette.ink, linewidth=1.4, label="standard deviation")
    ax.set_xticks(centres, list(names))
    ax.tick_params(axis="x", labelcolor=palette.ink, length=0)
    legend(ax, palette)
    return figure


def lengths(palette: Palette, won: Sequence[int], lost: Sequence[int], max_steps: int | None) -> Figure:
    """How long the episodes took; failures hatched."""
    figure, ax = panel(palette, "steps until success, or until the episode was given up", "episodes", (2 * WIDTH + 0.4, HEIGHT))
    top = max([*won, *lost, max_steps or 1])
    edges = np.linspace(0, top, 41)
    _, _, bars = ax.hist(
        [list(won), list(lost)], bins=list(edges), stacked=True, label=[f"success ({len(won)})", f"failure ({len(lost)})"]
    )
    for container, failed in zip(bars, (False, True), strict=True):  # type: ignore[arg-type]
        for patch in container:  # type: ignore[attr-defined]
            patch.set(
                facecolor="none" if failed else palette.accent,
                edgecolor=palette.ink if failed else "none",
                hatch="////" if failed else None,
                linewidth=0.8 if failed and patch.get_height() else 0,
            )
    ax.set_xlim(0, top * 1.005)
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    if won or lost:
        legend(ax, palette)
    return figure


def stages(palette: Palette, seconds: Sequence[tuple[str, float]]) -> Figure:
    """Seconds of each stage, in the order in which they ran."""
    size = (2 * WIDTH + 0.4, 0.85 + 0.27 * len(seconds))
    figure, ax = panel(palette, "seconds", "", size=size)
    ax.set_position((0.115, 0.46 / size[1], 0.82, 1 - 0.56 / size[1]))
    rows = np.arange(len(seconds))
    ax.barh(rows, [value for _, value in seconds], height=0.6, color=palette.accent)
    for row, (_, value) in zip(rows, seconds, strict=True):
        ax.annotate(
            f"{value:.1f}" if value < 100 else f"{value:.0f}", (value, row), (4, 0), textcoords="offset points", va="center",
            color=palette.ink, fontsize=8,
        )  # fmt: skip
    ax.set_yticks(rows, [name for name, _ in seconds])
    ax.tick_params(axis="y", labelcolor=palette.ink, length=0)
    ax.invert_yaxis()
    ax.grid(False)
    ax.grid(True, axis="x", color=palette.faint, linewidth=0.5)
    return figure
