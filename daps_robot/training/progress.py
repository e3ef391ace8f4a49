"""What a run has come to between two checkpoints: where it stands, and the means that are not logged yet."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from daps_robot import parallel


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint."""

    step: int = 0
    seconds: float = 0.0
    best: float = math.inf
    best_step: int = 0
    evaluations_since_best: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    finished: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for what no run has come to, such as a damaged file may say."""
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            fits = type(value) in ((int, float) if kind is float else (kind,))
            if not fits or (type(value) is int and not (0 if kind is int else -(2**53)) <= value < 2**53):
                raise ValueError(f"{field.name} {value!r:.40}")


class Mean:
    """Means of scalars that stay tensors until they are asked for."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, metrics: dict[str, Tensor]) -> None:
        for name, value in metrics.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def restore(self, sums: dict[str, Tensor], counts: dict[str, int]) -> None:
        """Go on from saved ones. Raises ValueError where they are none."""
        if sums.keys() != counts.keys() or not all(x.shape == () and 0 < counts[name] < 2**53 for name, x in sums.items()):
            raise ValueError("no means")
        self.sums, self.counts = sums, counts

    def share(self, device: torch.device) -> None:
        """Make the sums of all ranks the same, with the same mean."""
        if parallel.world_size() > 1:
            totals = parallel.mean_of_each([float(total) for total in self.sums.values()], device)
            self.sums = dict(zip(self.sums, map(torch.tensor, totals), strict=True))

    def means(self, device: torch.device) -> dict[str, float]:
        self.share(device)
        means = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means
