"""Train and roll out policies with several seeds, on the same demonstrations and start states, and rank them; see --help."""

from daps_robot.commands.cli import main
from daps_robot.commands.leaderboard import Leaderboard, run

if __name__ == "__main__":
    main(Leaderboard, run)
