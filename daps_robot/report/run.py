"""What a finished run left on disk: its report, its training metrics, its videos. Whatever is missing is simply empty."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from daps_robot.config import load_json
from daps_robot.errors import RunDirectoryError
from daps_robot.training.logger import read_rows
from daps_robot.types import JSON


@dataclass(frozen=True)
class Metrics:
    """The rows of a metrics file.

    Attributes:
        path: where they were looked for last.
        rows: in the order in which they were logged; none where there is no such file.
    """

    path: Path
    rows: tuple[dict[str, Any], ...] = ()

    def series(self, split: str, name: str) -> Float[np.ndarray, "2 _"]:
        """Steps and values of a metric; NaN where a row of the split lacks it, so that a curve has a gap there."""
        rows = [row for row in self.rows if row.get("split") == split]
        values = [row.get(name) for row in rows]
        if all(value is None for value in values):
            return np.zeros((2, 0))
        return np.array([[row["step"] for row in rows], [np.nan if value is None else value for value in values]], dtype=float)

    def numbered(self, split: str, name: str) -> list[Float[np.ndarray, "2 _"]]:
        """The series name/0, name/1, …"""
        found: list[Float[np.ndarray, "2 _"]] = []
        while (series := self.series(split, f"{name}/{len(found)}")).size:
            found.append(series)
        return found

    @property
    def last_step(self) -> int:
        """The last step that anything was logged at."""
        return max((row["step"] for row in self.rows), default=0)


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        out: its directory.
        report: report.json.
        tokenizer, policy: metrics of the two trainings.
        videos: files of the evaluation's videos that exist.
        lost_videos: names of those that the report lists and that do not.
    """

    out: Path
    report: JSON
    tokenizer: Metrics
    policy: Metrics
    videos: tuple[Path, ...]
    lost_videos: tuple[str, ...]

    def get(self, key: str, default: Any = None) -> Any:
        """What the report holds under a path such as "policy_latency_ms.p99" or "ci95.0"; the default for nothing or null."""
        value: Any = self.report
        for part in key.split("."):
            if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
                value = value[int(part)]
            elif isinstance(value, dict):
                value = value.get(part)
            else:
                return default
        return default if value is None else value

    @property
    def graded(self) -> bool:
        """Whether the environment's scores tell more than success from failure (`Evaluation.graded`)."""
        records = self.get("rollouts.records", [])
        return any(record.get("score", record["success"]) != record["success"] for record in records)


def read_run(out: Path) -> Run:
    """Read a run directory.

    Raises:
        RunDirectoryError: it holds no report.
        ConfigError: the report is damaged.
    """
    path = out / "report.json"
    if not path.is_file():
        raise RunDirectoryError(f"{path} does not exist: run scripts/evaluate.py first, or give the directory it wrote to")
    report = load_json(path)
    if not isinstance(report, dict):
        raise RunDirectoryError(f"{path} holds no report: run scripts/evaluate.py again")
    bare = Run(out, report, Metrics(out), Metrics(out), (), ())
    records = bare.get("rollouts.records", [])
    if not isinstance(records, list) or not all(isinstance(record, dict) and "success" in record for record in records):
        raise RunDirectoryError(f"{path}: rollouts.records is no list of episodes: run scripts/evaluate.py again")
    names = videos if isinstance(videos := bare.get("rollouts.videos", []), list) else []
    listed = [Path(str(name)).name for name in names]
    there = {video.name: video for video in (out / "videos").glob("*") if video.is_file()}
    return Run(
        out,
        report,
        _metrics(bare.get("configuration.policy.tokenizer"), out / "tokenizer"),
        _metrics(policy_directory(bare), out / "policy"),
        tuple(there[name] for name in listed if name in there),
        tuple(name for name in listed if name not in there),
    )


def policy_directory(run: Run) -> Path:
    """The policy's run, or the file it was exported to: as the report names it, else where the report is, else beside that or
    beside the tokenizer's run."""
    named, tokenizer = run.get("configuration.evaluate.policy"), run.get("configuration.policy.tokenizer")
    beside = run.out / "policy"
    here = [run.out] if (run.out / "model").is_dir() else []
    named_run = [Path(named)] if isinstance(named, str) else []
    beside_tokenizer = [Path(tokenizer).parent / "policy"] if isinstance(tokenizer, str) else []
    candidates = [*named_run, *here, beside, *beside_tokenizer]
    return next((path for path in candidates if path.exists()), beside)


def _metrics(named: Any, beside: Path) -> Metrics:
    """From the directory that the report names, else (it was moved, or named relatively) from the one beside the report."""
    for directory in ([Path(named)] if isinstance(named, str | Path) else []) + [beside]:
        path = directory / "metrics.jsonl"
        if rows := read_rows(path):
            return Metrics(path, tuple(rows))
    return Metrics(path)
