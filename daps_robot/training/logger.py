"""Metrics of a run: a JSONL file always, TensorBoard by default, Weights & Biases by choice; a resume duplicates no rows."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
import uuid
from pathlib import Path
from typing import Any, Protocol

from daps_robot.atomic import put
from daps_robot.config import load_json
from daps_robot.data.hdf5 import short
from daps_robot.errors import CheckpointError, ConfigError, RunDirectoryError

WANDB_ID = "wandb-id.txt"
"""Of a run's directory: under which Weights & Biases knows it."""


class Mirror(Protocol):
    """Shows somewhere else what `metrics.jsonl` records."""

    def log(self, step: int, split: str, metrics: dict[str, float]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class MetricLogger:
    """Writes rows {"step", "split", metrics…} to `metrics.jsonl` in a directory, and scalars to its mirrors."""

    def __init__(self, directory: Path, first_step: int, tensorboard: bool = True, wandb: str = "") -> None:
        """Rows past `first_step` (of an interrupted run) are dropped: they will be written again.

        Args:
            directory: of the run.
            first_step: that it goes on from; 0 for a new run.
            tensorboard: mirror to `tensorboard/` in the directory.
            wandb: mirror to this project of Weights & Biases (see `check_wandb`); "" to none.

        Raises:
            RunDirectoryError: the directory cannot be written.
            ConfigError: Weights & Biases does not let us in.
        """
        self.path = directory / "metrics.jsonl"
        found = read_rows(self.path) if first_step else []
        rows = [row for row in found if row["step"] <= first_step]
        try:
            put(self.path, lambda temporary: temporary.write_text("".join(json.dumps(row) + "\n" for row in rows)))
            self.file = self.path.open("a")
        except OSError as error:
            raise RunDirectoryError(f"cannot write {self.path}: {error.strerror}") from error
        self.mirrors: list[Mirror] = []
        if tensorboard:
            self.mirrors.append(TensorBoard(directory, first_step))
        if wandb:
            self.mirrors.append(WeightsAndBiases(directory, wandb, first_step, again=len(found) - len(rows)))

    def log(self, step: int, split: str, metrics: dict[str, float]) -> None:
        # JSON has no NaN: a metric that is not finite is written as null, not dropped
        row = {k: (v if math.isfinite(v) else None) for k, v in metrics.items()}
        try:
            self.file.write(json.dumps({"step": step, "split": split, **row}) + "\n")
            self.file.flush()
            for mirror in self.mirrors:
                mirror.log(step, split, metrics)
        except OSError as error:
            raise RunDirectoryError(f"cannot write the metrics in {self.path.parent}: {error.strerror}") from error

    def flush(self) -> None:
        """To disk, all of it."""
        try:
            os.fsync(self.file.fileno())
            for mirror in self.mirrors:
                mirror.flush()
        except OSError as error:
            raise RunDirectoryError(f"cannot write the metrics in {self.path.parent}: {error.strerror}") from error

    def close(self) -> None:
        """Flushes and closes the files; a full disk has been reported by then, and must not hide what went wrong first."""
        for close in (self.file.close, *(mirror.close for mirror in self.mirrors)):
            with contextlib.suppress(OSError):
                close()


class TensorBoard:
    """Scalars in `tensorboard/`, those past the first step purged."""

    def __init__(self, directory: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self.writer: Any = SummaryWriter(str(directory / "tensorboard"), purge_step=first_step + 1)

    def log(self, step: int, split: str, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(f"{split}/{name}", value, step)

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """One run there for one directory, whose configuration it has; a resume goes on with it.

    It is a mirror: what goes wrong with it is said, and the training goes on without it.
    """

    def __init__(self, directory: Path, project: str, first_step: int, again: int) -> None:
        """`again` rows past `first_step`, which it has, will be logged once more, and are not sent twice."""
        import wandb

        identity, config = directory / WANDB_ID, directory / "config.json"
        known = first_step > 0 and identity.is_file()
        self.again = again if known else 0
        try:
            if not known:
                put(identity, lambda temporary: temporary.write_text(uuid.uuid4().hex[:12]))
            self.run: Any = wandb.init(
                project=project,
                id=identity.read_text().strip(),
                name=str(directory),
                dir=directory,
                config=load_json(config) if config.is_file() else {},
                resume="allow",
            )
        except OSError as error:
            raise RunDirectoryError(f"cannot write {identity}: {error.strerror}") from error
        except Exception as error:  # of many kinds
            raise _not_let_in(error) from error

    def log(self, step: int, split: str, metrics: dict[str, float]) -> None:
        if self.again:
            self.again -= 1
        elif self.run is not None:
            try:
                self.run.log({f"{split}/{name}": value for name, value in metrics.items()}, step=step)
            except Exception as error:  # of its service, which may have died
                self._give_up(error)

    def flush(self) -> None:
        """It sends by itself."""

    def close(self) -> None:
        if self.run is not None:
            try:
                self.run.finish()
            except Exception as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self.run = None
        text = f"Weights & Biases is told no more of this run ({short(error)}); metrics.jsonl has it all"
        print(text, file=sys.stderr, flush=True)


_WANDB_REMEDY = "`wandb login`, or WANDB_MODE=offline to send it later"


def _not_let_in(error: Exception) -> ConfigError:
    return ConfigError(f"Weights & Biases does not let us in: {short(error)}; {_WANDB_REMEDY}")


def check_wandb(project: str) -> None:
    """Whether a run can be mirrored to this project, as far as that can be told before it begins.

    Raises:
        ConfigError: it is not installed, nobody is logged in, or that is no name of a project.
    """
    if not project:
        return
    try:
        import wandb
    except ImportError as error:
        raise ConfigError("--wandb needs Weights & Biases: pip install 'daps-robot[wandb]'") from error
    if re.search(r"[/\\#?%:]", project):
        raise ConfigError(f"--wandb {project!r} cannot be a project's name, which has none of / \\ # ? % :")
    if os.environ.get("WANDB_MODE", "online") in ("online", "shared"):
        try:
            let_in = wandb.login()
        except Exception as error:  # of many kinds
            raise _not_let_in(error) from error
        if not let_in:
            raise ConfigError(f"Weights & Biases knows no user here: {_WANDB_REMEDY}")


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
