"""A problem small enough to enumerate, on which every estimator can be compared with the exact gradient.

N points x = Σ_i c_i[z_i] + ε lie around sums of known codewords. The decoder is fixed to them; q(z|x) is factorised, a table
of logits for each point. All v^l code sequences can be written down, and with them the β-ELBO, its gradient and its optimum.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
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
    decoder: SumOfCodewords

    def __init__(self, config: ToyConfig) -> None:
        nn.Module.__init__(self)
        size, generator = config, torch.Generator().manual_seed(config.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        l, v = size.positions, size.vocabulary
        codes = CodeModelConfig(l, v, False, TransformerConfig(width=v, heads=1))
        self.config = TokenizerConfig(codes=codes)
        self.variance = size.sigma**2
        self.obs_scaler = None
        self.posterior = TableModel(codes)
        self.embedding = nn.Embedding.from_pretrained(torch.eye(v))
        self.likelihood = make_likelihood(LikelihoodConfig("gaussian", self.variance), size.dimensions)
        codewords = size.spread * normal(l, v, size.dimensions)
        self.decoder = SumOfCodewords(codewords)
        self.register_buffer("mask_embedding", torch.zeros(v))  # a code that is not seen adds nothing
        truth = torch.randint(v, (size.points, l), generator=generator)
        points = codewords[torch.arange(l), truth].sum(1) + size.noise * normal(size.points, size.dimensions)
        self.register_buffer("points", points)
        self.logits = nn.Parameter(0.1 * normal(size.points, l, v))

    @property
    def batch(self) -> Inputs:
        """All points."""
        return Inputs(self.points)

    def prepare(self, inputs: Inputs) -> Memory:
        return self.posterior.prepare(self.logits)

    @property
    def sequences(self) -> Int[Tensor, "s l"]:
        """All of them; v^l."""
        codes = self.config.codes
        return torch.tensor(list(itertools.product(range(codes.vocabulary), repeat=codes.positions)))

    def rewards(self) -> Float[Tensor, "n s"]:
        """log p(x|z) of every point and sequence."""
        return self.log_likelihood(self.sequences.expand(len(self.points), -1, -1), self.batch)

    def elbo(self, beta: float) -> Float[Tensor, " n"]:
        """The exact β-ELBO of every point, with gradient."""
        return self.elbo_of(self.logits.log_softmax(-1), beta)

    def elbo_of(self, log_q: Float[Tensor, "*s n l v"], beta: float) -> Float[Tensor, "*s n"]:
        """The β-ELBO of given log-probabilities, in closed form: q is factorised and log p(x|z) quadratic.

        E‖x − Σ_i c_i‖² = ‖x − Σ_i E c_i‖² + Σ_i (E‖c_i‖² − ‖E c_i‖²), however many sequences there are.
        """
        q, codewords = log_q.exp(), self.decoder.codewords
        means = torch.einsum("...lv,lvd->...ld", q, codewords)
        spread = (torch.einsum("...lv,lv->...l", q, codewords.square().sum(-1)) - means.square().sum(-1)).sum(-1)
        distance = (self.points - means.sum(-2)).square().sum(-1) + spread
        constant = 0.5 * self.points.shape[1] * math.log(2 * math.pi * self.variance)
        kl = (q * log_q).sum((-1, -2)) + self.config.codes.bits * math.log(2)
        return -0.5 * distance / self.variance - constant - beta * kl

    def exact_gradient(self, beta: float) -> Float[Tensor, "n l v"]:
        """Of the mean β-ELBO, with respect to the logits."""
        return torch.autograd.grad(self.elbo(beta).mean(), self.logits)[0]

    @torch.no_grad()
    def optimum(self, beta: float = 1.0, starts: int = 64, sweeps: int = 200) -> Float[Tensor, " n"]:
        """The largest β-ELBO of a factorised q, by coordinate ascent (exact in each position) from many starts."""
        codewords, generator = self.decoder.codewords, torch.Generator().manual_seed(0)
        log_q = (3 * torch.randn(starts, *self.logits.shape, generator=generator)).log_softmax(-1)
        for _ in range(sweeps):
            for i in range(len(codewords)):
                means = torch.einsum("snlv,lvd->snld", log_q.exp(), codewords)
                rest = self.points - means.sum(2) + means[:, :, i]  # what position i has to make up
                fit = rest @ codewords[i].T - 0.5 * codewords[i].square().sum(-1)
                log_q[:, :, i] = (fit / (self.variance * beta)).log_softmax(-1)
        return self.elbo_of(log_q, beta).amax(0)


def train_toy(toy: Toy, estimator: Any, steps: int, lr: float = 0.02, seed: int = 0) -> float:
    """Adam on full batches at a constant β; the mean gap to the optimum at the end, in nats."""
    optimizer = torch.optim.Adam([p for p in estimator.parameters() if p.requires_grad], lr=lr)
    torch.manual_seed(seed)
    for step in range(steps):
        optimizer.zero_grad()
        estimator.loss(toy.batch, step).value.backward()
        optimizer.step()
    return float((toy.optimum() - toy.elbo(1.0).detach()).mean())
