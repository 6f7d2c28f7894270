"""Where a primary may start a VM at all."""

from pathlib import Path

import pytest

from pycolo.config import HostConfig, VmConfig
from pycolo.edge.state_file import FileArbiter
from pycolo.errors import EnvironmentFault
from pycolo.manager.common import Known
from pycolo.manager.primary import PrimaryManager


def manager(tmp_path: Path, *, no_copy_lives: bool = False) -> PrimaryManager:
    host = HostConfig(
        name="h1",
        listen="127.0.0.1:7700",
        peer="127.0.0.2:7700",
        state_dir=tmp_path,
        arbiter_file=tmp_path / "arbiter.json",
        bridge="br0",
    )
    vm = VmConfig(name="vm", kernel=tmp_path, initrd=tmp_path, accel="tcg")
    return PrimaryManager(host, vm, Known(no_copy_lives))


async def test_the_first_start_takes_the_first_term(tmp_path: Path) -> None:
    primary = manager(tmp_path)
    await primary._claim_first_term()
    assert primary.term == 1


@pytest.mark.parametrize("holder", ["h1", "h2"])
async def test_a_vm_that_may_live_somewhere_is_not_started_again(tmp_path: Path, holder: str) -> None:
    """The old primary comes back after a takeover; its own name is no excuse, as the peer may be about to claim."""
    arbiter = FileArbiter(tmp_path / "arbiter.json")
    assert arbiter.claim("vm", 1, holder).granted
    with pytest.raises(EnvironmentFault, match=f"{holder} holds term 1 .* start with --no-copy-lives"):
        await manager(tmp_path)._claim_first_term()
    assert arbiter.claim("vm", 1, holder).granted, "nothing changed"


async def test_the_operator_may_know_better(tmp_path: Path) -> None:
    assert FileArbiter(tmp_path / "arbiter.json").claim("vm", 1, "h2").granted
    primary = manager(tmp_path, no_copy_lives=True)
    await primary._claim_first_term()
    assert primary.term == 2
