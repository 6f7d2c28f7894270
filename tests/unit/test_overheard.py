"""Which client frames a takeover has to make good."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycolo.core import engines
from pycolo.core.overheard import AGE_MS_MAX, FRAMES_MAX, Accounts, Overheard
from pycolo.core.packed import batch_of, pack, unpack

VM = bytes.fromhex("525400000002")
CLIENT = bytes.fromhex("0200000000aa")


@pytest.fixture(params=["chosen", "python"])
def heard(request: pytest.FixtureRequest) -> Overheard:
    if request.param == "chosen":
        return engines.overheard(VM, seed=2**64 - 1)
    return Overheard(VM, Accounts(FRAMES_MAX, AGE_MS_MAX))


def frame(text: bytes, source: bytes = CLIENT) -> bytes:
    return VM + source + b"\x08\x00" + text


def test_what_was_never_passed_on_is_missed_in_order(heard: Overheard) -> None:
    heard.overhear(pack([frame(b"1"), frame(b"2"), frame(b"3")]), 0.0)
    heard.passed_on(pack([frame(b"2")]), 1.0)
    assert heard.missed(2.0) == batch_of([frame(b"1"), frame(b"3")])
    assert heard.missed(2.0).count == 0, "told once"


def test_the_order_of_the_two_ways_does_not_matter(heard: Overheard) -> None:
    heard.passed_on(pack([frame(b"1")]), 0.0)
    heard.overhear(pack([frame(b"1"), frame(b"1")]), 1.0)
    assert heard.missed(2.0) == batch_of([frame(b"1")]), "sent twice, passed on once"


def test_what_the_other_copy_sends_is_not_a_clients(heard: Overheard) -> None:
    heard.overhear(pack([frame(b"1", source=VM)]), 0.0)
    assert heard.missed(0.0).count == 0


def test_old_ones_are_forgotten_and_the_number_is_bounded(heard: Overheard) -> None:
    heard.overhear(pack([frame(b"old")]), 0.0)
    heard.overhear(pack([frame(b"new")]), AGE_MS_MAX + 1)
    assert heard.missed(AGE_MS_MAX + 1) == batch_of([frame(b"new")])
    heard.overhear(pack([frame(b"%d" % i) for i in range(FRAMES_MAX + 10)]), 0.0)
    missed = unpack(heard.missed(0.0).packed)
    assert len(missed) == FRAMES_MAX
    assert missed[-1] == frame(b"%d" % (FRAMES_MAX + 9))


def test_what_is_missed_is_bounded_too(heard: Overheard) -> None:
    for _ in range(3):
        heard.overhear(pack([frame(b"again and again")] * (FRAMES_MAX // 2)), 0.0)
    assert heard.missed(0.0).count == FRAMES_MAX


@pytest.mark.skipif(not engines.COMPILED, reason="nothing could be compiled here")
@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from([b"", bytes(5), *(frame(bytes([n]) * (7 * n)) for n in range(9))]), max_size=6),
            st.sampled_from([1, 1, -1]),
            st.integers(0, 900),
            st.sampled_from([b"", VM, CLIENT]),
        ),
        max_size=25,
    ),
    st.integers(0, 2**64 - 1),
)
def test_both_accounts_are_alike(script: list[tuple[list[bytes], int, int, bytes]], seed: int) -> None:
    from pycolo.core._hot import HotAccounts

    twin, hot, now_ms = Accounts(5, 1000.0), HotAccounts(5, 1000.0, seed), 0.0
    for number, (frames, difference, later_ms, but_from) in enumerate(script):
        now_ms += later_ms
        twin.book(pack(frames), difference, now_ms, but_from)
        hot.book(memoryview(pack(frames)), difference, now_ms, but_from)
        assert len(twin._accounts) == len(hot)
        if number % 7 == 6:
            assert twin.missed(now_ms) == hot.missed(now_ms)
    assert twin.missed(now_ms) == hot.missed(now_ms)


@pytest.mark.skipif(not engines.COMPILED, reason="nothing could be compiled here")
def test_frames_that_differ_in_few_bits_have_accounts_of_their_own() -> None:
    from pycolo.core._hot import HotAccounts

    hot, base = HotAccounts(1 << 16, 1000.0, 7), bytes(range(128))
    places = range(0, 8 * len(base), 31)
    frames = {base}
    for one in places:
        for other in places:
            changed = int.from_bytes(base) ^ (1 << one) ^ (1 << other if other != one else 0)
            frames.add(changed.to_bytes(len(base)))
    for word in (7, 15, 79):  # the highest bits of words that are multiplied one after the other
        flipped = bytearray(base)
        for place in (word, word + 32, word + 28):
            flipped[place] ^= 0x80
        frames.add(bytes(flipped))
    hot.book(pack(frames), 1, 0.0, b"")
    assert len(hot) == len(frames)
