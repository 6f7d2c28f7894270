"""The commands that ask the daemon: click's runner in one thread, a real daemon on a real socket in another."""

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from click.testing import CliRunner, Result
from host_parts import ScriptedCopy, host_config, running, scripted, vm_config

from pycolo.agent import protocol
from pycolo.cli import cli
from pycolo.errors import EnvironmentFault, PycoloError, UnknownVm, VmLost, WrongState
from pycolo.host import procedures
from pycolo.host.capturing import Capturing
from pycolo.host.cli import COMMANDS
from pycolo.host.client import DaemonClient
from pycolo.host.daemon import HostDaemon
from pycolo.host.follow import phase, reached, step_text
from pycolo.host.models import ProtectRequest, VmStatus

for one in COMMANDS:
    cli.add_command(one)


class Served:
    """A daemon in a thread of its own; `do` runs a coroutine there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = host_config(folder)
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run)
        self.daemon: HostDaemon

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        async with running(self.config) as self.daemon:
            self._started.set()
            await self._stop.wait()

    def __enter__(self) -> "Served":
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)

    def do(self, what: Callable[[HostDaemon], Coroutine[Any, Any, Any] | Any]) -> Any:
        async def carry_out() -> Any:
            found = what(self.daemon)
            return await found if asyncio.iscoroutine(found) else found

        return asyncio.run_coroutine_threadsafe(carry_out(), self._loop).result(10)

    def colo(self, *arguments: str | Path) -> Result:
        return CliRunner().invoke(cli, [*map(str, arguments), "--host-socket", str(self.config.socket)])

    def good(self, *arguments: str | Path) -> str:
        result = self.colo(*arguments)
        assert result.exit_code == 0, (result.output, result.exception)
        return result.output

    def refused(self, kind: type[PycoloError], *arguments: str | Path) -> str:
        result = self.colo(*arguments)
        assert type(result.exception) is kind, (result.output, result.exception)
        return str(result.exception)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr("pycolo.host.daemon.Copy", ScriptedCopy)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())  # the daemon's log is not the command's output
    with Served(tmp_path) as one:
        yield one
    structlog.reset_defaults()


@pytest.fixture
def web(served: Served) -> Served:
    """The VM web runs alone."""
    served.do(lambda daemon: procedures.protect(daemon, ProtectRequest(vm=vm_config(protect=False))))
    return served


def test_an_empty_host(served: Served) -> None:
    assert served.good("status") == "no VM has a copy here\n"
    assert json.loads(served.good("status", "--json")) == []
    assert served.refused(UnknownVm, "status", "web").startswith("h1 knows no VM web")


def test_the_status_as_a_table_and_as_json(web: Served) -> None:
    table = web.good("status")
    for word in ("VM", "role", "partner", "web", "primary", "solo"):
        assert word in table
    (vm,) = json.loads(web.good("status", "web", "--json"))
    assert (vm["name"], vm["state"], vm["manager"]["reason"]) == ("web", "solo", "it is solo")


def test_the_hosts(web: Served) -> None:
    table = web.good("host", "list")
    assert "h1 (this)" in table
    assert "silent" in table
    entries = json.loads(web.good("host", "list", "--json"))["hosts"]
    assert [(entry["name"], entry["this"], entry["report"] is None) for entry in entries] == [
        ("h1", True, False),
        ("h2", False, True),
    ]


def test_drain_and_undo(web: Served) -> None:
    assert "this is the daemon of h1" in web.refused(WrongState, "host", "drain", "h2")
    said = web.good("host", "drain", "h1")
    assert said.startswith("h1 takes no new copies\n  web: it stays here: web is solo, not protected")
    assert web.do(lambda daemon: daemon.draining)
    assert web.good("host", "drain", "h1", "--undo") == "h1 takes copies again\n"


def test_simple_commands_and_how_they_are_refused(web: Served) -> None:
    assert "not the primary of a protected VM" in web.refused(WrongState, "checkpoint", "web")
    assert "web is solo, not protected" in web.refused(WrongState, "test-failover", "web")
    web.do(lambda daemon: scripted(daemon).becomes("protected"))
    assert web.good("checkpoint", "web") == "a checkpoint of web is taken\n"
    assert web.good("unprotect", "web") == "web runs alone\n"
    assert web.good("stop", "web") == "web is stopped\n"
    assert "no copy of web runs on this host: the operator stops" in web.refused(WrongState, "checkpoint", "web")


def ends(daemon: HostDaemon, **figures: Any) -> None:
    """The capture, which is begun in a moment, ends at once."""
    manager = scripted(daemon).scripted
    start = manager.start_capture

    async def begin(mib: int, seconds: int) -> protocol.Capture:
        begun = await start(mib, seconds)
        manager.captured = msgspec.structs.replace(begun, running=False, **figures)
        return begun

    manager.start_capture = begin  # type: ignore[method-assign]


def test_a_capture_says_what_it_came_to(web: Served) -> None:
    frames = {"clients": 5, "equal": 3, "checkpoint": 1, "secondary": 3}
    web.do(lambda daemon: ends(daemon, ended="its time is over", frames=frames, divergences=1, held=2))
    said = web.good("capture", "web", "--seconds", "7")
    file = web.do(lambda daemon: scripted(daemon).folder) / "1.pcapng"
    assert f"capturing web into {file} for up to 7 s; Ctrl-C ends it\n" in said
    assert (
        f"{file}\nthe capture has ended: its time is over\n5 frames of clients, 4 of the primary (3 equal, "
        "1 by checkpoints), 3 of the secondary; divergences: 1\n"
        "not in it: 2 frames that have not left yet, 0 without room\n"
    ) in said
    assert web.do(lambda daemon: scripted(daemon).scripted.asked) == [("capture", "64 MiB, 7 s")]


def test_a_capture_goes_where_it_is_wanted_and_overwrites_nothing(web: Served, tmp_path: Path) -> None:
    web.do(lambda daemon: ends(daemon, ended="its time is over"))
    out = tmp_path / "out.pcapng"
    assert f"\n{out}\n" in web.good("capture", "web", "--out", out)
    assert out.read_bytes() == b"captured"
    assert out.stat().st_mode & 0o777 == 0o600
    assert not (web.do(lambda daemon: scripted(daemon).folder) / "1.pcapng").exists()
    assert "is there already: name a new file" in web.refused(EnvironmentFault, "capture", "web", "--out", out)
    assert len(web.do(lambda daemon: scripted(daemon).scripted.asked)) == 1
    nowhere = tmp_path / "none" / "out.pcapng"
    assert "it is left there" in web.refused(EnvironmentFault, "capture", "web", "--out", nowhere)
    assert (web.do(lambda daemon: scripted(daemon).folder) / "2.pcapng").exists()


def test_ctrl_c_ends_a_capture(web: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Capturing, "wait_for_end", interrupted)
    assert "the capture has ended: it was stopped\n" in web.good("capture", "web")


def test_a_capture_whose_vm_ends_names_its_file(web: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async def wait(self: Capturing, client: DaemonClient) -> None:
        await asyncio.to_thread(web.do, lambda daemon: scripted(daemon).ends("QEMU has ended"))
        await waits(self, client)

    waits = Capturing.wait_for_end
    monkeypatch.setattr(Capturing, "wait_for_end", wait)
    said = web.good("capture", "web")
    assert "1.pcapng\nthe capture has ended: no copy of web runs on this host: QEMU has ended\n" in said


def test_events_and_logs(web: Served) -> None:
    web.do(lambda daemon: scripted(daemon).note("counted", number=5))
    events = [json.loads(line) for line in web.good("events", "web").splitlines()]
    assert (events[0]["kind"], events[-1]["kind"], events[-1]["number"]) == ("running", "counted", 5)
    log = web.do(lambda daemon: scripted(daemon).folder) / "manager.log"
    log.write_text("line\n" * 20_000)
    assert web.good("logs", "web") == "line\n" * 20_000


def vm_toml(folder: Path, more: str = "") -> Path:
    path = folder / "vm.toml"
    path.write_text('name = "web"\nkernel = "k"\ninitrd = "/i"\naccel = "tcg"\n' + more)
    return path


def test_protect_starts_the_vm_and_follows_it(served: Served, tmp_path: Path) -> None:
    def later(daemon: HostDaemon) -> None:
        async def act() -> None:
            async with asyncio.timeout(10):
                while "web" not in daemon.copies:  # noqa: ASYNC110 - the command comes from another thread
                    await asyncio.sleep(0.02)
            await asyncio.sleep(0.5)
            scripted(daemon).becomes("protected")

        daemon.test_task = asyncio.get_running_loop().create_task(act())  # type: ignore[attr-defined]

    served.do(later)
    said = served.good("protect", vm_toml(tmp_path))
    assert "web: booted" in said
    assert "web: protected, its second copy is on" in said
    assert served.do(lambda daemon: daemon.copy("web").record.vm.kernel) == tmp_path / "k"


def test_protect_says_when_the_policy_wants_no_second_copy(served: Served, tmp_path: Path) -> None:
    said = served.good("protect", vm_toml(tmp_path, "[protection]\nprotect = false\n"))
    assert "web: running alone, as its protection policy says" in said


def test_protect_fails_as_the_copy_did(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def dies(self: ScriptedCopy, *_: Any, **__: Any) -> None:
        self.ends("QEMU has ended: see qemu.log", VmLost.exit_status)

    monkeypatch.setattr(ScriptedCopy, "start", dies)
    assert served.refused(VmLost, "protect", vm_toml(tmp_path)) == "QEMU has ended: see qemu.log"


# ---------------------------------------------------------------- what is shown


def status(state: str, running: bool = True, protect: bool = True, **manager: Any) -> VmStatus:
    return VmStatus(
        name="web",
        host="h1",
        role="primary",
        state=state,
        partner="",
        epoch=0,
        since="",
        reason="why",
        protect=protect,
        running=running,
        manager=manager,
    )


@pytest.mark.parametrize(
    ("vm", "says"),
    [
        (status("starting"), "starting"),
        (status("solo"), "running, looking for a host for the second copy"),
        (status("syncing"), "copying memory, 0 %"),
        (status("syncing", pages=200, pages_sent=50), "copying memory, 25 %"),
        (status("syncing", pages=200, pages_sent=250), "copying memory, 100 %"),
        (status("syncing", disks={"copied_bytes": 1 << 20, "copy_bytes": 4 << 20}), "copying disks, 25 % of 4 MiB"),
        (status("taking-over"), "taking-over"),
    ],
)
def test_each_phase_has_its_words(vm: VmStatus, says: str) -> None:
    assert phase(vm) == says


def test_when_it_is_reached() -> None:
    assert reached(status("protected"))
    assert not reached(status("solo"))
    assert reached(status("solo", protect=False))
    with pytest.raises(PycoloError, match="why"):
        reached(status("stopped", running=False))


def test_an_event_that_is_no_step_is_not_told() -> None:
    assert step_text({"kind": "checkpoint", "reason": "epoch"}) == ""
    assert step_text({"kind": "decision"}) == ""
    assert step_text({"kind": "offer-failed", "host": "h2", "reason": "it hung"}) == "h2 did not work out: it hung"
