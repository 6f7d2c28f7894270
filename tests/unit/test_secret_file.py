"""A secret is taken only from a file that nobody else reads, and no complaint quotes it."""

import os
from pathlib import Path

import pytest

from pycolo.edge.secret_file import SECRET_BYTES_MAX, read_secret
from pycolo.errors import EnvironmentFault


def secret_file(folder: Path, content: bytes, mode: int = 0o600) -> Path:
    path = folder / "secret"
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_the_line_end_is_not_part_of_it(tmp_path: Path, mode: int) -> None:
    assert read_secret(secret_file(tmp_path, " sécret \r\n".encode(), mode)) == " sécret "


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_one_that_others_can_get_at(tmp_path: Path, mode: int) -> None:
    with pytest.raises(EnvironmentFault, match=rf"has mode {mode:04o}, so others can get at it: chmod 600 {tmp_path}"):
        read_secret(secret_file(tmp_path, b"secret", mode))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "has 0 bytes"),
        (b"\n", "has 1 bytes"),
        (b"s" * (SECRET_BYTES_MAX + 1), f"has {SECRET_BYTES_MAX + 1} bytes"),
        (b"s\xff", "is not text"),
    ],
)
def test_one_that_is_no_secret(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(EnvironmentFault, match=says) as caught:
        read_secret(secret_file(tmp_path, content))
    assert "ss" not in str(caught.value).removeprefix(str(tmp_path))


def test_one_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match=r"can't be read \(No such file"):
        read_secret(tmp_path / "none")
    with pytest.raises(EnvironmentFault, match=r"can't be read \(Is a directory"):
        read_secret(tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(EnvironmentFault, match="is not a file"):
        read_secret(tmp_path / "pipe")
