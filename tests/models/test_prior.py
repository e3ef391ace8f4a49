"""A prior over a tokenizer's codes given a class."""

import pytest
import torch
from tiny import TRANSFORMER, all_sequences, tokenizer_config

from daps_robot.errors import CheckpointError, ConfigError
from daps_robot.models.code_model import CodeModelConfig
from daps_robot.models.frontends import LabelFrontEndConfig
from daps_robot.models.prior import CodePrior, CodePriorConfig


def make_prior(classes=("cat", "dog"), positions=3, vocabulary=4):
    tokenizer = tokenizer_config(positions=positions, vocabulary=vocabulary, horizon=6)
    return CodePrior(
        CodePriorConfig(
            tokenizer=tokenizer,
            front_end=LabelFrontEndConfig(len(classes), transformer=TRANSFORMER),
            codes=CodeModelConfig(positions, vocabulary, True, TRANSFORMER),
            classes=classes,
        )
    ).eval()


def test_it_is_a_distribution_for_each_class():
    prior = make_prior()
    labels = torch.tensor([0, 1])
    codes = all_sequences(3, 4).expand(2, -1, -1)
    with torch.no_grad():
        log_prob = prior.log_prob(labels, codes).sum(-1)
    assert log_prob.exp().sum(-1).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert not torch.allclose(log_prob[0], log_prob[1])


def test_samples_follow_it():
    prior = make_prior()
    n = 20_000
    torch.manual_seed(0)
    chunks = prior.sample(torch.tensor([1]), torch.rand(1, n, 3))
    assert chunks.shape == (1, n, 6, 3)
    sequences = all_sequences(3, 4)
    with torch.no_grad():
        expected = prior.log_prob(torch.tensor([1]), sequences[None]).sum(-1).exp()[0]
        of_each = prior.tokenizer.decode(sequences[None])[0]
        mean = torch.einsum("s,sha->ha", expected, of_each)
    assert torch.allclose(chunks[0].mean(0), mean, atol=5 * float(of_each.std()) / n**0.5)


def test_a_label_of_no_class_is_refused():
    with pytest.raises(ConfigError, match="knows 0 to 1"):
        make_prior().sample(torch.tensor([2]), torch.rand(1, 1, 3))


def test_names_and_codes_must_fit():
    with pytest.raises(ConfigError, match="1 names for 2 classes"):
        CodePriorConfig(
            tokenizer=tokenizer_config(), front_end=LabelFrontEndConfig(2), codes=CodeModelConfig(4, 16), classes=("a",)
        )
    with pytest.raises(ConfigError, match="its tokenizer has 4 of 16"):
        CodePriorConfig(
            tokenizer=tokenizer_config(), front_end=LabelFrontEndConfig(1), codes=CodeModelConfig(3, 16), classes=("a",)
        )


def test_a_saved_prior_samples_the_same(tmp_path):
    prior = make_prior()
    prior.save_pretrained(tmp_path)
    again = CodePrior.from_pretrained(tmp_path)
    labels, uniforms = torch.tensor([0, 1]), torch.rand(2, 4, 3)
    assert torch.equal(again.sample(labels, uniforms), prior.sample(labels, uniforms))
    assert again.config.classes == ("cat", "dog")


def test_a_tokenizer_is_no_prior(tmp_path):
    make_prior().tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="not a prior"):
        CodePrior.from_pretrained(tmp_path)
