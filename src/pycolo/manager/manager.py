"""One protected VM on one host: its copy, and the stories that it lives, one after the other.

primary:    begin -> find a secondary -> protect -> go on alone -> find a secondary ...
secondary:  join a primary -> follow -> take over -> and from there on a primary like any other
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pycolo.agent import protocol
from pycolo.config import CopyConfig, VmConfig
from pycolo.core.failover import Role, State
from pycolo.errors import WrongState
from pycolo.events import EventLog
from pycolo.manager.common import NOTHING_KNOWN, Known, VmCopy
from pycolo.manager.primary import PrimaryStory
from pycolo.manager.secondary import SecondaryStory


class Manager:
    """Assembles, and passes on what operators ask for."""

    def __init__(
        self,
        host: CopyConfig,
        vm: VmConfig,
        role: Role,
        known: Known = NOTHING_KNOWN,
        events: EventLog | None = None,
    ) -> None:
        """`role`: the one to start with; `events`: the log to go on with, as a daemon has one for all its life."""
        self.events = events or EventLog(host.name)
        self._copy = VmCopy(host, vm, role, known, self.events)
        self._primary: PrimaryStory | None = None

    async def run(self) -> None:
        """Until the operator stops it, the VM copy is lost (VmLost) or the claim is lost (Fenced)."""
        await self._copy.run(self._live)

    async def _live(self) -> None:
        copy = self._copy
        if copy.role is Role.PRIMARY:
            primary = self._primary = copy.story = PrimaryStory(copy)
            await primary.begin()
        else:
            copy.story = SecondaryStory(copy)
            await copy.story.live()
            if copy.failover.ended:
                return
            copy.failover.promote()
            primary = self._primary = copy.story = PrimaryStory(copy, copy.story.last_epoch)
        await primary.live()

    @property
    def role(self) -> Role:
        """The role now."""
        return self._copy.role

    @property
    def started(self) -> bool:
        """Whether there is a copy to ask about."""
        return self._copy.started and hasattr(self._copy, "story")

    def stop(self) -> None:
        """The operator's wish to end this side."""
        self._copy.stop()

    async def switchover(self) -> None:
        """Let the secondary take over in good order; this side ends. Raises WrongState where that can't be."""
        self._protecting()
        await self._need_arbiter()
        self._protecting().hand_over()

    def withdraw(self, term: int) -> None:
        """A primary that holds `term` does not need this copy. Raises WrongState when it may be the VM's only one."""
        copy = self._copy
        state = copy.failover.state
        follows = copy.role is Role.SECONDARY and state in (State.SYNCING, State.PROTECTED)
        superseded = state is State.WAITING_FOR_ARBITER and term > copy.term
        if not (follows or superseded):
            raise WrongState(f"this copy is {copy.role} and {state}: it is needed")
        copy.stop()

    def peer_lost(self, why: str) -> None:
        """Somebody who knows says that the partner is dead. Raises WrongState where there is none."""
        self._copy.peer_lost(why)

    def end_vm(self, why: str) -> None:
        """The operator's wish to end both copies. Raises WrongState on a secondary."""
        self._speaking()
        self._copy.end_vm(why)

    async def unprotect(self) -> None:
        """Send the secondary away and look for no other. Raises WrongState where that can't be."""
        primary = self._speaking()
        await self._need_arbiter()
        primary.unprotect()

    async def status(self) -> dict[str, Any]:
        """Everything an operator asks for, as JSON-able values."""
        return await self._copy.status()

    def want_checkpoint(self, reason: str) -> None:
        """Ask for a checkpoint as soon as possible. Raises WrongState where there can be none."""
        self._protecting().want_checkpoint(reason)

    def call_peer(self, address: str) -> None:
        """Look for a secondary at HOST:PORT from now on; empty: nowhere. Raises WrongState on a secondary."""
        self._speaking().call_peer(address)

    # ---- captures

    async def start_capture(self, mib: int, seconds: int) -> protocol.Capture:
        """Record all frames into a new file of this copy's folder. Raises WrongState, EnvironmentFault."""
        self._speaking()
        copy = self._copy
        begun = await copy.agent.start_capture(_capture_path(copy.host.state_dir), mib << 20, seconds)
        copy.events.add("capture", path=begun.path, mib=mib, seconds=seconds)  # who reads along leaves a trace
        return begun

    async def capture(self) -> protocol.Capture:
        """The capture that runs, or ran last. Raises WrongState when there was none."""
        self._speaking()
        return await self._copy.agent.capture()

    async def stop_capture(self) -> protocol.Capture:
        """End the capture, if it has not ended by itself. Raises WrongState when there was none."""
        self._speaking()
        return await self._copy.agent.stop_capture()

    async def _need_arbiter(self) -> None:
        """Without the claim nobody could go on alone."""
        await self._copy.check_arbiter()
        if self._copy.arbiter_trouble:
            raise WrongState(f"{self._copy.arbiter_trouble}: wait until the arbiter answers, then try again")

    def _protecting(self) -> PrimaryStory:
        if self._primary is None or self._copy.failover.state is not State.PROTECTED:
            raise WrongState("this host is not the primary of a protected VM: ask the primary")
        return self._primary

    def _speaking(self) -> PrimaryStory:
        if self._primary is None:
            raise WrongState("this host is not the primary of the VM: ask the primary")
        return self._primary


def _capture_path(folder: Path) -> Path:
    """A name that sorts by time, in UTC, and that no capture had before."""
    now_ms = time.time_ns() // 1_000_000
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now_ms // 1000))
    return folder / f"capture-{stamp}-{now_ms % 1000:03d}.pcapng"
