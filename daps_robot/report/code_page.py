"""One HTML page about the codes of a tokenizer: how often each is used, when in the task, and what it does."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from jaxtyping import Int

from daps_robot.data.demos import DemoSet
from daps_robot.report import code_plots, plots
from daps_robot.report.code_meaning import BINS, SHIFTS, CodedWindows, CodeGroup, PositionUse, Sequences
from daps_robot.report.code_plots import Limits
from daps_robot.report.html import fact, figure, grid, missing, paragraph, percent, section, short, write_document
from daps_robot.report.measure import CodeUsage, action_names
from daps_robot.report.style import CSS, PAGE, to_svg

SHOWN_DIMENSIONS = 16

STYLE = """
.pairs{grid-template-columns:repeat(auto-fill,minmax(min(100%,480px),1fr));gap:28px 48px}
.wide video{width:auto;max-width:100%}
figure.wide{margin:1.2em 0 2.4em}
"""

KEY = (
    ("actions, mean", "accent", "stroke-width:2.4"),
    ("one standard deviation around it", "accent", "stroke-width:9;opacity:.25"),
    ("decoded, mean", "ink", "stroke-width:2;stroke-dasharray:5 3"),
)


@dataclass(frozen=True)
class CodeReport:
    """What the page says.

    Attributes:
        tokenizer: where it is from.
        demos: that were encoded, or some of them.
        split: of which of them: "all", "train" or "valid".
        coded: their windows.
        uses: of each position.
        entropy: of the phase, in bits.
        position: that the rest is about.
        phase_codes: its most frequent codes.
        phase_counts: windows of these, by phase.
        groups: the windows of the first of these.
        sequences: whole sequences that recur.
        films: MP4, of the first of the groups.
        note: why there are none, or fewer; None where all is well.
    """

    tokenizer: Path
    demos: DemoSet
    split: str
    coded: CodedWindows
    uses: Sequence[PositionUse]
    entropy: float
    position: int
    phase_codes: Sequence[int]
    phase_counts: Int[np.ndarray, "c bins"]
    groups: Sequence[CodeGroup]
    sequences: Sequences
    films: Sequence[bytes] = ()
    note: str | None = None


def write_code_page(path: Path, report: CodeReport) -> Path:
    """Write the page: one file, without scripts and without the network.

    Raises:
        RunDirectoryError: it cannot be written.
    """
    name = report.demos.path.stem
    body = [
        f'<header><p class="name">daps_robot</p><h1>{escape(name)}: what the codes stand for</h1>{_lead(report)}</header><main>',
        _facts(report),
        _usage(report),
        _phases(report),
        _codes(report),
        _sequences(report),
        _words(report),
        "</main><footer>Written by daps_robot from the tokenizer and the demonstrations; the figures are in codes.json.</footer>",
    ]
    return write_document(path, f"{name}: codes", body, CSS + STYLE)


def _lead(report: CodeReport) -> str:
    which = {"all": "all", "train": "the training", "valid": "the held-out"}[report.split]
    text = (
        f"The most likely codes of {len(report.coded):,} windows, one from every step of {which} "
        f"{len(report.coded.demos):,} demonstrations in <code>{escape(str(report.demos.path))}</code>, by the tokenizer in "
        f"<code>{escape(str(report.tokenizer))}</code>. Positions count from 0, as they do in Python and for "
        f"<code>--position</code>."
    )
    return paragraph(text, "lead") + (missing(VARIABLE) if report.coded.ending is not None else "")


VARIABLE = (
    "Code sequences of this tokenizer differ in length: code 0 ends one and fills it up. It counts in usage and phases, and is "
    "not among the codes that are shown. What a code at a later position is about depends on how much those before it cover."
)


def _facts(report: CodeReport) -> str:
    coded, found = report.coded, report.sequences
    best = max(range(len(report.uses)), key=lambda p: report.uses[p].information - report.uses[p].chance)
    use = report.uses[best]
    perplexity = np.mean([use.perplexity for use in report.uses])
    return grid(
        [
            fact(
                "Codes",
                f"{len(report.uses)} <small>of {coded.vocabulary:,}</small>",
                f"{short(coded.tokenizer.bits)} bits for a chunk of {coded.windows.horizon} × {coded.tokenizer.action_dim}.",
            ),
            fact("In effective use", f"{perplexity:.0f} <small>codes a position</small>", "Perplexity, mean over the positions."),
            fact(
                "Tells most of the phase",
                f"position {best} <small>{use.information - use.chance:.2f} bits</small>",
                f"Mutual information, less what there is by chance; {report.entropy:.2f} bits would tell the tenth for certain.",
            ),
            fact(
                "Sequences",
                f"{found.distinct:,} <small>distinct</small>",
                f"{percent(found.shared / len(coded))} of the windows share theirs with another window.",
            ),
        ],
        "facts",
    )


def _usage(report: CodeReport) -> str:
    uses = report.uses
    perplexity = np.array([use.perplexity for use in uses])
    used = CodeUsage(np.stack([use.counts for use in uses]), perplexity, len(report.coded))
    panels = (
        (
            plots.usage(PAGE, used),
            "Rank and frequency",
            "Each row a position, the stronger the colour, the more frequent; a mark ends those in use. Good: fades slowly, "
            "reaches far right.",
        ),
        (
            plots.per_position(PAGE, perplexity, f"of {report.coded.vocabulary} codes"),
            "Codes in use (perplexity)",
            "As many equally frequent codes would be as varied. Good: every position carries its part, none near 1.",
        ),
    )
    names = ("entropy, bits", "perplexity", "unused codes", "about the phase, bits", "by chance", "most frequent codes (share)")
    lines = ["<tr><th>position</th>" + "".join(f"<th>{name}</th>" for name in names) + "</tr>"]
    for position, use in enumerate(uses):
        most = np.argsort(-use.counts, kind="stable")[:3]
        shares = ", ".join(f"{code} ({percent(use.counts[code] / len(report.coded))})" for code in most if use.counts[code])
        values = (f"{use.entropy:.2f}", f"{use.perplexity:.1f}", use.unused, f"{use.information:.3f}", f"{use.chance:.3f}")
        cells = "".join(f'<td class="n">{value}</td>' for value in values)
        lines.append(f"<tr><th>{position}</th>{cells}<td>{shares}</td></tr>")
    listed = f"<details><summary>figures of all positions</summary><table>{''.join(lines)}</table></details>"
    shown = (figure(to_svg(plot, f"usage{i}", name), name, caption) for i, (plot, name, caption) in enumerate(panels))
    return section("Usage by position", grid(shown), listed)


def _phases(report: CodeReport) -> str:
    share = report.phase_counts.sum() / len(report.coded)
    title = f"When the codes of position {report.position} occur"
    caption = (
        f"The {len(report.phase_codes)} most frequent ({percent(share)} of the windows), from those of the beginning to those of "
        "the end; on the right the number of windows. A row that is dark in one place is a code of one phase; one that is even "
        "occurs throughout."
    )
    when = figure(to_svg(code_plots.phases(PAGE, report.phase_codes, report.phase_counts), "phases", title), title, caption)
    title = "What a code tells of the phase"
    caption = (
        "Mutual information of code and tenth of the demonstration; the number above a bar is without what there is by chance. "
        f"{report.entropy:.2f} bits would tell the tenth for certain. High: codes of stages of the task; low: of movements that "
        "occur throughout."
    )
    tells = figure(to_svg(code_plots.phase_information(PAGE, report.uses), "information", title), title, caption)
    return section("Usage by phase of the task", grid([tells, when], "pairs"))


def _codes(report: CodeReport) -> str:
    names = action_names(report.demos)[:SHOWN_DIMENSIONS]
    limits = code_plots.action_limits(report.groups)
    line = '<svg viewBox="0 0 30 10" aria-hidden="true"><path d="M1 5H29" style="stroke:var(--{});{}"/></svg>'
    key = "".join(f"<span>{line.format(colour, look)}{escape(name)}</span>" for name, colour, look in KEY)
    text = (
        f"The most frequent codes of position {report.position} ({len(report.groups)}), each with all windows that have it, in "
        "action units, on the same axes. Their other codes differ: much of the spread is from there. Lines are pale where most "
        "demonstrations are over. Films are of recorded states, at half speed; nobody chose the prettiest."
    )
    parts = [_group(report, i, names, limits) for i in range(len(report.groups))]
    notes = [missing(f"No films, or not all: {report.note}.")] if report.note else []
    if len(names) < report.demos.action_dim:
        notes.append(missing(f"Only the first {len(names)} of {report.demos.action_dim} action dimensions are drawn."))
    return section(
        f"What the codes of position {report.position} do",
        paragraph(text, "muted"),
        *notes,
        f'<div class="key">{key}</div>',
        *parts,
    )


def _group(report: CodeReport, i: int, names: Sequence[str], limits: Limits) -> str:
    group = report.groups[i]
    film = ""
    if i < len(report.films):
        source = f"data:video/mp4;base64,{base64.b64encode(report.films[i]).decode()}"
        film = f'<video controls autoplay muted loop playsinline src="{source}"></video>'
    return _sheet(report, group, f"Code {group.codes[0]}", f"code{i}", names, limits, film)


def _sheet(
    report: CodeReport, group: CodeGroup, title: str, label: str, names: Sequence[str], limits: Limits, film: str = ""
) -> str:
    """Windows with something in common: how many, their film, their actions, and which come nearest to the mean."""
    share = percent(group.windows / len(report.coded))
    where = f"{group.windows:,} windows ({share}), on average {group.progress:.0%} into the demonstration"
    near = ", ".join(f"{place.demo} step {place.step} ({short(place.distance)})" for place in group.nearest)
    order = "; the film shows the first ones, from the left" if film else ""
    plot = to_svg(code_plots.actions(PAGE, group, names, limits), label, title)
    width = 265 * min(len(names), code_plots.ACROSS)  # so that texts are of one size whatever the number of plots
    return (
        f'<figure class="wide"><h3>{escape(title)}: {where}</h3>{film}<div style="max-width:{width}px">{plot}</div>'
        f"<figcaption>Nearest to the mean: {escape(near)}{order}.</figcaption></figure>"
    )


def _sequences(report: CodeReport) -> str:
    found, title = report.sequences, "Whole sequences that recur"
    if not found.groups:
        return section(title, missing(f"None: all {found.distinct:,} windows have codes of their own."))
    names = action_names(report.demos)[:SHOWN_DIMENSIONS]
    limits = code_plots.action_limits(found.groups)
    text = (
        f"{found.recurring:,} of {found.distinct:,} sequences are those of more than one window, {found.shared:,} windows in "
        f"all. The most frequent ({len(found.groups)}) are below."
    )
    shown = (
        _sheet(report, group, " ".join(map(str, _trimmed(report, group.codes))), f"sequence{i}", names, limits)
        for i, group in enumerate(found.groups)
    )
    return section(title, paragraph(text, "muted"), f"<details><summary>their actions</summary>{''.join(shown)}</details>")


def _trimmed(report: CodeReport, codes: Sequence[int]) -> Sequence[int]:
    """A sequence up to the code that ends it."""
    ending = report.coded.ending
    return codes if ending is None else codes[: codes.index(ending) + 1] if ending in codes else codes


def _words(report: CodeReport) -> str:
    terms = {
        "window": f"{report.coded.windows.horizon} steps of actions; one starts at every step. Past the end of the demonstration "
        "its last action is repeated, as in training: the tokenizer sees that, and the means and distances here leave it out.",
        "phase": f"The share of the demonstration that is over where the window starts, in {BINS} equal parts.",
        "mutual information": "By how many bits the code lowers the uncertainty about the phase, from the frequencies (plug-in).",
        "by chance": "The same after the codes of each demonstration are turned around in time by a random number of steps: the "
        f"mean of {SHIFTS} times. Few windows make it larger than nothing, and so do neighbouring windows that share a code.",
        "nearest": "Windows by the root mean square of their difference from the mean, which is in brackets, in the tokenizer's "
        "normalised units; of each demonstration the nearest alone. Steps past the end of the demonstration count as much as "
        "those of other windows differ there on average.",
    }
    return section(
        "How to read this",
        "<dl>" + "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in terms.items()) + "</dl>",
    )
