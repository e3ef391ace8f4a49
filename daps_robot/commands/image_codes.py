"""A directory of pictures to one small file of codes, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from daps_robot.data.codes import CodesFile, CodesHeader, write_codes
from daps_robot.data.decode import PictureDecoder
from daps_robot.data.images import ImageDataset, ImageTransform
from daps_robot.data.picture_files import FolderPictures
from daps_robot.data.pictures import Pictures, Subset, check
from daps_robot.errors import CheckpointError, ConfigError, DataError
from daps_robot.models.frontends import PatchFrontEndConfig
from daps_robot.models.posteriors import GaussianPosterior
from daps_robot.models.tokenizer import Tokenizer
from daps_robot.training.tokenizer import examples_at_a_time


@dataclass(frozen=True)
class EncodeImages:
    """Encode a directory of pictures to a file of codes.

    Attributes:
        tokenizer: directory of a picture tokenizer's run.
        data: the directory; all pictures below it are taken, resized and cropped to the tokenizer's square.
        out: file to write.
        overwrite: replace an existing file.
        alpha: what lies below transparent pixels; by default pictures that have such are refused.
        enlarge: take pictures smaller than the tokenizer's.
        skip_damaged: leave out pictures that cannot be read, and say how many.
        device: where to compute.
    """

    tokenizer: Path
    data: Path
    out: Path = Path("codes.safetensors")
    overwrite: bool = False
    alpha: Literal["white", "black"] | None = None
    enlarge: bool = False
    skip_damaged: bool = False
    device: Literal["cpu", "cuda"] = "cpu"


@dataclass(frozen=True)
class DecodeImages:
    """Decode a file of codes to a directory of PNG pictures.

    Attributes:
        tokenizer: directory of the run whose tokenizer wrote the codes.
        codes: the file.
        out: directory to write, new or empty.
        overwrite: write into a directory that is not empty, over pictures of the same names; whatever else is there stays.
        device: where to compute.
    """

    tokenizer: Path
    codes: Path = Path("codes.safetensors")
    out: Path = Path("decoded")
    overwrite: bool = False
    device: Literal["cpu", "cuda"] = "cpu"


def encode(config: EncodeImages) -> Path:
    """Encode; the file of codes."""
    if config.out.exists() and not config.overwrite:
        raise ConfigError(f"{config.out} exists: give another --out, or --overwrite")
    tokenizer, shape = load(config.tokenizer, config.device)
    folder = FolderPictures(config.data, PictureDecoder(shape.height, config.alpha, config.enlarge))
    index = np.arange(len(folder))
    if config.skip_damaged:
        index, bad, first = check(folder)
        if bad:
            print(f"left out {bad} of {len(folder)} pictures:", *first, sep="\n  ")
        if not len(index):
            raise DataError(f"{config.data}: not one of {len(folder)} pictures can be used. The first: {first[0]}")
    names = tuple(folder.path(i).relative_to(config.data).with_suffix("").as_posix() for i in index.tolist())
    doubled = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if doubled is not None:
        raise DataError(f"{config.data} holds two pictures called {doubled} with different suffixes: rename one of them")
    size = tokenizer.config.codes
    header = CodesHeader(fingerprint(config.tokenizer), size.positions, size.vocabulary, names)
    pictures: Pictures = Subset(folder, index)
    if shape.channels == 1:
        pictures = GreyPictures(pictures)
    write_codes(config.out, header, _encoded(tokenizer, pictures))
    before = sum(folder.path(i).stat().st_size for i in index.tolist())
    after = config.out.stat().st_size
    print(
        f"{len(names)} pictures in {config.out}: {header.row_bytes} bytes of codes each, {after:,} bytes in all "
        f"(the pictures' files: {before:,})"
    )
    return config.out


def _encoded(tokenizer: Tokenizer, pictures: Pictures) -> Iterator[Int[np.ndarray, "b l"]]:
    """The codes of all pictures, a few at a time."""
    bernoulli = tokenizer.config.likelihood.kind == "bernoulli"
    images = ImageDataset(pictures, ImageTransform(threshold=127 if bernoulli else None))
    for index in torch.arange(len(pictures)).split(8 * examples_at_a_time(tokenizer.config.codes, tokenizer.scaler.shift.device)):
        x = images.gather(index).to(tokenizer.scaler.shift.device)
        yield tokenizer.encode(x)[:, 0].cpu().numpy()


class GreyPictures:
    """The one channel of grey pictures that were decoded to three."""

    labels: Int[np.ndarray, " n"] | None = None
    classes: tuple[str, ...] = ()

    def __init__(self, pictures: Pictures) -> None:
        self.pictures, self.where, self.identity = pictures, pictures.where, pictures.identity
        self.shape = (*pictures.shape[:2], 1)

    def __len__(self) -> int:
        return len(self.pictures)

    def gather(self, index: Int[Tensor, " b"]) -> UInt8[Tensor, "b height width 1"]:
        """Some of them. Raises DataError for a coloured one."""
        pixels = self.pictures.gather(index)
        coloured = (pixels != pixels[..., :1]).flatten(1).any(1)
        if coloured.any():
            raise DataError(
                f"{self.where}: {int(coloured.sum())} of {len(pixels)} pictures have colours, and the tokenizer was trained on "
                "grey ones: convert them"
            )
        return pixels[..., :1]


def decode(config: DecodeImages) -> Path:
    """Decode; the directory of pictures."""
    if config.out.exists() and not config.overwrite and (not config.out.is_dir() or any(config.out.iterdir())):
        raise ConfigError(f"{config.out} exists and is not empty: give another --out, or --overwrite")
    tokenizer, _ = load(config.tokenizer, config.device)
    codes = CodesFile(config.codes)
    size = tokenizer.config.codes
    if codes.header.tokenizer != fingerprint(config.tokenizer):
        raise CheckpointError(
            f"{config.codes} was written by another tokenizer than that in {config.tokenizer} (their weights differ): "
            "give the run that encoded the pictures"
        )
    if (codes.header.positions, codes.header.vocabulary) != (size.positions, size.vocabulary):
        raise CheckpointError(f"{config.codes} does not fit {config.tokenizer}, whose weights it names: it is damaged")
    step = 8 * examples_at_a_time(size, tokenizer.scaler.shift.device)
    for first in range(0, len(codes), step):
        rows = slice(first, first + step)
        block = torch.from_numpy(codes.codes(rows)).to(tokenizer.scaler.shift.device)
        pixels = tokenizer.decode(block[:, None])[:, 0].clamp(0, 1).mul(255).round().byte().cpu().numpy()
        for name, picture in zip(codes.header.names[rows], pixels, strict=True):
            path = config.out / f"{name}.png"
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(path)
            except OSError as error:
                raise DataError(f"cannot write {path}: {error.strerror}") from error
    print(f"{len(codes)} pictures in {config.out}")
    return config.out


def load(run: Path, device: str) -> tuple[Tokenizer, PatchFrontEndConfig]:
    """The tokenizer of pictures of a run, and what it encodes."""
    tokenizer = Tokenizer.from_pretrained(run / "model")
    front_end = tokenizer.config.front_end
    if not isinstance(front_end, PatchFrontEndConfig) or front_end.height != front_end.width:
        raise CheckpointError(f"{run} holds no tokenizer of square pictures: train one with train_image_tokenizer.py")
    if isinstance(tokenizer.posterior, GaussianPosterior):
        raise CheckpointError(f"the tokenizer in {run} is a vae, which has no codes: train it with another --estimator")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("there is no GPU here: leave out --device cuda")
    return tokenizer.to(device), front_end


def fingerprint(run: Path) -> str:
    """SHA-256 of a tokenizer's weights."""
    with (run / "model" / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
