"""How the encoder learns through discrete codes. Importing this package registers the estimators that come with it."""

from daps_robot.estimators import daps, gaussian, ppo, quantized, relaxed, rivals, score
from daps_robot.estimators.base import ESTIMATORS, Estimator, EstimatorConfig, Loss
from daps_robot.estimators.daps import DAPSConfig

__all__ = [
    "ESTIMATORS",
    "DAPSConfig",
    "Estimator",
    "EstimatorConfig",
    "Loss",
    "daps",
    "gaussian",
    "ppo",
    "quantized",
    "relaxed",
    "rivals",
    "score",
]
