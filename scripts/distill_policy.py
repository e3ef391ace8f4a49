"""Distil a policy onto a tokenizer's codes: python scripts/distill_policy.py"""

from daps_robot.commands.cli import main
from daps_robot.commands.distill_policy import DistillPolicy, run

if __name__ == "__main__":
    main(DistillPolicy, run)
