"""The guest builder with its tools replaced by small scripts: what is built, kept, and left after a failure."""

import errno
import hashlib
import lzma
import os
import stat
import threading
from pathlib import Path

import pytest
from guest_tools import DEPENDS, Tools, elf, module, show
from hypothesis import given
from hypothesis import strategies as st

from pycolo.errors import EnvironmentFault
from pycolo.guest import builder, packages
from pycolo.guest import cache as guest_cache
from pycolo.guest.builder import GuestImage, build_guest
from pycolo.guest.cache import default_cache_dir
from pycolo.guest.initramfs import (
    Entry,
    archive,
    file_entry,
    library_closure,
    link_entry,
    module_contents,
    module_order,
    needed_libraries,
)
from pycolo.guest.packages import FileTree, Package, PackagesUnavailable, parse_dependencies, parse_packages
from pycolo.guest.static_files import STATIC_FILES, static_file


def unpack(data: bytes) -> dict[str, Entry]:
    """Read a cpio archive back, with an own reading of the format."""
    found: dict[str, Entry] = {}
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * index : at + 14 + 8 * index], 16) for index in range(13)]
        name = data[at + 110 : at + 110 + fields[11] - 1].decode()
        at += (110 + fields[11] + 3) & ~3
        if name == "TRAILER!!!":
            return found
        assert fields[2] == fields[3] == fields[5] == 0
        found[name] = Entry(fields[1], data[at : at + fields[6]])
        at += (fields[6] + 3) & ~3


def test_static_files_never_change() -> None:
    assert {name: len(static_file(name)) for name in STATIC_FILES} == dict(STATIC_FILES)
    assert {name: size for name, size in STATIC_FILES.items() if name != "index.html"} == {
        "small.bin": 4096,
        "big.bin": 3145728,
        "big2.bin": 1048576,
    }
    assert 150 <= STATIC_FILES["index.html"] <= 250
    digest = hashlib.sha256(b"".join(static_file(name) for name in STATIC_FILES)).hexdigest()
    assert digest == "f9655bab3265a6b2b9d61419fb6f010f5dc6bce2725eeeee99b134508e505185"
    assert static_file("big.bin")[: 1 << 20] != static_file("big2.bin")
    with pytest.raises(KeyError):
        static_file("../etc/passwd")


def test_archive_can_be_read_back() -> None:
    entries = {"a/b/c": file_entry(b"12345"), "init": file_entry(b"#!", executable=True), "a/l": link_entry("b/c")}
    back = unpack(archive(entries))
    assert {name: back[name] for name in entries} == entries
    assert list(back) == ["a", "a/b", "a/b/c", "a/l", "init"]
    assert back["a"].mode == back["a/b"].mode == stat.S_IFDIR | 0o755
    assert archive(dict(reversed(entries.items()))) == archive(entries)


@pytest.mark.parametrize("path", ["", "/etc/passwd", "x" * 5000])
def test_archive_refuses_a_bad_path(path: str) -> None:
    with pytest.raises(ValueError, match="not a path"):
        archive({path: file_entry(b"")})


def test_needed_libraries_of_a_hand_made_and_a_static_program() -> None:
    assert needed_libraries(elf("libone.so.1", "libc.so.6")) == ("libone.so.1", "libc.so.6")
    assert needed_libraries(elf()) == ()


@given(st.integers(min_value=0, max_value=330), st.binary(min_size=1, max_size=8))
def test_a_damaged_program_is_a_value_error_and_nothing_else(at: int, junk: bytes) -> None:
    good = elf("libone.so.1", "libc.so.6")
    for bad in (good[:at], good[:at] + junk + good[at + len(junk) :]):
        try:
            names = needed_libraries(bad)
        except ValueError:
            continue
        assert len(names) <= len(good) // 16


def test_library_closure_takes_each_library_once() -> None:
    libraries = {"a": elf("c"), "b": elf("c", "d"), "c": elf("d"), "d": elf(), "unused": elf()}
    asked: list[str] = []

    def find(name: str) -> bytes:
        asked.append(name)
        return libraries[name]

    assert set(library_closure([elf("a"), elf("b", "a")], find)) == {"a", "b", "c", "d"}
    assert sorted(asked) == ["a", "b", "c", "d"]


def test_modules_come_after_what_they_depend_on() -> None:
    modules = {"net": module("ring", "fail-over"), "fail_over": module(), "ring": module(), "pci": module("ring")}
    assert list(module_order(["net", "pci"], modules.__getitem__)) == ["ring", "fail_over", "net", "pci"]


def test_modules_in_a_circle_end() -> None:
    modules = {"a": module("b"), "b": module("a")}
    assert list(module_order(["a"], modules.__getitem__)) == ["b", "a"]


def test_module_without_dependencies_field_is_refused() -> None:
    with pytest.raises(ValueError, match="names no dependencies"):
        module_order(["a"], {"a": b"junk"}.__getitem__)


def test_module_contents_may_be_compressed() -> None:
    assert module_contents(module()) == module()
    assert module_contents(lzma.compress(module("x"))) == module("x")
    with pytest.raises(ValueError, match="damaged"):
        module_contents(lzma.compress(module("x"))[:-20])


def test_parse_dependencies_leaves_out_virtual_packages_and_providers() -> None:
    graph = parse_dependencies(DEPENDS)
    assert graph["nginx"] == ["libone", "iproute2", "libc6"]
    assert graph["redis-tools"] == ["libone"]
    assert graph["linux-image-6.1.0-1-cloud-amd64"] == ["initramfs-tools"]
    assert "<linux-initramfs-tool>" not in graph


def test_parse_packages_takes_whole_paragraphs_only() -> None:
    text = show() + "\n\nPackage: half\nVersion: 1\n\nPackage: odd\nVersion: 1\nSection: libs\nSize: many\n"
    assert parse_packages(text)["libc6"] == Package("libc6", "1.0", "libs", 10)
    assert not {"half", "odd"} & parse_packages(text).keys()


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    return Tools(tmp_path, monkeypatch)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def names(cache: Path) -> list[str]:
    return sorted(path.name.split("-")[0] for path in cache.iterdir())


def test_the_image_holds_what_the_guest_needs_and_no_more(tools: Tools, cache: Path) -> None:
    image = build_guest(cache)
    assert image.kernel.read_bytes() == b"kernel"
    inside = unpack(image.initrd.read_bytes())
    assert inside["bin/redis-server"] == file_entry(elf("libc.so.6"), executable=True)
    assert inside["bin/colo-guest"].data == b"compiled\n"
    assert inside["init"].mode & 0o111
    assert {name for name in inside if name.startswith("lib/x86_64-linux-gnu/")} == {
        f"lib/x86_64-linux-gnu/{name}" for name in ("libone.so.1", "libc.so.6", "ld-linux-x86-64.so.2")
    }
    order = [b"virtio", b"virtio_pci", b"virtio_net", b"virtio_blk", b"pvpanic", b"pvpanic_pci"]
    assert inside["modules/order"].data.split() == order
    assert inside["modules/virtio_blk.ko"].data == module("virtio")
    assert all(inside[f"www/{name}"].data == static_file(name) for name in STATIC_FILES)
    assert not any("not wanted" in str(entry.data) for entry in inside.values() if len(entry.data) < 100)


def test_only_libraries_and_the_kernel_are_fetched(tools: Tools, cache: Path) -> None:
    build_guest(cache)
    calls = (tools.folder / "calls").read_text().splitlines()
    (download,) = [call for call in calls if call.startswith("apt-get")]
    assert download.partition(" download ")[2].split() == [
        "busybox-static=1.0", "libc6=1.0", "libone=1.0", "linux-image-6.1.0-1-cloud-amd64=1.0", "nginx=1.0",
        "redis-tools=1.0",
    ]  # fmt: skip


def test_command_line_carries_the_address() -> None:
    image = GuestImage(Path("k"), Path("i"), "console=ttyS0 quiet")
    assert image.command_line("10.77.0.2/24") == "console=ttyS0 quiet colo.ip=10.77.0.2/24"
    assert image.command_line("10.77.0.2/24", "10.79.0.2/24").endswith(" colo.ip=10.77.0.2/24,10.79.0.2/24")


def test_a_second_build_uses_the_cache_and_a_new_version_does_not(tools: Tools, cache: Path) -> None:
    first = build_guest(cache)
    assert build_guest(cache) == first
    assert tools.count("gcc") == 1
    (tools.folder / "show").write_text(show(libone="1.1"))
    assert build_guest(cache) != first
    assert tools.count("gcc") == 2


def test_changed_sources_are_built_again(tools: Tools, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build_guest(cache)
    sources = tools.folder / "sources"
    sources.mkdir()
    for path in Path(builder.__file__).parent.iterdir():
        if path.is_file():
            (sources / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(builder, "_SOURCES", sources)
    assert build_guest(cache) == first
    with (sources / "init").open("a") as init:
        init.write("# changed\n")
    assert build_guest(cache) != first


def test_progress_never_runs_backwards_and_ends_at_one(tools: Tools, cache: Path) -> None:
    steps: list[tuple[str, float]] = []
    build_guest(cache, lambda step, fraction: steps.append((step, fraction)))
    fractions = [fraction for _, fraction in steps]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert all(step for step, _ in steps)


@pytest.mark.parametrize("interrupted_at", ["Compiling", "Unpacking", "Writing"])
def test_an_interrupted_build_leaves_nothing(tools: Tools, cache: Path, interrupted_at: str) -> None:
    def interrupt(step: str, fraction: float) -> None:
        if step.startswith(interrupted_at):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_guest(cache, interrupt)
    assert names(cache) == ["lock"]
    build_guest(cache)
    assert names(cache) == ["guest", "lock"]


def test_leftovers_of_a_killed_build_are_removed(tools: Tools, cache: Path) -> None:
    (cache / "building-dead" / "download").mkdir(parents=True)
    build_guest(cache)
    assert names(cache) == ["guest", "lock"]


def test_old_images_do_not_pile_up(tools: Tools, cache: Path) -> None:
    for version in range(guest_cache.BUILDS_MAX + 3):
        (tools.folder / "show").write_text(show(libone=f"1.{version}"))
        latest = build_guest(cache)
    assert names(cache).count("guest") == guest_cache.BUILDS_MAX
    assert latest.kernel.exists()


def test_two_builders_at_once_build_once(tools: Tools, cache: Path) -> None:
    images: list[GuestImage] = []
    tools.script("gcc", '/bin/sleep 0.5; while [ "$1" != -o ]; do shift; done; echo compiled >"$2"')
    threads = [threading.Thread(target=lambda: images.append(build_guest(cache))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(images) == 3
    assert len(set(images)) == 1
    assert tools.count("gcc") == 1


def test_a_lock_held_for_ever_is_told(tools: Tools, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_cache, "LOCK_S_MAX", 0.0)
    monkeypatch.setattr(guest_cache, "_try_lock", lambda fd: False)
    with pytest.raises(EnvironmentFault, match="another build"):
        build_guest(cache)


def offline(tools: Tools) -> None:
    tools.script("apt-get", "echo 'E: Temporary failure resolving' >&2; exit 100")


def test_failed_download_says_why_and_leaves_nothing(tools: Tools, cache: Path) -> None:
    offline(tools)
    with pytest.raises(EnvironmentFault, match=r"Temporary failure resolving.*apt-get update"):
        build_guest(cache)
    assert names(cache) == ["lock"]


def test_a_missing_deb_is_noticed(tools: Tools, cache: Path) -> None:
    (tools.debs / "libc6_1.0_amd64.deb").unlink()
    with pytest.raises(EnvironmentFault, match="apt-get download failed"):
        build_guest(cache)


def test_offline_the_guest_built_earlier_serves(tools: Tools, cache: Path) -> None:
    first = build_guest(cache)
    (tools.folder / "show").write_text(show(libone="2.0"))
    offline(tools)
    assert build_guest(cache) == first
    tools.script("apt-cache", "exit 100")
    assert build_guest(cache) == first
    (tools.bin / "apt-cache").unlink()
    assert build_guest(cache) == first


def test_root_updates_missing_lists_once(tools: Tools, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    (tools.folder / "depends").rename(tools.folder / "hidden")
    tools.script("apt-cache", f"if [ -e {tools.folder}/depends ]; then exec /bin/cat {tools.folder}/$1; fi; exit 100")
    move = f"*update*) /bin/mv {tools.folder}/hidden {tools.folder}/depends ;;"
    tools.script("apt-get", f"case $* in {move} *) {tools.fetch()} ;; esac")
    build_guest(cache)
    assert tools.count("apt-get update") == 1


def test_without_root_missing_lists_are_not_updated(tools: Tools, cache: Path) -> None:
    tools.script("apt-cache", "echo 'E: No packages found' >&2; exit 100")
    with pytest.raises(PackagesUnavailable, match=r"No packages found.*run `apt-get update` as root"):
        build_guest(cache)
    assert tools.count("apt-get") == 0


def test_lists_without_a_needed_package_are_told(tools: Tools, cache: Path) -> None:
    (tools.folder / "show").write_text(show().replace("Package: redis-tools", "Package: other"))
    with pytest.raises(PackagesUnavailable, match="apt knows no package redis-tools"):
        build_guest(cache)


def test_lists_without_a_kernel_are_told(tools: Tools, cache: Path) -> None:
    (tools.folder / "depends").write_text("linux-image-cloud-amd64\nnginx\nredis-tools\nbusybox-static\n")
    with pytest.raises(PackagesUnavailable, match="apt knows no package linux-image-cloud-amd64"):
        build_guest(cache)


@pytest.mark.parametrize(
    ("tool", "remedy"),
    [("apt-cache", "apt"), ("apt-get", "apt"), ("dpkg-deb", "dpkg"), ("gcc", "gcc and libc6-dev")],
)
def test_a_missing_tool_is_named_with_its_package(tools: Tools, cache: Path, tool: str, remedy: str) -> None:
    (tools.bin / tool).unlink()
    with pytest.raises(EnvironmentFault, match=rf"^{tool} is missing.*install {remedy} "):
        build_guest(cache)


def test_a_failing_compiler_is_told(tools: Tools, cache: Path) -> None:
    tools.script("gcc", "echo 'cannot find -lc' >&2; exit 1")
    with pytest.raises(EnvironmentFault, match=r"cannot find -lc.*libc6-dev"):
        build_guest(cache)


def test_a_hanging_tool_ends(tools: Tools, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools.script("gcc", "exec /bin/sleep 60")
    monkeypatch.setattr(builder, "COMPILE_S_MAX", 0.2)
    with pytest.raises(EnvironmentFault, match="did not end within"):
        build_guest(cache)


def test_a_hanging_download_ends(tools: Tools, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools.script("apt-get", "exec /bin/sleep 60")
    monkeypatch.setattr(packages, "DOWNLOAD_S_MAX", 0.2)
    with pytest.raises(EnvironmentFault, match="did not end within"):
        build_guest(cache)
    assert names(cache) == ["lock"]


def test_a_truncated_package_is_refused(tools: Tools, cache: Path) -> None:
    deb = tools.debs / "nginx_1.0_amd64.deb"
    deb.write_bytes(deb.read_bytes()[:600])
    with pytest.raises(EnvironmentFault, match=r"nginx_1.0_amd64.deb can't be unpacked"):
        build_guest(cache)
    assert names(cache) == ["lock"]


def test_a_dpkg_failure_after_the_data_is_refused(tools: Tools, cache: Path) -> None:
    tools.script("dpkg-deb", '/bin/cat "$2"; exit 2')
    with pytest.raises(EnvironmentFault, match="dpkg-deb failed"):
        build_guest(cache)


def test_an_unexpected_release_is_told(tools: Tools, cache: Path) -> None:
    tools.deb("nginx", {"usr/bin/nginx": elf()})
    with pytest.raises(EnvironmentFault, match="lack usr/sbin/nginx"):
        build_guest(cache)
    tools.deb("nginx", {"usr/sbin/nginx": b"#!/bin/sh"})
    with pytest.raises(EnvironmentFault, match=r"not as expected.*ELF"):
        build_guest(cache)


def test_links_in_a_circle_end(tools: Tools) -> None:
    tools.deb("nginx", {"lib64/a": "b", "lib64/b": "a"})
    tree = FileTree()
    tree.unpack(tools.debs / "nginx_1.0_amd64.deb", lambda path: True)
    with pytest.raises(EnvironmentFault, match="lack lib64/a"):
        tree.find(["lib64/a"])


@pytest.mark.parametrize(("code", "sentence"), [(errno.ENOSPC, "no space is left"), (errno.EROFS, "choose a writable")])
def test_a_bad_disk_is_told(
    tools: Tools, cache: Path, monkeypatch: pytest.MonkeyPatch, code: int, sentence: str
) -> None:
    def refuse(path: Path, data: bytes) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(EnvironmentFault, match=sentence):
        build_guest(cache)
    assert names(cache) == ["lock"]


def test_a_file_in_place_of_the_cache_folder_is_told(tools: Tools, cache: Path) -> None:
    cache.write_text("")
    with pytest.raises(EnvironmentFault, match="choose a writable --cache-dir"):
        build_guest(cache)


def test_default_cache_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert default_cache_dir() == Path("/x/pycolo")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative, so it does not count")
    monkeypatch.setenv("HOME", "/h")
    assert default_cache_dir() == Path("/h/.cache/pycolo")
