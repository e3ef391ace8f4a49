"""What codes are worth to a policy: how well it predicts actions through them, and whether q(z|x) means what it says."""

from __future__ import annotations

import torch
from scipy.stats import spearmanr
from torch import Tensor

from daps_robot.data.chunks import ChunkDataset
from daps_robot.errors import ConfigError
from daps_robot.estimators.daps import daps_weights, effective_sample_size
from daps_robot.models.code_model import CodeModel
from daps_robot.models.policy import LatentPolicy
from daps_robot.models.tokenizer import Tokenizer
from daps_robot.parallel import uniform
from daps_robot.training.metrics import mean_squared_error
from daps_robot.training.tokenizer import EVAL_SAMPLES, chunk_inputs, examples_at_a_time


@torch.no_grad()
def action_bound(policy: LatentPolicy, valid: ChunkDataset, samples: int = EVAL_SAMPLES) -> dict[str, float]:
    """A lower bound on log p(a|o) of the model Σ_z π(z|o) p(a|z), in nats per chunk of normalised actions, and its parts.

    log p(a|o) ≥ E_q[log p(a|z)] − KL(q(z|a) ‖ π(z|o)), the ELBO with the policy in place of the uniform prior. A quantiser's q is
    a point, so the bound is defined for every kind of code, and comparable where the likelihood is the same.

    Raises:
        ConfigError: the tokenizer has no likelihood.

    Returns:
        `bound`; `reconstruction`, −E_q[log p(a|z)]; `kl_to_policy`; `entropy` of q; `cross_entropy`, −E_q[log π(z|o)].
    """
    tokenizer = likelihood_of(policy)
    device, codes = policy.scaler.shift.device, tokenizer.config.codes
    sums = dict.fromkeys(("reconstruction", "cross_entropy", "entropy"), 0.0)
    torch.manual_seed(0)
    for index in torch.arange(len(valid)).split(examples_at_a_time(codes, device)):
        batch = valid.gather(index)
        inputs = chunk_inputs(tokenizer, batch)
        drawn = tokenizer.draw(tokenizer.prepare(inputs), uniform(len(index), samples, codes.positions, device=device))
        sums["reconstruction"] -= float(tokenizer.log_likelihood(drawn.codes, inputs).mean(1).double().sum())
        sums["cross_entropy"] -= float(policy.log_prob(batch.observations, drawn.codes).sum(-1).mean(1).double().sum())
        sums["entropy"] += float(drawn.entropy.sum(-1).mean(1).double().sum())
    result = {name: total / len(valid) for name, total in sums.items()}
    result["kl_to_policy"] = result["cross_entropy"] - result["entropy"]
    result["bound"] = -result["reconstruction"] - result["kl_to_policy"]
    return result


@torch.no_grad()
def calibration(policy: LatentPolicy, valid: ChunkDataset, beta: float, samples: int = 32) -> dict[str, float]:
    """Whether q(z|x) is the posterior that training at β aims at, and whether its entropy tells where it will be wrong.

    Returns:
        `ess`: effective share of samples of q as a proposal for p(x|z)^(1/β) / Z: 1 for the exact posterior, 1/samples at worst.
        `spread`: Spearman's correlation over held-out chunks of q's entropy with the squared error of its most likely codes;
            left out where either is constant.

    Raises:
        ConfigError: the posterior is no distribution over codes.
    """
    tokenizer = likelihood_of(policy)
    if not isinstance(tokenizer.posterior, CodeModel):
        raise ConfigError("calibration is of a distribution over codes: a quantiser has none")
    device, codes = policy.scaler.shift.device, tokenizer.config.codes
    share, entropies, errors = 0.0, [Tensor()], [Tensor()]
    torch.manual_seed(0)
    for index in torch.arange(len(valid)).split(max(1, examples_at_a_time(codes, device) * EVAL_SAMPLES // samples)):
        batch = valid.gather(index)
        inputs = chunk_inputs(tokenizer, batch)
        memory = tokenizer.prepare(inputs)
        drawn = tokenizer.draw(memory, uniform(len(index), samples, codes.positions, device=device))
        weights = daps_weights(tokenizer.log_likelihood(drawn.codes, inputs), drawn.log_prob.sum(-1), 0.0, beta)
        share += float(effective_sample_size(weights).double().sum()) / samples
        again = tokenizer.decode_embedded(tokenizer.encoded(memory).embedded, batch.observations[:, -1])[:, 0]
        entropies.append(drawn.entropy.sum(-1).mean(1))
        errors.append(mean_squared_error(batch.actions, again, batch.mask))
    result, entropy, error = {"ess": share / len(valid)}, torch.cat(entropies), torch.cat(errors)
    if min(entropy.std(), error.std()) > 1e-6:  # a constant correlates with nothing
        result["spread"] = float(spearmanr(entropy.numpy(), error.numpy()).statistic)
    return result


def likelihood_of(policy: LatentPolicy) -> Tokenizer:
    """The policy's tokenizer.

    Raises:
        ConfigError: it is a table, which has no likelihood p(x|z).
    """
    if not isinstance(policy.tokenizer, Tokenizer):
        raise ConfigError(f"a {type(policy.tokenizer).__name__} is a table: it has no likelihood to compare by")
    return policy.tokenizer
