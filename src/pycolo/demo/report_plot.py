"""One round as a picture: an SVG with the latencies, the checkpoints and the kill on one axis of time.

Guarantees: no point that would be visible is dropped (thinning merges only points that fall on the same spot, and keeps
the slowest of them); the slowest small answers carry a ring and a tip; texts from outside are escaped.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from pycolo.demo.report import Series, number, outcome, quantile

KINDS = ("redis", "http", "download", "tcp", "udp", "icmp", "readback", "database")
LABELS = {
    "http": "http, small",
    "download": "http, large download",
    "tcp": "tcp echo",
    "udp": "udp echo",
    "icmp": "ping",
    "database": "database transaction",
    "readback": "final read-back",
}
REASON_CLASSES_MAX = 6
LARGE = ("download", "readback")
"""Slow by their size: no ring for them."""
SLOWEST_TIPPED = 8
LATENCY_TOP, LATENCY_BOTTOM = 34.0, 268.0
PAUSE_TOP, PAUSE_BOTTOM = 292.0, 346.0
HEIGHT, LEFT, RIGHT_MARGIN = 380.0, 62.0, 16.0
LABEL_PX = 220.0
_SPOT_PX = 1.6
_CHECKPOINT_BARS_MAX = 1500


@dataclass(frozen=True)
class Frame:
    """The scales of one plot: times in ms from the start of the load, latencies on a logarithmic axis."""

    width: float
    from_ms: float
    to_ms: float
    floor_ms: float
    top_ms: float
    pause_ms_max: float

    def x(self, t_ms: float) -> float:
        share = (t_ms - self.from_ms) / (self.to_ms - self.from_ms)
        return LEFT + share * (self.width - LEFT - RIGHT_MARGIN)

    def y(self, latency_ms: float) -> float:
        low, high = math.log10(self.floor_ms), math.log10(self.top_ms)
        share = (math.log10(max(latency_ms, self.floor_ms)) - low) / (high - low)
        return LATENCY_BOTTOM - min(share, 1.0) * (LATENCY_BOTTOM - LATENCY_TOP)

    def pause_y(self, pause_ms: float) -> float:
        return PAUSE_BOTTOM - min(pause_ms / self.pause_ms_max, 1.0) * (PAUSE_BOTTOM - PAUSE_TOP)

    def shows(self, t_ms: float) -> bool:
        return self.from_ms <= t_ms <= self.to_ms


def start_of(series: Series) -> float:
    """When the load started: the earliest thing known."""
    times = [t for t, _, _ in series.samples] + [t for t, _, _ in series.checkpoints] + [series.kill_ms]
    return min(times)


def plot(series: Series, killed: str, width: float, around_kill_ms: tuple[float, float] | None = None) -> str:
    """An SVG, `width` px wide; the whole run, or only from..to ms around the kill."""
    start = start_of(series)
    samples = [(t - start, latency, kind) for t, latency, kind in series.samples]
    taken = [(t - start, reason, pause) for t, reason, pause in series.checkpoints]
    kill = series.kill_ms - start
    takeover = None if series.takeover_ms is None else series.takeover_ms - start
    ends = [kill + 1000, *(t + latency for t, latency, _ in samples), *(t for t, _, _ in taken)]
    window = (kill + around_kill_ms[0], kill + around_kill_ms[1]) if around_kill_ms else (0.0, max(ends))
    frame = _frame(window, width, samples, taken)
    seen = [sample for sample in samples if frame.shows(sample[0])]
    parts = [
        _grid(frame),
        _checkpoints(frame, [c for c in taken if frame.shows(c[0])], _reason_classes(taken)),
        _points(frame, seen),
        _slowest(frame, seen),
        _death(frame, kill, takeover, killed),
    ]
    label = f"Latency of every answer over time; the {killed} is killed at {kill / 1000:.2f} s"
    return f'<svg viewBox="0 0 {width:g} {HEIGHT:g}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _frame(
    window: tuple[float, float],
    width: float,
    samples: Sequence[tuple[float, float, str]],
    taken: Sequence[tuple[float, str, float]],
) -> Frame:
    latencies = [latency for _, latency, _ in samples] or [1.0]
    floor = 10 ** math.floor(math.log10(max(quantile(latencies, 0.02), 0.01)))  # a few at the edge save a decade
    top = max(10 ** math.ceil(math.log10(max(*latencies, 0.02) * 1.15)), floor * 10)
    return Frame(width, *window, floor, top, max([pause for _, _, pause in taken] + [1.0]) * 1.1)


def _text(x: float, y: float, text: str, css: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{css}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>'


def _grid(frame: Frame) -> str:
    right = frame.width - RIGHT_MARGIN
    parts = [_text(LEFT - 46, LATENCY_TOP - 14, "latency", "axis name")]
    for power in range(round(math.log10(frame.floor_ms)), round(math.log10(frame.top_ms)) + 1):
        y = frame.y(10.0**power)
        parts.append(_line(LEFT, y, right, y, "grid"))
        parts.append(_text(LEFT - 8, y + 4, _latency_label(power), "axis", "end"))
    parts += [
        _line(LEFT, PAUSE_BOTTOM, right, PAUSE_BOTTOM, "grid strong"),
        _text(LEFT - 8, PAUSE_TOP + 10, f"{number(frame.pause_ms_max / 1.1)} ms", "axis", "end"),
        _text(LEFT - 8, PAUSE_BOTTOM, "pause", "axis name", "end"),
    ]
    step = _step_ms(frame.to_ms - frame.from_ms)
    for i in range(math.ceil(frame.from_ms / step), math.floor(frame.to_ms / step) + 1):
        x = frame.x(i * step)
        parts.append(_line(x, LATENCY_TOP, x, PAUSE_BOTTOM, "grid faint"))
        parts.append(_text(x, PAUSE_BOTTOM + 20, f"{i * step / 1000:g} s", "axis", "middle"))
    return "".join(parts)


def _latency_label(power: int) -> str:
    return f"{10 ** (power - 3):g} s" if power >= 3 else f"{10.0**power:g} ms"


def _step_ms(span_ms: float) -> float:
    """A round step that gives at most ten marks."""
    for step in (50, 100, 200, 500, 1000, 2000, 5000, 10000, 30000, 60000, 300000):
        if span_ms / step <= 10:
            return step
    return span_ms / 10


def thin_points(frame: Frame, samples: Sequence[tuple[float, float, str]]) -> dict[str, list[tuple[float, float]]]:
    """Pixel positions by kind; of points on the same spot only the slowest stays."""
    spots: dict[tuple[str, int, int], tuple[float, float]] = {}
    for t_ms, latency, kind in sorted(samples, key=lambda sample: sample[1]):
        x, y = frame.x(t_ms), frame.y(latency)
        spots[kind, round(x / _SPOT_PX), round(y / _SPOT_PX)] = (x, y)
    by_kind: dict[str, list[tuple[float, float]]] = {}
    for (kind, _, _), spot in spots.items():
        by_kind.setdefault(kind, []).append(spot)
    return by_kind


def _points(frame: Frame, samples: Sequence[tuple[float, float, str]]) -> str:
    by_kind = thin_points(frame, samples)
    parts = []
    for kind in sorted(by_kind, key=lambda k: -len(by_kind[k])):  # the rare kinds on top
        path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in sorted(by_kind[kind]))
        parts.append(f'<path class="dots {kind_class(kind)}" d="{path}"/>')
    return "".join(parts)


def kind_class(kind: str) -> str:
    """The class that gives a kind its colour; unknown kinds share one."""
    return f"kind{KINDS.index(kind)}" if kind in KINDS else "kindx"


def _slowest(frame: Frame, samples: Sequence[tuple[float, float, str]]) -> str:
    parts = []
    small = [sample for sample in samples if sample[2] not in LARGE]
    for t_ms, latency, kind in sorted(small, key=lambda sample: -sample[1])[:SLOWEST_TIPPED]:
        tip = f"{LABELS.get(kind, kind)}: {number(latency)} ms, asked at {t_ms / 1000:.3f} s"
        parts.append(
            f'<circle class="ring {kind_class(kind)}" cx="{frame.x(t_ms):.1f}" cy="{frame.y(latency):.1f}" r="5">'
            f"<title>{escape(tip)}</title></circle>"
        )
    return "".join(parts)


def _reason_classes(taken: Sequence[tuple[float, str, float]]) -> dict[str, str]:
    reasons = sorted({reason for _, reason, _ in taken})
    return {reason: f"reason{min(i, REASON_CLASSES_MAX - 1)}" for i, reason in enumerate(reasons)}


def reasons_of(series: Series) -> dict[str, str]:
    """Reason -> its class, the same in every plot of a series."""
    return _reason_classes(series.checkpoints)


def _checkpoints(frame: Frame, taken: Sequence[tuple[float, str, float]], classes: dict[str, str]) -> str:
    longest = sorted(taken, key=lambda checkpoint: -checkpoint[2])[:_CHECKPOINT_BARS_MAX]
    bar = min(max((frame.width - LEFT) / max(len(taken), 1) / 4, 1.2), 3.0)
    parts = []
    for t_ms, reason, pause in sorted(longest):
        x, y, css = frame.x(t_ms), frame.pause_y(pause), classes[reason]
        tip = f"checkpoint at {t_ms / 1000:.3f} s: {reason}, pause {number(pause)} ms"
        parts.append(
            f'<g class="checkpoint {css}">{_line(x, LATENCY_TOP, x, PAUSE_TOP - 6, "rule")}'
            f'<rect class="bar" x="{x - bar / 2:.1f}" y="{y:.1f}" width="{bar:.1f}" height="{PAUSE_BOTTOM - y:.1f}"/>'
            f'<rect class="hit" x="{x - 3:.1f}" y="{PAUSE_TOP:g}" width="6" height="{PAUSE_BOTTOM - PAUSE_TOP:g}">'
            f"<title>{escape(tip)}</title></rect></g>"
        )
    return "".join(parts)


def _death(frame: Frame, kill: float, takeover: float | None, killed: str) -> str:
    x = frame.x(kill)
    parts = []
    if takeover is not None:
        end = min(frame.x(takeover), frame.width - RIGHT_MARGIN)
        parts.append(
            f'<rect class="outage" x="{x:.1f}" y="{LATENCY_TOP - 18:g}" width="{max(end - x, 0):.1f}"'
            f' height="{PAUSE_BOTTOM - LATENCY_TOP + 18:g}"/>'
        )
        done = outcome(killed, went_on=True)
        if frame.shows(takeover):
            parts.append(_line(end, LATENCY_TOP - 18, end, PAUSE_BOTTOM, "takeover"))
        text = f"{done} +{takeover - kill:.0f} ms"
        if end < frame.width - LABEL_PX:
            parts.append(_text(end + 8, LATENCY_TOP - 8, text, "event takeover-text", "start"))
        else:  # on the left side, below the other label
            parts.append(_text(x - 8, LATENCY_TOP + 7, text, "event takeover-text", "end"))
    parts.append(_line(x, LATENCY_TOP - 18, x, PAUSE_BOTTOM, "kill"))
    parts.append(_text(x - 8, LATENCY_TOP - 8, f"{killed} killed", "event kill-text", "end"))
    return "".join(parts)
