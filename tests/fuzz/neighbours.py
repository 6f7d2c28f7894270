"""Targets for the programs beside us: QEMU, etcd, the agent and the disk process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, cast
from unittest import mock

import aiohttp
import msgspec

from pycolo.agent import protocol
from pycolo.config import EtcdArbiterConfig
from pycolo.core.arbitration import ClaimRecord
from pycolo.core.compare_policy import Policy
from pycolo.core.tolerance_rules import Tolerances
from pycolo.disk import protocol as disk_protocol
from pycolo.edge import qemu, qmp_session
from pycolo.edge.child_link import ChildLink
from pycolo.edge.etcd import EtcdArbiter
from pycolo.edge.etcd_gateway import EtcdGateway
from pycolo.edge.qemu import Qemu
from pycolo.edge.qmp_channel import Event
from pycolo.edge.qmp_session import QmpSession
from pycolo.errors import ArbiterUnanswered, PycoloError, VmLost

from .disks import folder
from .files import assert_told, sentence
from .peers import run
from .reader import Reader

PASSWORD, TOKEN = "pass-word-of-etcd", "token-of-etcd"
_DEADLINE_S = 0.05
_QMP_GREETING = b'{"QMP":{"version":{"qemu":{"micro":0,"minor":2,"major":7},"package":""},"capabilities":["oob"]}}\r\n'
_QMP_READY = b'{"return":{},"id":1}\r\n'


# ---------------------------------------------------------------- QEMU


def qmp(data: bytes) -> None:
    """A QEMU that says a piece to each command it gets: an answer, or VmLost with a sentence."""
    run(_qmp(Reader(data)))


async def _qmp(reader: Reader) -> None:
    what = reader.number() % 4
    said = [_QMP_READY, *reader.pieces()]
    ours, theirs = socket.socketpair()
    loop = asyncio.get_running_loop()

    def answer() -> None:
        with suppress(OSError):
            theirs.recv(1 << 16)
            theirs.send(said.pop(0)) if said else theirs.shutdown(socket.SHUT_WR)

    with ours, theirs, _threads_as_they_are(), mock.patch.object(qmp_session, "REASON_WAIT_S", 0.0):
        session = QmpSession("web", _DEADLINE_S)
        ours.setblocking(False)
        theirs.setblocking(False)
        theirs.send(_QMP_GREETING)
        loop.add_reader(theirs, answer)
        machine = _machine(session)
        session.notice(machine.guest_end.hear)
        try:
            await session.connect(ours, _DEADLINE_S)
            await _asked(machine, what)
        except VmLost as lost:
            assert_told(lost)
        finally:
            loop.remove_reader(theirs)
            await session.close()


def qmp_answers(data: bytes) -> None:
    """What QEMU answers and tells, as JSON of the right kinds: an answer of ours, or VmLost."""
    reader = Reader(data)
    what = reader.number() % 4
    try:
        answers = [json.loads(piece) for piece in reader.pieces()]
    except (ValueError, RecursionError):
        return
    session = mock.Mock(spec_set=["execute", "reset", "run_job"])
    machine = _machine(session)
    for answer in answers:
        if isinstance(answer, dict) and isinstance(answer.get("event"), str):
            told = answer.get("data")
            event = Event(answer["event"], told if isinstance(told, dict) else {})  # the channel has seen to that
            machine.guest_end.hear(event)
    session.execute = mock.AsyncMock(side_effect=answers)
    session.reset = mock.AsyncMock()
    session.run_job = mock.AsyncMock(side_effect=[qmp_session._error_of("job-1", answer) for answer in answers])
    with _threads_as_they_are(), suppress(VmLost, StopAsyncIteration):
        run(_asked(machine, what))


@contextlib.contextmanager
def _threads_as_they_are() -> Iterator[None]:
    """No thread's priority is changed; only those of this process were to be."""
    with mock.patch.object(os, "setpriority") as priority, mock.patch.object(os, "sched_setscheduler") as policy:
        yield
    changed = {call.args[1] for call in priority.call_args_list} | {call.args[0] for call in policy.call_args_list}
    assert changed <= set(map(int, os.listdir("/proc/self/task")))


def _machine(session: Any) -> Qemu:
    """A QEMU of which only the monitor is there."""
    machine = Qemu.__new__(Qemu)
    machine.config = mock.Mock()
    machine.config.name, machine.pid = "web", os.getpid()
    machine._qmp, machine.guest_end, machine._code = session, qemu._GuestEnd(), None
    machine._code_in_doubt, machine._vcpus = False, []
    machine._process = mock.Mock(exit_status=None)
    return machine


async def _asked(machine: Qemu, what: int) -> None:
    if what == 0:
        assert isinstance(await machine.status(), str)
    elif what == 1:
        await machine.stop_for_load()
    elif what == 2:
        await machine.yield_vcpus()
    else:
        await machine.cont()


# ---------------------------------------------------------------- etcd


class _Content:
    def __init__(self, content: bytes) -> None:
        self._content = content

    async def iter_any(self) -> AsyncIterator[bytes]:
        for at in range(0, len(self._content), 1000):
            yield self._content[at : at + 1000]


class _Response:
    def __init__(self, status: int, content: bytes) -> None:
        self.status, self.content = status, _Content(content)

    def close(self) -> None:
        pass


class _Etcd(EtcdGateway):
    """A member that gives these answers, one after the other; what it is asked for does not matter."""

    answers: list[tuple[int, bytes]]

    @asynccontextmanager
    async def session(self) -> AsyncIterator[aiohttp.ClientSession]:
        yield cast(aiohttp.ClientSession, self)

    @asynccontextmanager
    async def post(self, url: str, **_: object) -> AsyncIterator[_Response]:
        if not self.answers:
            raise aiohttp.ClientError("nothing more is said")
        status, content = self.answers.pop(0)
        yield _Response(status, content)


def etcd(data: bytes) -> None:
    """A member that answers anything: a grant only when it says so, else ArbiterUnanswered, and no secret in it."""
    reader = Reader(data)
    what, with_user = reader.number() % 3, reader.flag()
    gateway = _gateway(with_user=with_user)
    gateway.answers, gateway._token, gateway._cluster_id = [], "", None
    while reader and len(gateway.answers) < 16:
        gateway.answers.append((reader.choice([200, 200, 200, 400, 401, 500]), reader.piece()))
    try:
        run(_ask(EtcdArbiter(gateway, "/pycolo"), what))
    except ArbiterUnanswered as fault:
        sentence(fault, *[PASSWORD] if with_user else [])  # without a user we know none, and can keep none back


@cache
def _gateway(*, with_user: bool) -> _Etcd:
    """Made once: certificates take long to read."""
    values: dict[str, object] = {"kind": "etcd", "endpoints": ["http://127.0.0.1:1"], "insecure": True}
    if with_user:
        password_file = folder() / "password"
        password_file.write_text(PASSWORD)
        password_file.chmod(0o600)
        values |= {"user": "colo", "password_file": Path(password_file)}
    return _Etcd(EtcdArbiterConfig.model_validate(values))


async def _ask(arbiter: EtcdArbiter, what: int) -> None:
    if what == 0:
        answer = await arbiter.claim("web", 3, "h1", "a")
        assert answer.usable
        assert not answer.granted or answer.term >= 3
    elif what == 1:
        record = await arbiter.record("web")
        assert record is None or isinstance(record, ClaimRecord)
    else:
        assert isinstance(await arbiter.end("web", 3, "h1"), bool)


# ---------------------------------------------------------------- our own processes


class _Agent(ChildLink[Any]):
    def notice(self, message: Any) -> bool:
        return isinstance(message, protocol.Notice | disk_protocol.Notice)


_DECODERS: list[Any] = [
    *(protocol.command_decoder, protocol.answer_decoder, disk_protocol.command_decoder, disk_protocol.answer_decoder),
]


def processes(data: bytes) -> None:
    """What the daemon and its processes say: decoded as it was meant (floats may be no numbers), or refused."""
    reader = Reader(data)
    decoder, content = reader.choice(_DECODERS), reader.rest()
    try:
        said = decoder.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    assert decoder.decode(protocol.encoder.encode(said)) == said or b"\xcb" in content or b"\xca" in content
    if isinstance(said, protocol.Start):
        with suppress(ValueError):
            Policy.decode(said.terms.default, said.terms.rules)
        with suppress(ValueError):
            Tolerances.decode(said.terms.tolerances)


def child(data: bytes) -> None:
    """A process of ours that says anything: a command gets its answer, or a failure of ours; nobody waits for ever."""
    run(_child(Reader(data)))


async def _child(reader: Reader) -> None:
    decoder: Any = reader.choice((protocol.answer_decoder, disk_protocol.answer_decoder))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        said = [piece for piece in reader.pieces() if piece][:8]
        for piece in said:
            theirs.send(piece[: protocol.MESSAGE_BYTES_MAX])
        theirs.shutdown(socket.SHUT_WR)
        link = _Agent("the agent", mock.Mock(), ours, decoder)
        with contextlib.suppress(PycoloError):
            await link.command(protocol.GetStats(), 1.0)
        await asyncio.wait({link._reader}, timeout=1.0)
        assert link._reader.done()
        assert link._reader.exception() is None
        assert link.gone.done()
        ours.close()
