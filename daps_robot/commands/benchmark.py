"""Speed: a training step, a policy decision, a rollout. Prints figures; compares nothing by itself."""

from __future__ import annotations

import json
import os
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from torch import Tensor

from daps_robot.commands.distill_policy import newest_run
from daps_robot.commands.evaluate import RolloutConfig
from daps_robot.commands.train_image_tokenizer import Material, TrainImageTokenizer, read_motion_capture, read_pictures
from daps_robot.data.catalog import locate
from daps_robot.data.chunks import ChunkDataset
from daps_robot.data.demos import read_demos
from daps_robot.data.images import IMAGE_DATASETS
from daps_robot.data.normalize import Scaler
from daps_robot.errors import ConfigError, DataError
from daps_robot.estimators import ESTIMATORS
from daps_robot.estimators.parts import part_size_for
from daps_robot.estimators.score import decoder_update, encoder_update
from daps_robot.models.code_model import CodeModel
from daps_robot.models.policies import load_policy
from daps_robot.models.tokenizer import Inputs, Tokenizer
from daps_robot.presets import Preset, preset
from daps_robot.rollout.evaluate import evaluate
from daps_robot.rollout.latency import plan_latency
from daps_robot.rollout.threads import torch_threads
from daps_robot.training.optimizer import OptimizerConfig, clip_gradients, make_optimizer
from daps_robot.types import JSON, PlanRequest


@dataclass(frozen=True)
class Train:
    """Time training steps of a preset: steps/s, where a step's time goes, peak memory.

    Attributes:
        preset: mnist, cifar10, imagenet256, lafan, chunk16, chunk32, mnist-quick or cifar10-quick.
        batch_size: examples of a step; by default the preset's.
        estimator: which one to time, without a warm start.
        steps: timed steps, after 3 that are not counted.
        threads: torch's threads; by default all cores.
        device: "cpu" or "cuda".
        bfloat16: autocast to it.
        json: print one JSON object as the last line.
    """

    preset: str = "mnist"
    batch_size: int = 0
    estimator: str = "daps"
    steps: int = 20
    threads: int = 0
    device: Literal["cpu", "cuda"] = "cpu"
    bfloat16: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 0), ("threads", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} {getattr(self, name)} must be at least {least}")


@dataclass(frozen=True)
class Policy:
    """Time decisions of a trained policy: observation → action chunk, batch 1, one thread, in ms.

    Attributes:
        policy: directory of a policy's run; by default the newest.
        decisions: timed decisions.
        json: print one JSON object as the last line.
    """

    policy: Path | None = None
    decisions: int = 1000
    json: bool = False


@dataclass(frozen=True)
class Rollout:
    """Time rollouts of a trained policy against the bare simulator.

    Attributes:
        policy: directory of a policy's run; by default the newest.
        env: Gymnasium id.
        episodes: episodes played.
        workers: simulator processes; by default one a core.
        json: print one JSON object as the last line.
    """

    policy: Path | None = None
    env: str = "daps_robot/Lift-v0"
    episodes: int = 60
    workers: int | None = None
    json: bool = False


@dataclass(frozen=True)
class Benchmark:
    """Measure speed on this machine.

    Attributes:
        what: which part to time.
    """

    what: (
        Annotated[Train, tyro.conf.subcommand("train")]
        | Annotated[Policy, tyro.conf.subcommand("policy")]
        | Annotated[Rollout, tyro.conf.subcommand("rollout")]
    )


def run(config: Benchmark) -> JSON:
    """Time one part; its figures, printed too."""
    part = config.what
    figures = (
        time_training(part)
        if isinstance(part, Train)
        else (time_policy(part) if isinstance(part, Policy) else time_rollout(part))
    )
    for name, value in figures.items():
        print(f"{name:>24}  {value:.4g}" if isinstance(value, float) else f"{name:>24}  {value}")
    if part.json:
        print(json.dumps(figures))
    return figures


class Stopwatch:
    """Milliseconds of named parts of a step, over many steps."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.parts: dict[str, list[float]] = {}
        self.last = time.perf_counter()

    def lap(self, part: str) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.parts.setdefault(part, []).append(1e3 * (now - self.last))
        self.last = now


def time_training(config: Train) -> JSON:
    """Steps/s of the very loop body that training runs, on real data where it is present.

    The split comes from a second pass in which the parts of the step are timed one by one.
    """
    torch.manual_seed(0)
    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    chosen = preset(config.preset)
    batch_size = config.batch_size or chosen.batch_size
    material = training_data(config.preset, chosen)
    data = material.train
    estimator_class = ESTIMATORS[config.estimator]
    tokenizer = Tokenizer(estimator_class.tokenizer_config(chosen.tokenizer), material.scaler)
    estimator = estimator_class(
        tokenizer, estimator_class.configure(**{**chosen.settings, "warm_start_steps": 0}), total_steps=1000
    ).to(config.device)
    settings = OptimizerConfig()
    optimizer = make_optimizer(settings, estimator, dict(estimator.learning_rates))

    def gather(step: int) -> Inputs:
        index = torch.arange(step * batch_size, (step + 1) * batch_size) % len(data)
        return tokenizer.inputs(data.gather(index).to(config.device))

    def one_step(step: int) -> None:
        with torch.autocast(config.device, torch.bfloat16, enabled=config.bfloat16):
            loss = estimator.loss(gather(step), step).value
        loss.backward()
        clip_gradients(settings, optimizer)
        optimizer.step()
        optimizer.zero_grad()

    watch = Stopwatch(config.device)
    for step in range(3 + config.steps):
        one_step(step)
        watch.lap("warm-up" if step < 3 else "step")
    memory = (
        torch.cuda.max_memory_allocated() / 1e9
        if config.device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    )
    figures: JSON = {
        "preset": config.preset,
        "batch_size": batch_size,
        "estimator": config.estimator,
        "data": material.where,
        "precision": "bfloat16 autocast" if config.bfloat16 else "float32",
        "device": torch.cuda.get_device_name() if config.device == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "steps_per_second": 1e3 / statistics.median(watch.parts["step"]),
        "step_ms": statistics.median(watch.parts["step"]),
        "peak_memory_gb": memory,
    }
    figures |= time_parts(tokenizer, gather, config)
    figures["matmul_ms"] = matmul_ms(config.device)
    return figures


def time_parts(tokenizer: Tokenizer, gather: Callable[[int], Inputs], config: Train) -> JSON:
    """Medians of the parts of a DAPS step (K = 8), each run alone: data, sampling, the encoder's and the decoder's update."""
    posterior = tokenizer.posterior
    if not isinstance(posterior, CodeModel):
        return {}
    watch = Stopwatch(config.device)
    for step in range(max(5, config.steps // 3)):
        watch.lap("between")
        inputs = gather(step)
        watch.lap("data_ms")
        memory = tokenizer.prepare(inputs)
        positions = tokenizer.config.codes.positions
        z = tokenizer.draw(memory, torch.rand(len(inputs.x), 8, positions, device=config.device))
        watch.lap("sampling_ms")
        part = part_size_for(z.codes)
        encoder_update(posterior, torch.ones_like(z.log_prob[..., 0]), z.codes, memory, part).backward()
        watch.lap("encoder_ms")
        decoder_update(tokenizer, z.codes, inputs, part)[0].backward()
        watch.lap("decoder_ms")
    return {part: statistics.median(times) for part, times in watch.parts.items() if part != "between"}


def training_data(name: str, chosen: Preset) -> Material:
    """Examples for a preset: real ones where they are present, else random ones of its shape."""
    dataset = name.removesuffix("-quick")
    shape = chosen.tokenizer.front_end.shape
    try:
        if dataset == "lafan":
            return read_motion_capture(TrainImageTokenizer("lafan"), chosen)
        if dataset in IMAGE_DATASETS:
            return read_pictures(TrainImageTokenizer(dataset), chosen)
        lift = locate("lift") if name == "chunk16" else None
        if lift is not None:
            windows = ChunkDataset(read_demos(lift).demos, ("robot0_eef_pos",), 16)
            chunks = Examples(windows.gather(torch.arange(len(windows))).actions)
            return Material(str(lift), chunks, chunks, Scaler.fit(windows.actions.numpy()), None)
    except DataError as error:
        print(f"random data, for {error}")
    x = Examples(torch.rand(1024, *shape).round() if chosen.threshold is not None else torch.randn(1024, *shape))
    return Material(f"random, of {name}'s shape", x, x, Scaler.identity(shape[-1]), None)


class Examples:
    """Examples in memory."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def gather(self, index: Tensor) -> Tensor:
        return self.x[index]


def matmul_ms(device: str, size: int = 2048) -> float:
    """Median time of a float32 matrix product of this size, by which speeds of different machines can be compared."""
    a, b = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    watch = Stopwatch(device)
    for i in range(12):
        torch.mm(a, b)
        watch.lap("warm-up" if i < 2 else "matmul")
    return statistics.median(watch.parts["matmul"])


def time_policy(config: Policy) -> JSON:
    """Latency of `policy.plan`: everything from observations to actions."""
    policy = load_policy((config.policy or newest_run("policy", None)) / "model")
    rng = np.random.default_rng(0)
    observations = rng.standard_normal((64, policy.history, policy.observation_dim)).astype(np.float32)
    latency = plan_latency(policy, observations, n=config.decisions)
    batch = PlanRequest(np.repeat(observations[:1], 20, axis=0), np.arange(20))
    watch = Stopwatch("cpu")
    with torch_threads(1):
        for _ in range(30):
            policy.plan(batch)
            watch.lap("plan")
    return {
        "p50_ms": latency.p50,
        "p99_ms": latency.p99,
        "batch_of_20_ms": statistics.median(watch.parts["plan"]),
        "parameters": sum(p.numel() for p in policy.parameters()),
        "matmul_ms": matmul_ms("cpu"),
    }


def time_rollout(config: Rollout) -> JSON:
    """What policy and bookkeeping add to the bare simulator's time."""
    policy = load_policy((config.policy or newest_run("policy", None)) / "model")
    shipped = RolloutConfig()
    played = evaluate(
        config.env,
        policy,
        first_seed=shipped.first_seed,
        episodes=config.episodes,
        execute=policy.execute,
        slots=shipped.slots,
        workers=config.workers,
        progress=False,
    )
    steps = sum(record.length for record in played.records)
    return {
        "episodes": played.episodes,
        "control_steps": steps,
        "steps_per_second": steps / played.seconds.total,
        "simulator_seconds": played.seconds.simulator,
        "policy_seconds": played.seconds.policy,
        "total_seconds": played.seconds.total,
        "overhead": played.seconds.overhead,
        "success_rate": played.success_rate,
    }
