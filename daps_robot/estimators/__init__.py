"""How the encoder learns through discrete codes. Importing this package registers the estimators that come with it."""

from daps_robot.estimators import daps, quantized
from daps_robot.estimators.base import ESTIMATORS, Estimator, Loss
from daps_robot.estimators.daps import DAPSConfig

__all__ = ["ESTIMATORS", "DAPSConfig", "Estimator", "Loss", "daps", "quantized"]
