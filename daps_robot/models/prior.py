"""CodePrior: a class label → codes → data: what a tokenizer's codes look like, class by class.

y ──front end──► p(z|y) ──codes──► the tokenizer's embedding and decoder ──► x
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from daps_robot.errors import ConfigError
from daps_robot.models.code_model import CodeModel, CodeModelConfig, EmbeddingHead, Memory
from daps_robot.models.frontends import LabelFrontEnd, LabelFrontEndConfig
from daps_robot.models.pretrained import find_model, load_pretrained, restore, save_pretrained
from daps_robot.models.sampling import sample
from daps_robot.models.tokenizer import Tokenizer, TokenizerConfig


@dataclass(frozen=True)
class CodePriorConfig:
    """A prior over a tokenizer's codes given a class.

    Attributes:
        tokenizer: the tokenizer's configuration; positions and vocabulary must be its own.
        front_end: from labels to memory tokens.
        codes: the code model p(z|y).
        classes: names of the classes.
    """

    tokenizer: TokenizerConfig
    front_end: LabelFrontEndConfig = field(default_factory=LabelFrontEndConfig)
    codes: CodeModelConfig = field(default_factory=CodeModelConfig)
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        own, theirs = self.codes, self.tokenizer.codes
        if (own.positions, own.vocabulary) != (theirs.positions, theirs.vocabulary):
            raise ConfigError(
                f"the prior predicts {own.positions} codes of {own.vocabulary}, "
                f"its tokenizer has {theirs.positions} of {theirs.vocabulary}"
            )
        if len(self.classes) != self.front_end.classes:
            raise ConfigError(f"{len(self.classes)} names for {self.front_end.classes} classes")


class CodePrior(nn.Module):
    """p(z|y), with the tokenizer whose codes these are."""

    def __init__(self, config: CodePriorConfig, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = (tokenizer or Tokenizer(config.tokenizer)).requires_grad_(False)
        self.front_end = LabelFrontEnd(config.front_end)
        self.code_model = CodeModel(config.codes)
        self.code_model.head = EmbeddingHead(config.codes.transformer.width, self.tokenizer.embedding.weight)

    def prepare(self, labels: Int[Tensor, " b"]) -> Memory:
        """Encode labels once, for whatever is then drawn or scored."""
        return self.code_model.prepare(self.front_end(labels))

    def log_prob(self, labels: Int[Tensor, " b"], codes: Int[Tensor, "b k l"]) -> Float[Tensor, "b k l"]:
        """log p(z_i | z_<i, y) in nats of every position."""
        return self.code_model.log_prob(self.prepare(labels), codes)

    @torch.no_grad()
    def sample(
        self, labels: Int[Tensor, " b"], uniforms: Float[Tensor, "b k l"], temperature: float = 1.0
    ) -> Float[Tensor, "b k *x"]:
        """k examples of each label in the data's units, by the given noise.

        Raises:
            ConfigError: a label is that of no class, or the temperature is not positive.
        """
        if labels.numel() and not 0 <= labels.min() <= labels.max() < len(self.config.classes):
            raise ConfigError(
                f"labels from {int(labels.min())} to {int(labels.max())}: this prior knows 0 to {len(self.config.classes) - 1}"
            )
        return self.tokenizer.decode(sample(self.code_model, self.prepare(labels), uniforms, temperature).codes)

    def save_pretrained(self, directory: Path) -> None:
        """Write everything that sampling needs, the tokenizer included."""
        save_pretrained(self, self.config, "prior", directory)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> CodePrior:
        """Read a saved prior, ready for use; `source` as `find_model` takes it.

        Raises:
            CheckpointError: the directory holds none, or a damaged or later one.
        """
        directory = find_model(source)
        config, tensors = load_pretrained(CodePriorConfig, "prior", directory)
        return restore(lambda: cls(config), tensors, directory)
