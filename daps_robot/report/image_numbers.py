"""What is measured of a picture tokenizer, as its page shows it: every number beside its exact definition."""

from __future__ import annotations

import math
from html import escape
from typing import NamedTuple

from daps_robot.report.html import Format, fact, grid, missing, number, percent, section, short, whole
from daps_robot.report.run import Run


class Quantity(NamedTuple):
    """A metric on the page: its key among the facts, its name, its unit, how it is written, and its exact definition.

    {likely} in a definition is what a picture is rebuilt from, {codes} is what it becomes.
    """

    key: str
    name: str
    unit: str
    form: Format
    definition: str


def _hundredths(value: float) -> str:
    return f"{value:.2f}"


def _thousandths(value: float) -> str:
    return f"{value:.3f}"


def _nats(value: float) -> str:
    return f"{value:,.{0 if abs(value) >= 1000 else 1}f}".replace("-", "−")


HEADLINE = (
    Quantity("psnr", "PSNR", "dB", _hundredths,
           "10·log₁₀(1/mse) of each picture, rebuilt from {likely} and clipped to [0, 1]; then the mean over the "
           "pictures. Good: high."),
    Quantity("ssim", "SSIM", "", _thousandths,
           "Structural similarity (Wang et al. 2004) of the same reconstructions: Gaussian window of 11×11 pixels with σ = 1.5 "
           "where it fits whole, K₁ = .01, K₂ = .03, range 1; mean over places, channels and pictures. 1 is perfect."),
    Quantity("rfid", "rFID", "", _hundredths,
           "Fréchet distance of the reconstructions to their own originals, in Inception's pool3 features (2048). Compares "
           "with other rFIDs on the same pictures only; biased upwards for few of them. Good: low."),
    Quantity("bits_per_dimension", "Bits per dimension", "bits", _thousandths,
           "8 − (ELBO/D − mean ln scale)/ln 2 over the D numbers of a picture: an upper bound of what coding the 8-bit pictures "
           "without loss would take. A uniform density needs 8. Good: low."),
    Quantity("elbo", "ELBO", "nats", _nats,
           "log p(x|z) − KL with β = 1, in nats per picture as normalised for the networks; mean over the pictures and 8 "
           "posterior samples of each. Good: high."),
    Quantity("bits_used", "Bits in use", "bits", short,
           "Entropy of the most likely codes' frequencies, summed over the positions. At most the capacity."),
    Quantity("perplexity", "Codes in use (perplexity)", "", short,
           "exp of the entropy of the most likely codes' frequencies at a position; mean over the positions. Near 1, the codes "
           "say nothing."),
    Quantity("unused_codes", "Dead codes", "", percent,
           "Share of the vocabulary that is no picture's most likely code; mean over the positions. Good: low."),
)  # fmt: skip
FURTHER = (
    Quantity("rmse", "RMSE", "", _thousandths,
           "root of the mean squared error over all pixels and channels of the split, of the reconstructions of the PSNR"),
    Quantity("psnr_sample", "PSNR, one sample", "dB", _hundredths, "like PSNR, from one posterior sample of the {codes}"),
    Quantity("ssim_sample", "SSIM, one sample", "", _thousandths, "like SSIM, from one posterior sample of the {codes}"),
    Quantity("reconstruction", "−log p(x|z)", "nats", _nats,
           "per picture as normalised for the networks; mean over 8 posterior samples of each (quantisers: its codes)"),
    Quantity("kl", "KL", "nats", _nats, "of the posterior to uniform codes, per picture"),
    Quantity("entropy", "Posterior entropy", "nats", _nats, "of q(z|x) over whole code sequences, per picture"),
    Quantity("elbo_beta_end", "ELBO, final β", "nats", _nats, "−reconstruction − β·KL with the β that training ends at"),
)  # fmt: skip
CONTINUOUS = {
    "bits_used": "KL of the Gaussian posterior to a standard normal, in bits per picture. Nothing limits it.",
    "reconstruction": "per picture as normalised for the networks; mean over 8 posterior samples of each",
    "kl": "of the Gaussian posterior to a standard normal, per picture",
}
"""Definitions of the same metrics where there are no codes."""


def headline(run: Run) -> str:
    """Those that there are, each with its definition."""
    there = [item for item in HEADLINE if run.get(item.key) is not None]
    return grid([fact(item.name, _value(run, item), escape(_definition(run, item))) for item in there], "facts")


def discrete(run: Run) -> bool:
    """Whether pictures become codes, rather than continuous latents."""
    return math.isfinite(run.report["bits"])


def likely(run: Run) -> str:
    """What a picture is rebuilt from."""
    return "its most likely codes" if discrete(run) else "the means of its latents"


def _definition(run: Run, item: Quantity) -> str:
    codes = discrete(run)
    text = item.definition if codes else CONTINUOUS.get(item.key, item.definition)
    return text.format(likely=likely(run), codes="codes" if codes else "latents") + _of_few(run, item.key)


def _of_few(run: Run, key: str) -> str:
    """The limit that fewer pictures than codes set, whatever the tokenizer."""
    n, vocabulary = run.get("held_out"), run.report["vocabulary"]
    if not discrete(run) or n is None or not 0 < n < vocabulary:
        return ""
    bits = math.log2(n)
    limits = {
        "bits_used": f"log₂({n}) = {short(bits)} bits at a position, {short(run.report['positions'] * bits)} in all",
        "perplexity": f"{n}",
        "unused_codes": f"{n} of {whole(vocabulary)} codes used at a position",
    }
    return f" With only {whole(n)} held-out pictures, at most {limits[key]}." if key in limits else ""


def further(run: Run) -> str:
    """The others, and why there is no ELBO where there is none."""
    there = [item for item in FURTHER if run.get(item.key) is not None]
    rows = "".join(
        f"<dt>{escape(item.name)}: {_value(run, item)}</dt><dd>{escape(_definition(run, item))}</dd>" for item in there
    )
    without = missing("No ELBO, KL or bits per dimension: this estimator learns codes, but no distribution over them.")
    return section("Further numbers", f"<dl>{rows}</dl>", "" if run.get("elbo") is not None else without)


def _value(run: Run, item: Quantity) -> str:
    """A metric as it is read, with its unit, or what it is out of."""
    after = {"bits_used": f"of {short(run.report['bits'])} bits", "perplexity": f"of {whole(run.report['vocabulary'])}"}
    unit = after.get(item.key, item.unit) if discrete(run) else item.unit
    return number(run, item.key, item.form) + (f" <small>{unit}</small>" if unit else "")
