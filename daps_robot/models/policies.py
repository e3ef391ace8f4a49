"""Every kind of policy that can be saved, by the name in its directory's config.json ("daps_robot/<name>")."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from daps_robot.errors import CheckpointError
from daps_robot.exported import ExportedPolicy
from daps_robot.models.bc_rnn import BCRNNPolicy
from daps_robot.models.diffusion import DiffusionPolicy
from daps_robot.models.policy import LatentPolicy
from daps_robot.models.pretrained import find_model, saved_kind
from daps_robot.models.regression import RegressionPolicy
from daps_robot.registry import Registry
from daps_robot.types import SizedPolicy, TrainedPolicy

POLICIES: Registry[Any] = Registry("policy", "daps_robot.policies")
"""Classes of policies, which have `from_pretrained`; another package adds its own by an entry point of that group."""

for _class in (LatentPolicy, RegressionPolicy, DiffusionPolicy, BCRNNPolicy):
    POLICIES.register(_class.kind)(_class)


def load_policy(source: str | Path) -> TrainedPolicy:
    """Read a saved policy of any kind, ready for use; `source` as `models.pretrained.find_model` takes it.

    Raises:
        CheckpointError: the directory holds none, or a damaged or later one.
        ConfigError: a package that this kind of policy needs is not installed.
    """
    directory = find_model(source)
    kind = saved_kind(directory)
    if kind not in POLICIES:
        raise CheckpointError(
            f"{directory / 'config.json'} describes {kind[:60]!r}, not a policy (there are: {', '.join(POLICIES)}): "
            "give the directory of a trained policy"
        )
    return POLICIES[kind].from_pretrained(directory)


def read_policy(path: Path) -> SizedPolicy:
    """The policy of a run, or of a file that was exported from one.

    Raises:
        CheckpointError: there is none, or it is damaged.
        ConfigError: a package that it needs is not installed.
    """
    return ExportedPolicy(path) if path.is_file() or path.suffix == ".onnx" else load_policy(path / "model")
