"""How much of what the PVM writes may be under way, when its answers wait for that, and when the secondary is given up.

Guarantees: the secondary never has to keep much more than it has room for (what QEMU has under way at one pause comes
on top, as no pause waits for answers: the next checkpoint does not begin before there is room again); a checkpoint is
asked for only when one can help; the guest waits at most `stall_s` for a secondary that gets nowhere, GIVE_UP_FACTOR
times that for one that works but gives no room; a stall of our own does not count (rule 9).
"""

from __future__ import annotations

from collections import deque

EPOCH_SHARE = 0.25  # of the room, for one epoch; then a checkpoint is due
HELPS_SHARE = 0.05  # so much has to be unsealed for a checkpoint to help those who wait
WITHHOLD_SHARE = 0.8
TURN_S_MAX = 0.2  # a turn that took longer was our own stall
GIVE_UP_FACTOR = 5


class DiskRoom:
    """Costs in bytes; the clock comes in as an argument."""

    def __init__(self, queue_bytes_max: int, stall_s: float) -> None:
        self._queue_bytes_max, self._stall_s = queue_bytes_max, stall_s
        self.room_bytes = 0
        self.backlog_bytes_max = 0
        self._counting = False  # from the first mark on the secondary keeps what it gets
        self._sent_bytes = self._committed_bytes = self._applied_bytes = 0
        self._marks: deque[tuple[int, int]] = deque()  # epoch, sent bytes at its mark
        self._asked = False
        self._turn_at_s: float | None = None
        self._idle_s = self._full_s = 0.0

    @property
    def backlog_bytes(self) -> int:
        """What the secondary has to keep, as it is not safely on its images yet."""
        return self._sent_bytes - self._applied_bytes

    def count(self, cost_bytes: int) -> None:
        """So much more is under way."""
        if self._counting:
            self._sent_bytes += cost_bytes
            self.backlog_bytes_max = max(self.backlog_bytes_max, self.backlog_bytes)

    def seal(self, epoch: int) -> None:
        """What was counted up to here belongs to the checkpoint that starts `epoch`."""
        if not self._counting:
            self._counting, self._sent_bytes = True, 0
        self._marks.append((epoch, self._sent_bytes))
        self._asked = False

    def committed(self, epoch: int) -> None:
        """The secondary has committed the checkpoint that starts `epoch`: what it holds of it needs no other one."""
        for marked, sent_bytes in self._marks:
            if marked <= epoch:
                self._committed_bytes = sent_bytes

    def applied(self, epoch: int) -> None:
        """The secondary's images safely have everything up to that checkpoint."""
        while self._marks and self._marks[0][0] <= epoch:
            self._applied_bytes = self._marks.popleft()[1]
            self.progressed()

    def full(self, queued_bytes: int) -> bool:
        """Whether answers have to wait; `queued_bytes` wait to be sent."""
        if queued_bytes > self._queue_bytes_max:
            return True
        return self._counting and self.backlog_bytes > self.room_bytes * WITHHOLD_SHARE

    @property
    def may_pause(self) -> bool:
        """Whether a checkpoint may begin: not while what is committed takes the room, for which only time helps."""
        return not self._counting or self._committed_bytes - self._applied_bytes <= self.room_bytes * WITHHOLD_SHARE

    def asks(self, *, someone_waits: bool) -> bool:
        """Whether a checkpoint is to be asked for; True once until the next seal."""
        sealed_bytes = self._marks[-1][1] if self._marks else self._applied_bytes
        share = HELPS_SHARE if someone_waits else EPOCH_SHARE
        if self._asked or not self._counting or self._sent_bytes - sealed_bytes <= self.room_bytes * share:
            return False
        self._asked = True
        return True

    def progressed(self) -> None:
        """The secondary gets on: it has written to its images."""
        self._idle_s = 0.0

    def taken(self, queued_bytes: int) -> None:
        """The secondary took bytes, which is progress while it is the queue that keeps answers waiting."""
        if queued_bytes > self._queue_bytes_max:
            self.progressed()

    def turn(self, now_s: float, *, someone_waits: bool, queued_bytes: int) -> float | None:
        """Count the time; returns the seconds left until the secondary is to be given up, None when nobody waits."""
        passed_s = 0.0 if self._turn_at_s is None else min(now_s - self._turn_at_s, TURN_S_MAX)
        self._turn_at_s = now_s
        if not self.full(queued_bytes):
            self._idle_s = self._full_s = 0.0
            return None
        if not someone_waits:
            return None
        self._idle_s += passed_s
        self._full_s += passed_s
        return max(0.0, min(self._stall_s - self._idle_s, self._stall_s * GIVE_UP_FACTOR - self._full_s))
