"""A policy in one file that acts without torch: python scripts/export_policy.py"""

from daps_robot.commands.cli import main
from daps_robot.commands.export_policy import ExportPolicy, run

if __name__ == "__main__":
    main(ExportPolicy, run)
