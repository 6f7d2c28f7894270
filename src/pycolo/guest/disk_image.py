"""Builds the guest's disk: an ext4 image with a small Debian tree, PostgreSQL 15 and a fresh cluster in it.

Programs, libraries and cluster come together, so that the guest can run the server by a chroot into the disk: the
paths compiled into it hold, its libraries are those it was made with, and the initramfs stays as small as it is. A
template is built once and never written again; every VM gets a copy of it.
"""

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from pycolo.edge.holes import seek_extent
from pycolo.errors import EnvironmentFault
from pycolo.guest import cache, initramfs, packages
from pycolo.guest.cache import Progress, Recipe, silent
from pycolo.guest.initramfs import LIBRARY_FOLDERS, Entry, file_entry
from pycolo.guest.packages import FileTree, Package

DISK_BYTES = 512 << 20
INITDB_S_MAX = 120.0
MKFS_S_MAX = 120.0
SBIN = "/usr/sbin:/sbin"
"""Where Debian keeps mkfs.ext4 and chroot, which is not on everybody's PATH."""

_PACKAGES = ("busybox-static", "postgresql-15", "tzdata")
_NOT_NEEDED = ("libllvm14",)  # 24 MB, for the JIT that is off
_SOURCES = Path(__file__).parent
_SETTINGS = _SOURCES / "database"
_SETTING_FILES = ("postgresql.conf", "pg_hba.conf")
_PROGRAMS = "usr/lib/postgresql/15/bin"
_PLUGINS = "usr/lib/postgresql/15/lib"
_SHARE = "usr/share/postgresql/15/"
_BINARIES = tuple(f"{_PROGRAMS}/{name}" for name in ("postgres", "initdb"))
_LIBRARIES = tuple(f"{_PLUGINS}/{name}" for name in ("plpgsql.so", "dict_snowball.so"))
_ZONE = "usr/share/zoneinfo/Etc/UTC"
_SHELL = ("bin/busybox", "usr/bin/busybox")
_USER_ID = 5432
_CLUSTER = "cluster"
_UUID = "c0100000-0000-4000-8000-000000000001"
_IMAGE = "disk.img"
_COPY_BYTES_MAX = 1 << 30
_FICLONE = 0x40049409  # linux/fs.h


def build_disk(cache_dir: Path | None = None, progress: Progress = silent) -> Path:
    """Return the template, a raw image, built now unless the cache has it already; it must not be written.

    Arguments and failures are those of build_guest; a build needs e2fsprogs too.
    """
    return cache.built(_recipe(), cache_dir, progress) / _IMAGE


def _recipe() -> Recipe:
    return Recipe(
        name="disk",
        sources=_sources,
        resolve=lambda: packages.resolve(_PACKAGES, without=_NOT_NEEDED),
        fill=_fill,
        size_mb=400,
    )


def _sources() -> Iterator[Path]:
    yield from _SETTINGS.iterdir()
    yield from (_SOURCES / name for name in ("cache.py", "disk_image.py", "initramfs.py", "packages.py"))


def _fill(folder: Path, wanted: tuple[Package, ...], progress: Progress) -> None:
    files = cache.unpacked(wanted, folder / "download", _is_wanted, progress)
    root = folder / "root"
    try:
        _write(root, tree_entries(files))
    except ValueError as error:
        raise EnvironmentFault(
            f"the Debian packages are not as expected ({error}); use the packages of Debian 12."
        ) from None
    progress("Making the database", 0.82)
    _make_cluster(root)
    progress("Writing the disk image", 0.92)
    _make_file_system(root, folder / "image" / _IMAGE)


def _is_wanted(path: str) -> bool:
    if path.startswith(_SHARE):
        return not path.startswith(f"{_SHARE}man/")
    return path.rpartition("/")[0] in LIBRARY_FOLDERS or path in (*_BINARIES, *_LIBRARIES, *_SHELL, _ZONE)


def tree_entries(files: FileTree) -> dict[str, Entry]:
    """Return path -> entry of the disk's tree, and of what only initdb needs: a shell and a /dev/null."""
    programs = {path: files.find([path]) for path in (*_BINARIES, *_LIBRARIES)}
    entries = {path: file_entry(data, executable=True) for path, data in programs.items()}
    entries |= {path: file_entry(data) for path, data in files.files.items() if path.startswith(_SHARE)}
    entries |= {
        "bin/sh": file_entry(files.find(_SHELL), executable=True),
        "dev/null": Entry(stat.S_IFREG | 0o666),  # only root could make the device, and an empty file serves
        "etc/passwd": file_entry(f"postgres:x:{_USER_ID}:{_USER_ID}::/{_CLUSTER}:/bin/false\n".encode()),
        "etc/group": file_entry(f"postgres:x:{_USER_ID}:\n".encode()),
        "usr/share/zoneinfo/UTC": file_entry(files.find([_ZONE])),
        _CLUSTER: Entry(stat.S_IFDIR | 0o700),
    }
    return entries | initramfs.library_entries(programs.values(), files.find)


def _write(root: Path, entries: Mapping[str, Entry]) -> None:
    old_mask = os.umask(0o022)  # the server runs as a user of its own, which must be able to read all this
    try:
        root.mkdir()
        for name, entry in entries.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if stat.S_ISLNK(entry.mode):
                path.symlink_to(entry.data.decode())
            elif stat.S_ISDIR(entry.mode):
                path.mkdir()
            else:
                path.write_bytes(entry.data)
            if not stat.S_ISLNK(entry.mode):
                path.chmod(stat.S_IMODE(entry.mode))
    finally:
        os.umask(old_mask)


def _make_cluster(root: Path) -> None:
    cluster = root / _CLUSTER
    if os.geteuid() == 0:
        os.chown(cluster, _USER_ID, _USER_ID)
    options = "--username=postgres --auth=trust --locale=C --encoding=UTF8 --wal-segsize=1 --no-sync --no-instructions"
    _run_inside(root, ["initdb", "-D", f"/{_CLUSTER}", *options.split()])
    for name in _SETTING_FILES:
        (cluster / name).write_bytes((_SETTINGS / name).read_bytes())
    # Without exit_on_error a single-user server ends well whatever the statements did; -j lets them span lines.
    single = ["postgres", "--single", "-j", "-D", f"/{_CLUSTER}", "-c", "exit_on_error=on", "postgres"]
    _run_inside(root, single, (_SETTINGS / "tables.sql").read_text())
    for folder in ("bin", "dev"):
        shutil.rmtree(root / folder)


def _run_inside(root: Path, command: list[str], text_in: str = "") -> None:
    """Run a program of the tree in the tree, as a user that is not root: PostgreSQL refuses to be.

    Someone who is not root gets there by a user namespace, and owns the cluster on the disk as well; the guest
    runs the server as the owner of the cluster, whoever that is.
    """
    if os.geteuid() == 0:
        enter = [_tool("chroot"), f"--userspec={_USER_ID}:{_USER_ID}", "--groups=", str(root)]
    else:
        ids = [f"--map-user={_USER_ID}", f"--map-group={_USER_ID}"]
        enter = [_tool("unshare"), "--user", *ids, f"--root={root}"]
    remedy = "build as root, or allow user namespaces"
    packages.run_tool([*enter, f"/{_PROGRAMS}/{command[0]}", *command[1:]], INITDB_S_MAX, remedy, text_in=text_in)


def _make_file_system(root: Path, image: Path) -> None:
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    # All tables are written now: a guest that did it later would keep its disk busy while idle.
    extended = f"lazy_itable_init=0,lazy_journal_init=0,nodiscard,hash_seed={_UUID}"
    options = f"-q -F -b 4096 -m 0 -N 4096 -J size=8 -L colo -U {_UUID} -E {extended}"
    command = [_tool("mkfs.ext4"), *options.split(), "-d", str(root), str(image)]
    packages.run_tool(command, MKFS_S_MAX, "install e2fsprogs of Debian 12")
    image.chmod(0o444)


def _tool(name: str) -> str:
    return shutil.which(name) or shutil.which(name, path=SBIN) or name


def copy_disk(template: Path, target: Path) -> None:
    """Make `target` a copy of `template` that may be written: shared blocks where the file system can, else sparse.

    `target` is there complete or not at all; EnvironmentFault when its folder is full or may not be written.
    """
    partial = target.with_name(f"{target.name}.partial")
    try:
        with template.open("rb") as source, partial.open("wb") as copy:
            if not _cloned(source.fileno(), copy.fileno()):
                _copy_data(source.fileno(), copy.fileno())
        partial.rename(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        remedy = "free 200 MB there" if cache.storage_is_full(error) else "choose a folder that can be written"
        raise EnvironmentFault(f"the disk {target} can't be made ({error.strerror}); {remedy}.") from error


def _cloned(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:  # another file system, or one that can't share blocks: the copy will tell what else is wrong
        return False
    return True


def _copy_data(source: int, target: int) -> None:
    size = os.fstat(source).st_size
    os.truncate(target, size)
    for start, end in _data_ranges(source, size):
        os.lseek(target, start, os.SEEK_SET)
        while start < end:
            count = os.sendfile(target, source, start, min(end - start, _COPY_BYTES_MAX))
            if count == 0:
                raise OSError(errno.EIO, "the template became shorter")
            start += count


def _data_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    end = 0
    while (start := seek_extent(fd, end, os.SEEK_DATA, size)) < size:
        end = seek_extent(fd, start, os.SEEK_HOLE, size)
        yield start, end
