"""The program of one VM copy: what its JSON document says, until it is stopped or has to leave.

The host daemon starts it and reads its last line: one sentence, with the exit status of its kind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from pathlib import Path

from pycolo.api import serving
from pycolo.config import CopyDocument, disk_path, load_document
from pycolo.core.failover import Role
from pycolo.edge.logs import log_to_stderr
from pycolo.edge.preflight import check_host
from pycolo.errors import DiskTrouble, PycoloError
from pycolo.events import EventLog
from pycolo.manager.common import Known
from pycolo.manager.manager import Manager
from pycolo.pki.authority import check_own_certificate

NICE = -10
ROOM_RETRY_S = 2.0
ROOM_RETRY_S_MAX = 60.0
ROOM_BYTES_MIN = 64 << 20


def run_copy(document_path: Path) -> None:
    """Run until the end. Raises PycoloError with the sentence for the user."""
    document = load_document(document_path)
    if document.host.tls_files is not None:
        check_own_certificate(document.host.tls_files, document.host.name)
    check_host()
    log_to_stderr(document.host.log)
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)  # the pause of the PVM ends when this process gets a core
    asyncio.run(_serve(document))


async def _serve(document: CopyDocument) -> None:
    """Run one side to its end; a secondary that had no room for its disks begins again when there is."""
    host, vm, role = document.host, document.vm, Role(document.role)
    known = Known(document.no_copy_lives, document.older_disk)
    stopped, events = asyncio.Event(), EventLog(host.name)
    waits_s = 0.0
    while not stopped.is_set():
        manager = Manager(host, vm, role, known, events)

        def stop(running: Manager = manager) -> None:
            stopped.set()
            running.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop)
        try:
            async with serving(manager, host.state_dir):
                await manager.run()
            stopped.set()
        except DiskTrouble as trouble:
            if role is Role.PRIMARY or not (manager.started or waits_s):
                raise
            waits_s = min(max(waits_s * 2, ROOM_RETRY_S), ROOM_RETRY_S_MAX)
            events.add("waits-for-room", reason=str(trouble))
            await _wait_for_room(document, stopped, waits_s)


async def _wait_for_room(document: CopyDocument, stopped: asyncio.Event, wait_s: float) -> None:
    """At least `wait_s`, and until every disk's file system has ROOM_BYTES_MIN free."""
    images = [disk_path(document.host, disk) for disk in document.vm.disks]
    folders = {image.parent for image in images if not image.is_block_device()} | {document.host.state_dir}
    while not stopped.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopped.wait(), wait_s)
        if all(map(_has_room, folders)):
            return


def _has_room(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free >= ROOM_BYTES_MIN
    except OSError:  # not mounted just now
        return False


def main() -> None:
    """Argument: the path of the copy's document."""
    try:
        run_copy(Path(sys.argv[1]))
    except PycoloError as failure:
        sys.stderr.write(f"colo: {failure}\n")
        sys.exit(failure.exit_status)


if __name__ == "__main__":
    main()
