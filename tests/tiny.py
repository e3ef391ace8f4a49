"""Models small enough to enumerate, and the enumeration."""

import itertools

import torch

from daps_robot.models.blocks import TransformerConfig
from daps_robot.models.code_model import CodeModel, CodeModelConfig
from daps_robot.models.decoders import ChunkDecoderConfig
from daps_robot.models.frontends import ChunkFrontEndConfig, ObservationFrontEndConfig
from daps_robot.models.likelihoods import LikelihoodConfig
from daps_robot.models.policy import DecodingConfig, LatentPolicy, PolicyConfig
from daps_robot.models.tokenizer import Tokenizer, TokenizerConfig

TRANSFORMER = TransformerConfig(width=16, heads=2, layers=2, mlp_ratio=2)


def make_code_model(autoregressive=True, positions=3, vocabulary=4, sharpness=6.0):
    """A random code model whose distributions are far from uniform."""
    model = CodeModel(CodeModelConfig(positions, vocabulary, autoregressive, TRANSFORMER)).eval()
    with torch.no_grad():
        model.head.weight *= sharpness
    return model


def make_memory(model, batch=2, tokens=5):
    """The prepared cross-attention memory of random inputs."""
    return model.prepare(torch.randn(batch, tokens, TRANSFORMER.width))


def all_sequences(positions, vocabulary):
    """(v^l, l) every code sequence."""
    return torch.tensor(list(itertools.product(range(vocabulary), repeat=positions)))


def enumerated_log_prob(model, memory, temperature=1.0):
    """(b, v^l) log-probability of every sequence, by teacher forcing."""
    codes = all_sequences(model.config.positions, model.config.vocabulary)
    codes = codes.expand(len(memory[0][0]), -1, -1)
    with torch.no_grad():
        conditionals = torch.log_softmax(model.logits(memory, codes).double() / temperature, -1)
    return conditionals.gather(-1, codes[..., None])[..., 0].sum(-1)


def tokenizer_config(
    positions=4, vocabulary=16, horizon=8, channels=3, observation=0, obs_keys=(), likelihood=None, autoregressive=True
):
    return TokenizerConfig(
        codes=CodeModelConfig(positions, vocabulary, autoregressive, TRANSFORMER),
        front_end=ChunkFrontEndConfig(horizon, channels, positions, TRANSFORMER),
        decoder=ChunkDecoderConfig(horizon, channels, observation, TRANSFORMER),
        likelihood=likelihood or LikelihoodConfig("gaussian", 0.1),
        obs_keys=obs_keys,
    )


def make_tokenizer(**changes):
    return Tokenizer(tokenizer_config(**changes)).eval()


def make_policy(decoding=None, history=2, observation=5, embedding_head=True, **changes):
    """A random policy whose distributions are far from uniform, greedy if not asked otherwise."""
    tokenizer = tokenizer_config(**changes)
    config = PolicyConfig(
        tokenizer=tokenizer,
        obs_keys=("state",),
        front_end=ObservationFrontEndConfig(history, observation, tokens_per_step=2, hidden=16, transformer=TRANSFORMER),
        codes=tokenizer.codes,
        decoding=decoding or DecodingConfig("greedy"),
        embedding_head=embedding_head,
    )
    policy = LatentPolicy(config).eval()
    with torch.no_grad():
        policy.code_model.head.scale.mul_(2) if embedding_head else policy.code_model.head.weight.mul_(6)
    return policy
