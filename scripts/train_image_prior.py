"""Train a prior over a picture tokenizer's codes: python scripts/train_image_prior.py"""

from daps_robot.commands.cli import main
from daps_robot.commands.image_prior import TrainImagePrior, train

if __name__ == "__main__":
    main(TrainImagePrior, train)
