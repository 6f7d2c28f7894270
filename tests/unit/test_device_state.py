"""Configuration section and clock, on streams built by hand as QEMU frames them."""

import struct

import pytest

from pycolo.core.device_state import (
    CLOCK_NS_MIN,
    GuestClock,
    KvmClocks,
    advance_clock,
    read_clock,
    read_kvm_clocks,
    with_configuration,
)

HEADER = b"QEVM\0\0\0\3"
MACHINE = "pc-q35-7.2"


def section(number: int, name: bytes, body: bytes, version: int = 2) -> bytes:
    head = b"\x04" + struct.pack(">I", number) + bytes([len(name)]) + name + struct.pack(">II", 0, version)
    return head + body + b"\x7e" + struct.pack(">I", number)


def timer(ticks: int, clock_ns: int, number: int = 1) -> bytes:
    return section(number, b"timer", struct.pack(">qqq", ticks, 0, clock_ns))


def kvmclock(clock_ns: int, number: int = 20, *, reliable: bool = True) -> bytes:
    subsection = b"\x05\x1akvmclock/clock_is_reliable" + struct.pack(">I?", 1, True)
    return section(number, b"kvmclock", struct.pack(">Q", clock_ns) + subsection * reliable, version=1)


def processor(instance: int, tsc: int, subsection: bytes = b"") -> bytes:
    """The registers are all 1, so that what is changed beside the TSC shows."""
    head = b"\x04" + struct.pack(">I", 30 + instance) + b"\x03cpu" + struct.pack(">II", instance, 12)
    body = b"\1" * 1157 + struct.pack(">Q", tsc) + b"\1" * 652 + subsection
    return head + body + b"\x7e" + struct.pack(">I", 30 + instance)


TSC_KHZ = b"\x05\x0bcpu/tsc_khz" + struct.pack(">Iq", 1, 2_600_000)


def stream(*sections: bytes) -> bytes:
    return HEADER + b"".join(sections) + b"\0"


CPU = section(0, b"cpu_common", b"\x01\x02\x03")
GOOD = stream(CPU, timer(5_200_000_000, 2_000_000_000), section(7, b"nic", b"x" * 40))


def test_configuration_goes_right_behind_the_header() -> None:
    assert with_configuration(GOOD, MACHINE) == HEADER + b"\x07\0\0\0\x0a" + b"pc-q35-7.2" + GOOD[8:]


@pytest.mark.parametrize("bad", [b"", HEADER, b"QEVM\0\0\0\2" + GOOD[8:], b"\x7fELF" + GOOD[4:], HEADER + b"\0"])
def test_configuration_refuses_what_is_no_device_state(bad: bytes) -> None:
    with pytest.raises(ValueError, match="device state"):
        with_configuration(bad, MACHINE)


def test_configuration_is_not_added_twice() -> None:
    with pytest.raises(ValueError, match="does not begin"):
        with_configuration(with_configuration(GOOD, MACHINE), MACHINE)


@pytest.mark.parametrize("machine", ["", "pc-ä", "pc\n", "pc\0"])
def test_configuration_refuses_names_that_are_none(machine: str) -> None:
    with pytest.raises(ValueError, match="machine type"):
        with_configuration(GOOD, machine)


@pytest.mark.parametrize(
    "state", [GOOD, with_configuration(GOOD, MACHINE), stream(timer(5_200_000_000, 2_000_000_000))]
)
def test_the_clock_is_found(state: bytes) -> None:
    assert read_clock(state) == GuestClock(5_200_000_000, 2_000_000_000)


def test_the_clock_is_found_right_behind_the_configuration() -> None:
    state = with_configuration(stream(timer(26, 10)), MACHINE)

    assert read_clock(state) == GuestClock(26, 10)


def test_ticks_and_nanoseconds_advance_at_the_guests_own_rate() -> None:
    advanced = advance_clock(GOOD, 10_000_000)

    assert read_clock(advanced) == GuestClock(5_226_000_000, 2_010_000_000)
    assert len(advanced) == len(GOOD)
    assert sum(a != b for a, b in zip(advanced, GOOD, strict=True)) <= 16


def test_no_advance_changes_nothing_even_for_a_guest_that_never_ran() -> None:
    never_ran = stream(timer(0, 0))

    assert advance_clock(never_ran, 0) == never_ran


def test_the_clock_is_never_moved_back() -> None:
    with pytest.raises(ValueError, match="moved back"):
        advance_clock(GOOD, -1)


@pytest.mark.parametrize("young", [timer(0, 0), timer(2600, CLOCK_NS_MIN - 1), timer(0, CLOCK_NS_MIN)])
def test_a_clock_without_a_rate_is_not_advanced(young: bytes) -> None:
    with pytest.raises(ValueError, match="too short"):
        advance_clock(stream(young), 1)


def test_overflow_is_refused() -> None:
    with pytest.raises(ValueError, match="64 bits"):
        advance_clock(stream(timer(2**63 - 1, 2_000_000_000)), 10**9)


@pytest.mark.parametrize(("ticks", "clock_ns"), [(-1, 1), (1, -1)])
def test_a_negative_clock_is_refused(ticks: int, clock_ns: int) -> None:
    with pytest.raises(ValueError, match="negative"):
        read_clock(stream(timer(ticks, clock_ns)))


@pytest.mark.parametrize(
    "bad",
    [
        stream(CPU),
        stream(timer(1, 1), timer(1, 1, number=2)),
        stream(section(1, b"timer", bytes(24), version=3)),
        stream(section(1, b"timer", bytes(25))),
        GOOD.replace(b"\x7e\0\0\0\1", b"\x7e\0\0\0\2"),
        GOOD[: GOOD.index(b"timer") + 20],
        stream(CPU) + b"xxxx" + timer(1, 1),
    ],
    ids=["none", "two", "version", "longer", "footer", "cut", "out of place"],
)
def test_anything_but_one_whole_clock_is_refused(bad: bytes) -> None:
    with pytest.raises(ValueError, match="clocks, not one"):
        read_clock(bad)


def test_a_clock_in_a_payload_is_not_taken_for_the_guests() -> None:
    smuggled = section(9, b"nic", b"frame" + timer(77, 77))

    assert read_clock(stream(CPU, timer(26, 10), smuggled)) == GuestClock(26, 10)
    with pytest.raises(ValueError, match="0 clocks"):
        read_clock(stream(CPU, smuggled))


def test_a_false_frame_cannot_hide_the_clock_it_overlaps() -> None:
    real = timer(26, 10)
    # A would-be frame that begins in a payload and whose fields are the real one's header.
    false_start = b"\x04" + bytes(4) + b"\x05timer" + struct.pack(">II", 0, 2)

    assert read_clock(stream(section(3, b"nic", false_start), real)) == GuestClock(26, 10)


UNDER_KVM = stream(
    CPU,
    processor(0, 7_000_000_000, TSC_KHZ),
    processor(1, 7_000_000_001),
    timer(5_200_000_000, 2_000_000_000),
    kvmclock(1_900_000_000),
)


def test_what_a_guest_under_kvm_reads_is_found() -> None:
    assert read_kvm_clocks(UNDER_KVM) == KvmClocks(1_900_000_000, (7_000_000_000, 7_000_000_001))
    assert read_kvm_clocks(with_configuration(UNDER_KVM, MACHINE)) == read_kvm_clocks(UNDER_KVM)
    assert read_kvm_clocks(stream(CPU, kvmclock(5, reliable=False))) == KvmClocks(5, ())
    assert read_kvm_clocks(GOOD) == KvmClocks(None, ())


def test_kvmclock_and_every_tsc_advance_with_the_guests_clock() -> None:
    advanced = advance_clock(UNDER_KVM, 10_000_000)

    assert read_clock(advanced) == GuestClock(5_226_000_000, 2_010_000_000)
    assert read_kvm_clocks(advanced) == KvmClocks(1_910_000_000, (7_026_000_000, 7_026_000_001))
    assert len(advanced) == len(UNDER_KVM)
    assert sum(a != b for a, b in zip(advanced, UNDER_KVM, strict=True)) <= 5 * 8


def test_a_tsc_that_kvm_does_not_keep_stays_as_it_is() -> None:
    under_tcg = stream(processor(0, 0), timer(5_200_000_000, 2_000_000_000))

    assert read_kvm_clocks(advance_clock(under_tcg, 10_000_000)) == KvmClocks(None, (0,))


def test_a_tsc_wraps_as_the_real_one_does() -> None:
    about_to_wrap = stream(processor(0, 2**64 - 1), timer(5_200_000_000, 2_000_000_000))

    assert read_kvm_clocks(advance_clock(about_to_wrap, 10)).tscs == (25,)


def test_two_kvmclocks_and_processors_that_make_no_sense_are_refused() -> None:
    clock = timer(5_200_000_000, 2_000_000_000)
    with pytest.raises(ValueError, match="2 sections of kvmclock"):
        advance_clock(stream(clock, kvmclock(1), kvmclock(1, number=21)), 1)
    for wrong in ((processor(1, 5),), (processor(0, 5), processor(0, 5))):
        with pytest.raises(ValueError, match="the processors"):
            advance_clock(stream(clock, *wrong), 1)


@pytest.mark.parametrize(
    "bad",
    [
        section(20, b"kvmclock", struct.pack(">Q", 5), version=2),
        section(20, b"kvmclock", struct.pack(">QB", 5, 0), version=1),
        kvmclock(5)[:-1] + b"\x15",
        processor(0, 5)[:-1] + b"\x15",
        processor(0, 5, b"\1"),
        processor(0, 5).replace(b"\0\0\0\x0c", b"\0\0\0\x0d"),
    ],
)
def test_what_is_not_framed_as_a_clock_of_kvm_is_none(bad: bytes) -> None:
    assert read_kvm_clocks(stream(CPU, bad)) == KvmClocks(None, ())
