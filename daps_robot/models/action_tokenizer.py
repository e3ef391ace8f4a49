"""Tokenizers of action chunks of every kind: learned networks, or tables."""

from __future__ import annotations

from pathlib import Path

from daps_robot.errors import CheckpointError
from daps_robot.models.bins import BinsTokenizer, BinsTokenizerConfig
from daps_robot.models.fast import FASTTokenizer, FASTTokenizerConfig
from daps_robot.models.pretrained import find_model, saved_kind
from daps_robot.models.tokenizer import Tokenizer, TokenizerConfig

ActionTokenizer = Tokenizer | BinsTokenizer | FASTTokenizer
ActionTokenizerConfig = TokenizerConfig | BinsTokenizerConfig | FASTTokenizerConfig

KINDS: dict[str, type[Tokenizer | BinsTokenizer | FASTTokenizer]] = {
    "tokenizer": Tokenizer,
    "bins": BinsTokenizer,
    "fast": FASTTokenizer,
}


def build_tokenizer(config: ActionTokenizerConfig) -> ActionTokenizer:
    """The tokenizer that a configuration describes, before it has been trained or read."""
    if isinstance(config, BinsTokenizerConfig):
        return BinsTokenizer(config)
    return FASTTokenizer(config) if isinstance(config, FASTTokenizerConfig) else Tokenizer(config)


def load_tokenizer(source: str | Path) -> ActionTokenizer:
    """Read a saved tokenizer of any kind, ready for use; `source` as `models.pretrained.find_model` takes it.

    Raises:
        CheckpointError: the directory holds none, or a damaged or later one.
    """
    directory = find_model(source)
    kind = saved_kind(directory)
    if kind not in KINDS:
        raise CheckpointError(f"{directory / 'config.json'} describes {kind[:60]!r}, not a tokenizer: give the directory of one")
    return KINDS[kind].from_pretrained(directory)
