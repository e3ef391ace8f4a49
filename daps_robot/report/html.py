"""Small pieces of HTML. Whatever comes from a run is escaped here, and every number carries its exact value."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path

from daps_robot.atomic import put
from daps_robot.errors import RunDirectoryError
from daps_robot.report.run import Run

Format = Callable[[float], str]


def write_document(path: Path, title: str, body: Iterable[str], css: str) -> Path:
    """Write a page that needs no other file; a reader finds the old one or the new one, never half.

    Raises:
        RunDirectoryError: it cannot be written.
    """
    text = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)} · daps_robot</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{css}</style></head>\n<body>{chr(10).join(body)}</body></html>\n"
    )
    try:
        put(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise RunDirectoryError(f"cannot write {path}: {error.strerror}") from error
    return path


def percent(value: float) -> str:
    """0.987 → 98.7%, 1.0 → 100%."""
    return f"{100 * value:.1f}".removesuffix(".0") + "%"


def whole(value: float) -> str:
    """12345.6 → 12,346."""
    return f"{value:,.0f}"


def short(value: float) -> str:
    """Three significant digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def number(run: Run, key: str, form: Format = short) -> str:
    """A number of the report as it is read, with its key and exact value beside it; a dash where the report has none."""
    value = run.get(key)
    if value is None:
        return "–"
    return f'<data data-key="{escape(key)}" value="{value!r}">{form(float(value))}</data>'


def missing(text: str) -> str:
    """A notice that something is not there, and why."""
    return f'<p class="missing">{escape(text)}</p>'


def figure(body: str, title: str, caption: str) -> str:
    """A plot or video under its title, with one line that says what it shows and what good looks like (plain text)."""
    return f"<figure><h3>{escape(title)}</h3>{body}<figcaption>{escape(caption)}</figcaption></figure>"


def grid(items: Iterable[str], kind: str = "") -> str:
    """Items beside each other as far as the window allows."""
    return f'<div class="grid {kind}">{"".join(items)}</div>'


def beside(left: str, right: str) -> str:
    """A figure and what goes with it, side by side where there is room."""
    return f'<div class="beside">{left}<div class="rest">{right}</div></div>'


def fact(title: str, value: str, how: str, absent: str = "") -> str:
    """A headline number (HTML) and how it was measured (HTML); or, where there is no value, why not (plain text)."""
    if not value:
        return f'<div class="fact"><h3>{escape(title)}</h3>{missing(absent)}</div>'
    return f'<div class="fact"><h3>{escape(title)}</h3><div class="value">{value}</div><p class="how">{how}</p></div>'


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Names (plain text) and values (HTML)."""
    return "<table>" + "".join(f"<tr><th>{escape(name)}</th><td>{value}</td></tr>" for name, value in rows) + "</table>"


def section(title: str, *body: str) -> str:
    """A part of the page."""
    return f"<section><h2>{escape(title)}</h2>{''.join(body)}</section>"


def paragraph(text: str, kind: str = "") -> str:
    """Running text (HTML)."""
    return f'<p class="{kind}">{text}</p>' if kind else f"<p>{text}</p>"
