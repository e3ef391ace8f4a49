"""The core trainer, on Lightning Fabric: devices, processes, a run's directory. It knows nothing of actions or images."""

from __future__ import annotations

import math
import os
import re
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy

from daps_robot import parallel
from daps_robot.checkpoints import has_state, owned_directory
from daps_robot.config import differences, load_json, save_json, to_json
from daps_robot.data.hdf5 import short
from daps_robot.errors import ConfigError, DapsRobotError, RunDirectoryError
from daps_robot.training.logger import WANDB_ID, check_wandb
from daps_robot.training.loop import Training, stop_signals
from daps_robot.training.objective import Objective, TrainerConfig
from daps_robot.training.stream import Batches

RUN_FILES = (
    *("state.pt", "state.before.pt", "state.new.pt", "state.damaged.pt", "best.json", "metrics.jsonl", "timing.json"),
    *("report.json", "report.html", "examples.png", "exported.onnx", WANDB_ID),
)
RUN_FOLDERS = ("model", "checkpoints", "tensorboard", "wandb", "exported")
"""What a run and the command around it write, beside config.json."""

CHANGES_NOTHING = re.compile(r"(^|\.)(workers|tensorboard|wandb): ")
"""Settings with which a run may be resumed that was started with others."""


class Trainer:
    """Runs the loop in a directory: config.json, metrics.jsonl, tensorboard/, state.pt (to resume), model/ (the best),
    checkpoints/ (the last ones)."""

    def __init__(self, config: TrainerConfig, directory: Path, description: Any = None) -> None:
        """`description` is saved as config.json beside the results; a resumed run must have the same."""
        self.config, self.directory = config, directory
        self.description = description if description is not None else config

    def fit(self, objective: Objective, data: Batches, resume: bool = False, overwrite: bool = False) -> dict[str, float]:
        """Train until a limit is met; the metrics of the best validation.

        `resume` goes on with a run that is in the directory (and starts one where there is none); `overwrite` throws it away.

        Raises:
            RunDirectoryError: the directory is in use, not writable, or holds a run and `resume` is False.
            DapsRobotError: too many non-finite steps in a row.
            KeyboardInterrupt: after SIGINT or SIGTERM; the state was saved.
        """
        if overwrite and resume:
            raise ConfigError("--resume goes on with a run and --overwrite throws it away: give one of them")
        if self.config.accumulate > 1 and not objective.divisible:
            raise ConfigError("this estimator's steps cannot be divided into parts: leave out --accumulate")
        if self.config.batch_size > max(10_000, 100 * len(data)):
            raise ConfigError(f"batch_size {self.config.batch_size} is out of proportion to {len(data)} examples")
        check_wandb(self.config.wandb)
        fabric = self._fabric()
        with owned_directory(self.directory) if parallel.is_main() else nullcontext(), stop_signals() as stop:
            if parallel.is_main():
                self.claim(resume, overwrite)
            parallel.wait_for_all()
            training = Training(self.config, self.directory, fabric, objective)
            if resume and has_state(self.directory):
                training.load()
            at = float(training.progress.step)
            if parallel.largest([at, -at], fabric.device) != [at, -at]:
                raise RunDirectoryError(f"not all processes find the same run in {self.directory}: it must be shared by all")
            training.run(data, stop)
            parallel.wait_for_all()
        if not math.isfinite(training.progress.best):
            raise DapsRobotError(
                f"no validation of {self.directory} was finite: lower --lr, or look for absurd values in the data; "
                "nothing was kept"
            )
        return load_json(self.directory / "best.json")

    def _fabric(self) -> Fabric:
        """The device and the precision; under torchrun, one of several processes that share each batch."""
        config, processes = self.config, parallel.launched()
        if config.batch_size % (processes * config.accumulate):
            raise ConfigError(
                f"batch_size {config.batch_size} is not divisible by {processes} processes × {config.accumulate} parts: "
                "choose a multiple"
            )
        several: dict[str, Any] = {"devices": 1}
        if processes > 1:
            here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
            # a warm start leaves parts of the network unused, which the reducer must find out
            ddp = DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)
            several = {"devices": here, "num_nodes": processes // here, "strategy": ddp}
        try:
            fabric = Fabric(accelerator=config.device, precision=config.precision, **several)
            fabric.launch()
        except Exception as error:  # Fabric has kinds of its own
            raise ConfigError(f"device {config.device!r} in {config.precision!r} cannot be used: {short(error)}") from error
        return fabric

    def claim(self, resume: bool, overwrite: bool) -> None:
        """Make the directory this run's: refuse another run's, throw one away if told to, write config.json.

        Raises:
            RunDirectoryError: the directory holds a run that is not to be thrown away, or cannot be written.
        """
        path = self.directory / "config.json"
        if path.is_file():
            self._refuse_another_kind(path)
        elif there := [name for name in (*RUN_FILES, *RUN_FOLDERS) if (self.directory / name).exists()]:
            raise RunDirectoryError(
                f"{self.directory} holds {there[0]}, but no {path.name} of a run: put it back, or choose another --out"
            )
        if overwrite and path.is_file():  # without it, whatever lies there is not ours to throw away
            for name in RUN_FILES:
                (self.directory / name).unlink(missing_ok=True)
            for name in RUN_FOLDERS:
                shutil.rmtree(self.directory / name, ignore_errors=True)
            path.unlink()  # last: by it the directory is known as a run's, wherever this is interrupted
        if self._holds_results():
            if not resume:
                raise RunDirectoryError(f"{self.directory} already holds a run: use --resume, --overwrite or another --out")
            self._check_resumable(path)
        try:
            save_json(self.description, path)
        except OSError as error:
            raise RunDirectoryError(f"cannot write {path}: {error.strerror}") from error

    def _check_resumable(self, path: Path) -> None:
        """Raises RunDirectoryError where the run there has other settings, or is at its end and has lost its state."""
        found = load_json(path)
        if not isinstance(found, dict):
            raise RunDirectoryError(f"{path} is damaged: start again with --overwrite")
        changed = [text for text in differences(found, self.description) if not CHANGES_NOTHING.search(text)]
        if changed:
            raise RunDirectoryError(
                f"{self.directory} was started with other settings ({'; '.join(changed[:5])}): give the same ones, or --overwrite"
            )
        if not has_state(self.directory) and (self.directory / "timing.json").is_file():
            raise RunDirectoryError(f"{self.directory} was trained to the end, and its state.pt is gone: nothing to resume")

    def _refuse_another_kind(self, path: Path) -> None:
        """Raises RunDirectoryError where the run there is of another command: a policy's, say, in place of a tokenizer's."""
        try:
            found, ours = (command_type(description) for description in (load_json(path), to_json(self.description)))
        except DapsRobotError:  # a damaged one
            return
        if found != ours:
            what = f"a run of {found}, not of {ours}" if found else f"a {path.name} that is no run's"
            raise RunDirectoryError(f"{self.directory} holds {what}: choose another --out")

    def _holds_results(self) -> bool:
        return has_state(self.directory) or (self.directory / "best.json").exists()


def command_type(description: Any) -> str | None:
    """Which command a run's description is of; None of one that no command made."""
    command = description.get("command") if isinstance(description, dict) else None
    kind = command.get("_type") if isinstance(command, dict) else None
    return kind if isinstance(kind, str) else None
