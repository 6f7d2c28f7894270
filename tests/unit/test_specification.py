"""SPECIFICATION.md names nothing that is not there: every file, every test in it, every target of the Makefile."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPECIFICATION = (ROOT / "SPECIFICATION.md").read_text()
LINK = re.compile(r"\[([^\]]+)\]\(([^)#]+)\)")
ROWS = re.findall(r"^\| (\d+\.\d+) \|(.*)\|([^|]*)\|$", SPECIFICATION, re.MULTILINE)


def missing(document: str, folder: Path) -> list[str]:
    """What a document links to, or calls `make ...`, and is not there."""
    problems = []
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    problems += [f"make {name}" for name in re.findall(r"`make ([a-z-]+)", document) if name not in targets]
    for text, where in LINK.findall(document):
        path = (folder / where).resolve()
        if re.match(r"https?:", where):
            continue
        if not path.exists():
            problems.append(where)
        elif "::" in text and text.partition("::")[2].strip("`") not in functions(path):
            problems.append(text)
    return problems


def functions(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_nothing_in_it_is_dead() -> None:
    assert missing(SPECIFICATION, ROOT) == []


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_nothing_in_the_documents_is_dead(path: Path) -> None:
    assert missing(path.read_text(), path.parent) == []


def test_every_promise_is_measured() -> None:
    assert len(ROWS) > 25
    for number, promise, measure in ROWS:
        assert promise.strip(), number
        assert re.search(r"\]\(tests/|`make [a-z-]+`|\bsim\b|\bmatrix\b|\]\(docs/", measure), number


def test_a_dead_link_is_found() -> None:
    document = (
        "[a](no-such-file) [b.py::no_such](tests/unit/test_specification.py) [c](README.md) `make nothing` `make test`"
    )
    assert missing(document, ROOT) == ["make nothing", "no-such-file", "b.py::no_such"]
