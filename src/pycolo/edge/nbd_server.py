"""One NBD client's connection, for an epoll loop of the caller.

Guarantees: never blocks; handles every whole request that has come and sends the replies of a turn in one call where
they fit; never has more than REQUESTS_IN_FLIGHT_MAX requests unanswered, nor more than OWED_BYTES_MAX and one reply of
data promised or unsent: beyond that it stops reading. A client that breaks the protocol or goes away loses its
connection and nothing else; answers that come later are ignored.

The loop calls `on_readable` when the socket is readable and `wants_read`, and `on_writable` when `wants_write` and the
socket is writable, or right away: what completes later only queues its reply, so that a loop can send them together.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence

from pycolo.core import nbd
from pycolo.core.nbd import (
    CMD_BLOCK_STATUS,
    CMD_DISC,
    CMD_FLUSH,
    CMD_READ,
    CMD_TRIM,
    CMD_WRITE,
    FLAG_FUA,
    FLAG_NO_HOLE,
    FLAG_REQ_ONE,
    NbdViolation,
    Request,
    RequestBuffer,
    Session,
)
from pycolo.core.nbd_handshake import GREETING, ExportInfo, Handshake
from pycolo.edge.nbd_export import Export

REQUESTS_IN_FLIGHT_MAX = 64
OWED_BYTES_MAX = 64 << 20
HANDSHAKE_READ_BYTES = 1 << 14
JOIN_BYTES_MAX = 1 << 14  # below this, one string is cheaper than a vector of buffers
BUFFERS_PER_SEND_MAX = 1024  # IOV_MAX


class NbdConnection:
    """One client. `closed` tells when it is over, and `why` in words for a log."""

    def __init__(self, sock: socket.socket, exports: Mapping[str, Export]) -> None:
        """Takes over `sock`, a connected stream; the first of `exports` is also the one without a name."""
        sock.setblocking(False)
        self.closed = False
        self.why = ""
        self._socket = sock
        self._exports = exports
        self._handshake = Handshake({name: ExportInfo(e.size_bytes, e.read_only) for name, e in exports.items()})
        self._transmission: _Transmission | None = None
        self._out: list[bytes | memoryview] = [GREETING]
        self._out_bytes = len(GREETING)
        self._promised_bytes = 0  # of reads that have not been answered yet
        self._in_flight = 0
        self._more = False  # whole requests may wait in the buffer
        self._ending = False  # the client has said goodbye; what it asked for before is still answered

    def fileno(self) -> int:
        """For the event loop."""
        return self._socket.fileno()

    @property
    def wants_read(self) -> bool:
        """Whether more requests may come."""
        return not (self.closed or self._ending or self._more) and self._has_room()

    @property
    def wants_write(self) -> bool:
        """Whether replies wait to be sent; requests that waited for room are waiting for nothing else."""
        return bool(self._out)

    def on_readable(self) -> None:
        """Take what has come, handle it, send the replies."""
        if not self.wants_read:  # it was readable before something else of the same turn took the last room
            return
        try:
            if self._transmission is not None:
                inbound = self._transmission.inbound
                count = self._socket.recv_into(inbound.space())
                inbound.filled(count)
            else:
                count = self._shake_hands(self._socket.recv(HANDSHAKE_READ_BYTES))
        except BlockingIOError:
            return
        except OSError as error:
            self.close(f"the connection broke: {error.strerror}")
            return
        if count:
            self._more = True
            self._advance()
        else:
            self.close("the client went away")

    def on_writable(self) -> None:
        """Send replies that wait, and go on with requests that waited for room."""
        if not self.closed:
            self._advance()

    def close(self, why: str = "closed by us") -> None:
        """End it now; may be called again."""
        if self.closed:
            return
        self.closed = True
        self.why = why
        self._out.clear()
        self._transmission = None  # it refers to us, and the 32 MiB it may hold must not wait for a garbage collector
        self._socket.close()

    # ---- in

    def _shake_hands(self, data: bytes) -> int:
        handshake = self._handshake
        answer = handshake.feed(data)
        if answer:
            self._queue(answer)
        if handshake.session is not None:
            export = self._exports[handshake.session.export]
            self._transmission = _Transmission(self, handshake.session, export)
            self._transmission.inbound.feed(handshake.rest())
        self._ending = handshake.ended
        return len(data)

    def _has_room(self) -> bool:
        return self._in_flight < REQUESTS_IN_FLIGHT_MAX and self._out_bytes + self._promised_bytes < OWED_BYTES_MAX

    def _advance(self) -> None:
        """Handle and send until nothing is left or the client does not take more."""
        try:
            while True:
                if self._more:
                    self._handle_requests()
                self._send()
                if self.closed or not (self._more and self._has_room()):
                    break
        except NbdViolation as violation:
            self._send()  # what came before it was right, and has been carried out
            self.close(str(violation))
        if self._ending and not self._in_flight and not self._out:
            self.close(self._handshake.violation or "the client said goodbye")

    def _handle_requests(self) -> None:
        transmission = self._transmission
        if transmission is None:
            self._more = False
            return
        take = transmission.inbound.take
        while self._has_room():
            request = take()
            if request is None:
                self._more = False
                return
            if request[1] == CMD_DISC:
                self._ending, self._more = True, False
                return
            self._in_flight += 1
            transmission.begin(request)

    # ---- out

    def promise(self, length: int) -> None:
        """A read of `length` bytes has begun."""
        self._promised_bytes += length

    def answer(self, reply: bytes, promised: int = 0, data: Sequence[bytes | memoryview] = ()) -> None:
        """Queue the reply to one request, of which `promised` bytes had been announced."""
        if self.closed:
            return
        self._in_flight -= 1
        self._promised_bytes -= promised
        self._queue(reply)
        for buffer in data:
            self._queue(buffer)

    def _queue(self, buffer: bytes | memoryview) -> None:
        self._out.append(buffer)
        self._out_bytes += len(buffer)

    def _send(self) -> None:
        if not self._out:
            return
        try:
            if self._out_bytes <= JOIN_BYTES_MAX:
                sent = self._socket.send(b"".join(self._out))
            else:
                sent = self._socket.sendmsg(self._out[:BUFFERS_PER_SEND_MAX])
            self._forget(sent)
        except BlockingIOError:
            pass
        except OSError as error:
            self.close(f"the connection broke: {error.strerror}")

    def _forget(self, sent: int) -> None:
        """Drop what has been sent; a rest of a buffer stays as a view, so nothing is moved."""
        self._out_bytes -= sent
        if not self._out_bytes:
            self._out.clear()
            return
        whole = 0
        for buffer in self._out:
            if len(buffer) > sent:
                break
            sent -= len(buffer)
            whole += 1
        del self._out[:whole]
        self._out[0] = memoryview(self._out[0])[sent:]


class _Transmission:
    """The transmission phase: each request to the export, or refused."""

    def __init__(self, connection: NbdConnection, session: Session, export: Export) -> None:
        self._connection, self._session, self._export = connection, session, export
        self._allowed = nbd.flags_allowed(session)
        self.inbound = RequestBuffer()

    def begin(self, request: Request) -> None:
        """Hand one request to the export."""
        flags, command, cookie, offset, length, payload = request
        ticket = _Ticket(self._connection, self._session.structured, cookie, offset)
        error = nbd.refusal(self._session, self._allowed, request)
        if error:
            ticket.failed(error)
        elif command == CMD_WRITE:
            self._export.write(ticket, offset, payload, fua=bool(flags & FLAG_FUA))
        elif command == CMD_READ:
            ticket.promised = length
            self._connection.promise(length)
            self._export.read(ticket, offset, length)
        elif command == CMD_FLUSH:
            self._export.flush(ticket)
        elif command == CMD_TRIM:
            self._export.trim(ticket, offset, length, fua=bool(flags & FLAG_FUA))
        elif command == CMD_BLOCK_STATUS:
            self._block_status(ticket, offset, length, bool(flags & FLAG_REQ_ONE))
        else:
            may_trim = not flags & FLAG_NO_HOLE
            self._export.zero(ticket, offset, length, fua=bool(flags & FLAG_FUA), may_trim=may_trim)

    def _block_status(self, ticket: _Ticket, offset: int, length: int, only_one: bool) -> None:
        try:
            extents = self._export.block_status(offset, length)
        except OSError as error:
            ticket.failed(error.errno or 0)
        else:
            ticket.extents(nbd.clipped(extents, length, only_one))


class _Ticket:
    """One request's answer, whenever it comes."""

    __slots__ = ("_connection", "_cookie", "_offset", "_structured", "promised")

    def __init__(self, connection: NbdConnection, structured: bool, cookie: int, offset: int) -> None:
        self._connection, self._structured, self._cookie, self._offset = connection, structured, cookie, offset
        self.promised = 0  # bytes of a read

    def done(self) -> None:
        self._connection.answer(nbd.simple_reply(self._cookie))

    def data(self, buffers: Sequence[bytes | memoryview]) -> None:
        length = sum(map(len, buffers))
        assert length == self.promised, f"a read of {self.promised} bytes got {length}"
        if self._structured:
            head = nbd.read_chunk_head(self._cookie, self._offset, length)
        else:
            head = nbd.simple_reply(self._cookie)
        self._connection.answer(head, length, buffers)

    def failed(self, error: int) -> None:
        error = nbd.nbd_error(error)
        reply = nbd.error_chunk(self._cookie, error) if self._structured else nbd.simple_reply(self._cookie, error)
        self._connection.answer(reply, self.promised)

    def extents(self, extents: Sequence[tuple[int, int]]) -> None:
        self._connection.answer(nbd.status_chunk(self._cookie, extents))
