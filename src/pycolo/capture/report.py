"""What a comparison found: as a text for people, and as one JSON object for programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pycolo.capture.compare import SHOWN_MAX, CaptureFacts, Found, Outcome
from pycolo.capture.engine import Divergence
from pycolo.capture.protocol_view import side_by_side

_HEX_WIDTH, _HEX_AT = 16, 25  # bytes in a line, and the column of the first
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
        "primary_frame": found.primary.number,
        "secondary_frame": found.secondary.number,
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
    all_frames = _frames(outcome.primary.frames)
    yield f"released     {outcome.released} of the primary's {all_frames}: the secondary sent the same"
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
    numbers = (("primary", found.primary.number), ("secondary", found.secondary.number))
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
    """The bytes of both sides in turns, sixteen to a line, with a mark below the first that differs."""
    ours, theirs = divergence.pvm, divergence.svm
    mark = _first_difference(ours, theirs)
    for at in range(0, max(len(ours), len(theirs)), _HEX_WIDTH):
        place = at + (divergence.offset or 0)
        for side, said in (("primary", ours), ("secondary", theirs)):
            if said[at:]:
                yield f"     {side:<9} {place:>8}  {_hex_line(said[at : at + _HEX_WIDTH])}"
        if ours and theirs and at <= mark < at + _HEX_WIDTH:
            column = mark - at
            yield " " * (_HEX_AT + 3 * column) + "^^" + " " * (3 * _HEX_WIDTH - 2 * column) + "^"


def _first_difference(ours: bytes, theirs: bytes) -> int:
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(ours), len(theirs)))


def _hex_line(data: bytes) -> str:
    text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data)
    return f"{data.hex(' '):<{3 * _HEX_WIDTH - 1}}  |{text}|"


def _headers(found: Found) -> Iterator[str]:
    """The headers side by side; a star before what differs, where there are two."""
    rows = side_by_side(found.primary.frame, found.secondary.frame)
    if not rows:
        return
    both = found.primary.frame is not None and found.secondary.frame is not None
    names = max(len(f"{row.layer} {row.name}") for row in rows)
    values = max(len("primary"), *(len(_cell(row.primary)) for row in rows))
    yield f"     {'':<{names}}  {'primary':<{values}}  secondary"
    for row in rows:
        star = "*" if both and row.differs else " "
        yield f"   {star} {row.layer + ' ' + row.name:<{names}}  {_cell(row.primary):<{values}}  {_cell(row.secondary)}"


def _cell(value: str | None) -> str:
    if value is None:
        return "-"
    return value if len(value) <= _COLUMN_MAX else f"{value[: _COLUMN_MAX - 3]}..."
