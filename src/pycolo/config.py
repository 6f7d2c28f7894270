"""host.toml and vm.toml: what they may say; an error names the file, the key, what was found and what was expected."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from pycolo.edge.peer_greeting import address
from pycolo.errors import EnvironmentFault


def _host_port(text: str) -> str:
    address(text)
    return text


HostPort = Annotated[str, AfterValidator(_host_port)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
Device = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,14}$")]
Mac = Annotated[str, Field(pattern=r"^[0-9a-f][02468ace](:[0-9a-f]{2}){5}$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HostConfig(_Model):
    """One host of a pair; `disk_dir` is where relative paths of disks lie."""

    name: Name
    listen: HostPort
    peer: HostPort
    state_dir: Path
    arbiter_file: Path
    bridge: Device
    tap: Device = "colo0"
    disk_dir: Path | None = None


class ProtectionConfig(_Model):
    """How one VM is protected; defaults as in the design."""

    heartbeat_ms: Annotated[int, Field(ge=10, le=10_000)] = 100
    heartbeat_lost_max: Annotated[int, Field(ge=2, le=100)] = 3
    hold_ms_min: Annotated[int, Field(ge=1, le=10_000)] = 50
    hold_ms_max: Annotated[int, Field(ge=1, le=60_000)] = 1000
    epoch_ms_max: Annotated[int, Field(ge=50, le=3_600_000)] = 10_000
    qmp_deadline_ms: Annotated[int, Field(ge=100, le=60_000)] = 2000
    self_check: bool = False
    dirty_pages: Literal["auto", "compare"] = "auto"
    disk_buffer_mib_max: Annotated[int, Field(ge=16, le=1 << 20)] = 256
    disk_spill_mib_max: Annotated[int, Field(ge=0, le=1 << 20)] = 1024
    disk_queue_mib_max: Annotated[int, Field(ge=1, le=1 << 14)] = 16
    disk_stall_ms_max: Annotated[int, Field(ge=100, le=3000)] = 2000
    disk_copy_mib_per_s_max: Annotated[int, Field(ge=0, le=1 << 20)] = 0

    @model_validator(mode="after")
    def _ordered(self) -> ProtectionConfig:
        if self.hold_ms_min > self.hold_ms_max:
            raise ValueError(f"hold_ms_min ({self.hold_ms_min}) must not exceed hold_ms_max ({self.hold_ms_max})")
        return self


class DiskConfig(_Model):
    """One disk; a missing image is made when `size_mib` says how large."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,19}$")]
    path: Path
    size_mib: Annotated[int, Field(ge=0, le=1 << 26)] = 0
    format: Literal["auto", "raw"] = "auto"
    werror: Literal["stop", "enospc", "report"] = "stop"


class VmConfig(_Model):
    """One VM, the same on both hosts."""

    name: Name
    cpus: Annotated[int, Field(ge=1, le=64)] = 1
    memory_mib: Annotated[int, Field(ge=32, le=1 << 20)] = 256
    mac: Mac = "52:54:00:00:00:02"
    kernel: Path
    initrd: Path
    append: str = ""
    accel: Literal["tcg", "kvm"]
    qemu: str = "qemu-system-x86_64"
    disks: Annotated[tuple[DiskConfig, ...], Field(max_length=16)] = ()
    protection: ProtectionConfig = ProtectionConfig()

    @model_validator(mode="after")
    def _named(self) -> VmConfig:
        names = [disk.name for disk in self.disks]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two disks are named {name}: give each its own name")
        return self


def disk_path(host: HostConfig, disk: DiskConfig) -> Path:
    """Where the image of a disk lies on a host. Raises EnvironmentFault."""
    if disk.path.is_absolute():
        return disk.path
    if host.disk_dir is None:
        raise EnvironmentFault(
            f"the disk {disk.name} of vm.toml has the relative path {disk.path}: set `disk_dir` in host.toml"
        )
    return host.disk_dir / disk.path


_Config = TypeVar("_Config", HostConfig, VmConfig)


def load_config(path: Path, model: type[_Config]) -> _Config:
    """Read one TOML file. Raises EnvironmentFault with one sentence for everything that can be wrong with it."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise EnvironmentFault(f"{path} can't be read ({problem.strerror}): name one that can be read") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise EnvironmentFault(f"{path} is not TOML ({problem}): correct it") from None
    try:
        return model.model_validate(values)
    except ValidationError as problem:
        raise EnvironmentFault(_sentence(path, problem)) from None


def _sentence(path: Path, problem: ValidationError) -> str:
    first = problem.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "the file"
    if first["type"] == "missing":
        return f"{path}: the key {key} is missing: add it"
    if first["type"] == "extra_forbidden":
        return f"{path}: the key {key} is unknown: remove it or correct its spelling"
    message = first["msg"].removeprefix("Value error, ")
    if isinstance(first["input"], dict | list | tuple):  # all of it is too much to be read
        return f"{path}: {key}: {message}" if first["loc"] else f"{path}: {message}"
    return f"{path}: {key} is {first['input']!r}: {message}"
