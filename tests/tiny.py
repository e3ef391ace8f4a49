"""Models small enough to enumerate, and the enumeration."""

import itertools

import numpy as np
import pytest
import torch

from daps_robot.data.chunks import ChunkDataset
from daps_robot.errors import ConfigError
from daps_robot.models.bc_rnn import BCRNNSettings
from daps_robot.models.blocks import TransformerConfig
from daps_robot.models.code_model import CodeModel, CodeModelConfig
from daps_robot.models.decoders import ChunkDecoderConfig
from daps_robot.models.diffusion import DiffusionSettings
from daps_robot.models.frontends import ChunkFrontEndConfig, ObservationFrontEndConfig
from daps_robot.models.likelihoods import LikelihoodConfig
from daps_robot.models.policies import POLICIES
from daps_robot.models.policy import DecodingConfig, LatentPolicy, PolicyConfig
from daps_robot.models.regression import RegressionSettings
from daps_robot.models.tokenizer import Tokenizer, TokenizerConfig
from daps_robot.types import Demo

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


SETTINGS = {
    "regression": RegressionSettings(history=2, horizon=8, execute=4, width=16, layers=1, heads=2, style=4),
    "diffusion": DiffusionSettings(history=2, horizon=8, widths=(16,), step_width=16, diffusion_steps=20, inference_steps=5),
    "bc-rnn-gmm": BCRNNSettings(history=4, width=16, layers=1, modes=3),
}
"""Small policies without a tokenizer, of every kind."""


def skip_without_extra(kind):
    try:
        POLICIES[kind].import_extra()
    except ConfigError as error:
        pytest.skip(str(error))


def demonstrations(count=4, steps=20):
    """An arm that follows what it sees, and a gripper that closes half way; observations and actions in odd units."""
    demos = []
    for i in range(count):
        rng = np.random.default_rng(i)
        walk = np.cumsum(rng.normal(size=(steps, 2)), axis=0)
        gripper = np.where(np.arange(steps) < steps // 2, -1.0, 1.0)
        actions = np.concatenate([200 + 50 * np.sin(walk), gripper[:, None]], axis=1)
        seen = np.concatenate([walk, gripper[:, None], rng.normal(size=(steps, 2))], axis=1)
        demos.append(Demo(f"demo_{i}", actions.astype(np.float32), {"state": (7 + 3 * seen).astype(np.float32)}))
    return demos


def make_imitation(kind, settings=None, demos=None):
    """An untrained policy of a kind for some demonstrations, and its windows; skips where it needs what is not installed."""
    skip_without_extra(kind)
    settings = settings or SETTINGS[kind]
    windows = ChunkDataset(demos or demonstrations(), ("state",), settings.horizon, settings.history)
    torch.manual_seed(0)
    return POLICIES[kind].for_data(settings, {"state": windows.observations.shape[1]}, windows).eval(), windows
