"""A small finished run: untrained models, made-up demonstrations, and the files that training and evaluation would leave."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from daps_robot.config import to_json
from daps_robot.data.demos import DemoSet, read_demos
from daps_robot.models.blocks import TransformerConfig
from daps_robot.models.code_model import CodeModelConfig
from daps_robot.models.decoders import ChunkDecoderConfig
from daps_robot.models.frontends import ChunkFrontEndConfig, ObservationFrontEndConfig
from daps_robot.models.likelihoods import LikelihoodConfig
from daps_robot.models.policy import DecodingConfig, LatentPolicy, PolicyConfig
from daps_robot.models.tokenizer import TokenizerConfig

HORIZON, ACTIONS, OBSERVATIONS = 4, 3, 5


@dataclass
class SmallRun:
    """What `write_page` is called with; `report` is written to disk by `save`."""

    out: Path
    policy: LatentPolicy
    demos: DemoSet
    report: dict[str, Any]

    def save(self) -> None:
        (self.out / "report.json").write_text(json.dumps(self.report))


def write_demos(path: Path) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for i in range(6):
            steps = 11 + i
            demo = file.create_group(f"data/demo_{i}")
            demo["actions"] = rng.normal(size=(steps, ACTIONS)).astype(np.float32)
            demo["obs/state"] = rng.normal(size=(steps, OBSERVATIONS)).astype(np.float32)
        file["mask/valid"] = np.array([b"demo_4", b"demo_5"])


def small_policy() -> LatentPolicy:
    torch.manual_seed(0)
    size = TransformerConfig(width=16, heads=2, layers=1)
    codes = CodeModelConfig(positions=2, vocabulary=8, transformer=size)
    tokenizer = TokenizerConfig(
        codes=codes,
        front_end=ChunkFrontEndConfig(HORIZON, ACTIONS, 2, size),
        decoder=ChunkDecoderConfig(HORIZON, ACTIONS, transformer=size),
        likelihood=LikelihoodConfig("gaussian", 0.1),
    )
    front_end = ObservationFrontEndConfig(2, OBSERVATIONS, transformer=size)
    return LatentPolicy(PolicyConfig(tokenizer, ("state",), front_end, codes)).eval()


def metric_rows() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Of the tokenizer (ten steps of warm start) and of the policy."""
    tokenizer: list[dict[str, Any]] = []
    for step in range(2, 21, 2):
        row: dict[str, Any] = {"step": step, "split": "train", "loss": 9.0, "reconstruction": 40.0 - step}
        if step > 10:
            row |= {"elbo_beta": step - 45.0, "ess": 2.6, "eta": 100.0 / step, "beta": 0.05 / step, "distinct": 7.0}
            row["entropy"] = 3.0
        tokenizer.append(row)
        if step % 10 == 0:
            valid = {"reconstruction": 42.0 - step, "elbo": -50.0 + step, "kl": 2.0, "entropy": 2.1, "perplexity": 4.5}
            tokenizer.append({"step": step, "split": "valid", **valid})
    policy: list[dict[str, Any]] = []
    for step in (5, 10):
        policy.append({"step": step, "split": "train", "nll": 4.0 - step / 10})
        valid = {"nll": 4.1 - step / 10, "chunk_error": 0.9 - step / 100, "accuracy/0": 0.3, "accuracy/1": 0.4}
        policy.append({"step": step, "split": "valid", **valid})
    return tokenizer, policy


def small_report(out: Path, demos: DemoSet) -> dict[str, Any]:
    records = [
        {
            "index": i,
            "seed": 10**9 + i,
            "success": i != 3,
            "length": 40 if i == 3 else 20 + i,
            "plans": 9,
            "clipped": 0,
            "name": None,
        }
        for i in range(8)
    ]
    rollouts = {
        "env_id": "somewhere/Push-v0",
        "mean_success_length": 23.571428571428573,
        "clipped_action_values": 2,
        "overhead": 0.16221,
        "settings": {"max_steps": 40, "execute": 2, "horizon": HORIZON},
        "videos": ["elsewhere/videos/episode_000_success.mp4", "elsewhere/videos/episode_003_failure.mp4"],
        "video_note": None,
        "records": records,
    }
    return {
        "dataset": {"path": str(demos.path), "sha256": demos.sha256, "demonstrations": 6},
        "bits_per_chunk": 6.0,
        "reconstruction_rmse": [0.91, 0.92, 0.93],
        "reconstruction_rmse_sample": [1.01, 1.02, 1.03],
        "policy_rmse": [1.05, 1.06, 1.07],
        "policy_error": 0.3141,
        "reconstruction_error": 0.0271,
        "other_codes_rmse": [1.11, 1.12, 1.13],
        "code_perplexity": 4.567,
        "policy_parameters": 12345,
        "success_rate": 0.875,
        "successes": 7,
        "episodes": 8,
        "ci95": [0.5291, 0.9776],
        "policy_latency_ms": {"p50": 3.4026, "p99": 7.9044},
        "tokenizer_ceiling": 0.98,
        "tokenizer_ceiling_ci95": [0.8950, 0.9965],
        "short_episode_steps": 100,
        "ceiling_in_short_episodes": 0.98,
        "other_codes_ceiling": 0.06,
        "replay_success": {"tokenized": 0.85, "plain": 0.95},
        "rollouts": rollouts,
        "seconds": {"tokenizer": 148.548, "rollouts": 22.359},
        "versions": {"torch": "2.0", "robosuite": None},
        "configuration": {
            "evaluate": {"policy": str(out / "policy"), "decoding": to_json(DecodingConfig("sample", 0.7))},
            "policy": {"tokenizer": str(out / "tokenizer")},
            "tokenizer": {"command": {"settings": {"k": 8, "ess_target": 0.33}}},
        },
    }


def make_run(folder: Path) -> SmallRun:
    """A complete run in <folder>/run, of the demonstrations in <folder>/demos.hdf5."""
    out = folder / "run"
    write_demos(folder / "demos.hdf5")
    demos, policy = read_demos(folder / "demos.hdf5"), small_policy()
    policy.save_pretrained(out / "policy" / "model")
    (out / "tokenizer").mkdir()
    for name, rows in zip(("tokenizer", "policy"), metric_rows(), strict=True):
        (out / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (out / "videos").mkdir()
    for name in ("episode_000_success.mp4", "episode_003_failure.mp4"):
        (out / "videos" / name).write_bytes(b"not really a film")
    run = SmallRun(out, policy, demos, small_report(out, demos))
    run.save()
    return run
