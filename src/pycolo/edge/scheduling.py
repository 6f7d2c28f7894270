"""How eagerly a thread takes a core from another one (Linux, sched(7)), from its next wake on.

Who is prompt may take the core of somebody else when it wakes; who is patient waits until somebody sleeps or has had
his turn. On a machine without idle cores prompt receivers are woken for each frame, and each frame costs a turn of
every process on its way; patient ones find many at a time. Where a core is free there is no difference.
"""

from __future__ import annotations

import os
from contextlib import suppress

_OURS = (os.SCHED_OTHER, os.SCHED_BATCH)


def be_patient(thread: int = 0) -> None:
    """Let a thread, by default the caller's, wait for its turn; its niceness stays."""
    _set(thread, os.SCHED_BATCH)


def be_prompt(thread: int = 0) -> None:
    """Let a thread take a core when it wakes: somebody waits for it."""
    _set(thread, os.SCHED_OTHER)


def _set(thread: int, policy: int) -> None:
    """Does nothing to a thread that is gone, or that an operator has given another policy than these two."""
    with suppress(OSError):  # nothing depends on it but speed
        if os.sched_getscheduler(thread) in _OURS:
            os.sched_setscheduler(thread, policy, os.sched_param(0))
