"""The page for people: headline, figures, plots; everything inline, every text from outside escaped."""

from collections import Counter
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from itertools import groupby
from string import Template

from pycolo.demo.report import GAP_MS_MAX, Figure, Report, Round, Series, figures, number, outcome, verdict
from pycolo.demo.report_plot import LABELS, kind_class, plot, reasons_of

PLOT_WIDTH, ZOOM_WIDTH = 1120.0, 1120.0
ZOOM_MS = (-500.0, 1000.0)


def page(report: Report, series: Sequence[Series]) -> str:
    """report.html as text; `series` has one item per round."""
    template = Template(files("pycolo.demo").joinpath("report_template.html").read_text(encoding="utf-8"))
    ok, reasons = verdict(report)
    return template.substitute(
        tone="good" if ok else "bad",
        mark="✓" if ok else "✕",
        headline="No client noticed" if ok else f"A client noticed: {escape(reasons[0])}",
        lead=_lead(report, reasons),
        tiles="".join(_tiles(report)),
        what=_what(report),
        table=_table(report),
        rounds="".join(_round(r, s) for r, s in zip(report.rounds, series, strict=True)),
    )


def _lead(report: Report, reasons: Sequence[str]) -> str:
    if len(reasons) > 1:
        return f"Also: {escape('; '.join(reasons[1:]))}."
    if reasons:
        return "Everything else was as it should be."
    killed = " and ".join(dict.fromkeys(f"the {round_.killed}" for round_ in report.rounds))
    return (
        f"We killed {killed} under load. From outside, every answer was verified: no reset, no wrong byte, "
        "no lost acknowledged write, and every connection that was open stayed open."
    )


def _tiles(report: Report) -> list[str]:
    clients = [round_.client for round_ in report.rounds]
    gap = max((client.longest_gap_ms for client in clients), default=0.0)
    bad = sum(c.failed + c.reset + c.wrong_bytes + c.lost_acknowledged for c in clients)
    takeovers = [r.failover.takeover_ms for r in report.rounds if r.failover.takeover_ms is not None]
    return [
        _tile("requests, every answer verified", number(sum(client.requests for client in clients)), ""),
        _tile("failed, reset, wrong or lost", number(bad), "good" if bad == 0 else "bad"),
        _tile(
            f"longest gap, goal under {GAP_MS_MAX:g} ms",
            f"{number(gap)} <small>ms</small>",
            _tone(gap < GAP_MS_MAX),
        ),
        _tile("from kill to output", f"{number(max(takeovers, default=None))} <small>ms</small>", ""),
    ]


def _tone(good: bool | None) -> str:
    return "" if good is None else "good" if good else "bad"


def _tile(name: str, value: str, tone: str) -> str:
    return f'<div class="tile {tone}"><b>{value}</b><span>{escape(name)}</span></div>'


def _what(report: Report) -> str:
    cpus = f"{report.guest.cpus} CPU" + ("s" if report.guest.cpus != 1 else "")
    chips = [f"QEMU {report.qemu_version}", report.accel, f"guest: {report.guest.memory_mib} MiB, {cpus}"]
    return "".join(f"<span>{escape(chip)}</span>" for chip in chips)


def _table(report: Report) -> str:
    if not report.rounds:
        return ""
    heads = "".join(f"<th>{escape(round_.title)}</th>" for round_ in report.rounds)
    lines = list(zip(*map(figures, report.rounds), strict=True))
    body = []
    for group, rows in groupby(lines, key=lambda line: line[0].group):
        body.append(f'<tr class="group"><th colspan="{len(report.rounds) + 1}">{escape(group)}</th></tr>')
        body += [f"<tr><th>{escape(row[0].name)}</th>{''.join(map(_cell, row))}</tr>" for row in rows]
    return f"<table><thead><tr><th></th>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _cell(figure: Figure) -> str:
    return f'<td class="{_tone(figure.good)}">{escape(figure.value)}</td>'


def _round(round_: Round, series: Series) -> str:
    done = f"The {outcome(round_.killed, series.takeover_ms is not None)}.".replace("The nobody", "Nobody")
    errors = "".join(f"<li>{escape(error)}</li>" for error in round_.client.errors)
    return (
        f'<section class="card"><h2>The {escape(round_.title.replace(" killed", " is killed"))}</h2>'
        f'<p class="quiet">SIGKILL under load. {done} Each dot is an answer, at the time of its '
        "question; rings mark the slowest small ones.</p>"
        f"{_legend(series)}{plot(series, round_.killed, PLOT_WIDTH)}"
        f"<h3>Around the kill</h3>{plot(series, round_.killed, ZOOM_WIDTH, ZOOM_MS)}"
        f"{f'<h3>What the clients noticed</h3><ul>{errors}</ul>' if errors else ''}</section>"
    )


def _legend(series: Series) -> str:
    kinds = Counter(kind for _, _, kind in series.samples)
    items = [
        f'<span><i class="dot {kind_class(kind)}"></i>{escape(LABELS.get(kind, kind))} <em>{number(count)}</em></span>'
        for kind, count in sorted(kinds.items(), key=lambda item: kind_class(item[0]))
    ]
    taken = Counter(reason for _, reason, _ in series.checkpoints)
    items += [
        f'<span><i class="tick {css}"></i>checkpoint, {escape(reason)} <em>{number(taken[reason])}</em></span>'
        for reason, css in reasons_of(series).items()
    ]
    return f'<div class="legend">{"".join(items)}</div>'
