"""`colo protect` as its user sees it: what has been reached, what goes on, and why it takes so long if it does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from pycolo.errors import PycoloError, UnknownVm, failure_of
from pycolo.host.client import DaemonClient
from pycolo.host.models import ProtectRequest, VmStatus

POLL_S = 0.25
TOLD_S_MAX = 2.0


async def follow_until_protected(client: DaemonClient, request: ProtectRequest) -> None:
    """Ask for it and show how it goes. Raises PycoloError when the VM's copy here ends."""
    told = await _newest_event(client, request.vm.name)
    vm = await client.protect(request)
    began_protected = reached(vm)
    console = Console(stderr=True, highlight=False)
    telling = asyncio.create_task(_tell_steps(client, vm.name, told, console))
    try:
        with console.status(f"{vm.name}: starting") as line:
            while not reached(vm):
                line.update(f"{vm.name}: {phase(vm)}")
                await asyncio.sleep(POLL_S)
                vm = await client.vm(vm.name)
        if vm.protect and not began_protected:  # the last step is on its way to us
            await asyncio.wait((telling,), timeout=TOLD_S_MAX)
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)
    if vm.state == "protected":
        console.print(f"{vm.name}: [bold]protected[/bold], its second copy is on {vm.partner}")
    else:
        console.print(f"{vm.name}: running alone, as its protection policy says")


def reached(vm: VmStatus) -> bool:
    """Whether the VM is as it was asked for. Raises PycoloError when its copy here has ended."""
    if not vm.running:
        raise failure_of(vm.exit_status or 0, vm.reason)
    return vm.state == ("protected" if vm.protect else "solo")


def phase(vm: VmStatus) -> str:
    """What goes on just now."""
    if vm.state == "starting":
        return "starting"
    if vm.state == "solo":
        return "running, looking for a host for the second copy"
    if vm.state != "syncing":
        return vm.state
    disks = vm.manager.get("disks", {})
    done, total = disks.get("copied_bytes", 0), disks.get("copy_bytes", 0)
    if done < total:
        return f"copying disks, {100 * done // total} % of {total >> 20} MiB"
    sent, pages = vm.manager.get("pages_sent", 0), vm.manager.get("pages", 0)
    return f"copying memory, {min(100, 100 * sent // pages) if pages else 0} %"


async def _newest_event(client: DaemonClient, vm: str) -> str:
    """The id of the last event of an earlier time; empty when there is none."""
    with contextlib.suppress(UnknownVm):
        ids = [number async for number, _ in client.events(vm, follow=False)]
        return ids[-1] if ids else ""
    return ""


async def _tell_steps(client: DaemonClient, vm: str, told: str, console: Console) -> None:
    """One line for each step after event `told`, up to the last step.

    The stream may end with the daemon, which the status tells better.
    """
    with contextlib.suppress(PycoloError):
        async for _, event in client.events(vm, follow=True, last_id=told):
            step = step_text(event)
            if step:
                console.print(f"{vm}: {step}")
            if event["kind"] == "checkpoint":
                return


def step_text(event: Mapping[str, Any]) -> str:
    """What is said of an event; empty for those that are no step."""
    match event["kind"]:
        case "running":
            return "booted"
        case "offered":
            return f"asked {event['host']} to hold the second copy"
        case "host-refused":
            return str(event["reason"])
        case "offer-failed":
            return f"{event['host']} did not work out: {event['reason']}"
        case "partner-found":
            return f"{event['host']} holds the second copy"
        case "disks-copied":
            return f"disks copied, {event['bytes'] >> 20} MiB"
        case "checkpoint" if event["reason"] == "first-sync":
            return f"memory copied, {event['pages']} pages, paused {event['pause_ms']:.1f} ms"
    return ""
