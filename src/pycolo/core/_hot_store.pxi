# The table of `HotFlows`; included by _hot.pyx.


cdef class FlowStore:
    """Connections, what they hold, and the way here and back. Attributes are told and read by `hot_dataplane`."""

    cdef Flow** _table
    cdef size_t _size
    cdef size_t _count
    cdef uint64_t _seed
    cdef Held* _oldest
    cdef Held* _newest
    cdef Pool _pool
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
    cdef public int64_t total_bytes_max  # and at first
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
        give_pool(&self._pool)
        free(self._out.data)

    def __len__(self):
        return self._count

    # ---------------------------------------------------------------- the table

    cdef Flow* _find(self, Segment* segment) noexcept nogil:
        cdef Flow* flow = self._table[segment.hashed & (self._size - 1)]
        while flow != NULL:
            if flow.hashed == segment.hashed and flow.key_length == segment.key_length:
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
        segment.hashed = hash_of(segment.key, segment.key_length, self._seed)
        return self._find(&segment)

    cdef void _free(self, Flow* flow) noexcept nogil:
        cdef Held* held
        while flow.first != NULL:
            held = flow.first
            flow.first = held.next
            self._give_held(held)
        self.stream_bytes -= flow.stream_length
        stream_clear(&self._pool, flow)
        give_block(&self._pool, flow, sizeof(Flow))

    cdef void _give_held(self, Held* held) noexcept nogil:
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
        give_block(&self._pool, held, sizeof(Held) + held.length)

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

    def freeze(self, bytes key, tuple numbers, bytes stream, double touched_ms, bint followed,
               uint32_t trim_bytes):
        """Take over a connection that holds nothing. `numbers` as `thaw` gives them; `followed`: by a tolerance."""
        cdef Flow* flow
        cdef const uint8_t* text = key
        cdef const uint8_t* said = stream
        if len(key) != 12 and len(key) != 36:
            return False  # with VLAN tags, which `parse` does not look behind
        if self._count >= self._size:
            self._grow()
        flow = <Flow*>take_block(&self._pool, sizeof(Flow))
        if flow == NULL:
            raise MemoryError
        memset(flow, 0, sizeof(Flow))
        flow.key_length = <uint8_t>len(key)
        memcpy(flow.key, text, flow.key_length)
        (flow.base, flow.guessed, flow.delta, flow.pvm_first, flow.pvm_next, flow.pvm_ack, flow.released, flow.svm_ack,
         flow.left_ack, flow.has_acked, flow.acked, flow.has_client_next, flow.client_next) = numbers
        flow.epoch, flow.touched_ms, flow.followed = self.epoch, touched_ms, followed
        flow.trim_bytes = trim_bytes
        if not stream_append(&self._pool, flow, said, <uint32_t>len(stream)):
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
                   flow.svm_ack, flow.left_ack, flow.has_acked, flow.acked, flow.has_client_next, flow.client_next)
        stream = PyBytes_FromStringAndSize(NULL, flow.stream_length)
        stream_copy(flow, <uint8_t*>PyBytes_AS_STRING(stream))
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
        """(number of the oldest held frame, key) of the connections that hold something, in that order."""
        found = []
        cdef Held* held = self._oldest
        while held != NULL:
            if held.flow.first == held:
                found.append((held.no, (<char*>held.flow.key)[:held.flow.key_length]))
            held = held.behind
        return found

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

    cdef void _rebase(self, Flow* flow) noexcept nogil:
        """As `Flow.rebase`, for one that holds nothing: the SVM is a copy of the PVM, and its stream the PVM's."""
        cdef uint32_t base = flow.base - flow.delta
        cdef int64_t length = distance(flow.released, base)
        cdef int64_t surplus
        if length > flow.stream_length:
            length = flow.stream_length
        if length <= 0 or base + <uint32_t>length != flow.pvm_next:
            base, length = flow.pvm_next, 0
        self.stream_bytes += length - flow.stream_length
        stream_cut(&self._pool, flow, <uint32_t>length)
        surplus = length - self.stream_bytes_max // 2
        if surplus > 0:
            base, length = base + <uint32_t>surplus, length - surplus
            stream_trim(&self._pool, flow, <uint32_t>surplus)
            self.stream_bytes -= surplus
        flow.base, flow.guessed, flow.delta = base, False, 0
        flow.svm_ack, flow.released, flow.left_ack = flow.pvm_ack, flow.pvm_next, flow.pvm_ack
        flow.epoch, flow.touched_ms = self.epoch, self.now_ms
