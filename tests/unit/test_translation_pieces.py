"""Numbers of a connection elsewhere than in a whole segment: in fragments, and quoted in ICMP errors."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import pytest
from ip_frames import CLIENT6, GUEST6, cut4, cut6, ipv6, tagged, tcp6
from scapy.layers.inet import ICMP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Ether
from secondary_engines import secondary_engine, secondary_plane
from test_translation import PVM, PVM_CLOCK, SVM, SVM_CLOCK, learned, look

from pycolo.core.layers import ICMP as ICMP_PROTOCOL
from pycolo.core.layers import ICMPV6 as ICMPV6_PROTOCOL
from pycolo.core.limits import DataplaneLimits
from pycolo.core.secondary import SecondaryDataplane
from tcp_frames import CLIENT, CLIENT_MAC, GUEST, GUEST_MAC, A, Connection, F, R, S, ipv4, stamps, udp

pytestmark = pytest.mark.usefixtures(secondary_engine.__name__)

ROUTER, ROUTER6 = bytes([10, 0, 0, 254]), GUEST6[:15] + b"\xfe"
LONG = bytes(range(256)) * 6


def out6(
    connection: Connection, seq: int, ack: int, flags: int = A, payload: bytes = b"", options: bytes = b""
) -> bytes:
    ports = (connection.guest_port, connection.client_port)
    numbers = connection.isn + seq, connection.client_isn + ack
    return ipv6(GUEST6, CLIENT6, 6, tcp6(GUEST6, CLIENT6, ports, *numbers, flags, payload, options))


def back6(
    connection: Connection, seq: int, ack: int, flags: int = A, payload: bytes = b"", options: bytes = b""
) -> bytes:
    ports = (connection.client_port, connection.guest_port)
    numbers = connection.client_isn + seq, connection.isn + ack
    return ipv6(CLIENT6, GUEST6, 6, tcp6(CLIENT6, GUEST6, ports, *numbers, flags, payload, options))


def learned6(*vids: int) -> SecondaryDataplane:
    """As `learned`, over IPv6 and maybe with tags."""
    plane = secondary_plane(DataplaneLimits())
    plane.svm_frames([tagged(out6(SVM, 0, 1, S | A, options=stamps(SVM_CLOCK, 1)), *vids)], 0)
    (frame,) = plane.client_frames([tagged(back6(PVM, 1, 1, options=stamps(2, PVM_CLOCK)), *vids)])
    assert frame == tagged(back6(SVM, 1, 1, options=stamps(2, SVM_CLOCK)), *vids)
    return plane


# ---------------------------------------------------------------- fragments


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 0, 1, 2)], ids=str)
@pytest.mark.parametrize("cut", [(64, 800), (512, 512)], ids=str)
def test_fragments_of_a_client(cut: Sequence[int], order: Sequence[int]) -> None:
    plane, plane6 = learned(), learned6()
    before, after = (
        cut4(each.back(1, 9, A, LONG, stamps(5, clock + 40)), 7, *cut)
        for each, clock in ((PVM, PVM_CLOCK), (SVM, SVM_CLOCK))
    )
    assert plane.client_frames([before[n] for n in order]) == [after[n] for n in order]
    before, after = (
        cut6(back6(each, 1, 9, A, LONG, stamps(5, clock + 40)), 7, *cut)
        for each, clock in ((PVM, PVM_CLOCK), (SVM, SVM_CLOCK))
    )
    assert plane6.client_frames([before[n] for n in order]) == [after[n] for n in order]


def test_a_checkpoint_between_two_fragments_does_no_harm() -> None:
    """The loaded SVM has the first piece in its own memory, as the PVM had; the second comes at once and as it is."""
    plane = learned()
    first, second = cut4(PVM.back(1, 9, A, LONG), 7, 800)
    plane.client_frames([first])
    plane.loaded()
    assert plane.client_frames([second]) == [second]


def test_a_fragment_whose_checksum_looks_partial_is_adjusted() -> None:
    """It happens by chance once in 65,536; the same segment comes again and again until it is taken."""
    plane = learned()
    for n in range(2**16):
        whole = PVM.back(1, 9, A, n.to_bytes(2) + LONG)
        first = cut4(whole, 7, 800)[0]
        if struct.unpack_from(">H", first, 50)[0] == sum(struct.unpack(">4H", first[26:34])) % 0xFFFF + 6 + 800:
            break
    else:
        raise AssertionError("there is one")
    wanted = SVM.back(1, 9, A, n.to_bytes(2) + LONG)
    assert plane.client_frames([first]) == cut4(wanted, 7, 800)[:1]


def test_a_cut_header_and_other_fragments_pass_as_they_are() -> None:
    plane = learned()
    odd = [
        *cut4(PVM.back(1, 9, A, LONG, stamps(1, 2)), 7, 24, 800),
        *cut4(udp(LONG, inbound=True), 8, 800),
        *cut4(PVM.back(1, 9, A, LONG), 9, 800)[1:],
        *cut4(Connection(client_port=9).back(1, 9, A, LONG), 10, 800),
    ]
    assert plane.client_frames(odd) == odd


def test_an_acknowledgement_in_a_fragment_counts() -> None:
    plane = learned()
    plane.svm_frames([SVM.out(1, 1, A, b"one")], 1)
    plane.client_frames(cut4(PVM.back(1, 4, A, LONG), 7, 800))
    assert plane.take_over() == []


def test_fragments_of_the_svm_are_kept_until_the_client_has_them() -> None:
    pieces = cut4(SVM.out(1, 1, A, LONG), 3, 512, 512)
    plane = learned()
    plane.svm_frames(pieces, 1)
    plane.client_frames([PVM.back(1, len(LONG))])
    assert plane.take_over() == cut4(PVM.out(1, 1, A, LONG), 3, 512, 512), "not all of it is acknowledged"
    plane = learned()
    plane.svm_frames([pieces[2], pieces[0], pieces[1]], 1)
    plane.client_frames([PVM.back(1, len(LONG) + 1)])
    assert plane.take_over() == []


def test_fragments_that_make_no_segment_are_kept_and_bounded() -> None:
    plane = secondary_plane(DataplaneLimits())
    alone = [cut4(Connection(client_port=n).out(1, 1, A, LONG), n, 800)[1] for n in range(300)]
    plane.svm_frames(alone, 0)
    assert len(plane._pieces._waiting) <= 64
    twice = cut4(SVM.out(1, 1, A, LONG), 3, 512)[:1] + cut4(SVM.out(1, 1, A, LONG[1:]), 3, 512)[:1]
    plane.svm_frames(twice, 300)
    assert plane.take_over() == alone + twice
    plane.svm_frames(twice, 400)
    plane.loaded()
    assert not plane._pieces
    assert plane.take_over() == []


def test_fragments_after_a_takeover() -> None:
    plane = learned()
    plane.take_over()
    pieces = cut4(SVM.out(1, 1, A, LONG), 3, 512, 512)
    assert plane.translator.outbound(pieces) == cut4(PVM.out(1, 1, A, LONG), 3, 512, 512)
    assert plane.translator.inbound(cut4(PVM.back(1, 9, A, LONG), 4, 512)) == cut4(SVM.back(1, 9, A, LONG), 4, 512)
    plane = learned6()
    plane.take_over()
    pieces = cut6(out6(SVM, 1, 1, A, LONG), 3, 512)
    assert plane.translator.outbound(pieces) == cut6(out6(PVM, 1, 1, A, LONG), 3, 512)


# ---------------------------------------------------------------- what ICMP errors quote


def error4(segment: bytes, quoted: int = 548, kind: Any = None, source: bytes = ROUTER) -> bytes:
    """A router's answer to a frame of the guest, of whose packet it quotes so many bytes."""
    kind = kind or ICMP(type=3, code=4, nexthopmtu=1400)
    body = bytes(kind / segment[14 : 14 + quoted])
    return ipv4(source, GUEST, int(ICMP_PROTOCOL), body)


def error6(segment: bytes, quoted: int = 1232, kind: Any = None) -> bytes:
    kind = kind or ICMPv6PacketTooBig(mtu=1280)
    packet = (
        IPv6(bytes(ipv6(ROUTER6, GUEST6, int(ICMPV6_PROTOCOL), b""))[14:54]) / kind / segment[54 - 40 : 14 + quoted]
    )
    del packet.plen
    return GUEST_MAC + CLIENT_MAC + b"\x86\xdd" + bytes(IPv6(bytes(packet)))


def checked(frame: bytes) -> bytes:
    """The frame, whose ICMP checksum is right by scapy's reckoning."""
    packet = Ether(frame)
    fresh: Any = packet.copy()
    layer = packet.getlayer(ICMP) or packet.getlayer(ICMPv6PacketTooBig) or packet.getlayer(ICMPv6DestUnreach)
    assert layer is not None
    name = "chksum" if packet.haslayer(ICMP) else "cksum"
    found = getattr(fresh[type(layer)], name)
    delattr(fresh[type(layer)], name)
    assert getattr(Ether(bytes(fresh))[type(layer)], name) == found
    return frame


@pytest.mark.parametrize("quoted", [28, 35, 36, 40, 51, 52, 60, 61, 548])
def test_a_router_quotes_as_much_as_it_likes(quoted: int) -> None:
    plane = learned()
    mine = SVM.out(1, 1, A, LONG, stamps(SVM_CLOCK + 40, 2))
    theirs = PVM.out(1, 1, A, LONG, stamps(PVM_CLOCK + 40, 2))
    (seen,) = plane.client_frames([checked(error4(theirs, quoted))])
    checked(seen)
    wanted = error4(mine, quoted)
    assert seen[:34] == wanted[:34]
    if quoted < 52:  # the timestamp is not quoted, and so not in the checksum that is
        assert seen[62:70] == wanted[62:70]
    else:
        assert seen == wanted


@pytest.mark.parametrize("vids", [(), (5,), (100, 5)], ids=str)
@pytest.mark.parametrize("kind", [None, ICMPv6DestUnreach(code=1)], ids=["too big", "unreachable"])
def test_over_ipv6_and_with_tags(vids: Sequence[int], kind: Any) -> None:
    plane = learned6(*vids)
    theirs = out6(PVM, 1, 1, A, LONG, stamps(PVM_CLOCK + 40, 2))
    mine = out6(SVM, 1, 1, A, LONG, stamps(SVM_CLOCK + 40, 2))
    wanted = tagged(checked(error6(mine, kind=kind)), *vids)
    assert plane.client_frames([tagged(checked(error6(theirs, kind=kind)), *vids)]) == [wanted]
    if vids:
        assert plane.client_frames([error6(theirs)]) == [error6(theirs)], "of another network"


def test_every_kind_of_error_and_the_pieces_of_a_segment() -> None:
    plane = learned()
    for kind in (ICMP(type=3, code=1), ICMP(type=4), ICMP(type=5, gw="10.0.0.9"), ICMP(type=11), ICMP(type=12)):
        (seen,) = plane.client_frames([error4(PVM.out(9, 1, A, LONG), kind=kind)])
        assert seen == error4(SVM.out(9, 1, A, LONG), kind=kind)
    first, second = cut4(PVM.out(9, 1, A, LONG), 3, 800)
    assert plane.client_frames([error4(first)]) == [error4(cut4(SVM.out(9, 1, A, LONG), 3, 800)[0])]
    assert plane.client_frames([error4(second)]) == [error4(second)]


def test_what_quotes_nothing_of_ours_passes_as_it_is() -> None:
    plane = learned()
    theirs = PVM.out(1, 1, A, b"x")
    frames = [
        error4(theirs, 27),
        error4(theirs, 19),
        error4(theirs, 0),
        error4(theirs)[:40],
        error4(theirs, kind=ICMP(type=8)),
        error4(Connection(client_port=9).out(1, 1)),
        error4(PVM.back(1, 1)),
        error4(udp(b"x")),
        *cut4(error4(theirs), 9, 24),
    ]
    assert plane.client_frames(frames) == frames
    plane.loaded()
    assert plane.client_frames([error4(theirs)]) == [error4(theirs)]


def test_a_wrong_checksum_stays_wrong() -> None:
    plane = learned()
    right = error4(PVM.out(1, 1, A, b"x"))
    wrong = right[:36] + bytes([right[36] ^ 1]) + right[37:]
    (seen,) = plane.client_frames([wrong])
    assert seen[36] ^ 1 == error4(SVM.out(1, 1, A, b"x"))[36]


@pytest.mark.parametrize("by_guest", [True, False])
def test_an_error_that_answers_the_opening(by_guest: bool) -> None:
    """Nothing is acknowledged yet, so the offsets are unknown; but what is quoted can only be the SYN or SYN-ACK."""
    flags, ack = (S, -PVM.client_isn) if by_guest else (S | A, 1)
    plane = secondary_plane(DataplaneLimits())
    plane.svm_frames([SVM.out(0, ack, flags)], 0)
    assert plane.client_frames([error4(PVM.out(0, ack, flags))]) == [error4(SVM.out(0, ack, flags))]
    forged = PVM.back(0, 1, S | A) if by_guest else PVM.back(1, 1)
    (frame,) = plane.client_frames([forged])
    assert look(frame, SVM, inbound=True).ack == 1


def test_after_a_takeover() -> None:
    plane = learned()
    plane.take_over()
    own = SVM.out(1, 1, A, LONG, stamps(SVM_CLOCK + 100, 2))
    (shown,) = plane.translator.outbound([own])
    assert plane.translator.inbound([error4(shown)]) == [error4(own)]
    before = PVM.out(1, 1, A, LONG, stamps(PVM_CLOCK + 90, 2))
    assert plane.translator.inbound([error4(before)]) == [error4(SVM.out(1, 1, A, LONG, stamps(SVM_CLOCK + 90, 2)))]
    new = Connection(isn=123, client_isn=456)
    plane.translator.outbound([new.syn_ack()])
    assert plane.translator.inbound([error4(new.out(1, 1))]) == [error4(new.out(1, 1))]


def test_an_error_about_a_connection_that_ends() -> None:
    plane = learned()
    plane.svm_frames([SVM.out(1, 1, A | F)], 1)
    plane.client_frames([PVM.back(1, 2, R | A)])
    assert plane.client_frames([error4(PVM.out(1, 1, A | F))]) == [error4(SVM.out(1, 1, A | F))]


def test_the_router_may_be_the_client() -> None:
    seen = learned().client_frames([error4(PVM.out(1, 1), source=CLIENT)])
    assert seen == [error4(SVM.out(1, 1), source=CLIENT)]
