"""Success against bits per chunk, chunk length, executed steps or demonstrations: python scripts/sweep.py --vary vocabulary"""

from daps_robot.commands.cli import main
from daps_robot.commands.sweep import Sweep, run

if __name__ == "__main__":
    main(Sweep, run)
