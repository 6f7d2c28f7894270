"""The files and folders that a configuration names: which of them will not do on this machine.

Nothing is opened that is not a regular file. What this user may not look at is a warning: the daemon runs as root.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel

from pycolo.config import EtcdArbiterConfig, FileArbiterConfig, HostConfig, VmConfig
from pycolo.edge.etcd_gateway import tls_context
from pycolo.edge.secret_file import read_secret
from pycolo.edge.tls import mode_fault
from pycolo.edge.unix_listener import PATH_BYTES_MAX
from pycolo.errors import EnvironmentFault
from pycolo.host.security import load_tokens
from pycolo.pki.authority import certificate_faults, time_fault

KINDS: dict[str, Callable[[int], bool]] = {"file": stat.S_ISREG, "folder": stat.S_ISDIR}


@dataclass
class Look:
    """What was found, as sentences that begin with the key."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def is_there(self, key: str, path: Path, kind: str, missing: str = "") -> bool:
        """Whether it can be looked into; `missing`: the warning if it is not there, which is an error otherwise."""
        try:
            mode = os.stat(path).st_mode
        except PermissionError:
            return self._may_not(key, path)
        except OSError as problem:
            if missing and isinstance(problem, FileNotFoundError):
                self.warnings.append(f"{key} is '{path}': {missing}")
            else:
                self.errors.append(f"{key} is '{path}': it can't be read ({problem.strerror}): correct the path")
            return False
        if not KINDS[kind](mode):
            found = "a folder" if stat.S_ISDIR(mode) else "no folder" if kind == "folder" else "no regular file"
            self.errors.append(f"{key} is '{path}': it is {found}, and a {kind} is needed")
            return False
        return os.access(path, os.R_OK) or self._may_not(key, path)

    def _may_not(self, key: str, path: Path) -> bool:
        self.warnings.append(f"{key} is '{path}': this user may not look at it: check as root")
        return False

    def reads(self, key: str, read: Callable[[], object]) -> None:
        """Note what a reader of ours has to say."""
        try:
            read()
        except EnvironmentFault as problem:
            self.errors.append(f"{key}: {problem}")

    def faults(self, key: str, *faults: str) -> None:
        """Note those that are any."""
        self.errors += [f"{key}: {fault}" for fault in faults if fault]


def look_at_host(host: HostConfig) -> Look:
    """All that host.toml names."""
    look = Look()
    _tls(look, host)
    if isinstance(host.arbiter, FileArbiterConfig):
        look.is_there("arbiter.path", host.arbiter.path, "folder")
    else:
        _etcd(look, host.arbiter)
    if host.token_file is not None:
        missing = "it does not exist, so nobody is let in with a token"
        if look.is_there("token_file", host.token_file, "file", missing):
            look.reads("token_file", lambda: load_tokens(host.token_file))
    if host.disk_dir is not None:
        look.is_there("disk_dir", host.disk_dir, "folder", "this folder does not exist on this machine")
    _state_dir(look, host)
    look.warnings += [
        f"{key} is '{path}': it depends on where the daemon is started: give the whole path"
        for key, path in _paths(host)
        if not path.is_absolute()
    ]
    return look


def look_at_vm(vm: VmConfig, folder: Path) -> Look:
    """All that vm.toml names; `folder` is where it lies."""
    look = Look()
    for key, path in (("kernel", vm.kernel), ("initrd", vm.initrd)):
        if path is not None:
            look.is_there(key, folder / path, "file", "this file does not exist on this machine")
    for disk in vm.disks:
        if disk.path.is_absolute() and disk.path.is_dir():
            what = "it is a folder, and a raw image or a block device is needed"
            look.errors.append(f"the path of the disk {disk.name} is '{disk.path}': {what}")
    return look


def _tls(look: Look, host: HostConfig) -> None:
    files = host.tls_files
    if host.tls is None or files is None:
        return
    keys = (("tls.ca", host.tls.ca), ("tls.cert", host.tls.cert), ("tls.key", host.tls.key))
    usable = [look.is_there(key, path, "file") for key, path in keys]
    if all(usable):
        look.faults("tls", *certificate_faults(files, host.name))


def _etcd(look: Look, arbiter: EtcdArbiterConfig) -> None:
    if len(arbiter.endpoints) == 1:
        look.warnings.append(
            "arbiter.endpoints names one member: while it is away nobody may go on alone: have three, on other machines"
        )
    named = {"ca": arbiter.ca, "cert": arbiter.cert, "key": arbiter.key, "password_file": arbiter.password_file}
    usable = {key: look.is_there(f"arbiter.{key}", path, "file") for key, path in named.items() if path is not None}
    if arbiter.key is not None:
        look.faults("arbiter.key", mode_fault(str(arbiter.key)))
    password_file, cert = arbiter.password_file, arbiter.cert
    if password_file is not None and usable.pop("password_file"):
        look.reads("arbiter.password_file", lambda: read_secret(password_file))
    if all(usable.values()):
        before = len(look.errors)
        look.reads("arbiter", lambda: tls_context(arbiter))
        if cert is not None and len(look.errors) == before:
            look.faults("arbiter.cert", time_fault(str(cert)))


def _state_dir(look: Look, host: HostConfig) -> None:
    if os.path.lexists(host.state_dir):
        look.is_there("state_dir", host.state_dir, "folder")
    if (length := len(os.fsencode(host.socket))) > PATH_BYTES_MAX:
        look.errors.append(
            f"state_dir is '{host.state_dir}': the socket api.sock in it would have a path of {length} bytes, "
            f"at most {PATH_BYTES_MAX} are possible: choose a shorter one"
        )


def _paths(model: BaseModel, prefix: str = "") -> Iterator[tuple[str, Path]]:
    for key, value in model:
        if isinstance(value, Path):
            yield prefix + key, value
        elif isinstance(value, BaseModel):
            yield from _paths(value, f"{prefix}{key}.")
