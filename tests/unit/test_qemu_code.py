"""Telling QEMU which translated code to drop: what is said, and what becomes of answers that are none."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from pycolo.edge.guest_ram import runs_of
from pycolo.edge.qemu_code import TranslatedCode, keeps_code
from pycolo.errors import VmLost

PAGES = np.array([0, 1, 2, 7, 9, 10], np.uint32)
CHANNELS: list[socket.socket] = []
SAID = b"memset 0x0 0x3000 0\nmemset 0x7000 0x1000 0\nmemset 0x9000 0x2000 0\n"


@pytest.fixture(autouse=True)
def closed_channels() -> Iterator[None]:
    yield
    while CHANNELS:
        CHANNELS.pop().close()


def code(answer: bytes | None, deadline_s: float = 5.0) -> tuple[TranslatedCode, socket.socket]:
    """One whose QEMU has given that answer; None: it has closed the channel."""
    ours, theirs = socket.socketpair()
    CHANNELS.append(ours)
    if answer is None:
        theirs.shutdown(socket.SHUT_RDWR)
    else:
        theirs.sendall(answer)
    return TranslatedCode(ours, "vm", deadline_s), theirs


async def test_runs_of_pages_are_said_in_one_line_each() -> None:
    ours, theirs = code(b"OK\n" * 3)
    await ours.drop(PAGES)
    assert theirs.recv(1000) == SAID
    theirs.close()


async def test_no_page_needs_no_word() -> None:
    ours, theirs = code(b"")
    await ours.drop(PAGES[:0])
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        theirs.recv(1)
    theirs.close()


async def test_answers_may_come_in_pieces() -> None:
    ours, theirs = code(b"OK\nO")
    dropping = asyncio.create_task(ours.drop(PAGES))
    for piece in (b"K", b"\nOK\n"):
        await asyncio.sleep(0.01)
        assert not dropping.done()
        theirs.sendall(piece)
    await dropping
    theirs.close()


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (b"OK\nFAIL Unknown command 'memset'\n", "did not drop translated code: .*FAIL"),
        (b"OK\nOK\nOK\nOK\n", "did not drop translated code"),
        (b"OK\n", "within 0.05 s"),
        (None, "can't be told|did not drop"),
    ],
    ids=["refused", "too many", "too few", "closed"],
)
async def test_without_all_answers_the_vm_is_lost(answer: bytes | None, match: str) -> None:
    ours, theirs = code(answer, 0.05)
    with pytest.raises(VmLost, match=match):
        await ours.drop(PAGES)
    with pytest.raises(VmLost, match="left unanswered"):
        await ours.drop(PAGES)
    theirs.close()


async def test_more_than_a_socket_takes_is_said_all_the_same() -> None:
    ours, theirs = code(b"")
    theirs.setblocking(False)
    pages = np.arange(0, 100_000, 2, dtype=np.uint32)
    dropping = asyncio.create_task(ours.drop(pages))
    heard, loop = 0, asyncio.get_running_loop()
    while heard < len(pages):
        lines = (await loop.sock_recv(theirs, 1 << 16)).count(b"\n")
        heard += lines
        await loop.sock_sendall(theirs, b"OK\n" * lines)
    await dropping
    theirs.close()


@pytest.mark.parametrize(
    ("changed", "keeps"),
    [
        ({}, True),
        ({"version": (11, 1, 3)}, True),
        ({"machine": "pc-i440fx-10.2"}, True),
        ({"version": (10, 1, 9)}, False),
        ({"accel": "kvm"}, False),
        ({"machine": "microvm"}, False),
        ({"memory_mib": 2049}, False),
    ],
    ids=str,
)
def test_where_a_load_can_leave_code_in_place(changed: dict[str, object], keeps: bool) -> None:
    asked: Callable[..., bool] = keeps_code
    values = {"version": (10, 2, 0), "accel": "tcg", "machine": "pc-q35-10.2", "memory_mib": 2048}
    assert asked(**values | changed) == keeps


def test_runs() -> None:
    assert runs_of(PAGES).tolist() == [[0, 3], [7, 8], [9, 11]]
    assert runs_of(PAGES[:0]).tolist() == []
    assert runs_of(PAGES[3:4]).tolist() == [[7, 8]]
