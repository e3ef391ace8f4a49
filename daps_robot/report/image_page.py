"""One HTML page a picture tokenizer: its figures with their definitions, pictures beside their reconstructions, codes, curves."""

from __future__ import annotations

import base64
import json
import math
from html import escape
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from jaxtyping import Int
from matplotlib.colors import to_hex

from daps_robot.config import load_json
from daps_robot.report import image_numbers, image_plots, plots
from daps_robot.report.curves import BITS, Panel, how_it_searches, phases
from daps_robot.report.html import figure, grid, missing, number, paragraph, percent, section, short, whole, write_document
from daps_robot.report.image_plots import ImageExamples
from daps_robot.report.measure import CodeUsage
from daps_robot.report.run import Metrics, Run
from daps_robot.report.style import CSS, PAGE, to_svg
from daps_robot.training.logger import read_rows
from daps_robot.training.metrics import perplexity
from daps_robot.types import JSON

ABREAST = 4
"""Pictures in a row of a sheet: few, so that a telephone shows them large enough."""

STYLE = """
.strips{display:grid;gap:30px 40px;grid-template-columns:repeat(auto-fill,minmax(min(100%,500px),1fr));margin-top:1.2em}
.strips.wide{grid-template-columns:1fr}
.strip{display:grid;grid-template-columns:auto minmax(0,auto);gap:0 12px;justify-content:start}
.strip .rows{display:grid;grid-auto-rows:1fr;align-items:center;text-align:right;font-size:.8rem;color:var(--muted)}
.strip img{display:block;max-width:100%;height:auto}
.ramp{display:inline-block;width:7em;height:.75em;margin:0 .5em;border-radius:2px;vertical-align:-.03em}
"""


def write_image_page(out: Path, facts: JSON, examples: ImageExamples, usage: Int[np.ndarray, "l v"]) -> Path:
    """Write <out>/report.html: one file, without scripts and without the network.

    Args:
        out: the run, with its metrics.jsonl and config.json.
        facts: metrics of the best validation under the keys of `image_numbers`, those that there are, and `estimator`, `dataset`,
            `bits` (inf without codes), `positions`, `vocabulary`, and `shape` (height, width, 1 or 3 channels). Where known
            also `where` (what the data are, and their file or folder), `held_out` (number of pictures), and `threshold`
            (pictures are binarised above it; None: they are not).
        examples: 16 to 32 held-out pictures.
        usage: how often each position's most likely code takes each value, over held-out pictures; all 0 without codes.

    Raises:
        RunDirectoryError: the page cannot be written.
        ConfigError: config.json is damaged.
    """
    metrics = Metrics(out / "metrics.jsonl", tuple(read_rows(out / "metrics.jsonl")))
    run = Run(out, facts, metrics, Metrics(out), (), ())
    config = load_json(out / "config.json") if (out / "config.json").is_file() else None
    title = _title(facts)
    body = [
        f'<header><p class="name">daps_robot</p><h1>{escape(title)}</h1>{_lead(run)}</header><main>',
        image_numbers.headline(run),
        _pictures(run, examples),
        _codes(usage),
        _curves(run, config),
        image_numbers.further(run),
        _provenance(run, config),
        "</main><footer>Written by daps_robot from the best validation, metrics.jsonl and config.json.</footer>",
    ]
    return write_document(out / "report.html", title, body, CSS + STYLE)


def _title(facts: JSON) -> str:
    if math.isfinite(facts["bits"]):
        return f"{facts['dataset']}: pictures in {short(facts['bits'])} bits"
    return f"{facts['dataset']}: pictures in continuous latents"


def _lead(run: Run) -> str:
    h, w, c = run.report["shape"]
    kind = "grey" if c == 1 else "colour"
    bits, values = run.report["bits"], h * w * c
    codes = (
        f"{number(run, 'positions', whole)} codes, each one of {number(run, 'vocabulary', whole)}: {number(run, 'bits')} bits, "
        f"or {short(bits / values)} for each of its {whole(values)} numbers"
        if math.isfinite(bits)
        else "a continuous code, which has no limit of bits"
    )
    return paragraph(
        f"A {kind} picture of {h} × {w} pixels becomes {codes}. Trained with the estimator "
        f"<b>{escape(str(run.report['estimator']))}</b>{_data(run)}; everything below is of "
        + (f"the {number(run, 'held_out', whole)} held-out pictures." if "held_out" in run.report else "held-out pictures."),
        "lead",
    )


def _data(run: Run) -> str:
    """What the pictures are, as far as the run says."""
    where, threshold = run.get("where"), run.get("threshold")
    on = f" on <code>{escape(str(where))}</code>" if where is not None else ""
    seen = f", binarised: values of 0 to 255 are 1 above {number(run, 'threshold', whole)}, else 0"
    return on + (seen if threshold is not None else "")


def _pictures(run: Run, examples: ImageExamples) -> str:
    """Sheets of a few pictures each, and how their errors are coloured."""
    scale = image_plots.error_scale(examples)
    n = len(examples.originals)
    labels = "".join(f"<span>{name}</span>" for name in image_plots.row_names(examples))
    strips, width = [], 0
    for start in range(0, n, ABREAST):
        pixels = image_plots.sheet(image_plots.first(examples, ABREAST, start), scale.top)
        width = max(width, pixels.shape[1])
        data = base64.b64encode(image_plots.encoded(pixels)).decode()
        size = f'width="{pixels.shape[1]}" height="{pixels.shape[0]}"'
        alt = f"Pictures {start + 1} to {min(start + ABREAST, n)}: {', '.join(image_plots.row_names(examples))}"
        image = f'<img {size} alt="{alt}" src="data:image/png;base64,{data}">'
        strips.append(f'<div class="strip"><div class="rows">{labels}</div>{image}</div>')
    codes = "codes" if image_numbers.discrete(run) else "latents"
    sample = f" The sample is from {codes} drawn from q(z|x) once." if examples.samples is not None else ""
    text = (
        f"{n} held-out pictures as the tokenizer sees them, and each rebuilt from {image_numbers.likely(run)}.{sample} "
        "Values outside [0, 1] are cut off. Good: what a person would name is still there, and the error shows no shapes."
    )
    stops = ",".join(to_hex(colour) for colour in mpl.colormaps[image_plots.RAMP](np.linspace(0, 1, 9)))
    key = (
        f'<div class="key"><span>error 0<i class="ramp" style="background:linear-gradient(90deg,{stops})"></i>'
        f"{scale.top:g} and more ({scale.beyond:.2%} of the pixels lie beyond)</span>"
        "<span>error = |original − rebuilt|, mean over channels</span></div>"
    )
    return section(
        "Pictures, rebuilt",
        paragraph(text, "muted"),
        key,
        f'<div class="strips {"wide" if width > 600 else ""}">{"".join(strips)}</div>',
    )


def _codes(usage: Int[np.ndarray, "l v"]) -> str:
    """Which codes are used, and how evenly."""
    title = "How the codes are used"
    if not usage.any():
        return section(title, missing("This tokenizer has no codes to count."))
    used = CodeUsage(usage, perplexity(torch.from_numpy(usage)).numpy(), int(usage[0].sum()))
    dead = int((usage == 0).sum())
    text = (
        f"Most likely codes of {used.windows:,} held-out pictures. Dead, for no picture has them: {dead:,} of the "
        f"{usage.size:,} codes of all positions, {percent(dead / usage.size)}. "
        + ("Fewer pictures than codes leave some unused by necessity." if used.windows < usage.shape[1] else "")
    )
    panels = (
        (
            image_plots.usage_map(PAGE, used),
            "Rank and frequency",
            "Each row a position, the stronger the colour, the more frequent; the line ends the codes that occur at all. Good: "
            "fades slowly, reaches far right.",
        ),
        (
            image_plots.codes_in_use(PAGE, used),
            "Codes of each position",
            "Occurring at all, and in effective use (perplexity); dashed, the vocabulary. Good: every position carries its part, "
            "none near 1.",
        ),
    )
    shown = (figure(to_svg(plot, f"codes{i}", name), name, caption) for i, (plot, name, caption) in enumerate(panels))
    return section(title, paragraph(text, "muted"), grid(shown))


def _curves(run: Run, config: JSON | None) -> str:
    """How the tokenizer learned."""
    title, metrics = "How the tokenizer learned", run.tokenizer
    settings = ((config or {}).get("command") or {}).get("settings") or {}
    panels = [
        *_what_it_reaches(run),
        *how_it_searches(metrics, settings.get("k"), settings.get("ess_target")),
    ]
    warm = phases(metrics)
    drawn = [
        figure(to_svg(plots.curve(PAGE, p.unit, phases=warm, **p.how), f"curve{i}", p.title), p.title, p.caption)
        for i, p in enumerate(panels)
        if any(plots.drawable(p.how.get(split)) for split in ("valid", "train"))
    ]
    return section(title, grid(drawn) if drawn else missing(f"No curves: there are no metrics at {metrics.path}."))


def _what_it_reaches(run: Run) -> list[Panel]:
    metrics, codes = run.tokenizer, "codes" if image_numbers.discrete(run) else "latents"
    return [
        Panel(
            "Reconstruction",
            "nats per picture",
            f"−log p(x|z): how surprised the decoder is by a picture, given its {codes}. Good: falls, with validation close to "
            "training.",
            {"valid": metrics.series("valid", "reconstruction"), "train": metrics.series("train", "reconstruction")},
        ),
        Panel(
            "Evidence lower bound (ELBO)",
            "nats per picture",
            f"Minus reconstruction, minus the full cost of the {codes} (β = 1). Good: rises and levels off.",
            {"valid": metrics.series("valid", "elbo")},
        ),
        Panel("PSNR", "dB", "On validation. Good: rises and levels off.", {"valid": metrics.series("valid", "psnr")}),
        Panel(
            "Codes in use (perplexity)",
            f"of {run.report['vocabulary']} codes",
            "Mean over the positions. Good: tens or more; a fall towards 1 is a collapse.",
            {"valid": metrics.series("valid", "perplexity"), "limits": (0.0, None)},
        ),
        Panel(
            "Information (KL)",
            "bits per picture",
            f"What the {codes} tell about a picture. Good: rises" + (", under the capacity." if codes == "codes" else "."),
            {"valid": metrics.series("valid", "kl") * BITS, "limits": (0.0, None)},
        ),
    ]


def _provenance(run: Run, config: JSON | None) -> str:
    """What is needed to do it again."""
    title = "How it was made"
    if config is None:
        return section(title, missing(f"There is no {run.out / 'config.json'} to say so."))
    text = escape(json.dumps(config, indent=2, ensure_ascii=False))
    where = f"The settings of the run in <code>{escape(str(run.out))}</code>, as config.json holds them."
    return section(title, paragraph(where, "muted"), f"<details><summary>full configuration</summary><pre>{text}</pre></details>")
