"""LatentPolicy: observation history → codes → action chunk.

o ──scaler──► observation front end ──memory──► π(z|o) ──codes──► the tokenizer's embedding and decoder ──► actions
                         └──────────────────────── offset head (optional) ────────────────────────────► + ┘
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from daps_robot.control import Acting, check_obs_dims
from daps_robot.data.normalize import Scaler
from daps_robot.data.rotations import check_quaternions, expand_quaternions
from daps_robot.errors import ConfigError
from daps_robot.models.action_tokenizer import ActionTokenizer, ActionTokenizerConfig, build_tokenizer
from daps_robot.models.code_model import CodeModel, CodeModelConfig, EmbeddingHead, Memory
from daps_robot.models.decoders import ChunkDecoderConfig
from daps_robot.models.frontends import ChunkFrontEndConfig, ObservationFrontEnd, ObservationFrontEndConfig
from daps_robot.models.pretrained import find_model, load_pretrained, restore, save_pretrained
from daps_robot.models.requests import answered, check_finite, observed
from daps_robot.models.sampling import beam, expected_embedding, greedy, sample
from daps_robot.models.tokenizer import Tokenizer, TokenizerConfig
from daps_robot.models.vision import Images, check_cameras_seen, picture_size
from daps_robot.types import PlanRequest

Method = Literal["auto", "expected", "greedy", "sample", "consensus", "beam"]


@dataclass(frozen=True)
class DecodingConfig:
    """How a policy chooses codes.

    Attributes:
        method: "expected" decodes the expected embedding along the most likely codes (see
            `sampling.expected_embedding`); "greedy" decodes those codes; "sample" draws codes; "consensus" draws
            `samples` of them and takes the ones whose chunk is nearest to the mean of all their chunks (minimum Bayes
            risk under squared error); "beam" searches. "auto" is "expected", or "consensus" where codes have no embedding
            (bins, fast).
        temperature: of "sample".
        samples: of "consensus".
        consensus_temperature: of "consensus".
        beam_width: of "beam".
        prefix: codes that are predicted, the first ones, for a tokenizer of which prefixes decode (nested dropout, fast): fewer
            take less time; None predicts all.
    """

    method: Method = "auto"
    temperature: float = 1.0
    samples: int = 16
    consensus_temperature: float = 0.7
    beam_width: int = 4
    prefix: int | None = None

    def __post_init__(self) -> None:
        lowest = min(self.temperature, self.consensus_temperature)
        if not lowest > 0:
            raise ConfigError(f"temperature {lowest} must be positive; for the most likely codes use greedy")
        for name in ("beam_width", "samples"):
            if not 1 <= getattr(self, name) <= 4096:
                raise ConfigError(f"{name} {getattr(self, name)} must be from 1 to 4096")


@dataclass(frozen=True)
class PolicyConfig:
    """A latent policy, with the tokenizer whose codes it predicts.

    Attributes:
        tokenizer: the tokenizer's configuration; positions and vocabulary of π are taken from it.
        front_end: from observation histories to memory tokens.
        codes: the code model π(z|o).
        obs_keys: observation keys, in the order in which they are laid side by side.
        decoding: how codes are chosen.
        embedding_head: predict codes by the tokenizer's embeddings of them (see `EmbeddingHead`), where it has one table of
            them for all positions; else by a linear map.
        quaternions: first columns of the observed quaternions (x y z w) that the networks see as 6-D rotations.
        offset_head: add a predicted offset to the decoded chunk (see `OffsetHead`).
        cameras: whose pictures are seen, in this order.
        obs_dims: how many values each observation key has; () of a policy saved before that was kept.
    """

    tokenizer: ActionTokenizerConfig
    obs_keys: tuple[str, ...]
    front_end: ObservationFrontEndConfig = field(default_factory=ObservationFrontEndConfig)
    codes: CodeModelConfig = field(default_factory=CodeModelConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    embedding_head: bool = True
    quaternions: tuple[int, ...] = ()
    offset_head: bool = False
    cameras: tuple[str, ...] = ()
    obs_dims: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self._check_tokenizer()
        check_obs_dims(self.obs_dims, self.obs_keys, self.observation_dim)
        check_quaternions(self.quaternions, self.observation_dim)
        check_cameras_seen(self.cameras, self.front_end.pictures)
        decoding, embeds = self.decoding, isinstance(self.tokenizer, TokenizerConfig)
        if decoding.method == "auto":
            object.__setattr__(self, "decoding", replace(decoding, method="expected" if embeds else "consensus"))
        if decoding.method == "expected" and not embeds:
            raise ConfigError(
                "the codes of this tokenizer have no embeddings to mix: decode by consensus, greedy, sample or beam"
            )
        if decoding.prefix is not None and not (self.tokenizer.ordered and 1 <= decoding.prefix <= self.codes.positions):
            raise ConfigError(
                f"a prefix of {decoding.prefix} of {self.codes.positions} codes does not decode: "
                "that takes at least 1 code of a tokenizer trained with --nested-dropout (or oat, fast)"
            )
        if decoding.prefix is not None and self.offset_head:
            raise ConfigError(
                "the offset head has learned what all codes leave over, not what a prefix does: decode all of them, or distil "
                "without --offset-head"
            )

    @property
    def observation_dim(self) -> int:
        """o, of which the networks see quaternions as six numbers."""
        return self.front_end.channels - 2 * len(self.quaternions)

    def _check_tokenizer(self) -> None:
        own, theirs = self.codes, self.tokenizer.codes
        if (own.positions, own.vocabulary) != (theirs.positions, theirs.vocabulary):
            raise ConfigError(
                f"the policy predicts {own.positions} codes of {own.vocabulary}, "
                f"its tokenizer has {theirs.positions} of {theirs.vocabulary}"
            )
        if not isinstance(self.tokenizer, TokenizerConfig):
            return
        if not isinstance(self.tokenizer.front_end, ChunkFrontEndConfig):
            raise ConfigError("a policy needs a tokenizer of action chunks")
        decoder = self.tokenizer.decoder
        if isinstance(decoder, ChunkDecoderConfig) and decoder.observation and self.obs_keys != self.tokenizer.obs_keys:
            raise ConfigError(
                f"the tokenizer's decoder reads {', '.join(self.tokenizer.obs_keys)}: use the same --obs-keys, in that order"
            )


class OffsetHead(nn.Module):
    """What a decoded chunk lacks, from the observation and that chunk (VQ-BeT, Lee et al. 2024, arXiv 2403.03181).

    There the offset is chosen by the codes; here the chunk that they decode to says which they are, so that any tokenizer will
    do. It starts at zero. Binary dimensions it leaves as they are: a little more than closed is neither of their two values.

    Attributes:
        moved: (a) 1 where it may move a dimension, 0 where that is binary.
    """

    moved: Tensor

    def __init__(self, width: int, horizon: int, channels: int, binary: tuple[int, ...] = (), hidden: int = 256) -> None:
        super().__init__()
        numbers, moved = horizon * channels, torch.ones(channels)
        moved[list(binary)] = 0
        self.register_buffer("moved", moved, persistent=False)
        last = nn.Linear(hidden, numbers)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        layers = (nn.Linear(width + numbers, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), last)
        self.layers = nn.Sequential(*layers)

    def forward(self, tokens: Float[Tensor, "b m d"], chunk: Float[Tensor, "b h a"]) -> Float[Tensor, "b h a"]:
        """All chunks normalised."""
        return self.layers(torch.cat([tokens.mean(1), chunk.flatten(1)], dim=-1)).view(chunk.shape) * self.moved


class LatentPolicy(Acting, nn.Module):
    """π(z|o) over code sequences, and the tokenizer's decoder that turns them into action chunks."""

    kind = "policy"
    needs_expert = False

    def __init__(self, config: PolicyConfig, tokenizer: ActionTokenizer | None = None, scaler: Scaler | None = None) -> None:
        super().__init__()
        self.config = config
        self.scaler = scaler or Scaler.identity(config.front_end.channels)
        self.front_end = ObservationFrontEnd(config.front_end)
        self.code_model = CodeModel(config.codes)
        self.tokenizer = (tokenizer or build_tokenizer(config.tokenizer)).requires_grad_(False)
        if config.embedding_head and isinstance(self.tokenizer, Tokenizer) and len(self.tokenizer.tables) == 1:
            self.code_model.head = EmbeddingHead(config.codes.transformer.width, self.tokenizer.tables[0])
        self.obs_keys, self.obs_dims = config.obs_keys, dict(zip(config.obs_keys, config.obs_dims, strict=False))
        self.observation_dim = config.observation_dim
        self.history = config.front_end.history
        self.cameras, self.picture_size = config.cameras, picture_size(config.front_end.pictures)
        self.horizon, self.action_dim = self.tokenizer.horizon, self.tokenizer.action_dim
        self.execute = min(4, self.horizon)
        self.offset = None
        if config.offset_head:
            likelihood = config.tokenizer.likelihood if isinstance(config.tokenizer, TokenizerConfig) else None
            binary = likelihood.binary if likelihood and likelihood.kind == "action" else ()
            self.offset = OffsetHead(config.front_end.transformer.width, self.horizon, self.action_dim, binary)

    def observe(self, observations: Float[Tensor, "b n o"], images: Images = None) -> Float[Tensor, "b m d"]:
        """Memory tokens of observations (in their own units), and of pictures for a policy with cameras."""
        return self.front_end(self.scaler.normalize(expand_quaternions(observations, self.config.quaternions)), images)

    def prepare(self, observations: Float[Tensor, "b n o"], images: Images = None) -> Memory:
        """Encode observations (in their own units) once, for whatever is then drawn or scored."""
        return self.code_model.prepare(self.observe(observations, images))

    def log_prob(self, observations: Float[Tensor, "b n o"], codes: Int[Tensor, "b k l"]) -> Float[Tensor, "b k l"]:
        """log π(z_i | z_<i, o) in nats of every position."""
        return self.code_model.log_prob(self.prepare(observations), codes)

    @torch.no_grad()
    def codes(
        self, observations: Float[Tensor, "b n o"], keys: Int[np.ndarray, " b"] | None = None, images: Images = None
    ) -> Int[Tensor, "b l"]:
        """One code sequence per observation, by the configured decoding (the most likely one under "expected").

        `keys` key the noise of drawn codes, row by row.
        """
        return self._codes(self.prepare(observations, images), observations, keys)

    def _codes(self, memory: Memory, observations: Tensor, keys: Int[np.ndarray, " b"] | None) -> Int[Tensor, "b l"]:
        decoding, length = self.config.decoding, self.config.decoding.prefix
        if decoding.method in ("expected", "greedy"):
            return greedy(self.code_model, memory, length).codes[:, 0]
        if decoding.method == "beam":
            return beam(self.code_model, memory, decoding.beam_width, length)[0][:, 0]
        if keys is None:
            raise ConfigError("drawing codes needs a key per row, so that its noise is repeatable")
        consensus = decoding.method == "consensus"
        draws, temperature = (decoding.samples, decoding.consensus_temperature) if consensus else (1, decoding.temperature)
        noise = [np.random.default_rng(int(key)).random((draws, self.config.codes.positions)) for key in keys]
        uniforms = torch.from_numpy(np.stack(noise)).float().clamp_(max=1 - 2**-24).to(observations.device)
        codes = sample(self.code_model, memory, uniforms[..., :length], temperature).codes
        if draws == 1:
            return codes[:, 0]
        chunks = self.tokenizer.scaler.normalize(self.tokenizer.decode(codes, observations[:, -1]))
        nearest = (chunks - chunks.mean(1, keepdim=True)).square().flatten(2).sum(-1).argmin(1)
        return codes[torch.arange(len(codes)), nearest]

    @torch.no_grad()
    def decide(
        self, observations: Float[Tensor, "b n o"], keys: Int[np.ndarray, " b"] | None = None, images: Images = None
    ) -> tuple[Int[Tensor, "b l"], Float[Tensor, "b h a"]]:
        """One code sequence per observation, as `codes` has it, and the action chunk; observations and chunk in the
        environment's units."""
        tokenizer, tokens, decoding = self.tokenizer, self.observe(observations, images), self.config.decoding
        if not torch.compiler.is_compiling():  # a graph cannot raise; an exported policy looks at what comes out
            check_finite(tokens)
        memory = self.code_model.prepare(tokens)
        if isinstance(tokenizer, Tokenizer):
            if decoding.method == "expected":
                embedded, codes = expected_embedding(self.code_model, memory, tokenizer.tables, decoding.prefix)
            else:
                codes = self._codes(memory, observations, keys)
                embedded = tokenizer.embed(codes[:, None])[:, 0]
            chunks = tokenizer.decode_embedded(embedded[:, None], observations[:, -1])[:, 0]
        else:
            codes = self._codes(memory, observations, keys)
            chunks = tokenizer.decode(codes[:, None])[:, 0]
        if self.offset is None:
            return codes, chunks
        normalised = tokenizer.scaler.normalize(chunks)
        return codes, tokenizer.scaler.denormalize(normalised + self.offset(tokens, normalised))

    def chunks(
        self, observations: Float[Tensor, "b n o"], keys: Int[np.ndarray, " b"] | None = None, images: Images = None
    ) -> Float[Tensor, "b h a"]:
        """One action chunk per observation, both in the environment's units."""
        return self.decide(observations, keys, images)[1]

    @torch.inference_mode()  # a tenth less of the time than no_grad
    def plan(self, request: PlanRequest) -> Float[np.ndarray, "b h a"]:
        """Action chunks in the environment's units; see `daps_robot.types.Policy`.

        Raises:
            ConfigError: the observations are not of the shape that this policy was made for.
            DataError: they are too large to be reckoned with.
        """
        observations, images = observed(self, request)
        return answered(self.chunks(observations, request.keys, images))

    def with_decoding(self, decoding: DecodingConfig) -> LatentPolicy:
        """A policy with the same weights (shared, not copied) and another decoding."""
        other = copy.copy(self)
        other.config = replace(self.config, decoding=decoding)
        return other

    def save_pretrained(self, directory: Path) -> None:
        """Write everything that acting needs, the tokenizer included."""
        save_pretrained(self, self.config, self.kind, directory)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> LatentPolicy:
        """Read a saved policy, ready for use; `source` as `find_model` takes it.

        Raises:
            CheckpointError: the directory holds none, or a damaged or later one.
        """
        directory = find_model(source)
        config, tensors = load_pretrained(PolicyConfig, cls.kind, directory)
        return restore(lambda: cls(config), tensors, directory)
