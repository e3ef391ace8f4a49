"""A policy in one file: an ONNX graph from observations to codes and chunk, run by ONNX Runtime. No torch."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from daps_robot.config import from_json
from daps_robot.control import Acting, check_obs_dims
from daps_robot.errors import CheckpointError, ConfigError, DataError
from daps_robot.types import JSON, PlanRequest

FORMAT, VERSION = "daps_robot/exported", 1
METADATA = "daps_robot"
"""Under which the file holds its `ExportedConfig`, as JSON."""

CHECKSUM = b"daps_robot.crc32"


@dataclass(frozen=True)
class ExportedConfig:
    """What an exported policy is.

    Attributes:
        policy: its kind before it was exported.
        decoding: how its codes are chosen; "" of a policy without codes.
        obs_keys: observation keys, in the order in which they are laid side by side.
        observation_dim, action_dim: o and a.
        history, horizon: n and h.
        execute: e, steps of a plan that it is meant to be executed for.
        weights: how many it had.
        made_by: versions of what exported it.
        run: of what its training run says of itself, what an evaluation needs: data set and environment.
        obs_dims: how many values each observation key has; () of a policy saved before that was kept.
    """

    policy: str
    decoding: str
    obs_keys: tuple[str, ...]
    observation_dim: int
    action_dim: int
    history: int
    horizon: int
    execute: int
    weights: int
    made_by: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    obs_dims: tuple[int, ...] = ()


class ExportedPolicy(Acting):
    """Plans as the policy that was exported does; `daps_robot.types.SizedPolicy`. Rows are planned one by one, on one thread."""

    kind = "exported"
    needs_expert = False
    cameras: tuple[str, ...] = ()
    picture_size: tuple[int, int] | None = None

    def __init__(self, path: str | Path) -> None:
        """Read a file that `scripts/export_policy.py` wrote.

        Raises:
            CheckpointError: it is missing, damaged, or not such a file.
            ConfigError: ONNX Runtime is not installed.
        """
        self.path = Path(path)
        self._session = _session(self.path)
        self.config = config = _config(self._session, self.path)
        self.obs_keys, self.history, self.horizon, self.execute = config.obs_keys, config.history, config.horizon, config.execute
        self.observation_dim, self.action_dim = config.observation_dim, config.action_dim
        self.obs_dims = dict(zip(config.obs_keys, config.obs_dims, strict=False))

    def decide(
        self, observations: Float[np.ndarray, "1 n o"]
    ) -> tuple[Int[np.ndarray, "1 l"] | None, Float[np.ndarray, "1 h a"]]:
        """The codes (None of a policy without) and the chunk of one observation history, in the environment's units.

        Raises:
            ConfigError: the observations are of another shape than the policy was made for.
            DataError: they are so large that the policy cannot tell what to do.
            CheckpointError: the graph cannot be computed.
        """
        wanted = (1, self.history, self.observation_dim)
        if observations.shape != wanted or observations.dtype != np.float32:
            raise ConfigError(
                f"{self.path} plans from float32 of {wanted}, not from {observations.dtype} of {observations.shape}"
            )
        try:
            *codes, chunk = self._session.run(None, {"observations": observations})
        except Exception as error:  # ONNX Runtime's own, of many kinds
            raise CheckpointError(f"{self.path} cannot be computed: export it anew ({_reason(error)})") from error
        if not np.isfinite(chunk).all():
            raise DataError("the observations overflow in the policy: they are far outside of those it was trained on")
        return (codes[0] if codes else None), chunk

    def plan(self, request: PlanRequest) -> Float[np.ndarray, "b h a"]:
        """Action chunks in the environment's units; see `daps_robot.types.Policy`."""
        return np.concatenate([self.decide(row[None])[1] for row in request.observations])


def _session(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(f"{path} is run by ONNX Runtime: pip install 'daps-robot[export]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # see `rollout.threads`
    options.log_severity_level = 3
    # A graph may name other files for its weights, which ONNX Runtime would look for where the program runs.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.absolute() / "nowhere"))
    try:
        model = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; give a file that export_policy.py wrote") from error
    if model != sealed(model[: -len(sealed(b""))]):
        raise CheckpointError(f"{path} is damaged, or export_policy.py did not write it: copy it again, or export anew")
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CheckpointError(f"{path} is not a readable ONNX file: copy it again, or export anew ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def sealed(model: bytes) -> bytes:
    """An ONNX model with the CRC-32 of its bytes behind it, as one more entry of its metadata (field 14 of ModelProto)."""
    value = f"{zlib.crc32(model):08x}".encode()
    entry = b"\x0a" + bytes([len(CHECKSUM)]) + CHECKSUM + b"\x12" + bytes([len(value)]) + value
    return model + b"\x72" + bytes([len(entry)]) + entry


def _config(session: Any, path: Path) -> ExportedConfig:
    """Raises CheckpointError where the file does not say what it is, or its graph is another."""
    try:
        values: JSON = json.loads(session.get_modelmeta().custom_metadata_map.get(METADATA, "{}"))
        if not isinstance(values, dict) or values.get("format") != FORMAT or values.get("version") != VERSION:
            raise CheckpointError(f"{path} is no exported policy that this version of daps_robot reads: export it anew")
        config = from_json(ExportedConfig, values.get("config", {}), str(path))
        check_obs_dims(config.obs_dims, config.obs_keys, config.observation_dim)
    except (ConfigError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} does not say what it holds: {error}") from error
    shapes = [("observations", [1, config.history, config.observation_dim]), ("chunk", [1, config.horizon, config.action_dim])]
    if config.decoding:
        codes = [each.shape for each in session.get_outputs() if each.name == "codes"]
        shapes.insert(1, ("codes", codes[0] if codes else []))
    found = [(each.name, each.shape) for each in (*session.get_inputs(), *session.get_outputs())]
    if found != shapes or not 1 <= config.execute <= config.horizon:
        raise CheckpointError(f"{path} holds another graph than it says ({found}): export it anew")
    return config
