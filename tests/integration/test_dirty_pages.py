"""The trackers on this kernel, watching this process's own writes, where a test knows exactly what was written."""

import array
import ctypes
import fcntl
import importlib.util
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from pycolo.edge.dirty_pages import (
    RUNS_PROTECTED_SINGLY_MAX,
    ComparingDirtyPages,
    DirtyPages,
    UffdDirtyPages,
    find_mapping,
    missed_pages,
    open_dirty_pages,
)
from pycolo.edge.guest_ram import PAGE_BYTES, GuestRam, PageIndices

PAGES = 8192
SYS_USERFAULTFD = 323
USER_MODE_ONLY = 1
UFFDIO_API = 0xC018AA3F
FEATURES = 1 | 1 << 12 | 1 << 13 | 1 << 15


def make_uffd() -> int:
    """As the preload library does it, for this process."""
    uffd = ctypes.CDLL(None, use_errno=True).syscall(SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK | USER_MODE_ONLY)
    assert uffd >= 0, os.strerror(ctypes.get_errno())
    fcntl.ioctl(uffd, UFFDIO_API, struct.pack("=3Q", 0xAA, FEATURES, 0))
    return int(uffd)


@pytest.fixture
def ram() -> Iterator[GuestRam]:
    ram = GuestRam(PAGES * PAGE_BYTES)
    yield ram
    ram.close()


Opener = Callable[[GuestRam], DirtyPages]


def open_uffd(ram: GuestRam) -> DirtyPages:
    return UffdDirtyPages(make_uffd(), find_mapping(os.getpid(), ram), ram)


def open_compare(ram: GuestRam) -> DirtyPages:
    return ComparingDirtyPages(ram)


@pytest.fixture(params=[open_uffd, open_compare], ids=["uffd", "compare"])
def tracker(request: pytest.FixtureRequest, ram: GuestRam) -> Iterator[DirtyPages]:
    tracker = request.param(ram)
    yield tracker
    tracker.close()


@pytest.fixture
def uffd_tracker(ram: GuestRam) -> Iterator[DirtyPages]:
    tracker = open_uffd(ram)
    yield tracker
    tracker.close()


def touch(ram: GuestRam, indices: PageIndices) -> None:
    ram.pages[indices, 5] += 1


def scattered(count: int, seed: int = 1) -> PageIndices:
    chosen = np.random.default_rng(seed).choice(PAGES, count, replace=False)
    return np.sort(chosen).astype(np.uint32)


def test_the_first_take_is_everything_and_the_second_nothing(tracker: DirtyPages) -> None:
    assert np.array_equal(tracker.take(), np.arange(PAGES))
    assert len(tracker.take()) == 0


# 3000 scattered pages are more regions than the kernel's inner buffer of 512, so a scan reports some twice.
@pytest.mark.parametrize("count", [1, 2, RUNS_PROTECTED_SINGLY_MAX // 2, 600, 3000, PAGES])
def test_exactly_what_was_written_is_reported_once(ram: GuestRam, tracker: DirtyPages, count: int) -> None:
    tracker.take()
    written = scattered(count)
    touch(ram, written)

    taken = tracker.take()

    assert taken.dtype == np.uint32
    assert np.array_equal(taken, written)
    assert len(tracker.take()) == 0


def test_pages_are_reported_again_when_written_again(ram: GuestRam, tracker: DirtyPages) -> None:
    tracker.take()
    for seed in range(20):
        written = scattered(40 * seed, seed)
        touch(ram, written)
        assert np.array_equal(tracker.take(), written)


def test_reading_dirties_nothing(ram: GuestRam, tracker: DirtyPages) -> None:
    tracker.take()

    assert int(ram.pages.sum()) == 0
    assert len(tracker.take()) == 0


def test_the_first_and_the_last_page_count(ram: GuestRam, tracker: DirtyPages) -> None:
    tracker.take()
    ram.pages[0, 0] = 1
    ram.pages[-1, -1] = 1

    assert tracker.take().tolist() == [0, PAGES - 1]


@pytest.mark.parametrize("pages_a_step", [10, 1500], ids=["few runs", "many runs"])
def test_no_write_is_lost_while_pages_are_written_all_the_time(
    ram: GuestRam, uffd_tracker: DirtyPages, pages_a_step: int
) -> None:
    copy = ram.pages.copy()
    enough = threading.Event()

    def write_until_told() -> None:
        choice = np.random.default_rng(7)
        while not enough.is_set():
            touch(ram, choice.choice(PAGES, pages_a_step, replace=False).astype(np.uint32))

    uffd_tracker.take()
    writer = threading.Thread(target=write_until_told)
    writer.start()
    for _ in range(60):
        taken = uffd_tracker.take()
        copy[taken] = ram.read(taken)
    enough.set()
    writer.join(timeout=10)
    taken = uffd_tracker.take()

    assert len(missed_pages(ram, copy, taken)) == 0
    copy[taken] = ram.read(taken)
    assert np.array_equal(copy, ram.pages)


@pytest.mark.parametrize("runs", [2, RUNS_PROTECTED_SINGLY_MAX, RUNS_PROTECTED_SINGLY_MAX + 1, 1000])
def test_no_write_between_scan_and_protection_is_lost(
    ram: GuestRam, uffd_tracker: DirtyPages, monkeypatch: pytest.MonkeyPatch, runs: int
) -> None:
    copy = ram.pages.copy()
    uffd_tracker.take()
    dirty = (np.arange(runs) * 4).astype(np.uint32)
    touch(ram, dirty)
    late = np.concatenate([dirty, dirty + 2, np.array([PAGES - 1])]).astype(np.uint32)  # in runs, in gaps, outside
    ioctl, calls = fcntl.ioctl, []

    def write_after_the_scan(fd: int, request: int, argument: bytes | bytearray) -> int | bytes:
        answer = ioctl(fd, request, argument)
        calls.append(request)
        if len(calls) == 1:
            touch(ram, late)
        return answer

    with monkeypatch.context() as racing:
        racing.setattr(fcntl, "ioctl", write_after_the_scan)
        first = uffd_tracker.take()
    copy[first] = ram.read(first)

    assert len(calls) > 1
    assert set(dirty.tolist()) <= set(first.tolist())
    second = uffd_tracker.take()
    assert set(late.tolist()) <= set(first.tolist()) | set(second.tolist())
    assert len(missed_pages(ram, copy, second)) == 0


def test_the_self_check_finds_a_missed_page(ram: GuestRam) -> None:
    copy = ram.pages.copy()
    touch(ram, np.array([3, 9, 77], np.uint32))

    assert missed_pages(ram, copy, np.array([9, 500], np.uint32)).tolist() == [3, 77]


def test_after_a_failed_take_everything_is_dirty(
    ram: GuestRam, uffd_tracker: UffdDirtyPages, monkeypatch: pytest.MonkeyPatch
) -> None:
    uffd_tracker.take()
    touch(ram, scattered(5))

    def refuse(*_: object) -> None:
        raise OSError("no")

    with monkeypatch.context() as broken:
        broken.setattr(fcntl, "ioctl", refuse)
        with pytest.raises(OSError, match="no"):
            uffd_tracker.take()

    assert len(uffd_tracker.take()) == PAGES
    assert len(uffd_tracker.take()) == 0


def test_a_value_put_back_after_the_copy_is_never_lost(ram: GuestRam, tracker: DirtyPages) -> None:
    tracker.take()
    ram.pages[4, 0] = 1
    assert tracker.take().tolist() == [4]
    ram.pages[4, 0] = 2
    copied = int(tracker.contents(np.array([4], np.uint32))[0, 0])
    ram.pages[4, 0] = 1  # back to what the tracker saw

    assert copied == 1 or tracker.take().tolist() == [4]


def test_what_we_wrote_ourselves_is_not_the_vms_doing(ram: GuestRam) -> None:
    tracker = ComparingDirtyPages(ram)
    tracker.take()
    indices, contents = scattered(3), np.full((3, PAGE_BYTES), 7, np.uint8)
    ram.write(indices, contents)
    tracker.wrote(indices, contents)

    assert len(tracker.take()) == 0


def test_ram_that_is_not_mapped_there_is_not_found(ram: GuestRam) -> None:
    with pytest.raises(ValueError, match="has not mapped"):
        find_mapping(os.getppid(), ram)


def test_without_a_userfaultfd_pages_are_compared(ram: GuestRam) -> None:
    opened = open_dirty_pages(ram, os.getpid(), None, "there is none")

    assert (opened.tracker.kind, opened.why_not_uffd) == ("compare", "there is none")


def test_a_descriptor_that_is_no_userfaultfd_falls_back(ram: GuestRam) -> None:
    opened = open_dirty_pages(ram, os.getpid(), os.open("/dev/null", os.O_RDWR), "")

    assert opened.tracker.kind == "compare"
    assert "refused" in opened.why_not_uffd


def test_a_good_userfaultfd_is_used(ram: GuestRam) -> None:
    opened = open_dirty_pages(ram, os.getpid(), make_uffd(), "")
    opened.tracker.close()

    assert (opened.tracker.kind, opened.why_not_uffd) == ("uffd", "")


def test_ram_is_read_and_written_by_page(ram: GuestRam) -> None:
    indices = scattered(300)
    data = np.random.default_rng(2).integers(0, 256, (300, PAGE_BYTES), np.uint8)

    ram.write(indices, data)

    assert np.array_equal(ram.read(indices), data)
    assert np.array_equal(ram.pages[indices], data)
    assert int(np.count_nonzero(ram.pages.any(axis=1))) == 300


def test_reading_ram_copies(ram: GuestRam) -> None:
    before = ram.read(np.array([1], np.uint32))
    ram.pages[1, 0] = 9

    assert before[0, 0] == 0


@pytest.mark.parametrize(
    "access", [lambda r, i: r.read(i), lambda r, i: r.write(i, np.zeros((1, PAGE_BYTES), np.uint8))]
)
def test_a_page_that_is_not_there(ram: GuestRam, access: Callable[[GuestRam, PageIndices], object]) -> None:
    with pytest.raises(IndexError):
        access(ram, np.array([PAGES], np.uint32))


def test_half_pages_are_refused(ram: GuestRam) -> None:
    with pytest.raises(ValueError, match="can't be filled"):
        ram.write(np.array([0], np.uint32), np.zeros((1, PAGE_BYTES // 2), np.uint8))
    with pytest.raises(ValueError, match="whole pages"):
        GuestRam(PAGE_BYTES + 1)


def test_ram_can_be_closed_twice_and_never_shrinks(ram: GuestRam) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(ram.fd, 0)
    ram.close()
    ram.close()


def preload_environment(handover: socket.socket) -> dict[str, str]:
    spec = importlib.util.find_spec("pycolo.edge._preload")
    assert spec is not None
    assert spec.origin is not None
    return {"LD_PRELOAD": spec.origin, "COLO_UFFD_FD": str(handover.fileno()), "PATH": os.environ["PATH"]}


def test_the_preload_library_hands_over_and_leaves_no_trace_in_the_environment() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        printed = subprocess.run(
            ["env"], env=preload_environment(theirs), pass_fds=[theirs.fileno()], capture_output=True, timeout=10
        ).stdout
        message, ancillary, _, _ = ours.recvmsg(64, socket.CMSG_SPACE(4))
    descriptors = array.array("i", ancillary[0][2])
    os.close(descriptors[0])

    assert message == bytes(8)
    assert b"LD_PRELOAD" not in printed
    assert b"COLO_UFFD_FD" not in printed
    assert b"PATH" in printed


def test_a_program_whose_owner_is_gone_does_not_run() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.close()
    with theirs:
        ended = subprocess.run(
            ["echo", "ran"],
            env=preload_environment(theirs),
            pass_fds=[theirs.fileno()],
            capture_output=True,
            timeout=10,
        )

    assert (ended.returncode, ended.stdout) == (1, b"")
