"""Decode codes to pictures: python scripts/decode_images.py"""

from daps_robot.commands.cli import main
from daps_robot.commands.image_codes import DecodeImages, decode

if __name__ == "__main__":
    main(DecodeImages, decode)
