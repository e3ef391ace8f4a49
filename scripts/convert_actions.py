"""Demonstrations in absolute, joint or relative actions: python scripts/convert_actions.py --dataset can --to absolute"""

from daps_robot.commands.cli import main
from daps_robot.envs.convert import ConvertActions, run

if __name__ == "__main__":
    main(ConvertActions, run)
