"""python -m tests.kills: kills a real training at random moments; its results must be those of the run that was not killed.

Besides: full disks, dead loading processes, and with --ranks a dead process of two that train together.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from random import Random

from .runs import dead_rank, dead_worker, differences, full_disk, killed_run, prepare, remove, whole


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=25, help="runs that are killed")
    parser.add_argument("--faults", type=int, default=5, help="full disks, and dead loading processes")
    parser.add_argument("--ranks", action="store_true", help="also kill one of two processes under torchrun")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng, started, failures = Random(given.seed), time.perf_counter(), 0

    def tell(what: str, number: int, of: int, wrong: list[str]) -> None:
        nonlocal failures
        failures += bool(wrong)
        print(f"{what} {number + 1} of {of}: {'; '.join(wrong) if wrong else 'as it should be'}", flush=True)

    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        prepare(place)
        model = whole(place)
        reference = place / "whole"
        print(f"a run takes {model.cpu:.1f} s of the processor and changes the file system {model.writes} times", flush=True)
        for i in range(given.kills):
            times = killed_run(place, "killed", rng, model, by_writes=i % 2 == 1)
            tell(f"killed at {', '.join(times)}: run", i, given.kills, differences(reference, place / "killed"))
            remove(place / "killed")
        for i in range(given.faults):
            tell("full disk", i, given.faults, [wrong] if (wrong := full_disk(place, rng, reference)) else [])
        for i in range(given.faults):
            tell("dead worker", i, given.faults, [wrong] if (wrong := dead_worker(place, rng, reference, model.cpu)) else [])
        if given.ranks:
            tell("dead process", 0, 1, [wrong] if (wrong := dead_rank(place)) else [])
    print(f"{failures} failures in {time.perf_counter() - started:.0f} s, seed {given.seed}")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
