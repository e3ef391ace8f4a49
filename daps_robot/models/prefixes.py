"""What tokenizers take: data to encode, and codes to decode, of an ordered tokenizer prefixes of them too."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from daps_robot.errors import ConfigError, DataError
from daps_robot.models.code_model import CodeModelConfig
from daps_robot.parallel import uniform


def drawn_prefixes(examples: int, positions: int, device: torch.device) -> Int[Tensor, " b"]:
    """How many codes the decoder sees of each example: 1 … l, each as likely."""
    return 1 + (uniform(examples, device=device) * positions).long().clamp_(max=positions - 1)


def prefix_lengths(positions: int) -> list[int]:
    """At which prefixes are measured: all lengths, of long sequences the powers of two and the whole."""
    lengths = range(1, positions + 1)
    return [m for m in lengths if positions <= 16 or m & (m - 1) == 0 or m == positions]


def seen_codes(kept: Int[Tensor, " b"], positions: int) -> Bool[Tensor, "b l"]:
    """Which codes lie within the kept prefix."""
    return torch.arange(positions, device=kept.device) < kept[:, None]


def over_prefix(values: Float[Tensor, "b k l"], kept: Int[Tensor, " b"] | None) -> Float[Tensor, "b k"]:
    """The sum over the codes that the decoder sees; over all where `kept` is None."""
    return values.sum(-1) if kept is None else (values * seen_codes(kept, values.shape[-1])[:, None]).sum(-1)


def encodable(x: Float[Tensor, "b *x"], shape: tuple[int, ...]) -> Float[Tensor, "b *x"]:
    """Data as a tokenizer of inputs of that shape encodes it: in float32.

    Raises:
        ConfigError: x has another shape, or is not of floating point.
        DataError: a value is not finite, naming its place: the most likely code of NaN is a code like any other.
    """
    if tuple(x.shape[1:]) != shape:
        raise ConfigError(f"this tokenizer encodes inputs of shape {shape}, not {tuple(x.shape[1:])}")
    if not x.is_floating_point():
        raise ConfigError(f"this tokenizer encodes floating point numbers in the data's units, not {x.dtype}")
    single = x.float()
    finite = single.isfinite()
    if not finite.all():
        place = [int(i) for i in (~finite).nonzero()[0]]
        raise DataError(
            f"the input at {place} is {float(x[tuple(place)]):g}, no number of float32: leave such rows out, or correct them"
        )
    return single


def check_observation(observation: Float[Tensor, "b o"], batch: int, values: int) -> None:
    """Raises ConfigError where these are no observations for `batch` code sequences, DataError where one is not finite."""
    if observation.shape != (batch, values):
        raise ConfigError(f"this decoder sees observations of shape {(batch, values)}, not {tuple(observation.shape)}")
    if not observation.isfinite().all():
        row, column = (int(i) for i in (~observation.isfinite()).nonzero()[0])
        raise DataError(
            f"observation {row} is {float(observation[row, column]):g} at value {column}: a decoder makes nothing of that"
        )


def check_codes(codes: Int[Tensor, "b k l"], size: CodeModelConfig, ordered: bool) -> None:
    """Raises ConfigError where these are no code sequences of that size (if `ordered`, or prefixes of such)."""
    lengths = range(1 if ordered else size.positions, size.positions + 1)
    if codes.shape[-1] not in lengths or (codes.numel() and not 0 <= codes.min() <= codes.max() < size.vocabulary):
        few = f"1 to {size.positions}" if ordered else f"{size.positions}"
        found = f"with codes from {int(codes.min())} to {int(codes.max())}" if codes.numel() else "without codes"
        raise ConfigError(
            f"this tokenizer decodes {few} codes from 0 to {size.vocabulary - 1}, not shape {tuple(codes.shape)} {found}"
        )
