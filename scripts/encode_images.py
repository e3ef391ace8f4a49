"""Encode a directory of pictures to codes: python scripts/encode_images.py"""

from daps_robot.commands.cli import main
from daps_robot.commands.image_codes import EncodeImages, encode

if __name__ == "__main__":
    main(EncodeImages, encode)
