"""What became of a frame, in the one line that stands as its comment in a capture of ours."""

from __future__ import annotations

from typing import Literal

from pycolo.capture.engine import Divergence

Verdict = Literal["equal", "checkpoint", "policy", "link control", "solo"]

_SHOWN_BYTES = 8
_SENTENCES: dict[Verdict, str] = {
    "equal": "released: the secondary sent the same",
    "checkpoint": "released: a checkpoint after it is committed",
    "policy": "released: `compare` of vm.toml says so",
    "link control": "released: it carries no application state",
    "solo": "released: this host has the claim and no partner",
}


def verdict_comment(
    verdict: Verdict, epoch: int | None, held_ms: float | None, divergence: Divergence | None = None
) -> str:
    """Why it left, in which epoch it was produced, how long it was held, if that is known; where the copies differ."""
    parts = [_SENTENCES[verdict]]
    if epoch is not None:
        parts.append(f"epoch {epoch}")
    if held_ms is not None:
        parts.append(f"held {held_ms:.1f} ms")
    if divergence is not None:
        parts.append(_difference(divergence))
    return "; ".join(parts)


def _difference(divergence: Divergence) -> str:
    where = "" if divergence.offset is None else f" at byte {divergence.offset}"
    sides = (("primary", divergence.pvm), ("secondary", divergence.svm))
    said = [f"{side} {data[:_SHOWN_BYTES].hex(' ')}" for side, data in sides if data]
    return ", ".join([f"{divergence.what}{where}", *said])
