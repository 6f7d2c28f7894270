"""docs/configuration.md is as the program: each key with its default and what it may be, and each command."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
from pydantic import BaseModel

from pycolo.cli import whole_cli
from pycolo.config import HostConfig, VmConfig

Schema = dict[str, Any]
DOCUMENT = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()


class Row(NamedTuple):
    """What the document says, or should say, of a key."""

    default: str
    allowed: str


def cells(section: str, columns: int) -> Iterator[list[str]]:
    """The rows of the tables under a heading; a `|` in a cell is written `\\|`."""
    start = DOCUMENT.index(f"\n## {section}\n")
    text = DOCUMENT[start : DOCUMENT.find("\n## ", start + 1)]
    for line in text.splitlines():
        row = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(row) == columns and row[0].startswith("`"):
            yield row


def documented(section: str) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for key, default, allowed, meaning in cells(section, 4):
        assert meaning, key
        assert key.strip("`") not in found, key
        found[key.strip("`")] = Row(default, allowed)
    return found


def resolved(node: Schema, root: Schema) -> Schema:
    """Without references, and without the null of what may be left out; its default stays."""
    some = [one for one in node.get("anyOf", ()) if one.get("type") != "null"]
    if "$ref" in node or len(some) == 1:
        inner = root["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else some[0]
        return resolved(inner, root) | {key: node[key] for key in ("default",) if key in node}
    return node


def keys(table: Schema, root: Schema, prefix: str = "") -> Iterator[tuple[str, Row]]:
    """Every key and what has to be said of it; the keys of a table within stand for the table."""
    for name, reference in table["properties"].items():
        key, node = prefix + name, resolved(reference, root)
        if "oneOf" in node:
            alternatives = [resolved(one, root) for one in node["oneOf"]]
            kinds = ", ".join(f"`{one['properties']['kind']['const']}`" for one in alternatives)
            yield f"{key}.kind", Row("required", kinds)
            for one in alternatives:
                yield from (row for row in keys(one, root, f"{key}.") if row[0] != f"{key}.kind")
        elif "properties" in node:
            yield from keys(node, root, f"{key}.")
        else:
            yield key, Row(default_of(node, name in table.get("required", ())), allowed_of(node))
            entry = resolved(node.get("items", {}), root)
            if entry.get("type") == "object":
                yield from keys(entry, root, f"{key}.")


def default_of(node: Schema, required: bool) -> str:
    value = node.get("default")
    if required:
        return "required"
    return "none" if value is None else value if isinstance(value, str) and value else json.dumps(value)


def allowed_of(node: Schema) -> str:
    """What the cell has to begin with; "" where the document may use words of its own."""
    if node["type"] == "boolean":
        return "true, false"
    if node["type"] == "integer":
        return f"{node['minimum']} to {node['maximum']}"
    if node["type"] == "object":  # a table whose keys the user chooses
        return f"0 to {node['maxProperties']}"
    if node["type"] == "array":
        return f"{node.get('minItems', 0)} to {node['maxItems']}"
    return ", ".join(f"`{choice}`" for choice in node.get("enum", ()))


def keys_of(model: type[BaseModel]) -> dict[str, Row]:
    schema = model.model_json_schema()
    return dict(keys(schema, schema))


@pytest.mark.parametrize(("section", "model"), [("host.toml", HostConfig), ("vm.toml", VmConfig)])
def test_every_key_is_documented_as_it_is(section: str, model: type[BaseModel]) -> None:
    rows, should = documented(section), keys_of(model)
    assert rows.keys() == should.keys()
    for key, row in should.items():
        begins = re.compile(rf"{re.escape(row.allowed)}\b" if row.allowed[-1:].isalnum() else re.escape(row.allowed))
        assert f"{rows[key].default}: ".startswith(f"{row.default}: "), (key, row.default, rows[key].default)
        assert begins.match(rows[key].allowed), (key, row.allowed, rows[key].allowed)


def test_the_test_sees_all_keys() -> None:
    """Also those of tables within tables, of lists, and of each kind of arbiter."""
    host, vm = keys_of(HostConfig), keys_of(VmConfig)
    assert host["arbiter.endpoints"] == Row("required", "1 to 9")
    assert host["arbiter.kind"] == Row("required", "`file`, `etcd`")
    assert host["networks"] == Row("{}", "0 to 64")
    assert vm["nics.mac"] == Row("none", "")
    assert {"arbiter.path", "peers", "peers.name", "tls.key"} <= host.keys()
    assert vm["disks.size_mib"] == Row("0", f"0 to {1 << 26}")
    assert vm["protection.secondaries"] == Row("[]", "0 to 64")
    assert vm["append"] == Row('""', "")


def commands(group: click.Group, path: str = "colo") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def test_every_command_is_documented_with_its_options() -> None:
    rows = [row for row, meaning in cells("Commands", 2) if meaning]
    shown = {re.sub(r" [^a-z].*", "", row.strip("`")): row for row in rows}
    assert len(shown) == len(rows)
    assert shown.keys() == {name for name, _ in commands(whole_cli())}
    for name, command in commands(whole_cli()):
        options = [one for one in command.params if isinstance(one, click.Option)]
        for option in options:
            if option.name not in ("host_socket", "config"):  # they stand above the table
                assert any(spelling in shown[name] for spelling in option.opts), (name, option.opts)


@pytest.mark.parametrize(("title", "model", "count"), [("a/host.toml", HostConfig, 1), ("vm.toml", VmConfig, 2)])
def test_every_whole_example_will_do(title: str, model: type[BaseModel], count: int) -> None:
    """A file is shown from its title, a comment, to the first line that is not indented, or the next title."""
    examples = re.findall(
        rf"^    # {re.escape(title)}\n((?:    (?!# \w+/?\w*\.toml).*\n|\n(?=    \S))*)", DOCUMENT, re.MULTILINE
    )
    assert len(examples) == count
    for example in examples:
        model.model_validate(tomllib.loads(example))
