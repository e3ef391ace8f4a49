"""One HTML page a run: everything in one file that opens from disk, without scripts and without the network.

`python -m daps_robot.report.page RUN_DIR` writes the page of a finished run again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from daps_robot.config import from_json
from daps_robot.data.demos import DemoSet, read_demos
from daps_robot.errors import DapsRobotError, RunDirectoryError
from daps_robot.models.policies import read_policy
from daps_robot.models.policy import DecodingConfig, LatentPolicy
from daps_robot.report import curves, headline, plots, sections
from daps_robot.report.html import write_document
from daps_robot.report.measure import action_deviation, action_names, code_usage, held_out, trace
from daps_robot.report.run import Run, policy_directory, read_run
from daps_robot.report.style import CSS, LIGHT, to_png
from daps_robot.types import SizedPolicy


def write_page(out: Path, policy: SizedPolicy, demos: DemoSet) -> Path:
    """Write <out>/report.html from <out>/report.json, the metrics of the trainings, and what the models make of `demos`.

    Raises:
        RunDirectoryError: there is no report, or the page cannot be written.
    """
    run = read_run(out)
    name = headline.task_name(run, demos)
    return write_document(out / "report.html", name, body(run, policy, demos, name), CSS)


def body(run: Run, policy: SizedPolicy, demos: DemoSet, name: str) -> list[str]:
    """The page's parts; those about codes only of a latent policy."""
    latent = isinstance(policy, LatentPolicy)
    return [
        f'<header><p class="name">daps_robot</p><h1>{headline.title(run, name, latent)}</h1>{headline.lead(run)}</header><main>',
        headline.rates(run, latent),
        headline.facts(run, policy),
        sections.videos(run),
        *([curves.tokenizer_curves(run, policy)] if isinstance(policy, LatentPolicy) else []),
        curves.policy_curves(run, policy),
        sections.seen(policy, demos),
        sections.chunks(policy, demos),
        *([sections.codes(policy, demos)] if isinstance(policy, LatentPolicy) else []),
        sections.errors(run, demos, latent),
        sections.prefixes(run),
        sections.episodes(run),
        sections.seconds(run),
        sections.provenance(run, demos, latent),
        sections.words(latent),
        "</main><footer>Written by daps_robot from report.json, the trainings' metrics and the held-out demonstrations.</footer>",
    ]


def save_figures(out: Path, policy: SizedPolicy, demos: DemoSet, folder: Path) -> list[Path]:
    """Save the plots that speak for themselves as PNG files on white, for a README: those that the run has the data for.

    Returns:
        the files: chunks, code_usage, reconstruction, perplexity, policy_nll, errors, episode_lengths; those about codes
            only of a latent policy.
    """
    run = read_run(out)
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Figure] = {}
    if demonstrations := held_out(demos):
        figures["chunks"] = plots.chunk_sheet(LIGHT, trace(policy, demonstrations[0]), action_names(demos))
        if isinstance(policy, LatentPolicy):
            figures["code_usage"] = plots.usage(LIGHT, code_usage(policy, demonstrations))
    phases = curves.phases(run.tokenizer)
    for name, metrics, metric, unit in (
        ("reconstruction", run.tokenizer, "reconstruction", "nats per chunk"),
        ("perplexity", run.tokenizer, "perplexity", "codes in use"),
        ("policy_nll", run.policy, "nll", "nats per chunk"),
    ):
        valid, train = metrics.series("valid", metric), metrics.series("train", metric)
        if valid.size or train.size:
            shade = phases if metrics is run.tokenizer else None
            figures[name] = plots.curve(LIGHT, unit, valid=valid, train=train, phases=shade)
    if bars := sections.error_bars(run, demos, isinstance(policy, LatentPolicy)):
        deviation = action_deviation(demonstrations) if demonstrations else None
        figures["errors"] = plots.errors(LIGHT, action_names(demos), bars, deviation)
    if records := run.get("rollouts.records"):
        won, lost = ([r["length"] for r in records if r["success"] is which] for which in (True, False))
        figures["episode_lengths"] = plots.lengths(LIGHT, won, lost, run.get("rollouts.settings.max_steps"))
    return [to_png(figure, folder / f"{name}.png") for name, figure in figures.items()]


def load(out: Path) -> tuple[SizedPolicy, DemoSet]:
    """The policy (a latent one decoding as it was evaluated) and the demonstrations of a finished run.

    Raises:
        DapsRobotError: the report, the policy or the demonstrations are missing or damaged.
    """
    run = read_run(out)
    policy = read_policy(policy_directory(run))
    decoding = run.get("configuration.evaluate.decoding")
    if isinstance(policy, LatentPolicy) and decoding is not None:
        policy = policy.with_decoding(from_json(DecodingConfig, decoding, str(out / "report.json")))
    path = run.get("dataset.path")
    if path is None:
        raise RunDirectoryError(f"{out / 'report.json'} does not name its data set: run scripts/evaluate.py again")
    return policy, read_demos(Path(path), policy.obs_keys, cameras=policy.cameras, picture_size=policy.picture_size)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m daps_robot.report.page", description="Write the page of a finished run again."
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="directory that holds report.json, such as runs/lift")
    parser.add_argument("--figures", type=Path, metavar="FOLDER", help="also save the main plots there as PNG files")
    options = parser.parse_args(arguments)
    try:
        policy, demos = load(options.run)
        print(write_page(options.run, policy, demos))
        if options.figures is not None:
            for path in save_figures(options.run, policy, demos, options.figures):
                print(path)
    except DapsRobotError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
