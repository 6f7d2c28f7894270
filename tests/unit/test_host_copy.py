"""A VM copy's process as its daemon sees it: a real child that speaks the manager's API, and every way it can end."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from host_parts import host_config, vm_config

from pycolo.errors import EnvironmentFault, WrongState
from pycolo.host import copy as copy_module
from pycolo.host.copy import Copy
from pycolo.host.daemon import free_taps
from pycolo.host.record import Record, load_record

MANAGER = """
import asyncio, json, os, sys
from aiohttp import web
folder = os.path.dirname(sys.argv[1])
mode = open(folder + "/mode").read()
role = json.load(open(sys.argv[1]))["role"]
events = [{"no": 1, "t_ms": 1.0, "kind": "running"}, {"no": 2, "t_ms": 2.0, "kind": "solo"}]
if mode == "fails":
    sys.exit(print("colo: it can't start: mend it", file=sys.stderr) or 2)
async def status(request):
    return web.json_response({"role": role, "state": "solo", "reason": "the VM runs", "packets": {"diverged": 2}})
async def news(request):
    since = int(request.query["since"])
    if since >= 2:
        await asyncio.sleep(10)
    return web.json_response(events[since:])
app = web.Application()
app.add_routes([web.get("/status", status), web.get("/events", news)])
if mode == "hangs":
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    app.on_startup.append(lambda app: asyncio.sleep(0))
    web.run_app(app, path=folder + "/api.sock", print=None, handle_signals=False)
else:
    web.run_app(app, path=folder + "/api.sock", shutdown_timeout=0.1, print=None)
"""
Start = Callable[[str], Coroutine[Any, Any, Copy]]


@pytest.fixture
async def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    """`start(mode)`: a copy whose process is a script; it is ended with the test."""
    script = tmp_path / "manager.py"
    script.write_text(MANAGER)
    spawn = asyncio.create_subprocess_exec

    async def spawn_script(*command: str, **options: Any) -> asyncio.subprocess.Process:
        assert command[:6] == ("setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "pycolo.manager")
        return await spawn(*command[:4], str(script), *command[6:], **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", spawn_script)
    started: list[Copy] = []

    async def begin(mode: str) -> Copy:
        folder = tmp_path / "vms" / "web"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "mode").write_text(mode)
        copy = Copy(Record(vm=vm_config(), role="primary", home="h1"), folder, "h1")
        started.append(copy)
        await copy.start(host_config(tmp_path).for_copy(folder, ["colo0"]))
        return copy

    yield begin
    for copy in started:
        await copy.close()


async def test_a_copy_tells_what_its_process_says(start: Start) -> None:
    copy = await start("runs")
    assert (copy.state, copy.role, copy.running) == ("starting", "primary", True)
    assert await copy.until(lambda: copy.state == "solo" and "solo" in copy.latest, 10)
    assert (copy.reason, copy.counters.packets["diverged"]) == ("the VM runs", 2)
    assert [event["kind"] for event in copy.events.since(0)] == ["running", "solo"]
    assert (copy.folder / "copy.json").stat().st_mode & 0o777 == 0o600
    await copy.stop()
    assert (copy.state, copy.record.exit_status, copy.status) == ("stopped", 0, {})
    assert load_record(copy.folder).ended == copy.reason == "the VM runs"
    with pytest.raises(WrongState, match="no copy of web runs on this host"):
        copy.manager()
    await copy.stop()


async def test_a_process_that_fails_is_quoted(start: Start) -> None:
    copy = await start("fails")
    assert await copy.until(lambda: not copy.running, 10)
    assert (copy.reason, copy.record.exit_status) == ("it can't start: mend it", 2)
    ended = copy.events.since(0)[-1]
    assert (ended["kind"], ended["exit_status"], ended["reason"]) == ("copy-ended", 2, "it can't start: mend it")


async def test_a_process_that_does_not_stop_is_killed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_module, "STOP_S_MAX", 2.0)
    copy = await start("hangs")
    assert await copy.until(lambda: copy.state == "solo", 10)
    await copy.stop()
    assert (copy.running, copy.record.exit_status) == (False, -signal.SIGKILL)


async def test_a_process_that_stands_still_is_said_to_be_silent(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_module, "SILENT_S_MAX", 0.5)
    copy = await start("runs")
    assert await copy.until(lambda: copy.state == "solo", 10)
    assert copy.process is not None
    copy.process.send_signal(signal.SIGSTOP)
    assert await copy.until(lambda: copy.state == "silent", 10)
    assert copy.reason.startswith("its process does not answer")
    assert (copy.last_state, copy.events.since(0)[-1]["kind"]) == ("solo", "copy-silent")
    copy.process.send_signal(signal.SIGCONT)
    assert await copy.until(lambda: copy.state == "solo", 10)


async def test_a_death_is_told(start: Start) -> None:
    copy = await start("runs")
    assert await copy.until(lambda: copy.state == "solo", 10)
    await copy.kill()
    assert (copy.state, copy.reason) == ("stopped", f"it was killed by signal {signal.SIGKILL}")


async def test_a_copy_can_start_again_and_its_events_go_on(start: Start) -> None:
    copy = await start("runs")
    assert await copy.until(lambda: "solo" in copy.latest and copy.state == "solo", 10)
    await copy.stop()
    last = copy.events.newest_no
    config = host_config(copy.folder.parent.parent).for_copy(copy.folder, ["colo1"])
    await copy.start(config)
    assert await copy.until(lambda: "solo" in copy.latest, 10)
    assert [event["no"] for event in copy.events.since(last)] == [last + 1, last + 2]
    assert await copy.until(lambda: copy.counters.packets["diverged"] == 4, 10)
    assert (copy.folder / "manager.log.1").exists()


async def test_a_folder_that_can_not_be_written(tmp_path: Path) -> None:
    copy = Copy(Record(vm=vm_config(), role="primary", home="h1"), tmp_path / "none", "h1")
    with pytest.raises(EnvironmentFault, match="can't be written"):
        await copy.start(host_config(tmp_path).for_copy(tmp_path / "none", ["colo0"]))
    assert not copy.running


def test_a_tap_has_a_name_that_nobody_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.if_nameindex", lambda: [(1, "lo"), (2, "colo0"), (3, "colo2")])
    assert free_taps(["colo1"], 2) == ["colo3", "colo4"]
    assert free_taps([], 1) == ["colo1"]
