"""The data sets that can be made here, for the catalogue (entry points `daps_robot.datasets`)."""

from __future__ import annotations

from pathlib import Path

from daps_robot.data.catalog import GeneratedDataset
from daps_robot.envs.registration import PUSHT_ID


def _generated(task: str, style: str, env_id: str, what: str) -> GeneratedDataset:
    def generate(path: Path) -> None:
        from daps_robot.envs import collect  # imports the simulator

        collect.collect_demos(task=task, out=path, style=style)

    name = task if style == "plain" else f"{task}-{style}"
    expert = "a scripted expert" if style == "plain" else "a scripted expert with human-like variety"
    return GeneratedDataset(name, env_id, f"{what}: 200 demonstrations of {expert}", generate)


def _convert_pusht(path: Path) -> None:
    from daps_robot.envs.pusht_demos import convert_pusht

    convert_pusht(path)


_CAN = ("daps_robot/Can-v0", "carry a can from bin to bin")
_SQUARE = ("daps_robot/Square-v0", "put a square nut over a peg")
LIFT = _generated("lift", "plain", "daps_robot/Lift-v0", "lift a cube")
CAN = _generated("can", "plain", *_CAN)
SQUARE = _generated("square", "plain", *_SQUARE)
CAN_HUMAN = _generated("can", "human", *_CAN)
SQUARE_HUMAN = _generated("square", "human", *_SQUARE)
PUSHT = GeneratedDataset(
    "pusht", PUSHT_ID, "push a T onto its mark: 206 human demonstrations, converted from pusht.npz", _convert_pusht
)
