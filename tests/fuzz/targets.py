"""The table of targets: a name, the function that takes the bytes, and how many of them are worth trying."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

FRAME_BYTES, BATCH_BYTES, FILE_BYTES = 400, 2400, 4000


@dataclass(frozen=True)
class Target:
    """`module` has a function called `name`; an input has at most `bytes_max`."""

    name: str
    module: str
    bytes_max: int


_TABLE = {
    "frames": {
        **dict.fromkeys(("layers", "segment", "messages", "quotes", "http_dates"), FRAME_BYTES),
        **dict.fromkeys(("pieces", "packed", "protocol_view"), BATCH_BYTES),
    },
    "planes": {
        **dict.fromkeys(("dataplane", "secondary"), FRAME_BYTES),
        **dict.fromkeys(("dataplane_raw", "secondary_raw", "windows", "translation", "descriptors"), BATCH_BYTES),
    },
    "peers": {
        **dict.fromkeys(("control", "pages", "greetings", "welcomes"), FILE_BYTES),
        **dict.fromkeys(("channel", "disk_messages"), FILE_BYTES),
    },
    "disks": dict.fromkeys(("nbd_handshake", "nbd_requests", "nbd_connection", "disk_meta", "journal"), FILE_BYTES),
    "files": {
        **dict.fromkeys(
            ("host_toml", "vm_toml", "documents", "arbiter_file", "device_state", "capture", "comparison"), FILE_BYTES
        ),
        "values": 600,
    },
    "sides": dict.fromkeys(("primary_agent", "secondary_agent", "disk_side", "disk_replica"), BATCH_BYTES),
    "neighbours": dict.fromkeys(("qmp", "qmp_answers", "etcd", "processes", "child"), FILE_BYTES),
    "api": dict.fromkeys(("requests", "copy_requests", "answers"), FILE_BYTES),
}
TARGETS = {
    name: Target(name, f"fuzz.{module}", size) for module, sizes in _TABLE.items() for name, size in sizes.items()
}


def load(target: Target) -> Callable[[bytes], None]:
    """The function that takes an input, and raises for what must not be."""
    one: Callable[[bytes], None] = getattr(import_module(target.module), target.name)
    return one
