"""Builds the guest of the demo and the tests: Debian's cloud kernel, an initramfs with nginx, Redis and an echo.

With a disk of disk_image.py as its first virtio disk, the guest also runs that disk's PostgreSQL.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pycolo.errors import EnvironmentFault
from pycolo.guest import cache, initramfs, packages
from pycolo.guest.cache import Progress, Recipe, silent
from pycolo.guest.initramfs import LIBRARY_FOLDERS, Entry, file_entry, link_entry
from pycolo.guest.packages import FileTree, Package
from pycolo.guest.static_files import STATIC_FILES, static_file

READY_LINE = "COLO-GUEST-READY"
"""What the guest prints on its serial console once every service accepts connections."""

UNMOUNTED_LINE = "COLO-GUEST-UNMOUNTED"
"""What the guest prints after an orderly shutdown, once its disk is complete and nothing will write it any more."""

COMPILE_S_MAX = 120.0

# tsc=reliable and nowatchdog: no periodic timers, and no change of clock source after a checkpoint is loaded;
# no_timer_check: that check can fail by chance on a busy host; mitigations=off: they protect nobody in this guest.
_APPEND = "console=ttyS0 quiet ipv6.disable=1 tsc=reliable no_timer_check nowatchdog audit=0 mitigations=off"
_KERNEL_PACKAGE = "linux-image-cloud-amd64"
_PACKAGES = ("busybox-static", "nginx", "redis-tools")
_MODULES = ("virtio_pci", "virtio_net", "virtio_blk", "pvpanic_pci")
_MODULE_FOLDERS = ("/drivers/virtio/", "/drivers/net/", "/drivers/block/", "/drivers/misc/pvpanic/", "/net/core/")
_APPLETS = ("sh", "cat", "insmod", "ip", "mount", "sleep", "sysctl", "tr")
_SOURCES = Path(__file__).parent


@dataclass(frozen=True)
class GuestImage:
    """A bootable guest; `append` is the kernel command line without the guest's addresses."""

    kernel: Path
    initrd: Path
    append: str

    def command_line(self, *addresses: str) -> str:
        """Return the kernel command line for a guest at these, as in "10.77.0.2/24": one for each network card."""
        return f"{self.append} colo.ip={','.join(addresses)}"


def build_guest(cache_dir: Path | None = None, progress: Progress = silent) -> GuestImage:
    """Return the guest, built now unless the cache (`cache_dir`, or else default_cache_dir()) has it already.

    `progress` gets a sentence and the fraction done, 0 to 1. Needs apt-get, apt-cache, dpkg-deb, gcc and the
    network for a build, only apt-cache otherwise; when apt can't tell or fetch the packages, the newest guest
    built earlier from the same sources serves. Raises EnvironmentFault with the remedy in one sentence.
    """
    return _image(cache.built(_recipe(), cache_dir, progress))


def _recipe() -> Recipe:
    return Recipe(
        name="guest",
        sources=_sources,
        resolve=lambda: packages.resolve(_PACKAGES, kernel=_KERNEL_PACKAGE),
        fill=_fill,
        size_mb=150,
    )


def _sources() -> Iterator[Path]:
    yield from (path for path in _SOURCES.iterdir() if path.suffix in (".py", ".c", ".conf") or path.name == "init")


def _image(folder: Path) -> GuestImage:
    return GuestImage(folder / "vmlinuz", folder / "initramfs.cpio", _APPEND)


def _fill(folder: Path, wanted: tuple[Package, ...], progress: Progress) -> None:
    image = _image(folder / "image")
    progress("Compiling the echo service", 0.05)
    helper = _compile(folder / "colo-guest")
    tree = cache.unpacked(wanted, folder / "download", _is_wanted, progress)
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
    return path.startswith("boot/vmlinuz-") or path.rpartition("/")[0] in LIBRARY_FOLDERS or path in programs


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
    entries |= dict.fromkeys(("data", "dev", "proc", "run", "tmp"), initramfs.FOLDER)
    return entries | initramfs.library_entries([nginx, redis], tree.find) | _module_entries(tree)


def _module_entries(tree: FileTree) -> dict[str, Entry]:
    by_name = {
        path.rpartition("/")[2].partition(".")[0].replace("-", "_"): path for path in tree.files if ".ko" in path
    }
    modules = initramfs.module_order(
        _MODULES, lambda name: initramfs.module_contents(tree.find([by_name.get(name, f"{name}.ko")]))
    )
    entries = {f"modules/{name}.ko": file_entry(data) for name, data in modules.items()}
    return entries | {"modules/order": file_entry("\n".join(modules).encode() + b"\n")}
