"""Look at the codes of a tokenizer: how often each is used, when in the task, and what it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np

from daps_robot.commands.distill_policy import newest_run, run_description
from daps_robot.config import save_json
from daps_robot.data.cameras import HAND
from daps_robot.data.catalog import dataset_name, fetch
from daps_robot.data.demos import DemoSet, read_demos
from daps_robot.errors import CheckpointError, ConfigError, RunDirectoryError
from daps_robot.models.action_tokenizer import ActionTokenizer, load_tokenizer
from daps_robot.models.frontends import ChunkFrontEndConfig
from daps_robot.models.posteriors import GaussianPosterior
from daps_robot.models.tokenizer import Tokenizer
from daps_robot.report.code_meaning import (
    CodeGroup,
    code_groups,
    encode_windows,
    frequent_codes,
    phase_counts,
    phase_entropy,
    position_uses,
    recurring_sequences,
)
from daps_robot.report.code_page import VARIABLE, CodeReport, write_code_page
from daps_robot.rollout.player import Clip
from daps_robot.rollout.results import finite
from daps_robot.rollout.video import film_states
from daps_robot.types import JSON, Demo

FORMAT, VERSION = "daps_robot/codes-inspected", 1

SHOWN_IN_TIME = 24
"""Codes of a position whose phases are shown."""

NEAREST = 5
"""Windows that are named for each code, or as many as are filmed."""


@dataclass(frozen=True)
class InspectCodes:
    """Look at the codes of a tokenizer: usage by position and phase, actions and films of what each code does, on a page.

    Attributes:
        tokenizer: directory of a tokenizer's run, or of its model; by default the newest run (of the data set, if one is named).
        dataset: a name of the catalogue, a robomimic HDF5 file or a LeRobot folder; by default the one that the tokenizer was
            trained on.
        out: folder of the page and its figures; by default `codes` beside the tokenizer's run.
        split: look at all demonstrations, or at those for training or for validation.
        position: of the code sequence, from 0, whose codes are looked at one by one.
        top: how many of them, the most frequent first; and how many sequences that recur.
        videos: windows side by side in the film of each code, of demonstrations that a simulator here can show; 0 for no films.
    """

    tokenizer: Path | None = None
    dataset: str | None = None
    out: Path | None = None
    split: Literal["all", "train", "valid"] = "all"
    position: int = 0
    top: int = 8
    videos: int = 4

    def __post_init__(self) -> None:
        if self.top < 1 or self.position < 0 or self.videos < 0:
            raise ConfigError(
                f"--top {self.top}, --position {self.position}, --videos {self.videos}: "
                "one code or more, positions from 0 on, and no fewer than 0 windows in a film"
            )


def run(config: InspectCodes) -> JSON:
    """Look, print a summary, write <out>/index.html; the figures, which are also written to <out>/codes.json."""
    name = dataset_name(config.dataset) if config.dataset else None
    place = config.tokenizer or newest_run("tokenizer", name)
    tokenizer = load_tokenizer(place)
    check_tokenizer(tokenizer, place, config.position)
    demos = read_demos(fetch(config.dataset or trained_on(place)), tokenizer.obs_keys or None)
    check_data(tokenizer, place, demos)
    out = config.out or place.parent / "codes"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunDirectoryError(f"cannot write to {out}: {error.strerror}; choose another --out") from error
    chosen = {"all": demos.demos, "train": demos.select(demos.train), "valid": demos.select(demos.valid)}[config.split]
    coded = encode_windows(tokenizer, chosen, demos.obs_keys, str(demos.path))
    shown = frequent_codes(coded, config.position, max(config.top, SHOWN_IN_TIME))
    if not shown:
        raise ConfigError(f"--position {config.position}: the code sequences of all {len(coded)} windows have ended by then")
    nearest = max(NEAREST, config.videos)
    groups = code_groups(coded, config.position, config.top, nearest)
    films, note = filmed(demos, chosen, groups, config.videos)
    report = CodeReport(
        tokenizer=place,
        demos=demos,
        split=config.split,
        coded=coded,
        uses=position_uses(coded),
        entropy=phase_entropy(coded),
        position=config.position,
        phase_codes=shown,
        phase_counts=phase_counts(coded, config.position, shown),
        groups=groups,
        sequences=recurring_sequences(coded, config.top, nearest),
        films=films,
        note=note,
    )
    found = figures(report)
    save_json(found, out / "codes.json")
    print("\n".join(summary(report)))
    print(f"page: {write_code_page(out / 'index.html', report)}")
    return found


def trained_on(place: Path) -> str:
    """The data set of a tokenizer's run.

    Raises:
        ConfigError: it is not known.
    """
    try:
        return str(run_description(place)["dataset"]["path"])
    except (CheckpointError, ConfigError) as error:
        raise ConfigError(f"which demonstrations are to be encoded is not known: pass --dataset ({error})") from error


def check_tokenizer(tokenizer: ActionTokenizer, place: Path, position: int) -> None:
    """Raises CheckpointError where a tokenizer has no codes of action chunks, ConfigError where it has no such position."""
    if isinstance(tokenizer, Tokenizer):
        if not isinstance(tokenizer.config.front_end, ChunkFrontEndConfig):
            raise CheckpointError(f"the tokenizer in {place} is one of pictures: this looks at codes of action chunks")
        if isinstance(tokenizer.posterior, GaussianPosterior):
            raise CheckpointError(f"the tokenizer in {place} is a vae, which has no codes: train it with another --estimator")
    positions = tokenizer.config.codes.positions
    if position >= positions:
        raise ConfigError(f"--position {position}: the tokenizer in {place} has {positions} positions, 0 to {positions - 1}")


def check_data(tokenizer: ActionTokenizer, place: Path, demos: DemoSet) -> None:
    """Raises CheckpointError where demonstrations are not such as a tokenizer encodes."""
    if demos.action_dim != tokenizer.action_dim:
        raise CheckpointError(
            f"the tokenizer in {place} encodes actions of {tokenizer.action_dim} dimensions, {demos.path} has "
            f"{demos.action_dim}: pass the --dataset it was trained on, or train one on this data set"
        )
    seen = tokenizer.observation_dim if isinstance(tokenizer, Tokenizer) else 0
    if seen and seen != sum(demos.obs_dims.values()):
        raise CheckpointError(
            f"the tokenizer in {place} decodes with {seen} observed numbers ({', '.join(demos.obs_keys)}), {demos.path} has "
            f"{sum(demos.obs_dims.values())}: pass the --dataset it was trained on"
        )


def filmed(
    demos: DemoSet, chosen: Sequence[Demo], groups: Sequence[CodeGroup], abreast: int
) -> tuple[tuple[bytes, ...], str | None]:
    """A film of each code, its nearest windows side by side from their recorded states; and why there are none, or fewer."""
    if not abreast:
        return (), "none were asked for"
    if demos.env_id is None:
        return (), f"{demos.path} names no simulator that is the same here"
    if any(demo.states is None for demo in chosen):
        return (), f"{demos.path} has no simulator states"
    clips = [
        [clip(demos, chosen[near.owner], near.step, len(group.mean)) for near in group.nearest[:abreast]] for group in groups
    ]
    with TemporaryDirectory() as folder:
        films = film_states(demos.env_id, clips, Path(folder))
        return tuple(path.read_bytes() for path in films.paths), films.note


def clip(demos: DemoSet, demo: Demo, step: int, horizon: int) -> Clip:
    """The states of a window, and the one that its last action leads to."""
    assert demo.states is not None
    steps, hand = slice(step, step + horizon + 1), demo.obs.get(HAND)
    return Clip(f"{demos.path}: {demo.name}", step, demo.states[steps], None if hand is None else hand[steps])


def figures(report: CodeReport) -> JSON:
    """Everything on the page as numbers; NaN becomes None, which JSON has."""
    coded, sequences = report.coded, report.sequences
    return {
        "format": FORMAT,
        "version": VERSION,
        "tokenizer": str(report.tokenizer),
        "dataset": {"path": str(report.demos.path), "sha256": report.demos.sha256, "split": report.split},
        "demonstrations": len(coded.demos),
        "windows": len(coded),
        "horizon": coded.windows.horizon,
        "vocabulary": coded.vocabulary,
        "ending_code": coded.ending,
        "phase_entropy": report.entropy,
        "positions": [
            {
                "entropy": use.entropy,
                "perplexity": use.perplexity,
                "unused": use.unused,
                "phase_information": use.information,
                "phase_information_by_chance": use.chance,
                "counts": {int(code): int(use.counts[code]) for code in np.flatnonzero(use.counts)},
            }
            for use in report.uses
        ],
        "position": report.position,
        "by_phase": dict(zip(report.phase_codes, report.phase_counts.tolist(), strict=True)),
        "codes": [group_figures(group) for group in report.groups],
        "sequences": {
            "distinct": sequences.distinct,
            "recurring": sequences.recurring,
            "windows": sequences.shared,
            "most_frequent": [group_figures(group) for group in sequences.groups],
        },
        "videos": len(report.films),
        "video_note": report.note,
    }


def group_figures(group: CodeGroup) -> JSON:
    """Of windows with something in common."""
    chunks = {name: getattr(group, name) for name in ("mean", "deviation", "decoded")}
    return {
        "codes": list(group.codes),
        "windows": group.windows,
        "progress": group.progress,
        "present": group.present.tolist(),
        **{name: [[finite(each) for each in step] for step in values.tolist()] for name, values in chunks.items()},
        "nearest": [{name: value for name, value in asdict(place).items() if name != "owner"} for place in group.nearest],
    }


def summary(report: CodeReport) -> list[str]:
    """Lines for a terminal."""
    coded, uses = report.coded, report.uses
    chosen = {"all": "", "train": " training", "valid": " held-out"}[report.split]
    lines = [
        f"{report.tokenizer} on {report.demos.path}: {len(coded)} windows of {len(coded.demos)}{chosen} demonstrations, "
        f"{len(uses)} codes of {coded.vocabulary}",
        *([VARIABLE] if coded.ending is not None else []),
        f"{'position':>8}{'perplexity':>12}{'unused':>8}{'bits about phase':>18}{'by chance':>11}   (of {report.entropy:.2f})",
    ]
    for position, use in enumerate(uses):
        lines.append(f"{position:8}{use.perplexity:12.1f}{use.unused:8}{use.information:18.3f}{use.chance:11.3f}")
    for group in report.groups:
        near = group.nearest[0]
        lines.append(
            f"code {group.codes[0]} at position {report.position}: {group.windows} windows ({group.windows / len(coded):.1%}), "
            f"on average {group.progress:.0%} into the demonstration; nearest to the mean: {near.demo} step {near.step}"
        )
    lines.append(f"{report.sequences.recurring} of {report.sequences.distinct} code sequences are those of more than one window")
    return [*lines, f"no films, or not all: {report.note}"] if report.note else lines
