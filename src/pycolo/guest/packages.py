"""Debian packages as a source of files: found and fetched by apt, read in memory, never installed.

Every failure of a tool ends in an EnvironmentFault that says what failed and what to do; every tool has a time limit.
"""

import os
import posixpath
import re
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pycolo.errors import EnvironmentFault

QUERY_S_MAX = 60.0
DOWNLOAD_S_MAX = 900.0
UNPACK_S_MAX = 120.0
FILE_BYTES_MAX = 64 << 20
LINKS_MAX = 8

_POLL_S = 0.2
_DEPENDENCY = re.compile(r"^ [ |](?:Pre)?Depends: ([a-z0-9][a-z0-9+.-]+)$")


class PackagesUnavailable(EnvironmentFault):
    """apt can't name the packages or can't fetch them: no lists or old ones, no network, or no apt at all."""


@dataclass(frozen=True)
class Package:
    """One version of a package as apt's lists have it; `size_bytes` is the size of the .deb."""

    name: str
    version: str
    section: str
    size_bytes: int


def parse_dependencies(text: str) -> dict[str, list[str]]:
    """Return package -> names it depends on, from the output of `apt-cache depends`, without virtual packages."""
    graph: dict[str, list[str]] = {}
    current: list[str] = []
    for line in text.splitlines():
        if line and not line[0].isspace() and not line.startswith("<"):
            current = graph.setdefault(line.strip(), [])
        elif match := _DEPENDENCY.match(line):
            current.append(match[1])
    return graph


def parse_packages(text: str) -> dict[str, Package]:
    """Return name -> package from the output of `apt-cache show`; incomplete paragraphs are left out."""
    found: dict[str, Package] = {}
    for paragraph in text.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Section|Size): (\S+)$", paragraph, re.MULTILINE))
        if len(fields) == 4 and fields["Size"].isdecimal():
            package = Package(fields["Package"], fields["Version"], fields["Section"], int(fields["Size"]))
            found.setdefault(package.name, package)
    return found


def resolve(roots: Sequence[str], *, kernel: str = "", without: Sequence[str] = ()) -> tuple[Package, ...]:
    """Return `roots`, the libraries they depend on, and the kernel that the meta package `kernel` stands for, if any.

    Sorted by name. Only packages of the section "libs" are followed: the rest is what maintainer scripts need;
    libraries of `without` are left out. Raises PackagesUnavailable when apt's lists lack a package.
    """
    tops = [*filter(None, [kernel]), *roots]
    graph = parse_dependencies(_query("depends", "--recurse", "--important", *tops))
    known = parse_packages(_query("show", "--no-all-versions", *graph))
    kernels = {name for name in graph.get(kernel, ()) if name.startswith("linux-image-")}
    if kernel and not kernels:
        raise _unknown(kernel)
    wanted = set(roots) | kernels
    queue = list(roots)
    while queue:
        libraries = {name for name in graph.get(queue.pop(), ()) if name in known and known[name].section == "libs"}
        queue.extend(libraries.difference(wanted, without))
        wanted |= libraries.difference(without)
    if missing := wanted - known.keys():
        raise _unknown(min(missing))
    return tuple(known[name] for name in sorted(wanted))


def _unknown(name: str) -> PackagesUnavailable:
    return PackagesUnavailable(f"apt knows no package {name}; check the network and run `apt-get update` as root.")


def update_lists() -> None:
    """Run `apt-get update`; raises PackagesUnavailable when it fails."""
    remedy = "check the network and /etc/apt/sources.list"
    run_tool(["apt-get", "update", "-q"], DOWNLOAD_S_MAX, remedy, PackagesUnavailable)


def download(packages: Sequence[Package], folder: Path, progress: Callable[[float], None]) -> list[Path]:
    """Fetch the .deb files of `packages` into `folder` (apt verifies them) and return their paths, sorted.

    `progress` gets the fraction fetched, from 0 to 1. Raises PackagesUnavailable when apt can't fetch them.
    """
    # Without this option apt drops to a user that may not enter the folder, and warns.
    command = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=2", "download"]
    command += [f"{package.name}={package.version}" for package in packages]
    total_bytes = sum(package.size_bytes for package in packages)
    log = folder / "apt.log"
    with log.open("wb") as output, _started(command, output, folder) as process:
        try:
            _watch(process, lambda: progress(min(1.0, _fetched_bytes(folder) / max(1, total_bytes))))
        finally:
            process.kill()
    fetched = sorted(folder.glob("*.deb"))
    if process.returncode != 0 or len(fetched) != len(packages):
        reason = _last_line(log.read_text(errors="replace"))
        raise PackagesUnavailable(
            f"apt-get download failed ({reason}); check the network and run `apt-get update` as root."
        )
    return fetched


def _started(command: list[str], log: BinaryIO, folder: Path) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, env=_environment()
        )
    except FileNotFoundError:
        raise tool_missing(command[0]) from None


def _watch(process: subprocess.Popen[bytes], report: Callable[[], None]) -> None:
    deadline = time.monotonic() + DOWNLOAD_S_MAX
    while process.poll() is None:
        if time.monotonic() > deadline:
            raise EnvironmentFault(
                f"apt-get did not end within {DOWNLOAD_S_MAX:.0f} s; check the network and try again."
            )
        report()
        time.sleep(_POLL_S)


def _fetched_bytes(folder: Path) -> int:
    total = 0
    for path in folder.glob("**/*.deb"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # apt renames files when they are complete
            continue
    return total


class FileTree:
    """The wanted files of some packages: path without a leading slash -> contents, and symbolic links."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.links: dict[str, str] = {}

    def unpack(self, package: Path, wanted: Callable[[str], bool]) -> None:
        """Read the files of a .deb whose path is `wanted`; raises EnvironmentFault when it is damaged."""
        command = ["dpkg-deb", "--fsys-tarfile", str(package)]
        try:
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
                with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                    self._read(archive, wanted)
                process.communicate()  # the padding after the end, so that dpkg-deb can end well
            if process.returncode != 0:
                raise tarfile.ReadError("dpkg-deb failed")
        except FileNotFoundError:
            raise tool_missing("dpkg-deb") from None
        except tarfile.TarError as error:
            raise EnvironmentFault(f"{package.name} can't be unpacked ({error}); build again.") from None

    def _read(self, archive: tarfile.TarFile, wanted: Callable[[str], bool]) -> None:
        deadline = time.monotonic() + UNPACK_S_MAX
        for member in archive:
            path = posixpath.normpath(member.name).lstrip("/")
            if time.monotonic() > deadline or member.size > FILE_BYTES_MAX:
                raise tarfile.ReadError(f"{path} is too large or takes too long")
            if not wanted(path):
                continue
            if member.issym():
                self.links[path] = posixpath.join("/", posixpath.dirname(path), member.linkname)
            elif member.isreg() and (stream := archive.extractfile(member)) is not None:
                self.files[path] = stream.read()

    def find(self, candidates: Iterable[str]) -> bytes:
        """Return the contents of the first path that exists, through links; EnvironmentFault if none does."""
        paths = list(candidates)
        for path in paths:
            for _ in range(LINKS_MAX):
                if path in self.files:
                    return self.files[path]
                path = posixpath.normpath(self.links.get(path, "")).lstrip("/")
        raise EnvironmentFault(f"the Debian packages lack {paths[0]}; use the packages of Debian 12.")


_PACKAGE_OF_TOOL = {
    "apt-get": "apt",
    "apt-cache": "apt",
    "dpkg-deb": "dpkg",
    "gcc": "gcc and libc6-dev",
    "mkfs.ext4": "e2fsprogs",
    "chroot": "coreutils",
    "unshare": "util-linux",
}


def tool_missing(tool: str) -> EnvironmentFault:
    """Return the failure that says which Debian package brings `tool`."""
    package = _PACKAGE_OF_TOOL.get(tool, tool)
    fault = PackagesUnavailable if package == "apt" else EnvironmentFault
    return fault(f"{tool} is missing, and the guest can't be built without it; install {package} (Debian).")


def run_tool(
    command: Sequence[str],
    seconds_max: float,
    remedy: str,
    fault: type[EnvironmentFault] = EnvironmentFault,
    text_in: str = "",
) -> str:
    """Run a tool on `text_in` and return what it printed; raises `fault`, which ends in `remedy`, when it fails."""
    try:
        done = subprocess.run(
            command,
            input=text_in,
            capture_output=True,
            timeout=seconds_max,
            env=_environment(),
            check=False,
            text=True,
            errors="replace",
        )
    except FileNotFoundError:
        raise tool_missing(command[0]) from None
    except subprocess.TimeoutExpired:
        raise fault(f"{command[0]} did not end within {seconds_max:.0f} s; {remedy}.") from None
    if done.returncode != 0:
        raise fault(f"{' '.join(command[:2])} failed ({_last_line(done.stderr)}); {remedy}.")
    return done.stdout


def _query(*arguments: str) -> str:
    return run_tool(
        ["apt-cache", *arguments],
        QUERY_S_MAX,
        "check the network and run `apt-get update` as root",
        PackagesUnavailable,
    )


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it said nothing"
