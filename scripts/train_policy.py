"""Train a policy without a tokenizer: python scripts/train_policy.py --policy diffusion --dataset lift"""

from daps_robot.commands.cli import main
from daps_robot.commands.train_policy import TrainPolicy, run

if __name__ == "__main__":
    main(TrainPolicy, run)
