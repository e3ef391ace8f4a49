"""The page of a leaderboard: success with intervals, differences on shared start states, and what every policy costs."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from daps_robot.report import standing_plots as plots
from daps_robot.report.comparison import STYLE
from daps_robot.report.html import figure, grid, paragraph, section, short, write_document
from daps_robot.report.standings import Figure, Standing, conditions, outcomes_of
from daps_robot.report.style import CSS, PAGE, to_svg
from daps_robot.rollout.across_seeds import Interval
from daps_robot.types import JSON

MODELS = {"best": "best model", "last": "last models"}


def write_leaderboard(out: Path, places: Sequence[Standing], runs: Sequence[JSON], name: str, env: str) -> Path:
    """Write <out>/index.html from the standings and the runs that they are of.

    Raises:
        RunDirectoryError: it cannot be written.
    """
    title = f"{name}: {len(places)} policies"
    body = [
        f'<header><p class="name">daps_robot</p><h1>{escape(title)}</h1>',
        paragraph(f"{lead(places, runs, env)} {conditions(runs)}", "lead"),
        "</header><main>",
        *(section(each.capitalize(), outcome_plots(places, each), outcome_table(places, each)) for each in outcomes_of(runs)),
        section("Cost", cost_table(places), grid([latency_plot(places)], "pairs")),
        section("How to read this", words(places, runs)),
        "</main><footer>Written by daps_robot; every number is in results.json, every run in results.csv.</footer>",
    ]
    return write_document(out / "index.html", title, body, CSS + STYLE)


def reference(places: Sequence[Standing]) -> str:
    """The policy that the others are compared with."""
    return next(place.policy for place in places if place.figures["success.best"].difference is None)


def lead(places: Sequence[Standing], runs: Sequence[JSON], env: str) -> str:
    seeds, episodes = places[0].seeds, len(runs[0]["best"]["success"])
    times = {1: "once", 2: "twice"}.get(seeds, f"{seeds} times")
    text = (
        f"Each policy was trained {times} on the same demonstrations; each model then played {episodes} episodes of "
        f"{escape(env)}, all from the same start states. "
    )
    if seeds == 1:
        return text + "One training says nothing of the next: these intervals are of these very models, not of the methods."
    return text + "Intervals are of 95% and hold both the chance of training and that of the start states."


def outcome_plots(places: Sequence[Standing], outcome: str) -> str:
    """Means, and differences where there are any."""
    title = f"Mean {outcome}"
    caption = "Short upright strokes are the seeds. Good: far right, with short intervals and seeds close together."
    shown = [figure(to_svg(plots.means(PAGE, places, outcome), f"{outcome}-means", title), title, caption)]
    if len(places) > 1:
        title = f"Difference to {reference(places)}"
        caption = "On the same start states. A hollow dot: the interval holds zero, so this many episodes and seeds do not tell."
        shown.append(figure(to_svg(plots.differences(PAGE, places, outcome), f"{outcome}-differences", title), title, caption))
    return grid(shown, "pairs")


def outcome_table(places: Sequence[Standing], outcome: str) -> str:
    """Means, seeds and differences, a row for each policy."""
    measures = [name for name in places[0].figures if name.startswith(outcome)]
    head = ["<th></th>"]
    for key in measures:
        head += [f"<th>{MODELS[key.split('.')[1]]}</th>", "<th>by seed</th>"]
        head += [f"<th>difference to {escape(reference(places))}</th>"] if len(places) > 1 else []
    lines = [f"<tr>{''.join(head)}</tr>"]
    for place in places:
        cells = "".join(measure_cells(place.figures[key], len(places) > 1) for key in measures)
        lines.append(f"<tr><th>{escape(place.policy)}</th>{cells}</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def measure_cells(of: Figure, compared: bool) -> str:
    value = rate(of.interval)
    cells = [f"<b>{value}</b>" if of.first else value, " ".join(f"{100 * each:.0f}" for each in of.by_seed)]
    if compared:
        cells.append("–" if of.difference is None else difference(of.difference))
    return "".join(f"<td>{cell}</td>" for cell in cells)


def rate(of: Interval | None) -> str:
    """In percent, with its interval; a dash for none."""
    return "–" if of is None else f"{100 * of.mean:.1f}% <small>({100 * of.low:.1f} to {100 * of.high:.1f})</small>"


def difference(of: Interval) -> str:
    """In points, bold where its interval is clear of zero."""
    text = f"{100 * of.mean:+.1f} <small>({100 * of.low:+.1f} to {100 * of.high:+.1f})</small>".replace("-", "−")
    return f"<b>{text}</b>" if of.clear_of_zero else text


def cost_table(places: Sequence[Standing]) -> str:
    """What a policy takes: bits, time, parameters."""
    titles = (
        "bits a chunk",
        "tokenizer ceiling",
        "steps executed",
        "decision, ms (p50)",
        "p99",
        "parameters",
        "training, minutes",
    )
    lines = ["<tr><th></th>" + "".join(f"<th>{title}</th>" for title in titles) + "</tr>"]
    for place in places:
        cells = (
            "–" if place.bits is None else f"{place.bits:.4g}",
            rate(place.ceiling),
            f"{place.execute} of {place.horizon}",
            *(f"{place.latency[p]:.2f}" if p in place.latency else "–" for p in ("p50", "p99")),
            f"{place.parameters:,}",
            short(place.seconds / 60),
        )
        lines.append(f"<tr><th>{escape(place.policy)}</th>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def latency_plot(places: Sequence[Standing]) -> str:
    """Success, or the score where there is one, over the time of a decision."""
    if not any(place.latency for place in places):
        return ""
    key = list(places[0].figures)[-1]  # of the last models, the score, where there are such
    title = f"{key.partition('.')[0].capitalize()} against the time of a decision"
    return figure(to_svg(plots.over_latency(PAGE, places, key), "latency", title), title, "Good: high and to the left.")


def words(places: Sequence[Standing], runs: Sequence[JSON]) -> str:
    """What the terms mean."""
    last = len(runs[0]["last"])
    terms = {
        "best model": "The one with the lowest validation loss of its training: chosen without the simulator.",
        "last models": f"The mean over the models of the last {last} of 10 validations: what a training gives without choosing.",
        "interval": "95%, of a two-way model with training seeds and start states both drawn by chance, in Wilson's form; with "
        "one seed, Wilson's. With three seeds it is wide, as it should be. Not corrected for the number of policies.",
        "difference": "Of means over seeds, on the same start states, in percentage points, with Newcombe's interval for pairs. "
        "Bold: clear of zero.",
        "bold success": "Ahead of every other policy, each time by a difference whose interval is clear of zero.",
        "tokenizer ceiling": "Success of the scripted expert whose plans go through the tokenizer: what a perfect policy over "
        "these codes could reach.",
        "decision": "One observation to one chunk, batch 1, one thread, policies timed in turns; median of three rounds.",
        "training": "Seconds of the training steps of tokenizer and policy, validations left out, mean over seeds.",
    }
    if not last:
        del terms["last models"]
    return "<dl>" + "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in terms.items()) + "</dl>"
