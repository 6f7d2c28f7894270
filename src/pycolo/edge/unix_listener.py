"""A listening unix socket that only its owner may use, and that leaves nothing behind.

Guarantees: mode 0600 from the first moment; a socket that nobody serves any more is replaced, one that is served or a
file of another kind is not touched; `close` removes the path unless it has become somebody else's.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path

from pycolo.errors import EnvironmentFault

BACKLOG = 64
PATH_BYTES_MAX = 107  # sun_path, without its final zero


class UnixListener:
    """`accept` never blocks."""

    def __init__(self, path: Path) -> None:
        """Raises EnvironmentFault."""
        if len(os.fsencode(path)) > PATH_BYTES_MAX:
            raise EnvironmentFault(f"the socket path {path} has more than {PATH_BYTES_MAX} bytes: choose a shorter one")
        if not remove_stale(path):
            raise EnvironmentFault(f"another process serves {path}: stop it or choose another path")
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            os.fchmod(self._socket.fileno(), 0o600)  # bind makes the path with the mode that the socket has
            self._socket.bind(os.fspath(path))
            self._socket.listen(BACKLOG)
        except OSError as error:
            self._socket.close()
            raise EnvironmentFault(
                f"can't listen on {path} ({error.strerror}): check that its folder exists and may be written"
            ) from None
        self._socket.setblocking(False)
        self._identity = _identity(path)

    def fileno(self) -> int:
        """For the event loop."""
        return self._socket.fileno()

    def accept(self) -> socket.socket | None:
        """The next client, or None when there is none (any more)."""
        try:
            return self._socket.accept()[0]
        except OSError:
            return None

    def close(self) -> None:
        """Stop listening and remove the path."""
        if self._socket.fileno() < 0:
            return
        if self._identity is not None and _identity(self.path) == self._identity:
            with contextlib.suppress(OSError):
                self.path.unlink()
        self._socket.close()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def remove_stale(path: Path) -> bool:
    """Make way where a server was killed; False where one lives. Raises EnvironmentFault for a file of another kind."""
    try:
        kind = path.lstat().st_mode
    except OSError:
        return True
    if not stat.S_ISSOCK(kind):
        raise EnvironmentFault(f"{path} exists and is not a socket: choose another path")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            with contextlib.suppress(OSError):
                path.unlink()
            return True
        except OSError:  # its queue is full, or it isn't ours to use: somebody is there
            pass
    return False
