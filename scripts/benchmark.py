"""Speed on this machine: python scripts/benchmark.py train --preset mnist --batch-size 256 (also: policy, rollout)"""

from daps_robot.commands.benchmark import Benchmark, run
from daps_robot.commands.cli import main

if __name__ == "__main__":
    main(Benchmark, run)
