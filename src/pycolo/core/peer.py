"""The session between two hosts as a table: which message may come on which channel in which state.

Guarantees: what the table does not know ends the session with PeerViolation, before anything of it is acted on.
"""

from __future__ import annotations

import enum

from pycolo.core import wire
from pycolo.errors import PeerViolation


class Phase(enum.StrEnum):
    """How far a session has come, as one side sees it."""

    GREETING = "greeting"  # the secondary waits for Hello, the primary for Welcome
    OPEN = "open"
    CLOSED = "closed"


class Channel(enum.StrEnum):
    """Separate connections, so that a bulk transfer never delays a heartbeat."""

    CONTROL = "control"
    BULK = "bulk"


_TO_SECONDARY: dict[tuple[Phase, Channel], tuple[type, ...]] = {
    (Phase.GREETING, Channel.CONTROL): (wire.Hello,),
    (Phase.GREETING, Channel.BULK): (wire.Hello,),
    (Phase.OPEN, Channel.CONTROL): (wire.Heartbeat, wire.Bye),
    (Phase.OPEN, Channel.BULK): (wire.StageMessage, tuple),
}
_TO_PRIMARY: dict[tuple[Phase, Channel], tuple[type, ...]] = {
    (Phase.GREETING, Channel.CONTROL): (wire.Welcome, wire.Refused),
    (Phase.GREETING, Channel.BULK): (),
    (Phase.OPEN, Channel.CONTROL): (
        wire.Heartbeat,
        wire.Committed,
        wire.Discarded,
        wire.Loaded,
        wire.CheckpointWanted,
        wire.Bye,
    ),
    (Phase.OPEN, Channel.BULK): (),
}


class PeerTable:
    """What one side may receive."""

    def __init__(self, *, receiver_is_primary: bool) -> None:
        self._allowed = _TO_PRIMARY if receiver_is_primary else _TO_SECONDARY
        self.phase = Phase.GREETING

    def check(self, channel: Channel, message: wire.Message) -> None:
        """Raises PeerViolation unless the message may come now."""
        if not isinstance(message, self._allowed.get((self.phase, channel), ())):
            name = "page batch" if isinstance(message, tuple) else type(message).__name__
            raise PeerViolation(f"the peer sent {name} on the {channel} channel while the session is {self.phase}")


def greeting_problem(ours: wire.Hello, theirs: wire.Hello) -> str | None:
    """Why a primary can't be accepted, in a sentence; None when the two fit together."""
    if theirs.version != ours.version:
        return f"the primary speaks protocol {theirs.version}, this secondary {ours.version}: install the same pycolo"
    if theirs.host == ours.host:
        return f"both hosts are named {ours.host}: give each its own `name` in host.toml, as the claim goes by it"
    pairs = (
        ("VM", theirs.vm, ours.vm),
        ("machine type", theirs.machine, ours.machine),
        ("memory_mib", theirs.memory_mib, ours.memory_mib),
        ("cpus", theirs.cpus, ours.cpus),
        ("mac", theirs.mac, ours.mac),
        ("accel", theirs.accel, ours.accel),
    )
    for name, found, expected in pairs:
        if found != expected:
            return (
                f"the primary's {name} is {found}, the secondary's {expected}: make vm.toml and QEMU the same on both"
            )
    return _disk_problem(ours.disks, theirs.disks)


def _disk_problem(ours: tuple[wire.DiskShape, ...], theirs: tuple[wire.DiskShape, ...]) -> str | None:
    if [disk.name for disk in ours] != [disk.name for disk in theirs]:
        return (
            f"the primary's disks are {_names(theirs)}, the secondary's {_names(ours)}: make vm.toml the same on both"
        )
    for our, their in zip(ours, theirs, strict=True):
        if our.size_bytes != their.size_bytes:
            return (
                f"the disk {our.name} has {their.size_bytes} bytes on the primary and {our.size_bytes} on the "
                "secondary: give both images the same size"
            )
    return None


def _names(disks: tuple[wire.DiskShape, ...]) -> str:
    return ", ".join(disk.name for disk in disks) or "none"
