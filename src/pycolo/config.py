"""host.toml and vm.toml: what they may say; an error names the file, the key, what was found and what was expected."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pycolo.config_compare import CompareConfig
from pycolo.config_messages import sentences
from pycolo.config_values import (
    BindAddress,
    Device,
    DiskName,
    Endpoint,
    EtcdPrefix,
    FilePath,
    HostPort,
    Mac,
    Name,
    OwnAddress,
    WholePath,
    derived_mac,
    same_address,
)
from pycolo.core.wire import NICS_MAX
from pycolo.edge.peer_greeting import address
from pycolo.edge.tls import TlsFiles
from pycolo.errors import EnvironmentFault
from pycolo.toml_file import read_toml

MAC_OF_ONE_CARD = "52:54:00:00:00:02"  # of a VM whose vm.toml says nothing of its network
SILENCE_MS_MIN = 100  # a lease to speak is shorter (core/lease), and has to be renewed in time


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FileArbiterConfig(_Model):
    """The arbiter of hosts that share one machine: a folder that both reach."""

    kind: Literal["file"]
    path: FilePath


class EtcdArbiterConfig(_Model):
    """An etcd cluster as arbiter. `insecure` allows http endpoints, on which anybody may read the password."""

    kind: Literal["etcd"]
    endpoints: Annotated[tuple[Endpoint, ...], Field(strict=False, min_length=1, max_length=9)]
    prefix: EtcdPrefix = "/pycolo"
    insecure: bool = False
    ca: FilePath | None = None
    cert: FilePath | None = None
    key: FilePath | None = None
    user: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    password_file: FilePath | None = None

    @model_validator(mode="after")
    def _fits(self) -> EtcdArbiterConfig:
        for one in self.endpoints:
            if one.startswith("http://") and not self.insecure:
                raise ValueError(f"the endpoint {one} is not encrypted: use https, or set insecure = true")
            if self.endpoints.count(one) > 1:
                raise ValueError(f"the endpoint {one} stands there twice: name each member once")
        for one_key, other_key in (("cert", "key"), ("user", "password_file")):
            if (getattr(self, one_key) is None) != (getattr(self, other_key) is None):
                raise ValueError(f"{one_key} and {other_key} belong together: give both or none")
        return self


ArbiterConfig = FileArbiterConfig | EtcdArbiterConfig


class TlsConfig(_Model):
    """PEM files by which hosts know each other: the CA's certificate, this host's certificate, and its key."""

    ca: FilePath
    cert: FilePath
    key: FilePath


class PeerConfig(_Model):
    """Another host, and where its daemon listens."""

    name: Name
    address: HostPort


class _HostShared(_Model):
    """What the daemon of a host and each of its VM copies have to know alike."""

    name: Name
    state_dir: FilePath
    arbiter: Annotated[ArbiterConfig, Field(discriminator="kind")]
    bridge: Device
    networks: Annotated[dict[Name, Device], Field(max_length=64)] = {}
    disk_dir: FilePath | None = None
    log: Literal["json", "console"] = "json"
    tls: TlsConfig | None = None
    insecure: bool = False  # without TLS: whoever reaches the ports can be the peer

    @model_validator(mode="after")
    def _known(self) -> Self:
        if (self.tls is not None) == self.insecure:
            if self.insecure:
                raise ValueError("it has a table [tls] and `insecure = true`: remove one of them")
            raise ValueError(
                "it has neither a table [tls] nor `insecure = true`: make certificates with `colo pki init` and "
                "`colo pki issue`, and name them in [tls] as ca, cert and key"
            )
        return self

    def bridge_of(self, network: str) -> str:
        """The bridge here that is that network; `bridge` itself without a name. Raises EnvironmentFault."""
        if not network:
            return self.bridge
        if network not in self.networks:
            raise EnvironmentFault(
                f"the network {network} of vm.toml is not in [networks] of host.toml on {self.name}: add it there"
            )
        return self.networks[network]

    @property
    def tls_files(self) -> TlsFiles | None:
        """Where this host's certificates are; None when it runs without."""
        if self.tls is None:
            return None
        return TlsFiles(str(self.tls.ca), str(self.tls.cert), str(self.tls.key))


class HostConfig(_HostShared):
    """One host, as host.toml describes it; `disk_dir` is where relative paths of disks lie.

    `cpus` and `memory_mib` are what VMs may have here; None: all that the machine has. `networks` are further bridges,
    by the names that vm.toml knows.
    """

    name: Name
    state_dir: WholePath
    arbiter: Annotated[ArbiterConfig, Field(discriminator="kind")]
    bridge: Device
    listen: OwnAddress
    cpus: Annotated[int, Field(ge=1, le=4096)] | None = None
    memory_mib: Annotated[int, Field(ge=32, le=1 << 26)] | None = None
    peers: Annotated[tuple[PeerConfig, ...], Field(strict=False, max_length=64)] = ()
    token_file: FilePath | None = None

    @model_validator(mode="after")
    def _peers_are_others(self) -> HostConfig:
        names = [peer.name for peer in self.peers]
        for name in names:
            if name == self.name:
                raise ValueError(f"the host {name} is named as its own peer: list the other hosts only")
            if names.count(name) > 1:
                raise ValueError(f"two peers are named {name}: give each host its own name")
        return self

    @model_validator(mode="after")
    def _peers_are_elsewhere(self) -> HostConfig:
        known = {same_address(self.listen): f"`listen` of this host, {self.name}"}
        for peer in self.peers:
            other = known.setdefault(same_address(peer.address), f"the address of the peer {peer.name}")
            if other != f"the address of the peer {peer.name}":
                raise ValueError(
                    f"the address {peer.address} of the peer {peer.name} is {other}, too: correct one of them"
                )
        return self

    @property
    def socket(self) -> Path:
        """Where the daemon serves its API to its owner."""
        return self.state_dir / "api.sock"

    def for_copy(self, state_dir: Path, taps: Sequence[str], primary: str = "") -> CopyConfig:
        """What one VM copy on this host gets, with a tap for each network card.

        A secondary listens on a port that the kernel chooses.
        """
        shared = {key: getattr(self, key) for key in _HostShared.model_fields} | {"state_dir": state_dir}
        host, _ = address(self.listen)
        listen = f"[{host}]:0" if ":" in host else f"{host}:0"
        return CopyConfig(**shared, listen=listen, taps=tuple(taps), primary=primary)


class CopyConfig(_HostShared):
    """One VM copy's view of its host: `state_dir` is its own folder, `taps` are its uplinks.

    `peer` is whom a primary calls first ("": nobody), `primary` the host that a secondary is for ("": any that fits).
    """

    listen: BindAddress
    taps: Annotated[tuple[Device, ...], Field(strict=False, min_length=1, max_length=NICS_MAX)]
    peer: HostPort | Literal[""] = ""
    primary: Name | Literal[""] = ""


class ProtectionConfig(_Model):
    """How one VM is protected; defaults as in the design.

    `secondaries`: hosts that may hold the second copy, the best first; none named: any peer.
    `external_heartbeat_ms_max` counts only once somebody has sent an external heartbeat.
    """

    heartbeat_ms: Annotated[int, Field(ge=10, le=10_000)] = 100
    heartbeat_lost_max: Annotated[int, Field(ge=2, le=100)] = 3
    hold_ms_min: Annotated[int, Field(ge=1, le=10_000)] = 50
    hold_ms_max: Annotated[int, Field(ge=1, le=60_000)] = 1000
    epoch_ms_max: Annotated[int, Field(ge=50, le=3_600_000)] = 10_000
    qmp_deadline_ms: Annotated[int, Field(ge=100, le=60_000)] = 2000
    self_check: bool = False
    dirty_pages: Literal["auto", "compare"] = "auto"
    sent_pages_mib_max: Annotated[int, Field(ge=0, le=1 << 20)] = 64
    disk_buffer_mib_max: Annotated[int, Field(ge=16, le=1 << 20)] = 256
    disk_spill_mib_max: Annotated[int, Field(ge=0, le=1 << 20)] = 1024
    disk_queue_mib_max: Annotated[int, Field(ge=1, le=1 << 14)] = 16
    disk_stall_ms_max: Annotated[int, Field(ge=100, le=3000)] = 2000
    disk_copy_mib_per_s_max: Annotated[int, Field(ge=0, le=1 << 20)] = 0
    protect: bool = True
    secondaries: Annotated[tuple[Name, ...], Field(strict=False, max_length=64)] = ()
    external_heartbeat_ms_max: Annotated[int, Field(ge=100, le=600_000)] = 1000

    @model_validator(mode="after")
    def _ordered(self) -> ProtectionConfig:
        if self.hold_ms_min > self.hold_ms_max:
            raise ValueError(f"hold_ms_min ({self.hold_ms_min}) must not exceed hold_ms_max ({self.hold_ms_max})")
        if (silence_ms := self.heartbeat_ms * self.heartbeat_lost_max) < SILENCE_MS_MIN:
            raise ValueError(
                f"heartbeat_ms x heartbeat_lost_max is {silence_ms} ms, in which a busy host may well be silent: "
                f"make it {SILENCE_MS_MIN} ms at least"
            )
        if len(set(self.secondaries)) < len(self.secondaries):
            raise ValueError("a host stands twice in `secondaries`: name each once")
        return self


class DiskConfig(_Model):
    """One disk; a missing image is made when `size_mib` says how large."""

    name: DiskName
    path: FilePath
    size_mib: Annotated[int, Field(ge=0, le=1 << 26)] = 0
    format: Literal["auto", "raw"] = "auto"
    werror: Literal["stop", "enospc", "report"] = "stop"


class NicConfig(_Model):
    """One network card on a network that host.toml maps to a bridge; without one, on the host's `bridge`."""

    mac: Mac | None = None
    network: Name | None = None


class NetworkCard(NamedTuple):
    """A network card of a VM, as all its hosts know it; without a `network` it is on each host's `bridge`."""

    mac: str
    network: str = ""


class VmConfig(_Model):
    """One VM, the same on both hosts; without a `kernel` it boots from its first disk.

    `mac` is the short form of one network card.
    """

    name: Name
    cpus: Annotated[int, Field(ge=1, le=64)] = 1
    memory_mib: Annotated[int, Field(ge=32, le=1 << 20)] = 256
    mac: Mac | None = None
    nics: Annotated[tuple[NicConfig, ...], Field(strict=False, max_length=NICS_MAX)] = ()
    kernel: FilePath | None = None
    initrd: FilePath | None = None
    append: str = ""
    accel: Literal["tcg", "kvm"]
    qemu: str = "qemu-system-x86_64"
    disks: Annotated[tuple[DiskConfig, ...], Field(strict=False, max_length=16)] = ()
    protection: ProtectionConfig = ProtectionConfig()
    compare: CompareConfig = CompareConfig()

    @model_validator(mode="after")
    def _named(self) -> VmConfig:
        names = [disk.name for disk in self.disks]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two disks are named {name}: give each its own name")
        return self

    @model_validator(mode="after")
    def _cards_differ(self) -> VmConfig:
        if self.mac is not None and self.nics:
            raise ValueError("it has both `mac` and [[nics]]: put the address into the first of [[nics]]")
        macs = [card.mac for card in self.cards]
        for mac in macs:
            if macs.count(mac) > 1:
                raise ValueError(f"two network cards have the address {mac}: give each its own `mac`")
        return self

    @property
    def cards(self) -> tuple[NetworkCard, ...]:
        """The network cards in the guest's order, each with its address."""
        if not self.nics:
            return (NetworkCard(self.mac or MAC_OF_ONE_CARD),)
        return tuple(
            NetworkCard(nic.mac or derived_mac(self.name, number), nic.network or "")
            for number, nic in enumerate(self.nics)
        )

    @model_validator(mode="after")
    def _boots(self) -> VmConfig:
        if self.kernel is None and (self.initrd is not None or self.append):
            raise ValueError("`initrd` and `append` belong to a `kernel`: name it, or leave them out to boot the disk")
        if self.kernel is None and not self.disks:
            raise ValueError("there is nothing to boot: name a `kernel`, or a disk that has a boot loader")
        return self


class CopyDocument(_Model):
    """All that the process of one VM copy has to be told: one JSON document."""

    host: CopyConfig
    vm: VmConfig
    role: Literal["primary", "secondary"]
    no_copy_lives: bool = False
    older_disk: bool = False

    @model_validator(mode="after")
    def _an_uplink_for_each_card(self) -> CopyDocument:
        if len(self.host.taps) != len(self.vm.cards):
            raise ValueError(
                f"host.taps has {len(self.host.taps)} entries for {len(self.vm.cards)} network cards: name one for each"
            )
        return self


def disk_path(host: HostConfig | CopyConfig, disk: DiskConfig) -> Path:
    """Where the image of a disk lies on a host. Raises EnvironmentFault."""
    if disk.path.is_absolute():
        return disk.path
    if host.disk_dir is None:
        raise EnvironmentFault(
            f"the disk {disk.name} of vm.toml has the relative path {disk.path}: set `disk_dir` in host.toml"
        )
    return host.disk_dir / disk.path


_Config = TypeVar("_Config", bound=BaseModel)


def load_config(path: Path, model: type[_Config]) -> _Config:
    """Read one TOML file. Raises EnvironmentFault with one sentence for the first thing that is wrong with it."""
    values = read_toml(path)
    if (mistaken := mistaken_for(values, model)) is not None:
        raise EnvironmentFault(f"{path} {mistaken}")
    try:
        return model.model_validate(values)
    except ValidationError as problem:
        raise EnvironmentFault(f"{path}: {sentences(problem, model)[0]}") from None


def mistaken_for(values: dict[str, Any], model: type[BaseModel]) -> str | None:
    """What to do with the file when it is a host.toml and should be a vm.toml, or the other way round."""
    other = HostConfig if model is VmConfig else VmConfig
    own, others = model.model_fields.keys(), other.model_fields.keys()
    signs = [key for key in values if key in others - own]
    if len(signs) <= len(values.keys() & (own - others)):
        return None
    if other is HostConfig:
        return f"is a host.toml (it has `{signs[0]}`): give a vm.toml here, and this one to `colo daemon` or --config"
    return f"is a vm.toml (it has `{signs[0]}`): give the host.toml here, and this one to `colo protect`"


def load_document(path: Path) -> CopyDocument:
    """Read the JSON document of a VM copy. Raises EnvironmentFault."""
    try:
        return CopyDocument.model_validate_json(path.read_bytes())
    except OSError as problem:
        raise EnvironmentFault(f"{path} can't be read ({problem.strerror}): name one that can be read") from None
    except ValidationError as problem:
        raise EnvironmentFault(f"{path}: {sentences(problem, CopyDocument)[0]}") from None
