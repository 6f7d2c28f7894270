"""`colo token new` adds to a file of tokens, or a new one, and to nothing else."""

import os
from pathlib import Path

import pytest

from pycolo.errors import EnvironmentFault
from pycolo.host.security import TOKEN_FILE_BYTES_MAX, Scope, load_tokens, new_token

LINE = b"read " + b"0" * 64


def a_file(folder: Path, content: bytes, mode: int = 0o600) -> Path:
    path = folder / "some"
    path.write_bytes(content)
    path.chmod(mode)
    return path


def refused(path: Path) -> str:
    with pytest.raises(EnvironmentFault) as caught:
        new_token(path, Scope.READ, "me")
    return str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b'name = "vm"\n', b"-----BEGIN PRIVATE KEY-----\n", b"\xff\xfe\0\x01", LINE + b"\nboss\n", b"read " + b"g" * 64],
)
def test_a_file_of_something_else_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = a_file(tmp_path, content)
    assert f"of {path} is no token: name a file that `colo token new` has made, or one that is not there" in refused(
        path
    )
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [b"", LINE + b" me\n"])
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_a_file_that_others_may_use_stays_as_it_is(tmp_path: Path, content: bytes, mode: int) -> None:
    path = a_file(tmp_path, content, mode)
    assert refused(path).startswith(f"others than its owner may use {path} (mode {mode:04o}): chmod 600 {path}")
    assert path.read_bytes() == content


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path / "pipe", Path("/dev/null")):
        assert refused(path) == f"{path} is no regular file, so it can't keep tokens: name another"
        with pytest.raises(EnvironmentFault, match="is no regular file"):
            load_tokens(path)
    assert refused(tmp_path) == f"{tmp_path} can't be written (Is a directory): choose another file"
    assert "can't be written (No such file or directory)" in refused(tmp_path / "none" / "x")


def test_a_line_without_its_end_is_not_joined(tmp_path: Path) -> None:
    path = a_file(tmp_path, LINE + b" me")
    new_token(path, Scope.ADMIN, "you")
    assert [one.scope for one in load_tokens(path)] == [Scope.READ, Scope.ADMIN]
    new_token(path, Scope.READ, "\udcff")  # what the command line makes of a byte that is no UTF-8
    assert len(load_tokens(path)) == 3


def test_a_file_that_is_full(tmp_path: Path) -> None:
    path = a_file(tmp_path, (LINE + b"\n") * (TOKEN_FILE_BYTES_MAX // len(LINE)))
    assert refused(path).startswith(f"{path} has more than {TOKEN_FILE_BYTES_MAX} bytes: remove the tokens that nobody")
    with pytest.raises(EnvironmentFault, match="has more than"):
        load_tokens(path)
