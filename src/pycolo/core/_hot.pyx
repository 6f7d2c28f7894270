# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Connections in plain sailing, compiled: the same verdicts as `flow.Flow`, frame by frame, without Python objects.

A connection is here ("hot") while both copies have opened it, the offset between them is known, and nothing but
payload and acknowledgements passes; `hot_dataplane` brings it here and fetches it back, with all of its state, for
everything else. Each function here is the twin of one of `flow.Flow` or `twin_stream.TwinStream` and bears its name.

Guarantees: no bytes make anything here raise or read beyond a frame; memory is what is held and what the streams have.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memmove, memset

cdef enum:
    KEY_BYTES = 40
    PREFIX = 4
    FRAME_MAX = 65553
    TRIM_BYTES = 4096
    FLAG_FIN = 0x01
    FLAG_SYN = 0x02
    FLAG_RST = 0x04
    FLAG_ACK = 0x10
    FLAG_URG = 0x20
    EVENTS = 0x27
    OPTION_END = 0
    OPTION_NOP = 1
    OPTION_SACK = 5
    OPTION_TIMESTAMP = 8

cdef enum Verdict:
    WAIT = 0
    RELEASE = 1
    DIVERGED = 2

cdef enum Done:
    HANDLED = 0
    SLOW = 1  # not for us: the Python twin has to see this frame
    PUMP = 2  # taken in, but what leaves now the Python twin has to say
    NO_MEMORY = 3

cdef struct Held:
    Held* next  # in its flow
    Held* before  # among all that are held, by age
    Held* behind
    Flow* flow
    int64_t no
    double arrived_ms
    uint32_t seq
    uint32_t ack
    uint32_t start
    uint32_t end
    uint32_t length
    uint16_t flags
    uint16_t at
    uint8_t frame[0]

cdef struct Flow:
    Flow* chain
    uint64_t hashed
    int64_t epoch
    double touched_ms
    Held* first
    Held* last
    uint8_t* stream
    uint32_t stream_start  # of the main run, in its buffer
    uint32_t stream_length
    uint32_t stream_room
    uint32_t base
    uint32_t delta
    uint32_t pvm_first
    uint32_t pvm_next
    uint32_t pvm_ack
    uint32_t released
    uint32_t acked
    uint32_t client_next
    uint32_t svm_ack
    uint8_t has_acked
    uint8_t has_client_next
    uint8_t client_spoke
    uint8_t guessed
    uint8_t key_length
    uint8_t key[KEY_BYTES]

cdef struct Segment:
    uint32_t seq
    uint32_t ack
    uint32_t start
    uint32_t end
    uint16_t at
    uint16_t flags
    uint8_t key_length
    uint8_t key[KEY_BYTES]

cdef struct Buffer:
    uint8_t* data
    size_t length
    size_t room

cdef inline int32_t distance(uint32_t a, uint32_t b) noexcept nogil:
    return <int32_t>(a - b)

cdef inline uint32_t be16(const uint8_t* p) noexcept nogil:
    return (<uint32_t>p[0] << 8) | p[1]

cdef inline uint32_t be32(const uint8_t* p) noexcept nogil:
    return (<uint32_t>p[0] << 24) | (<uint32_t>p[1] << 16) | (<uint32_t>p[2] << 8) | p[3]


# ---------------------------------------------------------------- parsing

cdef bint _plain_options(const uint8_t* frame, uint32_t at, uint32_t end) noexcept nogil:
    """Whether there is nothing but NOP, timestamp and SACK."""
    cdef uint32_t length
    while at < end:
        if frame[at] == OPTION_END:
            return True
        if frame[at] == OPTION_NOP:
            at += 1
            continue
        if at + 1 >= end:
            return False
        length = frame[at + 1]
        if length < 2 or at + length > end:
            return False
        if frame[at] != OPTION_SACK and frame[at] != OPTION_TIMESTAMP:
            return False
        at += length
    return True


cdef bint parse(const uint8_t* frame, uint32_t length, Segment* found, bint inbound) noexcept nogil:
    """A plain segment over IPv4 or IPv6 without tags, options or extensions of IP; the key as the guest sees it."""
    cdef uint32_t at, end, size, start, kind
    if length < 54:
        return False
    kind = be16(frame + 12)
    if kind == 0x0800:
        if frame[14] != 0x45 or frame[23] != 6 or be16(frame + 20) & 0xBFFF:
            return False
        at, end, size = 34, 14 + be16(frame + 16), 4
    elif kind == 0x86DD:
        if frame[14] >> 4 != 6 or frame[20] != 6 or length < 74:
            return False
        at, end, size = 54, 54 + be16(frame + 18), 16
    else:
        return False
    if end > length or at + 20 > end:
        return False
    start = at + (frame[at + 12] >> 4) * 4
    if start < at + 20 or start > end:
        return False
    found.flags = frame[at + 13]
    if found.flags & EVENTS or not found.flags & FLAG_ACK:
        return False
    if start != at + 20 and not (start == at + 32 and be32(frame + at + 20) == 0x0101080A):
        if not _plain_options(frame, at + 20, start):
            return False
    found.seq, found.ack = be32(frame + at + 4), be32(frame + at + 8)
    found.at, found.start, found.end = at, start, end
    found.key_length = 2 * size + 4
    if inbound:
        memcpy(found.key, frame + at - size, size)
        memcpy(found.key + size, frame + at - 2 * size, size)
        found.key[2 * size] = frame[at + 2]
        found.key[2 * size + 1] = frame[at + 3]
        found.key[2 * size + 2] = frame[at]
        found.key[2 * size + 3] = frame[at + 1]
    else:
        memcpy(found.key, frame + at - 2 * size, 2 * size + 4)
    return True


cdef uint64_t hash_of(const uint8_t* key, uint32_t length, uint64_t seed) noexcept nogil:
    """Keyed, so that nobody can choose addresses and ports that collide."""
    cdef uint64_t mixed = seed ^ length
    cdef uint32_t at
    for at in range(0, length, 4):
        mixed = (mixed ^ be32(key + at)) * <uint64_t>0x9E3779B97F4A7C15
        mixed ^= mixed >> 29
    mixed = (mixed ^ seed) * <uint64_t>0xBF58476D1CE4E5B9
    return mixed ^ (mixed >> 32)


# ---------------------------------------------------------------- the SVM's stream

cdef bint _stream_append(Flow* flow, const uint8_t* payload, uint32_t length) noexcept nogil:
    cdef uint32_t room
    cdef uint8_t* larger
    if flow.stream_start + flow.stream_length + length > flow.stream_room:
        if flow.stream_start and (flow.stream_start >= flow.stream_length or flow.stream_length == 0):
            memmove(flow.stream, flow.stream + flow.stream_start, flow.stream_length)
            flow.stream_start = 0
        if flow.stream_start + flow.stream_length + length > flow.stream_room:
            room = 2 * (flow.stream_start + flow.stream_length + length)
            larger = <uint8_t*>realloc(flow.stream, room)
            if larger == NULL:
                return False
            flow.stream, flow.stream_room = larger, room
    memcpy(flow.stream + flow.stream_start + flow.stream_length, payload, length)
    flow.stream_length += length
    return True


cdef Verdict judge_payload(Flow* flow, uint32_t seq, const uint8_t* payload, uint32_t length) noexcept nogil:
    cdef int32_t below, at
    cdef int64_t low, high
    cdef const uint8_t* main = flow.stream + flow.stream_start
    if flow.has_acked:
        below = distance(flow.acked, seq)
        if below > 0:
            if <uint32_t>below >= length:
                return RELEASE
            seq, payload, length = seq + below, payload + below, length - below
    at = distance(seq + flow.delta, flow.base)
    if at >= 0 and <int64_t>at + length <= flow.stream_length:
        return RELEASE if memcmp(main + at, payload, length) == 0 else DIVERGED
    low = -<int64_t>at if at < 0 else 0
    high = <int64_t>flow.stream_length - at
    if high > length:
        high = length
    if high > low and memcmp(main + at + low, payload + low, <size_t>(high - low)) != 0:
        return DIVERGED
    return WAIT


cdef Verdict judge(Flow* flow, uint32_t seq, uint32_t ack, const uint8_t* payload, uint32_t length) noexcept nogil:
    cdef Verdict verdict
    if length:
        verdict = judge_payload(flow, seq, payload, length)
        if verdict != RELEASE:
            return verdict
    return RELEASE if distance(flow.svm_ack, ack) >= 0 else WAIT


cdef bint put(Buffer* out, const uint8_t* frame, uint32_t length) noexcept nogil:
    """Append a frame to a packed buffer."""
    cdef size_t needed = out.length + PREFIX + length
    cdef uint8_t* larger
    cdef uint8_t* place
    if needed > out.room:
        larger = <uint8_t*>realloc(out.data, 2 * needed)
        if larger == NULL:
            return False
        out.data, out.room = larger, 2 * needed
    place = out.data + out.length
    place[0], place[1], place[2], place[3] = length >> 24, length >> 16 & 0xFF, length >> 8 & 0xFF, length & 0xFF
    memcpy(place + PREFIX, frame, length)
    out.length = needed
    return True


def whole_bytes(const uint8_t[::1] packed):
    """As `packed.whole_bytes`."""
    cdef size_t size = packed.shape[0]
    cdef size_t at = 0
    cdef uint32_t length
    with nogil:
        while at + PREFIX <= size:
            length = be32(&packed[at])
            if length > FRAME_MAX or at + PREFIX + length > size:
                break
            at += PREFIX + length
    return at


cdef class HotFlows:
    """The table; attributes are told and read by `hot_dataplane` around each batch."""

    cdef Flow** _table
    cdef size_t _size
    cdef size_t _count
    cdef uint64_t _seed
    cdef Held* _oldest
    cdef Held* _newest
    cdef Buffer _out
    cdef public int64_t epoch
    cdef public bint awaiting_commit
    cdef public double now_ms
    cdef public double compared_since_ms
    cdef public int64_t next_no
    cdef public int64_t held_frames
    cdef public int64_t held_bytes
    cdef public int64_t released_equal
    cdef public int64_t stream_bytes
    cdef public int64_t stream_bytes_max  # of one flow
    cdef public int64_t room_bytes  # for all streams together, at the moment
    cdef public double lag_ms
    cdef public double deviation_ms
    cdef public bint sampled
    cdef public double limit_ms
    cdef public double limit_ms_min
    cdef public double limit_ms_max

    def __cinit__(self, uint64_t seed):
        self._seed = seed
        self._size = 1024
        self._table = <Flow**>calloc(self._size, sizeof(Flow*))
        if self._table == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef size_t place
        cdef Flow* flow
        if self._table != NULL:
            for place in range(self._size):
                while self._table[place] != NULL:
                    flow = self._table[place]
                    self._table[place] = flow.chain
                    self._free(flow)
            free(self._table)
        free(self._out.data)

    def __len__(self):
        return self._count

    # ---------------------------------------------------------------- the table

    cdef Flow* _find(self, Segment* segment) noexcept nogil:
        cdef uint64_t hashed = hash_of(segment.key, segment.key_length, self._seed)
        cdef Flow* flow = self._table[hashed & (self._size - 1)]
        while flow != NULL:
            if flow.hashed == hashed and flow.key_length == segment.key_length:
                if memcmp(flow.key, segment.key, segment.key_length) == 0:
                    return flow
            flow = flow.chain
        return NULL

    cdef Flow* _by_key(self, bytes key):
        cdef Segment segment
        cdef const uint8_t* text = key
        if len(key) > KEY_BYTES:
            return NULL
        segment.key_length = <uint8_t>len(key)
        memcpy(segment.key, text, segment.key_length)
        return self._find(&segment)

    cdef void _free(self, Flow* flow) noexcept nogil:
        cdef Held* held
        while flow.first != NULL:
            held = flow.first
            flow.first = held.next
            self._unlink(held)
            free(held)
        self.stream_bytes -= flow.stream_length
        free(flow.stream)
        free(flow)

    cdef void _unlink(self, Held* held) noexcept nogil:
        """It is held no more."""
        if held.before != NULL:
            held.before.behind = held.behind
        else:
            self._oldest = held.behind
        if held.behind != NULL:
            held.behind.before = held.before
        else:
            self._newest = held.before
        self.held_frames -= 1
        self.held_bytes -= held.length

    cdef int _grow(self) except -1:
        cdef size_t size = self._size * 2
        cdef size_t place
        cdef Flow* flow
        cdef Flow** larger = <Flow**>calloc(size, sizeof(Flow*))
        if larger == NULL:
            raise MemoryError
        for place in range(self._size):
            while self._table[place] != NULL:
                flow = self._table[place]
                self._table[place] = flow.chain
                flow.chain = larger[flow.hashed & (size - 1)]
                larger[flow.hashed & (size - 1)] = flow
        free(self._table)
        self._table, self._size = larger, size
        return 0

    def freeze(self, bytes key, tuple numbers, bytes stream, double touched_ms):
        """Take over a connection that holds nothing. `numbers` as `thaw` gives them."""
        cdef Flow* flow
        cdef const uint8_t* text = key
        cdef const uint8_t* said = stream
        if len(key) != 12 and len(key) != 36:
            return False  # with VLAN tags, which `parse` does not look behind
        if self._count >= self._size:
            self._grow()
        flow = <Flow*>calloc(1, sizeof(Flow))
        if flow == NULL:
            raise MemoryError
        flow.key_length = <uint8_t>len(key)
        memcpy(flow.key, text, flow.key_length)
        (flow.base, flow.guessed, flow.delta, flow.pvm_first, flow.pvm_next, flow.pvm_ack, flow.released, flow.svm_ack,
         flow.has_acked, flow.acked, flow.has_client_next, flow.client_next) = numbers
        flow.epoch, flow.touched_ms = self.epoch, touched_ms
        if len(stream) and not _stream_append(flow, said, <uint32_t>len(stream)):
            free(flow)
            raise MemoryError
        self.stream_bytes += flow.stream_length
        flow.hashed = hash_of(flow.key, flow.key_length, self._seed)
        flow.chain = self._table[flow.hashed & (self._size - 1)]
        self._table[flow.hashed & (self._size - 1)] = flow
        self._count += 1
        return True

    def thaw(self, bytes key):
        """Give a connection back: (numbers, stream, touched_ms, client_spoke, held), None when it is not here.

        held: (number, arrived_ms, frame, seq, ack, flags, at, start, end) each, the oldest first.
        """
        cdef Flow* flow = self._by_key(key)
        cdef Flow** place
        cdef Held* held
        if flow == NULL:
            return None
        if flow.epoch != self.epoch:
            self._rebase(flow)
        numbers = (flow.base, flow.guessed, flow.delta, flow.pvm_first, flow.pvm_next, flow.pvm_ack, flow.released,
                   flow.svm_ack, flow.has_acked, flow.acked, flow.has_client_next, flow.client_next)
        stream = b""
        if flow.stream_length:
            stream = (<char*>flow.stream)[flow.stream_start:flow.stream_start + flow.stream_length]
        entries = []
        held = flow.first
        while held != NULL:
            entries.append((held.no, held.arrived_ms, (<char*>held.frame)[:held.length], held.seq, held.ack, held.flags,
                            held.at, held.start, held.end))
            held = held.next
        touched_ms, spoke = flow.touched_ms, <bint>flow.client_spoke
        place = &self._table[flow.hashed & (self._size - 1)]
        while place[0] != flow:
            place = &place[0].chain
        place[0] = flow.chain
        self._count -= 1
        self._free(flow)
        return numbers, stream, touched_ms, spoke, entries

    def drop(self):
        """Forget all of them."""
        for key in self.keys():
            self.thaw(key)

    def holding(self):
        """Keys of the connections that hold something, in the order of their oldest held frames."""
        keys = {}
        cdef Held* held = self._oldest
        while held != NULL:
            keys[(<char*>held.flow.key)[:held.flow.key_length]] = None
            held = held.behind
        return list(keys)

    def keys(self):
        """All of them."""
        cdef size_t place
        cdef Flow* flow
        found = []
        for place in range(self._size):
            flow = self._table[place]
            while flow != NULL:
                found.append((<char*>flow.key)[:flow.key_length])
                flow = flow.chain
        return found

    def seen(self, bytes key):
        """(epoch in which it was used last, ms when that was first, whether it holds something, whether its client has
        said anything here); None when it is not here.
        """
        cdef Flow* flow = self._by_key(key)
        if flow == NULL:
            return None
        return flow.epoch, flow.touched_ms, flow.first != NULL, <bint>flow.client_spoke

    @property
    def oldest_ms(self):
        """When the frame that has been held longest came; None when nothing is held."""
        return None if self._oldest == NULL else self._oldest.arrived_ms

    # ---------------------------------------------------------------- one frame

    cdef void _rebase(self, Flow* flow) noexcept nogil:
        """As `Flow.rebase`, for one that holds nothing: the SVM is a copy of the PVM, and its stream the PVM's."""
        cdef uint32_t base = flow.base - flow.delta
        cdef int64_t length = distance(flow.released, base)
        cdef int64_t surplus
        if length > flow.stream_length:
            length = flow.stream_length
        if length <= 0 or base + <uint32_t>length != flow.pvm_next:
            base, length = flow.pvm_next, 0
        surplus = length - self.stream_bytes_max // 2
        if surplus > 0:
            base, length = base + <uint32_t>surplus, length - surplus
            flow.stream_start += <uint32_t>surplus
        self.stream_bytes += length - flow.stream_length
        flow.stream_length = <uint32_t>length
        flow.base, flow.guessed, flow.delta = base, False, 0
        flow.svm_ack, flow.released = flow.pvm_ack, flow.pvm_next
        flow.epoch, flow.touched_ms = self.epoch, self.now_ms

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

    cdef void _note_released(self, Flow* flow, uint32_t end) noexcept nogil:
        if distance(end, flow.released) >= 0:
            flow.released = end
        self.released_equal += 1

    cdef Done _pvm(self, const uint8_t* frame, uint32_t length) noexcept nogil:
        cdef Segment segment
        cdef Flow* flow
        cdef Held* held
        cdef uint32_t payload
        cdef Verdict verdict = WAIT
        if not parse(frame, length, &segment, False):
            return SLOW
        flow = self._find(&segment)
        if flow == NULL:
            return SLOW
        if flow.epoch != self.epoch:
            self._rebase(flow)
        payload = segment.end - segment.start
        if not self.awaiting_commit and flow.first == NULL:
            verdict = judge(flow, segment.seq, segment.ack, frame + segment.start, payload)
            if verdict == DIVERGED:
                return SLOW
        if distance(segment.ack, flow.pvm_ack) > 0:
            flow.pvm_ack = segment.ack
        if distance(segment.seq + payload, flow.pvm_next) > 0:
            flow.pvm_next = segment.seq + payload
        if verdict == RELEASE:
            if not put(&self._out, frame, length):
                return NO_MEMORY
            self.next_no += 1
            self._note_released(flow, segment.seq + payload)
            self._sample(self.now_ms)
            return HANDLED
        held = <Held*>malloc(sizeof(Held) + length)
        if held == NULL:
            return NO_MEMORY
        held.next, held.flow, held.no, held.arrived_ms = NULL, flow, self.next_no, self.now_ms
        held.seq, held.ack, held.start, held.end = segment.seq, segment.ack, segment.start, segment.end
        held.length, held.flags, held.at = length, segment.flags, segment.at
        memcpy(held.frame, frame, length)
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
        self.held_bytes += length
        if flow.first != held and not self.awaiting_commit:
            return self._pump(flow)
        return HANDLED

    cdef Done _svm(self, const uint8_t* frame, uint32_t length) noexcept nogil:
        cdef Segment segment
        cdef Flow* flow
        cdef Done done
        if not parse(frame, length, &segment, False):
            return SLOW
        flow = self._find(&segment)
        if flow == NULL:
            return SLOW
        if flow.epoch != self.epoch:
            self._rebase(flow)
        if segment.end > segment.start:
            done = self._svm_payload(flow, segment.seq, frame + segment.start, segment.end - segment.start)
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
        if same and memcmp(flow.stream + flow.stream_start + at, payload, <size_t>same) != 0:
            return SLOW
        if known >= length:
            return HANDLED
        if flow.stream_length + length - known > self.stream_bytes_max or length - known > self.room_bytes:
            return SLOW
        if not _stream_append(flow, payload + known, <uint32_t>(length - known)):
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
            self._note_released(flow, held.seq + held.end - held.start)
            self._unlink(held)
            free(held)
            some = True
        if some:
            self._sample(arrived_ms)
        return HANDLED

    cdef Done _client(self, const uint8_t* frame, uint32_t length) noexcept nogil:
        """As `Flow.observe_client`."""
        cdef Segment segment
        cdef Flow* flow
        cdef uint32_t end
        cdef int64_t surplus
        if not parse(frame, length, &segment, True):
            return SLOW
        flow = self._find(&segment)
        if flow == NULL:
            return SLOW
        if flow.epoch != self.epoch:
            self._rebase(flow)
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
        if surplus >= TRIM_BYTES:
            if surplus > flow.stream_length:
                surplus = flow.stream_length
            flow.stream_start += <uint32_t>surplus
            flow.stream_length -= <uint32_t>surplus
            flow.base += <uint32_t>surplus
            flow.guessed = False
            self.stream_bytes -= surplus
            self.room_bytes += surplus
        return HANDLED

    cdef Done _one(self, int side, const uint8_t* frame, uint32_t length) noexcept nogil:
        if side == 0:
            return self._pvm(frame, length)
        if side == 1:
            return self._svm(frame, length)
        return self._client(frame, length)

    # ---------------------------------------------------------------- many frames

    def run(self, int side, const uint8_t[::1] packed, size_t at):
        """Frames of `packed` from place `at` on, until one is not for us: (its place or the end, what to do with it).

        `side`: 0 the PVM, 1 the SVM, 2 a client. What to do: 0 all is done, 1 the twin has to see this frame, 2 it has
        to say what leaves of this frame's connection.
        """
        cdef size_t size = packed.shape[0]
        cdef uint32_t length
        cdef Done done = HANDLED
        with nogil:
            while at + PREFIX <= size:
                length = be32(&packed[at])
                if length > FRAME_MAX or at + PREFIX + length > size:
                    at = size
                    break
                done = self._one(side, &packed[at] + PREFIX, length)
                if done != HANDLED:
                    break
                at += PREFIX + length
        if done == NO_MEMORY:
            raise MemoryError
        return at, <int>done

    def one(self, int side, bytes frame):
        """As `run`, for one frame: what to do with it."""
        cdef const uint8_t* text = frame
        cdef Done done = self._one(side, text, <uint32_t>len(frame)) if len(frame) <= FRAME_MAX else SLOW
        if done == NO_MEMORY:
            raise MemoryError
        return <int>done

    def pump_held(self):
        """Comparison begins again: release what may leave; keys of connections of which the twin has to say it."""
        slow = []
        for key in self.holding():
            done = self._pump(self._by_key(key))
            if done == NO_MEMORY:
                raise MemoryError
            if done == PUMP:
                slow.append(key)
        return slow

    def say(self, bytes frame):
        """Something else leaves in between."""
        cdef const uint8_t* text = frame
        if not put(&self._out, text, <uint32_t>len(frame)):
            raise MemoryError

    def take_out(self):
        """What leaves, packed, since the last call."""
        if not self._out.length:
            return b""
        taken = (<char*>self._out.data)[:self._out.length]
        self._out.length = 0
        return taken
