"""Draw pictures of given classes: python scripts/sample_images.py"""

from daps_robot.commands.cli import main
from daps_robot.commands.image_prior import SampleImages, sample

if __name__ == "__main__":
    main(SampleImages, sample)
