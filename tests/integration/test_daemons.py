"""Real daemons on two hosts: one command protects a VM, everything shows it, and nothing outlives a daemon."""

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from hosts import Hosts
from pair import failures_in_text, until
from pycolo.demo.lab import GUEST_ADDRESS
from pycolo.demo.processes import LoadProcess
from pycolo.errors import EnvironmentFault, UnknownVm, WrongState
from pycolo.guest.builder import GuestImage
from pycolo.guest.console import console_says
from tested_qemu import CPUS

pytestmark = pytest.mark.asyncio(loop_scope="module")
ENDS_LOOKS_MAX = 100


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hosts(guest_image: GuestImage, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Hosts]:
    """Both daemons run, no VM does."""
    both = Hosts(guest_image, tmp_path_factory.mktemp("d"))
    try:
        await both.start("h1")
        await both.start("h2")
        yield both
    finally:
        await both.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def protected(hosts: Hosts) -> Hosts:
    """The VM web is protected: its primary on h1, its secondary on h2."""
    code, out, err = await hosts.colo("h1", "protect", hosts.vm_toml(), "--secondary", "h2")
    assert (code, out) == (0, ""), err + hosts.log("h1") + hosts.log("h2")
    for step in (
        "booted",
        "asked h2 to hold the second copy",
        "h2 holds",
        "memory copied",
        "protected, its second copy",
    ):
        assert step in err
    return hosts


async def test_what_will_not_do_is_said_and_starts_nothing(hosts: Hosts) -> None:
    has, need = 2 * CPUS, 2 * CPUS + 1
    wrong = (
        (("protect", hosts.vm_toml(), "--secondary", "h9"), WrongState, "none of h9 is a peer of h1 (its peers: h2)"),
        (("protect", hosts.vm_toml(), "--secondary", "h 9"), EnvironmentFault, "no name of a host"),
        (("protect", hosts.vm_toml(cpus=need)), WrongState, f"h1 offers {has} cpus, 0 are taken, and web needs {need}"),
        (("protect", hosts.vm_toml(memory_gib=3)), EnvironmentFault, "the key memory_gib is unknown"),
        (("status", "none"), UnknownVm, "h1 knows no VM none"),
        (("stop", "none"), UnknownVm, "h1 knows no VM none"),
        (("host", "drain", "h2"), WrongState, "this is the daemon of h1"),
    )
    for arguments, kind, says in wrong:
        code, out, err = await hosts.colo("h1", *arguments)
        assert (code, out) == (kind.exit_status, ""), err
        assert says in err
        assert err.count("\n") == 1
    assert hosts.taps() == []


async def test_a_vm_becomes_protected_by_one_command(protected: Hosts) -> None:
    here, there = await protected.status("h1"), await protected.status("h2")
    assert (here["role"], here["state"], here["partner"]) == ("primary", "protected", "h2")
    assert (there["role"], there["state"], there["partner"]) == ("secondary", "protected", "h1")
    _, table, _ = await protected.colo("h1", "status")
    assert "protected" in table
    code, listed, _ = await protected.colo("h1", "host", "list", "--json")
    entries = json.loads(listed)["hosts"]
    assert code == 0
    assert [(entry["name"], entry["report"]["cpus_used"]) for entry in entries] == [("h1", CPUS), ("h2", CPUS)]


async def test_events_logs_and_metrics_tell_it(protected: Hosts) -> None:
    _, lines, _ = await protected.colo("h1", "events", "web")
    kinds = [json.loads(line)["kind"] for line in lines.splitlines()]
    steps = [kind for kind in kinds if kind in ("running", "offered", "paired", "partner-found", "checkpoint")]
    assert steps[:2] == ["running", "offered"]
    assert {"paired", "partner-found", "checkpoint"} <= set(steps)
    code, log, _ = await protected.colo("h2", "logs", "web")
    assert code == 0
    assert '"listening"' in log
    text = await metrics(protected, "h1")
    assert 'pycolo_vm_state{pycolo_vm_state="protected",vm="web"} 1.0' in text
    assert 'pycolo_vm_checkpoints_total{reason="first-sync",vm="web"} 1.0' in text


async def metrics(hosts: Hosts, host: str) -> str:
    connector = aiohttp.UnixConnector(str(hosts.socket(host)))
    async with aiohttp.ClientSession(connector=connector) as session, session.get("http://x/metrics") as answer:
        return await answer.text()


async def test_a_checkpoint_by_hand(protected: Hosts) -> None:
    epoch = (await protected.status("h1"))["epoch"]
    assert (await protected.colo("h1", "checkpoint", "web"))[0] == 0
    await protected.becomes("h1", 20, lambda status: status["epoch"] > epoch)
    code, _, err = await protected.colo("h2", "checkpoint", "web")
    assert (code, "ask the primary" in err) == (WrongState.exit_status, True)


async def test_what_the_second_host_may_not_do(protected: Hosts) -> None:
    for command in ("stop", "unprotect", "test-failover", "switchover"):
        code, _, err = await protected.colo("h2", command, "web")
        assert (code, "this host has the second copy of web: ask h1" in err) == (WrongState.exit_status, True), err
    code, _, err = await protected.colo("h2", "protect", protected.vm_toml())
    assert (code, "ask h1" in err) == (WrongState.exit_status, True), err


async def test_unprotect_and_protect_again(protected: Hosts) -> None:
    code, _, err = await protected.colo("h1", "unprotect", "web")
    assert code == 0, err
    assert (await protected.status("h1"))["state"] == "solo"
    for _ in range(ENDS_LOOKS_MAX):  # the copy there ends in its own time
        if not (await protected.status("h2"))["running"]:
            break
        await asyncio.sleep(0.1)
    assert not (await protected.status("h2"))["running"]
    assert (await protected.status("h2"))["elsewhere"] == "h1"
    assert len(protected.taps()) == 1
    code, _, err = await protected.colo("h1", "protect", protected.vm_toml())
    assert code == 0, err
    assert (await protected.status("h1"))["state"] == "protected"


async def test_ctrl_c_leaves_the_vm_running_and_says_so(hosts: Hosts, protected: Hosts) -> None:
    assert (await protected.colo("h1", "unprotect", "web"))[0] == 0
    await hosts.kill("h2")
    command = await hosts.command("h1", "protect", hosts.vm_toml())
    await asyncio.sleep(3)
    command.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(command.communicate(), 10)
    assert command.returncode == 130
    assert "h2 does not answer" in err.decode()
    assert err.decode().endswith("colo: web goes on, and so does its protection: see `colo status web`\n")
    assert (await hosts.status("h1"))["state"] == "solo"

    await hosts.start("h2")  # and by itself the VM is protected again
    await hosts.becomes("h1", 80, lambda status: status["state"] == "protected")


async def test_stop_ends_both_copies_without_a_takeover(protected: Hosts) -> None:
    code, _, err = await protected.colo("h1", "stop", "web")
    assert code == 0, err
    assert protected.taps() == []
    for host in ("h1", "h2"):
        status = await protected.status(host)
        assert (status["running"], status["state"], status["elsewhere"]) == (False, "stopped", "")
        assert failures_in_text(protected.log(host)) == []
        log = protected.state_dir(host) / "vms" / "web" / "manager.log"
        assert failures_in_text(log.read_text()) == []
    _, lines, _ = await protected.colo("h2", "events", "web")
    assert '"taking-over"' not in lines


async def load_on(hosts: Hosts) -> LoadProcess:
    """Clients of the guest that was started on h1."""
    await hosts.boots("h1")
    load = await LoadProcess.start(hosts.lab.clients, GUEST_ADDRESS, hosts.folder / "load.log")
    await until(lambda: load.latest.get("requests", 0) > 50, 10.0, "the load")
    return load


async def load_off(load: LoadProcess) -> None:
    """No client has noticed anything."""
    result = await load.finish()
    wrong = [result[name] for name in ("failed", "reset", "wrong_bytes", "lost_acknowledged")]
    assert wrong == [0] * 4, result["errors"]
    assert result["connections_kept"]


def no_taps(hosts: Hosts, host: str) -> bool:
    return not hosts.taps(host)


def protected_as(role: str) -> Callable[[dict[str, Any]], bool]:
    return lambda status: (status["role"], status["state"]) == (role, "protected")


async def test_the_role_moves_by_command_and_protection_comes_back(hosts: Hosts) -> None:
    """There, back, and there again by a death that is made on purpose: connections stay, nobody types anything else."""
    code, _, err = await hosts.colo("h1", "protect", hosts.vm_toml())
    assert code == 0, err
    load = await load_on(hosts)
    for here, there in (("h1", "h2"), ("h2", "h1")):
        code, out, err = await hosts.colo(here, "switchover", "web")
        assert code == 0, err
        await hosts.becomes(there, 40, protected_as("primary"))
        await hosts.becomes(here, 10, protected_as("secondary"))
    code, out, err = await hosts.colo("h1", "test-failover", "web")
    assert code == 0, err
    assert out.startswith("h2 took over: nobody spoke for ")
    assert protected_as("primary")(await hosts.status("h2"))
    await load_off(load)
    assert (await hosts.colo("h2", "stop", "web"))[0] == 0


async def test_hosts_die_one_after_the_other_and_the_vm_goes_on(hosts: Hosts) -> None:
    """A daemon's death takes all of its host with it; protection comes back as soon as its daemon does."""
    code, _, err = await hosts.colo("h1", "protect", hosts.vm_toml())
    assert code == 0, err
    load = await load_on(hosts)
    for dies, survives in (("h1", "h2"), ("h2", "h1")):
        await hosts.kill(dies)
        await until(partial(no_taps, hosts, dies), 5.0, "the end of the tap")
        await hosts.becomes(survives, 10, lambda status: status["state"] == "solo")
        await hosts.start(dies)
        await hosts.becomes(survives, 60, protected_as("primary"))
        await hosts.becomes(dies, 10, protected_as("secondary"))
    await load_off(load)
    assert (await hosts.colo("h1", "stop", "web"))[0] == 0


# xor ax,ax; mov ds,ax; mov si,text; 1: lodsb; test al,al; jz 2f; mov dx,0x3f8; out dx,al; jmp 1b; 2: sti; hlt; jmp 2b
BOOT_CODE = bytes.fromhex("31c0 8ed8 be167c ac 84c0 7406 baf803 ee ebf5 fb f4 ebfc")
BOOT_TEXT = "booted from the disk"


async def test_a_vm_boots_from_its_disk(hosts: Hosts) -> None:
    sector = (BOOT_CODE + BOOT_TEXT.encode() + b"\r\n\0").ljust(510, b"\0") + b"\x55\xaa"
    (hosts.disk_dir("h1") / "boot.img").write_bytes(sector.ljust(1 << 20, b"\0"))
    vm = hosts.vm_toml(name="four", kernel=None, initrd=None, append=None, disks=[{"name": "sda", "path": "boot.img"}])
    code, _, err = await hosts.colo("h1", "protect", vm)
    assert code == 0, err
    assert console_says(hosts.state_dir("h1") / "vms" / "four" / "console.log", BOOT_TEXT)
    assert (await hosts.colo("h1", "switchover", "four"))[0] == 0
    await hosts.becomes("h2", 40, protected_as("primary"), "four")
    assert (hosts.disk_dir("h2") / "boot.img").read_bytes()[:512] == sector
    assert (await hosts.colo("h2", "stop", "four"))[0] == 0


async def test_a_vm_that_runs_elsewhere_is_not_started(hosts: Hosts) -> None:
    code, _, err = await hosts.colo("h1", "protect", hosts.vm_toml(name="two", protection={"protect": False}))
    assert code == 0, err
    code, _, err = await hosts.colo("h2", "protect", hosts.vm_toml(name="two"))
    assert (code, "two runs on h1" in err) == (WrongState.exit_status, True), err
    assert (await hosts.colo("h1", "stop", "two"))[0] == 0


async def test_when_both_hosts_are_lost_the_operator_says_that_no_copy_lives(hosts: Hosts) -> None:
    code, _, err = await hosts.colo("h1", "protect", hosts.vm_toml(name="three"))
    assert code == 0, err
    for host in ("h1", "h2"):
        hosts.daemons[host].send_signal(signal.SIGKILL)
    for host in ("h1", "h2"):
        await hosts.kill(host)
        await hosts.start(host)
        status = await hosts.status(host, "three")
        assert (status["running"], status["elsewhere"]) == (False, "")
    await hosts.colo("h1", "protect", hosts.vm_toml(name="three"))
    status = await hosts.status("h1", "three")
    assert not status["running"]
    # One of them may have gone solo before it died as well.
    assert re.match(r"h[12] holds term [12] of VM three, so a copy may live there: ", status["reason"]), status
    code, _, err = await hosts.colo("h1", "protect", hosts.vm_toml(name="three"), "--no-copy-lives")
    assert code == 0, err
    assert (await hosts.colo("h1", "stop", "three"))[0] == 0
