"""The primary's data plane with its plain connections compiled (`_hot`), and its frames in packed batches (`packed`).

Everything that is not plain sailing is the Python twin's, `PrimaryDataplane`: a connection is fetched back before the
twin sees a frame of it, and goes to the compiled side again once it is plain.

Guarantee: whatever the frames and their order, verdicts, order within a flow and figures are those of the twin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from weakref import WeakMethod

from pycolo.core._hot import HotFlows
from pycolo.core.compare_terms import DEFAULT_TERMS, CompareTerms
from pycolo.core.dataplane import PrimaryDataplane
from pycolo.core.flow import Flow
from pycolo.core.flow_table import IDLE_MS_MAX, FlowTable
from pycolo.core.holding import TwinBudget
from pycolo.core.limits import DataplaneLimits
from pycolo.core.packed import PREFIX_BYTES, Packed, frame_at, pack, unpack
from pycolo.core.packet import MASK, Segment, distance, opposite, parse_tcp
from pycolo.core.pieces import FragmentHold

_Twin = Callable[[int, bytes, Segment | None, list[bytes]], None]
"""What it does with a frame: its place in the batch, itself, what it says of TCP, and where to put what leaves."""

_PVM, _SVM, _CLIENT = 0, 1, 2
_SLOW = 1


class HotTable(FlowTable):
    """Knows that some of its connections are elsewhere; what is here of them is as of when they went."""

    def __init__(
        self,
        flows_max: int,
        epoch: int,
        budget: TwinBudget,
        terms: CompareTerms,
        hot: HotFlows,
        fetch: Callable[[bytes], None],
    ) -> None:
        super().__init__(flows_max, epoch, budget, terms)
        self._hot = hot
        self._fetch = WeakMethod(fetch)  # the dataplane has this table: a dataplane of before must not wait for a GC

    def _in_use(self, flow: Flow, now_ms: float) -> bool:
        used = self._hot.seen(flow.key)
        if used is None:
            return super()._in_use(flow, now_ms)
        epoch, touched_ms, holds, _ = used
        return holds or epoch == self.epoch or now_ms - touched_ms < IDLE_MS_MAX

    def _holds(self, flow: Flow) -> bool:
        used = self._hot.seen(flow.key)
        return used[2] if used is not None else super()._holds(flow)

    def is_half_open(self, key: bytes) -> bool:
        """As the twin."""
        used = self._hot.seen(key)
        return super().is_half_open(key) and not (used is not None and used[3])

    def _forget(self, key: bytes, flow: Flow) -> None:
        fetch = self._fetch()
        assert fetch is not None
        fetch(key)
        super()._forget(key, flow)


class HotDataplane(PrimaryDataplane):
    """As `PrimaryDataplane`. `seed` is random: it keeps clients from choosing ports that collide in the table."""

    def __init__(
        self, limits: DataplaneLimits, epoch: int, terms: CompareTerms = DEFAULT_TERMS, *, seed: int = 0
    ) -> None:
        self._hot = HotFlows(seed)
        self._hot.limit_ms_min, self._hot.limit_ms_max = limits.hold_ms_min, limits.hold_ms_max
        self._hot.stream_bytes_max, self._hot.total_bytes_max = limits.stream_bytes_max, limits.unreleased_bytes_max
        self._known = (0, 0, 0, 0)
        super().__init__(limits, epoch, terms)

    def _start_afresh(self) -> None:
        self._hot.drop()
        super()._start_afresh()
        self._known = self._counts()
        self._lateness.beside_ms = None

    def _new_table(self) -> FlowTable:
        return HotTable(self._limits.flows_max, self.epoch, self._budget, self._terms, self._hot, self._fetch)

    # ---------------------------------------------------------------- frames

    def client_frames(self, frames: Sequence[bytes], now_ms: float) -> list[bytes]:
        """As the twin."""
        return unpack(self.client_packed(pack(frames), now_ms))

    def pvm_frames(self, frames: Sequence[bytes], now_ms: float) -> list[bytes]:
        """As the twin."""
        return unpack(self.pvm_packed(pack(frames), now_ms))

    def svm_frames(self, epoch: int, first_no: int, frames: Sequence[bytes], now_ms: float) -> list[bytes]:
        """As the twin."""
        return unpack(self.svm_packed(epoch, first_no, pack(frames), now_ms))

    def client_packed(self, packed: Packed, now_ms: float) -> Packed:
        """As `client_frames`, of a packed batch."""
        self._now_ms = now_ms
        return self._run(_CLIENT, packed, lambda _, __, segment, out: self._client_frame(segment, out))

    def pvm_packed(self, packed: Packed, now_ms: float) -> Packed:
        """As `pvm_frames`, of packed batches."""
        if self._solo:
            return packed
        self._now_ms = now_ms
        return self._run(_PVM, packed, lambda _, *frame: self._pvm_frame(*frame))

    def svm_packed(self, epoch: int, first_no: int, packed: Packed, now_ms: float) -> Packed:
        """As `svm_frames`, of packed batches."""
        self._now_ms = now_ms
        if epoch != self.epoch or self._solo or not packed:
            return b""
        self._lateness.progress(now_ms)
        numbers = _Numbers(packed, first_no)
        return self._run(_SVM, packed, lambda at, *frame: self._svm_frame(numbers.of(at), *frame))

    def _run(self, side: int, packed: Packed, twin: _Twin) -> Packed:
        hot, at = self._hot, 0
        self._tell()
        while True:
            at, what = hot.run(side, packed, at)
            if not what:
                break
            self._listen()
            place, out = at, list[bytes]()
            frame, at = frame_at(packed, at)
            segment = parse_tcp(frame)
            key = _key_of(segment, side)
            if key is not None:
                self._fetch(key)
            if what == _SLOW:
                twin(place, frame, segment, out)
            elif key is not None:
                self._pump_fetched(key, out)
            for each in out:
                hot.say(each)
            if key is not None:
                self._send_off(key)
            self._tell()
        self._listen()
        return hot.take_out()

    def _pump_fetched(self, key: bytes, out: list[bytes]) -> None:
        flow = self._table.get(key, self._now_ms)
        if flow is not None:
            self._pump(flow, out)

    # ---------------------------------------------------------------- checkpoints

    def seal(self, epoch_next: int) -> int:
        """As the twin."""
        for _, key in self._hot.holding():
            self._fetch(key)
        return super().seal(epoch_next)

    def _pump_waiting(self, out: list[bytes]) -> None:
        """As the twin: in one order, wherever a connection is."""
        here = [(flow.hold[0][0], flow) for flow in self._waiting]
        for _, which in sorted([*here, *self._hot.holding()], key=lambda entry: entry[0]):
            if isinstance(which, bytes):
                self._tell()
                slow = self._hot.pump(which)
                self._listen()
                out += unpack(self._hot.take_out())
                if slow:
                    self._fetch(which)
                    self._pump_fetched(which, out)
            elif not isinstance(which, FragmentHold):
                self._pump(which, out)

    def go_solo(self) -> list[bytes]:
        """As the twin."""
        for _, key in self._hot.holding():
            self._fetch(key)
        return super().go_solo()

    # ---------------------------------------------------------------- to and fro

    def _tell(self) -> None:
        hot, limit, budget = self._hot, self._lateness.limit, self._budget
        hot.epoch, hot.awaiting_commit, hot.now_ms = self.epoch, self._awaiting_commit, self._now_ms
        hot.compared_since_ms, hot.next_no = self._lateness.compared_since_ms, self._next_no
        hot.room_bytes = budget.total_bytes_max - budget.used_bytes
        hot.lag_ms, hot.deviation_ms, hot.sampled = limit.lag_ms, limit.deviation_ms, limit.sampled
        hot.limit_ms = limit.limit_ms

    def _listen(self) -> None:
        hot, limit = self._hot, self._lateness.limit
        frames, held_bytes, released, stream = self._known
        self._known = self._counts()
        self._held_frames += hot.held_frames - frames
        self._held_bytes += hot.held_bytes - held_bytes
        self._released_equal += hot.released_equal - released
        self._budget.used_bytes += hot.stream_bytes - stream
        self._next_no = hot.next_no
        self._lateness.beside_ms = hot.oldest_ms
        limit.lag_ms, limit.deviation_ms, limit.sampled = hot.lag_ms, hot.deviation_ms, hot.sampled
        limit.limit_ms = hot.limit_ms

    def _counts(self) -> tuple[int, int, int, int]:
        hot = self._hot
        return hot.held_frames, hot.held_bytes, hot.released_equal, hot.stream_bytes

    def _send_off(self, key: bytes) -> None:
        """A plain connection goes to the compiled side."""
        flow = self._table.known(key)
        if flow is None or flow.epoch != self.epoch or not _is_plain(flow):
            return
        twin = flow.twin
        numbers = (
            twin.base,
            twin.guessed,
            flow.delta,
            flow.pvm_first,
            flow.pvm_next,
            flow.pvm_ack,
            flow.released,
            flow.svm_ack,
            flow.left_ack,
            flow.acked is not None,
            flow.acked or 0,
            flow.client_next is not None,
            flow.client_next or 0,
        )
        followed, trim_bytes = flow.tolerance is not None, flow.trim_bytes
        if self._hot.freeze(key, numbers, bytes(twin.main), flow.touched_ms, followed, trim_bytes):
            stream_bytes = len(twin.main)
            twin.set(None, bytearray(), guessed=True)
            self._budget.used_bytes += stream_bytes
            self._known = self._counts()

    def _fetch(self, key: bytes) -> None:
        """If a connection is on the compiled side, bring it back with all that it holds."""
        if self._hot.seen(key) is None:
            return
        self._tell()
        stream_bytes = self._hot.stream_bytes
        thawed = self._hot.thaw(key)
        self._budget.used_bytes += self._hot.stream_bytes - stream_bytes
        self._known = self._counts()
        flow = self._table.known(key)
        if thawed is None or flow is None:
            return
        numbers, stream, touched_ms, client_spoke, held = thawed
        base, guessed, delta, first, following, ack, released, svm_ack, left_ack, *client = numbers
        has_acked, acked, has_next, client_next = client
        if flow.epoch != self.epoch:
            flow.rebase_identity()
            flow.epoch = self.epoch
        flow.twin.set(base, bytearray(stream), guessed=bool(guessed))
        flow.delta, flow.pvm_first, flow.pvm_next, flow.pvm_ack = delta, first, following, ack
        flow.released, flow.svm_ack, flow.left_ack, flow.touched_ms = released, svm_ack, left_ack, touched_ms
        flow.acked, flow.client_next = acked if has_acked else None, client_next if has_next else None
        _catch_up(flow)
        if client_spoke:
            self._table.note_client(flow)
        if held:
            flow.hold.extend(held)
            self._waiting[flow] = None
            self._lateness.moved_here([(entry[0], entry[1]) for entry in held], flow)
        self._lateness.beside_ms = self._hot.oldest_ms


def _is_plain(flow: Flow) -> bool:
    """Nothing but payload and acknowledgements can be expected, and all that matters of it are numbers and bytes."""
    twin = flow.twin
    return not (
        flow.hold
        or flow.diverged
        or flow.client_gone
        or flow.pvm_rst
        or flow.svm_rst
        or not flow.compared
        or flow.pvm_open != flow.svm_open
        or flow.successor is not None
        or (flow.tolerance is not None and flow.tolerance.next_seq != flow.released)
        or flow.tolerated
        or flow.svm_odd.any
        or twin.apart
        or (twin.guessed and not twin.main)
        or {flow.pvm_fin, flow.svm_fin, flow.client_fin} != {None}
        or None in (flow.delta, flow.pvm_first, flow.pvm_next, flow.pvm_ack, flow.released, flow.svm_ack)
        or None in (flow.left_ack, twin.base)
    )


def _catch_up(flow: Flow) -> None:
    """Tell the tolerance what has left unseen by it: while bytes are equal, the SVM's are the PVM's."""
    if flow.tolerance is None or flow.released is None or flow.delta is None:
        return
    seq = flow.tolerance.next_seq
    missing = distance(flow.released, seq)
    said = flow.twin.said((seq + flow.delta) & MASK, missing) if missing > 0 else b""
    if len(said) < missing:
        flow.tolerance = None
    elif said:
        flow.tolerance.advance(seq, said)
        flow.tolerance = None if flow.tolerance.lost else flow.tolerance


class _Numbers:
    """The numbers of a packed batch's frames, asked for by their places, the first ones first."""

    def __init__(self, packed: Packed, first_no: int) -> None:
        self._packed, self._at, self._no = packed, 0, first_no

    def of(self, at: int) -> int:
        """The number of the frame at this place."""
        while self._at < at:
            self._at += PREFIX_BYTES + int.from_bytes(self._packed[self._at : self._at + PREFIX_BYTES])
            self._no += 1
        return self._no


def _key_of(segment: Segment | None, side: int) -> bytes | None:
    if segment is None:
        return None
    return opposite(segment[0]) if side == _CLIENT else segment[0]
