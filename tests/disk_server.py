"""`colo disk` as a process, and programs of others beside it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

SIZE = (8 << 20) + 777
STOP_S_MAX = 20.0


def run(*command: str | Path, **environment: str) -> str:
    """What a client says on stdout; it must succeed."""
    outcome = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment}
    )
    assert outcome.returncode == 0, f"{command}: {outcome.stdout}{outcome.stderr}"
    return outcome.stdout


def colo(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "pycolo", "disk", *arguments)
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


class Server:
    """`colo disk serve` as a process."""

    def __init__(self, image: Path, *options: str) -> None:
        self.image, self.path = image, image.with_name("nbd.sock")
        self.uri = f"nbd+unix:///?socket={self.path}"
        command = (sys.executable, "-m", "pycolo", "disk", "serve", str(image), "--socket", str(self.path), *options)
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline()
        assert self.said.startswith("serving"), self.said

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(self.path))  # without a time limit it waits for a place in the queue
        client.settimeout(20)
        return client

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        status = self.process.wait(STOP_S_MAX)
        assert self.process.stdout is not None
        self.said += self.process.stdout.read()
        self.process.stdout.close()
        return status
