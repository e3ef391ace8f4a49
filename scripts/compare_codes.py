"""What the codes of a comparison are worth to a policy: python scripts/compare_codes.py --comparison runs/compare/lift-claim"""

from daps_robot.commands.cli import main
from daps_robot.commands.compare_codes import CompareCodes, run

if __name__ == "__main__":
    main(CompareCodes, run)
