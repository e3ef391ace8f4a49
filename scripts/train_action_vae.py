"""Train a tokenizer of action chunks: python scripts/train_action_vae.py --dataset lift"""

from daps_robot.commands.cli import main
from daps_robot.commands.train_action_vae import TrainActionVAE, run

if __name__ == "__main__":
    main(TrainActionVAE, run)
