"""Where a primary may start a VM at all, and whom it calls."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from pycolo.config import CopyConfig, FileArbiterConfig, VmConfig
from pycolo.core.failover import Role, State
from pycolo.edge.state_file import FileArbiter
from pycolo.errors import EnvironmentFault, VmLost
from pycolo.events import EventLog
from pycolo.manager.common import Known, VmCopy
from pycolo.manager.primary import PrimaryStory, claim_first_term


def copy_of(tmp_path: Path, *, no_copy_lives: bool = False) -> VmCopy:
    host = CopyConfig(
        name="h1",
        listen="127.0.0.1:7700",
        peer="127.0.0.2:7700",
        state_dir=tmp_path,
        arbiter=FileArbiterConfig(kind="file", path=tmp_path),
        bridge="br0",
        insecure=True,
        taps=("colo0",),
    )
    vm = VmConfig(name="vm", kernel=tmp_path, initrd=tmp_path, accel="tcg")
    return VmCopy(host, vm, Role.PRIMARY, Known(no_copy_lives), EventLog("h1"))


async def test_the_first_start_takes_the_first_term(tmp_path: Path) -> None:
    primary = copy_of(tmp_path)
    await claim_first_term(primary)
    assert primary.term == 1


@pytest.mark.parametrize("holder", ["h1", "h2"])
async def test_a_vm_that_may_live_somewhere_is_not_started_again(tmp_path: Path, holder: str) -> None:
    """The old primary comes back after a takeover; its own name is no excuse, as the peer may be about to claim."""
    arbiter = FileArbiter(tmp_path)
    assert (await arbiter.claim("vm", 1, holder)).granted
    with pytest.raises(EnvironmentFault, match=f"{holder} holds term 1 .* start with --no-copy-lives"):
        await claim_first_term(copy_of(tmp_path))
    assert (await arbiter.claim("vm", 1, holder)).granted, "nothing changed"


async def test_a_bug_is_not_hidden_by_a_loss_that_comes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy: Any = copy_of(tmp_path)
    never = asyncio.get_running_loop().create_future()
    copy.qemu, copy.agent, copy.disks = (SimpleNamespace(lost=never), SimpleNamespace(gone=never), MagicMock(gone=()))

    async def lost() -> None:
        raise VmLost("it died")

    async def broken() -> None:
        raise TypeError("a bug")

    monkeypatch.setattr(copy, "_watch_arbiter", broken)
    with pytest.raises(TypeError, match="a bug"):
        await copy._live_or_end(lost)


async def test_a_kernel_that_is_a_folder_is_called_one(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match=f"{tmp_path} of vm.toml is a folder: name a kernel and an initrd"):
        copy_of(tmp_path)._qemu_config()
    copy = copy_of(tmp_path)
    copy.vm = copy.vm.model_copy(update={"kernel": tmp_path / "none"})
    with pytest.raises(EnvironmentFault, match=f"{tmp_path}/none of vm.toml does not exist: name a kernel"):
        copy._qemu_config()


async def test_the_operator_may_know_better(tmp_path: Path) -> None:
    assert (await FileArbiter(tmp_path).claim("vm", 1, "h2")).granted
    primary = copy_of(tmp_path, no_copy_lives=True)
    await claim_first_term(primary)
    assert primary.term == 2


async def test_nobody_is_called_when_the_offer_is_withdrawn_while_the_disks_are_asked(tmp_path: Path) -> None:
    copy: Any = copy_of(tmp_path)
    looks = 0

    async def check_copy() -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            raise VmLost("the test is over")

    async def folding() -> bool:
        story.call_peer("")
        return False

    alone = SimpleNamespace(ended=False, state=State.SOLO)
    parts = {"qemu": MagicMock(), "agent": SimpleNamespace(), "disks": SimpleNamespace(folding=folding)}
    copy = SimpleNamespace(
        host=copy.host, vm=copy.vm, check_copy=check_copy, failover=alone, events=MagicMock(), **parts
    )
    story = PrimaryStory(copy)
    with pytest.raises(VmLost, match="the test is over"):
        await story.live()
