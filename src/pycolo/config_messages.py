"""What is wrong with a configuration, in a user's words: the key, what was found, and what was expected.

What is expected is read from the model's JSON schema, so that a sentence can't name another range than the model has.
"""

from __future__ import annotations

import difflib
import re
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pycolo.config_values import IN_WORDS

Schema = dict[str, Any]
Place = tuple[str | int, ...]
VALUE_CHARS_MAX = 200
LIKENESS_MIN = 0.7
KEY = "[key]"  # pydantic's last step of a place, where the key itself will not do


def sentences(problem: ValidationError, model: type[BaseModel]) -> list[str]:
    """Each thing that is wrong with what should have been a `model`."""
    schema = model.model_json_schema()
    found = [_sentence(error, schema) for error in problem.errors() if not _follows(error)]
    return list(dict.fromkeys(found))  # each alternative of a union has the same to say


def _follows(error: ErrorDetails) -> bool:
    """Bad entries of a list are not counted, so that it may seem too short as well."""
    return error["type"] == "too_short" and len(error["input"]) >= error["ctx"]["min_length"]


def _sentence(error: ErrorDetails, schema: Schema) -> str:
    place, node = _look_up(schema, error["loc"])
    name, found = _named(place, schema), error["input"]
    name = f"a key of {name}" if error["loc"][-1:] == (KEY,) != place[-1:] else name
    match error["type"]:
        case "missing":
            return f"the key {name} is missing: add it"
        case "extra_forbidden":
            return f"the key {name} is unknown: {_instead(place, schema)}"
        case "union_tag_not_found":
            return f"the key {name}.kind is missing: add kind = {' or kind = '.join(_kinds(node))}"
        case "union_tag_invalid":
            return f"{name}.kind is {_shown(error['ctx']['tag'])}: it should be {' or '.join(_kinds(node))}"
        case "too_long" | "too_short" if isinstance(found, list | tuple | dict):
            limit = error["ctx"].get("max_length", error["ctx"].get("min_length"))
            bound = "most" if error["type"] == "too_long" else "least"
            return f"{name} has {len(found)} entries: it should have at {bound} {limit}"
        case "json_invalid":
            return f"it is not JSON ({error['ctx']['error']}): correct it"
        case "value_error":
            said = str(error["ctx"]["error"])
            if isinstance(found, BaseModel | dict | list | tuple):  # all of it is too much to be read
                return f"{name}: {said}" if place else said
            return f"{name} is {_shown(found)}: {said}"
    name = name or "all of it"
    return f"{name} is {_shown(found)}: it should be {_expected(node, name)}{_quotes(found, node)}"


# ---------------------------------------------------------------- where it is


def _resolved(node: Schema, root: Schema) -> Schema:
    """Without references, and without the null of what may be left out."""
    while True:
        some = [one for one in node.get("anyOf", ()) if one.get("type") != "null"]
        if "$ref" in node:
            node = root["$defs"][node["$ref"].rpartition("/")[2]]
        elif len(some) == 1:
            node = some[0]
        else:
            return node


def _look_up(root: Schema, loc: Place) -> tuple[Place, Schema]:
    """The place without what is no key of the file (which alternative of a union was tried), and what belongs there."""
    node, place, chosen = _resolved(root, root), (), False  # type: tuple[Schema, Place, bool]
    for part in loc:
        if "discriminator" in node and part in node["discriminator"]["mapping"]:
            node = {"$ref": node["discriminator"]["mapping"][part]}
        elif part == KEY and chosen:
            place = place[:-1]
        elif "anyOf" not in node:
            chosen = "patternProperties" in node  # a user may have chosen that very name
            node, place = _within(node, part), (*place, part)
        node = _resolved(node, root)
    return place, node


def _within(node: Schema, part: str | int) -> Schema:
    """What belongs there; in a table whose keys a user chooses it is the same for all of them."""
    if isinstance(part, int):
        return dict(node.get("items", {}))
    for pattern, value in node.get("patternProperties", {}).items():
        return dict(value) if re.fullmatch(pattern, part) else {"type": "string", "pattern": pattern}
    return dict(node.get("properties", {}).get(part, {}))


def _named(place: Place, root: Schema) -> str:
    """As a user finds it: `tls.key`, `name of [[disks]] number 2`, `number 1 of arbiter.endpoints`."""
    at = next((index for index, part in enumerate(place) if isinstance(part, int)), None)
    if at is None:
        return ".".join(map(_key, place))
    many, number, rest = ".".join(map(_key, place[:at])), int(place[at]) + 1, ".".join(map(_key, place[at + 1 :]))
    is_table = _look_up(root, place[: at + 1])[1].get("type") == "object"
    entry = f"[[{many}]] number {number}" if is_table else f"number {number} of {many}"
    return f"{rest} of {entry}" if rest else entry


def _key(part: str | int) -> str:
    """As it stands in the file; a strange one in quotes, and no more of it than can be read."""
    text = str(part)
    return text if text.isprintable() and len(text) <= VALUE_CHARS_MAX else _shown(part)


# ---------------------------------------------------------------- what it should be


def _kinds(node: Schema) -> list[str]:
    return [f'"{kind}"' for kind in node["discriminator"]["mapping"]]


def _expected(node: Schema, name: str) -> str:
    match node:
        case {"enum": choices}:
            return " or ".join(f'"{choice}"' for choice in choices)
        case {"const": choice}:
            return f'"{choice}"'
        case {"anyOf": alternatives}:
            return " or ".join(_expected(one, name) for one in alternatives)
        case {"type": "integer"}:
            return f"a whole number{_bounds(node)}"
        case {"type": "boolean"}:
            return "true or false"
        case {"pattern": pattern}:
            return str(IN_WORDS.get(pattern, f"text that fits {pattern}"))
        case {"format": "path"}:
            return "a path"
        case {"type": "string", "examples": [example, *_]}:
            return f"text such as {example}"
        case {"type": "string"}:
            return (
                f"text of {node.get('minLength', 0)} to {node['maxLength']} characters"
                if "maxLength" in node
                else "text"
            )
        case {"type": "array", "items": {"type": "string", "examples": [example, *_]}}:
            return f'a list such as ["{example}"]'
        case {"type": "array"}:
            return f"a list of tables [[{name}]]"
    return "a table" if "[" in name else f"a table [{name}]"


def _bounds(node: Schema) -> str:
    if "minimum" in node and "maximum" in node:
        return f" from {node['minimum']} to {node['maximum']}"
    return f", at least {node['minimum']}" if "minimum" in node else ""


def _quotes(found: Any, node: Schema) -> str:
    if isinstance(found, str):
        return ", without quotes" if node.get("type") in ("integer", "boolean") else ""
    wants_text = node.get("type") == "string" or "enum" in node
    return ", in quotes" if wants_text and not isinstance(found, list | dict) else ""


def _instead(place: Place, root: Schema) -> str:
    """Where an unknown key belongs, or which one may have been meant."""
    key, table = str(place[-1]), _look_up(root, place[:-1])[1]
    at_top = root.get("properties", {})
    if key in at_top and len(place) > 1:
        return f"`{key}` belongs to the top of the file, above the first [table]"
    for name, node in at_top.items():
        if key in _resolved(node, root).get("properties", {}):
            return f"it belongs into the table [{name}]"
    like = difflib.get_close_matches(key.lower(), table.get("properties", {}), n=1, cutoff=LIKENESS_MIN)
    return f"did you mean `{like[0]}`?" if like else "remove it or correct its spelling"


def _shown(value: Any) -> str:
    """What was found, as TOML has it, and no more of it than can be read."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, BaseModel | dict):
        return "a table"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None:
        return "null"
    if isinstance(value, str | int | float):
        try:
            return f"{value!r:.{VALUE_CHARS_MAX}}"
        except ValueError:  # Python does not print so many digits
            return "a number of thousands of digits"
    return f"{value!s:.{VALUE_CHARS_MAX}}"  # a date or a time
