"""The report as a page that stands alone: bars for the figures, all tables, and how it was measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape
from pathlib import Path

from .figures import FIGURES, Figure, Found, Spread, cells, contestants, without_figure

STYLE = Path(__file__).with_name("page.css")
LABEL_PX, BAR_PX, WIDTH_PX, GAP_PX = 230.0, 13.0, 1080.0, 12.0
LOWEST_OF_LOG = 0.5
DRAWN = (FIGURES[0], FIGURES[4], FIGURES[9], FIGURES[14])
LEAD = (
    "The same guest, the same clients, one contestant at a time, booted anew for each measurement; all take turns. "
    "Median and range over the rounds. Only ratios mean anything on a machine with two cores. "
    "qemu: QEMU's own COLO, its checkpoints over a unix socket or over TCP; patient: over a unix socket, its threads "
    "made patient as ours are, which no manual says. QEMU has no TLS there; ours has, but where the name says so. "
    "checkpoints: our engine with the comparison off, as micro-checkpointing does it."
)


def write_page(found: Found, path: Path) -> None:
    """Write it."""
    names = contestants(found)
    cards = [_card(figure.title, _bars(figure, found, names)) for figure in DRAWN]
    cards += [_card(figure.title, _table(figure, found, names)) for figure in FIGURES]
    cards.append(_card("No figure", _failures(found)))
    path.write_text(
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>pycolo side by side</title>'
        f'<meta name="color-scheme" content="light dark"><style>{STYLE.read_text()}</style></head><body><main>'
        f'<h1>Side by side</h1><p class="lead">{escape(LEAD)}</p>{"".join(card for card in cards if card)}'
        "</main></body></html>\n"
    )


def _card(title: str, body: str) -> str:
    return f'<section class="card"><h2>{escape(title)}</h2>{body}</section>' if body else ""


def _bars(figure: Figure, found: Found, names: list[str]) -> str:
    lines = cells(figure, found)
    if not lines:
        return ""
    top = max(cell.high for line in lines.values() for cell in line if cell)

    def length(value: float) -> float:
        if figure.log:
            share = math.log(max(value, LOWEST_OF_LOG) / LOWEST_OF_LOG) / math.log(max(top / LOWEST_OF_LOG, 1.01))
        else:
            share = value / top
        return share * (WIDTH_PX - LABEL_PX - 130)

    parts, y = [], 4.0
    for workload, line in lines.items():
        parts.append(f'<text class="label" x="{LABEL_PX - 10:g}" y="{y + BAR_PX:g}">{escape(workload)}</text>')
        for number, (name, cell) in enumerate(zip(names, line, strict=True)):
            if cell is not None:
                parts.append(_bar(f"{name}, {workload}", number, y, cell, length, figure.digits))
                y += BAR_PX
        y += GAP_PX
    legend = " ".join(f'<span class="c{number}">&#9632; {escape(name)}</span>' for number, name in enumerate(names))
    scale = '<p class="note">logarithmic</p>' if figure.log else ""
    return f'<p>{legend}</p>{scale}<svg viewBox="0 0 {WIDTH_PX:g} {y:g}" role="img">{"".join(parts)}</svg>'


def _bar(tip: str, number: int, y: float, cell: Spread, length: Callable[[float], float], digits: int) -> str:
    end, low, high = (LABEL_PX + length(value) for value in (cell.median, cell.low, cell.high))
    middle = y + (BAR_PX - 2) / 2
    return (
        f"<g><title>{escape(tip)}: {escape(cell.text(digits))}</title>"
        f'<rect class="c{number}" x="{LABEL_PX:g}" y="{y:g}" width="{max(end - LABEL_PX, 1):.1f}" '
        f'height="{BAR_PX - 2:g}"/>'
        f'<line class="range" x1="{low:.1f}" x2="{high:.1f}" y1="{middle:g}" y2="{middle:g}"/>'
        f'<text class="value" x="{max(end, high) + 6:.1f}" y="{y + BAR_PX - 3:g}">{cell.median:.{digits}f}</text></g>'
    )


def _table(figure: Figure, found: Found, names: list[str]) -> str:
    lines = cells(figure, found)
    if not lines:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(
        f"<tr><td>{escape(workload)}</td>"
        + "".join(f"<td>{escape(cell.text(figure.digits)) if cell else ''}</td>" for cell in line)
        + "</tr>"
        for workload, line in lines.items()
    )
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>"


def _failures(found: Found) -> str:
    items = "".join(f"<li>{escape(reason)}</li>" for reason in without_figure(found))
    return f"<ul>{items}</ul>" if items else ""
