"""Collects demonstrations of a simulated task with its scripted expert."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class Arguments:
    """Collect demonstrations of a simulated task with its scripted expert, in robomimic's HDF5 layout.

    Interrupted, it goes on from there when called again with the same settings.
    """

    task: str = "lift"
    """lift, can or square."""
    out: Path | None = None
    """File to write; data/<task>.hdf5 by default, data/<task>-human.hdf5 for the style human."""
    demos: int = 200
    """Number of successful demonstrations."""
    style: str = "plain"
    """plain, or human: pauses, detours, several grasps and speeds, grasps that miss and things that slip."""
    noise: float | None = None
    """Standard deviation of the noise on the arm's actions, in action units (the task's own by default)."""
    nudges: float | None = None
    """Chance that a step begins a nudge: six steps of a constant push (the task's own by default)."""
    strays: float | None = None
    """Chance that a demonstration begins after the hand was led astray, unrecorded, and shows the way back (by default
    the task's own, and 0 for another style than plain)."""
    seed: int = 0
    """Seed of the collection, 0 to 999."""
    workers: int | None = None
    """Processes; one per processor by default. The file does not depend on it."""
    valid_fraction: float = 0.1
    """Share of the demonstrations kept for validation."""
    overwrite: bool = False
    """Replace an existing file, once the new one is complete."""
    debug: bool = False
    """Show the traceback of an error."""


def main() -> int:
    """Returns the exit status: 0, 2 for an error, 130 when interrupted."""
    arguments = asdict(tyro.cli(Arguments))
    debug = arguments.pop("debug")
    from daps_robot.data.files import spelt
    from daps_robot.envs.collect import collect_demos
    from daps_robot.errors import DapsRobotError

    try:
        report = collect_demos(**arguments)
    except DapsRobotError as error:
        if debug:
            raise
        print(f"error: {spelt(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted; what is collected is kept, and the same command goes on from there.", file=sys.stderr)
        return 130
    steps = report.steps / report.demos
    print(f"{report.path}: {report.demos} demonstrations of {steps:.0f} steps, {report.failed} failed, {report.seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
