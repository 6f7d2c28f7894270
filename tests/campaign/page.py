"""A page that stands alone, for reports of long runs: its frame, and the parts of its pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

STYLE = Path(__file__).with_name("page.css")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 1100.0, 240.0, 70.0, 12.0, 14.0, 210.0
SERIES_MAX = 5

Points = Sequence[tuple[float, float]]


def page(title: str, lead: str, body: str, *, good: bool) -> str:
    """The whole document; `lead` is text, `body` HTML."""
    tone = "good" if good else "bad"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>pycolo: {escape(title)}</title>'
        f'<meta name="color-scheme" content="light dark"><style>{STYLE.read_text()}</style></head><body><main>'
        f'<h1 class="{tone}">{escape(title)}</h1><p class="lead">{escape(lead)}</p>{body}</main></body></html>\n'
    )


def card(title: str, body: str) -> str:
    """A part of the page; `body` is HTML."""
    return f'<section class="card"><h2>{escape(title)}</h2>{body}</section>'


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], tones: Sequence[str]) -> str:
    """Texts in cells; the tone of a row is a class of its first cell."""
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    lines = [
        f'<tr><td class="{tone}">{escape(row[0])}</td>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row, tone in zip(rows, tones, strict=True)
    ]
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def picture(lines: Mapping[str, Points], unit: str, over: str, *, dots: bool = False) -> str:
    """Lines, or dots, from zero up; what they are stands above, `over` what they run over."""
    points = [point for series in lines.values() for point in series]
    if not points:
        return "<p>nothing was seen</p>"
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    top = max(max(y for _, y in points), 1e-9) * 1.05

    def place(x: float, y: float) -> tuple[float, float]:
        share = (x - first) / ((last - first) or 1.0)
        return LEFT + share * (WIDTH - LEFT - RIGHT), BOTTOM - y / top * (BOTTOM - TOP)

    parts = [_axis(part / 4 * top, place(first, part / 4 * top)[1], unit) for part in range(5)]
    parts += [
        _text(LEFT, BOTTOM + 18, f"{first:g}", "start"),
        _text(WIDTH - RIGHT, BOTTOM + 18, f"{last:g} {over}", "end"),
    ]
    for number, (name, series) in enumerate(lines.items()):
        placed = [place(x, y) for x, y in series]
        parts.append(_series(f"series{number % SERIES_MAX}", name, placed, dots=dots))
    names = " ".join(
        f'<span class="series{number % SERIES_MAX}">&#9632; {escape(name)}</span>' for number, name in enumerate(lines)
    )
    return f'<p>{names}</p><svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img">{"".join(parts)}</svg>'


def _series(css: str, name: str, placed: Points, *, dots: bool) -> str:
    tip = f"<title>{escape(name)}</title>"
    if dots:
        spots = "".join(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3.5">{tip}</circle>' for x, y in placed)
        return f'<g class="{css}">{spots}</g>'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    return f'<g class="{css}"><polyline class="line" points="{path}">{tip}</polyline></g>'


def _axis(value: float, y: float, unit: str) -> str:
    line = f'<line class="axis" x1="{LEFT:g}" y1="{y:.1f}" x2="{WIDTH - RIGHT:g}" y2="{y:.1f}"/>'
    return line + _text(LEFT - 8, y + 4, f"{value:.3g} {unit}", "end")


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
