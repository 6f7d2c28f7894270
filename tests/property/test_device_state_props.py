"""Properties of the device state functions: whatever the bytes, the right answer or ValueError."""

import struct
from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from pycolo.core.device_state import CLOCK_NS_MIN, advance_clock, read_clock, read_kvm_clocks, with_configuration

HEADER = b"QEVM\0\0\0\3"
HOURS_8760_NS = 8760 * 3600 * 10**9
FRAGMENTS = st.sampled_from(
    [b"\x04", b"\x05timer", b"\x08kvmclock", b"\x03cpu", bytes(7) + b"\x02", b"\x7e", bytes(4), HEADER, b"\x07"]
)
JUNK = st.lists(FRAGMENTS | st.binary(max_size=30), max_size=30).map(b"".join)


def frame(number: int, name: bytes, body: bytes) -> bytes:
    head = b"\x04" + struct.pack(">I", number) + bytes([len(name)]) + name + struct.pack(">II", 0, 2)
    return head + body + b"\x7e" + struct.pack(">I", number)


@st.composite
def states(draw: st.DrawFn) -> bytes:
    """A stream with one clock among other devices."""
    number = draw(st.integers(0, 2**32 - 1))
    clock_ns = draw(st.integers(CLOCK_NS_MIN, HOURS_8760_NS))
    rate_khz = draw(st.integers(500_000, 6_000_000))
    body = struct.pack(">qqq", clock_ns * rate_khz // 10**6, draw(st.integers(0, 9)), clock_ns)
    names = st.binary(min_size=1, max_size=20).filter(lambda name: b"timer" not in name)
    payloads = st.binary(max_size=60).filter(lambda payload: b"timer" not in payload)
    others = draw(st.lists(st.builds(frame, st.integers(0, 99), names, payloads), max_size=4))
    place = draw(st.integers(0, len(others)))
    sections = [*others[:place], frame(number, b"timer", body), *others[place:]]
    return HEADER + b"".join(sections) + b"\0"


@given(states(), st.integers(0, 10**10))
def test_advancing_moves_exactly_the_clock_at_its_rate(state: bytes, advance_ns: int) -> None:
    before, after = read_clock(state), read_clock(advance_clock(state, advance_ns))

    assert after.clock_ns == before.clock_ns + advance_ns
    assert after.ticks == before.ticks + before.ticks * advance_ns // before.clock_ns


@given(states(), st.integers(1, 10**9))
def test_the_configuration_makes_no_difference_to_the_clock(state: bytes, advance_ns: int) -> None:
    inside_first = with_configuration(advance_clock(state, advance_ns), "pc-q35-7.2")

    assert inside_first == advance_clock(with_configuration(state, "pc-q35-7.2"), advance_ns)


@given(states(), st.data())
def test_a_cut_stream_has_its_old_clock_or_none(state: bytes, data: st.DataObject) -> None:
    cut = state[: data.draw(st.integers(0, len(state)))]

    with suppress(ValueError):
        assert read_clock(cut) == read_clock(state)


@given(JUNK | JUNK.map(lambda junk: HEADER + junk))
def test_junk_gives_value_error_or_a_sane_clock(junk: bytes) -> None:
    with suppress(ValueError):
        clock = read_clock(junk)
        assert clock.ticks >= 0
        assert clock.clock_ns >= 0
    with suppress(ValueError):
        assert all(0 <= tsc < 2**64 for tsc in read_kvm_clocks(junk).tscs)
    with suppress(ValueError):
        assert len(advance_clock(junk, 1000)) == len(junk)
    with suppress(ValueError):
        assert with_configuration(junk, "pc-q35-7.2").startswith(HEADER + b"\x07")
