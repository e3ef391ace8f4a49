"""What each code of a tokenizer stands for: python scripts/inspect_codes.py --tokenizer runs/lift/tokenizer"""

from daps_robot.commands.cli import main
from daps_robot.commands.inspect_codes import InspectCodes, run

if __name__ == "__main__":
    main(InspectCodes, run)
