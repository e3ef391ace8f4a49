"""Tokenizer: data → short discrete codes → data.

x ──scaler──► front end ──memory──► posterior q(z|x) ──codes──► embedding ──► decoder p(x|z) ──scaler──► x̂
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from daps_robot.data.normalize import Scaler
from daps_robot.data.rotations import check_quaternions, expand_quaternions
from daps_robot.errors import ConfigError
from daps_robot.models.code_model import CodeModel, CodeModelConfig, Memory
from daps_robot.models.decoders import ChunkDecoderConfig, DecoderConfig, make_decoder
from daps_robot.models.frontends import ChunkFrontEndConfig, FrontEndConfig, make_front_end
from daps_robot.models.likelihoods import LikelihoodConfig, make_likelihood
from daps_robot.models.posteriors import (
    GaussianPosterior,
    PosteriorConfig,
    QuantizedPosterior,
    ResidualPosterior,
    make_posterior,
)
from daps_robot.models.prefixes import check_codes, check_observation, encodable, seen_codes
from daps_robot.models.pretrained import find_model, load_pretrained, restore, save_pretrained
from daps_robot.models.sampling import CodeSample, greedy, sample
from daps_robot.parallel import uniform


@dataclass(frozen=True)
class TokenizerConfig:
    """A tokenizer's networks.

    Attributes:
        codes: positions, vocabulary and decoder stack of the posterior.
        front_end: from x to memory tokens.
        decoder: from embedded codes to the likelihood's parameters.
        likelihood: p(x|z).
        posterior: another posterior in place of the code model.
        obs_keys: observation keys, in order, that a conditioned decoder reads.
        quaternions: first columns of the quaternions (x y z w) among them that it reads as 6-D rotations.
        nested_dropout: order the codes (Rippel et al. 2014, arXiv 1402.0915): in training the decoder sees a random prefix of an
            example's codes and a learned mask in place of the rest, so that afterwards any prefix decodes.
    """

    codes: CodeModelConfig = field(default_factory=CodeModelConfig)
    front_end: FrontEndConfig = field(default_factory=ChunkFrontEndConfig)
    decoder: DecoderConfig = field(default_factory=ChunkDecoderConfig)
    likelihood: LikelihoodConfig = field(default_factory=LikelihoodConfig)
    posterior: PosteriorConfig | None = None
    obs_keys: tuple[str, ...] = ()
    quaternions: tuple[int, ...] = ()
    nested_dropout: bool = False

    @property
    def ordered(self) -> bool:
        """Whether a prefix of the codes decodes."""
        return self.nested_dropout


class Inputs(NamedTuple):
    """Normalised data of a batch.

    Attributes:
        x: (b *x) what is encoded and reconstructed.
        mask: (b h) True where a step counts, or None where all do.
        observation: (b o) what a conditioned decoder sees, or None.
        kept: (b) how many leading codes of each example the decoder sees (nested dropout), or None where it sees all.
    """

    x: Float[Tensor, b * x]
    mask: Bool[Tensor, "b h"] | None = None
    observation: Float[Tensor, "b o"] | None = None
    kept: Int[Tensor, " b"] | None = None

    def part(self, part: slice) -> Inputs:
        """Some of the examples."""
        return Inputs(*(None if tensor is None else tensor[part] for tensor in self))  # type: ignore[arg-type]


class Encoded(NamedTuple):
    """What a posterior makes of x.

    Attributes:
        embedded: (b k l d) what the decoder reads.
        codes: (b k l), or None where there are none (a Gaussian).
        kl: (b k l) nats, of the posterior to its prior, at each position: for codes, the exact conditional KL to the uniform
            one given the sampled prefix; None where the posterior is no distribution (a quantiser).
    """

    embedded: Float[Tensor, "b k l d"]
    codes: Int[Tensor, "b k l"] | None
    kl: Float[Tensor, "b k l"] | None


class Tokenizer(nn.Module):
    """A discrete autoencoder with a posterior q(z|x) over code sequences and a decoder p(x|z).

    Attributes:
        observation_dim: values of an observation that a conditioned decoder is given; 0 where it is given none.
    """

    def __init__(self, config: TokenizerConfig, scaler: Scaler | None = None, obs_scaler: Scaler | None = None) -> None:
        super().__init__()
        self.config = config
        codes, channels = config.codes, config.front_end.channels
        self.scaler = scaler or Scaler.identity(channels)
        seen = config.decoder.observation if isinstance(config.decoder, ChunkDecoderConfig) else 0
        self.obs_scaler = (obs_scaler or Scaler.identity(seen)) if seen else None
        self.observation_dim = seen - 2 * len(config.quaternions)
        check_quaternions(config.quaternions, self.observation_dim)
        self.likelihood = make_likelihood(config.likelihood, channels)
        self.front_end = make_front_end(config.front_end)
        tokens = config.front_end.tokens if isinstance(config.front_end, ChunkFrontEndConfig) else 0
        self.posterior = make_posterior(config.posterior, codes, tokens)
        tables = codes.positions if isinstance(self.posterior, ResidualPosterior) else 1  # a table for each position, or one
        self.embedding = nn.Embedding(tables * codes.vocabulary, codes.transformer.width)
        self.decoder = make_decoder(config.decoder, codes.positions, codes.transformer.width, self.likelihood.outputs)
        masked = config.nested_dropout
        self.mask_embedding = nn.Parameter(torch.randn(codes.transformer.width)) if masked else None

    history = 1

    @property
    def obs_keys(self) -> tuple[str, ...]:
        """The observation keys that a conditioned decoder sees, in order."""
        return self.config.obs_keys

    @property
    def horizon(self) -> int:
        """Steps of a chunk, h.

        Raises:
            ConfigError: this is not a tokenizer of action chunks.
        """
        if not isinstance(self.config.front_end, ChunkFrontEndConfig):
            raise ConfigError("a tokenizer of images has no horizon")
        return self.config.front_end.horizon

    @property
    def action_dim(self) -> int:
        """Dimension of an action, a; of pictures, their channels."""
        return self.config.front_end.channels

    @property
    def bits(self) -> float:
        """Capacity of a code sequence, l·log2(v), with the v that a quantiser really has; of a Gaussian, without limit."""
        if isinstance(self.posterior, GaussianPosterior):
            return math.inf
        return self.posterior.bits if isinstance(self.posterior, QuantizedPosterior) else self.config.codes.bits

    # -- the pieces that estimators use, in normalised units -------------------------------------------------------------

    def prepare(self, inputs: Inputs) -> Memory:
        """Encode x once, for whatever is then drawn or scored."""
        return self.posterior.prepare(self.front_end(inputs.x))

    def draw(self, memory: Memory, uniforms: Float[Tensor, "b k l"] | None = None) -> CodeSample:
        """k samples of q(z|x) by the given noise, or the most likely codes (k = 1) without. No gradient.

        Raises:
            ConfigError: a Gaussian posterior has no codes.
        """
        posterior = self.posterior
        if isinstance(posterior, CodeModel):
            return greedy(posterior, memory) if uniforms is None else sample(posterior, memory, uniforms)
        if isinstance(posterior, GaussianPosterior):
            raise ConfigError("this tokenizer's posterior is a Gaussian (vae): it has no codes to draw or to predict")
        with torch.no_grad():
            codes = posterior.quantize(memory)[1][:, None]
        k = 1 if uniforms is None else uniforms.shape[1]
        zeros = torch.zeros(len(codes), k, codes.shape[-1], device=codes.device)
        return CodeSample(codes.expand(-1, k, -1), zeros, zeros)

    @torch.no_grad()
    def encoded(self, memory: Memory, k: int | None = None) -> Encoded:
        """k samples of the posterior, or its most likely value (k = 1), whatever its kind; a quantiser has but one."""
        if isinstance(self.posterior, GaussianPosterior):
            embedded, kl = self.posterior.draw(memory, k)
            return Encoded(embedded, None, kl)
        codes = self.config.codes
        stochastic = isinstance(self.posterior, CodeModel)
        keys = memory[0][0]
        uniforms = uniform(len(keys), k, codes.positions, device=keys.device) if k and stochastic else None
        z = self.draw(memory, uniforms)
        kl = math.log(codes.vocabulary) - z.entropy
        return Encoded(self.embed(z.codes), z.codes, kl if stochastic else None)

    @property
    def tables(self) -> Float[Tensor, "t v d"]:
        """The embeddings of the codes: one table for all positions, or one for each."""
        return self.embedding.weight.unflatten(0, (-1, self.config.codes.vocabulary))

    def embed(self, codes: Int[Tensor, "b k l"]) -> Float[Tensor, "b k l d"]:
        """What the decoder reads."""
        if len(self.tables) > 1:
            codes = codes + self.config.codes.vocabulary * torch.arange(codes.shape[-1], device=codes.device)
        return self.embedding(codes)

    def decoder_params(self, embedded: Float[Tensor, "b k l d"], inputs: Inputs) -> Float[Tensor, "b k *x p"]:
        """The likelihood's parameters given embedded codes; of an ordered tokenizer they may be a prefix of all.

        Codes past `inputs.kept`, or past the prefix, are replaced by the mask.
        """
        embedded = self._masked(embedded, inputs.kept)
        b, k = embedded.shape[:2]
        observation = None
        if inputs.observation is not None and self.obs_scaler is not None:
            observation = inputs.observation.repeat_interleave(k, dim=0)
        params = self.decoder(rearrange(embedded, "b k l d -> (b k) l d"), observation)
        return params.view(b, k, *params.shape[1:])

    def log_likelihood(self, codes: Int[Tensor, "b k l"], inputs: Inputs) -> Float[Tensor, "b k"]:
        """log p(x|z_k) in nats (of the normalised data)."""
        return self.embedded_log_likelihood(self.embed(codes), inputs)

    def embedded_log_likelihood(self, embedded: Float[Tensor, "b k l d"], inputs: Inputs) -> Float[Tensor, "b k"]:
        """As `log_likelihood`, from embedded codes."""
        return self.likelihood.log_prob(self.decoder_params(embedded, inputs), inputs.x, inputs.mask)

    # -- in the data's own units -----------------------------------------------------------------------------------------

    def inputs(self, x: Tensor, mask: Tensor | None = None, observation: Float[Tensor, "b o"] | None = None) -> Inputs:
        """Normalise data; the observation is kept only where the decoder is conditioned on it."""
        return Inputs(self.scaler.normalize(x), mask, self.observed(observation))

    def observed(self, observation: Float[Tensor, "b o"] | None) -> Float[Tensor, "b p"] | None:
        """What a conditioned decoder reads of an observation in the data's units; None where it reads none."""
        if observation is None or self.obs_scaler is None:
            return None
        return self.obs_scaler.normalize(expand_quaternions(observation, self.config.quaternions))

    @torch.no_grad()
    def encode(self, x: Float[Tensor, b * x], uniforms: Float[Tensor, "b k l"] | None = None) -> Int[Tensor, "b k l"]:
        """Codes of x: the most likely sequence (k = 1), or k samples by the given uniform noise.

        Raises:
            ConfigError: x has another shape than this tokenizer was built for, or is not of floating point.
            DataError: a value of x is not finite.
        """
        return self.draw(self.prepare(self.inputs(encodable(x, self.config.front_end.shape))), uniforms).codes

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "b k l"], observation: Float[Tensor, "b o"] | None = None) -> Float[Tensor, "b k *x"]:
        """Reconstructions in the data's units; every sequence of codes decodes, with nested dropout every prefix of one.

        Raises:
            ConfigError: a code lies outside the vocabulary, the sequences have a length that does not decode, or a conditioned
                decoder is given no observation, or one of another shape.
            DataError: a value of an observation that it reads is not finite.
        """
        check_codes(codes, self.config.codes, self.config.ordered)
        if observation is not None and self.obs_scaler is not None:
            check_observation(observation, len(codes), self.observation_dim)
        return self.decode_embedded(self.embed(codes), observation)

    @torch.no_grad()
    def decode_embedded(
        self, embedded: Float[Tensor, "b k l d"], observation: Float[Tensor, "b o"] | None = None
    ) -> Float[Tensor, "b k *x"]:
        """As `decode`, from code embeddings or mixtures of them."""
        params = self.decoder_params(embedded, Inputs(embedded, None, self.observed(observation)))
        return self.scaler.denormalize(self.likelihood.mean(params))

    @torch.no_grad()
    def reconstruct(
        self,
        chunks: Float[np.ndarray, "b h a"],
        observations: Float[np.ndarray, "b n o"],
        keys: Int[np.ndarray, " b"],
    ) -> Float[np.ndarray, "b h a"]:
        """Chunks through their most likely codes and back, for rollouts (`keys` is not needed: nothing is drawn)."""
        device = self.scaler.shift.device
        x = encodable(torch.from_numpy(chunks).to(device), self.config.front_end.shape)
        embedded = self.encoded(self.prepare(self.inputs(x))).embedded
        observation = torch.from_numpy(observations[:, -1]).to(device)
        return self.decode_embedded(embedded, observation)[:, 0].cpu().numpy()

    # -- files -----------------------------------------------------------------------------------------------------------

    def save_pretrained(self, directory: Path) -> None:
        """Write configuration, weights and scalers; see `from_pretrained`."""
        save_pretrained(self, self.config, "tokenizer", directory)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> Tokenizer:
        """Read a saved tokenizer, ready for use; `source` as `find_model` takes it.

        Raises:
            CheckpointError: the directory holds none, or a damaged or later one.
        """
        directory = find_model(source)
        config, tensors = load_pretrained(TokenizerConfig, "tokenizer", directory)
        return restore(lambda: cls(config), tensors, directory)

    def _masked(self, embedded: Float[Tensor, "b k l d"], kept: Int[Tensor, " b"] | None) -> Float[Tensor, "b k l d"]:
        b, k, given = embedded.shape[:3]
        missing = self.config.codes.positions - given
        if not missing and kept is None:
            return embedded
        if self.mask_embedding is None:
            raise ConfigError(
                f"this tokenizer decodes all of its {given + missing} codes: train it with nested dropout for fewer"
            )
        if missing:
            embedded = torch.cat([embedded, self.mask_embedding.expand(b, k, missing, -1)], dim=2)
        if kept is None:
            return embedded
        return torch.where(seen_codes(kept, given + missing)[:, None, :, None], embedded, self.mask_embedding)
