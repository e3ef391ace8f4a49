"""What the page measures itself, on the validation demonstrations: chunks beside their reconstructions, and code usage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from daps_robot.data.chunks import ChunkDataset
from daps_robot.data.demos import DemoSet
from daps_robot.models.policy import LatentPolicy
from daps_robot.training.metrics import code_counts, perplexity
from daps_robot.types import Demo, SizedPolicy, plan_request

BATCH = 512
MAX_WINDOWS = 20_000


@dataclass(frozen=True)
class ChunkTrace:
    """One demonstration and what is made of it, in action units; chunks start at steps 0, h, 2h, …

    Attributes:
        name: of the demonstration.
        true: (t a) what was done.
        tokenizer: (t a) the same through the most likely codes and back; None of a policy without codes.
        policy: (t a) what the policy plans at the start of each chunk, from the demonstration's own observations.
        starts: (c) first step of each chunk; only the first of a policy that plans single actions.
    """

    name: str
    true: Float[np.ndarray, "t a"]
    tokenizer: Float[np.ndarray, "t a"] | None
    policy: Float[np.ndarray, "t a"]
    starts: Int[np.ndarray, " c"]


@dataclass(frozen=True)
class CodeUsage:
    """How often the most likely codes take each value.

    Attributes:
        counts: (l v) windows whose code at a position has a value.
        perplexity: (l) exp of the entropy of a position's frequencies: codes in effective use.
        windows: how many were encoded.
    """

    counts: Int[np.ndarray, "l v"]
    perplexity: Float[np.ndarray, " l"]
    windows: int

    @property
    def unused(self) -> Float[np.ndarray, " l"]:
        """Share of the vocabulary that no window uses."""
        return (self.counts == 0).mean(axis=1)


def held_out(demos: DemoSet) -> tuple[Demo, ...]:
    """The validation demonstrations."""
    return demos.select(demos.valid)


def trace(policy: SizedPolicy, demo: Demo) -> ChunkTrace:
    """A demonstration in consecutive chunks, through the tokenizer (of a latent policy) and as the policy plans them."""
    windows = ChunkDataset([demo], policy.obs_keys, policy.horizon, policy.history)
    starts = torch.arange(0, len(demo), policy.horizon)
    batch = windows.gather(starts)
    planned = policy.plan(plan_request(batch, starts))

    def in_line(chunks: Float[np.ndarray, "c h a"]) -> Float[np.ndarray, "t a"]:
        return chunks.reshape(-1, chunks.shape[-1])[: len(demo)]

    through_codes = None
    if isinstance(policy, LatentPolicy):
        tokenizer, device = policy.tokenizer, policy.tokenizer.scaler.shift.device
        decoded = tokenizer.decode(tokenizer.encode(batch.actions.to(device)), batch.observations[:, -1].to(device))[:, 0]
        through_codes = in_line(decoded.cpu().numpy())
    shown = starts if policy.horizon > 1 else starts[:1]
    return ChunkTrace(demo.name, demo.actions, through_codes, in_line(planned), shown.numpy())


def code_usage(policy: LatentPolicy, demos: Sequence[Demo]) -> CodeUsage:
    """Over all windows of some demonstrations; of very many, over an even selection."""
    tokenizer = policy.tokenizer
    windows = ChunkDataset(demos, policy.obs_keys, policy.horizon, policy.history)
    index = torch.arange(0, len(windows), 1 + len(windows) // MAX_WINDOWS)
    codes_config = tokenizer.config.codes
    counts = torch.zeros(codes_config.positions, codes_config.vocabulary, dtype=torch.long)
    device = tokenizer.scaler.shift.device
    for part in index.split(BATCH):
        codes = tokenizer.encode(windows.ahead(part)[0].to(device))[:, 0]
        counts += code_counts(codes, codes_config.vocabulary).cpu()
    return CodeUsage(counts.numpy(), perplexity(counts).numpy(), len(index))


def action_deviation(demos: Sequence[Demo]) -> Float[np.ndarray, " a"]:
    """Standard deviation of each action dimension: the error of always answering with the mean action."""
    return np.concatenate([demo.actions for demo in demos]).std(axis=0)


def action_names(demos: DemoSet) -> list[str]:
    """What the action dimensions are, where the environment is one that is known, else their numbers."""
    known = {
        7: ["move x", "move y", "move z", "turn x", "turn y", "turn z", "gripper"],
        8: [*(f"joint {i}" for i in range(1, 8)), "gripper"],
        10: ["x", "y", "z", *(f"rotation {i}" for i in range(1, 7)), "gripper"],
    }
    if demos.env_id is not None and demos.env_id.startswith("daps_robot/") and demos.action_dim in known:
        return known[demos.action_dim]
    return [f"action {i}" for i in range(demos.action_dim)]
