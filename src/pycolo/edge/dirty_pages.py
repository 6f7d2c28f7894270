"""Which pages of guest RAM were written: by userfaultfd write protection, or by comparison where need be.

Guaranteed: no write is lost. A page written after it was reported is reported again, also while the VM runs
and while `take` is under way. When a `take` fails, the next one returns every page. A page may be reported
that was not written.

Why the order scan, protect, copy is safe while the VM runs: a page the scan missed is still unprotected, so
the next scan finds it; a page it found is protected before the caller copies it, so a write after the copy is
found next time. Protecting a page the scan did not report would lose a write; so only reported runs are
protected, exactly, and gaps between them are never bridged. Sources: Linux
Documentation/admin-guide/mm/pagemap.rst, fs/proc/task_mmu.c, include/uapi/linux/fs.h, linux/userfaultfd.h.
"""

import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pycolo.edge.guest_ram import PAGE_BYTES, GuestRam, PageIndices, Pages, runs_of
from pycolo.edge.page_compare import COMPARED_PAGES, differing_pages

_UFFDIO_REGISTER = 0xC020AA00
_UFFDIO_WRITEPROTECT = 0xC018AA06
_REGISTER_MODE_WP = 2
_WRITEPROTECT_MODE_WP = 1
_PAGEMAP_SCAN = 0xC0606610
_SCAN_WP_MATCHING = 1
_SCAN_CHECK_WPASYNC = 2
_PAGE_IS_WRITTEN = 2
_SCAN_ARGUMENT = struct.Struct("=12Q")  # struct pm_scan_arg
_WALK_END_AT = 32  # offset of its member walk_end

REGIONS_PER_SCAN_MAX = 16384
RUNS_PROTECTED_SINGLY_MAX = 64
"""With more runs one sweep of the whole range is cheaper (64 runs: 0.25 ms either way; 400: 1.6 and 0.5 ms)."""


class DirtyPages(Protocol):
    """The tracker of one VM's RAM."""

    kind: Literal["uffd", "compare"]

    def take(self) -> PageIndices:
        """Sorted unique indices of pages written since the last `take`, all pages at first; tracking starts
        anew.

        The caller copies them afterwards, through `contents`. OSError when QEMU or its mapping is gone.
        """

    def contents(self, indices: PageIndices) -> Pages:
        """Copies of these pages, (n, PAGE_BYTES), such that a write they don't show is reported by the next `take`."""

    def wrote(self, indices: PageIndices, contents: Pages) -> None:
        """We wrote these pages ourselves, through `GuestRam`: that is not the VM's doing."""

    def forget(self, indices: PageIndices) -> None:
        """QEMU has just written these pages (sorted) on our behalf, while the VM is stopped: not the VM's doing either.

        Their contents are ours to write before anything else does.
        """

    def close(self) -> None: ...


@dataclass(frozen=True)
class RamMapping:
    """Where QEMU's process `pid` has the guest's RAM: one contiguous range of addresses."""

    pid: int
    start: int
    end: int


def find_mapping(pid: int, ram: GuestRam) -> RamMapping:
    """QEMU's mapping of `ram`, found by the memfd's inode. ValueError when it isn't there whole and in one
    piece.
    """
    inode = os.fstat(ram.fd).st_ino
    ranges = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        addresses, _, offset, _, number, *name = line.split(maxsplit=5)
        if int(number) == inode and name and name[0].startswith("/memfd:colo-guest-ram"):
            start, end = (int(address, 16) for address in addresses.split("-"))
            ranges.append((start, end, int(offset, 16)))
    if not ranges:
        raise ValueError("QEMU has not mapped the guest's RAM")
    first, last = ranges[0][0], ranges[-1][1]
    if last - first != ram.size_bytes or any(start - first != offset for start, _, offset in ranges):
        raise ValueError("QEMU has mapped the guest's RAM in pieces")
    return RamMapping(pid, first, last)


class UffdDirtyPages:
    """Dirty pages by userfaultfd with WP_ASYNC: the kernel itself lifts the protection of a page at its first
    write.
    """

    kind: Literal["uffd", "compare"] = "uffd"

    def __init__(self, uffd: int, mapping: RamMapping, ram: GuestRam) -> None:
        """Takes over `uffd`, made inside QEMU. OSError when the kernel refuses, `uffd` is closed then."""
        self._uffd = uffd
        self._mapping, self._ram = mapping, ram
        self._regions = np.zeros((REGIONS_PER_SCAN_MAX, 3), np.uint64)
        self._all_dirty = True
        self._pagemap = -1
        try:
            self._pagemap = os.open(f"/proc/{mapping.pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
            length = mapping.end - mapping.start
            request = struct.pack("=4Q", mapping.start, length, _REGISTER_MODE_WP, 0)
            fcntl.ioctl(uffd, _UFFDIO_REGISTER, request)
            self._scan(0)  # a kernel without PAGEMAP_SCAN says so now
        except OSError:
            self.close()
            raise

    def take(self) -> PageIndices:
        """As `DirtyPages.take`; about 1 us per MiB clean, plus the protection of what was dirty."""
        if self._all_dirty:
            return self._take_all()
        self._all_dirty = True  # until this take has succeeded
        runs = self._scan(0)
        if len(runs) <= RUNS_PROTECTED_SINGLY_MAX:
            self._protect(runs)
        else:
            # Finds and protects each page in one step, so what was written since the scan is in its answer.
            runs = np.concatenate([runs, self._scan(_SCAN_WP_MATCHING)])
        self._all_dirty = False
        return self._pages_of(runs)

    def contents(self, indices: PageIndices) -> Pages:
        return self._ram.read(indices)

    def wrote(self, indices: PageIndices, contents: Pages) -> None:
        """Writes through our own mapping are not seen in QEMU's (interfaces of PAGEMAP_SCAN): nothing to undo."""

    def forget(self, indices: PageIndices) -> None:
        """As `DirtyPages.forget`: protected again, exactly these."""
        if not self._all_dirty:
            self._protect(runs_of(indices) * np.uint64(PAGE_BYTES) + np.uint64(self._mapping.start))

    def close(self) -> None:
        for fd in (self._uffd, self._pagemap):
            if fd >= 0:
                os.close(fd)
        self._uffd = self._pagemap = -1

    def _take_all(self) -> PageIndices:
        """Protect everything; also lays page tables, without which a scan reports nothing at all for a range."""
        self._protect(np.array([[self._mapping.start, self._mapping.end]], np.uint64))
        self._all_dirty = False
        return np.arange((self._mapping.end - self._mapping.start) // PAGE_BYTES, dtype=np.uint32)

    def _protect(self, runs: NDArray[np.uint64]) -> None:
        """Write-protect exactly these runs (rows of first and end address); per run, lest KVM drop its whole
        page table.
        """
        for start, end in runs.tolist():
            fcntl.ioctl(
                self._uffd,
                _UFFDIO_WRITEPROTECT,
                struct.pack("=3Q", start, end - start, _WRITEPROTECT_MODE_WP),
            )

    def _scan(self, flags: int) -> NDArray[np.uint64]:
        """Runs of written pages as rows (first address, end address); may overlap, as the kernel can report a
        tail twice.

        The masks must be exactly PAGE_IS_WRITTEN: only that path counts a written page that was reclaimed
        since.
        """
        found = []
        start = self._mapping.start
        while start < self._mapping.end:
            argument = bytearray(self._scan_argument(start, flags | _SCAN_CHECK_WPASYNC))
            count = fcntl.ioctl(self._pagemap, _PAGEMAP_SCAN, argument)
            found.append(self._regions[:count, :2].copy())
            (walk_end,) = struct.unpack_from("=Q", argument, _WALK_END_AT)
            if walk_end <= start:
                raise OSError(f"PAGEMAP_SCAN stopped at {walk_end:#x} and goes no further")
            start = walk_end
        return np.concatenate(found)

    def _scan_argument(self, start: int, flags: int) -> bytes:
        return _SCAN_ARGUMENT.pack(
            _SCAN_ARGUMENT.size,
            flags,
            start,
            self._mapping.end,
            0,  # walk_end, an answer
            self._regions.ctypes.data,
            len(self._regions),
            0,  # max_pages: no limit
            0,  # category_inverted
            _PAGE_IS_WRITTEN,  # category_mask
            0,  # category_anyof_mask
            _PAGE_IS_WRITTEN,  # return_mask
        )

    def _pages_of(self, runs: NDArray[np.uint64]) -> PageIndices:
        """The page indices in `runs`, sorted, each once."""
        bounds = ((runs - np.uint64(self._mapping.start)) // np.uint64(PAGE_BYTES)).astype(np.int64)
        lengths = bounds[:, 1] - bounds[:, 0]
        # Position in the result minus position of its run's first page, plus that page.
        shift = np.repeat(bounds[:, 0] - (np.cumsum(lengths) - lengths), lengths)
        pages = (np.arange(len(shift)) + shift).astype(np.uint32)
        rises = bool(np.all(pages[1:] > pages[:-1]))
        return pages if rises else np.unique(pages)


class ComparingDirtyPages:
    """Dirty pages by comparison with a copy of all RAM: any kernel, about 0.1 s and 1 GiB per GiB."""

    kind: Literal["uffd", "compare"] = "compare"

    def __init__(self, ram: GuestRam) -> None:
        self._ram = ram
        self._shadow: Pages = np.zeros_like(ram.pages)
        self._all_dirty = True

    def take(self) -> PageIndices:
        """As `DirtyPages.take`; it may run in a thread, as it gives way between its steps."""
        everything, self._all_dirty = self._all_dirty, True  # until this take has succeeded
        differs = np.ones(self._ram.page_count, np.bool_)
        for start in range(0, self._ram.page_count, COMPARED_PAGES):
            differs[start : start + COMPARED_PAGES] = self._refresh(slice(start, start + COMPARED_PAGES))
        self._all_dirty = False
        if everything:
            differs[:] = True
        return np.flatnonzero(differs).astype(np.uint32)

    def contents(self, indices: PageIndices) -> Pages:
        """The copies themselves: what differs from them later is found then, whatever the VM does meanwhile."""
        return self._shadow[indices]

    def wrote(self, indices: PageIndices, contents: Pages) -> None:
        self._shadow[indices] = contents

    def forget(self, indices: PageIndices) -> None:
        """Nothing to do: what they are is compared, not who wrote them."""

    def close(self) -> None:
        self._shadow = np.empty((0, PAGE_BYTES), np.uint8)

    def _refresh(self, part: slice) -> NDArray[np.bool_]:
        """Bring a part of the copy up to date; which of its pages differed."""
        ram, shadow = self._ram.pages[part], self._shadow[part]
        differs = differing_pages(ram, shadow)
        shadow[differs] = ram[differs]
        return differs


def missed_pages(ram: GuestRam, shadow: Pages, taken: PageIndices) -> PageIndices:
    """Self-check of a tracker: pages that differ from `shadow`, the RAM as last copied, but are not in
    `taken`; none is right.

    Valid only while the VM is stopped, since before the `take` that gave `taken`.
    """
    differs = differing_pages(ram.pages, shadow)
    differs[taken] = False
    return np.flatnonzero(differs).astype(np.uint32)


@dataclass(frozen=True)
class OpenedDirtyPages:
    """A tracker, and in one sentence why it isn't the fast one (empty when it is)."""

    tracker: DirtyPages
    why_not_uffd: str


def open_dirty_pages(ram: GuestRam, pid: int, uffd: int | None, why_no_uffd: str) -> OpenedDirtyPages:
    """The best tracker this kernel has for `ram` as QEMU's process `pid` maps it.

    `uffd` (taken over) is what the preload library handed over, else None with the reason in `why_no_uffd`.
    """
    reason = why_no_uffd
    if uffd is not None:
        try:
            mapping = find_mapping(pid, ram)
        except (ValueError, OSError) as problem:
            os.close(uffd)
            reason = str(problem)
        else:
            try:
                return OpenedDirtyPages(UffdDirtyPages(uffd, mapping, ram), "")
            except OSError as problem:
                reason = f"the kernel refused to track the guest's RAM: {problem.strerror or problem}"
    return OpenedDirtyPages(ComparingDirtyPages(ram), reason)
