"""What the tokenizer of a latent policy loses: its held-out figures, and the ceilings that it sets to the success rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from daps_robot.data.chunks import ChunkDataset
from daps_robot.data.demos import DemoSet
from daps_robot.errors import SimulationError
from daps_robot.models.action_tokenizer import ActionTokenizer
from daps_robot.models.fast import FASTTokenizer
from daps_robot.models.policy import LatentPolicy
from daps_robot.rollout.ceiling import Reconstructor, tokenizer_ceiling
from daps_robot.rollout.replay import replay_demos
from daps_robot.rollout.results import Evaluation
from daps_robot.training.metrics import chunk_errors
from daps_robot.training.tokenizer import evaluate_tokenizer
from daps_robot.types import JSON


class OtherCodes:
    """A tokenizer that decodes the codes of another, random chunk: what a decoder makes of an action without its code."""

    def __init__(self, tokenizer: ActionTokenizer, train: ChunkDataset) -> None:
        """The codes are those of every seventh training window."""
        self.tokenizer = tokenizer
        self.codes = tokenizer.encode(train.ahead(torch.arange(0, len(train), 7))[0])[:, 0]
        self.obs_keys, self.history, self.horizon = tokenizer.obs_keys, tokenizer.history, tokenizer.horizon

    def reconstruct(
        self,
        chunks: Float[np.ndarray, "b h a"],
        observations: Float[np.ndarray, "b n o"],
        keys: Int[np.ndarray, " b"],
    ) -> Float[np.ndarray, "b h a"]:
        chosen = self.codes[torch.from_numpy(np.asarray(keys) % len(self.codes))]
        return self.tokenizer.decode(chosen[:, None], torch.from_numpy(observations[:, -1]))[:, 0].numpy()


def tokenizer_figures(tokenizer: ActionTokenizer, others: Reconstructor, valid: ChunkDataset) -> JSON:
    """What the report says of the tokenizer without a simulator; noise comes from torch's global generator."""
    held_out = evaluate_tokenizer(tokenizer, valid, beta_end=1.0)
    actions = range(valid.actions.shape[1])
    return {
        "bits_per_chunk": tokenizer.bits,
        "reconstruction_rmse": [held_out[f"rmse/{i}"] for i in actions],
        "reconstruction_rmse_sample": [held_out[f"rmse_sample/{i}"] for i in actions],
        "code_perplexity": held_out["perplexity"],
        "rmse_by_prefix": prefix_errors(held_out),
        "elbo": held_out.get("elbo"),
        "entropy": held_out.get("entropy"),
        "other_codes_rmse": reconstruction_rmse(others, valid),
    }


def prefix_errors(metrics: Mapping[str, float]) -> dict[str, float]:
    """Number of leading codes → RMSE over all action dimensions, where prefixes decode."""
    return {name.removeprefix("rmse_prefix/"): value for name, value in metrics.items() if name.startswith("rmse_prefix/")}


def malformed_codes(policy: LatentPolicy, tokenizer: FASTTokenizer, valid: ChunkDataset) -> float:
    """The share of the policy's code sequences, over the validation windows, that the published decoder fails on."""
    found = []
    for index in torch.arange(len(valid)).split(256):
        batch = valid.gather(index)
        found.append(tokenizer.malformed(policy.codes(batch.observations, index.numpy(), batch.images)))
    return float(torch.cat(found).float().mean())


def reconstruction_rmse(tokenizer: Reconstructor, valid: ChunkDataset) -> list[float]:
    """Per action dimension, in action units, over the windows of the validation demonstrations."""
    errors = chunk_errors(
        valid,
        lambda batch, index: tokenizer.reconstruct(batch.actions.numpy(), batch.observations.numpy(), 7919 * index.numpy()),
    )
    return [float(value) for value in errors.sqrt()]


def ceilings(env_id: str, tokenizer: ActionTokenizer, others: Reconstructor, usual_steps: int, **play: Any) -> JSON:
    """The scripted expert through the codes, and through those of another chunk; `play` as `tokenizer_ceiling` takes it.

    With wrong codes it has twice the steps that a demonstration usually takes: it looks again at each plan, and in time stumbles
    into success.
    """
    short = min(play["max_steps"] or 2 * usual_steps, 2 * usual_steps)
    try:
        ceiling = tokenizer_ceiling(env_id, tokenizer, **play)
        print(f"tokenizer ceiling {describe(ceiling)}", flush=True)
        other = tokenizer_ceiling(env_id, others, **{**play, "max_steps": short})
        print(f"  with the codes of another chunk ({short} steps) {describe(other)}", flush=True)
    except SimulationError as error:  # an environment without an expert
        print(f"no tokenizer ceiling: {error}")
        return {}
    return {
        "tokenizer_ceiling": ceiling.success_rate,
        "tokenizer_ceiling_ci95": list(ceiling.ci95),
        "short_episode_steps": short,
        "ceiling_in_short_episodes": sum(r.success and r.length <= short for r in ceiling.records) / ceiling.episodes,
        "other_codes_ceiling": other.success_rate,
        "other_codes_ceiling_ci95": list(other.ci95),
    }


def replays(env_id: str, tokenizer: ActionTokenizer, demos: DemoSet, workers: int | None) -> JSON:
    """The held-out demonstrations played again without looking, with the tokenizer and without."""
    held_out = demos.select(demos.valid)
    if any(demo.states is None for demo in held_out):
        print(f"no replay of held-out demonstrations: {demos.path} has no simulator states")
        return {}
    try:
        tokenized = replay_demos(env_id, held_out, tokenizer=tokenizer, workers=workers)
        plain = replay_demos(env_id, held_out, workers=workers)
    except SimulationError as error:  # states of another simulator
        print(f"no replay of the held-out demonstrations of {demos.path}: {error}")
        return {}
    print(f"open-loop replay of held-out demonstrations {describe(tokenized)}, without the tokenizer {describe(plain)}")
    return {
        "replay_success": {"tokenized": tokenized.success_rate, "plain": plain.success_rate},
        "replay_score": {"tokenized": tokenized.mean_score, "plain": plain.mean_score},
    }


def describe(evaluation: Evaluation) -> str:
    """A success rate for a line of output, with the mean score where there are scores."""
    low, high = evaluation.ci95
    text = f"{evaluation.successes}/{evaluation.episodes} (95% interval {low:.1%} to {high:.1%})"
    if evaluation.graded:
        low, high = evaluation.score_ci95
        text += f", mean score {evaluation.mean_score:.3f} ({low:.3f} to {high:.3f})"
    return text
