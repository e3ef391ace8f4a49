"""Train a tokenizer of pictures or motion: python scripts/train_image_tokenizer.py --dataset mnist --estimator daps"""

from daps_robot.commands.cli import main
from daps_robot.commands.train_image_tokenizer import TrainImageTokenizer, run

if __name__ == "__main__":
    main(TrainImageTokenizer, run)
