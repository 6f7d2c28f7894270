# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Connections in plain sailing, compiled: the same verdicts as `flow.Flow`, frame by frame, without Python objects.

A connection is here ("hot") while both copies have opened it, the offset between them is known, and nothing but
payload and acknowledgements passes; `hot_dataplane` brings it here and fetches it back, with all of its state, for
everything else. Each function of `HotFlows` is the twin of one of `flow.Flow` or `twin_stream.TwinStream` and bears its name. The
other classes are the compiled sides of `secondary`, `receive_windows` and `overheard`.

Guarantees: no bytes make anything here raise or read beyond a frame; memory is bounded by what is held and what the
streams have at most, and used again.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

cdef extern from *:
    """
    #define prefetch_read(address) __builtin_prefetch(address, 0)
    #define prefetch_write(address) __builtin_prefetch(address, 1)
    """
    void prefetch_read(const void* address) nogil
    void prefetch_write(const void* address) nogil

include "_packed.pxi"
include "_hot_types.pxi"
include "_hot_pool.pxi"
include "_hot_segment.pxi"
include "_hot_stream.pxi"
include "_hot_judge.pxi"
include "_hot_out.pxi"


include "_hot_store.pxi"


cdef class HotFlows(FlowStore):
    """Its frames."""

    # ---------------------------------------------------------------- one frame

    cdef void _sample(self, double arrived_ms) noexcept nogil:
        """As `HoldLimit.sample`, by `Lateness.released`."""
        cdef double lag_ms = self.now_ms - (arrived_ms if arrived_ms > self.compared_since_ms else self.compared_since_ms)
        cdef double apart, bound_ms
        if lag_ms < 0:
            lag_ms = 0
        if lag_ms > self.limit_ms_max:
            lag_ms = self.limit_ms_max
        if self.sampled:
            apart = lag_ms - self.lag_ms
            if apart < 0:
                apart = -apart
            self.deviation_ms += 0.25 * (apart - self.deviation_ms)
            self.lag_ms += 0.125 * (lag_ms - self.lag_ms)
        else:
            self.lag_ms, self.deviation_ms, self.sampled = lag_ms, lag_ms / 2, True
        bound_ms = 2.0 * (self.lag_ms + 4 * self.deviation_ms)
        if bound_ms < self.limit_ms_min:
            bound_ms = self.limit_ms_min
        self.limit_ms = bound_ms if bound_ms < self.limit_ms_max else self.limit_ms_max

    cdef void _note_released(self, Flow* flow, uint32_t end, uint32_t ack) noexcept nogil:
        flow.left_ack = ack
        if distance(end, flow.released) >= 0:
            flow.released = end
        self.released_equal += 1

    cdef Flow* _of_this_epoch(self, Segment* segment) noexcept nogil:
        """The connection of a plain segment; NULL for all else, which is the twin's."""
        if not segment.plain or segment.flow == NULL:
            return NULL
        if segment.flow.epoch != self.epoch:
            self._rebase(segment.flow)
        return segment.flow

    cdef Done _pvm(self, Segment* segment) noexcept nogil:
        cdef Flow* flow
        cdef Held* held
        cdef uint32_t payload
        cdef Verdict verdict = WAIT
        flow = self._of_this_epoch(segment)
        if flow == NULL:
            return SLOW
        payload = segment.end - segment.start
        if flow.followed and distance(segment.seq, flow.pvm_next) > 0:
            return SLOW  # behind a gap, which the tolerance must not be told of as if it had left
        if not self.awaiting_commit and flow.first == NULL:
            verdict = judge(flow, segment.seq, segment.ack, segment.frame + segment.start, payload)
            if verdict == DIVERGED:
                return SLOW
        if distance(segment.ack, flow.pvm_ack) > 0:
            flow.pvm_ack = segment.ack
        if distance(segment.seq + payload, flow.pvm_next) > 0:
            flow.pvm_next = segment.seq + payload
        if verdict == RELEASE:
            if not put(&self._out, segment.frame, segment.length):
                return NO_MEMORY
            self.next_no += 1
            self._note_released(flow, segment.seq + payload, segment.ack)
            self._sample(self.now_ms)
            return HANDLED
        held = <Held*>take_block(&self._pool, sizeof(Held) + segment.length)
        if held == NULL:
            return NO_MEMORY
        held.next, held.flow, held.no, held.arrived_ms = NULL, flow, self.next_no, self.now_ms
        held.seq, held.ack, held.start, held.end = segment.seq, segment.ack, segment.start, segment.end
        held.length, held.flags, held.at = segment.length, segment.flags, segment.at
        memcpy(held.frame, segment.frame, segment.length)
        if flow.first == NULL:
            flow.first = held
        else:
            flow.last.next = held
        flow.last = held
        held.before, held.behind = self._newest, NULL
        if self._newest != NULL:
            self._newest.behind = held
        else:
            self._oldest = held
        self._newest = held
        self.next_no += 1
        self.held_frames += 1
        self.held_bytes += segment.length
        if flow.first != held and not self.awaiting_commit:
            return self._pump(flow)
        return HANDLED

    cdef Done _svm(self, Segment* segment) noexcept nogil:
        cdef Flow* flow
        cdef Done done
        flow = self._of_this_epoch(segment)
        if flow == NULL:
            return SLOW
        if segment.end > segment.start:
            done = self._svm_payload(flow, segment.seq, segment.frame + segment.start, segment.end - segment.start)
            if done != HANDLED:
                return done
        if distance(segment.ack, flow.svm_ack) > 0:
            flow.svm_ack = segment.ack
        if flow.first != NULL and not self.awaiting_commit:
            return self._pump(flow)
        return HANDLED

    cdef Done _svm_payload(self, Flow* flow, uint32_t seq, const uint8_t* payload, uint32_t length) noexcept nogil:
        """As `Flow._svm_payload` and `TwinStream.add`; nothing is changed when the answer is SLOW."""
        cdef int64_t at, known, same
        if flow.has_acked and distance(flow.acked + flow.delta, seq + length) >= 0:
            return HANDLED
        at = distance(seq, flow.base)
        known = <int64_t>flow.stream_length - at
        if known < 0 or at < 0:
            return SLOW
        if known == 1 and length == 1:
            return HANDLED
        same = known if known < length else length
        if not stream_has(flow, <uint32_t>at, payload, <uint32_t>same):
            return SLOW
        if known >= length:
            return HANDLED
        if flow.stream_length + length - known > self.stream_bytes_max or length - known > self.room_bytes:
            return SLOW
        if not stream_append(&self._pool, flow, payload + known, <uint32_t>(length - known)):
            return NO_MEMORY
        self.stream_bytes += length - known
        self.room_bytes -= length - known
        return HANDLED

    cdef Done _pump(self, Flow* flow) noexcept nogil:
        """As `Flow.release`: what the SVM has said as well leaves."""
        cdef Held* held
        cdef Verdict verdict
        cdef double arrived_ms = flow.first.arrived_ms
        cdef bint some = False
        while flow.first != NULL:
            held = flow.first
            verdict = judge(flow, held.seq, held.ack, held.frame + held.start, held.end - held.start)
            if verdict == DIVERGED:
                if some:
                    self._sample(arrived_ms)
                return PUMP
            if verdict == WAIT:
                break
            if not put(&self._out, held.frame, held.length):
                return NO_MEMORY
            flow.first = held.next
            self._note_released(flow, held.seq + held.end - held.start, held.ack)
            self._give_held(held)
            some = True
        if some:
            self._sample(arrived_ms)
        return HANDLED

    cdef Done _client(self, Segment* segment) noexcept nogil:
        """As `Flow.observe_client`."""
        cdef Flow* flow
        cdef uint32_t end
        cdef int64_t surplus
        cdef int64_t trim_bytes
        flow = self._of_this_epoch(segment)
        if flow == NULL:
            return SLOW
        trim_bytes = TRIM_BYTES if 2 * self.room_bytes < self.total_bytes_max else flow.trim_bytes
        if flow.followed and distance(segment.ack + flow.delta, flow.base) >= trim_bytes:
            return SLOW
        flow.client_spoke = True
        end = segment.seq + segment.end - segment.start
        if distance(end, flow.pvm_ack) < (1 << 30):
            if not flow.has_client_next or distance(end, flow.client_next) > 0:
                flow.client_next, flow.has_client_next = end, True
        if distance(flow.released, segment.ack) < 0:
            return HANDLED
        if flow.has_acked and distance(segment.ack, flow.acked) <= 0:
            return HANDLED
        flow.acked, flow.has_acked = segment.ack, True
        surplus = distance(flow.acked + flow.delta, flow.base)
        if surplus >= trim_bytes:
            if surplus > flow.stream_length:
                surplus = flow.stream_length
            stream_trim(&self._pool, flow, <uint32_t>surplus)
            flow.base += <uint32_t>surplus
            flow.guessed = False
            self.stream_bytes -= surplus
            self.room_bytes += surplus
        return HANDLED

    cdef Done _one(self, int side, Segment* segment) noexcept nogil:
        if side == 0:
            return self._pvm(segment)
        if side == 1:
            return self._svm(segment)
        return self._client(segment)

    # ---------------------------------------------------------------- many frames

    cdef int _look_ahead(self, const uint8_t* packed, size_t size, size_t at, int side, Segment* group) noexcept nogil:
        """Parse up to GROUP frames and find their connections; with many of them each is far from the processor, so
        that all are asked for before any is waited for. Returns how many frames there are.
        """
        cdef int count = 0
        cdef int number
        cdef int64_t length
        cdef Segment* segment
        cdef Flow* flow
        while count < GROUP:
            length = length_of(packed, at, size)
            if length < 0:
                break
            segment = &group[count]
            segment.frame, segment.length = packed + at + PREFIX, <uint32_t>length
            segment.plain = parse(segment.frame, segment.length, segment, side == 2)
            if segment.plain:
                segment.hashed = hash_of(segment.key, segment.key_length, self._seed)
                prefetch_read(&self._table[segment.hashed & (self._size - 1)])
            at += PREFIX + segment.length
            count += 1
        for number in range(count):
            if group[number].plain:
                flow = self._table[group[number].hashed & (self._size - 1)]
                if flow != NULL:
                    prefetch_write(flow)
                    prefetch_write(<uint8_t*>flow + 64)
                    prefetch_write(<uint8_t*>flow + 128)
        for number in range(count):
            if group[number].plain:
                flow = group[number].flow = self._find(&group[number])
                if flow != NULL and side == 1:
                    prefetch_read(flow.first)
                    if flow.last_block != NULL:
                        prefetch_write(flow.last_block.data + flow.stream_end)
        return count

    def run(self, int side, const uint8_t[::1] packed, size_t at):
        """Frames of `packed` from place `at` on, until one is not for us: (its place or the end, what to do with it).

        `side`: 0 the PVM, 1 the SVM, 2 a client. What to do: 0 all is done, 1 the twin has to see this frame, 2 it has
        to say what leaves of this frame's connection.
        """
        cdef size_t size = packed.shape[0]
        cdef Segment group[GROUP]
        cdef int count = GROUP
        cdef int number
        cdef Done done = HANDLED
        with nogil:
            while at < size and done == HANDLED:
                count = self._look_ahead(&packed[0], size, at, side, group)
                if not count:
                    at = size  # what is cut or too long
                for number in range(count):
                    done = self._one(side, &group[number])
                    if done != HANDLED:
                        break
                    at += PREFIX + group[number].length
        if done == NO_MEMORY:
            raise MemoryError
        return at, <int>done

    def pump(self, bytes key):
        """Release what may leave of one connection that holds something; whether the twin has to say it."""
        done = self._pump(self._by_key(key))
        if done == NO_MEMORY:
            raise MemoryError
        return done == PUMP

    def say(self, bytes frame):
        """Something else leaves in between."""
        cdef const uint8_t* text = frame
        if not put(&self._out, text, <uint32_t>len(frame)):
            raise MemoryError

    def take_out(self):
        """What leaves, packed, since the last call."""
        return hand_over(&self._out)


include "_hot_secondary.pxi"
include "_hot_windows.pxi"
include "_hot_accounts.pxi"
