"""What an operator may want of a VM that takes more than one step; each says in a sentence why it can't be done.

Guarantee: the partner is told first wherever an ending would look like a death to it and make it take over.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

from pycolo.config import DiskConfig, VmConfig, disk_path
from pycolo.errors import PeerLost, PycoloError, WrongState
from pycolo.host.copy import Copy
from pycolo.host.daemon import HostDaemon
from pycolo.host.models import FailoverCost, HostReportBody, ProtectRequest, VmBrief
from pycolo.host.protector import withdraw
from pycolo.host.record import Record

ALONE_S_MAX = 15.0
PARTNER_ENDS_S_MAX = 10.0
TAKEOVER_S_MAX = 30.0
PROTECTED_AGAIN_S_MAX = 300.0
LOOK_AGAIN_S = 0.05
POLICY = ("protect", "secondaries", "external_heartbeat_ms_max")
"""What may change while a VM runs."""


async def protect(host: HostDaemon, request: ProtectRequest) -> Copy:
    """Start the VM here if it does not run, and have it protected. Raises WrongState, EnvironmentFault."""
    vm = _with_sizes(host, _with_choice(host, request))
    async with host.starting:
        copy = host.copies.get(vm.name)
        if copy is not None and copy.running:
            return _protect_running(copy, vm)
        host.forget_reports()
        elsewhere = await host.where_it_runs(vm.name)
        if elsewhere:
            raise WrongState(f"{vm.name} runs on {elsewhere}: ask that host")
        record = Record(vm=vm, role="primary", home=host.config.name, protect=vm.protection.protect)
        if copy is not None:
            record.partner = copy.record.partner
        if host.draining:
            raise WrongState(f"{host.config.name} is being drained: choose another host, or `colo host drain --undo`")
        host.check_room(record)
        return await host.start(record, no_copy_lives=request.no_copy_lives, older_disk=request.older_disk)


def _with_choice(host: HostDaemon, request: ProtectRequest) -> VmConfig:
    """The configuration with the one host that the operator has chosen."""
    peers = host.peers.names
    chosen = (request.secondary,) if request.secondary else request.vm.protection.secondaries
    if chosen and not set(chosen) & set(peers):
        raise WrongState(
            f"none of {', '.join(chosen)} is a peer of {host.config.name} (its peers: {', '.join(peers) or 'none'}): "
            "correct the name, or add the host to `peers` in host.toml"
        )
    protection = request.vm.protection.model_copy(update={"secondaries": tuple(chosen)})
    if request.secondary:
        protection = protection.model_copy(update={"protect": True})
    return request.vm.model_copy(update={"protection": protection})


def _with_sizes(host: HostDaemon, vm: VmConfig) -> VmConfig:
    """Disks whose images are here have their sizes, so that another host can make its own."""
    return vm.model_copy(update={"disks": tuple(_with_size(host, disk) for disk in vm.disks)})


def _with_size(host: HostDaemon, disk: DiskConfig) -> DiskConfig:
    path = disk_path(host.config, disk)
    if disk.size_mib or not path.is_file():
        return disk
    size_mib, rest = divmod(path.stat().st_size, 1 << 20)
    return disk if rest else disk.model_copy(update={"size_mib": size_mib})


def _protect_running(copy: Copy, vm: VmConfig) -> Copy:
    if copy.role != "primary":
        raise WrongState(f"this host has the second copy of {copy.name}: ask {copy.record.partner}")
    running, wanted = copy.record.vm, vm.protection
    policy = {key: getattr(wanted, key) for key in POLICY}
    changed = running.model_copy(update={"protection": running.protection.model_copy(update=policy)})
    if changed != vm:
        raise WrongState(f"{copy.name} runs with another configuration: stop it before you change that")
    copy.record.vm, copy.record.protect = changed, wanted.protect
    copy.save()
    copy.note("protection-wanted", protect=wanted.protect, secondaries=list(wanted.secondaries))
    return copy


async def unprotect(host: HostDaemon, copy: Copy) -> None:
    """The VM goes on alone here. Raises WrongState."""
    _need_primary(host, copy)
    if copy.state != "starting":  # else nobody has been asked yet
        await copy.manager().unprotect()
    copy.record.protect = False
    copy.save()
    copy.note("protection-unwanted")
    host.leave(copy.name)
    copy.unprotected_why = ""
    await _withdraw_unclaimed(host, copy)
    if not await copy.until(lambda: copy.state in ("solo", "starting") or not copy.running, ALONE_S_MAX):
        raise WrongState(f"{copy.name} is still {copy.state} ({copy.reason}): see `colo events {copy.name}`")


async def stop(host: HostDaemon, copy: Copy) -> None:
    """End the VM for good, here and at its partner. Raises WrongState."""
    if not copy.running:
        return
    _need_primary(host, copy)
    wanted, copy.record.protect = copy.record.protect, False
    host.leave(copy.name)
    try:
        if copy.state != "starting":
            await copy.manager().end("the operator stops the VM")
            await copy.until(lambda: not copy.running, ALONE_S_MAX)
        await copy.stop()
        await _withdraw_unclaimed(host, copy)
    finally:
        copy.record.protect = wanted
        copy.save()
    survivor = await _where_it_still_runs(host, copy)
    if survivor:
        raise WrongState(f"{survivor} has taken over {copy.name} and runs it: stop it there")


async def _where_it_still_runs(host: HostDaemon, copy: Copy) -> str:
    """The host that has the VM's primary now; empty when there is none and the secondary has gone, or gets nowhere."""
    deadline_s = time.monotonic() + PARTNER_ENDS_S_MAX
    while time.monotonic() < deadline_s:
        host.forget_reports()
        survivor = await host.where_it_runs(copy.name, "primary")
        if survivor or not await host.where_it_runs(copy.name):
            return survivor
        await asyncio.sleep(LOOK_AGAIN_S)
    return ""


async def _withdraw_unclaimed(host: HostDaemon, copy: Copy) -> None:
    """A second copy that has not been joined ends by itself some day; sooner if its host hears of it."""
    with contextlib.suppress(PycoloError):
        await withdraw(copy, host.peers)
    copy.asked = None


def _need_primary(host: HostDaemon, copy: Copy) -> None:
    if not copy.running:
        raise WrongState(f"no copy of {copy.name} runs on {host.config.name}: {copy.reason}")
    if copy.role != "primary":
        raise WrongState(f"this host has the second copy of {copy.name}: ask {copy.record.partner}")


async def switchover(host: HostDaemon, copy: Copy) -> None:
    """Move the primary role to the partner; returns when it speaks. Raises WrongState, PeerLost."""
    partner, began_s = await _able_partner(host, copy), time.monotonic()
    await copy.manager().switchover()
    copy.note("switchover", to=partner)
    takeover_ms = await _wait_for_takeover(host, copy, partner, began_s)
    copy.note("switched-over", to=partner, total_ms=takeover_ms)


async def _able_partner(host: HostDaemon, copy: Copy) -> str:
    """The partner, if it says itself that it could take over now. Raises WrongState, PeerLost."""
    _need_protected(host, copy)
    partner = copy.record.partner
    report = await host.peers.report(partner)
    brief = next((one for one in report.vms if one.name == copy.name and one.running), None)
    if brief is None or (brief.role, brief.state) != ("secondary", "protected"):
        raise WrongState(f"{partner} could not take {copy.name} over now: see `colo status` there")
    if not brief.may_claim:
        raise WrongState(f"{partner} gets no answer from the arbiter, so it could not take {copy.name} over: mend that")
    _need_protected(host, copy)
    return partner


def _need_protected(host: HostDaemon, copy: Copy) -> None:
    _need_primary(host, copy)
    if copy.state != "protected":
        raise WrongState(f"{copy.name} is {copy.state}, not protected: wait until it is (`colo status --watch`)")


async def test_failover(host: HostDaemon, copy: Copy) -> FailoverCost:
    """Let the primary here die, as for real, and see what that costs. Raises WrongState, PeerLost."""
    survivor = await _able_partner(host, copy)
    copy.note("test-failover", survivor=survivor)
    died_s = time.monotonic()
    await copy.kill()
    takeover_ms = await _wait_for_takeover(host, copy, survivor, died_s)
    copy.note("test-failover-survived", survivor=survivor, takeover_ms=takeover_ms)
    again_ms = await _wait_until_protected(host, copy, survivor, died_s)
    copy.note("test-failover-done", survivor=survivor, takeover_ms=takeover_ms, protected_again_ms=again_ms)
    return FailoverCost(survivor=survivor, takeover_ms=takeover_ms, protected_again_ms=again_ms)


async def _wait_for_takeover(host: HostDaemon, copy: Copy, survivor: str, died_s: float) -> float:
    """How long after `died_s` the survivor spoke, in ms: it says how long ago it spoke alone first."""
    deadline_s = died_s + TAKEOVER_S_MAX
    while time.monotonic() < deadline_s:
        brief = await _look(host, survivor, copy.name)
        if brief is not None and brief.spoke_alone_ms_ago is not None:
            return max(0.0, (time.monotonic() - died_s) * 1000 - brief.spoke_alone_ms_ago)
        await asyncio.sleep(LOOK_AGAIN_S)
    raise PeerLost(f"{survivor} did not take over in {TAKEOVER_S_MAX:.0f} s: see `colo events {copy.name}` there")


async def _wait_until_protected(host: HostDaemon, copy: Copy, survivor: str, died_s: float) -> float:
    deadline_s = died_s + PROTECTED_AGAIN_S_MAX
    while time.monotonic() < deadline_s:
        brief = await _look(host, survivor, copy.name)
        if brief is not None and brief.role == "primary" and brief.state == "protected":
            return (time.monotonic() - died_s) * 1000
        await asyncio.sleep(LOOK_AGAIN_S * 2)
    raise PeerLost(
        f"{copy.name} runs on {survivor} but was not protected again in {PROTECTED_AGAIN_S_MAX:.0f} s: "
        f"see `colo events {copy.name}` there"
    )


async def _look(host: HostDaemon, survivor: str, vm: str) -> VmBrief | None:
    try:
        report: HostReportBody = await host.peers.report(survivor)
    except PycoloError:  # busy with the takeover
        return None
    return next((brief for brief in report.vms if brief.name == vm and brief.running), None)


async def drain(host: HostDaemon) -> dict[str, str]:
    """Take no new copies, and move those that are here; says of each copy what becomes of it."""
    host.draining = True
    return {copy.name: await _move(host, copy) for copy in host.running()}


async def _move(host: HostDaemon, copy: Copy) -> str:
    if copy.role != "primary":
        return f"{copy.record.partner} replaces this copy as soon as another host has room"
    try:
        await switchover(host, copy)
    except PycoloError as problem:
        return f"it stays here: {problem}"
    return f"moved to {copy.record.partner}"
