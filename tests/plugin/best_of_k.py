"""An estimator from another package: move the encoder towards the best of its K samples (DAPS as η + β → 0, centred)."""

import torch

from daps_robot.estimators.score import ScoreEstimator


class BestOfK(ScoreEstimator):
    """One coefficient for the sample of the highest likelihood, minus the mean."""

    def coefficients(self, r, log_q, beta):
        best = torch.nn.functional.one_hot(r.argmax(-1), r.shape[-1]).to(r.dtype)
        return best - 1 / r.shape[-1], {}
