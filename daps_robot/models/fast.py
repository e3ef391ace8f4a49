"""FAST: cosine coefficients of a chunk, rounded, as a text that byte-pair encoding shortens (arXiv 2501.09747).

    chunk ──percentiles──► [−1, 1] ──DCT over time──► coefficients ──× scale, round──► integers
          ──lowest frequency of all dimensions first──► a text of h·a symbols ──BPE──► codes, as many as it takes

Code 0 ends a sequence and fills it up; the codes after it are the symbols, then what BPE merged, in order.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from daps_robot.data.normalize import Scaler
from daps_robot.errors import CheckpointError, ConfigError
from daps_robot.models.code_model import CodeModelConfig
from daps_robot.models.table import TableTokenizer, check_chunk

FIRST_CHARACTER = 0x4E00
"""Symbols become characters from here on: letters all, so that no text library takes one for a space."""

MAX_SYMBOLS = 20_000


@dataclass(frozen=True)
class FASTTokenizerConfig:
    """Sizes of a fitted FAST tokenizer.

    Attributes:
        horizon: steps h.
        channels: dimension of a step, a.
        scale: coefficients are multiplied by it before they are rounded.
        lowest, highest: the integers that there are symbols for.
        merges: pairs that byte-pair encoding merges.
        vocabulary: codes, with the one that ends a sequence.
        positions: codes of the longest sequence, l.
    """

    horizon: int = 16
    channels: int = 7
    scale: float = 10.0
    lowest: int = -40
    highest: int = 40
    merges: int = 0
    vocabulary: int = 82
    positions: int = 112

    def __post_init__(self) -> None:
        check_chunk(self.horizon, self.channels)
        symbols = self.highest - self.lowest + 1
        if not 1 <= symbols <= MAX_SYMBOLS or not 0 < self.scale < math.inf:
            raise ConfigError(f"{symbols} symbols at a scale of {self.scale}: use a positive scale that makes 1 to {MAX_SYMBOLS}")
        if not symbols < self.vocabulary <= symbols + 1 + self.merges <= 10**6:
            raise ConfigError(f"{symbols} symbols and {self.merges} merges do not make {self.vocabulary} codes")
        if not 1 <= self.positions <= self.horizon * self.channels:
            raise ConfigError(f"{self.positions} positions: {self.horizon * self.channels} numbers take 1 to as many codes")

    @property
    def codes(self) -> CodeModelConfig:
        """Positions and vocabulary."""
        return CodeModelConfig(self.positions, self.vocabulary)

    @property
    def ordered(self) -> bool:
        """A prefix holds the lowest frequencies."""
        return True


class FASTTokenizer(TableTokenizer):
    """The scheme above. Encoding needs the library `tokenizers` (the extra `fast`), decoding does not.

    Decoding is total: what a sequence lacks of the h·a coefficients is zero, what it has beyond them is left out, and codes
    after the end do not count. The published decoder gives up on a sequence that does not hold exactly h·a (`malformed`).

    Attributes:
        pairs: (merges 2) the two codes that each merge joins, in BPE's order.
        mean_codes: of the training chunks, the end included.
    """

    kind = "fast"
    config_type = FASTTokenizerConfig
    config: FASTTokenizerConfig
    pairs: Tensor
    mean_codes: Tensor
    cosines: Tensor

    def __init__(self, config: FASTTokenizerConfig, scaler: Scaler | None = None) -> None:
        super().__init__(config, scaler)
        self.register_buffer("pairs", torch.zeros(config.merges, 2, dtype=torch.long))
        self.register_buffer("mean_codes", torch.tensor(float(config.positions)))
        self.register_buffer("cosines", cosine_matrix(config.horizon), persistent=False)

    @property
    def bits(self) -> float:
        """Of a training chunk on average, the end included: sequences differ in length."""
        return float(self.mean_codes) * math.log2(self.config.vocabulary)

    # -- chunks and symbols ----------------------------------------------------------------------------------------------

    def coefficients(self, x: Float[Tensor, "b h a"]) -> Int[Tensor, "b n"]:
        """Rounded coefficients, the lowest frequency of all dimensions first."""
        normalised = 2 * (x - self.centre) / self.span
        return (self.config.scale * (self.cosines @ normalised)).round().long().flatten(1)

    def chunks(self, coefficients: Float[Tensor, "s n"]) -> Float[Tensor, "s h a"]:
        """The inverse of `coefficients`, but for the rounding."""
        normalised = self.cosines.T @ (coefficients.unflatten(1, (self.horizon, -1)) / self.config.scale)
        return self.centre + normalised * self.span / 2

    # -- symbols and codes -----------------------------------------------------------------------------------------------

    def texts(self, coefficients: Int[Tensor, "b n"]) -> list[str]:
        """A character for each coefficient; those outside the symbols take the nearest."""
        symbols = coefficients.clamp(self.config.lowest, self.config.highest) - self.config.lowest
        return ["".join(map(chr, row)) for row in (symbols + FIRST_CHARACTER).tolist()]

    def sequences(self, x: Float[Tensor, "b h a"]) -> list[list[int]]:
        """The codes of chunks, of whatever length, without the end."""
        return [found.ids for found in self.bpe.encode_batch_fast(self.texts(self.coefficients(x)))]

    def encode_chunks(self, x: Float[Tensor, "b h a"]) -> Int[Tensor, "b l"]:
        """Of a chunk that takes more codes than there are positions, the first: the lowest frequencies."""
        length = self.config.positions
        rows = [codes[:length] + [0] * (length - len(codes)) for codes in self.sequences(x)]
        return torch.tensor(rows, dtype=torch.long, device=x.device).view(-1, length)

    def decode_chunks(self, codes: Int[Tensor, "s l"]) -> Float[Tensor, "s h a"]:
        pieces, wanted = self.pieces.to(codes.device), self.horizon * self.action_dim
        lengths = self._lengths(codes)
        first = lengths.cumsum(1) - lengths
        ahead = torch.arange(pieces.shape[1], device=codes.device)
        place = torch.where(ahead < lengths[..., None], first[..., None] + ahead, wanted).clamp_(max=wanted)
        found = torch.zeros(len(codes), wanted + 1, device=codes.device)  # the last one takes what is left out
        found.scatter_(1, place.flatten(1), pieces[codes].flatten(1).float())
        return self.chunks(found[:, :wanted])

    def malformed(self, codes: Int[Tensor, "*s l"]) -> Bool[Tensor, "*s"]:
        """Which sequences do not hold exactly the h·a coefficients of a chunk, on which the published decoder fails."""
        return self._lengths(codes).sum(-1) != self.horizon * self.action_dim

    def facts(self, x: Float[Tensor, "b h a"]) -> dict[str, Float[Tensor, " b"]]:
        """`codes`: of a chunk, the end included. `cut`: whether they were more than the positions, so that high frequencies are
        lost. `clipped`: share of the coefficients that there is no symbol for."""
        lengths = torch.tensor([len(codes) for codes in self.sequences(x)], device=x.device)
        found, config = self.coefficients(x), self.config
        return {
            "codes": (lengths + 1.0).clamp(max=config.positions),
            "cut": (lengths > config.positions).float(),
            "clipped": ((found < config.lowest) | (found > config.highest)).float().mean(1),
        }

    @cached_property
    def expansions(self) -> list[tuple[int, ...]]:
        """The symbols (from 0) that each code stands for; no longer than a chunk has, as no more are ever read.

        Raises:
            CheckpointError: the merges make no sense.
        """
        symbols, most = self.config.highest - self.config.lowest + 1, self.horizon * self.action_dim
        found: list[tuple[int, ...]] = [(), *((symbol,) for symbol in range(symbols))]
        known = set(found)
        for left, right in self.pairs.tolist():
            if not 0 < min(left, right) <= max(left, right) < len(found):
                raise CheckpointError(f"a merge of the codes {left} and {right} is damaged: fit the fast tokenizer again")
            joined = (found[left] + found[right])[:most]
            if joined not in known:  # two merges may lead to the same
                found.append(joined)
                known.add(joined)
        if len(found) != self.config.vocabulary:
            raise CheckpointError(
                f"the merges make {len(found)} codes, not {self.config.vocabulary}: fit the fast tokenizer again"
            )
        return found

    @cached_property
    def pieces(self) -> Int[Tensor, "v n"]:
        """The coefficients that each code stands for, filled up with zeros."""
        longest = max(map(len, self.expansions))
        rows = [[symbol + self.config.lowest for symbol in piece] + [0] * (longest - len(piece)) for piece in self.expansions]
        return torch.tensor(rows, dtype=torch.long)

    @cached_property
    def piece_lengths(self) -> Int[Tensor, " v"]:
        """How many coefficients each code stands for."""
        return torch.tensor([len(piece) for piece in self.expansions])

    @cached_property
    def bpe(self) -> Any:
        """The encoder, from the merges.

        Raises:
            ConfigError: the library `tokenizers` is not installed.
        """
        library = tokenizers_library()
        names = [text_of(piece) for piece in self.expansions]
        vocabulary = {name: code for code, name in enumerate(names) if code}
        merges = [(names[left], names[right]) for left, right in self.pairs.tolist()]
        return library.Tokenizer(library.models.BPE(vocabulary, merges))

    def _lengths(self, codes: Int[Tensor, "*s l"]) -> Int[Tensor, "*s l"]:
        """How many coefficients each code adds; none from the end of a sequence on."""
        running = (codes == 0).cumsum(-1) == 0
        return self.piece_lengths.to(codes.device)[codes] * running


def text_of(symbols: Sequence[int]) -> str:
    """Symbols as what the library merges: a string of one character each."""
    return "".join(chr(FIRST_CHARACTER + symbol) for symbol in symbols)


def cosine_matrix(steps: int) -> Float[Tensor, "h h"]:
    """The orthonormal DCT-II: row f is the cosine of frequency f."""
    t = torch.arange(steps, dtype=torch.float64)
    matrix = torch.cos(torch.pi / steps * (t + 0.5) * t[:, None]) * math.sqrt(2 / steps)
    matrix[0] /= math.sqrt(2)
    return matrix.float()


def tokenizers_library() -> Any:
    """Hugging Face's `tokenizers`, which FAST itself uses.

    Raises:
        ConfigError: it is not installed.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it warns in every process that loads data
    try:
        import tokenizers
    except ImportError as error:
        raise ConfigError(f"the fast tokenizer needs the library tokenizers: pip install 'daps-robot[fast]' ({error})") from error
    return tokenizers
