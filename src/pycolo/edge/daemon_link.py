"""A process's end of the socket to the daemon that started it: commands come in, answers and news go out.

Guarantee: a daemon that is gone, however it went, is seen as such and never as a failure of the process.
"""

from __future__ import annotations

import socket

import msgspec

from pycolo.agent.protocol import MESSAGE_BYTES_MAX, encoder


class DaemonLink:
    """`gone` is set once the daemon is, and with it the reason for the process."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self.gone = False

    def fileno(self) -> int:
        """For the event loop."""
        return self._control.fileno()

    def hear(self) -> bytes:
        """The command that has come, not decoded; empty when the daemon is gone."""
        try:
            packet = self._control.recv(MESSAGE_BYTES_MAX)
        except ConnectionResetError:  # the daemon died with something of ours unread
            packet = b""
        self.gone = self.gone or not packet
        return packet

    def say(self, message: msgspec.Struct) -> None:
        """An answer, or news."""
        try:
            self._control.send(encoder.encode(message))
        except OSError:
            self.gone = True
