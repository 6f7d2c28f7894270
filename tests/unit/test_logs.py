"""Log files that keep within bounds, and the last words of a process."""

import os
from pathlib import Path

import pytest

from pycolo.edge.logs import begin_log, bound_log, last_line, log_to_stderr
from pycolo.edge.qemu_process import QemuLog


def test_a_new_log_keeps_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    for text in (b"first", b"second", b"third"):
        fd = begin_log(path)
        os.write(fd, text)
        os.close(fd)
    assert (path.read_text(), (tmp_path / "x.log.1").read_text()) == ("third", "second")
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_log_that_grows_is_moved_aside_under_its_writer(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    fd = begin_log(path)
    os.write(fd, b"a" * 100)
    assert not bound_log(path, 100)
    os.write(fd, b"b")
    assert bound_log(path, 100)
    os.write(fd, b"c")
    os.close(fd)
    assert path.read_text() == "c"
    assert (tmp_path / "x.log.1").read_text() == "a" * 100


def test_the_last_words(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    assert last_line(path, "colo: ") == ""
    path.write_bytes(b"colo: old\n{}\ncolo: it broke: mend it\n\xff more\n")
    assert last_line(path, "colo: ") == "it broke: mend it"


def test_the_last_words_of_qemu_are_no_warning(tmp_path: Path) -> None:
    path = tmp_path / "qemu.log"
    path.write_text("qemu-system-x86_64: of another one\n")
    log = QemuLog(path, path.stat().st_size)
    assert log.last_words() == "nothing"
    with path.open("a") as file:
        file.write("qemu-system-x86_64: -mon x: warning: it is deprecated\nsomething else\n")
    assert log.last_words() == "something else"
    with path.open("a") as file:
        file.write("qemu-system-x86_64: no such machine\nqemu-system-x86_64: warning: old\nmore\n")
    assert log.last_words() == "qemu-system-x86_64: no such machine"


@pytest.mark.parametrize(("style", "has"), [("json", '"event": "hello"'), ("console", "hello")])
def test_both_styles(style: str, has: str, capfd: pytest.CaptureFixture[str]) -> None:
    import structlog

    try:
        log_to_stderr(style)  # type: ignore[arg-type]
        structlog.get_logger().info("hello", number=4)
        assert has in capfd.readouterr().err
    finally:
        structlog.reset_defaults()
