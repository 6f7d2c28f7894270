"""Targets for files: configurations, records, tokens, captures."""

from __future__ import annotations

import gzip
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from pydantic import BaseModel, ValidationError

from capture_blocks import pcap
from pycolo.capture import report
from pycolo.capture.compare import compare_files
from pycolo.config import CopyDocument, HostConfig, VmConfig, disk_path, load_config, load_document
from pycolo.config_messages import sentences
from pycolo.core.arbitration import ClaimRecord
from pycolo.core.compare_policy import Policy
from pycolo.core.device_state import advance_clock, read_clock, with_configuration
from pycolo.core.offline import Comparison
from pycolo.core.tolerance_rules import Tolerances
from pycolo.edge.capture_file import CaptureReader
from pycolo.edge.capture_source import FRAME_BYTES_MAX
from pycolo.edge.secret_file import read_secret
from pycolo.edge.state_file import FileArbiter
from pycolo.errors import ArbiterUnanswered, CaptureDamaged, EnvironmentFault
from pycolo.host import models
from pycolo.host.record import FILE_NAME, Record, load_record
from pycolo.host.security import load_tokens

from .disks import folder
from .peers import run
from .reader import Reader

SENTENCE_CHARS_MAX = 3000
_VALUES_MAX = 300
Schema = dict[str, Any]


@cache
def _memfd(name: str) -> int:
    return os.memfd_create(name, os.MFD_CLOEXEC)


def file_of(data: bytes, name: str = "fuzzed") -> Path:
    """A file with this content, until the next call with that name."""
    fd = _memfd(name)
    os.ftruncate(fd, 0)
    os.pwrite(fd, data, 0)
    return Path(f"/proc/self/fd/{fd}")


def assert_told(fault: Exception) -> None:
    """It says something."""
    assert str(fault)


def sentence(fault: Exception | str, secret: str = "\0") -> None:
    """What a user gets to see is one line that a terminal can show, without the secret."""
    text = str(fault)
    assert secret not in text
    assert text.isprintable(), text
    assert 0 < len(text) <= SENTENCE_CHARS_MAX, len(text)


# ---------------------------------------------------------------- configurations


def host_toml(data: bytes) -> None:
    """A host.toml is read, or refused with a sentence."""
    try:
        host = load_config(file_of(data), HostConfig)
    except EnvironmentFault as fault:
        sentence(fault)
        return
    host.for_copy(Path("/run/copy"), ["tap0"])
    assert host.socket.name == "api.sock"
    assert HostConfig.model_validate_json(host.model_dump_json()) == host


def vm_toml(data: bytes) -> None:
    """A vm.toml is read, or refused with a sentence."""
    try:
        vm = load_config(file_of(data), VmConfig)
    except EnvironmentFault as fault:
        sentence(fault)
        return
    _vm_is_usable(vm)


def _vm_is_usable(vm: VmConfig) -> None:
    policy, tolerances = vm.compare.policy(), vm.compare.tolerances()
    assert Policy.decode(*policy.encode()).encode() == policy.encode()
    assert Tolerances.decode(tolerances.encode()).encode() == tolerances.encode()
    assert len({card.mac for card in vm.cards}) == len(vm.cards) > 0
    assert VmConfig.model_validate_json(vm.model_dump_json()) == vm
    host = HostConfig.model_construct(name="h1", disk_dir=Path("/disks"))
    assert all(disk_path(host, disk).is_absolute() for disk in vm.disks)


_MODELS: list[type[BaseModel]] = [
    *(VmConfig, HostConfig, CopyDocument, Record, models.ProtectRequest, models.OfferRequest, models.HostReportBody),
    *(models.CaptureRequest, models.PeerLostRequest, models.CheckpointRequest, models.Failure),
]


@cache
def _schema(model: type[BaseModel]) -> Schema:
    return model.model_json_schema()


def values(data: bytes) -> None:
    """Values in the places of a model's, mostly of the right kind: it is made, or each fault has a sentence."""
    reader = Reader(data)
    model = reader.choice(_MODELS)
    made = _Values(reader, _schema(model)).of(_schema(model), 0)
    try:
        built = model.model_validate(made)
    except ValidationError as problem:
        with mock.patch.object(model, "model_json_schema", return_value=_schema(model)):  # which takes long to make
            for each in sentences(problem, model):
                sentence(each)
        return
    if isinstance(built, VmConfig):
        _vm_is_usable(built)
    assert model.model_validate_json(built.model_dump_json()) == built


class _Values:
    """Makes values that fit a JSON schema, or do not: as the bytes choose."""

    _WORDS = ("", "h1", "br0", "10.0.0.1:7700", "[fd00::1]:1", "52:54:00:00:00:02", "/k", "disk", "80-90", "tcp", "tcg")
    _ODD: Sequence[object] = (
        None,
        True,
        1.5,
        float("nan"),
        "",
        [],
        {},
        -1,
        10**30,
        "\x1b[2J\n",
        ["x"],
        {"a": {}},
        "é" * 300,
    )

    def __init__(self, reader: Reader, root: Schema) -> None:
        self._reader, self._root, self._left = reader, root, _VALUES_MAX

    def of(self, node: Schema, depth: int) -> object:
        """A value for this part of the schema."""
        self._left -= 1
        reader = self._reader
        what = reader.number()
        if what > 240 or self._left < 0 or depth > 8:
            return reader.choice(self._ODD)
        if "$ref" in node:
            return self.of(self._root["$defs"][node["$ref"].rpartition("/")[2]], depth + 1)
        for key in ("anyOf", "oneOf"):
            if key in node:
                return self.of(node[key][what % len(node[key])], depth + 1)
        if "enum" in node:
            return node["enum"][what % len(node["enum"])]
        if "const" in node:
            return node["const"]
        return self._plain(node, depth, what)

    def _plain(self, node: Schema, depth: int, what: int) -> object:
        reader = self._reader
        match node.get("type"):
            case "object" if "properties" in node:
                wanted = {key for key in node["properties"] if key in node.get("required", ()) or reader.number() < 60}
                made = {key: self.of(node["properties"][key], depth + 1) for key in sorted(wanted)}
                return {**made, reader.take(4).decode("latin-1"): 1} if what > 230 else made
            case "object":
                return {reader.choice(self._WORDS): reader.choice(self._WORDS) for _ in range(what % 4)}
            case "array":
                return [self.of(node.get("items", {}), depth + 1) for _ in range(what % 4)]
            case "integer":
                return node.get("minimum", 0) + reader.number(what % 4)
            case "number":
                return reader.number(2) / 7
            case "boolean":
                return reader.flag()
            case "null":
                return None
        if what < 120:
            return reader.choice(self._WORDS)
        return reader.take(what % 32).decode("latin-1") if what < 200 else (node.get("examples") or ["x"])[0]


# ---------------------------------------------------------------- what our own processes have written


def documents(data: bytes) -> None:
    """A copy's document, a VM's record, tokens, a secret: read, or refused with a sentence."""
    reader = Reader(data)
    what, content = reader.number() % 4, reader.rest()
    try:
        if what == 0:
            load_document(file_of(content))
        elif what == 1:
            (folder() / FILE_NAME).write_bytes(content)
            load_record(folder())
        elif what == 2:
            load_tokens(_own(content))
        else:
            assert not read_secret(_own(content)).endswith("\n")
    except EnvironmentFault as fault:
        sentence(fault)


def _own(content: bytes) -> Path:
    """A file that only its owner reads."""
    os.fchmod(_memfd("secret"), 0o600)
    return file_of(content, "secret")


def arbiter_file(data: bytes) -> None:
    """The record of a file arbiter: a claim is granted and stored, or nothing changes."""
    try:
        with mock.patch.object(os, "fsync"):
            _claim(data)
    except ArbiterUnanswered as fault:
        sentence(fault)


def _claim(content: bytes) -> None:
    (folder() / "web.json").write_bytes(content)
    arbiter = FileArbiter(folder())
    record = run(arbiter.record("web"))
    answer = run(arbiter.claim("web", 3, "h1"))
    stored = run(arbiter.record("web"))
    assert isinstance(record, ClaimRecord)
    if answer.granted:
        assert stored is not None
        assert (stored.vm, stored.holder, stored.term) == ("web", "h1", answer.term)
    else:
        assert stored == record


def device_state(data: bytes) -> None:
    """QEMU's device state: its clock is found once or not at all, and nothing but the clock is changed."""
    reader = Reader(data)
    advance_ns, stream = reader.number(8), reader.rest()
    try:
        clock = read_clock(stream)
        changed = advance_clock(stream, advance_ns)
        assert len(changed) == len(stream)
        assert read_clock(changed).clock_ns == clock.clock_ns + advance_ns
        assert sum(one != other for one, other in zip(stream, changed, strict=True)) <= 16
    except ValueError:
        pass
    try:
        whole = with_configuration(stream, "pc-q35-7.2")
    except ValueError:
        return
    assert len(whole) == len(stream) + 5 + len("pc-q35-7.2")


# ---------------------------------------------------------------- captures


def capture(data: bytes) -> None:
    """A capture, gzipped or not: whole frames, then perhaps damage."""
    reader = Reader(data)
    zipped, content = reader.number() % 4 == 0, reader.rest()
    path = file_of(gzip.compress(content, 1) if zipped else content)
    count = 0
    try:
        with CaptureReader(path, "a capture") as records:
            for record in records:
                count += 1
                assert record.number >= count
                assert len(record.frame) <= min(record.original_bytes, FRAME_BYTES_MAX)
    except CaptureDamaged as damage:
        sentence(damage)
    except EnvironmentFault as fault:
        assert not count
        sentence(fault)


def comparison(data: bytes) -> None:
    """Two captures are compared, and what is found can be told as text and as a document."""
    reader = Reader(data)
    raw = reader.flag()
    if raw:
        ours, theirs = reader.piece(), reader.rest()
    else:
        sides: tuple[list[bytes], list[bytes]] = ([], [])
        while reader:
            sides[reader.number() & 1].append(reader.piece())
        ours, theirs = (pcap([(0, at, frame, len(frame)) for at, frame in enumerate(side)]) for side in sides)
    paths = file_of(ours, "ours"), file_of(theirs, "theirs")
    try:
        outcome = compare_files(*paths, Comparison(), lambda _: None)
    except EnvironmentFault as fault:
        sentence(fault)
        return
    for line in report.as_text(outcome).splitlines():
        assert line.isprintable()
    report.as_document(outcome)
