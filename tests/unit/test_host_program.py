"""`colo daemon` as systemd runs it: it says that it is ready, that it lives, and that it ends; and its unit fits it."""

import asyncio
import configparser
import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest
from host_parts import host_config

from pycolo.host.client import DaemonClient

UNIT = Path(__file__).parents[2] / "packaging" / "systemd" / "pycolo.service"


def host_toml(folder: Path, port: int) -> Path:
    path = folder / "host.toml"
    values = host_config(folder, port=port).model_dump(mode="json", exclude={"peers", "disk_dir", "token_file", "tls"})
    folder_of_claims = values.pop("arbiter")["path"]
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in values.items()]
    path.write_text("".join(lines) + f'arbiter = {{ kind = "file", path = "{folder_of_claims}" }}\n')
    return path


async def told(end: socket.socket, word: bytes) -> None:
    async with asyncio.timeout(15):
        while not (await asyncio.get_running_loop().sock_recv(end, 1000)).startswith(word):
            pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_life_of_a_daemon(tmp_path: Path, unused_tcp_port: int, number: signal.Signals) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "notify"))
        end.setblocking(False)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pycolo", "daemon", str(host_toml(tmp_path, unused_tcp_port))),
            env=os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"},
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            for word in (b"READY=1", b"WATCHDOG=1", b"STATUS=no VM runs here", b"WATCHDOG=1"):
                await told(end, word)
            async with DaemonClient(tmp_path / "h1" / "api.sock") as client:
                assert await client.vms() == []
            process.send_signal(number)
            await told(end, b"STOPPING=1")
            _, err = await asyncio.wait_for(process.communicate(), 15)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert process.returncode == 0
    lines = [json.loads(line) for line in err.decode().splitlines()]
    assert [line["event"] for line in lines] == ["serving", "stopping"]
    assert not (tmp_path / "h1" / "api.sock").exists()


def test_the_unit_runs_what_there_is() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(UNIT.read_text())
    service = unit["Service"]
    assert (service["Type"], service["KillMode"], service["Restart"]) == ("notify", "mixed", "on-failure")
    assert service["ExecStart"].split()[1:] == ["daemon", "/etc/pycolo/host.toml"]
    assert int(service["WatchdogSec"]) > 10
    assert "CAP_NET_ADMIN" in service["CapabilityBoundingSet"]
