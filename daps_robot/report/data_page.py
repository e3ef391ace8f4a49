"""One HTML page a data set: what its demonstrations hold, and what to look at before training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from daps_robot.data.demos import DemoSet
from daps_robot.data.inspection import ACTIONS, Dimension, Finding, Inspection
from daps_robot.report.html import beside, fact, figure, grid, missing, paragraph, section, short, table, write_document
from daps_robot.report.measure import action_names
from daps_robot.report.plots import ROUND, tick
from daps_robot.report.seen import strips
from daps_robot.report.style import CSS, HEIGHT, PAGE, WIDTH, Palette, panel, to_svg

SHOWN_PLACES = 8
SHOWN_DEMOS = 12
SHOWN_DIMENSIONS = 64
_FIGURES = ("minimum", "1%", "median", "99%", "maximum", "mean", "std")


def write_data_page(
    path: Path, demos: DemoSet, found: Inspection, images: Mapping[str, UInt8[np.ndarray, "t height width 3"]] | None = None
) -> Path:
    """Write the page; `images` are those of the first demonstration, by camera.

    Raises:
        RunDirectoryError: it cannot be written.
    """
    name = demos.path.stem
    body = [
        f'<header><p class="name">daps_robot</p><h1>{escape(name)}: {_title(found)}</h1>{_lead(demos)}</header><main>',
        _facts(demos, found),
        _findings(found.findings),
        _lengths(demos, found),
        _actions(demos, found),
        _trajectories(demos, found),
        section("Cameras", strips(demos.demos[0].name, images)) if images else "",
        _columns(demos, found),
        "</main><footer>Written by daps_robot from the demonstrations alone; nothing was trained.</footer>",
    ]
    return write_document(path, name, body, CSS)


def _title(found: Inspection) -> str:
    refused = [finding for finding in found.findings if finding.refused]
    if refused:
        return f"cannot be trained on yet ({', '.join(finding.title for finding in refused)})"
    return f"{len(found.lengths):,} demonstrations, {sum(found.lengths):,} steps"


def _lead(demos: DemoSet) -> str:
    where = f"Recorded in <code>{escape(demos.env_id)}</code>. " if demos.env_id else ""
    return paragraph(
        f"{where}{len(demos.train)} demonstrations are for training, {len(demos.valid)} are held out. "
        f"<code>{escape(str(demos.path))}</code>",
        "lead",
    )


def _facts(demos: DemoSet, found: Inspection) -> str:
    lengths = np.array(found.lengths)
    rate = f"<small>at {demos.rate:g} a second</small>" if demos.rate else ""
    time = f"{lengths.sum() / demos.rate / 60:.1f} minutes in all" if demos.rate else "how many a second, the data do not say"
    kinds = {kind: sum(d.kind == kind for d in found.of(ACTIONS)) for kind in ("continuous", "binary", "constant")}
    observed = ", ".join(f"<code>{escape(key)}</code> {size}" for key, size in demos.obs_dims.items())
    verdicts = [motion.verdict for motion in found.motions]
    said = [f"{verdicts.count(v)} {v}" for v in ("absolute", "relative", "unclear") if v in verdicts]
    return grid(
        [
            fact(
                "Steps of a demonstration",
                f"{np.median(lengths):.0f} {rate}",
                f"The median; {lengths.min()} to {lengths.max()}; {time}.",
            ),
            fact(
                "Actions",
                f"{demos.action_dim} <small>numbers</small>",
                ", ".join(f"{n} {kind}" for kind, n in kinds.items() if n) + ".",
            ),
            fact(
                "Absolute or relative",
                ", ".join(said),
                "Dimensions that follow the values of something observed (absolute targets), or its changes (relative ones).",
                "No action dimension varies.",
            ),
            fact("Observations", f"{sum(demos.obs_dims.values())} <small>numbers</small>", observed + "."),
        ],
        "facts",
    )


def _findings(findings: Sequence[Finding]) -> str:
    if not findings:
        return section("Worth a look", paragraph("Nothing: no NaN, no copies, no jumps, no stand-still, no outliers."))
    parts = []
    for finding in findings:
        places = "".join(f"<li>{escape(place)}</li>" for place in finding.places[:SHOWN_PLACES])
        more = len(finding.places) - SHOWN_PLACES
        tail = f"<li>and {more} more</li>" if more > 0 else ""
        title = finding.title + (" (training refuses this)" if finding.refused else "")
        parts.append(f"<h3>{escape(title)}</h3>{paragraph(escape(finding.advice), 'muted')}<ul>{places}{tail}</ul>")
    return section("Worth a look", *parts)


def _lengths(demos: DemoSet, found: Inspection) -> str:
    plot = histogram(PAGE, np.array(found.lengths, float), "steps", "demonstrations", (WIDTH, HEIGHT))
    caption = "Good: one heap. Far to the right are the slow and interrupted ones, far to the left those that were cut off."
    ordered = sorted(demos.demos, key=len)
    listed = table((demo.name, f"{len(demo)} steps") for demo in (*ordered[:3], *ordered[3:][-3:]))
    return section(
        "Lengths",
        beside(
            figure(to_svg(plot, "lengths", "Lengths"), "Steps of the demonstrations", caption),
            f"<h3>The shortest and the longest</h3>{listed}",
        ),
    )


def _actions(demos: DemoSet, found: Inspection) -> str:
    columns, names = found.of(ACTIONS)[:SHOWN_DIMENSIONS], action_names(demos)
    every = np.concatenate([demo.actions for demo in demos.demos])
    plots = (
        to_svg(
            histogram(PAGE, _finite(every[:, d.index]), names[d.index], "steps", (3.3, 1.7)), f"action{d.index}", names[d.index]
        )
        for d in columns
    )
    motions = [
        f"<tr><th>{escape(names[m.index])}</th><td>{m.verdict}</td>"
        + "".join(f"<td>{escape(column)} <small>r = {r:.2f}</small></td>" for column, r in (m.value, m.change))
        + "</tr>"
        for m in found.motions
    ]
    head = "<tr><th></th><th>looks</th><th>follows most the value of</th><th>follows most the change of</th></tr>"
    text = (
        "Correlation of each continuous action with what is observed a step later, and with how that changed. Absolute: a value "
        "is followed with at least 0.9; relative: a change with at least 0.5. Replays of relative actions add up their errors."
    )
    return section(
        "Actions",
        _not_all(len(found.of(ACTIONS))),
        grid((f"<figure>{plot}</figure>" for plot in plots), "small"),
        f"<h3>Absolute or relative</h3>{paragraph(text, 'muted')}<table>{head}{''.join(motions)}</table>" if motions else "",
    )


def _trajectories(demos: DemoSet, found: Inspection) -> str:
    shown = demos.demos[:: -(-len(demos.demos) // SHOWN_DEMOS)]
    names = action_names(demos)
    plots = [
        to_svg(lines(PAGE, [demo.actions[:, d.index] for demo in shown], names[d.index]), f"lines{d.index}", names[d.index])
        for d in found.of(ACTIONS)[:SHOWN_DIMENSIONS]
    ]
    text = f"Actions of {len(shown)} demonstrations, evenly chosen; the first is drawn in the stronger colour."
    return section("Trajectories", paragraph(text, "muted"), grid((f"<figure>{plot}</figure>" for plot in plots), "small"))


def _columns(demos: DemoSet, found: Inspection) -> str:
    """All figures of all columns."""
    parts = [_figures(found.of(ACTIONS), action_names(demos))]
    for key in demos.obs_keys:
        columns = found.of(key)
        parts.append(
            f"<details><summary>{escape(key)} ({len(columns)})</summary>{_figures(columns, [d.name for d in columns])}</details>"
        )
    said = [("SHA-256", f"<code>{demos.sha256}</code>"), *((k, f"<code>{escape(str(v)[:300])}</code>") for k, v in _said(demos))]
    return section("Columns", *parts, "<h3>What the data says of itself</h3>", table(said))


def _said(demos: DemoSet) -> list[tuple[str, object]]:
    return [(str(key)[:60], value) for key, value in demos.env_args.items() if value not in (None, [], "")]


def _figures(columns: Sequence[Dimension], names: Sequence[str]) -> str:
    head = "".join(f'<th class="n">{name}</th>' for name in _FIGURES)
    lines = [f"<tr><th></th>{head}<th></th></tr>"]
    for d, name in zip(columns, names, strict=True):
        cells = "".join(f'<td class="n">{short(value)}</td>' for value in d.figures)
        kind = ("" if d.kind == "continuous" else d.kind) + (f" {d.bad} not finite" if d.bad else "")
        lines.append(f"<tr><th>{escape(name)}</th>{cells}<td>{kind}</td></tr>")
    return f"<table>{''.join(lines)}</table>"


def _not_all(dimensions: int) -> str:
    return missing(f"Only the first {SHOWN_DIMENSIONS} of {dimensions} are drawn.") if dimensions > SHOWN_DIMENSIONS else ""


def _finite(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return values[np.isfinite(values)].astype(np.float64)


def histogram(palette: Palette, values: Float[np.ndarray, " n"], x: str, y: str, size: tuple[float, float]) -> Figure:
    """How often values occur, in forty steps of their range."""
    plot, ax = panel(palette, x, y, size)
    if len(values):
        low, high = float(values.min()), float(values.max())
        margin = 0.5 if high - low <= 1e-9 * max(1.0, abs(high)) else 0.0
        edges = np.linspace(low - margin, high + margin, 41)
        ax.bar(edges[:-1], np.histogram(values, edges)[0], np.diff(edges), align="edge", color=palette.accent)
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True, steps=ROUND))
    ax.yaxis.set_major_formatter(FuncFormatter(tick))
    return plot


def lines(palette: Palette, series: Sequence[Float[np.ndarray, " t"]], y: str) -> Figure:
    """Some demonstrations over one another, the first on top."""
    plot, ax = panel(palette, "step", y, (3.3, 1.9))
    for i, values in reversed(list(enumerate(series))):
        ax.plot(
            values,
            color=palette.accent if i == 0 else palette.muted,
            linewidth=1.3 if i == 0 else 0.8,
            alpha=1 if i == 0 else 0.45,
        )
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=ROUND))
    ax.yaxis.set_major_locator(MaxNLocator(4, steps=ROUND))
    return plot
