"""What a comparison found: as a text for people, and as one JSON object for programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pycolo.capture.compare import SHOWN_MAX, CaptureFacts, Found, Outcome
from pycolo.capture.engine import Divergence
from pycolo.capture.protocol_view import Row, side_by_side

_HEX_WIDTH = 16
_COLUMN_MAX = 48
_WHAT = {
    "payload": "the payload differs",
    "header": "the headers differ",
    "syn": "the connection is opened differently (SYN)",
    "fin": "the stream ends differently (FIN)",
    "reset": "a reset differs (RST)",
    "options": "the TCP options differ",
    "contradiction": "one copy contradicts what it sent before",
    "missing": "the primary sent what the secondary did not",
    "surplus": "the secondary sent what the primary did not",
}


# ---------------------------------------------------------------- for programs


def as_document(outcome: Outcome) -> dict[str, Any]:
    """The JSON object that `colo compare --json` prints."""
    return {
        "primary": _capture(outcome.primary),
        "secondary": _capture(outcome.secondary),
        "frames": {"primary": outcome.primary.frames, "secondary": outcome.secondary.frames},
        "flows": outcome.flows,
        "flows_by_protocol": outcome.flows_by_protocol,
        "released": outcome.released,
        "divergences": [_entry(found) for found in outcome.found],
    }


def _capture(facts: CaptureFacts) -> dict[str, Any]:
    return {
        "file": facts.name,
        "frames": facts.frames,
        "frames_skipped": facts.frames_skipped,
        "frames_cut": facts.frames_cut,
        "damage": facts.damage,
    }


def _entry(found: Found) -> dict[str, Any]:
    divergence = found.divergence
    return {
        "flow": _flow(divergence),
        "protocol": divergence.protocol,
        "source": divergence.source,
        "target": divergence.target,
        "vlans": list(divergence.vlans),
        "what": divergence.what,
        "offset": divergence.offset,
        "primary": divergence.pvm.hex(),
        "secondary": divergence.svm.hex(),
        "primary_frame": found.primary_number,
        "secondary_frame": found.secondary_number,
    }


def _flow(divergence: Divergence) -> str:
    tags = f" VLAN {'.'.join(map(str, divergence.vlans))}" if divergence.vlans else ""
    return f"{divergence.protocol} {divergence.source} > {divergence.target}{tags}"


# ---------------------------------------------------------------- for people


def as_text(outcome: Outcome) -> str:
    """The report: what was read, then the first divergences with bytes and headers."""
    parts: list[Iterable[str]] = [_summary(outcome)]
    parts += (_divergence(number, found) for number, found in enumerate(outcome.found[:SHOWN_MAX], 1))
    if len(outcome.found) > SHOWN_MAX:
        parts.append([f"{len(outcome.found) - SHOWN_MAX} more divergences: `--json` has them all"])
    return "\n\n".join("\n".join(part) for part in parts)


def _summary(outcome: Outcome) -> Iterator[str]:
    by_protocol = ", ".join(f"{count} {name}" for name, count in sorted(outcome.flows_by_protocol.items()))
    yield f"primary      {_counts(outcome.primary)}"
    yield f"secondary    {_counts(outcome.secondary)}"
    yield f"flows        {outcome.flows}{f': {by_protocol}' if by_protocol else ''}"
    yield f"released     {_frames(outcome.released)} of the primary: the secondary sent the same"
    yield f"divergences  {len(outcome.found) or 'none'}"


def _counts(facts: CaptureFacts) -> str:
    text = f"{facts.name}: {_frames(facts.frames) if facts.frames else 'no frames'}"
    if facts.frames_skipped:
        text += f", {facts.frames_skipped} more of other link types passed over"
    if facts.frames_cut:
        text += f", {facts.frames_cut} of them cut by the snap length: capture whole frames (tcpdump -s 0)"
    return text + (", then damaged" if facts.damage else "")


def _frames(count: int) -> str:
    return f"{count} frame{'' if count == 1 else 's'}"


def _divergence(number: int, found: Found) -> list[str]:
    lines = [f"{number}. {_flow(found.divergence)}: {_place(found.divergence)}"]
    numbers = (("primary", found.primary_number), ("secondary", found.secondary_number))
    frames = [f"{side} frame {at}" for side, at in numbers if at is not None]
    if frames:
        lines.append(f"   {', '.join(frames)}")
    return [*lines, *_bytes(found.divergence), *_headers(found)]


def _place(divergence: Divergence) -> str:
    what = _WHAT.get(divergence.what, divergence.what)
    if divergence.offset is None:
        return what
    return f"{what}, from byte {divergence.offset} of the {'stream' if divergence.protocol == 'tcp' else 'payload'} on"


def _bytes(divergence: Divergence) -> Iterator[str]:
    """Both sides' bytes, a pair of lines for each sixteen, and below it a mark at the first that differs."""
    ours, theirs = divergence.pvm, divergence.svm
    first = next((n for n, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other), None)
    if first is None:
        first = min(len(ours), len(theirs))
    for at in range(0, max(len(ours), len(theirs)), _HEX_WIDTH):
        label = at + (divergence.offset or 0)
        yield f"     primary   {label:>8}  {_hex_line(ours[at : at + _HEX_WIDTH])}"
        yield f"     secondary {label:>8}  {_hex_line(theirs[at : at + _HEX_WIDTH])}"
        if at <= first < at + _HEX_WIDTH:
            mark = first - at
            yield " " * (25 + 3 * mark) + "^^" + " " * (3 * _HEX_WIDTH - 2 * mark) + "^"


def _hex_line(data: bytes) -> str:
    if not data:
        return "(nothing)"
    text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data)
    return f"{data.hex(' '):<{3 * _HEX_WIDTH - 1}}  |{text}|"


def _headers(found: Found) -> Iterator[str]:
    """The headers side by side; a star before what differs."""
    rows = side_by_side(found.primary_frame, found.secondary_frame)
    if not rows:
        return
    title = Row("", "", "primary", "secondary")
    names = max(len(f"{row.layer} {row.name}") for row in rows)
    values = max(len(_cell(row.primary)) for row in (title, *rows))
    yield f"     {'':<{names}}  {_cell(title.primary):<{values}}  {_cell(title.secondary)}"
    for row in rows:
        star = "*" if row.differs else " "
        yield f"   {star} {row.layer + ' ' + row.name:<{names}}  {_cell(row.primary):<{values}}  {_cell(row.secondary)}"


def _cell(value: str | None) -> str:
    if value is None:
        return "-"
    return value if len(value) <= _COLUMN_MAX else f"{value[: _COLUMN_MAX - 3]}..."
