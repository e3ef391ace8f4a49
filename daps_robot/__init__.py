"""daps_robot: discrete latent-action tokenizers and policies for imitation learning (DAPS, arXiv 2509.24716)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daps_robot.control import Controller
    from daps_robot.errors import ControlError, DapsRobotError
    from daps_robot.exported import ExportedPolicy
    from daps_robot.models.action_tokenizer import load_tokenizer
    from daps_robot.models.policies import load_policy
    from daps_robot.models.policy import LatentPolicy
    from daps_robot.models.tokenizer import Tokenizer
    from daps_robot.plan_ahead import PlanAhead

    __version__: str

__all__ = [
    "ControlError",
    "Controller",
    "DapsRobotError",
    "ExportedPolicy",
    "LatentPolicy",
    "PlanAhead",
    "Tokenizer",
    "load_policy",
    "load_tokenizer",
]

_PUBLIC = {
    "Controller": "daps_robot.control",
    "ControlError": "daps_robot.errors",
    "DapsRobotError": "daps_robot.errors",
    "ExportedPolicy": "daps_robot.exported",
    "LatentPolicy": "daps_robot.models.policy",
    "PlanAhead": "daps_robot.plan_ahead",
    "Tokenizer": "daps_robot.models.tokenizer",
    "load_policy": "daps_robot.models.policies",
    "load_tokenizer": "daps_robot.models.action_tokenizer",
}


def __getattr__(name: str) -> Any:
    # Loaded when first asked for: simulator workers import this package and must not pay for torch.
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("daps-robot")
        except PackageNotFoundError:  # from a folder of sources that was not installed
            return "0+unknown"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
