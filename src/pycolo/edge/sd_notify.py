"""What systemd is told of a service of `Type=notify`; without systemd nothing is said to nobody.

Guarantee: never blocks and never fails: a service does not end because its supervisor does not listen.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping


class Supervisor:
    """The socket that NOTIFY_SOCKET names; `watchdog_s` is how often it wants to hear, 0 for never."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        path = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        usec = environment.get("WATCHDOG_USEC", "")
        # Twice within the time that systemd waits, as its manual asks for.
        self.watchdog_s = int(usec) / 2e6 if self._address and usec.isascii() and usec.isdecimal() else 0.0

    def ready(self) -> None:
        """The service does what it is for."""
        self._say("READY=1")

    def stopping(self) -> None:
        """The service begins to end."""
        self._say("STOPPING=1")

    def alive(self) -> None:
        """The service's loop turns."""
        self._say("WATCHDOG=1")

    def status(self, line: str) -> None:
        """One line for `systemctl status`."""
        self._say("STATUS=" + line.replace("\n", " "))

    def _say(self, line: str) -> None:
        if self._address:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
                end.setblocking(False)
                end.sendto(line.encode(), self._address)
