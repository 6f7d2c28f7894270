"""The arbiter for hosts that share one machine: a file, changed under a lock and replaced in one step."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from pycolo.core.arbitration import ClaimAnswer, ClaimRecord, decide_claim
from pycolo.edge.replace_file import replace_file
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

    def claim(self, vm: str, term: int, host: str, given_up: threading.Event | None = None) -> ClaimAnswer:
        """Compare-and-set.

        Raises ArbiterUnanswered when the file can't be read, locked or written, when what stands in it can decide
        nothing, or when the caller has set `given_up`: then nothing is granted any more.
        """
        with self._locked():
            answer = decide_claim(self._read(), vm, term, host)
            if not answer.usable:
                raise ArbiterUnanswered(f"the arbiter file {self._path} decides nothing: {answer.reason}")
            if given_up is not None and given_up.is_set():
                raise ArbiterUnanswered(f"the claim of term {term} came too late")
            if answer.granted and answer.record is not None:
                replace_file(self._path, msgspec.json.encode(answer.record))
            return answer

    def record(self) -> ClaimRecord | None:
        """What is stored now. Raises ArbiterUnanswered."""
        with self._locked():
            return self._read()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            with _Lock(self._path.with_name(self._path.name + ".lock")):
                yield
        except (OSError, ValueError, msgspec.MsgspecError) as problem:  # ValueError: not even text
            raise ArbiterUnanswered(f"the arbiter file {self._path} can't be used: {problem}") from problem

    def _read(self) -> ClaimRecord | None:
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return None
        if len(content) > RECORD_BYTES_MAX:
            raise msgspec.DecodeError(f"it has {len(content)} bytes, which no claim record has")
        return msgspec.json.decode(content, type=ClaimRecord)


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
