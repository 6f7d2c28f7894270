# Plain segments of settled connections on the secondary, with the rules of `secondary` and `connection`; included by
# _hot.pyx. A connection's numbers are in one place, in C, and the Python rules work on the same: nothing goes to and fro.
# What is retained is here as well, whoever has kept it, so that the oldest of all goes first.

include "_hot_connection.pxi"
include "_hot_to_guest.pxi"

cdef struct Kept:
    Kept* chain
    Kept* before  # among all that are kept, by age
    Kept* behind
    int64_t no
    uint32_t length
    uint8_t frame[0]


cdef class HotConnections:
    """Finds connections while they live (`ConnectionState` owns them), and is a `retained.Retention`."""

    cdef Known** _table
    cdef size_t _size
    cdef size_t _count
    cdef uint64_t _seed
    cdef Kept** _kept
    cdef size_t _kept_size
    cdef Kept* _oldest
    cdef Kept* _newest
    cdef Buffer _out
    cdef int64_t _frames_max
    cdef int64_t _bytes_max
    cdef readonly int64_t kept_frames
    cdef readonly int64_t kept_bytes

    def __cinit__(self, uint64_t seed, int64_t frames_max, int64_t bytes_max):
        self._seed, self._frames_max, self._bytes_max = seed, frames_max, bytes_max
        self._size = self._kept_size = 1024
        self._table = <Known**>calloc(self._size, sizeof(Known*))
        self._kept = <Kept**>calloc(self._kept_size, sizeof(Kept*))
        if self._table == NULL or self._kept == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self._kept != NULL:
            self.clear()
        free(self._table)
        free(self._kept)
        free(self._out.data)

    def __len__(self):
        return self._count

    # ---------------------------------------------------------------- the table

    cdef int _link(self, Known* known) except -1:
        if known.key_length != 12 and known.key_length != 36:
            return 0  # with VLAN tags, which `parse` does not look behind
        if self._count >= self._size:
            self._grow()
        known.hashed = hash_of(known.key, known.key_length, self._seed)
        known.chain = self._table[known.hashed & (self._size - 1)]
        self._table[known.hashed & (self._size - 1)] = known
        known.is_linked = True
        self._count += 1
        return 0

    cdef void _unlink_known(self, Known* known) noexcept nogil:
        cdef Known** place = &self._table[known.hashed & (self._size - 1)]
        while place[0] != known:
            place = &place[0].chain
        place[0] = known.chain
        known.is_linked = False
        self._count -= 1

    cdef int _grow(self) except -1:
        cdef size_t size = self._size * 2
        cdef size_t place
        cdef Known* known
        cdef Known** larger = <Known**>calloc(size, sizeof(Known*))
        if larger == NULL:
            raise MemoryError
        for place in range(self._size):
            while self._table[place] != NULL:
                known = self._table[place]
                self._table[place] = known.chain
                known.chain = larger[known.hashed & (size - 1)]
                larger[known.hashed & (size - 1)] = known
        free(self._table)
        self._table, self._size = larger, size
        return 0

    cdef Known* _find(self, Segment* segment) noexcept nogil:
        cdef uint64_t hashed = hash_of(segment.key, segment.key_length, self._seed)
        cdef Known* known = self._table[hashed & (self._size - 1)]
        while known != NULL:
            if known.hashed == hashed and known.key_length == segment.key_length:
                if memcmp(known.key, segment.key, segment.key_length) == 0:
                    return known
            known = known.chain
        return NULL

    # ---------------------------------------------------------------- what is retained

    cdef Kept** _kept_place(self, int64_t no) noexcept nogil:
        """Where the one with this number is pointed to from, or would be."""
        cdef uint64_t mixed = (<uint64_t>no ^ self._seed) * <uint64_t>0x9E3779B97F4A7C15
        cdef Kept** place = &self._kept[(mixed ^ (mixed >> 32)) & (self._kept_size - 1)]
        while place[0] != NULL and place[0].no != no:
            place = &place[0].chain
        return place

    cdef bint _kept_grow(self) noexcept nogil:
        cdef Kept** larger = <Kept**>calloc(2 * self._kept_size, sizeof(Kept*))
        cdef Kept** place
        cdef Kept* kept = self._oldest
        if larger == NULL:
            return False
        free(self._kept)
        self._kept = larger
        self._kept_size *= 2
        while kept != NULL:
            kept.chain = NULL
            place = self._kept_place(kept.no)
            place[0] = kept
            kept = kept.behind
        return True

    cdef void _free_kept(self, Kept** place) noexcept nogil:
        cdef Kept* kept = place[0]
        place[0] = kept.chain
        if kept.before != NULL:
            kept.before.behind = kept.behind
        else:
            self._oldest = kept.behind
        if kept.behind != NULL:
            kept.behind.before = kept.before
        else:
            self._newest = kept.before
        self.kept_frames -= 1
        self.kept_bytes -= kept.length
        free(kept)

    cdef void _drop(self, int64_t no) noexcept nogil:
        cdef Kept** place = self._kept_place(no)
        if place[0] != NULL:
            self._free_kept(place)

    cdef bint _keep(self, int64_t no, const uint8_t* frame, uint32_t length) noexcept nogil:
        """As `Retained.keep`."""
        cdef Kept* kept
        cdef Kept** place
        self._drop(no)
        if self.kept_frames >= <int64_t>self._kept_size and not self._kept_grow():
            return False
        kept = <Kept*>malloc(sizeof(Kept) + length)
        if kept == NULL:
            return False
        kept.chain, kept.before, kept.behind = NULL, self._newest, NULL
        kept.no, kept.length = no, length
        memcpy(kept.frame, frame, length)
        place = self._kept_place(no)
        place[0] = kept
        if self._newest != NULL:
            self._newest.behind = kept
        else:
            self._oldest = kept
        self._newest = kept
        self.kept_frames += 1
        self.kept_bytes += length
        while self._oldest != NULL and (self.kept_frames > self._frames_max or self.kept_bytes > self._bytes_max):
            self._free_kept(self._kept_place(self._oldest.no))
        return True

    def keep(self, int64_t no, bytes frame):
        cdef const uint8_t* text = frame
        if not self._keep(no, text, <uint32_t>len(frame)):
            raise MemoryError

    def drop(self, int64_t no):
        self._drop(no)

    def take(self):
        frames = []
        cdef Kept* kept = self._oldest
        while kept != NULL:
            frames.append((<char*>kept.frame)[:kept.length])
            kept = kept.behind
        self.clear()
        return frames

    cpdef clear(self):
        while self._oldest != NULL:
            self._free_kept(self._kept_place(self._oldest.no))

    # ---------------------------------------------------------------- one frame

    cdef Done _inbound(self, const uint8_t* frame, uint32_t length) noexcept nogil:
        """As `SecondaryDataplane._client_frame`."""
        cdef Segment segment
        cdef Known* known
        cdef size_t place = self._out.length + PREFIX
        cdef int64_t no
        if not parse(frame, length, &segment, True):
            if not _is_datagram(frame, length):
                return SLOW
            return HANDLED if put(&self._out, frame, length) else NO_MEMORY
        known = self._find(&segment)
        if known != NULL and (known.learning or known.has_syn_value):
            return SLOW
        if not put(&self._out, frame, length):
            return NO_MEMORY
        if known == NULL or not known.existed:
            return HANDLED
        to_guest(known, self._out.data + place, &segment)
        while sent_pop(known, segment.ack + known.seq_add, &no):
            self._drop(no)
        return HANDLED

    cdef Done _outbound(self, int64_t no, const uint8_t* frame, uint32_t length) noexcept nogil:
        """As `SecondaryDataplane._svm_frame`."""
        cdef Segment segment
        cdef Known* known
        cdef uint32_t payload
        if not parse(frame, length, &segment, False):
            if not _is_datagram(frame, length):
                return SLOW
            return HANDLED if self._keep(no, frame, length) else NO_MEMORY
        known = self._find(&segment)
        if known == NULL or known.learning:
            return SLOW
        if not self._keep(no, frame, length):
            return NO_MEMORY
        known.was_reset = False
        payload = segment.end - segment.start
        if payload:
            return HANDLED if sent_push(known, no, segment.seq + payload) else NO_MEMORY
        if known.has_last_ack:
            self._drop(known.last_ack_no)
        known.last_ack_no, known.has_last_ack = no, True
        return HANDLED

    # ---------------------------------------------------------------- many frames

    def inbound(self, const uint8_t[::1] packed, size_t at):
        """A client's frames from place `at` on, until one is for the Python rules: (its place or the end, whether it is
        there). What comes of the others, and of what is said in between, gives `take_out`.
        """
        cdef size_t size = packed.shape[0]
        cdef int64_t length
        cdef Done done = HANDLED
        if at == 0:
            self._out.length = 0
        with nogil:
            while at < size:
                length = length_of(&packed[0], at, size)
                if length < 0:
                    at = size
                    break
                done = self._inbound(&packed[at] + PREFIX, <uint32_t>length)
                if done != HANDLED:
                    break
                at += PREFIX + <size_t>length
        if done == NO_MEMORY:
            raise MemoryError
        return at, done == SLOW

    def outbound(self, const uint8_t[::1] packed, size_t at, int64_t no):
        """As `inbound`, of the SVM's frames, the first of which has the number `no`: (place, its number, whether)."""
        cdef size_t size = packed.shape[0]
        cdef int64_t length
        cdef Done done = HANDLED
        with nogil:
            while at < size:
                length = length_of(&packed[0], at, size)
                if length < 0:
                    at = size
                    break
                done = self._outbound(no, &packed[at] + PREFIX, <uint32_t>length)
                if done != HANDLED:
                    break
                at += PREFIX + <size_t>length
                no += 1
        if done == NO_MEMORY:
            raise MemoryError
        return at, no, done == SLOW

    def say(self, bytes frame):
        """Something else comes in between."""
        cdef const uint8_t* text = frame
        if not put(&self._out, text, <uint32_t>len(frame)):
            raise MemoryError

    def take_out(self):
        """What has come since `inbound` began at place 0, packed."""
        return hand_over(&self._out)
