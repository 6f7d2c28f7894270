"""Builds the guest of the demo and the tests: Debian's cloud kernel, an initramfs with nginx, Redis and an echo.

A build either ends complete in the cache or leaves nothing there: it happens in a folder of its own, which is
renamed at the end, under a lock that keeps other builders out. The same packages and sources are built once.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pycolo.errors import EnvironmentFault
from pycolo.guest import initramfs, packages
from pycolo.guest.initramfs import Entry, file_entry, link_entry
from pycolo.guest.packages import FileTree, Package, PackagesUnavailable
from pycolo.guest.static_files import STATIC_FILES, static_file

READY_LINE = "COLO-GUEST-READY"
"""What the guest prints on its serial console once every service accepts connections."""

LOCK_S_MAX = 900.0
IMAGES_MAX = 3
COMPILE_S_MAX = 120.0

# tsc=reliable and nowatchdog: no periodic timers, and no change of clock source after a checkpoint is loaded;
# no_timer_check: that check can fail by chance on a busy host; mitigations=off: they protect nobody in this guest.
_APPEND = "console=ttyS0 quiet ipv6.disable=1 tsc=reliable no_timer_check nowatchdog audit=0 mitigations=off"
_KERNEL_PACKAGE = "linux-image-cloud-amd64"
_PACKAGES = ("busybox-static", "nginx", "redis-tools")
_MODULES = ("virtio_pci", "virtio_net", "virtio_blk")
_MODULE_FOLDERS = ("/drivers/virtio/", "/drivers/net/", "/drivers/block/", "/net/core/")
_APPLETS = ("sh", "cat", "insmod", "ip", "mount", "sleep", "sysctl")
_LIBRARY_FOLDERS = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64", "usr/lib64")
_LOADER = "ld-linux-x86-64.so.2"
_SOURCES = Path(__file__).parent
_STALE = "building-"

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class GuestImage:
    """A bootable guest; `append` is the kernel command line without the guest's address."""

    kernel: Path
    initrd: Path
    append: str

    def command_line(self, address: str) -> str:
        """Return the kernel command line for a guest at `address`, as in "10.77.0.2/24"."""
        return f"{self.append} colo.ip={address}"


def _silent(step: str, fraction: float) -> None:
    del step, fraction


def build_guest(cache_dir: Path | None = None, progress: Progress = _silent) -> GuestImage:
    """Return the guest, built now unless the cache (`cache_dir`, or else default_cache_dir()) has it already.

    `progress` gets a sentence and the fraction done, 0 to 1. Needs apt-get, apt-cache, dpkg-deb, gcc and the
    network for a build, only apt-cache otherwise; when apt can't tell or fetch the packages, the newest guest
    built earlier from the same sources serves. Raises EnvironmentFault with the remedy in one sentence.
    """
    cache = cache_dir if cache_dir is not None else default_cache_dir()
    try:
        return _build_guest(cache.absolute(), progress)
    except OSError as error:
        raise _storage_fault(cache, error) from error


def default_cache_dir() -> Path:
    """Return $XDG_CACHE_HOME/pycolo or ~/.cache/pycolo; raises EnvironmentFault when there is no home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base) / "pycolo"
    try:
        return Path.home() / ".cache" / "pycolo"
    except RuntimeError:
        raise EnvironmentFault("there is no home folder for the guest; set XDG_CACHE_HOME or --cache-dir.") from None


def _storage_fault(cache: Path, error: OSError) -> EnvironmentFault:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EnvironmentFault(
            f"no space is left for the guest in {cache}; free 150 MB there or choose another --cache-dir."
        )
    return EnvironmentFault(f"the guest can't be built in {cache} ({error.strerror}); choose a writable --cache-dir.")


def _build_guest(cache: Path, progress: Progress) -> GuestImage:
    try:
        try:
            return _current_guest(cache, progress)
        except PackagesUnavailable:
            if os.geteuid() != 0:
                raise
        progress("Updating the package lists", 0.02)
        packages.update_lists()
        return _current_guest(cache, progress)
    except PackagesUnavailable:
        earlier = _by_age(cache, f"guest-{_sources_key()}-*")
        if not earlier:
            raise
        progress("Using the guest built earlier, since its packages are not to be had now", 1.0)
        return _image(earlier[0])


def _current_guest(cache: Path, progress: Progress) -> GuestImage:
    progress("Looking up the packages", 0.0)
    wanted = packages.resolve(_KERNEL_PACKAGE, _PACKAGES)
    target = cache / f"guest-{_sources_key()}-{_packages_key(wanted)}"
    cache.mkdir(parents=True, exist_ok=True)
    if not target.is_dir():
        with _locked(cache, progress):
            if not target.is_dir():
                _build(cache, target, wanted, progress)
    progress("The guest is ready", 1.0)
    return _image(target)


def _sources_key() -> str:
    digest = hashlib.sha256()
    names = [path.name for path in _SOURCES.iterdir() if path.suffix in (".py", ".c", ".conf")]
    for path in (_SOURCES / name for name in sorted([*names, "init"])):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]


def _packages_key(wanted: tuple[Package, ...]) -> str:
    listing = "".join(f"{package.name}={package.version}\n" for package in wanted)
    return hashlib.sha256(listing.encode()).hexdigest()[:12]


def _image(folder: Path) -> GuestImage:
    return GuestImage(folder / "vmlinuz", folder / "initramfs.cpio", _APPEND)


def _by_age(cache: Path, pattern: str) -> list[Path]:
    return sorted(cache.glob(pattern), key=lambda path: path.stat().st_mtime_ns, reverse=True)


@contextmanager
def _locked(cache: Path, progress: Progress) -> Iterator[None]:
    """Hold the cache's lock; the kernel frees it when this process ends, however it ends."""
    deadline = time.monotonic() + LOCK_S_MAX
    with (cache / "lock").open("wb") as lock:
        while not _try_lock(lock.fileno()):
            if time.monotonic() > deadline:
                raise EnvironmentFault(f"another build holds {cache}/lock for too long; end it and try again.")
            progress("Waiting for another build of the guest", 0.03)
            time.sleep(0.2)
        yield


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _build(cache: Path, target: Path, wanted: tuple[Package, ...], progress: Progress) -> None:
    for stale in cache.glob(f"{_STALE}*"):  # left by a builder that was killed: we hold the lock
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_STALE, dir=cache) as name:
        folder = Path(name)
        (folder / "download").mkdir()
        (folder / "image").mkdir()
        _fill(folder, wanted, progress)
        _sync(folder / "image")
        (folder / "image").rename(target)
    for old in _by_age(cache, "guest-*")[IMAGES_MAX:]:
        shutil.rmtree(old, ignore_errors=True)


def _fill(folder: Path, wanted: tuple[Package, ...], progress: Progress) -> None:
    image = _image(folder / "image")
    progress("Compiling the echo service", 0.05)
    helper = _compile(folder / "colo-guest")
    archives = packages.download(
        wanted, folder / "download", lambda part: progress("Downloading the packages", 0.1 + 0.5 * part)
    )
    tree = FileTree()
    for number, package in enumerate(archives):
        progress(f"Unpacking {package.name.split('_')[0]}", 0.6 + 0.3 * number / len(archives))
        tree.unpack(package, _is_wanted)
    progress("Writing the image", 0.9)
    image.kernel.write_bytes(
        tree.find([path for path in tree.files if path.startswith("boot/vmlinuz-")] or ["vmlinuz"])
    )
    try:
        image.initrd.write_bytes(initramfs.archive(guest_files(tree, helper)))
    except ValueError as error:
        raise EnvironmentFault(
            f"the Debian packages are not as expected ({error}); use the packages of Debian 12."
        ) from None


def _compile(output: Path) -> bytes:
    command = ["gcc", "-static", "-Os", "-s", "-Wall", "-o", str(output), str(_SOURCES / "guest.c")]
    packages.run_tool(command, COMPILE_S_MAX, "install gcc and libc6-dev (Debian)")
    return output.read_bytes()


def _is_wanted(path: str) -> bool:
    if path.startswith(("lib/modules/", "usr/lib/modules/")):
        return path.endswith((".ko", ".ko.xz")) and any(folder in path for folder in _MODULE_FOLDERS)
    programs = ("bin/busybox", "usr/bin/busybox", "usr/sbin/nginx", "usr/bin/redis-check-rdb")
    return path.startswith("boot/vmlinuz-") or path.rpartition("/")[0] in _LIBRARY_FOLDERS or path in programs


def guest_files(tree: FileTree, helper: bytes) -> dict[str, Entry]:
    """Return path -> entry of everything in the guest; `helper` is the compiled guest.c."""
    nginx = tree.find(["usr/sbin/nginx"])
    redis = tree.find(["usr/bin/redis-check-rdb"])  # one program, which acts by the name it is called
    entries = {
        "init": file_entry((_SOURCES / "init").read_bytes(), executable=True),
        "bin/busybox": file_entry(tree.find(["bin/busybox", "usr/bin/busybox"]), executable=True),
        "bin/colo-guest": file_entry(helper, executable=True),
        "bin/nginx": file_entry(nginx, executable=True),
        "bin/redis-server": file_entry(redis, executable=True),
        "etc/passwd": file_entry(b"root:x:0:0:root:/:/bin/sh\n"),
        "etc/group": file_entry(b"root:x:0:\n"),
    }
    entries |= {f"bin/{applet}": link_entry("busybox") for applet in _APPLETS}
    entries |= {f"etc/{path.name}": file_entry(path.read_bytes()) for path in sorted(_SOURCES.glob("*.conf"))}
    entries |= {f"www/{name}": file_entry(static_file(name)) for name in STATIC_FILES}
    entries |= dict.fromkeys(("dev", "proc", "run", "tmp"), initramfs.FOLDER)
    return entries | _library_entries(tree, nginx, redis) | _module_entries(tree)


def _library_entries(tree: FileTree, *programs: bytes) -> dict[str, Entry]:
    libraries = initramfs.library_closure(
        programs, lambda name: tree.find(f"{folder}/{name}" for folder in _LIBRARY_FOLDERS)
    )
    entries = {f"{_LIBRARY_FOLDERS[0]}/{name}": file_entry(data, executable=True) for name, data in libraries.items()}
    return entries | {f"lib64/{_LOADER}": link_entry(f"/{_LIBRARY_FOLDERS[0]}/{_LOADER}")}


def _module_entries(tree: FileTree) -> dict[str, Entry]:
    by_name = {
        path.rpartition("/")[2].partition(".")[0].replace("-", "_"): path for path in tree.files if ".ko" in path
    }
    modules = initramfs.module_order(
        _MODULES, lambda name: initramfs.module_contents(tree.find([by_name.get(name, f"{name}.ko")]))
    )
    entries = {f"modules/{name}.ko": file_entry(data) for name, data in modules.items()}
    return entries | {"modules/order": file_entry("\n".join(modules).encode() + b"\n")}


def _sync(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
