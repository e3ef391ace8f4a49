"""Drawing code sequences from a CodeModel: ancestral sampling, the most likely codes, beam search.

Sampling noise comes in as uniform numbers, one per code, so that whoever calls decides what the noise is keyed by (training
step, example, episode) and a draw does not depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from daps_robot.errors import ConfigError
from daps_robot.models.blocks import GrowingCache
from daps_robot.models.code_model import CodeModel, Memory


class CodeSample(NamedTuple):
    """Code sequences drawn from a CodeModel.

    Attributes:
        codes: (b k l) int64.
        log_prob: (b k l) nats, of each code given those before it.
        entropy: (b k l) nats, exact entropy of each position's conditional given the sampled prefix.
    """

    codes: Int[Tensor, "b k l"]
    log_prob: Float[Tensor, "b k l"]
    entropy: Float[Tensor, "b k l"]


def inverse_cdf(probs: Float[Tensor, "... v"], uniforms: Float[Tensor, ...]) -> Int[Tensor, ...]:
    """The code whose cumulative probability first exceeds the uniform number in [0, 1)."""
    cdf = probs.cumsum(-1)
    threshold = uniforms[..., None] * cdf[..., -1:]
    return torch.searchsorted(cdf, threshold, right=True)[..., 0].clamp_(max=probs.shape[-1] - 1)


@torch.no_grad()
def sample(model: CodeModel, memory: Memory, uniforms: Float[Tensor, "b k l"], temperature: float = 1.0) -> CodeSample:
    """Draw k code sequences per input, one position after another (all at once if factorised), or their first codes alone.

    The memory is encoded once and position 0 computed once for all k samples. `log_prob` and `entropy` are those of the
    distribution that was sampled, so at another temperature than 1 they are not the model's own.

    Raises:
        ConfigError: the temperature is not positive.
    """
    if not temperature > 0:
        raise ConfigError(f"temperature {temperature} must be positive; for the most likely codes use greedy decoding")
    b, k, length = uniforms.shape
    codes = torch.empty(b, k, length, dtype=torch.long, device=uniforms.device)
    log_prob = torch.empty(b, k, length, device=uniforms.device)
    entropy = torch.empty(b, k, length, device=uniforms.device)
    steps = _Steps(model, memory, k)
    for i in range(length):
        log_probs = torch.log_softmax(steps.logits(codes, i) / temperature, dim=-1)
        probs = log_probs.exp()
        entropy[..., i] = -(probs * log_probs).sum(-1)
        codes[..., i] = inverse_cdf(probs.expand(b, k, -1), uniforms[..., i])
        log_prob[..., i] = log_probs.expand(b, k, -1).gather(-1, codes[..., i : i + 1])[..., 0]
    torch.clear_autocast_cache()  # weights that were cast without a gradient must not be taken by the update (before torch 2.11)
    return CodeSample(codes, log_prob, entropy)


@torch.no_grad()
def greedy(model: CodeModel, memory: Memory, length: int | None = None) -> CodeSample:
    """The most likely code at each position given those before it (k = 1); `length` first ones, or all."""
    b, length = len(memory[0][0]), length or model.config.positions
    device = memory[0][0].device
    codes = torch.empty(b, 1, length, dtype=torch.long, device=device)
    log_prob = torch.empty(b, 1, length, device=device)
    entropy = torch.empty(b, 1, length, device=device)
    steps = _Steps(model, memory, 1)
    for i in range(length):
        log_probs = torch.log_softmax(steps.logits(codes, i), dim=-1)
        entropy[..., i] = -(log_probs.exp() * log_probs).sum(-1)
        log_prob[..., i], codes[..., i] = log_probs.max(-1)
    return CodeSample(codes, log_prob, entropy)


@torch.no_grad()
def expected_embedding(
    model: CodeModel, memory: Memory, tables: Float[Tensor, "t v d"], length: int | None = None
) -> tuple[Float[Tensor, "b l d"], Int[Tensor, "b l"]]:
    """Σ_z p(z_i = z | z_<i) e_z at each position i, along the most likely prefix z_<i; of `length` first positions, or all.

    Beside it those most likely codes.

    `tables` embed the codes: one for all positions, or one for each.

    Decoded, it comes near the mean of the chunks that the model finds likely, for the price of one: what differs between
    them at random averages out, while the prefix keeps them to one plan.
    """
    length = length or model.config.positions
    codes = torch.empty(len(memory[0][0]), 1, length, dtype=torch.long, device=tables.device)
    steps = _Steps(model, memory, 1)
    expected = []
    for i in range(length):
        logits = steps.logits(codes, i)
        codes[..., i] = logits.argmax(-1)
        expected.append(torch.softmax(logits[:, 0], dim=-1) @ tables[i % len(tables)])
    return torch.stack(expected, dim=1), codes[:, 0]


@torch.no_grad()
def beam(
    model: CodeModel, memory: Memory, width: int, length: int | None = None
) -> tuple[Int[Tensor, "b w l"], Float[Tensor, "b w"]]:
    """The `width` most likely sequences that beam search finds, best first, with their log-probabilities in nats.

    Of `length` first codes, or all. Fewer where fewer sequences exist. For a factorised model the result is exact.

    Raises:
        ConfigError: width is below 1.
    """
    if width < 1:
        raise ConfigError(f"beam width {width} must be at least 1")
    b, length, vocabulary = len(memory[0][0]), length or model.config.positions, model.config.vocabulary
    codes = torch.zeros(b, 1, length, dtype=torch.long, device=memory[0][0].device)
    scores = torch.zeros(b, 1, device=codes.device)
    steps = _Steps(model, memory, 1)
    for i in range(length):
        log_probs = torch.log_softmax(steps.logits(codes, i), dim=-1).expand(b, codes.shape[1], -1)
        totals = (scores[..., None] + log_probs).flatten(1)
        scores, choice = totals.topk(min(width, totals.shape[1]), dim=-1)
        parent = choice // vocabulary
        codes = codes.gather(1, parent[..., None].expand(-1, -1, length)).clone()
        codes[..., i] = choice % vocabulary
        steps.select(parent)
    return codes, scores


def relaxed(
    model: CodeModel, memory: Memory, relax: Callable[[Float[Tensor, "... v"]], Float[Tensor, "... v"]]
) -> tuple[Float[Tensor, "b l v"], Float[Tensor, "b l v"]]:
    """One sequence per input as relaxed one-hot vectors, with gradient, and the logits that they were drawn from.

    `relax` draws from logits. An autoregressive model reads what was drawn before, so gradients flow back through the
    whole sequence, and positions cannot be computed at once as in teacher forcing: l passes, forward and backward.
    """
    if not model.config.autoregressive:
        logits = model.factorised_logits(memory)
        return relax(logits), logits
    trunk = model.trunk
    caches = [GrowingCache() for _ in trunk.blocks]
    x = trunk.bos.expand(len(memory[0][0]), 1, -1)
    drawn, all_logits = [], []
    for position in range(model.config.positions):
        logits = model.head(trunk.step(x, position, memory, caches)).float()
        one_hot = relax(logits)
        x = one_hot @ trunk.embedding.weight
        drawn.append(one_hot)
        all_logits.append(logits)
    return torch.cat(drawn, dim=1), torch.cat(all_logits, dim=1)


class _Steps:
    """Logits position by position, whether the model is autoregressive (cached) or factorised (computed once)."""

    def __init__(self, model: CodeModel, memory: Memory, k: int) -> None:
        self.model, self.memory, self.k = model, memory, k
        self.branched = k == 1
        if not model.config.autoregressive:
            self.all_logits = model.factorised_logits(memory)[:, None]

    def logits(self, codes: Int[Tensor, "b k l"], position: int) -> Float[Tensor, "b _ v"]:
        if not self.model.config.autoregressive:
            return self.all_logits[:, :, position]
        if position == 0:
            hidden, self.caches = self.model.trunk.start(self.memory)
            return self.model.head(hidden).float()
        if not self.branched:
            for cache in self.caches:
                cache.repeat(self.k)
            self.branched = True
        hidden = self.model.trunk.extend(codes[..., position - 1], position, self.memory, self.caches)
        return self.model.head(hidden).float()

    def select(self, parent: Int[Tensor, "b w"]) -> None:
        """Make beam j continue from beam parent[:, j]."""
        if self.model.config.autoregressive:
            for cache in self.caches:
                per_input = len(cache.keys) // len(parent)
                rows = (torch.arange(len(parent), device=parent.device)[:, None] * per_input + parent).flatten()
                cache.keys, cache.values = cache.keys[rows], cache.values[rows]
