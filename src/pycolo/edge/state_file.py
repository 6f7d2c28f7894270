"""The arbiter for hosts that share one machine: a folder with a file for each VM, changed under a lock and replaced."""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from pycolo.core.arbitration import ClaimAnswer, ClaimRecord, checked_vm_name, decide_claim, decide_end
from pycolo.edge.replace_file import replace_file
from pycolo.errors import ArbiterUnanswered
from pycolo.quoting import quoted

RECORD_BYTES_MAX = 4096
LOCK_S_MAX = 0.5
LOCK_RETRY_S = 0.005


class FileArbiter:
    """An `edge.arbiter.Arbiter` in a folder. The folder is never made here: an empty one would have forgotten all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def claim(self, vm: str, term: int, host: str, claim_id: str = "") -> ClaimAnswer:
        """Compare-and-set.

        Raises ArbiterUnanswered when the file can't be read, locked or written, or when what stands in it can decide
        nothing. Once the caller has given up waiting, nothing new is granted.
        """
        given_up = threading.Event()
        try:
            return await asyncio.to_thread(self._claim, vm, term, host, claim_id, given_up)
        finally:
            given_up.set()  # the thread may live on, but grants nothing to a side that has gone on

    async def end(self, vm: str, term: int, host: str) -> bool:
        """Note the VM's end in good order; whether the term was the host's. Raises ArbiterUnanswered."""
        return await asyncio.to_thread(self._end, vm, term, host)

    async def record(self, vm: str) -> ClaimRecord | None:
        """What is stored now. Raises ArbiterUnanswered."""
        return await asyncio.to_thread(self._record, vm)

    def _claim(self, vm: str, term: int, host: str, claim_id: str, given_up: threading.Event) -> ClaimAnswer:
        with self._locked(vm) as path:
            answer = decide_claim(_read(path), vm, term, host, claim_id)
            if not answer.usable:
                raise ArbiterUnanswered(f"the arbiter's file {path} decides nothing: {answer.reason}")
            if given_up.is_set():
                raise ArbiterUnanswered(f"the claim of term {term} came too late")
            if answer.granted and answer.record is not None:
                self._store(path, answer.record)
            return answer

    def _end(self, vm: str, term: int, host: str) -> bool:
        with self._locked(vm) as path:
            ended = decide_end(_read(path), vm, term, host)
            if ended is not None:
                self._store(path, ended)
            return ended is not None

    def _store(self, path: Path, record: ClaimRecord) -> None:
        replace_file(path, msgspec.json.encode(record))
        _sync_folder(self._folder)

    def _record(self, vm: str) -> ClaimRecord | None:
        with self._locked(vm) as path:
            return _read(path)

    @contextmanager
    def _locked(self, vm: str) -> Iterator[Path]:
        """The path of the record, which nobody else reads or writes meanwhile."""
        path = self._folder / f"{checked_vm_name(vm)}.json"
        try:
            with _Lock(path.with_name(path.name + ".lock")):
                yield path
        except (OSError, UnicodeDecodeError, msgspec.MsgspecError) as problem:
            raise ArbiterUnanswered(f"the arbiter's file {path} can't be used: {quoted(str(problem))}") from problem


def _read(path: Path) -> ClaimRecord | None:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    if len(content) > RECORD_BYTES_MAX:
        raise msgspec.DecodeError(f"it has {len(content)} bytes, which no claim record has")
    return msgspec.json.decode(content, type=ClaimRecord)


def _sync_folder(folder: Path) -> None:
    """A grant has to outlive a loss of power: a record that falls back to the last term would be granted again."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class _Lock:
    """flock on a file of its own, as the record itself is replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._take()
        except BaseException:
            os.close(self._fd)
            raise

    def _take(self) -> None:
        """Never wait for ever: a claim that is granted when its host has long given up helps nobody."""
        deadline = time.monotonic() + LOCK_S_MAX
        while True:
            try:
                return fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(LOCK_RETRY_S)

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
