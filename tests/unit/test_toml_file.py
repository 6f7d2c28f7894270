"""What is no TOML is one sentence: what is wrong, in which line, and what to do."""

import os
from pathlib import Path

import pytest

from pycolo.errors import EnvironmentFault
from pycolo.toml_file import FILE_BYTES_MAX, read_toml


def refused(folder: Path, content: bytes) -> str:
    path = folder / "some.toml"
    path.write_bytes(content)
    with pytest.raises(EnvironmentFault) as caught:
        read_toml(path)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path} ")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty: write into it what docs/configuration.md describes"),
        (b" \n\n", "is empty: write"),
        (b"# only this\n", "has no keys: write"),
        (b"\xef\xbb\xbfa = 1\n", "begins with a byte order mark, which is not TOML: save it as UTF-8 without"),
        ("a = 1\n".encode("utf-16"), "begins with a byte order mark"),
        (b'a = 1\nb = "\xe9"\n', "is not TOML: line 2 is not UTF-8 text: save it as UTF-8"),
        (b"a = 1\nb = 2\na = 3\n", "is not TOML: line 3 has a second value for a: remove one of them"),
        (b"a = 1\na = 3", "is not TOML: line 2 has a second value for a: remove one of them"),
        (b"a = 1\na = [\n1\n]\n", "is not TOML: line 4 has the end of a second value for one key: remove one"),
        (b"[t]\na = 1\n\n[t] # again\n", "is not TOML: line 4 has [t] a second time: remove one of them"),
        (b"[t]\na = 1\n[[t]]\n", "is not TOML: line 3 has [[t]] a second time: remove one of them"),
        (b"a = 1\nname = web\n", "is not TOML: line 2 has no value that TOML knows: text needs quotes"),
        (b"a = True\n", "is not TOML: line 1 has no value that TOML knows: text needs quotes; true and false need"),
        (b"a = ", "is not TOML: line 1 has no value that TOML knows"),
        (b'a = "x\n', "is not TOML: a text in line 1 has no closing quote: add it"),
        (b"a = [1,\n", "is not TOML: the last list, table or value has no end: close it"),
        (b'name "x"\n', "is not TOML: line 1, column 6: expected '=' after a key"),
        (b"a = " + b"[" * 20_000, "is not TOML: its lists or tables are nested too deep: correct it"),
        (b"a = " + b"9" * 5000, "is not TOML: a number in it has thousands of digits: correct it"),
        (b"#" * (FILE_BYTES_MAX + 1), f"has more than {FILE_BYTES_MAX} bytes, so it is no configuration"),
    ],
)
def test_what_is_no_toml(tmp_path: Path, content: bytes, says: str) -> None:
    assert refused(tmp_path, content).startswith(says)


def test_an_endless_file_is_not_read_to_its_end() -> None:
    with pytest.raises(EnvironmentFault, match="has more than"):
        read_toml(Path("/dev/zero"))


def test_a_pipe_will_do() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"a = 1\n")
    os.close(writer)
    assert read_toml(Path(f"/dev/fd/{reader}")) == {"a": 1}
    os.close(reader)
