"""The session table: what is not in it ends the session, and a greeting that does not fit says why."""

import msgspec
import numpy as np
import pytest

from pycolo.core import wire
from pycolo.core.pages import PageBatch
from pycolo.core.peer import (
    Channel,
    PeerTable,
    Phase,
    channel_token,
    common_version,
    greeting_problem,
    identity_problem,
    may_enter,
    version_problem,
)
from pycolo.errors import PeerViolation

HELLO = wire.Hello(
    *(
        wire.PROTOCOL_VERSION,
        wire.PROTOCOL_VERSION_MIN,
        "control",
        "vm",
        "h1",
        1,
        "pc-q35-7.2",
        256,
        1,
        (wire.NicShape("52:54:00:00:00:02"),),
        "tcg",
    ),
    disks=(wire.DiskShape("root", 4096),),
)
BATCH = PageBatch.of(np.array([1], np.uint32), np.ones((1, 4096), np.uint8))
MESSAGES: dict[str, wire.Message] = {
    "hello": HELLO,
    "welcome": wire.Welcome(1, "h2", 1, "p", 2, "d", "t"),
    "refused": wire.Refused("no"),
    "heartbeat": wire.Heartbeat(),
    "committed": wire.Committed(1),
    "discarded": wire.Discarded(1, "why"),
    "loaded": wire.Loaded(1, 1.0),
    "catch-up": wire.CatchUp(1),
    "caught-up": wire.CaughtUp(1),
    "wanted": wire.CheckpointWanted("late"),
    "bye": wire.Bye("end"),
    "stage": wire.StageMessage(1, 0, b"", 0, b"", 0.0),
    "pages": (1, BATCH),  # to the table a batch of frames is alike: a tuple
    "channel-hello": wire.ChannelHello("t"),
    "boundary": wire.Boundary(1),
    "confirm": wire.Confirm(0, [1]),
}
ALLOWED = {
    (False, Phase.GREETING, Channel.CONTROL): {"hello"},
    (False, Phase.GREETING, Channel.BULK): {"hello"},
    (False, Phase.OPEN, Channel.CONTROL): {"heartbeat", "bye"},
    (False, Phase.OPEN, Channel.BULK): {"pages", "stage", "catch-up"},
    (False, Phase.OPEN, Channel.PACKETS): {"pages", "boundary", "confirm"},
    (True, Phase.OPEN, Channel.PACKETS): {"pages"},
    (True, Phase.GREETING, Channel.CONTROL): {"welcome", "refused"},
    (True, Phase.OPEN, Channel.CONTROL): {
        "heartbeat",
        "bye",
        "committed",
        "discarded",
        "loaded",
        "wanted",
        "caught-up",
    },
}


@pytest.mark.parametrize("receiver_is_primary", [False, True])
@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("channel", Channel)
def test_the_whole_table(receiver_is_primary: bool, phase: Phase, channel: Channel) -> None:
    table = PeerTable(receiver_is_primary=receiver_is_primary)
    table.phase = phase
    allowed = ALLOWED.get((receiver_is_primary, phase, channel), set())
    for name, message in MESSAGES.items():
        if name in allowed:
            table.check(channel, message)
        else:
            with pytest.raises(PeerViolation, match=f"on the {channel} channel while the session is {phase}"):
                table.check(channel, message)


def test_a_session_begins_with_the_greeting() -> None:
    assert PeerTable(receiver_is_primary=True).phase is Phase.GREETING


def test_two_that_fit() -> None:
    theirs = msgspec.structs.replace(HELLO, host="h2", term=7, channel="bulk", token="t")
    assert greeting_problem(HELLO, theirs) is None


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("vm", "other", "the primary's VM is other, the secondary's vm"),
        ("machine", "pc-q35-8.0", "the primary's machine type is pc-q35-8.0, the secondary's pc-q35-7.2"),
        ("memory_mib", 128, "the primary's memory_mib is 128, the secondary's 256"),
        ("cpus", 2, "the primary's cpus is 2, the secondary's 1"),
        (
            "nics",
            (wire.NicShape("52:54:00:00:00:02"), wire.NicShape("52:54:00:00:00:03", "san")),
            "the primary's network cards are 52:54:00:00:00:02, 52:54:00:00:00:03 on san, "
            "the secondary's 52:54:00:00:00:02: make vm.toml the same on both",
        ),
        ("nics", (wire.NicShape("52:54:00:00:00:02", "san"),), "the primary's network cards are 52:54:00:00:00:02 on "),
        ("accel", "kvm", "the primary's accel is kvm, the secondary's tcg"),
        ("disks", (), "the primary's disks are none, the secondary's root: make vm.toml the same on both"),
        ("disks", (wire.DiskShape("data", 4096),), "the primary's disks are data, the secondary's root"),
        (
            "disks",
            (wire.DiskShape("root", 8192),),
            "the disk root has 8192 bytes on the primary and 4096 on the secondary: give both images the same size",
        ),
        ("host", "h1", "both hosts are named h1"),
    ],
)
def test_a_primary_that_does_not_fit(field: str, value: object, says: str) -> None:
    problem = greeting_problem(HELLO, msgspec.structs.replace(HELLO, **{"host": "h2", field: value}))
    assert problem is not None
    assert problem.startswith(says)


# ---------------------------------------------------------------- versions


@pytest.mark.parametrize(
    ("ours", "theirs", "common"),
    [
        ((3, 3), (3, 3), 3),
        ((5, 3), (4, 2), 4),
        ((4, 2), (5, 3), 4),
        ((5, 4), (3, 2), None),
        ((3, 2), (5, 4), None),
        ((3, 3), (2, None), None),  # before 3 a greeting had one version only
        ((3, 2), (2, None), 2),
        ((3, 3), (1, 9), None),  # nonsense
    ],
)
def test_the_newest_common_version(
    ours: tuple[int, int | None], theirs: tuple[int, int | None], common: int | None
) -> None:
    assert common_version(wire.Versions(*ours), wire.Versions(*theirs)) == common
    assert common_version(wire.Versions(*theirs), wire.Versions(*ours)) == common


def test_both_sides_versions_are_named() -> None:
    assert version_problem(primary=wire.Versions(5, 4), secondary=wire.Versions(3, 3)) == (
        "the primary speaks protocol 4 to 5, the secondary 3: install the same pycolo on both hosts"
    )
    assert "protocol 2, the secondary 3 to 4:" in version_problem(wire.Versions(2), wire.Versions(4, 3))


# ---------------------------------------------------------------- who it is


def test_a_peer_is_who_its_certificate_says() -> None:
    assert identity_problem("h2", "h1", frozenset({"h1"})) is None
    assert identity_problem("h2", "h1", frozenset({"h1.example", "h1"})) is None
    assert identity_problem("h2", "anybody", None) is None  # without TLS


@pytest.mark.parametrize(
    ("said", "certified", "says"),
    [
        ("h1", {"h3"}, "the peer calls itself h1, but its certificate is for h3: make `name` in its host.toml and"),
        ("h1", set(), "the peer calls itself h1, but its certificate is for no host:"),
        ("h1", {"*"}, "the peer calls itself h1, but its certificate is for *:"),
        ("h1", {"H1"}, "the peer calls itself h1, but its certificate is for H1:"),
        ("h2", {"h2"}, "the peer shows a certificate of this host's own name h2: give each host"),
        ("h1", {"h1", "h2"}, "the peer shows a certificate of this host's own name h2: give each host"),
    ],
)
def test_a_peer_that_is_not_who_it_says(said: str, certified: set[str], says: str) -> None:
    problem = identity_problem("h2", said, frozenset(certified))
    assert problem is not None
    assert problem.startswith(says)


def test_a_token_is_for_one_host() -> None:
    token = channel_token("secret", "h1")
    assert may_enter(token, "secret", frozenset({"h1"}))
    assert may_enter(token, "secret", frozenset({"h1.example", "h1"}))
    assert not may_enter(token, "secret", frozenset({"h3"}))
    assert not may_enter(token, "other", frozenset({"h1"}))
    assert not may_enter(token, "secret", frozenset())
    assert not may_enter("secret", "secret", frozenset({"h1"}))
    assert not may_enter(token, "secret", None)
    assert may_enter(channel_token("secret", ""), "secret", None)
    assert not may_enter("\u00e9", "secret", None)
