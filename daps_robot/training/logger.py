"""Metrics of a run: a JSONL file always, TensorBoard by default, both without duplicate rows after a resume."""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

from daps_robot.atomic import put
from daps_robot.errors import CheckpointError, RunDirectoryError


class MetricLogger:
    """Writes rows {"step", "split", metrics…} to `metrics.jsonl` and scalars to `tensorboard/` in a directory."""

    def __init__(self, directory: Path, first_step: int, tensorboard: bool = True) -> None:
        """Rows past `first_step` (of an interrupted run) are dropped: they will be written again."""
        self.path = directory / "metrics.jsonl"
        rows = [row for row in read_rows(self.path) if row["step"] <= first_step] if first_step else []
        try:
            put(self.path, lambda temporary: temporary.write_text("".join(json.dumps(row) + "\n" for row in rows)))
            self.file = self.path.open("a")
        except OSError as error:
            raise RunDirectoryError(f"cannot write {self.path}: {error.strerror}") from error
        self.writer: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self.writer = SummaryWriter(str(directory / "tensorboard"), purge_step=first_step + 1)

    def log(self, step: int, split: str, metrics: dict[str, float]) -> None:
        # JSON has no NaN: a metric that is not finite is written as null, not dropped
        row = {k: (v if math.isfinite(v) else None) for k, v in metrics.items()}
        try:
            self.file.write(json.dumps({"step": step, "split": split, **row}) + "\n")
            self.file.flush()
            if self.writer is not None:
                for name, value in metrics.items():
                    self.writer.add_scalar(f"{split}/{name}", value, step)
        except OSError as error:
            raise RunDirectoryError(f"cannot write the metrics in {self.path.parent}: {error.strerror}") from error

    def flush(self) -> None:
        """To disk, all of it."""
        try:
            os.fsync(self.file.fileno())
            if self.writer is not None:
                self.writer.flush()
        except OSError as error:
            raise RunDirectoryError(f"cannot write the metrics in {self.path.parent}: {error.strerror}") from error

    def close(self) -> None:
        """Flushes and closes the files; a full disk has been reported by then, and must not hide what went wrong first."""
        with contextlib.suppress(OSError):
            self.file.close()
            if self.writer is not None:
                self.writer.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; a last line cut short by a crash is left out.

    Raises:
        CheckpointError: another line is no row.
    """
    if not path.is_file():
        return []
    rows = []
    with path.open(errors="replace") as file:
        for number, line in enumerate(file, 1):
            if (row := _row(line)) is not None:
                rows.append(row)
            elif line.endswith("\n"):
                raise CheckpointError(f"{path}: line {number} is no row of metrics: remove it, or start anew with --overwrite")
    return rows


def _row(line: str) -> dict[str, Any] | None:
    """A step, the name of a split, and numbers; None for anything else."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int or not isinstance(row.get("split"), str):
        return None
    values = [value for name, value in row.items() if name != "split" and value is not None]
    return row if all(isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**53) for value in values) else None
