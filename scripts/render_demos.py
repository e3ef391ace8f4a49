"""Pictures for demonstrations of a simulated task: python scripts/render_demos.py --dataset lift"""

from daps_robot.commands.cli import main
from daps_robot.envs.pictures import RenderDemos, run

if __name__ == "__main__":
    main(RenderDemos, run)
