"""Targets for the agents and the disk process: a peer that says anything, a guest and its clients, and the daemon's
commands, in any order.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import cache
from typing import cast
from unittest import mock

from agent_parts import Place, comparing, everything

from disk_tools import Answer, HandWorkers, make_source
from pycolo.agent.primary import PrimarySide
from pycolo.agent.secondary import SecondarySide
from pycolo.agent.side import Card, Side
from pycolo.core import disk_wire, wire
from pycolo.core.block_store import BlockStore
from pycolo.core.compare_terms import DEFAULT_TERMS
from pycolo.core.lease import LEASE_MS_MAX
from pycolo.core.limits import DataplaneLimits
from pycolo.core.packed import batch_of, unpack
from pycolo.core.translation_chain import TranslatorChain
from pycolo.disk.applier import Applier, Part
from pycolo.disk.replica import Replica, ReplicaLimits
from pycolo.disk.secondary import SecondarySide as SecondaryDisks
from pycolo.disk.self_check import DIGEST_BYTES
from pycolo.disk.source import SourceDisk
from pycolo.disk.target import TargetDisk
from pycolo.edge.doorway import Doorway
from pycolo.edge.journal_file import JournalFile
from pycolo.edge.message_stream import MessageStream
from pycolo.edge.nic import Nic
from pycolo.edge.offload import NO_HEADER, settled
from pycolo.edge.packet_channel import PacketChannel
from pycolo.errors import PeerLost
from tcp_frames import GUEST_MAC

from .disks import folder
from .peers import Arrivals
from .reader import Reader

STEPS_MAX = 100
FRAMES_PER_STEP_MAX = 64
_TINY = DataplaneLimits(
    held_frames_max=12, held_bytes_max=9000, flows_max=3, stream_bytes_max=4000, unreleased_bytes_max=9000
)


class _Line(Arrivals):
    """A transport on which the peer speaks when it is its turn."""

    def __init__(self) -> None:
        super().__init__([])
        self.heard = b""

    def say(self, data: bytes) -> None:
        self.chunks += [data] if data else []

    def send(self, buffers: Sequence[bytes | memoryview]) -> int:
        self.heard += b"".join(buffers)
        return super().send(buffers)

    def receive(self) -> bytes:
        if not self.chunks:
            raise BlockingIOError
        return self.chunks.pop(0)


# ---------------------------------------------------------------- agents


@cache
def _places() -> Sequence[Place]:
    return Place(0), Place(1)


def _cards() -> list[Card]:
    """As new, on the same sockets."""
    cards = []
    for place in _places():
        nic = place.card.nic
        card = Card(place.card.number, GUEST_MAC, place.tap, Nic(nic._ours, nic._theirs), TranslatorChain(3, 5000))
        while card.nic.receive_all().count or card.nic.take_back() or card.tap.receive(64).count:
            pass
        everything(place.qemu)
        place.tap.heard()
        cards.append(card)
    return cards


class _Talk:
    """A side, its peer, guest and clients."""

    def __init__(self, side: Side, *, is_primary: bool) -> None:
        self.side, self.line, self.now_ms = side, _Line(), 0.0
        stream = MessageStream(self.line, "the packet channel", wire.decode_header)
        self.channel = PacketChannel(stream, 2, receiver_is_primary=is_primary)
        self.said, self.heard = Counter[bytes](), Counter[bytes]()  # by the guest; by the clients

    def step(self, what: int, reader: Reader) -> None:
        """One of those that are the same for both roles."""
        number, piece = reader.number() & 1, reader.piece()
        place = _places()[number]
        if what < 3:
            self.line.say(_message(what, number, reader, piece))
            self.side.on_channel(self.now_ms)
        elif what == 3:
            for frame in unpack(piece)[:FRAMES_PER_STEP_MAX]:
                with suppress(BlockingIOError):
                    place.qemu.send(frame)
                    self.said[settled(NO_HEADER, frame)] += 1
            if self.side.reads_nic(number):
                self.side.on_nic(number, self.now_ms)
        elif what == 4:
            for frame in unpack(piece)[:FRAMES_PER_STEP_MAX]:
                with suppress(BlockingIOError):
                    place.tap.clients.send(frame)
            if self.side.reads_tap(number):
                self.side.on_tap(number, self.now_ms)
        else:
            self.now_ms += len(piece)
            self.side.on_time(self.now_ms)
        everything(place.qemu)

    def listen(self) -> None:
        """What clients have heard by now."""
        for place in _places():
            self.heard.update(place.tap.heard())


def _message(what: int, number: int, reader: Reader, piece: bytes) -> bytes:
    if what == 0:
        return piece
    if what == 1:
        return wire.HEADER.pack(len(piece), wire.Kind.CONTROL) + piece
    epoch, first_no = reader.number(), reader.number(2)
    frames = batch_of(unpack(piece)[: wire.FRAMES_MAX])
    return b"".join(bytes(part) for part in wire.encode_frames(number, epoch, first_no, frames))


def _choices(reader: Reader) -> Iterator[int]:
    """What an agent is to do, one after the other: below 12."""
    for _ in range(STEPS_MAX):
        if not reader:
            return
        yield reader.number() % 12


def primary_agent(data: bytes) -> None:
    """Clients hear nothing that the guest has not put out, and nothing twice."""
    reader = Reader(data)
    limits = _TINY if reader.flag() else DataplaneLimits().shared_by(2)
    side = PrimarySide(_cards(), lambda _: None, limits, DEFAULT_TERMS, comparing(), LEASE_MS_MAX)
    talk, epoch = _Talk(side, is_primary=True), 1
    side.attach(talk.channel, 0.0)
    side._lease.until_ms = math.inf  # so that what is free to go leaves at once
    with suppress(PeerLost):
        for what in _choices(reader):
            if what < 8:
                talk.step(what, reader)
            elif what < 10:
                side.pause_feed(talk.now_ms)
                side.end_wait()
                epoch += 1
                side.seal(epoch, side.drain(), talk.now_ms)
                side.resume_feed(talk.now_ms)
            elif what == 10:
                side.commit(reader.number(), talk.now_ms)
            else:
                side.attach(talk.channel, talk.now_ms)
            talk.listen()
    side.stats()
    side.go_solo()
    talk.listen()
    assert talk.heard <= talk.said


def secondary_agent(data: bytes) -> None:
    """Clients hear nothing before the takeover, and then what the guest has put out, each at most once."""
    reader = Reader(data)
    limits = _TINY if reader.flag() else DataplaneLimits().shared_by(2)
    doorway = cast(Doorway, mock.Mock(port=1, turn=mock.Mock(return_value=None)))
    side = SecondarySide(_cards(), lambda _: None, limits, lambda _: doorway)
    talk, epoch = _Talk(side, is_primary=False), 0
    side.channel = talk.channel
    with suppress(PeerLost):
        for what in _choices(reader):
            if what < 8:
                talk.step(what, reader)
            elif what < 10:
                side.stop_feed()
                side.drop_output()
                epoch += 1
                side.start_feed(epoch, reader.number(2))
            else:
                side.stop_feed()
            talk.listen()
            assert not talk.heard
    released, _ = side.take_over(talk.now_ms)
    assert sum(batch.count for batch in released) <= talk.said.total()


# ---------------------------------------------------------------- disks

_SIZES = (16 * 4096, 3000)
_ROOM_BLOCKS = 64
_SESSION = "ab" * 16


def _sources(stack: ExitStack, workers: HandWorkers) -> list[SourceDisk]:
    """Two disks of zeros, with everything beside them; nothing is made durable."""
    stack.callback(workers.close)
    for name in ("fsync", "fdatasync"):
        stack.enter_context(mock.patch.object(os, name))
    for path in folder().glob("disk*"):
        path.unlink()
    (folder() / "journal").unlink(missing_ok=True)
    sources = [make_source(folder(), bytes(size), workers, number) for number, size in enumerate(_SIZES)]
    for source in sources:
        stack.callback(source.give_up)
    return sources


class _Disks:
    """The SVM's two disks, their primary, and what they have to be: as long as the primary says whole messages."""

    def __init__(self, stack: ExitStack) -> None:
        self.workers, self.line, self.epoch, self.now_s = HandWorkers(), _Line(), 0, 0.0
        self.side = SecondaryDisks(_ROOM_BLOCKS // 2, lambda _: None)
        sources = _sources(stack, self.workers)
        journal = JournalFile(folder() / "journal")
        self.disks = [TargetDisk(source, BlockStore(_ROOM_BLOCKS), self.side) for source in sources]
        parts = [Part(disk.core, disk.source.image, disk.meta) for disk in self.disks]
        self.side.serve(self.disks, Applier(parts, journal, self.workers))
        self.side.greet(MessageStream(self.line, "the disk channel", disk_wire.decode_header))
        stack.callback(journal.close)
        self._digest = disk_wire.StreamDigest()
        self.pvm = [bytearray(size) for size in _SIZES]
        self.marked: dict[int, list[bytes]] = {}
        self.svm: list[bytearray] | None = None
        self.says_anything = False

    def say(self, data: bytes) -> None:
        self.line.say(data)
        self.side.on_readable()

    def say_anything(self, data: bytes) -> None:
        """What stands behind half a message is no message."""
        self.says_anything, self.svm = True, None
        self.say(data)

    def written(self, disk: int, offset: int, content: bytes) -> None:
        """The PVM writes; outside of the disk it must be refused."""
        body = disk_wire.data_body(disk, offset) + content
        self._digest.add_received(disk_wire.Kind.DATA, body)
        self.say(disk_wire.data_header(len(content)) + body)
        assert self.says_anything or offset + len(content) <= _SIZES[disk]
        self.pvm[disk][offset : offset + len(content)] = content

    def zeroed(self, disk: int, offset: int, length: int) -> None:
        body = disk_wire.zeros_body(disk, offset, length)
        self._digest.add_received(disk_wire.Kind.ZEROS, body)
        self.say(disk_wire.zeros_header() + body)
        assert self.says_anything or offset + length <= _SIZES[disk]
        self.pvm[disk][offset : offset + length] = bytes(length)

    def mark(self) -> None:
        self.epoch += 1
        self.say(disk_wire.encode_control(disk_wire.Mark(self.epoch, self._digest.take())))
        self.marked[self.epoch] = [bytes(content) for content in self.pvm]

    def commit(self) -> None:
        """The SVM becomes the PVM at the last mark."""
        if self.epoch and not self.side.troubled:
            self.side.expect_pause()
            self.side.commit(self.epoch)
            self.svm = None if self.says_anything else [bytearray(content) for content in self.marked[self.epoch]]

    def svm_writes(self, disk: int, offset: int, content: bytes) -> None:
        answer, content = Answer(), content[: _SIZES[disk] - offset]
        if self.svm is None or not content:
            return
        self.disks[disk].write(answer, offset, memoryview(content), fua=False)
        if answer.said == "done":
            self.svm[disk][offset : offset + len(content)] = content
        else:
            self.svm = None  # it waits for room

    def check(self) -> None:
        if self.svm is None or self.side.troubled:
            return
        for disk, content in zip(self.disks, self.svm, strict=True):
            answer = Answer()
            disk.read(answer, 0, disk.size_bytes)
            self.workers.run_all()
            assert answer.said == bytes(content)


def disk_side(data: bytes) -> None:
    """What a primary writes is the SVM's disk from the commit on and not before, with what the SVM writes on top."""
    reader = Reader(data)
    with ExitStack() as stack, suppress(PeerLost):
        disks = _Disks(stack)
        if reader.flag():
            disks.say(disk_wire.encode_control(disk_wire.Begin([True, True])))
        for _ in range(STEPS_MAX):
            if not reader or disks.side.troubled:
                break
            _disk_step(disks, reader)
            disks.side.turn(disks.now_s)
            assert disks.side.used_blocks <= 6 * _ROOM_BLOCKS
            disks.check()


def _disk_step(disks: _Disks, reader: Reader) -> None:
    what, disk, offset = reader.number() % 12, reader.number() & 1, reader.number(2)
    if what < 3:
        disks.written(disk, offset, reader.piece()[:9000] or b"x")
    elif what == 3:
        disks.zeroed(disk, offset, reader.number(2) + 1)
    elif what == 4:
        disks.say(disk_wire.encode_control(disk_wire.Copied(_SESSION)))
    elif what == 5:
        disks.mark()
    elif what == 6:
        disks.commit()
    elif what == 7:
        disks.workers.run_all()
        disks.now_s += 1
    elif what == 8:
        disks.say_anything(reader.piece())
    elif what < 11:
        disks.svm_writes(disk, offset % _SIZES[disk], reader.piece())
    else:
        disks.now_s += 1


class _Copied:
    """What the secondary of an honest stream has."""

    def __init__(self, line: _Line, sources: Sequence[SourceDisk]) -> None:
        self._line, self._far, self._sources = line, _Line(), sources
        self._stream = MessageStream(self._far, "the far end", disk_wire.decode_header)
        self._content = [bytearray(b"?" * size) for size in _SIZES]
        self._digest, self._whole, self._copied = disk_wire.StreamDigest(), False, False

    def hear(self) -> None:
        """Take in what has been sent; at a mark both have the same, if the copy was a whole one."""
        self._far.say(self._line.heard)
        self._line.heard = b""
        while self._stream.read():
            for kind, body in self._stream.messages():
                said = disk_wire.decode(kind, body)
                if kind != disk_wire.Kind.CONTROL:
                    self._digest.add_received(kind, body)
                if isinstance(said, disk_wire.Data):
                    self._content[said.disk][said.offset : said.offset + len(said.content)] = said.content
                elif isinstance(said, disk_wire.Zeros):
                    self._content[said.disk][said.offset : said.offset + said.length] = bytes(said.length)
                elif isinstance(said, disk_wire.Copied):
                    self._copied = True
                elif isinstance(said, disk_wire.Begin):
                    self._whole, self._copied = all(said.whole), False
                elif isinstance(said, disk_wire.Mark):
                    assert said.digest == self._digest.take()
                    if self._whole and self._copied:
                        images = [source.image.read(0, source.size_bytes) for source in self._sources]
                        assert images == self._content


def disk_replica(data: bytes) -> None:
    """A primary's disks, whose secondary says anything: what it gets is what the images have, and the guest waits for
    no answer once it is gone.
    """
    reader, workers = Reader(data), HandWorkers()
    line = _Line()
    with ExitStack() as stack:
        sources = _sources(stack, workers)
        sources[0].meta.change(sources[0].meta.kind, _SESSION)
        limits = ReplicaLimits(1 << 14, 2000, 0)
        stream = MessageStream(line, "the disk channel", disk_wire.decode_header)
        replica, copied = Replica(sources, stream, limits, lambda _: None), _Copied(line, sources)
        answers: list[Answer] = []
        epoch = 0
        with suppress(PeerLost):
            for _ in range(STEPS_MAX):
                if not reader:
                    break
                what = reader.number() % 12
                if what < 4:
                    line.say(_answer(what, reader))
                    replica.on_readable()
                elif what < 8:
                    answers.append(_guest_writes(sources, reader))
                elif what == 8:
                    workers.run_all()
                elif what == 9:
                    replica.has_room(reader.number())
                    epoch += 1
                    replica.expect_pause()
                    replica.seal(epoch, reader.piece()[: DIGEST_BYTES * len(sources)])
                    replica.expect_requests()
                else:
                    replica.turn(float(len(answers)))
                copied.hear()
        replica.close()
        workers.run_all()
        assert all(answer.said == "done" for answer in answers)


def _answer(what: int, reader: Reader) -> bytes:
    """What the secondary's disk process says."""
    if what == 0:
        sessions = [(reader.choice(["", _SESSION]), reader.piece()[:64]) for _ in range(reader.choice([2, 2, 2, 1]))]
        images = [disk_wire.ImageState(*each) for each in sessions]
        return disk_wire.encode_control(disk_wire.Images(images, reader.number(2)))
    if what == 1:
        kinds: tuple[disk_wire.Control, ...] = (disk_wire.Following(), disk_wire.Working(), disk_wire.Adopted())
        return disk_wire.encode_control(reader.choice(kinds))
    return disk_wire.encode_control(disk_wire.Applied(reader.number())) if what == 2 else reader.piece()


def _guest_writes(sources: Sequence[SourceDisk], reader: Reader) -> Answer:
    source, answer = reader.choice(sources), Answer()
    offset, length = reader.number(2) % source.size_bytes, reader.number(2) + 1
    length = min(length, source.size_bytes - offset)
    if reader.flag():
        source.write(answer, offset, memoryview(bytes([reader.number()]) * length), fua=False)
    else:
        source.zero(answer, offset, length, fua=False, may_trim=False)
    return answer
