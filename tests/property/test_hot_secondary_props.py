"""The secondary's compiled side and its Python twin do the same on the same input, whatever it is and in any order."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus import captures
from pycolo.core import engines
from pycolo.core.limits import DataplaneLimits
from pycolo.core.packed import pack
from secondary_speaker import (
    ARP,
    CLIENT_ISN,
    CLOCK,
    DATAGRAM,
    DATAGRAM6,
    LINKS,
    NUMBERS,
    TINY,
    A,
    Numbers,
    Speaker,
    opened,
    sack,
    stamps,
)
from secondary_twins import SecondaryTwins
from tcp_model import MOD, Link

pytestmark = pytest.mark.skipif(not engines.COMPILED, reason="nothing is compiled here")

WHAT = ["svm"] * 6 + ["client"] * 6 + ["confirm", "confirm", "loaded", "take over"]
steps = st.lists(st.tuples(st.sampled_from(WHAT), st.integers(0, 2**32 - 1)), max_size=40)
openings = st.lists(st.tuples(st.sampled_from(LINKS), st.sampled_from([None, CLOCK, 0])), max_size=6)


@settings(max_examples=600)
@given(st.sampled_from(NUMBERS), openings, steps, st.booleans(), st.integers(0, 3))
def test_both_do_the_same(
    numbers: Numbers, begin: list[tuple[Link, int | None]], script: list[tuple[str, int]], tiny: bool, rest: int
) -> None:
    """`rest`: so many bytes of a frame that is cut stand at the end of a batch; 0: it is a list of frames."""
    planes, no = SecondaryTwins(TINY if tiny else DataplaneLimits(), 2**64 - 1 - rest), 0
    for link, echo in begin:
        syn_ack, answer = opened(link, numbers, echo)
        planes.svm_frames([syn_ack], no)
        planes.client_frames([answer])
        no += 1
    for what, seed in script:
        frames = Speaker(numbers, seed).batch(what == "svm")
        if what == "svm":
            planes.svm_packed(pack(frames) + bytes(rest), no) if rest else planes.svm_frames(frames, no)
            no += len(frames)
        elif what == "client":
            planes.client_packed(pack(frames) + bytes(rest)) if rest else planes.client_frames(frames)
        elif what == "confirm":
            planes.confirm([no - 1, no - 3, no + 9])
        elif what == "loaded":
            planes.loaded()
        else:
            planes.take_over()
            said = Speaker(numbers, seed).batch(True)
            assert planes.twin.translator.outbound(said) == planes.hot.translator.outbound(said)
            assert planes.twin.translator.inbound(frames) == planes.hot.translator.inbound(frames)
        planes.agree()
    planes.take_over()


@pytest.mark.parametrize("name", sorted(captures()))
def test_both_translate_real_traffic_alike(name: str) -> None:
    frames = captures()[name]
    planes = SecondaryTwins(DataplaneLimits())
    for n, frame in enumerate(frames, 1):
        planes.know(frame, 0x89ABCDEF * n % MOD, 0x13579BDF * n % MOD)
    planes.client_packed(pack(frames))
    planes.svm_packed(pack(frames), 0)
    planes.take_over()


@pytest.mark.parametrize("addresses", [b"", bytes.fromhex("ffd8000000000001")], ids=["", "sum 0"])
def test_both_treat_every_checksum_alike(addresses: bytes) -> None:
    """Those of the two zeros, and the one that covers the pseudo header alone, are rare otherwise."""
    planes, place = SecondaryTwins(DataplaneLimits()), slice(34 + 16, 34 + 18)
    _, answer = opened(Link(), NUMBERS[0])
    answer = answer[:26] + (addresses or answer[26:34]) + answer[34:]
    planes.know(answer, 0x89ABCDEF, 0x13579BDF)
    frames = [answer[: place.start] + each.to_bytes(2) + answer[place.stop :] for each in range(2**16)]
    translated = planes.client_frames(frames)
    partial = sum(frame[place] == other[place] for frame, other in zip(frames, translated, strict=True))
    assert partial == 1 + bool(addresses)


@pytest.mark.parametrize("frame", [DATAGRAM, DATAGRAM6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("to", [bytes(6), bytes.fromhex("0180c2000000")], ids=["a host", "bridges"])
def test_both_retain_the_same_of_what_looks_like_a_datagram(frame: bytes, to: bytes) -> None:
    """What is no whole packet and goes to bridges is link control."""
    frame, planes = to + frame[6:], SecondaryTwins(DataplaneLimits())
    frames = [frame[:cut] for cut in range(len(frame))]
    for at in range(12, 30):
        frames += [frame[:at] + value.to_bytes() + frame[at + 1 :] for value in range(256)]
    for no, each in enumerate(frames):
        planes.svm_frames([each], no)
        planes.agree()
    assert planes.client_frames(frames) == frames
    assert len(planes.take_over()) > 1000


def test_a_batch_that_was_given_up_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    plane = engines.secondary_dataplane(DataplaneLimits(), seed=7)
    with monkeypatch.context() as patch:
        patch.setattr(plane, "_client_frame", None)
        with pytest.raises(TypeError):
            plane.client_frames([DATAGRAM, ARP])
    assert plane.client_frames([ARP, DATAGRAM6]) == [ARP, DATAGRAM6]


def test_plain_segments_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the tests here would compare the twin with itself."""
    numbers = NUMBERS[0]
    planes = SecondaryTwins(DataplaneLimits())
    datagrams = [DATAGRAM, DATAGRAM6]
    links = [link for link in LINKS if not link.vids]
    for no, link in enumerate(links):
        syn_ack, answer = opened(link, numbers)
        planes.svm_frames([syn_ack], no)
        planes.client_frames([answer])
    for name in ("_client_frame", "_svm_frame"):
        monkeypatch.setattr(planes.hot, name, None)
    planes.svm_frames(datagrams, 5)
    planes.client_frames(datagrams)
    said = b"\1\1" + stamps(5, CLOCK + 9) + b"\1\1" + sack(numbers.pvm_isn + 3, numbers.pvm_isn + 5)
    for link in links:
        for n in range(20):
            seq, ack = numbers.svm_isn + 1 + n, numbers.pvm_isn + n
            planes.svm_frames([link.frame(True, seq, CLIENT_ISN + 1, A, b"x" * (n % 3))], 10 + 2 * n)
            planes.client_frames([link.frame(False, CLIENT_ISN + 1, ack, A, b"y" * (n % 2), said)])


def test_of_too_many_segments_on_their_way_the_oldest_is_not_known_any_more() -> None:
    planes, link, numbers = SecondaryTwins(DataplaneLimits()), Link(), NUMBERS[0]
    syn_ack, answer = opened(link, numbers, None)
    planes.svm_frames([syn_ack], 0)
    planes.client_frames([answer])
    frames = [link.frame(True, numbers.svm_isn + 1 + n, CLIENT_ISN + 1, A, b"x") for n in range(5000)]
    for start in range(0, 5000, 1000):
        planes.svm_frames(frames[start : start + 1000], 1 + start)
        planes.agree()
        planes.client_frames([link.frame(False, CLIENT_ISN + 1, numbers.pvm_isn + 200 + start // 100, A)])
        planes.agree()
    planes.client_frames([link.frame(False, CLIENT_ISN + 1, numbers.pvm_isn + 4500, A)])
    assert 500 < len(planes.take_over()) < 1500
    planes.client_frames([link.frame(False, CLIENT_ISN + 1, numbers.pvm_isn + 5001, A)])
    planes.agree()


@pytest.mark.parametrize("limits", [DataplaneLimits(), DataplaneLimits(held_frames_max=0), TINY], ids=str)
def test_what_is_retained_is_bounded_for_all_together(limits: DataplaneLimits) -> None:
    planes = SecondaryTwins(limits)
    for no in range(0, 3000, 2):
        seq = 1 + no
        planes.svm_frames([LINKS[no // 2 % 5].frame(True, seq, 1, A, b"x" * (no % 9)), DATAGRAM], no)
        planes.agree()
        if no % 100 == 0:
            planes.svm_frames([DATAGRAM + bytes(no)], no)  # the number comes again
            planes.confirm([no // 2, no - 5])
            planes.agree()
    planes.loaded()
    assert planes.take_over() == []


def test_a_frame_that_no_network_card_gives_goes_as_well() -> None:
    planes = SecondaryTwins(DataplaneLimits())
    frames = [DATAGRAM, bytes(70_000), DATAGRAM]
    assert planes.client_frames(frames) == frames
    planes.svm_frames(frames, 0)
    assert planes.take_over() == frames


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_any_packed_bytes_are_taken(packed: bytes) -> None:
    planes = SecondaryTwins(TINY)
    planes.client_packed(packed)
    planes.svm_packed(packed, 0)
    planes.client_packed(packed)
    planes.take_over()
