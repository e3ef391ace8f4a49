"""Success rate, tokenizer ceiling and report of a trained policy: python scripts/evaluate.py"""

from daps_robot.commands.cli import main
from daps_robot.commands.evaluate import Evaluate, run

if __name__ == "__main__":
    main(Evaluate, run)
