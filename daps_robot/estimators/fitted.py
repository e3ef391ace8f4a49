"""Tokenizers without networks, by name: their settings, and how their tables are fitted to demonstrations."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from daps_robot.data.chunks import ChunkDataset
from daps_robot.data.normalize import Scaler
from daps_robot.errors import ConfigError
from daps_robot.estimators.base import EstimatorConfig
from daps_robot.models.bins import BinsTokenizer, BinsTokenizerConfig
from daps_robot.models.fast import FIRST_CHARACTER, FASTTokenizer, FASTTokenizerConfig, tokenizers_library

MERGES_FROM = 20_000
"""Training chunks, evenly spaced, that byte-pair encoding learns its merges from, or all where there are fewer."""


@dataclass(frozen=True)
class BinsConfig(EstimatorConfig):
    """Settings of uniform bins.

    Attributes:
        bins: of each number.
        knots: numbers of each dimension that are binned, joined by lines; 0 takes every step of the chunk.
    """

    bins: int = 256
    knots: int = 0


def fit_bins(train: ChunkDataset, settings: BinsConfig, scaler: Scaler) -> BinsTokenizer:
    """Bins between the 1st and the 99th percentile of the training actions."""
    config = BinsTokenizerConfig(train.horizon, train.actions.shape[1], settings.bins, settings.knots or train.horizon)
    tokenizer = BinsTokenizer(config, scaler)
    tokenizer.fit_range(train.actions.numpy())
    return tokenizer.eval()


@dataclass(frozen=True)
class FASTConfig(EstimatorConfig):
    """Settings of FAST.

    Attributes:
        dct_scale: what cosine coefficients are multiplied by before they are rounded: precision against length.
        bpe_vocabulary: the most codes that there may be, with the one that ends a sequence.
        max_codes: positions of a sequence; 0 takes as many as the longest training chunk needs.
    """

    dct_scale: float = 10.0
    bpe_vocabulary: int = 1024
    max_codes: int = 0


def fit_fast(train: ChunkDataset, settings: FASTConfig, scaler: Scaler) -> FASTTokenizer:
    """FAST of the training chunks.

    Raises:
        ConfigError: the symbols alone exceed the vocabulary, or a training chunk the positions.
    """
    channels = train.actions.shape[1]
    # a code for each number is always enough
    plain = FASTTokenizerConfig(train.horizon, channels, settings.dct_scale, positions=train.horizon * channels)
    tokenizer = FASTTokenizer(plain, scaler)
    tokenizer.fit_range(train.actions.numpy())

    ends = [(int(c.min()), int(c.max())) for c in map(tokenizer.coefficients, chunks(train))]
    lowest, highest = min(low for low, _ in ends), max(high for _, high in ends)
    symbols = highest - lowest + 1
    if symbols + 1 > settings.bpe_vocabulary:
        raise ConfigError(
            f"rounded coefficients take {symbols} values, more than {settings.bpe_vocabulary} codes can name: "
            "raise --bpe-vocabulary or lower --dct-scale"
        )
    tokenizer.config = replace(plain, lowest=lowest, highest=highest, vocabulary=symbols + 1)
    texts = (text for some in chunks(train, MERGES_FROM) for text in tokenizer.texts(tokenizer.coefficients(some)))
    pairs, vocabulary = learn_merges(texts, symbols, settings.bpe_vocabulary)

    fitted = FASTTokenizer(replace(tokenizer.config, merges=len(pairs), vocabulary=vocabulary), scaler)
    fitted.fit_range(train.actions.numpy())
    fitted.pairs.copy_(torch.tensor(pairs, dtype=torch.long).view(-1, 2))
    lengths = torch.tensor([len(codes) for some in chunks(train) for codes in fitted.sequences(some)])
    needed = int(lengths.max())
    if 0 < settings.max_codes < needed:
        raise ConfigError(
            f"the longest training chunk takes {needed} codes, not {settings.max_codes}: raise --max-codes to {needed} "
            "(0 finds it), lower --dct-scale, or raise --bpe-vocabulary"
        )
    fitted.config = replace(fitted.config, positions=settings.max_codes or needed)
    fitted.mean_codes.copy_((lengths + 1).clamp(max=fitted.config.positions).float().mean())
    return fitted.eval()


def chunks(train: ChunkDataset, most: int = 0) -> Iterator[Tensor]:
    """The windows' actions (b h a), some at a time; `most` of them, evenly spaced, or all for 0."""
    for index in torch.arange(0, len(train), 1 + (len(train) - 1) // most if most else 1).split(4096):
        yield train.gather(index).actions


def learn_merges(texts: Iterable[str], symbols: int, vocabulary: int) -> tuple[list[tuple[int, int]], int]:
    """The pairs of codes that byte-pair encoding joins, in order, and how many codes there are then, the end included."""
    library = tokenizers_library()
    characters = [chr(FIRST_CHARACTER + symbol) for symbol in range(symbols)]
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary - 1, min_frequency=2, show_progress=False, initial_alphabet=characters
    )
    learner = library.Tokenizer(library.models.BPE())
    learner.train_from_iterator(texts, trainer)
    names = {character: 1 + symbol for symbol, character in enumerate(characters)}
    pairs = []
    for left, right in json.loads(learner.to_str())["model"]["merges"]:
        pairs.append((names[left], names[right]))
        names.setdefault(left + right, 1 + len(names))
    return pairs, 1 + len(names)


class Fitted(NamedTuple):
    """Attributes: settings, the class of its settings; fit, called with training windows, settings and a scaler."""

    settings: type[EstimatorConfig]
    fit: Callable[[ChunkDataset, Any, Scaler], BinsTokenizer | FASTTokenizer]


FITTED: dict[str, Fitted] = {"bins": Fitted(BinsConfig, fit_bins), "fast": Fitted(FASTConfig, fit_fast)}
"""What `--estimator` takes besides the estimators that train networks."""
