"""The parts of the page below its headline: videos, curves, chunks, codes, errors, episodes, and where it all came from."""

from __future__ import annotations

import base64
import json
from html import escape
from urllib.parse import quote

import numpy as np

from daps_robot.data.demos import DemoSet
from daps_robot.models.policy import LatentPolicy
from daps_robot.report import plots
from daps_robot.report.html import beside, figure, grid, missing, number, paragraph, section, table, whole
from daps_robot.report.measure import CodeUsage, action_deviation, action_names, code_usage, held_out, trace
from daps_robot.report.run import Run
from daps_robot.report.seen import strips
from daps_robot.report.style import PAGE, to_svg
from daps_robot.types import SizedPolicy

MAX_VIDEO_BYTES = 8 * 2**20
SHOWN_DEMOS = 3
LISTED_FAILURES = 6


def videos(run: Run) -> str:
    """The films, inside the page where they are small."""
    if not run.videos:
        why = run.get("rollouts.video_note") or "none were asked for, or no episode was played"
        return section("Videos", missing(f"No videos: {str(why).removeprefix('no videos: ')}."), *_lost(run))
    embed = sum(path.stat().st_size for path in run.videos) <= MAX_VIDEO_BYTES
    shown = []
    for path in run.videos:
        data = f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"
        source = data if embed else f"videos/{quote(path.name)}"
        episode, _, outcome = path.stem.removeprefix("episode_").partition("_")
        title = f"{outcome} (episode {int(episode)})".capitalize() if episode.isdecimal() else path.stem
        film = f'<video controls muted loop playsinline preload="metadata" src="{escape(source)}"></video>'
        shown.append(f"<figure>{film}<figcaption>{escape(title)}</figcaption></figure>")
    note = [missing(str(run.get("rollouts.video_note")))] if run.get("rollouts.video_note") else []
    if not any("failure" in path.name for path in run.videos) and run.get("successes") == run.get("episodes"):
        note.append(paragraph("No episode failed, so there is no failure to show.", "muted"))
    text = (
        "The first success and the first failure, by episode number; nobody chose the prettiest. Good: no jerk where chunks meet."
    )
    return section("Videos", paragraph(text, "muted"), grid(shown), *note, *_lost(run))


def _lost(run: Run) -> list[str]:
    if not run.lost_videos:
        return []
    return [missing(f"The report lists videos that are not in {run.out / 'videos'}: {', '.join(run.lost_videos)}.")]


CHUNKS = (
    "The policy sees only the observations up to a chunk's start. Good: it follows the demonstration's course without "
    "following its jitter, and the gripper switches at the same step."
)
CHUNKS_WITH_CODES = (
    "The tokenizer sees a chunk's actions and sends them through its most likely codes; the policy sees only the observations "
    "up to a chunk's start. Good: both follow the demonstration's course without following its jitter, and the gripper "
    "switches at the same step."
)


def chunks(policy: SizedPolicy, demos: DemoSet) -> str:
    """Demonstrated, reconstructed (of a latent policy) and planned actions."""
    latent = isinstance(policy, LatentPolicy)
    title = "Actions: demonstrated, rebuilt, planned" if latent else "Actions: demonstrated, planned"
    shown = held_out(demos)[:SHOWN_DEMOS]
    if not shown:
        return section(title, missing(f"{demos.path} holds no validation demonstrations to show."))
    names, parts = action_names(demos), []
    for i, demo in enumerate(shown):
        lines = trace(policy, demo)
        cells = (
            f"<figure>{to_svg(plots.chunk(PAGE, lines, a, name), f'chunk{i}-{a}', f'{demo.name}, {name}')}</figure>"
            for a, name in enumerate(names)
        )
        body = grid(cells, "small")
        parts.append(body if i == 0 else f"<details><summary>{escape(demo.name)}</summary>{body}</details>")
    text = (
        f"The first held-out demonstration, {escape(shown[0].name)}, in action units, in chunks of {policy.horizon} steps (thin "
        f"vertical lines). {CHUNKS_WITH_CODES if latent else CHUNKS}"
    )
    looks = [
        ("demonstrated", "muted", "stroke-width:5;opacity:.5"),
        *([("tokenizer", "accent", "stroke-width:2")] if latent else []),
        ("policy", "ink", "stroke-width:2;stroke-dasharray:5 3"),
    ]
    line = '<svg viewBox="0 0 30 10" aria-hidden="true"><path d="M1 5H29" style="stroke:var(--{});{}"/></svg>'
    key = "".join(f"<span>{line.format(colour, look)}{name}</span>" for name, colour, look in looks)
    key = f'<div class="key">{key}</div>'
    return section(title, paragraph(text, "muted"), key, *parts)


def seen(policy: SizedPolicy, demos: DemoSet) -> str:
    """The pictures that a policy with cameras sees of a held-out demonstration; nothing of another."""
    shown = held_out(demos)[:1]
    if not policy.cameras or not shown:
        return ""
    text = "Of the first held-out demonstration. In training crops of them, chosen by chance; when acting the middle."
    return section("What the policy sees", paragraph(text, "muted"), strips(shown[0].name, shown[0].images))


def codes(policy: LatentPolicy, demos: DemoSet) -> str:
    """Which codes are used, and how evenly."""
    title = "How the codes are used"
    if not held_out(demos):
        return section(title, missing(f"{demos.path} holds no validation demonstrations to encode."))
    used: CodeUsage = code_usage(policy, held_out(demos))
    v = policy.tokenizer.config.codes.vocabulary
    panels = (
        (
            plots.usage(PAGE, used),
            "Rank and frequency",
            "Each row a position, the stronger the colour, the more frequent; a mark ends those in use. Good: fades slowly, "
            "reaches far right.",
        ),
        (
            plots.per_position(PAGE, used.perplexity, f"of {v} codes"),
            "Codes in use per position (perplexity)",
            "As many equally frequent codes would be as varied. Good: every position carries its part, none near 1.",
        ),
        (
            plots.per_position(PAGE, used.unused, "share of the vocabulary", top=1.0),
            "Codes that no held-out chunk uses",
            f"Good: low. {used.windows:,} chunks cannot use all codes of a large vocabulary: some stay unused by chance.",
        ),
    )
    shown = (figure(to_svg(plot, f"codes{i}", name), name, caption) for i, (plot, name, caption) in enumerate(panels))
    return section(
        title,
        paragraph(f"Most likely codes of all {used.windows:,} held-out chunks (one from every step).", "muted"),
        grid(shown),
    )


ERRORS = {
    "most likely codes": "reconstruction_rmse",
    "one sample of the codes": "reconstruction_rmse_sample",
    "planned by the policy": "policy_rmse",
    "codes of another chunk": "other_codes_rmse",
}
PLANNING_ERRORS = {"planned": "policy_rmse"}


def error_bars(run: Run, demos: DemoSet, latent: bool) -> list[tuple[str, list[float]]]:
    """The report's errors of each action dimension, by name, in action units: of rebuilt chunks, or of planned ones."""
    known = [(name, run.get(key, [])) for name, key in (ERRORS if latent else PLANNING_ERRORS).items()]
    return [(name, values) for name, values in known if len(values) == demos.action_dim]


def errors(run: Run, demos: DemoSet, latent: bool) -> str:
    """Error of each action dimension: of rebuilt chunks, or of planned ones."""
    kinds = ERRORS if latent else PLANNING_ERRORS
    title = "What the codes lose" if latent else "How far the plans are off"
    bars = error_bars(run, demos, latent)
    if not bars:
        return section(title, missing("The report has no errors for these actions."))
    shown, names = held_out(demos), action_names(demos)
    deviation = action_deviation(shown) if shown else None
    plot = plots.errors(PAGE, names, bars, deviation)
    caption = "Good: far left of the line, down to the demonstrations' own noise."
    if latent:
        caption = (
            "Good: the two blue bars far left of the line (but not below the demonstrations' own noise), the policy's not far "
            "beyond them, and the grey one at the line or beyond, or the codes would not matter."
        )
    rebuilt = "rebuilt from their codes, and planned from what was seen before them" if latent else "as the policy plans them"
    text = (
        f"Error of held-out chunks, {rebuilt}. The upright line is the actions' standard deviation: the error of always "
        "answering with the mean."
    )
    columns = [name for name, _ in bars] + (["standard deviation"] if shown else [])
    head = "".join(f'<th class="n">{escape(name)}</th>' for name in columns)
    lines = [f"<tr><th></th>{head}</tr>"]
    for i, name in enumerate(names):
        cells = [number(run, f"{kinds[which]}.{i}", lambda value: f"{value:.3f}") for which, _ in bars]
        cells += [f"{deviation[i]:.3f}"] if deviation is not None else []
        lines.append(f"<tr><th>{escape(name)}</th>" + "".join(f'<td class="n">{cell}</td>' for cell in cells) + "</tr>")
    absent = [name for name in kinds if name not in dict(bars)]
    note = missing(f"Not in the report: {', '.join(absent)}.") if absent else ""
    return section(
        title,
        paragraph(text, "muted"),
        beside(
            figure(to_svg(plot, "errors", title), "Error per action dimension", caption),
            f"<table>{''.join(lines)}</table>{note}",
        ),
    )


def prefixes(run: Run) -> str:
    """The error by number of codes, where any prefix of the codes decodes; else nothing."""
    found = run.get("rmse_by_prefix", {})
    if not found:
        return ""
    series = np.array(sorted((int(m), float(error)) for m, error in found.items())).T
    caption = "Good: falls steeply at first and never rises; the last point is the error of all codes."
    text = (
        "The codes are ordered: a chunk can be decoded from the first few of them, more coarsely. Error of held-out chunks, "
        "over all action dimensions, from the most likely codes."
    )
    title = "Error by number of codes"
    plot = figure(to_svg(plots.by_prefix(PAGE, series), "prefixes", title), title, caption)
    rows = [(m, number(run, f"rmse_by_prefix.{m}", lambda value: f"{value:.3f}")) for m in sorted(found, key=int)]
    return section("What fewer codes lose", paragraph(text, "muted"), beside(plot, table([("codes", "error"), *rows])))


def episodes(run: Run) -> str:
    """How long the episodes took, and which failed."""
    records = run.get("rollouts.records", [])
    if not records:
        return section("Episodes", missing("No episodes were played."))
    won, lost = ([r for r in records if r["success"] is which] for which in (True, False))
    lengths = ([r["length"] for r in won], [r["length"] for r in lost])
    plot = plots.lengths(PAGE, *lengths, run.get("rollouts.settings.max_steps"))
    caption = "Good: one narrow heap far to the left, and nothing hatched at the right end, where episodes are given up."
    text = paragraph(f"Steps until success, on average: {number(run, 'rollouts.mean_success_length')}.", "muted")
    if lost:
        rows = [(f"episode {r['index']}", f"start seed {r['seed']}, {r['length']} steps") for r in lost[:LISTED_FAILURES]]
        rows += [(f"and {len(lost) - LISTED_FAILURES} more", "in report.json")] if len(lost) > LISTED_FAILURES else []
        text += f"<h3>Failures</h3>{table(rows)}"
    else:
        text += paragraph("No episode failed.", "muted")
    return section(
        "Episodes", beside(figure(to_svg(plot, "lengths", "Episode lengths"), "Length of the episodes", caption), text)
    )


def seconds(run: Run) -> str:
    """Where the time went."""
    found = [(str(name), float(value)) for name, value in run.get("seconds", {}).items() if value is not None]
    if not found:
        return section("Time", missing("The report has no times."))
    total = sum(value for _, value in found)
    rows = [(name, f"{number(run, f'seconds.{name}', lambda value: f'{value:.1f}')} s") for name, _ in found]
    caption = f"Wall clock of each stage, {total:.0f} s in all. Good: training takes nearly all of it."
    plot = to_svg(plots.stages(PAGE, found), "seconds", "Seconds per stage")
    return section("Time", beside(figure(plot, "Seconds per stage", caption), table(rows)))


def provenance(run: Run, demos: DemoSet, latent: bool) -> str:
    """What is needed to do it again."""
    recorded, included = run.get("dataset.sha256"), ", the tokenizer's included" if latent else ""
    rows = [
        ("demonstrations", f"<code>{escape(str(run.get('dataset.path', demos.path)))}</code>, "
                           f"{len(demos.train)} to train on, {len(demos.valid)} held out"),
        ("their SHA-256", f"<code>{escape(str(recorded))}</code>" if recorded else "not recorded"),
        ("policy", f"{number(run, 'policy_parameters', whole)} weights{included}"),
        *((str(name), escape(str(value or "not installed"))) for name, value in run.get("versions", {}).items()),
    ]  # fmt: skip
    notes = [] if run.get("versions") else [missing("The report names no versions.")]
    if recorded and recorded != demos.sha256:
        notes.append(
            missing("The demonstrations' file has changed since the report: the plots of this page that use it may differ.")
        )
    configuration = run.get("configuration")
    if configuration is None:
        notes.append(missing("The report holds no configuration."))
        return section("Where this came from", table(rows), *notes)
    text = escape(json.dumps(configuration, indent=2, ensure_ascii=False))
    return section(
        "Where this came from", table(rows), *notes, f"<details><summary>full configuration</summary><pre>{text}</pre></details>"
    )


WORDS = {
    "action chunk": "the actions of the next few steps, planned at once.",
    "codes": "a short sequence of whole numbers that stands for a chunk; the policy chooses codes, not actions.",
    "tokenizer": "encoder (chunk → codes) and decoder (codes → chunk), trained first, by itself.",
    "policy": "predicts the codes of the next chunk from what the robot observes.",
    "DAPS": "discrete autoencoding via policy search: the encoder learns like an agent whose reward is a good reconstruction.",
    "nats, bits": "units of information; 1 nat is 1.44 bits. A surprise of n bits is that of n fair coins all landing as called.",
    "held-out, validation": "demonstrations that nothing was trained on.",
    "Wilson interval": "range of success rates that the episodes played are compatible with; narrower with more episodes.",
    "RMSE": "root of the mean squared error, in the units of the actions.",
    "open loop": "without looking at where the robot has got to.",
}


OF_CODES = ("codes", "tokenizer", "policy", "DAPS", "nats, bits")
"""The words that a page without codes does not use, or not in this sense."""


def words(latent: bool) -> str:
    """A glossary."""
    used = {name: meaning for name, meaning in WORDS.items() if latent or name not in OF_CODES}
    return section("Words", "<dl>" + "".join(f"<dt>{name}</dt><dd>{meaning}</dd>" for name, meaning in used.items()) + "</dl>")
