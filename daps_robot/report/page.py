"""One HTML page a run."""

from pathlib import Path
from daps_robot.data.demos import DemoSet
from daps_robot.models.policy import LatentPolicy


def write_page(out: Path, policy: LatentPolicy, demos: DemoSet) -> Path:
    return out / "report.html"
