"""What systemd is told, through a real socket; and that nobody is told anything without one."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycolo.edge.sd_notify import Supervisor


@pytest.fixture(params=["path", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    name = f"@pycolo-test-{tmp_path.name}" if request.param == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind("\0" + name[1:] if name.startswith("@") else name)
        end.settimeout(5)
        yield end, name


def test_everything_that_is_told(listener: tuple[socket.socket, str]) -> None:
    end, name = listener
    supervisor = Supervisor({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "20000000"})
    assert supervisor.watchdog_s == 10.0
    supervisor.ready()
    supervisor.alive()
    supervisor.status("two\nlines")
    supervisor.stopping()
    told = [end.recv(1000) for _ in range(4)]
    assert told == [b"READY=1", b"WATCHDOG=1", b"STATUS=two lines", b"STOPPING=1"]


@pytest.mark.parametrize("environment", [{}, {"WATCHDOG_USEC": "5"}, {"NOTIFY_SOCKET": "/none/such"}])
def test_nobody_listens(environment: dict[str, str]) -> None:
    supervisor = Supervisor(environment)
    supervisor.ready()
    supervisor.alive()
    assert supervisor.watchdog_s == 0


@pytest.mark.parametrize("usec", ["", "x", "-5", "²"])
def test_a_watchdog_that_is_no_number_is_none(usec: str) -> None:
    assert Supervisor({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": usec}).watchdog_s == 0


def test_a_full_queue_blocks_nobody(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "notify"))
        supervisor = Supervisor({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        for _ in range(2000):
            supervisor.alive()
