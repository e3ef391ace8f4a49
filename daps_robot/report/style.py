"""How the page and its plots look: one accent colour, two themes, and the way from a matplotlib figure to inline SVG."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Palette:
    """Colours of a plot, as #rrggbb: text, secondary text, lines of the frame, the accent and a pale tone of it."""

    ink: str
    muted: str
    faint: str
    accent: str
    pale: str


LIGHT = Palette(ink="#1d2430", muted="#667085", faint="#d9dee6", accent="#0b6bcb", pale="#e8f1fb")
DARK = Palette(ink="#e6e9ef", muted="#98a2b3", faint="#343b48", accent="#6bb2ff", pale="#1b2b40")
PAGE = Palette(ink="#0a0b01", muted="#0a0b02", faint="#0a0b03", accent="#0a0b04", pale="#0a0b05")
"""Stand-ins, which `to_svg` turns into the page's CSS variables: one plot is then readable in both themes."""

HEAT = (0x3B / 255, 0x8E / 255, 0xE0 / 255)
"""The accent of images, whose pixels know no theme: more or less of it over whatever is behind."""

WIDTH, HEIGHT = 4.4, 2.5
SIZE, SMALL = 9.5, 9.0
"""Of axis and of note texts, in points."""

SAVING: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "daps_robot",
    "svg.image_inline": True,
}


def panel(
    palette: Palette, x: str, y: str, size: tuple[float, float] = (WIDTH, HEIGHT), left: float = 0.54, top: float = 0.3
) -> tuple[Figure, Axes]:
    """A figure with one plot, its frame as everywhere; `x` and `y` say what is plotted, in which unit. Sizes are in inches."""
    figure = Figure(figsize=size)
    right, bottom = 0.54, 0.46  # in inches, so that the plots of a row line up whatever their size
    box = (left / size[0], bottom / size[1], 1 - (left + right) / size[0], 1 - (bottom + top) / size[1])
    ax = figure.add_axes(box)
    dress(ax, palette, x, y)
    return figure, ax


def dress(ax: Axes, palette: Palette, x: str, y: str) -> None:
    """Frame, grid and units of a plot; the unit of the vertical axis stands above it, where it reads horizontally."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(palette.faint)
    ax.tick_params(color=palette.faint, labelcolor=palette.muted, labelsize=SIZE, length=3, pad=3, which="both")
    ax.grid(True, axis="y", color=palette.faint, linewidth=0.5)
    ax.set_axisbelow(True)
    ax.set_xlabel(x, color=palette.muted, labelpad=3, fontsize=SIZE)
    ax.annotate(y, (0, 1), (-26, 7), xycoords="axes fraction", textcoords="offset points", color=palette.muted, fontsize=SIZE)


def legend(ax: Axes, palette: Palette, columns: int = 4) -> None:
    """Above the plot, to the right, however tall it is."""
    inches = ax.bbox.height / ax.figure.dpi
    ax.legend(
        loc="lower right",
        bbox_to_anchor=(1.03, 1 - 0.02 / inches),
        ncols=columns,
        frameon=False,
        fontsize=SIZE,
        labelcolor=palette.ink,
        borderaxespad=0,
        handlelength=1.3,
        handletextpad=0.45,
        columnspacing=1.0,
    )


def to_svg(figure: Figure, name: str, label: str) -> str:
    """A figure in the `PAGE` palette as an <svg> element: named colours, ids of its own, nothing outside itself."""
    buffer = io.StringIO()
    with mpl.rc_context(SAVING):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' (xmlns(:\w+)?|version)="[^"]*"', "", text)
    text = re.sub(r'^<svg [^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{escape(label)}">', text)
    text = re.sub(r" font-family: [^;]*;", "", text)  # the page's own
    text = text.replace("xlink:href", "href")
    text = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r'(?<= d=")[^"]*', _hundredths, text)
    for field in PAGE.__dataclass_fields__:
        text = text.replace(getattr(PAGE, field), f"var(--{field})")
    return re.sub(r"\s*\n\s*", "\n", text).strip()


def _hundredths(path: re.Match[str]) -> str:
    """A path's coordinates to hundredths of a point, which halves the page."""
    return re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", path[0])


def to_png(figure: Figure, path: Path) -> Path:
    """A figure in the `LIGHT` palette as a picture file."""
    with mpl.rc_context(SAVING):
        figure.savefig(path, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return path


def variables(palette: Palette, paper: str, card: str) -> str:
    """A palette as CSS variables."""
    return (
        "".join(f"--{field}:{getattr(palette, field)};" for field in PAGE.__dataclass_fields__)
        + f"--paper:{paper};--card:{card};"
    )


CSS = (
    ":root{color-scheme:light dark;" + variables(LIGHT, "#ffffff", "#f7f8fa") + "}\n"
    "@media (prefers-color-scheme:dark){:root{" + variables(DARK, "#12151b", "#1a1e26") + "}}\n"
    """
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
  font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main,header,footer{max-width:1180px;margin:0 auto;padding:0 24px}
header{padding-top:48px}
header .name{color:var(--muted);margin:0}
h1{font-size:clamp(1.7rem,4vw,2.5rem);line-height:1.2;margin:.2em 0 .4em;letter-spacing:-.02em;font-weight:650}
h1 data{color:var(--accent)}
h2{font-size:1.3rem;margin:3.2em 0 .3em;letter-spacing:-.01em;font-weight:650}
h3{font-size:1rem;margin:2em 0 .2em;font-weight:600}
p{margin:.4em 0 1em;max-width:74ch}
.lead{font-size:1.1rem}
.muted,figcaption,.how{color:var(--muted)}
.grid{display:grid;gap:28px 32px;grid-template-columns:repeat(auto-fill,minmax(min(100%,330px),1fr));margin-top:1.4em}
.beside{display:flex;flex-wrap:wrap;gap:12px 48px;margin-top:1.4em}
.beside figure{flex:0 1 356px}
.beside .rest{flex:1 1 300px;min-width:0;max-width:600px}
.small{grid-template-columns:repeat(auto-fill,minmax(min(100%,250px),1fr));gap:14px 24px}
.facts{grid-template-columns:repeat(auto-fill,minmax(min(100%,260px),1fr));gap:16px}
.fact{background:var(--card);border-radius:10px;padding:16px 18px}
.fact h3{margin:0;font-size:.88rem;font-weight:600;color:var(--muted)}
.fact .value{font-size:1.6rem;line-height:1.25;font-weight:620;letter-spacing:-.01em;margin:.1em 0 .25em}
.fact .value small{font-size:.9rem;font-weight:450;color:var(--muted);letter-spacing:0}
.fact .how{font-size:.875rem;line-height:1.45;margin:0}
figure{margin:0;min-width:0}
figure svg,figure video{display:block;width:100%;height:auto}
figure h3{margin:0 0 .3em;font-size:.95rem}
figure video{border-radius:8px;background:#000;margin-bottom:8px}
figcaption{font-size:.875rem;line-height:1.45;margin-top:.35em}
.missing{border-left:3px solid var(--faint);padding:.1em 0 .1em 14px;color:var(--muted)}
.rates{display:grid;grid-template-columns:auto 1fr auto;grid-auto-flow:row dense;gap:10px 18px;
 align-items:center;margin:1.8em 0 2.2em}
.rates .track,.rates .scale{grid-column:2}
.rates .value{grid-column:3}
.rates .track{position:relative;height:22px;background:linear-gradient(var(--faint),var(--faint)) center/100% 1px no-repeat}
.rates .ci{position:absolute;top:8px;height:6px;border-radius:3px;background:var(--muted);opacity:.45}
.rates .dot{position:absolute;top:5px;width:12px;height:12px;margin-left:-6px;border-radius:50%;background:var(--muted);
  border:2px solid var(--paper)}
.rates .main .ci,.rates .main .dot{background:var(--accent)}
.rates .value{font-variant-numeric:tabular-nums;text-align:right}
.rates .scale{display:flex;justify-content:space-between;color:var(--muted);font-size:.8rem}
.key{display:flex;flex-wrap:wrap;gap:4px 22px;font-size:.875rem;color:var(--muted);margin:.8em 0}
.key svg{width:30px;height:10px;vertical-align:middle;margin-right:7px}
table{border-collapse:collapse;font-size:.9rem;margin:.6em 0 1.4em;display:block;overflow-x:auto}
th:first-child{white-space:nowrap}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
td,th{text-align:left;padding:5px 22px 5px 0;border-bottom:1px solid var(--faint);font-weight:400;vertical-align:top}
th{color:var(--muted)}
code,pre{font:.85em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
pre{background:var(--card);padding:16px 18px;border-radius:10px;overflow-x:auto;overflow-wrap:normal}
details{margin:1em 0}
summary{cursor:pointer;color:var(--accent)}
dl{display:grid;grid-template-columns:minmax(7em,auto) 1fr;gap:8px 22px;font-size:.92rem;max-width:90ch}
dt{font-weight:600}dd{margin:0;color:var(--muted)}
footer{color:var(--muted);font-size:.85rem;padding-top:40px;padding-bottom:60px}
a{color:var(--accent)}
@media (max-width:560px){
  main,header,footer{padding-left:16px;padding-right:16px}
  .rates{grid-template-columns:1fr auto;gap:2px 12px}
  .rates .track,.rates .scale{grid-column:1/-1;margin-bottom:10px}
  .rates .value{grid-column:2}
  dl{grid-template-columns:1fr;gap:2px}dd{margin-bottom:10px}
}
@media print{details{display:block}.fact{border:1px solid var(--faint)}}
"""
)
