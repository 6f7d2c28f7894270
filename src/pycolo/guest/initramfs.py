"""The pure half of the guest builder: the libraries and kernel modules needed, and the archive the kernel boots.

Nothing here touches a file or runs a tool; equal inputs give equal bytes. Bad input raises ValueError.
"""

import lzma
import re
import stat
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

NAME_MAX_BYTES = 4096
LIBRARY_FOLDERS = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64", "usr/lib64")
_LOADER = "ld-linux-x86-64.so.2"

_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NULL, _DT_NEEDED, _DT_STRTAB = 0, 1, 5
_TRAILER = "TRAILER!!!"
_DEPENDS = re.compile(rb"(?:^|\0)depends=([\w,-]*)\0")


@dataclass(frozen=True)
class Entry:
    """One entry of the archive: `mode` is st_mode with its type; `data` a file's bytes or a link's target."""

    mode: int
    data: bytes = b""


def file_entry(data: bytes, executable: bool = False) -> Entry:
    """Return a regular file."""
    return Entry(stat.S_IFREG | (0o755 if executable else 0o644), data)


def link_entry(target: str) -> Entry:
    """Return a symbolic link to `target`."""
    return Entry(stat.S_IFLNK | 0o777, target.encode())


FOLDER = Entry(stat.S_IFDIR | 0o755)


def archive(entries: Mapping[str, Entry]) -> bytes:
    """Return an uncompressed cpio "newc" archive (Linux: early-userspace/buffer-format) of path -> entry.

    Paths have no leading slash; missing parent folders are added; every time is 0, every owner root.
    """
    complete = {parent: FOLDER for path in entries for parent in _parents(path)} | dict(entries)
    parts = [_record(number, path, complete[path]) for number, path in enumerate(sorted(complete), 1)]
    return b"".join([*parts, _record(0, _TRAILER, Entry(0))])


def _parents(path: str) -> list[str]:
    pieces = path.split("/")
    return ["/".join(pieces[:count]) for count in range(1, len(pieces))]


def _record(number: int, path: str, entry: Entry) -> bytes:
    name = path.encode() + b"\0"
    if len(name) < 2 or len(name) > NAME_MAX_BYTES or path.startswith("/"):
        raise ValueError(f"not a path for an archive: {path!r}")
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, 0, 0, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def needed_libraries(program: bytes) -> tuple[str, ...]:
    """Return the DT_NEEDED names of an x86-64 ELF file (System V gABI, chapter 5); () when it is static."""
    try:
        return _needed(program)
    except (struct.error, OverflowError, UnicodeDecodeError) as error:
        raise ValueError(f"a damaged ELF file: {error}") from None


def _needed(program: bytes) -> tuple[str, ...]:
    if program[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file")
    (table,) = struct.unpack_from("<Q", program, 32)
    size, count = struct.unpack_from("<HH", program, 54)
    # type, flags, offset, virtual address, physical address, size in the file, size in memory, alignment
    headers = [struct.unpack_from("<IIQQQQQQ", program, table + size * index) for index in range(count)]
    dynamic = [_tags(program[h[2] : h[2] + h[5]]) for h in headers if h[0] == _PT_DYNAMIC]
    tags = dynamic[0] if dynamic else []
    strings = [value for tag, value in tags if tag == _DT_STRTAB]
    bases = [h[2] - h[3] for h in headers if h[0] == _PT_LOAD and strings and h[3] <= strings[0] < h[3] + h[5]]
    if tags and not bases:
        raise ValueError("an ELF file without a string table")
    return tuple(_string(program, bases[0] + strings[0] + value) for tag, value in tags if tag == _DT_NEEDED)


def _tags(section: bytes) -> list[tuple[int, int]]:
    tags: list[tuple[int, int]] = []
    for tag, value in struct.iter_unpack("<qQ", section):
        if tag == _DT_NULL:
            break
        tags.append((tag, value))
    return tags


def _string(data: bytes, start: int) -> str:
    end = data.find(b"\0", start)
    if not 0 <= start < end:
        raise ValueError("an ELF string outside the file")
    return data[start:end].decode("ascii")


def library_closure(programs: Iterable[bytes], find: Callable[[str], bytes]) -> dict[str, bytes]:
    """Return name -> contents of every library that `programs` load, directly or not; `find` gives one's bytes."""
    found: dict[str, bytes] = {}
    queue = [name for program in programs for name in needed_libraries(program)]
    while queue:
        name = queue.pop()
        if name not in found:
            found[name] = find(name)
            queue.extend(needed_libraries(found[name]))
    return found


def library_entries(programs: Iterable[bytes], find: Callable[[Iterable[str]], bytes]) -> dict[str, Entry]:
    """Return path -> entry of all that `programs` load, and of the loader; `find` gets the paths to look at."""
    libraries = library_closure(programs, lambda name: find(f"{folder}/{name}" for folder in LIBRARY_FOLDERS))
    entries = {f"{LIBRARY_FOLDERS[0]}/{name}": file_entry(data, executable=True) for name, data in libraries.items()}
    return entries | {f"lib64/{_LOADER}": link_entry(f"/{LIBRARY_FOLDERS[0]}/{_LOADER}")}


def module_contents(data: bytes) -> bytes:
    """Return a kernel module's ELF bytes; newer Debian kernels ship them as .ko.xz."""
    if not data.startswith(b"\xfd7zXZ"):
        return data
    try:
        return lzma.decompress(data)
    except lzma.LZMAError as error:
        raise ValueError(f"a damaged kernel module: {error}") from None


def module_order(wanted: Iterable[str], find: Callable[[str], bytes]) -> dict[str, bytes]:
    """Return name -> contents of the modules `wanted` and all they depend on, in an order that insmod takes.

    `find(name)` gives a module's ELF bytes. Raises ValueError for one that does not say what it depends on.
    """
    ordered: dict[str, bytes] = {}

    def add(name: str, above: tuple[str, ...]) -> None:
        if name in ordered or name in above:
            return
        data = find(name)
        match = _DEPENDS.search(data)
        if match is None:
            raise ValueError(f"kernel module {name} names no dependencies")
        for dependency in filter(None, match[1].decode().split(",")):
            add(dependency.replace("-", "_"), (*above, name))
        ordered[name] = data

    for name in wanted:
        add(name, ())
    return ordered
