"""Train every estimator on the same data and bits, and put them side by side; see --help."""

from daps_robot.commands.cli import main
from daps_robot.commands.compare_estimators import CompareEstimators, run

if __name__ == "__main__":
    main(CompareEstimators, run)
