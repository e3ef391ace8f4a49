"""Train a tokenizer of pictures or motion capture: the same networks, estimators and trainer as for action chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from daps_robot import parallel
from daps_robot.commands.cli import given
from daps_robot.config import save_json
from daps_robot.data.images import IMAGE_DATASETS, ImageDataset, ImageTransform, read_images
from daps_robot.data.motion import CHANNELS, read_motion
from daps_robot.data.normalize import Scaler
from daps_robot.data.pictures import check, digest
from daps_robot.errors import ConfigError, DataError
from daps_robot.estimators import ESTIMATORS, DAPSConfig, EstimatorConfig
from daps_robot.models.tokenizer import Tokenizer
from daps_robot.presets import Preset, picture_preset, preset
from daps_robot.registry import unknown_name
from daps_robot.report.fid import ReconstructionFID
from daps_robot.report.image_page import write_image_page
from daps_robot.report.image_plots import ImageExamples, save_examples_png
from daps_robot.training.image_metrics import ImageMetrics, bits_per_dimension
from daps_robot.training.loop import NO_STEP
from daps_robot.training.motion_metrics import MotionMetrics
from daps_robot.training.objective import TrainerConfig
from daps_robot.training.optimizer import OptimizerConfig
from daps_robot.training.stream import Batches, step_seed
from daps_robot.training.tokenizer import Measure, TokenizerObjective, evaluate_tokenizer, examples_at_a_time
from daps_robot.training.trainer import Trainer
from daps_robot.types import JSON

SCALED_ON = 512
"""Training pictures, evenly spaced, whose pixels the scaler is fitted to."""
SHOWN = 24
"""Held-out pictures on the page."""


@dataclass(frozen=True)
class PicturesConfig:
    """The pictures.

    Attributes:
        data: where they lie; by default looked for in the folder that DAPS_ROBOT_DATA names, then in ./data.
        size: height and width of pictures from a folder, in pixels.
        flip: in training, mirror half of them.
        dequantise: train on (x + u)/256 with uniform noise u, which makes the ELBO a bound in bits per dimension.
        alpha: what lies below transparent pixels; by default pictures that have such are refused.
        enlarge: take pictures smaller than the size.
        skip_damaged: leave out pictures that cannot be read, and say how many.
        download: fetch MNIST or CIFAR-10 into ./data where it is not there.
        fid_weights: torch-fidelity's Inception weights, with which the last validation measures rFID too (extra `fid`).
        validate_on: held-out examples, evenly spaced, of the validations during training; 0 takes all.
        evaluate_on: as many of the evaluation at the end; 0 takes all.
    """

    data: Path | None = None
    size: int | None = None
    flip: bool = False
    dequantise: bool = False
    alpha: Literal["white", "black"] | None = None
    enlarge: bool = False
    skip_damaged: bool = False
    download: bool = False
    fid_weights: Path | None = None
    validate_on: int = 1000
    evaluate_on: int = 0

    def __post_init__(self) -> None:
        if min(self.validate_on, self.evaluate_on) < 0:
            raise ConfigError("validate_on and evaluate_on count examples; 0 takes all")


@dataclass(frozen=True)
class TrainImageTokenizer:
    """Train a tokenizer of pictures (mnist, mnist-10k, cifar10, imagenet256, folder) or of motion capture (lafan).

    Attributes:
        dataset: mnist, mnist-10k, cifar10, imagenet256, lafan, or folder (any directory of pictures, with --data and --size).
        preset: networks and settings; by default those named like the data set. mnist-quick and cifar10-quick are sized for two
            processor cores.
        out: directory of the run; by default runs/<preset, else data set>/tokenizer.
        resume: go on with an interrupted run in that directory.
        overwrite: throw a run away that is in that directory.
        estimator: how the encoder learns through the codes; with --help after it, its settings.
        pictures: what to train on.
        settings: of the estimator; by default the preset's, with a warm start of 6/7 of the steps at most.
        trainer: how long; by default the preset's.
    """

    dataset: str = "mnist"
    preset: str | None = None
    out: Path | None = None
    resume: bool = False
    overwrite: bool = False
    estimator: str = "daps"
    pictures: PicturesConfig = field(default_factory=PicturesConfig)
    settings: EstimatorConfig = field(default_factory=DAPSConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    @classmethod
    def default(cls, arguments: Sequence[str]) -> TrainImageTokenizer:
        """What the command line changes: settings are those of the preset and of the estimator that it names."""
        estimator = given(arguments, "--estimator") or cls.estimator
        dataset, name, size = (given(arguments, option) for option in ("--dataset", "--preset", "--size"))
        chosen = choose_preset(dataset or cls.dataset, name, int(size) if size and size.isdecimal() else None)
        asked = given(arguments, "--max-steps")
        steps = int(asked) if asked and asked.isdecimal() else chosen.steps
        warm_start = min(chosen.settings["warm_start_steps"], 6 * steps // 7)
        settings = ESTIMATORS[estimator].configure(**{**chosen.settings, "warm_start_steps": warm_start})
        optimizer = OptimizerConfig(lr=chosen.lr, ema=chosen.ema)
        every = max(1, min(5000, steps // 10))
        trainer = TrainerConfig(max_steps=steps, batch_size=chosen.batch_size, eval_every=every, optimizer=optimizer)
        return cls(estimator=estimator, settings=settings, trainer=trainer)


def choose_preset(dataset: str, name: str | None, size: int | None) -> Preset:
    """The preset of a name, else of a data set; of a folder, by the size of its pictures."""
    if dataset not in (*IMAGE_DATASETS, "lafan"):
        raise unknown_name("data set of pictures or motion", dataset, [*IMAGE_DATASETS, "lafan"])
    if name is None and dataset == "folder":
        return picture_preset(64 if size is None else size)
    return preset(name or dataset.removesuffix("-10k"))


class Material(NamedTuple):
    """What to train on.

    Attributes:
        where: what it is, for people.
        train, valid: examples (b *x) in the data's units.
        scaler: fitted to the training examples.
        measure: makes what validations measure besides, if anything.
        identity: changes with the pictures.
    """

    where: str
    train: Batches
    valid: Batches
    scaler: Scaler
    measure: Callable[[], Measure] | None
    identity: str = ""


def run(config: TrainImageTokenizer) -> JSON:
    """Train, measure on all that is held out, write report.json and a page; the figures. The tokenizer lies in <out>/model."""
    chosen = choose_preset(config.dataset, config.preset, config.pictures.size)
    if config.dataset == "lafan" and config.pictures != PicturesConfig(
        data=config.pictures.data, validate_on=config.pictures.validate_on, evaluate_on=config.pictures.evaluate_on
    ):
        raise ConfigError("motion takes none of the options of pictures but --data, --validate-on and --evaluate-on")
    if config.pictures.download and parallel.launched() > 1:
        raise ConfigError("download with one process first: several would write the same file")
    fid = ReconstructionFID(config.pictures.fid_weights) if config.pictures.fid_weights else None  # what it lacks shows at once
    material = read_motion_capture(config, chosen) if config.dataset == "lafan" else read_pictures(config, chosen)
    if fid is not None and (chosen.tokenizer.front_end.channels != 3 or len(material.valid) < 2):
        raise ConfigError("rFID is of two or more colour pictures: leave out --fid-weights")
    out = config.out or Path("runs") / (config.preset or config.dataset) / "tokenizer"
    kind = ESTIMATORS[config.estimator]
    torch.manual_seed(config.trainer.seed)
    tokenizer = Tokenizer(kind.tokenizer_config(chosen.tokenizer), material.scaler)
    estimator = kind(tokenizer, config.settings, config.trainer.max_steps)
    print(
        f"{config.estimator} on {material.where}: {len(material.train)} examples, {len(material.valid)} held out; "
        f"{tokenizer.bits:.0f} bits for {np.prod(chosen.tokenizer.front_end.shape)} numbers",
        flush=True,
    )
    seen = evenly(material.valid, config.pictures.validate_on)
    objective = TokenizerObjective(tokenizer, estimator, seen, material.measure)
    command = replace(config, out=None, resume=False, overwrite=False)
    description = {"command": command, "dataset": {"path": material.where, "identity": material.identity}}
    Trainer(config.trainer, out, description).fit(objective, material.train, config.resume, config.overwrite)

    held_out = evenly(material.valid, config.pictures.evaluate_on)
    best = Tokenizer.from_pretrained(out / "model").to(tokenizer.scaler.shift.device)
    torch.manual_seed(step_seed(config.trainer.seed, NO_STEP))
    beta_end = estimator.beta(config.trainer.max_steps)
    codes = best.config.codes
    usage = torch.zeros(codes.positions, codes.vocabulary, dtype=torch.long, device=best.scaler.shift.device)
    facts: JSON = {
        "estimator": config.estimator,
        "dataset": config.dataset,
        "bits": best.bits,
        "positions": codes.positions,
        "vocabulary": codes.vocabulary,
        "shape": best.config.front_end.shape,
        "where": material.where,
        "held_out": len(held_out),
        "threshold": chosen.threshold,
        **evaluate_tokenizer(best, held_out, beta_end, material.measure, usage),
    }
    if config.pictures.dequantise and "elbo" in facts:
        noisy = evaluate_tokenizer(best, Dequantised(held_out), beta_end)
        log_scale = float(best.scaler.scale.log().mean())
        facts["bits_per_dimension"] = bits_per_dimension(noisy["elbo"], int(np.prod(facts["shape"])), log_scale)
    if parallel.is_main():
        save_json(facts, out / "report.json")
        if fid is not None:
            facts["rfid"] = measured_fid(fid, best, held_out)
            save_json(facts, out / "report.json")
        if config.dataset != "lafan":
            examples = examples_of(best, held_out)
            print(save_examples_png(examples, out / "examples.png"))
            print(write_image_page(out, facts, examples, usage.cpu().numpy()))
    print(summary(facts))
    print(f"tokenizer in {out}")
    return facts


def read_pictures(config: TrainImageTokenizer, chosen: Preset) -> Material:
    """Pictures by the name of their data set."""
    pictures = config.pictures
    splits = read_images(
        config.dataset,
        pictures.data,
        pictures.size,
        alpha=pictures.alpha,
        enlarge=pictures.enlarge,
        skip_damaged=pictures.skip_damaged,
        download=pictures.download,
    )
    shape = chosen.tokenizer.front_end.shape
    if splits.train.shape != shape:
        raise ConfigError(f"the preset takes pictures of shape {shape}, {splits.train.where} has {splits.train.shape}")
    if config.dataset in ("folder", "imagenet256") and not pictures.skip_damaged:
        bad = check(splits.valid)  # now, not when a long training ends
        if bad.bad:
            raise DataError(f"{bad.bad} of {len(splits.valid)} held-out pictures cannot be used. The first: {bad.first[0]}")
    transform = ImageTransform(chosen.threshold, pictures.flip, pictures.dequantise)
    train, valid = (ImageDataset(split, transform) for split in splits)
    if chosen.threshold is not None:
        scaler = Scaler.identity(shape[-1])
    else:
        sample = evenly(train, SCALED_ON)
        pixels = sample.gather(torch.arange(len(sample)))
        scaler = Scaler.fit(pixels.flatten(0, 2).numpy())
    where, identity = f"{config.dataset} ({splits.train.where})", digest(splits.train.identity, splits.valid.identity)
    return Material(where, train, valid, scaler, ImageMetrics, identity)


def read_motion_capture(config: TrainImageTokenizer, chosen: Preset) -> Material:
    """Windows of motion-capture clips."""
    horizon, channels = (*chosen.tokenizer.front_end.shape, 0)[:2]
    if channels != CHANNELS:
        raise ConfigError(f"the preset does not take motion of {CHANNELS} features: leave out --preset")
    train, valid = read_motion(config.pictures.data, horizon)
    features = train.features()
    low, high = (torch.from_numpy(bound) for bound in (features.min(0), features.max(0)))
    return Material("lafan", train, valid, Scaler.fit(features), lambda: MotionMetrics(low, high))


class Some:
    """Some of the examples."""

    def __init__(self, data: Batches, index: torch.Tensor) -> None:
        self.data, self.index = data, index

    def __len__(self) -> int:
        return len(self.index)

    def gather(self, index: torch.Tensor) -> torch.Tensor:
        return self.data.gather(self.index[index])


def evenly(data: Batches, n: int) -> Batches:
    """n of the examples, evenly spaced; all of them for 0, or where there are no more."""
    return data if not 0 < n < len(data) else Some(data, torch.arange(n) * len(data) // n)


class Dequantised:
    """8-bit pictures as (x + u)/256 with noise u: of which an ELBO is a bound in bits."""

    def __init__(self, images: Batches) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def gather(self, index: torch.Tensor) -> torch.Tensor:
        """Some of them, each with noise of its own, the same every time."""
        x = self.images.gather(index)
        noise = [np.random.default_rng(int(i)).random(x.shape[1:], np.float32) for i in index]
        return ((x * 255).round() + torch.from_numpy(np.stack(noise))) / 256


@torch.no_grad()
def examples_of(tokenizer: Tokenizer, valid: Batches) -> ImageExamples:
    """Held-out pictures, rebuilt from their most likely codes and, where there is a distribution, from a sample."""
    shown = evenly(valid, SHOWN)
    x = shown.gather(torch.arange(len(shown))).to(tokenizer.scaler.shift.device)
    likely, drawn = [], []
    for part in x.split(examples_at_a_time(tokenizer.config.codes, x.device)):
        memory = tokenizer.prepare(tokenizer.inputs(part))
        likely.append(tokenizer.decode_embedded(tokenizer.encoded(memory).embedded)[:, 0])
        sample = tokenizer.encoded(memory, 1)
        if sample.kl is not None:
            drawn.append(tokenizer.decode_embedded(sample.embedded)[:, 0])
    arrays = [torch.cat(parts).cpu().numpy() if parts else None for parts in ([x], likely, drawn)]
    return ImageExamples(*arrays)  # type: ignore[arg-type]


@torch.no_grad()
def measured_fid(fid: ReconstructionFID, tokenizer: Tokenizer, valid: Batches) -> float:
    """rFID of the most likely reconstructions of the whole split."""
    device = tokenizer.scaler.shift.device
    for index in torch.arange(len(valid)).split(examples_at_a_time(tokenizer.config.codes, device)):
        x = valid.gather(index).to(device)
        fid.update(x, tokenizer.decode_embedded(tokenizer.encoded(tokenizer.prepare(tokenizer.inputs(x))).embedded)[:, 0])
    return fid.result()


def summary(facts: JSON) -> str:
    """The main figures in a line."""
    units = {
        "psnr": "dB",
        "paper_psnr": "dB",
        "joint_mae": "rad",
        "root_position_error": "m",
        "elbo": "nats",
        "bits_per_dimension": "",
    }
    shown = [f"{name} {facts[name]:.4g} {unit}".strip() for name, unit in units.items() if name in facts]
    return "held out: " + ", ".join([*shown, f"reconstruction {facts['reconstruction']:.5g} nats"])
