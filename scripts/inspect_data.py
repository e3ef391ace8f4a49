"""What demonstrations hold, and what in them to look at before training: python scripts/inspect_data.py --dataset lift"""

from daps_robot.commands.cli import main
from daps_robot.commands.inspect_data import InspectData, run

if __name__ == "__main__":
    main(InspectData, run)
