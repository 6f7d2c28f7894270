"""The kinds of values in host.toml and vm.toml; nothing is turned into another type, and each refusal is a sentence."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

HOST_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"
DEVICE = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,14}$"
DISK_NAME = r"^[a-z][a-z0-9-]{0,19}$"
MAC = r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}$"
ETCD_PREFIX = r"^(/[A-Za-z0-9_.-]{1,64}){1,8}$"
_LETTERS = "letters, digits, '.', '_' and '-', the first of them a letter or a digit"
IN_WORDS = {
    HOST_NAME: f"a name of up to 63 {_LETTERS}",
    DEVICE: f"a name of up to 15 {_LETTERS}",
    DISK_NAME: "a name of up to 20 small letters, digits and '-', the first of them a letter",
    MAC: "six pairs of hexadecimal digits with colons between them, such as 52:54:00:00:00:02",
    ETCD_PREFIX: "1 to 8 parts such as /pycolo, each of up to 64 letters, digits, '.', '_' and '-', no '/' at its end",
}
"""What each pattern means to a user."""

_ENDPOINT = re.compile(r"https?://(?P<host_port>[^/?#@]+:[0-9]+)", re.ASCII)
_DNS_NAME = re.compile(r"(?=.{1,253}$)[\w-]{1,63}(\.[\w-]{1,63})*\.?", re.ASCII)


def _host_and_maybe_port(text: str) -> str:
    """Raises ValueError unless it is HOST:PORT; port 0 is one that the kernel chooses."""
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()):
        raise ValueError("it should be HOST:PORT, such as 10.0.0.1:7700 or [fd00::1]:7700")
    if len(port) > 5 or int(port) > 65535:
        raise ValueError(f"the port {port:.20} is out of range: it should be from 1 to 65535")
    if not host:
        raise ValueError("there is no host before the port: it should be HOST:PORT, such as 10.0.0.1:7700")
    _check_host(host)
    return text


def _check_host(host: str) -> None:
    if ":" in host:
        if not (host.startswith("[") and host.endswith("]") and _is_address(host[1:-1], ipaddress.IPv6Address)):
            raise ValueError(f"{host:.100} is no IPv6 address in brackets, such as [fd00::1]")
    elif re.fullmatch(r"[0-9.]+", host):
        if not _is_address(host, ipaddress.IPv4Address):
            raise ValueError(f"{host:.100} looks like an IPv4 address but is none: it has four numbers from 0 to 255")
    elif host != "*" and not _DNS_NAME.fullmatch(host):
        raise ValueError(
            f"{host!r:.100} can't be the name of a host: one has letters, digits and '-', with a '.' between its parts"
        )


def _is_address(host: str, kind: type[ipaddress.IPv4Address | ipaddress.IPv6Address]) -> bool:
    try:
        kind(host)
    except ValueError:
        return False
    return True


def _host_port(text: str) -> str:
    _host_and_maybe_port(text)
    if int(text.rpartition(":")[2]) == 0:
        raise ValueError("the port 0 is out of range: it should be from 1 to 65535")
    return text


def _reachable(text: str) -> str:
    if text.rpartition(":")[0] in ("0.0.0.0", "[::]", "*"):  # noqa: S104 - it is refused
        raise ValueError("other hosts are told this address, so it has to be one of this host's own")
    return text


def _endpoint(text: str) -> str:
    match = _ENDPOINT.fullmatch(text)
    if match is None:
        raise ValueError("it is not https://HOST:PORT")
    _host_port(match["host_port"])
    return text


def same_address(text: str) -> str:
    """What two spellings of one HOST:PORT have in common."""
    host, _, port = text.rpartition(":")
    if host.startswith("["):
        host = str(ipaddress.IPv6Address(host[1:-1]))
    return f"{host.lower().rstrip('.')} {int(port)}"


def _small(text: Any) -> Any:
    return text.lower() if isinstance(text, str) else text


def _of_one_card(mac: str) -> str:
    if int(mac[:2], 16) & 1:
        raise ValueError(f"its first byte, {mac[:2]}, is odd, which makes it a multicast address: take an even one")
    if mac == "00:00:00:00:00:00":
        raise ValueError("no network card has this address: take one that begins with 52:54:00")
    return mac


def _path_text(value: Any) -> Any:
    if isinstance(value, str):
        if not value:
            raise ValueError("it is empty: give the path")
        if not value.isprintable():
            raise ValueError("there are control characters in it: correct the path")
    return value


def _whole_path(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError("it depends on where the daemon is started: give the whole path, from / on")
    return path


def derived_mac(vm: str, number: int) -> str:
    """The address of a VM's network card that names none: the same on every host and for ever, of local scope."""
    digest = hashlib.sha256(f"{vm} {number}".encode()).digest()
    return ":".join(["52", "54", *(f"{byte:02x}" for byte in digest[:4])])


# With `strict`, what TOML and JSON have no type for has to be let in one by one.
FilePath = Annotated[Path, Field(strict=False), BeforeValidator(_path_text)]
WholePath = Annotated[FilePath, AfterValidator(_whole_path)]
HostPort = Annotated[str, Field(examples=["10.0.0.1:7700"]), AfterValidator(_host_port)]
Endpoint = Annotated[str, Field(examples=["https://10.0.0.1:2379"]), AfterValidator(_endpoint)]
OwnAddress = Annotated[HostPort, AfterValidator(_reachable)]
BindAddress = Annotated[str, AfterValidator(_host_and_maybe_port)]
Name = Annotated[str, Field(pattern=HOST_NAME, examples=["h1"])]
Device = Annotated[str, Field(pattern=DEVICE)]
DiskName = Annotated[str, Field(pattern=DISK_NAME)]
EtcdPrefix = Annotated[str, Field(pattern=ETCD_PREFIX)]
Mac = Annotated[str, Field(pattern=MAC), BeforeValidator(_small), AfterValidator(_of_one_card)]
