"""The session between two hosts as a table: which message may come on which channel in which state.

Guarantees: what the table does not know ends the session with PeerViolation, before anything of it is acted on. Two
hosts speak the newest version that both know; two that know none in common are told both sides' versions.
"""

from __future__ import annotations

import enum
import hashlib
import hmac

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
    PACKETS = "packet"


_TO_SECONDARY: dict[tuple[Phase, Channel], tuple[type, ...]] = {
    (Phase.GREETING, Channel.CONTROL): (wire.Hello,),
    (Phase.GREETING, Channel.BULK): (wire.Hello,),
    (Phase.OPEN, Channel.CONTROL): (wire.Heartbeat, wire.Bye, wire.Dismiss, wire.Rebase),
    (Phase.OPEN, Channel.BULK): (wire.StageMessage, wire.CatchUp, tuple),
    (Phase.OPEN, Channel.PACKETS): (tuple, wire.Boundary, wire.Translations, wire.Confirm, wire.AskLease),
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
        wire.CaughtUp,
        wire.Rebased,
        wire.Bye,
    ),
    (Phase.OPEN, Channel.BULK): (),
    (Phase.OPEN, Channel.PACKETS): (tuple, wire.GrantLease, wire.EndLeases),
}


class PeerTable:
    """What one side may receive."""

    def __init__(self, *, receiver_is_primary: bool) -> None:
        self._allowed = _TO_PRIMARY if receiver_is_primary else _TO_SECONDARY
        self.phase = Phase.GREETING

    def check(self, channel: Channel, message: wire.Message) -> None:
        """Raises PeerViolation unless the message may come now."""
        if not isinstance(message, self._allowed.get((self.phase, channel), ())):
            name = "a batch" if isinstance(message, tuple) else type(message).__name__
            raise PeerViolation(f"the peer sent {name} on the {channel} channel while the session is {self.phase}")


def common_version(ours: wire.Versions, theirs: wire.Versions) -> int | None:
    """The newest version that both speak; None when there is none."""
    newest = min(ours.version, theirs.version)
    return newest if newest >= max(_oldest(ours), _oldest(theirs)) else None


def version_problem(primary: wire.Versions, secondary: wire.Versions) -> str:
    """Why two hosts without a common version can't be a pair, in a sentence."""
    return (
        f"the primary speaks protocol {_span(primary)}, the secondary {_span(secondary)}: "
        "install the same pycolo on both hosts"
    )


def _oldest(versions: wire.Versions) -> int:
    return versions.version if versions.version_min is None else versions.version_min


def _span(versions: wire.Versions) -> str:
    oldest = _oldest(versions)
    return str(versions.version) if oldest >= versions.version else f"{oldest} to {versions.version}"


def identity_problem(ours: str, said: str, certified: frozenset[str] | None) -> str | None:
    """Why a peer is not who it says, in a sentence; None when it is.

    `ours` is this host's name, `said` the name in the peer's greeting, `certified` the names in its certificate; None
    without TLS, where nobody can tell.
    """
    if certified is None:
        return None
    if ours in certified:
        return (
            f"the peer shows a certificate of this host's own name {ours}: "
            "give each host a certificate of its own (`colo pki issue`)"
        )
    if said not in certified:
        names = ", ".join(sorted(certified)) or "no host"
        return (
            f"the peer calls itself {said}, but its certificate is for {names}: "
            "make `name` in its host.toml and its certificate agree (`colo pki issue`)"
        )
    return None


def channel_token(secret: str, host: str) -> str:
    """What `host` has to show on a channel that is guarded by `secret`; another host can't use it.

    `host` is the name in its certificate; empty without TLS, where a token is for whoever has it.
    """
    return hmac.digest(secret.encode(), host.encode(), hashlib.sha256).hex() if host else secret


def may_enter(token: str, secret: str, certified: frozenset[str] | None) -> bool:
    """Whether who shows `token` is the host that it was made for; `certified` as in `identity_problem`."""
    expected = [secret] if certified is None else [channel_token(secret, name) for name in sorted(certified)]
    # As bytes: a stranger may show letters that compare_digest does not take in a str.
    return any(hmac.compare_digest(one.encode(), token.encode()) for one in expected)


def greeting_problem(ours: wire.Hello, theirs: wire.Hello) -> str | None:
    """Why a primary of our version can't be accepted, in a sentence; None when the two fit together."""
    if theirs.host == ours.host:
        return f"both hosts are named {ours.host}: give each its own `name` in host.toml, as the claim goes by it"
    pairs = (
        ("VM", theirs.vm, ours.vm),
        ("machine type", theirs.machine, ours.machine),
        ("memory_mib", theirs.memory_mib, ours.memory_mib),
        ("cpus", theirs.cpus, ours.cpus),
        ("accel", theirs.accel, ours.accel),
    )
    for name, found, expected in pairs:
        if found != expected:
            return (
                f"the primary's {name} is {found}, the secondary's {expected}: make vm.toml and QEMU the same on both"
            )
    return _nic_problem(ours.nics, theirs.nics) or _disk_problem(ours.disks, theirs.disks)


def _nic_problem(ours: tuple[wire.NicShape, ...], theirs: tuple[wire.NicShape, ...]) -> str | None:
    if ours == theirs:
        return None
    here, there = (", ".join(map(_card, nics)) or "none" for nics in (ours, theirs))
    return f"the primary's network cards are {there}, the secondary's {here}: make vm.toml the same on both"


def _card(nic: wire.NicShape) -> str:
    return f"{nic.mac} on {nic.network}" if nic.network else nic.mac


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
