"""Every single fault: never two hosts speak, no client notices, and the VM is protected again without a command."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from fault_matrix import FAULTS, NAMES, Cluster, Fault, noticed, speakers_are_single, suffer
from pair import failures_in_text
from pycolo.guest.builder import GuestImage

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(guest_image: GuestImage, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    folder = tmp_path_factory.mktemp("m")
    async with Cluster.running(guest_image, folder) as cluster:
        yield cluster
        result = await cluster.load.finish()
        assert not any(result[name] for name in ("failed", "reset", "wrong_bytes", "lost_acknowledged")), result
        assert result["connections_kept"]
    logs = [*(folder / f"{name}.log" for name in NAMES), *folder.glob("*/vms/web/manager.log")]
    assert [line for log in logs for line in failures_in_text(log.read_text(errors="replace"))] == []


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
async def test_one_goes_on_and_is_protected_again(
    cluster: Cluster, fault: Fault, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = await suffer(cluster, fault)
    with capsys.disabled():  # what it cost is what people would like to read
        print(f"  {outcome}")
    assert noticed(cluster.load) == {}
    assert speakers_are_single(outcome.turns), outcome
