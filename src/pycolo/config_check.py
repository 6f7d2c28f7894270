"""What is wrong with a host.toml or vm.toml: all of it at once, and what is only suspicious as warnings."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from pycolo.config import HostConfig, VmConfig, mistaken_for
from pycolo.config_files import look_at_host, look_at_vm
from pycolo.config_messages import sentences
from pycolo.errors import EnvironmentFault
from pycolo.toml_file import read_toml

KINDS: dict[str, type[BaseModel]] = {"host": HostConfig, "vm": VmConfig}


@dataclass
class Findings:
    """One file's: `kind` is "host" or "vm"; sentences that name the file and the key."""

    kind: str
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check_file(path: Path, kind: str | None = None) -> Findings:
    """Look at one file; without `kind` its content tells what it is."""
    try:
        values = read_toml(path)
    except EnvironmentFault as problem:
        return Findings(kind or "unknown", [str(problem)])
    found = Findings(kind or _kind_of(values))
    if (mistaken := mistaken_for(values, KINDS[found.kind])) is not None:
        found.errors = [f"{path} {mistaken}"]
        return found
    try:
        model = KINDS[found.kind].model_validate(values)
    except ValidationError as problem:
        found.errors = [f"{path}: {sentence}" for sentence in sentences(problem, KINDS[found.kind])]
        return found
    if isinstance(model, HostConfig):
        look, doubts = look_at_host(model), _host_doubts(model)
    else:
        assert isinstance(model, VmConfig)
        look, doubts = look_at_vm(model, path.parent), _vm_doubts(model)
    found.errors = [f"{path}: {error}" for error in look.errors]
    found.warnings = [f"{path}: {doubt}" for doubt in (*doubts, *look.warnings)]
    return found


def _kind_of(values: dict[str, Any]) -> str:
    """The kind with the most of its keys there."""
    return max(KINDS, key=lambda kind: len(values.keys() & KINDS[kind].model_fields.keys()))


def _host_doubts(host: HostConfig) -> list[str]:
    doubts = []
    if not host.peers:
        doubts.append("peers is empty: no VM can be protected until it names another host")
    bridges = {"bridge": host.bridge} | {f"networks.{name}": device for name, device in host.networks.items()}
    doubts += [
        f"{key} is {device!r}: this machine has no bridge of that name now"
        for key, device in bridges.items()
        if not Path("/sys/class/net", device, "bridge").exists()
    ]
    return doubts


def _vm_doubts(vm: VmConfig) -> list[str]:
    doubts = []
    if shutil.which(vm.qemu) is None:
        doubts.append(f"qemu is {vm.qemu!r}: this machine has no such program")
    if vm.accel == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        doubts.append("accel is 'kvm': /dev/kvm can't be used on this machine")
    if not vm.protection.protect:
        doubts.append("protection.protect is false: the VM runs on one host only")
    return doubts
