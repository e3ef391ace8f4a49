"""A class-conditional prior over a picture tokenizer's codes, and pictures drawn from it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from daps_robot.commands.image_codes import load
from daps_robot.commands.train_image_tokenizer import PicturesConfig, TrainImageTokenizer, choose_preset, read_pictures
from daps_robot.config import from_json, load_json
from daps_robot.data.images import ImageDataset
from daps_robot.errors import CheckpointError, ConfigError, DataError
from daps_robot.models.blocks import TransformerConfig
from daps_robot.models.code_model import CodeModelConfig
from daps_robot.models.frontends import LabelFrontEndConfig
from daps_robot.models.prior import CodePrior, CodePriorConfig
from daps_robot.registry import unknown_name
from daps_robot.training.objective import TrainerConfig
from daps_robot.training.optimizer import OptimizerConfig
from daps_robot.training.prior import LabelledImages, PriorObjective
from daps_robot.training.trainer import Trainer


@dataclass(frozen=True)
class TrainImagePrior:
    """Train a prior p(z|y) over a picture tokenizer's codes given the class, on the pictures that the tokenizer was trained on.

    Attributes:
        tokenizer: directory of the tokenizer's run.
        data: where its pictures lie now, if no longer where they were.
        out: directory of the run; by default `prior` beside the tokenizer's.
        resume: go on with an interrupted run in that directory.
        overwrite: throw a run away that is in that directory.
        width: embedding width.
        layers: decoder layers.
        trainer: how long and on what.
    """

    tokenizer: Path = Path("runs/mnist/tokenizer")
    data: Path | None = None
    out: Path | None = None
    resume: bool = False
    overwrite: bool = False
    width: int = 128
    layers: int = 3
    trainer: TrainerConfig = field(
        default_factory=lambda: TrainerConfig(
            max_steps=3000,
            batch_size=128,
            optimizer=OptimizerConfig(lr=1e-3, weight_decay=1e-2, warmup_steps=50, decay_fraction=0.5, clip="norm", ema=0.99),
        )
    )


@dataclass(frozen=True)
class SampleImages:
    """Draw pictures of given classes from a prior, as one PNG sheet with a row for each class.

    Attributes:
        prior: directory of the prior's run.
        classes: names of classes, or their numbers; all by default.
        count: pictures of each class.
        temperature: of the draw; below 1 keeps to what is likely.
        seed: of the draw.
        out: file to write.
    """

    prior: Path = Path("runs/mnist/prior")
    classes: tuple[str, ...] = ()
    count: int = 10
    temperature: float = 1.0
    seed: int = 0
    out: Path = Path("samples.png")

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed {self.seed} must be from 0 to 2⁶³ − 1")
        if not 1 <= self.count <= 1000:
            raise ConfigError(f"{self.count} pictures of each class: from 1 to 1000 fit on a sheet")


def train(config: TrainImagePrior) -> dict[str, float]:
    """Train; the metrics of the best validation. The prior lies in <out>/model."""
    tokenizer, front_end = load(config.tokenizer, "cpu")
    out = config.out or config.tokenizer.parent / "prior"
    if out.resolve() == config.tokenizer.resolve():
        raise ConfigError(f"{out} holds the tokenizer: choose another --out")
    command, identity = tokenizer_command(config.tokenizer, config.data)
    chosen = choose_preset(command.dataset, command.preset, command.pictures.size)
    if chosen.tokenizer.front_end.shape != front_end.shape:
        raise CheckpointError(f"config.json and the model in {config.tokenizer} are of two runs: give one as it was written")
    material = read_pictures(command, chosen)
    assert isinstance(material.train, ImageDataset) and isinstance(material.valid, ImageDataset)
    if material.identity != identity:
        raise CheckpointError(f"{material.where} no longer holds the pictures that the tokenizer was trained on: see --data")
    train, valid = LabelledImages(material.train), LabelledImages(material.valid)
    classes, codes = material.train.pictures.classes, tokenizer.config.codes
    if valid.images.pictures.classes != classes:
        raise DataError(f"{valid.images.pictures.where} has other classes than {train.images.pictures.where}")
    torch.manual_seed(config.trainer.seed)
    transformer = TransformerConfig(width=config.width, layers=config.layers)
    networks = CodePriorConfig(
        tokenizer=tokenizer.config,
        front_end=LabelFrontEndConfig(len(classes), transformer=transformer),
        codes=CodeModelConfig(codes.positions, codes.vocabulary, True, transformer),
        classes=classes,
    )
    print(f"prior over the codes of {config.tokenizer} given {len(classes)} classes: {len(train)} pictures", flush=True)
    description = {
        "command": replace(config, out=None, resume=False, overwrite=False),
        "dataset": {"path": material.where},
        "tokenizer": str(config.tokenizer),
    }
    objective = PriorObjective(CodePrior(networks, tokenizer), valid)
    metrics = Trainer(config.trainer, out, description).fit(objective, train, config.resume, config.overwrite)
    print(f"held out: {metrics['bits']:.2f} bits a picture, of {tokenizer.bits:.1f} with uniform codes; prior in {out}")
    return metrics


def tokenizer_command(run: Path, data: Path | None) -> tuple[TrainImageTokenizer, str]:
    """On which pictures the tokenizer of a run was trained, and their hash; what else its settings were does not matter here."""
    path = run / "config.json"
    description = load_json(path)
    command = description.get("command") if isinstance(description, dict) else None
    if not isinstance(command, dict) or command.get("_type") != TrainImageTokenizer.__name__:
        raise CheckpointError(f"{path} is not of a picture tokenizer's training: give the directory of such a run")
    try:
        pictures = from_json(PicturesConfig, command["pictures"], str(path))
        dataset, name, identity = str(command["dataset"]), command["preset"], description["dataset"]["identity"]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} lacks {error}: give the directory of a picture tokenizer's run") from error
    return TrainImageTokenizer(dataset, name, pictures=replace(pictures, data=data or pictures.data, fid_weights=None)), identity


def sample(config: SampleImages) -> Path:
    """Draw; the sheet."""
    prior = CodePrior.from_pretrained(config.prior / "model")
    names = prior.config.classes
    wanted = [class_number(name, names) for name in config.classes] or list(range(len(names)))
    codes = prior.config.codes
    generator = torch.Generator().manual_seed(config.seed)
    uniforms = torch.rand(len(wanted), config.count, codes.positions, generator=generator)
    rows = []
    for label, noise in zip(wanted, uniforms, strict=True):
        pictures = prior.sample(torch.tensor([label]), noise[None], config.temperature)[0]
        rows.append(pictures.clamp(0, 1).mul(255).round().byte().numpy())
    try:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sheet(np.stack(rows))).save(config.out)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write {config.out}: {error}") from error
    print(f"{config.count} pictures each of {', '.join(names[i] for i in wanted)} in {config.out}")
    return config.out


def class_number(name: str, names: tuple[str, ...]) -> int:
    """A class by its name, or by its number. Raises ConfigError, with the nearest name, for neither."""
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    raise unknown_name("class", name, list(names))


def sheet(pictures: np.ndarray) -> np.ndarray:
    """Pictures (rows n height width c) side by side, with white lines between."""
    spaced = np.pad(pictures, ((0, 0), (0, 0), (2, 2), (2, 2), (0, 0)), constant_values=255)
    r, n, h, w, c = spaced.shape
    laid_out = spaced.transpose(0, 2, 1, 3, 4).reshape(r * h, n * w, c)
    return laid_out[..., 0] if c == 1 else laid_out
