"""A pair whose arbiter is a real etcd cluster of three members."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio

from etcd_cluster import EtcdCluster
from loopback_relay import LoopbackRelay
from pair import Pair, failures_in, now_ms, until
from pycolo.demo.load_echo import TIMEOUT_S
from pycolo.errors import Fenced
from pycolo.guest.builder import GuestImage

WAITING = "waiting-for-arbiter"
ELECTED_S_MAX = 15.0


class EtcdPair(Pair):
    """Its hosts reach the members on their own loopback."""

    def __init__(self, image: GuestImage, folder: Path, cluster: EtcdCluster, **protection: Any) -> None:
        super().__init__(image, folder, **protection)
        self._cluster = cluster
        self.ask_s = TIMEOUT_S  # how long an election takes is etcd's
        ports = [member.client_port for member in cluster.members]
        self.relays = {name: LoopbackRelay(host, ports) for name, host in self.lab.hosts.items()}

    def arbiter_toml(self, name: str) -> str:
        config = self._cluster.config().model_dump(mode="json", exclude_none=True, exclude={"insecure"})
        return "{ " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in config.items()) + " }"


@pytest_asyncio.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[EtcdCluster]:
    (tmp_path / "etcd").mkdir()
    one = EtcdCluster(tmp_path / "etcd")
    try:
        await asyncio.to_thread(one.start)
        yield one
    finally:
        one.close()


@pytest_asyncio.fixture
async def pair(guest_image: GuestImage, tmp_path: Path, cluster: EtcdCluster) -> AsyncIterator[EtcdPair]:
    """A protected pair under load."""
    pair = EtcdPair(guest_image, tmp_path / "pair", cluster)
    try:
        for relay in pair.relays.values():
            await relay.join()
        await pair.protect()
        await pair.load_on()
        yield pair
        for daemon in (pair.primary, pair.secondary):
            assert failures_in(daemon) == []
    finally:
        for relay in pair.relays.values():
            await relay.cut()
        await pair.close()


async def test_takeover_and_protection_again_by_way_of_etcd(pair: EtcdPair, cluster: EtcdCluster) -> None:
    """The primary and one member die at once; then the survivor is protected again, and dies."""
    survivor = pair.secondary
    killed_ms = now_ms()
    pair.primary.kill_all()
    cluster.members[0].kill()
    await survivor.wait_for(lambda: survivor.first("solo", killed_ms), ELECTED_S_MAX, "going on alone")
    await pair.serves(1.0)
    last = await pair.protect_again(survivor, on="h1")
    killed_ms = now_ms()
    survivor.kill_all()
    await pair.goes_on(last, killed_ms, ELECTED_S_MAX)
    assert last.status["term"] == 3
    assert last.status["arbiter"] == "answers"


async def test_without_a_quorum_both_wait_and_with_it_one_goes_on(pair: EtcdPair, cluster: EtcdCluster) -> None:
    both = (pair.primary, pair.secondary)
    for member in cluster.members[:2]:
        member.kill()
    pair.link("down")
    await until(lambda: [one.status["state"] for one in both] == [WAITING] * 2, 10.0, "waiting")
    back_ms = now_ms()
    for member in cluster.members[:2]:
        cluster.run(member)
    await until(lambda: any(one.first("solo", back_ms) for one in both), ELECTED_S_MAX, "going on alone")
    (speaks,) = [one for one in both if one.first("solo", back_ms)]
    (other,) = [one for one in both if one is not speaks]
    assert await asyncio.wait_for(other.process.wait(), ELECTED_S_MAX) == Fenced.exit_status
    await pair.goes_on(speaks, back_ms, ELECTED_S_MAX)
