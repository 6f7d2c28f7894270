"""Claims at a real etcd cluster whose members die, freeze and come back: at most one host per term, in time."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from etcd_cluster import MEMBERS, PASSWORD, PREFIX, EtcdCluster, Member
from etcd_links import PeerLinks
from pycolo.core.arbitration import ClaimAnswer, ClaimRecord
from pycolo.edge import etcd, etcd_gateway
from pycolo.edge.etcd import EtcdArbiter
from pycolo.edge.etcd_gateway import ATTEMPT_S_MAX, Question
from pycolo.edge.secret_file import read_secret
from pycolo.errors import ArbiterUnanswered, EnvironmentFault
from pycolo.manager.common import CLAIM_RETRY_S, CLAIM_S_MAX

HOSTS = ("alpha", "beta", "gamma")
LEADER_CHANGE_S_MAX = 30.0
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    one = EtcdCluster(tmp_path_factory.mktemp("etcd"))
    try:
        one.start()
        yield one
    finally:
        one.close()


@pytest.fixture
def cluster(shared_cluster: EtcdCluster) -> EtcdCluster:
    """All three members run, whatever the last test did to them."""
    shared_cluster.heal()
    return shared_cluster


@pytest.fixture
def vm() -> str:
    """A VM that no other test knows."""
    return f"vm-{next(_numbers)}"


T = TypeVar("T")


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stands still for a while ends no attempt."""
    monkeypatch.setattr(etcd_gateway, "ATTEMPT_S_MAX", 20 * ATTEMPT_S_MAX)


async def in_time(ask: Callable[[], Awaitable[T]]) -> T:
    """An answer within the deadline that a manager sets; it asks again, as this machine may stand still for longer."""
    for _ in range(2):
        with suppress(TimeoutError):
            return await hurried(ask)
    return await hurried(ask)


async def hurried(ask: Callable[[], Awaitable[T]]) -> T:
    """Once."""
    async with asyncio.timeout(CLAIM_S_MAX):
        return await ask()


async def persistently(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask again and again, as a manager that waits for the arbiter does."""
    deadline_s = time.monotonic() + LEADER_CHANGE_S_MAX
    while True:
        try:
            return await hurried(ask)
        except (ArbiterUnanswered, TimeoutError):
            if time.monotonic() > deadline_s:
                raise
        await asyncio.sleep(CLAIM_RETRY_S)


async def test_the_first_term_and_the_next(cluster: EtcdCluster, vm: str) -> None:
    alpha, beta = cluster.arbiter(), cluster.arbiter()
    assert await alpha.record(vm) is None
    for _ in range(2):
        assert (await in_time(partial(alpha.claim, vm, 1, "alpha"))).granted
        assert not (await in_time(partial(beta.claim, vm, 1, "beta"))).granted
    assert await beta.record(vm) == ClaimRecord(vm, 1, "alpha")
    assert (await in_time(partial(beta.claim, vm, 2, "beta", "loss-1"))).granted
    assert await alpha.record(vm) == ClaimRecord(vm, 2, "beta", "loss-1")
    assert not (await in_time(partial(alpha.claim, vm, 2, "alpha"))).granted
    for _ in range(2):
        assert (await beta.claim(vm, 2, "beta", "loss-2")).term == 3
    assert not await alpha.end(vm, 3, "alpha")
    for _ in range(2):
        assert await beta.end(vm, 3, "beta")
    assert await alpha.record(vm) == ClaimRecord(vm, 3, "beta", "loss-2", ended=True)
    with pytest.raises(ArbiterUnanswered, match=r"decides nothing: .* the record was reset"):
        await alpha.claim(vm, 6, "alpha")


async def test_two_hosts_race_for_each_term_and_one_wins(cluster: EtcdCluster, vm: str) -> None:
    arbiters = {host: cluster.arbiter(member) for host, member in zip(HOSTS[:2], cluster.members, strict=False)}
    winners: list[str] = []
    for term in range(1, 61):
        claims = [arbiter.claim(vm, term, host) for host, arbiter in arbiters.items()]
        answers = dict(zip(arbiters, await asyncio.gather(*claims), strict=True))
        (winner,) = [host for host, answer in answers.items() if answer.granted]
        winners.append(winner)
        assert await arbiters["alpha"].record(vm) == ClaimRecord(vm, term, winner)
    assert set(winners) == set(arbiters), "both win now and then, else it was no race"


@pytest.mark.parametrize("fault", [Member.kill, Member.freeze])
async def test_a_lost_first_endpoint_costs_no_deadline(
    cluster: EtcdCluster, vm: str, fault: Callable[[Member], None]
) -> None:
    """Neither an arbiter that has talked to that member before, nor one that begins with it."""
    lost = cluster.follower()
    known, new = cluster.arbiter(lost), cluster.arbiter(lost)
    assert await known.record(vm) is None
    fault(lost)
    assert (await in_time(partial(known.claim, vm, 1, "alpha"))).granted
    assert (await in_time(partial(new.claim, vm, 2, "beta"))).granted
    assert (await in_time(partial(known.claim, vm, 3, "alpha"))).granted


async def test_without_a_quorum_there_is_no_yes_and_with_it_there_is_an_answer(
    cluster: EtcdCluster, vm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd_gateway, "ATTEMPT_S_MAX", ATTEMPT_S_MAX)
    alpha, beta = cluster.arbiter(), cluster.arbiter()
    assert (await in_time(partial(alpha.claim, vm, 1, "alpha"))).granted
    for member in cluster.members[:2]:
        member.kill()
    for arbiter in (alpha, beta):  # with a token, and without
        with pytest.raises(ArbiterUnanswered, match="etcd gives no answer: "):
            await in_time(partial(arbiter.claim, vm, 2, "beta"))
        with pytest.raises(ArbiterUnanswered):
            await in_time(partial(arbiter.record, vm))
    cluster.heal()
    assert (await persistently(lambda: alpha.claim(vm, 2, "alpha"))).granted
    assert not (await persistently(lambda: beta.claim(vm, 2, "beta"))).granted


@pytest.mark.parametrize("fault", [Member.kill, Member.freeze])
async def test_a_leader_that_goes_during_claims_makes_no_second_holder(
    cluster: EtcdCluster, vm: str, fault: Callable[[Member], None]
) -> None:
    """Three claimants, each of whom begins with another member; the answers lost on the way are asked for again."""
    holders: dict[int, set[str]] = {}
    newest, gone, terms_after = 0, False, 0
    under_way = asyncio.Event()

    async def claim_on(host: str, arbiter: EtcdArbiter) -> None:
        nonlocal newest, terms_after
        while terms_after < 10:
            term = newest + 1

            def claim(term: int = term) -> Awaitable[ClaimAnswer]:
                return arbiter.claim(vm, term, host)

            answer = await persistently(claim)
            if answer.granted:
                holders.setdefault(term, set()).add(host)
                terms_after += gone
            newest = max(newest, term)
            if newest >= 10:
                under_way.set()

    async def remove_leader() -> None:
        nonlocal gone
        leader = await asyncio.to_thread(cluster.leader)
        await under_way.wait()
        fault(leader)
        gone = True

    arbiters = dict(zip(HOSTS, map(cluster.arbiter, cluster.members), strict=True))
    async with asyncio.timeout(60):
        await asyncio.gather(remove_leader(), *(claim_on(host, arbiter) for host, arbiter in arbiters.items()))
    assert {term: len(who) for term, who in holders.items()} == dict.fromkeys(range(1, max(holders) + 1), 1)


@pytest.fixture
def cut_cluster(tmp_path: Path) -> Iterator[EtcdCluster]:
    """A cluster whose links can be cut."""
    one = EtcdCluster(tmp_path, links=PeerLinks([f"m{number}" for number in range(MEMBERS)]))
    try:
        one.start()
        yield one
    finally:
        one.close()


async def stale_read(away: EtcdArbiter, vm: str) -> ClaimRecord | None:
    """What a member says from its own memory, as no arbiter of ours asks."""
    question = Question("/v3/kv/range", {**etcd._range_of(away._key(vm)), "serializable": True}, etcd._Range)
    async with away._gateway.session() as session:
        return etcd._stored(away._key(vm), (await away._gateway.ask(session, question)).kvs).record


@pytest.mark.parametrize("led", [True, False])
async def test_a_member_that_is_cut_off_tells_no_old_record(cut_cluster: EtcdCluster, led: bool) -> None:
    """It is alive and its clients reach it; a leader even believes to lead. It must not answer from what it knew."""
    assert cut_cluster.links is not None
    away = cut_cluster.leader() if led else cut_cluster.follower()
    others = [member.url for member in cut_cluster.members if member is not away]
    elsewhere, only_it = cut_cluster.arbiter(endpoints=others), cut_cluster.arbiter(endpoints=[away.url])
    assert (await in_time(partial(only_it.claim, "vm", 1, "alpha"))).granted
    cut_cluster.links.cut(away.name)
    assert (await persistently(lambda: elsewhere.claim("vm", 2, "beta"))).granted
    assert await stale_read(only_it, "vm") == ClaimRecord("vm", 1, "alpha"), "else the cut is none"
    for _ in range(3):
        with pytest.raises(ArbiterUnanswered):
            await only_it.record("vm")
        for term in (1, 2):  # a term that it still believes to be alpha's, and the next one
            with pytest.raises(ArbiterUnanswered):
                await only_it.claim("vm", term, "alpha")
    all_three = cut_cluster.arbiter(away)
    assert (await persistently(lambda: all_three.claim("vm", 3, "beta"))).granted, "by the others"
    cut_cluster.links.mend()
    assert not (await persistently(lambda: only_it.claim("vm", 3, "alpha"))).granted
    assert await only_it.record("vm") == ClaimRecord("vm", 3, "beta")


@pytest.mark.parametrize("led", [True, False])
async def test_a_member_that_wakes_up_tells_no_old_record(cluster: EtcdCluster, vm: str, led: bool) -> None:
    away = cluster.leader() if led else cluster.follower()
    others = [member.url for member in cluster.members if member is not away]
    elsewhere, only_it = cluster.arbiter(endpoints=others), cluster.arbiter(endpoints=[away.url])
    assert (await in_time(partial(only_it.claim, vm, 1, "alpha"))).granted
    away.freeze()
    assert (await persistently(lambda: elsewhere.claim(vm, 2, "beta"))).granted
    away.thaw()
    for _ in range(5):
        with contextlib.suppress(ArbiterUnanswered):
            assert await only_it.record(vm) == ClaimRecord(vm, 2, "beta")
        with contextlib.suppress(ArbiterUnanswered):
            assert not (await only_it.claim(vm, 2, "alpha")).granted
    await asyncio.to_thread(cluster.wait_healthy)
    assert await only_it.record(vm) == ClaimRecord(vm, 2, "beta"), "it does answer"


async def test_a_claim_that_its_caller_gave_up_is_never_a_yes(cluster: EtcdCluster, vm: str) -> None:
    """The pair finds itself again meanwhile: the next loss is another, whether this one was granted late or not."""
    alpha, beta = cluster.arbiter(), cluster.arbiter()
    assert await alpha.record(vm) is None
    for member in cluster.members:
        member.freeze()
    given_up = [asyncio.create_task(in_time(partial(alpha.claim, vm, 1, "alpha", "loss-1")))]
    await asyncio.sleep(0.3)
    given_up[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up[0]
    cluster.heal()
    stored = await persistently(lambda: beta.record(vm))
    assert stored in (None, ClaimRecord(vm, 1, "alpha", "loss-1"))
    if stored is None:
        assert (await persistently(lambda: beta.claim(vm, 1, "beta"))).granted
        assert not (await persistently(lambda: alpha.claim(vm, 1, "alpha", "loss-2"))).granted
    else:
        assert not (await persistently(lambda: beta.claim(vm, 1, "beta"))).granted
        assert (await persistently(lambda: alpha.claim(vm, 1, "alpha", "loss-2"))).term == 2


async def test_a_token_that_a_member_forgot_is_renewed(cluster: EtcdCluster, vm: str) -> None:
    """Tokens live in memory: a cluster that was restarted knows none."""
    alpha = cluster.arbiter()
    assert (await in_time(partial(alpha.claim, vm, 1, "alpha"))).granted
    for member in cluster.members:
        cluster.restart(member)
    assert (await persistently(lambda: alpha.claim(vm, 2, "alpha"))).granted
    alpha._gateway._token = "gone.1"
    assert (await in_time(partial(alpha.claim, vm, 3, "alpha"))).granted


async def test_a_token_that_expires_is_renewed(tmp_path: Path) -> None:
    cluster = EtcdCluster(tmp_path)
    try:
        cluster.start_with_short_tokens(seconds=1)
        alpha = cluster.arbiter()
        for term in range(1, 4):
            assert (await in_time(partial(alpha.claim, "vm", term, "alpha"))).granted
            token = alpha._gateway._token
            await asyncio.sleep(1.2)
        assert await alpha.record("vm") == ClaimRecord("vm", 3, "alpha")
        assert alpha._gateway._token != token
    finally:
        cluster.close()


async def refused(cluster: EtcdCluster, vm: str, **config: Any) -> str:
    """What the arbiter says instead of an answer."""
    with pytest.raises(ArbiterUnanswered) as caught:
        await in_time(partial(cluster.arbiter(**config).claim, vm, 1, "alpha"))
    said = str(caught.value)
    assert said.startswith("etcd gives no answer: https://127.0.0.1:")
    assert "\n" not in said
    assert PASSWORD not in said
    return said


async def test_who_may_not_ask_is_told_why(cluster: EtcdCluster, vm: str) -> None:
    wrong = cluster.password_file("wrong-password", "guessed")
    said = await refused(cluster, vm, password_file=wrong)
    assert "gives the user pycolo no token" in said
    assert "invalid user ID or password" in said
    assert "guessed" not in said
    assert "no token" in await refused(cluster, vm, user="nobody")
    assert "user name is empty" in await refused(cluster, vm, user=None, password_file=None)
    assert "permission denied" in await refused(cluster, vm, prefix="/elsewhere")
    assert "has a certificate that does not fit `ca`" in await refused(cluster, vm, ca=cluster.file("other-ca.pem"))
    assert "can't be reached" in await refused(cluster, vm, cert=None, key=None)
    stranger = {"cert": cluster.file("stranger.pem"), "key": cluster.file("stranger.key")}
    assert "can't be reached" in await refused(cluster, vm, **stranger)
    plain = [f"http://127.0.0.1:{cluster.members[0].client_port}"]
    with pytest.raises(ArbiterUnanswered):
        await cluster.arbiter(endpoints=plain, insecure=True).record(vm)


async def test_a_password_that_others_can_read_is_not_used(cluster: EtcdCluster, vm: str) -> None:
    with pytest.raises(EnvironmentFault, match=r"has mode 0640, so others can get at it: chmod 600 "):
        cluster.arbiter(password_file=cluster.password_file("open-password", PASSWORD, mode=0o640))
    changed = cluster.password_file("changing-password", PASSWORD)
    arbiter = cluster.arbiter(password_file=changed)
    changed.chmod(0o644)
    with pytest.raises(ArbiterUnanswered, match="is not asked, as the secret file"):
        await arbiter.record(vm)
    changed.chmod(0o600)
    assert await arbiter.record(vm) is None
    assert read_secret(changed) == PASSWORD


@pytest.mark.parametrize("value", ["", "null", "{}", '{"vm": "vm", "term": "1", "holder": "alpha"}', "\ufffd"])
async def test_a_damaged_record_is_no_answer(cluster: EtcdCluster, vm: str, value: str) -> None:
    cluster.put(f"{PREFIX}/claims/{vm}", value)
    with pytest.raises(ArbiterUnanswered, match=f"the record {PREFIX}/claims/{vm} in etcd is damaged"):
        await cluster.arbiter().claim(vm, 1, "alpha")


async def test_the_record_of_another_vm_decides_nothing(cluster: EtcdCluster, vm: str) -> None:
    cluster.put(f"{PREFIX}/claims/{vm}", '{"vm": "other", "term": 1, "holder": "alpha"}')
    with pytest.raises(ArbiterUnanswered, match="decides nothing: the record is of VM other"):
        await cluster.arbiter().claim(vm, 2, "alpha")
