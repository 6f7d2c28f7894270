"""Every single fault: never two hosts speak, no client notices, and the VM is protected again without a command. Then
some rounds as a campaign plays them, of kinds that are in no matrix.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from campaign import judge
from campaign.cluster import CampaignCluster
from campaign.nemesis import Plan, Strike
from campaign.rounds import Player
from fault_matrix import FAULTS, Fault, suffer
from pair import AS_SHIPPED, PATIENT
from pycolo.demo.load_echo import GIVE_UP_S, TIMEOUT_S
from pycolo.guest.builder import GuestImage

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(
    request: pytest.FixtureRequest, guest_image: GuestImage, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[CampaignCluster]:
    """A busy machine's stall would be a second fault, unless `make matrix` asks how fast one is seen."""
    as_shipped = request.config.getoption("as_shipped")
    lost_max, ask_s = (AS_SHIPPED, GIVE_UP_S) if as_shipped else (PATIENT, TIMEOUT_S)
    async with CampaignCluster.running(
        guest_image, tmp_path_factory.mktemp("m"), ask_s=ask_s, heartbeat_lost_max=lost_max
    ) as cluster:
        yield cluster
        result = await cluster.load.finish()
        assert judge.clients_noticed({}, judge.counts(result), "kept", down=False) == [], result["errors"]
        assert result["connections_kept"]
        assert cluster.news_of_failures() == []


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
async def test_one_goes_on_and_is_protected_again(
    cluster: CampaignCluster, fault: Fault, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = await suffer(cluster, fault)
    with capsys.disabled():  # what it cost is what people would like to read
        print(f"  {outcome}")
    assert judge.clients_noticed({}, judge.counts(cluster.load.latest), "kept", down=False) == []
    assert judge.speakers(outcome.turns) == []
    assert cluster.news_of_failures() == []


@pytest.mark.parametrize(
    "strike",
    [Strike("slow link", 10), Strike("step the primary's clock", 3600)],
    ids=lambda strike: strike.fault.replace(" ", "-"),
)
async def test_a_round_of_the_campaign(
    cluster: CampaignCluster, strike: Strike, capsys: pytest.CaptureFixture[str]
) -> None:
    played = await Player(cluster, 1, Plan(0, "single", (strike,))).play()
    with capsys.disabled():
        print(f"  {played}")
    assert played.problems == []
