"""The errors that this library raises for a person to read.

Each message says what was wrong, where (file, demo, key, shape) and what to do about it, in one or two lines. The command
lines print the message without a traceback and exit with status 2 (`--debug` shows the traceback).
"""


class DapsRobotError(Exception):
    """Base of every error raised on bad input."""


class DataError(DapsRobotError):
    """A data set that is missing, damaged, of a foreign layout, or not usable for what was asked."""


class ConfigError(DapsRobotError):
    """An option, name or combination of options that cannot work."""


class CheckpointError(DapsRobotError):
    """A saved model or training state that is missing, damaged, or does not fit."""


class RunDirectoryError(DapsRobotError):
    """A run directory that is in use, not writable, or holds another run."""


class ControlError(DapsRobotError):
    """An observation that cannot be acted on, or a plan that cannot be executed or has not come in time."""


class SimulationError(DapsRobotError):
    """A simulated environment that is not installed, lacks what was asked of it, or failed."""
