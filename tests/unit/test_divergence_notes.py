"""Why the copies differed: told to who asks, and no guest fills the event log."""

from __future__ import annotations

import json

from pycolo.agent.protocol import Paced
from pycolo.core.divergence import Difference, Divergence, divergence
from pycolo.core.packet import TCP_FLOW
from pycolo.events import EventLog
from pycolo.manager.comparison import EVENTS_PER_S_MAX, KEPT_MAX, DivergenceNotes

ONE = Divergence("tcp", "10.0.0.2:80", "10.0.0.1:999", (5,), "payload", 7, b"abc", b"xyz", 3, None)


def test_a_divergence_is_an_event_and_stands_in_the_status() -> None:
    events = EventLog("alpha")
    notes = DivergenceNotes(events)
    notes.note([ONE])
    (event,) = events.since(0)
    assert event["kind"] == "divergence"
    assert event["reason"] == (
        "tcp 10.0.0.2:80 to 10.0.0.1:999 (VLAN 5): payload at byte 7: primary 61 62 63 |abc|, secondary 78 79 7a |xyz|"
    )
    assert (event["protocol"], event["offset"], event["primary"], event["secondary"]) == ("tcp", 7, "616263", "78797a")
    details = json.loads(json.dumps(notes.details()))
    assert details["divergences"][0]["source"] == "10.0.0.2:80"
    assert details["pace"] == ""


def test_a_guest_that_always_differs_does_not_fill_the_log() -> None:
    events = EventLog("alpha")
    notes = DivergenceNotes(events)
    for _ in range(100):
        notes.note([ONE] * 5)
    assert EVENTS_PER_S_MAX <= len(events.since(0)) <= 3 * EVENTS_PER_S_MAX
    assert len(notes.details()["divergences"]) == KEPT_MAX


def test_another_pace_is_told_with_its_reason() -> None:
    events = EventLog("alpha")
    notes = DivergenceNotes(events)
    notes.paced(Paced("periodic", 40.0, "12 divergences in 2.0 s: periodic checkpoints"))
    assert events.since(0)[0]["mode"] == "periodic"
    assert notes.details()["pace"].startswith("12 divergences")


def test_flows_are_named_as_a_person_writes_them() -> None:
    six = bytes([0xFD, *[0] * 14, 2]) + bytes([0xFD, *[0] * 14, 1]) + (80).to_bytes(2) + (999).to_bytes(2)
    keys = {
        TCP_FLOW + six + (7).to_bytes(2): ("tcp", "[fd00::2]:80", "[fd00::1]:999", (7,)),
        b"U\x04\x11\x00" + bytes([10, 0, 0, 2, 10, 0, 0, 1, 0, 53, 3, 232]): (
            "udp",
            "10.0.0.2:53",
            "10.0.0.1:1000",
            (),
        ),
        b"E\x04\x01\x01\x00\x05" + bytes([10, 0, 0, 2, 10, 0, 0, 1, 8, 1, 2]): ("icmp", "10.0.0.2", "10.0.0.1", (5,)),
        b"P\x04\x2f\x00" + bytes([10, 0, 0, 2, 10, 0, 0, 1]): ("ip 47", "10.0.0.2", "10.0.0.1", ()),
        b"W\x12\x34" + bytes(6): ("other", "type 1234", "00:00:00:00:00:00", ()),
    }
    for key, (protocol, source, target, vlans) in keys.items():
        found = divergence(key, Difference("payload", 0, bytes(99), bytes(99)), 4)
        assert (found.protocol, found.source, found.target, found.vlans) == (protocol, source, target, vlans)
        assert len(found.pvm) == len(found.svm) == 32
        assert found.pvm_frame == 5
