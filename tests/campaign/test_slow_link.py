"""A slow link in a lab without daemons: late is what goes over it, and nothing when it is gone."""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import Iterator

import pytest

from campaign.slow_link import SlowLink
from pycolo.demo.lab import Lab, build_lab, host_address

NAMES = ("h1", "h2", "h3")


@pytest.fixture
def lab() -> Iterator[Lab]:
    made = build_lab(NAMES)
    yield made
    made.close()


async def round_trip_ms(lab: Lab, name: str, other: int) -> float:
    """The shortest of some."""
    command = [*lab.hosts[name].prefix(), "ping", "-c", "4", "-i", "0.05", "-W", "2", host_address(other)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=20, check=True)
    found = re.search(r"= ([\d.]+)/", done.stdout)
    assert found is not None, done.stdout
    return float(found[1])


async def test_what_goes_over_it_is_late_both_ways_and_nothing_else_is(lab: Lab) -> None:
    assert await round_trip_ms(lab, "h1", 2) < 100
    slow = SlowLink(lab, 1, 100)
    assert await round_trip_ms(lab, "h1", 2) >= 200
    assert await round_trip_ms(lab, "h3", 1) >= 200
    assert await round_trip_ms(lab, "h2", 3) < 100
    await slow.close()
    assert await round_trip_ms(lab, "h1", 2) < 100


async def test_streams_come_whole(lab: Lab) -> None:
    """With segments larger than any frame, as the kernel hands them over."""
    slow = SlowLink(lab, 2, 5)
    receive = "import socket; s = socket.create_server(('', 5000)); print(flush=True); c = s.accept()[0]; n = 0\n"
    receive += "while d := c.recv(1 << 16): n += len(d)\nprint(n)"
    send = "import socket; c = socket.create_connection(('10.78.0.2', 5000)); c.sendall(bytes(8 << 20))"
    listener = await asyncio.create_subprocess_exec(
        *lab.hosts["h2"].prefix(), "python3", "-c", receive, stdout=asyncio.subprocess.PIPE
    )
    assert listener.stdout is not None
    await listener.stdout.readline()
    sender = await asyncio.create_subprocess_exec(*lab.hosts["h1"].prefix(), "python3", "-c", send)
    assert await asyncio.wait_for(sender.wait(), 20) == 0
    assert int(await asyncio.wait_for(listener.stdout.readline(), 20)) == 8 << 20
    assert await listener.wait() == 0
    await slow.close()
