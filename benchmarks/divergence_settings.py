"""What `make bench-divergences` compares: loads on guests that differ in one setting.

Guarantee: a guest differs from the product's own only by what its `Setting` says. Its archive is the product's with a
second one behind it, whose files the kernel puts in the place of the first one's.
"""

from __future__ import annotations

import datetime
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

import pycolo.guest
from pycolo.guest.builder import GuestImage
from pycolo.guest.initramfs import Entry, archive, file_entry

GUEST_SOURCES = Path(pycolo.guest.__file__).parent
ODD_SOURCE = Path(__file__).parent / "odd_answers.c"
COMPILE_S_MAX = 120.0

Edit = tuple[str, str, str]
"""A file of the guest's sources, a text in it, and what to write instead; an empty text: at the end."""

ODD_SERVICE: Edit = ("init", "redis-server /etc/redis.conf &", "redis-server /etc/redis.conf &\nodd-answers &")
ODD_IN_ORDER: Edit = ("init", "\nodd-answers &", "\nodd-answers fifo &")
ODD_AWAITED: Edit = ("init", "wait 7 9 80 6379", "wait 7 9 80 81 6379")
TLS_SERVER: Edit = (
    "nginx.conf",
    "listen 80 default_server backlog=511;",
    "listen 80 default_server backlog=511;\n"
    "        listen 443 ssl;\n        ssl_certificate /etc/tls.pem;\n        ssl_certificate_key /etc/tls.pem;",
)
NO_TICKETS: Edit = ("nginx.conf", "listen 443", "ssl_session_tickets off;\n        listen 443")
TWO_CPUS = "cpus = 2\n"
NO_DATE_RULE = "[compare]\nhttp_date = []\n"
CHECKPOINT_81 = '[compare]\nrules = [{ protocol = "tcp", port = 81, verdict = "checkpoint" }]\n'


@dataclass(frozen=True)
class Setting:
    """A load, and in what the guest or vm.toml differs from the product's own."""

    load: str
    edits: tuple[Edit, ...] = ()
    vm_toml: str = ""
    connections: int = 8
    pace_ms: float = 5.0


def _sysctl(name: str, ours: str, other: str) -> Edit:
    return ("sysctl.conf", f"{name} = {ours}", f"{name} = {other}")


LINUX_DEFAULTS = (
    _sysctl("net.ipv4.tcp_slow_start_after_idle", "0", "1"),
    _sysctl("net.ipv4.tcp_no_metrics_save", "1", "0"),
)

SETTINGS = {
    # the rule on dates
    "nginx": Setting("http"),
    "nginx, no Date rule": Setting("http", vm_toml=NO_DATE_RULE),
    # processors, and what clients share
    "nginx, 2 vCPUs": Setting("http", vm_toml=TWO_CPUS),
    "redis": Setting("redis"),
    "redis, 2 vCPUs": Setting("redis", vm_toml=TWO_CPUS),
    "redis counter": Setting("counter"),
    "redis counter, 2 vCPUs": Setting("counter", vm_toml=TWO_CPUS),
    "threads, own": Setting("odd:f"),
    "threads, own, 2 vCPUs": Setting("odd:f", vm_toml=TWO_CPUS),
    "threads, counter": Setting("odd:n"),
    "threads, counter, FIFO": Setting("odd:n", (ODD_IN_ORDER,)),
    "threads, counter, 2 vCPUs": Setting("odd:n", vm_toml=TWO_CPUS),
    # random numbers and clocks
    "random, own": Setting("odd:s"),
    "random, kernel": Setting("odd:k"),
    "random, own, 1 client": Setting("odd:s", connections=1),
    "random, kernel, 1 client": Setting("odd:k", connections=1),
    "clock, s": Setting("odd:c"),
    "clock, ns": Setting("odd:m"),
    "clock, ns, checkpoint": Setting("odd:m", vm_toml=CHECKPOINT_81),
    "clock, ns, not adaptive": Setting("odd:m", vm_toml="[compare]\nadaptive = false\n"),
    # TLS
    "tls": Setting("tls", (TLS_SERVER,), pace_ms=20),
    "tls, 1 client": Setting("tls", (TLS_SERVER,), connections=1, pace_ms=20),
    "tls, no tickets": Setting("tls", (TLS_SERVER, NO_TICKETS), pace_ms=20),
    # connections
    "guest calls": Setting("odd:o"),
    "idle": Setting("idle", connections=16),
    "idle, timeout": Setting("idle", (("nginx.conf", "keepalive_timeout 1d", "keepalive_timeout 1s"),), connections=16),
    "downloads": Setting("downloads"),
    "downloads, Linux's defaults": Setting("downloads", LINUX_DEFAULTS),
    "downloads, slow start": Setting("downloads", LINUX_DEFAULTS[:1]),
    "downloads, no timestamps": Setting("downloads", (("sysctl.conf", "", "net.ipv4.tcp_timestamps = 0\n"),)),
    # what runs by itself
    "redis, timers": Setting("redis", (("redis.conf", "hz 1\n", "hz 100\n"), _sysctl("vm.stat_interval", "3600", "1"))),
    "nginx, log": Setting("http", (("nginx.conf", "access_log off", "access_log /tmp/access.log"),)),
}


def altered(image: GuestImage, setting: Setting, folder: Path) -> GuestImage:
    """The guest with that setting, in `folder`."""
    edits: list[Edit] = [*setting.edits]
    files: dict[str, Entry] = {}
    if setting.load.startswith("odd:"):
        edits = [ODD_SERVICE, ODD_AWAITED, *edits]
        files["bin/odd-answers"] = file_entry(
            compiled(ODD_SOURCE, folder / "odd-answers").read_bytes(), executable=True
        )
    if setting.load == "tls":
        files["etc/tls.pem"] = file_entry(certificate())
    files |= edited(edits)
    return extended(image, files, folder) if files else image


def extended(image: GuestImage, files: Mapping[str, Entry], folder: Path) -> GuestImage:
    """The guest with these files, path -> entry, in the place of its own or besides; its archive is in `folder`."""
    initrd = folder / "altered.cpio"
    initrd.write_bytes(image.initrd.read_bytes() + archive(files))
    return replace(image, initrd=initrd)


def edited(edits: Sequence[Edit]) -> dict[str, Entry]:
    """The guest's sources with these changes, as files of its archive."""
    texts: dict[str, str] = {}
    for name, old, new in edits:
        text = texts.get(name) or (GUEST_SOURCES / name).read_text()
        if old not in text:
            raise SystemExit(f"{name} of the guest has no {old!r} any more: correct benchmarks/divergence_settings.py")
        texts[name] = text.replace(old, new, 1) if old else text + new
    return {
        ("init" if name == "init" else f"etc/{name}"): file_entry(text.encode(), executable=name == "init")
        for name, text in texts.items()
    }


def compiled(source: Path, output: Path, **strings: str) -> Path:
    """A static program of one C file, in which these names are strings; returns `output`."""
    named = [f'-D{name}="{value}"' for name, value in strings.items()]
    command = ["gcc", "-static", "-Os", "-s", "-Wall", "-pthread", *named, "-o", str(output), str(source)]
    subprocess.run(command, check=True, timeout=COMPILE_S_MAX)
    return output


def certificate() -> bytes:
    """A certificate that nobody verifies, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "guest")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
    certificate = builder.not_valid_after(now + datetime.timedelta(days=30)).sign(key, SHA256())
    return certificate.public_bytes(Encoding.PEM) + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
