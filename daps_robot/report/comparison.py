"""The page of a comparison of estimators: two tables with intervals, and curves over steps and over time."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.ticker import FuncFormatter, MaxNLocator
from scipy import stats

from daps_robot.config import from_json, load_json
from daps_robot.report.html import figure, grid, paragraph, section, write_document
from daps_robot.report.plots import ROUND, make_room, tick
from daps_robot.report.style import CSS, PAGE, panel, to_svg
from daps_robot.training.logger import read_rows
from daps_robot.training.pace import Pace
from daps_robot.types import JSON

STYLE = """
.wide td{white-space:nowrap;font-variant-numeric:tabular-nums}
.wide td,.wide th{padding-right:18px;vertical-align:bottom}
.wide th:first-child{position:sticky;left:0;background:var(--paper)}
.key i{display:inline-block;width:30px;margin-right:7px;vertical-align:middle}
.pairs{grid-template-columns:repeat(auto-fill,minmax(min(100%,440px),1fr))}
"""

UNRANKED = ("vae",)
"""Outside the ranking: no codes, no limit of bits."""


class Column:
    """A column of the table.

    Attributes:
        key: in a result; with {} for the read-out ("steps" or "time").
        title: of the column.
        better: +1 where more is better, −1 where less is, 0 where neither.
        form: how a number is written.
    """

    def __init__(self, key: str, title: str, better: int, form: str = "{:.3g}") -> None:
        self.key, self.title, self.better, self.form = key, title, better, form


AT_READOUT = [
    Column("{}.psnr", "PSNR, dB", 1, "{:.2f}"),
    Column("{}.ssim", "SSIM", 1, "{:.3f}"),
    Column("{}.rmse", "RMSE, data units", -1, "{:.4f}"),
    Column("{}.reconstruction", "−log p(x|z), nats", -1, "{:.1f}"),
    Column("{}.elbo", "ELBO (β=1), nats", 1, "{:.1f}"),
    Column("{}.elbo_beta_end", "ELBO (β_end), nats", 1, "{:.1f}"),
    Column("{}.bits_used", "bits used", 0, "{:.1f}"),
    Column("{}.perplexity", "perplexity", 0, "{:.0f}"),
    Column("{}.unused_codes", "dead codes", 0, "{:.0%}"),
]
OF_THE_RUN = [
    Column("ceiling", "ceiling", 1, "{:.0%}"),
    Column("distinct", "distinct of K", 0, "{:.1f}"),
    Column("ess", "ESS", 0, "{:.2f}"),
    Column("steps_per_second", "steps/s", 0, "{:.1f}"),
    Column("peak_memory_gb", "memory, GB", 0, "{:.2f}"),
]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of the 95% t interval; NaN for one value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.nan
    return mean, float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)


def best(intervals: dict[str, tuple[float, float]], better: int) -> str | None:
    """The name whose interval lies beyond all others', if there is one."""
    ranked = {name: pair for name, pair in intervals.items() if name not in UNRANKED}
    if better == 0 or len(ranked) < 2:
        return None
    first = max(ranked, key=lambda name: better * ranked[name][0])
    edge = better * ranked[first][0] - ranked[first][1]
    others = [better * mean + half for name, (mean, half) in ranked.items() if name != first]
    return first if all(edge > other for other in others) else None


def write_comparison(out: Path, results: Sequence[JSON], exploratory: bool) -> Path:
    """Write <out>/comparison.html from results and the metrics of the runs beside it."""
    names = list(dict.fromkeys(result["estimator"] for result in results))
    counts = sorted({sum(result["estimator"] == name for result in results) for name in names})
    seeds = " to ".join(str(n) for n in (counts[0], counts[-1])[: len(counts)])
    label = "Exploratory: short runs. Differences here are hints, not claims." if exploratory else "Means of three seeds or more."
    title = f"{len(names)} estimators at equal bits"
    body = [
        f'<header><p class="name">daps_robot</p><h1>{title}</h1>',
        paragraph(
            f"{label} Same data, front end, decoder and trainer; encoders within 5% in size; {seeds} seeds each. ± is the 95% t "
            "interval of the mean over seeds; a best value is bold only where its interval lies clear of all others. "
            "vae has no codes and is not ranked. Rows are by RMSE.",
            "lead",
        ),
        "</header><main>",
        section("After equal steps", read_after(results, "steps.step", "steps"), table(results, names, AT_READOUT, "steps")),
        section("After equal time", read_after(results, "time.seconds", "seconds"), table(results, names, AT_READOUT, "time")),
        section("Search and cost", table(results, names, OF_THE_RUN, "steps")),
        section("Curves", key(names), grid([plot(out, names, *curve) for curve in CURVES], "pairs")),
        "</main>",
    ]
    return write_document(out / "comparison.html", title, body, CSS + STYLE)


def read_after(results: Sequence[JSON], key: str, unit: str) -> str:
    """After how much training the table's numbers were read."""
    found = sorted(result[key] for result in results if result.get(key) is not None)
    if not found:
        return ""
    return paragraph(
        "Read after " + " to ".join(dict.fromkeys(f"{x:,.0f}" for x in (found[0], found[-1]))) + f" {unit}.", "muted"
    )


def intervals_of(results: Sequence[JSON], names: Sequence[str], key: str) -> dict[str, tuple[float, float]]:
    """The interval of a number, of each estimator that has it."""
    values = {
        name: [r[key] for r in results if r["estimator"] == name and r.get(key) is not None and math.isfinite(r[key])]
        for name in names
    }
    return {name: interval(v) for name, v in values.items() if v}


def table(results: Sequence[JSON], names: Sequence[str], columns: Sequence[Column], readout: str) -> str:
    """Estimators by rows, sorted by reconstruction error."""
    cells: dict[str, dict[str, str]] = {name: {} for name in names}
    order = intervals_of(results, names, f"{readout}.rmse")
    shown = []
    for column in columns:
        found = intervals_of(results, names, column.key.format(readout))
        if not found:
            continue
        shown.append(column)
        winner = best(found, column.better)
        for name, (mean, half) in found.items():
            text = column.form.format(mean) + ("" if math.isnan(half) else f" <small>± {column.form.format(half)}</small>")
            text = text.replace("-", "−")
            cells[name][column.title] = f"<b>{text}</b>" if name == winner else text
    head = "".join(f"<th>{escape(column.title)}</th>" for column in shown)
    rows = "".join(
        f"<tr><th>{escape(name)}</th>" + "".join(f"<td>{cells[name].get(c.title, '–')}</td>" for c in shown) + "</tr>"
        for name in sorted(names, key=lambda name: order.get(name, (math.inf,))[0])
    )
    return f'<div class="wide"><table><tr><th></th>{head}</tr>{rows}</table></div>'


CURVES = (("step", "psnr", "dB"), ("train_seconds", "psnr", "dB"), ("step", "elbo", "nats"), ("train_seconds", "elbo", "nats"))
BORDERS: dict[tuple[float, ...], str] = {(): "solid", (6, 2): "dashed", (2, 1.5): "dotted"}
"""Dashes of lines, and what CSS calls them."""
DASHES = tuple(BORDERS)
COLOURS = ("#0b6bcb", "#d9480f", "#2b8a3e", "#8b5cf6", "#b8860b", "#e0409a", "#0fa3b1")


def look(i: int) -> tuple[str, tuple[float, ...]]:
    """Colour and dashes of estimator i; each pair once among 21."""
    return COLOURS[i % len(COLOURS)], DASHES[(i + i // len(COLOURS)) % len(DASHES)]


def key(names: Sequence[str]) -> str:
    """Which line of the plots is whose."""
    items = []
    for i, name in enumerate(names):
        colour, dashes = look(i)
        items.append(f'<span><i style="border-top:2.5px {BORDERS[dashes]} {colour}"></i>{escape(name)}</span>')
    return f'<div class="key">{"".join(items)}</div>'


def plot(out: Path, names: Sequence[str], axis: str, metric: str, unit: str) -> str:
    """A metric's mean over seeds, one line an estimator."""
    drawn, ax = panel(PAGE, "training step" if axis == "step" else "seconds of training", unit, size=(5.2, 3.4))
    shown = []
    for i, name in enumerate(names):
        series = mean_curve(out, name, axis, metric)
        if series is not None:
            colour, dashes = look(i)
            ax.plot(*series, color=colour, dashes=dashes, linewidth=1.5, marker="o" if series.shape[1] == 1 else None)
            shown.append(series)
    limits = heights(shown)
    if limits:
        ax.set_ylim(*limits)
        ax.set_xlim(0, None)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=ROUND))
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=ROUND))
    ax.yaxis.set_major_formatter(FuncFormatter(tick))
    make_room(drawn, ax)
    title = f"{metric.upper()} over {'steps' if axis == 'step' else 'time'}"
    caption = "Validation, mean over seeds; the start may lie below the frame. Good: high, and early."
    return figure(to_svg(drawn, f"{metric}-{axis}", title), title, caption if limits else "No run has logged it.")


def heights(curves: Sequence[Float[np.ndarray, "2 _"]]) -> tuple[float, float] | None:
    """Limits that hold each curve but for its first quarter, where the steep rise would flatten the rest."""
    late = [values[steps >= steps[-1] / 4] for steps, values in curves]
    seen = np.concatenate([values[np.isfinite(values)] for values in late]) if late else np.zeros(0)
    if not seen.size:
        return None
    low, high = float(seen.min()), float(seen.max())
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def mean_curve(out: Path, name: str, axis: str, metric: str) -> Float[np.ndarray, "2 _"] | None:
    """The metric at each validation that all seeds of an estimator have, averaged over them, over steps or seconds.

    Seconds are those of the measured pace where there is one, else those of the runs themselves.
    """
    paces = load_json(out / "paces.json") if (out / "paces.json").is_file() else {}
    pace = from_json(Pace, paces[name]) if name in paces else None
    runs = []
    for path in sorted(out.glob("*/metrics.jsonl")):
        if not re.fullmatch(re.escape(name) + r"-\d+", path.parent.name):
            continue  # "rws-1-0" is no run of rws
        rows = [row for row in read_rows(path) if row["split"] == "valid" and row.get(metric) is not None]
        along = [pace.seconds(row["step"]) if pace and axis != "step" else row[axis] for row in rows]
        runs.append(np.array([along, [row[metric] for row in rows]]))
    length = min((run.shape[1] for run in runs), default=0)
    return np.mean([run[:, :length] for run in runs], axis=0) if length else None
