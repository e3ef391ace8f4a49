"""Ablations of DAPS, one factor at a time: python scripts/ablate.py --study trust-region (also: gradient, beta, …)"""

from daps_robot.commands.ablate import Ablate, run
from daps_robot.commands.cli import main

if __name__ == "__main__":
    main(Ablate, run)
