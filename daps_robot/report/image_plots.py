"""What the page of a picture tokenizer draws: pictures pixel by pixel, and how the codes are used."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from daps_robot.report.measure import CodeUsage
from daps_robot.report.plots import ROUND
from daps_robot.report.style import HEAT, LIGHT, SIZE, Palette, legend, panel, to_png

COMFORTABLE = 128
"""Pixels that a small picture is enlarged to, or as near below as whole factors allow."""

GAP = 6
RAMP = "magma"
"""matplotlib's name of the colours of errors: black for none."""

DPI = 160
"""That of `to_png`, so that a pixel stays a pixel."""


class ImageExamples(NamedTuple):
    """Held-out pictures and what comes back of them, in [0, 1]; reconstructions may lie slightly outside.

    Attributes:
        originals: as the tokenizer sees them.
        reconstructions: from the most likely codes.
        samples: from one posterior sample of the codes; None where the encoder gives no distribution.
    """

    originals: Float[np.ndarray, "n height width c"]
    reconstructions: Float[np.ndarray, "n height width c"]
    samples: Float[np.ndarray, "n height width c"] | None


class ErrorScale(NamedTuple):
    """How errors are coloured.

    Attributes:
        top: the error of the brightest colour.
        beyond: share of the pixels with a larger one.
    """

    top: float
    beyond: float


def pixel_errors(examples: ImageExamples) -> Float[np.ndarray, "n height width"]:
    """|original − reconstruction| of each pixel, mean over channels; the reconstruction clipped to [0, 1]."""
    return np.abs(examples.originals - examples.reconstructions.clip(0, 1)).mean(-1)


def error_scale(examples: ImageExamples) -> ErrorScale:
    """One scale for all of them, in steps of .05, that at most a hundredth of the pixels lie beyond."""
    errors = pixel_errors(examples)
    top = max(1, math.ceil(20 * np.quantile(errors, 0.99))) / 20
    return ErrorScale(top, float((errors > top).mean()))


def row_names(examples: ImageExamples) -> list[str]:
    """Of a sheet's rows, from the top."""
    return ["original", "rebuilt", *(["sample"] if examples.samples is not None else []), "error"]


def sheet(examples: ImageExamples, top: float) -> UInt8[np.ndarray, "y x 4"]:
    """Pictures side by side: originals, below them reconstructions, samples where there are any, errors coloured up to `top`.

    Small pictures are enlarged by repeating their pixels; between them it is transparent.
    """
    rows = [examples.originals, examples.reconstructions, *([examples.samples] if examples.samples is not None else [])]
    shown = [np.broadcast_to(row.clip(0, 1), (*row.shape[:3], 3)) for row in rows]
    shown.append(mpl.colormaps[RAMP](pixel_errors(examples) / top)[..., :3])
    pixels = np.stack(shown)  # (rows n height width 3)
    factor = enlargement(pixels.shape[2:4])
    pixels = pixels.repeat(factor, axis=2).repeat(factor, axis=3)
    opaque = np.concatenate([pixels, np.ones_like(pixels[..., :1])], axis=-1)
    spaced = np.pad(opaque, ((0, 0), (0, 0), (0, GAP), (0, GAP), (0, 0)))
    r, n, h, w, _ = spaced.shape
    laid_out = spaced.transpose(0, 2, 1, 3, 4).reshape(r * h, n * w, 4)[:-GAP, :-GAP]
    return (laid_out * 255).round().astype(np.uint8)


def enlargement(size: tuple[int, ...]) -> int:
    """The whole factor by which a picture of this height and width is shown; 1 for large ones."""
    return max(1, COMFORTABLE // max(size))


def encoded(pixels: UInt8[np.ndarray, "y x _"]) -> bytes:
    """As a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def save_examples_png(examples: ImageExamples, path: Path) -> Path:
    """Save the first of the pictures, as many as a README is wide, on white with their rows named.

    Raises:
        OSError: it cannot be written.
    """
    h, w = examples.originals.shape[1:3]
    shown = first(examples, max(1, 1024 // (w * enlargement((h, w)) + GAP)))
    scale = error_scale(shown)
    pixels = sheet(shown, scale.top)
    names = row_names(shown)
    names[-1] += f"\n(white: {scale.top:g})"
    left = 140
    figure = Figure(figsize=((left + pixels.shape[1] + GAP) / DPI, (pixels.shape[0] + 2 * GAP) / DPI), dpi=DPI)
    figure.figimage(pixels, left, GAP)
    for row, name in enumerate(names):
        place = 1 - (row + 0.5) / len(names)
        figure.text(
            (left - 14) / DPI / figure.get_figwidth(), place, name, ha="right", va="center", color=LIGHT.ink, fontsize=SIZE
        )
    return to_png(figure, path)


def first(examples: ImageExamples, n: int, start: int = 0) -> ImageExamples:
    """n of the pictures, from one on."""
    originals, reconstructions, samples = examples
    part = slice(start, start + n)
    return ImageExamples(originals[part], reconstructions[part], None if samples is None else samples[part])


def usage_map(palette: Palette, used: CodeUsage) -> Figure:
    """Frequencies of every position's codes, most frequent first: the darker, the more often. A line ends those in use."""
    l, v = used.counts.shape
    figure, ax = panel(palette, "codes, most frequent first", "position")
    share = np.sort(used.counts, axis=1)[:, ::-1] / max(used.windows, 1)
    pixels = np.zeros((l, v, 4))
    pixels[..., :3] = HEAT
    pixels[..., 3] = (share / max(share.max(), 1e-12)) ** 0.4  # rare codes stay visible
    ax.imshow(pixels, aspect="auto", interpolation="nearest", extent=(0.5, v + 0.5, l - 0.5, -0.5))
    last = (used.counts > 0).sum(axis=1) + 0.5
    edges = np.arange(l + 1) - 0.5
    ax.plot(np.repeat(last, 2), np.repeat(edges, 2)[1:-1], color=palette.accent, linewidth=1.2 if l <= 64 else 0.5)
    ax.set_xlim(0.5, v + 0.5)
    ax.grid(False)
    ax.yaxis.set_major_locator(MaxNLocator(8, integer=True, steps=ROUND))
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=ROUND))
    return figure


def codes_in_use(palette: Palette, used: CodeUsage) -> Figure:
    """Of each position, how many codes occur at all, and how many equally frequent ones would be as varied."""
    l, v = used.counts.shape
    figure, ax = panel(palette, "position in the code sequence", "codes")
    edges = np.arange(l + 1) - 0.5
    occurring = (used.counts > 0).sum(axis=1)
    ax.stairs(occurring, edges, fill=True, color=palette.faint, label="occurring")
    ax.stairs(used.perplexity, edges, fill=True, color=palette.accent, label="in effective use")
    ax.axhline(v, color=palette.ink, linewidth=0.8, linestyle=(0, (4, 3)))
    ax.set_ylim(0, 1.12 * v)
    ax.set_xlim(-0.5, l - 0.5)
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True, steps=ROUND))
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=ROUND))
    legend(ax, palette)
    return figure
