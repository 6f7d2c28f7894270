"""Stand-ins for the tools that a build of the guest or its disk runs, and small files as the packages hold them."""

import io
import lzma
import struct
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

DEPENDS = """\
linux-image-cloud-amd64
  Depends: linux-image-6.1.0-1-cloud-amd64
linux-image-6.1.0-1-cloud-amd64
 |Depends: initramfs-tools
  Depends: <linux-initramfs-tool>
    initramfs-tools
nginx
  Depends: libone
  Depends: iproute2
  PreDepends: libc6
libone
  Depends: libc6
postgresql-15
  Depends: libone
  Depends: libllvm14
  Depends: tzdata
tzdata
libllvm14
iproute2
  Depends: libelf
redis-tools
  Depends: libone
    libelogind0
busybox-static
libc6
<linux-initramfs-tool>
"""


def show(**versions: str) -> str:
    """Return what `apt-cache show` prints for the packages of DEPENDS."""
    sections = {
        "linux-image-6.1.0-1-cloud-amd64": "kernel",
        "nginx": "httpd",
        "redis-tools": "database",
        "busybox-static": "shells",
        "postgresql-15": "database",
        "tzdata": "localization",
        "libllvm14": "libs",
        "iproute2": "net",
        "libone": "libs",
        "libc6": "libs",
        "libelf": "libs",
    }
    return "\n".join(
        f"Package: {name}\nVersion: {versions.get(name, '1.0')}\nDescription: x\n Size: 7\n"
        f"Section: {section}\nSize: 10\n"
        for name, section in sections.items()
    )


def elf(*needed: str) -> bytes:
    """Return the smallest ELF file that loads the libraries `needed`."""
    strings, offsets = b"\0", []
    for name in needed:
        offsets.append(len(strings))
        strings += name.encode() + b"\0"
    dynamic_at = 64 + 2 * 56
    tags = [(1, offset) for offset in offsets]
    strings_at = dynamic_at + 16 * (len(tags) + 2)
    tags += [(5, 0x400000 + strings_at), (0, 0)]
    dynamic = b"".join(struct.pack("<qQ", *tag) for tag in tags)
    total = strings_at + len(strings)
    header = (
        b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    )
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, 0x400000, 0x400000, total, total, 4096)
    place = 0x400000 + dynamic_at
    table = struct.pack("<IIQQQQQQ", 2, 6, dynamic_at, place, place, len(dynamic), len(dynamic), 8)
    return header + load + table + dynamic + strings


def module(*depends: str) -> bytes:
    """Return what the builder reads of a kernel module."""
    return b"\x7fELF....\0license=GPL\0depends=" + ",".join(depends).encode() + b"\0name=x\0"


def tar_of(files: Mapping[str, bytes | str]) -> bytes:
    """Return a tar archive as dpkg-deb prints it; a str is the target of a symbolic link."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"./{name}")
            if isinstance(data, str):
                info.type, info.linkname = tarfile.SYMTYPE, data
                tar.addfile(info)
            else:
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return output.getvalue()


class Tools:
    """Stand-ins for apt-cache, apt-get, dpkg-deb and gcc, first and alone on PATH; `calls` lists what was run."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        monkeypatch.setenv("PATH", str(self.bin))
        (folder / "depends").write_text(DEPENDS)
        (folder / "show").write_text(show())
        self.script("apt-cache", f"exec /bin/cat {folder}/$1")
        self.script("gcc", 'while [ "$1" != -o ]; do shift; done; echo compiled >"$2"')
        self.script("dpkg-deb", 'exec /bin/cat "$2"')
        self.debs = folder / "debs"
        self.debs.mkdir()
        self.script("apt-get", f"case $* in *update*) ;; *) {self.fetch()} ;; esac")
        self.pack()

    def fetch(self) -> str:
        """The shell commands that put the packages asked for, those with a version, into the current folder."""
        return f'exec 2>/dev/null; for p; do case $p in *=*) /bin/cp {self.debs}/"${{p%%=*}}"_* . ;; esac; done; true'

    def script(self, name: str, body: str) -> None:
        path = self.bin / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>{self.folder}/calls\n{body}\n')
        path.chmod(0o755)

    def pack(self) -> None:
        kernel = "lib/modules/6.1.0-1-cloud-amd64/kernel"
        self.deb("linux-image-6.1.0-1-cloud-amd64", {
            "boot/vmlinuz-6.1.0-1-cloud-amd64": b"kernel",
            f"{kernel}/drivers/virtio/virtio.ko": module(),
            f"{kernel}/drivers/virtio/virtio_pci.ko": module("virtio"),
            f"{kernel}/drivers/net/virtio_net.ko": module("virtio"),
            f"{kernel}/drivers/block/virtio_blk.ko.xz": lzma.compress(module("virtio")),
            f"{kernel}/drivers/misc/pvpanic/pvpanic.ko": module(),
            f"{kernel}/drivers/misc/pvpanic/pvpanic-pci.ko": module("pvpanic"),
            f"{kernel}/fs/big.ko": b"not wanted",
        })  # fmt: skip
        self.deb("nginx", {"usr/sbin/nginx": elf("libone.so.1"), "usr/share/doc/nginx": b"not wanted"})
        self.deb("redis-tools", {"usr/bin/redis-check-rdb": elf("libc.so.6")})
        self.deb("busybox-static", {"bin/busybox": b"busybox"})
        libraries = "usr/lib/x86_64-linux-gnu"
        self.deb(
            "libone", {f"{libraries}/libone.so.1": "libone.so.1.2", f"{libraries}/libone.so.1.2": elf("libc.so.6")}
        )
        self.deb("libc6", {"lib/x86_64-linux-gnu/libc.so.6": elf("ld-linux-x86-64.so.2"),
                           "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2": elf(),
                           "lib64/ld-linux-x86-64.so.2": "/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"})  # fmt: skip

    def deb(self, name: str, files: Mapping[str, bytes | str]) -> None:
        (self.debs / f"{name}_1.0_amd64.deb").write_bytes(tar_of(files))

    def count(self, start: str) -> int:
        calls = self.folder / "calls"
        return sum(line.startswith(start) for line in calls.read_text().splitlines()) if calls.exists() else 0
