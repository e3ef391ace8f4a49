"""A problem small enough to enumerate, on which every estimator can be compared with the exact gradient.

N points x = Σ_i c_i[z_i] + ε lie around sums of known codewords. The decoder is fixed to them; q(z|x) is factorised, a table
of logits for each point. All v^l code sequences can be written down, and with them the β-ELBO, its gradient and its optimum.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from daps_robot.models.blocks import TransformerConfig
from daps_robot.models.code_model import CodeModel, CodeModelConfig, Memory
from daps_robot.models.likelihoods import LikelihoodConfig, make_likelihood
from daps_robot.models.tokenizer import Inputs, Tokenizer, TokenizerConfig


@dataclass(frozen=True)
class ToyConfig:
    """Size of the problem.

    Attributes:
        positions, vocabulary: l and v.
        points: how many x.
        dimensions: of an x.
        spread: standard deviation of the codewords.
        noise: standard deviation of ε.
        sigma: standard deviation of the decoder's Gaussian.
        seed: of points and initial logits.
    """

    positions: int = 2
    vocabulary: int = 4
    points: int = 32
    dimensions: int = 6
    spread: float = 1.2
    noise: float = 0.3
    sigma: float = 0.5
    seed: int = 0


class TableModel(CodeModel):
    """A factorised q(z|x) whose logits are looked up: its memory is the logits themselves."""

    def __init__(self, config: CodeModelConfig) -> None:
        nn.Module.__init__(self)
        self.config = config

    def prepare(self, memory: Float[Tensor, "b l v"]) -> Memory:
        return [(memory, memory)]

    def factorised_logits(self, memory: Memory) -> Float[Tensor, "b l v"]:
        return memory[0][0]


class SumOfCodewords(nn.Module):
    """x̂ = Σ_i c_i[z_i], from one-hot embeddings."""

    codewords: Tensor

    def __init__(self, codewords: Float[Tensor, "l v d"]) -> None:
        super().__init__()
        self.register_buffer("codewords", codewords)

    def forward(self, embedded: Float[Tensor, "s l v"], observation: None = None) -> Float[Tensor, "s d"]:
        return torch.einsum("slv,lvd->sd", embedded, self.codewords)


class Toy(Tokenizer):
    """The problem as a tokenizer, so that estimators train it as they train any other."""

    points: Tensor
    sequences: Tensor

    def __init__(self, config: ToyConfig) -> None:
        nn.Module.__init__(self)
        size, generator = config, torch.Generator().manual_seed(config.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        l, v = size.positions, size.vocabulary
        codes = CodeModelConfig(l, v, False, TransformerConfig(width=v, heads=1))
        self.config = TokenizerConfig(codes=codes)
        self.obs_scaler = None
        self.posterior = TableModel(codes)
        self.embedding = nn.Embedding.from_pretrained(torch.eye(v))
        self.likelihood = make_likelihood(LikelihoodConfig("gaussian", size.sigma**2), size.dimensions)
        codewords = size.spread * normal(l, v, size.dimensions)
        self.decoder = SumOfCodewords(codewords)
        truth = torch.randint(v, (size.points, l), generator=generator)
        points = codewords[torch.arange(l), truth].sum(1) + size.noise * normal(size.points, size.dimensions)
        self.register_buffer("points", points)
        self.register_buffer("sequences", torch.tensor(list(itertools.product(range(v), repeat=l))))
        self.logits = nn.Parameter(0.1 * normal(size.points, l, v))

    @property
    def batch(self) -> Inputs:
        """All points."""
        return Inputs(self.points)

    def prepare(self, inputs: Inputs) -> Memory:
        return self.posterior.prepare(self.logits)

    def rewards(self) -> Float[Tensor, "n s"]:
        """log p(x|z) of every point and sequence."""
        return self.log_likelihood(self.sequences.expand(len(self.points), -1, -1), self.batch)

    def elbo(self, beta: float) -> Float[Tensor, " n"]:
        """The exact β-ELBO of every point, with gradient."""
        log_q = self.logits.log_softmax(-1)
        joint = sum(log_q[:, i, self.sequences[:, i]] for i in range(self.config.codes.positions))
        assert isinstance(joint, Tensor)
        prior = -torch.tensor(float(len(self.sequences))).log()
        return (joint.exp() * (self.rewards() - beta * (joint - prior))).sum(-1)

    def exact_gradient(self, beta: float) -> Float[Tensor, "n l v"]:
        """Of the mean β-ELBO, with respect to the logits."""
        return torch.autograd.grad(self.elbo(beta).mean(), self.logits)[0]

    @torch.no_grad()
    def optimum(self, beta: float = 1.0, starts: int = 64, sweeps: int = 200) -> Float[Tensor, " n"]:
        """The largest β-ELBO of a factorised q, by coordinate ascent (exact in each position) from many starts."""
        l, v = self.config.codes.positions, self.config.codes.vocabulary
        n = len(self.points)
        rewards = self.rewards().view(n, 1, *[v] * l)
        generator = torch.Generator().manual_seed(0)
        q = torch.softmax(3 * torch.randn(n, starts, l, v, generator=generator), dim=-1)
        for _ in range(sweeps):
            for i in range(l):
                expected = rewards.expand(n, starts, *[v] * l)
                for j in reversed(range(l)):
                    if j != i:
                        shape = [n, starts] + [1] * (expected.ndim - 2)
                        shape[2 + (j if j < i else expected.ndim - 3)] = v
                        expected = (expected * q[:, :, j].view(shape)).sum(2 + (j if j < i else expected.ndim - 3))
                q[:, :, i] = torch.softmax(expected / beta, dim=-1)
        held = self.logits.detach().clone()
        best = torch.full((n,), -torch.inf)
        for start in range(starts):
            self.logits.copy_(q[:, start].clamp(min=1e-30).log())
            best = torch.maximum(best, self.elbo(beta))
        self.logits.copy_(held)
        return best


def train_toy(toy: Toy, estimator: Any, steps: int, lr: float = 0.02, seed: int = 0) -> float:
    """Adam on full batches at a constant β; the mean gap to the optimum at the end, in nats."""
    optimizer = torch.optim.Adam([p for p in estimator.parameters() if p.requires_grad], lr=lr)
    torch.manual_seed(seed)
    for step in range(steps):
        optimizer.zero_grad()
        estimator.loss(toy.batch, step).value.backward()
        optimizer.step()
    return float((toy.optimum() - toy.elbo(1.0).detach()).mean())
