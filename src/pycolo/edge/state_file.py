"""The arbiter for hosts that share one machine: a file, changed under a lock and replaced in one step."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import msgspec

from pycolo.core.arbitration import ClaimAnswer, ClaimRecord, decide_claim
from pycolo.errors import PycoloError

RECORD_BYTES_MAX = 4096
LOCK_S_MAX = 0.5
LOCK_RETRY_S = 0.005


class ArbiterUnanswered(PycoloError):
    """The arbiter gave no answer; that is never a yes."""


class FileArbiter:
    """`claim(vm, term, host)` on a file of one machine. Blocking; call it in a thread with a deadline."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def claim(self, vm: str, term: int, host: str) -> ClaimAnswer:
        """Compare-and-set. Raises ArbiterUnanswered when the file can't be read, locked or written."""
        try:
            with self._locked():
                answer = decide_claim(self._read(), vm, term, host)
                if answer.granted and answer.record is not None:
                    self._write(answer.record)
                return answer
        except (OSError, msgspec.MsgspecError) as problem:
            raise ArbiterUnanswered(f"the arbiter file {self._path} can't be used: {problem}") from problem

    def newest_term(self) -> int:
        """The newest term anybody holds, 0 if none. Raises ArbiterUnanswered."""
        try:
            with self._locked():
                record = self._read()
        except (OSError, msgspec.MsgspecError) as problem:
            raise ArbiterUnanswered(f"the arbiter file {self._path} can't be read: {problem}") from problem
        return record.term if record else 0

    def _locked(self) -> _Lock:
        return _Lock(self._path.with_name(self._path.name + ".lock"))

    def _read(self) -> ClaimRecord | None:
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return None
        if len(content) > RECORD_BYTES_MAX:
            raise msgspec.DecodeError(f"it has {len(content)} bytes, which no claim record has")
        return msgspec.json.decode(content, type=ClaimRecord)

    def _write(self, record: ClaimRecord) -> None:
        scratch = self._path.with_name(self._path.name + ".new")
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(record))
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, self._path)


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
