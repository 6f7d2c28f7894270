"""The guest of `make bench`: the product's own, with TLS on port 443 and the service of worker.c on port 5201."""

from __future__ import annotations

from pathlib import Path

from divergence_settings import TLS_SERVER, Edit, certificate, compiled, edited, extended
from pycolo.guest.builder import GuestImage, build_guest
from pycolo.guest.initramfs import file_entry

WORKER_PORT = 5201
HERE = Path(__file__).parent

_SERVICE: Edit = ("init", "redis-server /etc/redis.conf &", "redis-server /etc/redis.conf &\nbench-worker &")
_AWAITED: Edit = ("init", "wait 7 9 80 6379", f"wait 7 9 80 443 {WORKER_PORT} 6379")


def bench_guest(folder: Path) -> GuestImage:
    """The guest, with its archive in `folder`; the same for all who are measured, key and certificate included."""
    worker = compiled(HERE / "worker.c", folder / "bench-worker")
    files = {
        "bin/bench-worker": file_entry(worker.read_bytes(), executable=True),
        "etc/tls.pem": file_entry(certificate()),
    }
    return extended(build_guest(), files | edited((_SERVICE, _AWAITED, TLS_SERVER)), folder)
