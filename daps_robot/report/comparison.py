"""The page of a comparison of estimators: two tables with intervals, and curves over steps and over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy import stats

from daps_robot.config import from_json, load_json
from daps_robot.report.html import figure, grid, paragraph, section, write_document
from daps_robot.report.style import CSS, PAGE, SMALL, panel, to_svg
from daps_robot.training.logger import read_rows
from daps_robot.training.pace import Pace
from daps_robot.types import JSON

WIDE = ".wide{overflow-x:auto}.wide td{white-space:nowrap}"

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


COLUMNS = [
    Column("{}.psnr", "PSNR, dB", 1, "{:.2f}"),
    Column("{}.ssim", "SSIM", 1, "{:.3f}"),
    Column("{}.rmse", "RMSE, data units", -1, "{:.4f}"),
    Column("{}.reconstruction", "−log p(x|z), nats", -1, "{:.1f}"),
    Column("{}.elbo", "ELBO (β=1), nats", 1, "{:.1f}"),
    Column("{}.elbo_beta_end", "ELBO (β_end), nats", 1, "{:.1f}"),
    Column("{}.bits_used", "bits used", 0, "{:.1f}"),
    Column("{}.perplexity", "perplexity", 0, "{:.0f}"),
    Column("{}.unused_codes", "dead codes", 0, "{:.0%}"),
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
    seeds = len({result["seed"] for result in results})
    label = "Exploratory: short runs. Differences here are hints, not claims." if exploratory else "Means of three seeds or more."
    title = f"{len(names)} estimators at equal bits"
    body = [
        f'<header><p class="name">daps_robot</p><h1>{title}</h1>',
        paragraph(
            f"{label} Same data, front end, decoder and trainer; encoders within 5% in size; {seeds} seeds. ± is the 95% t "
            "interval of the mean over seeds; a best value is bold only where its interval lies clear of all others. "
            "vae has no codes and is not ranked.",
            "lead",
        ),
        "</header><main>",
        section("After equal steps", table(results, names, "steps")),
        section("After equal time", table(results, names, "time")),
        section("Curves", grid(plot(out, names, axis, metric, unit) for axis, metric, unit in CURVES)),
        "</main>",
    ]
    return write_document(out / "comparison.html", title, body, CSS + WIDE)


def table(results: Sequence[JSON], names: Sequence[str], readout: str) -> str:
    """Estimators by rows, sorted by reconstruction error."""
    cells: dict[str, dict[str, str]] = {name: {} for name in names}
    order: dict[str, float] = {}
    shown = []
    for column in COLUMNS:
        key = column.key.format(readout)
        values = {
            name: [r[key] for r in results if r["estimator"] == name and r.get(key) is not None and math.isfinite(r[key])]
            for name in names
        }
        found = {name: interval(v) for name, v in values.items() if v}
        if not found:
            continue
        shown.append(column)
        winner = best(found, column.better)
        for name, (mean, half) in found.items():
            text = column.form.format(mean) + ("" if math.isnan(half) else f" <small>± {column.form.format(half)}</small>")
            cells[name][column.title] = f"<b>{text}</b>" if name == winner else text
        if key == f"{readout}.rmse":
            order = {name: mean for name, (mean, _) in found.items()}
    head = "".join(f"<th>{escape(column.title)}</th>" for column in shown)
    rows = "".join(
        f"<tr><th>{escape(name)}</th>" + "".join(f"<td>{cells[name].get(c.title, '–')}</td>" for c in shown) + "</tr>"
        for name in sorted(names, key=lambda name: order.get(name, math.inf))
    )
    return f'<div class="wide"><table><tr><th></th>{head}</tr>{rows}</table></div>'


CURVES = (("step", "psnr", "dB"), ("train_seconds", "psnr", "dB"), ("step", "elbo", "nats"), ("train_seconds", "elbo", "nats"))
STYLES = ("-", (0, (4, 2)), (0, (1, 1.2)))
COLOURS = ("#0b6bcb", "#c2410c", "#15803d", "#7c3aed", "#b45309", "#0e7490", "#be185d")


def plot(out: Path, names: Sequence[str], axis: str, metric: str, unit: str) -> str:
    """A metric's mean over seeds, one line an estimator, named at its end."""
    drawn, ax = panel(PAGE, "training step" if axis == "step" else "seconds of training", unit, size=(5.4, 4.2))
    ends = []
    for i, name in enumerate(names):
        series = mean_curve(out, name, axis, metric)
        if series is not None:
            colour, style = COLOURS[i % len(COLOURS)], STYLES[i // len(COLOURS) % len(STYLES)]
            ax.plot(*series, color=colour, linestyle=style, linewidth=1.3, label=name)
            ends.append(series[1, -1])
    low = np.percentile(ends, 5) if ends else 0.0
    top = max(ends) if ends else 1.0
    ax.set_ylim(low - 0.6 * (top - low + 1e-9), top + 0.1 * (top - low + 1e-9))
    if ends:
        ax.legend(fontsize=SMALL - 1.5, ncols=3, frameon=False, labelcolor=PAGE.ink, loc="lower right")
    over = "steps" if axis == "step" else "time"
    return figure(
        to_svg(drawn, f"{metric}-{axis}", f"{metric} over {over}"),
        f"{metric.upper() if metric == 'elbo' else 'PSNR'} over {over}",
        "Validation, mean over seeds. Good: high, and early.",
    )


def mean_curve(out: Path, name: str, axis: str, metric: str) -> Float[np.ndarray, "2 _"] | None:
    """The metric at each validation that all seeds of an estimator have, averaged over them, over steps or seconds.

    Seconds are those of the measured pace where there is one, else those of the runs themselves.
    """
    paces = load_json(out / "paces.json") if (out / "paces.json").is_file() else {}
    pace = from_json(Pace, paces[name]) if name in paces else None
    runs = []
    for path in sorted(out.glob(f"{name}-[0-9]*/metrics.jsonl")):
        rows = [row for row in read_rows(path) if row["split"] == "valid" and row.get(metric) is not None]
        along = [pace.seconds(row["step"]) if pace and axis != "step" else row[axis] for row in rows]
        runs.append(np.array([along, [row[metric] for row in rows]]))
    length = min((run.shape[1] for run in runs), default=0)
    return np.mean([run[:, :length] for run in runs], axis=0) if length else None
