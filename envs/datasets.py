"""The data sets that the scripted experts can make, for the catalogue (entry points `daps_robot.datasets`)."""

from __future__ import annotations

from pathlib import Path

from daps_robot.data.catalog import GeneratedDataset


def _generate_lift(path: Path) -> None:
    _generate("lift", path)


def _generate_can(path: Path) -> None:
    _generate("can", path)


def _generate_square(path: Path) -> None:
    _generate("square", path)


def _generate(task: str, path: Path) -> None:
    from daps_robot.envs import collect  # imports the simulator

    collect.collect_demos(task=task, out=path)


LIFT = GeneratedDataset("lift", "daps_robot/Lift-v0", "lift a cube: 200 demonstrations of a scripted expert", _generate_lift)
CAN = GeneratedDataset(
    "can", "daps_robot/Can-v0", "carry a can from bin to bin: 200 demonstrations of a scripted expert", _generate_can
)
SQUARE = GeneratedDataset(
    "square", "daps_robot/Square-v0", "put a square nut over a peg: 200 demonstrations of a scripted expert", _generate_square
)
