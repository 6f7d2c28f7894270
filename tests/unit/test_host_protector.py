"""Two daemons that talk for real: how a primary finds its second host, and what happens when that does not work out."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from host_parts import OFFER, Certificates, ScriptedCopy, host_config, running, scripted, vm_config

from pycolo.config import HostConfig, PeerConfig
from pycolo.errors import EnvironmentFault, NotAllowed, PeerLost, UnknownVm, WrongState, failure_of
from pycolo.host import offers, procedures, protector
from pycolo.host.copy import Copy
from pycolo.host.daemon import HostDaemon
from pycolo.host.models import OfferRequest, ProtectRequest
from pycolo.host.offers import Offers
from pycolo.host.record import Record, load_record
from pycolo.host.security import Security

OPEN = Security(insecure=True)


@pytest.fixture(autouse=True)
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pycolo.host.daemon.Copy", ScriptedCopy)
    monkeypatch.setattr(protector, "BACKOFF_S_MIN", 0.05)
    monkeypatch.setattr(protector, "BACKOFF_S_MAX", 0.2)
    monkeypatch.setattr(protector, "PARTNER_CHECK_S", 0.1)
    monkeypatch.setattr("pycolo.host.daemon.REPORTS_AGE_S_MAX", 0.0)


class Two:
    """h1, where the VM is primary, and h2, which may be off."""

    def __init__(self, folder: Path, ports: tuple[int, int]) -> None:
        self.folder, self.ports = folder, ports

    @contextlib.asynccontextmanager
    async def host(self, name: str, /, **changed: Any) -> AsyncIterator[HostDaemon]:
        own, other = self.ports if name == "h1" else self.ports[::-1]
        async with running(host_config(self.folder, name, own, other).model_copy(update=changed), OPEN) as daemon:
            yield daemon


@pytest.fixture
def two(tmp_path: Path, unused_tcp_port_factory: Any) -> Two:
    return Two(tmp_path, (unused_tcp_port_factory(), unused_tcp_port_factory()))


async def started(daemon: HostDaemon, **changed: Any) -> ScriptedCopy:
    await procedures.protect(daemon, ProtectRequest(vm=vm_config(), **changed))
    return scripted(daemon)


async def sees(copy: Copy, kind: str, count: int = 1, wait_s: float = 10.0, **fields: Any) -> list[dict[str, Any]]:
    """The events of a kind once there are enough of them."""

    def found() -> list[dict[str, Any]]:
        return [one for one in copy.events.since(0) if one["kind"] == kind and fields.items() <= one.items()]

    assert await copy.until(lambda: len(found()) >= count, wait_s), copy.events.since(0)
    return found()


async def test_a_primary_finds_the_other_host_and_both_are_joined(two: Two) -> None:
    async with two.host("h1") as h1, two.host("h2") as h2:
        copy = await started(h1)
        await sees(copy, "partner-found", host="h2")
        there = scripted(h2)
        assert (there.record.role, there.record.partner, there.record.home, there.state) == (
            "secondary",
            "h1",
            "h1",
            "syncing",
        )
        assert there.record.vm == copy.record.vm
        assert copy.scripted.asked == [("peer", "127.0.0.1:4444")]
        assert load_record(copy.folder).partner == "h2"
        assert (await h1.status(copy)).partner == "h2"
        assert h2.report().memory_mib_used == 256


async def test_a_host_that_is_off_is_tried_until_it_is_there(two: Two) -> None:
    async with two.host("h1") as h1:
        copy = await started(h1)
        (refused,) = await sees(copy, "host-refused", host="h2")
        assert "h2 does not answer: host h2 at 127.0.0.1:" in refused["reason"]
        await asyncio.sleep(0.5)
        assert len(await sees(copy, "host-refused")) == 1  # said once, not in each round
        assert (await h1.status(copy)).reason.startswith("it is solo; no second copy: h2 does not answer: host h2 at ")
        async with two.host("h2"):
            await sees(copy, "partner-found", host="h2")
            assert (await h1.status(copy)).reason == "it is syncing"


async def test_a_lost_partner_is_replaced_by_itself_again(two: Two) -> None:
    async with two.host("h1") as h1, two.host("h2") as h2:
        copy = await started(h1)
        await sees(copy, "partner-found")
        scripted(h2).ends("the machine broke")
        copy.becomes("solo")
        await sees(copy, "partner-found", count=2)
        assert scripted(h2).running
        assert scripted(h2).record.ended == ""


async def test_a_session_that_does_not_come_about_ends_the_offer(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protector, "SESSION_S_MAX", 0.1)
    async with two.host("h1") as h1, two.host("h2") as h2:

        async def nobody_there(self: Any, address: str) -> None:
            self.asked.append(("peer", address))

        monkeypatch.setattr("host_parts.ScriptedManager.call_peer", nobody_there)
        copy = await started(h1)
        failed = await sees(copy, "offer-failed", count=2)
        assert failed[0]["reason"] == "no session with h2 came about in 0 s"
        assert len(await sees(scripted(h2), "offer-withdrawn", by="h1")) >= 1
        assert copy.scripted.asked[:2] == [("peer", "127.0.0.1:4444"), ("peer", "")]
        await procedures.unprotect(h1, copy)
        assert not scripted(h2).running, "an offer that nobody joined is withdrawn"


async def test_a_host_without_room_is_refused_with_its_numbers(two: Two) -> None:
    async with two.host("h1") as h1, two.host("h2", memory_mib=128):
        copy = await started(h1)
        (refused,) = await sees(copy, "host-refused")
        assert refused["reason"] == "h2 offers 128 MiB of memory, 0 are taken, and web needs 256"


async def test_an_address_with_another_host_behind_it(two: Two) -> None:
    async with two.host("h1") as h1, two.host("h2", name="h7"):
        copy = await started(h1)
        (refused,) = await sees(copy, "host-refused")
        assert "is h7, not h2: correct `peers` in host.toml" in refused["reason"]


async def test_a_survivor_looks_for_its_old_partner(two: Two) -> None:
    async with two.host("h1") as h1, two.host("h2") as h2:
        copy = await started(h1, secondary="h2")
        await sees(copy, "partner-found")
        there = scripted(h2)
        there.becomes("protected")
        copy.ends("fenced", 8)
        there._hear({"kind": "solo", "t_ms": 1.0, "released": 0})
        there.becomes("solo", role="primary")
        await sees(there, "partner-found", host="h1")  # though h1 is not among `secondaries`: it is the VM's home
        assert (copy.record.role, copy.record.partner, copy.running) == ("secondary", "h2", True)
        assert load_record(there.folder).role == "primary"


async def test_a_takeover_can_not_be_withdrawn(two: Two) -> None:
    async with two.host("h1") as h1, two.host("h2") as h2:
        copy = await started(h1)
        await sees(copy, "partner-found")
        assert copy.asked is not None
        _, number = copy.asked
        there = scripted(h2)
        for state in ("taking-over", "waiting-for-arbiter", "solo"):
            there.becomes(state)
            with pytest.raises(WrongState, match="it is needed"):
                await h1.peers.withdraw("h2", number)
        there.becomes("protected")
        copy.becomes("protected")
        there.becomes("solo")
        there.becomes("solo", role="primary")
        with pytest.raises(WrongState, match="h2 has taken over web and runs it: stop it there"):
            await procedures.stop(h1, copy)
        assert (copy.running, there.running) == (False, True)


async def test_stop_and_unprotect_end_the_second_copy_first(two: Two) -> None:
    async with two.host("h1") as h1, two.host("h2") as h2:
        copy = await started(h1)
        await sees(copy, "partner-found")
        await procedures.unprotect(h1, copy)
        assert (copy.state, scripted(h2).running, copy.record.protect) == ("solo", False, False)
        await asyncio.sleep(0.3)
        assert not scripted(h2).running
        await started(h1)
        await sees(copy, "partner-found", count=2)
        await procedures.stop(h1, copy)
        assert (copy.running, scripted(h2).running, copy.record.protect) == (False, False, True)
        await procedures.stop(h1, copy)  # it is stopped: nothing to do


async def test_a_partner_that_is_drained_stays_while_nobody_else_will_do(two: Two) -> None:
    async with two.host("h1") as h1, two.host("h2") as h2:
        copy = await started(h1)
        await sees(copy, "partner-found")
        copy.becomes("protected")
        assert await procedures.drain(h2) == {"web": "h1 replaces this copy as soon as another host has room"}
        await asyncio.sleep(0.4)
        assert (scripted(h2).running, copy.state) == (True, "protected")


async def test_a_partner_that_is_drained_is_replaced_by_a_third_host(
    tmp_path: Path, unused_tcp_port_factory: Any
) -> None:
    ports = {number: unused_tcp_port_factory() for number in (1, 2, 3)}  # without TLS an address has to be one host's
    peers = [PeerConfig(name=f"h{number}", address=f"127.0.0.{number}:{port}") for number, port in ports.items()]

    def config(number: int) -> HostConfig:
        others = tuple(peer for peer in peers if peer is not peers[number])
        own = {"name": peers[number].name, "listen": peers[number].address, "peers": others}
        return host_config(tmp_path).model_copy(update={**own, "state_dir": tmp_path / peers[number].name})

    async with running(config(0), OPEN) as h1, running(config(1), OPEN) as h2, running(config(2), OPEN) as h3:
        copy = await started(h1)
        await sees(copy, "partner-found", host="h2")
        copy.becomes("protected")
        scripted(h2).becomes("protected")
        await procedures.drain(h2)
        await sees(copy, "partner-replaced", host="h2")
        assert await scripted(h2).until(lambda: not scripted(h2).running, 5)
        copy.becomes("solo")
        await sees(copy, "partner-found", host="h3")
        assert "h2 is being drained" in (await sees(copy, "host-refused", host="h2"))[0]["reason"]
        assert (scripted(h3).record.home, scripted(h3).record.partner) == ("h1", "h1")


async def test_roles_that_are_switched_turn_the_offer_round(two: Two) -> None:
    async with two.host("h1") as h1, two.host("h2") as h2:
        copy = await started(h1)
        await sees(copy, "partner-found")
        there = scripted(h2)
        number = there.offer
        assert copy.asked == ("h2", number)
        there.becomes("protected")
        with pytest.raises(WrongState, match="this host has the second copy of web: ask h1"):
            await procedures.stop(h2, there)
        there.becomes("protected", role="primary")
        assert [there.asked, there.offer] == [("h1", number), ""]


async def test_two_hosts_with_certificates(tmp_path: Path, unused_tcp_port_factory: Any) -> None:
    certificates = Certificates()
    ports = unused_tcp_port_factory(), unused_tcp_port_factory()
    one, other = host_config(tmp_path, "h1", *ports), host_config(tmp_path, "h2", *ports[::-1])
    async with running(one, certificates.security("h1")) as h1:
        copy = await started(h1)
        async with running(other, certificates.security("h3")):  # it says h2, and can't prove it
            await sees(copy, "host-refused", host="h2", count=2)
            assert "CERTIFICATE_VERIFY_FAILED" in copy.unprotected_why
        async with running(other, Certificates().security("h2")):  # of another CA
            await asyncio.sleep(0.5)
            assert copy.record.partner == ""
        async with running(other, certificates.security("h2")) as h2:
            await sees(copy, "partner-found", host="h2")
            assert scripted(h2).record.partner == "h1"


async def test_a_switchover_returns_when_the_partner_speaks(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    async with two.host("h1") as h1, two.host("h2") as h2:
        copy = await started(h1)
        await sees(copy, "partner-found")
        there = scripted(h2)
        for one in (copy, there):
            one.becomes("protected")

        async def hand_over(_: Any) -> None:
            copy.asked_to_hand_over = True  # type: ignore[attr-defined]

        monkeypatch.setattr("host_parts.ScriptedManager.switchover", hand_over)
        switching = asyncio.create_task(procedures.switchover(h1, copy))
        await sees(copy, "switchover", to="h2")
        await asyncio.sleep(0.2)
        assert not switching.done()
        copy.ends("the partner goes on with the VM", 0)
        there._hear({"kind": "solo", "t_ms": asyncio.get_running_loop().time() * 1000, "released": 0})
        there.becomes("solo", role="primary")
        await asyncio.wait_for(switching, 10)
        await sees(there, "partner-found", host="h1")


async def test_what_a_test_failover_costs(two: Two) -> None:
    async with two.host("h1") as h1, two.host("h2") as h2:
        copy = await started(h1)
        await sees(copy, "partner-found")
        there = scripted(h2)
        for one in (copy, there):
            one.becomes("protected")
        proving = asyncio.create_task(procedures.test_failover(h1, copy))
        await sees(copy, "test-failover")
        assert await copy.until(lambda: not copy.running, 5)
        await asyncio.sleep(0.1)
        there._hear({"kind": "solo", "t_ms": asyncio.get_running_loop().time() * 1000, "released": 3})
        there.becomes("solo", role="primary")
        await sees(there, "partner-found", host="h1")
        there.becomes("protected")
        cost = await asyncio.wait_for(proving, 10)
        assert cost.survivor == "h2"
        assert 50 < cost.takeover_ms < cost.protected_again_ms
        assert there.counters.failovers == {"takeover": 1}


async def test_a_test_failover_needs_a_partner_that_answers(two: Two) -> None:
    async with two.host("h1") as h1:
        async with two.host("h2"):
            copy = await started(h1)
            await sees(copy, "partner-found")
            copy.becomes("protected")
        with pytest.raises(PeerLost, match="host h2 at"):
            await procedures.test_failover(h1, copy)
        assert copy.running


async def test_a_vm_that_runs_elsewhere_is_not_started_here(two: Two) -> None:
    async with two.host("h1") as h1, two.host("h2") as h2:
        await started(h2)
        await sees(scripted(h2), "partner-found")
        scripted(h1).ends("fenced", 8)
        with pytest.raises(WrongState, match="web runs on h2: ask that host"):
            await procedures.protect(h1, ProtectRequest(vm=vm_config()))
        assert (await h1.status(h1.copy("web"))).elsewhere == "h2"


async def test_a_daemon_that_comes_back_starts_nothing(two: Two) -> None:
    async with two.host("h1") as h1:
        copy = await started(h1)
        copy.record.ended = ""
        copy.record.save(copy.folder)
        h1.draining = True
        path = copy.folder / "vm.json"
        as_it_ran = path.read_bytes()
        assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(as_it_ran)  # as after SIGKILL
    async with two.host("h1") as again:
        copy = scripted(again)
        assert (copy.running, copy.state, again.draining) == (False, "stopped", True)
        assert copy.reason == "the daemon of this host ended while a copy ran here"
        assert copy.record.vm == vm_config()


async def test_a_record_that_is_broken_is_named(two: Two, tmp_path: Path) -> None:
    folder = tmp_path / "h1" / "vms" / "web"
    folder.mkdir(parents=True)
    (folder / "vm.json").write_text('{"vm": {}}')
    with pytest.raises(EnvironmentFault, match=f"remove {folder} to forget the VM"):
        async with two.host("h1"):
            pass


# ---------------------------------------------------------------- the side that is asked


def offer(number: str = OFFER, primary: str = "h1", name: str = "web") -> OfferRequest:
    return OfferRequest(offer=number, vm=vm_config(name), primary=primary, home=primary, term=1)


async def test_the_same_offer_gets_the_same_answer(two: Two) -> None:
    async with two.host("h2") as h2:
        ours = Offers(h2)
        first = await ours.take(offer())
        copy = scripted(h2)
        process = copy.process
        assert await ours.take(offer()) == first
        assert copy.process is process
        assert (await ours.take(offer("cd" * 16))).offer == "cd" * 16  # the primary's daemon began anew
        assert copy.process is not process
        with pytest.raises(WrongState, match="h2 holds web for h1: ask there"):
            await ours.take(offer("ef" * 16, primary="h3"))
        copy.becomes("solo", role="primary")
        with pytest.raises(WrongState, match="web on h2: this copy is primary and solo: it is needed"):
            await ours.take(offer("ef" * 16))
        await ours.close()


async def test_an_offer_that_nobody_claims_ends_by_itself(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offers, "CLAIM_S_MAX", 0.1)
    monkeypatch.setattr(offers, "LISTEN_S_MAX", 0.1)
    async with two.host("h2") as h2:
        ours = Offers(h2)
        await ours.take(offer())
        await sees(scripted(h2), "offer-unclaimed")
        assert await scripted(h2).until(lambda: not scripted(h2).running, 5)
        await ours.take(offer("cd" * 16))
        scripted(h2)._hear({"kind": "paired", "t_ms": 1.0})
        await asyncio.sleep(0.4)
        assert scripted(h2).running
        await ours.close()


async def test_a_copy_that_begins_anew_when_it_has_room_again_makes_way(two: Two) -> None:
    """Its primary could not withdraw it while it waited, and nobody would ever claim it."""
    async with two.host("h2") as h2:
        ours = Offers(h2)
        await ours.take(offer())
        copy = scripted(h2)
        copy._hear({"kind": "paired", "t_ms": 2.0})
        copy._hear({"kind": "waits-for-room", "t_ms": 3.0})
        await asyncio.sleep(0.1)
        assert copy.running
        copy._hear({"kind": "listening", "t_ms": 4.0, "address": "127.0.0.1:4445"})
        await sees(copy, "offer-outlived")
        assert await copy.until(lambda: not copy.running, 5)
        await ours.close()


async def test_only_the_primarys_host_withdraws(two: Two) -> None:
    async with two.host("h2") as h2:
        ours = Offers(h2)
        await ours.take(offer())
        with pytest.raises(WrongState, match="web is held for h1, not for h3"):
            await ours.withdraw(OFFER, "h3")
        await ours.withdraw("00" * 16, "h1")  # none such: nothing to do
        assert scripted(h2).running
        await ours.withdraw(OFFER, "h1")
        await ours.withdraw(OFFER, "h1")
        assert not scripted(h2).running
        await ours.close()


async def test_a_secondary_that_can_not_start_is_said_to_the_primary(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(self: ScriptedCopy, *_: Any, **__: Any) -> None:
        self.ends("the kernel /k of vm.toml does not exist", 2)

    monkeypatch.setattr(ScriptedCopy, "start", fail)
    async with two.host("h2") as h2:
        with pytest.raises(EnvironmentFault, match="on h2 did not come up: the kernel /k"):
            await Offers(h2).take(offer())


@pytest.mark.parametrize("kind", [EnvironmentFault, PeerLost, UnknownVm, WrongState, NotAllowed])
def test_a_failure_comes_back_as_it_was(kind: type[Any]) -> None:
    assert type(failure_of(kind.exit_status, "x")) is kind
    assert type(failure_of(99, "x")) is EnvironmentFault


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    record = Record(vm=vm_config(), role="secondary", home="h1", partner="h2", ended="why", exit_status=5)
    record.save(tmp_path)
    assert load_record(tmp_path) == record
