"""Which client frames a takeover has to make good."""

from pycolo.core.overheard import AGE_MS_MAX, FRAMES_MAX, Overheard
from pycolo.core.packed import batch_of, pack, unpack

VM = bytes.fromhex("525400000002")
CLIENT = bytes.fromhex("0200000000aa")


def frame(text: bytes, source: bytes = CLIENT) -> bytes:
    return VM + source + b"\x08\x00" + text


def test_what_was_never_passed_on_is_missed_in_order() -> None:
    heard = Overheard(VM)
    heard.overhear(pack([frame(b"1"), frame(b"2"), frame(b"3")]), 0.0)
    heard.passed_on(pack([frame(b"2")]), 1.0)
    assert heard.missed(2.0) == batch_of([frame(b"1"), frame(b"3")])
    assert heard.missed(2.0).count == 0, "told once"


def test_the_order_of_the_two_ways_does_not_matter() -> None:
    heard = Overheard(VM)
    heard.passed_on(pack([frame(b"1")]), 0.0)
    heard.overhear(pack([frame(b"1"), frame(b"1")]), 1.0)
    assert heard.missed(2.0) == batch_of([frame(b"1")]), "sent twice, passed on once"


def test_what_the_other_copy_sends_is_not_a_clients() -> None:
    heard = Overheard(VM)
    heard.overhear(pack([frame(b"1", source=VM)]), 0.0)
    assert heard.missed(0.0).count == 0


def test_old_ones_are_forgotten_and_the_number_is_bounded() -> None:
    heard = Overheard(VM)
    heard.overhear(pack([frame(b"old")]), 0.0)
    heard.overhear(pack([frame(b"new")]), AGE_MS_MAX + 1)
    assert heard.missed(AGE_MS_MAX + 1) == batch_of([frame(b"new")])
    heard.overhear(pack([frame(b"%d" % i) for i in range(FRAMES_MAX + 10)]), 0.0)
    missed = unpack(heard.missed(0.0).packed)
    assert len(missed) == FRAMES_MAX
    assert missed[-1] == frame(b"%d" % (FRAMES_MAX + 9))
