"""python -m tests.fuzz --inputs 20000: spoilt inputs for every reader (see `engine`); status 1 where there are findings."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the builders of small models and folders

from .engine import fuzz, lines_of, run_child


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=2000, help="in all, over the readers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="readers; by default all")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"), help="where inputs of findings stay")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        seed, keep, seconds, work = json.loads(given.child)
        run_child(seed, Path(keep), seconds, work)
        return 0
    from .readers import READERS

    if unknown := set(given.only or ()) - set(READERS):
        parser.error(f"no reader {', '.join(sorted(unknown))}: there are {', '.join(READERS)}")
    readers = [name for name in given.only or READERS if READERS[name].there]
    started = time.perf_counter()
    tallies = fuzz(readers, -(-given.inputs // len(readers)), given.seed, given.keep.absolute())
    print(*lines_of(tallies), sep="\n")
    print(f"{time.perf_counter() - started:.0f} s, seed {given.seed}")
    return int(any(tally.findings for tally in tallies.values()))


if __name__ == "__main__":
    raise SystemExit(main())
