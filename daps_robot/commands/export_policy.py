"""Export a policy to one file, check it against the saved one, and time both."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, sleep

import numpy as np
import torch
from jaxtyping import Float

from daps_robot.atomic import rename_whole
from daps_robot.commands.distill_policy import check_trained_on, env_in, newest_run, run_description
from daps_robot.commands.train_action_vae import split
from daps_robot.control import Controller
from daps_robot.data.catalog import dataset_name, fetch
from daps_robot.data.demos import read_demos
from daps_robot.errors import CheckpointError, ConfigError, RunDirectoryError
from daps_robot.exported import ExportedPolicy
from daps_robot.models.export import export_policy, exportable
from daps_robot.models.policies import load_policy
from daps_robot.models.policy import DecodingConfig, LatentPolicy
from daps_robot.models.regression import RegressionPolicy
from daps_robot.rollout.statistics import percentiles
from daps_robot.rollout.threads import torch_threads
from daps_robot.types import JSON, PlanRequest, SizedPolicy

TOLERANCE = 1e-5
"""Nats by which two codes may differ to be a tie; and of chunks, in action units, or relative where actions are larger than 1."""

WARMUP, BLOCK = 20, 50
"""Calls of a policy before those of a block, and of a block; a fifth as many at the pace of a loop."""

RATE = 20
"""Ticks per second of that loop."""


@dataclass(frozen=True)
class ExportPolicy:
    """Export a policy to one ONNX file that acts without torch, check it on real observations, and time both.

    Attributes:
        policy: directory of the run of a latent or a regression policy; by default the newest latent one (of the data set, if one
            is named).
        dataset: to check on: a name of the catalogue, a robomimic HDF5 file or a LeRobot folder; by default the one that the
            policy was trained on.
        out: the file; by default exported.onnx in the policy's run.
        overwrite: replace a file that is there.
        observations: held-out ones to check on.
        calls: that plan, to be timed back to back (in blocks of 50, each followed by ten at 20 Hz).
        decoding: how a latent policy chooses codes; expected and greedy can be exported.
    """

    policy: Path | None = None
    dataset: str | None = None
    out: Path | None = None
    overwrite: bool = False
    observations: int = 256
    calls: int = 300
    decoding: DecodingConfig = field(default_factory=DecodingConfig)

    def __post_init__(self) -> None:
        if self.observations < 1 or self.calls < 1:
            raise ConfigError("--observations and --calls count from 1")
        if self.out is not None and self.out.suffix != ".onnx":
            raise ConfigError(f"--out {self.out} is to be an ONNX file: give it the ending .onnx")


def run(config: ExportPolicy) -> JSON:
    """Export; what was found: `file`, `observations`, `ties`, `chunk_error`, and `latency_ms` of both.

    Raises:
        CheckpointError: the file does not plan as the saved policy does; it is then not left there.
    """
    name = dataset_name(config.dataset) if config.dataset else None
    policy_run = config.policy or newest_run("policy", name)
    out = config.out or policy_run / "exported.onnx"
    if out.exists() and not config.overwrite:
        raise RunDirectoryError(f"{out} is there already: --overwrite replaces it, --out names another file")
    out.parent.mkdir(parents=True, exist_ok=True)
    saved = load_policy(policy_run / "model")
    if isinstance(saved, LatentPolicy):
        saved = saved.with_decoding(config.decoding)
    policy = exportable(saved)
    description = run_description(policy_run)
    demos = read_demos(fetch(config.dataset or description["dataset"]["path"]), policy.obs_keys)
    check_trained_on(saved, policy_run, demos)
    _, valid = split(demos, policy.horizon, policy.history)
    spread = torch.linspace(0, len(valid) - 1, min(config.observations, len(valid))).long()
    observations = valid.gather(spread).observations.numpy()
    unchecked = out.with_suffix(".unchecked.onnx")
    try:
        export_policy(saved, unchecked, {"dataset": description["dataset"], "command": {"env": env_in(description)}})
        exported = ExportedPolicy(unchecked)
        with torch_threads(1):
            report = compare(policy, exported, observations)
            latency = act_latency({"saved": saved, "exported": exported}, observations[:, -1], config.calls)
        rename_whole(unchecked, out)
    finally:
        unchecked.unlink(missing_ok=True)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB; plans as {policy_run} does on {len(observations)} held-out observations")
    print(f"  largest difference of an action {report['chunk_error']:.1e}, {report['ties']} ties between codes")
    for which, figures in latency.items():
        for pace, text in (("", "back to back"), ("_paced", f"at {RATE} Hz")):
            median, tail = figures[f"p50{pace}"], figures[f"p99{pace}"]
            print(f"  {which}: an act that plans takes {median:.2f} ms (median), {tail:.2f} ms (99th percentile) {text}")
    return {"file": str(out), "observations": len(observations), **report, "latency_ms": latency}


@torch.no_grad()
def compare(
    policy: LatentPolicy | RegressionPolicy, exported: ExportedPolicy, observations: Float[np.ndarray, "m n o"]
) -> dict[str, float]:
    """Both policies, one observation after the other: `ties` between codes, and the largest `chunk_error` where there is none.

    Raises:
        CheckpointError: they choose other codes that are no tie, or chunks differ by more than TOLERANCE.
    """
    ties, largest = 0, 0.0
    for index, row in enumerate(observations):
        codes, chunk = exported.decide(row[None])
        seen = torch.from_numpy(row[None])
        if isinstance(policy, LatentPolicy):
            assert codes is not None
            own, chunks = policy.decide(seen)
            if (position := (own != torch.from_numpy(codes))[0].nonzero()).numel():
                both = policy.log_prob(seen, torch.stack([own, torch.from_numpy(codes)], dim=1))[0, :, int(position[0])]
                if float((both[0] - both[1]).abs()) > TOLERANCE:
                    raise CheckpointError(
                        f"the exported policy chooses other codes for observation {index}: {codes[0].tolist()}, "
                        f"the saved one {own[0].tolist()}; it was not kept"
                    )
                ties += 1
                continue
            planned = chunks.numpy()
        else:
            planned = policy.plan(PlanRequest(row[None], np.zeros(1, np.int64)))
        error = float((np.abs(chunk - planned) / np.maximum(1.0, np.abs(planned).max((0, 1)))).max())
        if not error <= TOLERANCE:
            raise CheckpointError(f"the exported policy's plan for observation {index} differs by {error:.1e}; it was not kept")
        largest = max(largest, error)
    return {"ties": ties, "chunk_error": largest}


def act_latency(
    policies: dict[str, SizedPolicy], observations: Float[np.ndarray, "m o"], calls: int
) -> dict[str, dict[str, float]]:
    """Milliseconds of `act` where it plans: `p50` and `p99` of calls back to back, `p50_paced` and `p99_paced` of a loop at RATE.

    Between two ticks of a loop the processor sleeps and its caches go to others, which back to back does not show. The policies
    take turns, block by block, so that a slow minute of the machine meets all of them.
    """
    controllers = {name: Controller(policy, execute=1) for name, policy in policies.items()}
    times: dict[str, dict[str, list[float]]] = {name: {"": [], "_paced": []} for name in policies}
    for block in range(math.ceil(calls / BLOCK)):
        for name, controller in controllers.items():
            paces = [("warm-up", WARMUP, 0.0), ("", BLOCK, 0.0), ("_paced", BLOCK // 5, 1 / RATE)]
            for pace, ticks, pause in paces:
                for tick in range(ticks):
                    sleep(pause)
                    start = perf_counter()
                    controller.act(observations[(block * BLOCK + tick) % len(observations)])
                    times[name].setdefault(pace, []).append(1000.0 * (perf_counter() - start))
    return {
        name: {f"{p}{pace}": value for pace in ("", "_paced") for p, value in percentiles(of[pace], (50, 99)).items()}
        for name, of in times.items()
    }
