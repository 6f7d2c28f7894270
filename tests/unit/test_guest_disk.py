"""The builder of the guest's disk with its tools replaced by small scripts: what goes in, and what a failure leaves."""

import errno
import fcntl
import os
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner
from guest_tools import Tools, elf

from pycolo.errors import EnvironmentFault
from pycolo.guest import disk_image
from pycolo.guest.builder import build_guest
from pycolo.guest.cli import guest
from pycolo.guest.disk_image import DISK_BYTES, build_disk, copy_disk

BINARIES = "usr/lib/postgresql/15/bin"
SHARE = "usr/share/postgresql/15"


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    """The tools, with an initdb that leaves a mark and a mkfs.ext4 that keeps the tree it got beside the image."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(disk_image, "SBIN", str(tmp_path))
    tools = Tools(tmp_path, monkeypatch)
    tools.script("unshare", f"/bin/cat >>{tmp_path}/statements")
    tools.script("mkfs.ext4", f'while [ "$1" != -d ]; do shift; done; /bin/cp -a "$2" {tmp_path}/kept; echo fs >"$3"')
    tools.deb("postgresql-15", {
        f"{BINARIES}/postgres": elf("libone.so.1"),
        f"{BINARIES}/initdb": elf("libc.so.6"),
        f"{BINARIES}/pg_waldump": b"not wanted",
        "usr/lib/postgresql/15/lib/plpgsql.so": elf("libc.so.6"),
        "usr/lib/postgresql/15/lib/dict_snowball.so": elf(),
        "usr/lib/postgresql/15/lib/llvmjit.so": b"not wanted",
        f"{SHARE}/postgres.bki": b"bki",
        f"{SHARE}/timezonesets/Default": b"zones",
        f"{SHARE}/man/man1/postgres.1.gz": b"not wanted",
    })  # fmt: skip
    tools.deb("tzdata", {"usr/share/zoneinfo/Etc/UTC": b"TZif", "usr/share/zoneinfo/Europe/Paris": b"not wanted"})
    return tools


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_the_tree_holds_the_server_its_libraries_and_settings_and_no_more(tools: Tools, cache: Path) -> None:
    template = build_disk(cache)
    assert template.read_text() == "fs\n"
    assert stat.S_IMODE(template.stat().st_mode) == 0o444
    kept = tools.folder / "kept"
    found = {str(path.relative_to(kept)) for path in kept.rglob("*") if not path.is_dir()}
    libraries = {f"lib/x86_64-linux-gnu/{name}" for name in ("libone.so.1", "libc.so.6", "ld-linux-x86-64.so.2")}
    assert found == libraries | {
        "lib64/ld-linux-x86-64.so.2",
        f"{BINARIES}/postgres",
        f"{BINARIES}/initdb",
        "usr/lib/postgresql/15/lib/plpgsql.so",
        "usr/lib/postgresql/15/lib/dict_snowball.so",
        f"{SHARE}/postgres.bki",
        f"{SHARE}/timezonesets/Default",
        "usr/share/zoneinfo/UTC",
        "etc/passwd",
        "etc/group",
        "cluster/postgresql.conf",
        "cluster/pg_hba.conf",
    }
    assert stat.S_IMODE((kept / "cluster").stat().st_mode) == 0o700
    assert stat.S_IMODE((kept / BINARIES / "postgres").stat().st_mode) == 0o755


def test_the_cluster_is_made_before_the_file_system_and_its_tables_with_it(tools: Tools, cache: Path) -> None:
    build_disk(cache)
    calls = (tools.folder / "calls").read_text().splitlines()
    made = [call.partition("--root=")[2].split()[1].rpartition("/")[2] for call in calls if call.startswith("unshare")]
    assert made == ["initdb", "postgres"]
    assert calls[-1].startswith("mkfs.ext4")
    assert "CREATE TABLE load_transactions" in (tools.folder / "statements").read_text()


def test_the_settings_keep_what_was_acknowledged() -> None:
    settings = (Path(disk_image.__file__).parent / "database" / "postgresql.conf").read_text().splitlines()
    assert {"fsync = on", "synchronous_commit = on", "full_page_writes = on"} <= set(settings)


def test_built_once_beside_the_guest_and_found_offline(tools: Tools, cache: Path) -> None:
    first, image = build_disk(cache), build_guest(cache)
    assert (build_disk(cache), build_guest(cache)) == (first, image)
    assert tools.count("mkfs.ext4") == tools.count("gcc") == 1
    tools.script("apt-cache", "exit 100")
    assert build_disk(cache) == first


def test_changed_settings_are_built_again(tools: Tools, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build_disk(cache)
    changed = tools.folder / "settings"
    changed.mkdir()
    for path in (Path(disk_image.__file__).parent / "database").iterdir():
        (changed / path.name).write_bytes(path.read_bytes() + b"\n")
    monkeypatch.setattr(disk_image, "_SETTINGS", changed)
    (tools.folder / "kept").rename(tools.folder / "kept before")
    assert build_disk(cache) != first


@pytest.mark.parametrize("step", ["Unpacking", "Making", "Writing"])
def test_an_interrupted_build_leaves_nothing(tools: Tools, cache: Path, step: str) -> None:
    def interrupt(sentence: str, fraction: float) -> None:
        if sentence.startswith(step):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_disk(cache, interrupt)
    assert [path.name for path in cache.iterdir()] == ["lock"]


@pytest.mark.parametrize(("tool", "package"), [("mkfs.ext4", "e2fsprogs"), ("unshare", "util-linux")])
def test_a_missing_tool_is_named_with_its_package(tools: Tools, cache: Path, tool: str, package: str) -> None:
    (tools.bin / tool).unlink()
    with pytest.raises(EnvironmentFault, match=rf"^{tool} is missing.*install {package} "):
        build_disk(cache)


@pytest.mark.parametrize("tool", ["mkfs.ext4", "unshare"])
def test_a_failing_tool_is_told_and_leaves_nothing(tools: Tools, cache: Path, tool: str) -> None:
    tools.script(tool, "echo 'it can not be' >&2; exit 1")
    with pytest.raises(EnvironmentFault, match=r"it can not be.*; (build|install)"):
        build_disk(cache)
    assert [path.name for path in cache.iterdir()] == ["lock"]


def test_progress_never_runs_backwards_and_ends_at_one(tools: Tools, cache: Path) -> None:
    fractions: list[float] = []
    build_disk(cache, lambda step, fraction: fractions.append(fraction))
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)


def test_the_command_builds_both_and_prints_the_paths(tools: Tools, cache: Path) -> None:
    result = CliRunner().invoke(guest, ["build", "--cache-dir", str(cache)])
    assert result.exit_code == 0, result.output
    image = build_guest(cache)
    assert f"kernel  {image.kernel}\ninitrd  {image.initrd}\ndisk    {build_disk(cache)}\n" in result.output


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "template.img"
    with path.open("wb") as file:
        file.write(b"first" * 1000)
        file.seek(DISK_BYTES // 2)
        file.write(b"middle")
        file.truncate(DISK_BYTES)
    return path


def refuse_to_clone(fd: int, request: int, source: int) -> int:
    raise OSError(errno.EOPNOTSUPP, "no clones here")


def test_a_copy_is_equal_sparse_and_may_be_written(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", refuse_to_clone)
    template.chmod(0o444)
    copy = tmp_path / "copy.img"
    copy_disk(template, copy)
    assert copy.read_bytes() == template.read_bytes()
    assert copy.stat().st_blocks * 512 < 1 << 20
    assert copy.stat().st_mode & stat.S_IWUSR


def test_a_copy_that_fails_leaves_nothing(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(target: int, source: int, start: int, count: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(fcntl, "ioctl", refuse_to_clone)
    monkeypatch.setattr(os, "sendfile", full)
    with pytest.raises(EnvironmentFault, match=r"copy.img can't be made \(No space.*free 200 MB"):
        copy_disk(template, tmp_path / "copy.img")
    assert [path.name for path in tmp_path.iterdir()] == ["template.img"]


def test_a_copy_into_no_folder_is_told(template: Path, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="choose a folder that can be written"):
        copy_disk(template, tmp_path / "missing" / "copy.img")
