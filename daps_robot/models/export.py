"""A policy as one ONNX graph: scaler, networks, the loop over code positions (unrolled, with its caches) and decoder."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from daps_robot.checkpoints import write_atomically
from daps_robot.config import to_json
from daps_robot.data.rotations import expand_quaternions
from daps_robot.errors import ConfigError
from daps_robot.exported import FORMAT, METADATA, VERSION, ExportedConfig, sealed
from daps_robot.models.policy import LatentPolicy
from daps_robot.models.regression import RegressionPolicy
from daps_robot.models.tokenizer import Tokenizer
from daps_robot.types import JSON, TrainedPolicy

DECODINGS = ("expected", "greedy")
"""Of a latent policy, those that draw nothing and follow one sequence."""


class Graph(nn.Module):
    """What is exported: one observation history (1 n o) → its codes (1 l), if the policy has codes, and its chunk (1 h a)."""

    def __init__(self, policy: LatentPolicy | RegressionPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observations: Tensor) -> tuple[Tensor, ...]:
        """The chunk is NaN where the square of what the networks see overflows, as it is or scaled: a graph cannot raise."""
        policy = self.policy
        seen = expand_quaternions(observations, policy.config.quaternions)
        if isinstance(policy, LatentPolicy):
            *codes, chunk = policy.decide(observations)
        else:
            codes, chunk = [], policy.action_scaler.denormalize(policy.decode(policy.scaler.normalize(seen)))
        finite = (seen.square().sum() + policy.scaler.normalize(seen).square().sum()).isfinite()
        return (*codes, torch.where(finite, chunk, torch.full_like(chunk, torch.nan)))


def export_policy(policy: TrainedPolicy, path: Path, run: JSON) -> None:
    """Write a policy to a file that `daps_robot.exported.ExportedPolicy` reads.

    Args:
        policy: a latent one with a learned tokenizer that decodes by one of DECODINGS, or one by regression.
        path: of the file.
        run: see `ExportedConfig.run`.

    Raises:
        ConfigError: a policy that cannot be exported, or a package that this needs is not installed.
        RunDirectoryError: the file cannot be written.
    """
    supported = exportable(policy)
    try:
        import onnxruntime  # noqa: F401 - to say now what reading the file would say
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"a policy cannot be exported here ({error}): pip install 'daps-robot[export]'") from error
    latent = isinstance(supported, LatentPolicy)
    config = ExportedConfig(
        policy=policy.kind,
        decoding=supported.config.decoding.method if isinstance(supported, LatentPolicy) else "",
        obs_keys=policy.obs_keys,
        observation_dim=policy.observation_dim,
        action_dim=policy.action_dim,
        history=policy.history,
        horizon=policy.horizon,
        execute=policy.execute,
        weights=sum(parameter.numel() for parameter in policy.parameters()),
        made_by={package: version(package) for package in ("daps-robot", "torch", "onnxscript")},
        run=run,
        obs_dims=tuple(policy.obs_dims.values()),
    )
    example = torch.zeros(1, policy.history, policy.observation_dim)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the exporter lists operators of torchvision, and what it leaves unfolded
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                Graph(copy.deepcopy(supported)).cpu().eval(),
                (example,),
                dynamo=True,
                verbose=False,
                input_names=["observations"],
                output_names=["codes", "chunk"] if latent else ["chunk"],
            )
    finally:
        logging.disable(before)
    assert program is not None
    program.model.metadata_props[METADATA] = json.dumps({"format": FORMAT, "version": VERSION, "config": to_json(config)})

    def write(temporary: Path) -> None:
        program.save(temporary, external_data=False)
        temporary.write_bytes(sealed(temporary.read_bytes()))

    write_atomically(path, write)


def exportable(policy: TrainedPolicy) -> LatentPolicy | RegressionPolicy:
    """The policy.

    Raises:
        ConfigError: it is none of those that can be exported.
    """
    if policy.cameras:
        raise ConfigError("a policy with cameras cannot be exported yet: only those of numbers alone")
    if isinstance(policy, RegressionPolicy):
        return policy
    if not isinstance(policy, LatentPolicy):
        raise ConfigError(f"a {policy.kind} policy cannot be exported: its plans are drawn, in a loop that is no graph")
    if not isinstance(policy.tokenizer, Tokenizer):
        raise ConfigError("a policy whose tokenizer is a table (bins, fast) cannot be exported: only those of learned tokenizers")
    if (method := policy.config.decoding.method) not in DECODINGS:
        raise ConfigError(f"--method {method} cannot be exported: take {' or '.join(DECODINGS)}")
    return policy
