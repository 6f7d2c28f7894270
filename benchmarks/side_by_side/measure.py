"""One measurement: a contestant boots, settles, is put under load and looked at from outside."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from pathlib import Path

from pycolo.demo.report import quantile
from pycolo.errors import PycoloError
from pycolo.guest.builder import GuestImage

from .subject import DeadError, Row, Start, Subject
from .workloads import Workload

SETTLE_S = 2.0
ASK_S = 1.0
AFTER_S = 0.6  # until the last events have been fetched


async def measure(start: Start, workload: Workload, image: GuestImage, folder: Path, disk: Path, seconds: float) -> Row:
    """The figures; `problem` says why there are none."""
    row: Row = {"unit": workload.unit, "problem": "", "rate": 0.0, "checkpoints": 0}
    try:
        async with start(image, folder, disk if workload.disk else None) as subject:
            row["first_sync_s"] = subject.first_sync_s
            await asyncio.sleep(SETTLE_S)
            subject.check()
            row |= await _under_load(subject, workload, seconds)
    except (DeadError, PycoloError) as problem:
        row["problem"] = str(problem) or type(problem).__name__
    return row


async def _under_load(subject: Subject, workload: Workload, seconds: float) -> Row:
    before, began_s, began_at_s = subject.cpu_s(), time.monotonic(), time.time()
    asking = asyncio.create_task(_ask(subject)) if workload.asks else None
    try:
        row = await workload.run(subject, seconds)
    finally:
        if asking is not None:
            asking.cancel()
    took_s, ended_at_s = time.monotonic() - began_s, time.time()
    spent = {name: after - before.get(name, 0.0) for name, after in subject.cpu_s().items()}
    subject.check()
    memory_mib = subject.secondary_mib()
    await asyncio.sleep(AFTER_S)
    row |= {"cpu_s": spent, "took_s": took_s, "secondary_mib": memory_mib}
    return row | _pauses(subject, began_at_s, ended_at_s) | await _checkpoints(subject, began_at_s, ended_at_s)


async def _ask(subject: Subject) -> None:
    while True:
        await asyncio.sleep(ASK_S)
        await subject.request()


def _pauses(subject: Subject, since_s: float, until_s: float) -> Row:
    """Times that the guest stood still, in ms; one for each checkpoint."""
    lengths = sorted(length for at, length in subject.pauses.over if since_s <= at <= until_s)
    row: Row = {"checkpoints": len(lengths), "pause_ms_sum": sum(lengths)}
    if lengths:
        row |= {
            "pause_ms_p50": quantile(lengths, 0.5),
            "pause_ms_p99": quantile(lengths, 0.99),
            "pause_ms_max": lengths[-1],
        }
    return row


async def _checkpoints(subject: Subject, since_s: float, until_s: float) -> Row:
    taken = [one for one in await subject.checkpoints() if since_s <= one["at_s"] <= until_s]
    if not taken:
        return {}
    return {
        "reasons": Counter(one["reason"] for one in taken),
        "bytes": statistics.fmean(one["bytes"] for one in taken),
        "pages": statistics.fmean(one["pages"] for one in taken),
    }
