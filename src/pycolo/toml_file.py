"""Reads TOML files; whatever stands in one that is no TOML is one sentence, with the line where it can be known."""

from __future__ import annotations

import codecs
import re
import tomllib
from pathlib import Path
from typing import Any

from pycolo.errors import EnvironmentFault
from pycolo.quoting import quoted

FILE_BYTES_MAX = 1 << 20

_UTF8 = "save it as UTF-8 without a byte order mark"
_PLACE = re.compile(r" ?\(at line (?P<line>[0-9]+), column (?P<column>[0-9]+)\)$")
_TWICE = re.compile(r"Cannot (overwrite a value|declare .* twice|mutate immutable namespace .*|redefine namespace .*)")


def read_toml(path: Path) -> dict[str, Any]:
    """The values of a TOML file, which has some. Raises EnvironmentFault."""
    text = _text(path)
    try:
        values = tomllib.loads(text + "\n")  # so that the last line, too, has an end that can be named
    except (ValueError, RecursionError) as problem:  # a number of thousands of digits is a bare ValueError
        raise EnvironmentFault(f"{path} is not TOML: {_why(text, problem)}") from None
    if not values:
        what = "is empty" if not text.strip() else "has no keys"
        raise EnvironmentFault(f"{path} {what}: write into it what docs/configuration.md describes")
    return values


def _text(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as problem:
        raise EnvironmentFault(f"{path} can't be read ({problem.strerror}): name one that can be read") from None
    if len(content) > FILE_BYTES_MAX:
        raise EnvironmentFault(f"{path} has more than {FILE_BYTES_MAX} bytes, so it is no configuration: name another")
    if content.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise EnvironmentFault(f"{path} begins with a byte order mark, which is not TOML: {_UTF8}")
    try:
        return content.decode()
    except UnicodeDecodeError as problem:
        line = content[: problem.start].count(b"\n") + 1
        raise EnvironmentFault(f"{path} is not TOML: line {line} is not UTF-8 text: {_UTF8}") from None


def _why(text: str, problem: Exception) -> str:
    if isinstance(problem, RecursionError):
        return "its lists or tables are nested too deep: correct it"
    if not isinstance(problem, tomllib.TOMLDecodeError):
        return "a number in it has thousands of digits: correct it"
    reason = str(problem)
    place = _PLACE.search(reason)
    if place is None:
        if reason.startswith("Invalid value"):
            return "the last list, table or value has no end: close it"
        return f"{_lower(reason.removesuffix(' (at end of document)'))} at its end: correct it"
    reason, number = reason[: place.start()], int(place["line"])
    if _TWICE.match(reason):
        return _twice(quoted(text.split("\n")[number - 1].strip()), number)
    if reason == "Invalid value":
        return f"line {number} has no value that TOML knows: text needs quotes; true and false need small letters"
    if reason.startswith("Illegal character '\\n'"):
        return f"a text in line {number} has no closing quote: add it"
    return f"line {number}, column {place['column']}: {_lower(reason)}: correct it"


def _twice(line: str, number: int) -> str:
    if line.startswith("["):
        return f"line {number} has {line.partition('#')[0].strip()} a second time: remove one of them"
    key, equals, _ = line.partition("=")
    what = f"a second value for {key.strip()}" if equals else "the end of a second value for one key"
    return f"line {number} has {what}: remove one of them"


def _lower(reason: str) -> str:
    return reason[:1].lower() + reason[1:]
