"""The page of a sweep: success against one factor, with the tokenizer's ceiling, a line for each policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from daps_robot.report.comparison import STYLE, look
from daps_robot.report.html import figure, grid, paragraph, section, write_document
from daps_robot.report.leaderboard import difference, rate
from daps_robot.report.plots import ROUND, tick
from daps_robot.report.standings import Outcome, ceiling, conditions, outcomes, outcomes_of
from daps_robot.report.style import CSS, PAGE, panel, to_svg
from daps_robot.rollout.across_seeds import Interval, mean_over_seeds, paired_difference
from daps_robot.types import JSON

Factor = Literal["vocabulary", "positions", "horizon", "execute", "demonstrations"]

AXES: dict[Factor, str] = {
    "vocabulary": "bits per chunk",
    "positions": "bits per chunk",
    "horizon": "steps of a chunk",
    "execute": "steps executed of a chunk",
    "demonstrations": "demonstrations",
}


@dataclass(frozen=True)
class Point:
    """A value of the factor on a line.

    Attributes:
        value: of the factor.
        x: where it is drawn: the value, or the bits that it makes.
        means: success (and score, where the task has one), with its interval over seeds and start states.
        differences: of the same, to the first line at the same value; empty on the first line itself.
        ceiling: success of the scripted expert through the tokenizers.
    """

    value: int
    x: float
    means: dict[str, Interval]
    differences: dict[str, Interval]
    ceiling: Interval | None


@dataclass(frozen=True)
class Line:
    """A policy's points."""

    label: str
    points: tuple[Point, ...]


def lines_of(runs: Sequence[JSON], vary: Factor) -> list[Line]:
    """The lines of all runs, which carry "line" and "value"."""
    labels, values = (list(dict.fromkeys(run[name] for run in runs)) for name in ("line", "value"))
    of = {(label, value): [r for r in runs if (r["line"], r["value"]) == (label, value)] for label in labels for value in values}
    measures = outcomes_of(runs)

    def point(label: str, value: int) -> Point:
        mine, first = of[label, value], of[labels[0], value]
        played = {name: (outcomes(mine, "best", name), outcomes(first, "best", name)) for name in measures}
        return Point(
            value=value,
            x=float(mine[0]["bits"] if AXES[vary] == "bits per chunk" else value),
            means={name: mean_over_seeds(values) for name, (values, _) in played.items()},
            differences={} if label == labels[0] else {name: paired_difference(*both) for name, both in played.items()},
            ceiling=ceiling(mine),
        )

    return [Line(label, tuple(point(label, value) for value in values)) for label in labels]


def write_sweep(out: Path, lines: Sequence[Line], runs: Sequence[JSON], vary: Factor, name: str, env: str) -> Path:
    """Write <out>/index.html from the lines and the runs that they are of.

    Raises:
        RunDirectoryError: it cannot be written.
    """
    measures: list[Outcome] = list(lines[0].points[0].means)  # type: ignore[arg-type]
    title = f"{name}: {measures[-1]} against {AXES[vary]}"
    shown = [plot(lines, measure, AXES[vary]) for measure in measures]
    text = (
        f"Best model by validation, rolled out in {escape(env)} from the same start states everywhere. Bands are 95% intervals "
        "over training seeds and start states. Dashed: the tokenizer ceiling, the scripted expert driving through the codes. "
        + conditions(runs)
    )
    body = [
        f'<header><p class="name">daps_robot</p><h1>{escape(title)}</h1>',
        paragraph(text, "lead"),
        "</header><main>",
        section("Curves", key(lines), grid(shown, "pairs")),
        section("Numbers", *(table(lines, measure, vary) for measure in measures)),
        "</main><footer>Written by daps_robot; every number is in results.json, every run in results.csv.</footer>",
    ]
    return write_document(out / "index.html", title, body, CSS + STYLE)


def key(lines: Sequence[Line]) -> str:
    """Whose colour is which."""
    items = (
        f'<span><i style="border-top:2.5px solid {look(i)[0]}"></i>{escape(line.label)}</span>' for i, line in enumerate(lines)
    )
    return f'<div class="key">{"".join(items)}</div>'


def plot(lines: Sequence[Line], measure: Outcome, axis: str) -> str:
    """A measure of all lines, and the ceilings of those that have one."""
    drawn, ax = panel(PAGE, axis, measure, size=(5.2, 3.4))
    for i, line in enumerate(lines):
        colour, _ = look(i)
        x, of = [point.x for point in line.points], [point.means[measure] for point in line.points]
        ax.fill_between(x, [each.low for each in of], [each.high for each in of], color=colour, alpha=0.15, linewidth=0)
        ax.plot(x, [each.mean for each in of], color=colour, linewidth=1.7, marker="o", markersize=4)
        tops = [(point.x, point.ceiling.mean) for point in line.points if point.ceiling is not None]
        if measure == "success" and tops:
            ax.plot(*np.transpose(tops), color=colour, linewidth=1.2, linestyle=(0, (4, 3)), marker="D", markersize=3)
    ticks = sorted({point.x for line in lines for point in line.points})
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(tick))
    ax.set_ylim(0, 1.03)
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
    title = f"{measure.capitalize()} against {axis}"
    return figure(to_svg(drawn, measure, title), title, "Good: near the ceiling, and far to the left.")


def table(lines: Sequence[Line], measure: Outcome, vary: Factor) -> str:
    """A row for each value, for each line its mean, its difference to the first and, in success, its ceiling."""
    with_ceiling = any(point.ceiling is not None for line in lines for point in line.points)
    head = [f"<th>{vary}</th>", *(["<th>bits</th>"] if AXES[vary] == "bits per chunk" else [])]
    for i, line in enumerate(lines):
        head.append(f"<th>{measure}, {escape(line.label)}</th>")
        head += [f"<th>difference to {escape(lines[0].label)}</th>"] if i else []
        if measure == "success":
            head += ["<th>ceiling</th>"] if with_ceiling else []
    rows = [f"<tr>{''.join(head)}</tr>"]
    for at in zip(*(line.points for line in lines), strict=True):
        cells = [f"<th>{at[0].value}</th>", *([f"<td>{at[0].x:.4g}</td>"] if AXES[vary] == "bits per chunk" else [])]
        for point in at:
            cells.append(f"<td>{rate(point.means[measure])}</td>")
            cells += [f"<td>{difference(point.differences[measure])}</td>"] if point.differences else []
            if measure == "success":
                cells += [f"<td>{rate(point.ceiling)}</td>"] if with_ceiling else []
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="wide"><table>{"".join(rows)}</table></div>'
