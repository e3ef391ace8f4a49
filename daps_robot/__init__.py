"""daps_robot: discrete latent-action tokenizers and policies for imitation learning (DAPS, arXiv 2509.24716)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daps_robot.models.policy import LatentPolicy
    from daps_robot.models.tokenizer import Tokenizer

__all__ = ["LatentPolicy", "Tokenizer"]

_PUBLIC = {"LatentPolicy": "daps_robot.models.policy", "Tokenizer": "daps_robot.models.tokenizer"}


def __getattr__(name: str) -> Any:
    # Loaded when first asked for: simulator workers import this package and must not pay for torch.
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
