"""Look at demonstrations before training on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from daps_robot.data.catalog import dataset_name, fetch
from daps_robot.data.demos import DemoSet, images_of, read_demos
from daps_robot.data.inspection import ACTIONS, HORIZON, Inspection, inspect
from daps_robot.errors import ConfigError, RunDirectoryError
from daps_robot.report.data_page import write_data_page

SHOWN = 3


@dataclass(frozen=True)
class InspectData:
    """Look at demonstrations before training on them: figures, what is wrong and where, and a page with plots.

    Attributes:
        dataset: a name of the catalogue, a robomimic HDF5 file or a LeRobot folder.
        out: the page; by default runs/<data set>/data.html.
        obs_keys: observation keys; by default the low-dimensional ones of the file.
        horizon: steps of the chunks that are to be trained on.
    """

    dataset: str
    out: Path | None = None
    obs_keys: tuple[str, ...] = ()
    horizon: int = HORIZON

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise ConfigError(f"--horizon {self.horizon}: a chunk has one step or more")


def run(config: InspectData) -> Inspection:
    """Print what there is to say, and write the page. NaN and infinity, which training refuses, are reported too.

    Raises:
        ConfigError: the page would not be an .html file: another file there is not to be replaced by it.
    """
    if config.out is not None and config.out.suffix != ".html":
        raise ConfigError(f"--out {config.out} is to be a page: give it the ending .html")
    demos = read_demos(fetch(config.dataset), config.obs_keys or None, finite=False)
    images = images_of(demos, demos.demos[0].name)
    found = inspect(demos, config.horizon)
    print("\n".join(summary(demos, found)))
    path = config.out or Path("runs") / dataset_name(config.dataset) / "data.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunDirectoryError(f"cannot write to {path.parent}: {error.strerror}; choose another --out") from error
    print(f"page: {write_data_page(path, demos, found, images)}")
    return found


def summary(demos: DemoSet, found: Inspection) -> list[str]:
    """Lines for a terminal."""
    lengths = np.array(found.lengths)
    rate = f"{demos.rate:g} a second, {lengths.sum() / demos.rate / 60:.1f} minutes" if demos.rate else "rate not stated"
    verdicts = [motion.verdict for motion in found.motions]
    lines = [
        f"{demos.path}: {len(lengths)} demonstrations ({len(demos.train)} to train on, {len(demos.valid)} held out), "
        f"{lengths.min()} to {lengths.max()} steps, {lengths.sum()} in all ({rate})",
        f"observations: {', '.join(f'{key} {size}' for key, size in demos.obs_dims.items())}",
        *([f"cameras: {', '.join(f'{c} {h}×{w}' for c, (h, w) in demos.cameras.items())}"] if demos.cameras else []),
        f"actions: {demos.action_dim}; look absolute: {verdicts.count('absolute')}, relative: {verdicts.count('relative')}",
        f"{'':12}" + "".join(f"{name:>11}" for name in ("min", "1%", "median", "99%", "max", "mean", "std")),
    ]
    for d in found.of(ACTIONS):
        kind = "" if d.kind == "continuous" else f"  {d.kind}"
        lines.append(f"{d.name:12}" + "".join(f"{value:11.4g}" for value in d.figures) + kind)
    for finding in found.findings:
        more = f"; and {len(finding.places) - SHOWN} more" if len(finding.places) > SHOWN else ""
        lines.append(f"! {finding.title}{' (training refuses this)' if finding.refused else ''}: {finding.advice}")
        lines += [f"    {'; '.join(finding.places[:SHOWN])}{more}"]
    return lines if found.findings else [*lines, "nothing else worth a look"]
